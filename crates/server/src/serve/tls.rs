//! A certificate is renewed every few weeks by something that never restarts its users, so the files are looked at again and again
//! and what they hold is used from the next connection on. A pair that cannot be used (half written, of two different
//! renewals, expired) changes nothing: the old one stays in force and the trouble is told, long before it is an outage.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use parking_lot::Mutex;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::wire::Wire;
use crate::app::{App, unix_ms};
use crate::config::{ClientCertificates, ServerTlsConfig, TlsVersion};
use crate::health::{Check, Status};

/// What the files come to.
#[derive(Debug)]
pub(crate) struct Loaded {
    config: Arc<ServerConfig>,
    /// When the first certificate of the chain expires, in seconds since 1970.
    expires_at: i64,
    /// Of the files.
    digest: [u8; 32],
}

/// Reads the pair and the authorities, and holds them against each other. What is told of a failure never holds the key.
pub(crate) fn load(settings: &ServerTlsConfig) -> Result<Loaded, String> {
    let files = Files::read(settings)?;
    let chain = certificates(&files.certificate, &settings.certificate)?;
    let expires_at = chain
        .iter()
        .map(expiry)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .min()
        .unwrap_or_default();
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|_| format!("{} holds no private key in PEM", settings.key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    static BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
    let versions = match settings.min_version {
        TlsVersion::V13 => &BOTH[..1],
        TlsVersion::V12 => BOTH,
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| error.to_string())?;
    let builder = match (&settings.client_ca, &files.client_ca) {
        (Some(path), Some(pem)) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(pem, path)? {
                roots.add(authority).map_err(|error| {
                    format!("{}: an authority cannot be used: {error}", path.display())
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match settings.client_certificates {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                ClientCertificates::Required => verifier,
            };
            let verifier = verifier.build().map_err(|error| error.to_string())?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        format!(
            "{} and {} do not belong together, or cannot be used: {error}",
            settings.certificate.display(),
            settings.key.display()
        )
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Loaded {
        config: Arc::new(config),
        expires_at,
        digest: files.digest(),
    })
}

struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(settings: &ServerTlsConfig) -> Result<Self, String> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        Ok(Self {
            certificate: read(&settings.certificate)?,
            key: read(&settings.key)?,
            client_ca: settings.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for file in [
            Some(&self.certificate),
            Some(&self.key),
            self.client_ca.as_ref(),
        ] {
            let bytes = file.map_or(&[][..], Vec::as_slice);
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        hasher.finalize().into()
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{} holds no certificate in PEM", path.display())),
    }
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("a certificate cannot be read: {error}"))?;
    Ok(parsed.validity().not_after.timestamp())
}

/// The pair in force, and how it fares.
pub(crate) struct Certificates {
    settings: ServerTlsConfig,
    loaded: ArcSwap<Loaded>,
    /// Why what lies in the files now is not in force.
    trouble: Mutex<Option<String>>,
}

/// What came of a look at the files.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// They are as they were.
    Same,
    /// A new pair is in force.
    Renewed,
    /// Something new is there and cannot be used.
    Refused(String),
}

/// The health says so when the certificate has no longer to live than this.
const SOON: i64 = 7 * 86_400;

impl Certificates {
    /// The pair as the files have it now. One that has expired is used all the same, for callers that do not mind, and told.
    pub(crate) fn start(settings: &ServerTlsConfig) -> Result<Self, String> {
        let certificates = Self {
            loaded: ArcSwap::from_pointee(load(settings)?),
            settings: settings.clone(),
            trouble: Mutex::default(),
        };
        if certificates.left() <= 0 {
            tracing::error!(
                certificate = %settings.certificate.display(),
                "the certificate of the service has expired: callers will refuse it"
            );
        }
        certificates.set_gauges();
        Ok(certificates)
    }

    /// For the next connection.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.loaded.load().config)
    }

    /// Seconds until the certificate in force expires.
    fn left(&self) -> i64 {
        let now = i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX);
        self.loaded.load().expires_at.saturating_sub(now)
    }

    /// Reads the files again; takes up a pair that is new and can be used.
    fn look(&self) -> Look {
        match load(&self.settings) {
            Ok(loaded) if loaded.digest == self.loaded.load().digest => {
                // Whatever was wrong in between is undone.
                *self.trouble.lock() = None;
                Look::Same
            }
            Ok(loaded) => {
                let old = self.loaded.swap(Arc::new(loaded));
                if self.left() <= 0 {
                    self.loaded.store(old);
                    let path = self.settings.certificate.display();
                    return self.refuse(format!("{path} has expired already"));
                }
                *self.trouble.lock() = None;
                Look::Renewed
            }
            Err(why) => self.refuse(why),
        }
    }

    /// The same trouble is told once.
    fn refuse(&self, why: String) -> Look {
        let mut trouble = self.trouble.lock();
        if trouble.as_ref() == Some(&why) {
            return Look::Same;
        }
        *trouble = Some(why.clone());
        Look::Refused(why)
    }

    pub(crate) fn set_gauges(&self) {
        gauge!("steadfast_tls_certificate_expiry_seconds").set(self.left() as f64);
    }

    /// As `/health` shows it.
    pub(crate) fn check(&self) -> Check {
        let left = self.left();
        let days = left / 86_400;
        if let Some(why) = &*self.trouble.lock() {
            let message = format!("the old one is in force, because {why}");
            return Check::new(Status::Degraded, message);
        }
        match left {
            ..=0 => Check::new(Status::Degraded, "has expired: callers will refuse it"),
            1..=SOON => Check::new(
                Status::Degraded,
                format!("expires within {} days", days + 1),
            ),
            _ => Check::new(Status::Healthy, format!("expires in {days} days")),
        }
    }
}

/// Looks for ever.
pub(crate) async fn keep(app: App) {
    let Some(every) = app.config().server.tls.as_ref().map(|tls| tls.look_every) else {
        return;
    };
    loop {
        tokio::time::sleep(every).await;
        look(&app).await;
    }
}

/// Looks now, and tells what came of it.
pub(crate) async fn look(app: &App) {
    let Some(certificates) = app.certificates().cloned() else {
        return;
    };
    let looked = tokio::task::spawn_blocking(move || certificates.look()).await;
    let told = |outcome: &'static str| {
        counter!("steadfast_tls_reloads_total", "outcome" => outcome).increment(1);
    };
    match looked {
        Ok(Look::Renewed) => {
            told("renewed");
            tracing::info!("a renewed certificate is in force for new connections");
            app.tell("certificate_renewed", serde_json::json!({}));
        }
        Ok(Look::Refused(why)) => {
            told("refused");
            tracing::error!(
                why,
                "a new certificate cannot be used; the old one stays in force"
            );
            app.tell("certificate_refused", serde_json::json!({ "why": why }));
        }
        Ok(Look::Same) | Err(_) => {}
    }
}

