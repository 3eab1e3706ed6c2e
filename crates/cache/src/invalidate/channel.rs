//! Hearing what other processes invalidate, and knowing when one has not heard.
//!
//! Pub/sub loses messages without a word, so silence proves nothing. Two things are held against
//! it. Each announcement names the watermark after it, which is that before it and one for each
//! target, so a missing one shows in the next. And every quarter of a second this process sends
//! itself a *beat* through Redis, which adds its watermark at that moment: since one connection
//! delivers in order, a beat that comes back proves that all announcements published before it have
//! been heard if the watermark is exactly that of the last. From the moment that proof is too old,
//! memory is not taken as fresh; after a gap, what was in memory before it is not either, until it
//! has been loaded again.
//!
//! In a cluster the channels are sharded ones of the slot in which the namespace lies: the node
//! that runs the scripts is the one that is listened to, and when the slot moves so does the
//! connection.
//!
//! Anybody who may publish can forge an announcement. It costs loads, and the next beat sets the
//! count right.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use steadfast::{Certainty, PubSubControl, PubSubEvent};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::clock;
use crate::monotonic::Monotonic;
use crate::parts::Inner;
use crate::target::{Announcement, COUNTABLE};
use crate::tier::redis::RedisTier;
use crate::tier::redis::epoch_guard::number_text;

/// Listens until the cache is gone. What it does beside that ends with it, and a panic there is one
/// of the whole.
pub(crate) async fn listen(
    cache: Weak<Inner>,
    redis: Arc<RedisTier>,
    mut gone: watch::Receiver<()>,
) {
    let own = redis.names().own_channel(&redis.token_text());
    let _found = FoundNoMore(redis.clone());
    let mut beside = JoinSet::new();
    let mut pubsub = redis.client().pubsub_for(redis.names().channel());
    let control = pubsub.control();
    let resumed = watch::Sender::new(());
    let (found, told) = (redis.clone(), (gone.clone(), resumed.subscribe()));
    beside.spawn(be_there(control.clone(), found, told));
    let mut listener = InvalidationListener {
        cache,
        redis: redis.clone(),
        own: own.clone(),
        standing: false,
        synced: false,
        connection: 0,
        beaten: 0,
        heard: None,
        told: None,
    };
    let mut confirmed: Option<oneshot::Receiver<()>> = None;
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let standing = async {
            match &mut confirmed {
                Some(confirmed) => confirmed.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = gone.changed() => return,
            event = pubsub.next() => match event {
                Some(event) => {
                    match event {
                        PubSubEvent::Resumed { .. } => {
                            confirmed = Some(subscribe(&redis, &own, &control, &mut beside));
                            resumed.send_replace(());
                        }
                        PubSubEvent::Lost { .. } => confirmed = None,
                        _ => {}
                    }
                    listener.on_event(event);
                }
                // The client is closed: nothing will be heard any more.
                None => {
                    beside.abort_all();
                    let _ = gone.changed().await;
                    return;
                }
            },
            Ok(()) = standing => {
                confirmed = None;
                listener.on_subscribed().await;
            }
            Some(Err(ended)) = beside.join_next() => {
                if let Ok(panic) = ended.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
            _ = beats.tick() => listener.beat().await,
        }
    }
}

/// Tells, when the listening ends, with its runtime or by a panic, that other databases' processes
/// do not find this one any more.
struct FoundNoMore(Arc<RedisTier>);

impl Drop for FoundNoMore {
    fn drop(&mut self) {
        self.0.epoch_guard.can_be_found(None);
    }
}

/// Subscribes to both channels on a connection that is there, and tells when both are confirmed.
/// One that was subscribed to before is made again by itself where the connection is made anew; but
/// if that was refused, to a user whose rights were changed for a while, nobody else would ask for
/// it again.
fn subscribe(
    redis: &Arc<RedisTier>,
    own: &[u8],
    control: &PubSubControl,
    beside: &mut JoinSet<()>,
) -> oneshot::Receiver<()> {
    let (mut tell, subscribed) = oneshot::channel();
    let (control, redis, own) = (control.clone(), redis.clone(), own.to_vec());
    beside.spawn(async move {
        let channels = [redis.names().channel(), own];
        tokio::select! {
            // Nobody waits for that any more: the connection is lost, the cache gone, or its client
            // closed.
            () = tell.closed() => return,
            () = confirm(&redis, &control, channels) => {}
        }
        let _ = tell.send(());
    });
    subscribed
}

/// Subscribes to each until it is confirmed, and waits for that as long as a call may; while Redis
/// is away, or forbids it, that is again and again.
async fn confirm(redis: &RedisTier, control: &PubSubControl, channels: [Vec<u8>; 2]) {
    let mut told = false;
    for channel in channels {
        while let Err(error) = redis.subscribe(control, channel.clone()).await {
            if error.certainty() == Certainty::Rejected && !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    %error,
                    channel = %String::from_utf8_lossy(&channel),
                    "redis refuses a channel on which invalidations are heard: until it is allowed, what is in memory counts as stale"
                );
            }
            tokio::time::sleep(BEAT).await;
        }
    }
}

