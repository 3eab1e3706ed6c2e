//! The thread beside all runtimes that lets no reader wait for a task that does not run.
//!
//! The task that asks for a gathering may stand behind another that occupies its thread, where no
//! other thread of the runtime can take it; and a runtime that somebody has entered and nobody
//! drives runs it never. A timer of the same runtime would be as late. So a thread looks at what
//! has not been asked for, and sends those away whom it has seen already at its look before: they
//! ask for themselves. It runs while there are gatherings, and is one for all caches.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::{APART, RedisTier};

/// The tiers that are looked at; none, if there is no thread.
static WATCHED: Mutex<Vec<Weak<RedisTier>>> = Mutex::new(Vec::new());

/// Has the gatherings of this tier looked at, while there are any. Returns false if that cannot be:
/// then those that are there are sent away.
pub(super) fn begin(tier: &Arc<RedisTier>) -> bool {
    let mut watched = WATCHED.lock();
    watched.push(Arc::downgrade(tier));
    if watched.len() > 1 {
        return true;
    }
    let thread = std::thread::Builder::new().name("steadfast-together".into());
    let Err(error) = thread.spawn(run) else {
        return true;
    };
    let alone = mem::take(&mut *watched);
    drop(watched);
    tracing::warn!(%error, "no thread that watches shared questions: each reader asks alone");
    for tier in alone.iter().filter_map(Weak::upgrade) {
        let mut open = tier.together.open.lock();
        open.watch.is_watched = false;
        let sent_away = (open.gathering.take(), mem::take(&mut open.due));
        drop(open);
        drop(sent_away);
    }
    false
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread is no worker of a runtime, and outlives the timers of any"
)]
fn run() {
    loop {
        std::thread::sleep(EVERY);
        let tiers = WATCHED.lock().clone();
        let mut at_rest = Vec::new();
        for watched in tiers {
            // It wakes, and may be the last to let a tier go: no panic of others ends the thread.
            let look = AssertUnwindSafe(|| watched.upgrade().is_some_and(|tier| look_at(&tier)));
            if !catch_unwind(look).unwrap_or(true) {
                at_rest.push(watched);
            }
        }
        let mut watched = WATCHED.lock();
        for gone in at_rest {
            // One of them: it may have been added again meanwhile.
            if let Some(place) = watched.iter().position(|other| other.ptr_eq(&gone)) {
                watched.swap_remove(place);
            }
        }
        if watched.is_empty() {
            return;
        }
    }
}

/// Looks at the gatherings of a tier, and sends those away that are late. Returns whether there is
/// more to look at.
fn look_at(tier: &RedisTier) -> bool {
    let mut open = tier.together.open.lock();
    let late = open.look();
    let (is_watched, in_a_row) = (open.watch.is_watched, open.watch.late);
    drop(open);
    if !late.is_empty() {
        // First for no longer than a busy machine needs; it may be that this runtime never runs.
        let apart = EVERY * 2_u32.pow(in_a_row.min(10) - 1);
        tier.together.part(apart.min(APART));
    }
    drop(late); // who is sent away is woken here
    is_watched
}

/// The time between two looks. Nobody waits for more than two of them for a task that does not run.
const EVERY: Duration = Duration::from_millis(5);
