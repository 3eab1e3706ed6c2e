//! C16 from the configuration: the service signs in to Redis by tokens of Entra ID, as Azure gives
//! them to a program on one of its machines, to a developer at a desk, to an application with a
//! secret and to a pod with a service account. The last two ask a tenant over TLS, which is played
//! here behind an authority of the test's own.

use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64url::encode;
use steadfast_drill::process::Redis;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::program::{Lines, PATIENCE, run, steadfast};
use crate::web::get;

const OBJECT: &str = "0f0e0d0c-1111-2222-3333-444455556666";

fn token(n: u32) -> String {
    let claims = encode(format!(r#"{{"oid":"{OBJECT}","n":{n}}}"#).as_bytes());
    format!("header.{claims}.sealed-by-entra-{n}")
}

fn in_seconds(seconds: u64) -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "a token says by the calendar when it expires"
    )]
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    now.as_secs() + seconds
}

async fn redis_taking(tokens: u32) -> Redis {
    let passwords: Vec<String> = (0..tokens).map(|n| format!(">{}", token(n))).collect();
    let user = format!("{OBJECT} on {} ~* &* +@all", passwords.join(" "));
    Redis::builder().acl(user).start().await.unwrap()
}

struct Service {
    child: Child,
    addr: std::net::SocketAddr,
    log: std::path::PathBuf,
    _lines: Lines,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `identity` is the setting of that name, with those that go with it.
fn serve(folder: &Path, redis: &Redis, identity: &str, environment: &[(&str, &str)]) -> Service {
    let config = folder.join("steadfast.toml");
    let text = format!(
        "[log]\nlevel = 'trace'\n[database]\nurl = 'sqlite://{}'\n[redis]\nurl = 'redis://{}'\n\
         [redis.credentials]\nsource = 'entra'\nidentity = {identity}\n",
        folder.join("t.db").display(),
        redis.addr()
    );
    std::fs::write(&config, text).unwrap();
    let log = folder.join("log");
    let mut command = steadfast(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&config).envs(environment.iter().copied());
    let mut child = command
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut lines = Lines::of(&mut child);
    let first = lines.next();
    let addr = first.rsplit_once("://").unwrap().1.parse().unwrap();
    Service {
        child,
        addr,
        log,
        _lines: lines,
    }
}

/// Once Redis is in use, and that long enough for a token to have been renewed.
async fn signed_in_and_renewed(service: &Service) {
    let seen = async {
        loop {
            let health = get(service.addr, "/health").await.json();
            let history = get(service.addr, "/v1/history").await.body;
            if health["checks"]["redis"]["status"] == "healthy"
                && history.contains("reauthenticated")
            {
                assert!(!history.contains("\"lost\""), "{history}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, seen).await;
    let history = get(service.addr, "/v1/history").await.body;
    assert!(outcome.is_ok(), "never signed in and renewed: {history}");
    let metrics = get(service.addr, "/metrics").await.body;
    assert!(metrics.contains("steadfast_credentials_refresh_total{outcome=\"success\"}"));
    let log = std::fs::read_to_string(&service.log).unwrap();
    assert!(log.lines().count() > 10, "it was not loud");
    for secret in [
        "sealed-by-entra",
        "an-identity-header",
        "an-application-secret",
        "a-service-account-token",
    ] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "the log shows {secret}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c16_a_service_signs_in_by_the_identity_of_its_machine_and_renews_it() {
    let asked = Arc::new(AtomicU32::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/msi/token", listener.local_addr().unwrap());
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 8192];
            let read = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
            assert!(
                request.contains("x-identity-header: an-identity-header"),
                "{request}"
            );
            assert!(request.contains("redis.azure.com"), "{request}");
            let body = format!(
                r#"{{"access_token":"{}","expires_on":"{}","resource":"https://redis.azure.com","token_type":"Bearer"}}"#,
                token(count.fetch_add(1, Relaxed)),
                in_seconds(6)
            );
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let redis = redis_taking(200).await;
    let folder = tempfile::tempdir().unwrap();
    let environment = [
        ("IDENTITY_ENDPOINT", endpoint.as_str()),
        ("IDENTITY_HEADER", "an-identity-header"),
    ];
    let service = serve(folder.path(), &redis, "'managed_identity'", &environment);
    signed_in_and_renewed(&service).await;
    assert!(asked.load(Relaxed) >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c16_a_service_signs_in_as_whoever_is_signed_in_at_the_desk() {
    use std::os::unix::fs::PermissionsExt;
    let redis = redis_taking(2).await;
    let folder = tempfile::tempdir().unwrap();
    // Says another token the second time.
    let az = folder.path().join("az");
    let said = |n: u32| {
        format!(
            r#"{{"accessToken":"{}","expires_on":'$(($(date +%s) + 6))',"tokenType":"Bearer"}}"#,
            token(n)
        )
    };
    let script = format!(
        "#!/bin/sh\nasked={}/asked\nif [ -e $asked ]; then echo '{}'; else touch $asked; echo '{}'; fi\n",
        folder.path().display(),
        said(1),
        said(0)
    );
    std::fs::write(&az, script).unwrap();
    std::fs::set_permissions(&az, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let service = serve(folder.path(), &redis, "'azure_cli'", &[("PATH", &path)]);
    signed_in_and_renewed(&service).await;
}

/// A tenant's token endpoint, as the programs of this machine reach `login.microsoftonline.com`.
struct Tenant {
    url: String,
    /// The authority that vouches for it.
    authority: std::path::PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tenant {
    async fn start(folder: &Path) -> Self {
        use tokio_rustls::rustls::ServerConfig;
        use tokio_rustls::rustls::pki_types::PrivateKeyDer;

        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let authority = folder.join("authority.pem");
        std::fs::write(&authority, ca.pem()).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let own = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&asked);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let noted = Arc::clone(&noted);
                tokio::spawn(async move { answer(stream, &noted).await });
            }
        });
        Self {
            url: format!("https://localhost:{port}"),
            authority,
            asked,
        }
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [
            ("AZURE_AUTHORITY_HOST", &self.url),
            ("SSL_CERT_FILE", self.authority.to_str().unwrap()),
        ]
    }

    /// What it was asked holds all of this.
    fn was_asked(&self, wanted: &[&str]) {
        let asked = self.asked.lock().unwrap();
        assert!(asked.len() >= 2, "{asked:?}");
        for wanted in wanted {
            assert!(asked[0].contains(wanted), "{wanted}: {}", asked[0]);
        }
    }
}

/// Gives a token to each whole request of a connection.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, asked: &Mutex<Vec<String>>) {
    let mut request = String::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        request.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let Some((head, body)) = request.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if body.len() < length {
            continue;
        }
        let n = {
            let mut asked = asked.lock().unwrap();
            asked.push(std::mem::take(&mut request));
            u32::try_from(asked.len()).unwrap() - 1
        };
        let body = format!(
            r#"{{"access_token":"{}","expires_in":6,"token_type":"Bearer"}}"#,
            token(n)
        );
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c16_a_service_signs_in_as_an_application_with_a_secret() {
    let redis = redis_taking(200).await;
    let folder = tempfile::tempdir().unwrap();
    let tenant = Tenant::start(folder.path()).await;
    let mut environment = tenant.environment().to_vec();
    environment.push((
        "STEADFAST__REDIS__CREDENTIALS__SECRET",
        "an-application-secret",
    ));
    let identity = "'client_secret'\ntenant = 'a-tenant'\nclient_id = 'an-application'";
    let service = serve(folder.path(), &redis, identity, &environment);
    signed_in_and_renewed(&service).await;
    tenant.was_asked(&[
        "POST /a-tenant/oauth2/v2.0/token",
        "client_id=an-application",
        "client_secret=an-application-secret",
        "grant_type=client_credentials",
        "scope=https%3A%2F%2Fredis.azure.com%2F.default",
    ]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c16_a_service_signs_in_by_the_service_account_of_its_pod() {
    let redis = redis_taking(200).await;
    let folder = tempfile::tempdir().unwrap();
    let tenant = Tenant::start(folder.path()).await;
    let account = folder.path().join("account");
    std::fs::write(&account, "a-service-account-token").unwrap();
    let mut environment = tenant.environment().to_vec();
    environment.extend([
        ("AZURE_TENANT_ID", "a-tenant"),
        ("AZURE_CLIENT_ID", "an-application"),
        ("AZURE_FEDERATED_TOKEN_FILE", account.to_str().unwrap()),
    ]);
    let service = serve(folder.path(), &redis, "'workload_identity'", &environment);
    signed_in_and_renewed(&service).await;
    tenant.was_asked(&[
        "POST /a-tenant/oauth2/v2.0/token",
        "client_id=an-application",
        "client_assertion=a-service-account-token",
        "client_assertion_type=urn%3Aietf",
        "scope=https%3A%2F%2Fredis.azure.com%2F.default",
    ]);
}

#[tokio::test]
async fn c16_settings_of_entra_that_cannot_work_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (more, words) in [
        ("", "identity` is missing"),
        (
            "identity = 'client_secret'\nclient_id = 'c'\nsecret = 's'",
            "tenant` is missing",
        ),
        (
            "identity = 'azure_cli'\nsecret = 's'",
            "of no use to this `identity`",
        ),
        (
            "identity = 'managed_identity'\nurl = 'x'",
            "is not a setting",
        ),
    ] {
        let file = folder.path().join("c.toml");
        std::fs::write(
            &file,
            format!("[redis.credentials]\nsource = 'entra'\n{more}\n"),
        )
        .unwrap();
        let ended = run(&["config", "check", "--config", file.to_str().unwrap()]).await;
        assert_eq!(ended.status, Some(78), "{}", ended.all());
        assert!(ended.stderr.contains(words), "{words}: {}", ended.all());
    }
    let file = folder.path().join("two.toml");
    let two = "[redis]\nurl = 'redis://:pw@h'\n[redis.credentials]\nsource = 'environment'\n";
    std::fs::write(&file, two).unwrap();
    let ended = run(&["config", "check", "--config", file.to_str().unwrap()]).await;
    assert!(
        ended.stderr.contains("another source of it"),
        "{}",
        ended.all()
    );
}

mod base64url {
    pub(super) fn encode(bytes: &[u8]) -> String {
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
}
