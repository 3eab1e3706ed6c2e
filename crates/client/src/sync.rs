//! The locks and counts that threads meet at, where their order matters; under `--cfg loom` those
//! of the model checker, which runs a test through every order in which its threads can meet.
//! `scripts/check` builds this crate alone with it, so that what it stands on stays as it is.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::thread_local;

/// The model checker's knows no `const`.
#[cfg(loom)]
macro_rules! model_local {
    (static $name:ident: $type:ty = const { $init:expr };) => {
        loom::thread_local! { static $name: $type = $init; }
    };
}
#[cfg(loom)]
pub(crate) use model_local as thread_local;

/// Locks as parking_lot's does.
#[cfg(loom)]
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("a model that panics has failed")
    }
}
