//! Serde stops at the first mistake. This reader takes what it asks for, notes what it cannot use,
//! goes on with the default, and at the end names every key that nobody asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use super::mistake::{Mistake, Origin};
use super::tree::{Node, NodeKind};
use super::units::{Bytes, parse_bytes, parse_duration};

/// The mistakes that are gathered while a tree is read.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(RefCell<Vec<Mistake>>);

impl Mistakes {
    pub(crate) fn from(mistakes: Vec<Mistake>) -> Self {
        Self(RefCell::new(mistakes))
    }

    pub(crate) fn push(&self, mistake: Mistake) {
        self.0.borrow_mut().push(mistake);
    }

    pub(crate) fn into_sorted(self) -> Vec<Mistake> {
        let mut mistakes = self.0.into_inner();
        mistakes.sort_by_key(|mistake| mistake.place.order());
        mistakes
    }
}

/// A table of the tree while it is read.
pub(crate) struct Section<'a> {
    path: String,
    table: Option<&'a BTreeMap<String, Node>>,
    place: Origin,
    asked: RefCell<BTreeSet<String>>,
    mistakes: &'a Mistakes,
}

impl<'a> Section<'a> {
    pub(crate) fn root(node: &'a Node, mistakes: &'a Mistakes) -> Self {
        Self::at(String::new(), Some(node), mistakes)
    }

    fn at(path: String, node: Option<&'a Node>, mistakes: &'a Mistakes) -> Self {
        let table = match node.map(|node| (&node.kind, &node.place)) {
            Some((NodeKind::Table(table), _)) => Some(table),
            Some((kind, place)) => {
                let message = format!("`{path}` is {}, but must be a table", kind.describe());
                mistakes.push(Mistake::new(place.clone(), message));
                None
            }
            None => None,
        };
        Self {
            table,
            place: node.map_or(Origin::Nowhere, |node| node.place.clone()),
            path,
            asked: RefCell::default(),
            mistakes,
        }
    }

    pub(crate) fn is_given(&self) -> bool {
        self.table.is_some()
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns the place of the table.
    pub(crate) fn place(&self) -> Origin {
        self.place.clone()
    }

    /// Returns the place of the setting, or of its table if it was not given.
    pub(crate) fn place_of(&self, key: &str) -> Origin {
        self.table
            .and_then(|table| table.get(key))
            .map_or_else(|| self.place(), |node| node.place.clone())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    pub(crate) fn mistake(&self, key: &str, message: impl Display) -> Mistake {
        Mistake::new(
            self.place_of(key),
            format!("`{}` {message}", self.name(key)),
        )
    }

    pub(crate) fn refuse(&self, mistake: Mistake) {
        self.mistakes.push(mistake);
    }

    pub(crate) fn section(&self, key: &str) -> Section<'a> {
        Self::at(self.name(key), self.take(key), self.mistakes)
    }

    /// Every table below `key`, by name: `[queries.NAME]`.
    pub(crate) fn sections(&self, key: &str) -> Vec<(String, Section<'a>)> {
        let group = self.section(key);
        let names: Vec<String> = group
            .table
            .map(|table| table.keys().cloned().collect())
            .unwrap_or_default();
        names
            .into_iter()
            .map(|name| {
                let section = group.section(&name);
                (name, section)
            })
            .collect()
    }

    /// Returns the name of each setting that is given.
    pub(crate) fn keys(&self) -> Vec<String> {
        let table = self.table.into_iter().flatten();
        table.map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn node(&self, key: &str) -> Option<&'a Node> {
        self.take(key)
    }

    /// A string. What stands there instead is not quoted in the complaint: it may be a secret.
    pub(crate) fn string(&self, key: &str) -> Option<String> {
        let node = self.take(key)?;
        match &node.kind {
            NodeKind::String(text) | NodeKind::Text(text) => Some(text.clone()),
            other => {
                let message = format!("is {}, but must be a string", other.describe());
                self.refuse(self.mistake(key, message));
                None
            }
        }
    }

    pub(crate) fn boolean(&self, key: &str) -> Option<bool> {
        self.read(key, "true or false", |kind| match kind {
            NodeKind::Boolean(boolean) => Some(*boolean),
            NodeKind::Text(text) => text.parse().ok(),
            _ => None,
        })
    }

    /// A whole number between `least` and `most`.
    pub(crate) fn integer(&self, key: &str, least: i64, most: i64) -> Option<i64> {
        let value = self.read(key, "a whole number", |kind| match kind {
            NodeKind::Integer(integer) => Some(*integer),
            NodeKind::Text(text) => text.parse().ok(),
            _ => None,
        })?;
        self.within(key, value, least, most)
    }

    pub(crate) fn count(&self, key: &str, least: usize, most: usize) -> Option<usize> {
        let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.integer(key, signed(least), signed(most))
            .and_then(|value| usize::try_from(value).ok())
    }

    /// A number, with a fraction or without; NaN is refused with everything else that is not
    /// between the two.
    pub(crate) fn number(&self, key: &str, least: f64, most: f64) -> Option<f64> {
        let value = self.read(key, "a number", |kind| match kind {
            NodeKind::Float(float) => Some(*float),
            NodeKind::Integer(integer) => Some(*integer as f64),
            NodeKind::Text(text) => text.parse().ok(),
            _ => None,
        })?;
        self.within(key, value, least, most)
    }

    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        self.read(
            key,
            "a duration with its unit, such as \"250ms\" or \"6m\"",
            |kind| match kind {
                NodeKind::String(text) | NodeKind::Text(text) => parse_duration(text),
                _ => None,
            },
        )
    }

