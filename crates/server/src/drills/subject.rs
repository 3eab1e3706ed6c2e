//! The application in small that drills are run on: this service's own client and cache, as their
//! defaults are, over a database of its own; and beside it the same application as it is written
//! without thought of outages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use steadfast::credentials::FileCredentials;
use steadfast::{Client, ConnectionState, Tls};
use steadfast_cache::{Cache, CacheError, Ttl, Tx, WriteError};
use steadfast_drill::asking::Asking;
use steadfast_drill::hand_built::HandBuilt;
use steadfast_drill::plain::Plain;
use steadfast_drill::routing::Routing;
use steadfast_drill::subject::{
    Answer, DatabaseFault, Endpoint, Facts, Failure, Role, SetUpError, Source, Subject,
    SubjectFactory,
};

use super::facts::facts_of;
use super::ledger::Keeper;
use super::table::{PlainTable, Table};
use crate::backend::Rows;

/// Makes the subjects of a drill.
#[derive(Debug, Default, Clone, Copy)]
#[non_exhaustive]
pub struct Subjects;

impl SubjectFactory for Subjects {
    fn start(
        &self,
        role: Role,
        endpoint: Endpoint,
    ) -> BoxFuture<'_, Result<Box<dyn Subject>, SetUpError>> {
        async move {
            if endpoint.ledger {
                return Ok(match role {
                    Role::Resilient => Box::new(Keeper::start(&endpoint)?) as _,
                    _ if endpoint.redis_url.starts_with("redis-cluster:") => {
                        Box::new(Routing::start(&endpoint)?) as _
                    }
                    _ => Box::new(Asking::start(&endpoint)?) as _,
                });
            }
            let table = Table::new(endpoint.folder.as_deref())?;
            Ok(match role {
                Role::Resilient => Box::new(Resilient::start(&endpoint, table).await?) as _,
                Role::Plain => Box::new(Plain::start(&endpoint, Box::new(PlainTable(table)))?) as _,
                Role::HandBuilt => {
                    Box::new(HandBuilt::start(&endpoint, Box::new(PlainTable(table)))?) as _
                }
            })
        }
        .boxed()
    }
}

/// The client and the cache on their defaults.
struct Resilient {
    client: Client,
    rows: Rows,
    table: Arc<Table>,
    sql_queries: Arc<AtomicU64>,
}

const CLASS: &str = "user";
/// Reads at once while the caches are filled.
const WARM_AT_ONCE: usize = 32;

impl Resilient {
    async fn start(endpoint: &Endpoint, table: Table) -> Result<Self, SetUpError> {
        let failed = |error: &dyn std::fmt::Display| SetUpError(error.to_string());
        let mut builder = Client::builder(&endpoint.redis_url).map_err(|error| failed(&error))?;
        if let Some(file) = &endpoint.password_file {
            let user = user_of(&endpoint.redis_url);
            let credentials = FileCredentials::new(file, Some(&user));
            builder = builder.credentials(credentials.look_every(Duration::from_millis(100)));
        }
        if let Some(file) = &endpoint.ca_file {
            let tls = Tls::new().ca_file(file).map_err(|error| failed(&error))?;
            builder = builder.tls(tls);
        }
        let client = builder
            .name("steadfast-drill")
            .build()
            .map_err(|error| failed(&error))?;
        let mut cache = Cache::builder(table.database.clone());
        if !endpoint.memory {
            cache = cache.memory_bytes(0);
        }
        let cache = cache
            .redis(client.clone())
            .namespace("drill")
            .class(CLASS, Ttl::default())
            .build()
            .await
            .map_err(|error| failed(&error))?;
        let rows = cache.view_of_bytes(CLASS).map_err(|error| failed(&error))?;
        Ok(Self {
            client,
            rows: rows.prefix("row:"),
            table: Arc::new(table),
            sql_queries: Arc::default(),
        })
    }

    async fn warm(&self, keys: u64) -> Result<(), SetUpError> {
        self.table.create(keys).await?;
        while self.client.state() == ConnectionState::Connecting {
            // A change between the look and the wait is seen at the next look.
            let _ = tokio::time::timeout(Duration::from_millis(50), self.client.changed()).await;
        }
        stream::iter(0..keys)
            .map(|key| self.read(key))
            .buffer_unordered(WARM_AT_ONCE)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
            .map_err(|failure| SetUpError(format!("a row could not be read: {}", failure.kind)))
    }

    async fn read(&self, key: u64) -> Result<Answer, Failure> {
        let (table, sql_queries) = (Arc::clone(&self.table), Arc::clone(&self.sql_queries));
        let load = move || async move {
            sql_queries.fetch_add(1, Relaxed);
            let version = table.version(key).await?;
            Ok(version.map(|version| Bytes::from(version.to_string())))
        };
        let answer = self.rows.get(key, load).await.map_err(failure)?;
        let version = answer
            .value
            .and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok())
            .ok_or(Failure { kind: "missing" })?;
        Ok(Answer {
            source: match answer.source {
                steadfast_cache::Source::Memory => Source::Memory,
                steadfast_cache::Source::Redis => Source::Redis,
                _ => Source::Database,
            },
            version,
            age: answer.age,
            stale: Some(answer.stale.is_some()),
        })
    }

    async fn write(&self, key: u64, version: u64) -> Result<(), Failure> {
        self.sql_queries.fetch_add(1, Relaxed);
        let table = &self.table;
        let written = self
            .rows
            .cache()
            .write(async |tx: &mut Tx| table.raise(tx, key, version).await)
            .invalidates([self.rows.target(key)])
            .commit()
            .await;
        match written {
            Ok(_) => Ok(()),
            Err(WriteError::Work(_) | WriteError::Source(_) | WriteError::Commit(_)) => {
                Err(Failure { kind: "database" })
            }
            Err(_) => Err(Failure { kind: "other" }),
        }
    }

    fn facts(&self) -> Facts {
        let status = self.client.status();
        let counts = self.rows.cache().status().counts;
        Facts {
            redis_ok: counts.redis_answers,
            redis_failed: counts.redis_errors,
            sql_queries: self.sql_queries.load(Relaxed),
            ..facts_of(&status)
        }
    }
}

