//! From an address to a connection fit for service, phase by phase, each under its own deadline.
//!
//! A server that is reached is not yet one that serves: it may be loading its data, be a replica
//! where a primary is wanted, or refuse the password. Finding out here, before any call depends on
//! it, is what keeps such a server out of service.

mod exchange;
mod facts;
mod handshake;
mod membership;
mod network;

use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tracing::Instrument;

pub(crate) use self::exchange::{Exchange, OWN_QUESTIONS, auth, proof};
pub(crate) use self::facts::ServerFacts;
use self::handshake::Handshake;
pub(crate) use self::network::{Network, ask_at_each, dial_sentinel, resolved};
use crate::clock;
use crate::credentials::{Credentials, CredentialsError, CredentialsProvider};
use crate::error::connect::ConnectError;
use crate::link::fence::Fence;
use crate::membership::Membership;
use crate::resolve::race;
use crate::settings::Settings;
use crate::target::{Protocol, Role};
use crate::task::Owned;
use crate::wire::identity::Identity;
use crate::wire::stream::Stream;

/// A connection fit for service.
pub(crate) struct Established {
    pub(crate) stream: Stream,
    pub(crate) facts: ServerFacts,
    /// The credentials that the handshake gave.
    pub(crate) credentials: Option<Credentials>,
    /// The answers to the fences, in their order.
    pub(crate) fences: Vec<Fence>,
}

/// A socket address that the configured address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// The address itself: a unix socket.
    Unix,
    /// An address that a name has.
    Tcp(SocketAddr),
}

/// The places where the server may be.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) places: Vec<Location>,
    /// The primary's time of office, where sentinels name it; else 0.
    pub(crate) term: u64,
}

impl Found {
    pub(crate) fn of(places: impl IntoIterator<Item = Location>) -> Self {
        Self {
            places: places.into_iter().collect(),
            term: 0,
        }
    }
}

/// The step that the last attempt to connect waits for, for callers who give up before its phases
/// do.
#[derive(Debug, Default)]
pub(crate) struct WaitsFor(Mutex<Option<String>>);

impl WaitsFor {
    pub(crate) fn now(&self, what: String) {
        *self.0.lock() = Some(what);
    }

    pub(crate) fn what(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

/// Opens sockets: the network, or in tests a simulation of it. `limit` is each phase's deadline.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// Returns where the server may be, the likeliest first.
    fn places(&self, limit: Duration) -> BoxFuture<'_, Result<Found, ConnectError>>;

    /// Opens a stream. Returns it with the address of its peer for people to read. Each step that
    /// it waits for is told.
    fn open<'a>(
        &'a self,
        place: Location,
        limit: Duration,
        waits_for: &'a WaitsFor,
    ) -> BoxFuture<'a, Result<(Stream, String), ConnectError>>;

    /// The identity that the server at this place must prove, where it depends on the place.
    fn member(&self, place: Location) -> Option<Arc<Membership>> {
        let _ = place;
        None
    }

    /// Ends when the server that is looked for is elsewhere than when this was called.
    fn moved(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Ends when the server at this place is no more one to be connected to.
    fn left(&self, place: Location) -> BoxFuture<'_, ()> {
        let _ = place;
        Box::pin(std::future::pending())
    }
}

/// The terms of one attempt to connect.
#[derive(Clone, Debug)]
pub(crate) struct ConnectRequest {
    /// The time that each phase may take.
    pub(crate) limit: Duration,
    /// Connections to kill before anything else.
    pub(crate) fences: Vec<Identity>,
    pub(crate) protocol: Protocol,
    /// The address to try first, before the name is resolved.
    pub(crate) first: Option<Location>,
}

impl ConnectRequest {
    /// Returns how long the whole attempt takes at most, if every phase keeps to its deadline:
    /// credentials, DNS, TCP, TLS, handshake, and before them the place to try first.
    pub(crate) fn longest(&self) -> Duration {
        let phases = if self.first.is_some() { 6 } else { 5 };
        self.limit.saturating_mul(phases)
    }
}

