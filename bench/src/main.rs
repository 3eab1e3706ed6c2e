//! Steadfast's client and eight others, side by side in one run: what they do in a second, and what
//! an outage costs their callers.
//!
//! `steadfast-bench [--quick] [--runs N] [--only NAME] [--rows TEXT] [--outages] [--cluster]
//! [--out FILE]`.
//! `--only` runs one client's GETs (or `--rows`) and nothing else, for a profiler, with `--cluster`
//! on a cluster; `--outages` measures those alone and prints them; `--cluster` compares the clients
//! of a cluster, for CLUSTER.md, with `--rows` only in the rows that are named so.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use steadfast_drill::process::{Cluster, Redis};

mod memory;
mod outage;
mod report;
mod subjects;
mod throughput;
mod wire;
mod workloads;

use report::Run;
use subjects::{Kind, SetUpError, Setup};
use throughput::Pace;
use workloads::Workload;

struct Arguments {
    quick: bool,
    runs: usize,
    only: Option<String>,
    rows: Option<String>,
    outages: bool,
    cluster: bool,
    out: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, SetUpError> {
    let mut parsed = Arguments {
        quick: false,
        runs: 1,
        only: None,
        rows: None,
        outages: false,
        cluster: false,
        out: None,
    };
    let mut rest = std::env::args().skip(1);
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--quick" => parsed.quick = true,
            "--runs" => parsed.runs = value()?.parse()?,
            "--only" => parsed.only = Some(value()?),
            "--outages" => parsed.outages = true,
            "--rows" => parsed.rows = Some(value()?),
            "--cluster" => parsed.cluster = true,
            "--out" => parsed.out = Some(value()?.into()),
            other => {
                return Err(format!(
                    "unknown argument {other}: try --quick, --runs N, --only NAME, --rows TEXT, --outages, --cluster, --out FILE"
                )
                .into());
            }
        }
    }
    Ok(parsed)
}

#[tokio::main]
async fn main() -> Result<(), SetUpError> {
    let mut given = std::env::args().skip(1);
    if let (Some(memory::ARGUMENT), Some(name), Some(url)) =
        (given.next().as_deref(), given.next(), given.next())
    {
        return memory::be_measured(&name, &url).await;
    }
    let arguments = arguments()?;
    if let Some(name) = &arguments.only {
        return match arguments.cluster {
            true => one_of_a_cluster(name, arguments.rows.as_deref().unwrap_or("GET of")).await,
            false => {
                let rows = arguments.rows.unwrap_or(Workload::GET.name());
                one(name, &rows).await
            }
        };
    }
    if arguments.cluster {
        return of_a_cluster(&arguments).await;
    }
    if let Some(rows) = &arguments.rows {
        return some(rows, &arguments).await;
    }
    if arguments.outages {
        let mut run = Run::default();
        measure_outages(&mut run, arguments.quick).await;
        println!("{}", report::of_outages(&run));
        return Ok(());
    }
    let mut runs = Vec::new();
    for number in 1..=arguments.runs {
        eprintln!("run {number} of {}", arguments.runs);
        runs.push(run(arguments.quick).await?);
        write(&runs, &arguments).await?;
    }
    // What they show does not vary as calls a second do: once is enough.
    let run = runs.last_mut().ok_or("--runs must be at least 1")?;
    measure_outages(run, arguments.quick).await;
    write(&runs, &arguments).await?;
    eprintln!("written to {}", arguments.out("RESULTS.md").display());
    Ok(())
}

impl Arguments {
    /// Where the page goes: beside the manifest under this name, unless told otherwise.
    fn out(&self, name: &str) -> PathBuf {
        let usual = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
        self.out.clone().unwrap_or_else(usual)
    }
}

/// The clients of a cluster, for a page of their own.
async fn of_a_cluster(arguments: &Arguments) -> Result<(), SetUpError> {
    let before = load();
    let cluster = Cluster::builder().replicas(0).start().await?;
    let nodes = cluster.addresses();
    let mut runs = Vec::new();
    for number in 1..=arguments.runs {
        eprintln!("run {number} of {}", arguments.runs);
        let mut subjects = Vec::new();
        for kind in Kind::OF_A_CLUSTER {
            subjects.push((kind, kind.connect_to_cluster(&nodes).await?));
        }
        if let Some((_, first)) = subjects.first() {
            with_subject!(first, subject => workloads::fill_through(subject).await.map_err(|error| error.to_string()))?;
        }
        let rows = Workload::OF_A_CLUSTER.into_iter();
        let named = arguments.rows.as_deref().unwrap_or_default();
        let rows = rows.filter(|row| row.name().contains(named));
        runs.push(throughput::in_turns(subjects, pace(arguments.quick), rows).await);
        let text = report::of_a_cluster(&runs, &machine().await?, (before, load()));
        std::fs::write(arguments.out("CLUSTER.md"), text)?;
    }
    eprintln!("written to {}", arguments.out("CLUSTER.md").display());
    Ok(())
}

