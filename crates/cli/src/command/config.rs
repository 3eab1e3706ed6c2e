//! `steadfast config`: find out what is wrong with a configuration, or what it comes to, without
//! starting anything.

use steadfast_server::App;
use steadfast_server::config::SAMPLE;

use super::serve::unstarted;
use crate::failure::Failure;
use crate::output::line;
use crate::settings::Flags;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check a configuration and report all mistakes at once, each with line and column
    #[command(after_help = "\
Exit status: 0 if it can be used, 78 if not.

Example:
  steadfast config check --config steadfast.toml")]
    Check(Flags),
    /// Print the settings in force, defaults included, with secrets as ***
    #[command(after_help = "\
Flags come before STEADFAST__… variables (STEADFAST__REDIS__URL), these before REDIS_URL,
DATABASE_URL and HEALTH_CHECK_REDIS_TIMEOUT, these before the file, and the file before the defaults.

Example:
  steadfast config show --config steadfast.toml")]
    Show(Flags),
    /// Print a configuration to begin with
    #[command(after_help = "Example:\n  steadfast config sample > steadfast.toml")]
    Sample,
}

impl Command {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Check(flags) => {
                let config = flags.load()?;
                App::try_out(&config).map_err(|error| unstarted(&error))?;
                let name = flags
                    .file
                    .config
                    .map_or("the defaults".to_owned(), |file| file.display().to_string());
                let (queries, statements) = (config.queries.len(), config.statements.len());
                line(format_args!(
                    "{name}: fine, {queries} queries and {statements} statements"
                ))?;
                for note in config.notes() {
                    line(format_args!("note: {note}"))?;
                }
            }
            Self::Show(flags) => line(flags.load()?.show().trim_end())?,
            Self::Sample => line(SAMPLE.trim_end())?,
        }
        Ok(())
    }
}
