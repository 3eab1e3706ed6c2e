//! The connection that is to take the place of the one in service: on its way, or ready.
//!
//! More than one can be there at once. A standby that a silence called and did not need is kept for
//! a while, and meanwhile another may be dialled because the one in service is old.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinError;

use super::{Dial, Supervisor};
use crate::clock;
use crate::error::connect::ConnectError;
use crate::link::connect::Established;
use crate::task::Owned;
use crate::wire::identity::Identity;

/// A connection that is ready to take over.
pub(super) struct Successor {
    pub(super) established: Established,
    /// The abandoned connections that its handshake was to kill.
    pub(super) abandoned: Vec<Identity>,
    pub(super) attempt: u32,
    pub(super) began: Instant,
}

/// A reason for another connection, and the attempts to get one.
pub(super) struct StandbyDial {
    pub(super) why: Arc<str>,
    /// The old one works: it is not cut, it finishes what it has. Not for one that is silent.
    pub(super) gently: bool,
    /// The limit of each phase.
    limit: Duration,
    pub(super) attempt: u32,
    pub(super) next_at: Instant,
    pub(super) running: Option<Dial>,
}

/// The result of an attempt in a task of its own, which may have panicked.
pub(super) type Dialled = Result<Result<Established, ConnectError>, JoinError>;

/// Between looks at an attempt that keeps its thread.
const HANGING_LOOK: Duration = Duration::from_millis(250);
/// A standby connection that was not needed is kept for so long.
const STANDBY_KEPT: Duration = Duration::from_secs(5);

/// The connections that may take over.
#[derive(Default)]
pub(super) struct Replacement {
    pub(super) dial: Option<StandbyDial>,
    /// An attempt that keeps its thread, and cannot be ended. While it does there is no other.
    hanging: Option<Owned<Result<Established, ConnectError>>>,
    /// Takes over as soon as the connection in service has ended, or stepped aside.
    pub(super) successor: Option<Successor>,
    /// Takes over if that turns out to be needed.
    pub(super) standby: Option<Successor>,
    /// The instant at which the standby is let go, if it was not needed.
    standby_until: Option<Instant>,
}

impl StandbyDial {
    fn new(why: &str, gently: bool, limit: Duration) -> Self {
        Self {
            why: why.into(),
            gently,
            limit,
            attempt: 0,
            next_at: clock::now(),
            running: None,
        }
    }

    fn poll_timeout(&self) -> Instant {
        self.running.as_ref().map_or(self.next_at, |dial| dial.due)
    }
}

impl Replacement {
    /// Begins to dial one that is to take over from a connection that works.
    pub(super) fn dial_gently(&mut self, why: &str, limit: Duration) {
        if self.dial.is_none() && self.successor.is_none() {
            self.dial = Some(StandbyDial::new(why, true, limit));
        }
    }

    /// Begins to dial one for a connection that is silent.
    pub(super) fn dial_standby(&mut self, why: &str, limit: Duration) {
        match &mut self.dial {
            // What was dialled because the connection is old serves as well.
            Some(dial) => dial.gently = false,
            None => self.dial = Some(StandbyDial::new(why, false, limit)),
        }
    }

    /// Ends the attempts. What is ready is kept for a while: a server that pauses does so again.
    pub(super) fn stand_down(&mut self) {
        self.dial = None;
        self.standby_until = clock::now().checked_add(STANDBY_KEPT);
    }

    /// Keeps the standby for as long as it may be needed.
    pub(super) fn keep_standby(&mut self) {
        self.standby_until = None;
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let dial = self.dial.as_ref().map(StandbyDial::poll_timeout);
        [dial, self.standby_until].into_iter().flatten().min()
    }

    /// Waits for the end of the attempt under way. May be dropped and asked again.
    pub(super) async fn dialled(&mut self) -> Dialled {
        match &mut self.dial {
            Some(StandbyDial {
                running: Some(dial),
                ..
            }) => (&mut dial.task).await,
            _ => std::future::pending().await,
        }
    }

    /// Begins an attempt that is due. Returns the error of one that has not ended when it should.
    pub(super) fn handle_timeout(
        &mut self,
        supervisor: &mut Supervisor,
        now: Instant,
    ) -> Option<ConnectError> {
        let dial = self.dial.as_mut()?;
        match &dial.running {
            None if dial.next_at > now => None,
            None if self
                .hanging
                .as_ref()
                .is_some_and(|task| !task.is_finished()) =>
            {
                dial.next_at = now + HANGING_LOOK;
                None
            }
            None => {
                dial.running = Some(supervisor.dial(dial.limit));
                None
            }
            Some(running) if running.due <= now => {
                let limit = now.saturating_duration_since(running.began);
                supervisor.shared.stuck(&supervisor.link, limit);
                let phase = "attempt";
                Some(ConnectError::TimedOut { phase, limit })
            }
            Some(_) => None,
        }
    }

    /// Lets the standby go if it was not needed.
    pub(super) fn expire_standby(&mut self, now: Instant) {
        if self.standby_until.is_some_and(|at| at <= now) {
            self.standby_until = None;
            self.standby = None;
        }
    }

    /// Takes the result of the attempt under way, of which the dial stays if it failed.
    pub(super) fn handle_dialled(
        &mut self,
        supervisor: &Supervisor,
        result: Dialled,
    ) -> Option<Result<(Successor, StandbyDial), ConnectError>> {
        let mut dial = self.dial.take()?;
        let Some(running) = dial.running.take() else {
            self.dial = Some(dial);
            return None;
        };
        dial.attempt += 1;
        {
            let mut view = supervisor.link.view.lock();
            view.attempts += 1;
            view.attempt = dial.attempt;
        }
        match supervisor.survived(result, running.began) {
            Ok(established) => {
                let successor = Successor {
                    established,
                    abandoned: running.abandoned,
                    attempt: dial.attempt,
                    began: running.began,
                };
                Some(Ok((successor, dial)))
            }
            Err(error) => {
                if !running.task.is_finished() {
                    self.hanging = Some(running.task);
                }
                self.dial = Some(dial);
                Some(Err(error))
            }
        }
    }
}
