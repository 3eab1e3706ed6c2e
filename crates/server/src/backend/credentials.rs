//! The service's own credentials for Redis, as `[redis.credentials]` says.

use steadfast::ClientBuilder;
use steadfast::credentials::{EnvironmentCredentials, FileCredentials};

use crate::config::{CredentialsConfig, EntraConfig};

/// Gives the client its provider; without a section, what the URL holds.
pub(super) fn provide(builder: ClientBuilder, config: Option<&CredentialsConfig>) -> ClientBuilder {
    match config {
        None => builder,
        Some(CredentialsConfig::Environment {
            user_variable,
            password_variable,
        }) => {
            let user = user_variable.as_deref();
            builder.credentials(EnvironmentCredentials::new(user, password_variable))
        }
        Some(CredentialsConfig::File {
            path,
            user,
            look_every,
        }) => {
            let file = FileCredentials::new(path, user.as_deref());
            builder.credentials(file.look_every(*look_every))
        }
        Some(CredentialsConfig::Entra(config)) => entra(builder, config),
    }
}

/// Gives the client what `[redis.sentinel.credentials]` says; without it, what the URL holds.
pub(super) fn provide_to_sentinels(
    builder: ClientBuilder,
    config: Option<&CredentialsConfig>,
) -> ClientBuilder {
    match config {
        Some(CredentialsConfig::Environment {
            user_variable,
            password_variable,
        }) => {
            let user = user_variable.as_deref();
            let variables = EnvironmentCredentials::new(user, password_variable);
            builder.sentinel_credentials_from(variables)
        }
        Some(CredentialsConfig::File { path, user, .. }) => {
            let file = FileCredentials::new(path, user.as_deref());
            builder.sentinel_credentials_from(file)
        }
        // The configuration refuses tokens there.
        Some(CredentialsConfig::Entra(_)) | None => builder,
    }
}

#[cfg(feature = "entra-id")]
fn entra(builder: ClientBuilder, config: &EntraConfig) -> ClientBuilder {
    use secrecy::SecretString;
    use steadfast::credentials::EntraId;

    use crate::config::EntraIdentity;

    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let provider = match config.identity {
        EntraIdentity::ManagedIdentity => EntraId::managed_identity(config.client_id.as_deref()),
        EntraIdentity::WorkloadIdentity => EntraId::workload_identity(),
        EntraIdentity::AzureCli => EntraId::azure_cli(),
        EntraIdentity::ClientSecret => {
            let secret = config.secret.as_ref().map_or("", |secret| secret.expose());
            let secret = SecretString::from(secret.to_owned());
            EntraId::client_secret(&given(&config.tenant), &given(&config.client_id), secret)
        }
    };
    builder.credentials(provider.scope(&config.scope))
}

/// The configuration refuses it in such a build; a program that made its own gets none.
#[cfg(not(feature = "entra-id"))]
fn entra(builder: ClientBuilder, _: &EntraConfig) -> ClientBuilder {
    builder
}
