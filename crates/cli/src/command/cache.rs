//! `steadfast cache`: look into the cache of a service and put it right, by the service's own
//! configuration. It goes the ways that the service goes: an invalidation is in the outbox before
//! it is anywhere else, so it reaches every process.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::Duration;

use redis::Value;
use serde_json::value::RawValue;
use steadfast::{Client, ConnectionState};
use steadfast_cache::{SourceError, Target};
use steadfast_server::App;
use steadfast_server::config::Config;

use crate::failure::{Failure, Status, chain};
use crate::figures::count;
use crate::output::line;
use crate::settings::File;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the keys that Redis holds for the service
    #[command(after_help = "\
Examples:
  steadfast cache keys --config steadfast.toml
  steadfast cache keys --config steadfast.toml --matching 'users:id:*'")]
    Keys(Keys),
    /// Ask one query as the service would, and print the answer with its source
    #[command(
        after_help = "Example:\n  steadfast cache get --config steadfast.toml search_users q=ada limit=3"
    )]
    Get(Get),
    /// Forget keys and tags, in every process of the service
    #[command(after_help = "\
It ends with 0 once it is written down in the database, from where it reaches Redis and every process.
What it prints says whether Redis has confirmed it within 3 s, and if not, what is in the way.

Examples:
  steadfast cache invalidate --config steadfast.toml users:id:7
  steadfast cache invalidate --config steadfast.toml --tag users
  steadfast cache invalidate --config steadfast.toml --all")]
    Invalidate(Invalidate),
    /// Ask a query once for each line of standard input, so that Redis holds the answers
    #[command(after_help = "\
A line holds the parameters as in the URL: q=ada&limit=20

Example:
  seq 1 500 | sed 's/^/id=/' | steadfast cache warm --config steadfast.toml user_by_id")]
    Warm(Warm),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Keys {
    #[command(flatten)]
    file: File,
    /// Only keys of this form; * stands for anything, ? for one character
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    matching: String,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    file: File,
    /// The query's name
    query: String,
    /// Parameters of the query
    #[arg(value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, String)>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Invalidate {
    #[command(flatten)]
    file: File,
    /// Keys, as `steadfast cache keys` prints them
    #[arg(value_name = "KEY", required_unless_present_any = ["tag", "all"])]
    keys: Vec<String>,
    /// A tag: every value that carries it; may be repeated
    #[arg(long)]
    tag: Vec<String>,
    /// Everything
    #[arg(long, conflicts_with_all = ["keys", "tag"])]
    all: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Warm {
    #[command(flatten)]
    file: File,
    /// The query's name
    query: String,
}

impl Command {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Keys(args) => args.run().await,
            Self::Get(args) => args.run().await,
            Self::Invalidate(args) => args.run().await,
            Self::Warm(args) => args.run().await,
        }
    }
}