/// Connects. One per client.
#[derive(Debug)]
pub(crate) struct Connector {
    settings: Arc<Settings>,
    provider: Option<Arc<dyn CredentialsProvider>>,
    transport: Arc<dyn Transport>,
    pub(crate) waits_for: WaitsFor,
}

impl Connector {
    pub(crate) fn new(
        settings: Arc<Settings>,
        provider: Option<Arc<dyn CredentialsProvider>>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        Self {
            settings,
            provider,
            transport,
            waits_for: WaitsFor::default(),
        }
    }

    /// Returns a connector to the same server that does not ask what role it has, nor whether its
    /// cluster serves: for one that serves no more.
    pub(crate) fn of_any_role(&self) -> Self {
        let mut settings = (*self.settings).clone();
        settings.role = Role::Any;
        settings.member = settings.member.map(|member| {
            Arc::new(Membership {
                as_replica: true,
                must_serve: false,
                ..(*member).clone()
            })
        });
        let transport = Arc::clone(&self.transport);
        Self::new(Arc::new(settings), self.provider.clone(), transport)
    }

    /// Returns when the provider wants to be asked again. One that panics here is asked after a
    /// while.
    pub(crate) fn renew_in(&self) -> Option<Duration> {
        let provider = self.provider.as_ref()?;
        catch_unwind(AssertUnwindSafe(|| provider.renew_in())).unwrap_or(Some(RENEW_AFTER_PANIC))
    }

    /// Returns the trouble that the provider has with renewing.
    pub(crate) fn trouble(&self) -> Option<CredentialsError> {
        let provider = self.provider.as_ref()?;
        catch_unwind(AssertUnwindSafe(|| provider.trouble()))
            .unwrap_or_else(|_| Some(CredentialsError::new("the credentials provider panicked")))
    }

    /// Returns the terms of a connection for commands.
    pub(crate) fn ask(&self, limit: Duration, fences: Vec<Identity>) -> ConnectRequest {
        ConnectRequest {
            limit,
            fences,
            protocol: self.settings.target.protocol,
            first: None,
        }
    }

