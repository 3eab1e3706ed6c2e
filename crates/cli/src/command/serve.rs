//! `steadfast serve`: the service, as one file configures it.

use steadfast_server::{App, BindError, Served, Signals, StartError, telemetry};

use crate::failure::{Failure, Status, chain};
use crate::output::line;
use crate::settings::Flags;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGTERM or Ctrl-C drains and ends; a second one ends at once. SIGHUP reads the configuration again.

Examples:
  steadfast config sample > steadfast.toml
  steadfast serve --config steadfast.toml
  REDIS_URL=redis://cache:6379 steadfast serve --config steadfast.toml --listen 127.0.0.1:9000")]
pub(crate) struct Args {
    #[command(flatten)]
    flags: Flags,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        // Before anything is said or started, so that no signal is lost to a moment in between.
        let mut signals = Signals::install()?;
        let (config, sources) = self.flags.load_with_sources()?;
        let telemetry = telemetry::init(&config)
            .map_err(|error| Failure::new(Status::Config, chain(&error)))?;
        let listener = steadfast_server::bind(&config)
            .await
            .map_err(|error| unbound(&error))?;
        let address = listener.local_addr()?;
        let scheme = if config.server.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let nothing = config.queries.is_empty() && config.statements.is_empty();
        let app = tokio::select! {
            app = App::start(config) => app,
            // Ended in order, as it would be a moment later.
            () = signals.asked_to_end() => return Ok(()),
        };
        let app = app.map_err(|error| unstarted(&error))?;
        // A service goes on, whoever stops reading what it says.
        let _ = line(format_args!("steadfast serves at {scheme}://{address}"));
        if nothing {
            let _ = line(
                "no query is configured; begin with: steadfast config sample > steadfast.toml",
            );
        }
        let served = steadfast_server::run(listener, app, Some(sources), &mut signals).await;
        telemetry.shutdown();
        finished(served)
    }
}

/// A service that cannot be started. What it stands on need not be there, so it is what was written
/// that is wrong.
pub(super) fn unstarted(error: &StartError) -> Failure {
    let status = match error {
        StartError::Auth(_) | StartError::Backend(_) => Status::Config,
        _ => Status::Unavailable,
    };
    Failure::new(status, chain(error))
}

/// An address that cannot be listened on.
pub(super) fn unbound(error: &BindError) -> Failure {
    let status = match error {
        BindError::NotLoopback { .. } => Status::Config,
        _ => Status::Unavailable,
    };
    Failure::new(status, error)
}

/// Returns what the end of a service means for the process.
pub(super) fn finished(served: Served) -> Result<(), Failure> {
    match served {
        Served::Drained => Ok(()),
        Served::Unfinished { requests } => Err(Failure::new(
            Status::Failed,
            format_args!("{requests} requests were not finished within the drain limit"),
        )
        .hint("raise `server.drain_limit`, or look for what keeps them")),
        _ => Err(Failure::new(
            Status::Interrupted,
            "stopped at once, without draining",
        )),
    }
}
