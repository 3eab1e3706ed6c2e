//! What the service costs over HTTP itself: `wrk` on a warm query, in turns with a bare axum
//! handler that returns the same body, and how long `/health/live` takes meanwhile, also while
//! Redis is frozen.
//!
//! `service [--rounds N] [--seconds N] [--connections N] [--steadfast PROGRAM] [--out FILE]`. Needs
//! `wrk` and `redis-server`.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The query that is asked: twenty people, three kilobytes.
const QUERY: &str = "/v1/queries/search_users?q=ada";
const LIVE: &str = "/health/live";
/// The promise: of the bare handler's requests a second, so many at least.
const PROMISED: f64 = 0.6;
/// The argument by which this program is asked to be the bare handler.
const BARE: &str = "--bare";

struct Arguments {
    rounds: usize,
    seconds: u64,
    connections: usize,
    program: PathBuf,
    out: PathBuf,
}

fn arguments() -> Result<Arguments, Failure> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut parsed = Arguments {
        rounds: 7,
        seconds: 5,
        connections: 64,
        program: here.join("../target/release/steadfast"),
        out: here.join("SERVICE.md"),
    };
    let mut rest = std::env::args().skip(1);
    while let Some(argument) = rest.next() {
        let value = rest.next().ok_or(format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--rounds" => parsed.rounds = value.parse()?,
            "--seconds" => parsed.seconds = value.parse()?,
            "--connections" => parsed.connections = value.parse()?,
            "--steadfast" => parsed.program = value.into(),
            "--out" => parsed.out = value.into(),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(parsed)
}

fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).as_deref() == Some(BARE) {
        return be_bare();
    }
    let arguments = arguments()?;
    let load_before = load();
    let demo =
        Server::start(Command::new(&arguments.program).args(["demo", "--listen", "127.0.0.1:0"]))?;
    let redis = demo
        .said
        .split("kill -9 ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or("the demo names no redis-server")?
        .to_owned();
    let body = warm(demo.address)?;
    let bare = Server::start(Command::new(std::env::current_exe()?).arg(BARE).arg(&body))?;
    let mut rounds = Vec::new();
    for number in 0..arguments.rounds {
        // Each is first in every other round.
        let (bare, service) = if number % 2 == 0 {
            let bare = turn(&bare, &arguments)?;
            (bare, turn(&demo, &arguments)?)
        } else {
            let service = turn(&demo, &arguments)?;
            (turn(&bare, &arguments)?, service)
        };
        eprintln!(
            "round {}: bare {:.0}/s, service {:.0}/s",
            number + 1,
            bare.per_second,
            service.per_second
        );
        rounds.push((bare, service));
    }
    let quiet = probe(
        demo.address,
        Duration::from_secs(2),
        &AtomicBool::new(false),
    );
    signal(&redis, "STOP")?;
    let frozen = turn(&demo, &arguments);
    signal(&redis, "CONT")?;
    let text = render(
        &arguments,
        &rounds,
        &frozen?,
        &quiet?,
        body.len(),
        (load_before, load()),
    )?;
    std::fs::write(&arguments.out, &text)?;
    println!("{text}");
    Ok(())
}

/// The handler beside which the service is measured: the least that axum can be asked to do.
#[tokio::main]
async fn be_bare() -> Result<(), Failure> {
    let body = std::env::args().nth(2).ok_or("no body")?;
    let body: bytes::Bytes = body.into();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{} is up. Ctrl-C", listener.local_addr()?);
    let answer = move || {
        let body = body.clone();
        async move { ([(CONTENT_TYPE, "application/json")], body) }
    };
    let router = Router::new()
        .route("/v1/queries/search_users", get(answer))
        .route(LIVE, get(async || "alive\n"));
    Ok(axum::serve(listener, router).await?)
}

/// A program that serves, ended with this one.
struct Server {
    child: Child,
    address: SocketAddr,
    said: String,
    _output: BufReader<ChildStdout>,
}

impl Server {
    fn start(command: &mut Command) -> Result<Self, Failure> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut said = String::new();
        while !said.contains("Ctrl-C") {
            if output.read_line(&mut said)? == 0 {
                return Err(format!("it ended before it served: {said}").into());
            }
        }
        let address = said
            .split([' ', '/'])
            .find_map(|word| word.parse().ok())
            .ok_or("it names no address")?;
        Ok(Self {
            child,
            address,
            said,
            _output: output,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The demo ends what it started when it is asked to, not when it is killed.
        let _ = signal(&self.child.id().to_string(), "TERM");
        let until = Instant::now() + Duration::from_secs(30);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(pid: &str, name: &str) -> Result<(), Failure> {
    let status = Command::new("kill")
        .args([&format!("-{name}"), pid])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("kill -{name} {pid}: {status}").into())
    }
}

/// Asks until the answer comes from memory; answers with its body.
fn warm(address: SocketAddr) -> Result<String, Failure> {
    let mut connection = Connection::to(address)?;
    for _ in 0..100 {
        let body = connection.ask(QUERY)?;
        if body.contains("\"source\":\"memory\"") {
            return Ok(body);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the query never came from memory".into())
}

/// One turn of one server.
struct Turn {
    per_second: f64,
    p50: String,
    p99: String,
    trouble: Vec<String>,
    live: Times,
}

fn turn(server: &Server, arguments: &Arguments) -> Result<Turn, Failure> {
    let over = Arc::new(AtomicBool::new(false));
    let prober = {
        let (over, address) = (Arc::clone(&over), server.address);
        std::thread::spawn(move || probe(address, Duration::from_secs(3600), &over))
    };
    let output = Command::new("wrk")
        .args(["--latency", "--threads", "2"])
        .args(["--connections", &arguments.connections.to_string()])
        .args(["--duration", &format!("{}s", arguments.seconds)])
        .arg(format!("http://{}{QUERY}", server.address))
        .output()
        .map_err(|error| format!("wrk: {error}; apt-get install wrk"))?;
    over.store(true, Relaxed);
    let live = prober.join().map_err(|_| "the probe panicked")??;
    let text = String::from_utf8(output.stdout)?;
    let after = |words: &str| {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(words));
        line.map(|rest| rest.trim().to_owned())
            .ok_or(format!("no {words} in {text}"))
    };
    let trouble = text
        .lines()
        .filter(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    Ok(Turn {
        per_second: after("Requests/sec:")?.parse()?,
        p50: after("50%")?,
        p99: after("99%")?,
        trouble: trouble.map(|line| line.trim().to_owned()).collect(),
        live,
    })
}

/// How long each of many questions took, in order of length.
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, quantile: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0
            .get((last as f64 * quantile).round() as usize)
            .copied()
            .unwrap_or_default()
    }

    fn row(&self, name: &str) -> String {
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|q| format!("{:.2?}", self.at(q)));
        format!("| {name} | {} | {p50} | {p99} | {most} |\n", self.0.len())
    }
}

