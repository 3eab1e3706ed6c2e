//! Bulkhead, rate and queue: pure but for the channel that tells a waiter of its turn.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{ClassBound, ClassGuard, GuardOptions, Refusal, Urgency};

/// See the module.
pub(super) struct Line {
    concurrency: usize,
    pub(super) running: usize,
    rate: f64,
    all: Bucket,
    refreshes: Bucket,
    ramp: Duration,
    pub(super) ramp_from: Option<Instant>,
    bound: usize,
    /// One for each class.
    lanes: Box<[Lane]>,
    arrivals: u64,
    /// Whether any load has ended, well or not.
    tried: bool,
}

/// The loads of one class, with the bounds of its own.
struct Lane {
    concurrency: usize,
    running: usize,
    rate: f64,
    bucket: Bucket,
    waiting: BTreeMap<Place, oneshot::Sender<()>>,
    /// When somebody of it was admitted last, or began to wait where nobody did.
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
type Place = (Urgency, Reverse<u64>);

pub(super) enum Entry {
    Admitted,
    Waiting(oneshot::Receiver<()>),
    Full,
}

impl Line {
    pub(super) fn new(options: &GuardOptions, lanes: &[Option<ClassGuard>], now: Instant) -> Self {
        let burst = (options.rate / 10.0).max(1.0);
        let lane = |own: &Option<ClassGuard>| {
            let (concurrency, rate) = own.map_or((usize::MAX, f64::INFINITY), |own| {
                (own.concurrency, own.rate)
            });
            Lane {
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
            lanes: lanes.iter().map(lane).collect(),
            arrivals: 0,
            tried: false,
        }
    }

    pub(super) fn enter(
        &mut self,
        lane: usize,
        urgency: Urgency,
        deadline: Instant,
        now: Instant,
    ) -> Entry {
        self.let_in(now);
        if self.running < self.concurrency
            && self.lanes[lane].is_open_to(urgency)
            && self.pay(lane, urgency, now).is_ok()
        {
            self.take(lane);
            return Entry::Admitted;
        }
        if self.waiting() >= self.bound && !self.make_room_for(urgency) {
            return Entry::Full;
        }
        let (turn, told) = oneshot::channel();
        self.arrivals += 1;
        let place = (urgency, Reverse(self.arrivals));
        let lane = &mut self.lanes[lane];
        if lane.waiting.is_empty() {
            (lane.moved, lane.flows) = (now, false);
        } else if lane.is_too_long_for(urgency, deadline.saturating_duration_since(now)) {
            return Entry::Full;
        }
        lane.waiting.insert(place, turn);
        Entry::Waiting(told)
    }

    /// Admits in order of urgency whom the bounds of his class allow; answers how long until the
    /// next could go, if only a rate holds him back.
    pub(super) fn let_in(&mut self, now: Instant) -> Option<Duration> {
        let mut soonest: Option<Duration> = None;
        let mut held_back: SmallVec<[usize; 8]> = SmallVec::new();
        while self.running < self.concurrency {
            let open = self.lanes.iter_mut().enumerate();
            let open = open.filter(|(at, lane)| lane.has_room() && !held_back.contains(at));
            let next = open
                .filter_map(|(at, lane)| Some((lane.first()?, at)))
                .max();
            let Some((place, lane)) = next else {
                return soonest;
            };
            if let Err(pause) = self.pay(lane, place.0, now) {
                let pause = pause.max(Duration::from_millis(1));
                soonest = Some(soonest.map_or(pause, |soonest| soonest.min(pause)));
                held_back.push(lane);
                continue;
            }
            let turn = self.lanes[lane].waiting.remove(&place);
            if turn.is_some_and(|turn| turn.send(()).is_ok()) {
                self.lanes[lane].move_on(now);
                self.take(lane);
            }
        }
        None
    }

    /// Up to when those of this class may wait without anybody being admitted: for `wait`, or
    /// several times as long as the loads that run take. Ten times `wait` while no load has ended
    /// at all: how long one takes, with the opening of its connection, is not known then.
    pub(super) fn stands_still_at(&self, lane: usize, wait: Duration) -> Instant {
        if !self.tried {
            return self.lanes[lane].moved + wait * UNTRIED;
        }
        let running = self.lanes.iter().filter(|lane| lane.running > 0);
        let longest = running.map(|lane| lane.took).fold(0.0, f64::max);
        let patience = wait.max(span(longest * PATIENCE));
        self.lanes[lane].moved + patience
    }

    /// The last moment at which a load of this class may begin that has to end by `deadline`: it
    /// needs as long as others took, twice over.
    pub(super) fn latest(&self, lane: usize, deadline: Instant, now: Instant) -> Instant {
        let left = deadline.saturating_duration_since(now);
        let needed = span(self.lanes[lane].took * 2.0).max(left / 8);
        deadline.checked_sub(needed.min(left / 2)).unwrap_or(now)
    }

    /// A load of this class has ended well in that time.
    pub(super) fn note(&mut self, lane: usize, took: Duration) {
        let lane = &mut self.lanes[lane];
        let weight = if lane.took == 0.0 { 1.0 } else { 8.0 };
        lane.took += (took.as_secs_f64() - lane.took) / weight;
    }

    pub(super) fn leave(&mut self, lane: usize) {
        self.tried = true;
        self.running -= 1;
        self.lanes[lane].running -= 1;
    }

    pub(super) fn waiting(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len()).sum()
    }

