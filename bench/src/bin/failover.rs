//! What a failover costs callers: 2 000 INCRs a second by 64 callers while the primary moves,
//! through Steadfast and, in programs of their own language beside it, through redis-py's and
//! ioredis's clients for sentinels (`scripts/failover` starts them).
//!
//! Each INCR has a name of its own, so that in the end each can be asked for: an acknowledged one
//! that is not there is lost, one that is there twice was applied twice. All programs write
//! `caller number begun ended outcome` (microseconds of the clock of this machine), and are judged
//! here alike.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steadfast::{Certainty, Client};
use steadfast_drill::process::{Redis, Watched};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const CALLERS: u64 = 64;
/// Each caller's turn comes so often: 2 000 calls a second by all.
const TURN: Duration = Duration::from_micros(32_000);
const LENGTH: Duration = Duration::from_secs(12);
/// When the primary has its trouble, from the start of the load.
const AT: Duration = Duration::from_secs(3);
/// When a frozen primary wakes.
const WAKES: Duration = Duration::from_secs(9);

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Planned,
    Killed,
    Frozen,
}

/// One INCR as its program saw it.
struct Call {
    name: String,
    begun: u64,
    ended: u64,
    outcome: String,
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let programs: Vec<Vec<String>> = std::env::args()
        .skip(1)
        .map(|program| program.split(' ').map(str::to_owned).collect())
        .collect();
    println!(
        "| trouble | client | calls | errors | of those unknown | names above acknowledged | OKs lost | of those begun after the switch | named after | back in service after | longest call |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (trouble, title) in [
        (Trouble::Planned, "SENTINEL FAILOVER"),
        (Trouble::Killed, "SIGKILL of the primary"),
        (Trouble::Frozen, "SIGSTOP, and SIGCONT after the promotion"),
    ] {
        for program in std::iter::once(None).chain(programs.iter().map(Some)) {
            let name = program.map_or("Steadfast", |program| program[0].as_str());
            let row = run(trouble, program.map(|program| &program[1..])).await?;
            println!("| {title} | {name} | {row} |");
        }
    }
    Ok(())
}

async fn run(trouble: Trouble, program: Option<&[String]>) -> Result<String, Failed> {
    let watched = Watched::start().await?;
    let seeds: Vec<_> = watched
        .sentinels
        .iter()
        .map(|one| one.addr().to_string())
        .collect();
    // A program takes a while to start; it is told when the load begins.
    let start = now() + 3_000_000;
    let loading = async {
        match program {
            None => ours(&watched.url(), start).await,
            Some(program) => theirs(program, &seeds.join(","), start).await,
        }
    };
    let (calls, named) = tokio::try_join!(loading, make_trouble(&watched, trouble, start))?;
    let held = held_in_the_end(&watched, &calls).await?;
    Ok(judged(&calls, &held, start + AT.as_micros() as u64, named))
}

/// Microseconds of the machine's clock, which programs of any language read alike.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_micros() as u64)
}

async fn until(moment: u64) {
    sleep_until(Instant::now() + Duration::from_micros(moment.saturating_sub(now()))).await;
}

/// Makes it, and tells when two sentinels named the other server.
async fn make_trouble(watched: &Watched, trouble: Trouble, start: u64) -> Result<u64, Failed> {
    until(start + AT.as_micros() as u64).await;
    let [first, second] = &watched.data;
    match trouble {
        Trouble::Planned => {
            let order = ["SENTINEL", "FAILOVER", "main"];
            watched.sentinels[0].command(&order).await?;
        }
        Trouble::Killed => first.kill().await,
        Trouble::Frozen => first.freeze()?,
    }
    let named = loop {
        let mut votes = 0;
        for sentinel in &watched.sentinels {
            let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"];
            let answer = sentinel.command(&question).await?;
            let named: (String, u16) = redis::from_redis_value(answer)?;
            votes += usize::from(named.1 == second.port());
        }
        if votes >= 2 {
            break now();
        }
        sleep(Duration::from_millis(5)).await;
    };
    if trouble == Trouble::Frozen {
        until(start + WAKES.as_micros() as u64).await;
        first.resume()?;
    }
    Ok(named)
}

