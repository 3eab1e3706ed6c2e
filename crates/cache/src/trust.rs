//! May Redis be believed yet?
//!
//! A Redis that comes back may be an old snapshot, or a replica that lagged when it was promoted: full of values that
//! were invalidated since. Nothing in the values says so. Hence the *watermark*: a number that grows with every invalidation
//! applied, kept in Redis beside the values and in SQL beside the truth. A Redis whose watermark is missing or below the
//! highest known was rolled back, and a new *epoch* (a random word in the name of every key) makes all it holds unseen at once.
//! Otherwise the cache is warm, and stays so.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::outbox::Outbox;
use crate::tier::redis::{RedisTier, Trouble};

/// The belief that values of this epoch are good, as it was at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) epoch: Arc<str>,
    watermark: u64,
}

pub(crate) struct Trust {
    state: Mutex<State>,
    outbox: Option<Outbox>,
    /// Asks the verifier to verify; it tells here when it has.
    wanted: Notify,
    settled: watch::Sender<()>,
    /// False only in the test that proves why it must be true.
    heed_watermark: bool,
}

#[derive(Default)]
struct State {
    epoch: Option<Arc<str>>,
    /// The highest watermark known, of SQL or Redis.
    watermark: u64,
    suspended: Option<&'static str>,
    /// Counts connections: a belief formed on an earlier one is void.
    connection: u64,
    /// SQL has not been asked for its watermark since Redis was connected to.
    ask_sql: bool,
}

impl Trust {
    pub(crate) fn new(outbox: Option<Outbox>, heed_watermark: bool) -> Self {
        let state = State {
            ask_sql: outbox.is_some(),
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            outbox,
            wanted: Notify::new(),
            settled: watch::Sender::default(),
            heed_watermark,
        }
    }

    /// The present belief; if there is none, waits for one up to `limit`.
    pub(crate) async fn standing(&self, limit: Duration) -> Result<Standing, Trouble> {
        if let Some(reason) = self.suspended() {
            return Err(Trouble::NotAsked(reason));
        }
        self.believed_within(limit).await
    }

    /// The epoch to write in, also while Redis is not read.
    pub(crate) async fn epoch_to_write(&self, limit: Duration) -> Result<Arc<str>, Trouble> {
        self.believed_within(limit)
            .await
            .map(|standing| standing.epoch)
    }

    async fn believed_within(&self, limit: Duration) -> Result<Standing, Trouble> {
        let mut settled = self.settled.subscribe();
        if let Some(standing) = self.believed() {
            return Ok(standing);
        }
        self.wanted.notify_one();
        let _ = tokio::time::timeout(limit, settled.changed()).await;
        self.believed()
            .ok_or(Trouble::NotAsked("it is not yet known to be current"))
    }

    /// Forms a belief whenever one is wanted, until the cache is gone. A task of its own, so that no reader's limit cuts it short.
    pub(crate) async fn run(redis: Arc<RedisTier>, mut gone: watch::Receiver<()>) {
        loop {
            tokio::select! {
                _ = gone.changed() => return,
                () = redis.trust.wanted.notified() => {}
            }
            if redis.trust.believed().is_none()
                && let Err(trouble) = redis.trust.verify(&redis).await
            {
                tracing::debug!(%trouble, "redis cannot be verified");
            }
            redis.trust.settled.send_replace(());
        }
    }

