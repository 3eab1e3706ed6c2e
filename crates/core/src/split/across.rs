//! The answers of all primaries to a command without keys.

use redis::Value;

use super::{UnexpectedAnswer, sum};
use crate::command::place::Joining;

/// Joins the answers of all primaries to the command of this name to one. Each is a success, an
/// error reply or a failure of the sender's, which is given as `Err`.
///
/// The joined answer is whole or an error: the first failure, else the first error reply, unless
/// one success is enough ([`Joining::OneSucceeds`]).
///
/// ```
/// use steadfast_core::command::place::Joining;
/// use steadfast_core::redis::Value;
/// use steadfast_core::split::{UnexpectedAnswer, joined};
///
/// let answers = [3, 4].map(|n| Ok::<_, UnexpectedAnswer>(Value::Int(n)));
/// assert_eq!(joined("DBSIZE", Joining::Sum, answers), Ok(Value::Int(7)));
/// ```
///
/// # Errors
/// A failure of the sender's, or that an answer is none that a server gives to the command.
pub fn joined<E: From<UnexpectedAnswer>>(
    command: &'static str,
    joining: Joining,
    answers: impl IntoIterator<Item = Result<Value, E>>,
) -> Result<Value, E> {
    let (mut values, mut failed, mut refused) = (Vec::new(), None, None);
    for answer in answers {
        match answer {
            Err(error) => failed = failed.or(Some(error)),
            Ok(error @ Value::ServerError(_)) => refused = refused.or(Some(error)),
            Ok(value) => values.push(value),
        }
    }
    if joining != Joining::OneSucceeds || values.is_empty() {
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(error) = refused {
            return Ok(error);
        }
    }
    Ok(whole(command, joining, values)?)
}

fn whole(
    command: &'static str,
    joining: Joining,
    values: Vec<Value>,
) -> Result<Value, UnexpectedAnswer> {
    let unexpected = |wanted| UnexpectedAnswer { command, wanted };
    match joining {
        Joining::Sum => sum(command, &values),
        Joining::AllSucceed | Joining::OneSucceeds => {
            let first = values.into_iter().next();
            first.ok_or_else(|| unexpected("there, as there is no primary"))
        }
        Joining::FirstPresent => {
            let present = values.into_iter().find(|value| *value != Value::Nil);
            Ok(present.unwrap_or(Value::Nil))
        }
        Joining::Concatenation => {
            let mut all = Vec::new();
            for value in values {
                match value {
                    Value::Array(elements) | Value::Set(elements) => all.extend(elements),
                    _ => return Err(unexpected("a list")),
                }
            }
            Ok(Value::Array(all))
        }
        Joining::And => {
            let mut all: Option<Vec<bool>> = None;
            for value in values {
                let Value::Array(elements) = value else {
                    return Err(unexpected("a list"));
                };
                let here: Option<Vec<bool>> = elements.iter().map(truth).collect();
                let here = here.ok_or_else(|| unexpected("a list of 0 and 1"))?;
                match &mut all {
                    None => all = Some(here),
                    Some(all) if all.len() == here.len() => {
                        all.iter_mut()
                            .zip(here)
                            .for_each(|(all, here)| *all &= here);
                    }
                    Some(_) => return Err(unexpected("as long as those of others")),
                }
            }
            let all = all.ok_or_else(|| unexpected("there, as there is no primary"))?;
            let elements = all.into_iter().map(|is| Value::Int(is.into()));
            Ok(Value::Array(elements.collect()))
        }
    }
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Int(0) | Value::Boolean(false) => Some(false),
        Value::Int(1) | Value::Boolean(true) => Some(true),
        _ => None,
    }
}
