//! How what the service stands on is: asked in the background, and told from what is known, so that
//! no health check waits for it.

use std::time::Duration;

use steadfast::redis;
use steadfast::{CallOptions, ConnectionState};
use steadfast_cache::Target;
use tokio::time::Instant;

use super::Backend;
use crate::health::{Check, Status};

/// The seconds in which no load succeeds while all are taken, after which the database counts as
/// stuck.
const STUCK_BEATS: u32 = 3;

/// A statement that failed is told of for so long at least. If none was answered since, it is seen
/// then whether anything can be written,
const FAILED_LATELY: Duration = Duration::from_secs(60);
/// and again after so long.
const TRIED_AGAIN: Duration = Duration::from_secs(10);
/// The database is given so long for that.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// A key that nobody has: to invalidate it takes the way of every statement, to the disk and back.
const NOBODYS: &str = "steadfast:health";

/// A statement that failed by the fault of the database.
pub(super) struct FailedStatement {
    at: Instant,
    error: String,
    /// The moment from which a write is tried.
    look_at: Instant,
}

/// The database is given so long for a sign of life.
const PING_LIMIT: Duration = Duration::from_secs(1);

impl Backend {
    fn outbox_check(&self) -> Check {
        let status = self.cache.status();
        let suspended = status.redis.and_then(|redis| redis.suspended);
        let troubles = [status.outbox_trouble, status.tasks_trouble];
        let troubles: Vec<_> = troubles.into_iter().flatten().collect();
        let trouble = (!troubles.is_empty()).then(|| troubles.join("; "));
        match (suspended, status.outbox_lag_ms) {
            (Some(why), _) if trouble.is_some() => Check::new(
                Status::Degraded,
                format!("Redis is not read: {why}; {}", trouble.unwrap_or_default()),
            ),
            (Some(why), _) => Check::new(Status::Degraded, format!("Redis is not read: {why}")),
            (None, Some(lag)) if lag > self.outbox_lag_max => Check::new(
                Status::Degraded,
                format!("the oldest invalidation has waited for {lag} ms to be applied"),
            ),
            _ => match trouble {
                Some(trouble) => Check::new(Status::Degraded, trouble),
                None => Check::new(Status::Healthy, "every invalidation is applied in time"),
            },
        }
    }

    /// Returns the checks of Redis, breaker, database, outbox, statements and, where there are
    /// some, sentinels or shards, from what is known.
    pub(crate) fn checks(&self) -> Vec<(&'static str, Check)> {
        let status = self.client.status();
        let since = status.state_for_ms / 1e3;
        let cause = status.last_error.as_deref().unwrap_or("never connected");
        let nodes = self.nodes_of(&status);
        let address = &status.address;
        let redis = match status.state {
            // Which, and why, says the check of the shards.
            ConnectionState::Partial => {
                let cache = nodes.cache_in_words();
                let cache = cache.unwrap_or("some keys are not served".to_owned());
                let message = format!("some shards of the {address} do not serve; {cache}");
                Check::new(Status::Degraded, message)
            }
            ConnectionState::Ready => self.in_service(address, status.reconnects),
            ConnectionState::Connecting => Check::new(
                // One that was never there is not known to be anywhere.
                if status.reconnects == 0 && status.server_version.is_none() {
                    Status::Unhealthy
                } else {
                    Status::Degraded
                },
                format!("connecting to {address} for {since:.1} s: {cause}"),
            ),
            _ => Check::new(
                Status::Unhealthy,
                format!(
                    "{address} is down for {since:.1} s: {cause}; answers come from memory and the database"
                ),
            ),
        };
        let redis = match &status.flapping {
            Some(flapping) => flaps(redis, flapping),
            None => redis,
        };
        // What a server took before it went away says nothing of it now.
        let in_service = status.state == ConnectionState::Ready;
        let rtt = status
            .rtt_ms
            .filter(|_| in_service)
            .map(|ms| Duration::from_secs_f64(ms / 1e3));
        let breaker = match status.breaker {
            "closed" => Check::new(Status::Healthy, "closed: calls pass"),
            "half_open" => Check::new(Status::Degraded, "half-open: a few calls pass, on trial"),
            _ => Check::new(Status::Degraded, "open: calls to Redis are refused at once"),
        };
        let mut checks = vec![
            ("redis", redis.latency(rtt)),
            ("breaker", breaker),
            ("outbox", self.outbox_check()),
            ("database", self.database_check.read().clone()),
            ("statements", self.statements_check()),
        ];
        checks.extend(nodes.check().map(|check| ("sentinels", check)));
        checks.extend(nodes.shards_check().map(|check| ("shards", check)));
        checks
    }

