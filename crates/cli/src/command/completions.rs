//! `steadfast completions`: a script for the shell, made from the same definitions as the help, so
//! that the two agree.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  steadfast completions bash > ~/.local/share/bash-completion/completions/steadfast"
)]
pub(crate) struct Args {
    /// The shell to write for
    shell: Shell,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut crate::Cli::command(),
            "steadfast",
            &mut script,
        );
        Ok(output::line(String::from_utf8_lossy(&script).trim_end())?)
    }
}
