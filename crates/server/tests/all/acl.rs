//! What Redis must let the service do: with exactly what the manual says everything works, and each
//! part that is taken away costs what the manual says it costs, and never an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use steadfast::{Client, Fencing};
use steadfast_core::slot::{SLOTS, Slot};
use steadfast_drill::process::{Cluster, Redis, Watched};
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config};
use tokio::time::Instant;

use crate::harness::{PATIENCE, Service};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, phone_number TEXT NOT NULL, \
                     email TEXT, created_at TEXT NOT NULL)";

/// What of the service works, in the manual's words. Reads and statements are answered in any case:
/// that is asserted on the way.
#[derive(Debug)]
struct Tried {
    works: Vec<&'static str>,
    /// What Redis refused, by server.
    refused: Vec<redis::Value>,
}

/// What the manual says may be lost.
const ALL: [&str; 5] = ["sharing", "invalidation", "coherence", "limits", "fencing"];

async fn service(url: &str, folder: &tempfile::TempDir) -> Service {
    let text = format!(
        "{SAMPLE}\n[limits.rate.bucket]\nrequests = 10000\nper = '1h'\n\
         [limits.rate.window]\nrequests = 1000000\nalgorithm = 'sliding_window'\n"
    );
    let database = format!("sqlite://{}", folder.path().join("t.db").display());
    let sources = Sources::new()
        .text("test", &text)
        .flag("test", "namespace", "ns")
        .flag("test", "redis.url", url)
        .flag("test", "cache.outbox_poll", "20ms")
        .flag("test", "database.url", database);
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    let mut tx = app.database().begin().await.unwrap();
    tx.execute(TABLE, &[]).await.unwrap();
    tx.commit().await.unwrap();
    Service::from_app(app).await
}

/// Whether it becomes so; what is not within the limit is taken for never, by tests that know that
/// it works otherwise.
async fn becomes(limit: Duration, mut is: impl AsyncFnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if is().await {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The order that makes the user with these rules, whose password is `pw`.
fn set_user<'a>(rules: &[&'a str]) -> Vec<&'a str> {
    let order = "ACL SETUSER steadfast reset on >pw resetchannels -@all";
    order.split(' ').chain(rules.iter().copied()).collect()
}

