//! From an address to a connection fit for service, phase by phase, each under its own deadline.
//!
//! A server that is reached is not yet one that serves: it may be loading its data, be a replica where a primary is wanted, or refuse the
//! password. Finding out here, before any call depends on it, is what keeps such a server out of service.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::Value;
use steadfast_core::resp::{Decoder, Limits, encode};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use crate::credentials::{Credentials, CredentialsProvider};
use crate::settings::{Address, Protocol, Role, Settings};
use crate::stream::Stream;
use crate::tls;

/// Turns a name into addresses. The default asks the system, one look-up at a time.
pub trait Resolve: std::fmt::Debug + Send + Sync {
    /// The addresses of `host`. Asked anew at every attempt to connect; where it fails, the addresses of its last success serve.
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>>;
}

type Lookup = (String, u16, JoinHandle<io::Result<Vec<SocketAddr>>>);

/// The system's resolver. A look-up that hangs is waited for by later attempts instead of being joined by another.
#[derive(Debug, Default)]
pub struct SystemResolver {
    running: tokio::sync::Mutex<Option<Lookup>>,
}

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            if let Ok(ip) = host.parse::<IpAddr>() {
                return Ok(vec![SocketAddr::new(ip, port)]);
            }
            let mut running = self.running.lock().await;
            let (_, _, task) = match &mut *running {
                Some(lookup) if lookup.0 == host && lookup.1 == port => lookup,
                other => other.insert((
                    host.clone(),
                    port,
                    tokio::spawn(async move {
                        tokio::net::lookup_host((host, port))
                            .await
                            .map(Iterator::collect)
                    }),
                )),
            };
            let found = task.await;
            *running = None;
            found.unwrap_or_else(|error| Err(io::Error::other(error)))
        })
    }
}

/// Why an attempt to connect failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name could not be resolved.
    #[error("cannot resolve `{host}`: {cause}")]
    Dns {
        /// The name.
        host: String,
        /// Why.
        cause: String,
    },
    /// No TCP connection (or Unix socket) could be opened.
    #[error("cannot connect to {address}: {cause}")]
    Tcp {
        /// Where to.
        address: String,
        /// Why.
        cause: String,
    },
    /// The TLS handshake failed.
    #[error("tls to {address} failed: {cause}")]
    Tls {
        /// Where to.
        address: String,
        /// Why, and what to do.
        cause: String,
    },
    /// A phase took longer than it may.
    #[error("{phase} took longer than {limit:?}")]
    TimedOut {
        /// `dns`, `tcp`, `tls`, `credentials` or `handshake`.
        phase: &'static str,
        /// Its deadline.
        limit: Duration,
    },
    /// Credentials could not be had.
    #[error("no credentials: {0}")]
    Credentials(String),
    /// The server refused the credentials, or wants some.
    #[error("the server refused the credentials: {0}")]
    Auth(String),
    /// The server is loading its data.
    #[error("the server is loading its data")]
    Loading,
    /// The server is a replica, and a primary is wanted.
    #[error("the server is a replica, and a primary is wanted")]
    Replica,
    /// The server has no place for another client.
    #[error("the server has reached its maximum of clients (maxclients)")]
    MaxClients,
    /// The server answered the handshake with another error.
    #[error("the server refused the handshake: {0}")]
    Refused(String),
    /// What answers is not a Redis server.
    #[error("what answers at {address} is not a redis server: {why}")]
    NotRedis {
        /// Where.
        address: String,
        /// What is odd.
        why: String,
    },
    /// The connection ended in the handshake.
    #[error("the connection ended during the handshake: {0}")]
    Ended(String),
}

/// What the server said of itself.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) role: String,
    pub(crate) tls: Option<String>,
    pub(crate) identity: Option<Identity>,
    /// Whether this user may kill connections, and if not, why.
    pub(crate) fencing: Result<(), String>,
}

impl Default for ServerFacts {
    fn default() -> Self {
        Self {
            address: String::new(),
            version: String::new(),
            role: String::new(),
            tls: None,
            identity: None,
            fencing: Ok(()),
        }
    }
}

/// What the server calls our connection: enough to have it killed, and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) addr: String,
}

impl Identity {
    /// A connection that cannot be: killing it shows whether killing is allowed.
    fn nobody() -> Self {
        Self {
            id: i64::MAX,
            addr: "0.0.0.0:0".into(),
        }
    }

