//! A read through the cache, and the translation of what can go wrong with it into what a caller
//! can do about it.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use steadfast_cache::{
    Bounds, Cache, CacheError, ClassBound, Database, Selected, Source, SourceError, StaleReason,
    UnknownClass,
};
use tracing::Instrument;

use super::blame::{CallerMistake, of_a_column};
use super::waiting::AnswerWatch;
use super::{Query, bound, rendered};
use crate::backend::Rows;
use crate::clock::now;
use crate::grammar::param::Values;
use crate::observe::Observations;
use crate::observe::tally::ReadOutcome;
use crate::problem::{Problem, ProblemKind};
use crate::telemetry;

/// The `Retry-After` for a caller when it is not known when waiting will help.
const SOON: Duration = Duration::from_secs(1);

/// The body of an empty answer, which the cache remembers as absence.
const NO_ROWS: &[u8] = b"\"rows\":[],\"truncated\":false";

/// Rows and where they came from.
#[derive(Debug)]
pub(crate) struct ReadAnswer {
    /// `"rows":[…],"truncated":…`
    pub(crate) rows: Bytes,
    pub(crate) source: Source,
    pub(crate) age: Duration,
    pub(crate) stale: Option<StaleReason>,
    /// The time for which it is, or was, fresh since it was loaded.
    pub(crate) fresh_for: Duration,
}

/// The parts of the service that a read uses.
pub(crate) struct Reads {
    pub(crate) cache: Cache,
    pub(crate) database: Database,
    pub(crate) observations: Arc<Observations>,
    /// Bytes that the rows of one answer may have.
    pub(crate) most_bytes: usize,
}

impl Query {
    /// Answers from memory, Redis or the database, whichever has it first.
    pub(crate) async fn read(
        self: &Arc<Self>,
        reads: &Reads,
        values: Values,
    ) -> Result<ReadAnswer, Problem> {
        let (tally, felt) = (&reads.observations.tally, &reads.observations.felt);
        let waiting = AnswerWatch::new(|why, took| {
            tally.read(ReadOutcome::Failed, false, took);
            if why.problem().is_some() {
                tally.fault();
                felt.failed(&self.name, why.cause());
            }
            self.meters.unanswered(why, took);
        });
        let key = self.key.render(&values);
        let tags = rendered(&self.tags, &values);
        let (query, database) = (Arc::clone(self), reads.database.clone());
        let most_bytes = reads.most_bytes;
        let span = self.meters.asked.span(&self.name);
        // A hit needs nothing of this, so nothing of it is prepared before it is needed.
        let load = move || {
            async move {
                let params = bound(&query.sql, &query.params, &values);
                let begun = now();
                let bounds = Bounds::new(query.max_rows, most_bytes);
                let rows = database
                    .select_within(bounds, &query.sql.text, &params)
                    .await;
                let took = now().saturating_duration_since(begun);
                query.meters.asked.took(took);
                Ok(encode(&rows?)?)
            }
            .instrument(span)
        };
        let answer = match self.view(&reads.cache) {
            Ok(view) => view.read(&key).tags(&tags).get(load).await,
            Err(unknown) => Err(CacheError::Load(Arc::new(unknown))),
        };
        let took = waiting.over();
        match answer {
            Ok(answer) => {
                tally.read(outcome(answer.source), answer.stale.is_some(), took);
                self.meters
                    .answered(answer.source, answer.stale.is_some(), took);
                telemetry::answered(answer.source.as_str(), answer.stale.is_some());
                Ok(ReadAnswer {
                    rows: answer.value.unwrap_or(Bytes::from_static(NO_ROWS)),
                    source: answer.source,
                    age: answer.age,
                    stale: answer.stale,
                    fresh_for: answer.fresh_for,
                })
            }
            Err(error) => {
                let problem = self.refusal(&error);
                tally.read(ReadOutcome::Failed, false, took);
                if problem.is_ours() {
                    tally.fault();
                    felt.failed(&self.name, problem.detail());
                }
                self.meters.failed(problem.kind(), took);
                Err(problem)
            }
        }
    }

    /// Returns the view of the class, made when it is first read.
    fn view(&self, cache: &Cache) -> Result<&Rows, UnknownClass> {
        if let Some(view) = self.rows.get() {
            return Ok(view);
        }
        let view = cache.view_of_bytes(&self.class)?;
        // The keys of the configuration are whole: statements name them for whatever class.
        let view = view.prefix("").version(self.version);
        Ok(self.rows.get_or_init(|| view))
    }

