//! A certificate, its key and the authorities for callers, read from their files and held against
//! each other. The configuration reads them once to refuse what cannot be used, and the service
//! reads them again and again, so this lies below both.

use std::path::Path;
use std::sync::Arc;

use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

/// The files of the service's TLS, and what they are for.
#[derive(Clone, Copy)]
pub(crate) struct TlsFiles<'a> {
    /// The chain, the service's own certificate first.
    pub(crate) certificate: &'a Path,
    pub(crate) key: &'a Path,
    /// The authorities whose certificates callers may show.
    pub(crate) client_ca: Option<&'a Path>,
    /// Whether a caller that shows none is refused.
    pub(crate) callers_must_show_one: bool,
    /// Whether TLS 1.2 is refused.
    pub(crate) only_tls13: bool,
}

/// TLS as the files have it.
#[derive(Debug)]
pub(crate) struct LoadedTls {
    pub(crate) config: Arc<ServerConfig>,
    /// The validity of the service's own certificate: begin and end, in seconds since 1970.
    pub(crate) valid: (i64, i64),
    /// The date on which the first of the other certificates expires. Callers may find a way around
    /// it, so it is no reason to refuse the pair.
    pub(crate) others_expire: Option<i64>,
    /// A hash of the files.
    pub(crate) digest: [u8; 32],
}

impl LoadedTls {
    /// Returns why callers will refuse the service's own certificate at `now`, if they will.
    pub(crate) fn unfit(&self, now: i64) -> Option<&'static str> {
        let (begins, ends) = self.valid;
        if now < begins {
            Some("is not valid yet")
        } else if now >= ends {
            Some("has expired already")
        } else {
            None
        }
    }
}

impl TlsFiles<'_> {
    /// Reads the pair and the authorities, and holds them against each other. What is told of a
    /// failure never holds the key.
    pub(crate) fn load(self) -> Result<LoadedTls, String> {
        let files = Contents::read(self)?;
        let chain = certificates(&files.certificate, self.certificate)?;
        let validities = chain.iter().map(validity).collect::<Result<Vec<_>, _>>()?;
        let valid = validities.first().copied().unwrap_or_default();
        let others_expire = validities.iter().skip(1).map(|(_, ends)| *ends).min();
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|_| format!("{} holds no private key in PEM", self.key.display()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        static BOTH: &[&SupportedProtocolVersion] =
            &[&rustls::version::TLS13, &rustls::version::TLS12];
        let versions = if self.only_tls13 { &BOTH[..1] } else { BOTH };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = match (self.client_ca, &files.client_ca) {
            (Some(path), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(pem, path)? {
                    roots.add(authority).map_err(|error| {
                        format!("{}: an authority cannot be used: {error}", path.display())
                    })?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if self.callers_must_show_one {
                    verifier
                } else {
                    verifier.allow_unauthenticated()
                };
                let verifier = verifier.build().map_err(|error| error.to_string())?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            format!(
                "{} and {} do not belong together, or cannot be used: {error}",
                self.certificate.display(),
                self.key.display()
            )
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(LoadedTls {
            config: Arc::new(config),
            valid,
            others_expire,
            digest: files.digest(),
        })
    }
}

struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: TlsFiles<'_>) -> Result<Self, String> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        Ok(Self {
            certificate: read(files.certificate)?,
            key: read(files.key)?,
            client_ca: files.client_ca.map(read).transpose()?,
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

/// Returns begin and end of a certificate's validity.
fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("a certificate cannot be read: {error}"))?;
    let validity = parsed.validity();
    Ok((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}
