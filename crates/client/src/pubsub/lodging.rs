//! The task of a subscriber, and how it comes to run elsewhere when its runtime has ended.
//!
//! A runtime that ends drops its tasks where they stand. What a subscriber wants to hear, and the
//! way to its listener, must outlive that: so the task only borrows them, and leaves them here for
//! whoever runs it next.

use std::sync::Arc;
use std::task::{Context, Waker};

use parking_lot::Mutex;

use super::attendance::{Attendance, Turns};
use super::subscriber::Subscriber;
use crate::clock::keeper;
use crate::error::{Error, ErrorKind};
use crate::link::shared::Shared;
use crate::task::Owned;

/// See the module.
pub(super) struct Lodging {
    shared: Arc<Shared>,
    turns: Arc<Turns>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The subscriber, while no task runs it.
    left: Option<Box<Subscriber>>,
    task: Option<Owned<()>>,
    /// The listener, to be woken when nobody runs the subscriber any more.
    listener: Option<Waker>,
    attendance: Attendance,
    is_ended: bool,
}

impl std::fmt::Debug for Lodging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lodging")
    }
}

impl Lodging {
    /// Starts the subscriber's task, if there is a runtime for it.
    pub(super) fn of(shared: Arc<Shared>, subscriber: Subscriber) -> Arc<Self> {
        let turns = subscriber.turns();
        let state = State {
            left: Some(Box::new(subscriber)),
            ..State::default()
        };
        let lodging = Arc::new(Self {
            shared,
            turns,
            state: Mutex::new(state),
        });
        let _ = lodging.ensure_started();
        let watched = Arc::downgrade(&lodging);
        keeper::watch(move |_| {
            watched
                .upgrade()
                .is_some_and(|lodging| lodging.look_after())
        });
        lodging
    }

    /// Starts the task anew, if it has ended with its runtime.
    ///
    /// # Errors
    /// There is no runtime to be had, or the client is closed.
    pub(super) fn ensure_started(self: &Arc<Self>) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.left.is_none() {
            return Ok(());
        }
        if self.shared.is_closing() {
            state.left = None;
            return Err(Error::not_sent(ErrorKind::Closed));
        }
        let runtime = self.shared.runtime()?;
        let Some(subscriber) = state.left.take() else {
            return Ok(());
        };
        let lent = Lent {
            subscriber: Some(subscriber),
            to: Arc::clone(self),
        };
        let before = state.task.take();
        drop(state);
        // Neither is to find the lock taken: a runtime that ends drops what it is given at once.
        drop(before);
        let task = Owned::new(runtime.spawn(lent.run()));
        let mut state = self.state.lock();
        if state.is_ended {
            // Meanwhile. Nobody else would end it.
            drop(state);
            drop(task);
        } else {
            state.task = Some(task);
        }
        Ok(())
    }

    /// The same, for a listener that waits.
    pub(super) fn ensure(self: &Arc<Self>, cx: &Context<'_>) -> Result<(), Error> {
        {
            let state = &mut *self.state.lock();
            state.attendance.listener_runs();
            let listener = &mut state.listener;
            if !listener
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                *listener = Some(cx.waker().clone());
            }
        }
        self.ensure_started()
    }

    /// Looks whether the task takes its turns, and wakes a listener that is to hear that it does
    /// not. Returns whether there is more to look after.
    fn look_after(&self) -> bool {
        let mut state = self.state.lock();
        if state.is_ended || self.shared.is_closing() {
            return false;
        }
        // One that is not lent to a task is seen to by its listener.
        let is_lent = state.left.is_none();
        let wakes = state
            .attendance
            .look(&self.turns, is_lent, &self.shared.settings);
        let listener = wakes.then(|| state.listener.clone()).flatten();
        drop(state);
        if let Some(listener) = listener {
            listener.wake();
        }
        true
    }

    /// Returns whether nobody runs the task, though its listener runs. Then it takes that for told,
    /// and the task, should it go on, tells that it does.
    pub(super) fn is_unattended(&self) -> bool {
        let is_unattended = self.state.lock().attendance.is_missed(&self.turns);
        if is_unattended {
            self.turns.miss();
        }
        is_unattended
    }

    /// Ends the task for good.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.is_ended = true;
        let (left, task) = (state.left.take(), state.task.take());
        drop(state);
        drop((left, task));
    }

    fn take_back(&self, subscriber: Box<Subscriber>) {
        let mut state = self.state.lock();
        if state.is_ended {
            return;
        }
        state.left = Some(subscriber);
        let listener = state.listener.take();
        drop(state);
        if let Some(listener) = listener {
            listener.wake();
        }
    }
}

/// A subscriber in the hands of its task.
struct Lent {
    subscriber: Option<Box<Subscriber>>,
    to: Arc<Lodging>,
}

impl Lent {
    async fn run(mut self) {
        if let Some(subscriber) = &mut self.subscriber {
            subscriber.run().await;
        }
        // The client is closed.
        self.subscriber = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut subscriber) = self.subscriber.take() else {
            return;
        };
        let panicked = std::thread::panicking();
        let cause = match panicked {
            true => "the task that served the subscriber panicked",
            false => "the runtime in which the subscriber lived has ended",
        };
        subscriber.interrupted(cause, panicked);
        self.to.take_back(subscriber);
    }
}
