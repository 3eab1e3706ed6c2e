//! A change, with what it makes invalid written down in the same transaction, so that no crash can
//! come between the two.

use std::sync::Arc;

use serde::Serialize;
use steadfast_cache::{Bounds, Row, SourceError, Target, Tx, WriteError};
use tracing::Instrument;

use super::blame::{CallerMistake, of_a_column, was_refused};
use super::once::{Earlier, Once, Recorded, Records};
use super::waiting::AnswerWatch;
use super::{Statement, bound};
use crate::backend::Backend;
use crate::clock::now;
use crate::grammar::param::Values;
use crate::grammar::template::Template;
use crate::observe::Observations;
use crate::problem::{Problem, ProblemKind};

/// The result of a statement, as callers get it.
#[derive(Debug, Serialize)]
pub(crate) struct StatementResult {
    statement: String,
    /// Rows inserted, changed or deleted.
    affected: u64,
    /// The id of the row inserted last, where the database tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_id: Option<i64>,
    /// The rows that a RETURNING clause handed back.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<Vec<Row>>,
    /// Whether it handed back more than is told: `max_rows`, `limits.result`.
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
}

/// The reason why a transaction was given up.
#[derive(Debug)]
enum Stopped {
    Sql(SourceError),
    /// The request was answered before: nothing is to be done.
    Before(Recorded),
    Refused(Problem),
}

impl From<SourceError> for Stopped {
    fn from(error: SourceError) -> Self {
        Self::Sql(error)
    }
}

/// A statement may return so many rows that say what it makes invalid.
const MOST_INVALIDATED: usize = 10_000;

/// The parts of the service that a statement uses.
pub(crate) struct Writes {
    pub(crate) backend: Arc<Backend>,
    pub(crate) records: Arc<Records>,
    pub(crate) observations: Arc<Observations>,
    /// Bytes that the rows of one answer may have.
    pub(crate) most_bytes: usize,
}

/// The answer to a statement.
#[derive(Debug)]
pub(crate) struct StatementAnswer {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Whether it was given before, and nothing was done now.
    pub(crate) replayed: bool,
}

impl Statement {
    /// Runs it in a transaction of its own, with its invalidations, and with the record of `once`
    /// if the caller may ask twice.
    pub(crate) async fn write(
        &self,
        writes: &Writes,
        values: &Values,
        once: Option<&Once>,
    ) -> Result<StatementAnswer, Problem> {
        let tally = &writes.observations.tally;
        let waiting = AnswerWatch::new(|why, took| {
            if why.problem().is_some() {
                tally.write_failed();
            }
            self.meters.unanswered(why, took);
        });
        let result = self.commit(writes, values, once).await;
        let took = waiting.over();
        match &result {
            Ok(answer) => {
                self.meters.done(answer.replayed, took);
                if !answer.replayed {
                    tally.write();
                }
            }
            Err(problem) => {
                if problem.is_ours() {
                    tally.write_failed();
                }
                self.meters.failed(problem.kind(), took);
            }
        }
        result
    }

    async fn commit(
        &self,
        writes: &Writes,
        values: &Values,
        once: Option<&Once>,
    ) -> Result<StatementAnswer, Problem> {
        // Who asks the same at the same time waits here, and not with a connection in hand for the
        // row that the first has locked.
        let _turn = match once {
            Some(once) => Some(writes.records.turn(once).await),
            None => None,
        };
        let mut result = self.try_commit(writes, values, once).await?;
        if let (Some(_), Err(WriteError::Work(Stopped::Sql(error)))) = (once, &result)
            && writes
                .records
                .was_lost(&writes.backend.database, error)
                .await
        {
            // Everything was rolled back, so it may be done again.
            result = self.try_commit(writes, values, once).await?;
        }
        match &result {
            Err(
                WriteError::Source(error)
                | WriteError::Commit(error)
                | WriteError::Work(Stopped::Sql(error)),
            ) => {
                if error.is_passing() {
                    writes.backend.statement_failed(error.to_string());
                } else if is_refused_to_anybody(error) {
                    // What the database says of it may hold what nobody else should read.
                    let refused = format!(
                        "`{}` was refused by the database; the log says why",
                        self.name
                    );
                    writes.backend.statement_failed(refused);
                }
            }
            _ => writes.backend.statement_answered(),
        }
        self.judge(result)
    }

