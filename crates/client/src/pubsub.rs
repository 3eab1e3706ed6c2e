//! Subscriptions that outlive their connection.
//!
//! What a subscriber misses while its connection is away cannot be had back, so it must at least be told: a loss is reported when it is noticed,
//! and its end together with how long it lasted. A heartbeat notices a connection that is silent because it is dead.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::Stream as FutureStream;
use redis::{PushKind, Value};
use steadfast_core::resp::{Decoder, Limits, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::connect::Connector;
use crate::error::{Certainty, Error, ErrorKind};
use crate::shared::Shared;
use crate::stream::Stream;
use crate::supervisor::Owned;

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum PubSubEvent {
    /// A message.
    Message {
        /// The channel it was published on.
        channel: Vec<u8>,
        /// The pattern through which it was heard, if it was.
        pattern: Option<Vec<u8>>,
        /// What was published.
        payload: Vec<u8>,
    },
    /// The connection is gone, or no longer proven alive: from now on messages may be missed.
    Lost {
        /// Why.
        cause: Arc<str>,
    },
    /// Every subscription stands (again). For the first time, `gap` is `None`.
    Resumed {
        /// For how long messages may have been missed, counted from the last byte that was heard.
        gap: Option<Duration>,
    },
    /// This subscriber was too slow: so many messages were dropped here.
    Dropped {
        /// How many.
        messages: u64,
    },
}

/// Subscriptions on a connection of their own, from [`Client::pubsub`](crate::Client::pubsub). Ends when it is dropped.
#[derive(Debug)]
pub struct PubSub {
    control: PubSubControl,
    events: mpsc::Receiver<PubSubEvent>,
    _task: Owned<()>,
}

/// Changes the subscriptions of a [`PubSub`] from elsewhere.
#[derive(Clone, Debug)]
pub struct PubSubControl {
    orders: mpsc::Sender<Order>,
    deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Channel,
    Pattern,
}

impl Kind {
    fn subscribe(self) -> &'static str {
        match self {
            Self::Channel => "SUBSCRIBE",
            Self::Pattern => "PSUBSCRIBE",
        }
    }

    fn unsubscribe(self) -> &'static str {
        match self {
            Self::Channel => "UNSUBSCRIBE",
            Self::Pattern => "PUNSUBSCRIBE",
        }
    }
}

#[derive(Debug)]
enum Order {
    Subscribe(Kind, Vec<u8>, oneshot::Sender<()>),
    Unsubscribe(Kind, Vec<u8>),
}

/// Messages kept for a subscriber that is slow; past it they are dropped and counted.
const QUEUE: usize = 4096;
/// Orders that may wait.
const ORDERS: usize = 1024;

impl PubSub {
    pub(crate) fn start(shared: Arc<Shared>, connector: Arc<Connector>) -> Self {
        let (orders, taken) = mpsc::channel(ORDERS);
        let (events, heard) = mpsc::channel(QUEUE);
        let deadline = shared.settings.deadline;
        let subscriber = Subscriber {
            rng: shared.rng(),
            shared,
            connector,
            orders: taken,
            events,
            wanted: BTreeMap::new(),
            dropped: 0,
            last_heard: None,
        };
        Self {
            control: PubSubControl { orders, deadline },
            events: heard,
            _task: Owned::new(tokio::spawn(subscriber.run())),
        }
    }

    /// A handle that changes the subscriptions.
    pub fn control(&self) -> PubSubControl {
        self.control.clone()
    }

    /// Subscribes to a channel. See [`PubSubControl::subscribe`].
    ///
    /// # Errors
    /// As there.
    pub async fn subscribe(&self, channel: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.control.subscribe(channel).await
    }

    /// Subscribes to a pattern. See [`PubSubControl::psubscribe`].
    ///
    /// # Errors
    /// As there.
    pub async fn psubscribe(&self, pattern: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.control.psubscribe(pattern).await
    }

    /// The next thing heard. Never `None` while the value lives; also a [`futures_util::Stream`].
    pub async fn next(&mut self) -> Option<PubSubEvent> {
        self.events.recv().await
    }
}

impl FutureStream for PubSub {
    type Item = PubSubEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PubSubEvent>> {
        self.events.poll_recv(cx)
    }
}

impl PubSubControl {
    /// Subscribes to a channel, and returns when the server has confirmed it.
    ///
    /// # Errors
    /// It was not confirmed within the client's deadline. The subscription is kept all the same, and is made as soon as the server can be
    /// reached: `Resumed` tells.
    pub async fn subscribe(&self, channel: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.order(Kind::Channel, channel.into()).await
    }

    /// As [`subscribe`](Self::subscribe), for all channels that match a glob-style pattern.
    ///
    /// # Errors
    /// As there.
    pub async fn psubscribe(&self, pattern: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.order(Kind::Pattern, pattern.into()).await
    }

