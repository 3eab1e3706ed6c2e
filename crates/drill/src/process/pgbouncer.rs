//! A private PgBouncer before a private PostgreSQL: it hands sessions of the server from client to
//! client, and so shows what trusts one.

use super::child::Death;
use super::postgres::{as_user, is_ready};
use super::server::Server;
use super::{Postgres, ProcessError, find, unprivileged};
use std::ffi::OsString;
use std::ops::Deref;
use std::path::PathBuf;

/// A running PgBouncer; whoever comes is let in.
///
/// ```no_run
/// use steadfast_drill::process::{PgBouncer, PoolMode, Postgres};
///
/// # async fn example() -> Result<(), steadfast_drill::process::ProcessError> {
/// let postgres = Postgres::start().await?;
/// let settings = "query_wait_timeout = 5";
/// let pool = PgBouncer::start(&postgres, PoolMode::Transaction, 4, settings).await?;
/// println!("{}", pool.url());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
}

/// The methods that it has in common with every server: port, folder, pid, standing still.
impl Deref for PgBouncer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// For how long a client keeps a session of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// For as long as it is connected.
    Session,
    /// For a transaction, or a statement outside of one.
    Transaction,
}

impl PgBouncer {
    /// Starts one on a free port, with so many sessions of `postgres`, and waits until it answers.
    /// `settings` are lines of its configuration.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn start(
        postgres: &Postgres,
        mode: PoolMode,
        sessions: u32,
        settings: &str,
    ) -> Result<Self, ProcessError> {
        let pgbouncer = find(&["pgbouncer"], &[PathBuf::from("/usr/sbin")], "pgbouncer")?;
        let server = Server::new("pgbouncer", None, Death::Killed)?;
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let file = server.folder().join("pgbouncer.ini");
        let text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {mode}\ndefault_pool_size = {sessions}\nmax_client_conn = 200\n{settings}\n",
            postgres.port(),
            server.port(),
        );
        std::fs::write(&file, text).map_err(|cause| ProcessError::Folder {
            path: file.clone(),
            cause,
        })?;
        let user = unprivileged("postgres")?;
        if let Some(user) = user {
            for path in [server.folder(), &file] {
                let chowned = std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid));
                chowned.map_err(|cause| ProcessError::Folder {
                    path: path.to_owned(),
                    cause,
                })?;
            }
        }
        let (program, mut args) = as_user(user, &pgbouncer)?;
        args.push(OsString::from(file));
        server.launch(&program, &args)?;
        let pgbouncer = Self { server };
        let addr = pgbouncer.server.addr();
        pgbouncer.server.until(|| is_ready(addr)).await?;
        Ok(pgbouncer)
    }

    /// `postgres://postgres@127.0.0.1:port/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.addr())
    }
}
