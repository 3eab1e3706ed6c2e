//! Where settings come from at the command line: flags over environment over one file over
//! defaults. Every command that needs them reads them here, so that `config show` shows what
//! `serve` would use.

use std::path::PathBuf;

use steadfast_server::config::{Config, ConfigError, Origin, Sources};

use crate::failure::{Failure, Status};
use crate::mistakes::{InFile, Mistakes};

/// Which file to read.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct File {
    /// The configuration file; without one, the defaults hold
    #[arg(long, value_name = "FILE", env = "STEADFAST_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// The flags by which a service is configured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) file: File,
    /// Address and port to listen on, over the file's `server.listen`
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

impl File {
    /// Reads and checks everything.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        check_environment()?;
        let sources = self.sources().map_err(refusal)?;
        Config::load(&sources).map_err(refusal)
    }

    fn sources(&self) -> Result<Sources, ConfigError> {
        let sources = Sources::new().environment(environment());
        match &self.config {
            Some(file) => sources.file(file),
            None => Ok(sources),
        }
    }
}

impl Flags {
    /// Reads and checks everything.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        self.load_with_sources().map(|(config, _)| config)
    }

    /// The same, with where it came from, to be read again later.
    pub(crate) fn load_with_sources(&self) -> Result<(Config, Sources), Failure> {
        check_environment()?;
        let sources = self.sources().map_err(refusal)?;
        Ok((Config::load(&sources).map_err(refusal)?, sources))
    }

    fn sources(&self) -> Result<Sources, ConfigError> {
        let sources = self.file.sources()?.to_serve();
        Ok(match &self.listen {
            Some(listen) => sources.flag("--listen", "server.listen", listen),
            None => sources,
        })
    }
}

/// The variables that are text.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A setting that is not text is refused, not left out: the service would quietly go somewhere
/// else.
fn check_environment() -> Result<(), Failure> {
    let mut all = Mistakes::default();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if Sources::is_setting(&name) && value.to_str().is_none() {
            all.elsewhere(Some(&name), "is not valid UTF-8", None);
        }
    }
    if all.is_empty() {
        return Ok(());
    }
    Err(Failure::mistakes(Status::Config, all))
}

/// A configuration that cannot be used, with every mistake at its place.
pub(crate) fn refusal(error: ConfigError) -> Failure {
    let mut all = Mistakes::default();
    for mistake in &error.mistakes {
        let (message, help) = (mistake.message.as_str(), mistake.help.as_deref());
        match &mistake.place {
            Origin::File { line, column, span } => {
                let at = InFile {
                    name: &error.source_name,
                    text: &error.text,
                    line: *line,
                    column: *column,
                    span: span.clone(),
                };
                all.in_file(&at, message, help);
            }
            Origin::Environment { name } | Origin::Flag { name } => {
                all.elsewhere(Some(name), message, help)
            }
            _ => all.elsewhere(None, message, help),
        }
    }
    Failure::mistakes(Status::Config, all)
}
