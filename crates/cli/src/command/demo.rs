//! `steadfast demo`: the whole road on one's own machine, with a Redis and a database that end with
//! it. What it prints is what a newcomer does next, ready to be pasted.

use steadfast_server::config::{Config, Sources};
use steadfast_server::{Demo, DemoOptions, Served, Signals, telemetry};

use super::serve::{finished, unbound};
use crate::failure::{Failure, Status, chain};
use crate::output::line;
use crate::settings;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The first line printed names the address. Everything is private to the demo: a redis-server on a
free port, SQLite in a temporary folder. Without a redis-server on the PATH it starts degraded, and
says what to install. Exit status: 0 after Ctrl-C or when the
terminal closes, 69 if the port is taken.

Examples:
  steadfast demo
  steadfast demo --listen 127.0.0.1:0      # any free port")]
pub(crate) struct Args {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: String,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut signals = Signals::install()?;
        // The port first: it is what is most often in the way, and nothing is to be undone yet.
        let sources = Sources::new().flag("--listen", "server.listen", &self.listen);
        let config = Config::load(&sources).map_err(settings::refusal)?;
        let listener = steadfast_server::bind(&config)
            .await
            .map_err(|error| unbound(&error))?;
        let address = listener.local_addr()?;

        let demo = tokio::select! {
            demo = Demo::start(DemoOptions::new(address)) => demo,
            // Ended in order, as it would be a moment later.
            () = signals.asked_to_end_or_hung_up() => return Ok(()),
        };
        let demo = demo.map_err(|error| Failure::new(Status::Failed, chain(&error)))?;
        let telemetry = telemetry::init(demo.app().config())
            .map_err(|error| Failure::new(Status::Failed, chain(&error)))?;
        line(introduction(&address.to_string(), &demo))?;
        let served = steadfast_server::run(listener, demo.app().clone(), None, &mut signals).await;
        // Dropped instead of stopped, its Redis is killed.
        let in_order = served != Served::Forced && signals.see_out(demo.stop()).await;
        let served = if in_order { served } else { Served::Forced };
        telemetry.shutdown();
        finished(served)
    }
}

fn introduction(address: &str, demo: &Demo) -> String {
    let curl = format!("curl '{address}/v1/queries/search_users?q=ada'");
    let health = format!("curl {address}/health");
    let tries = match demo.redis() {
        Some((port, Some(pid))) => format!(
            "  {curl}\n  kill -9 {pid:<37} # its Redis; then ask again, and it still answers\n  {health:<45} # degraded, and why\n\n\
             A Redis that comes back is used again, without a restart:  redis-server --port {port} --save ''"
        ),
        _ => format!("  {curl}\n  {health:<45} # degraded, and why\n  steadfast drill list"),
    };
    let notice = demo
        .notice()
        .map(|notice| format!("\ndegraded: {notice}\n"))
        .unwrap_or_default();
    format!(
        "http://{address} is up: 10 000 made-up users in SQLite, behind a cache.\n{notice}\n\
         Open it in a browser, or try in another terminal:\n{tries}\n\nCtrl-C ends it and all that it started."
    )
}
