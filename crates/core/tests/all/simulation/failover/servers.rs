//! The steps of servers and sentinels, and their troubles.

use steadfast_core::report::SharedHistory;

use super::*;

impl Sim {
    pub(super) fn arrive(&mut self, server: usize, run: u32, conn: u64, ask: Ask) {
        let model = &mut self.servers[server];
        match model.power {
            Power::Dead => return self.plan(3, Event::Cut { conn }),
            _ if run != 0 && model.run != run => return self.plan(3, Event::Cut { conn }),
            _ if model.killed.contains(&conn) => return,
            Power::Frozen => return model.held.push((conn, ask)),
            Power::Up => {}
        }
        let is_primary = model.is_primary;
        let answer = match ask {
            Ask::Hello(kill) => {
                model.conns.insert(conn);
                model.killed.extend(kill);
                let name = |history: u32| history.to_string().as_str().into();
                let info = InfoReplication {
                    is_primary,
                    history: name(model.history),
                    offset: model.log.len() as u64,
                    shared: model.shared.map(|(history, until)| SharedHistory {
                        history: name(history),
                        until,
                    }),
                    link_up: None,
                    replicas: Vec::new(),
                    faults: Default::default(),
                };
                Answer::Hello {
                    run: model.run,
                    info,
                }
            }
            Ask::Role => Answer::Role {
                is_primary,
                offset: model.log.len() as u64,
            },
            Ask::Command(op) => {
                let command = &self.made[op as usize];
                let key = command.key;
                if command.kind == Kind::Get {
                    let of_key = |op: &&u32| self.made[**op as usize].key == key;
                    let read = model.log.iter().filter(of_key).copied().collect();
                    Answer::Done { op, read }
                } else if is_primary {
                    model.log.push(op);
                    self.spread(server);
                    Answer::Done {
                        op,
                        read: Vec::new(),
                    }
                } else {
                    Answer::ReadOnly { op }
                }
            }
        };
        let delay = self.delay(conn, false);
        self.plan(delay, Event::Reply { conn, answer });
    }

    fn spread(&mut self, from: usize) {
        let history = self.servers[from].history;
        for to in (0..SERVERS).filter(|to| *to != from) {
            let lag = self.servers[to].lag;
            self.plan(lag, Event::Replicate { from, to, history });
        }
    }

    pub(super) fn replicate(&mut self, from: usize, to: usize, history: u32) {
        let (source, target) = (&self.servers[from], &self.servers[to]);
        let connected = target.follows == Some(from)
            && !target.is_primary
            && source.power == Power::Up
            && source.history == history;
        if !connected {
            return;
        }
        if target.power != Power::Up {
            return self.plan(50, Event::Replicate { from, to, history });
        }
        // What it has beyond the shared history is thrown away.
        let log = source.log.clone();
        let target = &mut self.servers[to];
        (target.log, target.history, target.shared) = (log, history, None);
    }

    pub(super) fn fail_over(&mut self) {
        let old = self.primary;
        let history = self.servers[old].history;
        let in_step = |server: &Server| {
            let follows = server.follows == Some(old) && !server.is_primary;
            follows && server.power == Power::Up && server.history == history
        };
        let candidate = (0..SERVERS)
            .filter(|at| *at != old && in_step(&self.servers[*at]))
            .max_by_key(|at| self.servers[*at].log.len());
        let Some(new) = candidate else { return };
        self.epoch += 1;
        self.histories += 1;
        self.primary = new;
        let promoted = &mut self.servers[new];
        promoted.shared = Some((promoted.history, promoted.log.len() as u64 + 1));
        promoted.history = self.histories;
        promoted.is_primary = true;
        promoted.follows = None;
        let leader = self.rng.usize(..SENTINELS);
        let (epoch, primary) = (self.epoch, new);
        for sentinel in 0..SENTINELS {
            let after = if sentinel == leader {
                0
            } else {
                self.rng.u64(5..400)
            };
            self.plan(
                after,
                Event::Told {
                    sentinel,
                    epoch,
                    primary,
                },
            );
        }
        for server in (0..SERVERS).filter(|at| *at != new) {
            // A primary that is away is told when it is back, and some time after.
            let after = self.rng.u64(20..700);
            self.plan(after, Event::Demote { server });
        }
    }

