//! An application in any language can be drilled without a change to it: it is run as its users run it, with the address of a
//! proxy in its environment, and the scenario's faults happen on the wire between it and its Redis. It is judged by what can be
//! seen from outside: how it ended, and whether it talked with Redis before and after.
//!
//! That Redis is somebody else's, so nothing is ever done to it. A fault that needs a server of the drill's own is played
//! on the wire where that looks the same to a client, and refused where it does not.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, test_kill_process_group};
use serde::Serialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::fault::{Direction, Down, FaultError, RespError, Stall, Toxic};
use crate::proxy::{Counters, Proxy, ProxyError, ToxicId};
use crate::report::{FaultSpan, Verdict};
use crate::scenario::{Fault, Phase, Scenario};
use crate::verdict::{Bound, Kpi, Unit, ms};

/// The version of the JSON form.
pub const SCHEMA: &str = "steadfast-drill-target/1";

const SAMPLE: Duration = Duration::from_millis(20);
/// Of the plots, at most, on a drill that is long.
const INTERVALS: u32 = 600;
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// What a program that is told to end is given to do so; the script below counts to it too.
const END_LIMIT: Duration = Duration::from_secs(5);
/// The founding documents' own limit for a recovery; the scenario's is for Steadfast.
const RECOVERY: Duration = Duration::from_secs(30);

/// Runs `$1`, and ends whatever is left of it when this process is gone, which closes the pipe on fd 3.
const WATCHED: &str = r#"
exec 3<&0 </dev/null
(
  trap '' HUP INT TERM QUIT
  read -r _ <&3
  kill -TERM 0
  turns=0
  while kill -0 $$ && [ $turns -lt 50 ]; do sleep 0.1; turns=$((turns + 1)); done
  kill -KILL 0
) >/dev/null 2>&1 &
exec 3<&- sh -c "$1"
"#;

/// Whose application is drilled, and before which Redis.
#[derive(Clone)]
pub struct TargetOptions {
    /// The application's Redis, as `host:port`. It is never broken.
    pub target: String,
    /// The application, as a line for the shell. It finds the proxy in `REDIS_URL`, `REDIS_HOST` and `REDIS_PORT`.
    pub command: String,
    /// Where the proxy listens. Default: a free port of 127.0.0.1.
    pub listen: Option<SocketAddr>,
    /// Ends the run early, as [`TargetError::Interrupted`]; the application is ended first.
    pub stop: CancellationToken,
}

/// What was seen.
#[derive(Debug, Clone, Serialize)]
pub struct TargetReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The name of the scenario.
    pub scenario: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// What chance was drawn from.
    pub seed: u64,
    /// The Redis behind the proxy.
    pub target: String,
    /// The application.
    pub command: String,
    /// How the application ended by itself; null if it was still running when the drill was over, as a service is.
    pub exit_status: Option<i32>,
    /// The traffic of each phase.
    pub phases: Vec<Traffic>,
    /// For plots.
    pub timeline: TrafficTimeline,
    /// Connections that faults of the protocol no longer acted on, as they could not be followed command by command to their end (a
    /// subscription in RESP2, MONITOR); 0 if the scenario has no such faults.
    pub unfollowed: u64,
    /// What it is judged by.
    pub kpis: Vec<Kpi>,
    /// When something was broken.
    pub faults: Vec<FaultSpan>,
    /// Whether every key figure is good enough.
    pub verdict: Verdict,
}

/// The traffic of one phase.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Traffic {
    /// Its name.
    pub name: &'static str,
    /// When it began, from the start of the application.
    pub from_ms: u64,
    /// When it ended, or was to end.
    pub to_ms: u64,
    /// Connections that the application opened.
    pub connections: u64,
    /// Bytes that it sent.
    pub bytes_up: u64,
    /// Bytes that Redis answered.
    pub bytes_down: u64,
}

