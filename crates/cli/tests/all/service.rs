//! The service as one program among others: killed, stopped and crowded while it is at work.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};
use steadfast_cache::{Database, DatabaseOptions, Param};
use steadfast_drill::process::Redis;
use steadfast_drill::waiting::{eventually, until};
use steadfast_server::config::SAMPLE;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::program::{Lines, PATIENCE, finish, signal, steadfast, wait};

/// People in the table.
const PEOPLE: u64 = 40;

/// A Redis, a table in SQLite, and the sample's configuration for both.
struct Site {
    redis: Redis,
    folder: tempfile::TempDir,
    database: Database,
}

impl Site {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("steadfast.toml"), SAMPLE).unwrap();
        let database = Database::connect(&url(folder.path()), DatabaseOptions::default()).unwrap();
        let mut tx = database.begin().await.unwrap();
        let table = "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, phone_number TEXT NOT NULL, \
                     email TEXT, created_at TEXT NOT NULL)";
        tx.execute(table, &[]).await.unwrap();
        for id in 1..=PEOPLE {
            let insert = "INSERT INTO users VALUES (?, ?, '1000', 'a@example.org', '2026-01-01')";
            let params = [Param::Int(id as i64), Param::Text(format!("person {id}"))];
            tx.execute(insert, &params).await.unwrap();
        }
        tx.commit().await.unwrap();
        let redis = Redis::start().await.unwrap();
        Self {
            redis,
            folder,
            database,
        }
    }

    /// Starts the program and waits until it listens.
    fn serve(&self, listen: SocketAddr, settings: &[(&str, &str)]) -> Program {
        let file = self.folder.path().join("steadfast.toml");
        let arguments = ["serve", "--config", file.to_str().unwrap()];
        let mut command = steadfast(&arguments);
        command
            .args(["--listen", &listen.to_string()])
            .env("REDIS_URL", self.redis.url())
            .env("DATABASE_URL", url(self.folder.path()))
            .env("STEADFAST__LOG__LEVEL", "off")
            .envs(settings.iter().copied())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = Lines::of(&mut child);
        let said = lines.next();
        let address = said.rsplit('/').next().and_then(|word| word.parse().ok());
        Program {
            address: address
                .unwrap_or_else(|| panic!("it does not say where it listens: {said:?}")),
            child,
            _lines: lines,
        }
    }

    async fn phone_number(&self, id: u64) -> u64 {
        let sql = "SELECT phone_number FROM users WHERE id = ?";
        let rows = self
            .database
            .select(sql, &[Param::Int(id as i64)])
            .await
            .unwrap();
        rows[0]["phone_number"].as_str().unwrap().parse().unwrap()
    }

    async fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT COUNT(*) AS n FROM {table}");
        self.database.select(&sql, &[]).await.unwrap()[0]["n"]
            .as_i64()
            .unwrap()
    }
}

fn url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("test.db").display())
}

struct Program {
    child: Child,
    address: SocketAddr,
    /// Kept open: a program whose output nobody takes may end.
    _lines: Lines,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ANYWHERE: &str = "127.0.0.1:0";

/// One question on a connection of its own; an error if the service is away, or went away before it
/// had answered.
async fn ask(address: SocketAddr, request: &str) -> io::Result<(u16, String, Value)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    answer(&mut BufReader::new(stream)).await
}

/// Status, head and body of the next answer on a connection.
async fn answer<S: AsyncBufReadExt + Unpin>(from: &mut S) -> io::Result<(u16, String, Value)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = head.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or_else(|| panic!("no length: {head}"))];
    from.read_exact(&mut body).await?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let text = |_| Value::String(String::from_utf8_lossy(&body).into_owned());
    let body = serde_json::from_slice(&body).unwrap_or_else(text);
    Ok((
        status.unwrap_or_else(|| panic!("not HTTP: {head}")),
        head,
        body,
    ))
}

fn get(path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: {connection}\r\n\r\n")
}

fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

