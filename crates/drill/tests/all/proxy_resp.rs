//! Each fault of the protocol, on a real Redis behind the proxy; and TLS passed through.

use redis::Value;
use rustls_pki_types::CertificateDer;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use steadfast_core::resp::Decoder;
use steadfast_drill::fault::{
    Bandwidth, Latency, RespDelay, RespError, RespReply, RespSilence, Toxic,
};
use steadfast_drill::process::{Redis, Tls};
use steadfast_drill::proxy::Proxy;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

const LIMIT: Duration = Duration::from_secs(20);

/// A client that sees the order of things.
struct Client<S> {
    stream: S,
    decoder: Decoder,
    read: Vec<u8>,
}

impl Client<TcpStream> {
    async fn connect(proxy: &Proxy) -> Self {
        Self::over(TcpStream::connect(proxy.addr()).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    fn over(stream: S) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            read: Vec::new(),
        }
    }

    async fn send(&mut self, commands: &[&str]) {
        let packed = |command: &&str| {
            let mut packed = redis::Cmd::new();
            command.split(' ').for_each(|arg| {
                packed.arg(arg);
            });
            packed.get_packed_command()
        };
        let bytes: Vec<u8> = commands.iter().flat_map(packed).collect();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn reply(&mut self) -> Value {
        loop {
            let decoded = self.decoder.decode(&self.read).unwrap();
            self.read.drain(..decoded.consumed);
            if let Some(value) = decoded.value {
                return value;
            }
            let read = timeout(LIMIT, self.stream.read_buf(&mut self.read))
                .await
                .unwrap()
                .unwrap();
            assert!(read > 0, "the connection ended");
        }
    }

    async fn ask(&mut self, command: &str) -> Value {
        self.send(&[command]).await;
        self.reply().await
    }

    async fn hears_nothing(&mut self) {
        assert!(
            timeout(Duration::from_millis(150), self.reply())
                .await
                .is_err()
        );
    }
}

/// Whether it is an error that begins with that word.
fn is_error(value: &Value, word: &str) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == word)
}

fn text(value: &str) -> Value {
    Value::BulkString(value.as_bytes().to_vec())
}

async fn redis_behind_proxy() -> (Redis, Proxy) {
    let redis = Redis::start().await.unwrap();
    let proxy = Proxy::builder()
        .resp(true)
        .start(redis.addr())
        .await
        .unwrap();
    (redis, proxy)
}

#[tokio::test]
async fn d1_errors_answer_the_chosen_commands_in_their_place_and_the_server_never_sees_them() {
    let (redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.ask("SET k v").await, Value::Okay);
    let id = proxy.add(Toxic::new(RespError::oom())).await.unwrap();
    client
        .send(&["GET k", "SET k w", "GET k", "INCR n", "PING"])
        .await;
    assert_eq!(client.reply().await, text("v"));
    assert!(is_error(&client.reply().await, "OOM"));
    assert_eq!(client.reply().await, text("v"));
    assert!(is_error(&client.reply().await, "OOM"));
    assert_eq!(client.reply().await, Value::SimpleString("PONG".into()));
    assert_eq!(
        redis.command(&["EXISTS", "n"]).await.unwrap(),
        Value::Int(0)
    );
    proxy.remove(id).await;
    assert_eq!(client.ask("SET k w").await, Value::Okay);
}

#[tokio::test]
async fn d1_an_answer_made_here_waits_on_where_the_bandwidth_is_zero() {
    let (_redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.ask("SET k v").await, Value::Okay);
    proxy.add(Toxic::new(RespError::oom())).await.unwrap();
    let none = Toxic::new(Bandwidth { rate: 0 });
    let none = proxy.add(none).await.unwrap();
    client.send(&["SET k w"]).await;
    client.hears_nothing().await;
    proxy.remove(none).await;
    assert!(is_error(&client.reply().await, "OOM"));
    assert_eq!(client.ask("GET k").await, text("v"));
}

/// Some reply of a transaction that was aborted, with that in its text.
fn is_aborted(value: &Value, because: &str) -> bool {
    matches!(value, Value::ServerError(error)
        if error.code() == "EXECABORT" && error.details().is_some_and(|text| text.contains(because)))
}

