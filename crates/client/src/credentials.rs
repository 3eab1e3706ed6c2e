//! The origin of user name and password, and how they change while connections live.
//!
//! A provider is asked at every handshake, and tells when what it gave changes or expires, so that
//! live connections give the new credentials in time instead of being cut off.

#[cfg(feature = "entra-id")]
mod entra;
mod environment;
mod file;
mod fixed;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

#[cfg(feature = "entra-id")]
pub use entra::EntraId;
pub use environment::EnvironmentCredentials;
pub use file::FileCredentials;
pub use fixed::StaticCredentials;

/// A user name and a password. `Debug` shows neither.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    password: SecretString,
    /// The number of the question that they answer, counted by each client from 1; 0 outside of it.
    asked: u64,
}

impl Credentials {
    /// Credentials; an empty user name means `default`.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: password.into().into(),
            asked: 0,
        }
    }

    pub(crate) fn answering(self, asked: u64) -> Self {
        Self { asked, ..self }
    }

    /// Returns whether they answer an earlier question than the others do, and so may have been
    /// replaced by those.
    pub(crate) fn before(&self, other: &Self) -> bool {
        self.asked < other.asked
    }

    pub(crate) fn user(&self) -> &str {
        if self.user.is_empty() {
            "default"
        } else {
            &self.user
        }
    }

    pub(crate) fn password(&self) -> &str {
        self.password.expose_secret()
    }

    /// Returns whether both give the same user name and password.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.user() == other.user() && self.password() == other.password()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

/// Credentials could not be had.
#[derive(Clone, Debug, Error)]
#[error("{why}")]
pub struct CredentialsError {
    /// The cause; never shows a secret.
    pub why: Arc<str>,
}

impl CredentialsError {
    /// An error; `why` must not hold a secret.
    pub fn new(why: impl Into<Arc<str>>) -> Self {
        Self { why: why.into() }
    }
}

/// Gives credentials, again and again.
///
/// ```
/// use std::time::Duration;
/// use futures_util::future::BoxFuture;
/// use steadfast::credentials::{Credentials, CredentialsError, CredentialsProvider};
///
/// #[derive(Debug)]
/// struct Vault;
///
/// async fn ask_vault() -> Result<String, std::io::Error> {
///     Ok("secret".to_owned())
/// }
///
/// impl CredentialsProvider for Vault {
///     fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
///         Box::pin(async {
///             let password = ask_vault().await;
///             let password = password.map_err(|error| CredentialsError::new(error.to_string()))?;
///             Ok(Credentials::new("app", password))
///         })
///     }
///
///     fn renew_in(&self) -> Option<Duration> {
///         Some(Duration::from_secs(300))
///     }
/// }
///
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let builder = steadfast::Client::builder("redis://127.0.0.1")?.credentials(Vault);
/// # Ok(()) }
/// ```
pub trait CredentialsProvider: fmt::Debug + Send + Sync {
    /// The credentials to use now. Called at each handshake and each time
    /// [`renew_in`](Self::renew_in) has passed; under the deadline of a connect phase.
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>>;

    /// Returns when to ask again, for the sake of connections that live. `None`: never, these do
    /// not change.
    fn renew_in(&self) -> Option<Duration>;

    /// Returns the trouble with renewing credentials, while those that are held still work; told as
    /// an event long before it is an outage.
    fn trouble(&self) -> Option<CredentialsError> {
        None
    }
}