impl Subject for Resilient {
    fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        self.warm(keys).boxed()
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        self.read(key).boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        self.write(key, version).boxed()
    }

    fn database_fault(&self, fault: DatabaseFault) {
        self.table.set_fault(fault);
    }

    fn facts(&self) -> Facts {
        self.facts()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async move {
            let _ = self.client.close(Duration::from_secs(1)).await;
            self.table.database.close().await;
        }
        .boxed()
    }
}

fn user_of(url: &str) -> String {
    let user = url::Url::parse(url).map(|url| url.username().to_owned());
    user.ok()
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}

fn failure(error: CacheError) -> Failure {
    Failure {
        kind: match error {
            CacheError::Overloaded { .. } | CacheError::ClassOverloaded { .. } => "overloaded",
            CacheError::Unavailable { .. } => "unavailable",
            CacheError::LoadTimeout { .. } => "timeout",
            CacheError::Load(_) => "database",
            _ => "other",
        },
    }
}

#[cfg(test)]
mod tests {
    use steadfast_drill::process::Redis;
    use steadfast_drill::report::StateChange;
    use steadfast_drill::run::{RunOptions, run};
    use steadfast_drill::scenario::Scenario;
    use steadfast_drill::subject::Connection;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn d4_calls_answered_and_calls_failed_are_counted_in_the_same_unit() {
        let redis = Redis::start().await.unwrap();
        let table = Table::new(None).unwrap();
        let subject = Resilient::start(&Endpoint::new(redis.url()), table)
            .await
            .unwrap();
        subject.warm(4).await.unwrap();
        let asked = subject.facts();
        assert!(asked.redis_ok > 0, "{asked:?}");
        // What others ask on the same client is a reply of Redis, and none of the cache's calls.
        // The client counts it in batches.
        let pinging = async {
            while subject.facts().redis_replies < asked.redis_replies + 1_000 {
                let mut client = subject.client.clone();
                let _: String = redis::cmd("PING").query_async(&mut client).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), pinging)
            .await
            .expect("replies are counted");
        let facts = subject.facts();
        assert!(facts.redis_ok < asked.redis_ok + 900, "{asked:?} {facts:?}");
        Subject::shutdown(&subject).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn d4_without_its_memory_every_cached_answer_is_one_of_redis_and_none_is_wrong() {
        let mut scenario = steadfast_drill::scenario::builtin("stale-without-memory").unwrap();
        scenario.load.keys = 50;
        let report = run(&scenario, &Subjects, RunOptions::default())
            .await
            .unwrap();
        let count = |phase: &steadfast_drill::report::PhaseReport| {
            (phase.sources.memory, phase.sources.redis, phase.wrong)
        };
        let counts: Vec<_> = report.phases.iter().map(count).collect();
        let (memory, wrong) = counts
            .iter()
            .fold((0, 0), |all, of| (all.0 + of.0, all.1 + of.2));
        assert_eq!((memory, wrong), (0, 0), "{counts:?}");
        // After the old snapshot came back it was asked, not passed over.
        let recovered = counts.last().unwrap();
        assert!(recovered.1 > 100, "{counts:?}");
        assert!(report.hit_rate.redis.is_some_and(|share| share > 0.5));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn d1_a_certificate_that_has_expired_or_is_wrong_is_survived_and_a_good_one_is_found() {
        let scenario = Scenario::parse(
            "name = 'certificates'\n\
             phases = { warm_up = '200ms', baseline = '500ms', fault = '5s', recovery = '5s', recovered = '500ms' }\n\
             load = { rate = 100, keys = 20, writes = 0.2 }\n\
             [[steps]]\nfault = 'certificate_expired'\nfor = '2s'\n\
             [[steps]]\nfault = 'certificate_wrong'\nat = '3s'\nfor = '2s'\n",
        )
        .unwrap();
        let report = run(&scenario, &Subjects, RunOptions::default())
            .await
            .unwrap();
        let errors: u64 = report
            .phases
            .iter()
            .flat_map(|phase| phase.errors.values())
            .sum();
        assert_eq!(errors, 0, "{:?}", report.phases);
        let states = &report.timeline.states;
        assert_eq!(report.faults.len(), 2);
        for fault in &report.faults {
            // With a certificate that it took, it would be back within its longest pause, a quarter
            // of a second.
            let out = out_of_service(states, fault.from_ms, fault.to_ms);
            assert!(
                out > (fault.to_ms - fault.from_ms) / 2 && out > 500,
                "{}: out of service for {out} ms: {states:?}",
                fault.name
            );
        }
        assert!(report.connection.reconnects >= 1, "{:?}", report.connection);
        assert!(report.recovery.full_ms.is_some(), "{:?}", report.recovery);
    }

    /// For how long of that time the connection was not in service.
    fn out_of_service(states: &[StateChange], from: u64, to: u64) -> u64 {
        let ends = states.iter().skip(1).map(|next| next.at_ms).chain([to]);
        states
            .iter()
            .zip(ends)
            .filter(|(state, _)| state.connection != Connection::Ready)
            .map(|(state, end)| end.min(to).saturating_sub(state.at_ms.max(from)))
            .sum()
    }
}
