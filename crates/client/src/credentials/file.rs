//! Credentials from a file, as Kubernetes and Vault agents write them.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Credentials, CredentialsError, CredentialsProvider};

/// Reads the password (or `user:password`) from a file that something else rotates.
///
/// ```
/// use std::time::Duration;
/// use steadfast::credentials::FileCredentials;
///
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let mounted = FileCredentials::new("/run/secrets/redis", Some("app"));
/// let mounted = mounted.look_every(Duration::from_secs(10));
/// let builder = steadfast::Client::builder("redis://127.0.0.1")?.credentials(mounted);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FileCredentials {
    path: PathBuf,
    user: Option<String>,
    look_every: Duration,
}

impl FileCredentials {
    /// The file holds the password of `user`; or, where `user` is `None`, one line `user:password`.
    /// A closing line break is dropped. The file is read at each handshake, and every 5 s for
    /// connections that live.
    ///
    /// A file that is empty (as one is in the midst of a rewrite), that begins with a byte-order
    /// mark, whose password ends with a blank, or that has a second line is refused with words that
    /// say so: the client keeps the credentials that it has, and looks again. So a password that is
    /// empty or ends with a blank cannot come from a file.
    pub fn new(path: impl Into<PathBuf>, user: Option<&str>) -> Self {
        Self {
            path: path.into(),
            user: user.map(str::to_owned),
            look_every: Duration::from_secs(5),
        }
    }

    /// Sets how often to look whether the file has changed. Default: 5 s; costs one read of the
    /// file.
    pub fn look_every(mut self, every: Duration) -> Self {
        self.look_every = every.max(Duration::from_millis(10));
        self
    }

    async fn read(&self) -> Result<Credentials, CredentialsError> {
        let path = self.path.display();
        let text = tokio::fs::read_to_string(&self.path)
            .await
            .map_err(|error| format!("cannot read the credentials file {path}: {error}"))
            .map_err(CredentialsError::new)?;
        let wrong = |why: &str| CredentialsError::new(format!("the credentials file {path} {why}"));
        let line = one_line(&text).map_err(wrong)?;
        match &self.user {
            Some(user) => Ok(Credentials::new(user.clone(), line)),
            None => match line.split_once(':') {
                Some((_, "")) => Err(wrong("has no password behind the colon")),
                Some((user, password)) => Ok(Credentials::new(user, password)),
                None => Err(wrong("is not of the form user:password")),
            },
        }
    }
}

/// The one line of a file; or what is wrong with it, which a server would only call a wrong
/// password.
fn one_line(text: &str) -> Result<&str, &'static str> {
    let line = text.trim_end_matches(['\r', '\n']);
    if line.trim().is_empty() {
        return Err("is empty: is it being written?");
    }
    if line.starts_with('\u{feff}') {
        return Err("begins with a byte-order mark: save it as UTF-8 without one");
    }
    if line.contains(['\r', '\n']) {
        return Err("has more than one line: leave only that of the credentials");
    }
    if line.ends_with(char::is_whitespace) {
        return Err("ends with a blank, which would be part of the password: take it away");
    }
    Ok(line)
}

impl CredentialsProvider for FileCredentials {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(self.read())
    }

    fn renew_in(&self) -> Option<Duration> {
        Some(self.look_every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c16_a_file_that_cannot_hold_a_password_says_what_is_wrong_with_it() {
        for (text, want) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("\u{feff}secret\n", "byte-order mark"),
            ("secret\nother\n", "more than one line"),
            ("secret \n", "ends with a blank"),
            ("secret\t", "ends with a blank"),
        ] {
            let why = one_line(text).expect_err(text);
            assert!(why.contains(want), "{text:?}: {why}");
        }
        for text in ["a secret", "a secret\n", "a secret\r\n", "a secret\n\n"] {
            assert_eq!(one_line(text), Ok("a secret"), "{text:?}");
        }
    }

    #[tokio::test]
    async fn c16_a_line_that_ends_at_its_colon_is_no_empty_password() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("credentials");
        std::fs::write(&path, "app:\n").expect("it can be written");
        let read = FileCredentials::new(&path, None).credentials().await;
        let error = read.expect_err("it is half written").to_string();
        assert!(error.contains("no password behind the colon"), "{error}");
    }
}
