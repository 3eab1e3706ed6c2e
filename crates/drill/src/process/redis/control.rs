//! How the drill asks its server and tells it things: over a socket in the server's own folder, as
//! a user of its own. That works with TLS on and a certificate that nobody believes, with passwords
//! changed and users deleted, and its connections are not among those that a proxy in front of the
//! port sees. They do count towards `maxclients`; so whoever takes all places keeps one for this.

use super::{NAME, Redis, SOCKET, USER};
use crate::process::ProcessError;
use redis::aio::MultiplexedConnection;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// The connection that has the only place, while others are to find none.
#[derive(Debug, Default)]
pub(super) struct Occupant(Mutex<Option<MultiplexedConnection>>);

impl Occupant {
    pub(super) fn leave(&self) {
        *self.lock() = None;
    }

    fn enter(&self, connection: MultiplexedConnection) {
        *self.lock() = Some(connection);
    }

    fn connection(&self) -> Option<MultiplexedConnection> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<MultiplexedConnection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Redis {
    /// A section of INFO, as text.
    ///
    /// # Errors
    /// As [`Redis::command`].
    pub async fn info(&self, section: &str) -> Result<String, ProcessError> {
        let value = self.command(&["INFO", section]).await?;
        redis::from_redis_value(value).map_err(|error| refused(&error))
    }

    /// Runs a command as the drill's own user, over the socket in the folder. At most 10 s.
    ///
    /// # Errors
    /// [`ProcessError::Command`] with what the server answered, or that it did not.
    pub async fn command(&self, args: &[&str]) -> Result<redis::Value, ProcessError> {
        let asked = async {
            let mut connection = match self.occupant.connection() {
                Some(connection) => connection,
                None => self.control().await?,
            };
            command_of(args).query_async(&mut connection).await
        };
        let outcome = timeout(COMMAND_LIMIT, asked).await;
        outcome
            .map_err(|_| refused(&format!("no answer within {COMMAND_LIMIT:?}")))?
            .map_err(|error| refused(&error))
    }

    /// Runs commands in one go, as the drill's own user. At most a minute.
    pub(crate) async fn pipeline(
        &self,
        pipeline: &redis::Pipeline,
    ) -> Result<Vec<redis::Value>, ProcessError> {
        let asked = async {
            let mut connection = self.control().await?;
            connection.set_response_timeout(PIPELINE_LIMIT);
            pipeline.query_async(&mut connection).await
        };
        let outcome = timeout(PIPELINE_LIMIT, asked).await;
        outcome
            .map_err(|_| refused(&format!("no answer within {PIPELINE_LIMIT:?}")))?
            .map_err(|error: redis::RedisError| refused(&error))
    }

    /// As [`Redis::command`], for code that is not asynchronous.
    ///
    /// # Errors
    /// As [`Redis::command`].
    pub fn command_blocking(&self, args: &[&str]) -> Result<redis::Value, ProcessError> {
        let asked = || {
            let mut connection = self.client()?.get_connection()?;
            connection.set_read_timeout(Some(COMMAND_LIMIT))?;
            command_of(args).query(&mut connection)
        };
        asked().map_err(|error: redis::RedisError| refused(&error))
    }

    /// Drops its clients and takes all their places, until [`Redis::make_room`]. Only
    /// [`Redis::command`] reaches it meanwhile.
    pub(crate) async fn occupy(&self) -> Result<(), ProcessError> {
        let mut connection = self.control().await.map_err(|error| refused(&error))?;
        // Known before it is told anything, as that can be undone only by the one that is let stay.
        self.occupant.enter(connection.clone());
        redis::pipe()
            .cmd("CONFIG")
            .arg(&["SET", "maxclients", "1"])
            .cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
            .cmd("CLIENT")
            .arg(&["KILL", "TYPE", "pubsub"])
            .exec_async(&mut connection)
            .await
            .map_err(|error| refused(&error))
    }

    /// Gives the places back that [`Redis::occupy`] took.
    pub(crate) async fn make_room(&self) -> Result<(), ProcessError> {
        self.command(&["CONFIG", "SET", "maxclients", "10000"])
            .await?;
        self.occupant.leave();
        Ok(())
    }

    async fn control(&self) -> redis::RedisResult<MultiplexedConnection> {
        self.client()?
            .get_multiplexed_async_connection_with_config(&patient())
            .await
    }

    fn client(&self) -> redis::RedisResult<redis::Client> {
        let socket = self.folder().join(SOCKET);
        redis::Client::open(format!(
            "unix://{}?user={USER}&pass={}",
            socket.display(),
            self.secret()
        ))
    }

    /// The password of the drill's own user: the random part of the folder's name.
    pub(super) fn secret(&self) -> String {
        let name = self.folder().file_name().unwrap_or_default();
        name.to_string_lossy()
            .rsplit('-')
            .next()
            .unwrap_or_default()
            .to_owned()
    }
}

const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// A hundred changes of slots, each of which a slow disk may have to hear of.
const PIPELINE_LIMIT: Duration = Duration::from_secs(60);

/// Left to itself it gives up after half a second, which a server that saves takes at times.
fn patient() -> redis::AsyncConnectionConfig {
    redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(COMMAND_LIMIT))
        .set_response_timeout(Some(COMMAND_LIMIT))
}

fn command_of(args: &[&str]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    for arg in args {
        command.arg(arg);
    }
    command
}

fn refused(cause: &dyn std::fmt::Display) -> ProcessError {
    ProcessError::Command {
        program: NAME.to_owned(),
        cause: cause.to_string(),
    }
}
