//! The driver's commands, as it takes them from its queue: requests, and what it is told to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast_core::conn::{Batch, Conn, Terms};

use super::{Authentication, Driver, End};
use crate::link::connect;
use crate::wire::queue::{Backlog, DriverCommand, Job, Left};
use crate::wire::slot::{Blame, Ended, Rejoin};

/// Deadline of the driver's own commands: they are watched by `response_idle_timeout` instead.
pub(super) const INTERNAL: Duration = Duration::from_secs(3600);
/// The age below which a request is not asked whether anybody waits for it.
const JUST_COME: Duration = Duration::from_millis(1);

impl Driver {
    pub(super) fn take_submissions(
        &mut self,
        conn: &mut Conn<Job>,
        now: Instant,
    ) -> Result<(), End> {
        if self.retiring.is_some() {
            return self.retire(conn, now);
        }
        if self.holds_back() {
            return self.authenticate(conn, now);
        }
        let patient = self.left == Left::Some && now >= self.left_since + self.apart_for;
        let (commands, left) = self.queue.take(&mut self.spare, Backlog::of(conn), patient);
        if left == Left::Some && self.left == Left::Nothing {
            self.left_since = now;
        }
        self.left = left;
        // Its own commands come first. What was submitted belongs to the connection even if this is
        // its end: so it is told that it was not sent.
        let obeyed = commands
            .into_iter()
            .try_for_each(|command| self.obey(command, conn, now));
        self.withdraw_unwanted(now);
        conn.submit(&mut self.spare, now);
        if let Some((_, rejoin)) = &self.aside {
            let rejoin = rejoin.clone();
            self.leave_to_standby(conn, &rejoin, now);
        }
        obeyed
    }

    /// Takes out what has waited for a connection and nobody waits for any more. One that has only
    /// just come is not looked at: its caller is at work on the same memory.
    fn withdraw_unwanted(&mut self, now: Instant) {
        let gone = self.spare.take_out(|job, terms| {
            now.saturating_duration_since(terms.submitted) > JUST_COME && !job.is_wanted()
        });
        for job in gone {
            if let Job::TxTransition(transition) = job {
                self.queue.never_sent(&transition.steps);
            }
        }
    }

    fn obey(
        &mut self,
        command: DriverCommand,
        conn: &mut Conn<Job>,
        now: Instant,
    ) -> Result<(), End> {
        match command {
            DriverCommand::Abandon(cause) => return Err(End::ordered(cause, false)),
            DriverCommand::Depose(cause) => {
                let mut end = End::ordered(cause, false);
                end.deaf = true;
                return Err(end);
            }
            DriverCommand::Yield(cause) => {
                if self.overdue_since.is_some() && !self.last_look(conn) {
                    return Err(End::ordered(cause, true));
                }
            }
            DriverCommand::Retire(cause) => self.retiring = Some(cause),
            DriverCommand::Fence(identity) if identity.is_elsewhere(self.server.as_deref()) => {
                self.shared.fences.gone(self.link, &identity);
            }
            DriverCommand::Fence(identity) => {
                let command = identity.kill();
                let until = now + INTERNAL;
                self.submit_own(Job::Fence(Box::new(identity)), &command, until, conn, now);
            }
            DriverCommand::Reauthenticate(command) => {
                self.authentication = Authentication::Due(command);
            }
            DriverCommand::EndReads => {
                let usual = self.usual;
                conn.give_up(now, |waiting| waiting.read_only && waiting.given <= usual);
                while let Some((job, certainty, _)) = conn.poll_given_up() {
                    if let Some(ticket) = job.into_ticket() {
                        ticket.end(Ended::Down(certainty));
                    }
                }
            }
            DriverCommand::Lives => self.lives(conn, now),
            DriverCommand::StepAside(queue, rejoin) => {
                self.retiring = Some("it has finished what it had".into());
                self.aside = Some((queue, rejoin));
            }
        }
        Ok(())
    }

    /// Gives new credentials, once nothing else is on the wire.
    fn authenticate(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<(), End> {
        for command in self.queue.take_commands(Backlog::of(conn)) {
            self.obey(command, conn, now)?;
        }
        if conn.awaiting() > 0 {
            return Ok(());
        }
        if let Authentication::Due(command) = &mut self.authentication {
            let command = std::mem::take(command);
            self.authentication = Authentication::Asked;
            let (nonce, echo) = connect::proof(&mut self.shared.rng());
            let until = now + INTERNAL;
            self.submit_own(Job::Reauthenticate, &command, until, conn, now);
            self.submit_own(Job::Proof(nonce), &echo, now + self.usual, conn, now);
        }
        Ok(())
    }

    /// Leaves to the standby connection what it can serve: reads, and requests that were not begun.
    fn leave_to_standby(&mut self, conn: &mut Conn<Job>, rejoin: &Rejoin, now: Instant) {
        conn.give_up(now, |waiting| waiting.read_only || !waiting.begun);
        let cause: Arc<str> = "a standby connection took over".into();
        while let Some((job, certainty, _)) = conn.poll_given_up() {
            if let Some(ticket) = job.into_ticket() {
                ticket.end(Ended::Lost {
                    certainty,
                    cause: Arc::clone(&cause),
                    rejoin: Some(rejoin.clone()),
                    blame: Blame::None,
                });
            }
        }
        self.link = None;
    }

    /// Ends once everything is answered; what is new stays in the queue for the successor.
    fn retire(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<(), End> {
        for command in self.queue.take_commands(Backlog::of(conn)) {
            self.obey(command, conn, now)?;
        }
        if let Some((_, rejoin)) = &self.aside {
            let rejoin = rejoin.clone();
            self.leave_to_standby(conn, &rejoin, now);
            return Ok(());
        }
        match &self.retiring {
            Some(cause) if conn.awaiting() == 0 || !self.is_awaited(conn) => {
                Err(End::ordered(Arc::clone(cause), false))
            }
            _ => Ok(()),
        }
    }

    /// Returns false if it has stepped aside and all its requests were given up.
    fn is_awaited(&self, conn: &Conn<Job>) -> bool {
        let is_call = |job: &Job| !matches!(job, Job::Heartbeat | Job::Fence(_));
        self.link.is_some() || conn.latest_deadline(is_call).is_some()
    }

    pub(super) fn submit_own(
        &mut self,
        job: Job,
        command: &[u8],
        until: Instant,
        conn: &mut Conn<Job>,
        now: Instant,
    ) {
        let mut batch = Batch::default();
        let terms = Terms {
            replies: 1,
            deadline: until,
            submitted: now,
            seq: 0,
            read_only: false,
            apart: false,
        };
        batch.push(job, terms, |bytes| {
            bytes.extend_from_slice(command);
            bytes.len()
        });
        conn.submit(&mut batch, now);
    }

    /// Returns whether nothing new is taken.
    pub(super) fn holds_back(&self) -> bool {
        self.retiring.is_some() || !matches!(self.authentication, Authentication::Settled)
    }
}
