//! An application in any language can be drilled without a change to it: it is run as its users run it, with the address of a
//! proxy in its environment, and the scenario's faults happen on the wire between it and its Redis. It is judged by what its users
//! get, if a load is put on its own interface ([`HttpLoad`]), and by what can be seen from outside: how it ended, and whether it
//! used Redis before and after.
//!
//! That Redis is somebody else's, so nothing is ever done to it. A fault that needs a server of the drill's own is played
//! on the wire where that looks the same to a client, and refused where it does not. The same holds for its database.

mod judge;
mod plan;
mod program;
mod redact;
mod requests;
mod users;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::fault::FaultError;
use crate::http_load::HttpLoad;
use crate::load::{Lane, drive_until};
use crate::proxy::{Proxy, ProxyError, ToxicId};
use crate::record::Record;
use crate::report::{FaultSpan, Verdict};
use crate::scenario::{Scenario, Wire};
use crate::verdict::{Kpi, ms, verdict};

use self::judge::Evidence;
use self::plan::{Action, Id, on_the_wire};
pub use self::program::LogLine;
use self::program::{Addresses, Program};
use self::redact::redacted;
use self::requests::HttpSubject;
pub use self::users::{Users, UsersPhase, UsersTimeline};
use self::watch::{Seen, WINDOW};
pub use self::watch::{Traffic, TrafficTimeline};

/// The version of the JSON form.
pub const SCHEMA: &str = "steadfast-drill-target/2";

