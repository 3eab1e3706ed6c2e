//! From an address to a connection fit for service, phase by phase, each under its own deadline.
//!
//! A server that is reached is not yet one that serves: it may be loading its data, be a replica where a primary is wanted, or refuse the
//! password. Finding out here, before any call depends on it, is what keeps such a server out of service.

mod handshake;
mod resolve;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};

use self::handshake::Handshake;
pub(crate) use self::handshake::{Identity, ServerFacts, auth, fence_result};
pub use self::resolve::{Resolve, SystemResolver};
use self::resolve::{interleave, race};
use crate::credentials::{Credentials, CredentialsProvider};
use crate::settings::{Address, Settings};
use crate::stream::Stream;
use crate::tls;

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
    /// The credentials provider or the resolver panicked.
    #[error("the credentials provider or the resolver panicked")]
    Panicked,
    /// The connection ended in the handshake.
    #[error("the connection ended during the handshake: {0}")]
    Ended(String),
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
        let tcp = within("tcp", limit, race(&addresses, limit))
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
            .await
            .map_err(|_| {
                failed(format!(
                    "no answer within {limit:?}: does the server speak TLS on this port?"
                ))
            })?
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
