//! Readers that look at Redis in the same moment ask together.
//!
//! A question of its own costs each reader two commands, a place in the client's queue and the
//! epoch and watermark once more. Where many readers share a connection they are woken together,
//! since replies come together, and look at Redis again together. So the first of them opens a
//! [`Gathering`], which stays open for a turn of the runtime, until all that were woken with it
//! have run; then one question is asked for all, and each is given its own part of the answer.
//!
//! A task of its own asks, and no reader: nobody can tell whether a reader is still polled. That
//! task lives in the runtime of all whom it asks for. If it ends without an answer, its readers
//! hear that at once, and ask for themselves; so they do if the answer is an error of the server,
//! or is larger than the client takes, which may be due to one of them. What the client says of
//! Redis (that it is late, or down) it would have said to each; but in a cluster one of them can
//! make it late for all, so there it gets a part of the time only. A reply that is too large ends
//! the connection, and every other call on it: no more ask together than such a client has room
//! for, and if it was too large all the same, nobody does again.
//!
//! Nobody may wait for what others have asked for longer than for an answer of his own. So large
//! values are asked for alone: where a class has shown one lately, its readers do not gather. A
//! gathering that is not closed in time, because its task waits behind something that occupies its
//! thread, is closed by the next reader; and if none comes, or if that runtime is not driven, a
//! thread beside all runtimes ([`watch`]) sends its readers to ask for themselves.

mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;
use steadfast::{Effect, ErrorKind};
use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;

use super::answer::{EpochView, RedisFailure, RedisResult};
use super::look::{Found, Names, Wanted, text};
use super::scripts::LOOK_FOR_ALL;
use super::{RedisAllowance, RedisTier, asked_within};
use crate::clock::clock;
use crate::monotonic::Monotonic;

/// What the readers of one tier have in common.
pub(super) struct Together {
    open: Mutex<Open>,
    /// Readers whose look has begun and not ended.
    looking: AtomicUsize,
    /// The length of the longest values of late, for each class; classes beyond these share them.
    sizes: [AtomicU32; CLASSES],
    /// Until this moment everybody asks alone: the bits of a [`Monotonic`].
    apart_until: AtomicU64,
    /// Readers that ask together at most.
    most: usize,
}

/// The gatherings for which Redis has not been asked yet.
#[derive(Default)]
struct Open {
    /// The number of the gathering that is opened next.
    next: u64,
    gathering: Option<Gathering>,
    /// Those that nobody joins any more, and whose task has not run yet.
    due: Vec<Gathering>,
    watch: watch::State,
}

/// Readers who will ask together.
struct Gathering {
    number: u64,
    began: Instant,
    /// All of them run in this runtime.
    runtime: Id,
    /// All of them believe in this epoch, of this server. Its watermark is the highest that one of
    /// them expects.
    epoch_view: EpochView,
    readers: Vec<Reader>,
}

struct Reader {
    names: Names,
    answer: oneshot::Sender<Told>,
}

/// A look that has begun, until it is dropped.
pub(super) struct Looking<'a>(&'a AtomicUsize);

impl Together {
    /// For a client that takes replies of so many bytes.
    pub(super) fn new(reply_bytes: usize) -> Self {
        Self {
            most: MOST.min(reply_bytes / ROOM),
            open: Mutex::default(),
            looking: AtomicUsize::new(0),
            sizes: std::array::from_fn(|_| AtomicU32::new(UNKNOWN)),
            apart_until: AtomicU64::new(Monotonic::FIRST.to_bits()),
        }
    }

