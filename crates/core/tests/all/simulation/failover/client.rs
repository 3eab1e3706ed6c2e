//! The client's steps.

use steadfast_core::certainty::Certainty;
use steadfast_core::report::MonitoredPrimary;
use steadfast_core::sentinel::{Heard, Testimony};
use steadfast_core::succession::{
    Elsewhere, History, LateAnswer, Watermark, late_answer, may_repeat,
};

use super::*;

impl Sim {
    pub(super) fn submit(&mut self) {
        if self.now > CHAOS + 2_000 {
            return;
        }
        let kind = match self.rng.u32(0..10) {
            0..=3 => Kind::Incr,
            4..=6 => Kind::Set,
            _ => Kind::Get,
        };
        let op = self.made.len() as u32;
        self.made.push(Made {
            key: self.rng.u32(..KEYS),
            other: None,
            kind,
            submitted: self.now,
            ended: None,
        });
        self.open.insert(op);
        self.pending.insert(op);
        self.flush();
        let next = self.rng.u64(1..15);
        self.plan(next, Event::Submit);
    }

    fn end(&mut self, op: u32, ended: Ended) {
        self.open.remove(&op);
        self.pending.remove(&op);
        self.flights.remove(&op);
        self.lost.remove(&op);
        self.made[op as usize].ended = Some((ended, self.now));
    }

    fn believed(&self) -> Option<(usize, Term, u64)> {
        if self.broken == Broken::BelievesTheLast {
            return Some((self.believed_last?, Term(self.term_last), self.term_last));
        }
        let primacy = self.council.primacy()?;
        Some((
            usize::from(primacy.primary.port) - 1,
            primacy.term,
            primacy.epoch,
        ))
    }

    pub(super) fn tick(&mut self) {
        self.plan(20, Event::Tick);
        if self.now >= self.asked_at + 150 {
            self.asked_at = self.now;
            for sentinel in 0..SENTINELS {
                let model = &self.sentinels[sentinel];
                // One that is away from the others still answers the client, half of the time.
                if model.away && self.rng.bool() {
                    continue;
                }
                let (asked, epoch, primary) = (self.now, model.epoch, model.primary);
                let after = self.rng.u64(1..180);
                self.plan(
                    after,
                    Event::Testify {
                        sentinel,
                        asked,
                        epoch,
                        primary,
                    },
                );
            }
        }
        let is_late = |op: &&u32| self.now > self.made[**op as usize].submitted + DEADLINE;
        let late: Vec<u32> = self.open.iter().take_while(is_late).copied().collect();
        for op in late {
            let been = self.flights.contains_key(&op) || self.lost.contains_key(&op);
            if let Some(flight) = self.flights.get(&op) {
                self.abandon_of(flight.conn);
            }
            self.end(op, if been { Ended::Unknown } else { Ended::NotSent });
        }
        let oldest = self.flights.values().map(|flight| flight.sent).min();
        let silent = oldest.is_some_and(|sent| self.now > sent + SILENCE);
        let shaking = |link: &Link| !link.ready && self.now > link.since + SILENCE;
        if silent || self.link.as_ref().is_some_and(shaking) {
            self.abandon();
        }
        // What the deposed have not answered in a moment.
        if self.switched_at > 0 && self.now > self.switched_at + 60 {
            self.give_up_deposed();
        }
        self.connect();
        self.ask_role();
        self.flush();
    }

    pub(super) fn hear(&mut self, at: usize, asked: u64, epoch: u64, primary: usize) {
        if epoch > self.told.0 {
            self.told = (epoch, primary);
        }
        if self.broken == Broken::BelievesTheLast && self.believed_last != Some(primary) {
            self.believed_last = Some(primary);
            self.term_last += 1;
            self.switched();
        }
        let testimony = Testimony {
            primary: Some(endpoint(primary)),
            monitored: MonitoredPrimary {
                config_epoch: epoch,
                run_id: None,
                other_sentinels: SENTINELS - 1,
                quorum: 2,
                subjectively_down: false,
                objectively_down: false,
                failing_over: false,
            },
            sentinel: None,
            asked: self.instant(asked),
        };
        let heard = self
            .council
            .hear(&sentinel(at), testimony, self.instant(self.now));
        if matches!(heard, Heard::Switched { .. }) && self.broken != Broken::BelievesTheLast {
            self.switched();
        }
    }

    fn switched(&mut self) {
        self.switches += 1;
        self.switched_at = self.now;
        if let Some(link) = self.link.take() {
            self.remember(&link);
        }
        self.connect();
    }

