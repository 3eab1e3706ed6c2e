//! A private MariaDB, for a source of truth that can be killed, frozen and made slow.
//!
//! Nothing is synced to disk, only written: a crash of the server, which is what is tried here,
//! loses nothing by that, and it is what makes starting one bearable in a test.

use super::child::Death;
use super::server::Server;
use super::{LOG, ProcessError, Tls, find, handed_over, telling_line, unprivileged};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A running (or killed, or frozen) MariaDB with one empty database, `steadfast`, and `root`
/// without a password.
#[derive(Debug)]
pub struct MariaDb {
    program: PathBuf,
    args: Vec<OsString>,
    server: Server,
}

/// The methods that it has in common with every server: port, folder, pid, standing still.
impl Deref for MariaDb {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl MariaDb {
    /// Starts one on a free port and waits until it answers. As root, it runs as the user `mysql`.
    ///
    /// # Errors
    /// [`ProcessError::NotInstalled`], [`ProcessError::NoUser`], [`ProcessError::Folder`],
    /// [`ProcessError::Setup`], [`ProcessError::Ended`], [`ProcessError::Silent`] after 30 s.
    pub async fn start() -> Result<Self, ProcessError> {
        Self::start_as(None).await
    }

    /// Starts one that speaks TLS to who asks for it. `client_certificates` means nothing here: a
    /// user may `REQUIRE X509`.
    ///
    /// # Errors
    /// See [`MariaDb::start`].
    pub async fn start_with_tls(tls: &Tls) -> Result<Self, ProcessError> {
        Self::start_as(Some(tls)).await
    }

    async fn start_as(tls: Option<&Tls>) -> Result<Self, ProcessError> {
        let program = find(&["mariadbd", "mysqld"], &sbin(), PACKAGE)?;
        let installer = find(
            &["mariadb-install-db", "mysql_install_db"],
            &sbin(),
            PACKAGE,
        )?;
        let server = Server::new("mariadb", None, Death::Killed)?;
        let folder = server.folder();
        let user = unprivileged("mysql")?;
        let mut args = vec![
            OsString::from("--no-defaults"),
            setting("datadir", folder.join("data")),
            // A server that starts removes the temporary tables that it finds: in a folder that all
            // share, those of others too.
            setting("tmpdir", folder),
        ];
        if let Some(user) = user {
            args.push(setting("user", user.name));
            std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid))
                .map_err(|cause| folder_error(folder, cause))?;
        }
        args.extend(FAST.iter().map(OsString::from));
        install(installer, &args, folder).await?;
        let init = folder.join("init.sql");
        std::fs::write(&init, "CREATE DATABASE IF NOT EXISTS steadfast;\n")
            .map_err(|cause| folder_error(&init, cause))?;
        args.push(setting("init-file", init));
        args.push(setting("port", server.port().to_string()));
        args.push(setting("socket", folder.join("mariadb.sock")));
        args.push(setting("pid-file", folder.join("mariadb.pid")));
        args.extend(["--bind-address=127.0.0.1", "--skip-name-resolve"].map(OsString::from));
        if let Some(tls) = tls {
            for (name, file) in [
                ("ssl-cert", &tls.cert),
                ("ssl-key", &tls.key),
                ("ssl-ca", &tls.ca),
            ] {
                args.push(setting(name, handed_over(file, folder, user)?));
            }
        }
        let mariadb = Self {
            program,
            args,
            server,
        };
        mariadb.launch().await?;
        Ok(mariadb)
    }

    /// `mysql://root@127.0.0.1:port/steadfast`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mysql://root@{}/steadfast", self.addr())
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) {
        self.server.end(Death::Killed).await;
    }

    /// SIGTERM, as an operator stops it.
    pub async fn stop(&self) {
        self.server.end(Death::Asked).await;
    }

    /// Kills it if it runs, and starts it again on the same port with the data it had; waits until
    /// it answers.
    ///
    /// # Errors
    /// See [`MariaDb::start`].
    pub async fn restart(&self) -> Result<(), ProcessError> {
        self.kill().await;
        self.launch().await
    }

    async fn launch(&self) -> Result<(), ProcessError> {
        self.server.launch(&self.program, &self.args)?;
        self.server.until(|| greets(self.addr())).await
    }
}

const PACKAGE: &str = "mariadb-server";

/// Small files, and no wait for a disk.
const FAST: [&str; 9] = [
    // Contexts for it are limited by the machine, and several servers start at once.
    "--innodb-use-native-aio=OFF",
    "--innodb-flush-method=nosync",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=OFF",
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=32M",
    "--sync-frm=OFF",
    // The system tables are kept by another engine, which syncs hundreds of times while they are
    // made: minutes on a slow disk.
    "--loose-debug-no-sync",
    "--skip-log-bin",
];

/// Where Debian keeps servers, which is not on every user's PATH.
fn sbin() -> [PathBuf; 2] {
    ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from)
}

fn setting(name: &str, value: impl Into<OsString>) -> OsString {
    let mut setting = OsString::from(format!("--{name}="));
    setting.push(value.into());
    setting
}

fn folder_error(path: &Path, cause: std::io::Error) -> ProcessError {
    ProcessError::Folder {
        path: path.to_owned(),
        cause,
    }
}

/// Makes the system tables.
async fn install(installer: PathBuf, args: &[OsString], folder: &Path) -> Result<(), ProcessError> {
    let program = installer.display().to_string();
    let path = folder.join(LOG);
    let log = std::fs::File::create(&path).and_then(|log| Ok((log.try_clone()?, log)));
    let (out, err) = log.map_err(|cause| folder_error(&path, cause))?;
    let mut command = tokio::process::Command::new(installer);
    command
        .args(args)
        .args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .kill_on_drop(true);
    let status = command
        .status()
        .await
        .map_err(|cause| ProcessError::Spawn {
            program: program.clone(),
            cause,
        })?;
    if status.success() {
        return Ok(());
    }
    let log = std::fs::read(&path).unwrap_or_default();
    Err(ProcessError::Setup {
        program,
        line: telling_line(&String::from_utf8_lossy(&log)),
    })
}

/// Whether the server greets who connects: a packet whose payload begins with the protocol's
/// version, 10.
async fn greets(addr: SocketAddr) -> bool {
    let greeted = async {
        let mut stream = TcpStream::connect(addr).await?;
        let mut start = [0; 5];
        stream.read_exact(&mut start).await?;
        std::io::Result::Ok(start[4] == 10)
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(2), greeted).await,
        Ok(Ok(true))
    )
}
