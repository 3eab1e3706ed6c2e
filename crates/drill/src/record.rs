//! The record of a drill, kept in a size that does not grow with its length or its rate:
//! histograms per phase, at most six hundred intervals for the plots, and a running search for the
//! moment of recovery. Pure: times are given, as lengths from the start of the load.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::scenario::{Phase, Phases};
use crate::subject::{Answer, Breaker, Connection, Facts, Source};

/// How long all must be well before recovery is called full.
pub const QUIET: Duration = Duration::from_secs(1);
/// A call that starts so long after it was due has started late: not for want of a place, but
/// because the machine had no time for it.
pub const LATE: Duration = Duration::from_millis(50);
/// Changes of state that are kept; a subject that flaps faster than that is bad enough with what is
/// kept.
const CHANGES: usize = 10_000;
/// Latencies beyond this are recorded as this.
const LONGEST: Duration = Duration::from_secs(120);
const INTERVALS: u32 = 600;
/// How often a subject is asked for its facts.
pub const SAMPLE: Duration = Duration::from_millis(10);
/// Redis is in use if it answers this share of what it did in the baseline.
const USED: f64 = 0.25;
/// A subject that asks Redis so many things a second is judged by them; one whose memory spares it
/// that, by all that Redis answers.
const MANY: f64 = 20.0;

/// How one call ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ended {
    /// A read was answered, rightly or wrongly.
    Read {
        /// With what.
        answer: Answer,
        /// Whether it should not have been.
        wrong: bool,
    },
    /// A write was confirmed.
    Written,
    /// A read failed.
    ReadFailed(&'static str),
    /// A write failed.
    WriteFailed(&'static str),
}

/// All that was seen of one subject.
#[derive(Debug)]
pub struct Record {
    phases: Phases,
    counts: [Counts; 5],
    interval: Duration,
    intervals: Vec<Interval>,
    changes: Vec<Change>,
    facts: Option<Facts>,
    search: Search,
    late: Late,
    end: Duration,
}

/// Calls that started later than they were due by more than [`LATE`]. What they took is partly the
/// machine's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Late {
    /// How many, warm-up included.
    pub calls: u64,
    /// By how much the latest of them.
    pub most: Duration,
}

/// Counts of one phase. Calls count for the phase in which they were meant to start.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Reads answered, by source: memory, Redis, database.
    pub sources: [u64; 3],
    /// Writes confirmed.
    pub written: u64,
    /// Reads that failed.
    pub reads_failed: u64,
    /// Writes that failed.
    pub writes_failed: u64,
    /// Calls that could not be started.
    pub skipped: u64,
    /// Answers that said they were stale.
    pub stale: u64,
    /// Answers that said whether they were stale.
    pub stale_known: u64,
    /// Answers that were wrong.
    pub wrong: u64,
    /// Failed calls by kind; of writes with `write_` before it.
    pub errors: BTreeMap<String, u64>,
    /// Latency of all calls that ended, in microseconds, from the moment they were meant to start.
    pub latency: Histogram<u64>,
    /// Calls to Redis that were answered.
    pub redis_ok: u64,
    /// Calls to Redis that failed.
    pub redis_failed: u64,
    /// All that Redis answered, checks of the connection included.
    pub redis_replies: u64,
    /// Queries of the database.
    pub sql_queries: u64,
}

impl Counts {
    fn new() -> Self {
        Self {
            sources: [0; 3],
            written: 0,
            reads_failed: 0,
            writes_failed: 0,
            skipped: 0,
            stale: 0,
            stale_known: 0,
            wrong: 0,
            errors: BTreeMap::new(),
            latency: Histogram::new_with_bounds(1, micros(LONGEST), 3)
                .expect("these bounds are valid"),
            redis_ok: 0,
            redis_failed: 0,
            redis_replies: 0,
            sql_queries: 0,
        }
    }

    /// Reads that were answered.
    pub fn answered(&self) -> u64 {
        self.sources.iter().sum()
    }

    /// Calls that were answered or confirmed.
    pub fn ok(&self) -> u64 {
        self.answered() + self.written
    }

    /// Calls that were started.
    pub fn calls(&self) -> u64 {
        self.ok() + self.reads_failed + self.writes_failed
    }

    /// Returns the latencies as pairs of microseconds and how many calls took so long, to three
    /// digits.
    pub fn histogram(&self) -> Vec<(u64, u64)> {
        let values = self.latency.iter_recorded();
        values
            .map(|value| {
                (
                    value.value_iterated_to(),
                    value.count_since_last_iteration(),
                )
            })
            .collect()
    }

