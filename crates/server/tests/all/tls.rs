//! The service over TLS: served, renewed, refused with a word of why.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value as Json;
use steadfast_drill::waiting::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::authority::Authority;
use crate::harness::{PATIENCE, Service};

struct Secure {
    service: Service,
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Secure {
    async fn with(settings: &[(&str, &str)]) -> Self {
        let authority = Authority::new("test");
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        renew(folder.path(), &authority, 1);
        std::fs::write(file("ca.pem"), authority.pem()).unwrap();
        let (certificate, key, ca) = (file("c.pem"), file("k.pem"), file("ca.pem"));
        let mut all = vec![
            ("redis.url", "redis://127.0.0.1:1"),
            ("server.tls.certificate", certificate.as_str()),
            ("server.tls.key", key.as_str()),
            ("server.tls.look_every", "20ms"),
        ];
        let named = |value: &str| {
            if value == "CA" {
                ca.clone()
            } else {
                value.to_owned()
            }
        };
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (*name, named(value)))
            .collect();
        all.extend(settings.iter().map(|(name, value)| (*name, value.as_str())));
        let service = Service::with(&all).await;
        Self {
            service,
            authority,
            folder,
        }
    }

    async fn dial(&self, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.service.addr).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    fn trusting(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> rustls::ClientConfig {
        self.showing(None, versions)
    }

    fn showing(
        &self,
        pair: Option<(String, String)>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> rustls::ClientConfig {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match pair {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        }
    }

    /// The serial number of the certificate that a new connection is shown.
    async fn shown(&self) -> u8 {
        let stream = self.dial(self.trusting(BOTH)).await.unwrap();
        let (_, session) = stream.get_ref();
        let certificate = &session.peer_certificates().unwrap()[0];
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
        *parsed.raw_serial().last().unwrap()
    }

    async fn event(&self, name: &str) -> Json {
        let found = async {
            loop {
                let mut stream = self.dial(self.trusting(BOTH)).await.unwrap();
                let history = get(&mut stream, "/v1/history").await.unwrap();
                let body = history.split_once("\r\n\r\n").unwrap().1;
                let history: Json = serde_json::from_str(body).unwrap();
                let mut events = history["events"].as_array().unwrap().iter().rev();
                if let Some(event) = events.find(|event| event["event"] == name) {
                    return event.clone();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

static BOTH: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

fn renew(folder: &Path, authority: &Authority, serial: u64) {
    let (certificate, key) = authority.certify("localhost", serial);
    replace(&folder.join("c.pem"), &certificate);
    replace(&folder.join("k.pem"), &key);
}

/// As whoever renews does it: a look in between finds the old file or the new one, and never half
/// of one.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn get<S>(stream: &mut S, path: &str) -> std::io::Result<String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await?;
    // rustls minds an end without a goodbye; the answer is there all the same.
    read.or_else(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Ok(0),
        _ => Err(error),
    })?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_renewed_certificate_is_shown_from_the_next_connection_on_and_a_bad_one_never() {
    let secure = Secure::with(&[]).await;
    assert_eq!(secure.shown().await, 1);
    let mut old = secure.dial(secure.trusting(BOTH)).await.unwrap();

    renew(secure.folder.path(), &secure.authority, 2);
    eventually("the new one is shown", async || secure.shown().await == 2).await;
    secure.event("certificate_renewed").await;
    let answer = get(&mut old, "/health/live").await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "connections go on: {answer}"
    );

    replace(&secure.file("k.pem"), "nonsense");
    eventually("the bad one is refused", async || {
        let told = secure.event("certificate_refused").await;
        // On a busy machine, two looks may have come between the two files of the renewal above.
        told["why"].as_str().unwrap().contains("no private key")
    })
    .await;
    assert_eq!(secure.shown().await, 2, "the last good pair stays");
    let mut stream = secure.dial(secure.trusting(BOTH)).await.unwrap();
    let health = get(&mut stream, "/health").await.unwrap();
    assert!(health.contains("the old one is in force"), "{health}");
    let mut stream = secure.dial(secure.trusting(BOTH)).await.unwrap();
    let metrics = get(&mut stream, "/metrics").await.unwrap();
    let left = metrics
        .lines()
        .find_map(|line| line.strip_prefix("steadfast_tls_certificate_expiry_seconds "))
        .unwrap();
    assert!(left.parse::<f64>().unwrap() > 86_400.0 * 365.0, "{left}");
    for outcome in ["renewed", "refused"] {
        let counted = format!("steadfast_tls_reloads_total{{outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&counted), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_plain_http_to_the_tls_port_is_told_so() {
    let secure = Secure::with(&[]).await;
    let reply = secure.service.get("/health/ready").await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("use https://"), "{}", reply.text());
    assert_eq!(reply.header("content-type"), "application/problem+json");
    // And what is neither is let go of.
    let mut stream = TcpStream::connect(secure.service.addr).await.unwrap();
    stream.write_all(&[0, 1, 2, 3, 4, 5, 6, 7]).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok() && !answer.starts_with(b"HTTP"));
    assert_eq!(secure.shown().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_browsers_are_told_to_come_by_tls_only_unless_it_is_loopback_that_they_come_to() {
    let answer = async |settings: &[(&str, &str)]| {
        let secure = Secure::with(settings).await;
        let mut stream = secure.dial(secure.trusting(BOTH)).await.unwrap();
        get(&mut stream, "/health/live")
            .await
            .unwrap()
            .to_lowercase()
    };
    let told = "strict-transport-security: max-age=31536000";
    let outside = [
        ("server.listen", "0.0.0.0:0"),
        ("auth.issuer", "us"),
        ("auth.audience", "steadfast"),
        ("auth.keys.dev.algorithm", "HS256"),
        ("auth.keys.dev.secret", "0123456789abcdef0123456789abcdef"),
    ];
    assert!(answer(&outside).await.contains(told));
    assert!(!answer(&[]).await.contains("strict-transport-security"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_whoever_does_not_end_a_handshake_keeps_nobody_waiting_and_is_hung_up_on() {
    let secure = Secure::with(&[("limits.header_timeout", "8s")]).await;
    let mut silent = Vec::new();
    for n in 0..64 {
        let mut stream = TcpStream::connect(secure.service.addr).await.unwrap();
        if n % 2 == 0 {
            // The beginning of a handshake that never goes on.
            stream.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
        }
        silent.push(stream);
    }
    let begun = tokio::time::Instant::now();
    assert_eq!(secure.shown().await, 1);
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "others waited: {:?}",
        begun.elapsed()
    );
    for mut stream in silent {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(
            ended.is_ok(),
            "a silent caller holds its connection for ever"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_client_certificates_are_checked_where_they_are_asked_for() {
    let secure = Secure::with(&[("server.tls.client_ca", "CA")]).await;
    let answer = async |secure: &Secure, pair| {
        let mut stream = secure.dial(secure.showing(pair, BOTH)).await?;
        get(&mut stream, "/health/live").await
    };
    let ours = secure.authority.certify("localhost", 9);
    assert!(
        answer(&secure, Some(ours))
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    assert!(answer(&secure, None).await.is_err(), "nobody was let in");
    let theirs = Authority::new("another").certify("localhost", 9);
    assert!(
        answer(&secure, Some(theirs)).await.is_err(),
        "an unknown authority"
    );

    let optional = [
        ("server.tls.client_ca", "CA"),
        ("server.tls.client_certificates", "optional"),
    ];
    let secure = Secure::with(&optional).await;
    assert!(
        answer(&secure, None)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    let theirs = Authority::new("another").certify("localhost", 9);
    assert!(
        answer(&secure, Some(theirs)).await.is_err(),
        "a wrong one is still wrong"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_tls_older_than_the_minimum_is_refused_and_http_1_1_is_what_is_spoken() {
    static OLD: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
    let secure = Secure::with(&[("server.tls.min_version", "1.3")]).await;
    assert!(secure.dial(secure.trusting(OLD)).await.is_err());
    let mut config = secure.trusting(BOTH);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = secure.dial(config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let secure = Secure::with(&[]).await;
    assert!(secure.dial(secure.trusting(OLD)).await.is_ok());
}
