//! The future of a read, which for nearly all is a glance into memory and no more.
//!
//! Written by hand: the state of an async function is handed from function to function, and each
//! copies the answer once more. This one is small enough to become a part of whoever awaits it, so
//! that the answer is written where it is wanted.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::view::Glance;
use crate::answer::Answer;
use crate::error::CacheError;

/// Glances into memory when it is polled first, and reads on if that has not answered.
pub(super) enum Glancing<A, G, O, R> {
    /// The arguments, the glance, and how it reads on after that.
    Asked(A, G, O),
    /// In a box, so that the future of a hit, which nearly all of them are, is small. None if it
    /// has ended.
    ReadingOn(Option<Pin<Box<R>>>),
}

/// `otherwise` is told whether memory holds nothing of what was asked for.
#[inline(always)]
pub(super) fn glancing<A, V, G, O, R>(asked: A, glance: G, otherwise: O) -> Glancing<A, G, O, R>
where
    G: Fn(&A) -> Glance<V>,
    O: FnOnce(A, bool) -> R,
{
    Glancing::Asked(asked, glance, otherwise)
}

/// Only what is in a box is pinned.
impl<A, G, O, R> Unpin for Glancing<A, G, O, R> {}

impl<V, A, G, O, R> Future for Glancing<A, G, O, R>
where
    G: Fn(&A) -> Glance<V>,
    O: FnOnce(A, bool) -> R,
    R: Future<Output = Result<Answer<V>, CacheError>>,
{
    type Output = Result<Answer<V>, CacheError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let nothing_held = match this {
            Self::Asked(asked, glance, _) => match glance(asked) {
                Glance::Hit(hit) => {
                    // Key and loader are let go at once, whoever keeps the future.
                    *this = Self::ReadingOn(None);
                    return Poll::Ready(Ok(hit.into()));
                }
                Glance::Something => false,
                Glance::Nothing => true,
            },
            Self::ReadingOn(_) => false,
        };
        this.read_on(nothing_held, context)
    }
}

impl<V, A, G, O, R> Glancing<A, G, O, R>
where
    G: Fn(&A) -> Glance<V>,
    O: FnOnce(A, bool) -> R,
    R: Future<Output = Result<Answer<V>, CacheError>>,
{
    #[inline(never)]
    fn read_on(
        &mut self,
        nothing_held: bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<Answer<V>, CacheError>> {
        let reading_on = match mem::replace(self, Self::ReadingOn(None)) {
            Self::Asked(asked, _, otherwise) => Some(Box::pin(otherwise(asked, nothing_held))),
            Self::ReadingOn(reading_on) => reading_on,
        };
        let Some(mut reading_on) = reading_on else {
            return Poll::Ready(Err(CacheError::Abandoned));
        };
        let answer = reading_on.as_mut().poll(context);
        if answer.is_pending() {
            *self = Self::ReadingOn(Some(reading_on));
        }
        answer
    }
}
