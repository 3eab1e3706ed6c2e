//! What Redis must let the service do: with exactly what the manual says everything works, and each
//! part that is taken away costs what the manual says it costs, and never an answer.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use steadfast::Fencing;
use steadfast_drill::process::Redis;
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
    /// What Redis refused.
    refused: redis::Value,
}

/// What the manual says may be lost.
const ALL: [&str; 5] = ["sharing", "invalidation", "coherence", "limits", "fencing"];

async fn service(redis: &Redis, folder: &tempfile::TempDir) -> Service {
    let text = format!(
        "{SAMPLE}\n[limits.rate.bucket]\nrequests = 1000000\n\
         [limits.rate.window]\nrequests = 1000000\nalgorithm = 'sliding_window'\n"
    );
    let database = format!("sqlite://{}", folder.path().join("t.db").display());
    let sources = Sources::new()
        .text("test", &text)
        .flag("test", "namespace", "ns")
        .flag(
            "test",
            "redis.url",
            format!("redis://steadfast:pw@{}", redis.addr()),
        )
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

/// Everything that the service does with Redis, by a user with these rules.
async fn tried(redis: &Redis, rules: &[&str], limit: Duration) -> Tried {
    redis.command(&["FLUSHALL"]).await.unwrap();
    redis.command(&["SCRIPT", "FLUSH"]).await.unwrap();
    let mut user = vec![
        "ACL",
        "SETUSER",
        "steadfast",
        "reset",
        "on",
        ">pw",
        "resetchannels",
        "-@all",
    ];
    user.extend_from_slice(rules);
    redis.command(&user).await.unwrap();
    redis.command(&["ACL", "LOG", "RESET"]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (service(redis, &folder).await, service(redis, &folder).await);
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
        let mut there = true;
        for limit in ["ns:r:bucket:*", "ns:r:window:*"] {
            let keys = redis.command(&["KEYS", limit]).await.unwrap();
            there &= !matches!(keys, redis::Value::Array(keys) if keys.is_empty());
        }
        there
    })
    .await;
    let fenced = one.app.client().status().fencing == Fencing::Works;
    for service in [one, two] {
        service.app.close().await;
    }
    let works = [shared, invalidated, coherent, counted, fenced];
    Tried {
        works: ALL
            .into_iter()
            .zip(works)
            .filter(|(_, works)| *works)
            .map(|(name, _)| name)
            .collect(),
        refused: redis.command(&["ACL", "LOG"]).await.unwrap(),
    }
}

const MANUAL: &str = include_str!("../../../../docs/security.md");

/// The rules as the manual has them.
fn rules() -> Vec<&'static str> {
    let line = MANUAL
        .lines()
        .find_map(|line| line.strip_prefix("user steadfast on >PASSWORD resetchannels -@all "));
    line.expect("the manual has no such line")
        .split(' ')
        .collect()
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
    let rules = rules();
    let nothing =
        |refused: &redis::Value| matches!(refused, redis::Value::Array(log) if log.is_empty());
    let whole = tried(&redis, &rules, PATIENCE).await;
    assert_eq!(whole.works, ALL);
    assert!(
        nothing(&whole.refused),
        "refused with all its rights: {:?}",
        whole.refused
    );
    let rules = &rules;
    let each = rules.iter().map(|rule| async move {
        let redis = Redis::start().await.unwrap();
        let rest: Vec<&str> = rules
            .iter()
            .filter(|other| *other != rule)
            .copied()
            .collect();
        let tried = tried(&redis, &rest, Duration::from_millis(600)).await;
        assert!(
            !nothing(&tried.refused),
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
