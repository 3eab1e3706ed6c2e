//! A TCP proxy on loopback that stands between a client and its server, and breaks the wire while
//! traffic flows.
//!
//! It passes bytes and understands none of them (so TLS passes too), except where a fault of Redis'
//! protocol needs it. What makes it fit to measure with is that it does little while nothing is
//! broken (a direct connection passes about twice as many GETs a second, see `docs/drills.md`): one
//! task per connection, which reads into a buffer and writes from it, with no channel, no copy and
//! no timer in between. The price of a fault is paid only on the connections, and in the
//! directions, that have one.
//!
//! Adding and removing faults returns once the change is in force on every connection.

mod connection;
mod exchange;
mod lane;

use crate::fault::{Fault, FaultError, Touched, Toxic};
use crate::process::{Port, ProcessError};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// A running proxy. Dropped, its connections are closed and its port is free.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use steadfast_drill::fault::{Latency, Toxic};
/// use steadfast_drill::process::Redis;
/// use steadfast_drill::proxy::Proxy;
///
/// let redis = Redis::start().await?;
/// let proxy = Proxy::start(redis.addr()).await?;
/// let slow = proxy.add(Toxic::new(Latency::of_millis(200))).await?;
/// // … a client of redis://{proxy.addr()} waits 200 ms for each answer …
/// proxy.remove(slow).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    upstream: Arc<str>,
    plan: watch::Sender<Arc<Plan>>,
    /// Held while the plan is changed: the plans that somebody may still follow, the present one
    /// last. Each receiver ends when nobody follows its plan any more.
    followed: Mutex<Vec<watch::Receiver<()>>>,
    next_id: AtomicU64,
    tally: Arc<Tally>,
    listening: JoinHandle<()>,
}

/// How a proxy is started. By default: on a free port of 127.0.0.1, seed 0, passing bytes.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use steadfast_drill::fault::{RespError, Toxic};
/// use steadfast_drill::proxy::Proxy;
///
/// let builder = Proxy::builder().resp(true).seed(7); // the same draws at every run
/// let proxy = builder.start_by_name("redis.example:6379").await?;
/// let half = RespError::oom().commands(&["SET"]).percentage(50.0);
/// let refused = proxy.add(Toxic::new(half)).await?;
/// // … the application runs against proxy.addr() …
/// println!("{:?} SETs refused, {:?}", proxy.treated(refused), proxy.counters());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ProxyBuilder {
    listen: Option<SocketAddr>,
    seed: u64,
    resp: bool,
}

/// A toxic that was added to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ToxicId(u64);

/// The way that bytes go, for each of which a connection has a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// Counts of a proxy since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Connections accepted, those of the next three lines included.
    pub accepted: u64,
    /// Of these, connections that are open now.
    pub open: u64,
    /// Of these, connections reset by `reject_next`.
    pub rejected: u64,
    /// Of these, connections reset because the server could not be reached.
    pub unreachable: u64,
    /// Connections that were followed command by command and no longer are (`proxy/exchange.rs`
    /// says why), so that RESP faults do not act on them any more.
    pub unfollowed: u64,
    /// Bytes read from clients.
    pub bytes_up: u64,
    /// Bytes read from the server.
    pub bytes_down: u64,
    /// Commands that the server answered, on connections that are followed. Commands that set up or
    /// check a connection (HELLO, AUTH, CLIENT, PING…) are not counted, nor those that were on
    /// their way while a fault began or ended.
    pub answered: u64,
}

/// Why a proxy could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The address is taken by another process.
    #[error("{addr} is taken; choose another port, or 0 to have a free one found")]
    Taken {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The system does not let it listen there.
    #[error("cannot listen on {addr}: {cause}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's error.
        cause: std::io::Error,
    },
    /// The address of the server is not written as `host:port`.
    #[error("upstream {upstream:?} is no address; write host:port, as in redis.internal:6379")]
    Upstream {
        /// The text that was given.
        upstream: String,
    },
}

