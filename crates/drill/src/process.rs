//! Real servers, started for a test or a drill and ended with it.
//!
//! A fault is only worth what it breaks, so what is broken here is the real thing: `redis-server`,
//! `mariadbd` and `postgres` on free ports of 127.0.0.1, in folders of their own. Three rules hold
//! for each of them:
//!
//! * It dies with the process that started it, however that ends, SIGKILL included (see [`Child`]).
//! * Its port stays its own while it is down, so that it can be started again on it (see [`Port`]).
//! * What goes wrong at the start is one line that names the cause, not the log of a server.
//!
//! ```no_run
//! use steadfast_drill::process::{Cluster, Redis, Tls, Watched};
//!
//! # async fn example(tls: Tls) -> Result<(), steadfast_drill::process::ProcessError> {
//! let redis = Redis::builder().password("secret").tls(tls).start().await?;
//! println!("{} in {}, pid {:?}", redis.url(), redis.folder().display(), redis.pid());
//! let replica = Redis::builder().replica_of(&redis).start().await?;
//! replica.in_sync_with(&redis).await?;
//! redis.freeze()?; // SIGSTOP: it is there, and answers nobody
//! redis.resume()?;
//! redis.save_snapshot().await?;
//! redis.kill().await;
//! redis.restart_from_snapshot().await?; // with what it held then
//!
//! let watched = Watched::start().await?; // a primary, its replica, three sentinels
//! watched.data[0].kill().await;
//! watched.sentinels[0].freeze()?;
//!
//! let cluster = Cluster::builder().primaries(3).replicas(1).start().await?;
//! let added = cluster.add_node().await?;
//! cluster.migrate(0, cluster.owner(0).await?, added).await?; // a slot, with its keys
//! cluster.change_addresses(&[added]).await?;
//! # Ok(()) }
//! ```

mod child;
mod cluster;
mod mariadb;
mod pgbouncer;
mod port;
mod postgres;
mod program;
mod redis;
mod runner;
mod scratch;
mod sentinel;
mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use child::{Child, Death};
pub use cluster::{
    Cluster, ClusterBuilder, ClusterNode, FailoverKind, Layout, LayoutNode, SharedCluster,
};
pub use mariadb::MariaDb;
pub use pgbouncer::{PgBouncer, PoolMode};
pub use port::Port;
pub use postgres::Postgres;
pub use program::find;
pub use redis::{Redis, RedisBuilder, Tls};
pub use scratch::Scratch;
pub use sentinel::{Sentinel, Watched};
pub use server::Server;

/// Why a server could not be started, signalled or asked. Each is one line that names the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// None of the programs was found.
    #[error("no {} on the PATH; install the package {package}", names.join(" or "))]
    NotInstalled {
        /// The programs that would have served.
        names: Vec<&'static str>,
        /// The Debian package that brings one of them.
        package: &'static str,
    },
    /// The port that was asked for is taken by another process.
    #[error("port {port} of 127.0.0.1 is taken; choose another, or none to have a free one found")]
    PortTaken {
        /// The port asked for.
        port: u16,
    },
    /// The server's folder cannot be made or written.
    #[error("cannot write to the folder {}: {cause}", path.display())]
    Folder {
        /// The folder, or the file in it.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// There is no room left for the server's files.
    #[error("no room left for the files of {program} in {}: {line}", path.display())]
    DiskFull {
        /// The program.
        program: String,
        /// The server's folder.
        path: PathBuf,
        /// The line of its log that says so.
        line: String,
    },
    /// The system did not start the program.
    #[error("cannot start {program}: {cause}")]
    Spawn {
        /// The program.
        program: String,
        /// The system's error.
        cause: io::Error,
    },
    /// The program started and ended again before it answered.
    #[error("{program} ended as it started: {line}")]
    Ended {
        /// The program.
        program: String,
        /// The last line of its log that tells why.
        line: String,
    },
    /// The program runs, but does not answer.
    #[error("{program} did not answer within {waited:?}: {line}")]
    Silent {
        /// The program.
        program: String,
        /// How long it was waited for.
        waited: Duration,
        /// The last line of its log.
        line: String,
    },
    /// A database that refuses to run as root, and no user as whom it could.
    #[error(
        "root cannot run this database and there is no user {name}; install the package that makes one, or run as another user"
    )]
    NoUser {
        /// The user that its package makes.
        name: &'static str,
    },
    /// The tool that fills a new database's folder failed.
    #[error("{program} failed: {line}")]
    Setup {
        /// The tool.
        program: String,
        /// The last line that tells why.
        line: String,
    },
    /// Something was asked of a server that is not running.
    #[error("{program} is not running")]
    Down {
        /// The program.
        program: String,
    },
    /// The server refused a command, or the connection to it failed.
    #[error("{program} did not do as told: {cause}")]
    Command {
        /// The program.
        program: String,
        /// The answer, or what became of the connection.
        cause: String,
    },
    /// A restart from a snapshot was asked for, and none was saved.
    #[error("no snapshot of {program} was saved; call save_snapshot first")]
    NoSnapshot {
        /// The program.
        program: String,
    },
}

