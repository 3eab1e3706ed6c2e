//! The outbox's tables, and the time by the clock of the database that has them.

use crate::sql::Pool;

/// The time by the database's clock, in milliseconds since 1970.
pub(crate) fn now_sql(pool: &Pool) -> &'static str {
    match *pool {
        #[cfg(feature = "sqlite")]
        Pool::Sqlite(_) => SQLITE_NOW,
        #[cfg(feature = "mysql")]
        Pool::MySql(_) => MYSQL_NOW,
        #[cfg(feature = "postgres")]
        Pool::Postgres(_) => POSTGRES_NOW,
    }
}

/// Milliseconds since 1970 by the database's clock.
pub(super) const SQLITE_NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";
pub(super) const MYSQL_NOW: &str = "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)";
pub(super) const POSTGRES_NOW: &str =
    "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

pub(super) const SQLITE_TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS steadfast_outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, \
     kind TEXT NOT NULL, target BLOB NOT NULL, created_at INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS steadfast_outbox_order ON steadfast_outbox (namespace, id)",
    "CREATE TABLE IF NOT EXISTS steadfast_outbox_state (namespace TEXT NOT NULL PRIMARY KEY, watermark INTEGER NOT NULL)",
];

pub(super) const MYSQL_TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS steadfast_outbox (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, namespace VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, \
     kind VARCHAR(8) NOT NULL, target MEDIUMBLOB NOT NULL, created_at BIGINT NOT NULL, KEY steadfast_outbox_order (namespace, id)) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS steadfast_outbox_state (namespace VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL PRIMARY KEY, \
     watermark BIGINT NOT NULL) ENGINE=InnoDB",
];

pub(super) const POSTGRES_TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS steadfast_outbox (id BIGSERIAL PRIMARY KEY, namespace TEXT NOT NULL, kind TEXT NOT NULL, \
     target BYTEA NOT NULL, created_at BIGINT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS steadfast_outbox_order ON steadfast_outbox (namespace, id)",
    "CREATE TABLE IF NOT EXISTS steadfast_outbox_state (namespace TEXT NOT NULL PRIMARY KEY, watermark BIGINT NOT NULL)",
];
