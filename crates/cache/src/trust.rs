//! May Redis be believed yet?
//!
//! A Redis that comes back may be an old snapshot, or a replica that lagged when it was promoted:
//! full of values that were invalidated since. Nothing in the values says so. Hence the
//! *watermark*: a number that grows with every invalidation applied, kept in Redis beside the
//! values and in SQL beside the truth. A Redis whose watermark is missing or below SQL's was rolled
//! back, and a new *epoch* (a random word in the name of every key) makes all it holds unseen at
//! once. Otherwise the cache is warm, and stays so.
//!
//! Of the numbers that come here SQL's alone have authority. What the channel announces anybody may
//! have published: it makes a process look again, never more. Until SQL has been seen since Redis
//! was connected to, there is nothing to hold against Redis, and its values count as stale.
//!
//! SQL itself may have been rolled back, to a backup or by a failover that lost commits. Two things
//! give that away: its watermark is lower than it was at an earlier look, or it is lower than that
//! of Redis while nothing waits in the outbox, since whatever takes Redis ahead of SQL is still
//! waiting there.
//!
//! And two databases may be given one namespace by mistake. So each has a random number of its own,
//! with which its epochs begin: what lies in an epoch of another's is never read. Whose processes
//! are there first uses Redis, and those of the other go without, and say so, until the first are
//! gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::outbox::{Glance, Outbox};
use crate::source::SourceError;
use crate::tier::redis::{RedisTier, Trouble};

/// The belief that values of this epoch are good, as it was at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) epoch: Arc<str>,
    watermark: u64,
    /// SQL was seen since Redis was connected to.
    pub(crate) proven: bool,
}

pub(crate) struct Trust {
    state: Mutex<State>,
    outbox: Outbox,
    /// Asks the verifier to verify; it tells here when it has.
    wanted: Notify,
    settled: watch::Sender<()>,
    /// The database's own number, for those who wait for it.
    numbered: watch::Sender<Option<u64>>,
    /// The number of the database as whose process this one can be found by others.
    present: watch::Sender<Option<u64>>,
    /// Whether its being found was waited for.
    presence_awaited: AtomicBool,
    /// All true but in the tests that prove why.
    rules: Rules,
}

/// Rules of belief that a test may break.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// A Redis behind the watermark is not believed.
    pub(crate) heed_watermark: bool,
    /// Nor is one of which SQL has not said how far it must be.
    pub(crate) await_sql: bool,
    /// A SQL that was rolled back is noticed.
    pub(crate) heed_rollback: bool,
}

#[derive(Default)]
struct State {
    epoch: Option<Arc<str>>,
    /// What Redis must have reached: SQL's watermark, by a look or by this process's own commit.
    known: u64,
    /// What the channel claims, until the next look.
    claimed: u64,
    /// Redis's own watermark, when it was last asked.
    redis_at: u64,
    suspended: Option<&'static str>,
    /// Counts connections: a belief formed on an earlier one is void.
    connection: u64,
    /// SQL has not been seen since Redis was connected to.
    sql_unseen: bool,
    /// SQL was rolled back, and nobody has been told yet.
    rolled_back: bool,
    /// An epoch was believed in before.
    adopted: bool,
    /// The database's own number.
    database: Option<u64>,
    /// Redis is used by another database.
    taken: bool,
}

