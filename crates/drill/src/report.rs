//! The findings of a drill, in the one shape that all its forms are made from: the table on a
//! terminal, the JSON for machines, the page that people forward, and the JUnit file for CI.
//!
//! ```no_run
//! use std::fs::write;
//! use steadfast_drill::report::{Report, html, json, junit, table};
//!
//! # fn example(report: Report) -> std::io::Result<()> {
//! print!("{}", table::render(&report, true));
//! write("report.json", json::render(&report))?;
//! write("report.html", html::render(&report))?;
//! assert!(report.passed(), "{:?}", report.caveat());
//! write("junit.xml", junit::render(&[report]))?;
//! # Ok(()) }
//! ```

pub mod application;
pub mod compare;
pub mod html;
pub mod json;
pub mod junit;
pub mod repeat;
pub mod summary;
mod svg;
pub mod table;
pub mod timeline;
pub mod traffic;
pub mod users;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::kpi::{Kpi, duration, figure, target, title};
use crate::ledger::LedgerReport;
use crate::record::{Counts, Interval, Record};
use crate::scenario::{Phase, Scenario, Step, Store};
use crate::subject::{Breaker, Connection, Role};
pub use crate::timeline::FaultSpan;
pub use crate::verdict::Verdict;
use crate::verdict::{
    NOTHING_IS_BROKEN, judge, judge_ledger, ms, proves_nothing, share, sum, untouched_kpi, verdict,
};

/// The version of the JSON form.
pub const SCHEMA: &str = "steadfast-drill-report/1";

/// The findings of a drill. Its serialised form is `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The name of the scenario.
    pub scenario: String,
    /// The point of the scenario, in a sentence.
    pub about: String,
    /// The seed of all chance.
    pub seed: u64,
    /// The subject that this is about.
    pub subject: Role,
    /// Whether the load was what the scenario asks for.
    pub load: LoadReport,
    /// The figures of each phase.
    pub phases: Vec<PhaseReport>,
    /// The share of each tier in the reads of baseline and recovered.
    pub hit_rate: HitRate,
    /// How it noticed and came back.
    pub recovery: Recovery,
    /// The key figures, which decide the verdict.
    pub kpis: Vec<Kpi>,
    /// The subject's connection to Redis, over the whole run.
    pub connection: ConnectionReport,
    /// The load on its database.
    pub database: DatabaseReport,
    /// Whether every key figure is good enough.
    pub verdict: Verdict,
    /// When something was broken.
    pub faults: Vec<FaultSpan>,
    /// The faults of the wire that acted on nothing, by name, or that nothing is broken by this
    /// scenario.
    pub untouched: Vec<&'static str>,
    /// The fate of the writes of a subject whose data are in Redis itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerReport>,
    /// For plots.
    pub timeline: Timeline,
    /// Whether the control is expected to fail, which is what most scenarios are there to show.
    pub control_fails: bool,
    /// The same of the control, if one ran.
    pub control: Option<Box<Report>>,
    /// The same of the second control, whose resilience is built by hand, if it ran.
    pub hand_built: Option<Box<Report>>,
}

/// Whether the load was what the scenario asks for. If it was not, the machine could not keep up,
/// and the figures are partly its own.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LoadReport {
    /// Calls that could not be started, as too many were running.
    pub skipped: u64,
    /// Calls that started more than 50 ms after they were due, as nothing found the time to start
    /// them.
    pub late: u64,
    /// By how much the latest of them, in milliseconds.
    pub latest_ms: f64,
}

/// The figures of one phase.
#[derive(Debug, Clone, Serialize)]
pub struct PhaseReport {
    /// The phase's name.
    pub name: &'static str,
    /// When it began, from the start of the load.
    pub from_ms: u64,
    /// When it ended.
    pub to_ms: u64,
    /// Calls that were meant to start in it, and did.
    pub calls: u64,
    /// Calls that were answered or confirmed.
    pub ok: u64,
    /// Calls that were meant to start in it and could not.
    pub skipped: u64,
    /// Failed calls by kind.
    pub errors: BTreeMap<String, u64>,
    /// Answered reads by source.
    pub sources: Sources,
    /// Answers that said they were stale.
    pub stale: u64,
    /// Answers that were too old and did not say so.
    pub wrong: u64,
    /// Latency of its calls.
    pub latency_ms: Latency,
    /// The same as a histogram: pairs of microseconds and how many calls took so long, to three
    /// digits.
    pub histogram_us: Vec<(u64, u64)>,
}

