//! From a name to the one of its addresses that serves: resolved anew each time, all of them tried,
//! both families in turns.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use steadfast_core::node::Endpoint;

/// Turns a name into addresses. The default asks the system, one look-up at a time.
///
/// ```
/// use std::io;
/// use std::net::SocketAddr;
/// use futures_util::future::BoxFuture;
/// use steadfast::{Client, Resolve, SystemResolver};
///
/// /// Whoever the registry says is the primary; other names as ever.
/// #[derive(Debug, Default)]
/// struct Registry(SystemResolver);
///
/// impl Resolve for Registry {
///     fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
///         if host != "primary.example" {
///             return self.0.resolve(host, port);
///         }
///         Box::pin(async move { Ok(vec![([10, 0, 0, 7], port).into()]) })
///     }
/// }
///
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let builder = Client::builder("redis://primary.example")?.resolver(Registry::default());
/// # Ok(()) }
/// ```
pub trait Resolve: std::fmt::Debug + Send + Sync {
    /// The addresses of `host`. Asked anew at every attempt to connect; where it fails, the
    /// addresses of its last success serve.
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>>;
}

/// A look-up under way, which all wait for that ask for the same.
type Lookup = Shared<BoxFuture<'static, Result<Vec<SocketAddr>, Arc<io::Error>>>>;

/// The system's resolver. A look-up that hangs is waited for by later attempts instead of being
/// joined by another, and holds up no other name.
#[derive(Debug, Default)]
pub struct SystemResolver {
    running: Arc<Mutex<HashMap<(String, u16), Lookup>>>,
}

/// The most look-ups at the same time: each keeps a thread until the system answers.
const LOOKUPS: usize = 64;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            if let Ok(ip) = host.parse::<IpAddr>() {
                return Ok(vec![SocketAddr::new(ip, port)]);
            }
            let found = self.lookup((host, port), look_up)?.await;
            found.map_err(|error| io::Error::new(error.kind(), error.to_string()))
        })
    }
}

impl SystemResolver {
    /// The look-up of this name: the one under way, or a new one, by a thread of its own.
    fn lookup(
        &self,
        of: (String, u16),
        by: impl FnOnce(&(String, u16)) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Lookup> {
        let mut running = self.running.lock();
        if let Some(lookup) = running.get(&of) {
            return Ok(lookup.clone());
        }
        if running.len() >= LOOKUPS {
            let why = format!("{LOOKUPS} look-ups of names have no answer yet");
            return Err(io::Error::other(why));
        }
        let ends = Ending {
            of: of.clone(),
            running: Arc::downgrade(&self.running),
        };
        // Begun by the first who waits: not under the lock, which its end needs.
        let found = async move {
            let task = tokio::task::spawn_blocking(move || {
                let ends = ends;
                by(&ends.of).map_err(Arc::new)
            });
            let found = task.await;
            found.unwrap_or_else(|error| Err(Arc::new(io::Error::other(error))))
        };
        let lookup = found.boxed().shared();
        running.insert(of, lookup.clone());
        Ok(lookup)
    }
}

/// Takes a look-up from among those under way when it has ended, or never begins.
struct Ending {
    of: (String, u16),
    running: Weak<Mutex<HashMap<(String, u16), Lookup>>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(running) = self.running.upgrade() {
            let ended = running.lock().remove(&self.of);
            drop(ended);
        }
    }
}

fn look_up((host, port): &(String, u16)) -> io::Result<Vec<SocketAddr>> {
    (host.as_str(), *port)
        .to_socket_addrs()
        .map(Iterator::collect)
}

/// The resolver of a client, with the last good addresses of the names that it was asked for.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) resolver: Arc<dyn Resolve>,
    last_good: Mutex<BTreeMap<Endpoint, Vec<SocketAddr>>>,
}

/// The most names whose last good addresses are kept: those of the largest cluster.
const NAMES: usize = 2_048;

impl Names {
    pub(crate) fn new(resolver: impl Resolve + 'static) -> Self {
        Self {
            resolver: Arc::new(resolver),
            last_good: Mutex::default(),
        }
    }

    /// Notes the addresses that a name has now.
    pub(crate) fn note(&self, name: Endpoint, addresses: Vec<SocketAddr>) {
        let mut last_good = self.last_good.lock();
        last_good.insert(name, addresses);
        if last_good.len() > NAMES {
            last_good.pop_first();
        }
    }

    /// The addresses that a name had when it was last resolved.
    pub(crate) fn last_good(&self, name: &Endpoint) -> Option<Vec<SocketAddr>> {
        self.last_good.lock().get(name).cloned()
    }
}