    pub(super) fn demote(&mut self, server: usize) {
        if server == self.primary {
            return;
        }
        if self.servers[server].power != Power::Up {
            let after = self.rng.u64(100..900);
            return self.plan(after, Event::Demote { server });
        }
        let (primary, history) = (self.primary, self.servers[self.primary].history);
        let model = &mut self.servers[server];
        model.follows = Some(primary);
        let lag = model.lag;
        if std::mem::take(&mut model.is_primary) {
            // A sentinel kills the clients of whom it demotes; else they would read on from a
            // replica.
            let conns = std::mem::take(&mut model.conns);
            model.killed.extend(&conns);
            for conn in conns {
                self.plan(2, Event::Cut { conn });
            }
        }
        self.plan(
            lag,
            Event::Replicate {
                from: primary,
                to: server,
                history,
            },
        );
    }

    pub(super) fn thaw(&mut self, server: usize) {
        if self.servers[server].power != Power::Frozen {
            return;
        }
        self.servers[server].power = Power::Up;
        let run = self.servers[server].run;
        for (conn, ask) in std::mem::take(&mut self.servers[server].held) {
            self.arrive(server, run, conn, ask);
        }
    }

    pub(super) fn restart(&mut self, server: usize) {
        if self.servers[server].power != Power::Dead {
            return;
        }
        self.histories += 1;
        let history = self.histories;
        let model = &mut self.servers[server];
        // It has what it had written to its file, and says so.
        let kept = model.log.len() - model.log.len().min(self.rng.usize(0..4));
        model.log.truncate(kept);
        model.shared = Some((model.history, kept as u64 + 1));
        model.history = history;
        model.run += 1;
        model.power = Power::Up;
        model.killed.clear();
        if model.is_primary {
            for to in (0..SERVERS).filter(|to| *to != server) {
                let lag = self.servers[to].lag;
                self.plan(
                    lag,
                    Event::Replicate {
                        from: server,
                        to,
                        history,
                    },
                );
            }
        }
    }

    pub(super) fn trouble(&mut self) {
        if self.now > CHAOS {
            // All is well again.
            for server in 0..SERVERS {
                match self.servers[server].power {
                    Power::Frozen => self.thaw(server),
                    Power::Dead => self.restart(server),
                    Power::Up => {}
                }
            }
            for model in &mut self.sentinels {
                model.away = false;
            }
            return;
        }
        let primary = self.primary;
        let up = self.servers[primary].power == Power::Up;
        match self.rng.u32(0..9) {
            // Planned.
            0 if up => self.plan(0, Event::Failover),
            1 if up => {
                self.servers[primary].power = Power::Dead;
                self.servers[primary].held.clear();
                let (back, over) = (self.rng.u64(800..3_000), self.rng.u64(100..500));
                self.plan(back, Event::Start { server: primary });
                self.plan(over, Event::Failover);
            }
            2 | 3 if up => {
                self.plan(0, Event::Freeze { server: primary });
                let (back, over) = (self.rng.u64(300..2_500), self.rng.u64(100..700));
                self.plan(back, Event::Thaw { server: primary });
                if self.rng.bool() {
                    self.plan(over, Event::Failover);
                }
            }
            4 => {
                let away = self.rng.usize(..SENTINELS);
                self.sentinels[away].away = true;
                let back = self.rng.u64(500..6_000);
                self.plan(back, Event::Return { sentinel: away });
            }
            5 => {
                if let Some(conn) = self.link.as_ref().map(|link| link.conn) {
                    let until = self.now + self.rng.u64(100..2_500);
                    self.stalled.insert(conn, until);
                }
            }
            6 => {
                if let Some(link) = &self.link {
                    let conn = link.conn;
                    self.plan(0, Event::Cut { conn });
                }
            }
            7 => {
                let server = self.rng.usize(..SERVERS);
                self.servers[server].lag = self.rng.u64(1..900);
            }
            _ => {}
        }
        let next = self.rng.u64(150..1_300);
        self.plan(next, Event::Trouble);
    }
}
