//! C21: the example runs by itself against a real server, and does what its comment promises.

use std::path::PathBuf;
use std::process::Stdio;

use steadfast_drill::process::Redis;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::PATIENCE;

async fn get(url: &str) -> String {
    let (host, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn c21_the_example_that_embeds_the_service_serves_its_own_pages_and_ours() {
    let redis = Redis::start().await.unwrap();
    let binary = std::env::current_exe().unwrap();
    let profile: PathBuf = binary.ancestors().nth(2).unwrap().into();
    let mut program = Command::new(profile.join("examples").join("embed"))
        .env("REDIS_URL", redis.url())
        .env("LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("`cargo build --examples` builds it");
    let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = timeout(PATIENCE, said.next_line()).await;
        line.expect("it says nothing").unwrap().unwrap_or_default()
    };

    let answer = get(&line().await).await;
    assert!(answer.contains(r#""rows":[{"twice":42}]"#), "{answer}");
    let query = get(&line().await).await;
    assert!(query.contains(r#""rows":[{"twice":8}]"#), "{query}");
    let health = get(&line().await).await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");

    let pid = program.id().unwrap().to_string();
    let interrupted = Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(interrupted.unwrap().success());
    assert_eq!(line().await, "closed");
    assert!(program.wait().await.unwrap().success());
}
