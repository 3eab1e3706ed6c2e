//! What those get who ask together, whatever becomes of their question.
#![allow(clippy::unwrap_used)]

/// Values that somebody else has changed or moved, and a server that answers in part.
mod from_outside;

use std::time::Instant;

use futures_util::future::{Either, join_all, select};
use futures_util::poll;
use steadfast::{Client, Limits};
use steadfast_drill::process::{Cluster, Redis};
use steadfast_drill::waiting::until;
use tokio::sync::oneshot;

use super::gathering::OVERDUE;
use super::question::refusal_of_the_values;
use super::seats::Seats;
use super::*;
use crate::clock::clock;
use crate::freshness::Ttl;
use crate::parts::Cache;
use crate::sql::{Database, DatabaseOptions};
use crate::tier::redis::Lookup;
use crate::tier::redis::envelope::{Envelope, UNSTAMPED, is_unstamped, payload_end, stamp};

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
        Self::within(LONG, redis, reply_bytes).await
    }

    /// One that may spend so long on Redis.
    async fn within(limit: Duration, redis: &str, reply_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("x.db").display());
        let database = Database::connect(&url, DatabaseOptions::default()).unwrap();
        Self::over(database, limit, redis, reply_bytes, folder).await
    }

    /// One over this database.
    async fn over(
        database: Database,
        limit: Duration,
        redis: &str,
        reply_bytes: usize,
        folder: tempfile::TempDir,
    ) -> Self {
        let limits = Limits {
            total_bytes: reply_bytes,
            ..Limits::default()
        };
        let client = Client::builder(redis).unwrap().reply_limits(limits);
        let client = client.deadline(LONG).connect().await.unwrap();
        let cache = Cache::builder(database)
            .namespace("together")
            .redis(client)
            .redis_limit(limit)
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
        // A busy machine could have the thread send anybody away, so that nothing would be shared.
        world.set_watched(true);
        world
    }

    fn set_watched(&self, pretended: bool) {
        self.tier.together.open.lock().watch.pretend(pretended);
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
        Ok(match self.look_up(n, epoch_view).await? {
            Lookup::Hit(value) => Some(serde_json::from_slice(&value.payload.unwrap()).unwrap()),
            Lookup::Miss(_) => None,
        })
    }

    async fn look_up(&self, n: usize, epoch_view: EpochView) -> RedisResult<Lookup> {
        let (key, tags) = (format!("user:{n}"), [b"red".to_vec()]);
        let wanted = Wanted {
            key: key.as_bytes(),
            tags: &tags[..n % 2],
            class: 0,
        };
        let (mut allowance, carries) = (self.tier.allowance(), |_: &[&[u8]]| true);
        let look = self
            .tier
            .look_once(&wanted, epoch_view, &mut allowance, &carries);
        look.await
    }

    /// Looks at so many keys at once, and returns the ages of their values.
    async fn ages(&self, keys: usize) -> Vec<Option<Duration>> {
        let view = self.view().await;
        let looks = (0..keys).map(|n| self.look_up(n, view.clone()));
        let looks = tokio::time::timeout(LONG * 2, join_all(looks)).await;
        let age = |found: RedisResult<Lookup>| match found.unwrap() {
            Lookup::Hit(value) => Some(value.age),
            Lookup::Miss(_) => None,
        };
        looks.unwrap().into_iter().map(age).collect()
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

/// Nothing that could be compressed.
fn text_of(n: usize, letters: usize) -> String {
    let mut random = fastrand::Rng::with_seed(n as u64);
    let text = (0..letters).map(|_| random.alphanumeric());
    text.collect()
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
        // In the room that others have left.
        for _ in 0..3 {
            world.each_gets_its_own(MOST + 20, 9).await;
            let kept = world.tier.together.open.lock().kept();
            assert!((1..4).contains(&kept), "{kept}");
        }
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

/// A reply that is too long ends the connection, with every other call on it.
#[tokio::test]
async fn k2_no_more_ask_together_than_the_client_takes_the_values_of() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 40 << 10).await;
    let letters = 3 << 10;
    world.store(60, letters).await;
    world.each_gets_its_own(60, letters).await;
    assert!(world.shared() >= 20, "{}", world.shared());
    assert_eq!(world.tier.stats.redis_errors.count(), 0);
}

/// Values have grown meanwhile: an answer is too long for all that is not for each, and the
/// connection ends with it. That must not come again and again.
#[tokio::test]
async fn k2_a_question_for_many_that_is_answered_too_long_is_asked_by_each_from_then_on() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 40 << 10).await;
    let letters = 16 << 10;
    world.store(30, letters).await;
    world.each_gets_its_own(30, letters).await;
    assert!(world.tier.stats.redis_errors.count() > 0);
    let for_good = Monotonic::now().plus(Duration::from_secs(1 << 30).into());
    assert!(world.tier.together.are_apart(for_good));
}

