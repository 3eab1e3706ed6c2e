//! A URL with a password in it is a secret, yet an operator must see which server is meant. So it
//! is kept whole in a type that shows itself only without the password.

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
        let (one_host, others) = divide(text)?;
        let url = Url::parse(&one_host).ok()?;
        Some(Self {
            shown: join(&redact(&one_host, &url), others),
            scheme: url.scheme().to_owned(),
            whole: SecretString::from(text.to_owned()),
        })
    }

    /// Keeps `text` if it is a URL of one of these schemes, and such that nothing of its user or
    /// password can have got anywhere else.
    ///
    /// # Errors
    /// [`UrlMistake`] says what is wrong, and quotes nothing.
    pub fn of(text: &str, schemes: &[&str]) -> Result<Self, UrlMistake> {
        let url = text.contains("://").then(|| Self::parse(text)).flatten();
        let url = url.or_else(|| Self::parse(text).filter(|url| url.scheme == "sqlite"));
        let Some(url) = url else {
            return Err(UrlMistake::unparsable(text, schemes));
        };
        if !schemes.contains(&url.scheme()) {
            return Err(UrlMistake {
                message: format!("has the scheme `{}://`, which is not known", url.scheme()),
                help: format!("use {}", listed(schemes)),
            });
        }
        // Behind the host an `@` was meant to stand before it. A path of a file may hold one.
        let names_a_server = !matches!(url.scheme(), "sqlite" | "unix" | "file");
        if names_a_server && authority_and_rest(text).is_some_and(|(_, rest)| rest.contains('@')) {
            return Err(UrlMistake::misplaced(text));
        }
        Ok(url)
    }

    pub(crate) fn read(
        section: &Section<'_>,
        key: &str,
        default: &'static str,
        schemes: &[&str],
    ) -> Self {
        let text = section.string(key).unwrap_or_else(|| default.to_owned());
        Self::of(&text, schemes).unwrap_or_else(|wrong| {
            section.refuse(section.mistake(key, wrong.message).help(wrong.help));
            Self::fallback(schemes)
        })
    }

    /// Returns the whole URL, to connect with. Never to be logged.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.whole.expose_secret()
    }

    /// Returns the scheme, before `://`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Whether it stands in for one that was refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.shown.ends_with(REFUSED)
    }

    pub(crate) fn names_a_user(&self) -> bool {
        self.url()
            .is_some_and(|url| !url.username().is_empty() || url.password().is_some())
    }

    pub(crate) fn has_password(&self) -> bool {
        self.url().is_some_and(|url| url.password().is_some())
    }

    /// Whether its query names this parameter.
    pub(crate) fn says(&self, parameter: &str) -> bool {
        self.url()
            .is_some_and(|url| url.query_pairs().any(|(name, _)| name == parameter))
    }

    /// With one of its hosts.
    fn url(&self) -> Option<Url> {
        Url::parse(&divide(self.expose())?.0).ok()
    }

    /// Stands in for a URL that was refused, until the mistakes are reported.
    fn fallback(schemes: &[&str]) -> Self {
        let scheme = schemes.first().copied().unwrap_or("http");
        Self {
            whole: SecretString::from(format!("{scheme}{REFUSED}")),
            shown: format!("{scheme}{REFUSED}"),
            scheme: scheme.to_owned(),
        }
    }
}

/// The schemes of a Redis, of one that sentinels name, and of a cluster.
pub const REDIS_SCHEMES: &[&str] = &[
    "redis",
    "rediss",
    "unix",
    "redis-sentinel",
    "rediss-sentinel",
    "redis-cluster",
    "rediss-cluster",
];

/// Divides the URL of sentinels or of a cluster, which names several hosts, into one with the first
/// of them and the others behind a comma. Any other is returned whole. `None` if one of the others
/// cannot be a host with a port.
fn divide(text: &str) -> Option<(String, &str)> {
    let several = text
        .split_once("://")
        .is_some_and(|(scheme, _)| scheme.ends_with("-sentinel") || scheme.ends_with("-cluster"));
    let parts = authority_and_rest(text).filter(|_| several);
    let Some((authority, rest)) = parts else {
        return Some((text.to_owned(), ""));
    };
    let hosts_at = authority.rfind('@').map_or(0, |at| at + 1);
    let Some(comma) = authority[hosts_at..].find(',').map(|at| hosts_at + at) else {
        return Some((text.to_owned(), ""));
    };
    let others = &authority[comma..];
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]%,".contains(c);
    let scheme = &text[..text.len() - authority.len() - rest.len()];
    others
        .chars()
        .all(plain)
        .then(|| (format!("{scheme}{}{rest}", &authority[..comma]), others))
}

/// Puts the other hosts behind the first again.
fn join(shown: &str, others: &str) -> String {
    let end = authority_and_rest(shown).map_or(0, |(_, rest)| rest.len());
    let (before, rest) = shown.split_at(shown.len() - end);
    format!("{before}{others}{rest}")
}

/// The stand-in for a refused URL until the mistakes are reported; no host has such a name.
const REFUSED: &str = "://refused.invalid";

/// The reason why a text is not a usable URL. Nothing of the text is quoted: what cannot be taken
/// apart may be a password anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UrlMistake {
    /// The mistake, to be read behind the setting's name.
    pub message: String,
    /// The right way to write it.
    pub help: String,
}

