//! Named queries and statements: SQL that an operator wrote once, and that callers may only fill
//! in. What the configuration describes is compiled here, when the service starts or is told to
//! read it again, so that a call only looks it up, fills it in and binds.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use steadfast_cache::{Param, ParamType};

use crate::backend::Rows;
use crate::complaint::Complaints;
use crate::config::{Config, ParamConfig, ParamKind, QueryConfig, StatementConfig};
use crate::grammar::dialect::Dialect;
use crate::grammar::param::{Value, Values};
use crate::grammar::sql::Sql;
use crate::grammar::template::Template;
use crate::observe::figures::Figures;

mod blame;
mod meters;
pub(crate) mod once;
pub(crate) mod read;
pub(crate) mod waiting;
pub(crate) mod write;

use meters::{ReadMeters, WriteMeters};

type Params = std::collections::BTreeMap<String, ParamConfig>;

/// Every query and statement, by name.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    queries: HashMap<String, Arc<Query>>,
    statements: HashMap<String, Arc<Statement>>,
}

/// A read.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) params: Params,
    pub(crate) class: String,
    rows: OnceLock<Rows>,
    /// A hash of all that its answers depend on beside the key.
    version: u32,
    sql: Sql,
    key: Template,
    tags: Vec<Template>,
    max_rows: usize,
    meters: ReadMeters,
    complaints: Complaints,
}

/// A change.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) params: Params,
    sql: Sql,
    keys: Vec<Template>,
    tags: Vec<Template>,
    /// Whether it hands rows back.
    returns: bool,
    max_rows: usize,
    meters: WriteMeters,
    complaints: Complaints,
}

impl Programs {
    /// Compiles the queries and statements of a checked configuration. The counts of those `before`
    /// go on, by name.
    pub(crate) fn compile(config: &Config, before: &Self) -> Self {
        let dialect = config.database.dialect();
        let queries = config.queries.iter().filter_map(|(name, query)| {
            Some((
                name.clone(),
                Arc::new(Query::compile(name, query, dialect, before)?),
            ))
        });
        let statements = config.statements.iter().filter_map(|(name, statement)| {
            let statement = Statement::compile(name, statement, dialect, before)?;
            Some((name.clone(), Arc::new(statement)))
        });
        Self {
            queries: queries.collect(),
            statements: statements.collect(),
        }
    }

    pub(crate) fn query(&self, name: &str) -> Option<&Arc<Query>> {
        self.queries.get(name)
    }

    pub(crate) fn statement(&self, name: &str) -> Option<&Arc<Statement>> {
        self.statements.get(name)
    }

    pub(crate) fn queries(&self) -> impl Iterator<Item = &Query> {
        self.queries.values().map(Arc::as_ref)
    }

    pub(crate) fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.statements.values().map(Arc::as_ref)
    }

    /// The counts and latencies of each query, and of each statement.
    pub(crate) fn figures(&self) -> [Vec<(&str, &Figures)>; 2] {
        let queries = self.query_names().into_iter();
        let statements = self.statement_names().into_iter();
        [
            queries
                .filter_map(|name| Some((name, &*self.query(name)?.meters.figures)))
                .collect(),
            statements
                .filter_map(|name| Some((name, &*self.statement(name)?.meters.figures)))
                .collect(),
        ]
    }

    pub(crate) fn query_names(&self) -> Vec<&str> {
        sorted(self.queries.keys())
    }

    pub(crate) fn statement_names(&self) -> Vec<&str> {
        sorted(self.statements.keys())
    }
}

impl Query {
    fn compile(
        name: &str,
        config: &QueryConfig,
        dialect: Dialect,
        before: &Programs,
    ) -> Option<Self> {
        let counted = before.query(name).map(|query| &query.meters.figures);
        let sql = Sql::parse(&config.sql, dialect).ok()?;
        Some(Self {
            version: version(&sql, config, dialect),
            name: name.to_owned(),
            description: config.description.clone(),
            params: config.params.clone(),
            class: config.ttl.clone(),
            rows: OnceLock::new(),
            sql,
            key: Template::parse(&config.key).ok()?,
            tags: templates(&config.tags)?,
            max_rows: config.max_rows,
            meters: ReadMeters::new(name, dialect.name(), counted.cloned()),
            complaints: Complaints::default(),
        })
    }
}

impl Statement {
    fn compile(
        name: &str,
        config: &StatementConfig,
        dialect: Dialect,
        before: &Programs,
    ) -> Option<Self> {
        let counted = before.statement(name).map(|one| &one.meters.figures);
        let sql = Sql::parse(&config.sql, dialect).ok()?;
        Some(Self {
            name: name.to_owned(),
            description: config.description.clone(),
            params: config.params.clone(),
            returns: sql.returns(),
            meters: WriteMeters::new(name, dialect.name(), &sql.verb, counted.cloned()),
            complaints: Complaints::default(),
            sql,
            keys: templates(&config.invalidates.keys)?,
            tags: templates(&config.invalidates.tags)?,
            max_rows: config.max_rows,
        })
    }
}

/// The form in which rows are kept. Counted up when it changes, so that no release is answered with
/// what another has kept.
const FORMAT: u32 = 1;

/// Names what an answer depends on beside the values in its key: the SQL, how many rows, the
/// database's kind, the types of the parameters, and our own form. Kept with each value, which is
/// taken only by who has the same: what another release has kept, or this one before its SQL was
/// changed, is loaded anew, while an invalidation by key reaches all.
fn version(sql: &Sql, config: &QueryConfig, dialect: Dialect) -> u32 {
    let kinds: Vec<_> = config
        .params
        .iter()
        .map(|(name, param)| (name, &param.kind))
        .collect();
    let parts = (
        FORMAT,
        dialect,
        &sql.text,
        &sql.places,
        config.max_rows,
        kinds,
    );
    let digest = Sha256::digest(serde_json::to_vec(&parts).unwrap_or_default());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

fn templates(sources: &[String]) -> Option<Vec<Template>> {
    sources
        .iter()
        .map(|source| Template::parse(source).ok())
        .collect()
}

fn rendered(templates: &[Template], values: &Values) -> Vec<String> {
    templates
        .iter()
        .map(|template| template.render(values))
        .collect()
}

/// Returns what is bound at each place of `sql`, in order. A parameter that was left out is NULL of
/// its type.
fn bound(sql: &Sql, params: &Params, values: &Values) -> Vec<Param> {
    sql.places
        .iter()
        .map(|name| {
            let kind = params.get(name).map(|param| &param.kind);
            let value = values.get(name).unwrap_or(&Value::Null);
            let value = kind.map_or_else(|| value.clone(), |kind| kind.bound(value));
            match value {
                Value::Null => Param::NullOf(kind.map_or(ParamType::Text, ParamKind::param_type)),
                Value::Text(text) => Param::Text(text),
                Value::Integer(integer) => Param::Int(integer),
                Value::Boolean(boolean) => Param::Bool(boolean),
            }
        })
        .collect()
}

fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    names
}
