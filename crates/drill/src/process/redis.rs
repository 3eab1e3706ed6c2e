//! A private `redis-server` or `valkey-server`, to be killed, frozen, restarted and brought back
//! with old data.
//!
//! How it is asked and told things: `control.rs`.

mod control;

use self::control::Occupant;
use super::child::Death;
use super::runner::Runner;
use super::server::Server;
use super::{ProcessError, START_LIMIT, find};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A running (or killed, or frozen) server. Dropped, it is killed and its folder removed.
///
/// ```no_run
/// # async fn example() -> Result<(), steadfast_drill::process::ProcessError> {
/// use steadfast_drill::process::Redis;
///
/// let redis = Redis::builder().config("maxclients", "10").start().await?;
/// redis.command(&["SET", "k", "v"]).await?;
/// redis.kill().await;
/// redis.restart().await?; // on the same port, and empty
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Redis {
    settings: RedisBuilder,
    program: PathBuf,
    server: Server,
    occupant: Occupant,
}

/// The settings of a [`Redis`]. By default: a free port, no persistence, no password, no TLS,
/// a primary.
#[derive(Debug, Clone, Default)]
pub struct RedisBuilder {
    program: Option<PathBuf>,
    place: Option<PathBuf>,
    port: Option<u16>,
    save: bool,
    password: Option<String>,
    users: Vec<String>,
    tls: Option<Tls>,
    primary: Option<Primary>,
    config: Vec<(String, String)>,
    runner: Option<Runner>,
}

/// The files by which a server speaks TLS, as paths that its user can read. PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The server's certificate, with the chain if there is one.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authority by which certificates of clients (and of a primary) are judged.
    pub ca: PathBuf,
    /// Whether clients must show a certificate. Plain server authentication: `false`.
    pub client_certificates: bool,
}

#[derive(Debug, Clone)]
struct Primary {
    addr: SocketAddr,
    password: String,
    tls: bool,
}

impl RedisBuilder {
    /// A given program instead of the `redis-server` or `valkey-server` on the PATH.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// The folder within which its own one is made. Default: the system's place for temporary
    /// files.
    #[must_use]
    pub fn within(mut self, place: impl Into<PathBuf>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Sets the port of 127.0.0.1. Default: one that is free.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Whether data outlives a crash (an append-only file). Default: `false`, a restarted server is
    /// empty.
    #[must_use]
    pub fn save(mut self, save: bool) -> Self {
        self.save = save;
        self
    }

    /// `requirepass`: the password of the default user. Default: none.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// A user, as `ACL SETUSER` takes it: `"ada on >secret ~* +@read"`. May be repeated.
    #[must_use]
    pub fn acl(mut self, user: impl Into<String>) -> Self {
        self.users.push(user.into());
        self
    }

    /// TLS on its port, and no plain TCP. Default: plain TCP.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// A replica of `primary`, which must have been started by this module. Default: a primary.
    #[must_use]
    pub fn replica_of(mut self, primary: &Redis) -> Self {
        self.primary = Some(Primary {
            addr: primary.addr(),
            password: primary.secret(),
            tls: primary.settings.tls.is_some(),
        });
        self
    }

    /// Ends with that process rather than with this one.
    pub(super) fn shared(mut self, runner: Runner) -> Self {
        self.runner = Some(runner);
        self
    }

    /// The shared server in this folder that another process has started with these settings,
    /// running or not.
    pub(super) fn find(self, folder: &Path, runner: Runner) -> Result<Redis, ProcessError> {
        Ok(Redis {
            program: self.find_program()?,
            server: Server::find("redis", folder, Death::Killed, runner)?,
            settings: self.shared(runner),
            occupant: Occupant::default(),
        })
    }

    fn find_program(&self) -> Result<PathBuf, ProcessError> {
        match &self.program {
            Some(program) => Ok(program.clone()),
            None => find(&["redis-server", "valkey-server"], &[], "redis-server"),
        }
    }

    /// Any other line of `redis.conf`. May be repeated; comes last, and so wins.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((key.into(), value.into()));
        self
    }