/// What the plots show: columns of equal length, one value for each interval.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TrafficTimeline {
    /// The length of an interval.
    pub interval_ms: u64,
    /// Bytes that the application sent in it.
    pub bytes_up: Vec<u64>,
    /// Bytes that Redis answered in it.
    pub bytes_down: Vec<u64>,
    /// Connections that the application opened in it.
    pub connections: Vec<u64>,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// It was stopped. The application was ended.
    #[error("interrupted")]
    Interrupted,
    /// Nothing listens at the target.
    #[error("no server at {target}: {cause}")]
    NotThere {
        /// The address given.
        target: String,
        /// What the system said.
        cause: String,
    },
    /// The proxy cannot listen.
    #[error("{0}")]
    Proxy(#[from] ProxyError),
    /// The scenario breaks what the drill may not touch here.
    #[error(
        "{fault} needs a server of the drill's own; with --target only the wire before the server is broken"
    )]
    NotOnTheWire {
        /// The fault, as in the scenario.
        fault: &'static str,
    },
    /// The application would speak TLS to the proxy, which has no certificate of its server's name, and cannot break what it cannot read.
    #[error(
        "REDIS_URL is rediss://, but the proxy speaks no TLS; give the application a redis:// URL for the drill, of a server or port without TLS"
    )]
    Tls,
    /// A setting of a fault means nothing.
    #[error("{0}")]
    Fault(#[from] FaultError),
    /// The application cannot be started.
    #[error("cannot run {command:?}: {cause}")]
    Command {
        /// As given.
        command: String,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl TargetError {
    /// The exit status of a program that ends with this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            TargetError::Interrupted => 130,
            TargetError::NotThere { .. } | TargetError::Proxy(_) => 69,
            TargetError::NotOnTheWire { .. } | TargetError::Tls => 2,
            TargetError::Fault(_) | TargetError::Command { .. } => 1,
        }
    }
}

impl TargetReport {
    /// Whether the application did well.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }
}

/// Runs the application through the scenario.
///
/// # Errors
/// When it came to no verdict. An application that did not do well is a report, not an error.
pub async fn run_target(
    scenario: &Scenario,
    options: TargetOptions,
) -> Result<TargetReport, TargetError> {
    let plan = plan(scenario)?;
    let upstream = reachable(&options.target).await?;
    let mut builder = Proxy::builder().seed(scenario.seed).resp(true);
    if let Some(listen) = options.listen {
        builder = builder.listen(listen);
    }
    let proxy = builder.start(upstream).await?;
    let mut program = spawn(&options.command, proxy.addr())?;
    let group = program.id();
    let mut seen = Seen::new(scenario);
    let played = play(
        &mut program,
        &proxy,
        plan,
        scenario,
        &options.stop,
        &mut seen,
    )
    .await;
    // Heals the wire first, so that the application can end in peace.
    proxy.clear().await;
    end(program, group).await;
    Ok(seen.judged(scenario, &options, played?))
}

/// What is broken on the wire, and when.
fn plan(scenario: &Scenario) -> Result<Vec<Action>, TargetError> {
    let start = scenario.phases.spans()[Phase::Fault as usize].1.start;
    let mut actions = Vec::new();
    for (step, planned) in scenario.steps.iter().enumerate() {
        let toxic = on_the_wire(&planned.fault)?;
        for (time, span) in planned.spans().enumerate() {
            let (id, name) = ((step, time), planned.fault.name());
            actions.push(Action {
                at: start + span.start,
                begins: Some(toxic.clone()),
                id,
                name,
            });
            actions.push(Action {
                at: start + span.end,
                begins: None,
                id,
                name,
            });
        }
    }
    actions.sort_by_key(|action| (action.at, action.begins.is_some()));
    Ok(actions)
}

struct Action {
    at: Duration,
    /// What is broken; nothing if it is healed.
    begins: Option<Toxic>,
    id: (usize, usize),
    name: &'static str,
}