    /// Adds those of another phase.
    pub fn add(&mut self, other: &Counts) {
        for (mine, theirs) in self.sources.iter_mut().zip(other.sources) {
            *mine += theirs;
        }
        self.written += other.written;
        self.reads_failed += other.reads_failed;
        self.writes_failed += other.writes_failed;
        self.skipped += other.skipped;
        self.stale += other.stale;
        self.stale_known += other.stale_known;
        self.wrong += other.wrong;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.latency
            .add(&other.latency)
            .expect("both have the same bounds");
        self.redis_ok += other.redis_ok;
        self.redis_failed += other.redis_failed;
        self.redis_replies += other.redis_replies;
        self.sql_queries += other.sql_queries;
    }
}

/// Counts of one interval of the plots.
#[derive(Debug, Clone)]
pub struct Interval {
    /// Reads answered, by source: memory, Redis, database.
    pub sources: [u32; 3],
    /// Writes confirmed.
    pub written: u32,
    /// Calls that failed.
    pub failed: u32,
    /// Calls that could not be started.
    pub skipped: u32,
    /// Answers that said they were stale.
    pub stale: u32,
    /// Answers that were wrong.
    pub wrong: u32,
    /// Calls to Redis that failed or were refused.
    pub redis_failed: u32,
    /// Queries of the database.
    pub sql_queries: u32,
    /// Connections made anew.
    pub reconnects: u32,
    /// As in [`Counts`], to one digit.
    pub latency: Histogram<u32>,
}

impl Interval {
    fn new() -> Self {
        Self {
            sources: [0; 3],
            written: 0,
            failed: 0,
            skipped: 0,
            stale: 0,
            wrong: 0,
            redis_failed: 0,
            sql_queries: 0,
            reconnects: 0,
            latency: Histogram::new_with_bounds(1, micros(LONGEST), 1)
                .expect("these bounds are valid"),
        }
    }
}

/// From here on the subject was in these states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When it was seen.
    pub at: Duration,
    /// The connection.
    pub connection: Connection,
    /// The breaker.
    pub breaker: Breaker,
}

/// The moments that recovery is judged by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moments {
    /// From the first thing broken to the first sign that the subject noticed.
    pub detect: Option<Duration>,
    /// From the last healing to the first thing that Redis answered.
    pub first_success: Option<Duration>,
    /// From the last healing to the start of the first second without a failed read, a read that
    /// could not start or a wrong answer; and not before a read that began after the healing was
    /// answered. As exact as reads are close.
    pub users_well: Option<Duration>,
    /// From the last healing to the first answer of Redis that begins a second in which it answers
    /// a quarter as much as in the baseline, no call to it fails, and the connection is in service.
    /// As exact as samples and answers are close.
    pub redis_in_use: Option<Duration>,
}

impl Moments {
    /// When both had come.
    pub fn full(&self) -> Option<Duration> {
        Some(self.users_well?.max(self.redis_in_use?))
    }
}

/// How close to each other the events are from which the moments of recovery are taken: no moment
/// is more exact than that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Between two reads of the baseline; none if there was not one.
    pub users: Option<Duration>,
    /// Between two answers of Redis in the baseline, or between two samples if that is longer.
    pub redis: Option<Duration>,
}

#[derive(Debug, Default)]
struct Search {
    broken: Option<Duration>,
    noticed: Option<Duration>,
    healed: Option<Healed>,
}

#[derive(Debug)]
struct Healed {
    at: Duration,
    redis_replies: u64,
    redis_ok: u64,
    first_success: Option<Duration>,
    /// When the first read that began after the healing was answered. Silence is no sign of health.
    answered: Option<Duration>,
    last_bad: Duration,
    use_of_redis: Use,
}

/// The search for the second in which Redis is in use again.
#[derive(Debug, Default)]
struct Use {
    /// When Redis answered, and how much it had answered before, within the last second.
    answers: VecDeque<(Duration, u64)>,
    found: Option<Duration>,
}

impl Use {
    /// Takes a look at `at`: all that Redis has answered by now and had before, what a second must
    /// have, and whether something was bad.
    fn look(&mut self, at: Duration, (before, now): (u64, u64), enough: f64, bad: bool) {
        if self.found.is_some() {
            return;
        }
        if bad {
            return self.answers.clear();
        }
        if now > before {
            self.answers.push_back((at, before));
        }
        while let Some((from, before)) = self.answers.front()
            && *from + QUIET <= at
        {
            if (now - before) as f64 >= enough {
                self.found = Some(*from);
                return;
            }
            self.answers.pop_front();
        }
    }
}

