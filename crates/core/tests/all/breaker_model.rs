//! The breaker against a model of it that is slow and obvious: it keeps every call of the present
//! generation in a list and counts it anew each time. Any sequence of operations, in virtual time,
//! must find the two in agreement.

use std::time::{Duration, Instant};

use proptest::{prelude::*, sample::Index};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use steadfast_core::policy::{
    Breaker, BreakerConfig,
    breaker::{Admission, Outcome, Permit, Refused, State},
};

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn c9_a_breaker_does_what_its_model_does(sequential 1..150 => Subject);
}

fn config() -> BreakerConfig {
    BreakerConfig {
        window: ms(1000),
        minimum_calls: 10,
        failure_rate: 0.5,
        consecutive_failures: Some(4),
        slow_rate: 0.8,
        open_first: ms(100),
        open_cap: ms(800),
        healthy_after: ms(500),
        probes: 2,
        probe_successes: 2,
        ramp: ms(300),
        ramp_start: 20.0,
        ..BreakerConfig::default()
    }
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Times are in milliseconds since the start.
#[derive(Clone, Debug)]
struct Model {
    now: u64,
    state: State,
    by_hand: bool,
    /// Open until; half-open or closed since.
    at: u64,
    trouble_since: u64,
    openings: u32,
    generation: u32,
    succeeded: u32,
    /// What was counted in this generation while closed.
    calls: Vec<(u64, Outcome)>,
    in_a_row: u32,
    permits: Vec<ModelPermit>,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct ModelPermit {
    generation: u32,
    probe: bool,
}

/// What the last operation is to answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Admitted { probe: bool, began_half_open: bool },
    Refused { since: u64, retry_after: u64 },
    Changed(Option<(State, State)>),
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Acquire,
    Record(Index, Outcome),
    Forget(Index),
    Successes(u64),
    Loss,
    OwnProbe,
    Timeout,
    ForceOpen,
    Enable,
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model {
            now: 0,
            state: State::Closed,
            by_hand: false,
            at: 0,
            trouble_since: 0,
            openings: 0,
            generation: 1,
            succeeded: 0,
            calls: Vec::new(),
            in_a_row: 0,
            permits: Vec::new(),
            answer: Answer::Changed(None),
        })
        .boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let outcomes = prop_oneof![
            3 => Just(Outcome::Success),
            5 => Just(Outcome::Failure),
            3 => Just(Outcome::Slow),
        ];
        prop_oneof![
            6 => (0..120_u64).prop_map(Step::Pass),
            1 => (0..2_000_u64).prop_map(Step::Pass),
            12 => Just(Step::Acquire),
            12 => (any::<Index>(), outcomes).prop_map(|(which, outcome)| Step::Record(which, outcome)),
            2 => any::<Index>().prop_map(Step::Forget),
            2 => (0..4_u64).prop_map(Step::Successes),
            1 => Just(Step::Loss),
            1 => Just(Step::OwnProbe),
            1 => Just(Step::Timeout),
            1 => prop_oneof![Just(Step::ForceOpen), Just(Step::Enable), Just(Step::Enable)],
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.answer = model.answer_to(step);
        model
    }
}

impl Model {
    fn answer_to(&mut self, step: &Step) -> Answer {
        match step {
            Step::Pass(time) => self.now += time,
            Step::Acquire => return self.acquire(),
            Step::Record(which, outcome) => {
                let Some(permit) = self.take(which) else {
                    return Answer::Changed(None);
                };
                return Answer::Changed(self.record(permit, *outcome));
            }
            Step::Forget(which) => drop(self.take(which)),
            Step::Successes(n) => {
                for _ in 0..*n {
                    self.count(Outcome::Success);
                }
            }
            Step::Loss if self.state == State::HalfOpen => {
                return Answer::Changed(Some(self.open()));
            }
            Step::Loss => return Answer::Changed(self.count(Outcome::Failure)),
            Step::OwnProbe if self.state != State::Closed && !self.by_hand => {
                return Answer::Changed(Some(self.go(State::Closed)));
            }
            Step::OwnProbe => (),
            Step::Timeout => return Answer::Changed(self.timeout()),
            Step::ForceOpen => {
                if self.state == State::Closed {
                    self.trouble_since = self.now;
                }
                self.by_hand = true;
                let change = self.go(State::Open);
                return Answer::Changed((change.0 != change.1).then_some(change));
            }
            Step::Enable if self.by_hand => {
                self.by_hand = false;
                self.openings = 0;
                return Answer::Changed(Some(self.go(State::Closed)));
            }
            Step::Enable => (),
        }
        Answer::Changed(None)
    }

    fn acquire(&mut self) -> Answer {
        let change = self.timeout();
        let began_half_open = change.is_some();
        let probe = self.state == State::HalfOpen;
        let refused = |retry_after| Answer::Refused {
            since: self.trouble_since,
            retry_after,
        };
        match self.state {
            State::Open if self.by_hand => return refused(800),
            State::Open => return refused(self.at - self.now),
            State::HalfOpen if self.probes_out() == 2 => return refused(100),
            State::HalfOpen | State::Closed => (),
        }
        self.permits.push(ModelPermit {
            generation: self.generation,
            probe,
        });
        Answer::Admitted {
            probe,
            began_half_open,
        }
    }

