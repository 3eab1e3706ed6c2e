//! The place where a caller waits for its reply, reused instead of allocated.
//!
//! The caller holds one half ([`Pending`]), the driver the other ([`Ticket`]). A slot goes back to
//! its thread's free list only while nobody else holds it, so a caller that went away can never be
//! handed another call's reply, nor leave its own to the next.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use steadfast_core::certainty::Certainty;
use steadfast_core::conn::Reply;
use steadfast_core::resp::DecodeError;

use crate::sync::{self, Mutex};

/// The end of a request on its connection.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The request was answered.
    Answered {
        reply: Reply,
        at: Instant,
        /// Whether this process did not stand still meanwhile.
        fair: bool,
    },
    /// The reply passes a limit: the connection ends with it.
    TooLarge(DecodeError),
    /// The deadline passed.
    Expired {
        certainty: Certainty,
        /// Whether this process did not stand still meanwhile.
        fair: bool,
    },
    /// The deadline passed, and nobody served its connection.
    Unattended(Certainty),
    /// The server is taken for down.
    Down(Certainty),
    /// The connection was lost.
    Lost {
        certainty: Certainty,
        cause: Arc<str>,
        /// Held until the command has been submitted again, or will not be: the next connection
        /// waits for it, to keep the order.
        rejoin: Option<Rejoin>,
        blame: Blame,
    },
    /// The caller's wait for a connection was cut short: see the queue's state.
    Turned,
}

/// The blame of a request for the end of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Nothing: it was not written, or its connection was to end.
    None,
    /// The request was under way, as others were.
    Shared,
    /// The connection ended at it.
    Own,
}

/// A hold on the next connection, see [`Ended::Lost`]: all that matters is when the last one is
/// dropped.
pub(crate) type Rejoin = tokio::sync::mpsc::Sender<()>;

#[derive(Debug, Default)]
enum ReplyState {
    #[default]
    Idle,
    Waiting(Waker),
    /// The caller was woken to see whether it runs.
    Nudged,
    /// The caller runs.
    Runs(Waker),
    Done(Ended),
}

#[derive(Debug, Default)]
struct ReplySlot {
    state: Mutex<ReplyState>,
}

const FREE_SLOTS: usize = 1024;

sync::thread_local! {
    static FREE: RefCell<Vec<sync::Arc<ReplySlot>>> = const { RefCell::new(Vec::new()) };
}

/// The caller's half.
#[derive(Debug)]
pub(crate) struct Pending {
    slot: Option<sync::Arc<ReplySlot>>,
}

/// The driver's half. Dropped without an end, it tells the caller that the connection is gone.
#[derive(Debug)]
pub(crate) struct Ticket {
    slot: Option<sync::Arc<ReplySlot>>,
}

/// A new pair.
pub(crate) fn pair() -> (Ticket, Pending) {
    let slot = FREE
        .with(|free| free.borrow_mut().pop())
        .unwrap_or_default();
    (
        Ticket {
            slot: Some(sync::Arc::clone(&slot)),
        },
        Pending { slot: Some(slot) },
    )
}

impl Ticket {
    /// Ends the request and wakes its caller.
    pub(crate) fn end(mut self, ended: Ended) {
        if let Some(slot) = self.slot.take() {
            finish(slot, ended);
        }
    }

    /// Returns true unless the caller has gone away.
    pub(crate) fn is_wanted(&self) -> bool {
        self.slot
            .as_ref()
            .is_some_and(|slot| sync::Arc::strong_count(slot) > 1)
    }