impl Trust {
    pub(crate) fn new(outbox: Outbox, rules: Rules) -> Self {
        let state = State {
            sql_unseen: true,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            outbox,
            wanted: Notify::new(),
            settled: watch::Sender::default(),
            numbered: watch::Sender::default(),
            present: watch::Sender::default(),
            presence_awaited: AtomicBool::new(false),
            rules,
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
        if let Some(standing) = self.believed() {
            return Ok(standing);
        }
        if self.is_taken() {
            return Err(Trouble::NotAsked(TAKEN));
        }
        let mut settled = self.settled.subscribe();
        if let Some(standing) = self.believed() {
            return Ok(standing);
        }
        self.wanted.notify_one();
        let _ = tokio::time::timeout(limit, settled.changed()).await;
        self.believed()
            .ok_or(Trouble::NotAsked("it is not yet known to be current"))
    }

    /// Forms a belief whenever one is wanted, until the cache is gone. A task of its own, so that
    /// no reader's limit cuts it short.
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
        let current = at.is_some_and(|at| at >= standing.watermark && at < COUNTABLE);
        if same_epoch && (current || !self.rules.heed_watermark) {
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
        state.sql_unseen = true;
        drop(state);
        self.wanted.notify_one();
    }

    /// Looks at the outbox, and learns from it what Redis must have reached.
    pub(crate) async fn look(&self) -> Result<Option<Glance>, SourceError> {
        let (connection, known, claimed, redis_at) = {
            let state = self.state.lock();
            (state.connection, state.known, state.claimed, state.redis_at)
        };
        let Some(glance) = self.outbox.glance().await? else {
            return Ok(None);
        };
        let at = glance.watermark;
        let fell = self.has_fallen(known, at);
        // What took Redis ahead of SQL waits in the outbox until SQL has caught up.
        let overtaken = self.has_fallen(redis_at, at) && glance.waiting.is_empty();
        let mut state = self.state.lock();
        if (fell || overtaken) && !state.rolled_back {
            tracing::warn!(
                at,
                known,
                redis_at,
                "the database was rolled back: everything is invalidated"
            );
            state.rolled_back = true;
        }
        state.known = if fell { at } else { state.known.max(at) };
        if state.claimed == claimed {
            state.claimed = 0;
        }
        state.sql_unseen &= state.connection != connection;
        if let Some(database) = glance.database {
            state.database = Some(database);
            let own = number_text(database);
            state.epoch = state.epoch.take().filter(|epoch| epoch.starts_with(&own));
            self.numbered
                .send_if_modified(|known| known.replace(database) != Some(database));
        }
        Ok(Some(glance))
    }

    /// The database's own number, if it is known.
    pub(crate) fn database(&self) -> Option<u64> {
        self.state.lock().database
    }

    /// Tells the database's own number when it is learnt or has changed.
    pub(crate) fn watch_database(&self) -> watch::Receiver<Option<u64>> {
        self.numbered.subscribe()
    }

    /// Processes of another database find this one now, as one of this database's; or find it no
    /// more.
    pub(crate) fn can_be_found(&self, database: Option<u64>) {
        self.present.send_replace(database);
    }

    /// Waits until others can find this process, once: a process that used Redis before that would
    /// be overlooked by one of another database that comes just then.
    async fn await_presence(&self) {
        let Some(database) = self.database() else {
            return;
        };
        if self.presence_awaited.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut present = self.present.subscribe();
        let there = present.wait_for(|present| *present == Some(database));
        let _ = tokio::time::timeout(PRESENCE_LIMIT, there).await;
    }

    /// A word for an epoch, that of nobody's while the database is not known.
    pub(crate) fn new_epoch(&self, random: u64) -> String {
        let database = self.database().unwrap_or(0);
        number_text(database) + &number_text(random)
    }

    /// Whether another database uses this namespace in Redis, and was there first.
    pub(crate) fn is_taken(&self) -> bool {
        self.state.lock().taken
    }

    /// Finds out once more what to believe, if nothing is believed.
    pub(crate) fn ask_again(&self) {
        self.wanted.notify_one();
    }

    /// Whether SQL was rolled back, if this was its watermark before and that is it now.
    pub(crate) fn has_fallen(&self, before: u64, now: u64) -> bool {
        self.rules.heed_rollback && now < before
    }

    /// Whether SQL was rolled back, and everything has yet to be invalidated because of it.
    pub(crate) fn is_rolled_back(&self) -> bool {
        self.state.lock().rolled_back
    }

    /// Everything has been invalidated: the order is in SQL.
    pub(crate) fn all_is_ordered(&self) {
        let mut state = self.state.lock();
        state.rolled_back = false;
        // The order will take SQL past it.
        state.redis_at = 0;
    }

    /// This process has applied invalidations up to this watermark to Redis, and committed that in
    /// SQL.
    pub(crate) fn learn(&self, watermark: u64) {
        let mut state = self.state.lock();
        state.known = state.known.max(watermark);
    }

    /// The channel says that invalidations were applied up to this watermark.
    pub(crate) fn hear(&self, watermark: u64) {
        let mut state = self.state.lock();
        state.claimed = state.claimed.max(watermark);
    }

    /// Stops or resumes reading from Redis; says whether that is a change.
    pub(crate) fn suspend(&self, reason: Option<&'static str>) -> bool {
        let mut state = self.state.lock();
        std::mem::replace(&mut state.suspended, reason).is_some() != reason.is_some()
    }

    pub(crate) fn suspended(&self) -> Option<&'static str> {
        self.state.lock().suspended
    }

    /// Why to have heard everything proves nothing: an invalidation waits that has not been
    /// announced, or SQL has not said how many there are.
    pub(crate) fn is_blind(&self) -> bool {
        let state = self.state.lock();
        state.suspended.is_some() || (state.sql_unseen && self.rules.await_sql)
    }

    /// Whether SQL was seen since Redis was connected to.
    pub(crate) fn sql_seen(&self) -> bool {
        !self.state.lock().sql_unseen
    }