/// A slot is in motion, and a single key is not there: that holds up whoever shares a question
/// with it, but not for so long that each could not be answered by itself.
#[tokio::test]
async fn k2_a_slot_in_motion_holds_up_no_hit_for_want_of_anothers_key() {
    let cluster = Cluster::shared().await.unwrap();
    let limit = LONG / 3;
    let world = World::within(limit, &cluster.url(), 1 << 30).await;
    world.store(16, 9).await;
    let view = world.view().await;
    let slots = [world.tier.slot().unwrap()];
    let from = cluster.owner(slots[0]).await.unwrap();
    let to = if from == 0 { 1 } else { 0 };
    cluster.begin_migration(&slots, from, to).await.unwrap();
    let began = clock();
    let mut looks: Vec<_> = (0..17)
        .map(|n| Box::pin(world.look(n, view.clone())))
        .collect();
    for look in &mut looks {
        assert!(poll!(look).is_pending());
    }
    let is_not_there = looks.pop().unwrap();
    assert!(world.open_number().is_some());
    let found = match select(join_all(looks), is_not_there).await {
        Either::Left((found, _)) => found,
        Either::Right((_, found)) => found.await,
    };
    let took = clock() - began;
    cluster.move_keys(&slots, from, to, 1 << 20).await.unwrap();
    cluster.end_migration(&slots, from, to).await.unwrap();
    for (n, found) in found.into_iter().enumerate() {
        assert_eq!(found.unwrap(), Some(text_of(n, 9)), "{n}");
    }
    assert!(took < limit * 3 / 4, "{took:?}");
    // What was refused to all. A second later, on a busy machine, some may have asked together.
    assert!(world.shared() < 16, "{}", world.shared());
}

/// The time is over in which a question could have been answered.
#[tokio::test]
async fn k2_nothing_is_asked_for_those_that_have_waited_too_long() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    let seats = Seats::with_capacity(1);
    let seated = seats.take();
    let reader = Reader {
        seat: 0,
        value: 0..1,
        tags: Vec::new(),
    };
    let gathering = Gathering {
        number: 0,
        began: Monotonic::now().minus((LONG * 2).into()),
        runtime: Handle::current().id(),
        epoch_view: world.view().await,
        room: Room {
            readers: vec![reader],
            names: b"x".to_vec(),
            seats,
        },
    };
    Arc::clone(&world.tier).ask_for_all(gathering).await;
    assert!(seated.await.is_none());
    assert_eq!(world.shared(), 0, "nobody was asked");
}

