//! Slots that move between the nodes of a cluster, which learn of it one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast_core::certainty::Certainty;
use steadfast_core::node::{AnnouncedHost, NodeId};
use steadfast_core::redirect::{MAX_HOPS, Redirect};
use steadfast_core::report::{ClusterInfo, ClusterReport, ReportedNode, ReportedRole};
use steadfast_core::slot::{KeySet, SLOTS, Slot, SlotRange};
use steadfast_core::succession::{Elsewhere, may_repeat};
use steadfast_core::topology::{
    DiscoveryGate, DiscoveryGateConfig, Explained, MemberIndex, Passage, Resubmission, SlotGate,
    Topology, Trigger, UnderWay, View,
};

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

    // Nodes.

    fn arrive(&mut self, at: usize, conn: u64, op: u32, asking: bool) {
        let command = &self.made[op as usize];
        let slot = slot_of(command.key);
        let keys: Vec<u32> = [command.key].into_iter().chain(command.other).collect();
        let node = &mut self.nodes[at];
        if node.killed.contains(&conn) {
            return;
        }
        if node.frozen {
            return node.held.push((conn, op, asking));
        }
        let owner = node.owners[usize::from(slot)];
        let there = keys.iter().filter(|key| node.data.contains_key(key));
        let there = there.count();
        let is_importing = asking && node.from.contains(&slot);
        let answer = match node.to.get(&slot) {
            Some(to) if owner == at && there == 0 => Answer::Ask(*to),
            Some(_) if owner == at && there < keys.len() => Answer::TryAgain,
            _ if owner != at && is_importing && keys.len() > 1 && there < keys.len() => {
                Answer::TryAgain
            }
            _ if owner == at || is_importing => {
                for key in keys {
                    let data = node.data.entry(key).or_default();
                    if command.kind != Kind::Get {
                        data.push(op);
                    }
                }
                Answer::Done
            }
            _ => Answer::Moved(owner),
        };
        let delay = self.delay(conn, false);
        self.plan(delay, Event::Reply { conn, op, answer });
    }

    fn migrate(&mut self) {
        if self.now > CHAOS {
            return;
        }
        let next = self.rng.u64(30..400);
        self.plan(next, Event::Migrate);
        let number = self.rng.u16(..USED);
        let from = self.truth[usize::from(number)].0;
        let to = self.rng.usize(..NODES);
        let busy = self.nodes[from].to.contains_key(&number)
            || [from, to].iter().any(|at| self.nodes[*at].frozen);
        if busy || from == to {
            return;
        }
        self.nodes[from].to.insert(number, to);
        self.nodes[to].from.insert(number);
        for n in 0..KEYS {
            let after = self.rng.u64(1..40);
            self.plan(
                after,
                Event::MoveKey {
                    slot: number,
                    key: u32::from(number) * KEYS + n,
                },
            );
        }
    }

    fn move_key(&mut self, slot: u16, key: u32) {
        let from = self.truth[usize::from(slot)].0;
        let Some(to) = self.nodes[from].to.get(&slot).copied() else {
            return;
        };
        if self.nodes[from].frozen || self.nodes[to].frozen {
            return self.plan(50, Event::MoveKey { slot, key });
        }
        // A command that came late, behind an ASKING of an earlier migration, has made the key
        // there: MIGRATE answers BUSYKEY, and the slot stays where it is until somebody sees to it.
        if [from, to]
            .iter()
            .all(|at| self.nodes[*at].data.contains_key(&key))
        {
            return;
        }
        if let Some(data) = self.nodes[from].data.remove(&key) {
            self.nodes[to].data.insert(key, data);
        }
        let gone = self.nodes[from]
            .data
            .keys()
            .all(|key| slot_of(*key) != slot);
        if !gone {
            return;
        }
        // The new owner is told first, then the old one; the others hear of it.
        self.migrations += 1;
        let bumped = self.nodes[to].epochs[to];
        let epoch = if bumped == self.epoch {
            bumped
        } else {
            self.epoch + 1
        };
        self.epoch = epoch;
        self.truth[usize::from(slot)] = (to, self.now);
        let node = &mut self.nodes[to];
        node.epochs[to] = epoch;
        node.owners[usize::from(slot)] = to;
        node.from.remove(&slot);
        let after = self.rng.u64(0..20);
        self.plan(after, Event::Settle { slot, from, to });
        for other in (0..NODES).filter(|other| ![from, to].contains(other)) {
            let after = self.rng.u64(5..600);
            self.plan(
                after,
                Event::Told {
                    node: other,
                    slot,
                    owner: to,
                    epoch,
                },
            );
        }
    }

    fn settle(&mut self, slot: u16, from: usize, to: usize) {
        if self.nodes[from].frozen {
            return self.plan(30, Event::Settle { slot, from, to });
        }
        // It has come back meanwhile.
        if self.truth[usize::from(slot)].0 == from {
            return;
        }
        let epoch = self.nodes[to].epochs[to];
        let node = &mut self.nodes[from];
        node.to.remove(&slot);
        node.owners[usize::from(slot)] = to;
        node.epochs[to] = node.epochs[to].max(epoch);
    }

    /// As in Redis 7.0: the claim counts if its epoch is higher than that of the node to which the
    /// slot is bound here, which may have risen for another reason.
    fn told(&mut self, at: usize, slot: u16, owner: usize, epoch: u64) {
        if self.nodes[at].apart {
            return self.plan(
                200,
                Event::Told {
                    node: at,
                    slot,
                    owner,
                    epoch,
                },
            );
        }
        let node = &mut self.nodes[at];
        let bound = node.owners[usize::from(slot)];
        if bound != at && epoch > node.epochs[bound] {
            node.owners[usize::from(slot)] = owner;
        }
        node.epochs[owner] = node.epochs[owner].max(epoch);
    }

    fn trouble(&mut self) {
        if self.now > CHAOS {
            for at in 0..NODES {
                self.plan(0, Event::Thaw { node: at });
                self.plan(0, Event::Return { node: at });
            }
            return;
        }
        let at = self.rng.usize(..NODES);
        match self.rng.u32(0..6) {
            0 => {
                if let Some(conn) = self.links[at] {
                    self.plan(0, Event::Cut { conn });
                }
            }
            1 => {
                if let Some(conn) = self.links[at] {
                    let until = self.now + self.rng.u64(100..2_500);
                    self.stalled.insert(conn, until);
                }
            }
            2 => {
                self.plan(0, Event::Freeze { node: at });
                let back = self.rng.u64(10..900);
                self.plan(back, Event::Thaw { node: at });
            }
            3 => {
                self.nodes[at].apart = true;
                let back = self.rng.u64(300..3_000);
                self.plan(back, Event::Return { node: at });
            }
            _ => {}
        }
        let next = self.rng.u64(100..900);
        self.plan(next, Event::Trouble);
    }

    fn look(&mut self, at: usize, asked: u64) {
        let node = &self.nodes[at];
        if node.frozen {
            return;
        }
        let nodes = (0..NODES).map(|other| {
            let slots: Vec<SlotRange> = (0..USED)
                .filter(|number| node.owners[usize::from(*number)] == other)
                .filter_map(|number| SlotRange::new(slot(number), slot(number)))
                .collect();
            ReportedNode {
                id: Some(id(other)),
                host: AnnouncedHost::AsAsked,
                hostname: None,
                other_hosts: Vec::new(),
                port: other as u16 + 1,
                tls_port: None,
                role: ReportedRole::Primary,
                epoch: Some(node.epochs[other]),
                is_myself: other == at,
                is_failing: false,
                is_failed: false,
                slots,
                migrations: Vec::new(),
            }
        });
        let after = self.rng.u64(1..120);
        let node = &self.nodes[at];
        let view = View {
            by: Some(id(at)),
            host: host(),
            asked: self.instant(asked),
            heard: self.instant(self.now + after),
            tls: false,
            report: ClusterReport {
                nodes: nodes.collect(),
                is_exhaustive: true,
                ..ClusterReport::default()
            },
            info: Some(ClusterInfo {
                is_ok: true,
                current_epoch: node.epochs.iter().copied().max().unwrap_or(0),
                my_epoch: node.epochs[at],
                slots_assigned: SLOTS,
            }),
        };
        let after = self.rng.u64(1..120);
        self.plan(
            after,
            Event::Seen {
                view: Box::new(view),
            },
        );
    }

    // The client.

    fn seen(&mut self, view: &View) {
        let before = self.owners();
        if self.broken == Broken::BelievesTheLast {
            self.topology = Topology::new();
        }
        let changes = self.topology.merge(view);
        for index in &changes.disputed {
            self.disputed.insert(self.node_of(*index));
        }
        let explained = if changes.is_empty() {
            Explained::NotYet
        } else {
            Explained::Yes
        };
        let now = self.instant(self.now);
        self.discovery.finished(explained, now);
        self.compare(&before);
        for number in 0..USED {
            if before[usize::from(number)].is_some_and(|old| Some(old) != self.owner(number)) {
                self.close(number);
            }
        }
        self.flush();
    }

    fn owner(&self, number: u16) -> Option<usize> {
        self.topology
            .owner(slot(number))
            .map(|index| self.node_of(index))
    }

    fn owners(&self) -> Vec<Option<usize>> {
        (0..USED).map(|number| self.owner(number)).collect()
    }

    fn node_of(&self, index: MemberIndex) -> usize {
        let endpoint = self.topology.member(index).endpoint.as_ref();
        usize::from(endpoint.expect("each has one").port) - 1
    }

    /// Whoever knew the owner of a slot, while it was the owner, does not take another for it.
    fn compare(&mut self, before: &[Option<usize>]) {
        for number in 0..USED {
            let at = usize::from(number);
            let (old, new) = (before[at], self.owner(number));
            if old == new {
                continue;
            }
            let (owner, since) = self.truth[at];
            if old == Some(owner) && since < self.known_since[at] {
                let violation =
                    format!("slot {number} was known to be at {owner}, and is forgotten");
                self.violation = Some(violation);
            }
            self.known_since[at] = self.now;
        }
    }

    /// The gate of a slot closes, until whatever is under way for it has ended.
    fn close(&mut self, number: u16) {
        let of_slot = |op: u32| slot_of(self.made[op as usize].key) == number;
        let under_way: Vec<UnderWay> = (self.flights.iter())
            .filter(|(op, _)| of_slot(**op))
            .map(|(op, flight)| UnderWay {
                command: u64::from(*op),
                connection: flight.conn,
                keys: self.keys_of(*op),
                until: self.deadline_of(*op),
            })
            .collect();
        self.gate.close(slot(number), under_way);
    }

    fn keys_of(&self, op: u32) -> KeySet {
        let Made { key, other, .. } = self.made[op as usize];
        let other = other.filter(|_| self.broken != Broken::KnowsTheFirstKey);
        KeySet::hashed([key].into_iter().chain(other).map(u64::from).collect())
    }

    fn deadline_of(&self, op: u32) -> Instant {
        self.instant(self.made[op as usize].submitted + DEADLINE)
    }

    fn submit(&mut self) {
        if self.now > CHAOS + 2_500 {
            return;
        }
        for _ in 0..self.rng.u32(1..4) {
            let op = self.made.len() as u32;
            let kind = match self.rng.u32(0..10) {
                0..=4 => Kind::Incr,
                5..=7 => Kind::Set,
                _ => Kind::Get,
            };
            let key = self.rng.u32(..u32::from(USED) * KEYS);
            let next = key - key % KEYS + (key + 1) % KEYS;
            self.made.push(Made {
                key,
                other: Some(next).filter(|_| self.rng.u32(..8) == 0),
                kind,
                submitted: self.now,
                ended: None,
            });
            self.open.insert(op);
            self.waiting.insert(op);
        }
        self.flush();
        let next = self.rng.u64(1..12);
        self.plan(next, Event::Submit);
    }

    fn end(&mut self, op: u32, ended: Ended) {
        self.open.remove(&op);
        self.waiting.remove(&op);
        self.lost.remove(&op);
        self.flights.remove(&op);
        self.parked.remove(&op);
        self.pauses.remove(&op);
        let number = slot_of(self.made[op as usize].key);
        self.gate
            .settle(slot(number), u64::from(op), ended == Ended::Done);
        self.made[op as usize].ended = Some((ended, self.now));
    }

    fn tick(&mut self) {
        self.plan(5, Event::Tick);
        let now = self.instant(self.now);
        if self.discovery.poll(now) {
            self.discoveries += 1;
            let at = self
                .disputed
                .pop_first()
                .unwrap_or_else(|| self.rng.usize(..NODES));
            let (asked, after) = (self.now, self.rng.u64(1..60));
            if self.nodes[at].frozen {
                self.discovery.finished(Explained::NotYet, now);
            } else {
                self.plan(after, Event::Look { node: at, asked });
                // It may be frozen before it is asked.
                let started = self.now;
                if started > CHAOS {
                    self.discovery.trigger(Trigger::Doubt, now);
                }
            }
        }
        let is_late = |op: &&u32| self.now > self.made[**op as usize].submitted + DEADLINE;
        let late: Vec<u32> = self.open.iter().take_while(is_late).copied().collect();
        for op in late {
            let been = self.flights.contains_key(&op) || self.lost.contains_key(&op);
            if let Some(conn) = self.flights.get(&op).map(|flight| flight.conn) {
                self.abandon(conn);
            }
            if self.made[op as usize].ended.is_none() {
                self.end(op, if been { Ended::Unknown } else { Ended::NotSent });
            }
        }
        let silent: Vec<u64> = (self.flights.values())
            .filter(|flight| self.now > flight.sent + SILENCE)
            .map(|flight| flight.conn)
            .collect();
        for conn in silent {
            self.abandon(conn);
        }
        self.flush();
    }

    fn abandon(&mut self, conn: u64) {
        let Some(node) = self.links.iter().position(|link| *link == Some(conn)) else {
            return;
        };
        self.links[node] = None;
        self.abandoned[node].push(conn);
        let now = self.instant(self.now);
        self.discovery.trigger(Trigger::Loss, now);
        // A connection is made for it, so that nothing is left behind.
        self.link(node);
        let lost: Vec<u32> = (self.flights.iter())
            .filter(|(_, flight)| flight.conn == conn)
            .map(|(op, _)| *op)
            .collect();
        for op in &lost {
            self.close(slot_of(self.made[*op as usize].key));
        }
        for op in lost {
            self.flights.remove(&op);
            self.lost.entry(op).or_default().insert(node);
            self.park(op, None);
        }
        self.flush();
    }

    /// It is to be sent again, to this node by ASK or to the owner.
    fn park(&mut self, op: u32, asked: Option<usize>) {
        let number = slot_of(self.made[op as usize].key);
        self.gate.park(slot(number), u64::from(op));
        self.parked.insert(op, asked);
    }

    fn link(&mut self, node: usize) -> u64 {
        if let Some(conn) = self.links[node] {
            return conn;
        }
        self.last_conn += 1;
        let conn = self.last_conn;
        self.links[node] = Some(conn);
        if self.broken != Broken::DoesNotFence {
            let conns = self.abandoned[node].clone();
            let delay = self.delay(conn, true);
            self.plan(delay, Event::Kill { node, conns });
        }
        conn
    }

    fn flush(&mut self) {
        let now = self.instant(self.now);
        for (op, asked) in self.parked.clone() {
            if self.pauses.get(&op).is_some_and(|until| self.now < *until) {
                continue;
            }
            let number = slot_of(self.made[op as usize].key);
            let Some(node) = asked.or_else(|| self.owner(number)) else {
                continue;
            };
            let conn = self.link(node);
            let turn = match self.broken {
                Broken::ForgetsTurns => Resubmission::Go,
                _ => (self.gate).resubmit(slot(number), u64::from(op), conn, now),
            };
            match turn {
                Resubmission::Go => {
                    self.parked.remove(&op);
                    self.send(op, node, asked.is_some());
                }
                Resubmission::Wait(_) => {}
                Resubmission::Overtaken => {
                    let been = self.lost.contains_key(&op);
                    self.end(
                        op,
                        if been {
                            Ended::Unknown
                        } else {
                            Ended::Rejected
                        },
                    );
                }
            }
        }
        // Whoever waits has those of its keys wait behind it.
        let mut before: Vec<KeySet> = Vec::new();
        for op in self.waiting.clone() {
            let number = slot_of(self.made[op as usize].key);
            let keys = self.keys_of(op);
            let is_behind = before.iter().any(|other| other.share(&keys));
            let owner = self.owner(number).filter(|_| !is_behind);
            let mut passes = || match self.broken {
                Broken::HasNoGate => true,
                _ => self.gate.pass(slot(number), &keys, now) == Passage::Open,
            };
            match owner.filter(|_| passes()) {
                Some(owner) => self.send(op, owner, false),
                None => before.push(keys),
            }
        }
    }

    fn send(&mut self, op: u32, node: usize, asking: bool) {
        self.waiting.remove(&op);
        let been = self.lost.get(&op).cloned().unwrap_or_default();
        let effect = self.made[op as usize].kind.effect();
        let may = been.iter().all(|other| {
            // A slot that has moved by proof: what is still left at the old owner is redirected
            // there.
            let place = if *other == node {
                Elsewhere::SameServer
            } else {
                Elsewhere::Successor
            };
            may_repeat(Certainty::Unknown, effect, place)
        });
        if !may && self.broken != Broken::RepeatsAnything {
            return self.end(op, Ended::Unknown);
        }
        let conn = self.link(node);
        let hops = self.hops.get(&op).copied().unwrap_or(0);
        let flight = Flight {
            conn,
            node,
            sent: self.now,
            hops,
        };
        self.flights.insert(op, flight);
        let delay = self.delay(conn, true);
        self.plan(
            delay,
            Event::Arrive {
                node,
                conn,
                op,
                asking,
            },
        );
    }

    fn answered(&mut self, conn: u64, op: u32, answer: Answer) {
        let Some(flight) = self
            .flights
            .get(&op)
            .filter(|flight| flight.conn == conn)
            .cloned()
        else {
            return;
        };
        let number = slot_of(self.made[op as usize].key);
        let target = match answer {
            Answer::Done => {
                self.end(op, Ended::Done);
                return self.flush();
            }
            Answer::TryAgain => {
                self.tries += 1;
                self.close(number);
                self.flights.remove(&op);
                self.pauses.insert(op, self.now + PAUSE);
                self.park(op, None);
                return self.flush();
            }
            Answer::Moved(to) | Answer::Ask(to) => to,
        };
        self.redirects += 1;
        self.close(number);
        let mut asked = Some(target);
        if let Answer::Moved(to) = answer {
            let before = self.owners();
            let redirect = Redirect {
                slot: slot(number),
                host: AnnouncedHost::AsAsked,
                port: to as u16 + 1,
            };
            let by = self.topology.find(&id(flight.node)).expect("it is known");
            let (sent, now) = (self.instant(flight.sent), self.instant(self.now));
            self.topology.moved(by, &redirect, &host(), sent, now);
            self.discovery.trigger(Trigger::Contradiction, now);
            self.compare(&before);
            // By the map, like all others of this slot.
            asked = None;
        }
        self.flights.remove(&op);
        if flight.hops >= MAX_HOPS {
            let been = self.lost.contains_key(&op);
            self.end(
                op,
                if been {
                    Ended::Unknown
                } else {
                    Ended::Rejected
                },
            );
        } else {
            self.hops.insert(op, flight.hops + 1);
            self.park(op, asked);
        }
        self.flush();
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
