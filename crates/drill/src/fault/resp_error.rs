//! Chosen commands are answered by an error.

use super::error::FaultError;
use super::refused;
use super::resp::{Commands, RespFault, Treatment, always, check};
use serde::{Deserialize, Serialize};
use steadfast_core::command::classify;

/// Answers commands with an error; the server never sees them. Within MULTI it is told that
/// something was refused, so EXEC aborts as it does after any refusal.
///
/// `error` is the line without its `-`, or one of these names, which stand for what Redis says in
/// that state, to those commands that it then refuses (as long as `commands` does not choose
/// others): `loading`, `readonly`, `moved`, `oom`, `busy`, `noauth`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RespError {
    /// The commands, as `GET` or `CLIENT KILL`. Default: those that a server in that state
    /// refuses; for any other error, all.
    #[serde(default)]
    pub commands: Vec<String>,
    /// How many of them, drawn by the seed. Default: 100.
    #[serde(default = "always")]
    pub percentage: f64,
    /// The error.
    pub error: String,
}

impl RespError {
    /// Answers every command that it concerns with this error, or that of this state.
    #[must_use]
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            commands: Vec::new(),
            percentage: always(),
            error: error.into(),
        }
    }

    /// A server that loads its data, after a restart.
    #[must_use]
    pub fn loading() -> Self {
        Self::new("loading")
    }

    /// A replica, after a failover: no writes.
    #[must_use]
    pub fn readonly() -> Self {
        Self::new("readonly")
    }

    /// A cluster's node that does not hold the key.
    #[must_use]
    pub fn moved() -> Self {
        Self::new("moved")
    }

    /// A server at its `maxmemory`: no writes.
    #[must_use]
    pub fn oom() -> Self {
        Self::new("oom")
    }

    /// A server that runs a script for too long.
    #[must_use]
    pub fn busy() -> Self {
        Self::new("busy")
    }

    /// A server that wants a password first.
    #[must_use]
    pub fn noauth() -> Self {
        Self::new("noauth")
    }

    /// The same error for these commands.
    #[must_use]
    pub fn commands(mut self, commands: &[&str]) -> Self {
        self.commands = commands.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// The same error for that percentage of the commands.
    #[must_use]
    pub fn percentage(mut self, percentage: f64) -> Self {
        self.percentage = percentage;
        self
    }

    pub(super) fn check(&self) -> Result<(), FaultError> {
        check(self.percentage)?;
        if self.error.is_empty() || self.error.contains(['\r', '\n']) {
            let (name, what) = ("error", "one line");
            return Err(FaultError::NoReply {
                name,
                what,
                value: self.error.clone(),
            });
        }
        Ok(())
    }

    pub(super) fn resp(&self) -> RespFault {
        let state = STATES
            .iter()
            .find(|state| state.name.eq_ignore_ascii_case(&self.error));
        let line = state.map_or(self.error.as_str(), |state| state.line);
        let refuse = Treatment::Refuse(format!("-{line}\r\n").into());
        let mut fault = RespFault::new(&self.commands, self.percentage, refuse);
        if let (Some(state), true) = (state, self.commands.is_empty()) {
            fault.commands = Commands::Such(state.refuses);
        }
        fault
    }
}

/// A state in which a server refuses commands.
struct RefusingState {
    name: &'static str,
    line: &'static str,
    refuses: fn(&[&[u8]]) -> bool,
}

const STATES: [RefusingState; 6] = [
    RefusingState {
        name: "loading",
        line: "LOADING Redis is loading the dataset in memory",
        refuses: refused::loading,
    },
    RefusingState {
        name: "readonly",
        line: "READONLY You can't write against a read only replica.",
        refuses: refused::read_only,
    },
    RefusingState {
        name: "moved",
        line: "MOVED 3999 127.0.0.1:6381",
        refuses: has_key,
    },
    RefusingState {
        name: "oom",
        line: "OOM command not allowed when used memory > 'maxmemory'.",
        refuses: refused::out_of_memory,
    },
    RefusingState {
        name: "busy",
        line: "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        refuses: refused::busy,
    },
    RefusingState {
        name: "noauth",
        line: "NOAUTH Authentication required.",
        refuses: refused::not_authenticated,
    },
];

fn has_key(args: &[&[u8]]) -> bool {
    classify(args.iter().copied()).first_key.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn refused(error: &RespError, command: &str) -> bool {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        error.resp().treats(&args, &mut Rng::with_seed(0)).is_some()
    }

    #[test]
    fn each_state_refuses_what_redis_refuses_in_it() {
        for (error, refuses, admits) in [
            (
                RespError::loading(),
                &["GET k", "SET k v", "PING"][..],
                &["HELLO 3", "AUTH x", "CLIENT ID"][..],
            ),
            (
                RespError::readonly(),
                &["SET k v", "INCR k", "DEL k"],
                &["GET k", "PING", "HELLO 3"],
            ),
            (
                RespError::oom(),
                &["SET k v", "LPUSH k v", "EVAL s 0"],
                &["GET k", "PING", "DEL k", "UNLINK k", "EXPIRE k 1", "LPOP k"],
            ),
            (
                RespError::moved(),
                &["GET k", "SET k v"],
                &["PING", "HELLO 3"],
            ),
            (
                RespError::busy(),
                &["GET k", "PING", "EXEC"],
                &["SCRIPT KILL", "SHUTDOWN NOSAVE", "AUTH x", "MULTI"],
            ),
            (
                RespError::noauth(),
                &["GET k", "PING", "CLIENT ID"],
                &["AUTH x", "HELLO 3"],
            ),
        ] {
            for command in refuses {
                assert!(
                    refused(&error, command),
                    "{} should refuse {command}",
                    error.error
                );
            }
            for command in admits {
                assert!(
                    !refused(&error, command),
                    "{} should admit {command}",
                    error.error
                );
            }
        }
        assert!(refused(&RespError::new("ERR any"), "HELLO 3"));
        assert!(refused(&RespError::readonly().commands(&["GET"]), "get k"));
    }

    #[test]
    fn an_error_of_two_lines_is_refused() {
        assert!(RespError::new("ERR a\r\nb").check().is_err());
        assert!(RespError::new("").check().is_err());
        assert!(
            RespError::new("ERR a")
                .percentage(f64::NAN)
                .check()
                .is_err()
        );
    }
}
