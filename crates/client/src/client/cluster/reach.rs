//! Who serves a slot, and how long a call waits for somebody who does.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use steadfast_core::redirect::Routing;
use steadfast_core::slot::Slot;
use steadfast_core::topology::Trigger;

use super::limits::Limits;
use super::node::Node;
use super::order::CallRoom;
use super::{Aim, Cluster};
use crate::clock;
use crate::error::{Bound, Error, ErrorKind};

impl Cluster {
    /// Waits for the next answer of a node; false if the time is over before, or the client closes.
    pub(super) async fn more_is_known(&self, limits: &Limits<'_>) -> bool {
        let Some(_room) = self.order.room(limits.room) else {
            return false;
        };
        let mut version = self.version.subscribe();
        tokio::select! {
            biased;
            () = self.shared.closing() => false,
            changed = clock::timeout_at(limits.deadline, version.changed()) => changed.is_some(),
        }
    }

    /// Waits for that pause, and then until the owner of a slot is there, or another may be; false
    /// if the time is over before, or the client closes.
    pub(super) async fn somebody_serves(
        &self,
        slot: Slot,
        pause: Duration,
        (until, room): (Instant, Option<&CallRoom>),
    ) -> bool {
        let Some(_room) = self.order.room(room) else {
            return false;
        };
        if clock::now() + pause >= until {
            return false;
        }
        clock::sleep(pause).await;
        let mut version = self.version.subscribe();
        loop {
            let owner = self.routes.owner(slot).map(|number| self.node(number));
            let owner = owner.and_then(Result::ok).flatten();
            let mut changed = pin!(async {
                match &owner {
                    Some(node) => node.client.changed().await,
                    None => std::future::pending().await,
                }
            });
            // From now on no change is missed.
            let missed =
                poll_fn(|context| Poll::Ready(changed.as_mut().poll(context).is_ready())).await;
            if missed || owner.as_ref().is_some_and(|node| node.may_serve()) {
                return true;
            }
            let over = tokio::select! {
                biased;
                () = self.shared.closing() => true,
                () = changed => false,
                known = clock::timeout_at(until, version.changed()) => known.is_none(),
            };
            if over {
                return false;
            }
        }
    }

    /// The node that an attempt goes to. While nobody knows it, the call waits as for a connection:
    /// for as long as a short interruption may take, from its beginning.
    ///
    /// # Errors
    /// Nobody serves the slot; or the client's runtime, in which that would be found out, has been
    /// silent for long. Whoever may not wait is refused at once all the same.
    pub(super) async fn reach(
        &self,
        slot: Slot,
        aim: &Aim,
        limits: &Limits<'_>,
    ) -> Result<Arc<Node>, Error> {
        let find = || self.found(slot, aim);
        if let Some(node) = find()? {
            return Ok(node);
        }
        self.trigger(Trigger::Doubt);
        let probe = self.shared.probe_liveness()?;
        let until = self.waits_until(slot, aim, limits);
        let mut version = self.version.subscribe();
        loop {
            if let Some(node) = find()? {
                return Ok(node);
            }
            if clock::now() >= until {
                // It may be in a view that is just being taken in.
                drop(self.taking_in.lock());
                if let Some(node) = find()? {
                    return Ok(node);
                }
                return Err(probe.or_unattended(self.nobody_serves(slot)).await);
            }
            let _room = self.order.room(limits.room).ok_or_else(no_room)?;
            tokio::select! {
                biased;
                () = self.shared.closing() => return Err(self.nobody_serves(slot)),
                _ = clock::timeout_at(until, version.changed()) => {}
            }
        }
    }

    /// The node that an attempt goes to, if it is known now.
    pub(super) fn found(&self, slot: Slot, aim: &Aim) -> Result<Option<Arc<Node>>, Error> {
        let number = match aim {
            Aim::Owner => self.routes.owner(slot),
            Aim::At { endpoint, .. } => self.find_at(endpoint),
        };
        number.map_or(Ok(None), |number| self.node(number))
    }

    /// Until when a call waits for a node that nobody knows.
    pub(super) fn waits_until(&self, slot: Slot, aim: &Aim, limits: &Limits<'_>) -> Instant {
        let settings = self.settings();
        let since = match aim {
            Aim::Owner => self.unserved_since(slot),
            // Nobody has heard of it before.
            Aim::At { .. } => clock::now(),
        };
        let until = since + settings.reconnect_grace;
        let until = until.max(limits.waits_until(settings));
        until.min(limits.deadline)
    }

    /// Since when no node is known that serves a slot.
    fn unserved_since(&self, slot: Slot) -> Instant {
        let known = self.known.lock();
        let owned = known.topology.owned_since(slot);
        owned.or(known.first_heard).unwrap_or(self.started)
    }

    pub(super) fn nobody_serves(&self, slot: Slot) -> Error {
        let now = clock::now();
        if self.shared.is_closing() {
            return Error::not_sent(ErrorKind::Closed);
        }
        let (cause, down_for) = {
            let known = self.known.lock();
            let cause = match (&known.error, known.heard) {
                (Some(error), _) => format!("no node of the cluster answers: {error}"),
                (None, None) => "no node of the cluster has answered yet".into(),
                (None, Some(_)) => format!("no node is known that serves slot {slot}"),
            };
            let since = known.heard.unwrap_or(self.started);
            (cause, now.saturating_duration_since(since))
        };
        let due = self.gate.lock().poll_timeout();
        let retry_after = due.map_or(Duration::from_millis(100), |at| {
            at.saturating_duration_since(now)
        });
        Error::not_sent(ErrorKind::Down {
            down_for,
            retry_after,
            cause: cause.into(),
        })
    }
}

pub(super) fn no_room() -> Error {
    Error::not_sent(ErrorKind::Overloaded {
        bound: Bound::InFlight,
        retry_after: Duration::from_millis(10),
    })
}

/// Whether the server that has answered so is no primary now, or not yet: it runs nothing, and
/// another may come, or the same one.
pub(super) fn is_for_want_of_a_primary(routing: &Routing) -> bool {
    matches!(
        routing,
        Routing::ClusterDown | Routing::MasterDown | Routing::Loading | Routing::ReadOnly
    )
}

/// Returns the pause before a command is sent again that was answered TRYAGAIN so many times
/// before. A slot takes its time to move, so nothing but the deadline ends that.
pub(super) fn pause_before_trying_again(times: u32) -> Duration {
    (TRY_AGAIN.0 * 2u32.pow(times.min(6))).min(TRY_AGAIN.1)
}

/// The first of these pauses, and the longest.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
