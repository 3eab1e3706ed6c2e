//! Readers that look at Redis in the same moment ask together.
//!
//! A question of its own costs each reader two commands, a place in the client's queue and the
//! epoch and watermark once more. Where many readers share a connection they are woken together,
//! since replies come together, and look at Redis again together. So the first of them opens a
//! [`Gathering`], which stays open for a turn of the runtime, until all that were woken with it
//! have run; then one question is asked for all, and each is given its own part of the answer.
//!
//! A task of its own asks, and no reader: nobody can tell whether a reader is still polled. That
//! task lives in the runtime of all whom it asks for. If it ends without an answer, its readers
//! hear that at once, and ask for themselves; so they do if the answer is an error of the server,
//! or is larger than the client takes, which may be due to one of them. That the server serves
//! nobody now (it loads its data, say) is no such error. What the client says of
//! Redis (that it is late, or down) it would have said to each; but in a cluster one of them can
//! make it late for all, so there it gets a part of the time only. A reply that is too large ends
//! the connection, and every other call on it: no more ask together than such a client has room
//! for, and if it was too large all the same, nobody does again.
//!
//! Nobody may wait for what others have asked for longer than for an answer of his own. So large
//! values are asked for alone: where a class has shown one lately, its readers do not gather. A
//! gathering that is not closed in time, because its task waits behind something that occupies its
//! thread, is closed by the next reader; and if none comes, or if that runtime is not driven, a
//! thread beside all runtimes ([`watch`]) sends its readers to ask for themselves.

mod found;
mod gathering;
mod question;
mod seats;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use self::gathering::{Gathering, Newcomer, Open, Part, Reader, Room, Step};
use self::seats::Seated;
use super::answer::{EpochView, RedisFailure, RedisResult};
use super::look::{Found, Told, Wanted};
use super::{RedisAllowance, RedisTier};
use crate::monotonic::Monotonic;
use crate::monotonic::counter::at_latest;

/// What the readers of one tier have in common.
pub(super) struct Together {
    open: Mutex<Open>,
    /// Readers whose look has begun and not ended.
    looking: AtomicUsize,
    /// The length of the longest values of late, for each class; classes beyond these share them.
    sizes: [AtomicU32; CLASSES],
    /// Until this moment everybody asks alone: the bits of a [`Monotonic`].
    apart_until: AtomicU64,
    /// Until this moment the time that is left is asked for each value, since there are some
    /// without a stamp: the bits of a [`Monotonic`].
    unstamped_until: AtomicU64,
    /// Readers that ask together at most.
    most: usize,
}

/// A look that has begun, until it is dropped.
pub(super) struct Looking<'a>(&'a AtomicUsize);

impl Together {
    /// For a client that takes replies of so many bytes.
    pub(super) fn new(reply_bytes: usize) -> Self {
        Self {
            most: MOST.min(reply_bytes / ROOM),
            open: Mutex::default(),
            looking: AtomicUsize::new(0),
            sizes: std::array::from_fn(|_| AtomicU32::new(UNKNOWN)),
            apart_until: AtomicU64::new(Monotonic::FIRST.to_bits()),
            unstamped_until: AtomicU64::new(Monotonic::FIRST.to_bits()),
        }
    }

