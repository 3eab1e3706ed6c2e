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
//! have published: it makes a process look again, never more. Until SQL was held against Redis
//! since that was connected to, its values count as stale. A look at SQL that began before it was
//! known how far Redis is can tell that Redis is behind, but not that it is ahead: one has to have
//! begun afterwards, and to have minded all that it found. Only where both are equally far and
//! nothing waits, or where nothing is left in Redis, is the first enough.
//!
//! SQL itself may have been rolled back, to a backup or by a failover that lost commits. Two things
//! give that away: its watermark is lower than it was at an earlier look, or it is lower than that
//! of Redis for another reason than the one that there may be. Redis is ahead by what it has
//! applied and SQL has not been told of yet, and then those very rows still wait in the outbox; or
//! by what it has applied once more, too late, when SQL had been told. So Redis keeps a record of
//! the last delivery: what SQL's watermark was before it, what that of Redis was after it and after
//! the first try, and one of its rows. That outlives every process; and since a delivery that SQL
//! was never told of can be lost with its rows, Redis is asked for it before each look.
//!
//! And two databases may be given one namespace by mistake. So each has a random number of its own,
//! with which its epochs begin: what lies in an epoch of another's is never read. Whose processes
//! are there first uses Redis, and those of the other go without, and say so, until the first are
//! gone.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::answer::{EpochView, NO_SERVER, RedisFailure};
use super::delivery::Delivery;
use crate::outbox::{Glance, RowMark};
use crate::target::COUNTABLE;

pub(crate) struct EpochGuard {
    state: Mutex<State>,
    /// Asks the verifier to verify; it tells here when it has.
    wanted: Notify,
    settled: watch::Sender<()>,
    /// Asks the relay to look at SQL at once.
    look_wanted: Notify,
    /// The database's own number, for those who wait for it.
    numbered: watch::Sender<Option<u64>>,
    /// The database as whose process this one can be found by others.
    present: watch::Sender<Presence>,
    /// The rules, all true but in the tests that prove why.
    rules: EpochRules,
}

/// The rules of belief that a test may break.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EpochRules {
    /// A Redis behind the watermark is not believed.
    pub(crate) heed_watermark: bool,
    /// Nor is one of which SQL has not said how far it must be.
    pub(crate) await_sql: bool,
    /// A SQL that was rolled back is noticed.
    pub(crate) heed_rollback: bool,
}

/// The channel on which processes of other databases look for those of this one.
#[derive(Clone, Copy, Debug, Default)]
struct Presence {
    /// The number of the database whose channel was subscribed to.
    database: Option<u64>,
    /// The connection of the subscription was lost, and has not come back.
    is_away: bool,
}

#[derive(Default)]
struct State {
    epoch: Option<Arc<str>>,
    /// The watermark that Redis must have reached: SQL's, by a look or by this process's own
    /// commit.
    known: u64,
    /// The watermark that the channel claims, until the next look.
    claimed: u64,
    /// Redis's own watermark, when it was last asked.
    redis_at: u64,
    /// What took Redis there, as it says.
    delivery: Option<Delivery>,
    /// The last delivery of which Redis has told since.
    heard: Option<Heard>,
    /// The last order to invalidate everything, because SQL was rolled back, until it is delivered
    /// or a look does not find it.
    order: Option<RowMark>,
    suspended: Option<&'static str>,
    /// Counts the reasons given for that: what was seen before one does not end it.
    suspensions: u64,
    /// Counts connections: a belief formed on an earlier one is void.
    connection: u64,
    /// How often Redis was asked how far it is, since it was connected to.
    asked: u64,
    /// SQL has not been held against Redis since that was connected to.
    unproven: bool,
    /// SQL was rolled back, and nobody has been told yet.
    rolled_back: bool,
    /// An epoch was believed in before.
    adopted: bool,
    /// The database's own number.
    database: Option<u64>,
    /// Redis is used by another database.
    taken: bool,
    /// The connection on which it was waited in vain for this process to be found.
    unfound_on: Option<u64>,
}

/// A moment, by which it is told what a look or a delivery that began then may end.
#[derive(Clone, Copy)]
pub(crate) struct Vantage {
    suspensions: u64,
    connection: u64,
    /// How often Redis had been asked on it how far it is: what is found later is another matter.
    asked: u64,
}