/// Asks for liveness, a hundred times a second, until `over` or for `long`.
fn probe(address: SocketAddr, long: Duration, over: &AtomicBool) -> Result<Times, Failure> {
    let until = Instant::now() + long;
    let mut connection = Connection::to(address)?;
    let mut times = Vec::new();
    while !over.load(Relaxed) && Instant::now() < until {
        let began = Instant::now();
        let body = connection.ask(LIVE)?;
        times.push(began.elapsed());
        if body != "alive\n" {
            return Err(format!("{LIVE} answered {body:?}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    times.sort_unstable();
    Ok(Times(times))
}

/// One connection that is kept.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn to(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, path: &str) -> Result<String, Failure> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(format!("the connection ended before {path} was answered").into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?)
    }
}

fn render(
    arguments: &Arguments,
    rounds: &[(Turn, Turn)],
    frozen: &Turn,
    quiet: &Times,
    body: usize,
    load: (f64, f64),
) -> Result<String, Failure> {
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|(bare, service)| service.per_second / bare.per_second)
        .collect();
    let ratio = median(&ratios);
    let verdict = if ratio >= PROMISED {
        "kept"
    } else {
        "not kept"
    };
    let (rounds_run, seconds) = (arguments.rounds, arguments.seconds);
    let mut out = format!(
        "# The service beside a bare handler\n\n\
         Written by `scripts/bench service`, the last part of `make bench`; do not edit. `wrk` with two threads and {} connections asks\n\
         `{QUERY}` of the demo with a warm cache, and of an axum handler that returns the same {body} bytes and does nothing else:\n\
         {rounds_run} rounds of {seconds} s each, in turns, on the same machine, which `wrk` shares with them. The service does all it does by\n\
         default: limits, checks of host and origin, metrics, the answer's source and age.\n\n{}\nLoad over the last minute: {:.1} before, {:.1} after.\n\n\
         **{ratio:.2} of the bare handler's requests a second (median of the rounds). Promised: {PROMISED}; {verdict}.**\n\n\
         | round | bare, requests/s | service, requests/s | ratio | bare p50, p99 | service p50, p99 |\n|---|---:|---:|---:|---|---|\n",
        arguments.connections,
        machine()?,
        load.0,
        load.1,
    );
    for (number, ((bare, service), ratio)) in rounds.iter().zip(&ratios).enumerate() {
        writeln!(
            out,
            "| {} | {:.0} | {:.0} | {ratio:.2} | {}, {} | {}, {} |",
            number + 1,
            bare.per_second,
            service.per_second,
            bare.p50,
            bare.p99,
            service.p50,
            service.p99
        )?;
    }
    let all = |of: fn(&(Turn, Turn)) -> &Turn| {
        let mut all: Vec<Duration> = rounds
            .iter()
            .flat_map(|round| &of(round).live.0)
            .copied()
            .collect();
        all.sort_unstable();
        Times(all)
    };
    writeln!(
        out,
        "\n## `{LIVE}`, asked a hundred times a second meanwhile\n\n| while | asked | p50 | p99 | longest |\n|---|---:|---:|---:|---:|"
    )?;
    out.push_str(&quiet.row("nobody else asks"));
    out.push_str(&all(|round| &round.0).row("the bare handler is saturated, for comparison"));
    out.push_str(&all(|round| &round.1).row("the service is saturated"));
    out.push_str(
        &frozen
            .live
            .row("the service is saturated and its Redis frozen"),
    );
    writeln!(
        out,
        "\nWith Redis frozen (`SIGSTOP`) the service answered {:.0} requests a second, p50 {}, p99 {}.",
        frozen.per_second, frozen.p50, frozen.p99
    )?;
    let turns = rounds.iter().flat_map(|(bare, service)| [bare, service]);
    let trouble: Vec<&str> = turns
        .chain([frozen])
        .flat_map(|turn| &turn.trouble)
        .map(String::as_str)
        .collect();
    if trouble.is_empty() {
        out.push_str("Every answer of every turn was a 200.\n");
    } else {
        writeln!(out, "Trouble: {}.", trouble.join("; "))?;
    }
    Ok(out)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn load() -> f64 {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

fn machine() -> Result<String, Failure> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("an unknown processor", |(_, name)| name.trim());
    Ok(format!(
        "{} cores of {name}.",
        std::thread::available_parallelism()?
    ))
}
