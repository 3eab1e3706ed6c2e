//! `steadfast drill`: the lab at the command line.

mod list;

use crate::failure::Failure;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the drills that come with the program, with a sentence each
    List(list::Args),
}

impl Command {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(args) => args.run(),
        }
    }
}