/// A delivery of which Redis told when it was asked before a look, and what was believed then.
#[derive(Clone, PartialEq, Eq)]
struct Heard {
    connection: u64,
    epoch: Arc<str>,
    delivery: Delivery,
}

/// The state of knowledge before a look at SQL.
#[derive(Clone)]
pub(super) struct BeforeLook {
    /// The number of the connection to Redis.
    pub(super) connection: u64,
    known: u64,
    claimed: u64,
    redis_at: u64,
    delivery: Option<Delivery>,
    heard: Option<Heard>,
    order: Option<RowMark>,
}

/// An epoch of Redis that was found current or was begun, by what SQL had said.
pub(super) struct Adopted {
    pub(super) epoch: String,
    pub(super) watermark: u64,
    pub(super) delivery: Option<Delivery>,
    /// Whether the epoch is new.
    pub(super) begun: bool,
    /// Whether there was one before.
    pub(super) held: bool,
    /// The watermark that Redis had to have reached, as SQL had said.
    pub(super) known: u64,
    /// Whether a look at SQL on the same connection leaves nothing to be told by another.
    pub(super) proven: bool,
}

impl EpochGuard {
    pub(crate) fn new(rules: EpochRules) -> Self {
        let state = State {
            unproven: true,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            wanted: Notify::new(),
            settled: watch::Sender::default(),
            look_wanted: Notify::new(),
            numbered: watch::Sender::default(),
            present: watch::Sender::default(),
            rules,
        }
    }

    /// The present belief, if there is one and Redis is read.
    pub(super) fn epoch_view_at_once(&self) -> Option<EpochView> {
        let state = self.state.lock();
        let is_read = state.unread_because().is_none();
        is_read.then(|| self.view(&state)).flatten()
    }

    /// The present belief; if there is none, waits for one up to `limit`.
    pub(crate) async fn epoch_view(&self, limit: Duration) -> Result<EpochView, RedisFailure> {
        if let Some(reason) = self.suspended() {
            return Err(RedisFailure::NotAsked(reason));
        }
        self.believed_within(limit).await
    }

    /// The epoch to write in, also while Redis is not read.
    pub(crate) async fn epoch_to_write(&self, limit: Duration) -> Result<Arc<str>, RedisFailure> {
        self.believed_within(limit)
            .await
            .map(|epoch_view| epoch_view.epoch)
    }

    async fn believed_within(&self, limit: Duration) -> Result<EpochView, RedisFailure> {
        if let Some(epoch_view) = self.believed() {
            return Ok(epoch_view);
        }
        if self.is_taken() {
            return Err(RedisFailure::NotAsked(TAKEN));
        }
        let mut settled = self.settled.subscribe();
        if let Some(epoch_view) = self.believed() {
            return Ok(epoch_view);
        }
        self.wanted.notify_one();
        let _ = tokio::time::timeout(limit, settled.changed()).await;
        self.believed()
            .ok_or(RedisFailure::NotAsked("it is not yet known to be current"))
    }