    pub(super) fn refusal(&mut self, lane: usize, now: Instant) -> Refusal {
        let retry_after = self.retry_after(lane);
        match self.own_bound(lane, now) {
            Some(bound) => Refusal::Class { bound, retry_after },
            None => Refusal::Overloaded { retry_after },
        }
    }

    /// The bound of its own at which a class is. One that is no narrower than that of the whole is
    /// not what holds it up.
    fn own_bound(&mut self, lane: usize, now: Instant) -> Option<ClassBound> {
        let lane = &mut self.lanes[lane];
        lane.bucket.refill(lane.rate, now);
        if lane.concurrency < self.concurrency && !lane.has_room() {
            Some(ClassBound::Concurrency(lane.concurrency))
        } else if lane.rate < self.rate && lane.bucket.tokens < 1.0 {
            Some(ClassBound::Rate(lane.rate))
        } else {
            None
        }
    }

    fn retry_after(&self, lane: usize) -> Duration {
        let lane = &self.lanes[lane];
        let all = (self.waiting() + 1) as f64 / self.rate;
        let own = (lane.waiting.len() + 1) as f64 / lane.rate;
        Duration::from_secs_f64(all.max(own).clamp(0.01, 60.0))
    }

    fn take(&mut self, lane: usize) {
        self.running += 1;
        self.lanes[lane].running += 1;
    }

    /// Of a full queue: drops who has gone away, else the least wanted of all if he is less wanted
    /// than this; which refuses him.
    fn make_room_for(&mut self, urgency: Urgency) -> bool {
        for lane in &mut self.lanes {
            lane.waiting.retain(|_, turn| !turn.is_closed());
        }
        if self.waiting() < self.bound {
            return true;
        }
        let last = |lane: &Lane| lane.waiting.first_key_value().map(|(place, _)| *place);
        let least = (0..self.lanes.len())
            .filter_map(|lane| Some((last(&self.lanes[lane])?, lane)))
            .min();
        match least {
            Some((place, lane)) if place.0 < urgency => {
                self.lanes[lane].waiting.remove(&place);
                true
            }
            _ => false,
        }
    }

