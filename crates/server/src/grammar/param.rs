//! What a caller sends is text of any kind; what a statement binds has a type and a limit. Between
//! the two stands a description from the configuration, so that a wrong value is refused here, by
//! name, and never reaches the database.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value as Json;
use steadfast_cache::ParamType;

/// A parameter: its type, its limits and its default.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ParamConfig {
    /// The parameter's type with its limits.
    #[serde(flatten)]
    pub kind: ParamKind,
    /// Bound where the caller sends none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Whether it may be left out without a default; it is NULL then.
    pub optional: bool,
    /// The description, in the API's documentation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The types of parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ParamKind {
    /// Text; lengths in characters, by default 0 to 256.
    String {
        /// Fewest characters.
        min_length: usize,
        /// Most characters.
        max_length: usize,
    },
    /// Text to look for with `LIKE … ESCAPE '!'`: what is special in a pattern is escaped, so that
    /// it means itself.
    Pattern {
        /// Fewest characters.
        min_length: usize,
        /// Most characters.
        max_length: usize,
        /// The part of what is searched that must match.
        #[serde(rename = "match")]
        matching: Match,
    },
    /// A whole number of 64 bits.
    Integer {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// `true` or `false`.
    Boolean,
}

/// The part of what is searched that a pattern must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Match {
    /// Anywhere.
    Contains,
    /// At the beginning.
    Prefix,
    /// At the end.
    Suffix,
}

/// A value that passed, ready to be bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Value {
    /// NULL of the parameter's type.
    Null,
    /// Text, of a pattern before it is escaped.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A truth.
    Boolean(bool),
}

/// The values of one call, by name.
pub(crate) type Values = BTreeMap<String, Value>;

/// The reason why a call's parameters were refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadParameter {
    pub(crate) name: String,
    pub(crate) reason: String,
}

impl fmt::Display for BadParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parameter `{}` {}", self.name, self.reason)
    }
}

/// Reads the pairs of a query string.
pub(crate) fn from_pairs<'a>(
    params: &BTreeMap<String, ParamConfig>,
    pairs: impl Iterator<Item = (std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>)>,
) -> Result<Values, BadParameter> {
    let mut values = Values::new();
    for (name, text) in pairs {
        let param = known(params, &name)?;
        let value = param.kind.of_text(&text);
        let value = value.map_err(|reason| bad(&name, reason))?;
        if values.insert(name.to_string(), value).is_some() {
            return Err(bad(&name, "is given twice"));
        }
    }
    complete(params, values)
}

/// Reads the members of a JSON object.
pub(crate) fn from_json(
    params: &BTreeMap<String, ParamConfig>,
    members: serde_json::Map<String, Json>,
) -> Result<Values, BadParameter> {
    let mut values = Values::new();
    for (name, json) in members {
        let param = known(params, &name)?;
        let value = if json.is_null() && param.optional {
            Value::Null
        } else {
            param
                .kind
                .of_json(&json)
                .map_err(|reason| bad(&name, reason))?
        };
        values.insert(name, value);
    }
    complete(params, values)
}

impl ParamKind {
    fn of_text(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::String { .. } | Self::Pattern { .. } => {
                self.checked(Value::Text(text.to_owned()))
            }
            Self::Integer { .. } => match text.parse() {
                Ok(integer) => self.checked(Value::Integer(integer)),
                Err(_) => Err("must be a whole number".to_owned()),
            },
            Self::Boolean => match text {
                "true" | "1" => Ok(Value::Boolean(true)),
                "false" | "0" => Ok(Value::Boolean(false)),
                _ => Err("must be true or false".to_owned()),
            },
        }
    }

    fn of_json(&self, json: &Json) -> Result<Value, String> {
        let value = match (self, json) {
            (Self::String { .. } | Self::Pattern { .. }, Json::String(text)) => {
                Value::Text(text.clone())
            }
            (Self::Integer { .. }, Json::Number(number)) => match whole(number) {
                Some(integer) => Value::Integer(integer),
                None => return Err("must be a whole number of 64 bits".to_owned()),
            },
            (Self::Boolean, Json::Bool(boolean)) => Value::Boolean(*boolean),
            _ => return Err(format!("must be {}", self.describe())),
        };
        self.checked(value)
    }

    /// Holds a value against the type's limits.
    pub(crate) fn checked(&self, value: Value) -> Result<Value, String> {
        match (self, &value) {
            (
                Self::String {
                    min_length,
                    max_length,
                }
                | Self::Pattern {
                    min_length,
                    max_length,
                    ..
                },
                Value::Text(text),
            ) => {
                let length = text.chars().count();
                if length < *min_length || length > *max_length {
                    return Err(format!(
                        "has {length} characters, but must have between {min_length} and {max_length}"
                    ));
                }
                if text.contains('\0') {
                    return Err("holds a NUL character, which no database takes".to_owned());
                }
                Ok(value)
            }
            (Self::Integer { min, max }, Value::Integer(integer)) => {
                if integer < min || integer > max {
                    return Err(format!("is {integer}, but must be between {min} and {max}"));
                }
                Ok(value)
            }
            (Self::Boolean, Value::Boolean(_)) => Ok(value),
            _ => Err(format!("must be {}", self.describe())),
        }
    }

    /// Returns what is bound for `value`: for a pattern the escaped text with its wild cards.
    pub(crate) fn bound(&self, value: &Value) -> Value {
        match (self, value) {
            (Self::Pattern { matching, .. }, Value::Text(text)) => {
                let text = escape_like(text);
                Value::Text(match matching {
                    Match::Contains => format!("%{text}%"),
                    Match::Prefix => format!("{text}%"),
                    Match::Suffix => format!("%{text}"),
                })
            }
            _ => value.clone(),
        }
    }

    /// Returns the type that the database is told.
    pub(crate) fn param_type(&self) -> ParamType {
        match self {
            Self::String { .. } | Self::Pattern { .. } => ParamType::Text,
            Self::Integer { .. } => ParamType::Int,
            Self::Boolean => ParamType::Bool,
        }
    }

    fn describe(&self) -> &'static str {
        match self {
            Self::String { .. } | Self::Pattern { .. } => "a string",
            Self::Integer { .. } => "a whole number",
            Self::Boolean => "true or false",
        }
    }
}

