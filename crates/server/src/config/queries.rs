//! Queries and statements are programs written in a configuration file. Whatever can be known to be
//! wrong with one before a caller meets it, is told here: a parameter that is not described, a key
//! that leaves one out, a class that does not exist, a read that writes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::cache::TtlConfig;
use super::section::Section;
use super::tree::NodeKind;
use crate::grammar::dialect::Dialect;
use crate::grammar::param::{Match, ParamConfig, ParamKind, Value};
use crate::grammar::sql::Sql;
use crate::grammar::template::{RETURNED, Template};

/// `[queries.NAME]`: a read, answered at `GET /v1/queries/NAME`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueryConfig {
    /// The purpose, in the API's documentation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A SELECT with parameters written `:name`.
    pub sql: String,
    /// `[queries.NAME.params.PARAM]`
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, ParamConfig>,
    /// Key under which its answer is cached, with `{param}` for each parameter; default
    /// `NAME:{a}:{b}`.
    pub key: String,
    /// Class of time to live, a `[ttl.NAME]`; default `default`.
    pub ttl: String,
    /// Tags by which statements invalidate it, such as `users` or `user:{id}`; default none.
    pub tags: Vec<String>,
    /// Most rows an answer may have; default 1000. What is beyond is left out, and `truncated` says
    /// so.
    pub max_rows: usize,
}

/// `[statements.NAME]`: a change, made by `POST /v1/statements/NAME`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StatementConfig {
    /// The purpose, in the API's documentation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A statement with parameters written `:name`.
    pub sql: String,
    /// `[statements.NAME.params.PARAM]`
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, ParamConfig>,
    /// The keys and tags that it makes invalid.
    pub invalidates: Invalidates,
    /// Most rows that a RETURNING clause may hand back; default 1000.
    pub max_rows: usize,
}

/// The keys and tags that a statement makes invalid, with `{param}` where they depend on a
/// parameter, and `{returned.column}` where they depend on what the statement has made: of each row
/// that its RETURNING hands back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Invalidates {
    /// Keys, as in a query's `key`.
    pub keys: Vec<String>,
    /// Tags, as in a query's `tags`.
    pub tags: Vec<String>,
}

impl QueryConfig {
    pub(crate) fn read_all(
        root: &Section<'_>,
        dialect: Dialect,
        ttl: &BTreeMap<String, TtlConfig>,
    ) -> BTreeMap<String, Self> {
        let mut queries = BTreeMap::new();
        for (name, section) in root.sections("queries") {
            if let Some(query) = Self::read(&name, &section, dialect, ttl) {
                refuse_shared_key(&query, &queries, &section);
                queries.insert(name, query);
            }
            section.finish();
        }
        queries
    }

    fn read(
        name: &str,
        section: &Section<'_>,
        dialect: Dialect,
        ttl: &BTreeMap<String, TtlConfig>,
    ) -> Option<Self> {
        check_name(name, section);
        let params = read_params(section);
        let sql = read_sql(section, &params, dialect, true);
        let key = section
            .string("key")
            .unwrap_or_else(|| default_key(name, &params));
        check_template(section, "key", &key, &params, Scope::Key);
        if let Ok(template) = Template::parse(&key)
            && let Some((a, b)) = template.unseparated()
        {
            let message = format!(
                "has nothing between `{{{a}}}` and `{{{b}}}` that a value could not hold: two callers' answers could share one key"
            );
            let mistake = section.mistake("key", message);
            section.refuse(mistake.help(format!("write {{{a}}}:{{{b}}}")));
        }
        let tags = section.strings("tags").unwrap_or_default();
        for tag in &tags {
            check_template(section, "tags", tag, &params, Scope::Tags);
        }
        let class = section
            .string("ttl")
            .unwrap_or_else(|| "default".to_owned());
        if class != "default" && !ttl.contains_key(&class) {
            let names: Vec<&str> = ttl.keys().map(String::as_str).collect();
            let message = format!("names the class \"{class}\", but there is no `[ttl.{class}]`");
            let help = match names.join(", ") {
                none if none.is_empty() => format!("write a `[ttl.{class}]`, or leave `ttl` out"),
                names => format!("there are: {names}"),
            };
            section.refuse(section.mistake("ttl", message).help(help));
        }
        Some(Self {
            description: section.string("description"),
            max_rows: section.count("max_rows", 1, 100_000).unwrap_or(1000),
            sql: sql?,
            params,
            key,
            ttl: class,
            tags,
        })
    }
}

