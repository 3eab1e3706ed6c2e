//! Where the user name and the password for Redis come from, if not from its URL. A secret has one
//! source; two are a mistake, since nobody would know which of them is in force.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::secret::SecretText;
use super::section::Section;
use super::units::{duration, secs};

/// `[redis.credentials]` and `[redis.sentinel.credentials]`: where user and password come from, in
/// place of the URL; read again when they change.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "source", rename_all = "lowercase")]
#[non_exhaustive]
pub enum CredentialsConfig {
    /// From environment variables.
    Environment {
        /// Variable that holds the user's name; default none, for the user `default`.
        #[serde(skip_serializing_if = "Option::is_none")]
        user_variable: Option<String>,
        /// Variable that holds the password; default `REDIS_PASSWORD`, of
        /// sentinels `REDIS_SENTINEL_PASSWORD`.
        password_variable: String,
    },
    /// From a file that something else rotates.
    File {
        /// The file: the password of `user`, or one line `user:password` where no user is named.
        path: PathBuf,
        /// The user; default none.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// How often the file is looked at; default 5 s. Not of sentinels, for which it is read at
        /// each connection; then nothing.
        #[serde(skip_serializing_if = "Duration::is_zero", serialize_with = "duration")]
        look_every: Duration,
    },
    /// Tokens of Microsoft Entra ID; only in a build with the feature `entra-id`.
    Entra(EntraConfig),
}

/// Tokens of Entra ID as passwords of Azure's Redis. The user name is the object id that the token
/// names.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EntraConfig {
    /// The kind of identity: `managed_identity`, `workload_identity`, `client_secret` or
    /// `azure_cli`; required.
    pub identity: EntraIdentity,
    /// The application, required for `client_secret`; or which of several managed identities,
    /// default the machine's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The tenant of the application, required for `client_secret`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The application's secret, required for `client_secret`. Better given as
    /// `STEADFAST__REDIS__CREDENTIALS__SECRET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretText>,
    /// The name of Redis in Entra ID; default `https://redis.azure.com/.default`.
    pub scope: String,
}

/// The kinds of identity that a service may sign in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EntraIdentity {
    /// The identity that Azure gives to the machine or the container.
    ManagedIdentity,
    /// The identity of a Kubernetes service account.
    WorkloadIdentity,
    /// An application with a secret.
    ClientSecret,
    /// The user who is signed in to `az`; for development.
    AzureCli,
}

#[derive(Clone, Copy)]
enum Source {
    Environment,
    File,
    Entra,
}

impl CredentialsConfig {
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        let sources = [
            ("environment", Source::Environment),
            ("file", Source::File),
            ("entra", Source::Entra),
        ];
        Self::read_from(section, &sources, "REDIS_PASSWORD")
    }

    /// Reads the credentials of sentinels, which know no tokens.
    pub(crate) fn read_for_sentinels(section: &Section<'_>) -> Option<Self> {
        let sources = [("environment", Source::Environment), ("file", Source::File)];
        if section.has("look_every") {
            let message = "is of no use: the file is read at each connection to a sentinel";
            section.refuse(section.mistake("look_every", message));
        }
        let mut config = Self::read_from(section, &sources, "REDIS_SENTINEL_PASSWORD");
        if let Some(Self::File { look_every, .. }) = &mut config {
            *look_every = Duration::ZERO;
        }
        config
    }

    fn read_from(
        section: &Section<'_>,
        sources: &[(&str, Source)],
        variable: &str,
    ) -> Option<Self> {
        if !section.is_given() {
            return None;
        }
        if !section.has("source") {
            let words: Vec<&str> = sources.iter().map(|(word, _)| *word).collect();
            let mistake = section.mistake("source", "is missing");
            section.refuse(mistake.help(format!("one of {}", words.join(", "))));
        }
        match section.choice("source", sources)? {
            Source::Environment => Some(Self::Environment {
                user_variable: section.string("user_variable"),
                password_variable: section
                    .string("password_variable")
                    .unwrap_or_else(|| variable.to_owned()),
            }),
            Source::File => {
                let path = section.string("path");
                if path.is_none() {
                    section.refuse(section.mistake("path", "is missing: it names the file"));
                }
                Some(Self::File {
                    path: path.map(PathBuf::from)?,
                    user: section.string("user"),
                    look_every: section.positive("look_every").unwrap_or(secs(5)),
                })
            }
            Source::Entra => EntraConfig::read(section).map(Self::Entra),
        }
    }
}

impl EntraConfig {
    fn read(section: &Section<'_>) -> Option<Self> {
        if !cfg!(feature = "entra-id") {
            let message = "is \"entra\", but this program was built without Entra ID";
            let mistake = section.mistake("source", message);
            section.refuse(mistake.help("build it with `--features entra-id`"));
        }
        let identities = [
            ("managed_identity", EntraIdentity::ManagedIdentity),
            ("workload_identity", EntraIdentity::WorkloadIdentity),
            ("client_secret", EntraIdentity::ClientSecret),
            ("azure_cli", EntraIdentity::AzureCli),
        ];
        if !section.has("identity") {
            let mistake = section.mistake("identity", "is missing");
            let words = identities.map(|(word, _)| word).join(", ");
            section.refuse(mistake.help(format!("one of {words}")));
        }
        let client_id = section.string("client_id");
        let tenant = section.string("tenant");
        let secret = section.string("secret").map(SecretText::new);
        let scope = section.string("scope");
        let identity = section.choice("identity", &identities)?;
        for (key, needed) in [
            ("client_id", identity == EntraIdentity::ClientSecret),
            ("tenant", identity == EntraIdentity::ClientSecret),
            ("secret", identity == EntraIdentity::ClientSecret),
        ] {
            let of_use =
                needed || (key == "client_id" && identity == EntraIdentity::ManagedIdentity);
            if needed && !section.has(key) {
                section.refuse(section.mistake(key, "is missing: an application signs in with it"));
            }
            if !of_use && section.has(key) {
                section.refuse(section.mistake(key, "is of no use to this `identity`"));
            }
        }
        Some(Self {
            identity,
            client_id,
            tenant,
            secret,
            scope: scope.unwrap_or_else(|| "https://redis.azure.com/.default".to_owned()),
        })
    }
}
