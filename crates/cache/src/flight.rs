//! One load per key at a time in this process.
//!
//! The leader is a task of its own, so a caller that goes away cancels nobody, and a caller that
//! has something stale may leave early while the load goes on. A flight is joined only while
//! nothing has been invalidated since it took off: after its own write a caller never joins a load
//! that began before it, but starts another, which takes the place of the first in the table.
//!
//! Before there is a leader, the first reader of a key may look at Redis itself: for a hit, a task
//! would cost more than the look. Nobody waits for such a look, since nobody can tell whether its
//! reader is still polled. Whoever comes meanwhile begins a flight of its own, which takes the
//! place of the look in the table; and a reader whose look was in vain waits for that one, also if
//! it has landed by then. If nobody came, its own flight gets a leader.
//!
//! A flight is not joined by a reader whose tags its value will not carry. What takes its place
//! carries the tags of both, or readers who name different tags would load in turns.

pub(crate) mod failures;
pub(crate) mod nesting;

use std::any::TypeId;
use std::borrow::{Borrow, Cow};
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::answer::Source;
use crate::error::CacheError;
use crate::monotonic::Monotonic;
use crate::tier::coherence::Coherence;
use crate::tier::entry::Entry;
use crate::tier::generation::{Generations, Snapshot, TagStripes};
use nesting::Loading;

pub(crate) struct Flights {
    shards: Box<[Shard]>,
    hasher: foldhash::quality::RandomState,
    rules: JoinRules,
}

/// Rules for joining a flight. Both are true, except in tests that show what goes wrong without
/// them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JoinRules {
    /// Nobody joins a flight that took off before an invalidation.
    pub(crate) detach: bool,
    /// Nor one that is older than what memory may be believed for.
    pub(crate) heed_age: bool,
}

type Shard = Mutex<Table>;

type Table = HashSet<UnderItsKey, foldhash::quality::RandomState>;

/// A flight, found by its key, which lies in it.
struct UnderItsKey(Arc<Flight>);

impl Borrow<[u8]> for UnderItsKey {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl Hash for UnderItsKey {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (*self.0.key).hash(hasher);
    }
}

impl PartialEq for UnderItsKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for UnderItsKey {}

/// The kind of value that a flight brings: a reader of another kind does not join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cargo {
    pub(crate) value: TypeId,
    /// The version of that type.
    pub(crate) version: u32,
    /// The number of the class by which its freshness is judged.
    pub(crate) class: usize,
    /// The hard limit of that class: past it nobody joins the flight, which may have its leader in
    /// a runtime that nobody drives.
    pub(crate) limit: Duration,
}

pub(crate) struct Flight {
    pub(crate) key: SmallVec<[u8; SHORT_KEY]>,
    cargo: Cargo,
    /// The tags that what it brings will carry at least.
    tags: Vec<Vec<u8>>,
    /// The moment at which it took off: while nobody vouches that every invalidation is heard, an
    /// old flight may bring an overtaken value.
    began: Monotonic,
    /// The counters before anything was read.
    snapshot: Snapshot,
    /// The counters of the tags that a value found in Redis carries and the leader did not name,
    /// from before their tokens were asked for.
    found: Mutex<TagStripes>,
    progress: Mutex<Progress>,
    /// Tells the followers that there is progress.
    told: Notify,
    /// Changed only while the shard is locked that has the flight's key.
    led_by: Mutex<LedBy>,
    /// The load that it waits for, once that has begun.
    loading: Mutex<Weak<Loading>>,
    wishes: Mutex<Wishes>,
    /// Tells the leader of a wish.
    wished: Notify,
}

/// The wishes of those who wait for a flight, to its leader.
#[derive(Default)]
struct Wishes {
    /// A load that waits for this one, and lets it go by its own permit.
    lent: Option<Arc<Loading>>,
    /// The moment at which one who waits will have spent on Redis what a read may.
    redis_until: Option<Instant>,
}

/// The one by whom a flight is led to its end.
enum LedBy {
    /// The leader, a task of its own.
    Led,
    /// A reader, as long as its own look at Redis takes.
    Looking,
    /// Nobody: another flight was begun while the reader looked.
    Overtaken(Arc<Flight>),
}

/// The progress of a flight, as its followers see it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Counts the steps.
    step: u32,
    /// A stale value that was found on the way.
    pub(crate) fallback: Option<Fallback>,
    /// The load waits for admission to the database: who can do with something stale should.
    pub(crate) queued: bool,
    pub(crate) outcome: Option<Result<Loaded, CacheError>>,
}

/// A value that may be served if nothing better comes in time, with what tells whether it has been
/// invalidated since.
#[derive(Clone, Debug)]
pub(crate) struct Fallback {
    pub(crate) loaded: Loaded,
    pub(crate) then: Snapshot,
}

