//! A schedule of faults, drawn from a seed.
//!
//! A failure found by chance is worth little if it cannot be had again. So a schedule is drawn
//! whole, before anything is broken, by nothing but its seed and its bounds: the same ones give the
//! same faults at the same times, and the same bytes when it is written down. Playing it is a
//! matter of waiting and doing.

use crate::fault::{
    Bandwidth, Corrupt, Direction, Down, Fault, Hold, Latency, LimitData, RejectNext, ResetPeer,
    RespDelay, RespError, RespSilence, Slicer, SlowClose, Stall, Timeout, Toxic,
};
use crate::process::{ProcessError, Redis};
use crate::proxy::{Proxy, ToxicId};
use crate::timeline::{self, Moment, millis};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Faults and their times, in order of their beginning. Times are whole milliseconds from the
/// schedule's start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The seed that it was drawn from.
    pub seed: u64,
    /// The faults in their order.
    pub entries: Vec<ScheduledFault>,
}

/// A fault and its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduledFault {
    /// When it begins, in milliseconds.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
    /// The fault.
    pub breaks: Breakage,
}

/// A fault of a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Breakage {
    /// The wire, by a fault of the proxy.
    Wire(Toxic),
    /// The server is killed, and started again when the time is over.
    Kill,
    /// The server is frozen, and goes on when the time is over.
    Freeze,
}

/// Of what kind a fault is; its numbers are drawn too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the fault of that name")]
pub enum Kind {
    Latency,
    Bandwidth,
    SlowClose,
    Timeout,
    ResetPeer,
    Slicer,
    LimitData,
    Down,
    Stall,
    Hold,
    Corrupt,
    RejectNext,
    RespError,
    RespDelay,
    RespSilence,
    Kill,
    Freeze,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 17] = [
        Self::Latency,
        Self::Bandwidth,
        Self::SlowClose,
        Self::Timeout,
        Self::ResetPeer,
        Self::Slicer,
        Self::LimitData,
        Self::Down,
        Self::Stall,
        Self::Hold,
        Self::Corrupt,
        Self::RejectNext,
        Self::RespError,
        Self::RespDelay,
        Self::RespSilence,
        Self::Kill,
        Self::Freeze,
    ];
}

/// Within which bounds a schedule is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// When the last fault is over, at the latest. Default: 10 s.
    pub length: Duration,
    /// From the end of a fault to the beginning of the next. Default: 100 ms to 1 s.
    pub gap: RangeInclusive<Duration>,
    /// How long a fault lasts. Default: 50 ms to 1 s.
    pub lasts: RangeInclusive<Duration>,
    /// How many faults may be there at once. Default: 1.
    pub at_once: usize,
    /// From which kinds is drawn. Default: all.
    pub kinds: Vec<Kind>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(10),
            gap: Duration::from_millis(100)..=Duration::from_secs(1),
            lasts: Duration::from_millis(50)..=Duration::from_secs(1),
            at_once: 1,
            kinds: Kind::ALL.to_vec(),
        }
    }
}

impl Schedule {
    /// Draws a schedule. Bounds that admit no fault (no kind, a length too short) give an empty
    /// one.
    ///
    /// ```
    /// use steadfast_drill::schedule::{Bounds, Schedule};
    ///
    /// assert_eq!(Schedule::draw(7, &Bounds::default()), Schedule::draw(7, &Bounds::default()));
    /// assert_ne!(Schedule::draw(7, &Bounds::default()), Schedule::draw(8, &Bounds::default()));
    /// ```
    #[must_use]
    pub fn draw(seed: u64, bounds: &Bounds) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut entries = Vec::new();
        let length = millis(bounds.length);
        // Faults that may overlap are drawn as so many schedules without overlap, laid over one
        // another.
        for _ in 0..bounds.at_once {
            let mut now = 0_u64;
            while !bounds.kinds.is_empty() {
                let at_ms = now.saturating_add(between(&bounds.gap, &mut rng));
                // One of no length would never let the time advance.
                let for_ms = between(&bounds.lasts, &mut rng).max(1);
                now = at_ms.saturating_add(for_ms);
                if now > length {
                    break;
                }
                let kind = bounds.kinds[rng.usize(..bounds.kinds.len())];
                entries.push(ScheduledFault {
                    at_ms,
                    for_ms,
                    breaks: breakage(kind, &mut rng),
                });
            }
        }
        entries.sort_by_key(|entry| entry.at_ms);
        Self { seed, entries }
    }

    /// Breaks and heals what the schedule says, when it says it, and returns with all healed: no
    /// toxic of the schedule on the proxy, the server running. If the future is dropped in between,
    /// `proxy.clear()` and `redis.restart()` do that.
    ///
    /// # Errors
    /// When the server cannot be started again; the proxy is healed then too.
    pub async fn play(&self, proxy: &Proxy, redis: &Redis) -> Result<(), ProcessError> {
        let mut healing = Healing {
            proxy,
            redis,
            toxics: Vec::new(),
        };
        let start = Instant::now();
        let mut outcome = Ok(());
        for moment in self.moments() {
            sleep_until(start + moment.at).await;
            outcome = healing.act(&moment, &self.entries).await;
            if outcome.is_err() {
                break;
            }
        }
        for (_, id) in healing.toxics {
            proxy.remove(id).await;
        }
        outcome
    }

    /// The beginnings and ends, in their order; at the same time ends come first.
    fn moments(&self) -> Vec<Moment> {
        let spans = self.entries.iter().enumerate().map(|(number, entry)| {
            let end = entry.at_ms.saturating_add(entry.for_ms);
            let span = Duration::from_millis(entry.at_ms)..Duration::from_millis(end);
            ((number, 0), span)
        });
        timeline::moments(spans)
    }
}

