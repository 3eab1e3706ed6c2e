//! The task behind a [`PubSub`](super::PubSub): connects, subscribes, listens, for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{ServerError, Value};
use steadfast_core::certainty::{Refusal, refusal};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::attendance::Turns;
use super::feed::Feed;
use super::wire::{Asked, SubscriberWire, parts};
use super::{Done, PubSubEvent, SubscriptionChange, SubscriptionKind};
use crate::clock;
use crate::error::connect::ConnectError;
use crate::link::connect::{ConnectRequest, Connector};
use crate::link::shared::Shared;
use crate::target::Protocol;
use crate::wire::words::OUT_OF_STEP;

/// Why a node of a cluster is left.
const LEFT: &str =
    "the node is no member of the cluster, or away from it, or no owner of the slot, any more";

/// A connection that lasted so long ended for a reason of its own.
const LASTING: Duration = Duration::from_secs(5);

pub(super) struct Subscriber {
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    changes: mpsc::Receiver<SubscriptionChange>,
    feed: Feed,
    /// Every subscription that should stand, with those who wait for its confirmation.
    wanted: BTreeMap<(SubscriptionKind, Vec<u8>), Vec<Done>>,
    /// The time of the last byte of a connection on which every subscription stood.
    last_heard: Option<Instant>,
    /// Whether the subscriptions stand, as far as the listener was told.
    stands: bool,
    /// The times that it failed in a row, after which it pauses.
    failed: u32,
    turns: Arc<Turns>,
    cannot_connect: CannotConnect,
    rng: fastrand::Rng,
}

/// The cause for which the last attempt to connect failed, if it did: for those who wait in vain.
pub(super) type CannotConnect = Arc<Mutex<Option<Arc<str>>>>;

impl Subscriber {
    pub(super) fn new(
        shared: Arc<Shared>,
        connector: Arc<Connector>,
        changes: mpsc::Receiver<SubscriptionChange>,
        feed: Feed,
    ) -> Self {
        Self {
            rng: shared.rng(),
            shared,
            connector,
            changes,
            feed,
            wanted: BTreeMap::new(),
            last_heard: None,
            stands: false,
            failed: 0,
            turns: Arc::default(),
            cannot_connect: CannotConnect::default(),
        }
    }

    pub(super) fn cannot_connect(&self) -> CannotConnect {
        Arc::clone(&self.cannot_connect)
    }

    pub(super) fn turns(&self) -> Arc<Turns> {
        Arc::clone(&self.turns)
    }

    /// Tells the listener that its task has ended, though the client is not closed.
    pub(super) fn interrupted(&mut self, cause: &str, panicked: bool) {
        self.lost(cause.into());
        self.failed += u32::from(panicked);
    }

    fn lost(&mut self, cause: Arc<str>) {
        let was_told = self.turns.were_missed();
        if std::mem::take(&mut self.stands) && !was_told {
            self.feed.tell(PubSubEvent::Lost { cause });
        }
    }

