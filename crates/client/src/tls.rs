//! TLS towards Redis by rustls, and plain words for each way in which it fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;

use crate::clock;
use crate::error::ConfigError;
use crate::error::connect::ConnectError;

pub(crate) type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// The way to speak TLS. The default trusts the roots of the system and asks for at least TLS 1.2.
///
/// ```no_run
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let tls = steadfast::Tls::new().ca_file("/etc/redis/ca.pem")?.server_name("redis.internal");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tls {
    roots: Option<Arc<RootCertStore>>,
    client: Option<Arc<ClientIdentity>>,
    server_name: Option<String>,
    only_tls13: bool,
    config: Option<Arc<ClientConfig>>,
}

struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientIdentity({} certificates)", self.chain.len())
    }
}

impl Tls {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this PEM file instead of the system's roots.
    ///
    /// # Errors
    /// The file cannot be read or holds no certificate.
    pub fn ca_file(self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let pem = read(path.as_ref())?;
        self.ca_pem(&pem)
    }

    /// Trusts these certificates (PEM) instead of the system's roots.
    ///
    /// # Errors
    /// It holds no certificate.
    pub fn ca_pem(mut self, pem: &[u8]) -> Result<Self, ConfigError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem, "the CA")? {
            roots.add(certificate).map_err(|error| ConfigError::Tls {
                why: format!("a certificate of the CA cannot be used: {error}"),
            })?;
        }
        self.roots = Some(Arc::new(roots));
        Ok(self)
    }

    /// Shows this certificate chain (PEM file) with its key (PEM file) to a server that asks for
    /// one.
    ///
    /// ```no_run
    /// use steadfast::{Client, Tls};
    ///
    /// # fn main() -> Result<(), steadfast::ConfigError> {
    /// let tls = Tls::new().ca_file("ca.pem")?.client_certificate("client.pem", "client.key")?;
    /// let builder = Client::builder("rediss://redis.internal")?.tls(tls);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub fn client_certificate(
        self,
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, ConfigError> {
        let (chain, key) = (read(chain.as_ref())?, read(key.as_ref())?);
        self.client_certificate_pem(&chain, &key)
    }

    /// Shows this certificate chain, as [`client_certificate`](Self::client_certificate) does, from
    /// memory.
    ///
    /// # Errors
    /// One does not hold what it should.
    pub fn client_certificate_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self, ConfigError> {
        let chain = certificates(chain, "the client certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| ConfigError::Tls {
            why: "the client key holds no private key in PEM".into(),
        })?;
        self.client = Some(Arc::new(ClientIdentity { chain, key }));
        Ok(self)
    }

    /// Expects this name in the server's certificate instead of the URL's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Refuses TLS 1.2.
    pub fn only_tls13(mut self) -> Self {
        self.only_tls13 = true;
        self
    }

    /// Builds the configuration once, at the door.
    pub(crate) fn prepare(&mut self) -> Result<(), ConfigError> {
        let roots = match &self.roots {
            Some(roots) => Arc::clone(roots),
            None => Arc::new(system_roots()?),
        };
        static BOTH: &[&SupportedProtocolVersion] =
            &[&rustls::version::TLS13, &rustls::version::TLS12];
        let versions = if self.only_tls13 { &BOTH[..1] } else { BOTH };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(tls_error)?
            .with_root_certificates(roots);
        let config = match &self.client {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(tls_error)?,
            None => builder.with_no_client_auth(),
        };
        self.config = Some(Arc::new(config));
        Ok(())
    }

    /// Speaks TLS on a socket that is connected to `host` at `address`.
    pub(crate) async fn wrap(
        &self,
        tcp: TcpStream,
        host: &str,
        address: &str,
        limit: Duration,
    ) -> Result<TlsStream, ConnectError> {
        let failed = |cause| ConnectError::Tls {
            address: address.to_owned(),
            cause,
        };
        let name = self.name_for(host).map_err(failed)?;
        let config = self.config.clone();
        let config = config.ok_or_else(|| failed("tls is not prepared".into()))?;
        let connector = tokio_rustls::TlsConnector::from(config);
        clock::timeout(limit, connector.connect(name, tcp))
            .await
            .ok_or_else(|| {
                failed(format!(
                    "no answer within {limit:?}: does the server speak TLS on this port?"
                ))
            })?
            .map_err(|error| failed(explain(&error)))
    }

    fn name_for(&self, host: &str) -> Result<ServerName<'static>, String> {
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned())
            .map_err(|_| format!("`{name}` is not a name that a certificate can carry"))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| ConfigError::Tls {
        why: format!("cannot read {}: {error}", path.display()),
    })
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(ConfigError::Tls {
            why: format!("{what} holds no certificate in PEM"),
        }),
    }
}

fn system_roots() -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    for certificate in loaded.certs {
        // Some systems carry roots that cannot be parsed; the others still serve.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(ConfigError::Tls {
            why: "this system has no root certificates: install ca-certificates or name a CA file"
                .into(),
        });
    }
    Ok(roots)
}

fn tls_error(error: rustls::Error) -> ConfigError {
    ConfigError::Tls {
        why: error.to_string(),
    }
}

/// Version and cipher suite.
pub(crate) fn facts(stream: &TlsStream) -> Option<String> {
    let (_, session) = stream.get_ref();
    let version = session.protocol_version()?.as_str()?;
    let suite = session.negotiated_cipher_suite()?.suite();
    Some(format!("{version} {}", suite.as_str()?))
}

/// Says what a failed handshake means to the person who has to mend it.
pub(crate) fn explain(error: &std::io::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error as Rustls};
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Rustls>()) else {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
                "the server closed the connection during the TLS handshake: does it speak TLS on this port, \
                 and does it want a client certificate?"
                    .into()
            }
            _ => error.to_string(),
        };
    };
    match tls {
        Rustls::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the server's certificate has expired".into(),
        Rustls::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "the server's certificate is not valid yet".into(),
        Rustls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("the server's certificate is for another name: {tls}"),
        Rustls::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server's certificate is from an unknown CA: name its CA file".into()
        }
        Rustls::InvalidMessage(_) => {
            "the server does not speak TLS on this port: use redis:// or its TLS port".into()
        }
        Rustls::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::HandshakeFailure,
        ) => format!("the server refused our certificate, or wants one: {tls}"),
        other => other.to_string(),
    }
}
