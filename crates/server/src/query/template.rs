//! A key that could be read in two ways would serve one caller's rows to another. So what a caller sent is escaped
//! before it enters a key, and a key must name every parameter its answer depends on.

use std::fmt;

use super::param::{Value, Values};

/// `users:{id}`: literal text and the names of parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Param(String),
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TemplateMistake {
    Unclosed,
    Stray,
    Unnamed,
}

impl fmt::Display for TemplateMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unclosed => "has a `{` that is not closed",
            Self::Stray => "has a `}` without its `{`",
            Self::Unnamed => "has a `{}` that names no parameter",
        })
    }
}

impl Template {
    pub(crate) fn parse(source: &str) -> Result<Self, TemplateMistake> {
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(open) = rest.find(['{', '}']) {
            if rest[open..].starts_with('}') {
                return Err(TemplateMistake::Stray);
            }
            if open > 0 {
                parts.push(Part::Literal(rest[..open].to_owned()));
            }
            let close = rest[open..].find('}').ok_or(TemplateMistake::Unclosed)?;
            let name = &rest[open + 1..open + close];
            if name.is_empty() || name.contains('{') {
                return Err(TemplateMistake::Unnamed);
            }
            parts.push(Part::Param(name.to_owned()));
            rest = &rest[open + close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    pub(crate) fn params(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Param(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    pub(crate) fn render(&self, values: &Values) -> String {
        let mut out = String::with_capacity(32);
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Param(name) => match values.get(name) {
                    Some(Value::Text(text)) => escape(text, &mut out),
                    Some(Value::Integer(integer)) => out.push_str(&integer.to_string()),
                    Some(Value::Boolean(boolean)) => {
                        out.push_str(if *boolean { "true" } else { "false" });
                    }
                    Some(Value::Null) | None => out.push('~'),
                },
            }
        }
        out
    }
}

/// Keeps letters, digits, `.`, `-`, `_`, `@` and `+`, and writes every other byte as `%XX`.
fn escape(text: &str, out: &mut String) {
    const HEX: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b".-_@+".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(a: &str, b: &str) -> Values {
        Values::from([
            ("a".to_owned(), Value::Text(a.to_owned())),
            ("b".to_owned(), Value::Text(b.to_owned())),
        ])
    }

    #[test]
    fn parameters_are_put_in_escaped() {
        let template = Template::parse("users:{a}:{b}:end").unwrap();
        assert_eq!(template.params().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            template.render(&values("x:y", "ünï")),
            "users:x%3Ay:%C3%BCn%C3%AF:end"
        );
    }

    #[test]
    fn a_null_is_no_text() {
        let template = Template::parse("{a}").unwrap();
        let null = Values::from([("a".to_owned(), Value::Null)]);
        assert_ne!(template.render(&null), template.render(&values("~", "")));
    }

    #[test]
    fn a_broken_template_is_refused() {
        assert_eq!(Template::parse("a{b"), Err(TemplateMistake::Unclosed));
        assert_eq!(Template::parse("a}b"), Err(TemplateMistake::Stray));
        assert_eq!(Template::parse("a{}"), Err(TemplateMistake::Unnamed));
    }

    proptest! {
        #[test]
        fn different_values_never_share_a_key(a in ".{0,12}", b in ".{0,12}", c in ".{0,12}", d in ".{0,12}") {
            let template = Template::parse("k:{a}:{b}").unwrap();
            let same = template.render(&values(&a, &b)) == template.render(&values(&c, &d));
            prop_assert_eq!(same, a == c && b == d);
        }
    }
}