/// Listens where the processes of this database are looked for, by those of another that was given
/// the same namespace. It is told when the cache is gone, and when a connection was made anew, on
/// which that may have been refused.
async fn be_there(
    control: PubSubControl,
    redis: Arc<RedisTier>,
    (mut gone, mut resumed): (watch::Receiver<()>, watch::Receiver<()>),
) {
    let (mut there, mut stands) = (None, false);
    let mut known = redis.epoch_guard.watch_database();
    let channel = |number| redis.names().presence(&number_text(number));
    loop {
        let database = *known.borrow_and_update();
        if database != there {
            if let Some(before) = there.take() {
                redis.epoch_guard.can_be_found(None);
                let _ = redis.unsubscribe(&control, channel(before)).await;
            }
            (there, stands) = (database, false);
        }
        if let Some(now) = there.filter(|_| !stands) {
            match redis.subscribe(&control, channel(now)).await {
                Ok(()) => {
                    stands = true;
                    redis.epoch_guard.can_be_found(there);
                }
                // It is forbidden: nobody will find it, and to wait for that is in vain.
                Err(error) if error.certainty() == Certainty::Rejected => {
                    redis.epoch_guard.can_be_found(there);
                }
                Err(_) => {}
            }
        }
        tokio::select! {
            _ = gone.changed() => return,
            _ = known.changed() => {}
            Ok(()) = resumed.changed() => stands = false,
            () = tokio::time::sleep(BEAT), if there.is_some() && !stands => {}
        }
    }
}

struct InvalidationListener {
    cache: Weak<Inner>,
    redis: Arc<RedisTier>,
    own: Vec<u8>,
    /// Whether both subscriptions stand.
    standing: bool,
    /// Whether it is known what was missed while they did not stand.
    synced: bool,
    /// Counts the times that they have stood, so that a beat of an earlier one proves nothing.
    connection: u64,
    /// The number of the connection on which the last beat was sent.
    beaten: u64,
    /// Everything up to this watermark has been heard.
    heard: Option<u64>,
    /// The moment when it was last told that another database would use the same namespace.
    told: Option<Instant>,
}

impl InvalidationListener {
    fn on_event(&mut self, event: PubSubEvent) {
        let Some(cache) = self.cache.upgrade() else {
            return;
        };
        match event {
            PubSubEvent::Message {
                channel, payload, ..
            } if channel == self.own => self.on_beat(&cache, &payload),
            PubSubEvent::Message { channel, .. }
                if channel.starts_with(&self.redis.names().presence("")) =>
            {
                self.on_other_database();
            }
            PubSubEvent::Message { payload, .. } => self.on_announcement(&cache, &payload),
            PubSubEvent::Resumed { .. } => self.redis.epoch_guard.is_away(false),
            // Lost, or messages dropped because they came too fast, or something this program does
            // not know: assume the worst.
            PubSubEvent::Lost { .. } => {
                self.redis.epoch_guard.is_away(true);
                (self.standing, self.synced) = (false, false);
                cache.coherence.disprove(Monotonic::now());
            }
            _ => {
                (self.synced, self.heard) = (false, None);
                self.connection += 1;
                cache.coherence.disprove(Monotonic::now());
            }
        }
    }

    /// Notes that both subscriptions stand, for the first time or again: what was missed has to be
    /// found out, and the channel to be proven.
    async fn on_subscribed(&mut self) {
        let Some(cache) = self.cache.upgrade() else {
            return;
        };
        (self.standing, self.synced) = (true, false);
        self.connection += 1;
        self.sync(&cache).await;
        self.beat().await;
    }

    /// Tells of it, but not each time that the other asks.
    fn on_other_database(&mut self) {
        let now = clock();
        let lately = |told: Instant| now.saturating_duration_since(told) < TOLD_EVERY;
        if !self.told.is_some_and(lately) {
            self.told = Some(now);
            tracing::warn!(
                "another database was given this namespace in this Redis: its processes go without Redis until it has one of its own"
            );
        }
    }

