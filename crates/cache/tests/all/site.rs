//! What every test needs: a Redis, a database, a cache over both, and a loader that counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use steadfast::Client;
use steadfast_cache::{
    Answer, Cache, CacheBuilder, CacheError, Database, DatabaseOptions, LoadError, Param,
    SourceError, Statement, Target, Ttl, Tx, View,
};
use steadfast_drill::fault::{Direction, Fault, Latency, Toxic};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;
pub(crate) use steadfast_drill::waiting::eventually;

pub(crate) struct Site {
    pub(crate) redis: Redis,
    pub(crate) database: Database,
    folder: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let redis = Redis::start().await.unwrap();
        let (database, folder) = sqlite().await;
        Self {
            redis,
            database,
            folder,
        }
    }

    pub(crate) fn database_url(&self) -> String {
        format!("sqlite://{}", self.folder.path().join("test.db").display())
    }

    pub(crate) async fn client(&self) -> Client {
        Client::builder(&self.redis.url())
            .unwrap()
            .connect_timeout(Duration::from_secs(5))
            .connect()
            .await
            .unwrap()
    }

    /// Like another process: a cache with a client of its own.
    pub(crate) async fn builder(&self) -> CacheBuilder {
        plain(&self.database).redis(self.client().await)
    }

    /// A Redis that waits for replicas it does not have answers reads and carries messages, but
    /// takes no invalidation.
    pub(crate) async fn take_no_writes(&self, none: bool) {
        let replicas = if none { "1" } else { "0" };
        let set = ["CONFIG", "SET", "min-replicas-to-write", replicas];
        self.redis.command(&set).await.unwrap();
    }

    /// How many scripts Redis was sent, those that it refused to run included.
    pub(crate) async fn scripts(&self) -> u64 {
        let stats = self.redis.command(&["INFO", "commandstats"]).await.unwrap();
        let stats: String = redis::from_redis_value(stats).unwrap();
        let of_eval = stats
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_eval:"));
        of_eval
            .into_iter()
            .flat_map(|fields| fields.split(','))
            .filter_map(|field| field.split_once('='))
            .filter(|(name, _)| ["calls", "rejected_calls"].contains(name))
            .map(|(_, count)| count.parse::<u64>().unwrap())
            .sum()
    }

    pub(crate) async fn cache(&self) -> Cache {
        self.builder().await.build().await.unwrap()
    }
}

pub(crate) async fn sqlite() -> (Database, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("test.db").display());
    let database = connect(&url);
    create_table(&database).await;
    (database, folder)
}

/// The defaults, but for the time that a busy machine takes to open a connection and to answer.
pub(crate) fn patient() -> DatabaseOptions {
    let mut options = DatabaseOptions::default();
    options.acquire_timeout = Duration::from_secs(60);
    options.query_limit = Duration::from_secs(20);
    options
}

pub(crate) fn connect(url: &str) -> Database {
    Database::connect(url, patient()).unwrap()
}

