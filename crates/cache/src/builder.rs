//! Settings of a cache, refused once, at the door.

mod check;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use steadfast::Client;

use crate::classes::{Classes, longest_life};
use crate::clock::{clock, is_in_runtime};
use crate::defaults;
use crate::error::BuildError;
use crate::flight::failures::Failures;
use crate::flight::{self, Flights};
use crate::freshness::Ttl;
use crate::guard::{ClassGuard, GuardOptions, LoadAdmission};
use crate::key::bounded;
use crate::outbox::Outbox;
use crate::parts::{Cache, Inner};
use crate::relay::{Relay, RelayOptions, Served};
use crate::sabotage::Sabotage;
use crate::sql::{Database, within};
use crate::stats::Stats;
use crate::tier::coherence::Coherence;
use crate::tier::generation::Generations;
use crate::tier::memory::Memory;
use crate::tier::redis::epoch_guard::{EpochGuard, EpochRules};
use crate::tier::redis::names::Names;
use crate::tier::redis::{RedisOptions, RedisTier, apply_limit};

/// Collects the settings of a [`Cache`].
///
/// ```
/// use std::time::Duration;
/// use steadfast_cache::{Cache, ClassGuard, Database, DatabaseOptions, GuardOptions, Ttl};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
/// let report = Ttl {
///     stale: Duration::ZERO,
///     hard_limit: Duration::from_secs(20),
///     ..Ttl::default()
/// };
/// let cache = Cache::builder(database)
///     .namespace("app")
///     .class("user", Ttl::default())
///     .class("report", report) // never served stale
///     .memory_bytes(128 << 20)
///     .guard(GuardOptions::new(8, 500.0)) // what all loads together may ask of the database
///     .class_guard("report", ClassGuard::new(2, 5.0))
///     .build()
///     .await?;
/// println!("{} loads under way", cache.status().flights);
/// # Ok(()) }
/// ```
#[must_use]
pub struct CacheBuilder {
    pub(crate) database: Database,
    redis: Option<Client>,
    namespace: String,
    classes: Vec<(Box<str>, Ttl)>,
    guard: GuardOptions,
    class_guards: Vec<(Box<str>, ClassGuard)>,
    class_tags: Vec<(Box<str>, Vec<u8>)>,
    memory_bytes: u64,
    value_max: usize,
    compress_above: usize,
    redis_limit: Duration,
    lease_wait: Duration,
    outbox_poll: Duration,
    outbox_lag_max: Duration,
    outbox_rows: u32,
    pending_names: usize,
    seed: Option<u64>,
    sabotage: Sabotage,
}

impl Cache {
    /// Begins a cache over this database. One serves a whole application, however many types it
    /// caches: each is read through a [`view`](Self::view).
    pub fn builder(database: Database) -> CacheBuilder {
        CacheBuilder::new(database)
    }
}

impl CacheBuilder {
    fn new(database: Database) -> Self {
        Self {
            database,
            redis: None,
            namespace: "steadfast".to_owned(),
            classes: Vec::new(),
            guard: GuardOptions::default(),
            class_guards: Vec::new(),
            class_tags: Vec::new(),
            memory_bytes: defaults::MEMORY_BYTES,
            value_max: defaults::VALUE_MAX as usize,
            compress_above: defaults::COMPRESS_ABOVE as usize,
            redis_limit: defaults::REDIS_LIMIT,
            lease_wait: Duration::from_secs(1),
            outbox_poll: defaults::OUTBOX_POLL,
            outbox_lag_max: defaults::OUTBOX_LAG_MAX,
            outbox_rows: 100_000,
            pending_names: 10_000,
            seed: None,
            sabotage: Sabotage::default(),
        }
    }

    /// The Redis that the processes share. In a cluster (`redis-cluster://`, Redis 7 or later) all
    /// of the namespace lies in one slot, so on one shard; the [status](crate::RedisTrust::slot)
    /// says which slot. Without a Redis the cache lives in this process alone: it hears of no
    /// invalidation by another, and **tells no other of its own**, since it writes none into the
    /// outbox, where there might be nobody to take them out. A program that changes what others
    /// cache needs their Redis and their namespace.
    pub fn redis(mut self, client: Client) -> Self {
        self.redis = Some(client);
        self
    }

    /// Prefix of every key in Redis, and the name under which invalidations are kept in SQL.
    /// Default `steadfast`. Two programs with different values must not share one.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Adds a class of data with its times to live.
    pub fn class(mut self, name: impl Into<Box<str>>, ttl: Ttl) -> Self {
        self.classes.push((name.into(), ttl));
        self
    }