    /// Compares what an answer says with what was believed when it was asked for.
    pub(crate) fn check(
        &self,
        epoch_view: &EpochView,
        epoch: Option<&[u8]>,
        watermark: Option<&[u8]>,
    ) -> Result<(), RedisFailure> {
        let same_epoch = epoch == Some(epoch_view.epoch.as_bytes());
        let at = watermark.and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok());
        let current = at.is_some_and(|at| at >= epoch_view.watermark && at < COUNTABLE);
        if same_epoch && (current || !self.rules.heed_watermark) {
            return Ok(());
        }
        self.doubt(&epoch_view.epoch);
        Err(RedisFailure::Replaced)
    }

    /// Believes no longer in this epoch. What to believe instead is found out at once: whoever
    /// doubts may be the last who reads for a long time.
    pub(crate) fn doubt(&self, epoch: &Arc<str>) {
        let mut state = self.state.lock();
        if state.epoch.as_ref() != Some(epoch) {
            return;
        }
        state.epoch = None;
        drop(state);
        self.wanted.notify_one();
    }

    /// Doubts what is believed: Redis is behind SQL, or has lost its watermark, as it says itself.
    pub(crate) fn on_behind(&self) {
        if let Some(epoch) = self.epoch() {
            self.doubt(&epoch);
        }
    }

    /// Believes nothing: Redis has just been connected to, and may be another.
    pub(crate) fn doubt_all(&self) {
        let mut state = self.state.lock();
        state.epoch = None;
        state.connection += 1;
        state.asked = 0;
        state.unproven = true;
        drop(state);
        self.wanted.notify_one();
    }

    /// Waits until a belief is wanted.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Tells those who wait for a belief that there is one, or that none could be formed.
    pub(super) fn settle(&self) {
        self.settled.send_replace(());
    }

    /// Returns what is known before a look at SQL.
    pub(super) fn before_look(&self) -> BeforeLook {
        let state = self.state.lock();
        BeforeLook {
            connection: state.connection,
            known: state.known,
            claimed: state.claimed,
            redis_at: state.redis_at,
            delivery: state.delivery,
            heard: state.heard.clone(),
            order: state.order,
        }
    }

    /// Learns of a delivery from an answer that fitted this belief, which was held on this
    /// connection.
    pub(super) fn hear(&self, connection: u64, epoch: Arc<str>, delivery: Delivery) {
        self.state.lock().heard = Some(Heard {
            connection,
            epoch,
            delivery,
        });
    }

    /// Learns from a look at SQL, held against what was known before it.
    pub(super) fn after_look(&self, before: BeforeLook, glance: &Glance) {
        let at = glance.watermark;
        let BeforeLook {
            known,
            redis_at,
            delivery,
            ref heard,
            order,
            ..
        } = before;
        let fell = self.has_fallen(known, at);
        // What took Redis ahead of SQL is on record.
        let explained = delivery.is_some_and(|delivery| delivery.explains(redis_at, glance));
        // What will take SQL past it waits in the outbox, unless SQL was rolled back once more.
        let ordered = order.is_some_and(|order| glance.may_hold(order));
        let overtaken = self.has_fallen(redis_at, at) && !explained && !ordered;
        let lost = heard.as_ref().filter(|heard| {
            let delivery = heard.delivery;
            self.has_fallen(delivery.to(), at) && !delivery.explains(delivery.to(), glance)
        });
        let mut state = self.state.lock();
        // Another Redis need not have come so far.
        let lost = lost.filter(|heard| !ordered && heard.is_of(&state));
        let redis_at = lost.map_or(redis_at, |heard| heard.delivery.to());
        if !ordered && state.order == order {
            // It was delivered, or is lost: it says nothing of the next rollback.
            state.order = None;
        }
        let rolled_back = (fell || overtaken || lost.is_some()) && state.note_rollback();
        if fell {
            // SQL was told so by who had taken Redis there.
            state.redis_at = state.redis_at.max(known);
            state.known = at;
        } else {
            state.known = state.known.max(at);
        }
        if state.claimed == before.claimed {
            state.claimed = 0;
        }
        if let Some(database) = glance.database {
            state.database = Some(database);
            let own = number_text(database);
            state.epoch = state.epoch.take().filter(|epoch| epoch.starts_with(&own));
            self.numbered
                .send_if_modified(|known| known.replace(database) != Some(database));
        }
        drop(state);
        if rolled_back {
            self.tell_of_rollback(at, known, redis_at);
        }
    }

    /// Doubts what the channel claims while SQL cannot be asked: it may be a forgery, and Redis may
    /// be behind.
    pub(super) fn without_look(&self) {
        let mut state = self.state.lock();
        state.unproven |= state.claimed > state.known;
        state.claimed = 0;
    }

    /// Believes in what Redis was found to be, if it has not been connected to anew since; or
    /// learns that it is used by another database. Says whether a new epoch is a beginning anew.
    pub(super) fn adopt(&self, connection: u64, found: Option<Adopted>) -> bool {
        let taken = found.is_none();
        let known = found.as_ref().map(|found| found.known);
        let (was_taken, anew, unproven) = {
            let mut state = self.state.lock();
            let was_taken = std::mem::replace(&mut state.taken, taken);
            let anew = state.adopt(connection, found);
            (was_taken, anew, state.unproven)
        };
        if unproven && !taken {
            self.look_wanted.notify_one();
        }
        // Told without the lock: whoever listens may ask for the status.
        match (was_taken, taken) {
            (false, true) => tracing::warn!("{TAKEN}"),
            (true, false) => tracing::info!("the namespace is free again"),
            _ => {}
        }
        if anew {
            tracing::warn!(
                known,
                "redis is empty, behind, or was used by another database: all it holds is unseen from now on"
            );
        }
        anew
    }

    /// The database's own number, if it is known.
    pub(crate) fn database(&self) -> Option<u64> {
        self.state.lock().database
    }

    /// Tells the database's own number when it is learnt or has changed.
    pub(crate) fn watch_database(&self) -> watch::Receiver<Option<u64>> {
        self.numbered.subscribe()
    }

    /// Notes that processes of another database find this one now, as one of this database's; or
    /// find it no more.
    pub(crate) fn can_be_found(&self, database: Option<u64>) {
        self.present
            .send_modify(|presence| presence.database = database);
    }

    /// Notes that the connection on which this process is found was lost, or has come back.
    pub(crate) fn is_away(&self, is_away: bool) {
        self.present
            .send_modify(|presence| presence.is_away = is_away);
    }

    /// Waits until others can find this process: one that used Redis before that would be
    /// overlooked by a process of another database that comes just then. If that was in vain, not
    /// again on the same connection to Redis.
    pub(super) async fn await_presence(&self) {
        let (database, connection) = {
            let state = self.state.lock();
            let Some(database) = state.database else {
                return;
            };
            if state.unfound_on == Some(state.connection) {
                return;
            }
            (database, state.connection)
        };
        let mut present = self.present.subscribe();
        let there =
            present.wait_for(|presence| presence.database == Some(database) && !presence.is_away);
        if tokio::time::timeout(PRESENCE_LIMIT, there).await.is_err() {
            self.state.lock().unfound_on = Some(connection);
        }
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

    /// Whether a rollback of SQL is heeded at all.
    pub(super) fn heeds_rollback(&self) -> bool {
        self.rules.heed_rollback && self.rules.heed_watermark
    }

    /// Notes that SQL, whose watermark is this, is behind what it was or, for no reason that there
    /// may be, behind Redis.
    pub(crate) fn on_fall(&self, at: u64) {
        let mut state = self.state.lock();
        let (known, redis_at) = (state.known, state.redis_at);
        let rolled_back = state.note_rollback();
        drop(state);
        if rolled_back {
            self.tell_of_rollback(at, known, redis_at);
        }
    }

    /// A look gives the order that everything be invalidated. If it is a look that has noticed, it
    /// does so itself, and costs one more, to which the same is no news. Without the lock, as
    /// whoever listens may ask for the status.
    fn tell_of_rollback(&self, at: u64, known: u64, redis_at: u64) {
        self.look_wanted.notify_one();
        tracing::warn!(
            at,
            known,
            redis_at,
            "the database was rolled back: everything is invalidated"
        );
    }

    /// Whether SQL was rolled back, and everything has yet to be invalidated because of it.
    pub(crate) fn is_rolled_back(&self) -> bool {
        self.state.lock().rolled_back
    }

    /// Everything has been invalidated: the order is in SQL.
    pub(crate) fn all_is_ordered(&self, order: RowMark) {
        let mut state = self.state.lock();
        state.rolled_back = false;
        state.order = Some(order);
    }

    /// Whether everything is ordered to be invalidated, and this process has not seen that
    /// delivered.
    pub(crate) fn is_order_out(&self) -> bool {
        self.state.lock().order.is_some()
    }

    /// Learns that this process has applied these rows to Redis, up to this watermark, and
    /// committed that in SQL.
    pub(crate) fn learn(&self, watermark: u64, rows: &[RowMark]) {
        let mut state = self.state.lock();
        state.known = state.known.max(watermark);
        state.order = state.order.filter(|order| !rows.contains(order));
    }

    /// The channel says that invalidations were applied up to this watermark.
    pub(crate) fn on_claim(&self, watermark: u64) {
        let mut state = self.state.lock();
        state.claimed = state.claimed.max(watermark);
    }

    /// Waits until a look at SQL is wanted at once.
    pub(crate) async fn look_wanted(&self) {
        self.look_wanted.notified().await;
    }

    /// Returns the moment, before a look or a delivery.
    pub(crate) fn vantage(&self) -> Vantage {
        let state = self.state.lock();
        Vantage {
            suspensions: state.suspensions,
            connection: state.connection,
            asked: state.asked,
        }
    }

    /// Stops reading from Redis; says whether that is a change.
    pub(crate) fn suspend(&self, reason: &'static str) -> bool {
        let mut state = self.state.lock();
        state.suspensions += 1;
        state.suspended.replace(reason).is_none()
    }

    /// Resumes reading from Redis, since nothing waits any more; says whether that is a change. Who
    /// began to find that out before there was a reason to stop knows nothing of it; and where an
    /// order to invalidate everything should wait, it may have been lost with another rollback. A
    /// look is to find out.
    pub(crate) fn resume(&self, since: Vantage) -> bool {
        let mut state = self.state.lock();
        if state.suspended.is_none() {
            return false;
        }
        let knows =
            state.suspensions == since.suspensions && !state.rolled_back && state.order.is_none();
        if knows {
            state.suspended = None;
        } else {
            self.look_wanted.notify_one();
        }
        knows
    }

    /// Notes that SQL was held against Redis by a look that began then, and that Redis is not read
    /// if there is a reason for that.
    pub(crate) fn prove(&self, since: Vantage) {
        let mut state = self.state.lock();
        let same = (state.connection, state.asked) == (since.connection, since.asked);
        state.unproven &= !same || since.asked == 0;
    }

    /// Returns the reason why Redis is not read, if SQL gives one.
    pub(crate) fn suspended(&self) -> Option<&'static str> {
        self.state.lock().unread_because()
    }

    /// Whether to have heard everything proves nothing, because an invalidation waits that has not
    /// been announced, or SQL has not said how many there are.
    pub(crate) fn is_blind(&self) -> bool {
        let state = self.state.lock();
        state.unread_because().is_some() || (state.unproven && self.rules.await_sql)
    }

    /// Whether SQL was held against Redis since that was connected to.
    pub(crate) fn is_proven(&self) -> bool {
        !self.state.lock().unproven
    }

    /// Returns the watermark that Redis must have reached, by what SQL said.
    pub(crate) fn known_watermark(&self) -> u64 {
        self.state.lock().known
    }

    pub(crate) fn epoch(&self) -> Option<Arc<str>> {
        self.state.lock().epoch.clone()
    }

    /// Returns the watermark of a Redis that is to be believed or written to, if this is the
    /// watermark known.
    pub(crate) fn required(&self, known: u64) -> u64 {
        if self.rules.heed_watermark { known } else { 0 }
    }

    pub(super) fn believed(&self) -> Option<EpochView> {
        self.view(&self.state.lock())
    }

    fn view(&self, state: &State) -> Option<EpochView> {
        state.epoch.as_ref().map(|epoch| EpochView {
            epoch: epoch.clone(),
            watermark: state.known.max(state.claimed),
            server: NO_SERVER,
            proven: !state.unproven || !self.rules.await_sql,
        })
    }
}

