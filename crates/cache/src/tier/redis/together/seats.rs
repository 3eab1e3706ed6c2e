//! The seats of those who ask together, each of whom waits in one for its part of the answer.
//!
//! A channel for each reader would do, and costs each an allocation that two threads write to. The
//! seats of a gathering lie side by side in one, and are filled and told under its lock.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// All seats of a gathering, for whoever answers. If it is dropped, those who wait are told that
/// there is no answer.
pub(super) struct Seats<T>(Arc<Mutex<Vec<Seat<T>>>>);

/// The seat of one reader: a future of the answer, which is `None` if nobody gives one.
pub(super) struct Seated<T> {
    seats: Arc<Mutex<Vec<Seat<T>>>>,
    number: usize,
    is_over: bool,
}

enum Seat<T> {
    /// Its reader waits, and is to be woken if it has been polled.
    Taken(Option<Waker>),
    Answered(T),
    /// Its reader has gone away, has had its answer, or gets none.
    Empty,
}

impl<T> Seats<T> {
    /// Seats for about so many.
    pub(super) fn with_capacity(readers: usize) -> Self {
        Self(Arc::new(Mutex::new(Vec::with_capacity(readers))))
    }

    /// Adds a seat. They are numbered from 0.
    pub(super) fn take(&self) -> Seated<T> {
        let mut seats = self.0.lock();
        seats.push(Seat::Taken(None));
        Seated {
            seats: Arc::clone(&self.0),
            number: seats.len() - 1,
            is_over: false,
        }
    }

    /// Keeps those whose reader still waits; `number_of` says in which seat.
    pub(super) fn retain_waiting<R>(&self, of: &mut Vec<R>, number_of: impl Fn(&R) -> usize) {
        let seats = self.0.lock();
        of.retain(|reader| matches!(seats.get(number_of(reader)), Some(Seat::Taken(_))));
    }

    /// Gives these their answers, and the others none.
    pub(super) fn answer(&mut self, answers: impl Iterator<Item = (usize, T)>) {
        // Ahead of the lock, so that it is dropped after it.
        let mut to_wake = ToWake(Vec::new());
        let mut seats = self.0.lock();
        to_wake.0.reserve(seats.len());
        for (number, answer) in answers {
            let Some(seat) = seats.get_mut(number) else {
                continue;
            };
            if let Seat::Taken(waker) = seat {
                to_wake.0.extend(waker.take());
                *seat = Seat::Answered(answer);
            }
        }
        leave(&mut seats, &mut to_wake);
    }

    /// Makes room for others, if all who had a seat have left. Returns whether they have.
    pub(super) fn clear(&mut self) -> bool {
        let Some(seats) = Arc::get_mut(&mut self.0) else {
            return false;
        };
        seats.get_mut().clear();
        true
    }
}

impl<T> Drop for Seats<T> {
    fn drop(&mut self) {
        let mut to_wake = ToWake(Vec::new());
        leave(&mut self.0.lock(), &mut to_wake);
    }
}

/// Those who still wait get no answer.
fn leave<T>(seats: &mut [Seat<T>], to_wake: &mut ToWake) {
    for seat in seats {
        if let Seat::Taken(waker) = seat {
            to_wake.0.extend(waker.take());
            *seat = Seat::Empty;
        }
    }
}

/// Those that are woken when this is dropped, each of them, whatever comes in between: what wakes a
/// reader may be others' code, and a panic in it is no reason why another should wait for ever.
struct ToWake(Vec<Waker>);

impl Drop for ToWake {
    fn drop(&mut self) {
        for waker in self.0.drain(..) {
            // The panic has been told by its hook.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

impl<T> Future for Seated<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut seats = self.seats.lock();
        let answer = match seats.get_mut(self.number) {
            Some(Seat::Taken(waker)) => {
                let before = match waker {
                    Some(waker) if waker.will_wake(context.waker()) => None,
                    _ => waker.replace(context.waker().clone()),
                };
                drop(seats);
                drop(before); // others' code, which runs under no lock of ours
                return Poll::Pending;
            }
            Some(seat) => match mem::replace(seat, Seat::Empty) {
                Seat::Answered(answer) => Some(answer),
                _ => None,
            },
            None => None,
        };
        drop(seats);
        self.is_over = true;
        Poll::Ready(answer)
    }
}

impl<T> Drop for Seated<T> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut seats = self.seats.lock();
        let left = seats
            .get_mut(self.number)
            .map(|seat| mem::replace(seat, Seat::Empty));
        drop(seats);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn k6_each_seat_gets_its_own_answer_and_who_has_left_none() {
        let mut seats = Seats::with_capacity(1);
        let mut taken: Vec<_> = (0..4).map(|_| seats.take()).collect();
        for seated in &mut taken {
            assert!(seated.now_or_never().is_none());
        }
        drop(taken.remove(1));
        assert!(!seats.clear(), "they have their seats still");
        let mut readers = vec![0, 1, 2, 3];
        seats.retain_waiting(&mut readers, |number| *number);
        assert_eq!(readers, [0, 2, 3]);
        let woken = tokio::spawn(futures_util::future::join_all(taken));
        tokio::task::yield_now().await;
        seats.answer([(0, "zero"), (1, "one"), (3, "three")].into_iter());
        assert_eq!(woken.await.unwrap(), [Some("zero"), None, Some("three")]);
        // Others take their seats, and hear nothing of what was said before.
        assert!(seats.clear());
        let mut next = seats.take();
        assert!((&mut next).now_or_never().is_none());
        seats.answer([(0, "another")].into_iter());
        assert_eq!(next.await, Some("another"));
    }

    #[tokio::test]
    async fn k3_whoever_waits_hears_that_nobody_answers() {
        let seats = Seats::<u8>::with_capacity(0);
        let (polled, not_polled) = (seats.take(), seats.take());
        let polled = tokio::spawn(polled);
        tokio::task::yield_now().await;
        drop(seats);
        assert_eq!((polled.await.unwrap(), not_polled.await), (None, None));
    }

    /// What wakes one of the readers panics.
    #[tokio::test]
    async fn k3_a_waker_that_panics_keeps_no_other_reader_waiting() {
        struct Panics;
        impl std::task::Wake for Panics {
            fn wake(self: Arc<Self>) {
                std::panic::panic_any("a waker panics");
            }
        }
        for is_answered in [false, true] {
            let mut seats = Seats::with_capacity(3);
            let mut taken: Vec<_> = (0..3).map(|_| seats.take()).collect();
            let mut bad = taken.remove(0);
            let waker = Waker::from(Arc::new(Panics));
            let polled = Pin::new(&mut bad).poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            let woken = tokio::spawn(futures_util::future::join_all(taken));
            tokio::task::yield_now().await;
            match is_answered {
                true => seats.answer((0..3).map(|n| (n, n))),
                false => drop(seats),
            }
            let answers = match is_answered {
                true => [Some(1), Some(2)],
                false => [None, None],
            };
            let limit = std::time::Duration::from_secs(30);
            let woken = tokio::time::timeout(limit, woken).await;
            assert_eq!(woken.expect("they wait").unwrap(), answers);
        }
    }
}
