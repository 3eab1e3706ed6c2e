//! A drill of the user's own application: it runs as it always does, with a proxy between it and
//! its Redis.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use steadfast_drill::http_load::{HttpLoad, HttpRequest};
use steadfast_drill::report::{json, junit, table, timeline, traffic};
use steadfast_drill::scenario::{Arrivals, Scenario};
use steadfast_drill::target::{TargetError, TargetOptions, TargetReport, run_target};
use tokio_util::sync::CancellationToken;

use super::files::write;
use crate::address::host_and_port;
use crate::failure::{Failure, Status};
use crate::output::{has_colour, line};

/// What is drilled instead of this program's own cache.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Drill an application of yours: its Redis, as host:port, which is never broken itself
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["no_control", "all"])]
    target: Option<String>,
    /// The application, as a line for the shell; it finds the proxy in REDIS_URL, REDIS_HOST and
    /// REDIS_PORT. Without it, it runs already, and has the address of --proxy for its Redis
    #[arg(long, value_name = "LINE", requires = "target")]
    command: Option<String>,
    /// Where the proxy listens, for an application that takes no address from its environment
    #[arg(long, value_name = "ADDR", requires = "target")]
    proxy: Option<SocketAddr>,
    /// The application's database, as host:port, behind a proxy of its own; the application finds
    /// that in DATABASE_URL, DATABASE_HOST and DATABASE_PORT, PGHOST and PGPORT
    #[arg(long, value_name = "ADDR", requires = "target")]
    database: Option<String>,
    /// Where that proxy listens
    #[arg(long, value_name = "ADDR", requires = "database")]
    database_proxy: Option<SocketAddr>,
    /// Put a load on the application's own interface, and judge it by what its users get:
    /// http://host:port
    #[arg(long, value_name = "URL", requires_all = ["target", "request"])]
    http: Option<String>,
    /// A request of its users, such as 'GET /users/{1..1000}'; may be repeated. A scenario file can
    /// say more (`[target.http]`)
    #[arg(long, value_name = "REQUEST", requires = "http")]
    request: Vec<String>,
    /// A header of every request, such as 'authorization: Bearer {env:TOKEN}'; may be repeated
    #[arg(long, value_name = "HEADER", requires = "http")]
    header: Vec<String>,
    /// Requests a second [default: the scenario's]
    #[arg(long, value_name = "N", requires = "target", value_parser = rate)]
    rate: Option<f64>,
    /// Break nothing: what the same application does while all is well, for
    /// `steadfast drill compare`
    #[arg(long, requires = "target")]
    well: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (0.01..=1e6).contains(rate))
        .ok_or_else(|| "a rate is requests a second, from 0.01 to a million".to_owned())
}

impl Target {
    /// Whether an application of one's own is drilled.
    pub(super) fn is_given(&self) -> bool {
        self.target.is_some()
    }

    /// Refuses an address that is none.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let target = self.target.as_deref();
        target.map_or(Ok(()), |target| host_and_port("--target", target))
    }

    /// Returns the options of a drill of an application, if one is to be drilled.
    pub(super) fn options(
        &self,
        stop: &CancellationToken,
    ) -> Result<Option<TargetOptions>, Failure> {
        let Some(target) = self.target.clone() else {
            return Ok(None);
        };
        let usage = |why: String| Failure::new(Status::Usage, why);
        if self.command.is_none() && self.proxy.is_none() {
            return Err(usage("nothing is drilled".to_owned()).hint(
                "--command starts the application; one that runs already needs --proxy, the address that it has for its Redis",
            ));
        }
        let mut options = TargetOptions::new(target, "");
        options.command = self.command.clone();
        options.listen = self.proxy;
        options.database = self.database.clone();
        options.listen_database = self.database_proxy;
        options.http = self.load().map_err(usage)?;
        options.well = self.well;
        options.stop = stop.clone();
        Ok(Some(options))
    }

    /// The scenario with the rate that was asked for.
    pub(super) fn at_rate(&self, scenario: &Scenario) -> Scenario {
        let mut scenario = scenario.clone();
        if let Some(rate) = self.rate {
            scenario.load.arrivals = Arrivals::Open { rate };
        }
        scenario
    }

    fn load(&self) -> Result<Option<HttpLoad>, String> {
        let Some(url) = &self.http else {
            return Ok(None);
        };
        let mut load = HttpLoad::new(url)?;
        for line in &self.request {
            load.requests.push(HttpRequest::parse(line)?);
        }
        for header in &self.header {
            let (name, value) = header
                .split_once(':')
                .ok_or("a header is written as `name: value`")?;
            load.headers
                .push((name.trim().to_owned(), value.trim().to_owned()));
        }
        load.check().map_err(|(_, why)| why)?;
        Ok(Some(load))
    }
}

/// Drills the application, and says whether it did well.
pub(super) async fn run(
    scenario: &Scenario,
    options: TargetOptions,
    out: Option<&Path>,
) -> Result<bool, Failure> {
    let report = drill(scenario, options).await?;
    line(table::render_target(&report, has_colour()).trim_end())?;
    if let Some(folder) = out {
        let page = write_all(folder, &report)?;
        line(format_args!(
            "\nthe same to look at and to keep: {}",
            page.display()
        ))?;
    }
    Ok(report.passed())
}

/// Drills the application.
pub(super) async fn drill(
    scenario: &Scenario,
    options: TargetOptions,
) -> Result<TargetReport, Failure> {
    let outcome = run_target(scenario, options).await;
    outcome.map_err(|error| ended(&error))
}

/// Writes the report in all its forms, and says where its page is.
pub(super) fn write_all(folder: &Path, report: &TargetReport) -> Result<PathBuf, Failure> {
    write(folder, "report.json", &json::render_target(report))?;
    write(folder, "junit.xml", &junit::render_target(report))?;
    write(folder, "timeline.svg", &timeline::render_target(report))?;
    write(folder, "report.html", &traffic::render(report))
}

fn ended(error: &TargetError) -> Failure {
    match error {
        TargetError::Interrupted => {
            Failure::new(Status::Interrupted, "interrupted; the application has been ended")
        }
        TargetError::NotThere { .. } | TargetError::Proxy(_) => Failure::new(Status::Unavailable, error),
        TargetError::NotOnTheWire { .. } => Failure::new(Status::Usage, error)
            .hint("choose one of latency, timeout, down…, or a drill such as restart-5s, partition, slow-redis"),
        TargetError::Tls | TargetError::NoDatabase { .. } | TargetError::Http(_) => {
            Failure::new(Status::Usage, error)
        }
        TargetError::NotUp { .. } => Failure::new(Status::Unavailable, error),
        _ => Failure::new(Status::Failed, error),
    }
}
