//! The check of a token, besides its signature: of bounded size, for this service, from the issuer
//! that is believed, in its time, and about somebody. Each refusal has a name of its own for the
//! audit log; the caller learns less.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation, decode, decode_header, encode};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;

use super::jwks::Jwks;
use super::key::KeySet;
use crate::clock::unix_ms;
use crate::config::AuthConfig;
use crate::role::Role;
use crate::token_key::Key;

/// The caller that a token names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The claim `sub`.
    pub subject: Arc<str>,
    /// The highest role that the token names.
    pub role: Role,
    /// The claim `exp`: the token is good until then, in seconds since 1970.
    pub expires_at: u64,
    /// The name of the key that has signed the token, if it has one.
    pub(super) key: Option<Arc<str>>,
}

/// The reason why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenRejection {
    Missing,
    TooLong,
    NotAToken,
    UnknownKey,
    WrongAlgorithm,
    BadSignature,
    Expired,
    NotYetValid,
    MissingClaim,
    WrongIssuer,
    WrongAudience,
    Critical,
    NoRole,
    NoKeys,
}

impl TokenRejection {
    /// Every reason.
    pub(crate) const ALL: [Self; 14] = [
        Self::Missing,
        Self::TooLong,
        Self::NotAToken,
        Self::UnknownKey,
        Self::WrongAlgorithm,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::MissingClaim,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::Critical,
        Self::NoRole,
        Self::NoKeys,
    ];

    /// Returns the name for the audit log and the metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Missing => "no_token",
            Self::TooLong => "too_long",
            Self::NotAToken => "not_a_token",
            Self::UnknownKey => "unknown_key",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::MissingClaim => "missing_claim",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::Critical => "critical_header",
            Self::NoRole => "no_role",
            Self::NoKeys => "keys_not_known",
        }
    }

    /// Returns the words for the caller.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Missing => "send a token: `Authorization: Bearer …`",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::TooLong => "the token is longer than `auth.token_max`",
            Self::NoRole => "the token names no role of this service",
            Self::NoKeys => "the keys that tokens are checked with could not be read yet",
            _ => "the token is not accepted",
        }
    }
}

pub(crate) struct Verifier {
    issuer: String,
    audience: String,
    roles_claim: String,
    leeway: Duration,
    longest: usize,
    fixed: KeySet,
    pub(crate) jwks: Option<Jwks>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// A subject is cut off here, so that no log line and no key of a limit grows without end.
const LONGEST_SUBJECT: usize = 256;

impl Verifier {
    pub(crate) fn new(config: &AuthConfig) -> Result<Self, String> {
        let jwks = config.jwks.as_ref().and_then(|shown| {
            let url = url::Url::parse(shown.expose()).ok()?;
            let (refresh, cooldown) = (config.jwks_refresh, config.jwks_cooldown);
            Some(Jwks::new(url, shown.to_string(), refresh, cooldown))
        });
        Ok(Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            roles_claim: config.roles_claim.clone(),
            leeway: config.leeway,
            longest: config.token_max.as_usize(),
            fixed: KeySet::of_config(config)?,
            jwks,
        })
    }

    pub(crate) async fn verify(&self, token: &str) -> Result<Caller, TokenRejection> {
        let header = self.header(token)?;
        let kid = header.kid.as_deref();
        let key = match (self.known_key(kid), &self.jwks) {
            (Err(TokenRejection::UnknownKey | TokenRejection::NoKeys), Some(jwks))
                if self.is_of_jwks(kid) =>
            {
                jwks.find(kid).await;
                self.known_key(kid)?
            }
            (known, _) => known?,
        };
        self.judge(token, &header, &key)
    }

    /// As [`verify`](Self::verify), with the keys that are known: waits for nothing.
    pub(crate) fn verify_at_once(&self, token: &str) -> Result<Caller, TokenRejection> {
        let header = self.header(token)?;
        let key = self.known_key(header.kid.as_deref())?;
        self.judge(token, &header, &key)
    }