#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) entry: Arc<Entry>,
    pub(crate) source: Source,
}

/// A place on a flight.
pub(crate) enum Join {
    /// A flight that nobody joins before its reader has looked at Redis and let it be led.
    Looking(Leader),
    Leader(Leader, Follower),
    Joined(Follower),
}

impl Join {
    /// Returns the duty to lead a flight that was begun here, and a place on it; or else the place
    /// on another's.
    pub(crate) fn led(self) -> Result<(Leader, Follower), Follower> {
        match self {
            Self::Joined(follower) => Err(follower),
            Self::Leader(leader, follower) => Ok((leader, follower)),
            Self::Looking(leader) => {
                let follower = leader.follower();
                Ok((leader, follower))
            }
        }
    }
}

/// The way on of a reader whose own look at Redis was in vain.
pub(crate) enum AfterLook {
    /// The flight of the reader is to be led by a task.
    Lead,
    /// The reader waits for another flight.
    Joined(Follower),
}

pub(crate) struct Follower {
    flight: Arc<Flight>,
    /// The step that was looked at last.
    seen: u32,
    /// Whether another has begun it.
    joined: bool,
}

/// The duty to bring a flight to an end. Dropping it (the runtime shuts down, the task panics) ends
/// the flight as abandoned.
pub(crate) struct Leader {
    flight: Arc<Flight>,
    flights: Arc<Flights>,
    in_table: bool,
    /// Whether counters of tags were added to those of the snapshot.
    carries_more: AtomicBool,
    /// Whether there is nobody to be told of its end.
    unfollowed: bool,
}

impl Flights {
    pub(crate) fn new(rules: JoinRules) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self {
            shards,
            hasher: foldhash::quality::RandomState::default(),
            rules,
        }
    }

    /// Joins the flight for this key, or begins one.
    pub(crate) fn board<T: AsRef<[u8]>>(
        self: &Arc<Self>,
        key: &[u8],
        cargo: Cargo,
        tags: &[T],
        world: (&Generations, &Coherence),
    ) -> Join {
        self.board_at(Monotonic::now(), key, cargo, tags, world, false)
    }

    /// Joins the flight for this key, or begins one: if there is none at all, with the reader's own
    /// look at Redis.
    pub(crate) fn look_or_board<T: AsRef<[u8]>>(
        self: &Arc<Self>,
        now: Monotonic,
        key: &[u8],
        cargo: Cargo,
        tags: &[T],
        world: (&Generations, &Coherence),
    ) -> Join {
        self.board_at(now, key, cargo, tags, world, true)
    }

    fn board_at<T: AsRef<[u8]>>(
        self: &Arc<Self>,
        now: Monotonic,
        key: &[u8],
        cargo: Cargo,
        tags: &[T],
        world: (&Generations, &Coherence),
        may_look: bool,
    ) -> Join {
        let mut shard = self.shard(key).lock();
        let there = shard.get(key).map(|there| &there.0);
        let joinable = |flight| self.joinable(flight, now, cargo, tags, world);
        if let Some(follower) = there.and_then(joinable) {
            return Join::Joined(follower);
        }
        let is_free = there.is_none();
        let tags = with_those_of(there, cargo, tags);
        if may_look && is_free {
            let by = LedBy::Looking;
            let leader = self.take_off(now, key, cargo, tags, world.0, by);
            shard.insert(UnderItsKey(leader.flight.clone()));
            return Join::Looking(leader);
        }
        let leader = self.take_off(now, key, cargo, tags, world.0, LedBy::Led);
        leader.flight.enter(&mut shard);
        let follower = leader.follower();
        Join::Leader(leader, follower)
    }

    fn joinable<T: AsRef<[u8]>>(
        &self,
        flight: &Arc<Flight>,
        now: Monotonic,
        cargo: Cargo,
        tags: &[T],
        (generations, coherence): (&Generations, &Coherence),
    ) -> Option<Follower> {
        if !matches!(*flight.led_by.lock(), LedBy::Led) {
            return None;
        }
        let may = flight.cargo == cargo
            && now.since(flight.began) < flight.cargo.limit.into()
            && flight.may_be_joined(tags, generations)
            && (coherence.vouches(flight.began, now) || !self.rules.heed_age);
        (may || !self.rules.detach).then(|| Follower::new(flight, true))
    }

    /// Begins a flight for this key whether or not there is one. `in_table`: those who come later
    /// join it.
    pub(crate) fn begin<T: AsRef<[u8]>>(
        self: &Arc<Self>,
        key: &[u8],
        cargo: Cargo,
        tags: &[T],
        generations: &Generations,
        in_table: bool,
    ) -> (Leader, Follower) {
        let (now, by) = (Monotonic::now(), LedBy::Led);
        let leader = if in_table {
            let mut shard = self.shard(key).lock();
            let there = shard.get(key).map(|there| &there.0);
            let tags = with_those_of(there, cargo, tags);
            let leader = self.take_off(now, key, cargo, tags, generations, by);
            leader.flight.enter(&mut shard);
            leader
        } else {
            let tags = with_those_of(None, cargo, tags);
            let mut leader = self.take_off(now, key, cargo, tags, generations, by);
            leader.in_table = false;
            leader
        };
        let follower = leader.follower();
        (leader, follower)
    }

    fn take_off(
        self: &Arc<Self>,
        now: Monotonic,
        key: &[u8],
        cargo: Cargo,
        tags: Vec<Vec<u8>>,
        generations: &Generations,
        led_by: LedBy,
    ) -> Leader {
        let flight = Arc::new(Flight {
            key: SmallVec::from_slice(key),
            cargo,
            began: now,
            snapshot: generations.snapshot(key, &tags),
            tags,
            found: Mutex::default(),
            progress: Mutex::default(),
            told: Notify::new(),
            led_by: Mutex::new(led_by),
            loading: Mutex::default(),
            wishes: Mutex::default(),
            wished: Notify::new(),
        });
        Leader {
            flight,
            flights: self.clone(),
            in_table: true,
            carries_more: AtomicBool::new(false),
            unfollowed: false,
        }
    }

    pub(crate) fn under_way(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, key: &[u8]) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

