//! C17: TLS, and a clear cause for each way in which it fails.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use redis::Value;
use steadfast::{Client, ClientBuilder, ConnectionState, Tls};
use steadfast_core::slot::Slot;
use steadfast_drill::process::{self, Cluster, Redis};

use crate::support::{cmd, ms, until, until_down_for, values_come_back_as_they_went};

/// An authority of the test's own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name = named(&format!("authority {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `name`, valid until the beginning of the year `until`, with its key.
    fn certify(&self, name: &str, until: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name = named(name);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) async fn server(
        &self,
        name: &str,
        until: i32,
        client_certificates: bool,
    ) -> (Redis, tempfile::TempDir) {
        let (mut tls, folder) = self.of_server(name, until);
        tls.client_certificates = client_certificates;
        let redis = Redis::builder().tls(tls).start().await.unwrap();
        (redis, folder)
    }

    /// The files of a server of this name, in a folder that goes with the test.
    pub(crate) fn certificates(&self, name: &str) -> (process::Tls, tempfile::TempDir) {
        self.of_server(name, 2999)
    }

    /// What a server of that name shows, and the folder in which it lies.
    fn of_server(&self, name: &str, until: i32) -> (process::Tls, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = self.certify(name, until);
        let write = |file: &str, text: &str| {
            let path = folder.path().join(file);
            std::fs::write(&path, text).unwrap();
            path
        };
        let tls = process::Tls {
            cert: write("server.pem", &certificate),
            key: write("server.key", &key),
            ca: write("ca.pem", &self.pem()),
            client_certificates: false,
        };
        (tls, folder)
    }

    pub(crate) fn trusted(&self) -> Tls {
        Tls::new().ca_pem(self.pem().as_bytes()).unwrap()
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn builder(scheme: &str, redis: &Redis) -> ClientBuilder {
    let url = format!("{scheme}://localhost:{}", redis.port());
    Client::builder(&url).unwrap()
}

/// Cannot connect, and says why in these words.
async fn refused(builder: ClientBuilder, words: &str) {
    let client = builder.connect_timeout(ms(1000)).build().unwrap();
    until_down_for(&client, words).await;
}

#[tokio::test]
async fn t25_behind_the_announced_ips_of_a_cluster_the_certificate_has_to_carry_a_seed_s_name() {
    let authority = Authority::new();
    let (tls, _folder) = authority.of_server("localhost", 2999);
    let cluster = Cluster::builder().replicas(0).tls(tls);
    let cluster = cluster.start().await.unwrap();
    let first = cluster.node(0).port();
    let builder = |host: &str| {
        let url = format!("rediss-cluster://{host}:{first}");
        let builder = Client::builder(&url).unwrap();
        builder.tls(authority.trusted()).deadline(ms(20_000))
    };
    // Nodes are announced by an IP address, which no certificate carries, in views and redirects.
    let client = builder("localhost").connect().await.unwrap();
    for n in 0..30 {
        let key = format!("k{n}");
        client.send(&cmd(&format!("SET {key} {n}"))).await.unwrap();
        let slot = Slot::of_key(key.as_bytes()).number();
        let from = cluster.owner(slot).await.unwrap();
        if n < 3 {
            cluster.migrate(slot, from, (from + 1) % 3).await.unwrap();
            client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
        }
    }
    assert!(client.status().cluster.unwrap().redirects > 0);
    let nodes = client.status().cluster.unwrap().nodes;
    assert!(nodes.iter().all(|node| node.answered > 0), "{nodes:?}");
    // Where the URL names no name either, the address is what is expected, and that is said.
    let client = builder("127.0.0.1").build().unwrap();
    until("it says why", || {
        let said = client.status().cluster.unwrap().error.unwrap_or_default();
        said.contains("certificate is for another name") && said.contains("127.0.0.1")
    })
    .await;
    let named = authority.trusted().server_name("localhost");
    let client = builder("127.0.0.1").tls(named).connect().await.unwrap();
    client.send(&cmd("SET k v")).await.unwrap();
}

#[tokio::test]
async fn c17_a_server_certified_by_a_ca_of_ones_own_is_served_from() {
    let authority = Authority::new();
    let (redis, folder) = authority.server("localhost", 2999, false).await;
    let file = Tls::new().ca_file(folder.path().join("ca.pem")).unwrap();
    for tls in [authority.trusted(), file, authority.trusted().only_tls13()] {
        let client = builder("rediss", &redis).tls(tls).connect().await.unwrap();
        client.send(&cmd("SET k v")).await.unwrap();
        let big = "x".repeat(3 << 20);
        client.send(cmd("SET big").arg(&big)).await.unwrap();
        let value = client.send(&cmd("GET big")).await.unwrap();
        assert_eq!(value, Value::BulkString(big.into_bytes()));
        values_come_back_as_they_went(&client).await;
        let tls = client.status().tls.unwrap();
        assert!(tls.starts_with("TLSv1"), "{tls}");
        redis
            .command(&["CLIENT", "KILL", "TYPE", "normal"])
            .await
            .unwrap();
        client.send(&cmd("GET k")).await.unwrap();
    }
}

#[tokio::test]
async fn c17_an_expired_certificate_is_named() {
    let authority = Authority::new();
    let (redis, _folder) = authority.server("localhost", 2002, false).await;
    refused(
        builder("rediss", &redis).tls(authority.trusted()),
        "expired",
    )
    .await;
}

#[tokio::test]
async fn c17_a_certificate_for_another_name_is_named_unless_that_name_is_expected() {
    let authority = Authority::new();
    let (redis, _folder) = authority.server("redis.internal", 2999, false).await;
    let plain = authority.trusted();
    refused(builder("rediss", &redis).tls(plain), "for another name").await;
    let expecting = authority.trusted().server_name("redis.internal");
    builder("rediss", &redis)
        .tls(expecting)
        .connect()
        .await
        .unwrap();
}

#[tokio::test]
async fn c8_a_server_that_never_answers_the_client_hello_ends_each_attempt_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let client = Client::builder(&format!("rediss://127.0.0.1:{port}"))
        .unwrap()
        .tls(Authority::new().trusted())
        .connect_timeout(ms(200))
        .build()
        .unwrap();
    until("it was given up again and again", || {
        client.status().attempts > 3
    })
    .await;
    // Some attempt says so: where the machine is slow, another may have ended before it came to
    // that.
    until_down_for(&client, "no answer within 200ms: does the server speak TLS").await;
    assert_eq!(client.state(), ConnectionState::Down);
    assert_eq!(client.status().stuck_resets, 0);
    accepting.abort();
}

