//! What the system gives the program, and what people give it in the place of an address.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::program::{Ended, Lines, PATIENCE, finish, run, signal, steadfast};

/// `steadfast serve` by a shell that has set a limit, and where it serves.
fn serve(limit: &str, folder: &tempfile::TempDir) -> (Child, SocketAddr) {
    let template = steadfast(&[]);
    let config = folder.path().join("steadfast.toml");
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\ndrain_delay = '0s'\n[database]\nurl = 'sqlite://{}'\n[redis]\nurl = 'redis://127.0.0.1:1'\n",
        folder.path().join("t.db").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("sh");
    let line = format!("ulimit {limit} && exec \"$0\" serve --config \"$1\"");
    command
        .arg("-c")
        .arg(line)
        .arg(template.get_program())
        .arg(config);
    for (name, value) in template.get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let line = Lines::of(&mut child).next();
    let address = line.rsplit('/').next().unwrap().parse().unwrap();
    (child, address)
}

async fn end(child: Child) -> Ended {
    signal(child.id(), "TERM");
    finish(child).await
}

#[tokio::test]
async fn s14_few_open_files_leave_room_for_health_and_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (child, address) = serve("-n 64", &folder);
    // More than there is room for, and none of them says a word.
    let idle: Vec<TcpStream> = (0..45)
        .map_while(|_| TcpStream::connect(address).ok())
        .collect();
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    });
    let answer = asked.await.unwrap();
    let held = idle.len();
    drop(idle);
    let ended = end(child).await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "with {held} idle: {answer}\n{}",
        ended.all()
    );
    assert!(ended.stderr.contains("LimitNOFILE"), "{}", ended.all());
    let complaints = ended.stderr.matches("could not be accepted").count();
    assert!(complaints <= 30, "{complaints}: {}", ended.all());
}

#[tokio::test]
async fn s14_the_soft_limit_on_open_files_is_raised_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let (child, _) = serve("-Sn 80", &folder);
    let pid = child.id();
    let raised = async {
        loop {
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let line = limits
                .lines()
                .find(|line| line.starts_with("Max open files"))
                .unwrap();
            if line.split_whitespace().nth(3) != Some("80") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let raised = tokio::time::timeout(PATIENCE, raised).await;
    let ended = end(child).await;
    assert!(raised.is_ok(), "{}", ended.all());
    assert!(
        ended.stderr.contains("the limit on open files is raised"),
        "{}",
        ended.all()
    );
}

/// What Azure shows, and passwords with all that ends one in a URL.
const NOT_ADDRESSES: [&str; 5] = [
    "cache.example:6380,password=hunter2=,ssl=True,abortConnect=False",
    "redis://:hunter2@cache.example/x@h:6379",
    "redis://:p@hunter2/x@h:6379/0",
    "redis://:hunter2#x@h",
    "u:hunter2@h:6379",
];

#[tokio::test]
async fn s10_what_is_no_address_is_explained_and_never_quoted() {
    for text in NOT_ADDRESSES {
        for args in [
            &[
                "drill",
                "run",
                "crash",
                "--target",
                text,
                "--command",
                "true",
            ][..],
            &["drill", "proxy", "--upstream", text],
            &[
                "drill",
                "proxy",
                "--upstream",
                "127.0.0.1:1",
                "--listen",
                text,
            ],
            &["probe", text],
            &["status", text],
        ] {
            let ended = run(args).await;
            assert_eq!(ended.status, Some(2), "{}", ended.all());
            assert!(
                !ended.all().contains("hunter2"),
                "{args:?}: {}",
                ended.all()
            );
        }
        for command in [["config", "check"], ["config", "show"]] {
            for variable in ["REDIS_URL", "STEADFAST__REDIS__URL", "DATABASE_URL"] {
                let mut command = steadfast(&command);
                let ended = finish(command.env(variable, text).spawn().unwrap()).await;
                assert_eq!(ended.status, Some(78), "{}", ended.all());
                assert!(
                    !ended.all().contains("hunter2"),
                    "{variable}: {}",
                    ended.all()
                );
            }
        }
    }
    let azure = run(&["probe", NOT_ADDRESSES[0]]).await;
    assert!(
        azure.stderr.contains("rediss://:PASSWORD@HOST:6380"),
        "{}",
        azure.all()
    );
    let status = run(&["status", "http://u:hunter2@127.0.0.1:1"]).await;
    assert_eq!(status.status, Some(69), "{}", status.all());
    assert!(!status.all().contains("hunter2"), "{}", status.all());
    let mut token = steadfast(&["config", "show"]);
    token.env("DATABASE_URL", "mysql://hunter2@h/db");
    let shown = finish(token.spawn().unwrap()).await;
    assert_eq!(shown.status, Some(0), "{}", shown.all());
    assert!(!shown.all().contains("hunter2"), "{}", shown.all());
}

/// The configuration of a service that needs nothing.
fn alone(folder: &tempfile::TempDir, more: &str) -> std::path::PathBuf {
    let config = folder.path().join("alone.toml");
    let database = folder.path().join("alone.db");
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\ndrain_delay = '0s'\n{more}\n[database]\nurl = 'sqlite://{}'\n[redis]\nurl = 'redis://127.0.0.1:1'\n",
        database.display()
    );
    std::fs::write(&config, text).unwrap();
    config
}