    /// Ends the subscription to a channel.
    pub async fn unsubscribe(&self, channel: impl Into<Vec<u8>>) {
        let order = Order::Unsubscribe(Kind::Channel, channel.into());
        let _ = self.orders.send(order).await;
    }

    /// Ends the subscription to a pattern.
    pub async fn punsubscribe(&self, pattern: impl Into<Vec<u8>>) {
        let order = Order::Unsubscribe(Kind::Pattern, pattern.into());
        let _ = self.orders.send(order).await;
    }

    async fn order(&self, kind: Kind, name: Vec<u8>) -> Result<(), Error> {
        let (done, confirmed) = oneshot::channel();
        let asked = async {
            self.orders
                .send(Order::Subscribe(kind, name, done))
                .await
                .map_err(|_| Error::not_sent(ErrorKind::Closed))?;
            confirmed
                .await
                .map_err(|_| Error::not_sent(ErrorKind::Closed))
        };
        tokio::time::timeout(self.deadline, asked)
            .await
            .unwrap_or_else(|_| {
                let kind = ErrorKind::Timeout {
                    deadline: self.deadline,
                };
                Err(Error::new(kind, Certainty::Unknown))
            })
    }
}

type Wanted = BTreeMap<(Kind, Vec<u8>), Vec<oneshot::Sender<()>>>;

struct Subscriber {
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    orders: mpsc::Receiver<Order>,
    events: mpsc::Sender<PubSubEvent>,
    /// Every subscription that should stand, with those who wait for its confirmation.
    wanted: Wanted,
    dropped: u64,
    /// When the last byte was heard of a connection on which everything stood.
    last_heard: Option<Instant>,
    rng: fastrand::Rng,
}

/// A connection that serves.
struct Wire {
    stream: Stream,
    decoder: Decoder,
    input: BytesMut,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    unconfirmed: VecDeque<(Kind, Vec<u8>)>,
    resumed: bool,
}