impl StatementConfig {
    pub(crate) fn read_all(root: &Section<'_>, dialect: Dialect) -> BTreeMap<String, Self> {
        let mut statements = BTreeMap::new();
        for (name, section) in root.sections("statements") {
            if let Some(statement) = Self::read(&name, &section, dialect) {
                statements.insert(name, statement);
            }
            section.finish();
        }
        statements
    }

    fn read(name: &str, section: &Section<'_>, dialect: Dialect) -> Option<Self> {
        check_name(name, section);
        let params = read_params(section);
        let sql = read_sql(section, &params, dialect, false);
        let group = section.section("invalidates");
        let invalidates = Invalidates {
            keys: group.strings("keys").unwrap_or_default(),
            tags: group.strings("tags").unwrap_or_default(),
        };
        let returns = sql
            .as_deref()
            .is_none_or(|sql| Sql::parse(sql, dialect).is_ok_and(|sql| sql.returns()));
        for (list, templates) in [("keys", &invalidates.keys), ("tags", &invalidates.tags)] {
            for template in templates {
                check_template(
                    &group,
                    list,
                    template,
                    &params,
                    Scope::Statement { returns },
                );
            }
        }
        group.finish();
        Some(Self {
            description: section.string("description"),
            max_rows: section.count("max_rows", 1, 100_000).unwrap_or(1000),
            sql: sql?,
            params,
            invalidates,
        })
    }
}

/// A key that two queries have in common would answer one with the rows of the other.
fn refuse_shared_key(
    query: &QueryConfig,
    before: &BTreeMap<String, QueryConfig>,
    section: &Section<'_>,
) {
    let Ok(key) = Template::parse(&query.key) else {
        return;
    };
    for (name, other) in before {
        let Ok(others) = Template::parse(&other.key) else {
            continue;
        };
        if key.can_equal(&query.params, &others, &other.params) {
            let message = format!(
                "\"{}\" can be the same as \"{}\" of `queries.{name}`: one would be answered with the rows of the other",
                query.key, other.key
            );
            let mistake = section.mistake("key", message);
            section.refuse(mistake.help("begin each with the name of its query"));
        }
    }
}

fn check_name(name: &str, section: &Section<'_>) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        let message = format!(
            "`{}`: a name has 1 to 64 letters, digits, `_` or `-`",
            section.path()
        );
        section.refuse(super::Mistake::new(section.place(), message));
    }
}

fn default_key(name: &str, params: &BTreeMap<String, ParamConfig>) -> String {
    let mut key = name.to_owned();
    for param in params.keys() {
        key.push_str(":{");
        key.push_str(param);
        key.push('}');
    }
    key
}

fn read_sql(
    section: &Section<'_>,
    params: &BTreeMap<String, ParamConfig>,
    dialect: Dialect,
    reads: bool,
) -> Option<String> {
    let Some(source) = section.string("sql") else {
        if !section.has("sql") {
            section.refuse(section.mistake("sql", "is missing"));
        }
        return None;
    };
    let sql = match Sql::parse(&source, dialect) {
        Ok(sql) => sql,
        Err(mistake) => {
            section.refuse(section.mistake("sql", mistake));
            return None;
        }
    };
    if reads && !sql.reads() {
        let (message, help) = match sql.writes.as_deref() {
            Some(word) => (
                format!("holds {word}, but a query only reads"),
                "what changes data belongs under `[statements]`; if it is a name, put the name in quotes",
            ),
            None => (
                format!("begins with {}, but a query only reads", sql.verb),
                "what changes data belongs under `[statements]`",
            ),
        };
        section.refuse(section.mistake("sql", message).help(help));
    }
    let used: BTreeSet<&str> = sql.places.iter().map(String::as_str).collect();
    for name in &used {
        if !params.contains_key(*name) {
            let message = format!(
                "uses `:{name}`, which `{}.params` does not describe",
                section.path()
            );
            section.refuse(section.mistake("sql", message));
        }
    }
    for (name, param) in params {
        if !used.contains(name.as_str()) {
            let message = format!("describes `{name}`, which the statement does not use");
            section.refuse(section.mistake("params", message));
        }
        if matches!(param.kind, ParamKind::Pattern { .. }) && !sql.escapes {
            let message = format!("compares with the pattern `:{name}`, but without ESCAPE '!'");
            let mistake = section.mistake("sql", message);
            section.refuse(mistake.help(format!("write LIKE :{name} ESCAPE '!'")));
        }
    }
    Some(source)
}

/// The names that a template may hold, or must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All parameters.
    Key,
    /// Any of the parameters.
    Tags,
    /// Any of the parameters, and columns of what is returned.
    Statement { returns: bool },
}