    /// Counts a look.
    pub(super) fn looks(&self) -> Looking<'_> {
        self.looking.fetch_add(1, Ordering::Relaxed);
        Looking(&self.looking)
    }

    /// Whether it is worth waiting for others: there are some, and what they ask for is small.
    pub(super) fn invites(&self, wanted: &Wanted<'_>) -> bool {
        self.looking.load(Ordering::Relaxed) >= SEVERAL
            && self.most >= SEVERAL
            && wanted.tags.len() <= FEW_TAGS
            && self.sizes[wanted.class % CLASSES].load(Ordering::Relaxed) <= LARGE
    }

    /// Learns how long a value of this class is. A long one is remembered for some hundred others.
    pub(super) fn note_size(&self, class: usize, bytes: usize) {
        let size = &self.sizes[class % CLASSES];
        let (before, bytes) = (size.load(Ordering::Relaxed), saturated(bytes));
        if bytes > before {
            size.store(bytes, Ordering::Relaxed);
        } else if before > LARGE {
            size.store(bytes.max(before - before / 64), Ordering::Relaxed);
        }
    }

    fn are_apart(&self, now: Instant) -> bool {
        Monotonic::from(now).to_bits() < self.apart_until.load(Ordering::Relaxed)
    }

    /// Lets everybody ask alone for so long.
    fn part(&self, time: Duration) {
        let until = Monotonic::now().plus(time.into());
        self.apart_until
            .fetch_max(until.to_bits(), Ordering::Relaxed);
    }

    /// Lets everybody ask alone from now on.
    fn part_for_good(&self) {
        self.apart_until.store(u64::MAX, Ordering::Relaxed);
    }

    /// Takes the gathering of this number, if Redis has not been asked for it yet.
    fn take(&self, number: u64) -> Option<Gathering> {
        let mut open = self.open.lock();
        open.watch.runs();
        let is_it = |gathering: &Gathering| gathering.number == number;
        if let Some(gathering) = open.gathering.take_if(|gathering| is_it(gathering)) {
            return Some(gathering);
        }
        let place = open.due.iter().position(is_it)?;
        Some(open.due.swap_remove(place))
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gathering {
    /// Whether a reader of this runtime may ask along that believes in this.
    fn admits(&self, runtime: Id, epoch_view: &EpochView) -> bool {
        self.runtime == runtime
            && Arc::ptr_eq(&self.epoch_view.epoch, &epoch_view.epoch)
            && self.epoch_view.server == epoch_view.server
    }
}

/// The steps that follow a reader's coming.
enum Step {
    /// Nothing: another sees to it.
    None,
    /// The gathering of this number is to be asked for after a turn.
    Wait(u64),
    /// The gathering of this number is to be asked for at once.
    Ask(u64),
}

/// What becomes of a reader that has joined others; nothing, if nobody has asked.
enum Told {
    Answer(RedisResult<Found>),
    /// The question has failed, perhaps because of another's value: to be asked alone.
    InVain,
}

impl RedisTier {
    /// Asks together with those that ask at this moment, as the first question of a look; `None` if
    /// the reader has to ask alone.
    pub(super) async fn ask_with_others(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        epoch_view: &EpochView,
        allowance: &mut RedisAllowance,
    ) -> Option<RedisResult<Found>> {
        let names = self.names_of(wanted, epoch_view);
        // Where nobody has asked, no time was lost to Redis.
        let told = self.gather(names, epoch_view, wanted.asked)?.await.ok()?;
        let took = clock().saturating_duration_since(wanted.asked);
        match told {
            Told::Answer(answer) => {
                allowance.charge(took);
                Some(answer)
            }
            Told::InVain => {
                allowance.charge_in_vain(took);
                None
            }
        }
    }

    /// Joins the gathering that is open, or opens one. `None` if the reader may not join.
    fn gather(
        self: &Arc<Self>,
        names: Names,
        epoch_view: &EpochView,
        now: Instant,
    ) -> Option<oneshot::Receiver<Told>> {
        let together = &self.together;
        let runtime = Handle::try_current().ok()?;
        if together.are_apart(now) {
            return None;
        }
        let (answer, told) = oneshot::channel();
        let reader = Reader { names, answer };
        let (step, unwatched) = {
            let mut open = together.open.lock();
            let step = open.add(reader, together.most, runtime.id(), epoch_view, now)?;
            (step, open.watch.begins())
        };
        // After the lock is let go: a runtime that has ended drops a task where it is spawned.
        if unwatched && !watch::begin(self) {
            return None;
        }
        let (number, comes_at_once) = match step {
            Step::None => return Some(told),
            Step::Wait(number) => (number, false),
            Step::Ask(number) => (number, true),
        };
        let turn = Turn {
            tier: Arc::clone(self),
            number,
        };
        runtime.spawn(turn.end(comes_at_once));
        Some(told)
    }

    /// Asks for all of a gathering, and tells each its own.
    async fn ask_for_all(self: Arc<Self>, gathering: Gathering) {
        let Gathering {
            began,
            epoch_view,
            mut readers,
            ..
        } = gathering;
        // Those that have gone away are not asked for.
        readers.retain(|reader| !reader.answer.is_closed());
        if readers.is_empty() {
            return;
        }
        let waited = clock().saturating_duration_since(began);
        let limit = match self.names.are_in_one_slot() {
            true => self.limit / PART_IN_A_CLUSTER,
            false => self.limit,
        };
        let Some(limit) = limit.checked_sub(waited).filter(|left| !left.is_zero()) else {
            return; // each hears that nobody has asked
        };
        let found = match self.find_all(&readers, &epoch_view, limit).await {
            Ok(found) => found,
            Err(trouble) => {
                if !matches!(trouble, Some(RedisFailure::Replaced)) {
                    self.together.part(APART);
                }
                for reader in readers {
                    let _ = reader.answer.send(match &trouble {
                        Some(trouble) => Told::Answer(Err(trouble.clone())),
                        None => Told::InVain,
                    });
                }
                return;
            }
        };
        self.stats.redis_shared.add(readers.len() as u64);
        for (reader, found) in readers.into_iter().zip(found) {
            let _ = reader.answer.send(Told::Answer(Ok(found)));
        }
    }

    /// Asks for all of these. A failure that may be due to one of them is `Err(None)`.
    async fn find_all(
        &self,
        readers: &[Reader],
        epoch_view: &EpochView,
        limit: Duration,
    ) -> Result<Vec<Found>, Option<RedisFailure>> {
        let answer = match self.names.are_in_one_slot() {
            true => self.ask_for_all_by_script(readers, limit).await,
            false => self.ask_for_all_by_pipeline(readers, limit).await,
        };
        let (epoch, watermark, found) = take_apart(answer?, readers).ok_or(None)?;
        self.check(epoch_view, epoch.as_deref(), watermark.as_deref())?;
        Ok(found)
    }
}

impl RedisTier {
    async fn ask_for_all_by_pipeline(
        &self,
        readers: &[Reader],
        limit: Duration,
    ) -> Result<Vec<Value>, Option<RedisFailure>> {
        let mut pipe = redis::Pipeline::with_capacity(readers.len() + 1);
        let names = readers.iter().map(|reader| &reader.names);
        let bytes: usize = names.clone().map(Names::bytes).sum();
        let mut values = redis::Cmd::with_capacity(3 + readers.len(), bytes + 128);
        values.arg("MGET");
        values.arg(self.names.epoch()).arg(self.names.watermark());
        for names in names {
            let mut time = redis::Cmd::with_capacity(2, names.value.len() + 8);
            time.arg("PTTL").arg(&names.value);
            pipe.add_command(time);
            values.arg(&names.value).arg(&names.tags);
        }
        pipe.add_command(values);
        let client = self.client.with(asked_within(limit));
        self.judge(client.send_pipeline(&pipe).await)
    }

    async fn ask_for_all_by_script(
        &self,
        readers: &[Reader],
        limit: Duration,
    ) -> Result<Vec<Value>, Option<RedisFailure>> {
        let tags: usize = readers.iter().map(|reader| reader.names.tags.len()).sum();
        let mut ask = redis::cmd("EVAL");
        ask.arg(LOOK_FOR_ALL).arg(2 + readers.len() + tags);
        ask.arg(self.names.epoch()).arg(self.names.watermark());
        for reader in readers {
            ask.arg(&reader.names.value).arg(&reader.names.tags);
        }
        // The places of the values among the names.
        let mut place = 3;
        for reader in readers {
            ask.arg(place);
            place += 1 + reader.names.tags.len();
        }
        let client = self.client.with(asked_within(limit).effect(Effect::Read));
        match self.judge(client.send(&ask).await)? {
            Value::Array(answer) => Ok(answer),
            _ => Err(None),
        }
    }

    /// Counts an answer; says of a failure whether it may be due to one of the values.
    fn judge<T>(&self, answer: Result<T, steadfast::Error>) -> Result<T, Option<RedisFailure>> {
        let counter = match answer {
            Ok(_) => &self.stats.redis_answers,
            Err(_) => &self.stats.redis_errors,
        };
        counter.add(1);
        answer.map_err(|error| match error.kind() {
            ErrorKind::Server(_) => None,
            ErrorKind::ReplyTooLarge { .. } => {
                // Its connection has ended with it, for all that were using it.
                self.together.part_for_good();
                None
            }
            // Each has the rest of its time for a question of its own.
            ErrorKind::Timeout { .. } if self.names.are_in_one_slot() => None,
            _ => Some(RedisFailure::Failed(error.into())),
        })
    }
}

impl Open {
    /// Adds a reader; `None` if it has to ask alone.
    fn add(
        &mut self,
        reader: Reader,
        most: usize,
        runtime: Id,
        epoch_view: &EpochView,
        now: Instant,
    ) -> Option<Step> {
        let Some(open) = &mut self.gathering else {
            let number = self.next;
            self.next += 1;
            let mut readers = Vec::with_capacity(most);
            readers.push(reader);
            self.gathering = Some(Gathering {
                number,
                began: now,
                runtime,
                epoch_view: epoch_view.clone(),
                readers,
            });
            return Some(Step::Wait(number));
        };
        let overdue = now.saturating_duration_since(open.began) > OVERDUE;
        if !open.admits(runtime, epoch_view) {
            return None;
        }
        open.readers.push(reader);
        let watermark = &mut open.epoch_view.watermark;
        *watermark = epoch_view.watermark.max(*watermark);
        if overdue || open.readers.len() >= most {
            let gathering = self.gathering.take()?;
            let number = gathering.number;
            self.due.push(gathering);
            return Some(Step::Ask(number));
        }
        Some(Step::None)
    }
}

/// Texts that Redis has, or has not.
type Text = Option<Vec<u8>>;

/// Takes apart the times that are left, and epoch, watermark and what each reader has named.
fn take_apart(answer: Vec<Value>, readers: &[Reader]) -> Option<(Text, Text, Vec<Found>)> {
    let names: usize = readers.iter().map(|reader| reader.names.tags.len()).sum();
    let mut answer = answer.into_iter();
    let times = answer.by_ref().take(readers.len());
    let times: Option<Vec<i64>> = times
        .map(|time| match time {
            Value::Int(left) => Some(left),
            _ => None,
        })
        .collect();
    let (times, Some(Value::Array(texts)), None) = (times?, answer.next(), answer.next()) else {
        return None;
    };
    if texts.len() != 2 + readers.len() + names {
        return None;
    }
    let mut texts = texts.into_iter().map(text);
    let (epoch, watermark) = (texts.next()??, texts.next()??);
    let mut found = Vec::with_capacity(readers.len());
    for (reader, left) in readers.iter().zip(times) {
        found.push(Found {
            left,
            value: texts.next()??,
            tokens: texts
                .by_ref()
                .take(reader.names.tags.len())
                .collect::<Option<_>>()?,
        });
    }
    Some((epoch, watermark, found))
}

/// The task of a gathering for which Redis has not been asked.
struct Turn {
    tier: Arc<RedisTier>,
    number: u64,
}

impl Turn {
    /// Waits until all that are to run at this moment have run, if it is not to come at once, and
    /// asks for those that have come.
    async fn end(self, at_once: bool) {
        if !at_once {
            tokio::task::yield_now().await;
        }
        if let Some(gathering) = self.tier.together.take(self.number) {
            Arc::clone(&self.tier).ask_for_all(gathering).await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // If nobody has asked, its readers ask alone.
        drop(self.tier.together.take(self.number));
    }
}

fn saturated(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// With so many looks under way it is worth waiting for others: among fewer a task costs more than
/// it saves.
const SEVERAL: usize = 4;

/// Who names more tags asks alone.
const FEW_TAGS: usize = 4;

/// Readers that ask together at most.
const MOST: usize = 64;

/// A value longer than this is asked for alone. So many of them are 256 KiB.
const LARGE: u32 = 4 << 10;

/// The part of a reply that one reader may need: twice its value, since buffers double as they
/// grow, which is ample for its tokens too.
const ROOM: usize = 2 * LARGE as usize;

/// In a cluster a question for many may take this part of what each may spend. Where a slot is in
/// motion a single key that is not there holds up the whole of it (`TRYAGAIN`).
const PART_IN_A_CLUSTER: u32 = 4;

/// The length of the values of a class of which none has been seen.
const UNKNOWN: u32 = LARGE + LARGE / 2;

/// Classes that are told apart.
const CLASSES: usize = 64;

/// The time after which a gathering should have been closed.
const OVERDUE: Duration = Duration::from_millis(1);

/// The time for which everybody asks alone, after a question for many has failed.
const APART: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