    /// Ends when the client is closed.
    pub(super) async fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            biased;
            () = shared.closing() => {}
            () = self.listen_for_ever() => {}
        }
    }

    async fn listen_for_ever(&mut self) {
        if self.failed > 0 {
            self.pause().await;
        }
        loop {
            match self.connect().await {
                Ok(mut wire) => {
                    *self.cannot_connect.lock() = None;
                    let began = clock::now();
                    let cause = self.serve(&mut wire).await;
                    tracing::debug!(%cause, "subscriber's connection lost");
                    if wire.resumed {
                        self.lost(cause);
                        // The first attempt after a loss is immediate. Not so those after
                        // connections that did not last: what ended one may end the next.
                        let lasted = clock::now().saturating_duration_since(began) >= LASTING;
                        if lasted || self.failed == 0 {
                            self.failed = u32::from(!lasted);
                            continue;
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "subscriber cannot connect");
                    *self.cannot_connect.lock() = Some(error.to_string().into());
                }
            }
            self.failed = self.failed.saturating_add(1);
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        let reconnect = &self.shared.settings.reconnect;
        let pause = reconnect.pause(self.failed, &mut self.rng);
        self.meanwhile(tokio::time::sleep(pause)).await;
    }

    async fn connect(&mut self) -> Result<SubscriberWire, ConnectError> {
        let connector = Arc::clone(&self.connector);
        // Before it is known where to: whatever changes meanwhile counts.
        let max_age = self.shared.settings.max_age;
        let tie = self.shared.following.tie(max_age, &mut self.rng);
        let ask = ConnectRequest {
            limit: self.shared.settings.connect_timeout,
            fences: Vec::new(),
            protocol: Protocol::Resp3,
            first: self.shared.place(),
        };
        let established = self
            .meanwhile(async move { connector.dialled(ask).await })
            .await?;
        let turns = Arc::clone(&self.turns);
        let mut wire = SubscriberWire::new(established, tie, &self.shared, turns);
        for (kind, name) in self.wanted.keys().cloned() {
            let written = wire.subscribe(kind, name).await;
            written.map_err(|cause| ConnectError::Ended(cause.to_string()))?;
        }
        Ok(wire)
    }

    /// Takes changes while there is no connection to obey them on: the next one will.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                Some(order) = self.changes.recv() => self.note(order),
                () = self.feed.room() => self.feed.settle(),
            }
        }
    }

    fn note(&mut self, order: SubscriptionChange) {
        match order {
            SubscriptionChange::Subscribe(kind, name, done) => {
                let waiting = self.wanted.entry((kind, name)).or_default();
                // Those who have gone away need no answer.
                waiting.retain(|done| !done.is_closed());
                waiting.push(done);
            }
            SubscriptionChange::Unsubscribe(kind, name) => {
                self.wanted.remove(&(kind, name));
            }
        }
    }

    /// Serves until the connection is lost; says why it was.
    async fn serve(&mut self, wire: &mut SubscriberWire) -> Arc<str> {
        let connector = Arc::clone(&self.connector);
        let mut left = std::pin::pin!(connector.left(wire.place));
        loop {
            self.turns.take();
            if self.turns.were_missed() {
                // Messages wait in the socket, or the connection is gone: the server is to say.
                self.stands = false;
                if let Err(cause) = wire.ask_for_life().await {
                    return cause;
                }
            }
            self.resume_if_confirmed(wire);
            let tick = wire.next_tick(&self.shared);
            let step = tokio::select! {
                // What has come is looked at before the clock: this process may have stood still.
                biased;
                read = wire.stream.read_buf(&mut wire.input) => match read {
                    Ok(0) => Err("the server closed the connection".into()),
                    Ok(_) => self.heard(wire),
                    Err(error) => Err(error.to_string().into()),
                },
                Some(order) = self.changes.recv(), if !wire.authenticates() => {
                    self.obey(wire, order).await
                }
                parting = wire.tie.parted() => Err(parting.why().into()),
                () = &mut left => Err(LEFT.into()),
                fresh = wire.rotation.fresh(), if wire.is_quiet() => {
                    wire.give(&fresh, &mut self.rng).await
                }
                () = self.feed.room() => {
                    self.feed.settle();
                    Ok(())
                }
                () = clock::sleep_fairly_until(tick) => wire.tick(&self.shared).await,
            };
            let owed = wire.check_owed(tick, &self.shared);
            if let Err(cause) = step.and(owed) {
                return cause;
            }
        }
    }

    fn resume_if_confirmed(&mut self, wire: &mut SubscriberWire) {
        if !self.stands && wire.all_confirmed() && !wire.is_asked_for_life() {
            wire.resumed = true;
            self.stands = true;
            let gap = self
                .last_heard
                .map(|heard| clock::now().saturating_duration_since(heard));
            self.feed.tell(PubSubEvent::Resumed { gap });
        }
        if self.stands {
            self.last_heard = Some(wire.heard_at);
        }
    }

    async fn obey(
        &mut self,
        wire: &mut SubscriberWire,
        order: SubscriptionChange,
    ) -> Result<(), Arc<str>> {
        let (begins, kind, name) = match &order {
            SubscriptionChange::Subscribe(kind, name, _) => (true, *kind, name.clone()),
            SubscriptionChange::Unsubscribe(kind, name) => (false, *kind, name.clone()),
        };
        self.note(order);
        if begins {
            wire.subscribe(kind, name).await
        } else {
            wire.unsubscribe(kind, name).await
        }
    }

    fn heard(&mut self, wire: &mut SubscriberWire) -> Result<(), Arc<str>> {
        wire.handle_input();
        while let Some(value) = wire.poll_value()? {
            self.understand(wire, value)?;
        }
        Ok(())
    }

    fn understand(&mut self, wire: &mut SubscriberWire, value: Value) -> Result<(), Arc<str>> {
        let value = match value {
            Value::ServerError(error) => return self.refused(wire, error),
            value @ (Value::Array(_) | Value::Push { .. }) => value,
            reply => return wire.replied(&reply),
        };
        let Some((kind, parts)) = parts(value) else {
            return Ok(());
        };
        let mut parts = parts.into_iter();
        match kind.as_slice() {
            b"message" | b"smessage" => {
                if let (Some(channel), Some(payload)) = (parts.next(), parts.next()) {
                    self.message(channel, None, payload);
                }
            }
            b"pmessage" => {
                if let (Some(pattern), Some(channel), Some(payload)) =
                    (parts.next(), parts.next(), parts.next())
                {
                    self.message(channel, Some(pattern), payload);
                }
            }
            b"subscribe" => self.confirmed(wire, SubscriptionKind::Channel, parts.next()),
            b"psubscribe" => self.confirmed(wire, SubscriptionKind::Pattern, parts.next()),
            b"ssubscribe" => self.confirmed(wire, SubscriptionKind::Sharded, parts.next()),
            b"unsubscribe" => self.ended(wire, SubscriptionKind::Channel, parts.next())?,
            b"punsubscribe" => self.ended(wire, SubscriptionKind::Pattern, parts.next())?,
            b"sunsubscribe" => self.ended(wire, SubscriptionKind::Sharded, parts.next())?,
            b"pong" => {
                wire.done(&Asked::Ping);
            }
            _ => return Err(OUT_OF_STEP.into()),
        }
        Ok(())
    }

    fn confirmed(
        &mut self,
        wire: &mut SubscriberWire,
        kind: SubscriptionKind,
        name: Option<Vec<u8>>,
    ) {
        let Some(name) = name else { return };
        wire.done(&Asked::Subscribe(kind, name.clone()));
        if let Some(waiting) = self.wanted.get_mut(&(kind, name)) {
            for done in waiting.drain(..) {
                let _ = done.send(Ok(()));
            }
        }
    }

    /// Notes that a subscription has ended. One that was not asked to has been taken away (a slot
    /// that moved, say), and is made anew with the connection.
    fn ended(
        &self,
        wire: &mut SubscriberWire,
        kind: SubscriptionKind,
        name: Option<Vec<u8>>,
    ) -> Result<(), Arc<str>> {
        let Some(name) = name else {
            return Ok(());
        };
        let asked = wire.done(&Asked::Unsubscribe(kind, name.clone()));
        match !asked && self.wanted.contains_key(&(kind, name)) {
            true => Err("the server ended a subscription by itself".into()),
            false => Ok(()),
        }
    }

    /// The server answered the oldest question with an error.
    fn refused(&mut self, wire: &mut SubscriberWire, error: ServerError) -> Result<(), Arc<str>> {
        let details = error.details().unwrap_or_default();
        let lasting = refusal(error.code(), details) == Refusal::Lasting;
        match wire.answered() {
            // It would be refused on the next connection as well, and take the others with it.
            Some(Asked::Subscribe(kind, name)) if lasting => {
                for done in self.wanted.remove(&(kind, name)).into_iter().flatten() {
                    let _ = done.send(Err(error.clone()));
                }
                Ok(())
            }
            // It goes on under the old ones, and is told again when some connection was let in with
            // the new.
            Some(Asked::Auth) => {
                tracing::warn!(
                    code = error.code(),
                    "a subscriber was refused new credentials"
                );
                wire.rotation.answered(false);
                Ok(())
            }
            // Whoever answers is alive; an ACL may not allow them.
            Some(Asked::Ping | Asked::Proof(_)) if lasting => Ok(()),
            Some(Asked::State) if lasting => {
                wire.state_untold();
                Ok(())
            }
            _ => Err(format!("{} {details}", error.code()).into()),
        }
    }

    fn message(&mut self, channel: Vec<u8>, pattern: Option<Vec<u8>>, payload: Vec<u8>) {
        self.feed.tell(PubSubEvent::Message {
            channel,
            pattern,
            payload,
        });
    }
}
