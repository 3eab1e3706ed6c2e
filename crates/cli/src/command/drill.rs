//! `steadfast drill`: the lab at the command line.

mod compare;
mod files;
mod list;
mod progress;
mod proxy;
mod run;
mod target;

use steadfast_drill::scenario;

use crate::failure::Failure;
use crate::output::line;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the drills that come with the program, with a sentence each
    List(list::Args),
    /// Run drills and report what users would have felt
    Run(Box<run::Args>),
    /// Show two reports side by side, and fail if the second does worse
    Compare(compare::Args),
    /// Stand in front of a server and break the wire, by the API of Toxiproxy
    Proxy(proxy::Args),
    /// Print the JSON schema of scenario files, for editors
    #[command(after_help = "Example:\n  steadfast drill schema > scenario.schema.json")]
    Schema,
}

impl Command {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(args) => args.run(),
            Self::Run(args) => args.run().await,
            Self::Compare(args) => args.run(),
            Self::Proxy(args) => args.run().await,
            Self::Schema => Ok(line(scenario::SCHEMA.trim_end())?),
        }
    }
}
