//! The name that a server gives to a connection, by which it is killed.

use std::sync::Arc;

use super::words::command;

/// The server's name for our connection: enough to have it killed, and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) addr: String,
    /// The run id of the server; `None` where it cannot be known, though never on a unix socket,
    /// where all clients have one address.
    pub(crate) run_id: Option<Arc<str>>,
}

impl Identity {
    /// Returns the identity of no connection: killing it shows whether killing is allowed.
    pub(crate) fn nobody() -> Self {
        Self {
            id: i64::MAX,
            addr: "0.0.0.0:0".into(),
            run_id: None,
        }
    }

    /// Returns whether it is known to be a connection to another server than this one, or to this
    /// one before it was restarted.
    pub(crate) fn is_elsewhere(&self, run_id: Option<&str>) -> bool {
        let known = self.run_id.as_deref().zip(run_id);
        known.is_some_and(|(of, here)| of != here)
    }

    /// Returns the command that kills the connection, and only this one, on the server that it [is
    /// not elsewhere](Self::is_elsewhere) of.
    pub(crate) fn kill(&self) -> Vec<u8> {
        command(&[
            "CLIENT",
            "KILL",
            "ID",
            &self.id.to_string(),
            "ADDR",
            &self.addr,
        ])
    }
}
