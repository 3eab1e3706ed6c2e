//! Bulkhead, rate and queue: pure but for the channel that tells a waiter of its turn.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::bounds::{ClassBound, ClassGuard, GuardOptions, Rejection, Urgency};

/// Bulkhead, rate and queue of all classes.
pub(super) struct AdmissionQueue {
    concurrency: usize,
    pub(super) running: usize,
    rate: f64,
    all: Bucket,
    refreshes: Bucket,
    ramp: Duration,
    pub(super) ramp_from: Option<Instant>,
    bound: usize,
    /// One for each class.
    classes: Box<[ClassQueue]>,
    arrivals: u64,
    /// Whether any load has ended, well or not.
    tried: bool,
}

/// The loads of one class, with the bounds of its own.
struct ClassQueue {
    concurrency: usize,
    running: usize,
    rate: f64,
    bucket: Bucket,
    waiting: BTreeMap<Priority, oneshot::Sender<()>>,
    /// The moment when somebody of it was admitted last, or began to wait where nobody did.
    moved: Instant,
    /// Seconds between two admissions from the queue, of late.
    pace: f64,
    /// Whether somebody was admitted since the queue formed: what the first one waited for says
    /// nothing of the pace.
    flows: bool,
    /// Seconds that a load took, of late, if it ended well.
    took: f64,
}

/// By urgency, then by order of arrival, the earlier the greater.
type Priority = (Urgency, Reverse<u64>);

pub(super) enum Entrance {
    Admitted,
    Waiting(oneshot::Receiver<()>),
    Full,
}

impl AdmissionQueue {
    pub(super) fn new(
        options: &GuardOptions,
        classes: &[Option<ClassGuard>],
        now: Instant,
    ) -> Self {
        let burst = (options.rate / 10.0).max(1.0);
        let class = |own: &Option<ClassGuard>| {
            let (concurrency, rate) = own.map_or((usize::MAX, f64::INFINITY), |own| {
                (own.concurrency, own.rate)
            });
            ClassQueue {
                concurrency,
                running: 0,
                rate,
                bucket: Bucket::full((rate / 10.0).max(1.0), now),
                waiting: BTreeMap::new(),
                moved: now,
                pace: 0.0,
                flows: false,
                took: 0.0,
            }
        };
        Self {
            concurrency: options.concurrency,
            running: 0,
            rate: options.rate,
            all: Bucket::full(burst, now),
            refreshes: Bucket::full(burst, now),
            ramp: options.ramp,
            ramp_from: None,
            bound: options.waiting,
            classes: classes.iter().map(class).collect(),
            arrivals: 0,
            tried: false,
        }
    }

    pub(super) fn enter(
        &mut self,
        class: usize,
        urgency: Urgency,
        deadline: Instant,
        now: Instant,
    ) -> Entrance {
        self.let_in(now);
        if self.running < self.concurrency
            && self.classes[class].is_open_to(urgency)
            && self.pay(class, urgency, now).is_ok()
        {
            self.take(class);
            return Entrance::Admitted;
        }
        if self.waiting() >= self.bound && !self.make_room_for(urgency) {
            return Entrance::Full;
        }
        let (turn, told) = oneshot::channel();
        self.arrivals += 1;
        let priority = (urgency, Reverse(self.arrivals));
        let class = &mut self.classes[class];
        if class.waiting.is_empty() {
            (class.moved, class.flows) = (now, false);
        } else if class.is_too_long_for(urgency, deadline.saturating_duration_since(now)) {
            return Entrance::Full;
        }
        class.waiting.insert(priority, turn);
        Entrance::Waiting(told)
    }