fn check_template(
    section: &Section<'_>,
    key: &str,
    source: &str,
    params: &BTreeMap<String, ParamConfig>,
    scope: Scope,
) {
    let template = match Template::parse(source) {
        Ok(template) => template,
        Err(mistake) => {
            section.refuse(section.mistake(key, mistake));
            return;
        }
    };
    let named: BTreeSet<&str> = template.params().collect();
    for name in &named {
        let column = matches!(scope, Scope::Statement { .. }) && name.starts_with(RETURNED);
        if column && scope == (Scope::Statement { returns: false }) {
            let message = format!("names `{{{name}}}`, but the statement returns nothing");
            let mistake = section.mistake(key, message);
            section.refuse(mistake.help("end the statement with RETURNING and the column"));
        } else if !column && !params.contains_key(*name) {
            let message = format!("names `{{{name}}}`, which is no parameter");
            section.refuse(section.mistake(key, message));
        }
    }
    for name in params
        .keys()
        .filter(|name| scope == Scope::Key && !named.contains(name.as_str()))
    {
        let message = format!(
            "leaves out `{{{name}}}`: answers to different values of it would share one key"
        );
        section.refuse(section.mistake(key, message));
    }
}

fn read_params(section: &Section<'_>) -> BTreeMap<String, ParamConfig> {
    let mut params = BTreeMap::new();
    for (name, param) in section.sections("params") {
        if let Some(config) = read_param(&param) {
            params.insert(name, config);
        }
        param.finish();
    }
    params
}

fn read_param(section: &Section<'_>) -> Option<ParamConfig> {
    #[derive(Clone, Copy)]
    enum Type {
        String,
        Pattern,
        Integer,
        Boolean,
    }
    let types = [
        ("string", Type::String),
        ("pattern", Type::Pattern),
        ("integer", Type::Integer),
        ("boolean", Type::Boolean),
    ];
    if !section.has("type") {
        section.refuse(
            section
                .mistake("type", "is missing")
                .help("string, pattern, integer or boolean"),
        );
    }
    let kind = match section.choice("type", &types) {
        None | Some(Type::Boolean) => ParamKind::Boolean,
        Some(Type::Integer) => ParamKind::Integer {
            min: section
                .integer("min", i64::MIN, i64::MAX)
                .unwrap_or(i64::MIN),
            max: section
                .integer("max", i64::MIN, i64::MAX)
                .unwrap_or(i64::MAX),
        },
        Some(Type::String) => ParamKind::String {
            min_length: section.count("min_length", 0, 1 << 20).unwrap_or(0),
            max_length: section.count("max_length", 1, 1 << 20).unwrap_or(256),
        },
        Some(Type::Pattern) => ParamKind::Pattern {
            min_length: section.count("min_length", 0, 1 << 20).unwrap_or(0),
            max_length: section.count("max_length", 1, 1 << 20).unwrap_or(256),
            matching: section
                .choice(
                    "match",
                    &[
                        ("contains", Match::Contains),
                        ("prefix", Match::Prefix),
                        ("suffix", Match::Suffix),
                    ],
                )
                .unwrap_or(Match::Contains),
        },
    };
    match &kind {
        ParamKind::Integer { min, max } => section.ordered(("min", *min), ("max", *max)),
        ParamKind::String {
            min_length,
            max_length,
        }
        | ParamKind::Pattern {
            min_length,
            max_length,
            ..
        } => section.ordered(("min_length", *min_length), ("max_length", *max_length)),
        ParamKind::Boolean => {}
    }
    let default = read_default(section, &kind);
    let optional = section.boolean("optional").unwrap_or(false);
    if optional && default.is_some() {
        let message = "contradicts `default`: what is left out is either NULL or the default";
        section.refuse(section.mistake("optional", message));
    }
    Some(ParamConfig {
        kind,
        default,
        optional,
        description: section.string("description"),
    })
}

fn read_default(section: &Section<'_>, kind: &ParamKind) -> Option<Value> {
    let value = match &section.node("default")?.kind {
        NodeKind::String(text) | NodeKind::Text(text) => Value::Text(text.clone()),
        NodeKind::Integer(integer) => Value::Integer(*integer),
        NodeKind::Boolean(boolean) => Value::Boolean(*boolean),
        other => {
            section.refuse(section.mistake("default", format!("is {}", other.describe())));
            return None;
        }
    };
    match kind.checked(value) {
        Ok(value) => Some(value),
        Err(reason) => {
            section.refuse(section.mistake("default", reason));
            None
        }
    }
}
