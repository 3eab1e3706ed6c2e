//! What those get who ask together, whatever becomes of their question.
#![allow(clippy::unwrap_used)]

use futures_util::future::join_all;
use futures_util::poll;
use steadfast::{Client, Limits};
use steadfast_drill::process::{Cluster, Redis};

use super::*;
use crate::freshness::Ttl;
use crate::parts::Cache;
use crate::sql::{Database, DatabaseOptions};
use crate::tier::redis::Lookup;

const LONG: Duration = Duration::from_secs(30);

struct World {
    cache: Cache,
    tier: Arc<RedisTier>,
    _folder: tempfile::TempDir,
}

impl World {
    /// A cache over a server whose replies may be so long, with a class of which small values are
    /// known.
    async fn new(redis: &str, reply_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("x.db").display());
        let database = Database::connect(&url, DatabaseOptions::default()).unwrap();
        let limits = Limits {
            total_bytes: reply_bytes,
            ..Limits::default()
        };
        let client = Client::builder(redis).unwrap().reply_limits(limits);
        let client = client.deadline(LONG).connect().await.unwrap();
        let cache = Cache::builder(database)
            .namespace("together")
            .redis(client)
            .redis_limit(LONG)
            .class("user", Ttl::default());
        let cache = cache.build().await.unwrap();
        let tier = cache.inner.redis.clone().unwrap();
        let world = Self {
            cache,
            tier,
            _folder: folder,
        };
        for _ in 0..1000 {
            world.tier.together.note_size(0, 1);
        }
        world
    }

    /// Stores a value of so many letters for each of so many keys.
    async fn store(&self, keys: usize, letters: usize) {
        let users = self.cache.view::<String>("user").unwrap().tag("red");
        for n in 0..keys {
            while !users.put(n, text_of(n, letters)).await.redis {}
        }
    }

    /// Looks at a key, as a reader does that names this tag.
    async fn look(&self, n: usize, epoch_view: EpochView) -> RedisResult<Option<String>> {
        let (key, tags) = (format!("user:{n}"), [b"red".to_vec()]);
        let wanted = Wanted {
            key: key.as_bytes(),
            tags: &tags[..n % 2],
            class: 0,
            asked: clock(),
        };
        let (mut allowance, carries) = (self.tier.allowance(), |_: &[&[u8]]| true);
        let look = self
            .tier
            .look_once(&wanted, epoch_view, &mut allowance, &carries);
        Ok(match look.await? {
            Lookup::Hit(value) => Some(serde_json::from_slice(&value.payload.unwrap()).unwrap()),
            Lookup::Miss(_) => None,
        })
    }

    async fn view(&self) -> EpochView {
        self.tier
            .epoch_view(&mut self.tier.allowance())
            .await
            .unwrap()
    }

    fn shared(&self) -> u64 {
        self.tier.stats.redis_shared.count()
    }

    fn open_number(&self) -> Option<u64> {
        let open = self.tier.together.open.lock();
        open.gathering.as_ref().map(|gathering| gathering.number)
    }

    /// Looks at so many keys at once and holds each answer against what was stored.
    async fn each_gets_its_own(&self, keys: usize, letters: usize) {
        let view = self.view().await;
        let looks = (0..keys + 2).map(|n| self.look(n, view.clone()));
        let looks = tokio::time::timeout(LONG * 2, join_all(looks));
        for (n, found) in looks.await.unwrap().into_iter().enumerate() {
            let stored = (n < keys).then(|| text_of(n, letters));
            assert_eq!(found.unwrap(), stored, "{n}");
        }
    }
}

fn text_of(n: usize, letters: usize) -> String {
    format!("{n:0letters$}")
}

#[tokio::test]
async fn k6_who_asks_together_gets_each_its_own_value() {
    let server = Redis::start().await.unwrap();
    let cluster = Cluster::shared().await.unwrap();
    for url in [server.url(), cluster.url()] {
        let world = World::new(&url, 1 << 30).await;
        world.store(40, 9).await;
        world.each_gets_its_own(40, 9).await;
        let shared = world.shared();
        assert!(shared >= 30, "{shared} of 42 were asked for together");
        // More than go into one question.
        world.store(MOST + 20, 9).await;
        world.each_gets_its_own(MOST + 20, 9).await;
        assert!(world.shared() >= shared + MOST as u64);
    }
}

