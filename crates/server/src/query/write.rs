//! A change, with what it makes invalid written down in the same transaction, so that no crash can come between the two.

use serde::Serialize;
use steadfast_cache::{SourceError, Target, Tx, WriteError};
use tracing::Instrument;

use super::once::{Once, Recorded, Seen};
use super::param::Values;
use super::waiting::Waiting;
use super::{Statement, bound, rendered};
use crate::app::{App, now};
use crate::problem::{Problem, ProblemKind};

/// What a statement did.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    statement: String,
    /// Rows inserted, changed or deleted.
    affected: u64,
    /// The id of the row inserted last, where the database tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_id: Option<i64>,
    /// What a RETURNING clause handed back.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<Vec<steadfast_cache::Row>>,
}

/// Why a transaction was given up.
#[derive(Debug)]
enum Stopped {
    Sql(SourceError),
    /// Nothing is to be done: it was done before.
    Before(Recorded),
    Refused(Problem),
}

impl From<SourceError> for Stopped {
    fn from(error: SourceError) -> Self {
        Self::Sql(error)
    }
}

/// The answer to a statement.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Whether it was given before, and nothing was done now.
    pub(crate) replayed: bool,
}

impl Statement {
    /// Runs it in a transaction of its own, with its invalidations, and with the record of `once` if the caller may ask twice.
    pub(crate) async fn write(
        &self,
        app: &App,
        values: &Values,
        once: Option<&Once>,
    ) -> Result<Answer, Problem> {
        let waiting = Waiting::new(|why, _| self.meters.unanswered(why));
        let result = self.commit(app, values, once).await;
        waiting.over();
        match &result {
            Ok(answer) => {
                self.meters.done(answer.replayed);
                if !answer.replayed {
                    app.tally().write();
                }
            }
            Err(problem) => self.meters.failed(problem.kind()),
        }
        result
    }

    async fn commit(
        &self,
        app: &App,
        values: &Values,
        once: Option<&Once>,
    ) -> Result<Answer, Problem> {
        if once.is_some() {
            let prepared = app.records().prepare(app.database()).await;
            prepared.map_err(|error| self.refusal(&error))?;
        }
        let keys = rendered(&self.keys, values).into_iter().map(Target::key);
        let tags = rendered(&self.tags, values).into_iter().map(Target::tag);
        let result = app
            .cache()
            .write(async |tx: &mut Tx| {
                let begun = now();
                let answered = self.answer(tx, values, once).await;
                self.meters
                    .asked
                    .took(now().saturating_duration_since(begun));
                answered
            })
            .invalidates(keys.chain(tags))
            .commit()
            .await;
        self.judge(result)
    }

    async fn answer(
        &self,
        tx: &mut Tx,
        values: &Values,
        once: Option<&Once>,
    ) -> Result<Recorded, Stopped> {
        if let Some(once) = once {
            match once.take(tx).await? {
                Seen::New => {}
                Seen::Before(recorded) => return Err(Stopped::Before(recorded)),
                Seen::Otherwise => return Err(Stopped::Refused(used_otherwise())),
            }
        }
        let span = self.meters.asked.span(&self.name);
        let written = self.run(tx, values).instrument(span).await?;
        let answer = Recorded {
            status: 200,
            body: serde_json::to_string(&written).unwrap_or_default(),
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
        Ok(answer)
    }

    fn judge(
        &self,
        result: Result<steadfast_cache::Written<Recorded>, WriteError<Stopped>>,
    ) -> Result<Answer, Problem> {
        let answer = |recorded: Recorded, replayed| Answer {
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

    async fn run(&self, tx: &mut Tx, values: &Values) -> Result<Written, SourceError> {
        let params = bound(&self.sql, &self.params, values);
        let mut written = Written {
            statement: self.name.clone(),
            affected: 0,
            last_id: None,
            rows: None,
        };
        if self.returns {
            let mut rows = tx.select(&self.sql.text, &params).await?;
            written.affected = rows.len() as u64;
            rows.truncate(self.max_rows);
            written.rows = Some(rows);
        } else {
            let executed = tx.execute(&self.sql.text, &params).await?;
            written.affected = executed.rows_affected;
            written.last_id = executed
                .last_insert_id
                .filter(|id| self.sql.verb == "INSERT" && *id > 0);
        }
        Ok(written)
    }

    fn refusal(&self, error: &SourceError) -> Problem {
        let name = &self.name;
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
        if let SourceError::Sql(sqlx::Error::Database(cause)) = error
            && (cause.is_unique_violation()
                || cause.is_foreign_key_violation()
                || cause.is_check_violation())
        {
            return Problem::new(
                ProblemKind::Conflict,
                format!(
                    "`{name}` contradicts what is in the database: a key is taken, or a rule of the table forbids it"
                ),
            );
        }
        if let Some(untold) = self.complaints.tell() {
            tracing::error!(statement = name, %error, untold, "a statement was refused by the database");
        }
        Problem::new(
            ProblemKind::Unavailable,
            format!("the statement `{name}` was refused by the database; the log says why"),
        )
    }
}

fn used_otherwise() -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        "this Idempotency-Key was used for another request; take a new one for each change",
    )
    .status(axum::http::StatusCode::UNPROCESSABLE_ENTITY)
}
