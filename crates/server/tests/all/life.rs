use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use steadfast_cache::Target;
use steadfast_drill::waiting::eventually;
use steadfast_server::config::Sources;
use steadfast_server::{App, Config, Served, Signals, run};

use crate::harness::{PATIENCE, Service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_no_request_that_was_accepted_fails_while_the_service_drains() {
    // Counts for about a second, and longer than the drain delay.
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) AS n FROM n";
    let service = Service::with(&[
        ("server.drain_delay", "200ms"),
        ("redis.url", "redis://127.0.0.1:1"),
        ("queries.slow.sql", slow),
    ])
    .await;
    service
        .health_when(|health| health["status"] != "unhealthy")
        .await;
    let service = Arc::new(service);
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (service, answered) = (service.clone(), answered.clone());
            // As a load balancer does: it sends requests until it hears that it should not.
            tokio::spawn(async move {
                while ask(tokio::net::TcpStream::connect(service.addr).await.unwrap()).await {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    while answered.load(Ordering::Relaxed) < 100 {
        tokio::task::yield_now().await;
    }
    let slow = service.clone();
    let slow = tokio::spawn(async move { slow.get("/v1/queries/slow").await });
    // The callers are in flight too: it is the query that must be under way.
    while service.app.cache().status().guard.running == 0 {
        tokio::task::yield_now().await;
    }
    service.shutdown.begin();
    for caller in callers {
        tokio::time::timeout(PATIENCE, caller)
            .await
            .unwrap()
            .unwrap();
    }
    let slow = tokio::time::timeout(PATIENCE, slow).await.unwrap().unwrap();
    assert_eq!(slow.json()["rows"][0]["n"], 3_000_000, "{}", slow.text());
    assert_eq!(slow.header("connection"), "close");
    let service = Arc::into_inner(service).unwrap();
    let served = tokio::time::timeout(PATIENCE, service.serving)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(served, Served::Drained);
}

/// Asks for readiness over `stream`; an answer that breaks off fails the test.
async fn ask(mut stream: tokio::net::TcpStream) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let request = b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("\"phase\""),
        "an accepted request must be answered: {answer:?}"
    );
    answer.starts_with("HTTP/1.1 200")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_a_service_told_not_to_wait_does_not() {
    let service = Service::with(&[
        ("server.drain_delay", "1h"),
        ("redis.url", "redis://127.0.0.1:1"),
    ])
    .await;
    service.shutdown.begin();
    service.shutdown.force();
    let served = tokio::time::timeout(Duration::from_secs(10), service.serving)
        .await
        .unwrap();
    assert_eq!(served.unwrap(), Served::Forced);
}

/// One test for all signals: they reach the whole process, so two such tests would hear each
/// other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_signals_reload_drain_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("steadfast.toml");
    let write = |more: &str| {
        let database = folder.path().join("t.db");
        let database = match more.starts_with("# elsewhere") {
            false => format!("sqlite://{}", database.display()),
            true => "postgres://nobody@127.0.0.1:1/nothing".to_owned(),
        };
        let text = format!(
            "redis.url = 'redis://127.0.0.1:1'\ndatabase.url = '{database}'\nserver.drain_delay = '1h'\n\
             queries.one.sql = 'SELECT 1 AS n'\n{more}"
        );
        std::fs::write(&file, text).unwrap();
    };
    write("");
    let sources = Sources::new().file(&file).unwrap();
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut signals = Signals::install().unwrap();
    let served = app.clone();
    let running =
        tokio::spawn(async move { run(listener, served, Some(sources), &mut signals).await });
    let service = Service::at(app, addr);
    assert_eq!(service.get("/v1/queries/two").await.status, 404);

    write(
        "queries.two.sql = 'SELECT 2 AS n'\nqueries.two.ttl = 'new'\nttl.new.fresh = '77s'\nttl.new.jitter = 0\nttl.new.guard.rate = 5\n[log]\nlevel = 'warn'\n\
         [redis.breaker]\nminimum_calls = 7",
    );
    signal("HUP");
    let told = event(&service, "reloaded").await;
    assert_eq!(told["needs_restart"], json!(["redis", "ttl.*.guard"]));
    // A class that was not there before is taken up with the query that names it.
    let two = service.get("/v1/queries/two").await;
    assert_eq!(two.json()["rows"][0]["n"], 2, "{}", two.text());
    let again = service.get("/v1/queries/two").await;
    let status = again.header("cache-status");
    assert!(status.starts_with("Steadfast; hit; ttl=7"), "{status}");
    let settings = service.get("/v1/settings").await.json();
    assert_eq!(settings["ttl"]["new"]["fresh"], "77s", "{settings}");
    assert!(settings["ttl"]["new"]["guard"].is_null(), "{settings}");
    assert_eq!(settings["log"]["level"], "warn");
    assert_ne!(
        settings["redis"]["breaker"]["minimum_calls"], 7,
        "what needs a restart is not in force"
    );

    // A class that is taken out is as it would be if nobody had ever set it.
    write("queries.old.sql = 'SELECT 4 AS n'\nttl.default = {fresh = '2h', jitter = 0}");
    signal("HUP");
    let of_old = async |wanted: &str| {
        service
            .app
            .cache()
            .invalidate(&[Target::All])
            .await
            .unwrap();
        service.get("/v1/queries/old").await;
        let reply = service.get("/v1/queries/old").await;
        reply.header("cache-status").starts_with(wanted)
    };
    for (more, ttl) in [
        (
            "\nttl.default = {fresh = '2h', jitter = 0}",
            "Steadfast; hit; ttl=7",
        ),
        ("", "Steadfast; hit; ttl=3"),
    ] {
        write(&format!("queries.old.sql = 'SELECT 4 AS n'{more}"));
        signal("HUP");
        eventually(ttl, async || of_old(ttl).await).await;
    }
    write("queries.two.sql = 'SELECT 2 AS n'");
    signal("HUP");
    eventually("the query is back", async || {
        service.get("/v1/queries/two").await.status == 200
    })
    .await;

    // Changed SQL is in force at once, whatever was kept of the old.
    write("queries.two.sql = 'SELECT 22 AS n'");
    signal("HUP");
    eventually("the changed query is answered", async || {
        service.get("/v1/queries/two").await.json()["rows"][0]["n"] == 22
    })
    .await;

    // What was written for another database is taken up whole or not at all: not at all.
    write("# elsewhere\nqueries.three.sql = 'SELECT 3 AS n'");
    signal("HUP");
    let refused = event(&service, "reload_refused").await;
    let cause = refused["cause"].as_str().unwrap();
    assert!(cause.contains("postgresql"), "{cause}");
    assert_eq!(service.get("/v1/queries/three").await.status, 404);

    write("queries.two.sql = 'DROP TABLE users'");
    signal("HUP");
    eventually("the mistake is told", async || {
        event(&service, "reload_refused").await["mistakes"] == 1
    })
    .await;
    assert_eq!(
        service.get("/v1/queries/two").await.status,
        200,
        "the old configuration stays"
    );

    signal("TERM");
    event(&service, "draining").await;
    assert_eq!(service.get("/health/ready").await.status, 503);
    assert_eq!(
        service.get("/v1/queries/one").await.status,
        200,
        "it serves while it drains"
    );
    signal("INT");
    let served = tokio::time::timeout(PATIENCE, running)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(served, Served::Forced);
}

fn signal(name: &str) {
    let pid = std::process::id().to_string();
    let sent = std::process::Command::new("kill")
        .args([&format!("-{name}"), &pid])
        .status();
    assert!(sent.unwrap().success());
}

/// The last event of that name, once it is told.
async fn event(service: &Service, name: &str) -> Json {
    let found = async {
        loop {
            let history = service.get("/v1/history").await.json();
            let mut events = history["events"].as_array().unwrap().iter().rev();
            if let Some(event) = events.find(|event| event["event"] == name) {
                return event.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap()
}
