//! Sockets from the real network: a name is resolved anew, and TLS is spoken if it is wanted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use steadfast_core::node::Endpoint;
use steadfast_core::sentinel::Primacy;
use tokio::net::{TcpStream, UnixStream};

use super::{Found, Location, Transport, WaitsFor, within};
use crate::error::connect::ConnectError;
use crate::resolve::{interleave, is_name, race};
use crate::sentinel::Discovery;
use crate::settings::Settings;
use crate::target::Address;
use crate::wire::stream::Stream;

/// The real network.
#[derive(Debug)]
pub(crate) struct Network {
    settings: Arc<Settings>,
    discovery: Option<Arc<Discovery>>,
    /// The host of the primary that was looked for last, as the sentinels name it.
    named: Mutex<Option<Arc<str>>>,
}

impl Transport for Network {
    fn places(&self, limit: Duration) -> BoxFuture<'_, Result<Found, ConnectError>> {
        Box::pin(async move {
            match &self.settings.target.address {
                Address::Unix(_) => Ok(Found::of([Location::Unix])),
                Address::Tcp { host, port } => {
                    let addresses = self.resolve(host, *port, limit).await?;
                    Ok(Found::of(addresses.into_iter().map(Location::Tcp)))
                }
                Address::Sentinel(_) => self.places_of_primary(limit).await,
                Address::Cluster(_) => Err(many_servers()),
            }
        })
    }

    fn open<'a>(
        &'a self,
        place: Location,
        limit: Duration,
        waits_for: &'a WaitsFor,
    ) -> BoxFuture<'a, Result<(Stream, String), ConnectError>> {
        Box::pin(async move {
            match (&self.settings.target.address, place) {
                (Address::Unix(path), _) => {
                    let address = path.display().to_string();
                    let stream = within("tcp", limit, UnixStream::connect(path))
                        .await?
                        .map_err(|error| tcp_error(&address, &error))?;
                    Ok((Stream::Unix(stream), address))
                }
                (Address::Tcp { host, .. }, Location::Tcp(addr)) => {
                    self.open_tcp(host, addr, limit, waits_for).await
                }
                (Address::Sentinel(target), Location::Tcp(addr)) => {
                    let named = self.named.lock().clone();
                    let host = named.unwrap_or_else(|| addr.ip().to_string().into());
                    let host = name_in_certificate(&host, &target.seeds);
                    self.open_tcp(&host, addr, limit, waits_for).await
                }
                (Address::Cluster(_), _) => Err(many_servers()),
                (Address::Sentinel(target), Location::Unix) => Err(ConnectError::NoPrimary {
                    service: target.service.to_string(),
                    why: "it is none of a name".into(),
                }),
                (Address::Tcp { host, .. }, Location::Unix) => Err(ConnectError::Dns {
                    host: host.clone(),
                    cause: "it has no address".into(),
                }),
            }
        })
    }
}

impl Network {
    pub(crate) fn new(settings: Arc<Settings>, discovery: Option<Arc<Discovery>>) -> Self {
        Self {
            settings,
            discovery,
            named: Mutex::new(None),
        }
    }

    /// The addresses of the primary that the sentinels name.
    async fn places_of_primary(&self, limit: Duration) -> Result<Found, ConnectError> {
        let Some(discovery) = &self.discovery else {
            return Ok(Found::default());
        };
        let Primacy { primary, term, .. } = discovery.primary(limit).await?;
        *self.named.lock() = Some(Arc::clone(&primary.host));
        let addresses = self.resolve(&primary.host, primary.port, limit).await?;
        let found = Found::of(addresses.into_iter().map(Location::Tcp));
        Ok(Found {
            term: term.0,
            ..found
        })
    }

