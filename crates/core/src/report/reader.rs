//! Reading parts of a reply, with the place of each for its error.

use std::borrow::Cow;
use std::str::FromStr;

use redis::Value;

/// Why a reply cannot be read. It names the command, the place within the reply and the mistake,
/// and quotes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reply to {command} cannot be read: {place} {problem}")]
pub struct ReportError {
    /// The command that was asked.
    pub command: &'static str,
    /// The part of the reply that is at fault, such as `entry 3, node 1, port`.
    pub place: String,
    /// The mistake.
    pub problem: &'static str,
}

impl ReportError {
    /// Describes a mistake at a place of the reply to a command.
    pub(super) fn new(
        command: &'static str,
        place: impl Into<String>,
        problem: &'static str,
    ) -> Self {
        Self {
            command,
            place: place.into(),
            problem,
        }
    }
}

/// The elements of a list that were left out because they could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The mistake in the first of them.
    pub first: Option<ReportError>,
    /// The number of items.
    pub count: usize,
}

impl Faults {
    /// Returns whether the whole list was read.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps what could be read; of what could not, the first mistake and the number.
    pub(super) fn sort_out<T>(&mut self, read: Result<T, ReportError>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(error) => {
                self.first.get_or_insert(error);
                self.count += 1;
                None
            }
        }
    }
}

/// A part of a reply, and where it is.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) command: &'static str,
    value: &'a Value,
}

impl<'a> Part<'a> {
    pub(super) fn new(command: &'static str, value: &'a Value) -> Self {
        let value = match value {
            Value::Attribute { data, .. } => data,
            value => value,
        };
        Self { command, value }
    }

    pub(super) fn error(&self, place: impl Into<String>, problem: &'static str) -> ReportError {
        ReportError::new(self.command, place, problem)
    }

    pub(super) fn is_nil(&self) -> bool {
        matches!(self.value, Value::Nil)
    }

    /// The elements of an array or a set.
    pub(super) fn items(&self, place: impl Into<String>) -> Result<Items<'a>, ReportError> {
        match self.value {
            Value::Array(items) | Value::Set(items) => Ok(Items {
                command: self.command,
                values: items.iter(),
            }),
            Value::ServerError(_) => Err(self.error(place, "is an error of the server")),
            _ => Err(self.error(place, "is not an array")),
        }
    }

    /// The names and values of a map, which RESP2 writes as a flat array. Names that are no text
    /// are left out.
    pub(super) fn fields(&self, place: impl Into<String>) -> Result<Fields<'a>, ReportError> {
        match self.value {
            Value::Map(pairs) => Ok(Fields {
                command: self.command,
                pairs: Pairs::Map(pairs),
            }),
            Value::Array(items) if items.len().is_multiple_of(2) => Ok(Fields {
                command: self.command,
                pairs: Pairs::Flat(items),
            }),
            Value::Array(_) => Err(self.error(place, "has a name without a value")),
            Value::ServerError(_) => Err(self.error(place, "is an error of the server")),
            _ => Err(self.error(place, "is neither a map nor an array of names and values")),
        }
    }

    /// A text, of any kind of string.
    pub(super) fn text(&self, place: impl Into<String>) -> Result<Cow<'a, str>, ReportError> {
        match self.value {
            Value::BulkString(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(text.into()),
                Err(_) => Err(self.error(place, "is not UTF-8")),
            },
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => {
                Ok(text.as_str().into())
            }
            Value::Okay => Ok("OK".into()),
            Value::ServerError(_) => Err(self.error(place, "is an error of the server")),
            _ => Err(self.error(place, "is not a text")),
        }
    }

    /// A text, or null.
    pub(super) fn text_or_nil(
        &self,
        place: impl Into<String>,
    ) -> Result<Option<Cow<'a, str>>, ReportError> {
        if self.is_nil() {
            return Ok(None);
        }
        self.text(place).map(Some)
    }

    /// A number, as an integer or as a text.
    pub(super) fn number<N: TryFrom<i64> + FromStr>(
        &self,
        place: impl Into<String>,
    ) -> Result<N, ReportError> {
        let place = place.into();
        let number = match self.value {
            Value::Int(number) => N::try_from(*number).ok(),
            _ => self.text(place.clone())?.parse().ok(),
        };
        number.ok_or_else(|| self.error(place, "is not a number of its range"))
    }

    /// A port, which is never 0.
    pub(super) fn port(&self, place: impl Into<String>) -> Result<u16, ReportError> {
        let place = place.into();
        match self.number(place.clone())? {
            0 => Err(self.error(place, "is port 0")),
            port => Ok(port),
        }
    }
}

/// The elements of a list.
pub(super) struct Items<'a> {
    command: &'static str,
    values: std::slice::Iter<'a, Value>,
}

impl<'a> Iterator for Items<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let command = self.command;
        self.values.next().map(|value| Part::new(command, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.values.size_hint()
    }
}

impl ExactSizeIterator for Items<'_> {}

/// The names and values of a map.
pub(super) struct Fields<'a> {
    command: &'static str,
    pairs: Pairs<'a>,
}

enum Pairs<'a> {
    Map(&'a [(Value, Value)]),
    Flat(&'a [Value]),
}

impl<'a> Fields<'a> {
    /// Returns the value of the first field of this name.
    pub(super) fn find(&self, name: &str) -> Option<Part<'a>> {
        let command = self.command;
        let is_name = |key: &Value| match key {
            Value::BulkString(key) => key == name.as_bytes(),
            Value::SimpleString(key) => key == name,
            _ => false,
        };
        let value = match self.pairs {
            Pairs::Map(pairs) => pairs
                .iter()
                .find_map(|(key, value)| is_name(key).then_some(value)),
            Pairs::Flat(items) => items
                .chunks_exact(2)
                .find_map(|pair| is_name(&pair[0]).then_some(&pair[1])),
        };
        value.map(|value| Part::new(command, value))
    }

    /// Returns the value of a field that has to be there.
    pub(super) fn need(&self, name: &'static str) -> Result<Part<'a>, ReportError> {
        self.find(name)
            .ok_or_else(|| ReportError::new(self.command, name, "is missing"))
    }
}

/// Reads a number that a text gives, such as a field of INFO.
pub(super) fn parse<N: FromStr>(
    command: &'static str,
    place: &str,
    text: &str,
) -> Result<N, ReportError> {
    text.parse()
        .map_err(|_| ReportError::new(command, place, "is not a number of its range"))
}
