//! What an answer is worth that another server gives than the one that was asked; and what Redis
//! cannot know of a value that is put or warmed.
#![allow(clippy::unwrap_used)]

use futures_util::FutureExt;
use steadfast_drill::process::Cluster;
use steadfast_drill::waiting::until;

use super::*;
use crate::answer::Source;
use crate::freshness::Ttl;
use crate::parts::Cache;
use crate::read::put::Put;
use crate::read::view::View;
use crate::read::warm::Warmed;
use crate::sql::{Database, DatabaseOptions};

fn wanted() -> Wanted<'static> {
    Wanted {
        key: b"a",
        tags: &[],
        class: 0,
    }
}

async fn cache_of(folder: &tempfile::TempDir, redis: &str) -> Cache {
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = Database::connect(&url, DatabaseOptions::default()).unwrap();
    let client = Client::builder(redis).unwrap();
    let client = client.deadline(Duration::from_secs(10)).connect().await;
    let cache = Cache::builder(database)
        .namespace("test")
        .redis(client.unwrap())
        .redis_limit(Duration::from_secs(10))
        .class("user", Ttl::default());
    cache.build().await.unwrap()
}

/// As when a replica has just been elected that lags: the question is redirected to it, while it is
/// under way, by the one that was believed in.
#[tokio::test]
async fn k8_what_another_server_answers_than_was_believed_in_is_not_believed() {
    let cluster = Cluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_of(&folder, &cluster.url()).await;
    let redis = cache.inner.redis.clone().unwrap();
    let slot = redis.slot().unwrap();
    let epoch_view = redis.epoch_view(&mut redis.allowance()).await.unwrap();
    let look = async || {
        let (wanted, epoch_view) = (wanted(), epoch_view.clone());
        let carries = |_: &[&[u8]]| true;
        let mut allowance = redis.allowance();
        let looked = redis.look_once(&wanted, epoch_view, &mut allowance, &carries);
        looked.await
    };
    assert!(matches!(look().await, Ok(Lookup::Miss(_))));
    let from = cluster.owner(slot).await.unwrap();
    cluster.migrate(slot, from, (from + 1) % 3).await.unwrap();
    let looked = look().await;
    assert!(
        matches!(looked, Err(RedisFailure::Replaced)),
        "{:?}",
        looked.map(|_| ())
    );
    // Whoever looks as readers do finds out what to believe of the new one, and asks that.
    let (mut allowance, carries) = (redis.allowance(), |_: &[&[u8]]| true);
    let wanted = wanted();
    let looked = redis.look(&wanted, &mut allowance, &carries).await;
    assert!(matches!(looked, Ok(Lookup::Miss(_))));
}

/// Another process has everything invalidated between a reader's look and its lease, and this was
/// the last read for a long time.
#[tokio::test]
async fn k16_a_last_reader_that_finds_another_epoch_leaves_no_doubt_behind() {
    let server = steadfast_drill::process::Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_of(&folder, &server.url()).await;
    let redis = cache.inner.redis.clone().unwrap();
    let (mut allowance, carries) = (redis.allowance(), |_: &[&[u8]]| true);
    let looked = redis.look(&wanted(), &mut allowance, &carries).await;
    let Ok(Lookup::Miss(missed)) = looked else {
        panic!("nothing is there");
    };
    let another = redis.new_epoch();
    let begin = ["SET", "test:epoch", &another];
    server.command(&begin).await.unwrap();
    let life = Duration::from_secs(10);
    let lease = redis.take_lease(b"a", &[], &missed.seen, life, false, &mut allowance);
    assert!(lease.await.is_err(), "it is of the epoch that was");
    until("the new one is believed in", || {
        redis
            .epoch_guard
            .epoch()
            .is_some_and(|epoch| *epoch == *another)
    })
    .await;
}

/// Redis knows what is invalidated after it was asked, and this process what it heard of before.
#[tokio::test]
async fn k6_what_is_invalidated_before_redis_is_asked_is_not_put() {
    let server = steadfast_drill::process::Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_of(&folder, &server.url()).await;
    let users = cache.view::<String>("user").unwrap().tag("red");
    let generations = &cache.inner.generations;
    let invalidations: [&dyn Fn(); 3] = [
        &|| generations.bump_key(b"user:7"),
        &|| generations.bump_tag(b"red"),
        &|| generations.clear(),
    ];
    for invalidate in invalidations {
        let mut put = Box::pin(users.put(7, "Ada".to_owned()));
        assert!((&mut put).now_or_never().is_none(), "Redis is asked");
        invalidate();
        assert!(!put.await.redis);
        cache.inner.memory.remove(b"user:7");
        assert!(users.peek(7).await.is_none());
        assert!(users.put(7, "Ada".to_owned()).await.redis);
        let removed = cache.inner.redis.as_ref().unwrap().remove(b"user:7");
        removed.await.unwrap();
    }
}

