//! How often callers may ask, over two services that share a Redis, and while they have none.

use std::time::Duration;

use steadfast::ConnectionState;
use steadfast_core::slot::Slot;
use steadfast_drill::process::Cluster;
use steadfast_server::auth::{Role, TokenSpec, issue};
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config};
use tokio::time::Instant;

use crate::harness::{Service, redis};

pub(crate) const AUTH: &str = "[auth]\nissuer = \"us\"\naudience = \"steadfast\"\naudit = \"off\"\n[auth.keys.dev]\nalgorithm = \"HS256\"\n\
                    secret = \"0123456789abcdef0123456789abcdef\"\n";

async fn service(redis: &str, folder: &tempfile::TempDir, rate: &str) -> Service {
    let text = format!("{SAMPLE}\n{AUTH}\n{rate}");
    let sources = Sources::new()
        .text("test", &text)
        .flag("test", "redis.url", redis)
        .flag(
            "test",
            "database.url",
            format!("sqlite://{}", folder.path().join("t.db").display()),
        );
    Service::of(Config::load(&sources).unwrap()).await
}

pub(crate) fn token(app: &App, role: Role, subject: &str) -> String {
    use secrecy::ExposeSecret;
    let order = TokenSpec {
        subject,
        role,
        lifetime: Duration::from_secs(600),
        key: None,
        private_key: None,
        now: jsonwebtoken::get_current_timestamp(),
    };
    let token = issue(app.config().auth.as_ref().unwrap(), &order).unwrap();
    format!("Bearer {}", token.expose_secret())
}

async fn ready(service: &Service) {
    let up = |health: &serde_json::Value| health["checks"]["redis"]["status"] == "healthy";
    service.health_when(up).await;
}

