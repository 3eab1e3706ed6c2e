//! What an outage costs the callers of each client.
//!
//! Eight callers SET every 5 ms (a server that was killed comes back empty) while the server is
//! killed and started again, frozen and resumed, or while the wire to it is cut. Each client that
//! can be told so gives a call up after a second; a call that lasts longer than [`GUARD`] is ended
//! here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use steadfast_drill::process::Redis;

use crate::subjects::{Connected, Kind, SetUpError, Setup, Subject};
use crate::throughput::median;
use crate::wire::Wire;
use crate::with_subject;
use crate::workloads::Workload;

const CALLERS: usize = 8;
const EVERY: Duration = Duration::from_millis(5);
const STEADY: Duration = Duration::from_millis(400);
const FAULT: Duration = Duration::from_millis(1800);
/// How long after a fault a client may take to serve again before it counts as never.
const PATIENCE: Duration = Duration::from_secs(4);
const GUARD: Duration = Duration::from_secs(3);
/// A failure faster than this was known beforehand.
const FAST: Duration = Duration::from_millis(20);

/// In milliseconds unless named otherwise. `None`: not within the time of the trial.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trial {
    /// From the fault until calls fail at once.
    pub noticed: Option<f64>,
    /// Median time of a call that failed while the server was gone, in microseconds.
    pub refused_p50_us: Option<f64>,
    pub refused_p99_us: Option<f64>,
    /// The longest call of all.
    pub longest: f64,
    /// From the first answered PING after the fault (or the end of the freeze, or the cut) until a
    /// call is answered.
    pub back: Option<f64>,
}

#[derive(Clone, Debug)]
pub struct Outages {
    pub kind: Kind,
    pub killed: Vec<Trial>,
    pub frozen: Vec<Trial>,
    pub cut: Vec<Trial>,
    pub failures: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    Cut,
}

pub async fn measure(kind: Kind, repeats: usize) -> Outages {
    let mut outages = Outages {
        kind,
        killed: Vec::new(),
        frozen: Vec::new(),
        cut: Vec::new(),
        failures: Vec::new(),
    };
    for _ in 0..repeats {
        for fault in [Fault::Killed, Fault::Frozen, Fault::Cut] {
            let trials = match fault {
                Fault::Killed => &mut outages.killed,
                Fault::Frozen => &mut outages.frozen,
                Fault::Cut => &mut outages.cut,
            };
            match trial(kind, fault).await {
                Ok(trial) => trials.push(trial),
                Err(error) => outages.failures.push(format!("{}: {error}", kind.name())),
            }
        }
    }
    outages
}

/// The median over trials; `None` if in most of them it did not happen.
pub fn middle(trials: &[Trial], of: fn(&Trial) -> Option<f64>) -> Option<f64> {
    let values = trials
        .iter()
        .map(|trial| of(trial).unwrap_or(f64::INFINITY))
        .collect();
    median(values).filter(|value| value.is_finite())
}

#[derive(Clone, Copy)]
struct Call {
    began: Instant,
    took: Duration,
    answered: bool,
}

async fn trial(kind: Kind, fault: Fault) -> Result<Trial, SetUpError> {
    let redis = Redis::start().await?;
    let wire = Wire::to(redis.addr()).await?;
    let url = if fault == Fault::Cut {
        wire.url()
    } else {
        redis.url()
    };
    let connected = kind.connect(&url, Setup::Impatient).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let pulse: Vec<_> = (0..CALLERS)
        .map(|_| start_pulse(&connected, &stop, EVERY))
        .collect();
    tokio::time::sleep(STEADY).await;

    let struck = Instant::now();
    match fault {
        Fault::Killed => redis.kill().await,
        Fault::Frozen => redis.freeze()?,
        Fault::Cut => wire.cut(),
    }
    let mut refused = Vec::new();
    let mended = if fault == Fault::Cut {
        struck
    } else {
        tokio::time::sleep(FAULT - Duration::from_millis(400)).await;
        // Without a pause between its calls: what one refused call costs.
        let stop = Arc::new(AtomicBool::new(false));
        let hurried = start_pulse(&connected, &stop, Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(400)).await;
        stop.store(true, Ordering::Relaxed);
        match fault {
            Fault::Killed => redis.restart().await?,
            _ => redis.resume()?,
        }
        let mended = Instant::now();
        refused = hurried.await?;
        mended
    };
    tokio::time::sleep(PATIENCE).await;
    stop.store(true, Ordering::Relaxed);
    let mut calls = Vec::new();
    for task in pulse {
        calls.extend(task.await?);
    }
    calls.sort_by_key(|call| call.began);
    Ok(judge(&calls, &refused, struck, mended))
}

fn judge(calls: &[Call], refused: &[Call], struck: Instant, mended: Instant) -> Trial {
    let ms = |at: Instant, since: Instant| at.saturating_duration_since(since).as_secs_f64() * 1e3;
    let mut costs: Vec<f64> = refused
        .iter()
        .filter(|call| !call.answered && call.began < mended)
        .map(|call| call.took.as_secs_f64() * 1e6)
        .collect();
    costs.sort_by(f64::total_cmp);
    Trial {
        noticed: calls
            .iter()
            .find(|call| {
                call.began >= struck && call.began < mended && !call.answered && call.took < FAST
            })
            .map(|call| ms(call.began, struck)),
        refused_p50_us: costs.get(costs.len() / 2).copied(),
        refused_p99_us: costs.get(costs.len() * 99 / 100).copied(),
        longest: calls
            .iter()
            .map(|call| call.took.as_secs_f64() * 1e3)
            .fold(0.0, f64::max),
        back: calls
            .iter()
            .filter(|call| call.answered && call.began > struck && call.began + call.took >= mended)
            .map(|call| ms(call.began + call.took, mended))
            .reduce(f64::min),
    }
}

fn start_pulse(
    connected: &Connected,
    stop: &Arc<AtomicBool>,
    pause: Duration,
) -> tokio::task::JoinHandle<Vec<Call>> {
    let stop = Arc::clone(stop);
    with_subject!(connected.clone(), subject => tokio::spawn(pulse(subject, stop, pause)))
}

async fn pulse<S: Subject>(subject: S, stop: Arc<AtomicBool>, pause: Duration) -> Vec<Call> {
    let mut calls = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = tokio::time::timeout(GUARD, Workload::SET.call(&subject)).await;
        let answered = matches!(answer, Ok(Ok(())));
        calls.push(Call {
            began,
            took: began.elapsed(),
            answered,
        });
        if pause.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(pause).await;
        }
    }
    calls
}
