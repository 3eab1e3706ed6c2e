//! The deadlines of what waits in a queue, where no driver keeps them.

use std::sync::Arc;
use std::time::Instant;

use super::{Job, SubmitQueue};
use crate::clock::{self, keeper};
use crate::error::Certainty;
use crate::wire::slot::Ended;

impl SubmitQueue {
    /// Has the queue looked after for as long as it exists, should nobody serve it.
    pub(crate) fn watch(self: &Arc<Self>) {
        let queue = Arc::downgrade(self);
        let mut seen = 0;
        keeper::watch(move |now| match queue.upgrade() {
            Some(queue) => {
                queue.look_after(&mut seen, now);
                true
            }
            None => false,
        });
    }

    /// Ends those in the queue whose deadline has passed; returns the next deadline.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut queue = self.lock();
        queue.attended += 1;
        let expired = queue.batch.expire(now);
        let next = queue.batch.earliest_deadline();
        drop(queue);
        for job in expired {
            if let Job::TxTransition(transition) = &job {
                self.never_sent(&transition.steps);
            }
            if let Some(ticket) = job.into_ticket() {
                ticket.end(Ended::Expired {
                    certainty: Certainty::NotSent,
                    fair: true,
                });
            }
        }
        next
    }

    /// Keeps the deadlines of what waits while no driver does. Never ends.
    pub(crate) async fn keep_deadlines(&self) {
        loop {
            let next = self.expire(clock::now());
            let submitted = std::future::poll_fn(|cx| {
                let mut queue = self.lock();
                let earlier = match (queue.batch.earliest_deadline(), next) {
                    (Some(first), Some(next)) => first < next,
                    (first, _) => first.is_some(),
                };
                if earlier {
                    return std::task::Poll::Ready(());
                }
                queue.parked = Some(cx.waker().clone());
                std::task::Poll::Pending
            });
            match next {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = submitted => {}
                        () = clock::sleep_until(at) => {}
                    }
                }
                None => submitted.await,
            }
        }
    }

    /// Looks whether anybody serves the queue, and keeps its deadlines if nobody does. `seen` is
    /// what [`Inner::attended`] was at the last look. A call is ended only if its caller was seen
    /// to run meanwhile, or what stands still may be the program as a whole.
    pub(super) fn look_after(&self, seen: &mut u64, now: Instant) {
        let mut queue = self.lock();
        if std::mem::replace(seen, queue.attended) != queue.attended {
            return;
        }
        let gone = queue
            .batch
            .take_out(|job, terms| terms.deadline <= now && job.caller_runs());
        drop(queue);
        // A driver that has it locked is at work.
        let Some(mut serving) = self.serving.try_lock() else {
            return;
        };
        let mut given_up = Vec::new();
        if let Some(conn) = &mut *serving
            && conn.earliest_deadline().is_some_and(|at| at <= now)
        {
            conn.give_up(now, |waiting| {
                waiting.deadline <= now && waiting.ticket.caller_runs()
            });
            given_up.extend(std::iter::from_fn(|| conn.poll_given_up()));
        }
        drop(serving);
        let gone = gone.into_iter().map(|job| (job, Certainty::NotSent));
        let given_up = given_up.into_iter().map(|(job, known, _)| (job, known));
        for (job, certainty) in gone.chain(given_up) {
            if let Job::TxTransition(transition) = &job
                && certainty == Certainty::NotSent
            {
                self.never_sent(&transition.steps);
            }
            if let Some(ticket) = job.into_ticket() {
                ticket.end(Ended::Unattended(certainty));
            }
        }
    }
}