    /// Counts a look.
    pub(super) fn looks(&self) -> Looking<'_> {
        self.looking.fetch_add(1, Ordering::Relaxed);
        Looking(&self.looking)
    }

    /// Whether it is worth waiting for others: there are some, and what they ask for is small.
    pub(super) fn invites(&self, wanted: &Wanted<'_>) -> bool {
        self.looking.load(Ordering::Relaxed) >= SEVERAL
            && self.most >= SEVERAL
            && wanted.tags.len() <= FEW_TAGS
            && self.size_of(wanted) <= LARGE
    }

    /// The length of the longest value of late of the class of this one.
    fn size_of(&self, wanted: &Wanted<'_>) -> u32 {
        self.sizes[wanted.class % CLASSES].load(Ordering::Relaxed)
    }

    /// Learns how long a value of this class is. A long one is remembered for some hundred others.
    pub(super) fn note_size(&self, class: usize, bytes: usize) {
        let size = &self.sizes[class % CLASSES];
        let (before, bytes) = (size.load(Ordering::Relaxed), saturated(bytes));
        if bytes > before {
            size.store(bytes, Ordering::Relaxed);
        } else if before > LARGE {
            size.store(bytes.max(before - before / 64), Ordering::Relaxed);
        }
    }

    fn are_apart(&self, now: Monotonic) -> bool {
        now.to_bits() < self.apart_until.load(Ordering::Relaxed)
    }

    /// Lets everybody ask alone for so long.
    fn part(&self, time: Duration) {
        let until = Monotonic::now().plus(time.into());
        self.apart_until
            .fetch_max(until.to_bits(), Ordering::Relaxed);
    }

    /// Lets everybody ask alone from now on.
    fn part_for_good(&self) {
        self.apart_until.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether all values of late bore a stamp.
    fn are_stamped(&self, now: Monotonic) -> bool {
        now.to_bits() >= self.unstamped_until.load(Ordering::Relaxed)
    }

    /// Remembers for a while that there are values without a stamp.
    fn note_unstamped(&self, now: Monotonic) {
        let until = now.plus(REMEMBERED.into());
        self.unstamped_until
            .fetch_max(until.to_bits(), Ordering::Relaxed);
    }

    /// Takes the gathering of this number, if Redis has not been asked for it yet.
    fn take(&self, number: u64) -> Option<Gathering> {
        let mut open = self.open.lock();
        open.watch.runs();
        let is_it = |gathering: &Gathering| gathering.number == number;
        if let Some(gathering) = open.gathering.take_if(|gathering| is_it(gathering)) {
            return Some(gathering);
        }
        let place = open.due.iter().position(is_it)?;
        Some(open.due.swap_remove(place))
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RedisTier {
    /// Asks together with those that ask at this moment, as the first question of a look; `None` if
    /// the reader has to ask alone.
    pub(super) async fn ask_with_others(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        epoch_view: &EpochView,
        allowance: &mut RedisAllowance,
    ) -> Option<RedisResult<Found>> {
        // What the reader has waited for before is not Redis's affair.
        let came = at_latest();
        // Where nobody has asked, no time was lost to Redis.
        let Part { answer, at } = self.gather(wanted, epoch_view, came)?.await?;
        // Nor is when the reader gets to hear of it.
        let took = at.since(came).into();
        let Some(answer) = answer else {
            allowance.charge_in_vain(took);
            return None;
        };
        allowance.charge(took);
        // The time does not tell the age of what bears no stamp.
        let tells_nothing = answer
            .as_ref()
            .is_ok_and(|found| matches!(found.told, Told::Now(_)) && found.is_unstamped());
        (!tells_nothing).then_some(answer)
    }

    /// Joins the gathering that is open, or opens one. `None` if the reader may not join.
    fn gather(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        epoch_view: &EpochView,
        now: Monotonic,
    ) -> Option<Seated<Part>> {
        let together = &self.together;
        let runtime = Handle::try_current().ok()?;
        if together.are_apart(now) {
            return None;
        }
        let newcomer = Newcomer {
            wanted,
            epoch_view,
            came: now,
            runtime: runtime.id(),
        };
        let (step, seated, unwatched) = {
            let mut open = together.open.lock();
            let (step, seated) = open.add(&newcomer, &self.names, together.most)?;
            (step, seated, open.watch.begins())
        };
        // After the lock is let go: a runtime that has ended drops a task where it is spawned.
        if unwatched && !watch::begin(self) {
            return None;
        }
        let (number, comes_at_once) = match step {
            Step::None => return Some(seated),
            Step::Wait(number) => (number, false),
            Step::Ask(number) => (number, true),
        };
        let turn = Turn {
            tier: Arc::clone(self),
            number,
        };
        // In a box: a task moves its future several times, and this one is large.
        runtime.spawn(Box::pin(turn.end(comes_at_once)));
        Some(seated)
    }

    /// Asks for all of a gathering, and tells each its own.
    async fn ask_for_all(self: Arc<Self>, mut gathering: Gathering) {
        // Those that have gone away are not asked for.
        let Room { seats, readers, .. } = &mut gathering.room;
        seats.retain_waiting(readers, |reader| reader.seat);
        if readers.is_empty() {
            return;
        }
        let waited = Duration::from(at_latest().since(gathering.began));
        let limit = match self.names.are_in_one_slot() {
            true => self.limit / PART_IN_A_CLUSTER,
            false => self.limit,
        };
        let Some(limit) = limit.checked_sub(waited).filter(|left| !left.is_zero()) else {
            return; // each hears that nobody has asked
        };
        let found = self.find_all(&gathering, limit).await;
        let at = at_latest();
        let mut room = gathering.room;
        let Room { readers, seats, .. } = &mut room;
        let count = readers.len() as u64;
        let readers = readers.iter();
        match found {
            Ok(found) => {
                self.stats.redis_shared.add(count);
                let mut unstamped = false;
                let part = |(reader, found): (&Reader, Found)| {
                    unstamped |= found.is_unstamped();
                    let answer = Some(Ok(found));
                    (reader.seat, Part { answer, at })
                };
                seats.answer(readers.clone().zip(found.for_each_of(readers)).map(part));
                if unstamped {
                    self.together.note_unstamped(at);
                }
            }
            Err(trouble) => {
                if !trouble.as_ref().is_some_and(RedisFailure::is_of_the_server) {
                    self.together.part(APART);
                }
                let part = |reader: &Reader| {
                    let answer = trouble.clone().map(Err);
                    (reader.seat, Part { answer, at })
                };
                seats.answer(readers.map(part));
            }
        }
        self.together.open.lock().take_back(room);
    }
}

/// The task of a gathering for which Redis has not been asked.
struct Turn {
    tier: Arc<RedisTier>,
    number: u64,
}

impl Turn {
    /// Waits until all that are to run at this moment have run, if it is not to come at once, and
    /// asks for those that have come.
    async fn end(self, at_once: bool) {
        if !at_once {
            tokio::task::yield_now().await;
        }
        if let Some(gathering) = self.tier.together.take(self.number) {
            Arc::clone(&self.tier).ask_for_all(gathering).await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // If nobody has asked, its readers ask alone.
        drop(self.tier.together.take(self.number));
    }
}

fn saturated(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// With so many looks under way it is worth waiting for others: among fewer a task costs more than
/// it saves.
const SEVERAL: usize = 4;

/// Who names more tags asks alone.
const FEW_TAGS: usize = 4;

/// Readers that ask together at most. So many values occupy Redis for some 50 µs, come to
/// 256 KiB, unless their class has grown since, and what a question costs is little beside them.
const MOST: usize = 64;

/// A value longer than this is asked for alone.
const LARGE: u32 = 4 << 10;

/// The part of a reply that one reader may need: twice its value, since buffers double as they
/// grow, which is ample for its tokens too.
const ROOM: usize = 2 * LARGE as usize;

/// In a cluster a question for many may take this part of what each may spend. Where a slot is in
/// motion a single key that is not there holds up the whole of it (`TRYAGAIN`).
const PART_IN_A_CLUSTER: u32 = 4;

/// The length of the values of a class of which none has been seen.
const UNKNOWN: u32 = LARGE + LARGE / 2;

/// Classes that are told apart.
const CLASSES: usize = 64;

/// The time for which it is remembered that there are values without a stamp.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The time for which everybody asks alone, after a question for many has failed.
const APART: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
