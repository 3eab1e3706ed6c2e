//! The breaker as the shell keeps it: behind a lock that the healthy path never takes.

pub(crate) mod ramp;

use std::time::Instant;

use steadfast_core::policy::breaker::{Admission, BreakerMode, Outcome, Permit, State, Transition};
use steadfast_core::policy::{Breaker, BreakerConfig};

use crate::breaker::ramp::RampQueue;
use crate::error::{Error, ErrorKind};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// The breaker of one client, for which calls that pass freely take no lock.
#[derive(Debug)]
pub(crate) struct BreakerGate {
    counted: Mutex<CountedOnce>,
    /// The breaker's generation while calls pass without asking, else 0.
    free: AtomicU64,
    /// Successful calls so far, as each connection's driver counts them. They are added before the
    /// breaker is told of anything else; otherwise two failures with thousands of successes between
    /// them would look like failures in a row.
    successes: Box<[Count]>,
    /// The queue of calls that do not pass freely. While a call is in it, none passes freely.
    pub(crate) ramp: RampQueue,
}

#[derive(Debug)]
struct CountedOnce {
    breaker: Breaker,
    /// The part of `successes` that the breaker knows of.
    told: u64,
}

/// On a cache line of its own: its driver writes it while callers read the others.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Count(AtomicU64);

/// The right to make one attempt.
#[derive(Debug)]
pub(crate) struct AttemptPermit {
    pub(crate) permit: Permit,
    /// The instant before which the attempt must not begin.
    pub(crate) not_before: Option<Instant>,
    /// Whether it waits behind attempts that asked earlier: see [`RampQueue`].
    pub(crate) queued: bool,
    /// The breaker's generation when it gave the permit.
    pub(crate) generation: u64,
}

impl BreakerGate {
    pub(crate) fn new(
        config: BreakerConfig,
        connections: usize,
        now: Instant,
    ) -> Result<Self, steadfast_core::policy::InvalidSetting> {
        let breaker = Breaker::new(config, now)?;
        let gate = Self {
            free: AtomicU64::new(0),
            counted: Mutex::new(CountedOnce { breaker, told: 0 }),
            successes: (0..connections).map(|_| Count::default()).collect(),
            ramp: RampQueue::default(),
        };
        gate.with(now, |_| ());
        Ok(gate)
    }

    /// Adds calls of this connection that ended well. Only its driver may call this: a single
    /// writer needs neither a lock nor an atomic addition.
    pub(crate) fn count_successes(&self, connection: usize, n: u64) {
        if let Some(Count(count)) = self.successes.get(connection) {
            count.store(
                count.load(Ordering::Relaxed).wrapping_add(n),
                Ordering::Relaxed,
            );
        }
    }

    /// Asks for one attempt. On the healthy path this is one load.
    pub(crate) fn admit(&self, now: Instant) -> Result<AttemptPermit, Error> {
        let free = self.free.load(Ordering::Acquire);
        if free != 0 {
            return Ok(AttemptPermit {
                permit: Permit::passed(free),
                not_before: None,
                queued: false,
                generation: free,
            });
        }
        let (admission, generation) = self.with(now, |breaker| {
            (breaker.try_acquire(now), breaker.generation())
        });
        admission
            .map(|admission| {
                let (permit, not_before) = match admission {
                    Admission::Now(permit) => (permit, None),
                    Admission::Delay { until, permit } => (permit, Some(until)),
                };
                AttemptPermit {
                    permit,
                    not_before,
                    queued: true,
                    generation,
                }
            })
            .map_err(|refused| {
                Error::not_sent(ErrorKind::BreakerOpen {
                    open_for: now.saturating_duration_since(refused.since),
                    retry_after: refused.retry_after,
                })
            })
    }

    /// Records how an attempt ended. Successes of calls that passed freely are counted by the
    /// driver, in batches.
    pub(crate) fn record(
        &self,
        permit: Permit,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Transition> {
        if outcome == Outcome::Success && !permit.is_probe() {
            return None;
        }
        self.with(now, |breaker| breaker.record(permit, outcome, now))
    }

    /// Gives back the permit of an attempt that told nothing of the server.
    pub(crate) fn forget(&self, permit: Permit) {
        if permit.is_probe() {
            self.counted.lock().breaker.forget(permit);
        }
    }

    pub(crate) fn record_slow(&self, n: u32, now: Instant) -> Option<Transition> {
        self.with(now, |breaker| {
            let mut last = None;
            for _ in 0..n {
                let permit = Permit::passed(breaker.generation());
                last = breaker.record(permit, Outcome::Slow, now).or(last);
            }
            last
        })
    }

    pub(crate) fn record_loss(&self, now: Instant) -> Option<Transition> {
        self.with(now, |breaker| breaker.record_loss(now))
    }

    pub(crate) fn probe_succeeded(&self, now: Instant) -> Option<Transition> {
        self.with(now, |breaker| breaker.probe_succeeded(now))
    }

    pub(crate) fn state(&self) -> State {
        self.counted.lock().breaker.state()
    }

    /// Returns the number of good calls that the breaker was not told of yet.
    #[cfg(test)]
    pub(crate) fn untold(&self) -> u64 {
        let counts = self.successes.iter();
        let all: u64 = counts
            .map(|Count(count)| count.load(Ordering::Relaxed))
            .sum();
        all - self.counted.lock().told
    }

    /// Puts a person in charge, or the breaker again.
    pub(crate) fn set_mode(&self, mode: BreakerMode, now: Instant) -> Option<Transition> {
        self.with(now, |breaker| match mode {
            BreakerMode::Automatic => breaker.enable(now),
            BreakerMode::ForcedOpen => breaker.force_open(now),
            BreakerMode::ForcedClosed => breaker.force_closed(now),
            BreakerMode::Disabled => breaker.disable(now),
        })
    }

    /// Does the work that is due: ends the ramp, so that calls pass freely again.
    pub(crate) fn settle(&self, now: Instant) -> Option<Transition> {
        self.with(now, |breaker| breaker.handle_timeout(now))
    }

    fn with<T>(&self, now: Instant, work: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut counted = self.counted.lock();
        let counts = self.successes.iter();
        let all = counts.fold(0, |sum: u64, Count(count)| {
            sum.wrapping_add(count.load(Ordering::Relaxed))
        });
        let fresh = all.wrapping_sub(std::mem::replace(&mut counted.told, all));
        let breaker = &mut counted.breaker;
        breaker.record_successes(fresh, now);
        let ramp = breaker.ramps().then(|| breaker.generation());
        let result = work(breaker);
        if ramp.is_some_and(|ramp| ramp != breaker.generation()) {
            self.ramp.recall(breaker.generation(), now);
        }
        let free = if breaker.passes_freely() && self.ramp.is_clear(now) {
            breaker.generation()
        } else {
            0
        };
        self.free.store(free, Ordering::Release);
        result
    }
}

/// A permit that is given back if its call is dropped.
pub(crate) struct HeldPermit<'a> {
    gate: &'a BreakerGate,
    permit: Option<Permit>,
}

