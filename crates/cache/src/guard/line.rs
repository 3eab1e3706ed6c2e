//! Bulkhead, rate and queue: pure but for the channel that tells a waiter of its turn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{GuardOptions, Urgency};

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
    /// By urgency, then by order of arrival, the earlier the greater.
    pub(super) waiting: BTreeMap<(Urgency, std::cmp::Reverse<u64>), oneshot::Sender<()>>,
    arrivals: u64,
}

pub(super) enum Entry {
    Admitted,
    Waiting(oneshot::Receiver<()>),
    Full { retry_after: Duration },
}

impl Line {
    pub(super) fn new(options: &GuardOptions, now: Instant) -> Self {
        let burst = (options.rate / 10.0).max(1.0);
        Self {
            concurrency: options.concurrency,
            running: 0,
            rate: options.rate,
            all: Bucket::full(burst, now),
            refreshes: Bucket::full(burst, now),
            ramp: options.ramp,
            ramp_from: None,
            bound: options.waiting,
            waiting: BTreeMap::new(),
            arrivals: 0,
        }
    }

    pub(super) fn enter(&mut self, urgency: Urgency, now: Instant) -> Entry {
        self.let_in(now);
        if self.waiting.is_empty()
            && self.running < self.concurrency
            && self.pay(urgency, now).is_ok()
        {
            self.running += 1;
            return Entry::Admitted;
        }
        if self.waiting.len() >= self.bound {
            self.waiting.retain(|_, turn| !turn.is_closed());
        }
        let least = self.waiting.first_key_value().map(|(key, _)| key.0);
        if self.waiting.len() >= self.bound {
            if least.is_none_or(|least| least >= urgency) {
                return Entry::Full {
                    retry_after: self.retry_after(),
                };
            }
            self.waiting.pop_first(); // its sender is dropped, which refuses it
        }
        let (turn, told) = oneshot::channel();
        self.arrivals += 1;
        self.waiting
            .insert((urgency, std::cmp::Reverse(self.arrivals)), turn);
        Entry::Waiting(told)
    }

    /// Admits in order of urgency; answers how long until the next could go, if only the rate holds it back.
    pub(super) fn let_in(&mut self, now: Instant) -> Option<Duration> {
        while self.running < self.concurrency {
            let (key, turn) = self.waiting.pop_last()?;
            if turn.is_closed() {
                continue;
            }
            if let Err(pause) = self.pay(key.0, now) {
                self.waiting.insert(key, turn);
                return Some(pause.max(Duration::from_millis(1)));
            }
            if turn.send(()).is_ok() {
                self.running += 1;
            }
        }
        None
    }

    fn pay(&mut self, urgency: Urgency, now: Instant) -> Result<(), Duration> {
        let share = self.ramp_share(now);
        self.all.refill(self.rate, now);
        self.refreshes.refill(self.rate * share, now);
        let refresh = matches!(urgency, Urgency::Refresh { .. });
        if self.all.tokens < 1.0 {
            return Err(self.all.until_one(self.rate));
        }
        if refresh && self.refreshes.tokens < 1.0 {
            return Err(self.refreshes.until_one(self.rate * share));
        }
        self.all.tokens -= 1.0;
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

    pub(super) fn retry_after(&self) -> Duration {
        Duration::from_secs_f64(((self.waiting.len() + 1) as f64 / self.rate).clamp(0.01, 60.0))
    }
}

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
        self.tokens = (self.tokens + passed * rate).min(self.burst);
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

    fn line(concurrency: usize, rate: f64, waiting: usize) -> (Line, Instant) {
        let now = clock();
        (
            Line::new(
                &GuardOptions {
                    waiting,
                    ..GuardOptions::new(concurrency, rate)
                },
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
                .filter(|_| admitted(line.enter(Urgency::Needed, now)))
                .count(),
            3
        );
    }

    #[test]
    fn k9_no_more_in_a_second_than_the_rate_and_its_burst() {
        let (mut line, start) = line(1_000_000, 100.0, 0);
        let went = (0..1000)
            .filter(|ms| admitted(line.enter(Urgency::Needed, start + Duration::from_millis(*ms))))
            .count();
        assert!((105..=110).contains(&went), "{went}");
    }

    #[test]
    fn k9_who_is_needed_goes_first_then_the_hottest() {
        let (mut line, now) = line(1, 1e6, 10);
        assert!(admitted(line.enter(Urgency::Needed, now)));
        let mut cold = queued(line.enter(Urgency::Refresh { heat: 1 }, now));
        let mut hot = queued(line.enter(Urgency::Refresh { heat: 9 }, now));
        let mut needed = queued(line.enter(Urgency::Needed, now));
        for turn in [&mut needed, &mut hot, &mut cold] {
            assert!(turn.try_recv().is_err());
            line.running -= 1;
            line.let_in(now);
            assert!(turn.try_recv().is_ok());
        }
    }

    #[test]
    fn k9_a_full_queue_pushes_out_the_coldest() {
        let (mut line, now) = line(1, 1e6, 2);
        assert!(admitted(line.enter(Urgency::Needed, now)));
        let mut coldest = queued(line.enter(Urgency::Refresh { heat: 1 }, now));
        let _warm = queued(line.enter(Urgency::Refresh { heat: 5 }, now));
        assert!(matches!(
            line.enter(Urgency::Refresh { heat: 0 }, now),
            Entry::Full { .. }
        ));
        let _hot = queued(line.enter(Urgency::Refresh { heat: 9 }, now));
        assert_eq!(
            coldest.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
    }

    #[test]
    fn k9_after_an_outage_refreshes_ramp_and_the_needed_do_not() {
        let (mut line, start) = line(1_000_000, 1000.0, 0);
        line.refreshes.tokens = 0.0;
        line.ramp_from = Some(start);
        let refresh = |line: &mut Line, from: u64| {
            let at = |ms| start + Duration::from_millis(from + ms);
            (0..1000)
                .filter(|ms| admitted(line.enter(Urgency::Refresh { heat: 1 }, at(*ms))))
                .count()
        };
        let first = refresh(&mut line, 0);
        assert!((150..=250).contains(&first), "{first}");
        assert!(admitted(
            line.enter(Urgency::Needed, start + Duration::from_secs(1))
        ));
        let fourth = refresh(&mut line, 3000);
        assert!((600..=900).contains(&fourth), "{fourth}");
    }
}