/// `7` and `7.0` are the same number in JSON; a fraction is none of ours, nor is one too large to
/// be exact.
fn whole(number: &serde_json::Number) -> Option<i64> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    number.as_i64().or_else(|| {
        let value = number.as_f64()?;
        (value.fract() == 0.0 && value.abs() <= EXACT).then_some(value as i64)
    })
}

/// Takes the special meaning from `%`, `_` and the escape sign itself, for `ESCAPE '!'`. An
/// exclamation mark, because the backslash is already special in the texts of some databases.
fn escape_like(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 4);
    for c in text.chars() {
        if matches!(c, '%' | '_' | '!') {
            escaped.push('!');
        }
        escaped.push(c);
    }
    escaped
}

fn known<'p>(
    params: &'p BTreeMap<String, ParamConfig>,
    name: &str,
) -> Result<&'p ParamConfig, BadParameter> {
    params.get(name).ok_or_else(|| {
        let names: Vec<&str> = params.keys().map(String::as_str).collect();
        let reason = if names.is_empty() {
            "is not known; there are none here".to_owned()
        } else {
            format!("is not known; there are {}", names.join(", "))
        };
        let shortened: String = name.chars().take(64).collect();
        bad(&shortened, reason)
    })
}

fn complete(
    params: &BTreeMap<String, ParamConfig>,
    mut values: Values,
) -> Result<Values, BadParameter> {
    for (name, param) in params {
        if values.contains_key(name) {
            continue;
        }
        let value = match &param.default {
            Some(default) => default.clone(),
            None if param.optional => Value::Null,
            None => return Err(bad(name, "is missing")),
        };
        values.insert(name.clone(), value);
    }
    Ok(values)
}

fn bad(name: &str, reason: impl Into<String>) -> BadParameter {
    BadParameter {
        name: name.to_owned(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> BTreeMap<String, ParamConfig> {
        let param = |kind, default, optional| ParamConfig {
            kind,
            default,
            optional,
            description: None,
        };
        let text = ParamKind::String {
            min_length: 1,
            max_length: 5,
        };
        let limit = ParamKind::Integer { min: 1, max: 100 };
        BTreeMap::from([
            ("name".to_owned(), param(text, None, false)),
            (
                "limit".to_owned(),
                param(limit, Some(Value::Integer(20)), false),
            ),
            ("active".to_owned(), param(ParamKind::Boolean, None, true)),
        ])
    }

    fn read(query: &str) -> Result<Values, BadParameter> {
        from_pairs(&params(), url::form_urlencoded::parse(query.as_bytes()))
    }

    #[test]
    fn defaults_and_nulls_fill_what_is_left_out() {
        let values = read("name=ada").unwrap();
        assert_eq!(values["limit"], Value::Integer(20));
        assert_eq!(values["active"], Value::Null);
    }

    #[test]
    fn a_wrong_value_is_refused_by_name() {
        for (query, name) in [
            ("limit=5", "name"),
            ("name=", "name"),
            ("name=abcdef", "name"),
            ("name=a&name=b", "name"),
            ("name=a%00", "name"),
            ("name=a&limit=0", "limit"),
            ("name=a&limit=1e3", "limit"),
            ("name=a&limit=99999999999999999999", "limit"),
            ("name=a&active=maybe", "active"),
            ("name=a&nmae=b", "nmae"),
        ] {
            assert_eq!(read(query).unwrap_err().name, name, "{query}");
        }
    }

    #[test]
    fn lengths_count_characters_not_bytes() {
        assert!(read("name=%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9").is_ok());
    }

    #[test]
    fn json_is_typed_strictly() {
        let read = |json: Json| from_json(&params(), json.as_object().unwrap().clone());
        assert!(read(serde_json::json!({"name": "ada", "limit": 3, "active": null})).is_ok());
        assert!(read(serde_json::json!({"name": "ada", "limit": 3.0})).is_ok());
        for json in [
            serde_json::json!({"name": 1}),
            serde_json::json!({"name": "ada", "limit": "3"}),
            serde_json::json!({"name": "ada", "limit": 1.5}),
            serde_json::json!({"name": null}),
            serde_json::json!({"name": "ada", "limit": 1e300}),
        ] {
            assert!(read(json.clone()).is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_special_in_a_pattern_means_itself() {
        let kind = ParamKind::Pattern {
            min_length: 0,
            max_length: 20,
            matching: Match::Contains,
        };
        let bound = kind.bound(&Value::Text("50%_off!".to_owned()));
        assert_eq!(bound, Value::Text("%50!%!_off!!%".to_owned()));
    }
}
