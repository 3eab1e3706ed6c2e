//! The faults of a database's process, on real ones.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use steadfast_drill::fault::{Down, Latency, Toxic};
use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_drill::proxy::Proxy;

/// What the database's own client says, or none if it has no answer within the seconds given.
fn asked(client: &str, args: &[&str], seconds: &str) -> Option<String> {
    let output = Command::new("timeout")
        .arg(seconds)
        .arg(client)
        .args(args)
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn mariadb(server: &MariaDb, sql: &str, seconds: &str) -> Option<String> {
    let port = server.port().to_string();
    asked(
        "mariadb",
        &[
            "--no-defaults",
            "-h127.0.0.1",
            "-P",
            &port,
            "-uroot",
            "-N",
            "-e",
            sql,
            "steadfast",
        ],
        seconds,
    )
}

fn postgres(server: &Postgres, sql: &str, seconds: &str) -> Option<String> {
    asked("psql", &["-X", "-At", "-c", sql, &server.url()], seconds)
}

#[tokio::test]
async fn d1_a_mariadb_is_killed_frozen_and_restarted_with_its_data() {
    let server = MariaDb::start().await.unwrap();
    mariadb(
        &server,
        "CREATE TABLE t (n INT); INSERT INTO t VALUES (7)",
        "20",
    )
    .unwrap();

    server.freeze().unwrap();
    assert_eq!(mariadb(&server, "SELECT n FROM t", "0.5"), None);
    server.resume().unwrap();
    assert_eq!(mariadb(&server, "SELECT n FROM t", "20").unwrap(), "7");

    server.kill().await;
    assert!(std::net::TcpStream::connect(server.addr()).is_err());
    server.restart().await.unwrap();
    assert_eq!(mariadb(&server, "SELECT n FROM t", "20").unwrap(), "7");
    server.stop().await;
    assert_eq!(server.pid(), None);
}

/// A server that starts removes what its kind left in the folder for temporary files, in use or
/// not.
#[tokio::test]
async fn d1_no_mariadb_shares_its_temporary_files_with_another() {
    let server = MariaDb::start().await.unwrap();
    let folder = mariadb(&server, "SELECT @@tmpdir", "20").unwrap();
    assert_eq!(std::path::Path::new(&folder), server.folder());
}

#[tokio::test]
async fn d1_a_postgres_is_killed_frozen_and_restarted_with_its_data() {
    let server = Postgres::start().await.unwrap();
    postgres(
        &server,
        "CREATE TABLE t (n INT); INSERT INTO t VALUES (7)",
        "20",
    )
    .unwrap();

    server.freeze().unwrap();
    assert_eq!(postgres(&server, "SELECT n FROM t", "0.5"), None);
    server.resume().unwrap();
    assert_eq!(postgres(&server, "SELECT n FROM t", "20").unwrap(), "7");

    server.kill().await;
    assert!(std::net::TcpStream::connect(server.addr()).is_err());
    server.restart().await.unwrap();
    assert_eq!(postgres(&server, "SELECT n FROM t", "20").unwrap(), "7");
    server.stop().await;
    assert_eq!(server.pid(), None);
}

#[tokio::test]
async fn d1_a_frozen_postgres_answers_nothing_on_a_connection_that_was_there_before() {
    let server = Postgres::start().await.unwrap();
    let mut client = Command::new("psql")
        .args(["-X", "-At", &server.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut questions, answers) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let mut answers = BufReader::new(answers).lines();
    questions.write_all(b"SELECT 1;\n").unwrap();
    assert_eq!(answers.next().unwrap().unwrap(), "1");
    server.freeze().unwrap();
    questions.write_all(b"SELECT 2;\n").unwrap();
    // The client ends as soon as its last question is answered.
    drop(questions);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(client.try_wait().unwrap().is_none());
    server.resume().unwrap();
    assert_eq!(answers.next().unwrap().unwrap(), "2");
    assert!(client.wait().unwrap().success());
}

#[tokio::test]
async fn d1_a_database_behind_the_proxy_is_slow_or_down_and_comes_back() {
    let server = Postgres::start().await.unwrap();
    let proxy = Proxy::start(server.addr()).await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.addr());
    // The client is a process that is waited for; the proxy has to run meanwhile.
    let select = |seconds: &'static str| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || {
            asked("psql", &["-X", "-At", "-c", "SELECT 7", &url], seconds)
        })
    };
    assert_eq!(select("20").await.unwrap().unwrap(), "7");

    let start = tokio::time::Instant::now();
    let slow = proxy
        .add(Toxic::new(Latency::of_millis(200)))
        .await
        .unwrap();
    assert_eq!(select("20").await.unwrap().unwrap(), "7");
    assert!(start.elapsed() >= Duration::from_millis(200));
    proxy.remove(slow).await;

    let down = proxy.add(Toxic::new(Down {})).await.unwrap();
    assert_eq!(select("20").await.unwrap(), None);
    proxy.remove(down).await;
    assert_eq!(select("20").await.unwrap().unwrap(), "7");
}