impl ProxyBuilder {
    /// Where to listen. Default: a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = Some(addr);
        self
    }

    /// From which toxicity, jitter, sizes and percentages are drawn. Default: 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether every connection is followed command by command from its start, which costs a parse
    /// of all bytes. Then RESP faults take hold of connections that are open already. Default:
    /// `false`, they take hold of those opened after them only.
    #[must_use]
    pub fn resp(mut self, resp: bool) -> Self {
        self.resp = resp;
        self
    }

    /// Starts it in front of `upstream`, which need not be there yet.
    ///
    /// # Errors
    /// [`ProxyError`] when it cannot listen.
    pub async fn start(self, upstream: SocketAddr) -> Result<Proxy, ProxyError> {
        self.start_by_name(&upstream.to_string()).await
    }

    /// Starts it in front of `upstream`, a `host:port` whose name is resolved for each connection,
    /// and need not resolve yet. Without a host it is this machine.
    ///
    /// # Errors
    /// [`ProxyError`] when it cannot listen, or `upstream` is not written so.
    pub async fn start_by_name(self, upstream: &str) -> Result<Proxy, ProxyError> {
        check_upstream(upstream)?;
        let upstream: Arc<str> = upstream.into();
        let asked = self
            .listen
            .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let port = Port::at(asked).map_err(|error| match error {
            ProcessError::Spawn { cause, .. } => ProxyError::Listen { addr: asked, cause },
            _ => ProxyError::Taken { addr: asked },
        })?;
        let addr = port.addr();
        let listener = listen(addr).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::AddrInUse => ProxyError::Taken { addr },
            _ => ProxyError::Listen { addr, cause },
        })?;
        let (first, left) = Plan::new(Vec::new());
        let first = Arc::new(first);
        let (plan, followed) = watch::channel(Arc::clone(&first));
        let tally = Arc::new(Tally::default());
        let door = Door {
            port,
            upstream: Arc::clone(&upstream),
            settings: self,
            plan: followed,
            in_force: first,
            tally: Arc::clone(&tally),
        };
        let listening = tokio::spawn(door.serve(listener));
        Ok(Proxy {
            addr,
            upstream,
            plan,
            followed: Mutex::new(vec![left]),
            next_id: AtomicU64::new(0),
            tally,
            listening,
        })
    }
}

impl Proxy {
    /// A proxy with settings of its own.
    #[must_use]
    pub fn builder() -> ProxyBuilder {
        ProxyBuilder::default()
    }