/// Who has asked Redis something already has less time than others; a gathering that is late, or
/// full, is closed by the next reader.
#[tokio::test]
async fn k2_who_has_asked_before_asks_alone_and_who_comes_late_closes() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    let view = world.view().await;
    let _looks: Vec<_> = (0..SEVERAL).map(|_| world.tier.together.looks()).collect();
    let wanted = Wanted {
        key: b"user:1",
        tags: &[],
        class: 0,
    };
    for (took, gathers) in [(Some(1), false), (Some(0), false), (None, true)] {
        let (mut allowance, carries) = (world.tier.allowance(), |_: &[&[u8]]| true);
        if let Some(took) = took {
            allowance.charge(Duration::from_millis(took));
        }
        let look = world
            .tier
            .look_once(&wanted, view.clone(), &mut allowance, &carries);
        assert!(poll!(Box::pin(look)).is_pending());
        assert_eq!(world.open_number().is_some(), gathers);
    }
    let (mut open, came) = (Open::default(), Monotonic::now());
    let mut add = |after: Duration| {
        let newcomer = Newcomer {
            wanted: &wanted,
            epoch_view: &view,
            came: came.plus(after.into()),
            runtime: Handle::current().id(),
        };
        let added = open.add(&newcomer, &world.tier.names, 4);
        added.map(|(step, _)| step)
    };
    let (at_once, late) = (Duration::ZERO, OVERDUE * 2);
    assert!(matches!(add(at_once), Some(Step::Wait(0))));
    assert!(matches!(add(OVERDUE), Some(Step::None)));
    assert!(matches!(add(late), Some(Step::Ask(0))));
    assert!(matches!(add(at_once), Some(Step::Wait(1))));
    assert!(matches!(add(at_once), Some(Step::None)));
    assert!(matches!(add(at_once), Some(Step::None)));
    assert!(matches!(add(at_once), Some(Step::Ask(1))), "many");
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
    // Once: the cache may notice a change too, begin another epoch and believe in that.
    let view = world.view().await;
    for change in [Some(begins_anew), Some(falls), None] {
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

/// Reads, changes and writes a value in Redis, for so many ms.
fn change(world: &World, redis: &mut redis::Connection, n: usize, by: impl Fn(&mut Vec<u8>)) {
    let epoch = world.tier.epoch_guard.epoch().unwrap();
    let name = world
        .tier
        .names
        .value(&epoch, format!("user:{n}").as_bytes());
    let (mut bytes, left): (Vec<u8>, u64) =
        redis::pipe().get(&name).pttl(&name).query(redis).unwrap();
    by(&mut bytes);
    let mut set = redis::cmd("SET");
    set.arg(name).arg(bytes).arg("PX").arg(left);
    set.exec(redis).unwrap();
}

/// By its stamp and the time, or by the time that it has left; also if an earlier program has
/// written it, without a stamp.
#[tokio::test]
async fn k10_who_asks_together_is_told_the_same_age_as_who_asks_alone() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    let mut redis = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    let before = clock();
    world.store(16, 9).await;
    let stored = clock();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let is_right = |age: &Option<Duration>, asked: Instant, slack: Duration| {
        let age = age.unwrap();
        age + slack >= asked - stored && age <= clock() - before + slack
    };
    let slack = Duration::from_millis(50);
    let (asked, shared) = (clock(), world.shared());
    let together = world.ages(16).await;
    assert!(world.shared() >= shared + 10);
    let alone = world.ages(1).await;
    for age in together.iter().chain(&alone) {
        assert!(is_right(age, asked, slack), "{age:?}");
    }
    // As an earlier program writes it.
    for n in (0..16).step_by(2) {
        change(&world, &mut redis, n, |bytes| {
            assert!(!is_unstamped(bytes));
            bytes.truncate(payload_end(bytes));
            bytes[0] = UNSTAMPED;
        });
    }
    let together = &world.tier.together;
    assert!(together.are_stamped(Monotonic::now()));
    for _ in 0..2 {
        let (asked, shared) = (clock(), world.shared());
        for age in world.ages(16).await {
            assert!(is_right(&age, asked, slack), "{age:?}");
        }
        assert!(world.shared() >= shared + 10);
        let now = Monotonic::now();
        let later = now.plus(REMEMBERED.into());
        assert!(!together.are_stamped(now) && together.are_stamped(later));
    }
    world.each_gets_its_own(16, 9).await;
}

/// The script writes the moment at which Redis lets the value expire.
#[tokio::test]
async fn k10_a_stamp_is_the_moment_at_which_redis_lets_the_value_expire() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    world.store(1, 9).await;
    let mut redis = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    let epoch = world.tier.epoch_guard.epoch().unwrap();
    let name = world.tier.names.value(&epoch, b"user:0");
    let (bytes, expires): (Vec<u8>, u64) = redis::pipe()
        .get(&name)
        .cmd("PEXPIRETIME")
        .arg(&name)
        .query(&mut redis)
        .unwrap();
    let stamp = Envelope::decode(&bytes, 1 << 20).unwrap().expires.unwrap();
    assert!(stamp.abs_diff(expires) < 1000, "{stamp} {expires}");
}

/// What is to expire later than it ever could is not believed, as if Redis's clock was set back;
/// what should have expired is as old as it can be.
#[tokio::test]
async fn k10_a_stamp_that_cannot_be_is_not_believed() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    world.store(16, 9).await;
    let mut redis = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    let hour = 3_600_000;
    for n in 8..16 {
        change(&world, &mut redis, n, |bytes| {
            let expires = Envelope::decode(bytes, 1 << 20).unwrap().expires.unwrap();
            let expires = if n % 2 == 0 {
                expires + hour
            } else {
                expires - hour * 9
            };
            stamp(bytes, expires);
        });
    }
    let keep = Ttl::default().fresh + Ttl::default().stale;
    let ages = world.ages(16).await;
    for (n, age) in ages.into_iter().enumerate().skip(8) {
        match n % 2 {
            0 => assert_eq!(age, None, "{n}"),
            // Shortened by jitter.
            _ => assert!(age.unwrap() > keep * 8 / 10, "{n}: {age:?}"),
        }
    }
}

/// Nothing is lost but what it saves to ask the time once.
#[tokio::test]
async fn k6_a_redis_that_may_not_be_asked_the_time_is_asked_for_what_is_left() {
    let server = Redis::start().await.unwrap();
    for words in ["ACL SETUSER default -time", "ACL LOG RESET"] {
        let words: Vec<_> = words.split(' ').collect();
        server.command(&words).await.unwrap();
    }
    let world = World::new(&server.url(), 1 << 30).await;
    world.store(16, 9).await;
    world.each_gets_its_own(16, 9).await;
    assert_eq!(world.shared(), 0);
    let together = &world.tier.together;
    let asked_alone = "a question has failed, and none is shared for a second";
    until(asked_alone, || !together.are_apart(Monotonic::now())).await;
    assert!(!together.are_stamped(Monotonic::now()));
    world.each_gets_its_own(16, 9).await;
    assert!(world.shared() >= 10);
}

