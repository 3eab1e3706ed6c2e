//! A client of a cluster: which node serves a call, and what happens when that changes.
//!
//! A node is what a single server is elsewhere, with all policies of its own ([`node`]). Above the
//! nodes stand the routes by slot ([`routes`]), the view of the cluster that changes them
//! ([`view`]), the task that asks for newer views ([`discovery`]), and the journey of a call from
//! node to node ([`journey`]). A call looks up its slot anew for each attempt.

mod answers;
mod asked;
mod chosen;
mod discovery;
mod hunt;
mod journey;
mod limits;
mod node;
mod order;
mod parts;
mod pipeline;
mod reach;
mod reads;
mod replicas;
mod roaming;
mod routes;
mod scan;
mod status;
mod together;
mod view;
mod whereabouts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::node::{Endpoint, NodeId};
use steadfast_core::report::Migration;
use steadfast_core::slot::Slot;
use steadfast_core::topology::{DiscoveryGate, DiscoveryGateConfig, Topology, Trigger};
use tokio::sync::{Notify, watch};

use self::asked::Asked;
pub(crate) use self::discovery::watch as keep_view;
use self::hunt::LeftBehind;
use self::limits::Limits;
use self::node::Node;
use self::order::InOrder;
use self::reads::ReplicaReads;
pub(crate) use self::reads::keep_measured;
use self::replicas::Replicas;
pub(crate) use self::roaming::Roaming;
use self::routes::Routes;
pub(crate) use self::scan::{Process, SlotScan, may_pass, unreadable};
pub use self::status::{ClusterStatus, NodeStatus};
use self::whereabouts::{MemberFacts, Whereabouts};
use crate::client::Client;
use crate::clock;
use crate::credentials::{Credentials, CredentialsProvider};
use crate::error::connect::ConnectError;
use crate::error::{Error, ErrorKind};
use crate::event::hub::Hub;
use crate::link::connect::{Connector, Transport};
use crate::link::shared::Shared;
use crate::membership::Membership;
use crate::own_writes::OwnWrites;
use crate::settings::Settings;
use crate::target::{Address, Role, Target};
use crate::task::Apart;
use crate::wire::queue::TotalBytes;

/// See the module.
pub(crate) struct Cluster {
    /// The settings, events and credentials that all nodes have in common, and a link that tells
    /// the state of the whole. No call goes by it.
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    provider: Option<Arc<dyn CredentialsProvider>>,
    seeds: Vec<Endpoint>,
    started: Instant,
    routes: Routes,
    replicas: Replicas,
    reads: ReplicaReads,
    writes: Arc<OwnWrites>,
    order: InOrder,
    asked: Asked,
    left_behind: Arc<LeftBehind>,
    /// The bytes that wait for all nodes together.
    total_bytes: Arc<TotalBytes>,
    known: Mutex<Known>,
    /// Held while the slots of a view are handed over one by one, and by who must not see half of
    /// it.
    taking_in: Mutex<()>,
    gate: Mutex<DiscoveryGate>,
    /// The places of questions to nodes, and that of a question to the provider for them.
    asks: Apart,
    asks_provider: Apart,
    /// What it gave last, for as long as it gives nothing.
    last_given: Mutex<Option<Credentials>>,
    /// When the provider wants to be asked again.
    renew_at: Mutex<Option<Instant>>,
    /// Something is to be found out.
    wake: Notify,
    /// Counts up with each answer, and each round in which there was none.
    version: watch::Sender<u64>,
    discoveries: AtomicU64,
    redirects: AtomicU64,
}

