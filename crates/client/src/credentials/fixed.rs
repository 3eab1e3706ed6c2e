//! Credentials that never change.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Credentials, CredentialsError, CredentialsProvider};

/// Always the same credentials; what a URL with a password makes.
///
/// ```
/// use steadfast::credentials::{Credentials, StaticCredentials};
///
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let fixed = StaticCredentials::new(Credentials::new("app", "secret"));
/// let builder = steadfast::Client::builder("redis://127.0.0.1")?.credentials(fixed);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct StaticCredentials(Credentials);

impl StaticCredentials {
    /// A provider of `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        Self(credentials)
    }
}

impl CredentialsProvider for StaticCredentials {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}
