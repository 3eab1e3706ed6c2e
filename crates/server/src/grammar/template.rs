//! A key that could be read in two ways would serve one caller's rows to another. So what a caller
//! sent is escaped before it enters a key, a key must name every parameter its answer depends on,
//! something that no value can hold must stand between two of them, and no two queries may have a
//! key in common.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde_json::Value as Json;
use steadfast_cache::Row;

use super::param::{ParamConfig, ParamKind, Value, Values};

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

/// The prefix of a column that a statement returns: `users:{returned.id}`.
pub(crate) const RETURNED: &str = "returned.";

/// The reason why a template cannot be used.
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

    /// The names in it. One that begins with [`RETURNED`] is a column's.
    pub(crate) fn params(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Param(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// Two parameters between which nothing stands that a value could not hold: where one ends and
    /// the other begins cannot be told from the key.
    pub(crate) fn unseparated(&self) -> Option<(&str, &str)> {
        let mut open: Option<&str> = None;
        for part in &self.parts {
            match part {
                Part::Literal(text) if !text.chars().all(may_be_a_value) => open = None,
                Part::Literal(_) => {}
                Part::Param(name) => {
                    if let Some(before) = open.replace(name) {
                        return Some((before, name));
                    }
                }
            }
        }
        None
    }

    /// Whether some values of both make one and the same key.
    pub(crate) fn can_equal(
        &self,
        params: &BTreeMap<String, ParamConfig>,
        other: &Self,
        others: &BTreeMap<String, ParamConfig>,
    ) -> bool {
        let (a, b) = (self.symbols(params), other.symbols(others));
        let (mut seen, mut open) = (HashSet::new(), vec![(0, 0)]);
        while let Some((i, j)) = open.pop() {
            if !seen.insert((i, j)) {
                continue;
            }
            match (a.get(i), b.get(j)) {
                (None, None) => return true,
                (Some(Symbol::Is(x)), Some(Symbol::Is(y))) if x == y => open.push((i + 1, j + 1)),
                (Some(Symbol::Any(may)), Some(Symbol::Is(y))) if may(*y) => open.push((i, j + 1)),
                (Some(Symbol::Is(x)), Some(Symbol::Any(may))) if may(*x) => open.push((i + 1, j)),
                _ => {}
            }
            // A value may end here.
            if matches!(a.get(i), Some(Symbol::Any(_))) {
                open.push((i + 1, j));
            }
            if matches!(b.get(j), Some(Symbol::Any(_))) {
                open.push((i, j + 1));
            }
        }
        false
    }

    fn symbols(&self, params: &BTreeMap<String, ParamConfig>) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => symbols.extend(text.chars().map(Symbol::Is)),
                Part::Param(name) => {
                    symbols.push(Symbol::Any(match params.get(name).map(|p| &p.kind) {
                        Some(ParamKind::Integer { .. }) => may_be_an_integer,
                        Some(ParamKind::Boolean) => may_be_a_boolean,
                        _ => may_be_a_value,
                    }));
                }
            }
        }
        symbols
    }

    /// Whether it names what a statement returns, and so can be filled in only for each of its
    /// rows.
    pub(crate) fn is_of_rows(&self) -> bool {
        self.params().any(|name| name.starts_with(RETURNED))
    }

    pub(crate) fn render(&self, values: &Values) -> String {
        self.fill(|name, out| fill_in(values.get(name), out))
    }

    /// As [`render`](Self::render), with the columns of a row that was returned, whose values are
    /// written as those of a parameter would be.
    ///
    /// # Errors
    /// Names the column that the row does not have.
    pub(crate) fn render_for(&self, values: &Values, row: &Row) -> Result<String, String> {
        let mut missing = None;
        let text = self.fill(|name, out| match name.strip_prefix(RETURNED) {
            None => fill_in(values.get(name), out),
            Some(column) => match row.get(column) {
                Some(Json::String(text)) => escape(text, out),
                Some(Json::Null) => out.push('~'),
                Some(other) => escape(&other.to_string(), out),
                None => missing = Some(column.to_owned()),
            },
        });
        missing.map_or(Ok(text), Err)
    }

    fn fill(&self, mut put: impl FnMut(&str, &mut String)) -> String {
        let mut out = String::with_capacity(32);
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Param(name) => put(name, &mut out),
            }
        }
        out
    }
}