/// What a client sees of a fault, as a fault of the wire.
fn on_the_wire(fault: &Fault) -> Result<Toxic, TargetError> {
    Ok(match fault {
        Fault::Wire(toxic) => (**toxic).clone(),
        Fault::Crash => Toxic::new(Down {}),
        Fault::Freeze | Fault::Pause(_) => Toxic::new(Stall {}).direction(Direction::Both),
        Fault::Loading => Toxic::new(RespError::loading()),
        Fault::ReadOnly => Toxic::new(RespError::readonly()),
        Fault::OutOfMemory => Toxic::new(RespError::oom()),
        Fault::PasswordChanged | Fault::UserDeleted => Toxic::new(RespError::noauth()),
        other => {
            return Err(TargetError::NotOnTheWire {
                fault: other.name(),
            });
        }
    })
}

async fn reachable(target: &str) -> Result<SocketAddr, TargetError> {
    let failed = |cause: String| TargetError::NotThere {
        target: target.to_owned(),
        cause,
    };
    let connecting = timeout(CONNECT_LIMIT, tokio::net::TcpStream::connect(target)).await;
    let connection =
        connecting.map_err(|_| failed(format!("no answer within {CONNECT_LIMIT:?}")))?;
    connection
        .and_then(|connection| connection.peer_addr())
        .map_err(|error| failed(error.to_string()))
}

fn spawn(command: &str, proxy: SocketAddr) -> Result<Child, TargetError> {
    let own = std::env::var("REDIS_URL").ok();
    if own.as_deref().is_some_and(|url| url.starts_with("rediss:")) {
        return Err(TargetError::Tls);
    }
    Command::new("/bin/sh")
        .args(["-c", WATCHED, "sh", command])
        .env("REDIS_URL", through(own.as_deref(), proxy))
        .env("REDIS_HOST", proxy.ip().to_string())
        .env("REDIS_PORT", proxy.port().to_string())
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|cause| TargetError::Command {
            command: command.to_owned(),
            cause,
        })
}