impl Flight {
    /// Whether it took off after the last invalidation, and brings a value that carries the tags
    /// named.
    fn may_be_joined<T: AsRef<[u8]>>(&self, tags: &[T], generations: &Generations) -> bool {
        generations.is_current(&self.snapshot)
            && generations.tags_are_current(&self.found.lock())
            && generations.cover(&self.snapshot.tags, tags)
    }

    /// Enters the table in the place of whatever is there; a reader that looks there is told.
    #[expect(
        clippy::mutable_key_type,
        reason = "it is found by its key alone, which never changes"
    )]
    fn enter(self: &Arc<Self>, shard: &mut Table) {
        if let Some(UnderItsKey(before)) = shard.replace(UnderItsKey(self.clone())) {
            let mut led_by = before.led_by.lock();
            if matches!(*led_by, LedBy::Looking) {
                *led_by = LedBy::Overtaken(self.clone());
            }
        }
    }

    fn advance(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.lock();
        change(&mut progress);
        progress.step = progress.step.wrapping_add(1);
        drop(progress);
        self.told.notify_waiters();
    }

    /// The load that it waits for, if that has begun and not ended.
    pub(crate) fn loading(&self) -> Option<Arc<Loading>> {
        self.loading.lock().upgrade()
    }

    /// Lets this flight's load run under the guard permit of `by`, a load that waits for it.
    pub(crate) fn lend(&self, by: &Arc<Loading>) {
        self.wishes.lock().lent.get_or_insert_with(|| by.clone());
        self.wished.notify_one();
    }

    /// Tells the leader to stop asking Redis at `until`: by then a follower has spent its own
    /// allowance.
    pub(crate) fn hurry(&self, until: Instant) {
        let mut wishes = self.wishes.lock();
        let sooner = wishes.redis_until.is_none_or(|before| until < before);
        if sooner {
            wishes.redis_until = Some(until);
            drop(wishes);
            self.wished.notify_one();
        }
    }
}

impl Follower {
    fn new(flight: &Arc<Flight>, joined: bool) -> Self {
        Self {
            flight: flight.clone(),
            seen: u32::MAX,
            joined,
        }
    }

    pub(crate) fn has_joined(&self) -> bool {
        self.joined
    }

    pub(crate) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Looks at how far it has come.
    pub(crate) fn look<T>(&mut self, look: impl FnOnce(&Progress) -> T) -> T {
        let progress = self.flight.progress.lock();
        self.seen = progress.step;
        look(&progress)
    }

    /// Waits for a step that has not been looked at.
    pub(crate) async fn changed(&self) {
        loop {
            let mut told = std::pin::pin!(self.flight.told.notified());
            // Heard from here on, so that nothing is missed between the look and the wait.
            told.as_mut().enable();
            if self.flight.progress.lock().step != self.seen {
                return;
            }
            told.await;
        }
    }
}

impl Leader {
    /// The value that is being looked at carries these tags too: from now on they outdate the
    /// flight.
    pub(crate) fn carries(&self, tags: TagStripes) {
        self.flight.found.lock().extend(tags);
        self.carries_more.store(true, Ordering::Release);
    }