    /// The command that kills the connection, and only this one: a restarted server gives ids anew, but hardly with the same address.
    pub(crate) fn kill(&self) -> Vec<u8> {
        command(&[
            "CLIENT",
            "KILL",
            "ID",
            &self.id.to_string(),
            "ADDR",
            &self.addr,
        ])
    }
}

/// A connection fit for service.
pub(crate) struct Established {
    pub(crate) stream: Stream,
    pub(crate) facts: ServerFacts,
    /// What the handshake authenticated with.
    pub(crate) credentials: Option<Credentials>,
    /// What was answered to the fences, in their order.
    pub(crate) fences: Vec<Result<(), String>>,
}

/// Connects. One per client, as it remembers the last good addresses.
#[derive(Debug)]
pub(crate) struct Connector {
    settings: Arc<Settings>,
    provider: Option<Arc<dyn CredentialsProvider>>,
    last_good: Mutex<Vec<SocketAddr>>,
}

/// Between attempts on the addresses of one name, as RFC 8305 recommends.
const STAGGER: Duration = Duration::from_millis(250);

impl Connector {
    pub(crate) fn new(
        settings: Arc<Settings>,
        provider: Option<Arc<dyn CredentialsProvider>>,
    ) -> Self {
        Self {
            settings,
            provider,
            last_good: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn provider(&self) -> Option<&Arc<dyn CredentialsProvider>> {
        self.provider.as_ref()
    }

    /// One attempt. `limit` is each phase's deadline; `fences` are connections to kill before anything else.
    pub(crate) async fn connect(
        &self,
        limit: Duration,
        fences: &[Identity],
    ) -> Result<Established, ConnectError> {
        let credentials = self.credentials(limit).await?;
        let (stream, address) = match &self.settings.target.address {
            Address::Unix(path) => {
                let open = UnixStream::connect(path);
                let stream = within("tcp", limit, open)
                    .await?
                    .map_err(|error| tcp_error(&path.display().to_string(), &error))?;
                (Stream::Unix(stream), path.display().to_string())
            }
            Address::Tcp { host, port } => self.connect_tcp(host, *port, limit).await?,
        };
        let handshake = Handshake {
            settings: &self.settings,
            credentials: credentials.as_ref(),
            fences,
            address: &address,
        };
        let (stream, mut facts, fences) =
            within("handshake", limit, handshake.perform(stream)).await??;
        facts.address = address;
        Ok(Established {
            stream,
            facts,
            credentials,
            fences,
        })
    }

    pub(crate) async fn credentials(
        &self,
        limit: Duration,
    ) -> Result<Option<Credentials>, ConnectError> {
        match &self.provider {
            Some(provider) => within("credentials", limit, provider.credentials())
                .await?
                .map(Some)
                .map_err(|error| ConnectError::Credentials(error.to_string())),
            None => Ok(None),
        }
    }

    async fn connect_tcp(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> Result<(Stream, String), ConnectError> {
        let addresses = self.resolve(host, port, limit).await?;
        let tcp = within("tcp", limit, race(&addresses))
            .await?
            .map_err(|error| tcp_error(&format!("{host}:{port}"), &error))?;
        tune(&tcp);
        let address = tcp
            .peer_addr()
            .map_or_else(|_| format!("{host}:{port}"), |peer| peer.to_string());
        let Some(tls) = &self.settings.tls else {
            return Ok((Stream::Tcp(tcp), address));
        };
        let failed = |cause| ConnectError::Tls {
            address: address.clone(),
            cause,
        };
        let name = tls.name_for(host).map_err(failed)?;
        let config = tls
            .config()
            .ok_or_else(|| failed("tls is not prepared".into()))?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = within("tls", limit, connector.connect(name, tcp))
            .await?
            .map_err(|error| failed(tls::explain(&error)))?;
        Ok((Stream::Tls(Box::new(stream)), address))
    }

    async fn resolve(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let found = within("dns", limit, self.settings.resolver.resolve(host, port)).await;
        let error = match found {
            Ok(Ok(addresses)) if !addresses.is_empty() => {
                let addresses = interleave(addresses);
                self.last_good.lock().clone_from(&addresses);
                return Ok(addresses);
            }
            Ok(Ok(_)) => ConnectError::Dns {
                host: host.into(),
                cause: "it has no address".into(),
            },
            Ok(Err(error)) => ConnectError::Dns {
                host: host.into(),
                cause: error.to_string(),
            },
            Err(timed_out) => timed_out,
        };
        let last_good = self.last_good.lock().clone();
        if last_good.is_empty() {
            return Err(error);
        }
        tracing::debug!(host, %error, "name not resolved, using its last good addresses");
        Ok(last_good)
    }
}

async fn within<T>(
    phase: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, ConnectError> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| ConnectError::TimedOut { phase, limit })
}

fn tcp_error(address: &str, error: &io::Error) -> ConnectError {
    let cause = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused: nothing listens there, or it is not the right port".into()
        }
        io::ErrorKind::NotFound => "no such socket".into(),
        _ => error.to_string(),
    };
    ConnectError::Tcp {
        address: address.into(),
        cause,
    }
}