    /// Starts the server and waits until it answers PING.
    ///
    /// # Errors
    /// [`ProcessError::NotInstalled`], [`ProcessError::PortTaken`], [`ProcessError::Folder`],
    /// [`ProcessError::DiskFull`], [`ProcessError::Ended`] with the line of its log that tells why,
    /// [`ProcessError::Silent`] after 30 s.
    pub async fn start(self) -> Result<Redis, ProcessError> {
        let program = self.find_program()?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.clone().attempt(program.clone()).await {
                // Somebody asked for the free port by its number before the server had bound it:
                // take another.
                Err(ProcessError::PortTaken { .. }) if self.port.is_none() && attempts < 5 => {}
                outcome => return outcome,
            }
        }
    }

    async fn attempt(self, program: PathBuf) -> Result<Redis, ProcessError> {
        let place = self.place.clone().unwrap_or_else(std::env::temp_dir);
        let mut server = Server::within(&place, "redis", self.port, Death::Killed)?;
        if let Some(runner) = self.runner {
            server = server.shared(runner);
        }
        let redis = Redis {
            settings: self,
            program,
            server,
            occupant: Occupant::default(),
        };
        redis.relaunch()?;
        redis.answers().await?;
        Ok(redis)
    }
}

/// The methods that it has in common with every server: port, folder, pid, standing still.
impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Redis {
    /// A server with settings of its own.
    #[must_use]
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// A server without persistence, password or TLS, on a free port.
    ///
    /// # Errors
    /// See [`RedisBuilder::start`].
    pub async fn start() -> Result<Self, ProcessError> {
        Self::builder().start().await
    }

    /// Returns the URL for clients: `redis://127.0.0.1:port`, `rediss://` with TLS, with the
    /// password if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.settings.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        match &self.settings.password {
            Some(password) => format!("{scheme}://:{}@{}", percent_encoded(password), self.addr()),
            None => format!("{scheme}://{}", self.addr()),
        }
    }

    /// SIGKILL, and waits until it is gone. Its port refuses connections from then on. Nothing
    /// happens if it is down.
    pub async fn kill(&self) {
        self.occupant.leave();
        self.server.end(Death::Killed).await;
    }

    /// SIGTERM, as an operator stops it: a server with persistence writes first.
    pub async fn stop(&self) {
        self.occupant.leave();
        self.server.end(Death::Asked).await;
    }

    /// Kills it if it runs, and starts it again on the same port; waits until it answers. Without
    /// persistence it comes back empty, and with its first settings whatever `CONFIG SET` changed.
    ///
    /// # Errors
    /// See [`RedisBuilder::start`].
    pub async fn restart(&self) -> Result<(), ProcessError> {
        self.kill().await;
        self.relaunch()?;
        self.answers().await
    }

    /// Kills it if it runs, and starts it again on another port, as a server whose address has
    /// changed. The port that it had refuses connections from then on.
    ///
    /// # Errors
    /// See [`RedisBuilder::start`].
    pub async fn restart_elsewhere(&self) -> Result<(), ProcessError> {
        self.kill().await;
        self.server.move_elsewhere()?;
        self.relaunch()?;
        self.answers().await
    }

    /// Starts a killed server and does not wait until it answers: it may be refusing or LOADING for
    /// a while. Does nothing to one that runs.
    ///
    /// # Errors
    /// Those of [`RedisBuilder::start`] that come before the server runs.
    pub fn relaunch(&self) -> Result<(), ProcessError> {
        if !self.settings.save {
            let _ = std::fs::remove_file(self.folder().join(DUMP));
        }
        self.launch(self.settings.save)
    }

    /// Keeps its present data for [`Redis::restart_from_snapshot`].
    ///
    /// # Errors
    /// When it is down or cannot write.
    pub async fn save_snapshot(&self) -> Result<(), ProcessError> {
        self.command(&["SAVE"]).await?;
        let (dump, kept) = (self.folder().join(DUMP), self.folder().join(SNAPSHOT));
        std::fs::copy(dump, &kept)
            .map(drop)
            .map_err(|cause| ProcessError::Folder { path: kept, cause })
    }

    /// Kills it and starts it with the data of the snapshot, whatever came after that: a backup put
    /// back, or a disk that lied.
    ///
    /// # Errors
    /// [`ProcessError::NoSnapshot`], and see [`RedisBuilder::start`].
    pub async fn restart_from_snapshot(&self) -> Result<(), ProcessError> {
        let (dump, kept) = (self.folder().join(DUMP), self.folder().join(SNAPSHOT));
        if !kept.exists() {
            return Err(ProcessError::NoSnapshot {
                program: NAME.to_owned(),
            });
        }
        self.kill().await;
        let _ = std::fs::remove_dir_all(self.folder().join("appendonlydir"));
        std::fs::copy(&kept, &dump).map_err(|cause| ProcessError::Folder { path: dump, cause })?;
        self.launch(false)?;
        self.answers().await?;
        if self.settings.save {
            // A server that starts with an append-only file does not look at the dump; so it begins
            // one only now.
            self.command(&["CONFIG", "SET", "appendonly", "yes"])
                .await?;
            let until = Instant::now() + START_LIMIT;
            while !self
                .info("persistence")
                .await?
                .contains("aof_rewrite_in_progress:0")
                && Instant::now() < until
            {
                sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    /// Shows another certificate from now on, to new connections; the next restart shows the first
    /// one again.
    ///
    /// # Errors
    /// When it is down, or does not like the files.
    pub async fn present(&self, tls: &Tls) -> Result<(), ProcessError> {
        let (cert, key) = (
            tls.cert.display().to_string(),
            tls.key.display().to_string(),
        );
        self.command(&[
            "CONFIG",
            "SET",
            "tls-cert-file",
            &cert,
            "tls-key-file",
            &key,
        ])
        .await
        .map(drop)
    }

    /// Makes a replica a primary (REPLICAOF NO ONE), with what it has received so far.
    ///
    /// # Errors
    /// When it is down.
    pub async fn promote(&self) -> Result<(), ProcessError> {
        self.command(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
    }

    /// Waits until this replica has all that `primary` has been told so far.
    ///
    /// # Errors
    /// [`ProcessError::Silent`] when it has not after 30 s.
    pub async fn in_sync_with(&self, primary: &Redis) -> Result<(), ProcessError> {
        let offset = primary.replication_offset("master_repl_offset").await?;
        let until = Instant::now() + START_LIMIT;
        while self.replication_offset("slave_repl_offset").await? < offset {
            if Instant::now() > until {
                return Err(self.server.explained(Some(START_LIMIT)));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// A number of INFO replication; -1 while there is none, and for a replica whose link is down.
    async fn replication_offset(&self, name: &str) -> Result<i64, ProcessError> {
        let info = self.info("replication").await?;
        if info.contains("master_link_status:down") {
            return Ok(-1);
        }
        let number = info.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .trim()
                .parse()
                .ok()
        });
        Ok(number.unwrap_or(-1))
    }

    fn launch(&self, append: bool) -> Result<(), ProcessError> {
        let folder = self.folder();
        let path = folder.join("redis.conf");
        std::fs::write(&path, self.conf(append)).map_err(|cause| ProcessError::Folder {
            path: path.clone(),
            cause,
        })?;
        let _ = std::fs::remove_file(folder.join(SOCKET));
        self.server.launch(&self.program, &[OsString::from(path)])
    }

    /// Waits until it answers PING (that is, also until it has loaded its data).
    async fn answers(&self) -> Result<(), ProcessError> {
        let socket = self.folder().join(SOCKET);
        self.server
            .until(|| async { socket.exists() && self.command(&["PING"]).await.is_ok() })
            .await
    }

    fn conf(&self, append: bool) -> String {
        let (settings, port) = (&self.settings, self.port());
        let mut conf = format!(
            "bind 127.0.0.1\ndir {}\nunixsocket {SOCKET}\nunixsocketperm 700\ndbfilename {DUMP}\nsave \"\"\nappendonly {}\n\
             repl-diskless-sync-delay 0\nuser {USER} on >{} ~* &* +@all\n",
            quoted(&self.folder().display().to_string()),
            if append { "yes" } else { "no" },
            self.secret(),
        );
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(conf, "{key} {value}");
        };
        if let Some(tls) = &settings.tls {
            line("port", "0");
            line("tls-port", &port.to_string());
            line(
                "tls-auth-clients",
                if tls.client_certificates { "yes" } else { "no" },
            );
            for (key, path) in [
                ("tls-cert-file", &tls.cert),
                ("tls-key-file", &tls.key),
                ("tls-ca-cert-file", &tls.ca),
            ] {
                line(key, &quoted(&path.display().to_string()));
            }
        } else {
            line("port", &port.to_string());
        }
        if let Some(primary) = &settings.primary {
            line(
                "replicaof",
                &format!("{} {}", primary.addr.ip(), primary.addr.port()),
            );
            line("masteruser", USER);
            line("masterauth", &primary.password);
            line("tls-replication", if primary.tls { "yes" } else { "no" });
        }
        if let Some(password) = &settings.password {
            line("requirepass", &quoted(password));
        }
        for user in &settings.users {
            line("user", user);
        }
        for (key, value) in &settings.config {
            line(key, if value.is_empty() { "\"\"" } else { value });
        }
        conf
    }
}

const NAME: &str = "redis-server";
const USER: &str = "steadfast-drill";
const SOCKET: &str = "control.sock";
const DUMP: &str = "dump.rdb";
const SNAPSHOT: &str = "snapshot.rdb";

/// A value of `redis.conf` that may hold spaces.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

pub(super) fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