    fn header(&self, token: &str) -> Result<Header, TokenRejection> {
        if token.len() > self.longest {
            return Err(TokenRejection::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenRejection::NotAToken)?;
        if header.crit.is_some() {
            // Whatever it is that must be understood, it is not (RFC 7515, 4.1.11).
            return Err(TokenRejection::Critical);
        }
        Ok(header)
    }

    fn judge(&self, token: &str, header: &Header, key: &Key) -> Result<Caller, TokenRejection> {
        if header.alg != key.algorithm {
            return Err(TokenRejection::WrongAlgorithm);
        }
        let claims = decode::<Claims>(token, &key.decoding, &self.validation(key))
            .map_err(|error| refusal(error.kind()))?
            .claims;
        if claims.sub.is_empty() || claims.sub.len() > LONGEST_SUBJECT {
            return Err(TokenRejection::MissingClaim);
        }
        let role = self.role(&claims.others).ok_or(TokenRejection::NoRole)?;
        // Checked above to be a number.
        let expires_at = claims.others.get("exp").and_then(Value::as_f64);
        Ok(Caller {
            subject: claims.sub.into(),
            role,
            expires_at: expires_at.ok_or(TokenRejection::MissingClaim)? as u64,
            key: header.kid.as_deref().map(Arc::from),
        })
    }

    /// Whether the token that a caller has brought would be believed still: it has not expired, and
    /// its key was not withdrawn.
    pub(crate) fn believes(&self, caller: &Caller) -> bool {
        let now = unix_ms() / 1000;
        let in_time = now <= caller.expires_at.saturating_add(self.leeway.as_secs());
        in_time && self.known_key(caller.key.as_deref()).is_ok()
    }

    /// A token without a name is not held against two sets of keys: that is a guess.
    fn is_of_jwks(&self, kid: Option<&str>) -> bool {
        kid.is_some() || self.fixed.is_empty()
    }

    fn known_key(&self, kid: Option<&str>) -> Result<Key, TokenRejection> {
        let Some(jwks) = &self.jwks else {
            return self
                .fixed
                .find(kid)
                .cloned()
                .ok_or(TokenRejection::UnknownKey);
        };
        if let Some(key) = kid.and_then(|kid| self.fixed.find(Some(kid))) {
            return Ok(key.clone());
        }
        if !self.is_of_jwks(kid) {
            return Err(TokenRejection::UnknownKey);
        }
        match jwks.known(kid) {
            Some(key) => Ok(key),
            None if jwks.is_known() => Err(TokenRejection::UnknownKey),
            None => Err(TokenRejection::NoKeys),
        }
    }

    fn validation(&self, key: &Key) -> Validation {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation
    }

    /// The highest of the roles that the token names.
    fn role(&self, claims: &BTreeMap<String, Value>) -> Option<Role> {
        match claims.get(&self.roles_claim)? {
            Value::String(name) => Role::of_name(name),
            Value::Array(names) => names
                .iter()
                .filter_map(|name| Role::of_name(name.as_str()?))
                .max(),
            _ => None,
        }
    }
}

fn refusal(kind: &ErrorKind) -> TokenRejection {
    match kind {
        ErrorKind::ExpiredSignature => TokenRejection::Expired,
        ErrorKind::ImmatureSignature => TokenRejection::NotYetValid,
        ErrorKind::InvalidIssuer => TokenRejection::WrongIssuer,
        ErrorKind::InvalidAudience => TokenRejection::WrongAudience,
        ErrorKind::InvalidAlgorithm => TokenRejection::WrongAlgorithm,
        ErrorKind::InvalidSignature => TokenRejection::BadSignature,
        ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::InvalidClaimFormat(_)
        | ErrorKind::Json(_) => TokenRejection::MissingClaim,
        _ => TokenRejection::NotAToken,
    }
}

/// The content of a token that `steadfast token` issues.
#[derive(Debug, Clone)]
pub struct TokenSpec<'a> {
    /// About whom.
    pub subject: &'a str,
    /// The role of the subject.
    pub role: Role,
    /// The time for which the token is valid.
    pub lifetime: Duration,
    /// The name in `[auth.keys]` of the key that signs; `None` if there is just one.
    pub key: Option<&'a str>,
    /// The private key, for a key of which the configuration has only the public half.
    pub private_key: Option<&'a std::path::Path>,
    /// Now, in seconds since 1970.
    pub now: u64,
}

/// The reason why no token can be issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// There is no key of that name, or none is named and there are several.
    #[error("name one of the keys under [auth.keys]: {}", .known.join(", "))]
    WhichKey {
        /// The names of the keys that there are.
        known: Vec<String>,
    },
    /// The key cannot sign.
    #[error("`auth.keys.{name}` {why}")]
    Key {
        /// The name of the key.
        name: String,
        /// The mistake in the key.
        why: String,
    },
    /// The subject is empty, or too long.
    #[error("the subject must have 1 to {LONGEST_SUBJECT} bytes")]
    Subject,
}

/// Signs a token that a service with this configuration accepts.
///
/// ```no_run
/// use std::time::Duration;
/// use steadfast_server::auth::{Role, TokenSpec, issue};
///
/// # use steadfast_server::config::AuthConfig;
/// # fn example(config: &AuthConfig, now: u64) -> Result<(), Box<dyn std::error::Error>> {
/// let spec = TokenSpec {
///     subject: "ada",
///     role: Role::Viewer,
///     lifetime: Duration::from_secs(3600),
///     key: None,
///     private_key: None,
///     now,
/// };
/// let token = issue(config, &spec)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// See [`IssueError`].
pub fn issue(config: &AuthConfig, spec: &TokenSpec<'_>) -> Result<SecretString, IssueError> {
    if spec.subject.is_empty() || spec.subject.len() > LONGEST_SUBJECT {
        return Err(IssueError::Subject);
    }
    let found = match spec.key {
        Some(name) => config.keys.get_key_value(name),
        None if config.keys.len() == 1 => config.keys.first_key_value(),
        None => None,
    };
    let Some((name, key)) = found else {
        let known = config.keys.keys().cloned().collect();
        return Err(IssueError::WhichKey { known });
    };
    let failed = |why: String| IssueError::Key {
        name: name.clone(),
        why,
    };
    let (algorithm, key) = key.source().signing(spec.private_key).map_err(failed)?;
    let mut header = Header::new(algorithm);
    header.kid = Some(name.clone());
    let mut claims = serde_json::json!({
        "iss": config.issuer,
        "aud": config.audience,
        "sub": spec.subject,
        "iat": spec.now,
        "nbf": spec.now,
        "exp": spec.now.saturating_add(spec.lifetime.as_secs()),
    });
    claims[&config.roles_claim] = spec.role.name().into();
    encode(&header, &claims, &key)
        .map(SecretString::from)
        .map_err(|error| failed(format!("cannot sign: {error}")))
}
