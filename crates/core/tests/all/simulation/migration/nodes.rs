//! The steps of the nodes, and their troubles.

use super::*;

impl Sim {
    pub(super) fn arrive(&mut self, at: usize, conn: u64, op: u32, asking: bool) {
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

    pub(super) fn migrate(&mut self) {
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

    pub(super) fn move_key(&mut self, slot: u16, key: u32) {
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

    pub(super) fn settle(&mut self, slot: u16, from: usize, to: usize) {
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
    pub(super) fn told(&mut self, at: usize, slot: u16, owner: usize, epoch: u64) {
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

    pub(super) fn trouble(&mut self) {
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
}