struct Known {
    topology: Topology,
    /// The moments when the first view came, and the last.
    first_heard: Option<Instant>,
    heard: Option<Instant>,
    /// When a node last answered that knows a member, whether it serves or not.
    kin_heard: Option<Instant>,
    /// The nodes of other clusters that were told of, and whether they were believed.
    strangers: BTreeSet<(String, bool)>,
    /// The slots on their way, as the nodes say from which they go and to which they come.
    migrations: BTreeMap<NodeId, Vec<Migration>>,
    /// The nodes that have to be asked themselves, for what only they know.
    to_ask: BTreeSet<NodeId>,
    /// Why the last discovery found none.
    error: Option<Arc<str>>,
    /// The nodes that were asked in vain since one has answered whose view counts, and since all
    /// were. The others come first.
    asked_in_vain: BTreeSet<Endpoint>,
    /// The questions that nodes do not allow to be asked.
    not_allowed: BTreeSet<&'static str>,
}

/// The aim of the next attempt of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Aim {
    /// To whoever owns its slot.
    Owner,
    /// To the node that a redirect has named.
    At { endpoint: Endpoint, asking: bool },
}

/// Of the many connections to one node: how many numbers its events have for them.
const NUMBERS: usize = 1_024;

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

impl Cluster {
    pub(crate) fn new(
        shared: Arc<Shared>,
        connector: Arc<Connector>,
        provider: Option<Arc<dyn CredentialsProvider>>,
        seeds: Vec<Endpoint>,
    ) -> Self {
        let now = clock::now();
        let seed = shared.rng().u64(..);
        Self {
            gate: Mutex::new(DiscoveryGate::new(
                DiscoveryGateConfig::default(),
                seed,
                now,
            )),
            order: InOrder::new(shared.settings.in_flight),
            asked: Asked::default(),
            left_behind: Arc::new(LeftBehind::new(&shared)),
            total_bytes: Arc::new(TotalBytes::new(shared.settings.buffered_bytes)),
            writes: Arc::new(OwnWrites::new(now, shared.settings.max_lag)),
            shared,
            connector,
            provider,
            seeds,
            started: now,
            routes: Routes::new(),
            replicas: Replicas::default(),
            reads: ReplicaReads::default(),
            known: Mutex::new(Known {
                topology: Topology::new(),
                first_heard: None,
                heard: None,
                kin_heard: None,
                strangers: BTreeSet::new(),
                migrations: BTreeMap::new(),
                to_ask: BTreeSet::new(),
                error: None,
                asked_in_vain: BTreeSet::new(),
                not_allowed: BTreeSet::new(),
            }),
            taking_in: Mutex::default(),
            asks: Apart::new(discovery::UNDER_WAY),
            asks_provider: Apart::new(1),
            last_given: Mutex::new(None),
            renew_at: Mutex::new(None),
            wake: Notify::new(),
            version: watch::Sender::new(0),
            discoveries: AtomicU64::new(0),
            redirects: AtomicU64::new(0),
        }
    }

    fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// When slots were last written to by this client.
    pub(crate) fn writes(&self) -> &Arc<OwnWrites> {
        &self.writes
    }

    fn speaks_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.settings().tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// The node at this place, which is started if need be. `None` while nobody knows who it is.
    fn node(&self, number: u16) -> Result<Option<Arc<Node>>, Error> {
        if let Some(node) = self.routes.node(number) {
            return Ok(Some(node));
        }
        // Before the place is locked: whoever changes the view locks the two the other way round.
        let slots = self.slots_of(number);
        self.routes.started(number, |member| {
            let node = self.start(number, member, false)?;
            node.name(&slots);
            Ok(node)
        })
    }