impl Subscriber {
    async fn run(mut self) {
        let mut attempt = 0u32;
        loop {
            let limit = self.shared.settings.connect_timeout;
            match self.connect(limit).await {
                Some(wire) => {
                    attempt = 0;
                    let cause = self.serve(wire).await;
                    tracing::debug!(%cause, "subscriber's connection lost");
                    self.tell(PubSubEvent::Lost { cause });
                }
                None => {
                    attempt = attempt.saturating_add(1);
                    let pause = self.shared.settings.reconnect.pause(attempt, &mut self.rng);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn connect(&mut self, limit: Duration) -> Option<Wire> {
        let established = match self.connector.connect(limit, &[]).await {
            Ok(established) => established,
            Err(error) => {
                tracing::debug!(%error, "subscriber cannot connect");
                return None;
            }
        };
        let mut wire = Wire {
            stream: established.stream,
            decoder: Decoder::new(Limits::default()),
            input: BytesMut::with_capacity(16 << 10),
            heard_at: clock::now(),
            pinged_at: None,
            unconfirmed: VecDeque::new(),
            resumed: false,
        };
        let wanted: Vec<_> = self.wanted.keys().cloned().collect();
        for (kind, name) in wanted {
            wire.subscribe(kind, name).await.ok()?;
        }
        Some(wire)
    }

    /// Serves until the connection is lost; says why it was.
    async fn serve(&mut self, mut wire: Wire) -> Arc<str> {
        self.resume_if_confirmed(&mut wire);
        loop {
            let tick = wire.next_tick(&self.shared);
            let step = tokio::select! {
                read = wire.stream.read_buf(&mut wire.input) => match read {
                    Ok(0) => Err("the server closed the connection".into()),
                    Ok(_) => self.heard(&mut wire),
                    Err(error) => Err(error.to_string().into()),
                },
                Some(order) = self.orders.recv() => self.obey(&mut wire, order).await,
                () = clock::sleep_until(tick) => wire.tick(&self.shared).await,
            };
            if let Err(cause) = step {
                return cause;
            }
            self.resume_if_confirmed(&mut wire);
        }
    }

    fn resume_if_confirmed(&mut self, wire: &mut Wire) {
        if !wire.resumed && wire.unconfirmed.is_empty() {
            wire.resumed = true;
            let gap = self
                .last_heard
                .map(|heard| clock::now().saturating_duration_since(heard));
            self.tell(PubSubEvent::Resumed { gap });
        }
        if wire.resumed {
            self.last_heard = Some(wire.heard_at);
        }
    }

    async fn obey(&mut self, wire: &mut Wire, order: Order) -> Result<(), Arc<str>> {
        match order {
            Order::Subscribe(kind, name, done) => {
                let waiting = self.wanted.entry((kind, name.clone())).or_default();
                waiting.push(done);
                wire.subscribe(kind, name).await
            }
            Order::Unsubscribe(kind, name) => {
                self.wanted.remove(&(kind, name.clone()));
                wire.write(&[kind.unsubscribe().as_bytes(), &name]).await
            }
        }
    }

    fn heard(&mut self, wire: &mut Wire) -> Result<(), Arc<str>> {
        wire.heard_at = clock::now();
        wire.pinged_at = None;
        while !wire.input.is_empty() {
            let decoded = wire
                .decoder
                .decode(&wire.input)
                .map_err(|error| Arc::from(error.to_string()))?;
            bytes::Buf::advance(&mut wire.input, decoded.consumed);
            let Some(value) = decoded.value else { break };
            self.understand(wire, value)?;
        }
        Ok(())
    }

    fn understand(&mut self, wire: &mut Wire, value: Value) -> Result<(), Arc<str>> {
        if let Value::ServerError(error) = &value {
            return Err(format!("{} {}", error.code(), error.details().unwrap_or("")).into());
        }
        let Some((kind, parts)) = parts(value) else {
            return Ok(());
        };
        let mut parts = parts.into_iter();
        match kind.as_slice() {
            b"message" => {
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
            b"subscribe" => self.confirmed(wire, Kind::Channel, parts.next()),
            b"psubscribe" => self.confirmed(wire, Kind::Pattern, parts.next()),
            _ => {}
        }
        Ok(())
    }

    fn confirmed(&mut self, wire: &mut Wire, kind: Kind, name: Option<Vec<u8>>) {
        let Some(name) = name else { return };
        let key = (kind, name);
        if let Some(place) = wire.unconfirmed.iter().position(|waiting| *waiting == key) {
            wire.unconfirmed.remove(place);
        }
        if let Some(waiting) = self.wanted.get_mut(&key) {
            for done in waiting.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn message(&mut self, channel: Vec<u8>, pattern: Option<Vec<u8>>, payload: Vec<u8>) {
        self.tell(PubSubEvent::Message {
            channel,
            pattern,
            payload,
        });
    }

    /// Never waits: a subscriber that is slow must not make the connection look dead.
    fn tell(&mut self, event: PubSubEvent) {
        if self.dropped > 0 {
            let messages = self.dropped;
            if self
                .events
                .try_send(PubSubEvent::Dropped { messages })
                .is_ok()
            {
                self.dropped = 0;
            }
        }
        if self.dropped > 0 || self.events.try_send(event).is_err() {
            self.dropped += 1;
        }
    }
}

impl Wire {
    async fn subscribe(&mut self, kind: Kind, name: Vec<u8>) -> Result<(), Arc<str>> {
        let result = self.write(&[kind.subscribe().as_bytes(), &name]).await;
        self.unconfirmed.push_back((kind, name));
        result
    }

    async fn write(&mut self, args: &[&[u8]]) -> Result<(), Arc<str>> {
        let mut out = Vec::new();
        encode::command(args.iter().copied(), &mut out);
        let written = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        // A peer that takes nothing would hold everything up here.
        match tokio::time::timeout(Duration::from_secs(1), written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string().into()),
            Err(_) => Err("the server takes no more".into()),
        }
    }

    fn next_tick(&self, shared: &Shared) -> Instant {
        match self.pinged_at {
            Some(pinged) => pinged + shared.settings.reply_overdue,
            None => self.heard_at + shared.settings.heartbeat,
        }
    }

    /// A heartbeat is due, or the answer to the last one is overdue.
    async fn tick(&mut self, shared: &Shared) -> Result<(), Arc<str>> {
        let now = clock::now();
        if now < self.next_tick(shared) {
            return Ok(());
        }
        if self.pinged_at.is_some() {
            return Err(format!(
                "no answer to a heartbeat within {:?}",
                shared.settings.reply_overdue
            )
            .into());
        }
        self.pinged_at = Some(now);
        self.write(&[b"PING"]).await
    }
}

/// What a message is made of: an array in RESP2, a push in RESP3.
fn parts(value: Value) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    match value {
        Value::Array(items) => {
            let mut items = items.into_iter();
            let kind = bytes_of(items.next()?);
            Some((kind, items.map(bytes_of).collect()))
        }
        Value::Push { kind, data } => {
            let kind: &[u8] = match kind {
                PushKind::Message => b"message",
                PushKind::PMessage => b"pmessage",
                PushKind::Subscribe => b"subscribe",
                PushKind::PSubscribe => b"psubscribe",
                _ => return None,
            };
            Some((kind.to_vec(), data.into_iter().map(bytes_of).collect()))
        }
        _ => None,
    }
}

fn bytes_of(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        _ => Vec::new(),
    }
}