    /// A connection in service, with what the server said of itself on it.
    fn in_service(&self, address: &str, reconnects: u64) -> Check {
        let said = self.redis_said.read();
        let said = said.as_ref().filter(|(of, _)| *of == reconnects);
        let Some((_, said)) = said else {
            return Check::new(Status::Healthy, format!("in service at {address}"));
        };
        if !said.healthy {
            let message = format!("connected to {address}, but a PING fails: {}", said.message);
            return Check::new(Status::Degraded, message);
        }
        let mut message = format!("in service at {address}");
        if let Some(version) = &said.version {
            message.push_str(&format!(", version {version}"));
        }
        if let Some(clients) = said.clients {
            message.push_str(&format!(", {clients} clients"));
        }
        if let Some(bytes) = said.memory_bytes {
            message.push_str(&format!(
                ", {:.1} MiB in use",
                bytes as f64 / f64::from(1 << 20)
            ));
        }
        Check::new(Status::Healthy, message)
    }

    /// Asks Redis how it is, within `redis.health_timeout`, and remembers the answer. Not while it
    /// is known to be away.
    pub(crate) async fn ask_redis(&self) {
        if self.client.status().cluster.is_some() {
            // Of every shard, or nobody knows how those are that no caller has needed yet.
            let once = CallOptions::new().deadline(self.health_timeout).attempts(1);
            let _ = self.client.with(once).send(&redis::cmd("DBSIZE")).await;
        }
        let reconnects = self.client.status().reconnects;
        if self.client.available().is_some() {
            let said = self.client.health(self.health_timeout).await;
            *self.redis_said.write() = Some((reconnects, said));
        }
    }

    /// Records that a statement could not be run, and not by its caller's fault, which would say
    /// nothing of the database.
    pub(crate) fn statement_failed(&self, error: String) {
        let at = Instant::now();
        *self.statements.write() = Some(FailedStatement {
            at,
            error,
            look_at: at + FAILED_LATELY,
        });
    }

    /// A statement was run.
    pub(crate) fn statement_answered(&self) {
        if self.statements.read().is_some() {
            *self.statements.write() = None;
        }
    }

    /// Queries may be answered while nothing can be written. That stays known until something was.
    fn statements_check(&self) -> Check {
        match &*self.statements.read() {
            Some(failed) => Check::new(
                Status::Degraded,
                format!(
                    "the last statement failed {:.0} s ago: {}",
                    failed.at.elapsed().as_secs_f64(),
                    failed.error
                ),
            ),
            None => Check::new(
                Status::Healthy,
                "no statement has failed of late by the database's fault",
            ),
        }
    }

