//! Slots that move between the nodes of a cluster, which learn of it one after the other.

mod client;
mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast_core::node::NodeId;
use steadfast_core::slot::Slot;
use steadfast_core::topology::{DiscoveryGate, DiscoveryGateConfig, SlotGate, Topology, View};

use super::events::Events;
use super::{Ended, Kind, Made, check_key, seeds};

/// The rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// Each view replaces what is known, instead of being merged.
    BelievesTheLast,
    /// Commands for a slot that changes hands do not wait.
    HasNoGate,
    /// What has lost its turn is sent again nevertheless.
    ForgetsTurns,
    /// A command of several keys keeps its order with those of the first one only.
    KnowsTheFirstKey,
    /// Abandoned connections are not fenced.
    DoesNotFence,
    /// Whatever was lost is sent again.
    RepeatsAnything,
}

const NODES: usize = 3;
const USED: u16 = 3;
/// KeySet of each slot.
const KEYS: u32 = 3;
const CHAOS: u64 = 6_000;
const END: u64 = CHAOS + 5_000;
const DEADLINE: u64 = 1_500;
const SILENCE: u64 = 250;
/// How long a command of keys that are apart waits before it is sent again.
const PAUSE: u64 = 10;

struct Node {
    frozen: bool,
    /// It neither hears nor tells of changes.
    apart: bool,
    epochs: [u64; NODES],
    owners: [usize; USED as usize],
    to: BTreeMap<u16, usize>,
    from: BTreeSet<u16>,
    data: BTreeMap<u32, Vec<u32>>,
    killed: BTreeSet<u64>,
    held: Vec<(u64, u32, bool)>,
}

enum Event {
    Arrive {
        node: usize,
        conn: u64,
        op: u32,
        asking: bool,
    },
    Kill {
        node: usize,
        conns: Vec<u64>,
    },
    Reply {
        conn: u64,
        op: u32,
        answer: Answer,
    },
    Cut {
        conn: u64,
    },
    Look {
        node: usize,
        asked: u64,
    },
    Seen {
        view: Box<View>,
    },
    Migrate,
    MoveKey {
        slot: u16,
        key: u32,
    },
    Settle {
        slot: u16,
        from: usize,
        to: usize,
    },
    Told {
        node: usize,
        slot: u16,
        owner: usize,
        epoch: u64,
    },
    Freeze {
        node: usize,
    },
    Thaw {
        node: usize,
    },
    Return {
        node: usize,
    },
    Trouble,
    Submit,
    Tick,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Done,
    Moved(usize),
    Ask(usize),
    /// Of its keys some have migrated and others have not.
    TryAgain,
}

#[derive(Clone, Debug)]
struct Flight {
    conn: u64,
    node: usize,
    sent: u64,
    hops: u32,
}

struct Sim {
    now: u64,
    start: Instant,
    rng: fastrand::Rng,
    events: Events<Event>,
    broken: Broken,
    nodes: Vec<Node>,
    epoch: u64,
    /// Who owns each slot in truth, and since when.
    truth: [(usize, u64); USED as usize],
    last_conn: u64,
    arrivals: BTreeMap<(u64, bool), u64>,
    stalled: BTreeMap<u64, u64>,
    // The client.
    topology: Topology,
    gate: SlotGate,
    discovery: DiscoveryGate,
    disputed: BTreeSet<usize>,
    links: [Option<u64>; NODES],
    abandoned: [Vec<u64>; NODES],
    made: Vec<Made>,
    /// Those that have not ended, in the order of their deadlines.
    open: BTreeSet<u32>,
    waiting: BTreeSet<u32>,
    flights: BTreeMap<u32, Flight>,
    /// What waits to be sent again: to this node by ASK, else to the owner.
    parked: BTreeMap<u32, Option<usize>>,
    /// Until when what is to be sent again waits before that.
    pauses: BTreeMap<u32, u64>,
    /// The nodes on which a command of unknown outcome has been.
    lost: BTreeMap<u32, BTreeSet<usize>>,
    hops: BTreeMap<u32, u32>,
    known_since: [u64; USED as usize],
    discoveries: u32,
    redirects: u32,
    tries: u32,
    migrations: u32,
    violation: Option<String>,
}