/// A fault that has to be healed.
struct Healing<'a> {
    proxy: &'a Proxy,
    redis: &'a Redis,
    toxics: Vec<(usize, ToxicId)>,
}

impl Healing<'_> {
    async fn act(
        &mut self,
        moment: &Moment,
        entries: &[ScheduledFault],
    ) -> Result<(), ProcessError> {
        let (number, _) = moment.id;
        match (&entries[number].breaks, moment.begins) {
            (Breakage::Wire(toxic), true) => {
                // A schedule that was drawn holds none that is refused; of one that was written,
                // the rest is still played.
                if let Ok(id) = self.proxy.add(toxic.clone()).await {
                    self.toxics.push((number, id));
                }
            }
            (Breakage::Wire(_), false) => {
                let mut toxics = self.toxics.iter();
                if let Some(at) = toxics.position(|(entry, _)| *entry == number) {
                    let (_, id) = self.toxics.swap_remove(at);
                    self.proxy.remove(id).await;
                }
            }
            (Breakage::Kill, true) => self.redis.kill().await,
            (Breakage::Kill, false) => self.redis.restart().await?,
            // Another fault may have killed it; then there is nothing to freeze.
            (Breakage::Freeze, true) => drop(self.redis.freeze()),
            (Breakage::Freeze, false) => drop(self.redis.resume()),
        }
        Ok(())
    }
}

fn breakage(kind: Kind, rng: &mut Rng) -> Breakage {
    let mut time = |most: u64| Duration::from_millis(rng.u64(1..=most));
    let fault: Fault = match kind {
        Kind::Kill => return Breakage::Kill,
        Kind::Freeze => return Breakage::Freeze,
        Kind::Latency => Latency {
            latency: time(400),
            jitter: time(100),
        }
        .into(),
        Kind::Bandwidth => Bandwidth {
            rate: rng.u64(1..=1_000),
        }
        .into(),
        Kind::SlowClose => SlowClose { delay: time(500) }.into(),
        Kind::Timeout => Timeout {
            timeout: Duration::ZERO,
        }
        .into(),
        Kind::ResetPeer => ResetPeer { timeout: time(200) }.into(),
        Kind::Slicer => {
            let average_size = rng.usize(1..=64);
            Slicer {
                average_size,
                size_variation: rng.usize(..average_size),
                delay: Duration::from_micros(rng.u64(..=2_000)),
            }
            .into()
        }
        Kind::LimitData => LimitData {
            bytes: rng.u64(..=10_000),
        }
        .into(),
        Kind::Down => Down {}.into(),
        Kind::Stall => Stall {}.into(),
        Kind::Hold => Hold {}.into(),
        Kind::Corrupt => Corrupt { share: share(rng) }.into(),
        Kind::RejectNext => RejectNext { n: rng.u64(1..=10) }.into(),
        Kind::RespError => {
            let states = [
                RespError::loading,
                RespError::readonly,
                RespError::oom,
                RespError::busy,
                RespError::noauth,
            ];
            states[rng.usize(..states.len())]()
                .percentage(share(rng) * 100.0)
                .into()
        }
        Kind::RespDelay => RespDelay {
            commands: Vec::new(),
            delay: time(500),
            percentage: share(rng) * 100.0,
        }
        .into(),
        Kind::RespSilence => RespSilence {
            commands: Vec::new(),
            percentage: share(rng) * 100.0,
        }
        .into(),
    };
    let direction = [Direction::Upstream, Direction::Downstream, Direction::Both][rng.usize(..3)];
    // Half of the faults take hold of every connection, as an outage does.
    let toxicity = if rng.bool() { 1.0 } else { share(rng) };
    Breakage::Wire(Toxic::new(fault).direction(direction).toxicity(toxicity))
}