/// The application's own URL, if it has one, with the proxy in place of its server: user, password and database stay.
fn through(own: Option<&str>, proxy: SocketAddr) -> String {
    let own = own.and_then(|url| url.split_once("://"));
    let Some((scheme, rest)) = own.filter(|(scheme, _)| *scheme == "redis") else {
        return format!("redis://{proxy}/0");
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
    format!("{scheme}://{user}{proxy}{path}")
}

/// Breaks and heals at the planned times, until the application has ended or the phases are over. How it ended, if it did.
async fn play(
    program: &mut Child,
    proxy: &Proxy,
    plan: Vec<Action>,
    scenario: &Scenario,
    stop: &CancellationToken,
    seen: &mut Seen,
) -> Result<Option<ExitStatus>, TargetError> {
    let start = Instant::now();
    let mut ticks = interval(SAMPLE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut plan, mut broken) = (
        plan.into_iter().peekable(),
        Vec::<((usize, usize), ToxicId)>::new(),
    );
    let over = start + scenario.phases.total();
    loop {
        let next = plan.peek().map_or(over, |action| start + action.at);
        // The pipe stays ours: `wait` would close it, and so end the application.
        tokio::select! {
            () = stop.cancelled() => return Err(TargetError::Interrupted),
            () = sleep_until(next), if next <= over => {
                let Some(action) = plan.next() else { break };
                match action.begins {
                    Some(toxic) => {
                        broken.push((action.id, proxy.add(toxic).await?));
                        seen.begun(action.id, action.name, start.elapsed());
                    }
                    None => {
                        if let Some(at) = broken.iter().position(|(id, _)| *id == action.id) {
                            proxy.remove(broken.remove(at).1).await;
                        }
                        seen.ended(action.id, start.elapsed(), broken.is_empty());
                    }
                }
            }
            _ = ticks.tick() => {
                seen.sample(start.elapsed(), proxy.counters());
                if let Ok(Some(status)) = program.try_wait() {
                    return Ok(Some(status));
                }
            }
        }
    }
    seen.sample(start.elapsed(), proxy.counters());
    Ok(None)
}

/// Asks the application and all that it started to end, and sees to it that they do.
async fn end(mut program: Child, group: Option<u32>) {
    let group = group.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let until = Instant::now() + END_LIMIT + Duration::from_secs(2);
    drop(program.stdin.take());
    if tokio::time::timeout_at(until, program.wait())
        .await
        .is_err()
    {
        let _ = program.kill().await;
    }
    let Some(group) = group else { return };
    while test_kill_process_group(group).is_ok() && Instant::now() < until {
        tokio::time::sleep(SAMPLE).await;
    }
}

struct Seen {
    traffic: Vec<Traffic>,
    timeline: TrafficTimeline,
    spans: Vec<(Phase, Duration)>,
    last: Counters,
    last_at: Duration,
    faults: Vec<((usize, usize), FaultSpan)>,
    healed: Option<(Duration, u64)>,
    answered_again: Option<Duration>,
}

impl Seen {
    fn new(scenario: &Scenario) -> Self {
        let spans = scenario.phases.spans();
        let traffic = spans.iter().map(|(phase, span)| Traffic {
            name: phase.name(),
            from_ms: span.start.as_millis() as u64,
            to_ms: span.end.as_millis() as u64,
            connections: 0,
            bytes_up: 0,
            bytes_down: 0,
        });
        Self {
            traffic: traffic.collect(),
            timeline: TrafficTimeline {
                interval_ms: millis(scenario.phases.total() / INTERVALS).max(100),
                ..TrafficTimeline::default()
            },
            spans: spans
                .iter()
                .map(|(phase, span)| (*phase, span.end))
                .collect(),
            last: Counters::default(),
            last_at: Duration::ZERO,
            faults: Vec::new(),
            healed: None,
            answered_again: None,
        }
    }

    fn sample(&mut self, at: Duration, counters: Counters) {
        let phase = self
            .spans
            .iter()
            .position(|(_, end)| at < *end)
            .unwrap_or(self.spans.len() - 1);
        let before = std::mem::replace(&mut self.last, counters);
        self.last_at = at;
        let traffic = &mut self.traffic[phase];
        let (connections, up, down) = (
            counters.accepted - before.accepted,
            counters.bytes_up - before.bytes_up,
            counters.bytes_down - before.bytes_down,
        );
        traffic.connections += connections;
        traffic.bytes_up += up;
        traffic.bytes_down += down;
        self.timeline.add(at, up, down, connections);
        if let Some((healed, bytes)) = self.healed
            && self.answered_again.is_none()
            && counters.bytes_down > bytes
        {
            self.answered_again = Some(at - healed);
        }
    }

    fn begun(&mut self, id: (usize, usize), name: &'static str, at: Duration) {
        let at = millis(at);
        let span = FaultSpan {
            name,
            from_ms: at,
            to_ms: at,
        };
        self.faults.push((id, span));
        (self.healed, self.answered_again) = (None, None);
    }

    fn ended(&mut self, id: (usize, usize), at: Duration, all_well: bool) {
        if let Some((_, span)) = self.faults.iter_mut().find(|(of, _)| *of == id) {
            span.to_ms = millis(at);
        }
        if all_well {
            self.healed = Some((at, self.last.bytes_down));
        }
    }

    fn judged(
        self,
        scenario: &Scenario,
        options: &TargetOptions,
        status: Option<ExitStatus>,
    ) -> TargetReport {
        let code = status.map(|status| status.code().unwrap_or(-1));
        let baseline = self.traffic[Phase::WarmUp as usize].bytes_down
            + self.traffic[Phase::Baseline as usize].bytes_down;
        let lived = if code.is_some() {
            self.last_at
        } else {
            scenario.phases.total()
        };
        let drilled = self.spans[Phase::Fault as usize].1;
        let count = |name, phase, value: u64, bound, target: f64, formula| Kpi {
            name,
            phase,
            value: Some(value as f64),
            target,
            pass: if bound == Bound::Above {
                value as f64 > target
            } else {
                value as f64 <= target
            },
            bound,
            unit: Unit::Count,
            formula,
        };
        let mut kpis = vec![
            Kpi {
                // A failure to be read as a number: a program ended by a signal has none.
                value: Some(f64::from(code.unwrap_or(0))),
                pass: code.unwrap_or(0) == 0,
                ..count(
                    "exit_status",
                    "whole run",
                    0,
                    Bound::AtMost,
                    0.0,
                    "of the program; 0 if it was still running at the end",
                )
            },
            count(
                "used_redis",
                "baseline",
                baseline,
                Bound::Above,
                0.0,
                "bytes that Redis answered before anything was broken",
            ),
            Kpi {
                value: Some(ms(lived)),
                pass: lived >= drilled,
                unit: Unit::Ms,
                ..count(
                    "lived",
                    "whole run",
                    0,
                    Bound::Above,
                    ms(drilled),
                    "how long the program ran, or was let run: past the fault",
                )
            },
        ];
        // A program that did its work and ended well while all was broken had no need to come back.
        if !scenario.steps.is_empty()
            && (code.is_none() || lived >= drilled + Duration::from_millis(500))
        {
            kpis.push(Kpi {
                value: self.answered_again.map(ms),
                pass: self.answered_again.is_some_and(|after| after < RECOVERY),
                unit: Unit::Ms,
                ..count(
                    "recovery",
                    "recovery",
                    0,
                    Bound::Below,
                    ms(RECOVERY),
                    "from the last healing to the first bytes from Redis",
                )
            });
        }
        let reads_protocol =
            |fault| on_the_wire(fault).is_ok_and(|toxic| toxic.fault.resp().is_some());
        let unfollowed = if scenario
            .steps
            .iter()
            .any(|step| reads_protocol(&step.fault))
        {
            self.last.unfollowed
        } else {
            0
        };
        TargetReport {
            schema: SCHEMA,
            unfollowed,
            scenario: scenario.name.clone(),
            about: scenario.about.clone(),
            seed: scenario.seed,
            target: options.target.clone(),
            command: options.command.clone(),
            exit_status: code,
            phases: self
                .traffic
                .into_iter()
                .filter(|phase| phase.to_ms > phase.from_ms)
                .collect(),
            verdict: if kpis.iter().all(|kpi| kpi.pass) {
                Verdict::Passed
            } else {
                Verdict::Failed
            },
            kpis,
            faults: self.faults.into_iter().map(|(_, span)| span).collect(),
            timeline: self.timeline,
        }
    }
}

impl TrafficTimeline {
    fn add(&mut self, at: Duration, up: u64, down: u64, connections: u64) {
        let index = (millis(at) / self.interval_ms.max(1)) as usize;
        for (column, seen) in [
            (&mut self.bytes_up, up),
            (&mut self.bytes_down, down),
            (&mut self.connections, connections),
        ] {
            if column.len() <= index {
                column.resize(index + 1, 0);
            }
            column[index] += seen;
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d7_the_applications_own_url_keeps_all_but_its_server() {
        let proxy = SocketAddr::from(([127, 0, 0, 1], 7));
        for (own, through_proxy) in [
            (None, "redis://127.0.0.1:7/0"),
            (Some(""), "redis://127.0.0.1:7/0"),
            (Some("unix:///run/redis.sock"), "redis://127.0.0.1:7/0"),
            (Some("redis://cache.internal"), "redis://127.0.0.1:7"),
            (
                Some("redis://ada:p%40ss@cache.internal:6380/3?protocol=resp3"),
                "redis://ada:p%40ss@127.0.0.1:7/3?protocol=resp3",
            ),
        ] {
            assert_eq!(through(own, proxy), through_proxy, "{own:?}");
        }
    }
}