impl<'a> HeldPermit<'a> {
    pub(crate) fn new(gate: &'a BreakerGate, permit: Permit) -> Self {
        Self {
            gate,
            permit: Some(permit),
        }
    }

    pub(crate) fn take(&mut self) -> Option<Permit> {
        self.permit.take()
    }
}

impl Drop for HeldPermit<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.gate.forget(permit);
        }
    }
}

pub(crate) fn state_name(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open => "open",
        State::HalfOpen => "half_open",
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn failing() -> (BreakerGate, Instant) {
        let now = crate::clock::now();
        let gate = BreakerGate::new(BreakerConfig::default(), 1, now).expect("good settings");
        for _ in 0..5 {
            let pass = gate.admit(now).expect("it is closed");
            gate.record(pass.permit, Outcome::Failure, now);
        }
        (gate, now)
    }

    #[test]
    fn calls_that_passed_freely_still_open_the_breaker() {
        let (gate, now) = failing();
        assert_eq!(gate.state(), State::Open);
        let refused = gate.admit(now).expect_err("it is open");
        assert!(matches!(refused.kind(), ErrorKind::BreakerOpen { .. }));
    }

    #[test]
    fn c9_failures_with_successes_between_them_do_not_come_in_a_row() {
        let now = crate::clock::now();
        let config = BreakerConfig::default();
        let gate = BreakerGate::new(config, 2, now).expect("good settings");
        for round in 0..50 {
            let pass = gate.admit(now).expect("it is closed");
            gate.record(pass.permit, Outcome::Failure, now);
            // The driver has not told the breaker of these.
            gate.count_successes(round % 2, 99);
        }
        assert_eq!(gate.state(), State::Closed);
        assert!(gate.record_slow(20, now).is_none(), "20 of 5 000 are few");
    }

    #[test]
    fn probes_that_are_forgotten_give_their_places_back() {
        let (gate, now) = failing();
        let later = now + Duration::from_secs(6);
        for _ in 0..100 {
            let pass = gate.admit(later).expect("there is a place");
            assert!(pass.permit.is_probe());
            gate.forget(pass.permit);
        }
    }

    #[test]
    fn a_closed_breaker_costs_one_load_again_once_its_ramp_is_over() {
        let (gate, now) = failing();
        gate.probe_succeeded(now);
        assert_eq!(gate.state(), State::Closed);
        gate.settle(now + Duration::from_secs(60));
        let pass = gate.admit(now).expect("it is closed");
        assert!(pass.not_before.is_none() && !pass.permit.is_probe());
        assert_ne!(gate.free.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_breaker_forced_open_by_hand_stays_so_until_it_is_let_go() {
        let now = crate::clock::now();
        let gate = BreakerGate::new(BreakerConfig::default(), 1, now).expect("good settings");
        gate.set_mode(BreakerMode::ForcedOpen, now);
        gate.probe_succeeded(now);
        gate.admit(now).expect_err("it is forced open");
        gate.set_mode(BreakerMode::Automatic, now);
        gate.admit(now).expect("it judges by itself again");
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn gate(now: Instant) -> Arc<BreakerGate> {
        let config = BreakerConfig {
            consecutive_failures: Some(2),
            ..BreakerConfig::default()
        };
        Arc::new(BreakerGate::new(config, 1, now).expect("good settings"))
    }

    #[test]
    fn c9_nobody_passes_freely_once_the_breaker_is_open() {
        loom::model(|| {
            let now = crate::clock::now();
            let gate = gate(now);
            let other = Arc::clone(&gate);
            let other = thread::spawn(move || {
                if let Ok(pass) = other.admit(now) {
                    other.record(pass.permit, Outcome::Failure, now);
                }
            });
            gate.set_mode(BreakerMode::ForcedOpen, now);
            assert!(gate.admit(now).is_err(), "whatever was under way");
            other.join().expect("it ends");
            assert!(gate.admit(now).is_err());
        });
    }

    #[test]
    fn c9_a_success_is_told_once_however_it_meets_a_failure() {
        loom::model(|| {
            let now = crate::clock::now();
            let gate = gate(now);
            let driver = Arc::clone(&gate);
            let driver = thread::spawn(move || {
                driver.count_successes(0, 3);
                driver.count_successes(0, 4);
            });
            gate.record_loss(now);
            driver.join().expect("it ends");
            gate.settle(now);
            assert_eq!(gate.counted.lock().told, 7);
        });
    }
}