impl Heard {
    /// Whether what is believed now is what was believed then.
    fn is_of(&self, state: &State) -> bool {
        self.connection == state.connection && state.epoch.as_ref() == Some(&self.epoch)
    }
}

impl State {
    /// Says whether that was not known yet.
    fn note_rollback(&mut self) -> bool {
        !std::mem::replace(&mut self.rolled_back, true)
    }

    /// A rollback is a reason from the moment at which it is known.
    fn unread_because(&self) -> Option<&'static str> {
        self.suspended.or(self.rolled_back.then_some(ROLLED_BACK))
    }

    /// Says whether a new epoch is a beginning anew.
    fn adopt(&mut self, connection: u64, found: Option<Adopted>) -> bool {
        let Some(found) = found else {
            return false;
        };
        // The first epoch of all is no beginning anew: nothing was there that could be behind.
        let anew = found.begun && (found.held || found.known > 0 || self.adopted);
        self.adopted = true;
        if self.connection == connection {
            self.epoch = Some(found.epoch.into());
            self.redis_at = found.watermark;
            self.delivery = found.delivery;
            self.asked += 1;
            self.unproven &= !found.proven;
        }
        anew
    }
}

/// A process goes on without being found by others after so long: it may not be able to listen.
const PRESENCE_LIMIT: Duration = Duration::from_secs(1);

pub(crate) const TAKEN: &str = "another database uses this namespace in this Redis, and was there first: each needs a namespace of its own";

pub(crate) const ROLLED_BACK: &str =
    "the database was rolled back, and everything has yet to be invalidated";

/// Returns the beginning of the epochs of a database of this number.
pub(crate) fn number_text(number: u64) -> String {
    format!("{number:016x}")
}

#[cfg(test)]
mod tests;
