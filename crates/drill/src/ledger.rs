//! The fate of each write, for a subject whose data are in Redis itself.
//!
//! Redis passes writes on after it has acknowledged them, so a failover may lose some, and a client
//! that repeats what it should not applies some twice. Counters that many writes share would hide
//! the one behind the other. So every second write counts up a name of its own: one that was
//! acknowledged and is not there is lost, one that is there twice was applied twice. The others set
//! a value that the next overwrites, which is also what is read. Pure: times are given, as lengths
//! from the start of the load.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

/// So long after another primary was named nobody should be writing to the old one any more.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// A write, as a subject that keeps a ledger has to make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerWrite {
    /// `INCRBY name 1`.
    Count(String),
    /// `SET name version`.
    Set(String, u64),
}

impl LedgerWrite {
    /// The write of that version of a row.
    #[must_use]
    pub fn of(key: u64, version: u64) -> Self {
        match version % 2 {
            1 => Self::Count(format!("ledger:count:{key}:{version}")),
            _ => Self::Set(name_of(key), version),
        }
    }

    /// Returns the command that makes it.
    #[must_use]
    pub fn command(&self) -> redis::Cmd {
        match self {
            Self::Count(name) => redis::Cmd::incr(name, 1),
            Self::Set(name, version) => redis::Cmd::set(name, version),
        }
    }
}

/// Returns the name that a read of that row asks for (`GET`): it holds a version, or nothing before
/// the first was set.
#[must_use]
pub fn name_of(key: u64) -> String {
    format!("ledger:last:{key}")
}

/// The reads whose times are kept: more than any drill makes that is judged by them.
const MOST_READS: usize = 1_000_000;
/// So long after a shard was broken all grace is over, and its calls are refused at once.
const SETTLED: Duration = Duration::from_secs(2);
/// Reads before this are made with connections and caches that are cold.
const WARM: Duration = Duration::from_secs(1);

/// Every write that was tried, and every read.
#[derive(Debug, Default)]
pub struct Ledger {
    writes: Vec<Tried>,
    reads: Vec<Asked>,
    /// Reads that failed, by their row.
    failed_reads: HashMap<u64, u64>,
}

/// A read.
#[derive(Debug, Clone, Copy)]
struct Asked {
    key: u64,
    begun: Duration,
    took: Duration,
    answered: bool,
}

#[derive(Debug, Clone)]
struct Tried {
    key: u64,
    version: u64,
    begun: Duration,
    ended: Duration,
    said: Said,
}

/// The subject's word about a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// The write was applied.
    Acknowledged,
    /// The write was not applied, and will not be.
    Denied,
    /// The write failed, and may have been applied.
    Unknown,
}

/// The fate of the writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LedgerReport {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes that failed; of each it may be unknown whether it was applied.
    pub failed: u64,
    /// Failed writes of which the subject said that they were not applied, and that are there.
    pub denied: u64,
    /// Acknowledged writes that are not there in the end.
    pub lost: u64,
    /// Lost writes that were begun half a second or more after the sentinels had named the primary
    /// of that moment, and were not lost with it: sent to one that was known to be deposed.
    pub lost_late: u64,
    /// Writes that were applied more than once.
    pub twice: u64,
    /// How often another primary was named.
    pub failovers: u64,
    /// From another primary being named to the first write that was acknowledged after it and has
    /// stayed; the longest, if there were several. Null if there was none.
    pub back_ms: Option<f64>,
    /// How the failed calls are spread over the shards; null if the data are in no cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<ShardsReport>,
}

