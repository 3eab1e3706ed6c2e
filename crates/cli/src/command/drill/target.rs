//! A drill of the user's own application: it runs as it always does, with a proxy between it and its Redis.

use std::net::SocketAddr;
use std::path::Path;

use steadfast_drill::report::{json, junit, table, traffic};
use steadfast_drill::scenario::Scenario;
use steadfast_drill::target::{TargetError, TargetOptions, run_target};
use tokio_util::sync::CancellationToken;

use super::run::write;
use crate::address::host_and_port;
use crate::failure::{Failure, Status};
use crate::output::{has_colour, line};

/// What is drilled instead of this program's own cache.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Drill an application of yours: its Redis, as host:port, which is never broken itself
    #[arg(long, value_name = "ADDR", requires = "command", conflicts_with_all = ["no_control", "all"])]
    target: Option<String>,
    /// The application, as a line for the shell; it finds the proxy in REDIS_URL, REDIS_HOST and REDIS_PORT
    #[arg(long, value_name = "LINE", requires = "target")]
    command: Option<String>,
    /// Where the proxy listens, for an application that takes no address from its environment
    #[arg(long, value_name = "ADDR", requires = "target")]
    proxy: Option<SocketAddr>,
}

impl Target {
    /// Refuses an address that is none.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let target = self.target.as_deref();
        target.map_or(Ok(()), |target| host_and_port("--target", target))
    }

    /// What to run if an application is to be drilled.
    pub(super) fn options(&self, stop: &CancellationToken) -> Option<TargetOptions> {
        Some(TargetOptions {
            target: self.target.clone()?,
            command: self.command.clone()?,
            listen: self.proxy,
            stop: stop.clone(),
        })
    }
}

/// Drills the application, and says whether it did well.
pub(super) async fn run(
    scenario: &Scenario,
    options: TargetOptions,
    out: Option<&Path>,
) -> Result<bool, Failure> {
    let report = run_target(scenario, options)
        .await
        .map_err(|error| ended(&error))?;
    line(table::render_target(&report, has_colour()).trim_end())?;
    if let Some(folder) = out {
        write(folder, "report.json", &json::render_target(&report))?;
        write(folder, "junit.xml", &junit::render_target(&report))?;
        let page = write(folder, "report.html", &traffic::render(&report))?;
        line(format_args!(
            "\nthe same to look at and to keep: {}",
            page.display()
        ))?;
    }
    Ok(report.passed())
}

fn ended(error: &TargetError) -> Failure {
    match error {
        TargetError::Interrupted => {
            Failure::new(Status::Interrupted, "interrupted; the application has been ended")
        }
        TargetError::NotThere { .. } | TargetError::Proxy(_) => Failure::new(Status::Unavailable, error),
        TargetError::NotOnTheWire { .. } => Failure::new(Status::Usage, error)
            .hint("choose one of latency, timeout, down…, or a drill such as restart-5s, partition, slow-redis"),
        TargetError::Tls => Failure::new(Status::Usage, error),
        _ => Failure::new(Status::Failed, error),
    }
}
