//! Subscriptions that outlive their connection.
//!
//! What a subscriber misses while its connection is away cannot be had back, so it must at least be
//! told: a loss is reported when it is noticed, and its end together with how long it lasted. A
//! heartbeat notices a connection that is silent because it is dead.

mod attendance;
mod feed;
mod lodging;
mod subscriber;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream as FutureStream;
use redis::ServerError;
use steadfast_core::slot::Slot;
use tokio::sync::{mpsc, oneshot};

use self::feed::FeedReader;
use self::lodging::Lodging;
use self::subscriber::{CannotConnect, Subscriber};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::link::connect::Connector;
use crate::link::shared::Shared;
use crate::target::Address;
use crate::task::cooperatively;
use crate::wire::queue::UNATTENDED;

/// An event of a subscriber.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum PubSubEvent {
    /// A message.
    Message {
        /// The channel it was published on.
        channel: Vec<u8>,
        /// The pattern through which it was heard, if it was.
        pattern: Option<Vec<u8>>,
        /// The payload that was published.
        payload: Vec<u8>,
    },
    /// The connection is gone, or no longer proven alive: from now on messages may be missed.
    Lost {
        /// The cause.
        cause: Arc<str>,
    },
    /// Every subscription stands (again). For the first time, `gap` is `None`.
    Resumed {
        /// The time for which messages may have been missed, counted from the last byte that was
        /// heard.
        gap: Option<Duration>,
    },
    /// Messages were dropped here, so many, because this subscriber was too slow.
    Dropped {
        /// The number of messages.
        messages: u64,
    },
}

/// Subscriptions on a connection of their own, from [`Client::pubsub`](crate::Client::pubsub). Ends
/// when it is dropped, and when the client is closed. It outlives the client that is only dropped:
/// of a cluster, or a primary that sentinels watch, it keeps alive what finds the servers, with
/// their connections.
///
/// For one that is slow, 4 096 messages are kept, of no more bytes than
/// [`buffered_bytes`](crate::ClientBuilder::buffered_bytes); those past that are dropped and
/// counted. A message past the [`reply_limits`](crate::ClientBuilder::reply_limits) ends the
/// connection, and the subscriptions are made anew on another. A server that talks, but leaves a
/// question unanswered or a message unfinished for 20 times the
/// [`response_idle_timeout`](crate::ClientBuilder::response_idle_timeout), is left. The connection
/// speaks RESP3 where the server does, whatever the URL says, because only there it can take new
/// credentials without being made anew.
///
/// ```no_run
/// use steadfast::PubSubEvent;
///
/// # async fn example(client: steadfast::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut news = client.pubsub();
/// news.subscribe("news").await?;
/// while let Some(event) = news.next().await {
///     match event {
///         PubSubEvent::Message { payload, .. } => println!("{} bytes", payload.len()),
///         PubSubEvent::Resumed { gap: Some(gap) } => println!("{gap:?} may be missing"),
///         _ => {}
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PubSub {
    control: PubSubControl,
    heard: FeedReader,
    lodging: Arc<Lodging>,
    /// Whether every subscription stands, as far as was told.
    stands: bool,
    /// Lives as long as this: what finds the server, where that is not always the same.
    _discovery: Option<Arc<dyn std::fmt::Debug + Send + Sync>>,
}

/// Changes the subscriptions of a [`PubSub`] from elsewhere.
///
/// ```no_run
/// use steadfast::PubSubControl;
///
/// # async fn example(control: PubSubControl) -> Result<(), steadfast::Error> {
/// control.subscribe("news").await?;
/// control.unsubscribe("news").await?;
/// control.ssubscribe("{7}:orders").await?; // what SPUBLISH publishes, in the slot of `7`
/// control.sunsubscribe("{7}:orders").await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct PubSubControl {
    changes: mpsc::Sender<SubscriptionChange>,
    deadline: Duration,
    hears: Hears,
    cannot_connect: CannotConnect,
    lodging: Arc<Lodging>,
}

/// The channels that a connection can be subscribed to.
#[derive(Clone, Copy, Debug)]
enum Hears {
    All,
    /// No channel of a shard.
    Unsharded,
    /// The channels of this slot, and of no other shard.
    OfSlot(Slot),
}