#[tokio::test]
async fn d1_a_command_refused_within_multi_aborts_its_transaction_as_on_a_real_server() {
    let (redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    let id = proxy
        .add(Toxic::new(RespError::oom().commands(&["SET"])))
        .await
        .unwrap();
    client
        .send(&["MULTI", "INCR n", "SET k v", "EXEC", "PING"])
        .await;
    assert_eq!(client.reply().await, Value::Okay);
    assert_eq!(client.reply().await, Value::SimpleString("QUEUED".into()));
    assert!(is_error(&client.reply().await, "OOM"));
    let aborted = client.reply().await;
    assert!(is_aborted(&aborted, "previous errors"), "{aborted:?}");
    assert_eq!(client.reply().await, Value::SimpleString("PONG".into()));
    assert_eq!(
        redis.command(&["EXISTS", "n", "k"]).await.unwrap(),
        Value::Int(0)
    );
    // Its end was seen: what is refused now is refused by itself.
    assert!(is_error(&client.ask("SET k v").await, "OOM"));
    client.send(&["MULTI", "INCR n", "EXEC"]).await;
    client.reply().await;
    client.reply().await;
    assert_eq!(client.reply().await, Value::Array(vec![Value::Int(1)]));
    proxy.remove(id).await;

    proxy
        .add(Toxic::new(RespError::busy().commands(&["EXEC"])))
        .await
        .unwrap();
    client.send(&["MULTI", "INCR n", "EXEC", "GET n"]).await;
    client.reply().await;
    client.reply().await;
    let aborted = client.reply().await;
    assert!(is_aborted(&aborted, "because of: BUSY"), "{aborted:?}");
    assert_eq!(client.reply().await, text("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_silence_keeps_only_so_much_and_nothing_of_it_is_lost() {
    const COMMANDS: usize = 600_000;
    const LARGE: usize = 1 << 20;
    let (redis, proxy) = redis_behind_proxy().await;
    redis
        .command(&["SET", "large", &"x".repeat(LARGE)])
        .await
        .unwrap();
    let silence = RespSilence {
        commands: vec!["ECHO".into()],
        percentage: 100.0,
    };
    for (command, count, reply) in [
        ("PING", COMMANDS, "+PONG\r\n".len()),
        ("GET large", 64, LARGE + "$1048576\r\n\r\n".len()),
    ] {
        let id = proxy.add(Toxic::new(silence.clone())).await.unwrap();
        let mut client = Client::connect(&proxy).await;
        client.send(&["ECHO first"]).await;
        let before = proxy.counters();
        let (mut from, mut to) = client.stream.into_split();
        let mut packed = redis::Cmd::new();
        command.split(' ').for_each(|arg| {
            packed.arg(arg);
        });
        let all = packed.get_packed_command().repeat(count);
        let sent = all.len() as u64;
        let writing = tokio::spawn(async move { to.write_all(&all).await.map(|()| to) });
        // Long enough to take all of it, were it taken.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let taken = proxy.counters();
        let (up, down) = (
            taken.bytes_up - before.bytes_up,
            taken.bytes_down - before.bytes_down,
        );
        let most = 24 << 20;
        assert!(
            down < most && (up < sent || count < COMMANDS),
            "{up} of {sent}, {down}"
        );
        proxy.remove(id).await;
        let expected = "$5\r\nfirst\r\n".len() + count * reply;
        let mut read = vec![0; expected];
        timeout(LIMIT * 3, from.read_exact(&mut read))
            .await
            .expect("it goes on")
            .unwrap();
        assert!(read.starts_with(b"$5\r\nfirst\r\n") && read.ends_with(b"\r\n"));
        writing.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn d1_every_state_of_a_server_can_be_had_on_demand() {
    let (_redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    for (error, word) in [
        (RespError::loading(), "LOADING"),
        (RespError::readonly(), "READONLY"),
        (RespError::moved(), "MOVED"),
        (RespError::oom(), "OOM"),
        (RespError::busy(), "BUSY"),
        (RespError::noauth(), "NOAUTH"),
        (RespError::new("MISCONF cannot persist"), "MISCONF"),
    ] {
        let id = proxy.add(Toxic::new(error)).await.unwrap();
        let answer = client.ask("SET k v").await;
        assert!(is_error(&answer, word), "{word}: {answer:?}");
        proxy.remove(id).await;
        assert_eq!(client.ask("SET k v").await, Value::Okay);
    }
}

#[tokio::test]
async fn d1_a_percentage_of_commands_fails_and_every_answer_belongs_to_its_question() {
    let (_redis, proxy) = redis_behind_proxy().await;
    proxy
        .add(Toxic::new(
            RespError::new("ERR drawn")
                .percentage(30.0)
                .commands(&["ECHO"]),
        ))
        .await
        .unwrap();
    let mut client = Client::connect(&proxy).await;
    let commands: Vec<_> = (0..1_000).map(|n| format!("ECHO {n}")).collect();
    client
        .send(&commands.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let mut failed = 0;
    for n in 0..1_000 {
        match client.reply().await {
            Value::ServerError(_) => failed += 1,
            answer => assert_eq!(answer, text(&n.to_string())),
        }
    }
    assert!((230..370).contains(&failed), "{failed}");
}

#[tokio::test]
async fn d1_a_delayed_answer_keeps_those_behind_it_waiting_in_order() {
    let (redis, proxy) = redis_behind_proxy().await;
    let delay = Duration::from_millis(200);
    let toxic = RespDelay {
        commands: vec!["get".into()],
        percentage: 100.0,
        delay,
    };
    proxy.add(Toxic::new(toxic)).await.unwrap();
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.ask("SET k v").await, Value::Okay);
    let start = Instant::now();
    client.send(&["GET k", "SET k w"]).await;
    assert_eq!(client.reply().await, text("v"));
    assert!(start.elapsed() >= delay);
    assert_eq!(client.reply().await, Value::Okay);
    assert_eq!(redis.command(&["GET", "k"]).await.unwrap(), text("w"));
}

#[tokio::test]
async fn d1_silence_lets_the_command_run_and_answers_when_it_is_over() {
    let (redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    let toxic = RespSilence {
        commands: vec!["INCR".into()],
        percentage: 100.0,
    };
    let id = proxy.add(Toxic::new(toxic)).await.unwrap();
    assert_eq!(client.ask("PING").await, Value::SimpleString("PONG".into()));
    client.send(&["INCR n", "PING"]).await;
    client.hears_nothing().await;
    assert_eq!(redis.command(&["GET", "n"]).await.unwrap(), text("1"));
    proxy.remove(id).await;
    assert_eq!(client.reply().await, Value::Int(1));
    assert_eq!(client.reply().await, Value::SimpleString("PONG".into()));
}

#[tokio::test]
async fn d1_a_false_reply_is_what_it_is_told_to_be() {
    let (_redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    let toxic = RespReply {
        commands: vec!["GET".into()],
        percentage: 100.0,
        reply: "*2\r\n:1\r\n+two\r\n".into(),
    };
    proxy.add(Toxic::new(toxic)).await.unwrap();
    let lie = Value::Array(vec![Value::Int(1), Value::SimpleString("two".into())]);
    assert_eq!(client.ask("GET k").await, lie);
    assert_eq!(client.ask("STRLEN k").await, Value::Int(0));
}

#[tokio::test]
async fn d1_pushes_and_subscriptions_pass_a_connection_that_is_followed() {
    let (redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    client.ask("HELLO 3").await;
    assert_eq!(client.ask("CLIENT TRACKING ON BCAST").await, Value::Okay);
    redis.command(&["SET", "k", "v"]).await.unwrap();
    assert!(matches!(client.reply().await, Value::Push { .. }));
    assert_eq!(client.ask("GET k").await, text("v"));

    let mut subscriber = Client::connect(&proxy).await;
    subscriber.send(&["GET k", "SUBSCRIBE a b"]).await;
    assert_eq!(subscriber.reply().await, text("v"));
    subscriber.reply().await;
    subscriber.reply().await;
    redis.command(&["PUBLISH", "b", "news"]).await.unwrap();
    assert_eq!(
        subscriber.reply().await,
        Value::Array(vec![text("message"), text("b"), text("news")])
    );
}

#[tokio::test]
async fn d1_a_connection_that_lost_its_places_is_reset_without_a_byte_of_what_came() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::builder()
        .resp(true)
        .start(server.local_addr().unwrap())
        .await
        .unwrap();
    proxy.add(Toxic::new(RespError::oom())).await.unwrap();
    // No RESP, and a reply that is too large to be followed.
    for reply in ["?what is this\r\n", "$70000000\r\nand so on"] {
        let mut client = Client::connect(&proxy).await;
        let (mut of_client, _) = timeout(LIMIT, server.accept()).await.unwrap().unwrap();
        client.send(&["GET k", "SET k v"]).await;
        let mut read = [0; 64];
        let length = timeout(LIMIT, of_client.read(&mut read)).await.unwrap();
        assert!(length.unwrap() > 0);
        of_client.write_all(reply.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let ended = timeout(LIMIT, client.stream.read_to_end(&mut heard))
            .await
            .unwrap();
        let heard = String::from_utf8_lossy(&heard);
        assert_eq!(heard, "", "{reply:?}");
        assert_eq!(
            ended.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset,
            "{reply:?}"
        );
    }
    assert_eq!(proxy.counters().unfollowed, 2);
}

#[tokio::test]
async fn d1_a_subscription_that_ends_the_following_is_counted_once() {
    let (_redis, proxy) = redis_behind_proxy().await;
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.ask("SET k v").await, Value::Okay);
    assert_eq!(proxy.counters().unfollowed, 0);
    for channel in ["one", "other"] {
        let subscribed = client.ask(&format!("SUBSCRIBE {channel}")).await;
        assert!(matches!(subscribed, Value::Array(_)), "{subscribed:?}");
    }
    assert_eq!(proxy.counters().unfollowed, 1);
}

#[tokio::test]
async fn d1_a_proxy_that_passes_bytes_follows_connections_opened_after_a_resp_fault() {
    let redis = Redis::start().await.unwrap();
    let proxy = Proxy::start(redis.addr()).await.unwrap();
    let mut before = Client::connect(&proxy).await;
    assert_eq!(before.ask("SET k v").await, Value::Okay);
    proxy
        .add(Toxic::new(RespError::new("ERR no")).toxicity(1.0))
        .await
        .unwrap();
    let mut after = Client::connect(&proxy).await;
    assert!(matches!(after.ask("GET k").await, Value::ServerError(_)));
    assert_eq!(before.ask("GET k").await, text("v"));
}

/// A certificate for `name` that signs itself, valid until that year, in files of the folder.
fn certificate(folder: &Path, name: &str, until: i32) -> (Tls, CertificateDer<'static>) {
    let key_pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let made = params.self_signed(&key_pair).unwrap();
    let cert = folder.join(format!("{name}-{until}.pem"));
    let key = folder.join(format!("{name}-{until}.key"));
    std::fs::write(&cert, made.pem()).unwrap();
    std::fs::write(&key, key_pair.serialize_pem()).unwrap();
    (
        Tls {
            ca: cert.clone(),
            cert,
            key,
            client_certificates: false,
        },
        made.der().clone(),
    )
}

/// A TLS connection to `localhost` at the proxy, by a client that believes these authorities.
async fn handshake(
    proxy: &Proxy,
    trusted: &[&CertificateDer<'static>],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    trusted
        .iter()
        .for_each(|cert| roots.add((*cert).clone()).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(proxy.addr()).await.unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into().unwrap(), stream)
        .await
}

#[tokio::test]
async fn d1_tls_passes_and_is_broken_like_plain_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (tls, cert) = certificate(folder.path(), "localhost", 2999);
    let redis = Redis::builder().tls(tls).start().await.unwrap();
    let proxy = Proxy::start(redis.addr()).await.unwrap();
    let mut client = Client::over(handshake(&proxy, &[&cert]).await.unwrap());
    assert_eq!(client.ask("PING").await, Value::SimpleString("PONG".into()));
    proxy
        .add(Toxic::new(Latency::of_millis(100)))
        .await
        .unwrap();
    let start = Instant::now();
    assert_eq!(client.ask("PING").await, Value::SimpleString("PONG".into()));
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn d1_a_running_redis_can_be_given_an_expired_or_a_wrong_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (good, cert) = certificate(folder.path(), "localhost", 2999);
    let (expired, expired_cert) = certificate(folder.path(), "localhost", 2001);
    let (wrong, wrong_cert) = certificate(folder.path(), "elsewhere", 2999);
    let redis = Redis::builder().tls(good).start().await.unwrap();
    let proxy = Proxy::start(redis.addr()).await.unwrap();
    let trusted = [&cert, &expired_cert, &wrong_cert];
    handshake(&proxy, &trusted).await.unwrap();
    for (tls, cause) in [(expired, "expired"), (wrong, "not valid for name")] {
        redis.present(&tls).await.unwrap();
        let error = handshake(&proxy, &trusted).await.unwrap_err().to_string();
        assert!(error.contains(cause), "{cause}: {error}");
    }
}
