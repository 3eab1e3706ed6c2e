//! TLS towards a database server. What each database calls it differs (`sslmode`, `ssl-mode`), and
//! its defaults believe anyone; here are the few ways that make sense, under one name for both.

use std::path::PathBuf;

#[cfg(feature = "mysql")]
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
#[cfg(feature = "postgres")]
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// The settings of TLS with a database server; given, they hold, whatever the URL says. SQLite
/// knows none.
///
/// ```
/// use steadfast_cache::{Database, DatabaseOptions, DatabaseTls, DatabaseTlsMode};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), steadfast_cache::SourceError> {
/// let mut options = DatabaseOptions::default();
/// options.tls = Some(DatabaseTls {
///     mode: DatabaseTlsMode::VerifyFull,
///     ca: Some("/etc/ssl/db-ca.pem".into()),
///     client: None,
/// });
/// let database = Database::connect("postgres://app@db.internal/app", options)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseTls {
    /// The certainty about the server that is required.
    pub mode: DatabaseTlsMode,
    /// PEM file of the authorities to believe besides those of the web. Default none. Read at each
    /// new connection, as the others.
    pub ca: Option<PathBuf>,
    /// PEM files of the client's certificate chain and its key. Default none.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The certainty about a server that is required before anything is said to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatabaseTlsMode {
    /// No TLS.
    Off,
    /// TLS if the server can, and whoever answers is believed.
    Prefer,
    /// TLS, with a certificate of an authority that is believed, for whatever name.
    VerifyCa,
    /// TLS, with a certificate of an authority that is believed, for the host of the URL.
    #[default]
    VerifyFull,
}

#[cfg(feature = "mysql")]
pub(super) fn mysql(mut options: MySqlConnectOptions, tls: &DatabaseTls) -> MySqlConnectOptions {
    options = options.ssl_mode(match tls.mode {
        DatabaseTlsMode::Off => MySqlSslMode::Disabled,
        DatabaseTlsMode::Prefer => MySqlSslMode::Preferred,
        DatabaseTlsMode::VerifyCa => MySqlSslMode::VerifyCa,
        DatabaseTlsMode::VerifyFull => MySqlSslMode::VerifyIdentity,
    });
    if let Some(ca) = &tls.ca {
        options = options.ssl_ca(ca);
    }
    if let Some((chain, key)) = &tls.client {
        options = options.ssl_client_cert(chain).ssl_client_key(key);
    }
    options
}

#[cfg(feature = "postgres")]
pub(super) fn postgres(mut options: PgConnectOptions, tls: &DatabaseTls) -> PgConnectOptions {
    options = options.ssl_mode(match tls.mode {
        DatabaseTlsMode::Off => PgSslMode::Disable,
        DatabaseTlsMode::Prefer => PgSslMode::Prefer,
        DatabaseTlsMode::VerifyCa => PgSslMode::VerifyCa,
        DatabaseTlsMode::VerifyFull => PgSslMode::VerifyFull,
    });
    if let Some(ca) = &tls.ca {
        options = options.ssl_root_cert(ca);
    }
    if let Some((chain, key)) = &tls.client {
        options = options.ssl_client_cert(chain).ssl_client_key(key);
    }
    options
}

#[cfg(not(feature = "tls"))]
pub(super) fn explain(error: &sqlx::Error) -> String {
    error.to_string()
}

/// Says what a failure of TLS means to the person who has to mend it; repeats anything else in its
/// own words.
#[cfg(feature = "tls")]
pub(super) fn explain(error: &sqlx::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error as Rustls};
    let cause: Option<&Rustls> = match error {
        sqlx::Error::Io(error) => error.get_ref().and_then(|cause| cause.downcast_ref()),
        sqlx::Error::Tls(cause) => cause.downcast_ref(),
        _ => None,
    };
    match cause {
        Some(Rustls::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "TLS: its certificate is from an unknown authority: name the file of the right one (`ca`)".to_owned()
        }
        Some(Rustls::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "TLS: its certificate has expired".to_owned(),
        Some(Rustls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => format!("TLS: its certificate is for another name than the URL's host: {error}"),
        Some(Rustls::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::HandshakeFailure,
        )) => format!("TLS: it refused our certificate, or wants one: {error}"),
        Some(cause) => format!("TLS: {cause}"),
        None => error.to_string(),
    }
}
