//! The order of keys whose commands go by several connections.
//!
//! With several connections a key always takes the same one, and that keeps the order of its
//! commands. A command of several keys (MSET, a pipeline), or of all of them (FLUSHALL), crosses:
//! it goes by the first connection, where nothing makes it come after what is under way on the
//! others, nor before what is submitted to them next. So it waits until the others have answered
//! what they hold, and whoever comes later for one of these connections waits until it is answered
//! itself. That costs it a round trip more, and those behind it one; commands of one key beside no
//! such command pay an atomic look.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock;

/// A set of connections, by their indices. Past 64, several share a bit: then one may wait for
/// another's sake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkSet(u64);

impl LinkSet {
    pub(crate) const ALL: Self = Self(u64::MAX);
    /// The one by which all go that cross.
    const FIRST: Self = Self(1);

    pub(crate) fn of(link: usize) -> Self {
        Self(1 << (link % 64))
    }

    pub(crate) fn with(self, link: usize) -> Self {
        Self(self.0 | Self::of(link).0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The calls whose keys belong to several connections, and those that wait for them.
#[derive(Debug, Default)]
pub(crate) struct Crossings {
    queue: Mutex<Waiters>,
    /// The number of calls in the queue, which is read without a lock.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiters {
    next: u64,
    entries: VecDeque<CrossingWaiter>,
}

#[derive(Debug)]
struct CrossingWaiter {
    number: u64,
    links: LinkSet,
    crosses: bool,
    /// Whether it was submitted to its connection. A call that crosses stays here until it is
    /// answered.
    submitted: bool,
    /// The instant at which its turn came.
    since: Option<Instant>,
    /// No call outlives it.
    deadline: Instant,
    waker: Option<Waker>,
}

impl CrossingWaiter {
    /// Whether a later one has to wait for it, because they meet.
    fn holds(&self, later: &Self, now: Instant) -> bool {
        if !self.links.meets(later.links) || self.deadline <= now {
            return false;
        }
        // Its caller does something else.
        let forfeited = self.since.is_some_and(|since| since + FORFEIT_AFTER <= now);
        match (self.crosses, later.crosses) {
            (false, _) => !forfeited,
            // By the same connection, in the order of submission.
            (true, true) => !self.submitted,
            (true, false) if later.links == LinkSet::FIRST => !self.submitted,
            (true, false) => true,
        }
    }
}

/// A place among those who wait; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct CrossingTurn<'a> {
    crossings: &'a Crossings,
    number: u64,
    crosses: bool,
}

/// The time after its turn in which a call of a single connection must go, or it holds up nobody
/// any more.
const FORFEIT_AFTER: Duration = Duration::from_millis(20);

impl Crossings {
    /// A place in the order of submission, for one that crosses; for another only if it has to wait
    /// for one that does.
    pub(crate) fn join(
        &self,
        links: LinkSet,
        crosses: bool,
        deadline: Instant,
    ) -> Option<CrossingTurn<'_>> {
        if !crosses && self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        let number = queue.next;
        queue.next += 1;
        queue.entries.push_back(CrossingWaiter {
            number,
            links,
            crosses,
            submitted: false,
            since: None,
            deadline,
            waker: None,
        });
        self.waiting.store(queue.entries.len(), Ordering::Release);
        Some(CrossingTurn {
            crossings: self,
            number,
            crosses,
        })
    }

    /// Returns the number of calls that wait, or are waited for.
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

impl Waiters {
    fn find(&self, number: u64) -> Option<usize> {
        self.entries
            .binary_search_by_key(&number, |entry| entry.number)
            .ok()
    }

    fn is_held(&self, at: usize, now: Instant) -> bool {
        let later = &self.entries[at];
        self.entries
            .iter()
            .take(at)
            .any(|earlier| earlier.holds(later, now))
    }

    /// Wakes those behind whom one of these queues was waited for, as far as their turn has come.
    fn moved(&mut self, links: LinkSet, from: usize) -> Vec<Waker> {
        let now = clock::now();
        let mut woken = Vec::new();
        for at in from..self.entries.len() {
            let entry = &self.entries[at];
            if entry.since.is_none() && entry.links.meets(links) && !self.is_held(at, now) {
                let entry = &mut self.entries[at];
                entry.since = Some(now);
                woken.extend(entry.waker.take());
            }
        }
        woken
    }
}

impl CrossingTurn<'_> {
    /// Waits until its turn has come.
    pub(crate) async fn reached(&self) {
        loop {
            let until = clock::now() + FORFEIT_AFTER;
            let turn = std::future::poll_fn(|cx| self.poll(cx));
            // One before it may be asleep; then nobody tells.
            if clock::timeout_at(until, turn).await.is_some() {
                return;
            }
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let now = clock::now();
        let mut queue = self.crossings.queue.lock();
        let Some(at) = queue.find(self.number) else {
            return Poll::Ready(());
        };
        if queue.is_held(at, now) {
            queue.entries[at].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        queue.entries[at].since.get_or_insert(now);
        Poll::Ready(())
    }

    /// Notes that it was submitted: calls by the same connection may follow.
    pub(crate) fn submitted(self) -> Option<Self> {
        if !self.crosses {
            return None;
        }
        let mut queue = self.crossings.queue.lock();
        let woken = queue.find(self.number).map(|at| {
            queue.entries[at].submitted = true;
            let links = queue.entries[at].links;
            queue.moved(links, at + 1)
        });
        drop(queue);
        woken.into_iter().flatten().for_each(Waker::wake);
        Some(self)
    }
}

impl Drop for CrossingTurn<'_> {
    fn drop(&mut self) {
        let mut queue = self.crossings.queue.lock();
        let woken = queue.find(self.number).and_then(|at| {
            let gone = queue.entries.remove(at)?;
            Some(queue.moved(gone.links, at))
        });
        self.crossings
            .waiting
            .store(queue.entries.len(), Ordering::Release);
        drop(queue);
        woken.into_iter().flatten().for_each(Waker::wake);
    }
}
