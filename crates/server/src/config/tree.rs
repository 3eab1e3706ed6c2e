//! The file, the environment and the flags say the same things in three notations. They are laid
//! over each other here, as one tree whose every value remembers where it came from, so that
//! reading and complaining happen once.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, Origin};

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) place: Origin,
}

/// The type of a value. `Text` is a string of the environment or a flag, which may stand for any
/// scalar.
#[derive(Debug, Clone)]
pub(crate) enum NodeKind {
    String(String),
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
    Other(&'static str),
}

impl NodeKind {
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::String(_) | Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "a boolean",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Other(what) => what,
        }
    }
}

/// Reads a TOML document; what cannot be read is told in `mistakes`, and the rest is kept.
pub(crate) fn parse(text: &str, mistakes: &mut Vec<Mistake>) -> Node {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let place = error
            .span()
            .map_or(Origin::Nowhere, |span| Origin::in_file(text, span));
        let message = error.message().replace('\n', ", ");
        mistakes.push(Mistake::new(place, format!("not valid TOML: {message}")));
    }
    Node {
        place: Origin::Nowhere,
        kind: NodeKind::Table(table_of(text, table.get_ref())),
    }
}

/// Lays `value` over whatever stands at `path`, making the tables on the way.
pub(crate) fn overlay(root: &mut Node, path: &[String], value: &str, place: &Origin) {
    let mut node = root;
    for step in path {
        if !matches!(node.kind, NodeKind::Table(_)) {
            node.kind = NodeKind::Table(BTreeMap::new());
        }
        let NodeKind::Table(entries) = &mut node.kind else {
            unreachable!("the line above made it a table")
        };
        node = entries.entry(step.clone()).or_insert_with(|| Node {
            kind: NodeKind::Table(BTreeMap::new()),
            place: place.clone(),
        });
    }
    node.kind = NodeKind::Text(value.to_owned());
    node.place = place.clone();
}

fn table_of(text: &str, table: &DeTable<'_>) -> BTreeMap<String, Node> {
    let mut entries = BTreeMap::new();
    for (key, value) in table {
        let mut node = node_of(text, value);
        if matches!(node.kind, NodeKind::Table(_)) {
            node.place = Origin::in_file(text, key.span());
        }
        entries.insert(key.get_ref().to_string(), node);
    }
    entries
}

fn node_of(text: &str, value: &Spanned<DeValue<'_>>) -> Node {
    let kind = match value.get_ref() {
        DeValue::String(string) => NodeKind::String(string.to_string()),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).map_or(
            NodeKind::Other("an integer out of range"),
            NodeKind::Integer,
        ),
        DeValue::Float(float) => float
            .as_str()
            .parse()
            .map_or(NodeKind::Other("a number out of range"), NodeKind::Float),
        DeValue::Boolean(boolean) => NodeKind::Boolean(*boolean),
        DeValue::Datetime(_) => NodeKind::Other("a date"),
        DeValue::Array(array) => {
            NodeKind::Array(array.iter().map(|item| node_of(text, item)).collect())
        }
        DeValue::Table(table) => NodeKind::Table(table_of(text, table)),
    };
    Node {
        kind,
        place: Origin::in_file(text, value.span()),
    }
}
