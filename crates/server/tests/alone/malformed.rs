//! Invariant 5 towards callers: ten thousand requests that are wrong, each from its own seed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use steadfast_server::auth::RULES;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Service};

const REQUESTS: u64 = 10_000;
const CALLERS: u64 = 32;

const HONEST: &[&str] = &[
    "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "GET /v1/queries/search_users?q=ada&limit=3 HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n",
    "POST /v1/statements/create_user HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nidempotency-key: k\r\ncontent-length: 42\r\n\r\n{\"name\":\"Ada\",\"phone_number\":\"0123456789\"}",
    "POST /v1/statements/create_user HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"nam\r\n4\r\ne\":1\r\n1\r\n}\r\n0\r\n\r\n",
    "GET /v1/history?limit=5 HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\nauthorization: Bearer a.b.c\r\n\r\n",
    "DELETE /v1/drills/1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "GET http://localhost/metrics HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "HEAD /assets/app.js HTTP/1.1\r\nhost: localhost\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
];

const WRONG: &[&[u8]] = &[
    b"\0",
    b"\r\n",
    b"\n",
    b" ",
    b"%",
    b"%ff%00",
    b"../../../../etc/passwd",
    b"content-length: 5\r\n",
    b"content-length: 99999999999999999999\r\n",
    b"content-length: -1\r\n",
    b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: chunked, identity\r\n",
    b"host: evil.test\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\n",
    b"expect: 100-continue\r\n",
    b"ffffffffffffffff\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\0",
    b"\xff\xfe\xfd",
    b"last-event-id: 99999999999999999999\r\n",
    b"idempotency-key: \"\"\r\n",
    b"x: y\r\n z\r\n",
];

/// One or two honest requests with something done to them, or nothing that was ever honest.
fn malformed(seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    if rng.u8(..20) == 0 {
        return std::iter::repeat_with(|| rng.u8(..)).take(400).collect();
    }
    let mut bytes = Vec::new();
    for _ in 0..rng.usize(1..3) {
        bytes.extend_from_slice(HONEST[rng.usize(..HONEST.len())].as_bytes());
    }
    for _ in 0..rng.usize(1..5) {
        let at = rng.usize(..bytes.len());
        match rng.u8(..7) {
            0 => bytes[at] = rng.u8(..),
            1 => bytes.insert(at, rng.u8(..)),
            2 if bytes.len() > 1 => drop(bytes.remove(at)),
            3 => bytes.truncate(at.max(1)),
            4 => {
                let length = rng.usize(1..(1 << 17));
                bytes
                    .splice(at..at, std::iter::repeat_n(b'a', length))
                    .for_each(drop);
            }
            _ => {
                let wrong = WRONG[rng.usize(..WRONG.len())];
                bytes.splice(at..at, wrong.iter().copied()).for_each(drop);
            }
        }
    }
    bytes
}

/// Sends it and reads to the end, which must come.
async fn send(server: SocketAddr, seed: u64) {
    let request = malformed(seed);
    let exchange = async {
        let mut stream = TcpStream::connect(server).await.unwrap();
        // It may be refused before all of it is written.
        let _ = stream.write_all(&request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await;
    let answer = answer.unwrap_or_else(|_| panic!("seed {seed} hangs: {}", request.escape_ascii()));
    let http = answer.is_empty() || answer.starts_with(b"HTTP/1.");
    assert!(http, "seed {seed}: {}", answer.escape_ascii());
    assert!(
        !answer.starts_with(b"HTTP/1.1 500"),
        "seed {seed}: {}",
        answer.escape_ascii()
    );
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_5_ten_thousand_malformed_requests_neither_panic_nor_hang_nor_grow_the_service() {
    let panics = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&panics);
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        counted.fetch_add(1, Relaxed);
        told(info);
    }));
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.header_timeout", "1s"),
        ("limits.request_timeout", "2s"),
    ])
    .await;
    let all = async |from: u64, to: u64| {
        let next = Arc::new(std::sync::atomic::AtomicU64::new(from));
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (next, server) = (Arc::clone(&next), service.addr);
                tokio::spawn(async move {
                    loop {
                        let seed = next.fetch_add(1, Relaxed);
                        if seed >= to {
                            return;
                        }
                        send(server, seed).await;
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
    };
    // What a first thousand makes it keep is what ten thousand may.
    all(0, 1000).await;
    service.get("/health").await;
    let (memory, files) = (resident_bytes(), open_files());
    all(1000, REQUESTS).await;
    let over = async {
        while service.status()["service"]["in_flight"] != 0 || open_files() > files + 8 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let over = tokio::time::timeout(PATIENCE, over).await;
    assert!(
        over.is_ok(),
        "{} and {} files, {files} before",
        service.status()["service"],
        open_files()
    );
    assert_eq!(service.status()["service"]["subscribers"], 0);
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 96 << 20, "grown by {grown} bytes");
    let metrics = service.get("/metrics").await.text();
    let routes = metrics
        .lines()
        .filter_map(|line| line.split_once("http_route=\"")?.1.split('"').next());
    for route in routes {
        let known = route == "unmatched" || RULES.iter().any(|rule| rule.path == route);
        assert!(known, "a caller invented {route:?}");
    }
    assert_eq!(panics.load(Relaxed), 0);
    assert_eq!(service.get("/health/live").await.status, 200);
}