    fn pay(&mut self, lane: usize, urgency: Urgency, now: Instant) -> Result<(), Duration> {
        let share = self.ramp_share(now);
        let lane = &mut self.lanes[lane];
        self.all.refill(self.rate, now);
        self.refreshes.refill(self.rate * share, now);
        lane.bucket.refill(lane.rate, now);
        let refresh = matches!(urgency, Urgency::Refresh { .. });
        if self.all.tokens < 1.0 {
            return Err(self.all.until_one(self.rate));
        }
        if lane.bucket.tokens < 1.0 {
            return Err(lane.bucket.until_one(lane.rate));
        }
        if refresh && self.refreshes.tokens < 1.0 {
            return Err(self.refreshes.until_one(self.rate * share));
        }
        self.all.tokens -= 1.0;
        lane.bucket.tokens -= 1.0;
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

impl Lane {
    fn has_room(&self) -> bool {
        self.running < self.concurrency
    }

    /// Whether nobody of this class waits who is wanted as much.
    fn is_open_to(&self, urgency: Urgency) -> bool {
        let ahead = self.waiting.last_key_value();
        self.has_room() && ahead.is_none_or(|(place, _)| place.0 < urgency)
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

    /// Who would go first; forgets those before him who have gone away.
    fn first(&mut self) -> Option<Place> {
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
const PATIENCE: f64 = 8.0;
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
mod tests {
    use super::*;
    use crate::cache::clock;

    const LONG: Duration = Duration::from_secs(3600);

    fn line(concurrency: usize, rate: f64, waiting: usize) -> (Line, Instant) {
        let now = clock();
        (
            Line::new(
                &GuardOptions {
                    waiting,
                    ..GuardOptions::new(concurrency, rate)
                },
                &[None, None],
                now,
            ),
            now,
        )
    }

    fn admitted(entry: Entry) -> bool {
        matches!(entry, Entry::Admitted)
    }

    fn queued(entry: Entry) -> oneshot::Receiver<()> {
        match entry {
            Entry::Waiting(turn) => turn,
            _ => panic!("not queued"),
        }
    }

    #[test]
    fn k9_no_more_at_once_than_the_bulkhead_holds() {
        let (mut line, now) = line(3, 1e6, 10);
        assert_eq!(
            (0..10)
                .filter(|_| admitted(line.enter(0, Urgency::Needed, now + LONG, now)))
                .count(),
            3
        );
    }

    #[test]
    fn k9_no_more_in_a_second_than_the_rate_and_its_burst() {
        let (mut line, start) = line(1_000_000, 100.0, 0);
        let went = (0..1000)
            .filter(|ms| {
                admitted(line.enter(
                    0,
                    Urgency::Needed,
                    start + LONG,
                    start + Duration::from_millis(*ms),
                ))
            })
            .count();
        assert!((105..=110).contains(&went), "{went}");
    }

    #[test]
    fn k9_who_is_needed_goes_first_then_the_hottest() {
        let (mut line, now) = line(1, 1e6, 10);
        assert!(admitted(line.enter(0, Urgency::Needed, now + LONG, now)));
        let mut cold = queued(line.enter(0, Urgency::Refresh { heat: 1 }, now + LONG, now));
        let mut hot = queued(line.enter(0, Urgency::Refresh { heat: 9 }, now + LONG, now));
        let mut needed = queued(line.enter(0, Urgency::Needed, now + LONG, now));
        for turn in [&mut needed, &mut hot, &mut cold] {
            assert!(turn.try_recv().is_err());
            line.leave(0);
            line.let_in(now);
            assert!(turn.try_recv().is_ok());
        }
    }

    #[test]
    fn k9_a_full_queue_pushes_out_the_coldest() {
        let (mut line, now) = line(1, 1e6, 2);
        assert!(admitted(line.enter(0, Urgency::Needed, now + LONG, now)));
        let mut coldest = queued(line.enter(0, Urgency::Refresh { heat: 1 }, now + LONG, now));
        let _warm = queued(line.enter(0, Urgency::Refresh { heat: 5 }, now + LONG, now));
        assert!(matches!(
            line.enter(0, Urgency::Refresh { heat: 0 }, now + LONG, now),
            Entry::Full
        ));
        let _hot = queued(line.enter(0, Urgency::Refresh { heat: 9 }, now + LONG, now));
        assert_eq!(
            coldest.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
    }

    #[test]
    fn k9_a_class_at_its_own_bounds_holds_up_no_other() {
        let now = clock();
        let reports = ClassGuard::new(1, 10.0);
        let lanes = [Some(reports), None];
        let mut line = Line::new(&GuardOptions::new(3, 1e6), &lanes, now);
        assert!(admitted(line.enter(0, Urgency::Needed, now + LONG, now)));
        let mut second = queued(line.enter(0, Urgency::Needed, now + LONG, now));
        let mut third = queued(line.enter(0, Urgency::Needed, now + LONG, now));
        assert!(admitted(line.enter(
            1,
            Urgency::Refresh { heat: 0 },
            now + LONG,
            now
        )));
        assert!(admitted(line.enter(1, Urgency::Needed, now + LONG, now)));
        let mut other = queued(line.enter(1, Urgency::Refresh { heat: 0 }, now + LONG, now));
        // A place of the whole is free, but none of the class that waited first.
        line.leave(1);
        assert_eq!(line.let_in(now), None);
        assert!(second.try_recv().is_err() && other.try_recv().is_ok());
        // A place of the class is free, but its rate is used up: when to look again is told.
        line.leave(0);
        let pause = line.let_in(now).unwrap();
        assert!(pause > Duration::from_millis(50) && pause <= Duration::from_millis(100));
        assert!(line.let_in(now + pause).is_some() || second.try_recv().is_ok());
        assert!(third.try_recv().is_err());
        assert!(line.retry_after(0) >= Duration::from_millis(200));
        assert!(line.retry_after(1) < Duration::from_millis(50));
    }

    #[test]
    fn k9_what_refuses_a_class_is_named() {
        let now = clock();
        let lanes = [
            Some(ClassGuard::new(1, 1e6)),
            Some(ClassGuard::new(3, 10.0)),
            Some(ClassGuard::new(3, 1e6)),
            None,
        ];
        let mut line = Line::new(&GuardOptions::new(3, 1e6), &lanes, now);
        let bound = |lane, line: &mut Line| match line.refusal(lane, now) {
            Refusal::Class { bound, .. } => Some(bound),
            _ => None,
        };
        for lane in 0..3 {
            assert_eq!(bound(lane, &mut line), None, "nothing runs");
            assert!(admitted(line.enter(lane, Urgency::Needed, now + LONG, now)));
        }
        let own = [
            Some(ClassBound::Concurrency(1)),
            Some(ClassBound::Rate(10.0)),
            None,
            None,
        ];
        for (lane, own) in own.into_iter().enumerate() {
            assert_eq!(bound(lane, &mut line), own, "{lane}");
        }
    }

    #[test]
    fn k9_after_an_outage_refreshes_ramp_and_the_needed_do_not() {
        let (mut line, start) = line(1_000_000, 1000.0, 0);
        line.refreshes.tokens = 0.0;
        line.ramp_from = Some(start);
        let refresh = |line: &mut Line, from: u64| {
            let at = |ms| start + Duration::from_millis(from + ms);
            (0..1000)
                .filter(|ms| {
                    admitted(line.enter(0, Urgency::Refresh { heat: 1 }, start + LONG, at(*ms)))
                })
                .count()
        };
        let first = refresh(&mut line, 0);
        assert!((150..=250).contains(&first), "{first}");
        assert!(admitted(line.enter(
            0,
            Urgency::Needed,
            start + LONG,
            start + Duration::from_secs(1)
        )));
        let fourth = refresh(&mut line, 3000);
        assert!((600..=900).contains(&fourth), "{fourth}");
    }

    #[test]
    fn k9_a_queue_stands_still_in_which_nobody_was_admitted_for_as_long_as_several_loads_take() {
        let (mut line, start) = line(1, 1e6, 10);
        let (wait, at) = (Duration::from_millis(500), |ms| {
            start + Duration::from_millis(ms)
        });
        let enter = |line: &mut Line, ms| line.enter(0, Urgency::Needed, start + LONG, at(ms));
        assert!(admitted(enter(&mut line, 0)));
        let _second = queued(enter(&mut line, 10));
        let untried = line.stands_still_at(0, wait);
        assert_eq!(untried, at(5010), "nobody knows yet");
        line.note(0, Duration::from_millis(100));
        line.leave(0);
        line.let_in(at(100));
        let _third = queued(enter(&mut line, 110));
        assert_eq!(line.stands_still_at(0, wait), at(910), "eight times 100 ms");
        line.note(0, Duration::from_millis(20));
        let patient = line.stands_still_at(0, Duration::from_secs(1));
        assert_eq!(patient, at(1110));
    }

    #[test]
    fn k13_the_last_moment_to_begin_leaves_what_a_load_takes_and_half_of_the_time_at_most() {
        let (mut line, start) = line(1, 1e6, 10);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(line.latest(0, at(800), start), at(700), "an eighth");
        line.note(0, Duration::from_millis(100));
        assert_eq!(line.latest(0, at(800), start), at(600), "twice the load");
        assert_eq!(line.latest(0, at(300), start), at(150), "half");
    }

    #[test]
    fn k9_what_the_first_in_the_queue_waited_for_says_nothing_of_the_pace() {
        let (mut line, start) = line(1, 1e6, 10_000);
        let at = |ms| start + Duration::from_millis(ms);
        let enter = |line: &mut Line, ms| line.enter(0, Urgency::Needed, at(10_000), at(ms));
        assert!(admitted(enter(&mut line, 0)));
        let mut kept: Vec<_> = (0..3000).map(|_| queued(enter(&mut line, 0))).collect();
        // The connection was opened first, which took three seconds.
        line.leave(0);
        line.let_in(at(3000));
        kept.push(queued(enter(&mut line, 3000)));
    }

    #[test]
    fn k9_who_could_not_be_admitted_in_time_at_the_pace_of_late_is_refused_at_once() {
        let (mut line, start) = line(1, 1e6, 10_000);
        let at = |ms| start + Duration::from_millis(ms);
        let deadline = |ms: u64| at(ms + 1000);
        assert!(admitted(line.enter(0, Urgency::Needed, deadline(0), at(0))));
        let mut kept = Vec::new();
        for _ in 0..2000 {
            kept.push(queued(line.enter(0, Urgency::Needed, deadline(0), at(0))));
        }
        // One in a hundredth of a second: a hundred in a second.
        for n in 1..=200 {
            line.leave(0);
            line.let_in(at(n * 10));
        }
        let enter = |line: &mut Line, urgency| line.enter(0, urgency, deadline(2000), at(2000));
        assert!(matches!(enter(&mut line, Urgency::Needed), Entry::Full));
        kept.truncate(290);
        line.lanes[0].waiting.retain(|_, turn| !turn.is_closed());
        assert_eq!(line.waiting(), 90);
        assert!(matches!(
            enter(&mut line, Urgency::Needed),
            Entry::Waiting(_)
        ));
    }
}
