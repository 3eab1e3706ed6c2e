//! Who callers are is told by tokens that others sign. What is set here is whom to believe, and
//! nothing here is guessed: issuer, audience and the algorithm of each key must be named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde::{Serialize, Serializer};

use super::secret::{Fingerprint, SecretText, SecretUrl};
use super::section::Section;
use super::units::{Bytes, duration};
use crate::token_key::{ALGORITHMS, KeySource, algorithm_name};

/// `[auth]`: whom to believe. Without it, everyone who can reach the service may use it, and it
/// listens on loopback only.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AuthConfig {
    /// The issuer that tokens must name (`iss`); required.
    pub issuer: String,
    /// The audience that tokens must hold (`aud`); required.
    pub audience: String,
    /// The claim that holds the role or roles (a string, or an array of which the highest counts);
    /// default `roles`.
    pub roles_claim: String,
    /// Difference of clocks that is forgiven for `exp` and `nbf`; default 30 s, at most 5 min.
    #[serde(serialize_with = "duration")]
    pub leeway: Duration,
    /// Longest token that is looked at; default 8 KiB.
    pub token_max: Bytes,
    /// A JWKS: `https://…`, `http://…` on loopback, or the path of a file; default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<SecretUrl>,
    /// How often the JWKS is read again; default 5 min.
    #[serde(serialize_with = "duration")]
    pub jwks_refresh: Duration,
    /// The JWKS is also read when a token names a key that is not known, but no more often than
    /// this; default 10 s.
    #[serde(serialize_with = "duration")]
    pub jwks_cooldown: Duration,
    /// Where the audit log goes: `stderr` (default), `off`, or the path of a file, which is
    /// appended to.
    pub audit: String,
    /// `[auth.keys.NAME]`: keys besides the JWKS; NAME is the `kid` of the tokens.
    pub keys: BTreeMap<String, KeyConfig>,
}

/// `[auth.keys.NAME]`: one key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeyConfig {
    /// The only algorithm for which the key is used; required.
    pub algorithm: KeyAlgorithm,
    /// A shared secret (HS256, HS384, HS512), at least as long as the hash. Better kept in a
    /// `file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretText>,
    /// A file with the public key in PEM, or with the shared secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// A fingerprint of the file.
    #[serde(skip)]
    pub held: Fingerprint,
}

/// The algorithm of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAlgorithm(pub(crate) Algorithm);

impl KeyAlgorithm {
    /// Returns the name as in tokens.
    #[must_use]
    pub fn name(self) -> &'static str {
        algorithm_name(self.0)
    }
}

impl Serialize for KeyAlgorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

const SECOND: Duration = Duration::from_secs(1);

impl AuthConfig {
    /// `None` if there is no `[auth]`.
    pub(crate) fn read(root: &Section<'_>, serving: bool) -> Option<Self> {
        if !root.has("auth") {
            return None;
        }
        let section = root.section("auth");
        let config = Self {
            issuer: required(&section, "issuer"),
            audience: required(&section, "audience"),
            roles_claim: section
                .string("roles_claim")
                .unwrap_or_else(|| "roles".to_owned()),
            leeway: section.duration("leeway").unwrap_or(30 * SECOND),
            token_max: section.some_bytes("token_max").unwrap_or(Bytes(8 << 10)),
            jwks: read_jwks(&section),
            jwks_refresh: section.positive("jwks_refresh").unwrap_or(300 * SECOND),
            jwks_cooldown: section.positive("jwks_cooldown").unwrap_or(10 * SECOND),
            audit: section
                .string("audit")
                .unwrap_or_else(|| "stderr".to_owned()),
            keys: section
                .sections("keys")
                .into_iter()
                .filter_map(|(name, key)| Some((name, KeyConfig::read(key)?)))
                .collect(),
        };
        if config.leeway > 300 * SECOND {
            let message = "is longer than 5m: a token that has expired would be taken for so long";
            section.refuse(section.mistake("leeway", message));
        }
        if serving {
            check_audit(&section, &config.audit);
        }
        if config.jwks.is_none() && !section.has("keys") {
            let message = "names no key: set `jwks`, or a key under [auth.keys.NAME]";
            section.refuse(root.mistake("auth", message));
        }
        section.finish();
        Some(config)
    }
}

fn required(section: &Section<'_>, key: &str) -> String {
    let value = section.string(key).unwrap_or_default();
    if value.is_empty() {
        section.refuse(section.mistake(key, "is missing; tokens of anyone would be taken"));
    }
    value
}

/// The log is made if it is missing, but not its folder.
fn check_audit(section: &Section<'_>, audit: &str) {
    let path = Path::new(audit);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        let message = format!(
            "names a file in {}, but there is no such folder",
            folder.display()
        );
        section.refuse(section.mistake("audit", message));
    } else if path.is_dir() {
        section.refuse(section.mistake("audit", "names a folder, but must be a file"));
    }
}

/// A path becomes a `file:` URL, so that there is one kind of source.
fn read_jwks(section: &Section<'_>) -> Option<SecretUrl> {
    let text = section.string("jwks")?;
    let text = if text.contains("://") {
        text
    } else {
        let path = std::path::absolute(&text).unwrap_or_else(|_| PathBuf::from(&text));
        url::Url::from_file_path(path).map_or(text, String::from)
    };
    let url = url::Url::parse(&text).ok();
    let loopback = |url: &url::Url| match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    let fits = url.as_ref().is_some_and(|url| match url.scheme() {
        "https" | "file" => true,
        "http" => loopback(url),
        _ => false,
    });
    if !fits {
        let message = "must be an https:// address, an http:// one on loopback, or the path of a file: \
                       whoever can change what is read there can sign in as anyone";
        section.refuse(section.mistake("jwks", message));
        return None;
    }
    let path = url
        .filter(|url| url.scheme() == "file")
        .and_then(|url| url.to_file_path().ok());
    if path.is_some_and(|path| path.is_dir()) {
        section.refuse(section.mistake("jwks", "names a folder, but must be a file"));
    }
    SecretUrl::parse(&text)
}

impl KeyConfig {
    /// Returns where the key is read from.
    pub(crate) fn source(&self) -> KeySource<'_> {
        KeySource {
            algorithm: self.algorithm.0,
            secret: self.secret.as_ref().map(SecretText::expose),
            file: self.file.as_deref(),
        }
    }

    fn read(section: Section<'_>) -> Option<Self> {
        let secret = section.string("secret").map(SecretText::new);
        let file = section.string("file").map(PathBuf::from);
        let algorithm = section.choice("algorithm", ALGORITHMS);
        if !section.has("algorithm") {
            let message = "is missing; the token is not asked for it";
            section.refuse(section.mistake("algorithm", message));
        }
        let key = algorithm.map(|algorithm| Self {
            algorithm: KeyAlgorithm(algorithm),
            secret,
            held: Fingerprint::of_files([file.as_deref()]),
            file,
        });
        if let Some(Err(why)) = key.as_ref().map(|key| key.source().load()) {
            section.refuse(super::Mistake::new(
                section.place(),
                format!("`{}` {why}", section.path()),
            ));
        }
        section.finish();
        key
    }
}
