//! Credentials from a file, as Kubernetes and Vault agents write them.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Credentials, CredentialsError, CredentialsProvider};

/// Reads the password (or `user:password`) from a file that something else rotates.
#[derive(Debug)]
pub struct FileCredentials {
    path: PathBuf,
    user: Option<String>,
    look_every: Duration,
}

impl FileCredentials {
    /// The file holds the password of `user`; or, where `user` is `None`, one line `user:password`. A closing line break is dropped. The file
    /// is read at each handshake, and every 5 s for connections that live.
    pub fn new(path: impl Into<PathBuf>, user: Option<&str>) -> Self {
        Self {
            path: path.into(),
            user: user.map(str::to_owned),
            look_every: Duration::from_secs(5),
        }
    }

    /// How often to look whether the file has changed. Default: 5 s; costs one read of the file.
    pub fn look_every(mut self, every: Duration) -> Self {
        self.look_every = every.max(Duration::from_millis(10));
        self
    }

    async fn read(&self) -> Result<Credentials, CredentialsError> {
        let text = tokio::fs::read_to_string(&self.path)
            .await
            .map_err(|error| {
                CredentialsError::new(format!(
                    "cannot read the credentials file {}: {error}",
                    self.path.display()
                ))
            })?;
        let text = text.trim_end_matches(['\r', '\n']);
        match &self.user {
            Some(user) => Ok(Credentials::new(user.clone(), text)),
            None => text
                .split_once(':')
                .map(|(user, password)| Credentials::new(user, password))
                .ok_or_else(|| {
                    CredentialsError::new(format!(
                        "the credentials file {} is not of the form user:password",
                        self.path.display()
                    ))
                }),
        }
    }
}

impl CredentialsProvider for FileCredentials {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(self.read())
    }

    fn renew_in(&self) -> Option<Duration> {
        Some(self.look_every)
    }
}