/// Asks both services as fast as they answer, for so long; tells how many passed, and in what time.
async fn press(services: [&Service; 2], bearer: &str, time: Duration) -> (u32, f64) {
    let begun = Instant::now();
    let one = async |service: &Service| {
        let mut passed = 0;
        while begun.elapsed() < time {
            let reply = service
                .get_with("/v1/history?limit=1", &[("authorization", bearer)])
                .await;
            match reply.status.as_u16() {
                200 => passed += 1,
                429 => {
                    assert_eq!(reply.json()["type"], "/problems/too-many-requests");
                    assert_ne!(reply.header("retry-after"), "");
                    assert!(
                        reply.header("ratelimit").starts_with("\"each\";r=0;t="),
                        "{}",
                        reply.header("ratelimit")
                    );
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                other => panic!("{other}: {}", reply.text()),
            }
        }
        passed
    };
    let (a, b) = tokio::join!(one(services[0]), one(services[1]));
    (a + b, begun.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_caller_is_held_to_its_rate_by_the_fleet_and_in_an_outage_by_each_process() {
    let redis = redis().await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let rate = "[limits.rate.each]\nrequests = 100\nburst = 10\n";
    let one = service(&redis.url(), &folders[0], rate).await;
    let two = service(&redis.url(), &folders[1], rate).await;
    ready(&one).await;
    ready(&two).await;
    let (greedy, modest) = (
        token(&one.app, Role::Viewer, "greedy"),
        token(&one.app, Role::Viewer, "modest"),
    );
    let other = async |stop: Instant| {
        while Instant::now() < stop {
            let reply = two
                .get_with("/v1/history?limit=1", &[("authorization", &modest)])
                .await;
            assert_eq!(reply.status, 200, "another caller is not held back");
            assert!(
                reply
                    .header("ratelimit-policy")
                    .starts_with("\"each\";q=100;w=1")
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let time = Duration::from_secs(3);
    let stop = Instant::now() + time;
    let ((passed, seconds), ()) = tokio::join!(press([&one, &two], &greedy, time), other(stop));
    let most = 100.0 * seconds + 10.0;
    assert!(f64::from(passed) <= most, "{passed} of {most}");
    assert!(
        passed >= 20,
        "the limit lets hardly anything pass: {passed}"
    );

    redis.kill().await;
    let stop = Instant::now() + time;
    let ((passed, seconds), ()) = tokio::join!(press([&one, &two], &greedy, time), other(stop));
    let most = 2.0 * (100.0 * seconds + 10.0);
    assert!(f64::from(passed) <= most, "{passed} of {most}");
    assert!(passed >= 20, "the outage closed the service: {passed}");
}

#[tokio::test]
async fn s7_a_sliding_window_on_redis_lets_its_quota_pass_and_says_when_to_come_back() {
    let redis = redis().await;
    let folder = tempfile::tempdir().unwrap();
    let rate = "[limits.rate.hour]\nrequests = 3\nper = \"1h\"\nalgorithm = \"sliding_window\"\nroutes = [\"/v1/history\"]\n";
    let service = service(&redis.url(), &folder, rate).await;
    ready(&service).await;
    let bearer = token(&service.app, Role::Viewer, "ada");
    let mut left = Vec::new();
    for _ in 0..5 {
        let reply = service
            .get_with("/v1/history", &[("authorization", &bearer)])
            .await;
        left.push((
            reply.status.as_u16(),
            reply
                .header("ratelimit")
                .split(';')
                .nth(1)
                .unwrap_or("")
                .to_owned(),
        ));
    }
    let told: Vec<(u16, &str)> = left
        .iter()
        .map(|(status, left)| (*status, left.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (200, "r=2"),
            (200, "r=1"),
            (200, "r=0"),
            (429, "r=0"),
            (429, "r=0")
        ]
    );
    // Another route is not counted, nor are health and metrics.
    for _ in 0..5 {
        let reply = service
            .get_with("/v1/status", &[("authorization", &bearer)])
            .await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("ratelimit")),
            (200, "")
        );
    }
    let keys = redis.command(&["KEYS", "sample:r:hour:*"]).await.unwrap();
    assert!(
        !format!("{keys:?}").contains("ada"),
        "callers are not named in Redis: {keys:?}"
    );
}

async fn connected_to_all(service: &Service) {
    let is_ready = || {
        let cluster = service.app.client().status().cluster.unwrap();
        let mut primaries = cluster.nodes.into_iter().filter(|node| node.primary);
        primaries.all(|node| node.state == Some(ConnectionState::Ready))
    };
    let asked = async {
        while !is_ready() {
            for n in 0..12 {
                let bearer = token(&service.app, Role::Viewer, &format!("early {n}"));
                let headers = [("authorization", bearer.as_str())];
                service.get_with("/v1/history", &headers).await;
            }
        }
    };
    let asked = tokio::time::timeout(crate::harness::PATIENCE, asked).await;
    asked.expect("every shard is connected to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_on_a_cluster_callers_are_counted_on_all_shards_and_the_cache_lies_on_one() {
    let cluster = Cluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let rate = "[limits.rate.hour]\nrequests = 3\nper = \"1h\"\n";
    let one = service(&cluster.url(), &folder, rate).await;
    let two = service(&cluster.url(), &folder, rate).await;
    ready(&one).await;
    ready(&two).await;
    // Until a shard is connected to, its callers are counted by each process.
    for service in [&one, &two] {
        connected_to_all(service).await;
    }
    let status = one.status();
    let slot = status["cache"]["redis"]["slot"].as_u64().unwrap();
    assert_eq!(slot, u64::from(Slot::of_key(b"{sample}").number()));
    for n in 0..12 {
        let bearer = token(&one.app, Role::Viewer, &format!("caller {n}"));
        let mut answered = Vec::new();
        for service in [&one, &two, &one, &two] {
            let headers = [("authorization", bearer.as_str())];
            let reply = service.get_with("/v1/history", &headers).await;
            answered.push(reply.status.as_u16());
        }
        assert_eq!(answered, [200, 200, 200, 429], "by both together");
    }
    let mut counting = 0;
    for at in 0..3 {
        let counters = ["KEYS", "sample:r:hour:*"];
        let counters = cluster.node(at).command(&counters).await.unwrap();
        counting += usize::from(counters != redis::Value::Array(Vec::new()));
    }
    assert_eq!(counting, 3, "shards that count");
}

#[tokio::test]
async fn s7_a_caller_that_comes_back_when_a_sliding_window_says_is_let_in_by_redis_and_without_it()
{
    let redis = redis().await;
    for url in [redis.url(), "redis://127.0.0.1:1".to_owned()] {
        let folder = tempfile::tempdir().unwrap();
        let rate =
            "[limits.rate.few]\nrequests = 3\nper = \"1s\"\nalgorithm = \"sliding_window\"\n";
        let service = service(&url, &folder, rate).await;
        if url == redis.url() {
            ready(&service).await;
        }
        let bearer = token(&service.app, Role::Viewer, "ada");
        let ask = async || {
            service
                .get_with("/v1/history", &[("authorization", &bearer)])
                .await
        };
        let refused = loop {
            let reply = ask().await;
            if reply.status == 429 {
                break reply;
            }
        };
        let wait = refused.json()["retry_after_ms"].as_u64().unwrap();
        tokio::time::sleep(Duration::from_millis(wait + 5)).await;
        assert_eq!(ask().await.status, 200, "told to come back after {wait} ms");
    }
}

#[tokio::test]
async fn s7_a_clock_of_redis_that_was_set_back_locks_nobody_out() {
    let redis = redis().await;
    let folder = tempfile::tempdir().unwrap();
    let rate = "[limits.rate.each]\nrequests = 10\nper = \"1s\"\n";
    let service = service(&redis.url(), &folder, rate).await;
    ready(&service).await;
    let bearer = token(&service.app, Role::Viewer, "ada");
    let ask = async || {
        let reply = service
            .get_with("/v1/history", &[("authorization", &bearer)])
            .await;
        reply.status.as_u16()
    };
    assert_eq!(ask().await, 200);
    // As it would stand there had the clock been an hour ahead until now.
    let back = "local keys = redis.call('KEYS', 'sample:r:each:*') \
                redis.call('INCRBY', keys[1], 3600000000) return #keys";
    redis.command(&["EVAL", back, "0"]).await.unwrap();
    assert_eq!(ask().await, 200, "nobody waits for an hour");
    let mut passed = 0;
    for _ in 0..30 {
        passed += u32::from(ask().await == 200);
    }
    assert!(passed < 30, "the limit holds again");
}

#[tokio::test]
async fn s7_behind_a_trusted_proxy_each_caller_has_a_rate_of_its_own() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.rate.x.requests", "1"),
        ("limits.rate.x.per", "1h"),
        ("server.trusted_proxies", "127.0.0.1"),
    ])
    .await;
    let ask = async |forwarded: &str| {
        let reply = service
            .get_with("/v1/history", &[("x-forwarded-for", forwarded)])
            .await;
        reply.status.as_u16()
    };
    for caller in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        assert_eq!(ask(caller).await, 200, "{caller}");
    }
    for invented in ["6.6.6.6", "7.7.7.7"] {
        let forwarded = format!("{invented}, 192.0.2.1");
        assert_eq!(ask(&forwarded).await, 429, "{invented}");
    }
}

#[tokio::test]
async fn s7_who_is_refused_for_want_of_a_token_is_counted_by_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let rate = "[limits.rate.x]\nrequests = 3\nper = \"1h\"\n";
    let service = service("redis://127.0.0.1:1", &folder, rate).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let reply = service
            .get_with("/v1/history", &[("authorization", "Bearer a.b.c")])
            .await;
        statuses.push(reply.status.as_u16());
    }
    assert_eq!(statuses, [401, 401, 401, 429, 429]);
    let bearer = token(&service.app, Role::Viewer, "ada");
    let known = service
        .get_with("/v1/history", &[("authorization", &bearer)])
        .await;
    assert_eq!(known.status, 200, "who is known is another caller");
}

