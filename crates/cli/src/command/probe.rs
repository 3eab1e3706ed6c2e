//! `steadfast probe`: what a connection is worth, measured from where the application runs, with
//! nothing but short-lived keys of its own. It says what it did in figures and, where it could not
//! do it, why in words to act on.

mod shards;
mod tally;
mod view;
mod why;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use steadfast::{Client, ConfigError, EventItem, EventKind, Fencing, Tls};
use tokio::time::{Instant, sleep, timeout};

use crate::address::redis_url;
use crate::failure::{Failure, Status, chain};
use crate::figures::{bytes, count, duration};
use crate::output::row;
use crate::signals::Signals;
use shards::Shards;
use view::View;
use work::{EXPIRY, Outcome, Plan};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The keys are named steadfast:probe:…, expire within a minute, and are deleted at the end, also on
Ctrl-C. Exit status: 0 if every operation succeeded, 1 if one failed, 69 if no connection came about,
130 if interrupted.

Examples:
  steadfast probe redis://127.0.0.1:6379
  steadfast probe rediss://app@cache.example:6380 --operations 30000 --workers 50
  steadfast probe redis-sentinel://a.example:26379,b.example,c.example/mymaster
  steadfast probe redis-cluster://a.example:6379,b.example:6379
  REDIS_URL=redis://:password@cache.example:6379 steadfast probe")]
pub(crate) struct Args {
    // No doc comment: rustdoc would take the brackets for a link, and clap would print whatever
    // escapes them.
    #[arg(
        help = "redis://[user:password@]host:port/db, rediss://… for TLS, unix:///path, redis-sentinel://host:26379,host/service[/db], or redis-cluster://host:port,host:port",
        env = "REDIS_URL",
        hide_env_values = true
    )]
    url: String,
    /// How many commands to send in all: as many SET as GET as DEL
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3_000,
        value_parser = clap::value_parser!(u64).range(3..=100_000_000)
    )]
    operations: u64,
    /// How many tasks send them at the same time, over one connection
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=10_000)
    )]
    workers: u64,
    /// The longest that one command, or one step of connecting, may take, in milliseconds
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u64).range(1..=600_000)
    )]
    deadline: u64,
    /// Trust the certificates of this PEM file instead of the system's (for rediss://)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Expect this name in the server's certificate instead of the URL's host
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        redis_url(&self.url)?;
        let stop = Signals::listen()?.asked_to_stop();
        tokio::pin!(stop);
        let interrupted = || Err(Failure::said(Status::Interrupted));
        let deadline = Duration::from_millis(self.deadline);
        let client = self
            .client(deadline)
            .map_err(|error| Failure::new(Status::Usage, chain(&error)))?;
        let connected = tokio::select! {
            connected = connect(&client, deadline) => connected,
            () = &mut stop => return interrupted(),
        };
        if connected.is_err()
            && let Some(view) = View::of(&client, deadline).await
        {
            view.describe()?;
        }
        let connected = connected.map_err(|cause| {
            let failure = Failure::new(Status::Unavailable, format_args!("no connection: {cause}"));
            match why::hint(&cause) {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        })?;
        tokio::select! {
            described = describe_server(&client, deadline) => described?,
            () = &mut stop => return interrupted(),
        }
        describe_connection(&client, &connected)?;
        tokio::select! {
            view = View::of(&client, deadline) => if let Some(view) = view { view.describe()? },
            () = &mut stop => return interrupted(),
        }
        tokio::select! {
            shards = Shards::of(&client, deadline) => if let Some(shards) = shards { shards.describe()? },
            () = &mut stop => return interrupted(),
        }

        let plan = Plan {
            operations: self.operations,
            workers: self.workers,
        };
        let outcome = work::run(&client, plan, &mut stop).await;
        describe_work(&outcome, plan)?;
        describe_state(&client)?;
        describe_clean_up(&outcome)?;
        // Nothing is in flight any more.
        let _ = client.close(deadline).await;
        if outcome.interrupted {
            return interrupted();
        }
        match outcome.tally.figures().errors {
            0 => Ok(()),
            _ => Err(Failure::said(Status::Failed)),
        }
    }

    fn client(&self, deadline: Duration) -> Result<Client, ConfigError> {
        let mut builder = Client::builder(&self.url)?;
        if self.ca.is_some() || self.server_name.is_some() {
            let mut tls = Tls::new();
            if let Some(file) = &self.ca {
                tls = tls.ca_file(file)?;
            }
            if let Some(name) = &self.server_name {
                tls = tls.server_name(name);
            }
            builder = builder.tls(tls);
        }
        builder
            .deadline(deadline)
            .connect_timeout(deadline)
            .name("steadfast-probe")
            .build()
    }
}

/// How the first attempt to connect went.
struct Connected {
    took: Duration,
}

/// Waits for the end of the first attempt. The client would go on trying; a probe wants to know why
/// the first one failed.
async fn connect(client: &Client, deadline: Duration) -> Result<Connected, String> {
    let mut events = client.events();
    let mut seen = client.history();
    // Credentials, name, TCP, TLS and handshake have the deadline each.
    let limit = deadline * 5 + Duration::from_secs(1);
    if client.status().cluster.is_some() {
        return first_answer(client, limit).await;
    }
    loop {
        for event in seen {
            match event.kind {
                EventKind::Connected { took_ms, .. } => {
                    return Ok(Connected {
                        took: Duration::from_secs_f64(took_ms / 1e3),
                    });
                }
                EventKind::ConnectFailed { cause, .. } => return Err(cause.to_string()),
                _ => {}
            }
        }
        seen = match timeout(limit, events.next()).await {
            Ok(Some(EventItem::Event(event))) => vec![event],
            Ok(Some(_)) => client.history(),
            Ok(None) => return Err("the client ended".to_owned()),
            Err(_) => return Err(format!("no attempt ended within {}", duration(limit))),
        };
    }
}

