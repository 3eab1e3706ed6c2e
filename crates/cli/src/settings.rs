//! Where settings come from at the command line: flags over environment over one file over defaults. Every command that needs
//! them reads them here, so that `config show` shows what `serve` would use.

use std::path::PathBuf;

use steadfast_server::config::{Config, ConfigError, Place, Sources};

use crate::failure::{Failure, Status};
use crate::mistakes::{InFile, Mistakes};

/// The flags by which settings are chosen.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// The configuration file; without one, the defaults hold
    #[arg(long, value_name = "FILE", env = "STEADFAST_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Address and port to listen on, over the file's `server.listen`
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
}

impl Flags {
    /// Reads and checks everything.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        self.load_with_sources().map(|(config, _)| config)
    }

    /// The same, with where it came from, to be read again later.
    pub(crate) fn load_with_sources(&self) -> Result<(Config, Sources), Failure> {
        let sources = self.sources().map_err(refusal)?;
        Ok((Config::load(&sources).map_err(refusal)?, sources))
    }

    fn sources(&self) -> Result<Sources, ConfigError> {
        let mut sources = Sources::new().environment(environment());
        if let Some(file) = &self.config {
            sources = sources.file(file)?;
        }
        if let Some(listen) = &self.listen {
            sources = sources.flag("--listen", "server.listen", listen);
        }
        Ok(sources)
    }
}

/// The variables that are text; one that is not cannot be a setting.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A configuration that cannot be used, with every mistake at its place.
pub(crate) fn refusal(error: ConfigError) -> Failure {
    let mut all = Mistakes::default();
    for mistake in &error.mistakes {
        let (message, help) = (mistake.message.as_str(), mistake.help.as_deref());
        match &mistake.place {
            Place::File { line, column, span } => {
                let at = InFile {
                    name: &error.source_name,
                    text: &error.text,
                    line: *line,
                    column: *column,
                    span: span.clone(),
                };
                all.in_file(&at, message, help);
            }
            Place::Environment { name } | Place::Flag { name } => {
                all.elsewhere(Some(name), message, help)
            }
            _ => all.elsewhere(None, message, help),
        }
    }
    Failure::mistakes(Status::Config, all)
}