    async fn try_commit(
        &self,
        writes: &Writes,
        values: &Values,
        once: Option<&Once>,
    ) -> Result<Result<steadfast_cache::Written<Recorded>, WriteError<Stopped>>, Problem> {
        if once.is_some() {
            let prepared = writes.records.prepare(&writes.backend.database).await;
            prepared.map_err(|error| self.refusal(&error))?;
        }
        // What it makes is known only once it is made.
        let mut of_rows = None;
        let cache = &writes.backend.cache;
        let result = cache
            .write(async |tx: &mut Tx| {
                let begun = now();
                let answered = self.answer(writes, tx, values, once).await;
                self.meters
                    .asked
                    .took(now().saturating_duration_since(begun));
                let (answered, targets) = answered?;
                if !targets.is_empty() {
                    of_rows = Some(cache.invalidate_in(tx, &targets).await?);
                }
                Ok(answered)
            })
            .invalidates(self.known_targets(values))
            .commit()
            .await;
        if let (Ok(_), Some(of_rows)) = (&result, of_rows) {
            of_rows.apply().await;
        }
        Ok(result)
    }

    /// Returns what it makes invalid, as far as its parameters tell.
    fn known_targets(&self, values: &Values) -> Vec<Target> {
        let known = |templates: &[Template]| {
            let known = templates.iter().filter(|template| !template.is_of_rows());
            known
                .map(|template| template.render(values))
                .collect::<Vec<_>>()
        };
        let keys = known(&self.keys).into_iter().map(Target::key);
        let tags = known(&self.tags).into_iter().map(Target::tag);
        keys.chain(tags).collect()
    }

    /// Returns what it makes invalid by the rows that it has returned.
    fn targets_of(&self, rows: &[Row], values: &Values) -> Result<Vec<Target>, Stopped> {
        let mut targets = Vec::new();
        for (templates, target) in [
            (&self.keys, Target::key as fn(String) -> Target),
            (&self.tags, Target::tag),
        ] {
            for template in templates.iter().filter(|template| template.is_of_rows()) {
                for row in rows {
                    let text = template.render_for(values, row);
                    targets.push(target(text.map_err(|column| self.no_such_column(&column))?));
                }
            }
        }
        Ok(targets)
    }

    fn invalidates_by_rows(&self) -> bool {
        let templates = self.keys.iter().chain(&self.tags);
        templates.into_iter().any(Template::is_of_rows)
    }

    fn too_much_to_invalidate(&self) -> Problem {
        let name = &self.name;
        Problem::new(
            ProblemKind::TooLarge,
            format!(
                "nothing was changed: `statements.{name}.invalidates` names what it returns, and it returns more than {MOST_INVALIDATED} rows, or than `limits.result` allows"
            ),
        )
    }

    fn no_such_column(&self, column: &str) -> Stopped {
        let name = &self.name;
        let detail = format!(
            "nothing was changed: `statements.{name}.invalidates` names `{{returned.{column}}}`, and the statement returns no such column"
        );
        if let Some(untold) = self.complaints.tell() {
            tracing::error!(statement = name, untold, detail);
        }
        Stopped::Refused(Problem::new(ProblemKind::Unavailable, detail))
    }

    async fn answer(
        &self,
        writes: &Writes,
        tx: &mut Tx,
        values: &Values,
        once: Option<&Once>,
    ) -> Result<(Recorded, Vec<Target>), Stopped> {
        if let Some(once) = once {
            match once.take(tx).await? {
                Earlier::New => {}
                Earlier::Before(recorded) => return Err(Stopped::Before(recorded)),
                Earlier::Otherwise => return Err(Stopped::Refused(used_otherwise())),
            }
        }
        let span = self.meters.asked.span(&self.name);
        let most = writes.most_bytes;
        let (written, targets) = self.run(tx, values, most).instrument(span).await?;
        let answer = Recorded {
            status: 200,
            body: serde_json::to_string(&written)
                .map_err(|error| SourceError::from(sqlx::Error::Encode(error.into())))?,
        };
        if let Some(once) = once {
            if !once.can_keep(&answer.body) {
                return Err(Stopped::Refused(Problem::new(
                    ProblemKind::TooLarge,
                    "nothing was changed: the answer is larger than `limits.idempotency_body`, and could not be given twice",
                )));
            }
            if !once.record(tx, &answer).await? {
                return Err(Stopped::Refused(
                    Problem::new(
                        ProblemKind::Unavailable,
                        "nothing was changed: the record of the Idempotency-Key could not be kept",
                    )
                    .retry_after(Some(std::time::Duration::from_secs(1))),
                ));
            }
        }
        Ok((answer, targets))
    }