    fn refusal(&self, error: &CacheError) -> Problem {
        let query = &self.name;
        match error {
            CacheError::Overloaded { retry_after } => {
                let why = "the database is asked for as much as it may be";
                if let Some(untold) = self.complaints.tell() {
                    tracing::warn!(
                        query,
                        untold,
                        "a query was refused: {why} by `database.guard`"
                    );
                }
                overloaded(why, *retry_after)
            }
            CacheError::ClassOverloaded {
                class,
                bound,
                retry_after,
            } => {
                let setting = match bound {
                    ClassBound::Concurrency(_) => "concurrency",
                    _ => "rate",
                };
                let why = format!(
                    "the class `{class}` is asked for as much as it may be: {bound} by `ttl.{class}.guard.{setting}`"
                );
                if let Some(untold) = self.complaints.tell() {
                    tracing::warn!(query, untold, "a query was refused: {why}");
                }
                overloaded(&why, *retry_after)
            }
            CacheError::Unavailable { retry_after } => unavailable(Some(*retry_after)),
            CacheError::LoadTimeout { .. } => Problem::new(
                ProblemKind::Timeout,
                "the database did not answer within the class's hard limit",
            )
            .retry_after(Some(SOON)),
            CacheError::Load(cause) => self.not_loaded(cause),
            CacheError::Abandoned => unavailable(None),
            CacheError::LoadPanicked { message } => {
                // Rare and worth each line: it is a fault of the service.
                tracing::error!(query, message, "a query panicked");
                Problem::new(
                    ProblemKind::Internal,
                    format!(
                        "the query `{query}` ran into a fault of the service; the log says which"
                    ),
                )
            }
            other => {
                if let Some(untold) = self.complaints.tell() {
                    tracing::error!(query, error = %other, untold, "a query could not be answered");
                }
                unavailable(Some(SOON))
            }
        }
    }

    fn not_loaded(&self, cause: &Arc<dyn Error + Send + Sync>) -> Problem {
        let query = &self.name;
        let source = cause.downcast_ref::<SourceError>();
        if let Some(blame) = source.and_then(CallerMistake::of) {
            return blame.problem(query);
        }
        let passing = source.is_none_or(SourceError::is_passing);
        // What the database says may hold values, and is for the operator, not for the caller.
        let told = self.complaints.tell();
        if let Some(SourceError::RowTooLarge { bytes }) = source {
            if let Some(untold) = told {
                tracing::warn!(query, error = %cause, untold, "a query could not be loaded");
            }
            Problem::new(
                ProblemKind::TooLarge,
                format!("a row of `{query}` is larger than `limits.result` ({bytes} bytes) allows"),
            )
        } else if passing {
            if let Some(untold) = told {
                tracing::warn!(query, error = %cause, untold, "a query could not be loaded");
            }
            unavailable(Some(SOON))
        } else if source.is_some_and(SourceError::writes) {
            if let Some(untold) = told {
                tracing::error!(query, error = %cause, untold, "a query writes, which the database refused it; what changes data belongs under [statements]");
            }
            Problem::new(
                ProblemKind::Unavailable,
                format!(
                    "the query `{query}` writes, and queries may only read; it belongs under [statements]"
                ),
            )
        } else {
            if let Some(untold) = told {
                tracing::error!(query, error = %cause, untold, "a query was refused by the database; it is wrong in the configuration");
            }
            if let Some(problem) = source.and_then(of_a_column) {
                return problem;
            }
            Problem::new(
                ProblemKind::Unavailable,
                format!("the query `{query}` was refused by the database; the log says why"),
            )
        }
    }
}

fn outcome(source: Source) -> ReadOutcome {
    match source {
        Source::Memory => ReadOutcome::Memory,
        Source::Redis => ReadOutcome::Redis,
        _ => ReadOutcome::Database,
    }
}

/// `None` where there are no rows, so that absence is remembered for as long as the class says.
fn encode(selected: &Selected) -> Result<Option<Bytes>, SourceError> {
    let kept = &selected.rows;
    if kept.is_empty() {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(64 + kept.len() * 128);
    out.extend_from_slice(b"\"rows\":");
    serde_json::to_writer(&mut out, kept).map_err(|error| sqlx::Error::Encode(error.into()))?;
    out.extend_from_slice(if selected.truncated {
        b",\"truncated\":true"
    } else {
        b",\"truncated\":false"
    });
    Ok(Some(Bytes::from(out)))
}

fn overloaded(why: &str, retry_after: Duration) -> Problem {
    let detail = format!("{why}, and there is nothing stale to serve");
    Problem::new(ProblemKind::Overloaded, detail).retry_after(Some(retry_after))
}

fn unavailable(retry_after: Option<Duration>) -> Problem {
    Problem::new(
        ProblemKind::Unavailable,
        "neither Redis nor the database can answer now, and there is nothing stale to serve",
    )
    .retry_after(retry_after)
}
