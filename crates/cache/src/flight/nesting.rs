//! Loads that read through the cache.
//!
//! Composing cached reads is common, and a nested load that waited for a permit of the guard while
//! its parent holds one would starve: a guard full of parents lets no child in. So a nested load
//! goes by its parent's permit, a few of them at once; and a load that is joined while it waits for
//! a permit goes by the permit of whoever waits for it, if that is a load. A load is known by its
//! task: what a loader spawns is on its own.
//!
//! Loads that wait for each other would do so until their time is up. Each says which flights it
//! waits for, and each flight which load it is, so a read that closes such a circle sees it, and is
//! an error at once. It says so before it looks: of two that close a circle together at least one
//! sees the other.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Flight, Flights, Leader};
use crate::clock::is_in_runtime;
use crate::error::CacheError;
use crate::guard::LoadSlot;
use crate::tier::Key;

/// A load under way, with those that it is nested in.
pub(crate) struct Loading {
    /// The flights of the cache that it is of.
    flights: Weak<Flights>,
    keys: Vec<Key>,
    parent: Option<Arc<Self>>,
    /// Flights that reads within it wait for.
    waits: Mutex<Vec<Weak<Flight>>>,
    /// Places of the loads that are nested in it.
    nested: Semaphore,
    /// The slot at the guard by which it goes.
    slot: Option<Arc<LoadSlot>>,
}

tokio::task_local! {
    static LOADING: Arc<Loading>;
}

/// By whose permit a load goes that is nested.
pub(crate) struct Nested<'l> {
    pub(crate) by: Arc<Loading>,
    _slot: Option<SemaphorePermit<'l>>,
}

impl Loading {
    /// The load that this task is in, if it is one of this cache.
    pub(crate) fn current(flights: &Arc<Flights>) -> Option<Arc<Self>> {
        let current = LOADING.try_with(Arc::clone).ok()?;
        current.is_of(flights).then_some(current)
    }

    /// Runs the load of these flights, which is nested in `parent` and goes by that slot; as many
    /// as `nested` may be nested in it at once.
    pub(crate) async fn within<T>(
        (flights, nested): (&Arc<Flights>, usize),
        leaders: &[&Leader],
        parent: Option<Arc<Self>>,
        slot: Option<Arc<LoadSlot>>,
        load: impl Future<Output = T>,
    ) -> T {
        let loading = Arc::new(Self {
            flights: Arc::downgrade(flights),
            keys: leaders.iter().map(|leader| leader.key().into()).collect(),
            parent,
            waits: Mutex::default(),
            nested: Semaphore::new(nested),
            slot,
        });
        for leader in leaders {
            leader.begins(&loading);
        }
        LOADING.scope(loading, load).await
    }

    /// Runs a load that no flight waits for, and that goes by that slot. Within another it is a
    /// part of that one, by whose right all that it reads is loaded.
    pub(crate) async fn apart<T>(
        nesting: (&Arc<Flights>, usize),
        slot: Option<Arc<LoadSlot>>,
        load: impl Future<Output = T>,
    ) -> T {
        match Self::current(nesting.0) {
            Some(_) => load.await,
            None => Self::within(nesting, &[], None, slot, load).await,
        }
    }

    /// Refuses a key that is being loaded by this load, or by one that it is nested in; and any
    /// where there is no runtime to load in.
    pub(crate) fn check(this: Option<&Arc<Self>>, name: &[u8]) -> Result<(), CacheError> {
        if !is_in_runtime() {
            return Err(CacheError::NoRuntime);
        }
        if this.is_none() {
            return Ok(());
        }
        let (mut loading, mut within) = (this, vec![text(name)]);
        while let Some(outer) = loading {
            if outer.keys.iter().any(|key| **key == *name) {
                return Err(if within.len() == 1 {
                    CacheError::OwnKey { key: text(name) }
                } else {
                    within.push(text(name));
                    within.reverse();
                    CacheError::Circle { keys: within }
                });
            }
            within.extend(outer.keys.first().map(|key| text(key)));
            loading = outer.parent.as_ref();
        }
        Ok(())
    }

    /// Says that this load waits for a flight, as long as what is answered lives. Refuses if that
    /// one waits for this.
    pub(crate) fn wait_for(self: &Arc<Self>, flight: &Arc<Flight>) -> Result<Waits, CacheError> {
        self.waits.lock().push(Arc::downgrade(flight));
        let waits = Waits {
            load: self.clone(),
            flight: Arc::downgrade(flight),
        };
        let (mut path, mut seen) = (Vec::new(), Vec::new());
        if leads_to(flight, self, &mut path, &mut seen) {
            path.push(path.first().cloned().unwrap_or_default());
            return Err(CacheError::Circle { keys: path });
        }
        Ok(waits)
    }

    /// Waits for a slot among the loads that are nested in this one.
    pub(crate) async fn nested_slot(this: &Arc<Self>) -> Nested<'_> {
        Nested {
            by: this.clone(),
            // It is never closed.
            _slot: this.nested.acquire().await.ok(),
        }
    }

    pub(crate) fn slot(&self) -> Option<Arc<LoadSlot>> {
        self.slot.clone()
    }

    fn is_of(&self, flights: &Arc<Flights>) -> bool {
        std::ptr::eq(self.flights.as_ptr(), Arc::as_ptr(flights))
    }
}

/// Whether this flight waits for that load, through whichever others; `path` names them.
fn leads_to(
    flight: &Arc<Flight>,
    target: &Arc<Loading>,
    path: &mut Vec<String>,
    seen: &mut Vec<*const Loading>,
) -> bool {
    let Some(loading) = flight.loading() else {
        return false;
    };
    if Arc::ptr_eq(&loading, target) {
        path.push(text(&flight.key));
        return true;
    }
    if seen.contains(&Arc::as_ptr(&loading)) {
        return false;
    }
    seen.push(Arc::as_ptr(&loading));
    path.push(text(&flight.key));
    let waits: Vec<_> = loading.waits.lock().clone();
    let found = waits
        .iter()
        .filter_map(Weak::upgrade)
        .any(|next| leads_to(&next, target, path, seen));
    if !found {
        path.pop();
    }
    found
}

/// A load waits for a flight.
pub(crate) struct Waits {
    load: Arc<Loading>,
    flight: Weak<Flight>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut waits = self.load.waits.lock();
        if let Some(at) = waits.iter().position(|flight| flight.ptr_eq(&self.flight)) {
            waits.swap_remove(at);
        }
    }
}

impl std::fmt::Debug for Loading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loading").finish_non_exhaustive()
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
