//! TLS at each of the three boundaries: towards Redis, towards the database, and towards callers.
//! What files must be given together, and what contradicts the rest, is named before anything is
//! dialled or served.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::secret::Fingerprint;
use super::section::Section;
use super::units::{duration, secs};
use crate::tls_files::TlsFiles;

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V13,
}

impl TlsVersion {
    fn read(section: &Section<'_>) -> Self {
        let versions = [("1.2", Self::V12), ("1.3", Self::V13)];
        section
            .choice("min_version", &versions)
            .unwrap_or(Self::V12)
    }
}

/// `[redis.tls]`: how TLS is spoken. `rediss://` alone speaks it with the system's roots; the
/// section adds to that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RedisTlsConfig {
    /// PEM file of the authorities to believe, in place of the system's; default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate chain, with `key`; default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// PEM file of the client's private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Name to expect in the server's certificate in place of the host's; default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Lowest version, `1.2` (default) or `1.3`.
    pub min_version: TlsVersion,
    /// A fingerprint of the files. They are read at the start; a renewed one needs a restart, and
    /// SIGHUP says so.
    #[serde(skip)]
    pub held: Fingerprint,
}

impl RedisTlsConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let [ca, certificate, key] = ["ca", "certificate", "key"].map(|key| path(section, key));
        let config = Self {
            held: Fingerprint::of_files([ca.as_deref(), certificate.as_deref(), key.as_deref()]),
            ca,
            certificate,
            key,
            server_name: section.string("server_name"),
            min_version: TlsVersion::read(section),
        };
        both_or_neither(section, config.certificate.is_some(), config.key.is_some());
        config
    }

    /// Returns whether nothing was set.
    pub(crate) fn is_default(&self) -> bool {
        let files = [&self.ca, &self.certificate, &self.key];
        files.iter().all(|file| file.is_none())
            && self.server_name.is_none()
            && self.min_version == TlsVersion::V12
    }
}

/// The certainty about the database's server that is asked for before anything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DatabaseTlsMode {
    /// No TLS.
    Off,
    /// TLS if the server can, and whoever answers is believed: against listening, not against
    /// standing in between.
    Prefer,
    /// TLS, with a certificate of an authority that is believed, for whatever name.
    VerifyCa,
    /// TLS, with a certificate of an authority that is believed, for the host of the URL.
    VerifyFull,
}

/// `[database.tls]`: TLS towards PostgreSQL, MySQL and MariaDB, over what the URL says of it. There
/// is no mode that takes TLS but asks nobody who they are: it would look safe and not be. Files are
/// read at each new connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DatabaseTlsConfig {
    /// `off`, `prefer`, `verify-ca` or `verify-full` (default, once the section is there).
    pub mode: DatabaseTlsMode,
    /// PEM file of the authorities to believe besides those of the web; default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate chain, with `key`; default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// PEM file of the client's private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl DatabaseTlsConfig {
    /// `None` if there is no such section; the URL, or else `prefer`, decides then.
    pub(crate) fn read(section: &Section<'_>, scheme: &str) -> Option<Self> {
        if !section.is_given() {
            return None;
        }
        if scheme == "sqlite" {
            let message = "is of no use: SQLite is a file, and nothing is sent";
            section.refuse(super::Mistake::new(
                section.place(),
                format!("`{}` {message}", section.path()),
            ));
        }
        let modes = [
            ("off", DatabaseTlsMode::Off),
            ("prefer", DatabaseTlsMode::Prefer),
            ("verify-ca", DatabaseTlsMode::VerifyCa),
            ("verify-full", DatabaseTlsMode::VerifyFull),
        ];
        let config = Self {
            mode: section
                .choice("mode", &modes)
                .unwrap_or(DatabaseTlsMode::VerifyFull),
            ca: path(section, "ca"),
            certificate: path(section, "certificate"),
            key: path(section, "key"),
        };
        both_or_neither(section, config.certificate.is_some(), config.key.is_some());
        for (key, file) in [
            ("ca", &config.ca),
            ("certificate", &config.certificate),
            ("key", &config.key),
        ] {
            if let Some(error) = file.as_ref().and_then(|file| std::fs::metadata(file).err()) {
                section.refuse(
                    section.mistake(key, format!("names a file that cannot be read: {error}")),
                );
            }
        }
        if config.ca.is_some()
            && matches!(config.mode, DatabaseTlsMode::Off | DatabaseTlsMode::Prefer)
        {
            let message = "is of no use in this mode, which asks nobody who they are";
            let mistake = section.mistake("ca", message);
            section.refuse(mistake.help("set `mode` to verify-full or verify-ca"));
        }
        Some(config)
    }
}