/// Asks a cluster for a sign of life, which connects to a node. Before a node has told who is a
/// member none is known, and no attempt to connect.
async fn first_answer(client: &Client, limit: Duration) -> Result<Connected, String> {
    let began = Instant::now();
    loop {
        match client.send(&redis::cmd("PING")).await {
            Ok(_) => {
                let took = began.elapsed();
                return Ok(Connected { took });
            }
            Err(error) if began.elapsed() > limit => return Err(error.to_string()),
            // The view may come yet; a reason is given only once nodes were asked.
            Err(error) => {
                let cluster = client.status().cluster;
                let said = cluster.and_then(|cluster| cluster.error);
                if let Some(why) = said {
                    return Err(why);
                }
                sleep(error.retry_after().unwrap_or(LOOK).min(LOOK)).await;
            }
        }
    }
}

/// Between looks whether a node of a cluster has answered.
const LOOK: Duration = Duration::from_millis(50);

async fn describe_server(client: &Client, deadline: Duration) -> Result<(), Failure> {
    let (health, status) = (client.health(deadline).await, client.status());
    let version = health
        .version
        .or(status.server_version)
        .unwrap_or_else(|| "of unknown version".to_owned());
    let role = match health.role.as_deref() {
        Some("master") => "primary",
        Some("slave") => "replica",
        _ => "role unknown",
    };
    let named = status.sentinel.and_then(|watch| watch.primary);
    let address = named.unwrap_or(status.address);
    row(
        "server",
        format_args!("redis {version}, {role}, at {address}"),
    )?;
    let facts = [
        health.clients.map(|clients| plural(clients, "client")),
        health
            .memory_bytes
            .map(|used| format!("{} of memory in use", bytes(used))),
        health
            .latency_ms
            .map(|ms| format!("PING {}", duration(Duration::from_secs_f64(ms / 1e3)))),
    ];
    let facts: Vec<_> = facts.into_iter().flatten().collect();
    match facts.is_empty() {
        true => row("", "INFO tells nothing to this user")?,
        false => row("", facts.join(", "))?,
    }
    Ok(())
}

fn describe_connection(client: &Client, connected: &Connected) -> Result<(), Failure> {
    let tls = client.status().tls.unwrap_or_else(|| "no TLS".to_owned());
    Ok(row(
        "connection",
        format_args!("made in {}, {tls}", duration(connected.took)),
    )?)
}

fn describe_work(outcome: &Outcome, plan: Plan) -> Result<(), Failure> {
    let figures = outcome.tally.figures();
    let rate = figures.total as f64 / outcome.took.as_secs_f64().max(1e-9);
    let interrupted = if outcome.interrupted {
        ", interrupted"
    } else {
        ""
    };
    row(
        "operations",
        format_args!(
            "{} in {} by {}, {} a second{interrupted}",
            count(figures.total),
            duration(outcome.took),
            plural(plan.workers, "worker"),
            count(rate as u64)
        ),
    )?;
    let success = figures
        .success_percent
        .map_or("nothing was tried".to_owned(), floor_percent);
    row(
        "",
        format_args!(
            "{}, success rate {success}",
            plural(figures.errors, "error")
        ),
    )?;
    for (why, n) in outcome.tally.errors() {
        let hint = why::hint(why)
            .map(|hint| format!(": {hint}"))
            .unwrap_or_default();
        row("", format_args!("  {} × {why}{hint}", count(n)))?;
    }
    if let Some(times) = figures.times {
        let [mean, median, p95, p99, max] =
            [times.mean, times.median, times.p95, times.p99, times.max].map(duration);
        row(
            "latency",
            format_args!("mean {mean}, median {median}, p95 {p95}, p99 {p99}, longest {max}"),
        )?;
    }
    Ok(())
}

fn plural(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

/// Never says 100 % when something failed.
fn floor_percent(percent: f64) -> String {
    format!("{:.2} %", (percent * 100.0).floor() / 100.0)
}

fn describe_state(client: &Client) -> Result<(), Failure> {
    let status = client.status();
    let state = serde_json::to_value(status.state).unwrap_or_default();
    let state = state.as_str().unwrap_or("unknown");
    let lost = match status.reconnects {
        0 => "never lost".to_owned(),
        n => format!("made anew {}", plural(n, "time")),
    };
    row(
        "state",
        format_args!(
            "connection {state}, {lost}; breaker {}",
            status.breaker.replace('_', " ")
        ),
    )?;
    if status.fencing == Fencing::Refused {
        row(
            "",
            "CLIENT KILL is not allowed to this user: after a lost connection, writes are not repeated",
        )?;
    }
    Ok(())
}

fn describe_clean_up(outcome: &Outcome) -> Result<(), Failure> {
    match outcome.left {
        0 => row("keys", "all deleted")?,
        n => row(
            "keys",
            format_args!("{n} may be left; they expire within {}", duration(EXPIRY)),
        )?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_in_a_million_is_not_a_hundred_percent() {
        assert_eq!(floor_percent(99.999_9), "99.99 %");
        assert_eq!(floor_percent(100.0), "100.00 %");
    }
}
