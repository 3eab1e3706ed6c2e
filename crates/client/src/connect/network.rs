//! Sockets from the real network: a name is resolved anew, and TLS is spoken if it is wanted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};

use super::resolve::interleave;
use super::{ConnectError, Place, Transport, WaitsFor, within};
use crate::settings::{Address, Settings};
use crate::stream::Stream;

/// See the module. One per client, as it remembers the last good addresses.
#[derive(Debug)]
pub(crate) struct Network {
    settings: Arc<Settings>,
    last_good: Mutex<Vec<SocketAddr>>,
}

impl Transport for Network {
    fn places(&self, limit: Duration) -> BoxFuture<'_, Result<Vec<Place>, ConnectError>> {
        Box::pin(async move {
            match &self.settings.target.address {
                Address::Unix(_) => Ok(vec![Place::Itself]),
                Address::Tcp { host, port } => {
                    let addresses = self.resolve(host, *port, limit).await?;
                    Ok(addresses.into_iter().map(Place::Tcp).collect())
                }
            }
        })
    }

    fn open<'a>(
        &'a self,
        place: Place,
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
                (Address::Tcp { host, .. }, Place::Tcp(addr)) => {
                    self.open_tcp(host, addr, limit, waits_for).await
                }
                (Address::Tcp { host, .. }, Place::Itself) => Err(ConnectError::Dns {
                    host: host.clone(),
                    cause: "it has no address".into(),
                }),
            }
        })
    }
}

impl Network {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            last_good: Mutex::new(Vec::new()),
        }
    }

    async fn open_tcp(
        &self,
        host: &str,
        addr: SocketAddr,
        limit: Duration,
        waits_for: &WaitsFor,
    ) -> Result<(Stream, String), ConnectError> {
        let address = addr.to_string();
        waits_for.now(format!("{address} has not accepted a TCP connection yet"));
        let tcp = within("tcp", limit, TcpStream::connect(addr))
            .await?
            .map_err(|error| match host.parse::<IpAddr>() {
                Ok(_) => tcp_error(&address, &error),
                Err(_) => tcp_error(&format!("{host} ({address})"), &error),
            })?;
        tune(&tcp);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Target;

    #[tokio::test]
    async fn c7_the_kernel_watches_each_connection_too() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let target = Target::parse(&format!("redis://127.0.0.1:{port}")).expect("a good url");
        let network = Network::new(Arc::new(Settings::new(target)));
        let place = Place::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
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
}