    /// What Redis must have reached, by what SQL said.
    pub(crate) fn known_watermark(&self) -> u64 {
        self.state.lock().known
    }

    pub(crate) fn epoch(&self) -> Option<Arc<str>> {
        self.state.lock().epoch.clone()
    }

    /// What a Redis must have reached that is to be believed or written to, if this is the
    /// watermark known.
    pub(crate) fn required(&self, known: u64) -> u64 {
        if self.rules.heed_watermark { known } else { 0 }
    }

    fn believed(&self) -> Option<Standing> {
        let state = self.state.lock();
        state.epoch.as_ref().map(|epoch| Standing {
            epoch: epoch.clone(),
            watermark: state.known.max(state.claimed),
            proven: !state.sql_unseen || !self.rules.await_sql,
        })
    }

    async fn verify(&self, redis: &RedisTier) -> Result<(), Trouble> {
        let connection = self.state.lock().connection;
        let looked = tokio::time::timeout(SQL_LIMIT, self.look()).await;
        if !matches!(looked, Ok(Ok(Some(_)))) {
            // What the channel claims cannot be held against SQL now: it may be a forgery, and
            // Redis may be behind.
            let mut state = self.state.lock();
            state.sql_unseen |= state.claimed > state.known;
            state.claimed = 0;
        }
        self.await_presence().await;
        let known = self.required(self.known_watermark());
        let own = self.database().map(number_text).unwrap_or_default();
        let mut ask = redis::cmd("EVAL");
        ask.arg(ADOPT)
            .arg(2)
            .arg(redis.names().epoch())
            .arg(redis.names().watermark())
            .arg(known)
            .arg(redis.new_epoch())
            .arg(own)
            .arg(redis.names().presence(""));
        let (epoch, watermark, begun, held): (String, u64, bool, bool) = redis.ask(&ask).await?;
        let mut state = self.state.lock();
        let taken = epoch.is_empty();
        match (std::mem::replace(&mut state.taken, taken), taken) {
            (false, true) => tracing::warn!("{TAKEN}"),
            (true, false) => tracing::info!("the namespace is free again"),
            _ => {}
        }
        if taken {
            return Ok(());
        }
        // The first epoch of all is no beginning anew: nothing was there that could be behind.
        if begun && (held || known > 0 || state.adopted) {
            tracing::warn!(
                known,
                "redis is empty, behind, or was used by another database: all it holds is unseen from now on"
            );
            redis.began_epoch();
        }
        state.adopted = true;
        if state.connection == connection {
            state.epoch = Some(epoch.into());
            state.redis_at = watermark;
        }
        Ok(())
    }
}

/// Numbers from here on are none that Redis could have counted up to: its scripts lose count there.
pub(crate) const COUNTABLE: u64 = 1 << 53;

const SQL_LIMIT: Duration = Duration::from_secs(1);

/// A process goes on without being found by others after so long: it may be forbidden to listen.
const PRESENCE_LIMIT: Duration = Duration::from_secs(1);

pub(crate) const TAKEN: &str = "another database uses this namespace in this Redis, and was there first: each needs a namespace of its own";

/// As an epoch begins.
pub(crate) fn number_text(number: u64) -> String {
    format!("{number:016x}")
}

/// KEYS epoch, watermark. ARGV what SQL says Redis must have reached, a new epoch, the database's
/// number if it is known, how the channels are called on which those of a database listen. Returns
/// the epoch, the watermark, whether the epoch is new, and whether there was one before; no epoch
/// if it is another database's whose processes are there. Keeps the epoch of a Redis that is
/// current, begins a new one otherwise; of several processes that find it behind at once, the first
/// begins it and the others adopt it. Frees before it writes, which a full Redis takes.
const ADOPT: &str = "\
local epoch, watermark = redis.call('GET', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '') \
if watermark and (watermark >= 9007199254740992 or watermark < 0) then watermark = nil end \
local other = epoch and ARGV[3] ~= '' and string.sub(epoch, 1, 16) ~= ARGV[3] \
if other and redis.call('PUBLISH', ARGV[4] .. string.sub(epoch, 1, 16), ARGV[3]) > 0 then return {'', '0', 0, 1} end \
if other then watermark = nil end \
if epoch and watermark and watermark >= tonumber(ARGV[1]) then return {epoch, string.format('%.0f', watermark), 0, 1} end \
local at = string.format('%.0f', math.max(watermark or 0, tonumber(ARGV[1]))) \
redis.call('UNLINK', KEYS[1], KEYS[2]) \
redis.call('SET', KEYS[1], ARGV[2]) \
redis.call('SET', KEYS[2], at) \
return {ARGV[2], at, 1, epoch and 1 or 0}";
