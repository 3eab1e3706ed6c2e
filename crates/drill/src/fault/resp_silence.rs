//! Chosen commands are not answered.

use super::error::FaultError;
use super::resp::{RespFault, Treatment, always, check};
use serde::{Deserialize, Serialize};

/// Lets commands run and keeps their answers until the fault is removed. Replies carry no number,
/// so what was asked after them on the same connection is not answered either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RespSilence {
    /// The commands, as `GET` or `CLIENT KILL`. Default: all.
    #[serde(default)]
    pub commands: Vec<String>,
    /// How many of them, drawn by the seed. Default: 100.
    #[serde(default = "always")]
    pub percentage: f64,
}

impl RespSilence {
    pub(super) fn check(&self) -> Result<(), FaultError> {
        check(self.percentage)
    }

    pub(super) fn resp(&self) -> RespFault {
        RespFault::new(&self.commands, self.percentage, Treatment::Silence)
    }
}
