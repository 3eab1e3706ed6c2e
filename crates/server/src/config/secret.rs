//! A URL with a password in it is a secret, yet an operator must see which server is meant. So it is kept whole in a
//! type that shows itself only without the password.

use std::fmt;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use url::Url;

use super::section::Section;

const HIDDEN: &str = "***";

/// A URL whose password, and the values of whose query, are shown as `***`.
#[derive(Clone)]
pub struct SecretUrl {
    whole: SecretString,
    shown: String,
    scheme: String,
}

impl SecretUrl {
    /// Keeps `text` as it is; `None` if it is not a URL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        Some(Self {
            shown: redact(text, &url),
            scheme: url.scheme().to_owned(),
            whole: SecretString::from(text.to_owned()),
        })
    }

    pub(crate) fn read(
        section: &Section<'_>,
        key: &str,
        default: &'static str,
        schemes: &[&str],
    ) -> Self {
        let text = section.string(key).unwrap_or_else(|| default.to_owned());
        let Some(url) = Self::parse(&text) else {
            let mistake = section.mistake(key, "is not a URL");
            section.refuse(mistake.help(format!("it begins with {}", listed(schemes))));
            return Self::fallback(schemes);
        };
        if !schemes.contains(&url.scheme()) {
            let message = format!("has the scheme `{}://`, which is not known", url.scheme());
            let mistake = section.mistake(key, message);
            section.refuse(mistake.help(format!("use {}", listed(schemes))));
        }
        url
    }

    /// With everything in it, to connect with. Never to be logged.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.whole.expose_secret()
    }

    /// What stands before `://`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    pub(crate) fn names_a_user(&self) -> bool {
        Url::parse(self.expose())
            .is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
    }

    /// Stands in for a URL that was refused, until the mistakes are reported.
    fn fallback(schemes: &[&str]) -> Self {
        let scheme = schemes.first().copied().unwrap_or("http");
        Self {
            whole: SecretString::from(format!("{scheme}://refused")),
            shown: format!("{scheme}://refused"),
            scheme: scheme.to_owned(),
        }
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl PartialEq for SecretUrl {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown)
    }
}

/// A text that is never shown.
#[derive(Clone)]
pub struct SecretText(SecretString);

impl SecretText {
    /// Keeps `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(SecretString::from(text))
    }

    /// The text itself. Never to be logged.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl PartialEq for SecretText {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

/// By what a file held when the configuration was read; tells that it was rotated though its path stayed. Shows nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of all of them, in this order; one that cannot be read counts as empty, and is complained about elsewhere.
    pub(crate) fn of_files<'a>(files: impl IntoIterator<Item = Option<&'a Path>>) -> Self {
        let mut hasher = Sha256::new();
        for file in files {
            let bytes = file
                .and_then(|file| std::fs::read(file).ok())
                .unwrap_or_default();
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        Self(hasher.finalize().into())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint")
    }
}

fn redact(text: &str, url: &Url) -> String {
    let mut shown = url.clone();
    let mut changed = false;
    if url.password().is_some() {
        changed |= shown.set_password(Some(HIDDEN)).is_ok();
    }
    if url.query().is_some() {
        let names: Vec<String> = url
            .query_pairs()
            .map(|(name, _)| format!("{name}={HIDDEN}"))
            .collect();
        shown.set_query(Some(&names.join("&")));
        changed = true;
    }
    if changed {
        shown.to_string()
    } else {
        text.to_owned()
    }
}

fn listed(schemes: &[&str]) -> String {
    let listed: Vec<String> = schemes.iter().map(|s| format!("{s}://")).collect();
    listed.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_kept_but_never_shown() {
        let url = SecretUrl::parse("redis://app:hunter2@db.example:6379/1?token=hunter3").unwrap();
        assert_eq!(
            url.expose(),
            "redis://app:hunter2@db.example:6379/1?token=hunter3"
        );
        for shown in [
            url.to_string(),
            format!("{url:?}"),
            serde_json::to_string(&url).unwrap(),
        ] {
            assert!(!shown.contains("hunter"), "{shown}");
            assert!(shown.contains("db.example"), "{shown}");
        }
    }
}