/// Their task has just been made, on a thread that something else occupies then, where no other
/// thread can take it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_nobody_waits_for_a_task_that_stands_behind_another() {
    let server = Redis::start().await.unwrap();
    let world = Arc::new(World::new(&server.url(), 1 << 30).await);
    world.set_watched(false);
    world.store(16, 9).await;
    let view = world.view().await;
    let (over, end) = std::sync::mpsc::channel::<()>();
    let (hand_out, handed) = oneshot::channel();
    let readers = Arc::clone(&world);
    let occupied = tokio::spawn(async move {
        let looks = (0..16).map(|n| {
            let (world, view) = (Arc::clone(&readers), view.clone());
            Box::pin(async move { world.look(n, view).await })
        });
        let mut looks: Vec<_> = looks.collect();
        for look in &mut looks {
            assert!(poll!(look).is_pending());
        }
        assert!(readers.tier.together.open.lock().next > 0);
        assert!(hand_out.send(looks).is_ok());
        let _ = end.recv();
    });
    let looks = tokio::time::timeout(LONG * 2, join_all(handed.await.unwrap())).await;
    drop(over);
    for (n, found) in looks.expect("they wait").into_iter().enumerate() {
        assert_eq!(found.unwrap(), Some(text_of(n, 9)));
    }
    occupied.await.unwrap();
    until("the thread has nothing left to look at", || {
        !world.tier.together.open.lock().watch.is_watched()
    })
    .await;
    world.each_gets_its_own(16, 9).await;
}

/// Neither those that are in it, nor those that look at Redis meanwhile in another.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn k2_nobody_waits_for_a_runtime_that_is_entered_and_not_driven() {
    let server = Redis::start().await.unwrap();
    let world = Arc::new(World::new(&server.url(), 1 << 30).await);
    world.set_watched(false);
    world.store(16, 9).await;
    let not_driven = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (over, end) = oneshot::channel();
    let (entered, here) = (not_driven.handle().clone(), Handle::current());
    let (readers, view) = (Arc::clone(&world), world.view().await);
    std::thread::spawn(move || {
        let looks = here.block_on(async {
            let _entered = entered.enter();
            join_all((0..MOST * 3).map(|n| readers.look(n % 16, view.clone()))).await
        });
        let _ = over.send(looks);
    });
    world.each_gets_its_own(16, 9).await;
    let looks = tokio::time::timeout(LONG * 2, end).await;
    for (n, found) in looks.expect("they wait").unwrap().into_iter().enumerate() {
        assert_eq!(found.unwrap(), Some(text_of(n % 16, 9)));
    }
    not_driven.shutdown_background();
}

#[test]
fn k2_large_values_are_asked_for_alone() {
    let together = Together::new(1 << 30);
    let _looks: Vec<_> = (0..SEVERAL).map(|_| together.looks()).collect();
    let wanted = |class| Wanted {
        key: b"a",
        tags: &[],
        class,
    };
    assert!(!together.invites(&wanted(1)), "nothing is known of it");
    for _ in 0..100 {
        together.note_size(1, 100);
    }
    assert!(together.invites(&wanted(1)));
    let red = vec![b"red".to_vec(); FEW_TAGS + 1];
    for tags in [&red[1..], &red[..]] {
        let invited = together.invites(&Wanted { tags, ..wanted(1) });
        assert_eq!(invited, tags.len() <= FEW_TAGS);
    }
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

/// Such a server tells the time all the same.
#[test]
fn k2_a_server_that_loads_its_data_is_not_asked_again_by_each_who_asked_together() {
    let decoded = |reply: &str| {
        let mut decoder = steadfast_core::resp::Decoder::default();
        let decoded = decoder.decode(format!("{reply}\r\n").as_bytes());
        decoded.unwrap().value.unwrap()
    };
    let time = decoded("*2\r\n$1\r\n1\r\n$1\r\n2");
    for (reply, failure) in [
        (
            "-LOADING Redis is loading the dataset in memory",
            Some(true),
        ),
        ("-MASTERDOWN Link with MASTER is down", Some(true)),
        ("-BUSY Redis is busy running a script", Some(true)),
        ("-NOPERM this user has no permissions", Some(false)),
        ("*1\r\n$1\r\n1", None),
    ] {
        let refusal = refusal_of_the_values(&[time.clone(), decoded(reply)]);
        assert_eq!(refusal.as_ref().map(Option::is_some), failure, "{reply}");
        let is_passed_by = refusal
            .flatten()
            .is_some_and(|failure| failure.is_of_the_server());
        assert_eq!(is_passed_by, failure == Some(true), "{reply}");
    }
}