async fn read_number(address: SocketAddr, id: u64) -> io::Result<u64> {
    let path = format!("/v1/queries/user_by_id?id={id}");
    let (status, _, body) = ask(address, &get(&path, "close")).await?;
    assert_eq!(status, 200, "{body}");
    Ok(body["rows"][0]["phone_number"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap())
}

/// What was acknowledged of each person's number.
type Acknowledged = Arc<Vec<AtomicU64>>;

/// Raises the numbers of a quarter of the people for as long as it may. Whoever made a change reads
/// it.
async fn change(address: SocketAddr, quarter: u64, known: Acknowledged, over: Arc<AtomicBool>) {
    let mut next = 1000;
    while !over.load(SeqCst) {
        next += 1;
        let id = 1 + (next * 4 + quarter) % PEOPLE;
        let order = json!({"id": id, "phone_number": next.to_string()});
        let request = post("/v1/statements/update_user_phone", &order);
        match ask(address, &request).await {
            Ok((200, _, _)) => {
                known[id as usize].store(next, SeqCst);
                if let Ok(read) = read_number(address, id).await {
                    assert_eq!(read, next, "its own change, after it was acknowledged");
                }
            }
            Ok((503, _, _)) => {} // SQLite was busy with the others
            Ok((status, _, body)) => panic!("{status}: {body}"),
            Err(_) => sleep(Duration::from_millis(20)).await, // it is dead
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_a_service_killed_at_work_loses_nothing_committed_and_leaves_nothing_stale() {
    let site = Site::start().await;
    let other = site.serve(ANYWHERE.parse().unwrap(), &[]);
    let mut killed = site.serve(ANYWHERE.parse().unwrap(), &[]);
    let address = killed.address;
    let over = Arc::new(AtomicBool::new(false));
    let known: Acknowledged = Arc::new((0..=PEOPLE).map(|_| AtomicU64::new(1000)).collect());
    let mut at_work = JoinSet::new();
    for quarter in 0..4 {
        at_work.spawn(change(address, quarter, known.clone(), over.clone()));
    }
    let (other_address, reading) = (other.address, over.clone());
    at_work.spawn(async move {
        let mut id = 0;
        while !reading.load(SeqCst) {
            id = id % PEOPLE + 1;
            read_number(other_address, id).await.unwrap(); // fills Redis and its own memory
        }
    });
    for _ in 0..3 {
        let before: u64 = known
            .iter()
            .map(|number| number.load(SeqCst))
            .max()
            .unwrap();
        let enough = || known.iter().any(|number| number.load(SeqCst) > before + 20);
        until("something is changed", enough).await;
        signal(killed.child.id(), "KILL");
        killed.child.wait().unwrap();
        killed = site.serve(address, &[]);
    }
    over.store(true, SeqCst);
    while let Some(ended) = at_work.join_next().await {
        ended.unwrap();
    }

    eventually("no invalidation waits", async || {
        site.count("steadfast_outbox").await == 0
    })
    .await;
    // One that comes anew has nothing but Redis to answer from.
    let fresh = site.serve(ANYWHERE.parse().unwrap(), &[]);
    for id in 1..=PEOPLE {
        let truth = site.phone_number(id).await;
        let acknowledged = known[id as usize].load(SeqCst);
        assert!(
            truth >= acknowledged,
            "{id}: {acknowledged} was committed, {truth} is there"
        );
        for address in [fresh.address, other.address, killed.address] {
            // The announcement may still be on its way; a stale answer that stays would stay for
            // minutes.
            eventually(&format!("{id} of {address} is {truth}"), async || {
                read_number(address, id).await.unwrap() == truth
            })
            .await;
        }
    }
}

#[tokio::test]
async fn s4_log_lines_are_json_where_that_is_asked_for() {
    let site = Site::start().await;
    let file = site.folder.path().join("steadfast.toml");
    let mut command = steadfast(&["serve", "--listen", ANYWHERE, "--config"]);
    command
        .arg(&file)
        .env("REDIS_URL", site.redis.url())
        .env("DATABASE_URL", url(site.folder.path()))
        .env("STEADFAST__LOG__FORMAT", "json")
        .env("STEADFAST__SERVER__DRAIN_DELAY", "0s");
    let mut child = command.spawn().unwrap();
    let mut lines = Lines::of(&mut child);
    let said = lines.next();
    assert!(said.contains("serves at"), "{said}");
    let address = said.rsplit('/').next().unwrap().parse().unwrap();
    signal(child.id(), "HUP");
    let history = get("/v1/history", "close");
    eventually("the configuration is read again", async || {
        let (_, _, history) = ask(address, &history).await.unwrap();
        history.to_string().contains("\"reloaded\"")
    })
    .await;
    signal(child.id(), "TERM");
    let ended = finish(child).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    let mut messages = Vec::new();
    for line in ended.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(
            line["level"].is_string() && line["timestamp"].is_string(),
            "{line}"
        );
        messages.push(line["message"].as_str().unwrap().to_owned());
    }
    for wanted in ["read again", "ending"] {
        assert!(
            messages.iter().any(|message| message.contains(wanted)),
            "{messages:?}"
        );
    }
}

/// Counts for about a second.
const SLOW: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) AS n FROM n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_sigterm_under_load_fails_not_one_request_that_was_accepted() {
    let site = Site::start().await;
    // What takes a second takes ten on a machine that has much else to do, and is not to be given
    // up.
    let settings = [
        ("STEADFAST__SERVER__DRAIN_DELAY", "300ms"),
        ("STEADFAST__SERVER__DRAIN_LIMIT", "60s"),
        ("STEADFAST__LIMITS__REQUEST_TIMEOUT", "60s"),
        ("STEADFAST__TTL__USER__HARD_LIMIT", "50s"),
        ("STEADFAST__QUERIES__SLOW__SQL", SLOW),
        ("STEADFAST__QUERIES__SLOW__TTL", "user"),
        (
            "STEADFAST__QUERIES__BIG__SQL",
            "SELECT hex(zeroblob(4000000)) AS big",
        ),
        ("STEADFAST__QUERIES__BIG__TTL", "user"),
    ];
    let mut program = site.serve(ANYWHERE.parse().unwrap(), &settings);
    let address = program.address;
    let answered = Arc::new(AtomicU64::new(0));
    let mut busy = JoinSet::new();
    for id in 1..=16 {
        busy.spawn(keep_asking(address, id, answered.clone()));
    }
    until("there is a load", || answered.load(SeqCst) >= 200).await;
    let mut slow = JoinSet::new();
    let under_way = Arc::new(AtomicU64::new(0));
    for number in 0..4 {
        slow.spawn(send_slowly(address, number, under_way.clone()));
        slow.spawn(read_slowly(address, under_way.clone()));
    }
    until("the slow ones are under way", || {
        under_way.load(SeqCst) >= 8
    })
    .await;
    slow.spawn(async move {
        let (status, _, body) = ask(address, &get("/v1/queries/slow", "close"))
            .await
            .unwrap();
        assert_eq!(
            (status, &body["rows"][0]["n"]),
            (200, &json!(3_000_000)),
            "{body}"
        );
    });
    // All else is answered from a cache: it is the slow query that runs.
    let runs = async {
        loop {
            let (_, _, metrics) = ask(address, &get("/metrics", "close")).await.unwrap();
            if metrics
                .as_str()
                .unwrap()
                .contains("steadfast_database_loads_running 1")
            {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, runs).await.unwrap();
    signal(program.child.id(), "TERM");
    while let Some(ended) = busy.join_next().await {
        ended.unwrap();
    }
    while let Some(ended) = slow.join_next().await {
        ended.unwrap();
    }
    assert_eq!(wait(&mut program.child).await, Some(0));
    assert_eq!(
        site.count("users").await,
        PEOPLE as i64 + 4,
        "each slow change was made"
    );
}

/// Asks on one connection until it is told to leave, as a load balancer does. Each answer must be
/// whole.
async fn keep_asking(address: SocketAddr, id: u64, answered: Arc<AtomicU64>) {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let request = get(&format!("/v1/queries/user_by_id?id={id}"), "keep-alive");
    loop {
        stream
            .get_mut()
            .write_all(request.as_bytes())
            .await
            .unwrap();
        let (status, head, body) = answer(&mut stream).await.unwrap();
        assert_eq!(status, 200, "{body}");
        answered.fetch_add(1, SeqCst);
        if head.contains("connection: close") {
            return;
        }
    }
}

/// Adds a person with a body that takes two seconds to send, once it is asked for.
async fn send_slowly(address: SocketAddr, number: u64, under_way: Arc<AtomicU64>) {
    let person = json!({"name": format!("slow {number}"), "phone_number": "2000"});
    let request = post("/v1/statements/create_user", &person);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{head}\r\nexpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; GO_ON.len()];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, GO_ON);
    under_way.fetch_add(1, SeqCst);
    let body = body.as_bytes();
    for piece in body.chunks(body.len().div_ceil(10)) {
        sleep(Duration::from_millis(200)).await;
        stream.write_all(piece).await.unwrap();
    }
    let (status, _, body) = answer(&mut BufReader::new(stream)).await.unwrap();
    assert_eq!(status, 200, "{body}");
}

const GO_ON: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Takes so long over an answer, which is far larger than what the system keeps for it, that all
/// else has ended before.
async fn read_slowly(address: SocketAddr, under_way: Arc<AtomicU64>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = get("/v1/queries/big", "close");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut whole = Vec::new();
    let mut piece = vec![0; 16 << 10];
    loop {
        let read = stream.read(&mut piece).await.unwrap();
        if read == 0 {
            break;
        }
        under_way.fetch_add(u64::from(whole.is_empty()), SeqCst);
        whole.extend_from_slice(&piece[..read]);
        if whole.len() < 400_000 {
            sleep(Duration::from_millis(60)).await;
        }
    }
    let (_, _, body) = answer(&mut &whole[..]).await.unwrap();
    let big = body["rows"][0]["big"].as_str().map(str::len);
    assert_eq!(
        big,
        Some(8_000_000),
        "an answer that was begun is not cut off"
    );
}

const SUBSCRIBERS: usize = 1000;
const DEAF: usize = 10;
/// Two buffers of at most 64 KiB for each connection, and what a task and its sockets take.
const EACH: u64 = 96 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_a_thousand_subscribers_cost_little_and_ten_deaf_ones_hold_up_nobody() {
    let site = Site::start().await;
    let program = site.serve(ANYWHERE.parse().unwrap(), &[]);
    let (address, pid) = (program.address, program.child.id());
    ask(address, &get("/v1/queries/user_by_id?id=1", "close"))
        .await
        .unwrap();
    let before = resident(pid);
    let mut deaf = Vec::new();
    let mut listening = JoinSet::new();
    for number in 0..SUBSCRIBERS {
        let socket = TcpSocket::new_v4().unwrap();
        let is_deaf = number % (SUBSCRIBERS / DEAF) == 0;
        if is_deaf {
            socket.set_recv_buffer_size(4096).unwrap();
        }
        let mut stream = socket.connect(address).await.unwrap();
        let request = get("/v1/events", "keep-alive");
        stream.write_all(request.as_bytes()).await.unwrap();
        if is_deaf {
            deaf.push(stream);
        } else {
            listening.spawn(listen(stream));
        }
    }
    // Something to tell besides the ticks; too seldom to be told as flapping, whose entry takes the
    // place of its earlier ones.
    for _ in 0..8 {
        sleep(Duration::from_millis(400)).await;
        let mut redis = TcpStream::connect(site.redis.addr()).await.unwrap();
        redis
            .write_all(b"CLIENT KILL TYPE normal\r\n")
            .await
            .unwrap();
    }
    let mut latest = Duration::ZERO;
    while let Some(ended) = listening.join_next().await {
        latest = latest.max(ended.unwrap());
        let grown = resident(pid).saturating_sub(before);
        assert!(
            grown < EACH * SUBSCRIBERS as u64,
            "it grew by {} KiB",
            grown >> 10
        );
    }
    assert!(
        latest < Duration::from_secs(20),
        "somebody was told {latest:?} late"
    );
    drop(deaf);
}

/// Takes events until it has heard twelve ticks and a lost connection; each but the first batch in
/// time and none left out. Answers how late the latest was.
async fn listen(stream: TcpStream) -> Duration {
    let mut lines = BufReader::new(stream).lines();
    let (mut expected, mut ticks, mut losses) = (None, 0, 0);
    let mut latest = Duration::ZERO;
    let began = unix_ms();
    while ticks < 12 || losses == 0 {
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let line = line.expect("the stream ended");
        if let Some(id) = line.strip_prefix("id: ") {
            let number: u64 = id.trim_end().rsplit('-').next().unwrap().parse().unwrap();
            assert_eq!(
                number,
                expected.unwrap_or(number),
                "events are told in order, each once"
            );
            expected = Some(number + 1);
        }
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        let data: Value = serde_json::from_str(data).unwrap();
        let at = data["at_ms"].as_u64().unwrap();
        ticks += usize::from(at >= began && data["reads"].is_object());
        losses += usize::from(data["event"] == "lost");
        if at >= began {
            latest = latest.max(Duration::from_millis(unix_ms().saturating_sub(at)));
        }
    }
    latest
}

#[expect(clippy::disallowed_methods, reason = "events carry a calendar date")]
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_millis() as u64
}

/// Bytes of a process in memory.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_a_file_that_hangs_while_it_is_read_again_keeps_neither_callers_nor_the_end_waiting() {
    let site = Site::start().await;
    let mut program = site.serve(ANYWHERE.parse().unwrap(), &[]);
    let file = site.folder.path().join("steadfast.toml");
    std::fs::remove_file(&file).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&file).status();
    assert!(made.unwrap().success());
    signal(program.child.id(), "HUP");
    // Opens as soon as the service reads from it, and gives it nothing.
    let opened = tokio::task::spawn_blocking(|| std::fs::OpenOptions::new().write(true).open(file));
    let held = timeout(PATIENCE, opened).await.unwrap().unwrap().unwrap();
    let request = "GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answered = timeout(PATIENCE, ask(program.address, request)).await;
    assert_eq!(answered.unwrap().unwrap().0, 200);
    signal(program.child.id(), "TERM");
    assert_eq!(wait(&mut program.child).await, Some(0));
    drop(held);
}
