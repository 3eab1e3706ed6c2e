//! `steadfast status`: how a running service is, for a person at a terminal and, by its exit
//! status, for a script.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use crate::failure::{Failure, Status, chain};
use crate::figures;
use crate::output::line;

mod connector;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 if it serves, also if degraded; 1 if it does not; 69 if nothing answers, or
what answers does not say.

Examples:
  steadfast status
  steadfast status http://127.0.0.1:9000 --json
  steadfast status https://localhost:8443 --ca ca.pem")]
pub(crate) struct Args {
    /// Where the service is
    #[arg(
        default_value = "http://127.0.0.1:8080",
        value_name = "URL",
        env = "STEADFAST_URL"
    )]
    url: String,
    /// A token, for a service that asks who calls; without one it tells no addresses
    #[arg(long, env = "STEADFAST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Trust the certificates of this PEM file instead of the system's (for https://)
    #[arg(long, value_name = "FILE", env = "STEADFAST_CA")]
    ca: Option<PathBuf>,
    /// Print the answer as it came
    #[arg(long)]
    json: bool,
}

/// The service answers in microseconds; what takes longer than this is not well.
const LIMIT: Duration = Duration::from_secs(5);
const LARGEST_ANSWER: usize = 1 << 20;

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let service = address(&self.url)?;
        let health = ask(&service, self.token.as_deref(), self.ca.as_deref()).await?;
        if self.json {
            line(serde_json::to_string_pretty(&health).unwrap_or_default())?;
        } else {
            describe(&service, &health)?;
        }
        let serves = health["phase"] == "serving" && health["status"] != "unhealthy";
        if serves {
            Ok(())
        } else {
            Err(Failure::said(Status::Failed))
        }
    }
}

/// The scheme, host, port and path of a URL, without whatever else was given, which may hold a
/// password, and is not quoted where it makes no address.
fn address(url: &str) -> Result<String, Failure> {
    let not_one = || {
        let form = "the URL is not an address of the form http://host:port or https://host:port";
        Failure::new(Status::Usage, form)
    };
    let uri: http::Uri = url.trim_end_matches('/').parse().map_err(|_| not_one())?;
    let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(not_one)?;
    if !matches!(scheme, "http" | "https") {
        return Err(not_one());
    }
    let host = authority.as_str();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    Ok(format!(
        "{scheme}://{host}{}",
        uri.path().trim_end_matches('/')
    ))
}

async fn ask(service: &str, token: Option<&str>, ca: Option<&Path>) -> Result<Value, Failure> {
    let url = format!("{service}/health");
    let uri: http::Uri = url
        .parse()
        .map_err(|error| Failure::new(Status::Usage, error))?;
    let connector = connector::connector(ca)
        .map_err(|why| Failure::new(Status::Usage, format_args!("--ca {why}")))?;
    let client: Client<_, Empty<bytes::Bytes>> =
        Client::builder(TokioExecutor::new()).build(connector);
    let absent = |why: String| {
        Failure::new(
            Status::Unavailable,
            format_args!("no answer from {url}: {why}"),
        )
        .hint("is it running? `steadfast serve --config FILE` prints where it listens")
    };
    let mut request = http::Request::get(uri);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {}", token.trim()));
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| Failure::new(Status::Usage, error))?;
    let asked = async {
        let response = client
            .request(request)
            .await
            .map_err(|error| absent(chain(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|error| absent(error.to_string()))?;
        Ok::<_, Failure>((status, body.to_bytes()))
    };
    let (status, body) = timeout(LIMIT, asked)
        .await
        .map_err(|_| absent(format!("nothing came within {LIMIT:?}")))??;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    // The health of one that does not serve comes with 503, as some refusals do.
    if answer["phase"].is_string() && answer["status"].is_string() {
        return Ok(answer);
    }
    let why = answer["detail"]
        .as_str()
        .unwrap_or("what came is not the health of a steadfast service");
    Err(Failure::new(
        Status::Unavailable,
        format_args!("{url} answered {status}: {why}"),
    ))
}

fn describe(url: &str, health: &Value) -> Result<(), Failure> {
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let up = match health["uptime_s"].as_u64().unwrap_or_default() {
        0 => "less than a second".to_owned(),
        seconds => figures::duration(Duration::from_secs(seconds)),
    };
    let (status, phase, version) = (
        word(&health["status"]),
        word(&health["phase"]),
        word(&health["version"]),
    );
    line(format_args!(
        "{url}  {status}, {phase}, version {version}, up {up}"
    ))?;
    for (name, check) in health["checks"].as_object().into_iter().flatten() {
        let latency = check["latency_ms"]
            .as_f64()
            .map(|ms| figures::duration(Duration::from_secs_f64(ms.max(0.0) / 1e3)));
        let (status, latency) = (word(&check["status"]), latency.unwrap_or_default());
        let text = format!(
            "  {name:<10} {status:<10} {latency:>8}  {}",
            check["message"].as_str().unwrap_or_default()
        );
        line(text.trim_end())?;
    }
    Ok(())
}