/// After each step, so that one cut short leaves what it learnt.
async fn write(runs: &[Run], arguments: &Arguments) -> Result<(), SetUpError> {
    let text = report::render(runs, &machine().await?, arguments.quick);
    Ok(std::fs::write(arguments.out("RESULTS.md"), text)?)
}

async fn run(quick: bool) -> Result<Run, SetUpError> {
    let (began, load) = (Instant::now(), load());
    let redis = Redis::start().await?;
    workloads::fill(&redis).await?;
    let throughput = throughput::measure(&redis, pace(quick), "").await?;
    eprintln!("  redis-benchmark, memory");
    let mut limits = Vec::new();
    for (connections, pipelined, calls) in [
        (1, 1, 10_000),
        (64, 1, 100_000),
        (1, 64, 500_000),
        (8, 64, 1_000_000),
    ] {
        if let Some(speed) = throughput::limit(&redis, connections, pipelined, calls).await {
            limits.push((connections, pipelined, speed));
        }
    }
    workloads::fill(&redis).await?;
    let mut memory = Vec::new();
    for kind in Kind::ALL {
        memory.extend(memory::measure(kind, &redis.url()).await);
    }
    redis.stop().await;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    Ok(Run {
        throughput,
        outages: Vec::new(),
        memory,
        limits,
        load: (load, self::load()),
        minutes,
    })
}

async fn measure_outages(run: &mut Run, quick: bool) {
    let began = Instant::now();
    for kind in Kind::ALL {
        eprintln!("  outages: {}", kind.name());
        run.outages
            .push(outage::measure(kind, if quick { 1 } else { 2 }).await);
    }
    run.minutes += began.elapsed().as_secs_f64() / 60.0;
}

fn pace(quick: bool) -> Pace {
    let (repeats, turn) = if quick { (1, 100) } else { (5, 200) };
    Pace {
        repeats,
        turn: Duration::from_millis(turn),
    }
}

/// All clients in the rows that are named so, as a table on standard output: to see what a change
/// does.
async fn some(rows: &str, arguments: &Arguments) -> Result<(), SetUpError> {
    let mut runs = Vec::new();
    for _ in 0..arguments.runs {
        let redis = Redis::start().await?;
        workloads::fill(&redis).await?;
        runs.push(throughput::measure(&redis, pace(arguments.quick), rows).await?);
        redis.stop().await;
    }
    let runs: Vec<_> = runs.iter().collect();
    println!("{}", report::rows(&runs));
    Ok(())
}

/// One client's calls of the rows that are named so, for a profiler.
async fn one(name: &str, rows: &str) -> Result<(), SetUpError> {
    let kind = named(name, &Kind::ALL)?;
    let redis = Redis::start().await?;
    workloads::fill(&redis).await?;
    let subject = kind.connect(&redis.url(), Setup::AsItComes).await?;
    each(&subject, rows, &Workload::ALL).await
}

/// The same on a cluster.
async fn one_of_a_cluster(name: &str, rows: &str) -> Result<(), SetUpError> {
    let kind = named(name, &Kind::OF_A_CLUSTER)?;
    let cluster = Cluster::builder().replicas(0).start().await?;
    let subject = kind.connect_to_cluster(&cluster.addresses()).await?;
    with_subject!(&subject, subject => workloads::fill_through(subject).await.map_err(|error| error.to_string()))?;
    each(&subject, rows, &Workload::OF_A_CLUSTER).await
}

fn named(name: &str, kinds: &[Kind]) -> Result<Kind, SetUpError> {
    let mut kinds = kinds.iter().copied();
    let found = kinds.find(|kind| kind.name() == name);
    found.ok_or_else(|| "no such client".into())
}

async fn each(
    subject: &subjects::Connected,
    rows: &str,
    workloads: &[Workload],
) -> Result<(), SetUpError> {
    let rows = workloads.iter().filter(|row| row.name().contains(rows));
    for row in rows.copied() {
        for callers in row.callers() {
            let figures = throughput::turn(subject, row, callers, Duration::from_secs(3)).await?;
            println!("{}, {callers:4} callers: {figures:.2?}", row.name());
        }
    }
    Ok(())
}

/// Load of the machine over the last minute.
fn load() -> f64 {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

/// Where it ran.
async fn machine() -> Result<String, SetUpError> {
    let output = tokio::process::Command::new("redis-server")
        .arg("--version")
        .output()
        .await?;
    let server = String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .nth(2)
        .unwrap_or("?")
        .replace("v=", "");
    let processor = std::fs::read_to_string("/proc/cpuinfo")?;
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "{cores} cores of {processor}; redis-server {server} on the same machine, over 127.0.0.1."
    ))
}