/// Some go away, and then the task that was to ask.
#[tokio::test]
async fn k3_who_asked_together_asks_alone_if_nobody_asks_for_all() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    world.store(16, 9).await;
    let view = world.view().await;
    for task_ends in [false, true] {
        let before = world.shared();
        let mut looks: Vec<_> = (0..16)
            .map(|n| Box::pin(world.look(n, view.clone())))
            .collect();
        for look in &mut looks {
            assert!(poll!(look).is_pending());
        }
        let number = world.open_number().unwrap();
        looks.truncate(12);
        if task_ends {
            drop(Turn {
                tier: Arc::clone(&world.tier),
                number,
            });
        }
        let found = tokio::time::timeout(LONG * 2, join_all(looks)).await;
        for (n, found) in found.unwrap().into_iter().enumerate() {
            assert_eq!(found.unwrap(), Some(text_of(n, 9)));
        }
        let shared = world.shared() - before;
        assert_eq!(shared == 0, task_ends, "{shared}");
        assert!(shared < 16, "who has gone away is not asked for");
    }
}

/// An answer that is too long for all is not for each, and the connection ends with it.
#[tokio::test]
async fn k2_a_question_for_many_that_fails_is_asked_by_each() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 40 << 10).await;
    let letters = 3 << 10;
    world.store(30, letters).await;
    world.each_gets_its_own(30, letters).await;
    assert_eq!(world.shared(), 0);
    assert!(world.tier.together.are_apart(clock()), "for a while");
}

/// The epoch changes, or the watermark falls, after the readers have come and before Redis is
/// asked. What one of them expects of the watermark Redis has to have reached for all.
#[tokio::test]
async fn k8_who_asks_together_believes_no_redis_that_was_replaced_in_between() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    world.store(16, 9).await;
    let mut redis = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    let begins_anew = ["together:epoch", "another"];
    let falls = ["together:watermark", "-1"];
    for change in [Some(begins_anew), Some(falls), None] {
        let view = world.view().await;
        let ahead = EpochView {
            watermark: view.watermark + 1,
            ..view.clone()
        };
        let view_of = |n| match (n, &change) {
            (9, None) => ahead.clone(),
            _ => view.clone(),
        };
        let before: Vec<Option<String>> = change
            .iter()
            .map(|[name, _]| get(&mut redis, name))
            .collect();
        let mut looks: Vec<_> = (0..16)
            .map(|n| Box::pin(world.look(n, view_of(n))))
            .collect();
        // The first few ask alone.
        let mut together = looks.split_off(SEVERAL);
        for look in looks.iter_mut().chain(&mut together) {
            assert!(poll!(look).is_pending());
        }
        if let Some([name, value]) = change {
            redis::cmd("SET")
                .arg(name)
                .arg(value)
                .exec(&mut redis)
                .unwrap();
        }
        for found in join_all(together).await {
            assert!(matches!(found, Err(RedisFailure::Replaced)), "{found:?}");
        }
        if let (Some([name, _]), Some(Some(value))) = (change, before.first()) {
            redis::cmd("SET")
                .arg(name)
                .arg(value)
                .exec(&mut redis)
                .unwrap();
        }
    }
}

fn get(redis: &mut redis::Connection, name: &str) -> Option<String> {
    redis::cmd("GET").arg(name).query(redis).unwrap()
}

/// One whose task never runs, since its runtime is not driven, holds up nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn k14_who_runs_elsewhere_neither_joins_nor_is_held_up() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    world.store(16, 9).await;
    let elsewhere = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (answer, told) = oneshot::channel();
    let names = Names {
        value: b"x".to_vec(),
        tags: Vec::new(),
    };
    let (reader, view) = (Reader { names, answer }, world.view().await);
    let opened = clock() - OVERDUE * 2;
    let id = elsewhere.handle().id();
    let added = world
        .tier
        .together
        .open
        .lock()
        .add(reader, id, &view, opened);
    assert!(matches!(added, Some(Step::Wait(_))));
    world.each_gets_its_own(16, 9).await;
    assert!(told.await.is_err(), "told to ask alone");
    elsewhere.shutdown_background();
}

#[test]
fn k2_large_values_are_asked_for_alone() {
    let together = Together::new();
    let _looks: Vec<_> = (0..SEVERAL).map(|_| together.looks()).collect();
    let wanted = |class| Wanted {
        key: b"a",
        tags: &[],
        class,
        asked: clock(),
    };
    assert!(!together.invites(&wanted(1)), "nothing is known of it");
    for _ in 0..100 {
        together.note_size(1, 100);
    }
    assert!(together.invites(&wanted(1)));
    together.note_size(1, 1 << 20);
    assert!(!together.invites(&wanted(1)) && !together.invites(&wanted(2)));
    for _ in 0..100 {
        together.note_size(1, 100);
    }
    assert!(!together.invites(&wanted(1)), "it is remembered");
    for _ in 0..1000 {
        together.note_size(1, 100);
    }
    assert!(together.invites(&wanted(1)));
}