/// Why there is no TLS with a caller.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("it spoke plain HTTP to a port for TLS")]
    Plain,
    #[error("it did not end the handshake within `limits.header_timeout`")]
    Late,
    #[error("the handshake failed: {0}")]
    Failed(#[from] io::Error),
}

/// The handshake with a caller, within `limit`.
pub(super) async fn accept(
    config: Arc<ServerConfig>,
    wire: Wire,
    limit: Duration,
) -> Result<TlsStream<Wire>, Refused> {
    let handshake = async {
        let mut first = [0];
        wire.peek(&mut first).await?;
        if first[0].is_ascii_alphabetic() {
            say_that_it_is_tls(wire).await?;
            return Err(Refused::Plain);
        }
        Ok(TlsAcceptor::from(config).accept(wire).await?)
    };
    let outcome = timeout(limit, handshake)
        .await
        .unwrap_or(Err(Refused::Late));
    if let Err(why) = &outcome {
        let reason = match why {
            Refused::Plain => "plain_http",
            Refused::Late => "timeout",
            Refused::Failed(_) => "failed",
        };
        counter!("steadfast_tls_refused_total", "reason" => reason).increment(1);
    }
    outcome
}

/// A probe that was not told of TLS should fail with a word of why, and not with what looks like a broken network.
async fn say_that_it_is_tls(mut wire: Wire) -> io::Result<()> {
    const BODY: &str = "{\"type\":\"about:blank\",\"title\":\"Bad Request\",\"status\":400,\"detail\":\"this port speaks TLS: use https://\"}";
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{BODY}",
        BODY.len()
    );
    wire.write_all(answer.as_bytes()).await?;
    wire.shutdown().await?;
    // Closed with words unread, the answer could be lost: they are read, as far as they are few.
    let mut rest = [0; 1024];
    for _ in 0..16 {
        if wire.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{Config, Sources};

    fn settings(folder: &Path, extra: &str) -> Result<ServerTlsConfig, String> {
        let text = format!(
            "[server.tls]\ncertificate = '{0}/c.pem'\nkey = '{0}/k.pem'\n{extra}",
            folder.display()
        );
        Config::load(&Sources::new().text("t", &text))
            .map(|config| config.server.tls.unwrap())
            .map_err(|error| error.to_string())
    }

    fn write(folder: &Path, last_year: i32) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("c.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("k.pem"), key.serialize_pem()).unwrap();
    }

    #[test]
    fn s6_a_pair_that_cannot_be_used_leaves_the_old_one_in_force_and_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, 2998);
        let certificates = Certificates::start(&settings(folder, "").unwrap()).unwrap();
        let first = certificates.current();
        assert_eq!(certificates.look(), Look::Same);
        assert_eq!(certificates.check().status, Status::Healthy);

        // Half of a renewal: the key is not there yet.
        let old_key = std::fs::read(folder.join("k.pem")).unwrap();
        write(folder, 2999);
        let new_key = std::fs::read(folder.join("k.pem")).unwrap();
        std::fs::write(folder.join("k.pem"), old_key).unwrap();
        let Look::Refused(why) = certificates.look() else {
            panic!("two halves were taken for a pair");
        };
        assert!(why.contains("do not belong together"), "{why}");
        assert_eq!(certificates.look(), Look::Same, "told once");
        assert_eq!(certificates.check().status, Status::Degraded);
        assert!(Arc::ptr_eq(&first, &certificates.current()));

        std::fs::write(folder.join("k.pem"), new_key).unwrap();
        assert_eq!(certificates.look(), Look::Renewed);
        assert!(!Arc::ptr_eq(&first, &certificates.current()));
        assert_eq!(certificates.check().status, Status::Healthy);
        let second = certificates.current();

        for broken in [
            "",
            "not a certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(folder.join("c.pem"), broken).unwrap();
            let looked = certificates.look();
            assert_ne!(looked, Look::Renewed, "{broken:?}");
        }
        write(folder, 2002);
        assert!(matches!(certificates.look(), Look::Refused(why) if why.contains("expired")));
        std::fs::remove_file(folder.join("c.pem")).unwrap();
        assert!(
            matches!(certificates.look(), Look::Refused(why) if why.contains("cannot be read"))
        );
        assert!(Arc::ptr_eq(&second, &certificates.current()));
    }

    #[test]
    fn s6_files_that_make_no_service_are_named_before_it_starts() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let refused = |extra: &str| settings(folder, extra).unwrap_err();
        assert!(refused("").contains("cannot be read"));
        write(folder, 2999);
        assert!(settings(folder, "min_version = '1.3'").is_ok());
        assert!(refused("client_ca = '/nowhere/ca.pem'").contains("/nowhere/ca.pem"));
        assert!(refused("client_certificates = 'optional'").contains("client_ca"));
        let missing = Config::load(&Sources::new().text("t", "[server.tls]\nkey = 'k'"));
        let missing = missing.unwrap_err().to_string();
        assert!(
            missing.contains("`server.tls.certificate` is missing"),
            "{missing}"
        );
        std::fs::write(folder.join("k.pem"), "hunter2").unwrap();
        let told = refused("");
        assert!(
            told.contains("no private key") && !told.contains("hunter2"),
            "{told}"
        );
    }
}