    /// Starts a proxy in front of `upstream` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the system has no port left.
    pub async fn start(upstream: SocketAddr) -> Result<Self, ProxyError> {
        Self::builder().start(upstream).await
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it connects to, as it was given.
    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Adds a fault, after those that are there. Returns when it is in force.
    ///
    /// # Errors
    /// A setting of it that means nothing.
    pub async fn add(&self, toxic: Toxic) -> Result<ToxicId, FaultError> {
        let placed = self.place(toxic, None)?;
        let id = placed.id;
        self.change(|toxics| toxics.push(placed)).await;
        Ok(id)
    }

    /// Puts another fault in the place of one, and returns when it is in force. Unlike a removal
    /// this ends no connection. Nothing happens if there is no such fault.
    ///
    /// # Errors
    /// A setting of it that means nothing.
    pub async fn replace(&self, old: ToxicId, toxic: Toxic) -> Result<ToxicId, FaultError> {
        let placed = self.place(toxic, Some(old))?;
        let id = placed.id;
        self.change(|toxics| {
            if let Some(at) = toxics.iter().position(|placed| placed.id == old) {
                toxics[at] = placed;
            }
        })
        .await;
        Ok(id)
    }

    fn place(&self, toxic: Toxic, replaces: Option<ToxicId>) -> Result<Arc<Placed>, FaultError> {
        toxic.check()?;
        let left = match &toxic.fault {
            Fault::RejectNext(reject) => reject.n,
            _ => 0,
        };
        Ok(Arc::new(Placed {
            id: ToxicId(self.next_id.fetch_add(1, Ordering::Relaxed)),
            replaces,
            toxic,
            rejects_left: AtomicU64::new(left),
            treated: Arc::default(),
            touched: Touched::default(),
        }))
    }

    /// Removes a fault, and returns when it is no longer in force; whether there was such a fault.
    pub async fn remove(&self, id: ToxicId) -> bool {
        self.change(|toxics| {
            let before = toxics.len();
            toxics.retain(|placed| placed.id != id);
            before != toxics.len()
        })
        .await
    }

    /// Removes all faults, and returns when none is in force any more.
    pub async fn clear(&self) {
        self.change(Vec::clear).await;
    }

    /// The faults that are there, in the order in which they were added.
    #[must_use]
    pub fn toxics(&self) -> Vec<(ToxicId, Toxic)> {
        self.plan
            .borrow()
            .toxics
            .iter()
            .map(|placed| (placed.id, placed.toxic.clone()))
            .collect()
    }

    /// Returns how many commands a fault of the protocol has acted on, or nothing if there is no
    /// such fault.
    #[must_use]
    pub fn treated(&self, id: ToxicId) -> Option<u64> {
        let plan = self.plan.borrow();
        let placed = plan.toxics.iter().find(|placed| placed.id == id)?;
        Some(placed.treated.load(Ordering::Relaxed))
    }

    /// Returns how often a fault has acted, or nothing if there is no such fault; 0 if it has
    /// touched nobody. Of `corrupt`, `limit_data` and `slow_close` these are the bytes and ends
    /// that they changed, cut off or delayed, of a fault of the protocol the commands, of others
    /// the directions of connections that they took hold of. A port that refuses is not seen to be
    /// asked: of `down` these are the connections that the proxy had before.
    #[must_use]
    pub fn touched(&self, id: ToxicId) -> Option<u64> {
        let plan = self.plan.borrow();
        let placed = plan.toxics.iter().find(|placed| placed.id == id)?;
        Some(match &placed.toxic.fault {
            Fault::Down(_) => self.tally.counters().accepted,
            Fault::RejectNext(reject) => {
                let left = placed.rejects_left.load(Ordering::Relaxed);
                reject.n.saturating_sub(left)
            }
            fault if fault.resp().is_some() => placed.treated.load(Ordering::Relaxed),
            _ => placed.touched.count(),
        })
    }

    /// Returns the counts so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.tally.counters()
    }

    /// Changes the faults, and returns once all follow the change. A plan that was replaced before
    /// anybody followed it says nothing of the plans before it, which its followers may still hold:
    /// so this waits for each of them.
    async fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<Placed>>) -> T) -> T {
        let (outcome, before) = {
            let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            let mut toxics = self.plan.borrow().toxics.clone();
            let outcome = change(&mut toxics);
            let (next, left) = Plan::new(toxics);
            drop(self.plan.send_replace(Arc::new(next)));
            followed.retain(|plan| plan.has_changed().is_ok());
            let before = followed.clone();
            followed.push(left);
            (outcome, before)
        };
        for mut plan in before {
            // Nothing is ever sent; it ends when the last follower has let go of the plan.
            let _ = plan.changed().await;
        }
        outcome
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// The faults of the moment. Those who follow it keep it until they have acted upon the
/// next one.
#[derive(Debug)]
struct Plan {
    toxics: Vec<Arc<Placed>>,
    /// Dropped with the plan, which its receivers notice.
    _followed: watch::Sender<()>,
}

impl Plan {
    fn new(toxics: Vec<Arc<Placed>>) -> (Self, watch::Receiver<()>) {
        let (followed, left) = watch::channel(());
        (
            Self {
                toxics,
                _followed: followed,
            },
            left,
        )
    }

    fn is_down(&self) -> bool {
        self.toxics
            .iter()
            .any(|placed| matches!(placed.toxic.fault, Fault::Down(_)))
    }

    /// Takes one of the rejections that are left, if there is one.
    fn rejects(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        self.toxics.iter().any(|placed| {
            placed
                .rejects_left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_ok()
        })
    }
}

#[derive(Debug)]
struct Placed {
    id: ToxicId,
    /// In whose place it is, on connections that had that.
    replaces: Option<ToxicId>,
    toxic: Toxic,
    rejects_left: AtomicU64,
    /// Commands that it has acted on, if it is a fault of the protocol.
    treated: Arc<AtomicU64>,
    /// How often it has acted on bytes and connections.
    touched: Touched,
}

#[derive(Debug, Default)]
struct Tally {
    accepted: AtomicU64,
    open: AtomicU64,
    rejected: AtomicU64,
    unreachable: AtomicU64,
    unfollowed: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    answered: AtomicU64,
}

impl Tally {
    fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            accepted: read(&self.accepted),
            open: read(&self.open),
            rejected: read(&self.rejected),
            unreachable: read(&self.unreachable),
            unfollowed: read(&self.unfollowed),
            bytes_up: read(&self.bytes_up),
            bytes_down: read(&self.bytes_down),
            answered: read(&self.answered),
        }
    }
}

