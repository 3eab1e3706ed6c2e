//! The answers to all commands of a pipeline, or how much is known of those that have none.

use redis::{ServerError, Value};

use super::{SplitPipeline, State, Unit};
use crate::certainty::Certainty;
use crate::command::Effect;
use crate::split::keys::{PartsFailed, SplitCommand};
use crate::split::{Failed, UnexpectedAnswer};

impl<'a, E> SplitPipeline<'a, E> {
    /// Returns the answers to all commands, in their order; also those that are errors, as from one
    /// server.
    ///
    /// # Errors
    /// Commands were not answered. What was never sent counts as such.
    pub fn finish(self) -> Result<Vec<Value>, PipelineFailed<E>>
    where
        E: Clone + From<UnexpectedAnswer> + From<ServerError>,
    {
        let mut units = self.units.into_iter().peekable();
        let mut outcomes = Vec::new();
        let (mut worst, mut has_written): (Option<Failed<E>>, _) = (None, false);
        for (at, entry) in self.entries.iter().enumerate() {
            let count = entry
                .divided
                .as_ref()
                .map_or(1, |split| split.parts().len());
            let mut effect = Effect::Read;
            let mut results = (0..count).map(|part| {
                let is_it = |unit: &Unit<E>| unit.entry == at && unit.part == part;
                let Some(unit) = units.next_if(is_it) else {
                    return Err(not_given_back());
                };
                effect = unit.effect;
                match unit.state {
                    // Refused now, but perhaps not in an earlier attempt.
                    State::Answered(Value::ServerError(error)) if unit.may_have_run() => {
                        Err(Failed {
                            error: E::from(error),
                            certainty: Certainty::Unknown,
                        })
                    }
                    State::Answered(value) => Ok(value),
                    State::Failed(failed) => Err(failed),
                    State::Waiting | State::Sent => {
                        let mut failed = never_sent();
                        // Not this time, but perhaps in an earlier attempt.
                        failed.certainty = unit.so_far;
                        Err(failed)
                    }
                }
            });
            let result = match &entry.divided {
                None => results.next().unwrap_or_else(|| Err(never_sent())),
                Some(split) => joined(split, results),
            };
            outcomes.push(match result {
                Ok(value) => {
                    has_written |= effect != Effect::Read && !is_error(&value);
                    CommandOutcome::Answered(value)
                }
                Err(failed) => {
                    let certainty = failed.certainty;
                    if worst
                        .as_ref()
                        .is_none_or(|worst| worst.certainty < certainty)
                    {
                        worst = Some(failed);
                    }
                    CommandOutcome::Failed(certainty)
                }
            });
        }
        match worst {
            None => Ok(outcomes
                .into_iter()
                .filter_map(CommandOutcome::answer)
                .collect()),
            Some(Failed { error, certainty }) => Err(PipelineFailed {
                error,
                certainty: if has_written {
                    Certainty::Unknown
                } else {
                    certainty
                },
                outcomes,
            }),
        }
    }
}

/// Joins the parts of a command. Errors that all of them have for an answer are the answer of the
/// whole.
fn joined<E: From<UnexpectedAnswer> + From<ServerError>>(
    split: &SplitCommand<'_>,
    results: impl Iterator<Item = Result<Value, Failed<E>>>,
) -> Result<Value, Failed<E>> {
    let results: Vec<_> = results.collect();
    if let Some(Ok(error)) = results.first()
        && results
            .iter()
            .all(|result| result.as_ref().is_ok_and(is_error))
    {
        return Ok(error.clone());
    }
    let results = results.into_iter().map(|result| match result {
        Ok(Value::ServerError(error)) => Err(Failed {
            error: E::from(error),
            certainty: Certainty::Rejected,
        }),
        result => result,
    });
    split.join(results).map_err(
        |PartsFailed {
             error, certainty, ..
         }| Failed { error, certainty },
    )
}

fn is_error(value: &Value) -> bool {
    matches!(value, Value::ServerError(_))
}

fn never_sent<E: From<UnexpectedAnswer>>() -> Failed<E> {
    let error = UnexpectedAnswer {
        command: "PIPELINE",
        wanted: "there: it was never sent, or its answer was not waited for",
    };
    Failed {
        error: error.into(),
        certainty: Certainty::NotSent,
    }
}

/// A command that was taken out with a part of the pipeline, which was not joined to it again.
fn not_given_back<E: From<UnexpectedAnswer>>() -> Failed<E> {
    Failed {
        certainty: Certainty::Unknown,
        ..never_sent()
    }
}

/// The outcome of one command of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandOutcome {
    /// The command was answered, perhaps with an error.
    Answered(Value),
    /// The command was not answered.
    Failed(Certainty),
}

impl CommandOutcome {
    fn answer(self) -> Option<Value> {
        match self {
            Self::Answered(value) => Some(value),
            Self::Failed(_) => None,
        }
    }
}

/// A pipeline of which some commands were not answered.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineFailed<E> {
    /// The error of the worst command.
    pub error: E,
    /// How much is known of the whole: as little as of its worst command, and nothing if others
    /// have written.
    pub certainty: Certainty,
    /// The outcome of each command, in their order.
    pub outcomes: Vec<CommandOutcome>,
}