async fn ours(url: &str, start: u64) -> Result<Vec<Call>, Failed> {
    let client = Client::builder(url)?.connect().await?;
    until(start).await;
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let client = client.clone();
        callers.spawn(async move {
            let mut calls = Vec::new();
            let mut due = TURN * caller as u32 / CALLERS as u32;
            for number in 0.. {
                if due > LENGTH {
                    break;
                }
                sleep_until(begin + due).await;
                let name = format!("n:{caller}:{number}");
                let begun = now();
                let answer = client.send(redis::cmd("INCR").arg(&name)).await;
                let outcome = match answer.as_ref().map_err(steadfast::Error::certainty) {
                    Ok(_) => "ok",
                    Err(Certainty::Unknown) => "unknown",
                    Err(_) => "error",
                };
                let (outcome, ended) = (outcome.to_owned(), now());
                calls.push(Call {
                    name,
                    begun,
                    ended,
                    outcome,
                });
                // Whoever was kept waiting has missed its turns.
                while due <= begin.elapsed() {
                    due += TURN;
                }
            }
            calls
        });
    }
    let calls = callers.join_all().await;
    let _ = client.close(Duration::from_secs(1)).await;
    Ok(calls.into_iter().flatten().collect())
}

async fn theirs(program: &[String], seeds: &str, start: u64) -> Result<Vec<Call>, Failed> {
    let mut command = tokio::process::Command::new(&program[0]);
    command
        .args(&program[1..])
        .arg(seeds)
        .arg(start.to_string());
    command
        .args([CALLERS, TURN.as_micros() as u64, LENGTH.as_micros() as u64].map(|n| n.to_string()));
    command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = timeout(Duration::from_secs(120), command.output()).await??;
    if !output.status.success() {
        return Err(format!("{} ended with {}", program[0], output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .map(|line| read(line).ok_or_else(|| format!("what is `{line}`?").into()))
        .collect()
}

fn read(line: &str) -> Option<Call> {
    let mut words = line.split(' ');
    let (caller, number) = (words.next()?, words.next()?);
    Some(Call {
        name: format!("n:{caller}:{number}"),
        begun: words.next()?.parse().ok()?,
        ended: words.next()?.parse().ok()?,
        outcome: words.next()?.to_owned(),
    })
}

/// What the promoted server holds, once the old one follows it or is gone.
async fn held_in_the_end(
    watched: &Watched,
    calls: &[Call],
) -> Result<HashMap<String, u64>, Failed> {
    let [first, second] = &watched.data;
    let limit = Instant::now() + Duration::from_secs(60);
    while first.pid().is_some() && !follows(first).await && Instant::now() < limit {
        sleep(Duration::from_millis(50)).await;
    }
    let mut held = HashMap::new();
    for some in calls.chunks(500) {
        let names = some.iter().map(|call| call.name.as_str());
        let question: Vec<&str> = std::iter::once("MGET").chain(names).collect();
        let values: Vec<Option<u64>> = redis::from_redis_value(second.command(&question).await?)?;
        let known = some.iter().zip(values);
        held.extend(known.filter_map(|(call, value)| Some((call.name.clone(), value?))));
    }
    Ok(held)
}

async fn follows(server: &Redis) -> bool {
    let said = server.info("replication").await;
    said.is_ok_and(|said| said.contains("master_link_status:up"))
}

fn judged(calls: &[Call], held: &HashMap<String, u64>, troubled: u64, named: u64) -> String {
    let times = |call: &Call| held.get(&call.name).copied().unwrap_or(0);
    let ok = |call: &&Call| call.outcome == "ok";
    let count = |what: &dyn Fn(&Call) -> bool| calls.iter().filter(|call| what(call)).count();
    let errors = count(&|call| call.outcome != "ok");
    let told = calls
        .iter()
        .any(|call| call.outcome == "unknown" || call.outcome == "error");
    let unknown = match told || errors == 0 {
        true => count(&|call| call.outcome == "unknown").to_string(),
        false => "not told".to_owned(),
    };
    let back = calls
        .iter()
        .filter(ok)
        .filter(|call| times(call) > 0 && call.ended >= named);
    let back = back.map(|call| call.ended - named).min();
    let longest = calls
        .iter()
        .map(|call| call.ended - call.begun)
        .max()
        .unwrap_or(0);
    let ms = |micros: u64| match micros {
        0..10_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    };
    format!(
        "{} | {errors} | {unknown} | {} | {} | {} | {} | {} | {}",
        calls.len(),
        // Of one that is said not to have been applied, none.
        count(&|call| times(call) > u64::from(call.outcome != "error")),
        count(&|call| ok(&call) && times(call) == 0),
        count(&|call| ok(&call) && times(call) == 0 && call.begun >= named),
        ms(named - troubled),
        back.map_or("never".to_owned(), ms),
        ms(longest),
    )
}