    /// A duration above zero.
    pub(crate) fn positive(&self, key: &str) -> Option<Duration> {
        let value = self.duration(key)?;
        if value.is_zero() {
            self.refuse(self.mistake(key, "must be longer than nothing"));
            return None;
        }
        Some(value)
    }

    /// Refuses a pair of which the second is smaller than the first.
    pub(crate) fn ordered<T: PartialOrd>(&self, low: (&str, T), high: (&str, T)) {
        if high.1 < low.1 {
            let key = if self.has(high.0) { high.0 } else { low.0 };
            let message = format!(
                "contradicts `{}`: `{}` must not be less than `{}`",
                self.name(if key == high.0 { low.0 } else { high.0 }),
                high.0,
                low.0
            );
            self.refuse(self.mistake(key, message));
        }
    }

    /// A size above nothing.
    pub(crate) fn some_bytes(&self, key: &str) -> Option<Bytes> {
        let bytes = self.bytes(key)?;
        if bytes.0 == 0 {
            self.refuse(self.mistake(key, "must be more than nothing"));
            return None;
        }
        Some(bytes)
    }

    pub(crate) fn bytes(&self, key: &str) -> Option<Bytes> {
        self.read(
            key,
            "a size with its unit, such as \"64MiB\"",
            |kind| match kind {
                NodeKind::String(text) | NodeKind::Text(text) => parse_bytes(text).map(Bytes),
                _ => None,
            },
        )
    }

    pub(crate) fn strings(&self, key: &str) -> Option<Vec<String>> {
        self.read(key, "an array of strings", |kind| match kind {
            NodeKind::Array(items) => items
                .iter()
                .map(|item| match &item.kind {
                    NodeKind::String(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            NodeKind::Text(text) => {
                let items = text.split(',').map(str::trim);
                Some(
                    items
                        .filter(|item| !item.is_empty())
                        .map(str::to_owned)
                        .collect(),
                )
            }
            _ => None,
        })
    }

    /// Reads one of a few words.
    pub(crate) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string(key)?;
        let found = choices.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let message = format!("is \"{text}\", but must be one of {}", words.join(", "));
            self.refuse(self.mistake(key, message));
        }
        found.map(|(_, value)| *value)
    }

    /// Names every key that was not asked for.
    pub(crate) fn finish(self) {
        let Some(table) = self.table else { return };
        let asked = self.asked.borrow();
        for (key, node) in table {
            if asked.contains(key) {
                continue;
            }
            let mut mistake = Mistake::new(
                node.place.clone(),
                format!("`{}` is not a setting", self.name(key)),
            );
            if let Some(near) = nearest(key, &asked) {
                mistake = mistake.help(format!("did you mean `{}`?", self.name(near)));
            }
            self.mistakes.push(mistake);
        }
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn take(&self, key: &str) -> Option<&'a Node> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.table.and_then(|table| table.get(key))
    }

    fn read<T>(&self, key: &str, wanted: &str, read: impl Fn(&NodeKind) -> Option<T>) -> Option<T> {
        let node = self.take(key)?;
        let value = read(&node.kind);
        if value.is_none() {
            let message = format!("is {}, but must be {wanted}", found(&node.kind));
            self.refuse(self.mistake(key, message));
        }
        value
    }

    fn within<T: PartialOrd + Display>(&self, key: &str, value: T, least: T, most: T) -> Option<T> {
        if value >= least && value <= most {
            return Some(value);
        }
        let message = format!("is {value}, but must be between {least} and {most}");
        self.refuse(self.mistake(key, message));
        None
    }
}

fn found(kind: &NodeKind) -> String {
    match kind {
        NodeKind::String(text) | NodeKind::Text(text) => format!("{text:?}"),
        NodeKind::Integer(integer) => integer.to_string(),
        NodeKind::Float(float) => float.to_string(),
        NodeKind::Boolean(boolean) => boolean.to_string(),
        other => other.describe().to_owned(),
    }
}

/// The known key that differs from `key` the least, if it differs little.
fn nearest<'k>(key: &str, known: &'k BTreeSet<String>) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| (strsim::levenshtein(key, candidate), candidate.as_str()))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_recognised_and_a_far_one_is_not() {
        let known = BTreeSet::from(["listen".to_owned(), "drain_delay".to_owned()]);
        assert_eq!(nearest("lisen", &known), Some("listen"));
        assert_eq!(nearest("drain_dealy", &known), Some("drain_delay"));
        assert_eq!(nearest("zebra", &known), None);
    }
}