    /// The counters that what is found or loaded here is governed by.
    pub(crate) fn snapshot(&self) -> Cow<'_, Snapshot> {
        let snapshot = &self.flight.snapshot;
        match self.carries_more.load(Ordering::Acquire) {
            true => Cow::Owned(snapshot.with(&self.flight.found.lock())),
            false => Cow::Borrowed(snapshot),
        }
    }

    /// Returns a place on this flight.
    pub(crate) fn follower(&self) -> Follower {
        Follower::new(&self.flight, false)
    }

    /// Ends a reader's own look that has answered it. Nobody waits for such a flight.
    pub(crate) fn look_is_over(mut self) {
        self.clear_table();
        self.unfollowed = true;
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.flight.key
    }

    /// Returns the tags that what it brings has to carry.
    pub(crate) fn tags(&self) -> &[Vec<u8>] {
        &self.flight.tags
    }

    pub(crate) fn offer_fallback(&self, loaded: Loaded) {
        let then = self.snapshot().into_owned();
        let held = Fallback { loaded, then };
        self.flight
            .advance(|progress| progress.fallback = Some(held));
    }

    /// Returns the value that was offered.
    pub(crate) fn fallback(&self) -> Option<Fallback> {
        self.flight.progress.lock().fallback.clone()
    }

    pub(crate) fn say_queued(&self) {
        self.flight.advance(|progress| progress.queued = true);
    }

    /// Says which load it waits for.
    pub(crate) fn begins(&self, loading: &Arc<Loading>) {
        *self.flight.loading.lock() = Arc::downgrade(loading);
    }

    /// Waits for a load that waits for this one to lend it its permit.
    pub(crate) async fn lent(&self) -> Arc<Loading> {
        loop {
            if let Some(lent) = self.flight.wishes.lock().lent.clone() {
                return lent;
            }
            self.flight.wished.notified().await;
        }
    }

    /// Waits until a follower has spent its allowance for Redis.
    pub(crate) async fn hurried(&self) {
        loop {
            let until = self.flight.wishes.lock().redis_until;
            let wished = self.flight.wished.notified();
            match until {
                Some(until) => tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => return,
                    () = wished => {}
                },
                None => wished.await,
            }
        }
    }

    /// After the reader's own look, in vain: waits for the flight that was begun meanwhile, if it
    /// brings what the reader wants. It was begun after the reader came, so that whatever it brings
    /// is new enough. If there is none, this one is to be led from now on, and others may join it.
    /// `named` are the tags that the reader named.
    pub(crate) fn after_look<T: AsRef<[u8]>>(
        &self,
        named: &[T],
        generations: &Generations,
    ) -> AfterLook {
        let mut shard = self.flights.shard(self.key()).lock();
        let led_by = std::mem::replace(&mut *self.flight.led_by.lock(), LedBy::Led);
        if let LedBy::Overtaken(other) = led_by {
            let brings_it =
                other.cargo == self.flight.cargo && generations.cover(&other.snapshot.tags, named);
            if brings_it {
                return AfterLook::Joined(Follower::new(&other, true));
            }
            self.flight.enter(&mut shard);
        }
        AfterLook::Lead
    }

    /// Ends the flight: from here on a new one may begin.
    pub(crate) fn land(&self, outcome: Result<Loaded, CacheError>) {
        if self.flight.progress.lock().outcome.is_some() {
            return;
        }
        if self.in_table {
            self.clear_table();
        }
        self.flight
            .advance(|progress| progress.outcome = Some(outcome));
    }

    fn clear_table(&self) {
        let key = self.key();
        let mut shard = self.flights.shard(key).lock();
        // Nearly always it is this one.
        if let Some(there) = shard.take(key)
            && !Arc::ptr_eq(&there.0, &self.flight)
        {
            shard.insert(there);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.unfollowed {
            self.land(Err(CacheError::Abandoned));
        }
    }
}

/// Returns these tags, and those of the flight whose place is taken, if it brings the same.
fn with_those_of<T: AsRef<[u8]>>(
    before: Option<&Arc<Flight>>,
    cargo: Cargo,
    tags: &[T],
) -> Vec<Vec<u8>> {
    if tags.is_empty() && before.is_none() {
        return Vec::new();
    }
    let mut all: Vec<Vec<u8>> = tags.iter().map(|tag| tag.as_ref().to_vec()).collect();
    if let Some(before) = before.filter(|before| before.cargo == cargo) {
        for tag in &before.tags {
            if all.len() < TAKEN_OVER && !all.contains(tag) {
                all.push(tag.clone());
            }
        }
    }
    all
}

const SHARDS: usize = 64;

/// A key of this many bytes or fewer lies in the flight, a longer one beside it.
const SHORT_KEY: usize = 24;

/// With so many tags no others are taken over: readers who each name another one come without end.
pub(crate) const TAKEN_OVER: usize = 16;

#[cfg(test)]
mod tests;