    /// Returns whether the caller has run since this was asked before; the first time it is only
    /// woken.
    pub(crate) fn caller_runs(&self) -> bool {
        let Some(slot) = &self.slot else {
            return false;
        };
        let mut state = slot.state.lock();
        match std::mem::take(&mut *state) {
            ReplyState::Waiting(waker) => {
                *state = ReplyState::Nudged;
                drop(state);
                waker.wake();
                false
            }
            ReplyState::Runs(waker) => {
                *state = ReplyState::Runs(waker);
                true
            }
            other => {
                *state = other;
                false
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            finish(
                slot,
                Ended::Lost {
                    certainty: Certainty::Unknown,
                    cause: "the connection's task ended".into(),
                    rejoin: None,
                    blame: Blame::None,
                },
            );
        }
    }
}

fn finish(slot: sync::Arc<ReplySlot>, ended: Ended) {
    let before = std::mem::replace(&mut *slot.state.lock(), ReplyState::Done(ended));
    // Let go before waking: a slot that its caller alone holds can be reused.
    drop(slot);
    if let ReplyState::Waiting(waker) | ReplyState::Runs(waker) = before {
        waker.wake();
    }
}

impl Future for Pending {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Some(slot) = &self.slot else {
            return Poll::Pending;
        };
        let mut state = slot.state.lock();
        match std::mem::take(&mut *state) {
            ReplyState::Done(ended) => {
                drop(state);
                recycle(self.slot.take());
                Poll::Ready(ended)
            }
            ReplyState::Waiting(waker) if waker.will_wake(cx.waker()) => {
                *state = ReplyState::Waiting(waker);
                Poll::Pending
            }
            ReplyState::Nudged | ReplyState::Runs(_) => {
                *state = ReplyState::Runs(cx.waker().clone());
                Poll::Pending
            }
            _ => {
                *state = ReplyState::Waiting(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn recycle(slot: Option<sync::Arc<ReplySlot>>) {
    if let Some(mut slot) = slot
        && sync::Arc::get_mut(&mut slot).is_some()
    {
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < FREE_SLOTS {
                free.push(slot);
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn free_slots() -> usize {
        FREE.with(|free| free.borrow().len())
    }

    #[tokio::test]
    async fn a_slot_is_reused_only_when_nobody_else_holds_it() {
        let before = free_slots();
        let (ticket, pending) = pair();
        ticket.end(Ended::Turned);
        assert!(matches!(pending.await, Ended::Turned));
        assert_eq!(free_slots(), before + 1);
        let (ticket, pending) = pair();
        drop(pending);
        ticket.end(Ended::Turned);
        assert_eq!(
            free_slots(),
            before,
            "a cancelled call's slot is not reused"
        );
    }

    #[tokio::test]
    async fn a_ticket_dropped_without_an_end_says_that_the_outcome_is_unknown() {
        let (ticket, pending) = pair();
        drop(ticket);
        let Ended::Lost { certainty, .. } = pending.await else {
            panic!("it was lost");
        };
        assert_eq!(certainty, Certainty::Unknown);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::future::block_on;
    use loom::thread;

    use super::*;

    #[test]
    fn c12_whoever_waits_is_woken_however_the_end_and_the_wait_meet() {
        loom::model(|| {
            let (ticket, pending) = pair();
            let driver = thread::spawn(move || ticket.end(Ended::Turned));
            assert!(matches!(block_on(pending), Ended::Turned));
            driver.join().expect("it ends");
        });
    }

    #[test]
    fn c12_a_place_whose_caller_went_away_is_not_handed_to_another_with_the_old_reply_in_it() {
        loom::model(|| {
            let (ticket, pending) = pair();
            let driver = thread::spawn(move || ticket.end(Ended::Turned));
            drop(pending);
            let (ticket, pending) = pair();
            ticket.end(Ended::Down(Certainty::NotSent));
            assert!(matches!(block_on(pending), Ended::Down(_)));
            driver.join().expect("it ends");
        });
    }

    #[test]
    fn c12_a_place_that_is_used_again_is_empty() {
        loom::model(|| {
            let (ticket, pending) = pair();
            let driver = thread::spawn(move || ticket.end(Ended::Turned));
            block_on(pending);
            // Whether or not the driver has let go of it by now.
            let (ticket, pending) = pair();
            drop(ticket);
            assert!(matches!(block_on(pending), Ended::Lost { .. }));
            driver.join().expect("it ends");
        });
    }
}