/// IPv6 and IPv4 in turns, the resolver's first choice first (RFC 8305, section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut a, mut b): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut mixed = Vec::with_capacity(a.len() + b.len());
    a.reverse();
    b.reverse();
    while let Some(next) = a.pop() {
        mixed.push(next);
        mixed.extend(b.pop());
    }
    b.reverse();
    mixed.extend(b);
    mixed
}

/// Tries each address, the next one when the last has failed or is slow; the first that opens wins (RFC 8305, section 5).
async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut last_error = None;
    loop {
        match waiting.next() {
            Some(address) => attempts.push(TcpStream::connect(*address)),
            None if attempts.is_empty() => {
                return Err(last_error.unwrap_or_else(|| io::Error::other("no address to try")));
            }
            None => {}
        }
        let patience = if waiting.len() == 0 {
            Duration::from_secs(3600)
        } else {
            STAGGER
        };
        match tokio::time::timeout(patience, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => last_error = Some(error),
            Ok(None) | Err(_) => {}
        }
    }
}

/// No delay for small writes; and the kernel gives up a peer that acknowledges nothing, should all our own watches fail.
fn tune(tcp: &TcpStream) {
    let socket = socket2::SockRef::from(tcp);
    let _ = socket.set_tcp_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(1))
        .with_retries(5);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(30)));
}

fn command(args: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::command(args.iter().map(|arg| arg.as_bytes()), &mut out);
    out
}

/// The command that gives new credentials to a live connection.
pub(crate) fn auth(credentials: &Credentials) -> Vec<u8> {
    command(&["AUTH", credentials.user(), credentials.password()])
}

struct Handshake<'a> {
    settings: &'a Settings,
    credentials: Option<&'a Credentials>,
    fences: &'a [Identity],
    address: &'a str,
}

type Fenced = Vec<Result<(), String>>;

