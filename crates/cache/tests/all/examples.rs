//! C21: each example runs by itself against real servers, and prints what its comment promises.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use steadfast_drill::process::{Postgres, Redis};
use steadfast_drill::waiting::eventually;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

/// A compiled example, which stands beside this binary's folder.
fn example(name: &str) -> Command {
    let binary = std::env::current_exe().unwrap();
    let profile: PathBuf = binary.ancestors().nth(2).unwrap().into();
    let path = profile.join("examples").join(name);
    assert!(
        path.exists(),
        "{}: `cargo build --examples`",
        path.display()
    );
    let mut command = Command::new(path);
    command.kill_on_drop(true);
    command
}

async fn printed_by(name: &str) -> String {
    let redis = Redis::start().await.unwrap();
    let output = example(name).env("REDIS_URL", redis.url()).output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await;
    let output = output.expect("the example ends").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Memory is not believed for a moment after this process stood still, and then Redis answers.
fn held(printed: &str) -> String {
    printed.replace("by redis", "by memory")
}

#[tokio::test]
async fn c21_the_example_of_tags_forgets_what_carries_the_tag_and_nothing_else() {
    let expected = "books/1 costs 20, by database\nbooks/2 costs 30, by database\ntoys/1 costs 10, by database\nbooks/1 costs 20, by memory\n\
                    books/1 costs 10, by database\nbooks/2 costs 15, by database\ntoys/1 costs 10, by memory\n";
    assert_eq!(held(&printed_by("tags").await), expected);
}

#[tokio::test]
async fn c21_the_example_of_a_batch_asks_for_what_is_missing_in_one_query() {
    let expected = "  one query for [1, 2]\n1: Ada, by database\n2: Grace, by database\n  one query for [3, 9]\n2: Grace, by memory\n\
                    3: Edsger, by database\n1: Ada, by memory\n9: nobody, by database\n9: nobody, by memory\n3: Edsger, by memory\n";
    assert_eq!(held(&printed_by("batch").await), expected);
}

#[tokio::test]
async fn c21_the_example_of_warming_fills_both_tiers_before_anybody_asks() {
    let expected =
        "warmed: 3 of 3 in memory, 3 in Redis\nthe: memory\nthe: redis\naardvark: database\n";
    assert_eq!(printed_by("warming").await, expected);
}

/// Status, `x-source` and body of the answer.
async fn ask(at: &str, request: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let length = body.len();
    let text = format!("{request} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let source = head
        .lines()
        .find_map(|line| line.strip_prefix("x-source: "));
    (
        status,
        source.unwrap_or_default().to_owned(),
        body.to_owned(),
    )
}

#[tokio::test]
async fn c21_the_example_with_axum_and_postgres_serves_what_was_written_with_redis_and_without() {
    let (redis, postgres) = (
        Redis::start().await.unwrap(),
        Postgres::start().await.unwrap(),
    );
    let mut program = example("axum")
        .env("REDIS_URL", redis.url())
        .env("DATABASE_URL", postgres.url())
        .env("LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await;
    let line = line.expect("it says where it listens").unwrap().unwrap();
    let at = line
        .strip_prefix("http://")
        .and_then(|line| line.split_once('/'));
    let at = at.unwrap().0;

    let ada = r#"{"id":1,"name":"Ada"}"#;
    let first = ask(at, "GET /users/1", "").await;
    assert_eq!(first, (200, "database".to_owned(), ada.to_owned()));
    // Memory is believed once the channel from Redis is there.
    eventually("memory is believed", async || {
        ask(at, "GET /users/1", "").await.1 == "memory"
    })
    .await;
    assert_eq!(ask(at, "GET /users/9", "").await.0, 404);
    assert_eq!(ask(at, "GET /visits", "").await.2, "1");
    assert_eq!(ask(at, "PUT /users/9", "Nobody").await.0, 404);
    for (with, name) in [(true, "Grace"), (false, "Edsger")] {
        if !with {
            redis.kill().await;
        }
        assert_eq!(ask(at, "PUT /users/1", name).await.0, 204);
        let (status, source, body) = ask(at, "GET /users/1", "").await;
        assert_eq!(
            (status, &*source),
            (200, "database"),
            "its own write is read"
        );
        assert_eq!(body, ada.replace("Ada", name));
    }
    eventually("the loss of Redis is seen", async || {
        ask(at, "GET /visits", "").await.2 == "null"
    })
    .await;
    let health = ask(at, "GET /health", "").await.2;
    assert!(health.contains(r#""status":"degraded""#), "{health}");
}