#[tokio::test]
async fn s9_a_service_whose_log_nobody_reads_ends_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let secret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let config = alone(&folder, "");
    let auth = format!(
        "[auth]\nissuer = 'i'\naudience = 'a'\n[auth.keys.k]\nalgorithm = 'HS256'\nsecret = '{secret}'\n"
    );
    let text = std::fs::read_to_string(&config).unwrap() + &auth;
    std::fs::write(&config, text).unwrap();
    // Standard error is a pipe, and stays one that nobody reads.
    let mut child = steadfast(&["serve", "--config", config.to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut lines = Lines::of(&mut child);
    let address: SocketAddr = lines.next().rsplit('/').next().unwrap().parse().unwrap();
    // At most 100 refusals a second are written down, and they are to be more than a pipe holds.
    let mut ticker = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..600 {
        ticker.tick().await;
        let refused = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
                .write_all(
                    b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
                )
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = refused.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    signal(child.id(), "TERM");
    assert_eq!(crate::program::wait(&mut child).await, Some(0));
}

#[tokio::test]
async fn s9_a_service_that_is_told_to_end_while_it_starts_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let config = alone(&folder, "");
    for name in ["TERM", "INT"] {
        for pause in [10, 20, 30, 40, 60, 80] {
            let child = steadfast(&["serve", "--config", config.to_str().unwrap()])
                .spawn()
                .unwrap();
            tokio::time::sleep(Duration::from_millis(pause)).await;
            signal(child.id(), name);
            let ended = finish(child).await;
            // None: by the signal itself, before it was listened for.
            assert!(
                matches!(ended.status, Some(0) | None),
                "{name} after {pause} ms: {}",
                ended.all()
            );
        }
    }
}

#[tokio::test]
async fn status_of_a_service_that_refuses_says_so_and_exits_69() {
    let folder = tempfile::tempdir().unwrap();
    let config = alone(&folder, "");
    let mut child = steadfast(&["serve", "--config", config.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = Lines::of(&mut child);
    let address: SocketAddr = lines.next().rsplit('/').next().unwrap().parse().unwrap();
    // Whatever is behind this, it is not health.
    let refused = run(&["status", &format!("http://{address}/v1")]).await;
    assert_eq!(refused.status, Some(69), "{}", refused.all());
    assert!(refused.stderr.contains("answered 404"), "{}", refused.all());
    assert_eq!(refused.stdout, "");
    let asked = run(&["status", &format!("http://{address}")]).await;
    assert_eq!(asked.status, Some(0), "{}", asked.all());
    signal(child.id(), "TERM");
    assert_eq!(crate::program::wait(&mut child).await, Some(0));
}