impl Handshake<'_> {
    async fn perform(
        &self,
        mut stream: Stream,
    ) -> Result<(Stream, ServerFacts, Fenced), ConnectError> {
        let mut wire = Wire::new(&mut stream, self.address);
        let mut first = self.hello();
        self.settle(&mut first);
        let mut replies = wire.exchange(&first).await?;
        let hello = replies.remove(0);
        let mut facts = ServerFacts::default();
        match as_error(&hello) {
            None => read_hello(&hello, &mut facts),
            Some((code, text)) if knows_no_hello(&code, &text) => {
                // Older than Redis 6, or an ACL without HELLO.
                let mut again = self.old_hello();
                let own = again.len();
                self.settle(&mut again);
                replies = wire.exchange(&again).await?;
                for reply in replies.drain(..own) {
                    refused(&reply)?;
                }
                facts.role = "unknown".into();
            }
            Some(_) => refused(&hello)?,
        }
        let fences = self.read_settled(replies, &mut facts)?;
        if self.settings.role == Role::Primary && matches!(facts.role.as_str(), "replica" | "slave")
        {
            return Err(ConnectError::Replica);
        }
        facts.tls = tls_facts(&stream);
        Ok((stream, facts, fences))
    }

    fn hello(&self) -> Vec<Vec<u8>> {
        let protocol = match self.settings.target.protocol {
            Protocol::Resp2 => "2",
            Protocol::Resp3 => "3",
        };
        let mut hello = vec!["HELLO", protocol];
        if let Some(credentials) = self.credentials {
            hello.extend(["AUTH", credentials.user(), credentials.password()]);
        }
        if let Some(name) = &self.settings.name {
            hello.extend(["SETNAME", name]);
        }
        vec![command(&hello)]
    }

    fn old_hello(&self) -> Vec<Vec<u8>> {
        match self.credentials {
            Some(credentials) if credentials.user() == "default" => {
                vec![command(&["AUTH", credentials.password()])]
            }
            Some(credentials) => vec![auth(credentials)],
            None => Vec::new(),
        }
    }

    /// What follows the greeting: database, our identity, is it fit for service, fences.
    fn settle(&self, commands: &mut Vec<Vec<u8>>) {
        commands.push(command(&["CLIENT", "SETINFO", "LIB-NAME", "steadfast"]));
        let db = self.settings.target.db.to_string();
        commands.push(command(&["SELECT", &db]));
        commands.push(command(&["CLIENT", "INFO"]));
        commands.push(command(&["PING"]));
        commands.push(Identity::nobody().kill());
        commands.extend(self.fences.iter().map(Identity::kill));
    }

    fn read_settled(
        &self,
        replies: Vec<Value>,
        facts: &mut ServerFacts,
    ) -> Result<Fenced, ConnectError> {
        let mut replies = replies.into_iter().skip(1);
        let mut next = || replies.next().unwrap_or(Value::Nil);
        let (selected, info, ping, may_kill) = (next(), next(), next(), next());
        // The PING first: LOADING and MASTERDOWN answer everything, and are the better reason.
        if !matches!(as_error(&ping), Some((code, _)) if code == "NOPERM") {
            refused(&ping)?;
        }
        if self.settings.target.db != 0 {
            refused(&selected)?;
        }
        facts.identity = match &info {
            Value::BulkString(text) => parse_identity(&String::from_utf8_lossy(text)),
            Value::VerbatimString { text, .. } => parse_identity(text),
            _ => None,
        };
        facts.fencing = match &facts.identity {
            Some(_) => fence_result(&may_kill),
            None => Err("CLIENT INFO does not tell who this connection is".into()),
        };
        Ok(replies.map(|reply| fence_result(&reply)).collect())
    }
}

/// What a server answered to CLIENT KILL: killed, or gone already, or not allowed.
pub(crate) fn fence_result(reply: &Value) -> Result<(), String> {
    match as_error(reply) {
        Some((code, text)) if !text.contains("No such client") => Err(format!("{code} {text}")),
        _ => Ok(()),
    }
}

fn knows_no_hello(code: &str, text: &str) -> bool {
    code == "ERR" && text.contains("unknown command") || code == "NOPERM" && text.contains("hello")
}

fn as_error(reply: &Value) -> Option<(String, String)> {
    match reply {
        Value::ServerError(error) => Some((
            error.code().to_owned(),
            error.details().unwrap_or_default().to_owned(),
        )),
        _ => None,
    }
}

fn refused(reply: &Value) -> Result<(), ConnectError> {
    let Some((code, text)) = as_error(reply) else {
        return Ok(());
    };
    Err(match code.as_str() {
        "LOADING" => ConnectError::Loading,
        "MASTERDOWN" => ConnectError::Replica,
        "WRONGPASS" | "NOAUTH" | "NOPERM" => ConnectError::Auth(format!("{code} {text}")),
        "ERR" if text.starts_with("max number of clients") => ConnectError::MaxClients,
        "ERR" if text.contains("AUTH") || text.contains("password") => ConnectError::Auth(text),
        _ => ConnectError::Refused(format!("{code} {text}")),
    })
}

