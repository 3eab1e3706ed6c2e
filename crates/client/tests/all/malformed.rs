//! Invariant 5 towards Redis, and towards whoever answers in its place: ten thousand replies that
//! are wrong, each from its own seed.

use redis::Value;
use steadfast::{Backoff, Client, ConnectionState};
use steadfast_drill::scripted::{Script, Server};

use crate::support::{cmd, ms, until, until_down_for, until_state};

const REPLIES: u64 = 10_000;
const CLIENTS: u64 = 8;

const HONEST: &[&str] = &[
    "+OK\r\n",
    ":42\r\n",
    "$5\r\nhello\r\n",
    "$-1\r\n",
    "-ERR no\r\n",
    "-LOADING Redis is loading the dataset in memory\r\n",
    "-MOVED 3999 127.0.0.1:6381\r\n",
    "*3\r\n:1\r\n$1\r\na\r\n*-1\r\n",
    "%1\r\n+k\r\n~2\r\n:1\r\n:2\r\n",
    "|1\r\n+ttl\r\n:3600\r\n*1\r\n:1\r\n",
    ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n",
    "=8\r\ntxt:text\r\n",
    "(3492890328409238509324850943850943825024385\r\n",
    ",1.23e400\r\n",
    "!21\r\nSYNTAX invalid syntax\r\n",
    "#t\r\n_\r\n",
];

/// One or several honest replies with something done to them, or nothing that was ever honest.
fn malformed(seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    if rng.u8(..16) == 0 {
        return std::iter::repeat_with(|| rng.u8(..)).take(256).collect();
    }
    let mut bytes = Vec::new();
    for _ in 0..rng.usize(1..4) {
        bytes.extend_from_slice(HONEST[rng.usize(..HONEST.len())].as_bytes());
    }
    for _ in 0..rng.usize(1..5) {
        let at = rng.usize(..bytes.len());
        match rng.u8(..7) {
            0 => bytes[at] = rng.u8(..),
            1 => bytes.insert(at, rng.u8(..)),
            2 if bytes.len() > 1 => drop(bytes.remove(at)),
            3 => bytes.truncate(at.max(1)),
            4 => bytes.splice(at..at, *b"*99999999\r\n").for_each(drop),
            5 => bytes
                .splice(at..at, *b"$9223372036854775807\r\n")
                .for_each(drop),
            _ => {
                let nested = b"*1\r\n".repeat(rng.usize(1..300));
                bytes.splice(at..at, nested).for_each(drop);
            }
        }
    }
    bytes
}

#[tokio::test]
async fn c8_a_reply_in_the_handshake_holds_no_more_than_what_was_asked_can_take() {
    let claimed = format!("${}\r\n", 2 << 20);
    let server = Server::start(Script::new().read(1).send(claimed)).await;
    let server = server.unwrap();
    let client = Client::builder(&server.url()).unwrap().build().unwrap();
    until_down_for(&client, "larger than the limit of 1048576").await;
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

async fn answered_wrongly(n: u64) {
    let each = REPLIES / CLIENTS;
    let mut scripts: Vec<Script> = (0..each)
        .map(|k| {
            let wrong = malformed(n * each + k);
            Script::new().handshake().read(1).send(wrong).close()
        })
        .collect();
    scripts.push(Script::new().handshake().echo(1_000_000));
    let server = Server::start_each(scripts).await.unwrap();
    let client = Client::builder(&server.url())
        .unwrap()
        .reconnect(Backoff::full_jitter(ms(1), ms(1)))
        .build()
        .unwrap();
    // Whatever an answer was taken for, the call ends, and the next connection is made.
    let mut calls = 0;
    while server.connections() <= each {
        let call = tokio::time::timeout(ms(20_000), client.send(&cmd("GET k"))).await;
        let _ = call.expect("a call outlived its deadline");
        calls += 1;
        assert!(
            calls < 200 * each,
            "hardly a connection is made: {}",
            server.connections()
        );
        tokio::task::yield_now().await;
    }
    until_state(&client, ConnectionState::Ready).await;
    until("an honest server is served from", || {
        client.status().breaker == "closed"
    })
    .await;
    let answer = client.send(&cmd("GET k")).await.unwrap();
    assert_eq!(answer, Value::BulkString(b"k".to_vec()));
    assert_eq!(client.status().in_flight, 0);
    assert_eq!(client.status().stuck_resets, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_5_ten_thousand_malformed_replies_neither_panic_nor_hang_nor_grow_the_client() {
    let before = resident_bytes();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| tokio::spawn(answered_wrongly(n)))
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "grown by {grown} bytes");
}