const SAMPLE: Duration = Duration::from_millis(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The founding documents' own limit for a recovery; the scenario's is for Steadfast. The drill looks for it that long.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long an application may take to answer its first request.
const UP_LIMIT: Duration = Duration::from_secs(30);

/// Whose application is drilled, and before which Redis.
#[derive(Clone)]
pub struct TargetOptions {
    /// The application's Redis, as `host:port`. It is never broken.
    pub target: String,
    /// The application, as a line for the shell. It finds the proxy in `REDIS_URL`, `REDIS_HOST` and `REDIS_PORT`. None: it runs
    /// already, with the address of `listen` for its Redis.
    pub command: Option<String>,
    /// Where the proxy listens. Default: a free port of 127.0.0.1.
    pub listen: Option<SocketAddr>,
    /// The application's database, as `host:port`, behind a proxy of its own. Default: none.
    pub database: Option<String>,
    /// Where that proxy listens. Default: a free port of 127.0.0.1.
    pub listen_database: Option<SocketAddr>,
    /// The load on the application's own interface, in place of the scenario's. Default: that of the scenario, or none.
    pub http: Option<HttpLoad>,
    /// How long the drill looks for the users and Redis to be well again after the healing, and what recovery is held to. Default 30 s.
    pub recovery: Duration,
    /// Breaks nothing: what the same application does while all is well, to compare with.
    pub well: bool,
    /// Ends the run early, as [`TargetError::Interrupted`]; the application is ended first.
    pub stop: CancellationToken,
}

impl TargetOptions {
    /// An application that this command starts, before that Redis.
    pub fn new(target: impl Into<String>, command: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            command: Some(command.into()),
            listen: None,
            database: None,
            listen_database: None,
            http: None,
            recovery: RECOVERY,
            well: false,
            stop: CancellationToken::new(),
        }
    }
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
    /// The application's command without what looks like a secret; null if the drill did not start it.
    pub command: Option<String>,
    /// How the application ended by itself; null if it was still running when the drill was over, as a service is.
    pub exit_status: Option<i32>,
    /// What its users got; null if no load was put on its interface.
    pub users: Option<Users>,
    /// The traffic with Redis of each phase.
    pub phases: Vec<Traffic>,
    /// From the last healing to the first second in which Redis answered half as many commands as in the baseline, in milliseconds;
    /// null if there was none.
    pub redis_in_use_ms: Option<f64>,
    /// For plots.
    pub timeline: TrafficTimeline,
    /// Connections that faults of the protocol no longer acted on, as they could not be followed command by command to their end (a
    /// subscription in RESP2, MONITOR); 0 if the scenario has no such faults.
    pub unfollowed: u64,
    /// What it is judged by.
    pub kpis: Vec<Kpi>,
    /// When something was broken.
    pub faults: Vec<FaultSpan>,
    /// The faults that touched nothing, by name.
    pub untouched: Vec<&'static str>,
    /// What the application wrote to its standard output and error, up to 2 000 lines, without what looks like a secret.
    pub log: Vec<LogLine>,
    /// Lines that it wrote beyond those.
    pub log_dropped: u64,
    /// Whether every key figure is good enough.
    pub verdict: Verdict,
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
        /// The address given, without what looks like a secret.
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
    /// The scenario breaks the way to a database that was not named.
    #[error("{fault} happens on the way to the database: name it with --database host:port")]
    NoDatabase {
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
        /// As given, without what looks like a secret.
        command: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The load on the application's interface cannot be sent.
    #[error("{0}")]
    Http(String),
    /// The application does not answer.
    #[error("the application at {url} gave no answer within {UP_LIMIT:?} ({cause}){ended}")]
    NotUp {
        /// Where it was asked.
        url: String,
        /// What became of the last request.
        cause: String,
        /// That it has ended, if it has.
        ended: String,
    },
}

impl TargetError {
    /// The exit status of a program that ends with this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            TargetError::Interrupted => 130,
            TargetError::NotThere { .. } | TargetError::Proxy(_) | TargetError::NotUp { .. } => 69,
            TargetError::NotOnTheWire { .. }
            | TargetError::NoDatabase { .. }
            | TargetError::Http(_)
            | TargetError::Tls => 2,
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
/// ```no_run
/// use steadfast_drill::scenario::builtin;
/// use steadfast_drill::target::{TargetOptions, run_target};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let scenario = builtin("crash").ok_or("no such scenario")?;
/// let options = TargetOptions::new("127.0.0.1:6379", "./my-application --port 8000");
/// assert!(run_target(&scenario, options).await?.passed());
/// # Ok(()) }
/// ```
///
/// # Errors
/// When it came to no verdict. An application that did not do well is a report, not an error.
pub async fn run_target(
    scenario: &Scenario,
    options: TargetOptions,
) -> Result<TargetReport, TargetError> {
    let plan = if options.well {
        Vec::new()
    } else {
        plan::plan(scenario, options.database.is_some())?
    };
    let users = users(scenario, &options)?;
    let redis = proxy(scenario, &options.target, options.listen, true).await?;
    let database = match &options.database {
        Some(database) => Some(proxy(scenario, database, options.listen_database, false).await?),
        None => None,
    };
    let program = match &options.command {
        Some(command) => Some(Program::spawn(
            command,
            &Addresses {
                redis: redis.addr(),
                database: database.as_ref().map(Proxy::addr),
            },
        )?),
        None => None,
    };
    let mut drill = Drill {
        scenario,
        options: &options,
        redis,
        database,
        program,
        users,
        seen: Seen::new(scenario.phases),
        broken: Vec::new(),
        untouched: Vec::new(),
    };
    let played = drill.play(plan).await;
    drill.finish(played).await
}

async fn proxy(
    scenario: &Scenario,
    target: &str,
    listen: Option<SocketAddr>,
    resp: bool,
) -> Result<Proxy, TargetError> {
    let upstream = reachable(target).await?;
    let mut builder = Proxy::builder().seed(scenario.seed).resp(resp);
    if let Some(listen) = listen {
        builder = builder.listen(listen);
    }
    Ok(builder.start(upstream).await?)
}

async fn reachable(target: &str) -> Result<SocketAddr, TargetError> {
    let failed = |cause: String| TargetError::NotThere {
        target: redacted(target),
        cause,
    };
    let connecting = timeout(CONNECT_LIMIT, tokio::net::TcpStream::connect(target)).await;
    let connection =
        connecting.map_err(|_| failed(format!("no answer within {CONNECT_LIMIT:?}")))?;
    connection
        .and_then(|connection| connection.peer_addr())
        .map_err(|error| failed(error.to_string()))
}

/// The load on the application's interface, if there is one.
fn users(
    scenario: &Scenario,
    options: &TargetOptions,
) -> Result<Option<Arc<HttpSubject>>, TargetError> {
    let Some(load) = options.http.clone().or_else(|| scenario.http.clone()) else {
        return Ok(None);
    };
    load.check().map_err(|(_, why)| TargetError::Http(why))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the date tells the values of this run from those of earlier ones"
    )]
    let now = std::time::SystemTime::now();
    let base = now
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let subject = HttpSubject::new(load, scenario.seed, base).map_err(TargetError::Http)?;
    Ok(Some(Arc::new(subject)))
}

