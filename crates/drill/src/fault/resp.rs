//! The choice of commands that a fault concerns, and what becomes of their answers.
//!
//! The bytes of a connection are not enough for these: a command answered by the proxy, or late,
//! must still have its answer in its place among the others. So the proxy follows both directions
//! (see `proxy/exchange.rs`), and these faults only say what is to be done with a command.

use super::error::{FaultError, within};
use bytes::Bytes;
use fastrand::Rng;
use std::time::Duration;

/// A fault of the protocol: what it does, to which commands, and how often.
#[derive(Debug, Clone)]
pub(crate) struct RespFault {
    pub(super) commands: Commands,
    pub(super) percentage: f64,
    pub(super) treatment: Treatment,
}

/// The treatment of a command and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// The server never sees it, and this is the answer.
    Answer(Bytes),
    /// The server never sees it, and this error is the answer; what else a server does that refuses
    /// a command (it remembers so in a transaction) is done too.
    Refuse(Bytes),
    /// Delays the answer, and with it all that come after it; the command runs.
    Delay(Duration),
    /// Keeps the answer until the fault is removed, and with it all that come after
    /// it).
    Silence,
}

/// A choice of commands.
#[derive(Debug, Clone)]
pub(super) enum Commands {
    /// By name, in capitals, a subcommand after a space.
    Named(Vec<String>),
    /// By what they are: given the arguments, the name first.
    Such(fn(&[&[u8]]) -> bool),
}

impl RespFault {
    pub(super) fn new(commands: &[String], percentage: f64, treatment: Treatment) -> Self {
        let commands = if commands.is_empty() {
            Commands::Such(|_| true)
        } else {
            Commands::Named(
                commands
                    .iter()
                    .map(|name| name.trim().to_ascii_uppercase())
                    .collect(),
            )
        };
        Self {
            commands,
            percentage,
            treatment,
        }
    }

    /// Returns what becomes of a command with these arguments (its name first), if anything.
    pub(crate) fn treats(&self, args: &[&[u8]], rng: &mut Rng) -> Option<&Treatment> {
        let concerned = match &self.commands {
            Commands::Named(names) => names.iter().any(|name| is_called(args, name)),
            Commands::Such(such) => such(args),
        };
        (concerned && rng.f64() * 100.0 < self.percentage).then_some(&self.treatment)
    }
}

/// Whether the command is that of the name, which may have a subcommand: `GET`, `CLIENT KILL`.
pub(super) fn is_called(args: &[&[u8]], name: &str) -> bool {
    let mut words = name.split_ascii_whitespace();
    let mut args = args.iter();
    words.all(|word| {
        args.next()
            .is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
    })
}

pub(super) fn check(percentage: f64) -> Result<(), FaultError> {
    within("percentage", percentage, 0.0, 100.0)
}

/// The default of every percentage.
pub(super) fn always() -> f64 {
    100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_chosen_by_name_and_subcommand_in_any_case() {
        let fault = RespFault::new(
            &["get".into(), "Client Kill".into()],
            100.0,
            Treatment::Silence,
        );
        let mut rng = Rng::with_seed(0);
        let mut takes = |args: &[&[u8]]| fault.treats(args, &mut rng).is_some();
        assert!(takes(&[b"GET", b"k"]));
        assert!(takes(&[b"client", b"KILL", b"ID", b"1"]));
        assert!(!takes(&[b"client", b"id"]));
        assert!(!takes(&[b"GETDEL", b"k"]));
        assert!(!takes(&[]));
    }

    #[test]
    fn a_percentage_is_met_and_zero_takes_none() {
        let mut rng = Rng::with_seed(0);
        let mut taken = |percentage| {
            let fault = RespFault::new(&[], percentage, Treatment::Silence);
            (0..10_000)
                .filter(|_| fault.treats(&[b"GET"], &mut rng).is_some())
                .count()
        };
        assert_eq!((taken(0.0), taken(100.0)), (0, 10_000));
        assert!((2_300..2_700).contains(&taken(25.0)));
    }
}
