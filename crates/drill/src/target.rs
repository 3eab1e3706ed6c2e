//! An application in any language can be drilled without a change to it: it is run as its users run
//! it, with the address of a proxy in its environment, and the scenario's faults happen on the wire
//! between it and its Redis. It is judged by what its users get, if a load is put on its own
//! interface ([`HttpLoad`]), and by what can be seen from outside: how it ended, and whether it
//! used Redis before and after.
//!
//! That Redis is somebody else's, so nothing is ever done to it. A fault that needs a server of the
//! drill's own is played on the wire where that looks the same to a client, and refused where it
//! does not. The same holds for its database.

mod judge;
mod plan;
mod play;
mod redact;
mod requests;
mod spawn;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::fault::FaultError;
use crate::http_load::HttpLoad;
use crate::proxy::{Proxy, ProxyError};
pub use crate::report::application::{LogLine, SCHEMA, TargetReport, Traffic, TrafficTimeline};
pub use crate::report::users::{Users, UsersPhase, UsersTimeline};
use crate::scenario::Scenario;

use self::play::Drill;
use self::redact::redacted;
use self::requests::HttpSubject;
use self::spawn::{Addresses, Program};

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The limit for the recovery of an application that is not ours; the scenario's is for Steadfast.
/// The drill looks for it that long.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long an application may take to answer its first request.
const UP_LIMIT: Duration = Duration::from_secs(30);

/// The application that is drilled, and the Redis that it uses.
#[derive(Clone)]
pub struct TargetOptions {
    /// The application's Redis, as `host:port`. It is never broken.
    pub target: String,
    /// The application, as a line for the shell. It finds the proxy in `REDIS_URL`, `REDIS_HOST`
    /// and `REDIS_PORT`. None: it runs already, with the address of `listen` for its Redis.
    pub command: Option<String>,
    /// Where the proxy listens. Default: a free port of 127.0.0.1.
    pub listen: Option<SocketAddr>,
    /// The application's database, as `host:port`, behind a proxy of its own. Default: none.
    pub database: Option<String>,
    /// Where that proxy listens. Default: a free port of 127.0.0.1.
    pub listen_database: Option<SocketAddr>,
    /// The load on the application's own interface, in place of the scenario's. Default: that of
    /// the scenario, or none.
    pub http: Option<HttpLoad>,
    /// How long the drill looks for the users and Redis to be well again after the healing, and
    /// what recovery is held to. Default 30 s.
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

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The drill was stopped. The application was ended.
    #[error("interrupted")]
    Interrupted,
    /// Nothing listens at the target.
    #[error("no server at {target}: {cause}")]
    NotThere {
        /// The address given, without what looks like a secret.
        target: String,
        /// The system's error.
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
    /// The application would speak TLS to the proxy, which has no certificate of its server's name,
    /// and cannot break what it cannot read.
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
        /// The system's error.
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
        /// The outcome of the last request.
        cause: String,
        /// A sentence that it has ended, if it has.
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
    let mut drill = Drill::new(scenario, &options, (redis, database), program, users);
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