    /// Ends when the server that is looked for is elsewhere now.
    pub(crate) fn moved(&self) -> BoxFuture<'_, ()> {
        self.transport.moved()
    }

    /// Ends when the server at this place is no more one to be connected to.
    pub(crate) async fn left(&self, place: Option<Location>) {
        match place {
            Some(place) => self.transport.left(place).await,
            None => std::future::pending().await,
        }
    }

    /// Begins one attempt, in a task of its own: what a provider or a resolver does there ends an
    /// attempt, and nothing else.
    pub(crate) fn dial(
        self: &Arc<Self>,
        ask: ConnectRequest,
    ) -> Owned<Result<Established, ConnectError>> {
        let connector = Arc::clone(self);
        let span =
            tracing::debug_span!("connect to redis", address = %self.settings.target.address);
        let attempt = async move { connector.connect(ask).await };
        Owned::new(tokio::spawn(attempt.instrument(span)))
    }

    /// Makes one attempt from its beginning to its end.
    pub(crate) async fn dialled(
        self: &Arc<Self>,
        ask: ConnectRequest,
    ) -> Result<Established, ConnectError> {
        let limit = ask.longest() + MARGIN;
        match clock::timeout(limit, self.dial(ask)).await {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(ConnectError::Panicked),
            None => Err(ConnectError::TimedOut {
                phase: "attempt",
                limit,
            }),
        }
    }

    async fn connect(&self, ask: ConnectRequest) -> Result<Established, ConnectError> {
        let limit = ask.limit;
        let credentials = self.credentials(limit).await?;
        let credentials = credentials.as_ref();
        if let Some(place) = ask.first {
            let found = self.connect_to(place, 0, &ask, credentials);
            if let Ok(Ok(established)) = within("connect", limit, found).await {
                return Ok(established);
            }
        }
        let host = &self.settings.target.address;
        self.waits_for.now(format!("`{host}` is not resolved yet"));
        let Found { places, term } = self.transport.places(limit).await?;
        let attempts = race(&places, limit, |place| {
            self.connect_to(place, term, &ask, credentials)
        });
        // TCP, TLS and handshake of the slowest.
        let limit = limit.saturating_mul(3);
        within("connect", limit, attempts)
            .await?
            .map_err(|errors| most_telling(errors).unwrap_or(ConnectError::Panicked))
    }

    /// Goes from an address to a connection fit for service: only then was it the right address. A
    /// peer that accepts TCP may be frozen, a replica, or no Redis at all.
    async fn connect_to(
        &self,
        place: Location,
        term: u64,
        ask: &ConnectRequest,
        credentials: Option<&Credentials>,
    ) -> Result<Established, ConnectError> {
        let limit = ask.limit;
        let waits_for = &self.waits_for;
        let (stream, address) = self.transport.open(place, limit, waits_for).await?;
        waits_for.now(format!("{address} has not answered the handshake yet"));
        let of_place = self.transport.member(place);
        let member = of_place.as_ref().or(self.settings.member.as_ref());
        let handshake = Handshake {
            settings: &self.settings,
            member: member.map(Arc::as_ref),
            protocol: ask.protocol,
            credentials,
            fences: &ask.fences,
            address: &address,
        };
        let (stream, mut facts, fences) =
            within("handshake", limit, handshake.perform(stream)).await??;
        facts.address = address;
        facts.place = Some(place);
        facts.term = term;
        Ok(Established {
            stream,
            facts,
            credentials: credentials.cloned(),
            fences,
        })
    }

    /// Asks the provider for credentials, under the deadline of a phase.
    pub(crate) async fn credentials(
        &self,
        limit: Duration,
    ) -> Result<Option<Credentials>, ConnectError> {
        let Some(provider) = &self.provider else {
            return Ok(None);
        };
        self.waits_for
            .now("the credentials provider has not answered yet".into());
        let asked = 1 + ASKED.fetch_add(1, Ordering::Relaxed);
        within("credentials", limit, provider.credentials())
            .await?
            .map(|given| Some(given.answering(asked)))
            .map_err(|error| ConnectError::Credentials(error.to_string()))
    }
}

/// The number of questions to providers: of all clients, as the nodes of a cluster have one
/// provider in common, whose answers are told apart by it.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Returns of several errors the one that says most: the word of a server before the silence of
/// others.
fn most_telling(errors: Vec<ConnectError>) -> Option<ConnectError> {
    errors.into_iter().min_by_key(|error| match error {
        ConnectError::Auth(_) | ConnectError::Credentials(_) => 0,
        ConnectError::Loading | ConnectError::ClusterDown { .. } => 1,
        ConnectError::MaxClients | ConnectError::Refused(_) => 2,
        ConnectError::Replica => 3,
        ConnectError::Tls { .. } | ConnectError::Dns { .. } => 4,
        ConnectError::NotRedis { .. }
        | ConnectError::NoPrimary { .. }
        | ConnectError::NotSentinel { .. }
        | ConnectError::Sentinel { .. }
        | ConnectError::Cluster { .. }
        | ConnectError::NotCluster { .. }
        | ConnectError::Stranger { .. }
        | ConnectError::NoNode { .. }
        | ConnectError::Panicked => 5,
        ConnectError::Ended(_) => 6,
        ConnectError::TimedOut { .. } => 7,
        ConnectError::Tcp { .. } => 8,
    })
}

/// The time after which a provider is asked again that panicked in `renew_in`.
const RENEW_AFTER_PANIC: Duration = Duration::from_secs(5);
/// The time that an attempt may be late before it counts as hanging.
pub(crate) const MARGIN: Duration = Duration::from_secs(1);

pub(crate) async fn within<T>(
    phase: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, ConnectError> {
    clock::timeout(limit, work)
        .await
        .ok_or(ConnectError::TimedOut { phase, limit })
}