#[derive(Debug, Default)]
struct Seen {
    done: usize,
    rejected: usize,
    unknown: usize,
    not_sent: usize,
    redirects: u32,
    /// How often keys were apart.
    tries: u32,
    migrations: u32,
    discoveries: u32,
}

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn id(node: usize) -> NodeId {
    NodeId::new(&format!("node-{node}")).unwrap()
}

fn host() -> Arc<str> {
    "cluster".into()
}

fn slot_of(key: u32) -> u16 {
    (key / KEYS) as u16
}

impl Sim {
    fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let node = |at: usize| Node {
            frozen: false,
            apart: false,
            epochs: std::array::from_fn(|node| node as u64 + 1),
            owners: std::array::from_fn(|slot| slot % NODES),
            to: BTreeMap::new(),
            from: BTreeSet::new(),
            data: (0..u32::from(USED) * KEYS)
                .filter(|key| usize::from(slot_of(*key)) % NODES == at)
                .map(|key| (key, Vec::new()))
                .collect(),
            killed: BTreeSet::new(),
            held: Vec::new(),
        };
        let mut sim = Self {
            now: 0,
            start,
            events: Events::new(),
            broken,
            nodes: (0..NODES).map(node).collect(),
            epoch: NODES as u64,
            truth: std::array::from_fn(|slot| (slot % NODES, 0)),
            last_conn: 0,
            arrivals: BTreeMap::new(),
            stalled: BTreeMap::new(),
            topology: Topology::new(),
            gate: SlotGate::new(),
            discovery: DiscoveryGate::new(DiscoveryGateConfig::default(), rng.u64(..), start),
            disputed: BTreeSet::new(),
            links: [None; NODES],
            abandoned: Default::default(),
            made: Vec::new(),
            open: BTreeSet::new(),
            waiting: BTreeSet::new(),
            flights: BTreeMap::new(),
            parked: BTreeMap::new(),
            pauses: BTreeMap::new(),
            lost: BTreeMap::new(),
            hops: BTreeMap::new(),
            known_since: [0; USED as usize],
            discoveries: 0,
            redirects: 0,
            tries: 0,
            migrations: 0,
            violation: None,
            rng,
        };
        sim.events.plan(0, Event::Tick);
        sim.events.plan(300, Event::Submit);
        sim.events.plan(500, Event::Migrate);
        sim.events.plan(600, Event::Trouble);
        sim
    }

    fn run(mut self) -> Result<Seen, String> {
        while let Some((at, event)) = self.events.next() {
            if at > END {
                break;
            }
            self.now = at;
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(format!("at {at} ms: {violation}"));
            }
        }
        self.check()
    }

    fn instant(&self, at: u64) -> Instant {
        self.start + Duration::from_millis(at)
    }

    fn plan(&mut self, after: u64, event: Event) {
        self.events.plan(self.now + after, event);
    }

    fn delay(&mut self, conn: u64, to_server: bool) -> u64 {
        let stalled = self.stalled.get(&conn).filter(|_| to_server).copied();
        let at = (self.now + self.rng.u64(1..8)).max(stalled.unwrap_or(0));
        let last = self.arrivals.entry((conn, to_server)).or_default();
        *last = (*last).max(at);
        *last - self.now
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive {
                node,
                conn,
                op,
                asking,
            } => self.arrive(node, conn, op, asking),
            Event::Kill { node, conns } => self.nodes[node].killed.extend(conns),
            Event::Reply { conn, op, answer } => self.answered(conn, op, answer),
            Event::Cut { conn } => self.abandon(conn),
            Event::Look { node, asked } => self.look(node, asked),
            Event::Seen { view } => self.seen(&view),
            Event::Migrate => self.migrate(),
            Event::MoveKey { slot, key } => self.move_key(slot, key),
            Event::Settle { slot, from, to } => self.settle(slot, from, to),
            Event::Told {
                node,
                slot,
                owner,
                epoch,
            } => self.told(node, slot, owner, epoch),
            Event::Freeze { node } => self.nodes[node].frozen = true,
            Event::Thaw { node } => {
                self.nodes[node].frozen = false;
                for (conn, op, asking) in std::mem::take(&mut self.nodes[node].held) {
                    self.arrive(node, conn, op, asking);
                }
            }
            Event::Return { node } => self.nodes[node].apart = false,
            Event::Trouble => self.trouble(),
            Event::Submit => self.submit(),
            Event::Tick => self.tick(),
        }
    }

    fn check(self) -> Result<Seen, String> {
        for number in 0..USED {
            let owner = &self.nodes[self.truth[usize::from(number)].0];
            let of_slot = owner.data.iter();
            for (key, data) in of_slot.filter(|(key, _)| slot_of(**key) == number) {
                check_key(&self.made, *key, data)?;
            }
        }
        let all: BTreeSet<u32> = (self.nodes.iter())
            .flat_map(|node| node.data.values().flatten().copied())
            .collect();
        for (op, made) in self.made.iter().enumerate() {
            let done = matches!(made.ended, Some((Ended::Done, _)));
            if done && made.kind != Kind::Get && !all.contains(&(op as u32)) {
                return Err(format!("acknowledged and lost: {op}"));
            }
            if made.ended.is_none() {
                return Err(format!("never ended: {op}"));
            }
        }
        let count = |wanted: Ended| {
            let of = |made: &&Made| made.ended.is_some_and(|(ended, _)| ended == wanted);
            self.made.iter().filter(of).count()
        };
        Ok(Seen {
            done: count(Ended::Done),
            rejected: count(Ended::Rejected),
            unknown: count(Ended::Unknown),
            not_sent: count(Ended::NotSent),
            redirects: self.redirects,
            tries: self.tries,
            migrations: self.migrations,
            discoveries: self.discoveries,
        })
    }
}