impl Hears {
    /// Refuses a sharded channel of a node that the connection does not lead to.
    fn admit(self, channel: &[u8]) -> Result<(), Error> {
        let slot = Slot::of_key(channel);
        Err(Error::not_sent(match self {
            Self::All => return Ok(()),
            Self::OfSlot(own) if own == slot => return Ok(()),
            Self::OfSlot(own) => ErrorKind::CrossSlot {
                command: "SSUBSCRIBE",
                slots: (own.number(), slot.number()),
            },
            Self::Unsharded => ErrorKind::NoPlace {
                command: "SSUBSCRIBE",
                instead: "use client.pubsub_for(channel), which is connected to the owner of its slot",
            },
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SubscriptionKind {
    Channel,
    Pattern,
    /// A channel of a shard.
    Sharded,
}

impl SubscriptionKind {
    fn subscribe(self) -> &'static str {
        match self {
            Self::Channel => "SUBSCRIBE",
            Self::Pattern => "PSUBSCRIBE",
            Self::Sharded => "SSUBSCRIBE",
        }
    }

    fn unsubscribe(self) -> &'static str {
        match self {
            Self::Channel => "UNSUBSCRIBE",
            Self::Pattern => "PUNSUBSCRIBE",
            Self::Sharded => "SUNSUBSCRIBE",
        }
    }
}

/// Tells whoever subscribed that it stands, or that the server refused it.
type Done = oneshot::Sender<Result<(), ServerError>>;

#[derive(Debug)]
enum SubscriptionChange {
    Subscribe(SubscriptionKind, Vec<u8>, Done),
    Unsubscribe(SubscriptionKind, Vec<u8>),
}

/// Orders that may wait.
const CHANGES: usize = 1024;

impl PubSub {
    /// `slot`: in a cluster, to whose owner the connector connects, if not to any node.
    /// `discovery`: what finds that, to be kept alive.
    pub(crate) fn start(
        shared: Arc<Shared>,
        connector: Arc<Connector>,
        slot: Option<Slot>,
        discovery: Option<Arc<dyn std::fmt::Debug + Send + Sync>>,
    ) -> Self {
        let (changes, taken) = mpsc::channel(CHANGES);
        let (feed, heard) = feed::pair(shared.settings.buffered_bytes);
        let deadline = shared.settings.deadline;
        let hears = match (&shared.settings.target.address, slot) {
            (Address::Cluster(_), None) => Hears::Unsharded,
            (_, Some(slot)) => Hears::OfSlot(slot),
            _ => Hears::All,
        };
        let subscriber = Subscriber::new(Arc::clone(&shared), connector, taken, feed);
        let cannot_connect = subscriber.cannot_connect();
        let lodging = Lodging::of(shared, subscriber);
        Self {
            control: PubSubControl {
                changes,
                deadline,
                hears,
                cannot_connect,
                lodging: Arc::clone(&lodging),
            },
            heard,
            lodging,
            stands: false,
            _discovery: discovery,
        }
    }

    /// A handle that changes the subscriptions.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> Result<(), steadfast::Error> {
    /// let mut heard = client.pubsub();
    /// let control = heard.control();
    /// tokio::spawn(async move {
    ///     while let Some(event) = heard.next().await {
    ///         println!("{event:?}");
    ///     }
    /// });
    /// control.psubscribe("news.*").await?; // while another task listens
    /// control.punsubscribe("news.*").await?;
    /// # Ok(()) }
    /// ```
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

    /// Subscribes to a sharded channel. See [`PubSubControl::ssubscribe`].
    ///
    /// # Errors
    /// As there.
    pub async fn ssubscribe(&self, channel: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.control.ssubscribe(channel).await
    }

    /// Waits for the next event; `None` once the client is closed. A [`PubSub`] is also a
    /// [`futures_util::Stream`].
    ///
    /// If the client's runtime ends, that is told as [`PubSubEvent::Lost`], and the subscriptions
    /// go on in the runtime of whoever waits here; outside of any there is nothing more to hear,
    /// and the answer is `None`. If nobody drives that runtime, or something blocks it, for about a
    /// second longer than the longest of the heartbeat, `response_idle_timeout` and a second, that
    /// is `Lost` too, for whoever still runs; once it is driven again, what came meanwhile is heard
    /// and `Resumed` follows.
    pub async fn next(&mut self) -> Option<PubSubEvent> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<PubSubEvent>> {
        if let Poll::Ready(event) = self.heard.poll(cx) {
            return Poll::Ready(self.told(event));
        }
        match self.lodging.ensure(cx) {
            Ok(()) if self.stands && self.lodging.is_unattended() => {
                let cause = UNATTENDED.to_string().into();
                Poll::Ready(self.told(Some(PubSubEvent::Lost { cause })))
            }
            Ok(()) => Poll::Pending,
            // As its runtime ended, it may just have told of that.
            Err(_) => match self.heard.poll(cx) {
                Poll::Pending => Poll::Ready(None),
                Poll::Ready(event) => Poll::Ready(self.told(event)),
            },
        }
    }

    /// Notes what the listener is told of the subscriptions.
    fn told(&mut self, event: Option<PubSubEvent>) -> Option<PubSubEvent> {
        match event {
            Some(PubSubEvent::Lost { .. }) => self.stands = false,
            Some(PubSubEvent::Resumed { .. }) => self.stands = true,
            _ => {}
        }
        event
    }
}

impl FutureStream for PubSub {
    type Item = PubSubEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PubSubEvent>> {
        self.poll(cx)
    }
}

/// Its task ends with it, though handles that change its subscriptions may be left.
impl Drop for PubSub {
    fn drop(&mut self) {
        self.lodging.end();
    }
}

impl PubSubControl {
    /// Subscribes to a channel, and returns when the server has confirmed it.
    ///
    /// # Errors
    /// The server refused it (its ACL, say), and the subscription is given up. Or it was not
    /// confirmed within the client's deadline: then it is kept all the same, and is made as soon as
    /// the server can be reached: `Resumed` tells. [`ErrorKind::Connect`] says why it cannot be (no
    /// place for another connection, say), [`ErrorKind::Timeout`] that it does not answer.
    pub async fn subscribe(&self, channel: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.begin(SubscriptionKind::Channel, channel.into()).await
    }

    /// Subscribes to all channels that match a glob-style pattern, as
    /// [`subscribe`](Self::subscribe) does to one.
    ///
    /// # Errors
    /// As there.
    pub async fn psubscribe(&self, pattern: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.begin(SubscriptionKind::Pattern, pattern.into()).await
    }

    /// Subscribes to a sharded channel, as [`subscribe`](Self::subscribe) does to one: to what
    /// SPUBLISH publishes. Servers before Redis 7 know none, and refuse it.
    ///
    /// # Errors
    /// As there.
    pub async fn ssubscribe(&self, channel: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.begin(SubscriptionKind::Sharded, channel.into()).await
    }

    /// Ends the subscription to a channel. What was heard before may still be yielded.
    ///
    /// # Errors
    /// The client is closed, or the order was not taken within its deadline because too many others
    /// wait (1 024).
    pub async fn unsubscribe(&self, channel: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.end(SubscriptionKind::Channel, channel.into()).await
    }

    /// Ends the subscription to a pattern, as [`unsubscribe`](Self::unsubscribe) does that to a
    /// channel.
    ///
    /// # Errors
    /// As there.
    pub async fn punsubscribe(&self, pattern: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.end(SubscriptionKind::Pattern, pattern.into()).await
    }

    /// Ends the subscription to a sharded channel, as [`unsubscribe`](Self::unsubscribe) does that
    /// to a channel.
    ///
    /// # Errors
    /// As there.
    pub async fn sunsubscribe(&self, channel: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.end(SubscriptionKind::Sharded, channel.into()).await
    }

    async fn begin(&self, kind: SubscriptionKind, name: Vec<u8>) -> Result<(), Error> {
        if kind == SubscriptionKind::Sharded {
            self.hears.admit(&name)?;
        }
        let (done, confirmed) = oneshot::channel();
        let asked = async {
            self.order(SubscriptionChange::Subscribe(kind, name, done))
                .await?;
            match confirmed.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(refused)) => Err(Error::refused(refused)),
                Err(_) if self.changes.is_closed() => Err(Error::not_sent(ErrorKind::Closed)),
                Err(_) => Err(Error::not_sent(ErrorKind::Invalid {
                    why: "the subscription was ended before it was confirmed",
                })),
            }
        };
        self.in_time(asked).await
    }

    async fn end(&self, kind: SubscriptionKind, name: Vec<u8>) -> Result<(), Error> {
        self.in_time(self.order(SubscriptionChange::Unsubscribe(kind, name)))
            .await
    }

    async fn order(&self, order: SubscriptionChange) -> Result<(), Error> {
        self.lodging.ensure_started()?;
        let sent = self.changes.send(order).await;
        sent.map_err(|_| Error::not_sent(ErrorKind::Closed))
    }

    async fn in_time(&self, work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let ended = clock::timeout(self.deadline, work)
            .await
            .unwrap_or_else(|| {
                // Orders are taken at once, connected or not, by a task that is run.
                if self.changes.capacity() < self.changes.max_capacity() {
                    return Err(Error::new(UNATTENDED, Certainty::Unknown));
                }
                let cause = self.cannot_connect.lock().clone();
                let kind = match cause {
                    Some(cause) => ErrorKind::Connect { cause },
                    None => ErrorKind::Timeout {
                        deadline: self.deadline,
                    },
                };
                Err(Error::new(kind, Certainty::Unknown))
            });
        cooperatively(ended).await
    }
}
