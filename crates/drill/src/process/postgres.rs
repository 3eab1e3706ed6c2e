//! A private PostgreSQL, for a source of truth that can be killed, frozen and made slow.
//!
//! PostgreSQL differs from the other servers in that it serves each connection by a process of its
//! own, which outlives its parent for a moment and goes on while the parent is stopped; so the
//! family is signalled as one. And it keeps a segment of System V shared memory that no crash
//! removes; so that is given back here.

use super::child::Death;
use super::server::Server;
use super::{ProcessError, Tls, User, find, handed_over, telling_line, unprivileged};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A running (or killed, or frozen) PostgreSQL; its superuser is `postgres`, without a password.
///
/// ```no_run
/// use steadfast_drill::process::{MariaDb, Postgres};
///
/// # async fn example() -> Result<(), steadfast_drill::process::ProcessError> {
/// let (postgres, mariadb) = (Postgres::start().await?, MariaDb::start().await?);
/// println!("{} {}", postgres.url(), mariadb.url());
/// postgres.kill().await;
/// # Ok(()) } // both end with their values
/// ```
#[derive(Debug)]
pub struct Postgres {
    program: PathBuf,
    args: Vec<OsString>,
    server: Server,
}

/// The methods that it has in common with every server: port, folder, pid, standing still.
impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Postgres {
    /// Starts one on a free port and waits until it answers. As root, it runs as the user
    /// `postgres`.
    ///
    /// # Errors
    /// [`ProcessError::NotInstalled`], [`ProcessError::NoUser`], [`ProcessError::Folder`],
    /// [`ProcessError::Setup`], [`ProcessError::Ended`], [`ProcessError::Silent`] after 30 s.
    pub async fn start() -> Result<Self, ProcessError> {
        Self::start_as(None).await
    }

    /// Starts one that speaks TLS to who asks for it, and asks them for a certificate if
    /// `client_certificates` says so; without TLS it lets anyone in as ever.
    ///
    /// # Errors
    /// See [`Postgres::start`].
    pub async fn start_with_tls(tls: &Tls) -> Result<Self, ProcessError> {
        Self::start_as(Some(tls)).await
    }

    async fn start_as(tls: Option<&Tls>) -> Result<Self, ProcessError> {
        let postgres = find(&["postgres"], &versions(), PACKAGE)?;
        let initdb = find(&["initdb"], &versions(), PACKAGE)?;
        let server = Server::new("postgres", None, Death::Quit)?;
        let folder = server.folder();
        let user = unprivileged("postgres")?;
        if let Some(user) = user {
            let chowned = std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid));
            chowned.map_err(|cause| ProcessError::Folder {
                path: folder.to_owned(),
                cause,
            })?;
        }
        let data = folder.join("data");
        install(&initdb, &data, user).await?;
        let (program, mut args) = as_user(user, &postgres)?;
        args.extend([
            OsString::from("-D"),
            data.into(),
            "-p".into(),
            server.port().to_string().into(),
        ]);
        for setting in SETTINGS {
            args.extend([OsString::from("-c"), setting.into()]);
        }
        if let Some(tls) = tls {
            let mut set = |name: &str, file: &Path| {
                let mut setting = OsString::from(format!("{name}="));
                setting.push(file);
                args.extend([OsString::from("-c"), setting]);
            };
            set("ssl", Path::new("on"));
            for (name, file) in [
                ("ssl_cert_file", &tls.cert),
                ("ssl_key_file", &tls.key),
                ("ssl_ca_file", &tls.ca),
            ] {
                set(name, &handed_over(file, server.folder(), user)?);
            }
            let asked = if tls.client_certificates {
                " clientcert=verify-ca"
            } else {
                ""
            };
            let rules = server.folder().join("access");
            let text = format!("hostssl all all all trust{asked}\nhostnossl all all all trust\n");
            std::fs::write(&rules, text).map_err(|cause| ProcessError::Folder {
                path: rules.clone(),
                cause,
            })?;
            set("hba_file", &handed_over(&rules, server.folder(), user)?);
        }
        let postgres = Self {
            program,
            args,
            server,
        };
        postgres.launch().await?;
        Ok(postgres)
    }

    /// `postgres://postgres@127.0.0.1:port/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.addr())
    }

    /// SIGKILL to all its processes, and waits until the first is gone.
    pub async fn kill(&self) {
        let segment = self.segment();
        self.server.end(Death::Killed).await;
        if let Some(segment) = segment {
            let mut ipcrm = tokio::process::Command::new("ipcrm");
            let _ = ipcrm
                .args(["-m", &segment])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .await;
        }
    }

    /// SIGINT, as an operator stops it: clients are cut off, what is committed is written.
    pub async fn stop(&self) {
        self.server.end(Death::Interrupted).await;
    }

    /// Kills it if it runs, and starts it again on the same port with the data it had; waits until
    /// it answers.
    ///
    /// # Errors
    /// See [`Postgres::start`].
    pub async fn restart(&self) -> Result<(), ProcessError> {
        self.kill().await;
        self.launch().await
    }

    async fn launch(&self) -> Result<(), ProcessError> {
        self.server.launch(&self.program, &self.args)?;
        self.server.until(|| is_ready(self.addr())).await
    }

    /// The id of its shared memory: the last word of the seventh line of its lock file.
    fn segment(&self) -> Option<String> {
        let lock =
            std::fs::read_to_string(self.server.folder().join("data/postmaster.pid")).ok()?;
        lock.lines()
            .nth(6)?
            .split_whitespace()
            .last()
            .map(str::to_owned)
    }
}

