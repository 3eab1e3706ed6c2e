//! The application on a real Redis: its own routes, ours below `/data`, and an end by Ctrl-C.

use std::net::SocketAddr;

use steadfast_drill::process::{Redis, Scratch};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

async fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn c21_a_program_with_a_router_of_its_own_puts_the_service_below_a_path() {
    let redis = Redis::start().await.unwrap();
    let folder = Scratch::new("steadfast-outside-").unwrap();
    let database = format!("sqlite://{}/data.db", folder.path().display());
    let mut program = Command::new(env!("CARGO_BIN_EXE_service"));
    program
        .args([redis.url(), database])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut program = program.spawn().unwrap();
    let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
    let address = said.next_line().await.unwrap().unwrap().parse().unwrap();

    assert!(get(address, "/").await.ends_with("a page of our own\n"));
    assert!(
        get(address, "/elsewhere")
            .await
            .ends_with("nothing of ours\n")
    );
    let asked = get(address, "/double").await;
    assert!(asked.contains(r#""rows":[{"twice":42}]"#), "{asked}");
    let read = get(address, "/data/v1/queries/double?n=4").await;
    assert!(read.contains(r#""rows":[{"twice":8}]"#), "{read}");
    let ready = get(address, "/data/health/ready").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let drills = get(address, "/data/v1/drills").await;
    assert!(drills.contains(r#""enabled":false"#), "{drills}");
    let unknown = get(address, "/data/v1/nothing").await;
    assert!(
        unknown.starts_with("HTTP/1.1 404") && unknown.contains("there is nothing at this address"),
        "{unknown}"
    );

    let pid = program.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    assert_eq!(said.next_line().await.unwrap().as_deref(), Some("closed"));
    assert!(program.wait().await.unwrap().success());
}