/// More than 0 and at most 1, in hundredths: a number that reads the same wherever it is written.
fn share(rng: &mut Rng) -> f64 {
    f64::from(rng.u32(1..=100)) / 100.0
}

fn between(range: &RangeInclusive<Duration>, rng: &mut Rng) -> u64 {
    let (least, most) = (millis(*range.start()), millis(*range.end()));
    rng.u64(least..=most.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(schedule: &Schedule) -> String {
        serde_json::to_string(schedule).unwrap()
    }

    #[test]
    fn d1_a_schedule_with_a_word_that_means_nothing_is_refused() {
        let kill = r#"{"at_ms":1,"for_ms":2,"breaks":"kill"}"#;
        let whole = format!(r#"{{"seed":1,"entries":[{kill}]}}"#);
        let read = |text: &str| serde_json::from_str::<Schedule>(text);
        assert_eq!(read(&whole).unwrap().entries.len(), 1);
        for (word, wrong) in [
            ("\"seed\":1", "\"seed\":1,\"sead\":2"),
            ("\"for_ms\":2", "\"for_ms\":2,\"form_ms\":3"),
            ("\"kill\"", "{\"kill\":null,\"freeze\":null}"),
        ] {
            let wrong = whole.replace(word, wrong);
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn d1_the_same_seed_gives_the_same_faults_at_the_same_times_byte_for_byte(seed: u64, at_once in 0_usize..4) {
            let bounds = Bounds { at_once, ..Bounds::default() };
            let schedule = Schedule::draw(seed, &bounds);
            prop_assert_eq!(written(&schedule), written(&Schedule::draw(seed, &bounds)));
            let read: Schedule = serde_json::from_str(&written(&schedule)).unwrap();
            prop_assert_eq!(&read, &schedule);
            if at_once > 0 {
                prop_assert_ne!(schedule.entries, Schedule::draw(seed.wrapping_add(1), &bounds).entries);
            }
        }

        #[test]
        fn a_schedule_keeps_within_its_bounds(
            seed: u64, length in 0_u64..20_000, gap in 0_u64..500, lasts in 0_u64..500, spread in 0_u64..500, at_once in 1_usize..4,
        ) {
            let range = |from| Duration::from_millis(from)..=Duration::from_millis(from + spread);
            let length = Duration::from_millis(length);
            let kinds = Kind::ALL.to_vec();
            let bounds = Bounds { length, gap: range(gap), lasts: range(lasts), at_once, kinds };
            let Schedule { entries, .. } = Schedule::draw(seed, &bounds);
            prop_assert!(entries.is_sorted_by_key(|entry| entry.at_ms));
            for entry in &entries {
                prop_assert!(entry.at_ms >= gap && u128::from(entry.at_ms + entry.for_ms) <= length.as_millis());
                prop_assert!((lasts.max(1)..=(lasts + spread).max(1)).contains(&entry.for_ms));
                let there = |other: &&ScheduledFault| other.at_ms <= entry.at_ms && entry.at_ms < other.at_ms + other.for_ms;
                prop_assert!(entries.iter().filter(there).count() <= at_once);
                if let Breakage::Wire(toxic) = &entry.breaks {
                    prop_assert!(toxic.check().is_ok());
                }
            }
        }
    }

    #[test]
    fn every_kind_is_drawn_and_none_that_was_not_asked_for() {
        let names = |bounds: &Bounds| {
            let schedules = (0..200).flat_map(|seed| Schedule::draw(seed, bounds).entries);
            let names = schedules.map(|entry| match entry.breaks {
                Breakage::Wire(toxic) => toxic.fault.name(),
                Breakage::Kill => "kill",
                Breakage::Freeze => "freeze",
            });
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(&Bounds::default()).len(), Kind::ALL.len());
        let some = Bounds {
            kinds: vec![Kind::Kill, Kind::Stall],
            ..Bounds::default()
        };
        assert_eq!(names(&some), ["kill", "stall"].into());
        assert!(
            names(&Bounds {
                kinds: vec![],
                ..Bounds::default()
            })
            .is_empty()
        );
    }
}
