//! The client's steps.

use steadfast_core::certainty::Certainty;
use steadfast_core::node::AnnouncedHost;
use steadfast_core::redirect::{MAX_HOPS, Redirect};
use steadfast_core::report::{ClusterInfo, ClusterReport, ReportedNode, ReportedRole};
use steadfast_core::slot::{KeySet, SLOTS, SlotRange};
use steadfast_core::succession::{Elsewhere, may_repeat};
use steadfast_core::topology::{Explained, MemberIndex, Passage, Resubmission, Trigger, UnderWay};

use super::*;

impl Sim {
    pub(super) fn look(&mut self, at: usize, asked: u64) {
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

    pub(super) fn seen(&mut self, view: &View) {
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

    pub(super) fn submit(&mut self) {
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

    pub(super) fn tick(&mut self) {
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

    pub(super) fn abandon(&mut self, conn: u64) {
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

    pub(super) fn answered(&mut self, conn: u64, op: u32, answer: Answer) {
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
}