fn fill_in(value: Option<&Value>, out: &mut String) {
    match value {
        Some(Value::Text(text)) => escape(text, out),
        Some(Value::Integer(integer)) => out.push_str(&integer.to_string()),
        Some(Value::Boolean(boolean)) => out.push_str(if *boolean { "true" } else { "false" }),
        Some(Value::Null) | None => out.push('~'),
    }
}

/// A place of a key: a letter, or any number of those that a parameter's value may be made of.
#[derive(Clone, Copy)]
enum Symbol {
    Is(char),
    Any(fn(char) -> bool),
}

/// Whether [`escape`] may write it; `~` stands for NULL.
fn may_be_a_value(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".-_@+%~".contains(c)
}

fn may_be_an_integer(c: char) -> bool {
    c.is_ascii_digit() || "-~".contains(c)
}

fn may_be_a_boolean(c: char) -> bool {
    "truefals~".contains(c)
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

    #[test]
    fn what_stands_between_two_values_must_be_no_part_of_one() {
        for (source, found) in [
            ("{a}{b}", true),
            ("u:{a}-{b}", true),
            ("u:{a}x.y{b}", true),
            ("u:{a}~{b}", true),
            ("u:{a}:{b}", false),
            ("u:{a}-/-{b}", false),
            ("{a}", false),
        ] {
            let template = Template::parse(source).unwrap();
            assert_eq!(template.unseparated().is_some(), found, "{source}");
        }
    }

    #[test]
    fn keys_that_two_queries_may_have_in_common_are_found() {
        let params = |kind: &ParamKind| {
            ["a", "b"]
                .map(|name| {
                    let kind = kind.clone();
                    let (default, optional, description) = (None, false, None);
                    let config = ParamConfig {
                        kind,
                        default,
                        optional,
                        description,
                    };
                    (name.to_owned(), config)
                })
                .into()
        };
        let (min_length, max_length) = (0, 9);
        let text = params(&ParamKind::String {
            min_length,
            max_length,
        });
        let integer = params(&ParamKind::Integer { min: 0, max: 9 });
        for (one, of_one, other, of_other, equal) in [
            ("users:{a}", &text, "users:{b}", &text, true),
            ("users:{a}", &text, "users:list", &text, true),
            ("users:{a}", &integer, "users:list", &text, false),
            ("users:{a}", &integer, "users:{b}", &text, true),
            ("users:{a}:{b}", &text, "users:{a}", &text, false),
            ("users:{a}:{b}", &text, "users:list:{b}", &integer, true),
            ("by_id:{a}", &text, "by_name:{a}", &text, false),
            ("x", &text, "x", &text, true),
            ("{a}", &text, "", &text, true),
        ] {
            let [one, other] = [one, other].map(|source| Template::parse(source).unwrap());
            assert_eq!(
                one.can_equal(of_one, &other, of_other),
                equal,
                "{one:?} {other:?}"
            );
            assert_eq!(other.can_equal(of_other, &one, of_one), equal);
        }
    }

    proptest! {
        #[test]
        fn a_separated_template_gives_each_pair_of_values_a_key_of_its_own(
            between in "[a:.~/%-]{0,4}", around in "[a:.-]{0,3}",
            a in "[a:.~%-]{0,4}", b in "[a:.~%-]{0,4}", c in "[a:.~%-]{0,4}", d in "[a:.~%-]{0,4}",
        ) {
            let template = Template::parse(&format!("{around}{{a}}{between}{{b}}{around}")).unwrap();
            prop_assume!(template.unseparated().is_none());
            let same = template.render(&values(&a, &b)) == template.render(&values(&c, &d));
            prop_assert_eq!(same, a == c && b == d);
        }

        #[test]
        fn different_values_never_share_a_key(a in ".{0,12}", b in ".{0,12}", c in ".{0,12}", d in ".{0,12}") {
            let template = Template::parse("k:{a}:{b}").unwrap();
            let same = template.render(&values(&a, &b)) == template.render(&values(&c, &d));
            prop_assert_eq!(same, a == c && b == d);
        }
    }
}