impl UrlMistake {
    fn unparsable(text: &str, schemes: &[&str]) -> Self {
        let lower = text.to_ascii_lowercase();
        let signs = [",password=", ",ssl=", ";password=", "accountkey="];
        if signs.iter().any(|sign| lower.contains(sign)) {
            let help = if schemes.contains(&"rediss") {
                "write rediss://:PASSWORD@HOST:6380, and what is special in the password as %XX"
                    .to_owned()
            } else {
                format!("write it as {}", listed(schemes))
            };
            let message = "is a connection string as Azure shows it, and not a URL".to_owned();
            return Self { message, help };
        }
        if text.contains('@') {
            return Self::misplaced(text);
        }
        Self {
            message: "is not a URL".to_owned(),
            help: format!("it begins with {}", listed(schemes)),
        }
    }

    /// A user or password that holds what ends it in a URL.
    fn misplaced(text: &str) -> Self {
        let before = text.split_once("://").map_or(text, |(_, rest)| rest);
        let before = before.rsplit_once('@').map_or(before, |(before, _)| before);
        let special = before.chars().find(|c| "/?#@[] ".contains(*c));
        let (message, help) = match special {
            Some(special) => (
                format!(
                    "is not a URL: its user or password holds a `{special}`, which ends it there"
                ),
                format!("write it as %{:02X}", u32::from(special)),
            ),
            None => (
                "is not a URL: its user, password, host or port cannot be read".to_owned(),
                "write what is special in user and password as %XX, such as %25 for `%`".to_owned(),
            ),
        };
        Self { message, help }
    }
}

/// The part that names user and host, and all that follows it.
fn authority_and_rest(text: &str) -> Option<(&str, &str)> {
    let (_, behind) = text.split_once("://")?;
    let end = behind.find(['/', '?', '#']).unwrap_or(behind.len());
    Some(behind.split_at(end))
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

/// A hash of what a file held when the configuration was read. It tells that it was rotated though
/// its path stayed. Shows nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Hashes the files in this order. A file that cannot be read counts as empty; it is refused
    /// elsewhere.
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
    } else if !url.username().is_empty() {
        // Alone it is as often a token as a name.
        changed |= shown.set_username(HIDDEN).is_ok();
    }
    if url.fragment().is_some() {
        shown.set_fragment(Some(HIDDEN));
        changed = true;
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
        let token = SecretUrl::parse("redis://hunter2@db.example:6379").unwrap();
        assert!(!token.to_string().contains("hunter"), "{token}");
    }

    #[test]
    fn s10_a_url_of_several_sentinels_shows_all_of_them_and_no_password() {
        let text =
            "redis-sentinel://app:hunter2@a:26379,b,[::1]:7/main/0?sentinel_password=hunter3";
        let url = SecretUrl::of(text, REDIS_SCHEMES).unwrap();
        assert_eq!(url.expose(), text);
        let shown = "redis-sentinel://app:***@a:26379,b,[::1]:7/main/0?sentinel_password=***";
        assert_eq!(url.to_string(), shown);
        assert!(url.has_password());
        for plain in [
            "redis-sentinel://a,b/main",
            "redis-cluster://a,b:7000,[::1]:7",
        ] {
            let url = SecretUrl::of(plain, REDIS_SCHEMES).unwrap();
            assert_eq!(url.to_string(), plain);
        }
        let cluster = SecretUrl::of("rediss-cluster://app:hunter2@a,b", REDIS_SCHEMES).unwrap();
        assert_eq!(cluster.to_string(), "rediss-cluster://app:***@a,b");
        for wrong in [
            "redis-sentinel://a,password=hunter2/main",
            "redis-sentinel://a,u:hunter2@b,c=d/m",
            "redis-cluster://a,u:hunter2@b,c=d",
        ] {
            let wrong = SecretUrl::of(wrong, REDIS_SCHEMES).unwrap_err();
            assert!(!format!("{wrong:?}").contains("hunter"), "{wrong:?}");
        }
    }

    #[test]
    fn s10_what_cannot_be_taken_apart_is_explained_and_never_quoted() {
        let schemes = &["redis", "rediss", "unix"];
        for (text, words) in [
            ("redis://:hunt#er2@h", "%23"),
            ("redis://:hunt/er2@h:1", "%2F"),
            ("redis://:hunt?er2@h", "%3F"),
            ("redis://:hunt@er2/x@h:6379/0", "%40"),
            ("redis://hunter2/x@h", "%2F"),
            ("redis://u:hunter2@h:port", "%XX"),
            (
                "cache.example:6380,password=hunter2=,ssl=True,abortConnect=False",
                "rediss://:PASSWORD@HOST:6380",
            ),
            ("hunter2:secret@host:1", "%XX"),
            ("hunter2", "begins with redis://"),
            ("http://h", "use redis://"),
        ] {
            let wrong = SecretUrl::of(text, schemes).unwrap_err();
            let said = format!("{} ({})", wrong.message, wrong.help);
            assert!(said.contains(words), "{text}: {said}");
            for secret in ["hunt", "er2", "secret", "cache.example"] {
                assert!(!said.contains(secret), "{text}: {said}");
            }
        }
        let at = SecretUrl::of("sqlite:///srv/a@b/x.db", &["sqlite"]);
        assert!(at.is_ok(), "a file may be called anything");
        assert!(SecretUrl::of("redis://u:p%40ss@h/0?protocol=resp3", schemes).is_ok());
    }
}