/// `[server.tls]`: TLS towards callers. With it the port speaks nothing else; plain HTTP is refused
/// with a word of why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServerTlsConfig {
    /// PEM file of the certificate chain, the service's own first; required.
    pub certificate: PathBuf,
    /// PEM file of its private key; required.
    pub key: PathBuf,
    /// PEM file of the authorities whose certificates callers must show; default none: no caller is
    /// asked for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// With `client_ca`: `required` (default), or `optional`, which lets callers without one in and
    /// still refuses a wrong one.
    pub client_certificates: ClientCertificates,
    /// Lowest version, `1.2` (default) or `1.3`.
    pub min_version: TlsVersion,
    /// How often the files are looked at; default 5 s. A renewed pair is used for every connection
    /// from then on; one that cannot be used leaves the old one in force. SIGHUP looks at once.
    /// Costs one read of each file.
    #[serde(serialize_with = "duration")]
    pub look_every: Duration,
}

/// Whether callers must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ClientCertificates {
    /// A caller that shows none is refused in the handshake.
    Required,
    /// A caller that shows none is let in; a wrong one is refused.
    Optional,
}

impl ServerTlsConfig {
    /// The files to be read.
    pub(crate) fn files(&self) -> TlsFiles<'_> {
        TlsFiles {
            certificate: &self.certificate,
            key: &self.key,
            client_ca: self.client_ca.as_deref(),
            callers_must_show_one: self.client_certificates == ClientCertificates::Required,
            only_tls13: self.min_version == TlsVersion::V13,
        }
    }

    /// `None` if there is no such section: the port speaks plain HTTP.
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        if !section.is_given() {
            return None;
        }
        let [certificate, key] = ["certificate", "key"].map(|key| {
            let file = path(section, key);
            if !section.has(key) {
                section.refuse(section.mistake(key, "is missing: it names a PEM file"));
            }
            file
        });
        let client_ca = path(section, "client_ca");
        if client_ca.is_none() && section.has("client_certificates") {
            let message =
                "means nothing without `server.tls.client_ca`, which says whose are believed";
            section.refuse(section.mistake("client_certificates", message));
        }
        let choices = [
            ("required", ClientCertificates::Required),
            ("optional", ClientCertificates::Optional),
        ];
        let config = Self {
            client_ca,
            client_certificates: section
                .choice("client_certificates", &choices)
                .unwrap_or(ClientCertificates::Required),
            min_version: TlsVersion::read(section),
            look_every: section.positive("look_every").unwrap_or(secs(5)),
            certificate: certificate?,
            key: key?,
        };
        if let Err(why) = config.files().load() {
            section.refuse(super::Mistake::new(
                section.place(),
                format!("`{}`: {why}", section.path()),
            ));
        }
        Some(config)
    }
}

fn path(section: &Section<'_>, key: &str) -> Option<PathBuf> {
    section.string(key).map(PathBuf::from)
}

fn both_or_neither(section: &Section<'_>, certificate: bool, key: bool) {
    if certificate == key {
        return;
    }
    let (given, missing) = if key {
        ("key", "certificate")
    } else {
        ("certificate", "key")
    };
    let message = format!("is of no use without `{}.{missing}`", section.path());
    section.refuse(section.mistake(given, message));
}
