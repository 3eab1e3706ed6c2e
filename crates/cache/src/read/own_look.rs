//! The reader's own look at Redis, in its own task.
//!
//! For a hit a task and a flight that others may join would cost more than the look. So the first
//! reader of a key looks by itself, and a flight is led only when that is in vain, when a second
//! reader comes, or when the reader goes away.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use super::load::{self, FirstLook, Job};
use super::view::View;
use crate::clock::clock;
use crate::error::LoadError;
use crate::flight::{AfterLook, Fallback, Follower, Join, Loaded};
use crate::freshness::Ttl;
use crate::monotonic::Monotonic;
use crate::tier::entry::Entry;

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Joins or begins the flight for this key.
    pub(super) fn board<L, F>(&self, name: &[u8], mut job: Job<V>, load: L) -> Follower
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        let cache = self.core();
        let world = (&cache.generations, &*cache.coherence);
        let joined = cache.flights.board(name, self.cargo(), &job.tags, world);
        let (leader, follower) = match joined.led() {
            Ok(both) => both,
            Err(follower) => return follower,
        };
        job.carry_tags_of(&leader);
        cache
            .under_way
            .spawn(load::lead(leader, job, load, clock()));
        follower
    }

    /// Whether a reader may look at Redis itself: the look may take no more than leaves half of the
    /// time to a load.
    pub(super) fn may_look_first(&self, ttl: &Ttl) -> bool {
        let redis = self.core().redis.as_ref();
        redis.is_some_and(|redis| redis.limit() <= ttl.hard_limit / 2)
    }

    /// Looks at Redis in this very task; if that is in vain, or if there is a flight for this key,
    /// waits for a flight. The read began at the first of the two moments; the second is now, or a
    /// little earlier.
    pub(super) async fn look_or_board<L, F>(
        &self,
        name: &[u8],
        mut job: Box<Job<V>>,
        load: L,
        (mut began, now): (Instant, Monotonic),
    ) -> Boarded
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        let cache = self.core();
        let world = (&cache.generations, &*cache.coherence);
        let (cargo, tags) = (self.cargo(), &job.tags);
        let flights = &cache.flights;
        let leader = match flights.look_or_board(now, name, cargo, tags, world) {
            Join::Joined(follower) => return Boarded::Waiting(follower, None),
            Join::Leader(leader, follower) => {
                job.carry_tags_of(&leader);
                cache.under_way.spawn(load::lead(leader, *job, load, began));
                return Boarded::Waiting(follower, None);
            }
            Join::Looking(leader) => leader,
        };
        let named = job.tags.len();
        let look = OwnLook::new(self, name, &job, load);
        let found = load::look_first(cache, &leader, &mut job, now).await;
        let load = look.over();
        if let Some((loaded, judged)) = found {
            leader.look_is_over();
            return Boarded::Answered(loaded, judged);
        }
        let follower = leader.follower();
        let Some(load) = load else {
            return Boarded::Waiting(follower, None);
        };
        let left = job.first_look.left();
        if clock() > began + job.ttl.hard_limit / 2 {
            // Nobody has looked at the answer for a long time. A load gets its time all the same;
            // the reader waits no longer than it would have.
            job.first_look = FirstLook::None;
            began = clock();
        }
        match leader.after_look(&job.tags[..named], &cache.generations) {
            AfterLook::Lead => {
                cache.under_way.spawn(load::lead(leader, *job, load, began));
                Boarded::Waiting(follower, None)
            }
            AfterLook::Joined(other) => {
                if let Some(left) = left {
                    other.flight().hurry(clock() + left);
                }
                Boarded::Waiting(other, leader.fallback())
            }
        }
    }
}

/// The way on of a read that memory could not answer.
pub(super) enum Boarded {
    /// Redis has answered it, by what was known at this moment.
    Answered(Loaded, Monotonic),
    /// The read waits for a flight, and has perhaps something stale meanwhile.
    Waiting(Follower, Option<Fallback>),
}

/// A reader's own look at Redis. Should the reader go away meanwhile, a flight looks and loads for
/// those that come after it, as if it had been begun at once.
struct OwnLook<'a, V, L, F>
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
{
    load: Option<L>,
    view: &'a View<V>,
    name: &'a [u8],
    tags: Vec<Vec<u8>>,
    held: Option<Arc<Entry>>,
    loads: PhantomData<fn() -> F>,
}

impl<'a, V, L, F> OwnLook<'a, V, L, F>
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
{
    fn new(view: &'a View<V>, name: &'a [u8], job: &Job<V>, load: L) -> Self {
        Self {
            load: Some(load),
            view,
            name,
            tags: job.tags.clone(),
            held: job.held.clone(),
            loads: PhantomData,
        }
    }

    /// The reader is still there: hands its loader back.
    fn over(mut self) -> Option<L> {
        self.load.take()
    }
}

impl<V, L, F> Drop for OwnLook<'_, V, L, F>
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
{
    fn drop(&mut self) {
        let Some(load) = self.load.take() else { return };
        if tokio::runtime::Handle::try_current().is_ok() {
            let tags = std::mem::take(&mut self.tags);
            let job = Job::new(self.view, self.view.ttl(), tags, self.held.take());
            self.view.board(self.name, job, load);
        }
    }
}