/// How failed calls are spread over the shards of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ShardsReport {
    /// Calls that failed for a slot to which nothing was done.
    pub failed_elsewhere: u64,
    /// Calls that failed for a slot to which something was done, and writes whose connection the
    /// drill closed while they were under way.
    pub failed_there: u64,
    /// What 99 of 100 reads took at most of shards to which nothing was done, before anything was
    /// broken; null if no shard was broken, or there were none.
    pub p99_before_ms: Option<f64>,
    /// The same while a shard was broken.
    pub p99_during_ms: Option<f64>,
    /// What 99 of 100 failed reads of the broken shard took at most, from two seconds after it was
    /// broken to its healing; null if there were none.
    pub refused_ms: Option<f64>,
    /// How often the client asked who owns what; null if it does not tell.
    pub discoveries: Option<u64>,
    /// When the cluster was whole again after a fault that no other primary mends, from the start
    /// of the load; null if there was none.
    pub healed_ms: Option<f64>,
    /// From then to the first write that was acknowledged after it and has stayed, of the shard for
    /// which that took longest. Null if there was none of some shard.
    pub back_ms: Option<f64>,
}

/// The moments of a cluster from which the way back into service counts.
#[derive(Debug, Default)]
pub(crate) struct ShardMoments {
    /// Another primary of a shard to which something was done was named.
    pub(crate) named: Vec<Duration>,
    /// The cluster was whole again after a fault that no other primary mends.
    pub(crate) healed: Option<Duration>,
    /// From when to when single shards were broken, without the way back.
    pub(crate) broken: Option<Range<Duration>>,
    /// From when to when the drill itself closed the connections of all clients.
    pub(crate) parted: Option<Range<Duration>>,
}

impl Ledger {
    /// A write begins; what it is called here.
    pub fn begin(&mut self, key: u64, version: u64, at: Duration) -> usize {
        self.writes.push(Tried {
            key,
            version,
            begun: at,
            ended: Duration::MAX,
            said: Said::Unknown,
        });
        self.writes.len() - 1
    }

    /// Notes how the write ended, by this word of the subject.
    pub fn end(&mut self, number: usize, said: Said, at: Duration) {
        let write = &mut self.writes[number];
        (write.said, write.ended) = (said, at);
    }

    /// Notes a read of that row, from when to when, and whether it was answered.
    pub fn read(&mut self, key: u64, (begun, ended): (Duration, Duration), answered: bool) {
        if !answered {
            *self.failed_reads.entry(key).or_default() += 1;
        }
        if self.reads.len() < MOST_READS {
            self.reads.push(Asked {
                key,
                begun,
                took: ended.saturating_sub(begun),
                answered,
            });
        }
    }

    /// The names whose values are to be looked up in the end.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.writes.iter().map(Tried::name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Compares with what the primary holds in the end. `named` are the moments at which the
    /// sentinels named another one.
    pub fn judge(&self, held: &HashMap<String, u64>, named: &[Duration]) -> LedgerReport {
        let mut report = LedgerReport {
            failovers: named.len() as u64,
            ..LedgerReport::default()
        };
        let ended: HashMap<(u64, u64), Duration> = self
            .writes
            .iter()
            .map(|write| ((write.key, write.version), write.ended))
            .collect();
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        for write in &self.writes {
            let (is_there, is_lost) = match LedgerWrite::of(write.key, write.version) {
                LedgerWrite::Count(name) => {
                    let times = held.get(&name).copied().unwrap_or(0);
                    report.twice += u64::from(times > 1);
                    (times > 0, times == 0)
                }
                LedgerWrite::Set(name, version) => {
                    let last = held.get(&name).copied().unwrap_or(0);
                    let ended = ended.get(&(write.key, last)).copied();
                    // Of two that were under way at the same time either may have come last.
                    let after = last == 0 || ended.is_some_and(|ended| ended <= write.begun);
                    (last == version, last < version && after)
                }
            };
            match write.said {
                Said::Acknowledged => report.acknowledged += 1,
                Said::Denied | Said::Unknown => report.failed += 1,
            }
            report.denied += u64::from(write.said == Said::Denied && is_there);
            if write.said == Said::Acknowledged && is_lost {
                lost.push(write);
            } else if write.said == Said::Acknowledged && write.version % 2 == 1 {
                kept.push(write);
            }
        }
        report.lost = lost.len() as u64;
        kept.sort_unstable_by_key(|write| write.ended);
        let late = lost.iter().filter(|lost| is_late(lost, &kept, named));
        report.lost_late = late.count() as u64;
        let back = named.iter().map(|named| {
            let first = kept.get(kept.partition_point(|write| write.ended < *named))?;
            Some((first.ended - *named).as_micros() as f64 / 1e3)
        });
        let back: Option<Vec<f64>> = back.collect();
        report.back_ms = back.and_then(|all| all.into_iter().reduce(f64::max));
        report
    }