impl Healed {
    /// When the quiet second began, if nothing disturbs it.
    fn well(&self) -> Option<Duration> {
        Some(self.last_bad.max(self.answered?))
    }
}

impl Search {
    fn notice(&mut self, at: Duration) {
        if self.broken.is_some_and(|broken| at >= broken) && self.noticed.is_none() {
            self.noticed = Some(at);
        }
    }

    /// Users felt it at `at`.
    fn bad(&mut self, at: Duration) {
        self.notice(at);
        if let Some(healed) = &mut self.healed
            && at > healed.last_bad
            && healed.well().is_none_or(|well| at < well + QUIET)
        {
            healed.last_bad = at;
        }
    }

    fn answered(&mut self, began: Duration, at: Duration) {
        if let Some(healed) = &mut self.healed
            && began >= healed.at
        {
            healed.answered.get_or_insert(at);
        }
    }
}

impl Record {
    /// Nothing seen yet.
    pub fn new(phases: Phases) -> Self {
        Self {
            phases,
            counts: std::array::from_fn(|_| Counts::new()),
            interval: (phases.total() / INTERVALS).max(Duration::from_millis(100)),
            intervals: Vec::new(),
            changes: Vec::new(),
            facts: None,
            search: Search::default(),
            late: Late::default(),
            end: Duration::ZERO,
        }
    }

    /// A call started so much later than it was due, which was more than [`LATE`].
    pub fn late(&mut self, by: Duration) {
        self.late.calls += 1;
        self.late.most = self.late.most.max(by);
    }

    /// The calls that started late.
    pub fn started_late(&self) -> Late {
        self.late
    }

    /// A call that was meant to start at `start` and was charged from `charged` ended at `end`.
    pub fn call(&mut self, start: Duration, charged: Duration, end: Duration, ended: Ended) {
        self.end = self.end.max(end);
        let latency = micros(end.saturating_sub(charged)).max(1);
        let counts = &mut self.counts[self.phases.at(start) as usize];
        counts.latency.saturating_record(latency);
        match ended {
            Ended::Read { answer, wrong } => {
                counts.sources[index(answer.source)] += 1;
                counts.stale += u64::from(answer.stale == Some(true));
                counts.stale_known += u64::from(answer.stale.is_some());
                counts.wrong += u64::from(wrong);
                if wrong {
                    self.search.bad(end);
                } else {
                    self.search.answered(start, end);
                }
            }
            Ended::Written => counts.written += 1,
            Ended::ReadFailed(kind) => {
                counts.reads_failed += 1;
                *counts.errors.entry(kind.to_owned()).or_default() += 1;
                // Whoever waits in vain is not well from the start.
                self.search.bad(start);
                self.search.bad(end);
            }
            Ended::WriteFailed(kind) => {
                counts.writes_failed += 1;
                *counts.errors.entry(format!("write_{kind}")).or_default() += 1;
            }
        }
        let Some(interval) = self.interval_at(start) else {
            return;
        };
        interval.latency.saturating_record(latency);
        match ended {
            Ended::Read { answer, wrong } => {
                interval.sources[index(answer.source)] += 1;
                interval.stale += u32::from(answer.stale == Some(true));
                interval.wrong += u32::from(wrong);
            }
            Ended::Written => interval.written += 1,
            Ended::ReadFailed(_) | Ended::WriteFailed(_) => interval.failed += 1,
        }
    }

    /// A call that was meant to start at `start` could not be started.
    pub fn skip(&mut self, start: Duration) {
        self.counts[self.phases.at(start) as usize].skipped += 1;
        self.search.bad(start);
        if let Some(interval) = self.interval_at(start) {
            interval.skipped += 1;
        }
    }

