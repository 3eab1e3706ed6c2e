//! Calls a second, time per call and processor time per call, client by client in turns.
//!
//! The machine is never quiet for a whole run. So each repeat asks every client in turn, ratios are
//! taken within a repeat, and what is reported is the median of those.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use steadfast_drill::process::Redis;

use crate::subjects::{Connected, Kind, SetUpError, Setup, Subject};
use crate::with_subject;
use crate::workloads::Workload;

/// Each caller times one call in so many.
const TIMED: usize = 8;

/// Which measurement.
pub type Cell = (Workload, usize, Kind);

/// What one turn showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub cpu_us: f64,
}

/// Every turn of every cell, in order of the repeats.
#[derive(Debug, Default)]
pub struct Throughput {
    pub turns: HashMap<Cell, Vec<Figures>>,
    pub failures: Vec<String>,
}

impl Throughput {
    pub fn median(&self, cell: Cell, of: fn(&Figures) -> f64) -> Option<f64> {
        median(self.turns.get(&cell)?.iter().map(of).collect())
    }

    /// The median over repeats of the ratio between two clients within a repeat.
    pub fn ratio(
        &self,
        workload: Workload,
        callers: usize,
        of: fn(&Figures) -> f64,
        ours: Kind,
        theirs: Kind,
    ) -> Option<f64> {
        let ours = self.turns.get(&(workload, callers, ours))?;
        let theirs = self.turns.get(&(workload, callers, theirs))?;
        median(
            ours.iter()
                .zip(theirs)
                .map(|(ours, theirs)| of(ours) / of(theirs))
                .collect(),
        )
    }

    /// The fastest client beside ours.
    pub fn fastest_other(&self, workload: Workload, callers: usize) -> Option<Kind> {
        let speed =
            |kind: Kind| self.median((workload, callers, kind), |figures| figures.per_second);
        let beside = |(of, by, kind): &Cell| (*of, *by) == (workload, callers) && !kind.is_ours();
        self.turns
            .keys()
            .filter(|cell| beside(cell))
            .map(|(_, _, kind)| *kind)
            .max_by(|a, b| {
                speed(*a)
                    .unwrap_or(0.0)
                    .total_cmp(&speed(*b).unwrap_or(0.0))
            })
    }
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub repeats: usize,
    pub turn: Duration,
}

/// Of the workloads whose name contains `rows`.
pub async fn measure(redis: &Redis, pace: Pace, rows: &str) -> Result<Throughput, SetUpError> {
    let mut subjects = Vec::new();
    for kind in Kind::ALL {
        subjects.push((kind, kind.connect(&redis.url(), Setup::AsItComes).await?));
    }
    let rows = Workload::ALL
        .into_iter()
        .filter(|row| row.name().contains(rows));
    Ok(in_turns(subjects, pace, rows).await)
}

/// Each of these clients in each of these workloads.
pub async fn in_turns(
    mut subjects: Vec<(Kind, Connected)>,
    pace: Pace,
    rows: impl Iterator<Item = Workload>,
) -> Throughput {
    let mut result = Throughput::default();
    for workload in rows {
        // What the ratios are named for is measured longest.
        let repeats = if workload == Workload::GET {
            pace.repeats * 2 - 1
        } else {
            pace.repeats
        };
        for callers in workload.callers() {
            eprintln!("  {}, {callers} callers", workload.name());
            for repeat in 0..repeats {
                // Whoever comes first in one repeat comes later in the next.
                subjects.rotate_left(3);
                for (kind, subject) in &subjects {
                    match turn(subject, workload, callers, pace.turn).await {
                        Ok(figures) => result
                            .turns
                            .entry((workload, callers, *kind))
                            .or_default()
                            .push(figures),
                        Err(why) => result.failures.push(format!(
                            "{}, {} callers, repeat {repeat}: {}: {why}",
                            workload.name(),
                            callers,
                            kind.name()
                        )),
                    }
                }
            }
        }
    }
    result
}

/// One client's turn.
pub async fn turn(
    subject: &Connected,
    workload: Workload,
    callers: usize,
    length: Duration,
) -> Result<Figures, String> {
    with_subject!(subject.clone(), subject => callers_at_work(subject, workload, callers, length).await)
}

async fn callers_at_work<S: Subject>(
    subject: S,
    workload: Workload,
    callers: usize,
    length: Duration,
) -> Result<Figures, String> {
    // Connections are made and buffers grown before the clock runs.
    workload
        .call(&subject)
        .await
        .map_err(|error| error.to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let tasks: Vec<_> = (0..callers)
        .map(|_| tokio::spawn(caller(subject.clone(), workload, Arc::clone(&stop))))
        .collect();
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    let (mut calls, mut times) = (0u64, Vec::new());
    for task in tasks {
        let (made, timed) = task.await.map_err(|error| error.to_string())??;
        calls += made;
        times.extend(timed);
    }
    let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    times.sort_unstable();
    let quantile = |q: f64| {
        times
            .get(((times.len() as f64 * q) as usize).min(times.len().saturating_sub(1)))
            .map_or(0.0, |ns| f64::from(*ns) / 1e3)
    };
    Ok(Figures {
        per_second: calls as f64 / took,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        cpu_us: cpu * 1e6 / calls as f64,
    })
}

async fn caller<S: Subject>(
    subject: S,
    workload: Workload,
    stop: Arc<AtomicBool>,
) -> Result<(u64, Vec<u32>), String> {
    let (mut calls, mut times) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        workload
            .call(&subject)
            .await
            .map_err(|error| error.to_string())?;
        times.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
        for _ in 1..TIMED {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            workload
                .call(&subject)
                .await
                .map_err(|error| error.to_string())?;
            calls += 1;
        }
        calls += 1;
    }
    Ok((calls, times))
}

/// Processor time of this process, in its own code and in the kernel.
fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask about itself");
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// What redis-benchmark reaches with so many connections, each with so many commands under way: the
/// limit of server and machine.
pub async fn limit(
    redis: &Redis,
    connections: usize,
    pipelined: usize,
    calls: usize,
) -> Option<f64> {
    let output = tokio::process::Command::new("redis-benchmark")
        .args([
            "-p",
            &redis.port().to_string(),
            "-t",
            "set,get",
            "-d",
            "64",
            "--csv",
        ])
        .args([
            "-c",
            &connections.to_string(),
            "-P",
            &pipelined.to_string(),
            "-n",
            &calls.to_string(),
        ])
        .output()
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().rfind(|line| line.starts_with("\"GET\""))?;
    line.split(',').nth(1)?.trim_matches('"').parse().ok()
}