    /// The same for a cluster, where only some of the names are concerned: those of the shards to
    /// which something was done. `shard_of` tells the shard of such a name, and nothing of others.
    pub(crate) fn judge_shards(
        &self,
        held: &HashMap<String, u64>,
        moments: &ShardMoments,
        shard_of: impl Fn(&str) -> Option<usize>,
        discoveries: Option<u64>,
    ) -> LedgerReport {
        let of = |is_meant: &dyn Fn(usize) -> bool| {
            let meant = |write: &&Tried| shard_of(&write.name()).is_some_and(is_meant);
            Self {
                writes: self.writes.iter().filter(meant).cloned().collect(),
                ..Self::default()
            }
        };
        let there = of(&|_| true).judge(held, &moments.named);
        let back = moments.healed.and_then(|healed| {
            let shards = self.writes.iter();
            let shards: BTreeSet<usize> = shards.filter_map(|one| shard_of(&one.name())).collect();
            let back = shards.into_iter().map(|shard| {
                let alone = of(&|other| other == shard);
                alone.judge(held, &[healed]).back_ms
            });
            let back: Option<Vec<f64>> = back.collect();
            back?.into_iter().reduce(f64::max)
        });
        let shards = ShardsReport {
            discoveries,
            healed_ms: moments.healed.map(|at| at.as_micros() as f64 / 1e3),
            back_ms: back,
            ..self.failed_calls(moments.parted.as_ref(), |name| shard_of(name).is_some())
        };
        let shards = match &moments.broken {
            Some(broken) => self.timed(shards, broken, |key| shard_of(&name_of(key)).is_some()),
            None => shards,
        };
        LedgerReport {
            lost_late: there.lost_late,
            failovers: there.failovers,
            back_ms: there.back_ms,
            shards: Some(shards),
            ..self.judge(held, &[])
        }
    }

    /// Adds how long reads took while a shard was broken.
    fn timed(
        &self,
        shards: ShardsReport,
        broken: &Range<Duration>,
        is_concerned: impl Fn(u64) -> bool,
    ) -> ShardsReport {
        let p99 = |is_meant: &dyn Fn(&Asked) -> bool| {
            let meant = self.reads.iter().filter(|read| is_meant(read));
            let mut took: Vec<Duration> = meant.map(|read| read.took).collect();
            took.sort_unstable();
            let at = took.len().checked_sub(1)? * 99 / 100;
            Some(took[at].as_micros() as f64 / 1e3)
        };
        let elsewhere = |read: &Asked| read.answered && !is_concerned(read.key);
        let settled = broken.start + SETTLED;
        ShardsReport {
            // The first second warms up.
            p99_before_ms: p99(&|read| {
                elsewhere(read) && (WARM..broken.start).contains(&read.begun)
            }),
            p99_during_ms: p99(&|read| elsewhere(read) && broken.contains(&read.begun)),
            refused_ms: p99(&|read| {
                let refused = !read.answered && is_concerned(read.key);
                refused && (settled..broken.end).contains(&read.begun)
            }),
            ..shards
        }
    }

    fn failed_calls(
        &self,
        parted: Option<&Range<Duration>>,
        is_concerned: impl Fn(&str) -> bool,
    ) -> ShardsReport {
        let mut report = ShardsReport::default();
        let failed = self
            .writes
            .iter()
            .filter(|write| write.said != Said::Acknowledged);
        for write in failed {
            match is_concerned(&write.name()) || parted.is_some_and(|at| write.was_cut(at)) {
                true => report.failed_there += 1,
                false => report.failed_elsewhere += 1,
            }
        }
        for (key, failed) in &self.failed_reads {
            match is_concerned(&name_of(*key)) {
                true => report.failed_there += failed,
                false => report.failed_elsewhere += failed,
            }
        }
        report
    }
}