pub(crate) async fn create_table(database: &Database) {
    let mut tx = database.begin().await.unwrap();
    tx.execute(
        "CREATE TABLE items (id BIGINT PRIMARY KEY, version BIGINT NOT NULL)",
        &[],
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

/// Limits are wide, so that a slow machine changes nothing; the classes differ in what they
/// promise.
pub(crate) fn plain(database: &Database) -> CacheBuilder {
    let ttl = Ttl {
        jitter: 0.0,
        early_refresh: 0.0,
        soft_limit: Duration::from_secs(2),
        hard_limit: Duration::from_secs(30),
        ..Ttl::default()
    };
    Cache::builder(database.clone())
        .namespace("test")
        .redis_limit(Duration::from_secs(1))
        .class("user", ttl)
        .class(
            "strict",
            Ttl {
                stale: Duration::ZERO,
                ..ttl
            },
        )
        .class(
            "brief",
            Ttl {
                fresh: Duration::from_millis(200),
                ..ttl
            },
        )
}

/// A loader that counts how often it was asked.
#[derive(Clone, Default)]
pub(crate) struct Loader {
    loads: Arc<AtomicU64>,
}

impl Loader {
    pub(crate) fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }

    /// Answers with the number of the load.
    pub(crate) fn counting(
        &self,
    ) -> impl Future<Output = Result<Option<String>, LoadError>> + Send + use<> {
        let loads = self.loads.clone();
        async move { Ok(Some((loads.fetch_add(1, Ordering::SeqCst) + 1).to_string())) }
    }
}

/// A view of texts in a class that there is. Its keys are written as they are.
pub(crate) fn text(cache: &Cache, class: &str) -> View<String> {
    cache.view(class).unwrap().prefix("")
}

pub(crate) async fn get(
    cache: &Cache,
    key: &str,
    class: &str,
    loader: &Loader,
) -> Result<Answer<String>, CacheError> {
    let loader = loader.clone();
    text(cache, class)
        .get(key.to_owned(), move || loader.counting())
        .await
}

/// Reads an item's version from the database through the cache.
pub(crate) async fn read_item(cache: &Cache, id: i64) -> Option<String> {
    let database = cache.database().clone();
    let load = move || async move { Ok(select_item(&database, id).await?) };
    text(cache, "user")
        .get(format!("item:{id}"), load)
        .await
        .unwrap()
        .value
}

pub(crate) async fn select_item(
    database: &Database,
    id: i64,
) -> Result<Option<String>, SourceError> {
    let sql = match database.system() {
        "postgresql" => "SELECT version FROM items WHERE id = $1",
        _ => "SELECT version FROM items WHERE id = ?",
    };
    let rows = database.select(sql, &[Param::Int(id)]).await?;
    Ok(rows.first().map(|row| row["version"].to_string()))
}

/// Sets an item's version within a transaction.
pub(crate) async fn set_item(tx: &mut Tx, id: i64, version: i64) -> Result<(), SourceError> {
    let (update, insert) = match tx {
        Tx::Postgres(_) => (
            "UPDATE items SET version = $1 WHERE id = $2",
            "INSERT INTO items (version, id) VALUES ($1, $2)",
        ),
        _ => (
            "UPDATE items SET version = ? WHERE id = ?",
            "INSERT INTO items (version, id) VALUES (?, ?)",
        ),
    };
    let params = [Param::Int(version), Param::Int(id)];
    if tx.execute(update, &params).await?.rows_affected == 0 {
        tx.execute(insert, &params).await?;
    }
    Ok(())
}

/// Writes an item's version through the cache; says whether Redis has applied the invalidation.
pub(crate) async fn write_item(cache: &Cache, id: i64, version: i64) -> bool {
    let work = async |tx: &mut Tx| set_item(tx, id, version).await;
    let written = cache
        .write(work)
        .invalidates([Target::key(format!("item:{id}"))])
        .commit()
        .await;
    written.unwrap().applied
}

/// Invalidates, and waits until Redis has applied it, however busy the machine is.
pub(crate) async fn invalidate_everywhere(cache: &Cache, targets: &[Target]) {
    cache.invalidate(targets).await.unwrap();
    all_is_applied(cache).await;
}

/// Writes an item's version, and waits until Redis has applied the invalidation, however busy the
/// machine is.
pub(crate) async fn write_everywhere(cache: &Cache, id: i64, version: i64) {
    write_item(cache, id, version).await;
    all_is_applied(cache).await;
}

/// Executes the statements of an invalidation, as a driver would that is not ours.
pub(crate) async fn execute(database: &Database, statements: Vec<Statement>) {
    let mut tx = database.begin().await.unwrap();
    for row in statements {
        let values = [row.namespace.into(), row.kind.into(), row.target.into()];
        tx.execute(&row.sql, &values).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Waits until Redis has applied all that this process has invalidated.
pub(crate) async fn all_is_applied(cache: &Cache) {
    eventually("the invalidations are applied", || async {
        cache.status().outbox_pending == 0
    })
    .await;
}

/// Lets everything that passes in this direction take so much longer, until the proxy is cleared.
pub(crate) async fn slow_down(proxy: &Proxy, direction: Direction, latency: Duration) {
    let slow = Latency {
        latency,
        jitter: Duration::ZERO,
    };
    let toxic = Toxic {
        name: "slow".into(),
        direction,
        toxicity: 1.0,
        fault: Fault::Latency(slow),
    };
    proxy.add(toxic).await.unwrap();
}

/// Waits until this process has filled Redis so often.
pub(crate) async fn filled(cache: &Cache, fills: u64) {
    eventually("Redis is filled", || async {
        cache.status().counts.fills >= fills
    })
    .await;
}

/// What a process writes that dies before its relay.
pub(crate) async fn write_and_die(database: &Database, id: i64, version: i64) {
    let mut tx = database.begin().await.unwrap();
    set_item(&mut tx, id, version).await.unwrap();
    let sql = format!(
        "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', '{}', {})",
        format_args!("item:{id}"),
        "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
    );
    tx.execute(&sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

pub(crate) async fn outbox_is_empty(database: &Database) -> bool {
    let rows = database
        .select("SELECT id FROM steadfast_outbox", &[])
        .await;
    rows.is_ok_and(|rows| rows.is_empty())
}

/// Does something at each warning that is told in this thread, and counts those that contain some
/// words.
pub(crate) struct Listener<F> {
    pub(crate) words: &'static str,
    pub(crate) count: Arc<AtomicU64>,
    pub(crate) act: F,
}

impl<F: Fn() + Send + Sync + 'static> tracing::Subscriber for Listener<F> {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(
            &mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                text += &format!("{value:?} ");
            },
        );
        if text.contains(self.words) {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        (self.act)();
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