impl Keys {
    async fn run(self) -> Result<(), Failure> {
        let config = self.file.load()?;
        let unreachable =
            |error: &dyn std::error::Error| Failure::new(Status::Unavailable, chain(error));
        let builder = steadfast_server::redis_client(&config.redis)
            .map_err(|error| Failure::new(Status::Config, chain(&error)))?;
        let client = builder
            .connect()
            .await
            .map_err(|error| unreachable(&error))?;
        let namespace = namespace_of(&client, &config);
        let epoch = format!("{namespace}:epoch");
        let server = client.session_for(&epoch).await;
        let server = server.map_err(|error| unreachable(&error))?;
        let epoch = server.send(redis::cmd("GET").arg(epoch)).await;
        let Value::BulkString(epoch) = epoch.map_err(|error| unreachable(&error))? else {
            eprintln!(
                "the cache `{}` has never been used on this Redis",
                config.namespace
            );
            return Ok(());
        };
        let prefix = format!("{namespace}:v:{}:{{", String::from_utf8_lossy(&epoch));
        let mut left = self.limit;
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(format!("{prefix}{}}}", self.matching))
                .arg("COUNT")
                .arg(1_000);
            let page = server
                .send(&scan)
                .await
                .map_err(|error| unreachable(&error))?;
            let (next, keys): (String, Vec<String>) = redis::from_redis_value(page)
                .map_err(|error| Failure::new(Status::Failed, error))?;
            for key in keys
                .iter()
                .filter_map(|key| key.strip_prefix(&prefix)?.strip_suffix('}'))
            {
                if left == 0 {
                    eprintln!("and more; --limit shows more of them");
                    return Ok(());
                }
                left -= 1;
                line(key)?;
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }
}

impl Get {
    async fn run(self) -> Result<(), Failure> {
        let app = start(&self.file).await?;
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let answer = ask(
            &app,
            &self.query,
            &query.extend_pairs(&self.parameters).finish(),
        )
        .await;
        app.close().await;
        let answer: Answer =
            serde_json::from_str(&answer?).map_err(|error| Failure::new(Status::Failed, error))?;
        Ok(line(
            serde_json::to_string_pretty(&answer).unwrap_or_default(),
        )?)
    }
}

impl Invalidate {
    async fn run(self) -> Result<(), Failure> {
        let mut targets: Vec<_> = self.keys.iter().map(Target::key).collect();
        targets.extend(self.tag.iter().map(Target::tag));
        if self.all {
            targets.push(Target::All);
        }
        let app = start(&self.file).await?;
        let confirmed = Box::pin(forget(&app, &targets)).await;
        let (unreachable, redis) = (unreachable(&app), app.cache().status().redis);
        app.close().await;
        let confirmed = confirmed.map_err(|error| Failure::new(Status::Failed, chain(&error)))?;
        let unread_because = redis.and_then(|redis| redis.suspended);
        Ok(match (confirmed, unreachable, unread_because) {
            (true, ..) => line("forgotten, in Redis and in every process"),
            (false, Some(why), _) => line(format_args!(
                "written down; Redis cannot be reached, and will forget as soon as it can: {why}"
            )),
            (false, None, Some(reason)) => {
                line(format_args!("written down; Redis is not read: {reason}"))
            }
            (false, None, None) => line("written down; Redis has not confirmed it yet"),
        }?)
    }
}

impl Warm {
    async fn run(self) -> Result<(), Failure> {
        let app = start(&self.file).await?;
        let mut sources: BTreeMap<String, u64> = BTreeMap::new();
        let mut outcome = Ok(());
        for parameters in std::io::stdin().lock().lines() {
            match ask(&app, &self.query, parameters?.trim()).await {
                Ok(answer) => {
                    let answer = serde_json::from_str::<Answer>(&answer);
                    let source = answer.map_or("?".to_owned(), |answer| answer.source);
                    *sources.entry(source).or_default() += 1;
                }
                Err(failure) => {
                    outcome = Err(failure);
                    break;
                }
            }
        }
        app.close().await;
        let told: Vec<_> = sources
            .iter()
            .map(|(source, n)| format!("{} from {source}", count(*n)))
            .collect();
        line(if told.is_empty() {
            "nothing was asked".to_owned()
        } else {
            told.join(", ")
        })?;
        outcome
    }
}

/// Invalidates, and waits until Redis has confirmed it, for which it may take longer than a service
/// waits. Returns whether it has.
async fn forget(app: &App, targets: &[Target]) -> Result<bool, SourceError> {
    let cache = app.cache();
    if cache.invalidate(targets).await?.applied {
        return Ok(true);
    }
    let waits = || cache.status().outbox_pending > 0;
    let confirmed = async {
        while waits() && unreachable(app).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, confirmed).await;
    Ok(!waits())
}

/// Returns why the Redis of the cache cannot be reached; `None` if it serves, or may do so in a
/// moment: no attempt to connect has failed. In a cluster that is the shard of the namespace, and
/// no other.
fn unreachable(app: &App) -> Option<String> {
    let client = app.client();
    let toward = client.toward(format!("{}:epoch", namespace_of(client, app.config())));
    if toward.state() != ConnectionState::Down {
        return None;
    }
    let status = client.status();
    let nodes = status.cluster.iter().flat_map(|cluster| &cluster.nodes);
    let slot = toward.slot();
    let Some(owner) = nodes.into_iter().find(|node| node.owns(slot)) else {
        return status.last_error;
    };
    let address = owner.address.as_deref().unwrap_or("an unknown address");
    let error = owner.last_error.as_ref()?;
    Some(format!("{address}, which has slot {slot}: {error}"))
}

/// The namespace as names in Redis begin with it. In a cluster it is the hash tag of all of them,
/// and one node has them all.
fn namespace_of(client: &Client, config: &Config) -> String {
    match client.is_cluster() {
        true => format!("{{{}}}", config.namespace),
        false => config.namespace.clone(),
    }
}

/// How long Redis is waited for at most, before the first question and for what it is to confirm.
const PATIENCE: Duration = Duration::from_secs(3);

/// The service without its listener, and without what stands between it and its callers: whoever
/// may read the file needs no token.
async fn start(file: &File) -> Result<App, Failure> {
    let mut config = file.load()?;
    config.auth = None;
    config.limits.rate.clear();
    let app = Box::pin(App::start(config))
        .await
        .map_err(|error| Failure::new(Status::Unavailable, chain(&error)))?;
    // So that the first read finds Redis in use and does not take it for stale, if there is one;
    // without it everything works all the same.
    let in_use = async {
        let is_in_use = || {
            let redis = app.cache().status().redis;
            redis.is_some_and(|redis| redis.trusted && redis.proven)
        };
        while unreachable(&app).is_none() && !is_in_use() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, in_use).await;
    Ok(app)
}

/// An answer, with each row as it came: a number may have more digits than any type here.
#[derive(serde::Deserialize, serde::Serialize)]
struct Answer {
    query: String,
    rows: Vec<Box<RawValue>>,
    truncated: bool,
    source: String,
    stale: bool,
    age_ms: u64,
}

async fn ask(app: &App, query: &str, parameters: &str) -> Result<String, Failure> {
    Box::pin(app.ask(query, parameters))
        .await
        .map_err(|problem| {
            Failure::new(
                Status::Failed,
                format_args!("{query}: {}", problem.detail()),
            )
        })
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
