//! A cluster of three primaries with a replica each, and what is done to it, by the commands by
//! which an operator does it. Its nodes write an append-only file, so that what a node acknowledged
//! is there when it is killed and started again: what is lost then, a failover has lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use redis::Value;
use steadfast_core::report::ClusterReport;
use steadfast_core::slot::Slot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::SiteError;
use crate::ledger::{LedgerReport, ShardMoments, name_of};
use crate::load::Lane;
use crate::process::{Cluster, ClusterNode, FailoverKind, ProcessError};
use crate::scenario::Fault;
use crate::subject::Endpoint;

/// The time after which nodes hold a silent one for failed. Shorter, and a busy machine fails over
/// by itself.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often nodes are asked who owns the first shard.
const LOOK: Duration = Duration::from_millis(50);
/// How long a node may take to answer that.
const ANSWER: Duration = Duration::from_millis(500);
/// Generous: a loaded machine is no failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rows whose slots are moved: those that are asked for most.
const MOVED_ROWS: u64 = 24;
/// Values that are looked up at once in the end.
const AT_ONCE: usize = 500;
/// A slot of the shard that is broken. None of the moved ones is this.
const BROKEN_SLOT: u16 = 0;

pub(crate) struct ClusteredSite {
    cluster: Arc<Cluster>,
    lookout: Lookout,
    /// The change that goes on while the fault lasts.
    under_way: Mutex<Option<UnderWay>>,
    /// The nodes that a fault has taken, until they are given back.
    taken: Mutex<Vec<usize>>,
    /// The slots to which something was done, so that calls for them may fail.
    concerned: Mutex<BTreeSet<u16>>,
    untouched: Mutex<Vec<&'static str>>,
    /// How many primaries had been named before the fault.
    named_before: Mutex<usize>,
    /// When the cluster was whole again after a fault that no other primary mends.
    healed: Mutex<Option<Instant>>,
    /// When single shards were broken, and when they began to be given back.
    broken: Mutex<Option<(Instant, Instant)>>,
    /// From when to when the drill itself closed the connections of all clients.
    parted: Mutex<Option<(Instant, Instant)>>,
}

/// A change to the cluster that a task of its own makes. Tells how many slots have moved.
struct UnderWay {
    stop: CancellationToken,
    task: JoinHandle<Result<u64, ProcessError>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl UnderWay {
    /// Lets it come to its end, and tells how many slots have moved.
    async fn finished(mut self) -> Result<u64, ProcessError> {
        self.stop.cancel();
        (&mut self.task).await.unwrap_or(Ok(0))
    }
}

impl ClusteredSite {
    pub(super) async fn start() -> Result<Self, SiteError> {
        let builder = Cluster::builder().node_timeout(NODE_TIMEOUT);
        let durable = builder.each(|node| node.save(true).config("appendfsync", "no"));
        let cluster = Arc::new(durable.start().await?);
        let first = cluster.owner(BROKEN_SLOT).await?;
        let lookout = Lookout::start(cluster.clone(), first);
        Ok(Self {
            cluster,
            lookout,
            under_way: Mutex::default(),
            taken: Mutex::default(),
            concerned: Mutex::default(),
            untouched: Mutex::default(),
            named_before: Mutex::default(),
            healed: Mutex::default(),
            broken: Mutex::default(),
            parted: Mutex::default(),
        })
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.cluster.url()).keeping_a_ledger()
    }

    pub(super) async fn begin(&self, fault: &Fault) -> Result<(), ProcessError> {
        *lock(&self.named_before) = self.lookout.named().len();
        let cluster = &self.cluster;
        let primary = cluster.owner(BROKEN_SLOT).await?;
        self.note_concerned(fault, primary).await?;
        match fault {
            Fault::FailoverPlanned => {
                cluster.fail_over(primary, FailoverKind::Planned).await?;
            }
            Fault::PrimaryKilled => self.take([primary]).await,
            Fault::PrimaryFrozen => {
                lock(&self.taken).push(primary);
                cluster.node(primary).freeze()?;
            }
            Fault::ShardDown => {
                let replicas = cluster.replicas_of(primary).await?;
                self.note_broken();
                self.take(replicas.into_iter().chain([primary])).await;
            }
            Fault::ShardFrozen => {
                let replicas = cluster.replicas_of(primary).await?;
                self.note_broken();
                for at in replicas.into_iter().chain([primary]) {
                    lock(&self.taken).push(at);
                    cluster.node(at).freeze()?;
                }
            }
            Fault::AllRestarted => self.take(0..cluster.nodes().len()).await,
            Fault::SlotsMoving(a_second) => {
                let a_second = *a_second;
                self.go_on(async move |cluster, stop| {
                    let slots = moved_slots();
                    cluster
                        .keep_moving(&slots, a_second, stop.cancelled_owned())
                        .await
                });
            }
            Fault::NodeAdded => self.go_on(async |cluster, _| fill_a_new_node(&cluster).await),
            Fault::AddressesChanged => self.go_on(async |cluster, _| {
                for at in 0..cluster.nodes().len() {
                    cluster.change_addresses(&[at]).await?;
                    cluster.well().await?;
                }
                Ok(1)
            }),
            Fault::MapStale => {
                let sleeper = cluster.replicas_of(primary).await?[0];
                lock(&self.taken).push(sleeper);
                cluster.node(sleeper).freeze()?;
                self.go_on(async |cluster, _| move_one_way(&cluster).await);
            }
            other => unreachable!("{} is none of a scenario with a cluster", other.name()),
        }
        Ok(())
    }