    /// Takes what the subject knows of itself at `at`. Asked often: the moments of recovery are as
    /// exact as these are close.
    pub fn sample(&mut self, at: Duration, facts: Facts) {
        self.end = self.end.max(at);
        // What came before the load, as it warmed, is not the load's.
        let before = self.facts.replace(facts).unwrap_or(facts);
        let ok = facts.redis_ok.saturating_sub(before.redis_ok);
        let failed = facts.redis_failed.saturating_sub(before.redis_failed);
        let sql = facts.sql_queries.saturating_sub(before.sql_queries);
        let counts = &mut self.counts[self.phases.at(at) as usize];
        counts.redis_ok += ok;
        counts.redis_failed += failed;
        counts.redis_replies += facts.redis_replies.saturating_sub(before.redis_replies);
        counts.sql_queries += sql;
        if let Some(interval) = self.interval_at(at) {
            interval.redis_failed += small(failed);
            interval.sql_queries += small(sql);
            interval.reconnects += small(facts.reconnects.saturating_sub(before.reconnects));
        }
        let change = Change {
            at,
            connection: facts.connection,
            breaker: facts.breaker,
        };
        let same =
            |last: &Change| (last.connection, last.breaker) == (change.connection, change.breaker);
        if !self.changes.last().is_some_and(same) && self.changes.len() < CHANGES {
            self.changes.push(change);
        }
        let bad = facts.connection != Connection::Ready || failed > 0;
        if bad {
            self.search.notice(at);
        }
        let enough = (self.answers_per_second() * USED).max(1.0);
        let answers = (self.asked(&before), self.asked(&facts));
        if let Some(healed) = &mut self.search.healed {
            healed.use_of_redis.look(at, answers, enough, bad);
        }
        if let Some(healed) = &mut self.search.healed
            && healed.first_success.is_none()
            && facts.connection == Connection::Ready
            // The two are counted by different parts of a subject, one of which may lag.
            && (facts.redis_replies > healed.redis_replies || facts.redis_ok > healed.redis_ok)
        {
            healed.first_success = Some(at);
        }
    }

    /// Something was broken at `at`.
    pub fn broken(&mut self, at: Duration) {
        self.search.broken.get_or_insert(at);
        self.search.healed = None;
    }

    /// The last thing that was broken was healed at `at`.
    pub fn healed(&mut self, at: Duration) {
        let Facts {
            redis_replies,
            redis_ok,
            ..
        } = self.facts();
        self.search.healed = Some(Healed {
            at,
            redis_replies,
            redis_ok,
            first_success: None,
            answered: None,
            last_bad: at,
            use_of_redis: Use::default(),
        });
    }

    /// Returns the counts of that phase so far.
    pub fn counts(&self, phase: Phase) -> &Counts {
        &self.counts[phase as usize]
    }

    /// The intervals from the start of the load, and the length of each.
    pub fn intervals(&self) -> (Duration, &[Interval]) {
        (self.interval, &self.intervals)
    }

    /// The changes of state.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The last facts seen.
    pub fn facts(&self) -> Facts {
        self.facts.unwrap_or_default()
    }

    /// The time of the last thing seen.
    pub fn end(&self) -> Duration {
        self.end
    }

    /// The moments of recovery, as far as they have come.
    pub fn moments(&self) -> Moments {
        let healed = self.search.healed.as_ref();
        Moments {
            detect: self
                .search
                .broken
                .zip(self.search.noticed)
                .map(|(broken, noticed)| noticed - broken),
            first_success: healed.and_then(|h| h.first_success.map(|at| at - h.at)),
            users_well: healed.and_then(|h| {
                let well = h.well()?;
                (self.end >= well + QUIET).then(|| well - h.at)
            }),
            redis_in_use: healed.and_then(|h| Some(h.use_of_redis.found? - h.at)),
        }
    }

    /// How exact the moments of recovery are.
    pub fn resolution(&self) -> Resolution {
        let gap = |rate: f64| (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate));
        let reads = self.counts(Phase::Baseline).answered() as f64;
        Resolution {
            users: gap(reads / self.phases.baseline.as_secs_f64()),
            redis: gap(self.answers_per_second()).map(|gap| gap.max(SAMPLE)),
        }
    }

    /// Returns how much Redis has answered: to the subject's calls, or, where those are few, to all
    /// that it asks.
    fn asked(&self, facts: &Facts) -> u64 {
        let calls = self.counts(Phase::Baseline).redis_ok as f64;
        if calls >= MANY * self.phases.baseline.as_secs_f64() {
            facts.redis_ok
        } else {
            facts.redis_replies
        }
    }

    /// Of those, in the baseline.
    fn answers_per_second(&self) -> f64 {
        let counts = self.counts(Phase::Baseline);
        let seconds = self.phases.baseline.as_secs_f64();
        let answers = if counts.redis_ok as f64 >= MANY * seconds {
            counts.redis_ok
        } else {
            counts.redis_replies
        };
        answers as f64 / seconds
    }

    fn interval_at(&mut self, at: Duration) -> Option<&mut Interval> {
        let index = (at.as_micros() / self.interval.as_micros().max(1)) as usize;
        // A load that goes on past its phases (until so many calls are made) may take as long
        // again; past that it is not plotted.
        if index >= 2 * INTERVALS as usize {
            return None;
        }
        if self.intervals.len() <= index {
            self.intervals.resize_with(index + 1, Interval::new);
        }
        self.intervals.get_mut(index)
    }
}

fn index(source: Source) -> usize {
    match source {
        Source::Memory => 0,
        Source::Redis => 1,
        Source::Database => 2,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