    fn record(&mut self, permit: ModelPermit, outcome: Outcome) -> Option<(State, State)> {
        if permit.generation != self.generation {
            return None;
        }
        match (self.state, outcome) {
            (State::Closed, _) => self.count(outcome),
            (State::HalfOpen, Outcome::Success) => {
                self.succeeded += 1;
                (self.succeeded == 2).then(|| self.go(State::Closed))
            }
            (State::HalfOpen, _) => Some(self.open()),
            (State::Open, _) => None,
        }
    }

    fn count(&mut self, outcome: Outcome) -> Option<(State, State)> {
        if self.state != State::Closed {
            return None;
        }
        self.calls.push((self.now / 100, outcome));
        self.in_a_row = if outcome == Outcome::Failure {
            self.in_a_row + 1
        } else {
            0
        };
        let recent = || {
            self.calls
                .iter()
                .filter(|(slice, _)| slice + 10 > self.now / 100)
        };
        let of = |kind| recent().filter(|(_, outcome)| *outcome == kind).count();
        let total = recent().count();
        let rates = 2 * of(Outcome::Failure) >= total || 10 * of(Outcome::Slow) >= 8 * total;
        let too_many = self.in_a_row == 4 || (total >= 10 && rates);
        (outcome != Outcome::Success && too_many).then(|| self.open())
    }

    fn timeout(&mut self) -> Option<(State, State)> {
        match self.state {
            State::Open if !self.by_hand && self.at <= self.now => Some(self.go(State::HalfOpen)),
            State::HalfOpen if self.probes_out() == 2 && self.at + 800 <= self.now => {
                self.go(State::HalfOpen);
                None
            }
            _ => None,
        }
    }

    fn open(&mut self) -> (State, State) {
        if self.state == State::Closed {
            self.trouble_since = self.now;
            if self.now - self.at >= 500 {
                self.openings = 0;
            }
        }
        let change = self.go(State::Open);
        self.at = self.now + (100 << self.openings.min(3));
        self.openings += 1;
        change
    }

    fn go(&mut self, to: State) -> (State, State) {
        let from = std::mem::replace(&mut self.state, to);
        self.generation += 1;
        self.at = self.now;
        (self.succeeded, self.in_a_row) = (0, 0);
        self.calls.clear();
        (from, to)
    }

    fn take(&mut self, which: &Index) -> Option<ModelPermit> {
        let len = self.permits.len();
        (len > 0).then(|| self.permits.swap_remove(which.index(len)))
    }

    fn probes_out(&self) -> usize {
        let live = |permit: &&ModelPermit| permit.probe && permit.generation == self.generation;
        self.permits.iter().filter(live).count()
    }
}

struct Subject {
    breaker: Breaker,
    start: Instant,
    permits: Vec<Permit>,
}

impl StateMachineTest for Subject {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        let start = Instant::now();
        Self {
            breaker: Breaker::new(config(), start).unwrap(),
            start,
            permits: Vec::new(),
        }
    }

    fn apply(mut subject: Self, model: &Model, step: Step) -> Self {
        let answer = subject.answer_to(&step, subject.start + ms(model.now));
        assert_eq!(answer, model.answer);
        subject
    }

    fn check_invariants(subject: &Self, model: &Model) {
        assert_eq!(subject.breaker.state(), model.state);
        let now = subject.start + ms(model.now);
        let due = subject.breaker.poll_timeout();
        let opens_at = subject.start + ms(model.at);
        match model.state {
            State::Open => assert_eq!(due, (!model.by_hand).then_some(opens_at)),
            State::HalfOpen => assert_eq!(due.is_some(), model.probes_out() == 2),
            State::Closed => assert!(due.is_none_or(|due| due <= now + ms(300))),
        }
        assert_eq!(
            subject.breaker.trouble_since().is_some(),
            model.state != State::Closed
        );
        assert!(model.probes_out() <= 2);
    }
}

impl Subject {
    fn answer_to(&mut self, step: &Step, now: Instant) -> Answer {
        let transition = match step {
            Step::Pass(_) => None,
            Step::Acquire => return self.acquire(now),
            Step::Record(which, outcome) => match self.take(which) {
                Some(permit) => self.breaker.record(permit, *outcome, now),
                None => None,
            },
            Step::Forget(which) => {
                if let Some(permit) = self.take(which) {
                    self.breaker.forget(permit);
                }
                None
            }
            Step::Successes(n) => {
                self.breaker.record_successes(*n, now);
                None
            }
            Step::Loss => self.breaker.record_loss(now),
            Step::OwnProbe => self.breaker.probe_succeeded(now),
            Step::Timeout => self.breaker.handle_timeout(now),
            Step::ForceOpen => self.breaker.force_open(now),
            Step::Enable => self.breaker.enable(now),
        };
        Answer::Changed(transition.map(|transition| {
            assert_eq!(transition.at, now);
            (transition.from, transition.to)
        }))
    }

    fn acquire(&mut self, now: Instant) -> Answer {
        let permit = match self.breaker.try_acquire(now) {
            Ok(Admission::Now(permit)) => permit,
            Ok(Admission::Delay { until, permit }) => {
                assert!(now < until && until <= now + ms(300));
                permit
            }
            Err(Refused { since, retry_after }) => {
                let since = (since - self.start).as_millis() as u64;
                return Answer::Refused {
                    since,
                    retry_after: retry_after.as_millis() as u64,
                };
            }
        };
        let answer = Answer::Admitted {
            probe: permit.is_probe(),
            began_half_open: permit.transition().is_some(),
        };
        self.permits.push(permit);
        answer
    }

    fn take(&mut self, which: &Index) -> Option<Permit> {
        let len = self.permits.len();
        (len > 0).then(|| self.permits.swap_remove(which.index(len)))
    }
}