    pub(crate) async fn open_tcp(
        &self,
        host: &str,
        addr: SocketAddr,
        limit: Duration,
        waits_for: &WaitsFor,
    ) -> Result<(Stream, String), ConnectError> {
        let address = addr.to_string();
        waits_for.now(format!("{address} has not accepted a TCP connection yet"));
        let tcp = connect_tcp(host, addr, limit).await?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.settings.tls {
            waits_for.now(format!(
                "{address} has not answered in TLS yet: does the server speak TLS on this port?"
            ));
            let stream = tls.wrap(tcp, host, &address, limit).await?;
            return Ok((Stream::Tls(Box::new(stream)), address));
        }
        Ok((Stream::Tcp(tcp), address))
    }

    pub(crate) async fn resolve(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        resolved(&self.settings, host, port, limit).await
    }
}

/// Resolves a name anew. Where that fails, its last good addresses serve.
pub(crate) async fn resolved(
    settings: &Settings,
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |cause| ConnectError::Dns {
        host: host.into(),
        cause,
    };
    let names = &settings.names;
    let name = Endpoint::new(host, port);
    let found = within("dns", limit, names.resolver.resolve(host, port)).await;
    let found = found.and_then(|found| match found {
        Ok(addresses) if addresses.is_empty() => Err(failed("it has no address".into())),
        Ok(addresses) => Ok(interleave(addresses)),
        Err(error) => Err(failed(error.to_string())),
    });
    match found {
        Ok(addresses) => {
            names.note(name, addresses.clone());
            Ok(addresses)
        }
        Err(error) => {
            let addresses = names.last_good(&name).ok_or_else(|| error.clone())?;
            tracing::debug!(host, %error, "name not resolved, using its last good addresses");
            Ok(addresses)
        }
    }
}

async fn connect_tcp(
    host: &str,
    addr: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let tcp = within("tcp", limit, TcpStream::connect(addr))
        .await?
        .map_err(|error| match host.parse::<IpAddr>() {
            Ok(_) => tcp_error(&addr.to_string(), &error),
            Err(_) => tcp_error(&format!("{host} ({addr})"), &error),
        })?;
    tune(&tcp);
    Ok(tcp)
}

/// Asks a node of a cluster at whichever of its addresses gives an answer: who accepts a connection
/// there may not be the one to ask.
pub(crate) async fn ask_at_each<T, A: Future<Output = Result<T, ConnectError>>>(
    settings: &Settings,
    at: &Endpoint,
    limit: Duration,
    ask: impl Fn(SocketAddr) -> A,
) -> Result<T, ConnectError> {
    let addresses = resolved(settings, &at.host, at.port, limit).await?;
    let asked = race(&addresses, limit, ask);
    // TCP, TLS and the answers of the slowest.
    let asked = within("connect", limit.saturating_mul(3), asked).await?;
    asked.map_err(|errors| super::most_telling(errors).unwrap_or(ConnectError::Panicked))
}

/// The error where no node of a cluster was named.
fn many_servers() -> ConnectError {
    ConnectError::NoNode {
        why: "none was named".into(),
    }
}

/// Opens a connection to a sentinel, at whichever of its addresses `greet` succeeds: who accepts a
/// connection there may be frozen, or no sentinel. `greet` is told whether it is the only one.
pub(crate) async fn dial_sentinel<G>(
    settings: &Settings,
    at: &Endpoint,
    limit: Duration,
    greet: impl Fn(Stream, String, bool) -> G,
) -> Result<(Stream, String), ConnectError>
where
    G: Future<Output = Result<(Stream, String), ConnectError>>,
{
    let addresses = resolved(settings, &at.host, at.port, limit).await?;
    let is_only = addresses.len() == 1;
    let greet = &greet;
    let attempts = race(&addresses, limit, |addr| async move {
        let (stream, address) = open_to_sentinel(settings, at, addr, limit).await?;
        greet(stream, address, is_only).await
    });
    // TCP, TLS and the greeting of the slowest.
    let opened = within("connect", limit.saturating_mul(4), attempts).await?;
    opened.map_err(|errors| super::most_telling(errors).unwrap_or(ConnectError::Panicked))
}

