//! What a connection waits for no longer: requests whose time is over, and a server that is silent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Conn, Told, Waiting};
use crate::certainty::Certainty;

/// The times after which a connection is doubtful, is unresponsive, and is worth a heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// No sign of life for so long while requests wait: doubtful.
    pub doubtful: Duration,
    /// No sign of life for so long while requests wait: unresponsive.
    pub response_idle_timeout: Duration,
    /// No request for so long: a heartbeat is due.
    pub heartbeat: Duration,
}

/// Something that became due with time.
#[derive(Debug)]
pub enum Lapse<T> {
    /// A request reached its deadline.
    Expired {
        /// The shell's own handle for the request.
        ticket: T,
        /// `NotSent` if it was taken back before a byte of it was written.
        certainty: Certainty,
        /// How long this connection had it, of the time that it was given.
        waited: Duration,
    },
    /// No sign of life for [`Watch::doubtful`] while requests waited. Told once until there is one.
    Doubtful {
        /// How long there has been none.
        quiet: Duration,
    },
    /// No sign of life for [`Watch::response_idle_timeout`] while requests waited. Told once until
    /// there is one.
    Unresponsive {
        /// How long there has been none.
        quiet: Duration,
    },
    /// No reply was completed for [`Watch::response_idle_timeout`], whatever bytes came, and the
    /// request whose turn it is was given up. Told once until a reply is complete.
    Stuck {
        /// How long no reply was completed.
        unserved: Duration,
    },
    /// Nothing was asked for a heartbeat's time: submit a PING.
    Heartbeat,
}

impl<T> Conn<T> {
    /// When to call [`poll_lapse`](Self::poll_lapse) next. May be early, is never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.expired.is_empty() {
            return Some(self.quiet_since);
        }
        if self.awaiting.is_empty() {
            return Some(self.quiet_since + self.watch.heartbeat);
        }
        let times = [self.silence_at(), self.stuck_at(), self.earliest];
        times.into_iter().flatten().min()
    }

    /// When there is more to tell of a silence.
    fn silence_at(&self) -> Option<Instant> {
        match self.told {
            Told::Nothing => Some(self.quiet_since + self.watch.doubtful),
            Told::Doubtful => Some(self.quiet_since + self.watch.response_idle_timeout),
            Told::Unresponsive => None,
        }
    }

    fn stuck_at(&self) -> Option<Instant> {
        let given_up = self
            .awaiting
            .front()
            .is_some_and(|head| head.ticket.is_none());
        (given_up && !self.stuck_told)
            .then(|| self.unserved_since + self.watch.response_idle_timeout)
    }

    /// The next thing that time has brought, until `None`.
    pub fn poll_lapse(&mut self, now: Instant) -> Option<Lapse<T>> {
        if let Some(lapse) = self.next_expired() {
            return Some(lapse);
        }
        if self.awaiting.is_empty() {
            self.earliest = None;
            if now >= self.quiet_since + self.watch.heartbeat {
                self.quiet_since = now;
                return Some(Lapse::Heartbeat);
            }
            return None;
        }
        if self.silence_at().is_some_and(|at| at <= now) {
            let quiet = now.saturating_duration_since(self.quiet_since);
            return Some(match self.told {
                Told::Nothing => {
                    self.told = Told::Doubtful;
                    Lapse::Doubtful { quiet }
                }
                Told::Doubtful | Told::Unresponsive => {
                    self.told = Told::Unresponsive;
                    Lapse::Unresponsive { quiet }
                }
            });
        }
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.give_up(now, |waiting| waiting.deadline <= now);
            if let Some(lapse) = self.next_expired() {
                return Some(lapse);
            }
        }
        if self.stuck_at().is_some_and(|at| at <= now) {
            self.stuck_told = true;
            return Some(Lapse::Stuck {
                unserved: now.saturating_duration_since(self.unserved_since),
            });
        }
        None
    }

    fn next_expired(&mut self) -> Option<Lapse<T>> {
        let (ticket, certainty, waited) = self.expired.pop_front()?;
        Some(Lapse::Expired {
            ticket,
            certainty,
            waited,
        })
    }

    /// Ends every request of which this is true; [`poll_given_up`](Self::poll_given_up) yields
    /// them. One of which no byte was written is taken back out of the stream, so that `NotSent`
    /// stays true.
    pub fn give_up(&mut self, now: Instant, of: impl Fn(&Waiting<'_, T>) -> bool) {
        let wire = self.written;
        let mut earliest: Option<Instant> = None;
        // What is kept moves up once, however many were cut out before it.
        let (mut removed, mut parts) = (0, Vec::new());
        let mut kept = VecDeque::with_capacity(self.awaiting.len());
        for mut open in self.awaiting.drain(..) {
            let begun = open.start < wire;
            let over = match &open.ticket {
                Some(ticket) => of(&Waiting {
                    ticket,
                    deadline: open.deadline,
                    given: open.given,
                    read_only: open.read_only,
                    begun,
                }),
                // Given up before, and so begun: what is not is not kept.
                None => false,
            };
            if over {
                let certainty = if begun {
                    Certainty::Unknown
                } else {
                    Certainty::NotSent
                };
                let waited = now.saturating_duration_since(open.taken);
                let ticket = open.ticket.take();
                self.expired
                    .extend(ticket.map(|ticket| (ticket, certainty, waited)));
                self.apart -= usize::from(std::mem::take(&mut open.apart));
                if !begun {
                    parts.push((open.start - wire) as usize..(open.end - wire) as usize);
                    removed += open.end - open.start;
                    continue;
                }
            } else if open.ticket.is_some() {
                earliest = Some(earliest.map_or(open.deadline, |e| e.min(open.deadline)));
            }
            open.start -= removed;
            open.commit -= removed;
            open.end -= removed;
            kept.push_back(open);
        }
        if removed > 0 {
            self.longest = (0, 0);
            self.out.cut(&parts);
        }
        self.awaiting = kept;
        self.earliest = earliest;
    }

    /// The next request that [`give_up`](Self::give_up) ended, with what is known of it and how
    /// long this connection had it.
    pub fn poll_given_up(&mut self) -> Option<(T, Certainty, Duration)> {
        self.expired.pop_front()
    }

    /// The latest deadline of the requests that wait, of those that `counts`.
    pub fn latest_deadline(&self, counts: impl Fn(&T) -> bool) -> Option<Instant> {
        self.awaiting
            .iter()
            .filter(|open| open.ticket.as_ref().is_some_and(&counts))
            .map(|open| open.deadline)
            .max()
    }

    /// The earliest deadline of the requests that wait. May be early, is never late.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.earliest
    }

    /// True if something was written that has not been answered: after this connection is
    /// abandoned, the server may still execute it.
    pub fn has_unanswered_writes(&self) -> bool {
        let wire = self.written;
        self.awaiting
            .front()
            .is_some_and(|open| open.commit <= wire)
    }
}
