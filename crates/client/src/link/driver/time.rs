//! Time: one timer for all deadlines of the connection, and what each brings.

use std::task::Context;
use std::time::Instant;

use steadfast_core::conn::{Conn, Lapse};

use super::commands::INTERNAL;
use super::{Driver, End, Signal};
use crate::clock;
use crate::error::Certainty;
use crate::wire::queue::{DriverCommand, Job, Left, TxSteps};
use crate::wire::slot::Ended;

impl Driver {
    /// Sees by its timer whether this process has stood still.
    pub(super) fn notice_stall(&mut self, conn: &mut Conn<Job>, now: Instant) {
        if self.look_again.is_none()
            && let Some(lost) = self.armed.and_then(|at| clock::lost(at, now))
        {
            conn.handle_stall(lost);
            self.stalled_at = Some(now);
            self.look_again = Some(now + clock::LOOK_AGAIN);
            self.armed = None;
        }
    }

    /// Handles what is due and sets the timer for what is not. One timer serves all deadlines of
    /// the connection: it is moved only when something is due sooner, and may fire early.
    pub(super) fn keep_time(
        &mut self,
        conn: &mut Conn<Job>,
        cx: &mut Context<'_>,
        now: &mut Instant,
    ) -> Result<(), End> {
        loop {
            // A queue that nobody takes from has to be watched, too.
            let waiting = match (self.holds_back(), self.left) {
                (false, Left::Nothing) => None,
                (true, _) => self.queue.expire(*now),
                (false, Left::Some) => {
                    let others = (self.left_since + self.apart_for).max(*now + clock::LOOK_AGAIN);
                    Some(self.queue.expire(*now).map_or(others, |at| at.min(others)))
                }
            };
            let next = [conn.poll_timeout(), waiting];
            let Some(mut at) = next.into_iter().flatten().min() else {
                return Ok(());
            };
            if let Some(again) = self.look_again {
                at = again;
            } else if at <= *now {
                self.lapse(conn, *now);
                self.write(conn, cx, *now)?;
                continue;
            }
            if self.armed.is_none_or(|armed| at < armed) {
                self.timer.as_mut().reset(at.into());
                self.armed = Some(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            *now = clock::now();
            // It may have stood still since this turn began.
            if self.look_again.take().is_none() {
                self.notice_stall(conn, *now);
            }
            self.armed = None;
        }
    }

    /// Handles what time has brought.
    pub(super) fn lapse(&mut self, conn: &mut Conn<Job>, now: Instant) {
        let mut timed_out = None;
        while let Some(lapse) = conn.poll_lapse(now) {
            match lapse {
                Lapse::Expired {
                    ticket,
                    certainty,
                    waited,
                } => {
                    if self.overdue_since.is_some() && certainty == Certainty::Unknown {
                        self.given_up += 1;
                    }
                    match &ticket {
                        Job::TxTransition(transition) => {
                            self.lost_track(&transition.steps, certainty)
                        }
                        Job::Proof(_) => {
                            let cause = "new credentials were not answered in time";
                            self.queue.command(DriverCommand::Abandon(cause.into()));
                        }
                        _ => {}
                    }
                    let taken = now.checked_sub(waited);
                    let fair = self.stalled_at.is_none_or(|at| Some(at) < taken);
                    if let Some(ticket) = ticket.into_ticket() {
                        ticket.end(Ended::Expired { certainty, fair });
                    }
                    // It would have taken at least that.
                    if self.link.is_some() && waited <= self.usual && fair {
                        timed_out = timed_out.max(Some(waited));
                    }
                }
                Lapse::Doubtful { .. } => {
                    self.doubtful = true;
                    let _ = self.signals.send(Signal::Doubtful);
                }
                Lapse::Unresponsive { quiet } => {
                    self.overdue_since = now.checked_sub(quiet).or(Some(now));
                    let last = conn.latest_deadline(Job::is_call);
                    let _ = self.signals.send(Signal::Unresponsive {
                        quiet,
                        last,
                        on_its_way: self.filled_by > 0,
                    });
                }
                Lapse::Stuck { unserved } => {
                    let _ = self.signals.send(Signal::Stuck(unserved));
                }
                Lapse::Heartbeat => {
                    let ping = b"*1\r\n$4\r\nPING\r\n";
                    self.submit_own(Job::Heartbeat, ping, now + INTERNAL, conn, now);
                }
            }
        }
        if let Some(waited) = timed_out {
            self.shared.latency.record(waited, now);
        }
    }

    /// A step of a transaction got no answer in time. If it was sent, nobody knows any more whether
    /// a transaction is open here.
    fn lost_track(&self, steps: &TxSteps, certainty: Certainty) {
        if certainty == Certainty::NotSent {
            self.queue.never_sent(steps);
        } else {
            let cause = "a command of a transaction was not answered in time";
            self.queue.command(DriverCommand::Abandon(cause.into()));
        }
    }
}