async fn open_to_sentinel(
    settings: &Settings,
    at: &Endpoint,
    addr: SocketAddr,
    limit: Duration,
) -> Result<(Stream, String), ConnectError> {
    let tcp = connect_tcp(&at.host, addr, limit).await?;
    let address = addr.to_string();
    #[cfg(feature = "tls")]
    if let Some(tls) = settings.tls_to_sentinels() {
        // One that others have told of is announced by its IP address, as a rule.
        let name = match &settings.target.address {
            Address::Sentinel(target) => name_in_certificate(&at.host, &target.seeds),
            _ => at.host.to_string(),
        };
        let stream = tls.wrap(tcp, &name, &address, limit).await?;
        return Ok((Stream::Tls(Box::new(stream)), address));
    }
    #[cfg(not(feature = "tls"))]
    let _ = settings;
    Ok((Stream::Tcp(tcp), address))
}

/// The name that a certificate is expected to carry: the announced one; where that is a bare IP
/// address, the first name among the seeds, by which a person knows the deployment.
fn name_in_certificate(announced: &str, seeds: &[Endpoint]) -> String {
    let seed = seeds.iter().find(|seed| is_name(&seed.host));
    match seed {
        Some(seed) if !is_name(announced) => seed.host.to_string(),
        _ => announced.to_owned(),
    }
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

/// No delay for small writes; and the kernel gives up a peer that acknowledges nothing, should all
/// our own watches fail.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::Names;
    use crate::target::Target;

    #[tokio::test]
    async fn c7_the_kernel_watches_each_connection_too() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let target = Target::parse(&format!("redis://127.0.0.1:{port}")).expect("a good url");
        let network = Network::new(Arc::new(Settings::new(target)), None);
        let place = Location::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        let opened = network
            .open(place, Duration::from_secs(20), &WaitsFor::default())
            .await;
        let Ok((Stream::Tcp(tcp), _)) = opened else {
            panic!("it listens: {opened:?}");
        };
        let socket = socket2::SockRef::from(&tcp);
        assert!(socket.tcp_nodelay().expect("it can be asked"));
        assert!(socket.keepalive().expect("it can be asked"));
        let (time, interval, retries) = (
            socket.tcp_keepalive_time(),
            socket.tcp_keepalive_interval(),
            socket.tcp_keepalive_retries(),
        );
        assert_eq!(time.ok(), Some(Duration::from_secs(5)));
        assert_eq!(interval.ok(), Some(Duration::from_secs(1)));
        assert_eq!(retries.ok(), Some(5));
        #[cfg(target_os = "linux")]
        assert_eq!(
            socket.tcp_user_timeout().ok(),
            Some(Some(Duration::from_secs(30)))
        );
    }

    /// Answers once.
    #[derive(Debug, Default)]
    struct Forgetful(std::sync::atomic::AtomicBool);

    impl crate::resolve::Resolve for Forgetful {
        fn resolve(&self, _host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
            let known = !self.0.swap(true, std::sync::atomic::Ordering::Relaxed);
            Box::pin(std::future::ready(match known {
                true => Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
                false => Err(io::Error::other("gone")),
            }))
        }
    }

    #[tokio::test]
    async fn t18_the_last_good_addresses_of_one_server_are_not_those_of_another() {
        let target = Target::parse("redis://h").expect("a good url");
        let mut settings = Settings::new(target);
        settings.names = Arc::new(Names::new(Forgetful::default()));
        let network = Network::new(Arc::new(settings), None);
        let limit = Duration::from_secs(20);
        let first = network.resolve("h", 1, limit).await;
        assert!(first.is_ok(), "{first:?}");
        let again = network.resolve("h", 1, limit).await;
        assert!(again.is_ok(), "its last good addresses: {again:?}");
        let other = network.resolve("h", 2, limit).await;
        assert!(other.is_err(), "{other:?}");
    }
}