    /// Its connection is abandoned: it may have commands of ours that are not run yet.
    fn remember(&mut self, link: &Link) {
        if let Some(run) = link.run {
            self.abandoned.push((link.server, run, link.conn));
        }
    }

    fn abandon_of(&mut self, conn: u64) {
        if self.link.as_ref().is_some_and(|link| link.conn == conn) {
            self.abandon();
        }
    }

    fn abandon(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.remember(&link);
        let conn = link.conn;
        self.lose(|flight| flight.conn == conn);
    }

    fn give_up_deposed(&mut self) {
        let Some((_, term, _)) = self.believed() else {
            return;
        };
        if self.broken != Broken::CountsTheDeposed {
            self.lose(|flight| flight.term != term);
        }
    }

    /// The outcome of these commands is unknown.
    fn lose(&mut self, which: impl Fn(&Flight) -> bool) {
        let lost: Vec<u32> = (self.flights.iter())
            .filter(|(_, flight)| which(flight))
            .map(|(op, _)| *op)
            .collect();
        for op in lost {
            if let Some(flight) = self.flights.remove(&op) {
                self.lost.entry(op).or_default().push(flight);
                self.pending.insert(op);
            }
        }
    }

    pub(super) fn cut(&mut self, conn: u64) {
        self.abandon_of(conn);
        self.lose(|flight| flight.conn == conn);
    }

    fn connect(&mut self) {
        let Some((server, term, epoch)) = self.believed() else {
            return;
        };
        if self.link.is_some() {
            return;
        }
        self.last_conn += 1;
        let conn = self.last_conn;
        // The run is not known before the handshake; ids and addresses tell connections apart
        // besides.
        let run = self.servers[server].run;
        let kill = (self.abandoned.iter())
            .filter(|(on, of, _)| (*on, *of) == (server, run))
            .map(|(.., conn)| *conn)
            .filter(|_| self.broken != Broken::DoesNotFence)
            .collect();
        self.link = Some(Link {
            conn,
            server,
            run: None,
            term,
            epoch,
            ready: false,
            since: self.now,
            role_sent: None,
        });
        let delay = self.delay(conn, true);
        let ask = Ask::Hello(kill);
        self.plan(
            delay,
            Event::Arrive {
                server,
                run: 0,
                conn,
                ask,
            },
        );
    }

    fn ask_role(&mut self) {
        let (now, acknowledged) = (self.now, self.acknowledged.len());
        let Some(link) = &mut self.link else { return };
        let due = link.role_sent.is_none() && now.is_multiple_of(100);
        let (true, true, Some(run)) = (link.ready, due, link.run) else {
            return;
        };
        link.role_sent = Some((now, acknowledged));
        let (server, conn) = (link.server, link.conn);
        let delay = self.delay(conn, true);
        self.plan(
            delay,
            Event::Arrive {
                server,
                run,
                conn,
                ask: Ask::Role,
            },
        );
    }

    /// Sends what waits, in the order in which it was submitted.
    fn flush(&mut self) {
        let Some(link) = self.link.as_ref().filter(|link| link.ready) else {
            return;
        };
        let (conn, server, term, epoch) = (link.conn, link.server, link.term, link.epoch);
        let Some(run) = link.run else { return };
        // Those of an earlier term come first, if they come again.
        if self.flights.values().any(|flight| flight.conn != conn) {
            return;
        }
        for op in std::mem::take(&mut self.pending) {
            let been = self.lost.get(&op).cloned().unwrap_or_default();
            let effect = self.made[op as usize].kind.effect();
            let may = been.iter().all(|flight| {
                let place = match () {
                    () if flight.server == server => Elsewhere::SameServer,
                    () if epoch > flight.epoch => Elsewhere::Successor,
                    () => Elsewhere::Stranger,
                };
                may_repeat(Certainty::Unknown, effect, place)
            });
            if !may && self.broken != Broken::RepeatsAnything {
                self.end(op, Ended::Unknown);
                continue;
            }
            let flight = Flight {
                conn,
                server,
                term,
                epoch,
                sent: self.now,
            };
            self.flights.insert(op, flight);
            let delay = self.delay(conn, true);
            let ask = Ask::Command(op);
            self.plan(
                delay,
                Event::Arrive {
                    server,
                    run,
                    conn,
                    ask,
                },
            );
        }
    }

