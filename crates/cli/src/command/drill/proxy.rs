//! `steadfast drill proxy`: stands in front of the user's own Redis, and breaks only the wire.
//! Whoever has tests with Toxiproxy points them at it: the API is the same.

use std::net::SocketAddr;

use steadfast_drill::api::{self, Proxies, Wanted};
use tokio::net::TcpListener;

use crate::address::host_and_port;
use crate::failure::{Failure, Status};
use crate::output::line;
use crate::signals::Signals;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The control API is Toxiproxy's, so its clients work: POST /proxies, /proxies/NAME/toxics, /reset …
Besides its toxics there are stall, corrupt, down, and those of Redis' protocol.
What stands behind a proxy is never touched. Ctrl-C ends it.

Examples:
  steadfast drill proxy --listen 127.0.0.1:26379 --upstream 127.0.0.1:6379
  curl -d '{\"type\":\"latency\",\"attributes\":{\"latency\":300}}' 127.0.0.1:8474/proxies/redis/toxics")]
pub(crate) struct Args {
    /// The server behind the proxy, as host:port; without one, only the control API is served
    #[arg(long, value_name = "ADDR")]
    upstream: Option<String>,
    /// Where the proxy listens
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        requires = "upstream"
    )]
    listen: String,
    /// Name of the proxy in the API
    #[arg(long, default_value = "redis")]
    name: String,
    /// Where the control API listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8474")]
    api: SocketAddr,
    /// Seed of all randomness
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        for (flag, address) in [
            ("--upstream", &self.upstream),
            ("--listen", &Some(self.listen.clone())),
        ] {
            if let Some(address) = address {
                host_and_port(flag, address)?;
            }
        }
        let signals = Signals::listen()?;
        let unavailable = |error: &dyn std::fmt::Display| {
            Failure::new(
                Status::Unavailable,
                format_args!("cannot listen on {}: {error}", self.api),
            )
            .hint("choose another with --api, or port 0 for any free one")
        };
        let listener = TcpListener::bind(self.api)
            .await
            .map_err(|error| unavailable(&error))?;
        let api = listener.local_addr()?;
        let proxies = Proxies::new(self.seed);
        if let Some(upstream) = self.upstream {
            let wanted = Wanted {
                name: self.name.clone(),
                listen: self.listen,
                upstream: upstream.clone(),
                resp: Some(true),
                ..Wanted::default()
            };
            let address = proxies.create(wanted).await;
            let address = address.map_err(|refusal| Failure::new(Status::Unavailable, refusal))?;
            line(format_args!(
                "proxy {} at {address}, in front of {upstream}",
                self.name
            ))?;
        }
        line(format_args!("control API at http://{api}"))?;
        tokio::select! {
            served = api::serve(listener, proxies) => Ok(served?),
            () = signals.asked_to_stop() => Ok(()),
        }
    }
}