/// Everything that the service does with Redis, by a user with these rules, on the servers that
/// this URL leads to.
async fn tried(servers: &[&Redis], url: &str, rules: &[&str], limit: Duration) -> Tried {
    for redis in servers {
        redis.command(&["FLUSHALL"]).await.unwrap();
        redis.command(&["SCRIPT", "FLUSH"]).await.unwrap();
        redis.command(&set_user(rules)).await.unwrap();
        redis.command(&["ACL", "LOG", "RESET"]).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (service(url, &folder).await, service(url, &folder).await);
    let ready = async || {
        let status = one.status();
        status["redis"]["state"] == "ready" && two.status()["redis"]["state"] == "ready"
    };
    assert!(becomes(PATIENCE, ready).await, "{rules:?}: no connection");
    let coherent = becomes(limit, async || {
        one.app.cache().status().memory_proven && two.app.cache().status().memory_proven
    })
    .await;
    let mut n = 0;
    let shared = becomes(limit, async || {
        n += 1;
        let path = format!("/v1/queries/user_by_id?id={n}");
        let first = one.get(&path).await;
        assert_eq!(first.status, 200, "{}", first.text());
        let second = two.get(&path).await;
        assert_eq!(second.status, 200, "{}", second.text());
        second.json()["source"] == "redis"
    })
    .await;
    let person = json!({"name": "Ada", "phone_number": "100"});
    let written = one.post("/v1/statements/create_user", &person).await;
    assert_eq!(written.status, 200, "{}", written.text());
    let emptied = async || {
        let rows = one
            .app
            .database()
            .select("SELECT COUNT(*) AS n FROM steadfast_outbox", &[])
            .await;
        rows.unwrap()[0]["n"] == 0
    };
    let invalidated = becomes(limit, emptied).await;
    let found = two.get("/v1/queries/list_users").await;
    assert_eq!(found.json()["rows"][0]["name"], "Ada", "a change is seen");
    let counted = becomes(limit, async || {
        one.get("/v1/history").await;
        let mut counting = BTreeMap::from([("ns:r:bucket:*", false), ("ns:r:window:*", false)]);
        for (limit, there) in &mut counting {
            for redis in servers {
                let keys = redis.command(&["KEYS", limit]).await.unwrap();
                *there |= !matches!(keys, redis::Value::Array(keys) if keys.is_empty());
            }
        }
        counting.into_values().all(|there| there)
    })
    .await;
    let fenced = one.app.client().status().fencing == Fencing::Works;
    for service in [one, two] {
        service.app.close().await;
    }
    let works = [shared, invalidated, coherent, counted, fenced];
    let mut refused = Vec::new();
    for redis in servers {
        refused.push(redis.command(&["ACL", "LOG"]).await.unwrap());
    }
    Tried {
        works: ALL
            .into_iter()
            .zip(works)
            .filter(|(_, works)| *works)
            .map(|(name, _)| name)
            .collect(),
        refused,
    }
}

const MANUAL: &str = include_str!("../../../../docs/security.md");

/// The rules as the manual has them, in the first such line after these words.
fn rules(after: &str) -> Vec<&'static str> {
    let at = MANUAL.find(after).expect("the manual has no such words");
    let line = MANUAL[at..]
        .lines()
        .find_map(|line| line.strip_prefix("user steadfast on >PASSWORD resetchannels -@all "));
    line.expect("the manual has no such line")
        .split(' ')
        .collect()
}

const ON_ONE_SERVER: &str = "on a single server of Redis";

/// Whether the log of the ACL has no entry.
fn is_nothing(refused: &redis::Value) -> bool {
    matches!(refused, redis::Value::Array(log) if log.is_empty())
}

/// Which of these commands have been called since, by what INFO said of them then and now.
fn called<'a>(rules: &[&'a str], before: &[String], now: &[String]) -> Vec<&'a str> {
    let calls = |told: &[String], name: &str| -> u64 {
        let counts = told.iter().filter_map(|told| {
            let (_, rest) = told.split_once(&format!("cmdstat_{name}:calls="))?;
            rest.split(',').next()?.parse::<u64>().ok()
        });
        counts.sum()
    };
    let called = |rule: &&str| {
        let name = rule.strip_prefix('+');
        name.is_some_and(|name| calls(now, name) > calls(before, name))
    };
    rules.iter().copied().filter(called).collect()
}

/// What each server says of the commands that it was sent.
async fn command_stats(servers: &[&Redis]) -> Vec<String> {
    let mut told = Vec::new();
    for redis in servers {
        told.push(redis.info("commandstats").await.unwrap());
    }
    told
}