    /// Bounds on what is asked of the database.
    pub fn guard(mut self, guard: GuardOptions) -> Self {
        self.guard = guard;
        self
    }

    /// Bounds on what loads of one class may ask of the database, within those of the whole.
    /// Default none of its own. Given twice for a class, the last holds.
    pub fn class_guard(mut self, class: impl Into<Box<str>>, guard: ClassGuard) -> Self {
        self.class_guards.push((class.into(), guard));
        self
    }

    /// Every value of the class carries these tags, whichever view reads it, beside those of the
    /// view ([`View::tag`](crate::View::tag)). May be called repeatedly.
    ///
    /// ```
    /// # use steadfast_cache::{CacheBuilder, Target, Ttl};
    /// # fn f(builder: CacheBuilder) -> CacheBuilder {
    /// // What Target::tag("catalogue") invalidates, of all types in these two classes.
    /// builder
    ///     .class("product", Ttl::default())
    ///     .class("price", Ttl::default())
    ///     .class_tags("product", ["catalogue"])
    ///     .class_tags("price", ["catalogue", "prices"])
    /// # }
    /// ```
    pub fn class_tags<T: AsRef<[u8]>>(
        mut self,
        class: impl Into<Box<str>>,
        tags: impl IntoIterator<Item = T>,
    ) -> Self {
        let class = class.into();
        let tags = tags.into_iter().map(|tag| {
            let tag = bounded(tag.as_ref()).into_owned();
            (class.clone(), tag)
        });
        self.class_tags.extend(tags);
        self
    }

    /// The memory tier holds at most so many bytes of encoded values, keys and overhead. Default 64
    /// MiB. Decoded values may take more than their encoding. It is divided into as many parts as
    /// there are cores times four, as long as each has room for four values of
    /// [`value_max`](Self::value_max); a value finds no room that is longer than its part.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// A value that is longer when encoded is answered but kept in no tier. Default 1 MiB.
    pub fn value_max(mut self, bytes: usize) -> Self {
        self.value_max = bytes;
        self
    }

    /// A value longer than this is compressed in Redis. Default 4 KiB.
    pub fn compress_above(mut self, bytes: usize) -> Self {
        self.compress_above = bytes;
        self
    }

    /// The time that Redis may add to a read, all questions of the read together. Default 100 ms;
    /// never more than half of the class's [`hard_limit`](Ttl::hard_limit).
    /// Waiting for the value that another process is loading is not counted: see
    /// [`lease_wait`](Self::lease_wait). A miss asks two questions, one after the other, so a Redis
    /// that takes more than half of this for each is read but never filled, which
    /// [`Counts::redis_slow`](crate::Counts::redis_slow) counts.
    pub fn redis_limit(mut self, limit: Duration) -> Self {
        self.redis_limit = limit;
        self
    }