    /// Compares what an answer says with what was believed when it was asked for.
    pub(crate) fn check(
        &self,
        standing: &Standing,
        epoch: Option<&[u8]>,
        watermark: Option<&[u8]>,
    ) -> Result<(), Trouble> {
        let same_epoch = epoch == Some(standing.epoch.as_bytes());
        let at = watermark.and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok());
        let current = at.is_some_and(|at| at >= standing.watermark) || !self.heed_watermark;
        if same_epoch && current {
            return Ok(());
        }
        self.doubt(&standing.epoch);
        Err(Trouble::Replaced)
    }

    /// Believes no longer in this epoch; the next who asks verifies.
    pub(crate) fn doubt(&self, epoch: &Arc<str>) {
        let mut state = self.state.lock();
        if state.epoch.as_ref() == Some(epoch) {
            state.epoch = None;
        }
    }

    /// Believes nothing: Redis has just been connected to, and may be another.
    pub(crate) fn doubt_all(&self) {
        let mut state = self.state.lock();
        state.epoch = None;
        state.connection += 1;
        state.ask_sql = self.outbox.is_some();
        drop(state);
        self.wanted.notify_one();
    }

    /// An invalidation up to this watermark is known to have been applied.
    pub(crate) fn learn(&self, watermark: u64) {
        let mut state = self.state.lock();
        state.watermark = state.watermark.max(watermark);
    }

    /// Stops or resumes reading from Redis; says whether that is a change.
    pub(crate) fn suspend(&self, reason: Option<&'static str>) -> bool {
        let mut state = self.state.lock();
        std::mem::replace(&mut state.suspended, reason).is_some() != reason.is_some()
    }

    pub(crate) fn suspended(&self) -> Option<&'static str> {
        self.state.lock().suspended
    }

    pub(crate) fn known_watermark(&self) -> u64 {
        self.state.lock().watermark
    }

    pub(crate) fn epoch(&self) -> Option<Arc<str>> {
        self.state.lock().epoch.clone()
    }

    /// What a Redis must have reached that is to be believed or written to, if this is the watermark known.
    pub(crate) fn required(&self, known: u64) -> u64 {
        if self.heed_watermark { known } else { 0 }
    }

    fn believed(&self) -> Option<Standing> {
        let state = self.state.lock();
        state.epoch.as_ref().map(|epoch| Standing {
            epoch: epoch.clone(),
            watermark: state.watermark,
        })
    }

    async fn verify(&self, redis: &RedisTier) -> Result<(), Trouble> {
        let (connection, ask_sql) = {
            let state = self.state.lock();
            (state.connection, state.ask_sql)
        };
        if let (true, Some(outbox)) = (ask_sql, &self.outbox) {
            // A database that cannot be reached does not stand in the way: what is known is held against Redis then, and the
            // next look at the outbox catches up.
            if let Ok(Ok(Some(glance))) = tokio::time::timeout(SQL_LIMIT, outbox.glance()).await {
                self.learn(glance.watermark);
            }
        }
        let known = self.required(self.known_watermark());
        let mut ask = redis::cmd("EVAL");
        ask.arg(ADOPT)
            .arg(2)
            .arg(redis.names().epoch())
            .arg(redis.names().watermark())
            .arg(known)
            .arg(redis.token_text());
        let (epoch, watermark, begun): (String, u64, bool) = redis.ask(&ask).await?;
        if begun {
            tracing::warn!(
                known,
                "redis is empty or behind: all it holds is unseen from now on"
            );
            redis.began_epoch();
        }
        let mut state = self.state.lock();
        if state.connection == connection {
            state.epoch = Some(epoch.into());
            state.ask_sql = false;
        }
        state.watermark = state.watermark.max(watermark);
        Ok(())
    }
}

const SQL_LIMIT: Duration = Duration::from_secs(1);

/// KEYS epoch, watermark. ARGV the highest watermark known, a new epoch. Keeps the epoch of a Redis that is current, begins a
/// new one otherwise; of several processes that find it behind at once, the first begins it and the others adopt it.
const ADOPT: &str = "\
local epoch, watermark = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]) \
if epoch and watermark and tonumber(watermark) and tonumber(watermark) >= tonumber(ARGV[1]) then return {epoch, watermark, 0} end \
local at = ARGV[1] \
if watermark and tonumber(watermark) and tonumber(watermark) > tonumber(at) then at = watermark end \
redis.call('SET', KEYS[1], ARGV[2]) \
redis.call('SET', KEYS[2], at) \
return {ARGV[2], at, 1}";
