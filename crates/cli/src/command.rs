//! The commands, a file each. A command prints what it has to say and returns; how the process ends
//! is decided by the [`Failure`] that it returns, or by there being none.

mod cache;
mod completions;
mod config;
mod demo;
mod drill;
mod probe;
mod serve;
mod status;
mod token;

use crate::failure::Failure;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Serve queries and statements over HTTP, as a configuration file says
    Serve(serve::Args),
    /// Try it: the service with a Redis and a table of users of its own
    Demo(demo::Args),
    /// Break a private Redis on purpose, and judge what users would have felt
    #[command(subcommand)]
    Drill(drill::Command),
    /// Measure what a connection to Redis is worth, and say why there is none
    Probe(probe::Args),
    /// Ask a running service how it is
    Status(status::Args),
    /// Look into the cache of a service, or make it forget
    #[command(subcommand)]
    Cache(cache::Command),
    /// Check a configuration, or show what it comes to
    #[command(subcommand)]
    Config(config::Command),
    /// Issue a token for development, signed with a key of the configuration
    Token(token::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

impl Command {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Serve(args) => args.run().await,
            Self::Demo(args) => args.run().await,
            Self::Drill(command) => command.run().await,
            Self::Probe(args) => args.run().await,
            Self::Status(args) => args.run().await,
            Self::Cache(command) => command.run().await,
            Self::Config(command) => command.run(),
            Self::Token(args) => args.run(),
            Self::Completions(args) => args.run(),
        }
    }
}