#[tokio::test]
async fn c17_an_unknown_ca_is_named() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (redis, _folder) = authority.server("localhost", 2999, false).await;
    refused(builder("rediss", &redis).tls(other.trusted()), "unknown CA").await;
}

#[tokio::test]
async fn c17_a_server_that_wants_a_certificate_gets_ours_or_its_refusal_is_named() {
    let authority = Authority::new();
    let (redis, folder) = authority.server("localhost", 2999, true).await;
    refused(
        builder("rediss", &redis).tls(authority.trusted()),
        "certificate",
    )
    .await;
    let (certificate, key) = authority.certify("me", 2999);
    let ours = authority
        .trusted()
        .client_certificate_pem(certificate.as_bytes(), key.as_bytes())
        .unwrap();
    let client = builder("rediss", &redis).tls(ours).connect().await.unwrap();
    client.send(&cmd("PING")).await.unwrap();
    let files = authority
        .trusted()
        .client_certificate(
            folder.path().join("server.pem"),
            folder.path().join("server.key"),
        )
        .unwrap();
    builder("rediss", &redis)
        .tls(files)
        .connect()
        .await
        .unwrap();
}

#[tokio::test]
async fn c17_plain_text_to_a_tls_port_and_tls_to_a_plain_one_are_named() {
    let authority = Authority::new();
    let (speaks_tls, _folder) = authority.server("localhost", 2999, false).await;
    refused(builder("redis", &speaks_tls), "use rediss://").await;
    let plain = Redis::start().await.unwrap();
    refused(
        builder("rediss", &plain).tls(authority.trusted()),
        "speak TLS on this port",
    )
    .await;
}

#[tokio::test]
async fn c17_connecting_with_default_limits_names_what_it_waits_for() {
    let plain = Redis::start().await.unwrap();
    let tls = Authority::new().trusted();
    let error = builder("rediss", &plain).tls(tls).connect().await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("speak TLS on this port?"), "{error}");
    // One that takes connections and is silent; and a name that is not resolved.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let error = Client::builder(&url).unwrap().connect().await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("handshake"), "{error}");
    let client = Client::builder("redis://nowhere.example")
        .unwrap()
        .resolver(Unresolved);
    let error = client.connect().await.unwrap_err().to_string();
    let named = "`nowhere.example:6379` is not resolved";
    assert!(error.contains(named) || error.contains("dns"), "{error}");
}

/// A resolver without an answer.
#[derive(Debug)]
struct Unresolved;

impl steadfast::Resolve for Unresolved {
    fn resolve(
        &self,
        _host: &str,
        _port: u16,
    ) -> futures_util::future::BoxFuture<'_, std::io::Result<Vec<std::net::SocketAddr>>> {
        Box::pin(std::future::pending())
    }
}

#[test]
fn c17_files_that_hold_no_certificate_are_named_before_anything_is_dialled() {
    let error = Tls::new()
        .ca_file(Path::new("/nowhere/ca.pem"))
        .unwrap_err();
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    let error = Tls::new().ca_pem(b"not a certificate").unwrap_err();
    assert!(error.to_string().contains("no certificate"), "{error}");
}