    fn on_announcement(&mut self, cache: &Inner, payload: &[u8]) {
        let Some(announced) = Announcement::parse(payload) else {
            tracing::warn!("an announcement that cannot be understood: memory is emptied");
            return cache.forget(&[crate::Target::All]);
        };
        let applied = announced.targets.len() as u64;
        match self.heard {
            // Known when the channel was synchronised, and heard only now; or forged, which the
            // next beat tells.
            Some(heard) if announced.after <= heard => {}
            Some(heard) => {
                if announced.after != heard + applied {
                    self.miss(cache, "an announcement is missing");
                }
                self.heard = Some(announced.after);
            }
            None => {}
        }
        cache.forget(&announced.targets);
        self.redis.epoch_guard.on_claim(announced.after);
    }

    fn on_beat(&mut self, cache: &Inner, payload: &[u8]) {
        let epochs = &self.redis.epoch_guard;
        let Some(beat) = Beat::parse(payload) else {
            return;
        };
        if beat.connection != self.connection || !self.synced {
            return;
        }
        // Redis was emptied or taken back under connections that stand: nothing else tells those
        // who do not read.
        let Some(at) = beat.at.filter(|at| *at >= epochs.required(beat.known)) else {
            return epochs.on_behind();
        };
        if epochs.is_blind() {
            return;
        }
        if self.heard != Some(at) {
            self.miss(cache, "an invalidation was never announced here");
            self.heard = Some(at);
        }
        // Redis itself has not heard of all that SQL has.
        if at < epochs.required(epochs.known_watermark()) {
            return;
        }
        cache
            .coherence
            .prove(Monotonic::from_bits(beat.sent), Monotonic::now());
        // It may have been suspended just now, which must not be undone by this.
        if epochs.is_blind() {
            cache.coherence.disprove(Monotonic::now());
        }
    }

    /// Doubts memory: some invalidations were not heard, and which is not known.
    fn miss(&self, cache: &Inner, why: &'static str) {
        tracing::warn!(
            why,
            "what is in memory counts as stale until it is loaded again"
        );
        cache.generations.begin_proof_epoch();
        cache.guard.begin_ramp();
    }

    /// Finds out whether anything was missed while nothing could be heard. A Redis that was rolled
    /// back has first to be set right.
    async fn sync(&mut self, cache: &Inner) {
        if self.redis.epoch_to_write().await.is_err() {
            return;
        }
        let mut ask = redis::cmd("GET");
        ask.arg(self.redis.names().watermark());
        let Ok(at) = self.redis.ask::<Option<String>>(&ask).await else {
            return;
        };
        let Some(at) = at.and_then(|at| at.parse().ok()) else {
            return self.redis.epoch_guard.on_behind();
        };
        match self.heard {
            Some(heard) if heard == at => {}
            Some(_) => self.miss(
                cache,
                "invalidations were applied while the channel was away",
            ),
            None => cache.generations.begin_proof_epoch(),
        }
        self.heard = Some(at);
        self.synced = true;
    }

    async fn beat(&mut self) {
        if !self.standing || !self.redis.is_reachable() {
            return;
        }
        if !self.synced {
            let Some(cache) = self.cache.upgrade() else {
                return;
            };
            self.sync(&cache).await;
        }
        let known = self.redis.epoch_guard.known_watermark();
        let text = format!(
            "{} {} {known} ",
            self.connection,
            Monotonic::now().to_bits()
        );
        let first = std::mem::replace(&mut self.beaten, self.connection) != self.connection;
        let (redis, own) = (self.redis.clone(), self.own.clone());
        tokio::spawn(async move { redis.beat(&own, text, first).await });
    }
}

/// A beat as it comes back.
struct Beat {
    /// The number of the connection on which it was sent, and the bits of the moment.
    connection: u64,
    sent: u64,
    /// The watermark that Redis had to have reached then.
    known: u64,
    /// The watermark that Redis had when it came by; `None` if it had none that is one.
    at: Option<u64>,
}

impl Beat {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(payload).ok()?.split(' ');
        let mut number = || parts.next()?.parse().ok();
        Some(Self {
            connection: number()?,
            sent: number()?,
            known: number()?,
            at: number().filter(|at| *at < COUNTABLE),
        })
    }
}

const BEAT: Duration = Duration::from_millis(250);

/// A state that lasts is told again after so long.
const TOLD_EVERY: Duration = Duration::from_secs(60);
