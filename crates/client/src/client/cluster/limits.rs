//! The limits of a call on its way from node to node: its time, and its place among those that
//! wait.

use std::time::{Duration, Instant};

use steadfast_core::policy::Deadline;

use super::order::CallRoom;
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::settings::Settings;

/// The limits of a call.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) started: Instant,
    pub(super) limit: Duration,
    pub(super) deadline: Instant,
    /// The call's place among those that wait, if its parts share it.
    pub(super) room: Option<&'a CallRoom>,
}

impl<'a> Limits<'a> {
    pub(super) fn new(limit: Duration) -> Self {
        let started = clock::now();
        Self {
            started,
            limit,
            deadline: Deadline::after(started, limit).instant(),
            room: None,
        }
    }

    /// The same, of a call whose parts wait in one place.
    pub(super) fn in_one(self, room: &'a CallRoom) -> Self {
        let room = Some(room);
        Self { room, ..self }
    }

    /// The limits of what takes until then.
    pub(super) fn until(deadline: Instant) -> Self {
        Self::new(deadline.saturating_duration_since(clock::now()))
    }

    /// Returns until when the call may wait for a primary, if its deadline is not before.
    pub(super) fn waits_until(&self, settings: &Settings) -> Instant {
        self.started + settings.wait_for_primary
    }

    pub(super) fn timed_out(&self, certainty: Certainty) -> Error {
        let deadline = self.limit;
        Error::new(ErrorKind::Timeout { deadline }, certainty)
    }

    /// From when and for how long the next attempt is counted: what a node is given after another
    /// has taken its time says little of it.
    pub(super) fn of_attempt(&self, hops: u32) -> (Instant, Duration) {
        match hops {
            0 => (self.started, self.limit),
            _ => {
                let now = clock::now();
                (now, self.deadline.saturating_duration_since(now))
            }
        }
    }
}