    fn start(
        &self,
        number: u16,
        member: MemberFacts,
        as_replica: bool,
    ) -> Result<Arc<Node>, Error> {
        let runtime = self.shared.runtime()?;
        if self.shared.is_closing() {
            return Err(Error::not_sent(ErrorKind::Closed));
        }
        let id = member.id.clone();
        let settings = self.settings_for(&member, as_replica);
        let name: Arc<str> = member.endpoint.to_string().into();
        let first = NUMBERS * (1 + usize::from(number));
        let hub = match as_replica {
            true => Hub::new(0).of_node(name, first),
            false => self.shared.hub.of_node(name, first),
        };
        let hub = Arc::new(hub);
        let now = clock::now();
        let mut shared = Shared::with_hub(settings, hub, now).map_err(|error| {
            let cause = error.to_string().into();
            Error::not_sent(ErrorKind::Connect { cause })
        })?;
        // What one node takes is given to all, and to the subscribers, which belong to none.
        shared.credentials = Arc::clone(&self.shared.credentials);
        let shared = Arc::new(shared);
        for identity in self.left_behind.on(&id) {
            shared.fences.fence(Some(identity));
        }
        let settings = Arc::clone(&shared.settings);
        let whereabouts = Arc::new(Whereabouts::new(Arc::clone(&settings), member));
        let transport = Arc::clone(&whereabouts) as Arc<dyn Transport>;
        let connector = Connector::new(settings, self.provider.clone(), transport);
        let client = Client::start(shared, Arc::new(connector), runtime, None).watched();
        let node = Node::new((number, id), whereabouts, client);
        Ok(Arc::new(node))
    }

    fn settings_for(&self, member: &MemberFacts, as_replica: bool) -> Settings {
        let common = self.settings();
        let Target {
            tls,
            protocol,
            ref credentials,
            ..
        } = common.target;
        let Endpoint { host, port } = member.endpoint.clone();
        Settings {
            target: Target {
                address: Address::Tcp {
                    host: host.to_string(),
                    port,
                },
                tls,
                db: 0,
                protocol,
                credentials: credentials.clone(),
                sentinel_credentials: None,
            },
            role: match as_replica {
                true => Role::Any,
                false => Role::Primary,
            },
            member: Some(Arc::new(Membership {
                ids: vec![member.id.clone()],
                as_replica,
                must_serve: true,
            })),
            // One node that hangs is not to take the room of all.
            buffered_bytes: (common.buffered_bytes / 2).max(64 << 10),
            total_bytes: Some(Arc::clone(&self.total_bytes)),
            seed: self.shared.rng().u64(..),
            ..common.clone()
        }
    }

    /// The nodes in service, for what concerns all of them.
    pub(crate) fn clients(&self) -> Vec<Client> {
        let mut clients = self.primaries();
        clients.extend(self.replica_clients());
        clients
    }

    /// Returns the nodes that serve what belongs to slots.
    pub(crate) fn primaries(&self) -> Vec<Client> {
        let nodes = self.routes.nodes();
        nodes.iter().map(|node| node.client.clone()).collect()
    }

    /// What connects subscribers of this slot's sharded channels, to its owner.
    pub(crate) fn connector_of(self: &Arc<Self>, slot: Slot) -> Arc<Connector> {
        let settings = Arc::clone(&self.shared.settings);
        let roaming = Arc::new(Roaming::new(Arc::clone(&settings), Some(slot)));
        roaming.belongs_to(self);
        let connector = Connector::new(settings, self.provider.clone(), roaming);
        Arc::new(connector)
    }

    /// Returns where the owner of a slot is, by the newest view.
    async fn endpoint_of(
        &self,
        slot: Slot,
        limit: Duration,
    ) -> Result<Vec<Endpoint>, ConnectError> {
        // Whoever has to connect anew may have to do so elsewhere.
        let mut version = self.version.subscribe();
        self.trigger(Trigger::Doubt);
        let known = || {
            let place = self.routes.place(self.routes.owner(slot)?)?;
            place.member.as_ref().map(|member| member.endpoint.clone())
        };
        if known().is_none() {
            let _ = clock::timeout(limit, version.changed()).await;
        }
        known().map(|endpoint| vec![endpoint]).ok_or_else(|| {
            let why = format!("none that serves slot {slot}");
            ConnectError::NoNode { why }
        })
    }

    /// The client of a slot's owner.
    pub(crate) async fn owner_of(&self, slot: Slot) -> Result<Client, Error> {
        let limits = Limits::new(self.settings().deadline);
        let node = self.reach(slot, &Aim::Owner, &limits).await?;
        Ok(node.client.clone())
    }
}
