//! Chosen commands are answered falsely.

use super::error::FaultError;
use super::resp::{RespFault, Treatment, always, check};
use serde::{Deserialize, Serialize};

/// Answers commands with a reply of your own; the server never sees them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RespReply {
    /// The commands, as `GET` or `CLIENT KILL`. Default: all.
    #[serde(default)]
    pub commands: Vec<String>,
    /// How many of them, drawn by the seed. Default: 100.
    #[serde(default = "always")]
    pub percentage: f64,
    /// The reply, as it goes over the wire (`"+OK\r\n"`). It may be anything: also what is no
    /// reply, or more than one.
    pub reply: String,
}

impl RespReply {
    pub(super) fn check(&self) -> Result<(), FaultError> {
        check(self.percentage)?;
        if self.reply.is_empty() {
            let (name, what) = (
                "reply",
                "what goes over the wire; for no reply at all there is resp_silence",
            );
            return Err(FaultError::NoReply {
                name,
                what,
                value: String::new(),
            });
        }
        Ok(())
    }

    pub(super) fn resp(&self) -> RespFault {
        RespFault::new(
            &self.commands,
            self.percentage,
            Treatment::Answer(self.reply.clone().into()),
        )
    }
}