    /// Admits waiters by urgency, as the bounds of their classes allow. Returns when to try again
    /// if only a rate is in the way.
    pub(super) fn let_in(&mut self, now: Instant) -> Option<Duration> {
        let mut soonest: Option<Duration> = None;
        let mut held_back: SmallVec<[usize; 8]> = SmallVec::new();
        while self.running < self.concurrency {
            let open = self.classes.iter_mut().enumerate();
            let open = open.filter(|(at, class)| class.has_room() && !held_back.contains(at));
            let next = open
                .filter_map(|(at, class)| Some((class.first()?, at)))
                .max();
            let Some((priority, class)) = next else {
                return soonest;
            };
            if let Err(pause) = self.pay(class, priority.0, now) {
                let pause = pause.max(Duration::from_millis(1));
                soonest = Some(soonest.map_or(pause, |soonest| soonest.min(pause)));
                held_back.push(class);
                continue;
            }
            let turn = self.classes[class].waiting.remove(&priority);
            if turn.is_some_and(|turn| turn.send(()).is_ok()) {
                self.classes[class].move_on(now);
                self.take(class);
            }
        }
        None
    }

    /// Up to when those of this class may wait without anybody being admitted: for `wait`, or
    /// several times as long as the loads that run take. Ten times `wait` while no load has ended
    /// at all: how long one takes, with the opening of its connection, is not known then.
    pub(super) fn stands_still_at(&self, class: usize, wait: Duration) -> Instant {
        if !self.tried {
            return self.classes[class].moved + wait * UNTRIED;
        }
        let running = self.classes.iter().filter(|class| class.running > 0);
        let longest = running.map(|class| class.took).fold(0.0, f64::max);
        let allowance = wait.max(span(longest * STILL_FOR));
        self.classes[class].moved + allowance
    }

    /// The last moment at which a load of this class may begin that has to end by `deadline`: it
    /// needs as long as others took, twice over.
    pub(super) fn latest(&self, class: usize, deadline: Instant, now: Instant) -> Instant {
        let left = deadline.saturating_duration_since(now);
        let needed = span(self.classes[class].took * 2.0).max(left / 8);
        deadline.checked_sub(needed.min(left / 2)).unwrap_or(now)
    }

    /// A load of this class has ended well in that time.
    pub(super) fn note(&mut self, class: usize, took: Duration) {
        let class = &mut self.classes[class];
        let weight = if class.took == 0.0 { 1.0 } else { 8.0 };
        class.took += (took.as_secs_f64() - class.took) / weight;
    }

    pub(super) fn leave(&mut self, class: usize) {
        self.tried = true;
        self.running -= 1;
        self.classes[class].running -= 1;
    }

    pub(super) fn waiting(&self) -> usize {
        self.classes.iter().map(|class| class.waiting.len()).sum()
    }

    pub(super) fn refusal(&mut self, class: usize, now: Instant) -> Rejection {
        let retry_after = self.retry_after(class);
        match self.own_bound(class, now) {
            Some(bound) => Rejection::Class { bound, retry_after },
            None => Rejection::Overloaded { retry_after },
        }
    }

    /// The bound of its own at which a class is. One that is no narrower than that of the whole is
    /// not what holds it up.
    fn own_bound(&mut self, class: usize, now: Instant) -> Option<ClassBound> {
        let class = &mut self.classes[class];
        class.bucket.refill(class.rate, now);
        if class.concurrency < self.concurrency && !class.has_room() {
            Some(ClassBound::Concurrency(class.concurrency))
        } else if class.rate < self.rate && class.bucket.tokens < 1.0 {
            Some(ClassBound::Rate(class.rate))
        } else {
            None
        }
    }

    fn retry_after(&self, class: usize) -> Duration {
        let class = &self.classes[class];
        let all = (self.waiting() + 1) as f64 / self.rate;
        let own = (class.waiting.len() + 1) as f64 / class.rate;
        Duration::from_secs_f64(all.max(own).clamp(0.01, 60.0))
    }

    fn take(&mut self, class: usize) {
        self.running += 1;
        self.classes[class].running += 1;
    }