    pub(super) fn answered(&mut self, conn: u64, answer: Answer) {
        match answer {
            Answer::Hello { run, info } => self.greeted(conn, run, &info),
            Answer::Role { is_primary, offset } => self.role(conn, is_primary, offset),
            Answer::Done { op, read } => self.done(conn, op, &read),
            Answer::ReadOnly { op } => {
                if self
                    .flights
                    .get(&op)
                    .is_some_and(|flight| flight.conn == conn)
                {
                    // It was rejected: it goes to whoever is the primary.
                    self.flights.remove(&op);
                    self.pending.insert(op);
                    self.abandon_of(conn);
                }
            }
        }
    }

    fn greeted(&mut self, conn: u64, run: u32, info: &InfoReplication) {
        let asks_role = self.broken != Broken::AsksNoRole;
        let Some(link) = self.link.as_mut().filter(|link| link.conn == conn) else {
            return;
        };
        if asks_role && !info.is_primary {
            // Not yet, or no longer: it is asked again.
            self.link = None;
            return;
        }
        link.run = Some(run);
        link.ready = true;
        let server = link.server;
        self.abandoned
            .retain(|(on, of, _)| *on != server || *of == run);
        self.judge(server, info);
        self.flush();
    }

    /// Says what the new primary has of what was acknowledged by the old one; and it had better be
    /// true.
    fn judge(&mut self, server: usize, info: &InfoReplication) {
        if let Some(marks) = &self.marks {
            let acknowledged = self.acknowledged.len() as u64;
            if let History::Same { certain, at_risk } = marks.judge(Some(info), acknowledged) {
                let certain = certain.map_or(0, |mark| mark.acknowledged);
                let log: BTreeSet<u32> = self.servers[server].log.iter().copied().collect();
                let has = |op: &&u32| log.contains(*op);
                let survived = self.acknowledged.iter().take(certain as usize);
                if let Some(missing) = survived.clone().find(|op| !has(op)) {
                    self.violation = Some(format!("certain to have survived, and lost: {missing}"));
                }
                let lost = self.acknowledged.iter().filter(|op| !has(op)).count() as u64;
                if lost > at_risk {
                    self.violation = Some(format!("{lost} lost, {at_risk} at risk"));
                }
                self.certain += certain;
                self.at_risk += at_risk;
            }
        }
        self.marks = Some(Watermarks::new(info.history.clone()));
        self.acknowledged.clear();
    }

    fn role(&mut self, conn: u64, is_primary: bool, offset: u64) {
        let acknowledged = self.acknowledged.len();
        let Some(link) = self.link.as_mut().filter(|link| link.conn == conn) else {
            return;
        };
        let Some((sent, before)) = link.role_sent.take() else {
            return;
        };
        if !is_primary && self.broken != Broken::AsksNoRole {
            return self.abandon();
        }
        let counted = match self.broken {
            Broken::CountsTooMuch => acknowledged + 1,
            _ => before,
        };
        let at = self.instant(sent);
        if let Some(marks) = &mut self.marks {
            marks.note(Watermark {
                offset,
                at,
                acknowledged: counted as u64,
            });
        }
    }

    fn done(&mut self, conn: u64, op: u32, read: &[u32]) {
        let Some(flight) = self.flights.get(&op).filter(|flight| flight.conn == conn) else {
            return;
        };
        let (server, term) = (flight.server, flight.term);
        let Some((_, current, _)) = self.believed() else {
            return;
        };
        let kind = self.made[op as usize].kind;
        if term != current && self.broken != Broken::CountsTheDeposed {
            match late_answer(kind.effect(), false) {
                LateAnswer::AskAgain | LateAnswer::Unknown => {
                    self.lose(|flight| flight.term != current);
                }
                LateAnswer::Rejected => {}
            }
            return;
        }
        if server != self.told.1 && self.told.0 > 0 {
            self.violation = Some(format!("answered by the deposed: {op}"));
        }
        if kind == Kind::Get {
            self.check_read(op, read);
        } else {
            self.acknowledged.push(op);
        }
        self.end(op, Ended::Done);
    }

    /// What this primary has acknowledged before the read was submitted is there.
    fn check_read(&mut self, op: u32, read: &[u32]) {
        let made = &self.made[op as usize];
        let before = |other: &&u32| {
            let other = &self.made[**other as usize];
            other.key == made.key && other.ended.is_some_and(|(_, at)| at < made.submitted)
        };
        let missing = self
            .acknowledged
            .iter()
            .filter(before)
            .find(|op| !read.contains(op));
        if let Some(missing) = missing {
            self.violation = Some(format!("read without what was acknowledged: {missing}"));
        }
    }
}
