//! A service that asks who its callers are, tokens of every kind, and an identity provider.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value as Json, json};
use steadfast_drill::waiting::until;
use steadfast_server::auth::{Role, TokenSpec, issue};
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{PATIENCE, Reply, Service};

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A service that asks who its callers are, with its audit log.
pub(crate) struct Guarded {
    pub(crate) service: Service,
    pub(crate) config: Config,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) fn base(extra: &str) -> String {
    format!("[auth]\nissuer = \"us\"\naudience = \"steadfast\"\n{extra}")
}

impl Guarded {
    pub(crate) async fn with(auth: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let audit = folder.path().join("audit.jsonl");
        let text = format!(
            "{SAMPLE}\n{}",
            auth.replace(
                "[auth]",
                &format!("[auth]\naudit = \"{}\"", audit.display())
            )
        );
        let database = format!("sqlite://{}", folder.path().join("test.db").display());
        let sources = Sources::new()
            .text("test", &text)
            .flag("test", "database.url", database)
            .flag("test", "redis.url", "redis://127.0.0.1:1")
            .flag("test", "server.trusted_proxies", "127.0.0.0/8");
        let config = Config::load(&sources).unwrap();
        let service = Service::from_app(App::start(config.clone()).await.unwrap()).await;
        Self {
            service,
            config,
            folder,
        }
    }

    pub(crate) async fn hs() -> Self {
        Self::with(&base(&format!(
            "[auth.keys.dev]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"
        )))
        .await
    }

    pub(crate) fn token(&self, role: Role) -> String {
        use secrecy::ExposeSecret;
        let order = TokenSpec {
            subject: "ada",
            role,
            lifetime: PATIENCE * 3,
            key: None,
            private_key: None,
            now: now(),
        };
        issue(self.config.auth.as_ref().unwrap(), &order)
            .unwrap()
            .expose_secret()
            .to_owned()
    }

    pub(crate) async fn status_with(&self, token: &str) -> Reply {
        self.service
            .get_with(
                "/v1/status",
                &[("authorization", &format!("Bearer {token}"))],
            )
            .await
    }

    /// The lines of the audit log, once there are so many.
    pub(crate) async fn audit(&self, lines: usize) -> Vec<Json> {
        let path = self.folder.path().join("audit.jsonl");
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                if text.lines().count() >= lines && text.ends_with('\n') {
                    return text;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        });
        let text = found.await.expect("the audit log never has so many lines");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

pub(crate) fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

pub(crate) fn claims() -> Json {
    json!({"iss": "us", "aud": "steadfast", "sub": "mallory", "exp": now() + 60, "roles": ["admin"]})
}

pub(crate) fn signed(algorithm: Algorithm, kid: &str, claims: &Json, key: &EncodingKey) -> String {
    let mut header = Header::new(algorithm);
    header.kid = Some(kid.to_owned());
    encode(&header, claims, key).unwrap()
}

pub(crate) fn hs(claims: &Json) -> String {
    signed(
        Algorithm::HS256,
        "dev",
        claims,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
}

pub(crate) fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(LETTERS[(word >> (18 - 6 * place)) as usize & 63] as char);
        }
    }
    text
}

/// Refused, as a problem with a challenge, and written down with its reason.
pub(crate) async fn refused(guarded: &Guarded, token: &str, reason: &str, seen: &mut usize) {
    let reply = guarded.status_with(token).await;
    assert_eq!(reply.status, 401, "{reason}: {}", reply.text());
    assert_eq!(reply.json()["type"], "/problems/unauthorized", "{reason}");
    assert!(
        reply.header("www-authenticate").starts_with("Bearer"),
        "{reason}"
    );
    *seen += 1;
    let lines = guarded.audit(*seen).await;
    let last = &lines[*seen - 1];
    assert_eq!(last["reason"], reason, "{last}");
    assert_eq!(last["outcome"], "unauthorized");
    assert_eq!(
        last["who"],
        Json::Null,
        "whoever is not believed is not named"
    );
}

pub(crate) fn pem(name: &str, folder: &tempfile::TempDir, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::File::create(&path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    path.display().to_string()
}

/// An identity provider that can change its keys, and counts who asks for them.
pub(crate) struct Provider {
    pub(crate) url: String,
    pub(crate) document: Arc<Mutex<String>>,
    pub(crate) asked: Arc<AtomicUsize>,
    /// Milliseconds until it answers.
    pub(crate) delay: Arc<AtomicUsize>,
    _task: tokio::task::JoinSet<()>,
}

impl Provider {
    pub(crate) async fn start(document: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let document = Arc::new(Mutex::new(document));
        let asked = Arc::new(AtomicUsize::new(0));
        let mut task = tokio::task::JoinSet::new();
        let delay = Arc::new(AtomicUsize::new(0));
        let (body, count, wait) = (document.clone(), asked.clone(), delay.clone());
        task.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Relaxed);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let wait = wait.load(Relaxed) as u64;
                tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
                let body = body.lock().clone();
                let reply = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        });
        Self {
            url,
            document,
            asked,
            delay,
            _task: task,
        }
    }
}

pub(crate) fn published(keys: &[(&str, Algorithm, &EncodingKey)]) -> String {
    let keys = keys
        .iter()
        .map(|(kid, algorithm, key)| {
            let mut jwk = Jwk::from_encoding_key(key, *algorithm).unwrap();
            jwk.common.key_id = Some((*kid).to_owned());
            jwk
        })
        .collect();
    serde_json::to_string(&JwkSet { keys }).unwrap()
}

pub(crate) fn ec() -> EncodingKey {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
}

/// Sends a request and hangs up as soon as it is under way.
pub(crate) async fn hang_up(
    guarded: &Guarded,
    head: &str,
    body: &str,
    under_way: impl Fn() -> bool,
) {
    let mut stream = tokio::net::TcpStream::connect(guarded.service.addr)
        .await
        .unwrap();
    let request = format!(
        "{head}\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    until("the request is under way", under_way).await;
}
