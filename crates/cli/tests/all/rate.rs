//! S7 over two processes, as a fleet has them.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use steadfast_drill::process::Redis;
use tokio::time::Instant;

use crate::program::{Lines, PATIENCE, run, steadfast};

struct Member {
    child: Child,
    addr: SocketAddr,
    client: Client<HttpConnector, Empty<bytes::Bytes>>,
    _lines: Lines,
}

impl Member {
    fn start(config: &str) -> Self {
        let mut child = steadfast(&["serve", "--listen", "127.0.0.1:0", "--config", config])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = Lines::of(&mut child);
        let first = lines.next();
        let addr = first
            .rsplit_once("://")
            .and_then(|(_, addr)| addr.parse().ok());
        Self {
            addr: addr.unwrap_or_else(|| panic!("it names no address: {first:?}")),
            client: Client::builder(TokioExecutor::new()).build_http(),
            child,
            _lines: lines,
        }
    }

    async fn ask(&self, path: &str, token: &str) -> (u16, String) {
        let request = http::Request::get(format!("http://{}{path}", self.addr))
            .header("authorization", format!("Bearer {token}"))
            .body(Empty::new())
            .unwrap();
        let answered = async {
            let response = self.client.request(request).await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8_lossy(&body).into_owned())
        };
        tokio::time::timeout(PATIENCE, answered).await.unwrap()
    }

    async fn ready(&self, token: &str) {
        let up = async {
            loop {
                let (_, health) = self.ask("/health", token).await;
                let health: serde_json::Value = serde_json::from_str(&health).unwrap();
                if health["checks"]["redis"]["status"] == "healthy" {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks both as one greedy caller for five seconds, and as a modest one beside; tells how many of
/// the first passed, and the time.
async fn press(fleet: &[Member; 2], greedy: &str, modest: &str) -> (f64, f64) {
    let begun = Instant::now();
    let going = || begun.elapsed() < Duration::from_secs(5);
    let one = async |member: &Member| {
        let mut passed = 0.0;
        while going() {
            match member.ask("/v1/history?limit=1", greedy).await.0 {
                200 => passed += 1.0,
                429 => {}
                other => panic!("{other}"),
            }
            // Twice the limit from each, so that the limit is what decides.
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        passed
    };
    let other = async {
        while going() {
            for member in fleet {
                let (status, _) = member.ask("/v1/history?limit=1", modest).await;
                assert_eq!(status, 200, "another caller is not held back");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (a, b, ()) = tokio::join!(one(&fleet[0]), one(&fleet[1]), other);
    (a + b, begun.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_one_caller_is_held_to_its_rate_over_two_processes_with_redis_and_to_twice_it_without() {
    let redis = Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let configs = [0, 1].map(|n| {
        let path = folder.path().join(format!("{n}.toml"));
        let text = format!(
            "[redis]\nurl = '{}'\n[database]\nurl = 'sqlite://{}'\n[limits.rate.each]\nrequests = 100\nburst = 10\n\
             [auth]\nissuer = 'us'\naudience = 'steadfast'\naudit = 'off'\n[auth.keys.dev]\nalgorithm = 'HS256'\n\
             secret = '0123456789abcdef0123456789abcdef'\n",
            redis.url(),
            folder.path().join(format!("{n}.db")).display()
        );
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    });
    let token = async |subject: &str| {
        let issued = run(&["token", "--config", &configs[0], "--subject", subject]).await;
        issued.stdout.trim().to_owned()
    };
    let (greedy, modest) = (token("greedy").await, token("modest").await);
    let fleet = [Member::start(&configs[0]), Member::start(&configs[1])];
    for member in &fleet {
        member.ready(&modest).await;
    }
    let (passed, seconds) = press(&fleet, &greedy, &modest).await;
    let most = 100.0 * seconds + 10.0;
    assert!(passed <= most, "{passed} passed, {most} may");
    assert!(passed > 100.0, "hardly anything passes: {passed}");

    redis.kill().await;
    let (passed, seconds) = press(&fleet, &greedy, &modest).await;
    let most = 2.0 * (100.0 * seconds + 10.0);
    assert!(passed <= most, "{passed} passed, {most} may");
    assert!(passed > 100.0, "the outage closed the service: {passed}");
}
