//! Private sentinels (`redis-server --sentinel`), and a primary with a replica that three of them
//! watch.

use super::child::Death;
use super::redis::{Redis, RedisBuilder};
use super::server::Server;
use super::{ProcessError, START_LIMIT, find};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A running (or killed, or frozen) sentinel. Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub struct Sentinel {
    program: PathBuf,
    server: Server,
    password: Option<String>,
}

/// The methods that it has in common with every server: port, folder, pid, standing still.
impl Deref for Sentinel {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Sentinel {
    /// Starts a sentinel that watches this primary under the name `main`, with these further lines
    /// of its file, and waits until it answers PING. Two sentinels have to agree that the primary
    /// is down, after half a second.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`].
    pub async fn start(primary: &Redis, lines: &[&str]) -> Result<Self, ProcessError> {
        Self::start_within(&std::env::temp_dir(), primary, lines).await
    }

    /// The same, its folder being one of `place`.
    async fn start_within(
        place: &Path,
        primary: &Redis,
        lines: &[&str],
    ) -> Result<Self, ProcessError> {
        let program = find(&["redis-server", "valkey-server"], &[], "redis-server")?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let server = Server::within(place, "sentinel", None, Death::Killed)?;
            let password = lines
                .iter()
                .find_map(|line| line.strip_prefix("requirepass "));
            let sentinel = Self {
                program: program.clone(),
                server,
                password: password.map(str::to_owned),
            };
            match sentinel.launch(primary.addr(), lines).await {
                Ok(()) => return Ok(sentinel),
                // Somebody asked for the free port by its number before the sentinel had bound it:
                // take another.
                Err(ProcessError::PortTaken { .. }) if attempts < 5 => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn launch(&self, primary: SocketAddr, lines: &[&str]) -> Result<(), ProcessError> {
        let path = self.file();
        let (host, port) = (primary.ip(), primary.port());
        let conf = format!(
            "bind 127.0.0.1\nport {}\ndir \"{}\"\nsentinel monitor {WATCHED} {host} {port} 2\n\
             sentinel down-after-milliseconds {WATCHED} 500\nsentinel failover-timeout {WATCHED} 3000\n{}\n",
            self.port(),
            self.folder().display(),
            lines.join("\n"),
        );
        std::fs::write(&path, conf).map_err(|cause| ProcessError::Folder {
            path: path.clone(),
            cause,
        })?;
        self.relaunch().await
    }

    /// Starts a killed sentinel again on its port, with what it knew when it last wrote its file.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`].
    pub async fn relaunch(&self) -> Result<(), ProcessError> {
        let args = [OsString::from(self.file()), OsString::from("--sentinel")];
        self.server.launch(&self.program, &args)?;
        self.server
            .until(|| async { self.command(&["PING"]).await.is_ok() })
            .await?;
        // It does not write them into its file.
        self.command(&QUICK).await.map(drop)
    }

    fn file(&self) -> PathBuf {
        self.folder().join("sentinel.conf")
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) {
        self.server.end(Death::Killed).await;
    }

    /// Asks or tells it something. At most 10 s.
    ///
    /// # Errors
    /// [`ProcessError::Command`] with what it answered, or that it did not.
    pub async fn command(&self, args: &[&str]) -> Result<redis::Value, ProcessError> {
        let refused = |cause: String| ProcessError::Command {
            program: "sentinel".into(),
            cause,
        };
        let asked = async {
            let client = redis::Client::open(format!("redis://{}", self.addr()))?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            if let Some(password) = &self.password {
                let auth = redis::cmd("AUTH").arg(password).to_owned();
                auth.exec_async(&mut connection).await?;
            }
            let mut command = redis::Cmd::new();
            args.iter().for_each(|arg| {
                command.arg(arg);
            });
            command.query_async(&mut connection).await
        };
        let outcome: Result<redis::RedisResult<_>, _> =
            timeout(Duration::from_secs(10), asked).await;
        outcome
            .map_err(|_| refused("no answer within 10 s".into()))?
            .map_err(|error| refused(error.to_string()))
    }
}

/// A primary with a replica, watched by three sentinels under the name `main`.
///
/// ```no_run
/// # async fn example() -> Result<(), steadfast_drill::process::ProcessError> {
/// use steadfast_drill::process::Watched;
///
/// let watched = Watched::start().await?;
/// assert!(watched.url().starts_with("redis-sentinel://127.0.0.1:"));
/// watched.fail_over().await?; // planned: the replica takes over
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Watched {
    /// The first of them is the primary at the start.
    pub data: [Redis; 2],
    /// The sentinels.
    pub sentinels: [Sentinel; 3],
}

impl Watched {
    /// Starts all of them, and waits until each knows the others.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`].
    pub async fn start() -> Result<Self, ProcessError> {
        Self::start_with(|server| server, &[]).await
    }

    /// The same, with further settings of both servers and further lines of each sentinel's file.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`].
    pub async fn start_with(
        set: impl Fn(RedisBuilder) -> RedisBuilder,
        lines: &[&str],
    ) -> Result<Self, ProcessError> {
        let lines = |_| lines.iter().map(ToString::to_string).collect();
        Self::start_each(set, lines, &std::env::temp_dir()).await
    }

    /// The same, with further lines for each sentinel by its number; their folders are in `place`.
    pub(crate) async fn start_each(
        set: impl Fn(RedisBuilder) -> RedisBuilder,
        lines: impl Fn(usize) -> Vec<String>,
        place: &Path,
    ) -> Result<Self, ProcessError> {
        let primary = set(Redis::builder()).start().await?;
        let of = format!("127.0.0.1 {}", primary.port());
        let replica = set(Redis::builder().config("replicaof", of))
            .start()
            .await?;
        let until = Instant::now() + START_LIMIT;
        // The replica says that its link is up before the primary passes writes on to it.
        while !primary.info("replication").await?.contains("state=online") {
            soon(until, "replica").await?;
        }
        let sentinel = async |number| {
            let lines = lines(number);
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            Sentinel::start_within(place, &primary, &lines).await
        };
        let sentinels = [sentinel(0).await?, sentinel(1).await?, sentinel(2).await?];
        let watched = Self {
            data: [primary, replica],
            sentinels,
        };
        for sentinel in &watched.sentinels {
            while !watched.is_known_to(sentinel).await? {
                soon(until, "sentinel").await?;
            }
        }
        Ok(watched)
    }

    async fn is_known_to(&self, sentinel: &Sentinel) -> Result<bool, ProcessError> {
        let list = async |of: &str| {
            let list = sentinel.command(&["SENTINEL", of, WATCHED]).await?;
            let list: Option<Vec<BTreeMap<String, String>>> = redis::from_redis_value(list).ok();
            Ok::<_, ProcessError>(list.unwrap_or_default())
        };
        let replicas = list("REPLICAS").await?;
        let link = replicas
            .first()
            .and_then(|one| one.get("master-link-status"));
        let linked = link.is_some_and(|status| status == "ok");
        Ok(list("SENTINELS").await?.len() == 2 && linked)
    }

    /// Returns the URL for clients: `redis-sentinel://127.0.0.1:port,…/main`.
    #[must_use]
    pub fn url(&self) -> String {
        let seeds = self.sentinels.iter().map(|one| one.addr().to_string());
        let seeds: Vec<_> = seeds.collect();
        format!("redis-sentinel://{}/{WATCHED}", seeds.join(","))
    }

    /// Has the first sentinel make the replica the primary, and waits until a server says that it
    /// is one and another that it is not.
    ///
    /// # Errors
    /// The sentinel refuses, or nothing came of it within 30 s.
    pub async fn fail_over(&self) -> Result<(), ProcessError> {
        let before = self.primary().await?;
        self.sentinels[0]
            .command(&["SENTINEL", "FAILOVER", WATCHED])
            .await?;
        let until = Instant::now() + START_LIMIT;
        while self.primary().await? == before {
            soon(until, "sentinel").await?;
        }
        Ok(())
    }

    /// The port that the first sentinel names.
    ///
    /// # Errors
    /// As [`Sentinel::command`].
    pub async fn primary(&self) -> Result<u16, ProcessError> {
        named_by(&self.sentinels[0]).await
    }
}

/// The port of the primary that this sentinel names.
async fn named_by(sentinel: &Sentinel) -> Result<u16, ProcessError> {
    let named = sentinel
        .command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", WATCHED])
        .await?;
    let named: Option<(String, u16)> = redis::from_redis_value(named).ok();
    Ok(named.map_or(0, |(_, port)| port))
}

async fn soon(until: Instant, program: &str) -> Result<(), ProcessError> {
    if Instant::now() > until {
        return Err(ProcessError::Silent {
            program: program.into(),
            waited: START_LIMIT,
            line: "the group did not come together".into(),
        });
    }
    sleep(Duration::from_millis(20)).await;
    Ok(())
}

/// The name under which the primary is watched.
const WATCHED: &str = "main";
/// Looks and rumours come sooner than by default, so that a test need not wait for them. While the
/// primary is away its replicas are asked for INFO once a second, and one whose last answer is
/// older than five ping periods is not promoted: with 100 ms every other election came to nothing,
/// and the next is held 6 s later.
const QUICK: [&str; 12] = [
    "SENTINEL",
    "DEBUG",
    "ping-period",
    "300",
    "info-period",
    "200",
    "ask-period",
    "100",
    "publish-period",
    "300",
    "election-timeout",
    "1000",
];