    /// Notes that a shard is broken from now on; until when is noted at its end.
    fn note_broken(&self) {
        let now = Instant::now();
        *lock(&self.broken) = Some((now, now));
    }

    pub(super) async fn end(&self, fault: &Fault) -> Result<(), ProcessError> {
        let (cluster, taken) = (&self.cluster, std::mem::take(&mut *lock(&self.taken)));
        match fault {
            Fault::PrimaryKilled | Fault::PrimaryFrozen => {
                self.until_another_is_named().await;
                self.note_whether_another_was_named(fault);
                for at in taken {
                    give_back(&cluster.node(at)).await?;
                }
            }
            Fault::FailoverPlanned => self.note_whether_another_was_named(fault),
            Fault::ShardDown | Fault::ShardFrozen | Fault::AllRestarted => {
                if let Some((_, given_back)) = &mut *lock(&self.broken) {
                    *given_back = Instant::now();
                }
                let nodes: Vec<_> = taken.iter().map(|at| cluster.node(*at)).collect();
                try_join_all(nodes.iter().map(|node| give_back(node))).await?;
            }
            _ => {
                let under_way = lock(&self.under_way).take();
                let moved = match under_way {
                    Some(under_way) => under_way.finished().await?,
                    None => 0,
                };
                if moved == 0 {
                    lock(&self.untouched).push(fault.name());
                }
                for at in taken {
                    give_back(&cluster.node(at)).await?;
                    let from = Instant::now();
                    part_from_clients(cluster).await;
                    *lock(&self.parted) = Some((from, Instant::now()));
                }
                if *fault == Fault::NodeAdded {
                    cluster.remove(cluster.nodes().len() - 1).await?;
                }
            }
        }
        cluster.well().await?;
        if let Fault::ShardDown
        | Fault::ShardFrozen
        | Fault::AllRestarted
        | Fault::AddressesChanged = fault
        {
            *lock(&self.healed) = Some(Instant::now());
        }
        Ok(())
    }

    pub(super) fn untouched(&self) -> Vec<&'static str> {
        lock(&self.untouched).clone()
    }

    pub(super) async fn ledger(&self, lane: &Lane) -> Result<LedgerReport, ProcessError> {
        self.cluster.well().await?;
        let layout = self.cluster.layout().await?;
        let owner_of = |slot| {
            let owner = layout.owner(slot);
            owner.and_then(|id| self.cluster.position(id)).unwrap_or(0)
        };
        let mut by_owner: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for name in lane.ledger(|ledger| ledger.names()) {
            by_owner
                .entry(owner_of(slot_of(&name)))
                .or_default()
                .push(name);
        }
        let mut held = HashMap::new();
        for (at, names) in by_owner {
            let node = self.cluster.node(at);
            for some in names.chunks(AT_ONCE) {
                let mut asked = redis::pipe();
                for name in some {
                    asked.get(name);
                }
                let values = node.pipeline(&asked).await?;
                let known = some.iter().cloned().zip(values);
                held.extend(known.filter_map(|(name, value)| Some((name, count_of(value)?))));
            }
        }
        let named = self.lookout.named();
        let moments = ShardMoments {
            named: named.iter().map(|at| lane.moment(*at)).collect(),
            healed: lock(&self.healed).map(|at| lane.moment(at)),
            broken: lock(&self.broken).map(|(from, to)| lane.moment(from)..lane.moment(to)),
            parted: lock(&self.parted).map(|(from, to)| lane.moment(from)..lane.moment(to)),
        };
        let concerned = lock(&self.concerned).clone();
        let shard_of = |name: &str| {
            let slot = slot_of(name);
            concerned.contains(&slot).then(|| owner_of(slot))
        };
        let discoveries = lane.subject().facts().discoveries;
        Ok(lane.ledger(|ledger| ledger.judge_shards(&held, &moments, shard_of, discoveries)))
    }

    /// Kills nodes.
    async fn take(&self, at: impl IntoIterator<Item = usize>) {
        let at: Vec<usize> = at.into_iter().collect();
        let nodes: Vec<_> = at.iter().map(|at| self.cluster.node(*at)).collect();
        lock(&self.taken).extend(at);
        join_all(nodes.iter().map(|node| node.kill())).await;
    }

    /// Starts a change that goes on while the fault lasts.
    fn go_on<F>(&self, change: impl FnOnce(Arc<Cluster>, CancellationToken) -> F)
    where
        F: Future<Output = Result<u64, ProcessError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(change(self.cluster.clone(), stop.clone()));
        *lock(&self.under_way) = Some(UnderWay { stop, task });
    }

    /// Notes the slots whose calls may fail, by what the fault does.
    async fn note_concerned(&self, fault: &Fault, primary: usize) -> Result<(), ProcessError> {
        let slots = match fault {
            Fault::PrimaryKilled
            | Fault::PrimaryFrozen
            | Fault::FailoverPlanned
            | Fault::ShardDown
            | Fault::ShardFrozen => {
                let layout = self.cluster.layout().await?;
                layout.slots_of(self.cluster.node(primary).id())
            }
            Fault::AllRestarted | Fault::AddressesChanged => {
                (0..steadfast_core::slot::SLOTS).collect()
            }
            // While slots move no call fails.
            _ => Vec::new(),
        };
        lock(&self.concerned).extend(slots);
        Ok(())
    }

    /// Waits until the replica has taken over: a primary that starts again before would come back
    /// as one.
    async fn until_another_is_named(&self) {
        let (before, limit) = (*lock(&self.named_before), Instant::now() + PATIENCE);
        while self.lookout.named().len() == before && Instant::now() < limit {
            sleep(LOOK).await;
        }
    }

    fn note_whether_another_was_named(&self, fault: &Fault) {
        if self.lookout.named().len() == *lock(&self.named_before) {
            lock(&self.untouched).push(fault.name());
        }
    }
}