    /// Sees whether anything can be written, if a statement has failed and nobody has tried one for
    /// a while: what failed then is not known to fail now, and not known to be well either.
    pub(crate) async fn try_to_write(&self) {
        let look_at = self.statements.read().as_ref().map(|failed| failed.look_at);
        if look_at.is_none_or(|look_at| Instant::now() < look_at) {
            return;
        }
        let nobodys = [Target::key(NOBODYS)];
        let written = tokio::time::timeout(WRITE_LIMIT, self.cache.invalidate(&nobodys)).await;
        let error = match written {
            Ok(Ok(_)) => return self.statement_answered(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("a change does not end within {} s", WRITE_LIMIT.as_secs()),
        };
        if let Some(failed) = &mut *self.statements.write() {
            failed.error = error;
            failed.look_at = Instant::now() + TRIED_AGAIN;
        }
    }

    /// A database that answers a sign of life while every place for loads is taken by one that does
    /// not end answers no query.
    fn is_stuck(&self) -> bool {
        let status = self.cache.status();
        let mut stuck = self.stuck.write();
        let done = status.counts.loads - status.counts.loads_failed;
        let full = status.guard.running >= self.places;
        *stuck = if full && done == stuck.0 {
            (done, stuck.1 + 1)
        } else {
            (done, 0)
        };
        stuck.1 >= STUCK_BEATS
    }

    /// Asks the database for a sign of life and remembers the answer. Tells what is wrong once it
    /// is out of order.
    pub(crate) async fn ask_database(&self) -> Option<String> {
        let started = Instant::now();
        let stuck = self.is_stuck();
        let check = match self.database.ping(PING_LIMIT).await {
            Ok(()) if stuck => Check::new(
                Status::Unhealthy,
                format!(
                    "{} answers, but every one of the {} places for loads has been taken for {STUCK_BEATS} s by queries that do not end",
                    self.database.system(),
                    self.places
                ),
            ),
            Ok(()) => Check::new(
                Status::Healthy,
                format!("{} answers", self.database.system()),
            )
            .latency(Some(started.elapsed())),
            Err(error) => {
                // One late answer is not yet a database that is gone.
                let again = self.database_check.read().status != Status::Healthy;
                let status = if again {
                    Status::Unhealthy
                } else {
                    Status::Degraded
                };
                Check::new(status, error.to_string())
            }
        };
        let trouble = (check.status == Status::Unhealthy).then(|| check.message.clone());
        *self.database_check.write() = check;
        trouble
    }
}

/// A connection that flaps is in service at most moments, and serves nobody well.
fn flaps(check: Check, flapping: &steadfast::Flapping) -> Check {
    let message = format!(
        "flapping: reconnected {} times since {}, last lost at {} ({}); {}",
        flapping.reconnects,
        time_of_day(flapping.since_ms),
        time_of_day(flapping.last_ms),
        flapping.cause,
        check.message
    );
    Check::new(check.status.max(Status::Degraded), message)
}

/// Returns the time of day of a date in milliseconds since 1970.
fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000 % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
}

#[cfg(test)]
mod tests {
    use steadfast_cache::sqlx::{Connection, Executor, SqliteConnection};

    use super::*;
    use crate::app::App;
    use crate::config::{Config, SAMPLE, Sources};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn s3_what_failed_is_not_taken_for_well_until_something_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite://{}", folder.path().join("t.db").display());
        let sources = Sources::new()
            .text("sample", SAMPLE)
            .flag("test", "redis.url", "redis://127.0.0.1:1")
            .flag("test", "database.url", file.clone());
        let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
        let backend: std::sync::Arc<Backend> = app.part();
        let nothing: [Target; 0] = [];
        backend.cache.invalidate(&nothing).await.unwrap();
        // Another program has the file to itself: what SQLite waits for is longer than the limit.
        let mut other = SqliteConnection::connect(&file).await.unwrap();
        other.execute("BEGIN IMMEDIATE").await.unwrap();
        let long_ago = Instant::now().checked_sub(FAILED_LATELY).unwrap();
        *backend.statements.write() = Some(FailedStatement {
            at: long_ago,
            error: "the disk is full".to_owned(),
            look_at: Instant::now(),
        });
        assert_eq!(backend.statements_check().status, Status::Degraded);
        backend.try_to_write().await;
        let check = backend.statements_check();
        assert_eq!(check.status, Status::Degraded);
        assert!(!check.message.contains("the disk is full"), "{check:?}");
        other.execute("ROLLBACK").await.unwrap();
        let error = "not looked at yet".to_owned();
        *backend.statements.write() = Some(FailedStatement {
            at: long_ago,
            error,
            look_at: Instant::now(),
        });
        backend.try_to_write().await;
        assert_eq!(backend.statements_check().status, Status::Healthy);
    }
}