fn read_hello(hello: &Value, facts: &mut ServerFacts) {
    let pairs: Vec<(&Value, &Value)> = match hello {
        Value::Map(pairs) => pairs.iter().map(|(key, value)| (key, value)).collect(),
        Value::Array(items) => items
            .chunks_exact(2)
            .map(|pair| (&pair[0], &pair[1]))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in pairs {
        match text(key).as_str() {
            "version" => facts.version = text(value),
            "role" => facts.role = text(value),
            _ => {}
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    }
}

fn parse_identity(info: &str) -> Option<Identity> {
    let field = |name: &str| {
        info.split_whitespace()
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    Some(Identity {
        id: field("id")?.parse().ok()?,
        addr: field("addr")?.to_owned(),
    })
}

fn tls_facts(stream: &Stream) -> Option<String> {
    match stream {
        Stream::Tls(tls) => {
            let (_, session) = tls.get_ref();
            let version = session.protocol_version()?.as_str()?;
            let suite = session.negotiated_cipher_suite()?.suite();
            Some(format!("{version} {}", suite.as_str()?))
        }
        Stream::Tcp(_) | Stream::Unix(_) => None,
    }
}

/// The stream during the handshake: commands out, as many replies in.
struct Wire<'a> {
    stream: &'a mut Stream,
    decoder: Decoder,
    input: BytesMut,
    address: &'a str,
}

impl<'a> Wire<'a> {
    fn new(stream: &'a mut Stream, address: &'a str) -> Self {
        Self {
            stream,
            decoder: Decoder::new(Limits::default()),
            input: BytesMut::with_capacity(4096),
            address,
        }
    }

    async fn exchange(&mut self, commands: &[Vec<u8>]) -> Result<Vec<Value>, ConnectError> {
        // A server that is full says so and closes before it reads: what it said is worth more than the failure to write.
        let written = self.stream.write_all(&commands.concat()).await;
        let _ = self.stream.flush().await;
        let mut replies = Vec::with_capacity(commands.len());
        while replies.len() < commands.len() {
            match self.reply().await {
                Ok(Value::Push { .. }) => {}
                Ok(reply) => {
                    if replies.is_empty() && is_full(&reply) {
                        return Err(ConnectError::MaxClients);
                    }
                    replies.push(reply);
                }
                Err(error) => {
                    return Err(match written {
                        Err(write) if matches!(error, ConnectError::Ended(_)) => {
                            ConnectError::Ended(write.to_string())
                        }
                        _ => error,
                    });
                }
            }
        }
        Ok(replies)
    }

    async fn reply(&mut self) -> Result<Value, ConnectError> {
        loop {
            if !self.input.is_empty() {
                self.looks_like_tls()?;
                let decoded =
                    self.decoder
                        .decode(&self.input)
                        .map_err(|error| ConnectError::NotRedis {
                            address: self.address.into(),
                            why: error.to_string(),
                        })?;
                bytes::Buf::advance(&mut self.input, decoded.consumed);
                if let Some(value) = decoded.value {
                    return Ok(value);
                }
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => {
                    return Err(ConnectError::Ended(
                        "the server closed it; if it speaks TLS on this port, use rediss://".into(),
                    ));
                }
                Ok(_) => {}
                Err(error) => {
                    return Err(ConnectError::Ended(match self.stream {
                        Stream::Tls(_) => tls::explain(&error),
                        // A TLS server that is told plain text may reset the connection before its alert is read.
                        Stream::Tcp(_) | Stream::Unix(_) => {
                            format!("{error}; if the server speaks TLS on this port, use rediss://")
                        }
                    }));
                }
            }
        }
    }

    /// A TLS server answers plain text with an alert record: 21, then a version that begins with 3.
    fn looks_like_tls(&self) -> Result<(), ConnectError> {
        if self.input.starts_with(&[21, 3]) && self.decoder.is_idle() {
            return Err(ConnectError::Tls {
                address: self.address.into(),
                cause: "the server speaks TLS on this port: use rediss://".into(),
            });
        }
        Ok(())
    }
}

fn is_full(reply: &Value) -> bool {
    as_error(reply).is_some_and(|(_, text)| text.starts_with("max number of clients"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let v4 = |n| SocketAddr::from(([127, 0, 0, n], 1));
        let v6 = |n| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, n], 1));
        assert_eq!(
            interleave(vec![v6(1), v6(2), v4(1), v4(2)]),
            vec![v6(1), v4(1), v6(2), v4(2)]
        );
        assert_eq!(interleave(vec![v4(1), v6(1)]), vec![v4(1), v6(1)]);
    }

    #[test]
    fn an_identity_is_read_from_client_info() {
        let identity = parse_identity("id=7 addr=127.0.0.1:5 laddr=127.0.0.1:6379 fd=8 name=")
            .expect("it has both");
        assert_eq!(identity.id, 7);
        assert_eq!(identity.addr, "127.0.0.1:5");
    }
}