/// Whether a host is a name, and no IP address.
pub(crate) fn is_name(host: &str) -> bool {
    host.parse::<std::net::IpAddr>().is_err()
}

/// IPv6 and IPv4 in turns, the resolver's first choice first (RFC 8305, section 4).
pub(crate) fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
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

/// Tries each place, the next one when the last has failed or is slow; the first that succeeds wins
/// (RFC 8305, section 5, but what counts is for the attempt to say). However many swallow what is
/// sent to them, each has its turn within `limit`. If all fail, their errors.
pub(crate) async fn race<P: Copy, T, E, A: Future<Output = Result<T, E>>>(
    places: &[P],
    limit: Duration,
    attempt: impl Fn(P) -> A,
) -> Result<T, Vec<E>> {
    let share = limit / u32::try_from(places.len() + 1).unwrap_or(u32::MAX);
    let stagger = share.clamp(LEAST_STAGGER, STAGGER);
    let mut waiting = places.iter();
    let mut attempts = FuturesUnordered::new();
    let mut errors = Vec::new();
    loop {
        match waiting.next() {
            Some(place) => attempts.push(attempt(*place)),
            None if attempts.is_empty() => return Err(errors),
            None => {}
        }
        let patience = if waiting.len() == 0 {
            Duration::from_secs(3600)
        } else {
            stagger
        };
        match tokio::time::timeout(patience, attempts.next()).await {
            Ok(Some(Ok(found))) => return Ok(found),
            Ok(Some(Err(error))) => errors.push(error),
            Ok(None) | Err(_) => {}
        }
    }
}

/// Between attempts on the addresses of one name, as RFC 8305 recommends.
const STAGGER: Duration = Duration::from_millis(250);
/// And the least that it allows.
const LEAST_STAGGER: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    /// A peer that completes no handshake: the queue of a listener that accepts nothing is full.
    async fn swallowing() -> (Vec<TcpStream>, tokio::net::TcpListener) {
        let socket = tokio::net::TcpSocket::new_v4().expect("there is a socket");
        socket
            .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .expect("there is a free port");
        let listener = socket.listen(0).expect("it listens");
        let address = listener.local_addr().expect("it is bound");
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            queued.push(stream);
        }
        (queued, listener)
    }

    #[tokio::test]
    async fn c8_addresses_that_swallow_what_is_sent_do_not_keep_the_last_from_its_turn() {
        let (_queued, dead) = swallowing().await;
        let alive = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("there is a free port");
        let address = |listener: &tokio::net::TcpListener| listener.local_addr().expect("bound");
        let mut addresses = vec![address(&dead); 16];
        addresses.push(address(&alive));
        // At the usual pace it would take 4 s; a busy machine may take more than the limit.
        let generous = Duration::from_secs(3);
        let opened = race(&addresses, Duration::from_secs(1), TcpStream::connect);
        let stream = tokio::time::timeout(generous, opened)
            .await
            .expect("each has its turn within the limit")
            .expect("the last one answers");
        assert_eq!(stream.peer_addr().expect("it is open"), address(&alive));
    }

    #[tokio::test]
    async fn c8_a_name_that_hangs_holds_up_no_other_and_is_looked_up_once() {
        let resolver = SystemResolver::default();
        let (answer, hangs) = std::sync::mpsc::channel::<()>();
        let of = |host: &str| (host.to_owned(), 1);
        let hanging = move |_: &(String, u16)| {
            let _ = hangs.recv();
            Ok(Vec::new())
        };
        let first = resolver
            .lookup(of("hangs"), hanging)
            .expect("there is room");
        let again = resolver.lookup(of("hangs"), |_| panic!("once"));
        let again = again.expect("it is the same");
        let generous = Duration::from_secs(20);
        let other = tokio::time::timeout(generous, resolver.resolve("localhost", 1));
        let other = other.await.expect("it waits for nobody");
        assert!(other.is_ok_and(|found| !found.is_empty()));
        let patience = Duration::from_millis(20);
        assert!(tokio::time::timeout(patience, first).await.is_err());
        assert!(resolver.running.lock().contains_key(&of("hangs")));
        answer.send(()).expect("it waits");
        assert!(again.await.is_ok());
        assert!(resolver.running.lock().is_empty(), "it is over");
        // One that panics has ended as well.
        let panics = resolver.lookup(of("panics"), |_| panic!("its own mistake"));
        assert!(panics.expect("there is room").await.is_err());
        assert!(resolver.running.lock().is_empty());
    }

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
}
