//! The task of a subscriber, and how it comes to run elsewhere when its runtime has ended.
//!
//! A runtime that ends drops its tasks where they stand. What a subscriber wants to hear, and the
//! way to its listener, must outlive that: so the task only borrows them, and leaves them here for
//! whoever runs it next.

use std::sync::Arc;
use std::task::{Context, Waker};

use parking_lot::Mutex;

use super::subscriber::Subscriber;
use crate::error::{Error, ErrorKind};
use crate::link::shared::Shared;
use crate::task::Owned;

/// See the module.
pub(super) struct Lodging {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The subscriber, while no task runs it.
    left: Option<Box<Subscriber>>,
    task: Option<Owned<()>>,
    /// The listener, to be woken when nobody runs the subscriber any more.
    listener: Option<Waker>,
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
        let state = State {
            left: Some(Box::new(subscriber)),
            ..State::default()
        };
        let lodging = Arc::new(Self {
            shared,
            state: Mutex::new(state),
        });
        let _ = lodging.ensure_started();
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
            let listener = &mut self.state.lock().listener;
            if !listener
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                *listener = Some(cx.waker().clone());
            }
        }
        self.ensure_started()
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