/// How many scripts Redis has run.
async fn scripts(server: &steadfast_drill::process::Redis) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).await.unwrap();
    let stats: String = redis::from_redis_value(stats).unwrap();
    let of_eval = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_eval:calls="));
    let calls = of_eval.and_then(|fields| fields.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

/// A process that does not know under which tags another has stored what it puts.
struct Replacing {
    server: steadfast_drill::process::Redis,
    folder: tempfile::TempDir,
    other: Cache,
    cache: Cache,
}

impl Replacing {
    async fn start() -> Self {
        let server = steadfast_drill::process::Redis::start().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let other = cache_of(&folder, &server.url()).await;
        let cache = cache_of(&folder, &server.url()).await;
        let tagged = other.view::<String>("user").unwrap().tag("red");
        let load = || async { Ok(Some("old".to_owned())) };
        tagged.get(7, load).await.unwrap();
        other.finish_loads(Duration::from_secs(60)).await;
        Self {
            server,
            folder,
            other,
            cache,
        }
    }

    fn users(&self) -> View<String> {
        self.cache.view("user").unwrap()
    }

    /// Puts, and acts when so many of the scripts have been run that this takes: the window, the
    /// look at what is there, the tokens of its tags, the fill.
    async fn act_after<F: Future<Output = ()>>(&self, scripts_run: u64, act: F) -> Put {
        let users = self.users();
        let put = users.put(7, "new".to_owned());
        self.act_during(put, scripts_run, act).await
    }

    /// Warms, and acts likewise.
    async fn act_while_warming(&self, scripts_run: u64, act: impl Future<Output = ()>) -> Warmed {
        let users = self.users();
        let warming = users.warm(|| async { Ok([(7, "new".to_owned())]) });
        self.act_during(warming, scripts_run, act).await.unwrap()
    }

    async fn act_during<T>(
        &self,
        work: impl Future<Output = T>,
        scripts_run: u64,
        act: impl Future<Output = ()>,
    ) -> T {
        let before = scripts(&self.server).await;
        let mut work = Box::pin(work);
        while scripts(&self.server).await < before + scripts_run {
            if let Some(ended) = (&mut work).now_or_never() {
                assert_eq!(scripts(&self.server).await, before + scripts_run);
                act.await;
                return ended;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        act.await;
        work.await
    }

    async fn invalidate_red(&self) {
        self.invalidate("red").await;
    }

    /// The tag is invalidated by the other process, and this one hears of it.
    async fn invalidate(&self, tag: &str) {
        let stripes = self.cache.inner.generations.tag_stripes(&[tag]);
        let target = crate::target::Target::tag(tag);
        self.other.invalidate(&[target]).await.unwrap();
        until("it is heard of", || {
            !self.cache.inner.generations.tags_are_current(&stripes)
        })
        .await;
    }
}

/// The tag is invalidated
/// - before the fill: Redis has it in its log and refuses. Whether this process heard of it before
///   it looked at the counters (then they show nothing, so memory gives the value up too) or after
///   (then they do) makes no difference;
/// - after the fill: its token is another in Redis, and this process hears of it.
#[tokio::test]
async fn k11_a_tag_that_is_found_in_redis_governs_what_is_put_from_then_on() {
    for scripts_run in 1..=4 {
        let site = Replacing::start().await;
        let put = site.act_after(scripts_run, site.invalidate_red()).await;
        assert_eq!(put.redis, scripts_run == 4, "{scripts_run}");
        let third = cache_of(&site.folder, &site.server.url()).await;
        for view in [site.users(), third.view("user").unwrap()] {
            assert!(view.peek(7).await.is_none(), "{scripts_run}");
        }
    }
}

/// Of what this process has invalidated itself Redis may not have heard yet, so its tokens say that
/// nothing has happened.
#[tokio::test]
async fn k11_what_is_put_does_not_outlive_a_tag_found_in_redis_that_waits_to_be_invalidated() {
    let site = Replacing::start().await;
    let relay = site.cache.inner.relay.as_ref().unwrap();
    let red = [crate::target::Target::tag("red")];
    relay.pending.add(&red, u64::MAX);
    let put = site.users().put(7, "new".to_owned()).await;
    assert!(!put.memory && !put.redis, "{put:?}");
    assert!(site.users().peek(7).await.is_none());
}

/// The value was loaded before, and is known to carry the tag only once Redis has been looked at.
#[tokio::test]
async fn k11_a_tag_that_is_found_in_redis_governs_what_was_warmed_before() {
    let site = Replacing::start().await;
    let warmed = site.act_while_warming(1, site.invalidate_red()).await;
    assert_eq!((warmed.memory, warmed.redis), (0, 0));
    assert!(site.users().peek(7).await.is_none());
}

/// Its tags are not known.
#[tokio::test]
async fn k11_what_is_warmed_does_not_take_the_place_of_what_came_since_it_looked() {
    let site = Replacing::start().await;
    let comes = async {
        let blue = site.other.view::<String>("user").unwrap().tag("blue");
        let load = || async { Ok(Some("blue".to_owned())) };
        blue.refresh(7, load).await.unwrap();
        site.other.finish_loads(Duration::from_secs(60)).await;
    };
    let warmed = site.act_while_warming(2, comes).await;
    assert_eq!((warmed.memory, warmed.redis), (0, 0));
    let third = cache_of(&site.folder, &site.server.url()).await;
    let held = third.view::<String>("user").unwrap().peek(7).await.unwrap();
    assert_eq!(held.value.as_deref(), Some("blue"));
}

/// It was invalidated, and heard of, before this process knew that the value carries it. If Redis
/// does not say whether that was so, memory does not hold the value.
#[tokio::test]
async fn k11_what_is_put_under_a_tag_that_may_have_been_invalidated_stays_only_if_redis_takes_it() {
    let site = Replacing::start().await;
    let (memory, generations) = (&site.cache.inner.memory, &site.cache.inner.generations);
    let is_held = || memory.get::<&str>(b"user:7", &[], generations).is_some();
    let before = scripts(&site.server).await;
    let users = site.users();
    let mut put = Box::pin(users.put(7, "new".to_owned()));
    while scripts(&site.server).await == before {
        assert!((&mut put).now_or_never().is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(is_held(), "at once");
    site.invalidate_red().await;
    while is_held() && (&mut put).now_or_never().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(put);
    assert!(!is_held());
}

#[tokio::test]
async fn k11_what_is_put_while_another_tag_is_invalidated_is_in_memory_once_redis_has_taken_it() {
    let site = Replacing::start().await;
    let put = site.act_after(1, site.invalidate("another")).await;
    assert!(put.memory && put.redis, "{put:?}");
    let held = site.users().peek(7).await.unwrap();
    assert_eq!(held.source, Source::Memory);
}

/// It is stored after the look at Redis, which does not know of it.
#[tokio::test]
async fn k11_what_is_put_carries_the_tags_of_what_came_into_memory_meanwhile() {
    let site = Replacing::start().await;
    let comes = async {
        let blue = site.users().tag("blue");
        let load = || async { Ok(Some("blue".to_owned())) };
        blue.get(7, load).await.unwrap();
    };
    let put = site.act_after(2, comes).await;
    assert!(put.memory, "{put:?}");
    let held = site.users().peek(7).await.unwrap();
    assert_eq!(held.value.as_deref(), Some("new"));
    site.invalidate("blue").await;
    assert!(site.users().peek(7).await.is_none());
}

/// A reader that began while the value was put, and is answered after it.
#[tokio::test]
async fn k6_a_reader_that_is_answered_after_a_put_has_found_the_tags_does_not_bring_the_old_back() {
    let site = Replacing::start().await;
    let generations = &site.cache.inner.generations;
    let mut begun = None;
    let begins = async { begun = Some(generations.snapshot(b"user:7", &["red"])) };
    let put = site.act_after(1, begins).await;
    assert!(put.memory && put.redis, "{put:?}");
    assert!(!generations.is_current(&begun.unwrap()));
}

/// It names the tag, so that it is not content with what was put first.
#[tokio::test]
async fn k6_a_reader_that_finds_in_redis_what_is_being_replaced_does_not_bring_it_back() {
    for scripts_run in 1..=2 {
        let site = Replacing::start().await;
        let reads = async {
            let tagged = site.users().tag("red");
            tagged.peek(7).await.expect("it is there yet");
        };
        let put = site.act_after(scripts_run, reads).await;
        assert!(put.memory && put.redis, "{scripts_run}");
        let held = site.users().peek(7).await.unwrap();
        assert_eq!(held.value.as_deref(), Some("new"), "{scripts_run}");
    }
}

#[tokio::test]
async fn k6_a_put_that_is_given_up_leaves_in_memory_what_was_put() {
    for scripts_run in 1..=3 {
        let site = Replacing::start().await;
        let users = site.users();
        let before = scripts(&site.server).await;
        let mut put = Box::pin(users.put(7, "new".to_owned()));
        while scripts(&site.server).await < before + scripts_run {
            assert!((&mut put).now_or_never().is_none());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(put);
        let held = users.peek(7).await.unwrap();
        assert_eq!(held.value.as_deref(), Some("new"), "{scripts_run}");
    }
}

/// Two who put do not take each other's values from memory.
#[tokio::test]
async fn k6_a_put_that_is_overtaken_by_another_takes_nothing_back() {
    for scripts_run in 1..=4 {
        let site = Replacing::start().await;
        let later = async {
            let later = site.users().put(7, "later".to_owned()).await;
            assert!(later.memory, "{scripts_run}");
        };
        site.act_after(scripts_run, later).await;
        let held = site.users().peek(7).await.unwrap();
        assert_eq!(held.value.as_deref(), Some("later"), "{scripts_run}");
        assert_eq!(held.source, Source::Memory, "{scripts_run}");
        // Once the first is being stored Redis takes them in either order.
        if scripts_run != 3 {
            let third = cache_of(&site.folder, &site.server.url()).await;
            let held = third.view::<String>("user").unwrap().peek(7).await.unwrap();
            assert_eq!(held.value.as_deref(), Some("later"), "{scripts_run}");
        }
    }
}
