//! The one program of Steadfast. Libraries return errors and reports; only here is anything
//! printed, and only here does a process end, so that the exit status of every command is decided
//! in one place (see [`failure::Status`]).
#![allow(
    clippy::print_stderr,
    clippy::exit,
    reason = "printing and exiting are this crate's work"
)]
mod address;
mod command;
mod failure;
mod figures;
mod mistakes;
mod output;
mod settings;
mod signals;

use std::process::ExitCode;

use clap::Parser;

/// Keeps an application serving when Redis does not.
///
/// A read-through cache in front of SQL behind HTTP, and a lab that breaks Redis on purpose and
/// reports what users would have felt.
#[derive(Debug, Parser)]
#[command(
    name = "steadfast",
    version,
    arg_required_else_help = true,
    after_help = "Start with `steadfast demo`.\n\
                  Exit status: 0 done or passed · 1 failed, or a failed verdict · 2 usage ·\n\
                  69 something needed is not there · 78 configuration · 130 interrupted"
)]
struct Cli {
    #[command(subcommand)]
    command: command::Command,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failure::Failure::from(error).report(),
    };
    let outcome = runtime.block_on(command.run());
    // A task that will not end (a name look-up in a thread of its own) must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