/// Counts by source.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sources {
    /// From the memory of the process.
    pub memory: u64,
    /// From Redis.
    pub redis: u64,
    /// From SQL.
    pub database: u64,
}

/// The share of the reads of baseline and recovered that each tier answered, from 0 to 1; null if
/// none was answered.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct HitRate {
    /// The memory of the process.
    pub memory: Option<f64>,
    /// Redis.
    pub redis: Option<f64>,
    /// SQL, which is no hit.
    pub database: Option<f64>,
}

impl HitRate {
    fn of(record: &Record) -> Self {
        let normal = sum(record, &[Phase::Baseline, Phase::Recovered]);
        let [memory, redis, database] = normal.sources.map(|part| share(part, normal.answered()));
        Self {
            memory,
            redis,
            database,
        }
    }
}

/// Latency in milliseconds, from when a call was meant to start. 0 if there were none.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The time that one call in a hundred exceeded.
    pub p99: f64,
    /// The time that one call in a thousand exceeded.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// How a subject noticed and came back, in milliseconds; null for what did not happen.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Recovery {
    /// From the first thing broken to the first sign that it was noticed.
    pub detect_ms: Option<f64>,
    /// From the last healing to the first call answered by Redis.
    pub first_success_ms: Option<f64>,
    /// From the last healing to the start of the first second in which no read failed, none was
    /// wrong and each could start.
    pub users_well_ms: Option<f64>,
    /// How exact that is: the time between two reads.
    pub users_well_resolution_ms: Option<f64>,
    /// From the last healing to the start of the first second in which Redis answers a quarter as
    /// much as in the baseline and no call to it fails.
    pub redis_in_use_ms: Option<f64>,
    /// How exact that is: the time between two answers of Redis, or between two looks at the
    /// subject if that is longer.
    pub redis_in_use_resolution_ms: Option<f64>,
    /// The later of the two.
    pub full_ms: Option<f64>,
}

/// The connection over the whole run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ConnectionReport {
    /// Attempts to connect.
    pub attempts: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// Times that a supervisor was found stuck.
    pub stuck_resets: u64,
}

/// Queries a second.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DatabaseReport {
    /// On average in the baseline.
    pub baseline_qps: f64,
    /// In the busiest second from the start of the fault to the end of the recovery.
    pub fault_max_qps: f64,
}

/// The data of the plots: columns of equal length, one value for each interval.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Timeline {
    /// The length of an interval.
    pub interval_ms: u64,
    /// Reads a second answered from memory.
    pub memory: Vec<f64>,
    /// Reads a second answered by Redis.
    pub redis: Vec<f64>,
    /// Reads a second answered by SQL.
    pub database: Vec<f64>,
    /// Writes a second.
    pub written: Vec<f64>,
    /// Failed calls a second.
    pub failed: Vec<f64>,
    /// Calls a second that could not be started.
    pub skipped: Vec<f64>,
    /// Answers a second that said they were stale.
    pub stale: Vec<f64>,
    /// Answers a second that were wrong.
    pub wrong: Vec<f64>,
    /// Queries of the database a second.
    pub sql: Vec<f64>,
    /// Connections made anew in the interval.
    pub reconnects: Vec<u32>,
    /// The median latency in milliseconds; null where there were no calls.
    pub p50_ms: Vec<Option<f64>>,
    /// The 99th percentile.
    pub p99_ms: Vec<Option<f64>>,
    /// The longest.
    pub max_ms: Vec<Option<f64>>,
    /// From when on which states were seen.
    pub states: Vec<StateChange>,
}

/// From here on these states were seen.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StateChange {
    /// When, from the start of the load.
    pub at_ms: u64,
    /// The connection to Redis.
    pub connection: Connection,
    /// The breaker.
    pub breaker: Breaker,
}

impl Report {
    /// Makes the report of one subject from its record.
    pub fn of(scenario: &Scenario, role: Role, record: &Record, faults: Vec<FaultSpan>) -> Self {
        Self::with_untouched(scenario, role, record, faults, Vec::new(), None)
    }

