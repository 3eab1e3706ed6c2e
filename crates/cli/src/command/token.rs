//! `steadfast token`: a token to try a service with, signed with a key of its own configuration.
//! Who lets others in has an identity provider for this; here is what stands in for one at a
//! developer's desk.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;
use steadfast_server::auth::{IssueError, Role, TokenSpec, issue};

use crate::failure::{Failure, Status};
use crate::output::line;
use crate::settings::Flags;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token is printed alone, so that it can be used in a command.

Examples:

  steadfast token --config steadfast.toml --subject me --role operator
  curl -H \"Authorization: Bearer $(steadfast token --config steadfast.toml)\" http://127.0.0.1:8080/v1/status")]
pub(crate) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Subject of the token (`sub`)
    #[arg(long, default_value = "developer")]
    subject: String,
    /// Role: viewer, operator or admin
    #[arg(long, default_value = "viewer", value_parser = role)]
    role: Role,
    /// How many minutes it is valid
    #[arg(
        long,
        default_value_t = 60,
        value_name = "MINUTES",
        value_parser = clap::value_parser!(u64).range(1..=1440)
    )]
    minutes: u64,
    /// The key of [auth.keys] to sign with, if there are several
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// The private key in PEM, where the configuration has the public one
    #[arg(long, value_name = "FILE")]
    private_key: Option<PathBuf>,
}

fn role(name: &str) -> Result<Role, String> {
    Role::of_name(name).ok_or_else(|| "must be viewer, operator or admin".to_owned())
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.flags.load()?;
        let Some(auth) = &config.auth else {
            let failure = Failure::new(Status::Config, "the configuration has no [auth]");
            return Err(failure.hint("without it no token is asked for"));
        };
        let order = TokenSpec {
            subject: &self.subject,
            role: self.role,
            lifetime: Duration::from_secs(60 * self.minutes),
            key: self.key.as_deref(),
            private_key: self.private_key.as_deref(),
            now: seconds_since_1970(),
        };
        let token = issue(auth, &order).map_err(|error| {
            let status = match error {
                IssueError::Key { .. } => Status::Config,
                _ => Status::Usage,
            };
            Failure::new(status, error)
        })?;
        line(token.expose_secret())?;
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a token is dated by the calendar"
)]
fn seconds_since_1970() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