    /// Of a full queue: drops who has gone away, else the least wanted of all if he is less wanted
    /// than this; which refuses him.
    fn make_room_for(&mut self, urgency: Urgency) -> bool {
        for class in &mut self.classes {
            class.waiting.retain(|_, turn| !turn.is_closed());
        }
        if self.waiting() < self.bound {
            return true;
        }
        let last = |class: &ClassQueue| {
            class
                .waiting
                .first_key_value()
                .map(|(priority, _)| *priority)
        };
        let least = (0..self.classes.len())
            .filter_map(|class| Some((last(&self.classes[class])?, class)))
            .min();
        match least {
            Some((priority, class)) if priority.0 < urgency => {
                self.classes[class].waiting.remove(&priority);
                true
            }
            _ => false,
        }
    }

    fn pay(&mut self, class: usize, urgency: Urgency, now: Instant) -> Result<(), Duration> {
        let share = self.ramp_share(now);
        let class = &mut self.classes[class];
        self.all.refill(self.rate, now);
        self.refreshes.refill(self.rate * share, now);
        class.bucket.refill(class.rate, now);
        let refresh = matches!(urgency, Urgency::Refresh { .. });
        if self.all.tokens < 1.0 {
            return Err(self.all.until_one(self.rate));
        }
        if class.bucket.tokens < 1.0 {
            return Err(class.bucket.until_one(class.rate));
        }
        if refresh && self.refreshes.tokens < 1.0 {
            return Err(self.refreshes.until_one(self.rate * share));
        }
        self.all.tokens -= 1.0;
        class.bucket.tokens -= 1.0;
        if refresh {
            self.refreshes.tokens -= 1.0;
        }
        Ok(())
    }

    fn ramp_share(&mut self, now: Instant) -> f64 {
        let Some(from) = self.ramp_from else {
            return 1.0;
        };
        let passed =
            now.saturating_duration_since(from).as_secs_f64() / self.ramp.as_secs_f64().max(0.001);
        if passed >= 1.0 {
            self.ramp_from = None;
        }
        (0.1 + 0.9 * passed).min(1.0)
    }
}

impl ClassQueue {
    fn has_room(&self) -> bool {
        self.running < self.concurrency
    }

    /// Whether nobody of this class waits who is wanted as much.
    fn is_open_to(&self, urgency: Urgency) -> bool {
        let ahead = self.waiting.last_key_value();
        self.has_room() && ahead.is_none_or(|(priority, _)| priority.0 < urgency)
    }

    /// Whether at the pace of late nobody who comes now would be admitted in `time`, behind those
    /// who are wanted as much.
    fn is_too_long_for(&self, urgency: Urgency, time: Duration) -> bool {
        let too_many = |ahead: usize| ahead as f64 * self.pace > time.as_secs_f64();
        // Counted only if all who wait would be too many.
        too_many(self.waiting.len())
            && too_many(self.waiting.range((urgency, Reverse(u64::MAX))..).count())
    }

    fn move_on(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.moved).as_secs_f64();
        if std::mem::replace(&mut self.flows, true) {
            self.pace += (took - self.pace) / 16.0;
        }
        self.moved = now;
    }

    /// Returns the first in turn; forgets waiters before it that have gone away.
    fn first(&mut self) -> Option<Priority> {
        while let Some(first) = self.waiting.last_entry() {
            if !first.get().is_closed() {
                return Some(*first.key());
            }
            first.remove();
        }
        None
    }
}

fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// A queue stands still in which nobody was admitted for so many times as long as a load takes.
const STILL_FOR: f64 = 8.0;
/// Before any load has ended, so many times the usual wait.
const UNTRIED: u32 = 10;

struct Bucket {
    tokens: f64,
    burst: f64,
    at: Instant,
}

impl Bucket {
    fn full(burst: f64, now: Instant) -> Self {
        Self {
            tokens: burst,
            burst,
            at: now,
        }
    }

    fn refill(&mut self, rate: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        if self.burst.is_finite() {
            self.tokens = (self.tokens + passed * rate).min(self.burst);
        }
        self.at = self.at.max(now);
    }

    fn until_one(&self, rate: f64) -> Duration {
        Duration::from_secs_f64(((1.0 - self.tokens) / rate).clamp(0.0, 60.0))
    }
}

#[cfg(test)]
mod tests;