    /// Where the subject's data are.
    pub(crate) fn store(&self) -> Store {
        match &self.ledger {
            None => Store::Cache,
            Some(ledger) if ledger.shards.is_some() => Store::Cluster,
            Some(_) => Store::Sentinel,
        }
    }

    /// The same, given which faults acted on nothing. With one it is void, since what it was to
    /// show was not shown; and so is a scenario that breaks nothing.
    pub(crate) fn with_untouched(
        scenario: &Scenario,
        role: Role,
        record: &Record,
        faults: Vec<FaultSpan>,
        mut untouched: Vec<&'static str>,
        ledger: Option<LedgerReport>,
    ) -> Self {
        let steps = &scenario.steps;
        if steps.is_empty() {
            untouched.push(NOTHING_IS_BROKEN);
        }
        let on_the_wire = |step: &Step| step.fault.needs_proxy();
        let mut kpis = Vec::new();
        if steps.is_empty() || steps.iter().any(on_the_wire) || ledger.is_some() {
            kpis.push(untouched_kpi(&untouched));
        }
        let thresholds = &scenario.thresholds;
        kpis.extend(match &ledger {
            Some(ledger) => judge_ledger(record, ledger, thresholds, role),
            None => judge(record, thresholds, role, !steps.is_empty()),
        });
        let (moments, resolution) = (record.moments(), record.resolution());
        let facts = record.facts();
        Self {
            schema: SCHEMA,
            scenario: scenario.name.clone(),
            about: scenario.about.clone(),
            seed: scenario.seed,
            subject: role,
            load: LoadReport {
                skipped: Phase::ALL
                    .iter()
                    .map(|phase| record.counts(*phase).skipped)
                    .sum(),
                late: record.started_late().calls,
                latest_ms: ms(record.started_late().most),
            },
            phases: phases(scenario, record),
            hit_rate: HitRate::of(record),
            recovery: Recovery {
                detect_ms: moments.detect.map(ms),
                first_success_ms: moments.first_success.map(ms),
                users_well_ms: moments.users_well.map(ms),
                users_well_resolution_ms: resolution.users.map(ms),
                redis_in_use_ms: moments.redis_in_use.map(ms),
                redis_in_use_resolution_ms: resolution.redis.map(ms),
                full_ms: moments.full().map(ms),
            },
            connection: ConnectionReport {
                attempts: facts.attempts,
                reconnects: facts.reconnects,
                stuck_resets: facts.stuck_resets,
            },
            database: database(scenario, record),
            verdict: verdict(&kpis),
            kpis,
            faults,
            untouched,
            ledger,
            timeline: timeline(record),
            control_fails: scenario.thresholds.control_fails,
            control: None,
            hand_built: None,
        }
    }

    /// Whether the judged subject did well; the control does not count.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }

    /// Returns a sentence about a load that was not what the scenario asks for.
    pub fn caveat(&self) -> Option<String> {
        let LoadReport {
            skipped,
            late,
            latest_ms,
        } = self.load;
        let mut said = Vec::new();
        if late > 0 {
            said.push(format!(
                "{late} calls started late, by up to {}: the machine had no time for them, and what they took is partly its own",
                duration(latest_ms)
            ));
        }
        if skipped > 0 {
            said.push(format!(
                "{skipped} calls could not start, as all places were taken"
            ));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// Returns a sentence about each fault that touched nothing.
    pub fn proves_nothing(&self) -> Vec<String> {
        self.untouched
            .iter()
            .map(|name| proves_nothing(name))
            .collect()
    }

    /// Whether the control, if one ran, did as the scenario says that it will.
    pub fn control_as_expected(&self) -> bool {
        self.control
            .as_ref()
            .is_none_or(|control| control.passed() != self.control_fails)
    }

    /// All subjects of the run and what they are called; the judged one comes first.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Report)> + Clone {
        let controls = [self.control.as_deref(), self.hand_built.as_deref()];
        std::iter::once(self)
            .chain(controls.into_iter().flatten())
            .map(|report| (report.subject.title(), report))
    }

    /// The length of the run.
    pub fn length(&self) -> Duration {
        Duration::from_millis(self.phases.last().map_or(0, |phase| phase.to_ms))
    }
}

fn phases(scenario: &Scenario, record: &Record) -> Vec<PhaseReport> {
    let spans = scenario
        .phases
        .spans()
        .into_iter()
        .filter(|(_, span)| !span.is_empty());
    spans
        .map(|(phase, span)| {
            let counts = record.counts(phase);
            PhaseReport {
                name: phase.name(),
                from_ms: span.start.as_millis() as u64,
                to_ms: span.end.as_millis() as u64,
                calls: counts.calls(),
                ok: counts.ok(),
                skipped: counts.skipped,
                errors: counts.errors.clone(),
                sources: Sources {
                    memory: counts.sources[0],
                    redis: counts.sources[1],
                    database: counts.sources[2],
                },
                stale: counts.stale,
                wrong: counts.wrong,
                latency_ms: latency(counts),
                histogram_us: counts.histogram(),
            }
        })
        .collect()
}

pub(crate) fn latency(counts: &Counts) -> Latency {
    let at = |quantile| counts.latency.value_at_quantile(quantile) as f64 / 1e3;
    Latency {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: counts.latency.max() as f64 / 1e3,
    }
}

fn database(scenario: &Scenario, record: &Record) -> DatabaseReport {
    let queries = record.counts(Phase::Baseline).sql_queries as f64;
    let (length, intervals) = record.intervals();
    let fault = scenario.phases.spans()[Phase::Fault as usize].1.start;
    let recovered = scenario.phases.spans()[Phase::Recovery as usize].1.end;
    let index = |at: Duration| (at.as_micros() / length.as_micros().max(1)) as usize;
    let in_fault = intervals
        .get(index(fault)..index(recovered).min(intervals.len()))
        .unwrap_or(&[]);
    let width = (Duration::from_secs(1).as_micros() / length.as_micros().max(1)).max(1) as usize;
    let busiest = in_fault
        .windows(width.min(in_fault.len().max(1)))
        .map(|window| {
            window
                .iter()
                .map(|interval| f64::from(interval.sql_queries))
                .sum::<f64>()
        })
        .fold(0.0, f64::max);
    DatabaseReport {
        baseline_qps: rounded(queries / scenario.phases.baseline.as_secs_f64()),
        fault_max_qps: rounded(busiest / (length.as_secs_f64() * width as f64)),
    }
}

fn timeline(record: &Record) -> Timeline {
    let (length, intervals) = record.intervals();
    let per_second = |count: fn(&Interval) -> u32| -> Vec<f64> {
        let rate = |interval| rounded(f64::from(count(interval)) / length.as_secs_f64());
        intervals.iter().map(rate).collect()
    };
    let quantile = |at: f64| -> Vec<Option<f64>> {
        let value = |interval: &Interval| {
            (!interval.latency.is_empty())
                .then(|| interval.latency.value_at_quantile(at) as f64 / 1e3)
        };
        intervals.iter().map(value).collect()
    };
    Timeline {
        interval_ms: length.as_millis() as u64,
        memory: per_second(|i| i.sources[0]),
        redis: per_second(|i| i.sources[1]),
        database: per_second(|i| i.sources[2]),
        written: per_second(|i| i.written),
        failed: per_second(|i| i.failed),
        skipped: per_second(|i| i.skipped),
        stale: per_second(|i| i.stale),
        wrong: per_second(|i| i.wrong),
        sql: per_second(|i| i.sql_queries),
        reconnects: intervals.iter().map(|i| i.reconnects).collect(),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        max_ms: quantile(1.0),
        states: record
            .changes()
            .iter()
            .map(|change| StateChange {
                at_ms: change.at.as_millis() as u64,
                connection: change.connection,
                breaker: change.breaker,
            })
            .collect(),
    }
}

/// To one decimal.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// Returns the targets of the controls, where they differ from those of the judged subject.
pub(crate) fn other_targets(report: &Report, kpi: &Kpi) -> Option<String> {
    let mut controls = report.all().skip(1).flat_map(|(_, control)| &control.kpis);
    controls
        .find(|theirs| theirs.name == kpi.name && theirs.target != kpi.target)
        .map(target)
}