/// What the manual says that is lost without a rule.
fn lost_without(rule: &str) -> Vec<&'static str> {
    let named = format!("`{}`", rule.replace('|', "\\|"));
    let row = MANUAL
        .lines()
        .find(|row| row.starts_with("| `") && row.contains(&named));
    let row = row.unwrap_or_else(|| panic!("the manual does not say what {rule} is for"));
    let lost = row.rsplit('|').nth(1).unwrap();
    ALL.into_iter().filter(|name| lost.contains(name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_with_the_least_rights_everything_works_and_without_each_what_the_manual_says_is_lost() {
    let redis = Redis::start().await.unwrap();
    let url = |redis: &Redis| format!("redis://steadfast:pw@{}", redis.addr());
    let rules = rules(ON_ONE_SERVER);
    let whole = tried(&[&redis], &url(&redis), &rules, PATIENCE).await;
    assert_eq!(whole.works, ALL);
    let refused = &whole.refused[0];
    assert!(
        is_nothing(refused),
        "refused with all its rights: {refused:?}"
    );
    let rules = &rules;
    let each = rules.iter().map(|rule| async move {
        let redis = Redis::start().await.unwrap();
        let rest: Vec<&str> = rules
            .iter()
            .filter(|other| *other != rule)
            .copied()
            .collect();
        let limit = Duration::from_millis(600);
        let tried = tried(&[&redis], &url(&redis), &rest, limit).await;
        assert!(
            !is_nothing(&tried.refused[0]),
            "{rule} is not needed: it is never used"
        );
        for lost in lost_without(rule) {
            assert!(
                !tried.works.contains(&lost),
                "without {rule} there is still {lost}"
            );
        }
    });
    // Several at a time: most of it is waiting for what does not come.
    let each = futures_util::stream::iter(each).buffer_unordered(4);
    each.collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_in_a_cluster_everything_works_with_the_rights_that_the_manual_names_for_it() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let nodes = cluster.nodes();
    let servers: Vec<&Redis> = nodes.iter().map(|node| &***node).collect();
    let url = cluster.url().replace("://", "://steadfast:pw@");
    let rules = rules("**In a cluster**");
    let before = command_stats(&servers).await;
    let tried = tried(&servers, &url, &rules, PATIENCE).await;
    assert_eq!(tried.works, ALL);
    assert!(
        tried.refused.iter().all(is_nothing),
        "refused with all its rights: {:?}",
        tried.refused
    );

    // Nor when a slot moves: what is not there any more is asked of the other node.
    let slot = Slot::of_key(b"{ns}").number();
    let owned_from = |at: usize| at * usize::from(SLOTS) / servers.len();
    let owner = (0..servers.len()).rfind(|at| owned_from(*at) <= usize::from(slot));
    let owner = owner.unwrap();
    let to = (owner + 1) % servers.len();
    cluster.begin_migration(&[slot], owner, to).await.unwrap();
    let client = Client::builder(&url).unwrap().build().unwrap();
    let asked = client.send(redis::cmd("GET").arg("{ns}:nothing")).await;
    assert_eq!(asked.unwrap(), redis::Value::Nil);
    let now = command_stats(&servers).await;
    for redis in &servers {
        let refused = redis.command(&["ACL", "LOG"]).await.unwrap();
        assert!(is_nothing(&refused), "refused: {refused:?}");
    }
    let needed: Vec<&str> = rules
        .iter()
        .copied()
        .filter(|rule| rule.starts_with('+'))
        .collect();
    assert_eq!(
        called(&needed, &before, &now),
        needed,
        "what is asked of nodes"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_behind_sentinels_everything_works_with_the_rights_that_the_manual_names_for_it() {
    let watched = Watched::start().await.unwrap();
    let of_sentinels = rules("**Behind sentinels**");
    for sentinel in &watched.sentinels {
        sentinel.command(&set_user(&of_sentinels)).await.unwrap();
        sentinel.command(&["ACL", "LOG", "RESET"]).await.unwrap();
    }
    let url = watched.url().replace("://", "://steadfast:pw@");
    let url = format!("{url}?sentinel_user=steadfast&sentinel_password=pw");
    let primary = &watched.data[0];
    assert!(MANUAL.contains("**Behind sentinels** add `+role`"));
    let mut of_data = rules(ON_ONE_SERVER);
    of_data.push("+role");
    let before = command_stats(&[primary]).await;
    let tried = tried(&[primary], &url, &of_data, PATIENCE).await;
    assert_eq!(tried.works, ALL);
    let refused = &tried.refused[0];
    assert!(
        is_nothing(refused),
        "refused with all its rights: {refused:?}"
    );
    let now = command_stats(&[primary]).await;
    assert_eq!(called(&["+role"], &before, &now), ["+role"]);
    for sentinel in &watched.sentinels {
        let refused = sentinel.command(&["ACL", "LOG"]).await.unwrap();
        assert!(is_nothing(&refused), "refused: {refused:?}");
    }
}
