use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use steadfast_drill::waiting::until;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::program::{Lines, PATIENCE, finish, is_running, signal, steadfast, wait};
use crate::web::{Answer, get};

/// A running `steadfast demo`, and what it says of itself.
struct Demo {
    program: Child,
    address: SocketAddr,
    redis_port: u16,
    redis_pid: u32,
    /// What a killed demo leaves of its files goes with this.
    _folder: tempfile::TempDir,
    /// Kept open: a program whose output nobody takes may end.
    _lines: Lines,
}

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut program = steadfast(&["demo", "--listen", "127.0.0.1:0"])
            .env("TMPDIR", folder.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = Lines::of(&mut program);
        let first = lines.next();
        let mut address = None;
        for word in first.split([' ', '/']) {
            address = address.or(word.parse().ok());
        }
        let mut redis = (None, None);
        while let (None, _) | (_, None) = redis {
            let line = lines.next();
            assert!(
                !line.contains("Ctrl-C"),
                "the demo names neither the pid nor the port of its redis-server"
            );
            redis.0 = redis.0.or_else(|| number_after(&line, "kill -9 "));
            redis.1 = redis.1.or_else(|| number_after(&line, "--port "));
        }
        Self {
            program,
            address: address
                .unwrap_or_else(|| panic!("the first line names no address: {first:?}")),
            redis_pid: redis.0.unwrap(),
            redis_port: redis.1.unwrap().try_into().unwrap(),
            _folder: folder,
            _lines: lines,
        }
    }

    async fn search(&self, name: &str) -> Answer {
        get(self.address, &format!("/v1/queries/search_users?q={name}")).await
    }

    /// What `/health` says: as a whole, of Redis, and why. (The whole may be degraded by a busy
    /// machine alone.)
    async fn health(&self) -> [String; 3] {
        let health = get(self.address, "/health").await.json();
        let redis = &health["checks"]["redis"];
        [&health["status"], &redis["status"], &redis["message"]]
            .map(|word| word.as_str().unwrap().to_owned())
    }

    /// Waits until Redis is, or is no longer, `healthy` in the eyes of the service.
    async fn until_redis_is_healthy(&self, wanted: bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let [_, redis, message] = self.health().await;
            if (redis == "healthy") == wanted {
                return;
            }
            assert!(Instant::now() < until, "redis is still {redis}: {message}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn number_after(line: &str, words: &str) -> Option<u32> {
    let digits = line.split(words).nth(1)?;
    digits[..digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len())]
        .parse()
        .ok()
}

/// A redis-server of the test's own, ended with it.
struct Server(Child);

impl Server {
    fn start(port: u16) -> Self {
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            "/tmp",
        ]);
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn s11_the_demo_answers_what_it_proposes_first_from_sql_and_then_from_a_cache() {
    let demo = Demo::start();
    let first = demo.search("ada").await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.json()["source"], "database", "{first:?}");
    assert!(
        !first.json()["rows"].as_array().unwrap().is_empty(),
        "{first:?}"
    );

    let second = demo.search("ada").await;
    let source = second.json()["source"].as_str().unwrap().to_owned();
    assert!(["memory", "redis"].contains(&source.as_str()), "{second:?}");
    assert_eq!(first.json()["rows"], second.json()["rows"]);
    assert!(
        second.head.contains("cache-status:") && second.head.contains("hit"),
        "{}",
        second.head
    );
    demo.until_redis_is_healthy(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_is_felt_by_nobody_and_a_new_one_on_its_port_is_used() {
    let demo = Demo::start();
    let ended = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(demo.address, Arc::clone(&ended)));
    sleep(Duration::from_millis(500)).await;

    signal(demo.redis_pid, "KILL");
    demo.until_redis_is_healthy(false).await;
    let [status, _, why] = demo.health().await;
    assert!(
        status == "degraded" && !why.is_empty(),
        "{status}, because {why:?}"
    );
    for _ in 0..5 {
        assert_eq!(get(demo.address, "/health/ready").await.status, 200);
        sleep(Duration::from_millis(200)).await;
    }

    let _server = Server::start(demo.redis_port);
    demo.until_redis_is_healthy(true).await;
    sleep(Duration::from_millis(500)).await;
    ended.store(true, Ordering::Relaxed);

    let answers = load.await.unwrap();
    assert!(
        answers.len() > 100,
        "only {} requests were made",
        answers.len()
    );
    let failed: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status != 200)
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} failed: {:?}",
        failed.len(),
        answers.len(),
        failed[0]
    );
    let slowest = answers.iter().map(|answer| answer.took).max().unwrap();
    assert!(
        slowest < Duration::from_secs(10),
        "the slowest took {slowest:?}"
    );
}

/// Eight callers who ask for 1 000 different names, 200 times a second where the machine keeps up.
async fn load(address: SocketAddr, ended: Arc<AtomicBool>) -> Vec<Answer> {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (ended, asked) = (Arc::clone(&ended), Arc::clone(&asked));
        callers.spawn(async move {
            let mut tick = interval(Duration::from_millis(40));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut answers = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                tick.tick().await;
                let name = asked.fetch_add(1, Ordering::Relaxed) % 1_000;
                answers.push(get(address, &format!("/v1/queries/search_users?q=name{name}")).await);
            }
            answers
        });
    }
    callers.join_all().await.concat()
}

#[tokio::test]
async fn s11_ctrl_c_or_a_closed_terminal_ends_all_that_the_demo_started() {
    for name in ["INT", "HUP"] {
        ended_in_order_by(name).await;
    }
}

async fn ended_in_order_by(name: &str) {
    let mut demo = Demo::start();
    assert!(is_running(demo.redis_pid));
    signal(demo.program.id(), name);
    assert_eq!(wait(&mut demo.program).await, Some(0));
    assert!(
        !is_running(demo.redis_pid),
        "its redis-server was left behind"
    );
}

#[tokio::test]
async fn s11_a_demo_that_is_killed_takes_its_redis_with_it() {
    let mut demo = Demo::start();
    signal(demo.program.id(), "KILL");
    wait(&mut demo.program).await;
    until("its redis-server has ended", || !is_running(demo.redis_pid)).await;
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line_and_status_69() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = finish(steadfast(&["demo", "--listen", &address]).spawn().unwrap()).await;
    assert_eq!(ended.status, Some(69), "{}", ended.all());
    assert!(
        ended.stderr.contains(&address) && ended.stderr.contains("taken"),
        "{}",
        ended.all()
    );
    assert!(
        ended.stderr.lines().count() <= 2 && ended.stdout.is_empty(),
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn s11_without_a_redis_server_the_demo_starts_degraded_and_says_what_to_install() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = steadfast(&["demo", "--listen", "127.0.0.1:0"]);
    let mut program = command
        .env("PATH", empty.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = Lines::of(&mut program);
    let first = lines.next();
    let address: SocketAddr = first
        .split([' ', '/'])
        .find_map(|word| word.parse().ok())
        .unwrap();
    let mut said = String::new();
    while !said.contains("Ctrl-C") {
        said += &lines.next();
    }
    let answer = get(address, "/v1/queries/search_users?q=ada").await;
    signal(program.id(), "INT");
    assert_eq!(wait(&mut program).await, Some(0));
    assert!(
        said.contains("degraded") && said.contains("redis-server"),
        "{said}"
    );
    assert_eq!(answer.status, 200, "{answer:?}");
}