#[test]
fn t3_t4_t6_t9_t22_whatever_moves_nothing_is_applied_twice_lost_or_out_of_order() {
    let all = seeds(400);
    let few = all.clone().count() < 100;
    let histories = all.clone().count() as u32;
    let mut total = Seen::default();
    for seed in all {
        let seen = Sim::new(seed, Broken::Nothing).run();
        let seen = seen.unwrap_or_else(|violation| panic!("seed {seed}, {violation}"));
        total.done += seen.done;
        total.rejected += seen.rejected;
        total.unknown += seen.unknown;
        total.not_sent += seen.not_sent;
        total.redirects += seen.redirects;
        total.tries += seen.tries;
        total.migrations += seen.migrations;
        total.discoveries += seen.discoveries;
    }
    assert!(
        few || total.migrations > 5 * histories
            && total.redirects > total.migrations
            && total.tries > histories,
        "{total:?}"
    );
    assert!(
        few || total.done > 10 * total.unknown && total.done > 1_000 * total.rejected,
        "{total:?}"
    );
    assert!(
        total.discoveries < 10 * histories * (END as u32 / 1_000),
        "{total:?}"
    );
}

#[test]
fn each_rule_of_a_migration_that_is_broken_is_noticed() {
    for broken in [
        Broken::BelievesTheLast,
        Broken::HasNoGate,
        Broken::ForgetsTurns,
        Broken::KnowsTheFirstKey,
        Broken::DoesNotFence,
        Broken::RepeatsAnything,
    ] {
        let noticed = (0..400).find_map(|seed| Sim::new(seed, broken).run().err());
        assert!(noticed.is_some(), "{broken:?} goes unnoticed");
    }
}
