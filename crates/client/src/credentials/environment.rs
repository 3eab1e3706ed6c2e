//! Credentials from environment variables.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Credentials, CredentialsError, CredentialsProvider};

/// Reads the user name and the password from two environment variables, at each handshake.
///
/// ```
/// use steadfast::credentials::EnvironmentCredentials;
///
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let variables = EnvironmentCredentials::new(Some("REDIS_USER"), "REDIS_PASSWORD");
/// let builder = steadfast::Client::builder("redis://127.0.0.1")?.credentials(variables);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct EnvironmentCredentials {
    user: Option<String>,
    password: String,
}

impl EnvironmentCredentials {
    /// `user` names the variable of the user name (absent: `default`), `password` that of the
    /// password.
    pub fn new(user: Option<&str>, password: &str) -> Self {
        Self {
            user: user.map(str::to_owned),
            password: password.to_owned(),
        }
    }

    fn read(&self) -> Result<Credentials, CredentialsError> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| {
                CredentialsError::new(format!("environment variable {name} is not set"))
            })
        };
        let user = self.user.as_deref().map(variable).transpose()?;
        let password = variable(&self.password)?;
        if password.is_empty() {
            let name = &self.password;
            let why = format!("environment variable {name} is set, but empty");
            return Err(CredentialsError::new(why));
        }
        Ok(Credentials::new(user.unwrap_or_default(), password))
    }
}

impl CredentialsProvider for EnvironmentCredentials {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(std::future::ready(self.read()))
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_variable_that_is_not_set_is_named() {
        let provider = EnvironmentCredentials::new(None, "STEADFAST_TEST_NO_SUCH_VARIABLE");
        let error = provider.credentials().await.expect_err("it is not set");
        assert!(
            error
                .to_string()
                .contains("STEADFAST_TEST_NO_SUCH_VARIABLE")
        );
    }
}
