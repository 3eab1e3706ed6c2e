//! TLS towards Redis by rustls, and plain words for each way in which it fails.
//!
//! Certificates from files may live for a day only, and are renewed in place. So the files are
//! looked at before each connection, and read again if they have changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;

use crate::clock;
use crate::error::ConfigError;
use crate::error::connect::ConnectError;

pub(crate) type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// The way to speak TLS. The default trusts the roots of the system and asks for at least TLS 1.2.
///
/// Files are read when they are named, and again before a connection is made if they have changed
/// since: certificates that are renewed in place are taken without a restart. What has changed and
/// cannot be used, a half-written file say, is warned of once, and those that were read before stay
/// in use. The roots of the system are read once.
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
    ca_file: Option<PathBuf>,
    /// The files of the client's chain and of its key.
    client_files: Option<(PathBuf, PathBuf)>,
    prepared: Option<Arc<Mutex<Prepared>>>,
}

/// The configuration in use, which all connections of a client share.
#[derive(Debug)]
struct Prepared {
    config: Arc<ClientConfig>,
    /// The state of the files when they were read for it.
    read: Vec<FileState>,
    /// Their state when they could not be used, and that was told.
    refused: Vec<FileState>,
}

/// The time of the last change of a file, and its size. `None` if it cannot be looked at.
type FileState = Option<(SystemTime, u64)>;

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
        let mut tls = self.ca_pem(&pem)?;
        tls.ca_file = Some(path.as_ref().to_owned());
        Ok(tls)
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
        self.ca_file = None;
        Ok(self)
    }

    /// Shows this certificate chain (PEM file) with its key (PEM file) to a server that asks for
    /// one. Files that are renewed are read again, both together: see [`Tls`].
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
        let (chain, key) = (chain.as_ref(), key.as_ref());
        let mut tls = self.client_certificate_pem(&read(chain)?, &read(key)?)?;
        tls.client_files = Some((chain.to_owned(), key.to_owned()));
        Ok(tls)
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
        self.client_files = None;
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

    /// Builds the configuration at the door, where what cannot be used is refused.
    pub(crate) fn prepare(&mut self) -> Result<(), ConfigError> {
        if self.roots.is_none() {
            self.roots = Some(Arc::new(system_roots()?));
        }
        let prepared = Prepared {
            config: self.configuration()?,
            read: Vec::new(),
            refused: Vec::new(),
        };
        self.prepared = Some(Arc::new(Mutex::new(prepared)));
        Ok(())
    }

    fn configuration(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        let none = || Arc::new(RootCertStore::empty());
        let roots = self.roots.clone().unwrap_or_else(none);
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
        Ok(Arc::new(config))
    }

    /// Returns the configuration, of files that have changed anew.
    async fn current(&self) -> Option<Arc<ClientConfig>> {
        let prepared = self.prepared.as_ref()?;
        let client = self
            .client_files
            .iter()
            .flat_map(|(chain, key)| [chain, key]);
        let mut found: Vec<FileState> = Vec::new();
        // Before they are read: a change from now on is one for the next connection.
        for file in self.ca_file.iter().chain(client) {
            let state = tokio::fs::metadata(file).await.ok();
            found.push(state.and_then(|state| Some((state.modified().ok()?, state.len()))));
        }
        if prepared.lock().read != found {
            match self.read_again().await {
                Ok(config) => {
                    let mut prepared = prepared.lock();
                    (prepared.config, prepared.read) = (config, found);
                }
                Err(error) => {
                    let before = std::mem::replace(&mut prepared.lock().refused, found.clone());
                    // Without the lock, which every new connection asks for.
                    if before != found {
                        tracing::warn!(%error, "files for TLS have changed, and those before stay in use");
                    }
                }
            }
        }
        let config = Arc::clone(&prepared.lock().config);
        Some(config)
    }

    async fn read_again(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        let read = async |path: &Path| {
            let read = tokio::fs::read(path).await;
            read.map_err(|error| unreadable(path, &error))
        };
        let mut tls = self.clone();
        if let Some(file) = &self.ca_file {
            tls = tls.ca_pem(&read(file).await?)?;
        }
        if let Some((chain, key)) = &self.client_files {
            tls = tls.client_certificate_pem(&read(chain).await?, &read(key).await?)?;
        }
        tls.configuration()
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
        let config = clock::timeout(limit, self.current()).await;
        let config = config.ok_or_else(|| {
            failed(format!(
                "the files of certificates were not read within {limit:?}"
            ))
        })?;
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
    std::fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> ConfigError {
    ConfigError::Tls {
        why: format!("cannot read {}: {error}", path.display()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn renew(folder: &Path) {
        let key = rcgen::generate_simple_self_signed(["us".to_owned()]).expect("a certificate");
        let chain = std::fs::write(folder.join("chain.pem"), key.cert.pem());
        chain.expect("it is written");
        let key = std::fs::write(folder.join("key.pem"), key.signing_key.serialize_pem());
        key.expect("it is written");
    }

    #[tokio::test]
    async fn c17_certificates_that_are_renewed_in_their_files_are_taken_by_the_next_connection() {
        let folder = tempfile::tempdir().expect("a folder");
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| folder.path().join(name));
        renew(folder.path());
        let tls = Tls::new().ca_file(&chain).expect("it is one");
        let mut tls = tls.client_certificate(&chain, &key).expect("it is one");
        tls.prepare().expect("they go together");
        let current = async || tls.current().await.expect("it is prepared");
        let first = current().await;
        assert!(Arc::ptr_eq(&first, &current().await), "nothing has changed");
        renew(folder.path());
        let second = current().await;
        assert!(!Arc::ptr_eq(&first, &second), "they were renewed");
        // Half written: what is in use stays in use. That is told of without the lock that every
        // new connection asks for.
        let whole = std::fs::read(&key).expect("it is there");
        std::fs::write(&key, &whole[..whole.len() / 2]).expect("it is written");
        let free = Arc::new(Mutex::new(Vec::new()));
        let (prepared, told) = (tls.prepared.clone(), Arc::clone(&free));
        let listens = crate::event::listener::listen(move || {
            let is_free = prepared.as_ref().is_some_and(|p| p.try_lock().is_some());
            told.lock().push(is_free);
        });
        assert!(Arc::ptr_eq(&second, &current().await));
        assert!(Arc::ptr_eq(&second, &current().await));
        assert_eq!(*free.lock(), [true], "once");
        drop(listens);
        std::fs::remove_file(&key).expect("it is there");
        assert!(Arc::ptr_eq(&second, &current().await));
        renew(folder.path());
        let third = current().await;
        assert!(!Arc::ptr_eq(&second, &third));
        assert!(Arc::ptr_eq(&third, &current().await), "and is read once");
    }
}
