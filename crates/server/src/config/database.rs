//! `[database]`: the source of truth, and what may be asked of it.

use std::time::Duration;

use serde::Serialize;
use steadfast_cache::{Database, DatabaseOptions, GuardOptions};

use super::secret::SecretUrl;
use super::section::Section;
use super::tls::DatabaseTlsConfig;
use super::units::duration;
use crate::grammar::dialect::Dialect;

/// `[database]`: the source of truth.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// `sqlite://path`, `mysql://…` (MariaDB too) or `postgres://…`; default
    /// `sqlite://steadfast.db`, made if missing.
    pub url: SecretUrl,
    /// Connections for statements and the outbox; default 10. Beside them as many as
    /// `guard.concurrency` says, which only read, for queries, and one that watches.
    pub max_connections: u32,
    /// How long a statement, or a query, waits for one of its kind; default 1 s.
    #[serde(serialize_with = "duration")]
    pub acquire_timeout: Duration,
    /// `[database.tls]`; default none: what the URL says (`sslmode`, `ssl-mode`), or else TLS if
    /// the server can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<DatabaseTlsConfig>,
    /// `[database.guard]`
    pub guard: GuardConfig,
}

impl DatabaseConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let schemes = ["sqlite", "mysql", "mariadb", "postgres", "postgresql"];
        let default = DatabaseOptions::default();
        let connections = section.integer("max_connections", 1, 10_000);
        let connections = connections.and_then(|number| u32::try_from(number).ok());
        let (guard, tls) = (section.section("guard"), section.section("tls"));
        let url = SecretUrl::read(section, "url", "sqlite://steadfast.db", &schemes);
        check_database(section, &url);
        let config = Self {
            tls: DatabaseTlsConfig::read(&tls, url.scheme()),
            url,
            max_connections: connections.unwrap_or(default.max_connections),
            acquire_timeout: section
                .positive("acquire_timeout")
                .unwrap_or(default.acquire_timeout),
            guard: GuardConfig::read(&guard),
        };
        guard.finish();
        tls.finish();
        config
    }

    /// Returns the dialect, by the scheme of the URL.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self.url.scheme() {
            "mysql" | "mariadb" => Dialect::Mysql,
            "postgres" | "postgresql" => Dialect::Postgres,
            _ => Dialect::Sqlite,
        }
    }
}

fn check_database(section: &Section<'_>, url: &SecretUrl) {
    if url.is_refused() {
        return;
    }
    if let Err(error) = Database::check_url(url.expose()) {
        section.refuse(section.mistake("url", format!("cannot be used: {error}")));
        return;
    }
    let text = url.expose();
    if url.scheme() == "sqlite" && (text.contains(":memory:") || text.contains("mode=memory")) {
        let message = "is a database in memory, of which each connection would have one of its own";
        let mistake = section.mistake("url", message);
        section.refuse(mistake.help("use a file, such as sqlite://steadfast.db"));
    }
}

/// `[database.guard]`: what an outage of Redis may put on the database; and `[ttl.NAME.guard]`,
/// what the loads of one class may.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GuardConfig {
    /// Loads at once; default 8. The whole's are as many connections to the database, beside its
    /// `max_connections`.
    pub concurrency: usize,
    /// Loads a second; default 2000. Past it stale values are served, or calls refused.
    pub rate: f64,
}

/// Half of the cache's own default (`GuardOptions::concurrency`): here each load at once has a
/// connection of its own, which is opened beside those for statements.
const LOADS_AT_ONCE: usize = 8;

impl GuardConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            concurrency: section
                .count("concurrency", 1, 10_000)
                .unwrap_or(LOADS_AT_ONCE),
            rate: section
                .number("rate", 0.1, 1e9)
                .unwrap_or(GuardOptions::default().rate),
        }
    }

    /// The bounds of a class; what is left out is that of the whole.
    pub(crate) fn read_within(section: &Section<'_>, whole: &Self) -> Option<Self> {
        let concurrency = section.count("concurrency", 1, 10_000);
        let rate = section.number("rate", 0.1, 1e9);
        for (key, more, most) in [
            (
                "concurrency",
                concurrency.is_some_and(|asked| asked > whole.concurrency),
                whole.concurrency.to_string(),
            ),
            (
                "rate",
                rate.is_some_and(|asked| asked > whole.rate),
                whole.rate.to_string(),
            ),
        ] {
            if more {
                let message =
                    format!("is more than `database.guard.{key}`, {most}, allows all classes");
                section.refuse(section.mistake(key, message));
            }
        }
        section.is_given().then(|| Self {
            concurrency: concurrency.unwrap_or(whole.concurrency),
            rate: rate.unwrap_or(whole.rate),
        })
    }
}