/// Counts one more for as long as it lives.
struct Open(Arc<Tally>);

impl Open {
    fn new(tally: Arc<Tally>) -> Self {
        tally.open.fetch_add(1, Ordering::Relaxed);
        Self(tally)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The task that listens, and owns those of the connections.
struct Door {
    port: Port,
    upstream: Arc<str>,
    settings: ProxyBuilder,
    plan: watch::Receiver<Arc<Plan>>,
    /// The plan by which it listens or does not.
    in_force: Arc<Plan>,
    tally: Arc<Tally>,
}

impl Door {
    async fn serve(mut self, listener: TcpListener) {
        let mut listener = Some(listener);
        let mut connections = JoinSet::new();
        loop {
            let plan = Arc::clone(&self.plan.borrow_and_update());
            if plan.is_down() {
                listener = None;
                connections.shutdown().await;
            } else if listener.is_none() {
                listener = listen(self.port.addr()).ok();
            }
            // Only now: whoever changed the plan waits until nobody holds the one before.
            self.in_force = Arc::clone(&plan);
            tokio::select! {
                biased;
                changed = self.plan.changed() => if changed.is_err() { return },
                Some(_) = connections.join_next() => {}
                accepted = accept(listener.as_ref()) => match accepted {
                    Ok((client, _)) => self.admit(client, &plan, &mut connections),
                    // No file left, perhaps: it will be better in a while.
                    Err(_) => sleep(PAUSE).await,
                },
                // It could not listen again, which is tried until it can.
                () = sleep(PAUSE), if listener.is_none() && !self.in_force.is_down() => {}
            }
        }
    }

    fn admit(&self, client: TcpStream, plan: &Arc<Plan>, connections: &mut JoinSet<()>) {
        let number = self.tally.accepted.fetch_add(1, Ordering::Relaxed);
        if plan.rejects() {
            self.tally.rejected.fetch_add(1, Ordering::Relaxed);
            let _ = client.set_zero_linger();
            return;
        }
        let start = connection::Start {
            number,
            seed: self.settings.seed,
            resp: self.settings.resp,
            upstream: Arc::clone(&self.upstream),
            followed: self.plan.clone(),
            plan: Arc::clone(plan),
            open: Open::new(Arc::clone(&self.tally)),
        };
        connections.spawn(start.run(client));
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// After what failed for want of something that will be there again.
const PAUSE: Duration = Duration::from_millis(50);

/// Refuses what is not written as `host:port`; whether the host is known shows when it is dialled.
pub(crate) fn check_upstream(upstream: &str) -> Result<(), ProxyError> {
    let written = upstream.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .map_or(!host.contains(':'), |host| host.contains(':'));
        let clean =
            !host.contains(|c: char| c.is_whitespace() || c.is_control() || "/@".contains(c));
        bare && clean && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    written.then_some(()).ok_or_else(|| ProxyError::Upstream {
        upstream: upstream.to_owned(),
    })
}

/// Listens beside the socket that keeps the port.
fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(1024)
}
