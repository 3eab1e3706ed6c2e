//! Counters of one query or statement, looked up once: a name and three labels take longer to find
//! than a hit in memory takes to answer. They exist from the start, so that a first error is a rise
//! from 0 and not a series from nowhere.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};
use steadfast_cache::Source;

use super::waiting::NoAnswer;
use crate::observe::figures::Figures;
use crate::problem::ProblemKind;
use crate::telemetry;

/// The kinds of problem that a read or a write can end in.
const KINDS: [ProblemKind; 7] = [
    ProblemKind::BadParameter,
    ProblemKind::TooLarge,
    ProblemKind::Overloaded,
    ProblemKind::Unavailable,
    ProblemKind::Timeout,
    ProblemKind::Conflict,
    ProblemKind::Internal,
];

/// The counters of one query.
#[derive(Debug)]
pub(super) struct ReadMeters {
    /// By memory, Redis and database; fresh, then stale.
    answers: [[Meter; 2]; 3],
    errors: [Meter; KINDS.len()],
    /// Callers that went away before they were answered.
    abandoned: Meter,
    pub(super) figures: Arc<Figures>,
    /// Times the questions to the database.
    pub(super) asked: SqlMeter,
}

impl ReadMeters {
    pub(super) fn new(query: &str, system: &'static str, figures: Option<Arc<Figures>>) -> Self {
        let answers = ["memory", "redis", "database"].map(|source| {
            ["false", "true"].map(|stale| {
                Meter(counter!(
                    "steadfast_reads_total",
                    "query" => query.to_owned(),
                    "source" => source,
                    "stale" => stale
                ))
            })
        });
        let error = |kind: &'static str| {
            Meter(counter!(
                "steadfast_read_errors_total",
                "query" => query.to_owned(),
                "error_type" => kind
            ))
        };
        Self {
            answers,
            errors: KINDS.map(|kind| error(kind.name())),
            abandoned: error("abandoned"),
            figures: figures.unwrap_or_else(|| Arc::new(Figures::of_query())),
            asked: SqlMeter::new(system, "SELECT"),
        }
    }

    pub(super) fn answered(&self, source: Source, stale: bool, took: Duration) {
        self.figures.answered(source, stale, took);
        let row = match source {
            Source::Memory => 0,
            Source::Redis => 1,
            _ => 2,
        };
        self.answers[row][usize::from(stale)].0.increment(1);
    }

    pub(super) fn failed(&self, kind: ProblemKind, took: Duration) {
        self.figures.failed(took);
        count_error(&self.errors, kind);
    }

    pub(super) fn unanswered(&self, why: NoAnswer, took: Duration) {
        if let Some(kind) = why.problem() {
            return self.failed(kind, took);
        }
        self.figures.failed(took);
        self.abandoned.0.increment(1);
    }
}

/// The counters of one statement.
#[derive(Debug)]
pub(super) struct WriteMeters {
    ok: Meter,
    replayed: Meter,
    errors: [Meter; KINDS.len()],
    /// Callers that went away before they were answered.
    abandoned: Meter,
    pub(super) figures: Arc<Figures>,
    pub(super) asked: SqlMeter,
}

impl WriteMeters {
    pub(super) fn new(
        statement: &str,
        system: &'static str,
        verb: &str,
        figures: Option<Arc<Figures>>,
    ) -> Self {
        let meter = |outcome: &'static str| {
            Meter(counter!(
                "steadfast_writes_total",
                "statement" => statement.to_owned(),
                "outcome" => outcome
            ))
        };
        let operation = ["INSERT", "UPDATE", "DELETE", "REPLACE"];
        let operation = operation.into_iter().find(|known| *known == verb);
        Self {
            ok: meter("ok"),
            replayed: meter("replayed"),
            errors: KINDS.map(|kind| meter(kind.name())),
            abandoned: meter("abandoned"),
            figures: figures.unwrap_or_else(|| Arc::new(Figures::of_statement())),
            asked: SqlMeter::new(system, operation.unwrap_or("OTHER")),
        }
    }

    pub(super) fn done(&self, replayed: bool, took: Duration) {
        self.figures.done(replayed, took);
        let meter = if replayed { &self.replayed } else { &self.ok };
        meter.0.increment(1);
    }

    pub(super) fn failed(&self, kind: ProblemKind, took: Duration) {
        self.figures.failed(took);
        count_error(&self.errors, kind);
    }

    pub(super) fn unanswered(&self, why: NoAnswer, took: Duration) {
        if let Some(kind) = why.problem() {
            return self.failed(kind, took);
        }
        self.figures.failed(took);
        self.abandoned.0.increment(1);
    }
}

/// Times what is asked of the database, as OpenTelemetry names it.
pub(super) struct SqlMeter {
    system: &'static str,
    operation: &'static str,
    times: Histogram,
}

impl SqlMeter {
    fn new(system: &'static str, operation: &'static str) -> Self {
        Self {
            system,
            operation,
            times: histogram!(
                "db_client_operation_duration_seconds",
                "db_system_name" => system,
                "db_operation_name" => operation
            ),
        }
    }

    /// A span around such a question to the database, named for traces.
    pub(super) fn span(&self, program: &str) -> tracing::Span {
        telemetry::operation(self.system, self.operation, program)
    }

    pub(super) fn took(&self, duration: Duration) {
        self.times.record(duration);
    }
}

impl std::fmt::Debug for SqlMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqlMeter")
    }
}

struct Meter(Counter);

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meter")
    }
}

fn count_error(errors: &[Meter; KINDS.len()], kind: ProblemKind) {
    if let Some(index) = KINDS.iter().position(|known| *known == kind) {
        errors[index].0.increment(1);
    }
}