/// Starts a node again that was killed, or wakes it.
async fn give_back(node: &ClusterNode) -> Result<(), ProcessError> {
    match node.pid() {
        Some(_) => node.resume(),
        None => node.restart().await,
    }
}

/// Closes all connections of clients, so that they ask anew who owns what.
async fn part_from_clients(cluster: &Cluster) {
    let order = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
    let nodes = cluster.nodes();
    join_all(nodes.iter().map(|node| node.command(&order))).await;
}

/// Adds a primary, and moves slots of all others to it.
async fn fill_a_new_node(cluster: &Cluster) -> Result<u64, ProcessError> {
    let new = cluster.add_node().await?;
    let mut moved = 0;
    for from in 0..new {
        let layout = cluster.layout().await?;
        let owned = layout.slots_of(cluster.node(from).id());
        let slots: Vec<u16> = owned.into_iter().filter(|slot| slot % 8 == 1).collect();
        if !slots.is_empty() {
            cluster.migrate_all(&slots, from, new).await?;
            moved += slots.len() as u64;
        }
    }
    cluster.agree().await?;
    Ok(moved)
}

/// Moves the slots of the rows that are asked for most to the next primary, and leaves them there.
async fn move_one_way(cluster: &Cluster) -> Result<u64, ProcessError> {
    let mut moved = 0;
    let layout = cluster.layout().await?;
    for (from, to) in [(1, 2), (2, 1)] {
        let id = cluster.node(from).id().to_owned();
        let owned = moved_slots().into_iter();
        let slots: Vec<u16> = owned
            .filter(|slot| layout.owner(*slot) == Some(id.as_str()))
            .collect();
        cluster.migrate_all(&slots, from, to).await?;
        cluster.agree().await?;
        moved += slots.len() as u64;
    }
    Ok(moved)
}

/// The slots of the rows that are asked for most.
fn moved_slots() -> Vec<u16> {
    let slots = (0..MOVED_ROWS).map(|row| slot_of(&name_of(row)));
    let slots: BTreeSet<u16> = slots.filter(|slot| *slot != BROKEN_SLOT).collect();
    slots.into_iter().collect()
}

fn slot_of(name: &str) -> u16 {
    Slot::of_key(name.as_bytes()).number()
}

fn count_of(value: Value) -> Option<u64> {
    redis::from_redis_value(value).ok().flatten()
}

/// Sees when the primaries of the other shards name another one for the shard that is broken.
struct Lookout {
    named: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Lookout {
    fn start(cluster: Arc<Cluster>, first: usize) -> Self {
        let named = Arc::new(Mutex::new(Vec::new()));
        let noted = named.clone();
        let task = tokio::spawn(async move {
            let mut now = cluster.node(first).id().to_owned();
            loop {
                let mut owners = Vec::new();
                for at in [1, 2] {
                    owners.push(owner_said_by(&cluster.node(at)).await);
                }
                if let [Some(one), Some(other)] = owners.as_slice()
                    && one == other
                    && *one != now
                {
                    now.clone_from(one);
                    lock(&noted).push(Instant::now());
                }
                sleep(LOOK).await;
            }
        });
        Self { named, task }
    }

    fn named(&self) -> Vec<Instant> {
        lock(&self.named).clone()
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The id of the node that owns the broken shard, by the word of another node.
async fn owner_said_by(node: &ClusterNode) -> Option<String> {
    let asked = node.command(&["CLUSTER", "NODES"]);
    let reply = timeout(ANSWER, asked).await.ok()?.ok()?;
    let report = ClusterReport::read_nodes(&reply).ok()?;
    let owner = report.nodes.iter().find(|node| {
        let mut slots = node.slots.iter().flat_map(|range| range.slots());
        slots
            .next()
            .is_some_and(|slot| slot.number() == BROKEN_SLOT)
    })?;
    Some(owner.id.as_ref()?.as_str().to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