impl Tried {
    fn name(&self) -> String {
        match LedgerWrite::of(self.key, self.version) {
            LedgerWrite::Count(name) | LedgerWrite::Set(name, _) => name,
        }
    }

    /// Whether its connection was closed while it was under way, and its outcome was said to be
    /// unknown without delay: nobody may repeat such a write. A read can be repeated.
    fn was_cut(&self, parted: &Range<Duration>) -> bool {
        let was_under_way = self.begun <= parted.end && parted.start <= self.ended;
        was_under_way && self.said == Said::Unknown && self.ended <= parted.end + GRACE
    }
}

/// Whether a lost write went to a server that was known to be deposed. What went to the primary of
/// its moment may have been lost with that, at the next failover; but of a primary's writes the
/// earlier ones are passed on first. So it was not lost so if a later one of the same time of
/// office was kept.
fn is_late(lost: &Tried, kept: &[&Tried], named: &[Duration]) -> bool {
    let next = named.partition_point(|named| *named <= lost.begun);
    let settled = next.checked_sub(1).map(|last| named[last] + GRACE);
    match (settled, named.get(next)) {
        (Some(settled), None) => lost.begun >= settled,
        (Some(settled), Some(next)) => {
            let later = |kept: &&Tried| kept.begun >= lost.ended && kept.ended + GRACE <= *next;
            lost.begun >= settled && kept.iter().any(later)
        }
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn held<const N: usize>(values: [(&str, u64); N]) -> HashMap<String, u64> {
        HashMap::from(values.map(|(name, value)| (name.to_owned(), value)))
    }

    #[test]
    fn d4_an_acknowledged_count_that_is_not_there_is_lost_and_one_that_is_there_twice_was_repeated()
    {
        let mut ledger = Ledger::default();
        use Said::{Acknowledged, Unknown};
        let writes = [
            (1, Acknowledged),
            (3, Acknowledged),
            (5, Unknown),
            (7, Unknown),
        ];
        for (version, said) in writes {
            let number = ledger.begin(0, version, ms(version));
            ledger.end(number, said, ms(version + 1));
        }
        let held = held([("ledger:count:0:3", 2), ("ledger:count:0:5", 1)]);
        let report = ledger.judge(&held, &[]);
        assert_eq!((report.acknowledged, report.failed), (2, 2));
        assert_eq!((report.lost, report.lost_late, report.twice), (1, 0, 1));
        assert_eq!(ledger.names().len(), 4);
    }

    #[test]
    fn d4_of_values_that_overwrite_each_other_one_is_lost_only_if_it_came_after_what_is_there() {
        let mut ledger = Ledger::default();
        for (version, begun, ended) in [(2, 0, 10), (4, 20, 30), (6, 25, 40)] {
            let number = ledger.begin(0, version, ms(begun));
            ledger.end(number, Said::Acknowledged, ms(ended));
        }
        let lost = |last| ledger.judge(&held([("ledger:last:0", last)]), &[]).lost;
        assert_eq!([lost(6), lost(4), lost(2)], [0, 0, 2]);
        assert_eq!(ledger.judge(&HashMap::new(), &[]).lost, 3);
    }

    #[test]
    fn d4_t5_what_fails_for_slots_to_which_nothing_was_done_counts_by_itself() {
        let mut ledger = Ledger::default();
        let writes = [
            (1, 1, Said::Unknown),
            (2, 1, Said::Denied),
            (2, 3, Said::Acknowledged),
        ];
        for (key, version, said) in writes {
            let number = ledger.begin(key, version, ms(10));
            ledger.end(number, said, ms(20));
        }
        (0..3).for_each(|_| ledger.read(1, (ms(10), ms(11)), false));
        ledger.read(2, (ms(10), ms(11)), false);
        let held = held([("ledger:count:2:3", 1)]);
        let is_concerned = |name: &str| name.ends_with(":1:1") || name.ends_with("last:1");
        let shard_of = |name: &str| is_concerned(name).then_some(0);
        let moments = ShardMoments {
            named: vec![ms(5)],
            ..ShardMoments::default()
        };
        let report = ledger.judge_shards(&held, &moments, shard_of, Some(7));
        let shards = report.shards.unwrap();
        assert_eq!((shards.failed_there, shards.failed_elsewhere), (4, 2));
        assert_eq!(shards.discoveries, Some(7));
        // The writes of the others are no sign that the shard serves again.
        assert_eq!((report.failovers, report.back_ms), (1, None));
        assert_eq!((report.acknowledged, report.lost), (1, 0));
    }

    #[test]
    fn d4_t5_a_write_under_way_when_the_drill_closed_its_connection_fails_by_the_drills_own_hand() {
        use Said::{Denied, Unknown};
        let elsewhere = |begun, ended, said| {
            let mut ledger = Ledger::default();
            let number = ledger.begin(1, 1, ms(begun));
            ledger.end(number, said, ms(ended));
            ledger.read(1, (ms(1_001), ms(1_002)), false);
            let moments = ShardMoments {
                parted: Some(ms(1_000)..ms(1_004)),
                ..ShardMoments::default()
            };
            let report = ledger.judge_shards(&HashMap::new(), &moments, |_| None, None);
            let shards = report.shards.unwrap();
            // The read could be repeated.
            assert_eq!(shards.failed_there + shards.failed_elsewhere, 2);
            shards.failed_elsewhere - 1
        };
        assert_eq!(elsewhere(999, 1_001, Unknown), 0);
        assert_eq!(elsewhere(1_003, 1_006, Unknown), 0);
        // Not under way at that moment, not sent at all, and left without an answer for long.
        assert_eq!(elsewhere(990, 999, Unknown), 1);
        assert_eq!(elsewhere(1_005, 1_006, Unknown), 1);
        assert_eq!(elsewhere(999, 1_001, Denied), 1);
        assert_eq!(elsewhere(999, 1_600, Unknown), 1);
    }

    #[test]
    fn d4_t5_reads_of_other_shards_are_timed_before_and_while_one_is_broken_and_refusals_by_themselves()
     {
        let mut ledger = Ledger::default();
        for n in 0..1_000 {
            // Row 1 is broken from the fifth second to the tenth. The other is slower meanwhile.
            let begun = ms(n * 11);
            let broken = (ms(5_000)..ms(10_000)).contains(&begun);
            let other = if broken { ms(9) } else { ms(6) };
            ledger.read(0, (begun, begun + other), true);
            let refused = if begun < ms(7_000) { ms(900) } else { ms(1) };
            ledger.read(1, (begun, begun + refused), !broken);
        }
        // Cold, and after it was healed.
        ledger.read(0, (ms(10), ms(999)), true);
        ledger.read(0, (ms(10_500), ms(12_000)), true);
        let moments = ShardMoments {
            broken: Some(ms(5_000)..ms(10_000)),
            ..ShardMoments::default()
        };
        let shard_of = |name: &str| name.ends_with(":1").then_some(0);
        let report = ledger.judge_shards(&HashMap::new(), &moments, shard_of, None);
        let shards = report.shards.unwrap();
        let times = (
            shards.p99_before_ms,
            shards.p99_during_ms,
            shards.refused_ms,
        );
        assert_eq!(times, (Some(6.0), Some(9.0), Some(1.0)));
        let moments = ShardMoments::default();
        let report = ledger.judge_shards(&HashMap::new(), &moments, shard_of, None);
        assert_eq!(report.shards.unwrap().p99_before_ms, None);
    }

    #[test]
    fn d4_every_shard_that_was_healed_has_to_be_back_and_the_last_one_counts() {
        let mut ledger = Ledger::default();
        for (key, begun) in [(0, 900), (0, 1_010), (1, 990), (1, 4_000), (2, 1_001)] {
            let number = ledger.begin(key, begun * 2 + 1, ms(begun));
            ledger.end(number, Said::Acknowledged, ms(begun + 5));
        }
        let names = ledger.names();
        let held: HashMap<String, u64> = names.into_iter().map(|name| (name, 1)).collect();
        let moments = ShardMoments {
            healed: Some(ms(1_000)),
            ..ShardMoments::default()
        };
        let back = |shards: &[usize]| {
            let shard_of = |name: &str| {
                let shard = name.split(':').nth(2)?.parse().ok()?;
                shards.contains(&shard).then_some(shard)
            };
            let report = ledger.judge_shards(&held, &moments, shard_of, None);
            report.shards.and_then(|shards| shards.back_ms)
        };
        assert_eq!(back(&[0, 2]), Some(15.0));
        assert_eq!(back(&[0, 1]), Some(3_005.0), "the others do not hide it");
        let mut silent = ledger.writes.clone();
        silent.retain(|write| write.key != 1 || write.begun < ms(1_000));
        ledger.writes = silent;
        let shard_of = |name: &str| name.split(':').nth(2)?.parse().ok();
        let report = ledger.judge_shards(&held, &moments, shard_of, None);
        // The write that was under way then, and has ended before, is no sign of it.
        assert_eq!(report.shards.and_then(|shards| shards.back_ms), None);
    }

    #[test]
    fn d4_what_is_lost_long_after_another_was_named_went_to_one_that_was_deposed() {
        let mut ledger = Ledger::default();
        for (version, begun) in [(1, 90), (3, 400), (5, 700), (7, 900)] {
            let number = ledger.begin(0, version, ms(begun));
            ledger.end(number, Said::Acknowledged, ms(begun + 5));
        }
        let held = held([("ledger:count:0:7", 1)]);
        let report = ledger.judge(&held, &[ms(100)]);
        assert_eq!((report.lost, report.lost_late), (3, 1));
        assert_eq!(report.back_ms, Some(805.0));
        assert_eq!(ledger.judge(&held, &[ms(100), ms(2_000)]).back_ms, None);
    }

    #[test]
    fn d4_a_write_that_was_said_not_to_have_been_applied_and_is_there_is_a_lie() {
        let mut ledger = Ledger::default();
        for (version, said) in [
            (1, Said::Denied),
            (2, Said::Denied),
            (3, Said::Denied),
            (5, Said::Unknown),
        ] {
            let number = ledger.begin(0, version, ms(version));
            ledger.end(number, said, ms(version + 1));
        }
        let nothing = ledger.judge(&HashMap::new(), &[]);
        assert_eq!((nothing.failed, nothing.denied), (4, 0));
        let held = held([
            ("ledger:count:0:1", 1),
            ("ledger:last:0", 2),
            ("ledger:count:0:5", 1),
        ]);
        let report = ledger.judge(&held, &[]);
        assert_eq!((report.denied, report.twice, report.lost), (2, 0, 0));
    }

    #[test]
    fn d4_what_the_second_failover_loses_of_its_own_primary_is_not_lost_late() {
        let named = [ms(1_000), ms(5_000)];
        let judge = |kept: u64| {
            let mut ledger = Ledger::default();
            // Begun well after the first was named, and lost with it.
            for (version, begun) in [(1, 3_000), (3, 4_900), (5, 5_100), (kept, 4_000)] {
                let number = ledger.begin(0, version, ms(begun));
                ledger.end(number, Said::Acknowledged, ms(begun + 5));
            }
            let held = held([("ledger:count:0:7", 1)]);
            ledger.judge(&held, &named).lost_late
        };
        assert_eq!(judge(9), 0, "all of its last seconds are gone");
        assert_eq!(
            judge(7),
            1,
            "a later one was kept, so the earlier one was elsewhere"
        );
        // After the last one everything was to be there.
        let mut ledger = Ledger::default();
        let number = ledger.begin(0, 1, ms(5_600));
        ledger.end(number, Said::Acknowledged, ms(5_601));
        assert_eq!(ledger.judge(&HashMap::new(), &named).lost_late, 1);
    }
}