/// How a play ended: the exit status of the application, if it ended by itself, and what its users got.
type Played = Result<(Option<i32>, Option<Arc<Lane>>), TargetError>;

struct Drill<'a> {
    scenario: &'a Scenario,
    options: &'a TargetOptions,
    redis: Proxy,
    database: Option<Proxy>,
    program: Option<Program>,
    users: Option<Arc<HttpSubject>>,
    seen: Seen,
    broken: Vec<Broken>,
    untouched: Vec<&'static str>,
}

/// What is broken now.
struct Broken {
    id: Id,
    toxic: ToxicId,
    wire: Wire,
    /// What had passed the proxy when it began.
    connections: u64,
    /// Whether it acts on commands, which are counted.
    on_commands: bool,
}

impl Drill<'_> {
    /// Waits for the application, puts the load on it, breaks and heals, until it has ended or there is nothing more to be seen.
    async fn play(&mut self, plan: Vec<Action>) -> Played {
        self.up().await?;
        let start = Instant::now();
        self.seen.begin(self.redis.counters());
        if let Some(program) = &self.program {
            program.begin(start);
        }
        let (stop, finish) = (CancellationToken::new(), CancellationToken::new());
        let _stopped = stop.clone().drop_guard();
        let lane = self.users.clone().map(|users| {
            let (phases, age) = (self.scenario.phases, self.scenario.thresholds.allowed_age);
            Arc::new(Lane::new(users, start, phases, age))
        });
        let load = lane.clone().map(|lane| {
            let load = self.load();
            let length = self.scenario.phases.total() + self.options.recovery + WINDOW;
            let seed = self.scenario.seed;
            tokio::spawn(drive_until(lane, load, length, seed, stop, finish.clone()))
        });
        let status = self.steps(plan, start, lane.as_deref()).await?;
        finish.cancel();
        if let Some(load) = load {
            let _ = load.await;
        }
        Ok((status, lane))
    }

    /// Waits until the application answers its users.
    async fn up(&mut self) -> Result<(), TargetError> {
        let Some(users) = self.users.clone() else {
            return Ok(());
        };
        let outcome = tokio::select! {
            () = self.options.stop.cancelled() => return Err(TargetError::Interrupted),
            outcome = users.up(UP_LIMIT) => outcome,
        };
        outcome.map_err(|cause| TargetError::NotUp {
            url: users.url().to_owned(),
            cause,
            ended: self
                .program
                .as_mut()
                .and_then(Program::ended)
                .map_or(String::new(), |status| {
                    format!("; it has ended with status {status}")
                }),
        })
    }

    /// The scenario's load, in the shape of the requests.
    fn load(&self) -> crate::scenario::Load {
        let mut load = self.scenario.load.clone();
        if let Some(users) = &self.users {
            (load.keys, load.writes, load.calls) = (users.keys(), users.writes(), None);
        }
        load
    }

    /// Breaks and heals at the planned times. How the application ended, if it did.
    async fn steps(
        &mut self,
        plan: Vec<Action>,
        start: Instant,
        users: Option<&Lane>,
    ) -> Result<Option<i32>, TargetError> {
        let mut ticks = interval(SAMPLE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut plan = plan.into_iter().peekable();
        let over = self.scenario.phases.total();
        loop {
            let next = plan.peek().map_or(over, |action| action.at);
            tokio::select! {
                () = self.options.stop.cancelled() => return Err(TargetError::Interrupted),
                () = sleep_until(start + next), if plan.peek().is_some() => {
                    if let Some(action) = plan.next() {
                        self.carry_out(action, start, users).await?;
                    }
                }
                _ = ticks.tick() => {
                    let now = start.elapsed();
                    self.seen.sample(now, self.redis.counters());
                    if let Some(users) = users {
                        let facts = users.subject().facts();
                        users.record(|record| record.sample(now, facts));
                    }
                    if let Some(status) = self.program.as_mut().and_then(Program::ended) {
                        return Ok(Some(status));
                    }
                    if now >= over && self.is_seen_to_the_end(now, users) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Whether all is well again, or the limit for that is over.
    fn is_seen_to_the_end(&self, now: Duration, users: Option<&Lane>) -> bool {
        let Some(healed) = self.seen.healed() else {
            return true;
        };
        let users_well =
            users.is_none_or(|users| users.record(|record| record.moments().users_well.is_some()));
        (self.seen.in_use().is_some() && users_well)
            || now >= healed + self.options.recovery + WINDOW
    }

    async fn carry_out(
        &mut self,
        action: Action,
        start: Instant,
        users: Option<&Lane>,
    ) -> Result<(), TargetError> {
        let proxy = match action.wire {
            Wire::Redis => &self.redis,
            Wire::Database => self.database.as_ref().expect("the plan was checked for it"),
        };
        if let Some(toxic) = action.begins {
            let before = proxy.counters();
            let on_commands = toxic.fault.resp().is_some();
            let is_down = toxic.fault.name() == "down";
            // A port that refuses is not seen to be asked: that it was used before must do.
            let connections = if is_down && before.accepted > 0 {
                0
            } else {
                before.accepted - before.open
            };
            self.broken.push(Broken {
                id: action.id,
                toxic: proxy.add(toxic).await?,
                wire: action.wire,
                connections,
                on_commands,
            });
            let now = start.elapsed();
            self.seen.begun(action.id, action.name, now);
            if let Some(users) = users {
                users.record(|record| record.broken(now));
            }
            return Ok(());
        }
        let at = self.broken.iter().position(|broken| broken.id == action.id);
        if let Some(broken) = at.map(|at| self.broken.remove(at)) {
            let touched = if broken.on_commands {
                proxy.treated(broken.toxic).unwrap_or(0)
            } else {
                proxy.counters().accepted - broken.connections
            };
            if touched == 0 {
                self.untouched.push(action.name);
            }
            debug_assert_eq!(broken.wire, action.wire);
            proxy.remove(broken.toxic).await;
        }
        let (now, all_well) = (start.elapsed(), self.broken.is_empty());
        let counters = self.redis.counters();
        self.seen.ended(action.id, now, all_well, counters);
        if let Some(users) = users.filter(|_| all_well) {
            users.record(|record| record.healed(now));
        }
        Ok(())
    }

    /// Heals the wires, ends the application, and says what was seen.
    async fn finish(mut self, played: Played) -> Result<TargetReport, TargetError> {
        let unfollowed = self.redis.counters().unfollowed;
        // First the wires, so that the application can end in peace.
        self.redis.clear().await;
        if let Some(database) = &self.database {
            database.clear().await;
        }
        let is_ours = self.program.is_some();
        let (mut log, mut log_dropped) = (Vec::new(), 0);
        if let Some(program) = self.program.take() {
            (log, log_dropped) = program.lines();
            program.end().await;
        }
        let (exit_status, lane) = played?;
        let scenario = self.scenario;
        let breaks = !self.options.well;
        let untouched = if breaks && scenario.steps.is_empty() {
            vec!["nothing is broken by this scenario"]
        } else {
            self.untouched
        };
        let kpis = {
            let judged = |users: Option<&Record>| {
                judge::judge(&Evidence {
                    scenario,
                    seen: &self.seen,
                    users,
                    exit_status,
                    is_ours,
                    untouched: untouched.len(),
                    breaks,
                    recovery: self.options.recovery,
                })
            };
            match &lane {
                Some(lane) => lane.record(|record| judged(Some(record))),
                None => judged(None),
            }
        };
        let users = lane.zip(self.users).map(|(lane, users)| {
            lane.record(|record| {
                Users::of(record, scenario.phases, users.described(), users.unjudged())
            })
        });
        let reads_protocol =
            |fault| on_the_wire(fault).is_ok_and(|toxic| toxic.fault.resp().is_some());
        let follows = scenario
            .steps
            .iter()
            .any(|step| reads_protocol(&step.fault));
        Ok(TargetReport {
            schema: SCHEMA,
            scenario: scenario.name.clone(),
            about: scenario.about.clone(),
            seed: scenario.seed,
            target: redacted(&self.options.target),
            command: self.options.command.as_deref().map(redacted),
            exit_status,
            users,
            redis_in_use_ms: self.seen.in_use().map(ms),
            unfollowed: if follows { unfollowed } else { 0 },
            verdict: verdict(&kpis),
            kpis,
            faults: self.seen.faults(),
            untouched,
            log,
            log_dropped,
            phases: self
                .seen
                .traffic
                .into_iter()
                .filter(|phase| phase.to_ms > phase.from_ms)
                .collect(),
            timeline: self.seen.timeline,
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