impl ProcessError {
    /// Explains why a program ended or kept silent by the last lines of its log.
    fn from_log(program: &str, folder: &Path, waited: Option<Duration>) -> Self {
        let log = std::fs::read(folder.join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let line = telling_line(&log);
        let program = program.to_owned();
        if log.contains("No space left on device") {
            return Self::DiskFull {
                program,
                path: folder.to_owned(),
                line,
            };
        }
        match waited {
            Some(waited) => Self::Silent {
                program,
                waited,
                line,
            },
            None => Self::Ended { program, line },
        }
    }
}

/// The file in a server's folder to which its output goes.
const LOG: &str = "server.log";

/// How long a server may take to answer after its start. Generous: a loaded machine is no failure.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The line of a log that tells most of a failure: the last that speaks of one, else the last.
fn telling_line(log: &str) -> String {
    const TELLING: [&str; 9] = [
        "fatal",
        "error",
        "can't",
        "cannot",
        "could not",
        "failed",
        "bad directive",
        "denied",
        "No space left",
    ];
    let lines = || {
        log.lines()
            .rev()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let tells = |line: &&str| {
        let line = line.to_lowercase();
        TELLING
            .iter()
            .any(|word| line.contains(&word.to_lowercase()))
    };
    lines()
        .find(tells)
        .or_else(|| lines().next())
        .unwrap_or("its log is empty")
        .to_owned()
}

/// The user as whom a server must run that refuses to be root's, with its ids; none when this
/// process is not root's.
fn unprivileged(name: &'static str) -> Result<Option<User>, ProcessError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let ids = line.and_then(|line| {
        let mut fields = line.split(':').skip(1).map(|id| id.parse().ok());
        Some((fields.next()??, fields.next()??))
    });
    let (uid, gid) = ids.ok_or(ProcessError::NoUser { name })?;
    Ok(Some(User { name, uid, gid }))
}

/// A copy of a file in a server's folder that the server's user, and nobody else, can read:
/// databases refuse any other key.
fn handed_over(file: &Path, folder: &Path, user: Option<User>) -> Result<PathBuf, ProcessError> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let copy = folder.join(format!("own-{name}"));
    let made = std::fs::copy(file, &copy)
        .and_then(|_| std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)))
        .and_then(|()| match user {
            Some(user) => chown(&copy, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        });
    made.map_err(|cause| ProcessError::Folder {
        path: copy.clone(),
        cause,
    })?;
    Ok(copy)
}

/// A line of /etc/passwd, as far as it matters here.
#[derive(Debug, Clone, Copy)]
struct User {
    name: &'static str,
    uid: u32,
    gid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_names_the_failure_is_told() {
        let log = "1:C starting\n1:M # Failed listening on port 7 (TCP), aborting.\n1:M bye\n";
        assert!(telling_line(log).contains("port 7"));
        assert_eq!(telling_line("a\nb\n\n"), "b");
        assert_eq!(telling_line(""), "its log is empty");
    }
}