const PACKAGE: &str = "postgresql";

/// Small, without a wait for a disk, and with no shared memory but one segment and what is in its
/// folder.
const SETTINGS: [&str; 8] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "shared_buffers=16MB",
    "dynamic_shared_memory_type=mmap",
    "logging_collector=off",
];

/// Where Debian keeps the programs of each version, the newest first.
fn versions() -> Vec<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut versions: Vec<_> = versions.map(|version| version.path()).collect();
    let number = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str()?.parse::<u32>().ok())
    };
    versions.sort_by_key(|path| std::cmp::Reverse(number(path)));
    versions
        .into_iter()
        .map(|version| version.join("bin"))
        .collect()
}

/// A program and its first arguments, as that user.
pub(super) fn as_user(
    user: Option<User>,
    program: &Path,
) -> Result<(PathBuf, Vec<OsString>), ProcessError> {
    let Some(user) = user else {
        return Ok((program.to_owned(), Vec::new()));
    };
    let args = [
        format!("--reuid={}", user.uid),
        format!("--regid={}", user.gid),
        "--clear-groups".to_owned(),
    ];
    let args = args
        .into_iter()
        .map(OsString::from)
        .chain([program.into()])
        .collect();
    Ok((find(&["setpriv"], &[], "util-linux")?, args))
}

async fn install(initdb: &Path, data: &Path, user: Option<User>) -> Result<(), ProcessError> {
    let name = initdb.display().to_string();
    let (program, args) = as_user(user, initdb)?;
    let mut command = tokio::process::Command::new(program);
    command.args(args).arg("-D").arg(data);
    command.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
        "--no-instructions",
    ]);
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command
        .output()
        .await
        .map_err(|cause| ProcessError::Spawn {
            program: name.clone(),
            cause,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ProcessError::Setup {
        program: name,
        line: telling_line(&String::from_utf8_lossy(&output.stderr)),
    })
}

/// Whether the server lets `postgres` in: an authentication request, rather than an error, answers
/// the start-up message.
pub(super) async fn is_ready(addr: SocketAddr) -> bool {
    const START: &[u8] = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    const TERMINATE: &[u8] = b"X\0\0\0\x04";
    let asked = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_u32(START.len() as u32 + 4).await?;
        stream.write_all(START).await?;
        let answer = stream.read_u8().await?;
        stream.write_all(TERMINATE).await?;
        std::io::Result::Ok(answer == b'R')
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(2), asked).await,
        Ok(Ok(true))
    )
}
