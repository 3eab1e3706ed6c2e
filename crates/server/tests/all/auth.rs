//! Who may do what, and every way we know in which a token lies (RFC 8725).

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http_body_util::Full;
use hyper::{Method, Request};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use parking_lot::Mutex;
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use serde_json::{Value as Json, json};
use steadfast_server::auth::{RULES, Role, TokenSpec, issue};
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{PATIENCE, Reply, Service};

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A service that asks who its callers are, with its audit log.
struct Guarded {
    service: Service,
    config: Config,
    folder: tempfile::TempDir,
}

pub(crate) fn base(extra: &str) -> String {
    format!("[auth]\nissuer = \"us\"\naudience = \"steadfast\"\n{extra}")
}

impl Guarded {
    async fn with(auth: &str) -> Self {
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

    async fn hs() -> Self {
        Self::with(&base(&format!(
            "[auth.keys.dev]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"
        )))
        .await
    }

    fn token(&self, role: Role) -> String {
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

    async fn status_with(&self, token: &str) -> Reply {
        self.service
            .get_with(
                "/v1/status",
                &[("authorization", &format!("Bearer {token}"))],
            )
            .await
    }

    /// The lines of the audit log, once there are so many.
    async fn audit(&self, lines: usize) -> Vec<Json> {
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

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn claims() -> Json {
    json!({"iss": "us", "aud": "steadfast", "sub": "mallory", "exp": now() + 60, "roles": ["admin"]})
}

fn signed(algorithm: Algorithm, kid: &str, claims: &Json, key: &EncodingKey) -> String {
    let mut header = Header::new(algorithm);
    header.kid = Some(kid.to_owned());
    encode(&header, claims, key).unwrap()
}

fn hs(claims: &Json) -> String {
    signed(
        Algorithm::HS256,
        "dev",
        claims,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
}

fn base64url(bytes: &[u8]) -> String {
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
async fn refused(guarded: &Guarded, token: &str, reason: &str, seen: &mut usize) {
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

#[tokio::test]
async fn s6_the_role_matrix_holds_for_every_rule_and_role() {
    let guarded = Guarded::hs().await;
    let addr = guarded.service.addr;
    for rule in RULES {
        let path = rule
            .path
            .replace("{name}", "none")
            .replace("{id}", "9")
            .replace("{*path}", "none.js");
        let ask = |token: Option<String>| {
            let mut request = Request::builder()
                .method(Method::from_bytes(rule.method.as_bytes()).unwrap())
                .uri(format!("http://{addr}{path}"));
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            request.body(Full::default()).unwrap()
        };
        if rule.path.ends_with("/events") && !rule.path.contains("{id}") {
            // An answer that has no end: only refusals are looked at.
            assert_eq!(guarded.service.send(ask(None)).await.status, 401);
            continue;
        }
        let anonymous = guarded.service.send(ask(None)).await;
        assert_eq!(
            anonymous.status == 401,
            rule.needs.is_some(),
            "{} {}",
            rule.method,
            rule.path
        );
        for role in Role::ALL {
            let reply = guarded.service.send(ask(Some(guarded.token(role)))).await;
            let allowed = rule.needs.is_none_or(|needs| role >= needs);
            // Drills are switched off in this service, which is another refusal.
            let by_role = reply.status == 403
                && reply
                    .header("www-authenticate")
                    .contains("insufficient_scope");
            assert_eq!(
                !by_role,
                allowed,
                "{} {} as {}: {}",
                rule.method,
                rule.path,
                role.name(),
                reply.status
            );
            assert_ne!(reply.status, 401);
        }
    }
}

#[tokio::test]
async fn s6_changes_are_written_down_with_who_and_what_and_reads_are_not() {
    let guarded = Guarded::hs().await;
    let token = format!("Bearer {}", guarded.token(Role::Operator));
    guarded
        .service
        .get_with("/v1/status?secret=1", &[("authorization", &token)])
        .await;
    let request = Request::post(guarded.service.url("/v1/statements/none?secret=1"))
        .header("authorization", &token)
        .body(Full::default())
        .unwrap();
    assert_eq!(guarded.service.send(request).await.status, 404);
    let lines = guarded.audit(1).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!(line["who"], "ada");
    assert_eq!(line["role"], "operator");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["path"], "/v1/statements/none");
    assert_eq!(line["outcome"], "allowed");
    assert_eq!(line["status"], 404);
    assert_eq!(line["peer"], "127.0.0.1");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(guarded.folder.path().join("audit.jsonl"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0, "others can read the audit log");
}

#[tokio::test]
async fn s6_the_description_says_the_role_of_each_operation() {
    let guarded = Guarded::hs().await;
    let token = format!("Bearer {}", guarded.token(Role::Viewer));
    let described = guarded
        .service
        .get_with("/openapi.json", &[("authorization", &token)])
        .await
        .json();
    let mut operations = 0;
    for (path, item) in described["paths"].as_object().unwrap() {
        let routed = match path {
            path if path.starts_with("/v1/queries/") => "/v1/queries/{name}",
            path if path.starts_with("/v1/statements/") => "/v1/statements/{name}",
            path => path,
        };
        for (method, operation) in item.as_object().unwrap() {
            let rule = RULES
                .iter()
                .find(|rule| rule.method.eq_ignore_ascii_case(method) && rule.path == routed);
            let rule =
                rule.unwrap_or_else(|| panic!("{method} {path} is described and has no rule"));
            let said = operation["security"][0]["bearer"][0].as_str();
            assert_eq!(said, rule.needs.map(Role::name), "{method} {path}");
            operations += 1;
        }
    }
    assert!(operations > 8, "{operations}");
}

#[tokio::test]
async fn s6_a_token_that_lies_is_refused_and_written_down() {
    let guarded = Guarded::hs().await;
    let seen = &mut 0;
    assert_eq!(
        guarded.status_with(&hs(&claims())).await.status,
        200,
        "the honest one"
    );

    let body = base64url(claims().to_string().as_bytes());
    let none = base64url(br#"{"alg":"none","typ":"JWT","kid":"dev"}"#);
    refused(&guarded, &format!("{none}.{body}."), "not_a_token", seen).await;
    let none = base64url(br#"{"alg":"NONE","typ":"JWT","kid":"dev"}"#);
    refused(
        &guarded,
        &format!("{none}.{body}.AAAA"),
        "not_a_token",
        seen,
    )
    .await;

    let with = |member: &str, value: Json| {
        let mut claims = claims();
        claims[member] = value;
        hs(&claims)
    };
    let without = |member: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(member);
        hs(&claims)
    };
    refused(&guarded, &with("exp", json!(now() - 60)), "expired", seen).await;
    refused(&guarded, &with("exp", json!("soon")), "missing_claim", seen).await;
    refused(
        &guarded,
        &with("nbf", json!(now() + 3600)),
        "not_yet_valid",
        seen,
    )
    .await;
    refused(&guarded, &with("iss", json!("them")), "wrong_issuer", seen).await;
    refused(
        &guarded,
        &with("aud", json!("another")),
        "wrong_audience",
        seen,
    )
    .await;
    refused(
        &guarded,
        &with("aud", json!(["another", "third"])),
        "wrong_audience",
        seen,
    )
    .await;
    refused(&guarded, &with("sub", json!("")), "missing_claim", seen).await;
    refused(
        &guarded,
        &with("sub", json!("x".repeat(300))),
        "missing_claim",
        seen,
    )
    .await;
    for claim in ["exp", "iss", "aud", "sub"] {
        refused(&guarded, &without(claim), "missing_claim", seen).await;
    }

    let other = EncodingKey::from_secret(&[7; 64]);
    refused(
        &guarded,
        &signed(Algorithm::HS256, "dev", &claims(), &other),
        "bad_signature",
        seen,
    )
    .await;
    refused(
        &guarded,
        &signed(Algorithm::HS256, "nobody", &claims(), &other),
        "unknown_key",
        seen,
    )
    .await;
    let same = EncodingKey::from_secret(SECRET.as_bytes());
    refused(
        &guarded,
        &signed(Algorithm::HS512, "dev", &claims(), &same),
        "wrong_algorithm",
        seen,
    )
    .await;
    let mut honest = hs(&claims());
    honest.truncate(honest.rfind('.').unwrap() + 1);
    refused(&guarded, &honest, "bad_signature", seen).await;
    let mut critical = Header::new(Algorithm::HS256);
    critical.kid = Some("dev".to_owned());
    critical.crit = Some(vec!["exp".to_owned()]);
    refused(
        &guarded,
        &encode(&critical, &claims(), &same).unwrap(),
        "critical_header",
        seen,
    )
    .await;
    // A key that the token brings itself, or an address to fetch it from, is not looked at.
    let mut brought = Header::new(Algorithm::HS256);
    brought.jku = Some("http://127.0.0.1:1/keys".to_owned());
    brought.jwk = Some(Jwk::from_encoding_key(&other, Algorithm::HS256).unwrap());
    refused(
        &guarded,
        &encode(&brought, &claims(), &other).unwrap(),
        "bad_signature",
        seen,
    )
    .await;

    refused(&guarded, &"a".repeat(9000), "too_long", seen).await;
    for garbage in ["", ".", "..", "a.b.c", "eyJ.eyJ.eyJ", "....."] {
        let reply = guarded.status_with(garbage).await;
        assert_eq!(reply.status, 401, "{garbage:?}");
    }
    // In the address, or twice, it is not taken.
    let honest = hs(&claims());
    assert_eq!(
        guarded
            .service
            .get(&format!("/v1/status?access_token={honest}"))
            .await
            .status,
        401
    );
    let bearer = format!("Bearer {honest}");
    let twice = [
        ("authorization", bearer.as_str()),
        ("authorization", bearer.as_str()),
    ];
    assert_eq!(
        guarded.service.get_with("/v1/status", &twice).await.status,
        401
    );
}

#[tokio::test]
async fn s6_a_token_without_a_role_of_ours_is_forbidden() {
    let guarded = Guarded::hs().await;
    for roles in [
        json!([]),
        json!("root"),
        json!(["root", 7]),
        json!({"admin": true}),
        Json::Null,
    ] {
        let mut claims = claims();
        claims["roles"] = roles.clone();
        let reply = guarded.status_with(&hs(&claims)).await;
        assert_eq!(reply.status, 403, "{roles}");
        assert_eq!(reply.json()["type"], "/problems/forbidden");
    }
    let lines = guarded.audit(5).await;
    assert!(
        lines
            .iter()
            .all(|line| line["outcome"] == "forbidden" && line["reason"] == "no_role")
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

#[tokio::test]
async fn s6_each_kind_of_key_signs_for_its_own_algorithm_only() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        ("rsa", "RS256", Algorithm::RS256, &PKCS_RSA_SHA256),
        ("p256", "ES256", Algorithm::ES256, &PKCS_ECDSA_P256_SHA256),
        ("p384", "ES384", Algorithm::ES384, &PKCS_ECDSA_P384_SHA384),
        ("ed", "EdDSA", Algorithm::EdDSA, &PKCS_ED25519),
    ];
    let mut auth = base("");
    let mut pairs = Vec::new();
    for (name, algorithm, code, kind) in kinds {
        let pair = KeyPair::generate_for(kind).unwrap();
        let public = pem(name, &folder, &pair.public_key_pem());
        auth.push_str(&format!(
            "[auth.keys.{name}]\nalgorithm = \"{algorithm}\"\nfile = \"{public}\"\n"
        ));
        let private = pair.serialize_pem();
        let key = match code {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(private.as_bytes()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(private.as_bytes()),
            _ => EncodingKey::from_ec_pem(private.as_bytes()),
        };
        pairs.push((name, code, key.unwrap(), pair.public_key_pem()));
    }
    let guarded = Guarded::with(&auth).await;
    let mut seen = 0;
    for (name, code, key, public) in &pairs {
        let good = guarded
            .status_with(&signed(*code, name, &claims(), key))
            .await;
        assert_eq!(good.status, 200, "{name}: {}", good.text());
        // The old confusion: the public key, which everyone has, taken for a shared secret.
        let confused = EncodingKey::from_secret(public.as_bytes());
        let forged = signed(Algorithm::HS256, name, &claims(), &confused);
        refused(&guarded, &forged, "wrong_algorithm", &mut seen).await;
        let trimmed = EncodingKey::from_secret(public.trim_end().as_bytes());
        let forged = signed(Algorithm::HS256, name, &claims(), &trimmed);
        refused(&guarded, &forged, "wrong_algorithm", &mut seen).await;
        // And one's own key under another's name.
        for (other, ..) in pairs.iter().filter(|(other, ..)| other != name) {
            let forged = signed(*code, other, &claims(), key);
            refused(&guarded, &forged, "wrong_algorithm", &mut seen).await;
        }
    }
    // With several keys, a token that names none is not tried against all.
    let nameless = encode(&Header::new(Algorithm::RS256), &claims(), &pairs[0].2).unwrap();
    assert_eq!(guarded.status_with(&nameless).await.status, 401);
}

/// An identity provider that can change its keys, and counts who asks for them.
struct Provider {
    url: String,
    document: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    /// Milliseconds until it answers.
    delay: Arc<AtomicUsize>,
    _task: tokio::task::JoinSet<()>,
}

impl Provider {
    async fn start(document: String) -> Self {
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

fn published(keys: &[(&str, Algorithm, &EncodingKey)]) -> String {
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

fn ec() -> EncodingKey {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
}

#[tokio::test]
async fn s6_a_key_that_rotates_in_is_taken_at_once_and_one_that_rotates_out_is_not() {
    let (first, second) = (ec(), ec());
    let provider = Provider::start(published(&[("one", Algorithm::ES256, &first)])).await;
    let auth = base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1ms\"\n",
        provider.url
    ));
    let guarded = Guarded::with(&auth).await;
    let old = signed(Algorithm::ES256, "one", &claims(), &first);
    let new = signed(Algorithm::ES256, "two", &claims(), &second);
    assert_eq!(guarded.status_with(&old).await.status, 200);
    assert_eq!(
        guarded.status_with(&new).await.status,
        401,
        "not published yet"
    );
    *provider.document.lock() = published(&[("two", Algorithm::ES256, &second)]);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert_eq!(
        guarded.status_with(&new).await.status,
        200,
        "read again for a name not known"
    );
    assert_eq!(
        guarded.status_with(&old).await.status,
        401,
        "gone from the set"
    );
    // A broken document leaves the last good one in force.
    *provider.document.lock() = "{\"keys\": 7}".to_owned();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert_eq!(guarded.status_with(&old).await.status, 401);
    assert_eq!(guarded.status_with(&new).await.status, 200);
}

#[tokio::test]
async fn s6_each_key_of_a_set_stands_for_itself_and_an_empty_set_withdraws_all() {
    let key = ec();
    let good = signed(Algorithm::ES256, "one", &claims(), &key);
    let mut set: Json =
        serde_json::from_str(&published(&[("one", Algorithm::ES256, &key)])).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    for odd in [
        json!({"kty": "EC", "kid": 7, "crv": "P-256", "x": "AA", "y": "AA"}),
        json!(null),
        json!("key"),
        json!({"kty": "AKP", "kid": "new"}),
        json!({"kty": "RSA", "kid": "r", "n": [], "e": "AQAB", "use": 1}),
    ] {
        keys.insert(0, odd);
    }
    let provider = Provider::start(set.to_string()).await;
    let auth = base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1ms\"\njwks_refresh = \"1ms\"\n",
        provider.url
    ));
    let guarded = Guarded::with(&auth).await;
    assert_eq!(guarded.status_with(&good).await.status, 200);
    *provider.document.lock() = "{\"keys\": []}".to_owned();
    let withdrawn = async {
        while guarded.status_with(&good).await.status != 401 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, withdrawn)
        .await
        .expect("an empty set withdraws its keys");
}

#[tokio::test]
async fn s6_tokens_with_invented_keys_cause_no_flood_of_look_ups() {
    let key = ec();
    let provider = Provider::start(published(&[("one", Algorithm::ES256, &key)])).await;
    let guarded = Guarded::with(&base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1m\"\n",
        provider.url
    )))
    .await;
    let good = signed(Algorithm::ES256, "one", &claims(), &key);
    assert_eq!(guarded.status_with(&good).await.status, 200);
    for n in 0..200 {
        let invented = signed(Algorithm::ES256, &format!("invented-{n}"), &claims(), &key);
        assert_eq!(guarded.status_with(&invented).await.status, 401);
    }
    let asked = provider.asked.load(Relaxed);
    assert!(asked <= 2, "the provider was asked {asked} times");
    assert_eq!(guarded.status_with(&good).await.status, 200);
}

/// Sends a request and hangs up as soon as it is under way.
async fn hang_up(guarded: &Guarded, head: &str, body: &str, under_way: impl Fn() -> bool) {
    let mut stream = tokio::net::TcpStream::connect(guarded.service.addr)
        .await
        .unwrap();
    let request = format!(
        "{head}\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    eventually(under_way).await;
}

async fn eventually(holds: impl Fn() -> bool) {
    let holds = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.unwrap();
}

#[tokio::test]
async fn s6_a_caller_that_hangs_up_does_not_keep_the_keys_from_being_read_nor_health_from_answering()
 {
    let (first, second) = (ec(), ec());
    let provider = Provider::start(published(&[("one", Algorithm::ES256, &first)])).await;
    let auth = base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1500ms\"\n",
        provider.url
    ));
    let guarded = Guarded::with(&auth).await;
    let old = signed(Algorithm::ES256, "one", &claims(), &first);
    let new = signed(Algorithm::ES256, "two", &claims(), &second);
    assert_eq!(guarded.status_with(&old).await.status, 200);
    *provider.document.lock() = published(&[("two", Algorithm::ES256, &second)]);
    provider.delay.store(400, Relaxed);
    tokio::time::sleep(std::time::Duration::from_millis(1600)).await;
    let asked = provider.asked.load(Relaxed);
    // Health asks nobody, whatever it is shown.
    let bearer = format!("Bearer {new}");
    let health = guarded
        .service
        .get_with("/health", &[("authorization", &bearer)])
        .await;
    assert_eq!(health.status, 200);
    assert_eq!(
        provider.asked.load(Relaxed),
        asked,
        "health waited for the identity provider"
    );
    hang_up(
        &guarded,
        &format!("GET /v1/status HTTP/1.1\r\nauthorization: {bearer}"),
        "",
        || provider.asked.load(Relaxed) == asked + 1,
    )
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    assert_eq!(
        guarded.status_with(&new).await.status,
        200,
        "the reading was given up with its caller"
    );
    assert_eq!(provider.asked.load(Relaxed), asked + 1);
}

#[tokio::test]
async fn s6_a_change_whose_caller_hangs_up_is_written_down_all_the_same() {
    let slow = "[statements.slow]\nsql = \"INSERT INTO t SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000000) SELECT i FROM n)\"\n";
    let auth = base(&format!(
        "[auth.keys.dev]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n{slow}"
    ));
    let guarded = Guarded::with(&auth).await;
    let mut tx = guarded.service.app.database().begin().await.unwrap();
    tx.execute("CREATE TABLE t (n INTEGER)", &[]).await.unwrap();
    tx.commit().await.unwrap();
    let head = format!(
        "POST /v1/statements/slow HTTP/1.1\r\ncontent-type: application/json\r\nauthorization: Bearer {}",
        guarded.token(Role::Operator)
    );
    let under_way = || guarded.service.status()["service"]["in_flight"].as_u64() >= Some(1);
    let audit = guarded.folder.path().join("audit.jsonl");
    // Who hangs up before it is known who asks has begun no change.
    while std::fs::read(&audit).is_ok_and(|text| text.is_empty()) {
        hang_up(&guarded, &head, "{}", under_way).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let line = &guarded.audit(1).await[0];
    assert_eq!(line["outcome"], "unfinished", "{line}");
    assert_eq!(
        (&line["who"], &line["path"]),
        (&json!("ada"), &json!("/v1/statements/slow"))
    );
}

#[tokio::test]
async fn s6_a_jwks_that_floods_or_lies_gives_nobody_a_key() {
    let key = ec();
    let good = signed(Algorithm::ES256, "one", &claims(), &key);
    let secret = json!({"keys": [{"kty": "oct", "kid": "one", "alg": "HS256", "k": base64url(SECRET.as_bytes())}]});
    let encryption = published(&[("one", Algorithm::ES256, &key)])
        .replacen('{', "{\"x\":0,", 1)
        .replace("\"kid\"", "\"use\":\"enc\",\"kid\"");
    let flood = format!("{{\"keys\":[{}]}}", "{\"kty\":\"EC\"},".repeat(1 << 16));
    for document in [
        secret.to_string(),
        encryption,
        flood,
        "[".repeat(100_000),
        String::new(),
    ] {
        let provider = Provider::start(document).await;
        let guarded = Guarded::with(&base(&format!("jwks = \"{}\"\n", provider.url))).await;
        for token in [
            &good,
            &signed(
                Algorithm::HS256,
                "one",
                &claims(),
                &EncodingKey::from_secret(SECRET.as_bytes()),
            ),
        ] {
            let reply = guarded.status_with(token).await;
            assert_eq!(reply.status, 503, "there is no key to check it with");
            assert_ne!(reply.header("retry-after"), "");
        }
    }
}

#[tokio::test]
async fn s6_behind_a_trusted_proxy_the_audit_log_and_health_know_the_caller() {
    let guarded = Guarded::with(&base(&format!(
        "[auth.keys.dev]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"
    )))
    .await;
    let forwarded = ("x-forwarded-for", "6.6.6.6, 192.0.2.7");
    let health = guarded
        .service
        .get_with("/health", &[forwarded])
        .await
        .json();
    assert_eq!(health["checks"]["redis"]["message"], "");
    let refused = guarded.service.get_with("/v1/settings", &[forwarded]).await;
    assert_eq!(refused.status, 401);
    assert_eq!(guarded.audit(1).await[0]["peer"], "192.0.2.7");
}

#[tokio::test]
async fn s6_health_tells_strangers_less_and_an_address_decides_who_is_one() {
    let guarded = Guarded::hs().await;
    let up = |health: &Json| health["status"] != "unhealthy";
    guarded.service.health_when(up).await;
    let near = guarded.service.get("/health").await.json();
    assert_ne!(
        near["checks"]["redis"]["message"], "",
        "from loopback in full"
    );
    let stranger = |token: Option<String>| {
        let mut request =
            Request::get("http://localhost/health").extension(Peer("192.0.2.7:9".parse().unwrap()));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let router = steadfast_server::router(guarded.service.app.clone());
        tower::ServiceExt::oneshot(
            router,
            request
                .header("host", "localhost")
                .body(axum::body::Body::empty())
                .unwrap(),
        )
    };
    let told = async |token| {
        let response = stranger(token).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        serde_json::from_slice::<Json>(&body).unwrap()
    };
    // A proxy on the same machine hands strangers on.
    for more in [("x-forwarded-for", "192.0.2.7"), ("via", "1.1 proxy")] {
        let handed_on = guarded.service.get_with("/health", &[more]).await;
        assert_eq!(handed_on.status, 200, "{more:?}");
        let message = &handed_on.json()["checks"]["redis"]["message"];
        assert_eq!(message, "", "{more:?}");
    }
    let named = guarded
        .service
        .get_with("/health", &[("host", "steadfast.example")])
        .await;
    assert_eq!(named.status, 403, "no name of a service on loopback");
    let little = told(None).await;
    assert_eq!(little["checks"]["redis"]["message"], "");
    assert!(little["checks"]["redis"]["status"].is_string());
    let known = told(Some(guarded.token(Role::Viewer))).await;
    assert_ne!(known["checks"]["redis"]["message"], "");
}