    /// A load waits this long for the value of another process that holds the key's lease, before
    /// it asks the database itself. Default 1 s; never more than half of the class's
    /// [`hard_limit`](Ttl::hard_limit), so that the load has time left.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.lease_wait = wait;
        self
    }

    /// Sets how often each process looks for invalidations that were left behind. Default 250 ms;
    /// costs one small query each time.
    pub fn outbox_poll(mut self, every: Duration) -> Self {
        self.outbox_poll = every;
        self
    }

    /// Redis is not read while an invalidation has waited longer than this to be applied to it.
    /// Default 1 s.
    pub fn outbox_lag_max(mut self, lag: Duration) -> Self {
        self.outbox_lag_max = lag;
        self
    }

    /// Rows of the namespace that may wait in the outbox. Default 100 000; in SQL that is some ten
    /// megabytes. Past it one row that invalidates the whole namespace takes the place of all.
    pub fn outbox_rows(mut self, most: u32) -> Self {
        self.outbox_rows = most;
        self
    }

    /// Keys and tags that this process has invalidated and Redis has not yet heard of, kept apart
    /// so that Redis is passed by for these only. Default 10 000; costs about 100 bytes each and
    /// their names. Past it Redis is passed by for every key until all are applied.
    pub fn pending_names(mut self, most: usize) -> Self {
        self.pending_names = most;
        self
    }

    /// Makes the random choices (jitter, tokens) repeat themselves, for a test. Processes that
    /// share a Redis must not share a seed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Breaks one rule, to prove that the rule is needed.
    #[cfg(any(test, feature = "sabotage"))]
    #[doc(hidden)]
    pub fn sabotage(mut self, sabotage: Sabotage) -> Self {
        self.sabotage = sabotage;
        self
    }

    /// Builds the cache. Neither Redis nor the database need be there: a database that hangs is
    /// waited for a second, and proof of what is in memory for twice
    /// [`redis_limit`](Self::redis_limit), at most. Must be called within a tokio runtime that has
    /// time and I/O (`enable_all`); so must whatever is asked of the cache within one. tokio panics
    /// where a runtime lacks them, and nobody can ask it before.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that cannot be, or says that there is no runtime.
    pub async fn build(self) -> Result<Cache, BuildError> {
        self.check()?;
        if !is_in_runtime() {
            return Err(BuildError::NoRuntime);
        }
        let seed = self.seed.unwrap_or_else(entropy);
        let stats = Arc::new(Stats::new());
        // Longer than applying may take, so that only a relay that has fallen silent is cut off.
        let hold = apply_limit(self.redis_limit) + Duration::from_secs(1);
        let outbox = Outbox::new(&self.database, &self.namespace, hold, entropy());
        let redis = self.redis.as_ref().map(|client| {
            let tier_seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            Arc::new(self.redis_tier(client, tier_seed, &outbox, &stats))
        });
        let coherence = Arc::new(match &redis {
            Some(_) => Coherence::unproven(),
            None => Coherence::alone(),
        });
        let guard = self.load_admission();
        let relay = redis.clone().map(|redis| {
            let served = Served {
                redis,
                coherence: coherence.clone(),
                guard: guard.clone(),
                stats: stats.clone(),
            };
            Arc::new(Relay::new(outbox, served, &self.relay_options()))
        });
        if let Some(relay) = &relay
            // In a box: what embeds this future, and that of who embeds it, would else nest deeper
            // than the compiler follows.
            && let Err(error) = Box::pin(within(START_LIMIT, relay.prepare())).await
        {
            tracing::warn!(%error, "the outbox's tables cannot be made yet");
        }
        crate::monotonic::counter::prepare();
        let inner = Inner {
            classes: Classes::new(&self.classes, &self.class_tags),
            memory: Memory::new(self.memory_bytes, self.value_max),
            generations: Generations::new(),
            flights: Arc::new(Flights::new(flight::JoinRules {
                detach: !self.sabotage.flight_not_detached,
                heed_age: !self.sabotage.flight_age_ignored,
            })),
            failures: Failures::new(),
            guard,
            coherence,
            redis,
            relay,
            database: self.database,
            value_max: self.value_max,
            lease_wait: self.lease_wait,
            draws: seed.into(),
            stats,
            sabotage: self.sabotage,
            views: AtomicU64::new(0),
            under_way: Arc::default(),
            upkeep: Arc::default(),
            gone: tokio::sync::watch::Sender::default(),
        };
        let cache = Cache::start(inner);
        cache.settle(self.redis_limit * 2).await;
        Ok(cache)
    }

    fn redis_tier(
        &self,
        client: &Client,
        seed: u64,
        outbox: &Outbox,
        stats: &Arc<Stats>,
    ) -> RedisTier {
        let options = RedisOptions {
            names: Names::new(&self.namespace, client.is_cluster()),
            limit: self.redis_limit,
            value_max: self.value_max,
            compress_above: self.compress_above,
            longest_life: longest_life(&self.classes),
            seed,
            lease_checked: !self.sabotage.lease_unchecked,
        };
        let epochs = EpochGuard::new(EpochRules {
            heed_watermark: !self.sabotage.watermark_ignored,
            await_sql: !self.sabotage.sql_not_awaited,
            heed_rollback: !self.sabotage.rollback_ignored && !self.sabotage.outbox_off,
        });
        let (outbox, stats) = (outbox.clone(), Arc::clone(stats));
        RedisTier::new(client.clone(), options, (epochs, outbox), stats)
    }

    fn load_admission(&self) -> LoadAdmission {
        let guard_of = |name: &str| {
            let mut given = self.class_guards.iter();
            let own = given.rfind(|(class, _)| **class == *name);
            own.map(|(_, guard)| *guard)
        };
        let classes = self.classes.iter().map(|(name, _)| guard_of(name));
        // One more for classes that are added later.
        let class_bounds: Vec<_> = classes.chain([None]).collect();
        // More loads than connections would only wait there, out of order and out of sight.
        let mut bounds = self.guard.clone();
        bounds.concurrency = bounds.concurrency.min(self.database.width());
        LoadAdmission::new(&bounds, &class_bounds, clock())
    }

    fn relay_options(&self) -> RelayOptions {
        RelayOptions {
            poll: self.outbox_poll,
            lag_max: self.outbox_lag_max,
            rows_max: i64::from(self.outbox_rows),
            pending_names: self.pending_names,
        }
    }
}

/// A cache is built no later, even if its database hangs.
const START_LIMIT: Duration = Duration::from_secs(1);

/// A seed from the operating system, by way of the standard library's hash keys.
fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}
