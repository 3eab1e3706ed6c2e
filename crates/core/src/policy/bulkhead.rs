//! A slow dependency fills whatever it is given: threads, memory, sockets. A bulkhead bounds both those inside and those
//! at the door, so that the rest of the ship stays dry; past both bounds a call is told at once.
//!
//! These are the counters only. Who waits, and how the one at the head of the queue is woken, is the shell's;
//! a place that becomes free while calls wait is handed to the first of them and never to a newcomer.
//!
//! ```
//! use steadfast_core::policy::bulkhead::{Bulkhead, Entry, Released};
//!
//! let mut bulkhead = Bulkhead::new(1, 1);
//! let Ok(Entry::Inside(place)) = bulkhead.try_enter() else { panic!("empty") };
//! let Ok(Entry::Waiting(turn)) = bulkhead.try_enter() else { panic!("there is room at the door") };
//! assert!(bulkhead.try_enter().is_err());
//! assert_eq!(bulkhead.leave(place), Released::ToWaiter); // wake the first who waits …
//! let place = bulkhead.admit(turn);                      // … who goes in
//! assert_eq!(bulkhead.leave(place), Released::Free);
//! ```

/// Bounds how many calls are inside, and how many wait for a place.
#[derive(Clone, Debug)]
pub struct Bulkhead {
    places: usize,
    queue: usize,
    inside: usize,
    waiting: usize,
    /// Waiters who have been given a place and do not yet know it.
    called: usize,
}

impl Bulkhead {
    /// So many `places` inside (at least 1; 0 counts as 1), and so many waiting in the `queue` (0: nobody waits).
    pub fn new(places: usize, queue: usize) -> Self {
        Self {
            places: places.max(1),
            queue,
            inside: 0,
            waiting: 0,
            called: 0,
        }
    }

    /// A call arrives. Errors: [`Full`], when all places and the queue are taken.
    pub fn try_enter(&mut self) -> Result<Entry, Full> {
        if self.inside + self.called < self.places {
            self.inside += 1;
            return Ok(Entry::Inside(Place(())));
        }
        if self.waiting < self.queue {
            self.waiting += 1;
            return Ok(Entry::Waiting(Turn(())));
        }
        Err(Full {
            places: self.places,
            queue: self.queue,
        })
    }

    /// A call that was inside is over. If its place goes to a waiter, wake the first in the queue.
    pub fn leave(&mut self, place: Place) -> Released {
        let Place(()) = place;
        self.inside -= 1;
        self.pass_on()
    }

    /// The waiter who was called goes in.
    pub fn admit(&mut self, turn: Turn) -> Place {
        let Turn(()) = turn;
        debug_assert!(
            self.called > 0,
            "a waiter goes in without having been called"
        );
        self.called = self.called.saturating_sub(1);
        self.inside += 1;
        Place(())
    }

    /// A waiter goes away before it was called.
    pub fn abandon(&mut self, turn: Turn) {
        let Turn(()) = turn;
        self.waiting -= 1;
    }

    /// A waiter goes away after it was called: the place goes on to the next.
    pub fn decline(&mut self, turn: Turn) -> Released {
        let Turn(()) = turn;
        debug_assert!(
            self.called > 0,
            "a waiter declines without having been called"
        );
        self.called = self.called.saturating_sub(1);
        self.pass_on()
    }

    /// Calls inside, those called in included; never more than the places.
    pub fn inside(&self) -> usize {
        self.inside + self.called
    }

    /// Calls that wait; never more than the queue.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    fn pass_on(&mut self) -> Released {
        if self.waiting == 0 {
            return Released::Free;
        }
        self.waiting -= 1;
        self.called += 1;
        Released::ToWaiter
    }
}

/// How a call came in.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a place that is not given back is lost"]
pub enum Entry {
    /// It may go on.
    Inside(Place),
    /// It is to wait until it is called.
    Waiting(Turn),
}

/// A place inside, to be given back by [`Bulkhead::leave`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a place that is not given back is lost"]
pub struct Place(());

/// A place in the queue, to be given back by [`Bulkhead::admit`], [`Bulkhead::abandon`] or [`Bulkhead::decline`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a turn that is not given back is lost"]
pub struct Turn(());

/// What became of a place given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a waiter may have to be woken"]
pub enum Released {
    /// Nobody waits; the next to come may have it.
    Free,
    /// It belongs to the first waiter, who must be woken.
    ToWaiter,
}

/// No place, and no room to wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {places} places and all {queue} places in the queue are taken")]
pub struct Full {
    /// Places inside.
    pub places: usize,
    /// Places in the queue.
    pub queue: usize,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn inside(bulkhead: &mut Bulkhead) -> Place {
        match bulkhead.try_enter().unwrap() {
            Entry::Inside(place) => place,
            Entry::Waiting(_) => panic!("has to wait"),
        }
    }

    fn waiting(bulkhead: &mut Bulkhead) -> Turn {
        match bulkhead.try_enter().unwrap() {
            Entry::Waiting(turn) => turn,
            Entry::Inside(_) => panic!("overtook those who wait"),
        }
    }

    #[test]
    fn c11_past_both_bounds_a_call_is_refused_at_once() {
        let mut bulkhead = Bulkhead::new(2, 1);
        let _a = inside(&mut bulkhead);
        let _b = inside(&mut bulkhead);
        let _c = waiting(&mut bulkhead);
        assert_eq!(
            bulkhead.try_enter(),
            Err(Full {
                places: 2,
                queue: 1
            })
        );
    }

    #[test]
    fn a_newcomer_does_not_overtake_a_waiter_who_was_called() {
        let mut bulkhead = Bulkhead::new(1, 2);
        let place = inside(&mut bulkhead);
        let turn = waiting(&mut bulkhead);
        assert_eq!(bulkhead.leave(place), Released::ToWaiter);
        let newcomer = waiting(&mut bulkhead);
        let place = bulkhead.admit(turn);
        bulkhead.abandon(newcomer);
        assert_eq!(bulkhead.leave(place), Released::Free);
        assert_eq!((bulkhead.inside(), bulkhead.waiting()), (0, 0));
    }

    #[test]
    fn a_place_declined_goes_to_the_next() {
        let mut bulkhead = Bulkhead::new(1, 2);
        let place = inside(&mut bulkhead);
        let (first, second) = (waiting(&mut bulkhead), waiting(&mut bulkhead));
        assert_eq!(bulkhead.leave(place), Released::ToWaiter);
        assert_eq!(bulkhead.decline(first), Released::ToWaiter);
        assert_eq!(bulkhead.decline(second), Released::Free);
        let _place = inside(&mut bulkhead);
    }

    #[test]
    fn no_places_at_all_counts_as_one() {
        let mut bulkhead = Bulkhead::new(0, 0);
        let _place = inside(&mut bulkhead);
        assert!(bulkhead.try_enter().is_err());
    }
}