    fn judge(
        &self,
        result: Result<steadfast_cache::Written<Recorded>, WriteError<Stopped>>,
    ) -> Result<StatementAnswer, Problem> {
        let answer = |recorded: Recorded, replayed| StatementAnswer {
            status: recorded.status,
            body: recorded.body,
            replayed,
        };
        match result {
            Ok(written) => Ok(answer(written.value, false)),
            Err(WriteError::Work(Stopped::Before(recorded))) => Ok(answer(recorded, true)),
            Err(WriteError::Work(Stopped::Refused(problem))) => Err(problem),
            Err(WriteError::Work(Stopped::Sql(error)) | WriteError::Source(error)) => {
                Err(self.refusal(&error))
            }
            Err(WriteError::Commit(error)) if was_refused(&error) => Err(self.refusal(&error)),
            Err(WriteError::Commit(error)) => {
                tracing::error!(statement = self.name, %error, "the outcome of a statement is unknown");
                Err(Problem::new(
                    ProblemKind::Unavailable,
                    "the database broke off while it committed: whether the change was made is unknown",
                ))
            }
            Err(_) => Err(Problem::new(
                ProblemKind::Unavailable,
                "whether the change was made is unknown",
            )),
        }
    }

    async fn run(
        &self,
        tx: &mut Tx,
        values: &Values,
        most_bytes: usize,
    ) -> Result<(StatementResult, Vec<Target>), Stopped> {
        let params = bound(&self.sql, &self.params, values);
        let mut written = StatementResult {
            statement: self.name.clone(),
            affected: 0,
            last_id: None,
            rows: None,
            truncated: None,
        };
        let mut targets = Vec::new();
        if self.returns {
            // What it returns says what it makes invalid: then none of it may be missing.
            let all = self.invalidates_by_rows();
            let most = if all { MOST_INVALIDATED } else { self.max_rows };
            let bounds = Bounds::new(most, most_bytes);
            let selected = tx.select_within(bounds, &self.sql.text, &params).await?;
            if all && selected.truncated {
                return Err(Stopped::Refused(self.too_much_to_invalidate()));
            }
            written.affected = selected.seen;
            let mut rows = selected.rows;
            targets = self.targets_of(&rows, values)?;
            written.truncated = Some(selected.truncated || rows.len() > self.max_rows);
            rows.truncate(self.max_rows);
            written.rows = Some(rows);
        } else {
            let executed = tx.execute(&self.sql.text, &params).await?;
            written.affected = executed.rows_affected;
            written.last_id = executed
                .last_insert_id
                .filter(|id| self.sql.verb == "INSERT" && *id > 0);
        }
        Ok((written, targets))
    }

    fn refusal(&self, error: &SourceError) -> Problem {
        let name = &self.name;
        if let SourceError::RowTooLarge { bytes } = error {
            return Problem::new(
                ProblemKind::TooLarge,
                format!(
                    "nothing was changed: a row that `{name}` hands back is larger than `limits.result` ({bytes} bytes) allows"
                ),
            );
        }
        if error.is_passing() {
            if let Some(untold) = self.complaints.tell() {
                tracing::warn!(statement = name, %error, untold, "a statement could not be run");
            }
            return Problem::new(
                ProblemKind::Unavailable,
                "the database cannot be written to now",
            )
            .retry_after(Some(std::time::Duration::from_secs(1)));
        }
        if let Some(blame) = CallerMistake::of(error) {
            return blame.problem(name);
        }
        if let Some(untold) = self.complaints.tell() {
            tracing::error!(statement = name, %error, untold, "a statement was refused by the database");
        }
        if let Some(problem) = of_a_column(error) {
            return problem;
        }
        Problem::new(
            ProblemKind::Unavailable,
            format!("the statement `{name}` was refused by the database; the log says why"),
        )
    }
}

/// Whether the database refuses a statement whoever asks, as where a table is missing: not for what
/// its caller gave, nor for what its answer may hold.
fn is_refused_to_anybody(error: &SourceError) -> bool {
    let by_the_answer =
        matches!(error, SourceError::RowTooLarge { .. }) || of_a_column(error).is_some();
    CallerMistake::of(error).is_none() && !by_the_answer
}

fn used_otherwise() -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        "this Idempotency-Key was used for another request; take a new one for each change",
    )
    .status(axum::http::StatusCode::UNPROCESSABLE_ENTITY)
}
