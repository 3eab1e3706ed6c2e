//! Chosen commands are answered late.

use super::error::FaultError;
use super::millis;
use super::resp::{RespFault, Treatment, always, check};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Lets commands run, and keeps their answers for `delay`. What was asked after them on the same
/// connection waits behind them, as it does with a server that runs one command at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RespDelay {
    /// The commands, as `GET` or `CLIENT KILL`. Default: all.
    #[serde(default)]
    pub commands: Vec<String>,
    /// How many of them, drawn by the seed. Default: 100.
    #[serde(default = "always")]
    pub percentage: f64,
    /// How much later than they were asked. Milliseconds when written.
    #[serde(with = "millis")]
    pub delay: Duration,
}

impl RespDelay {
    pub(super) fn check(&self) -> Result<(), FaultError> {
        check(self.percentage)
    }

    pub(super) fn resp(&self) -> RespFault {
        RespFault::new(
            &self.commands,
            self.percentage,
            Treatment::Delay(self.delay),
        )
    }
}