#[tokio::test]
async fn s7_who_is_refused_uses_up_nothing_that_all_callers_share() {
    let folder = tempfile::tempdir().unwrap();
    let rate = "[limits.rate.x]\nrequests = 3\nper = \"1h\"\nby = \"route\"\n";
    let service = service("redis://127.0.0.1:1", &folder, rate).await;
    let ask = async |bearer: &str| {
        let reply = service
            .get_with("/v1/history", &[("authorization", bearer)])
            .await;
        reply.status.as_u16()
    };
    for _ in 0..10 {
        assert_eq!(ask("Bearer a.b.c").await, 401);
    }
    let bearer = token(&service.app, Role::Viewer, "ada");
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(ask(&bearer).await);
    }
    assert_eq!(statuses, [200, 200, 200, 429], "only those let in count");
}

#[tokio::test]
async fn s7_without_redis_a_limit_is_open_local_or_closed_as_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    for (mode, wanted) in [
        ("open", [200, 200, 200]),
        ("local", [200, 429, 429]),
        ("closed", [503, 503, 503]),
    ] {
        let rate = format!("[limits.rate.x]\nrequests = 1\nper = \"1h\"\nwhen_down = \"{mode}\"\n");
        let service = service("redis://127.0.0.1:1", &folder, &rate).await;
        let bearer = token(&service.app, Role::Viewer, "ada");
        for wanted in wanted {
            let reply = service
                .get_with("/v1/history", &[("authorization", &bearer)])
                .await;
            assert_eq!(reply.status, wanted, "{mode}: {}", reply.text());
            assert_eq!(
                reply.header("retry-after").is_empty(),
                wanted == 200,
                "{mode}"
            );
        }
        assert_eq!(
            service.get("/health/live").await.status,
            200,
            "health is never limited"
        );
    }
}
