//! Users do not wait for each other. A generator that sends the next call only once the last was
//! answered sends almost none while everything stands still, and so misses just what it was to
//! measure. Here calls start when they are due, their latency counts from then, and those that
//! cannot be started are counted too.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::ledger::{Ledger, Said};
use crate::record::{Ended, LATE, Record};
use crate::scenario::{Arrivals, Load, Phases};
use crate::subject::Subject;
use crate::truth::Truth;

/// Timers wake to the millisecond. That much of a late start is the generator's own, and not
/// charged to the subject.
const GRAIN: Duration = Duration::from_millis(1);
/// A call that takes longer than this will never end.
const HUNG: Duration = Duration::from_secs(30);
/// The time that calls still running at the end of the load are given to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How much longer than its phases a load may take to reach its number of calls.
const OVERTIME: Duration = Duration::from_secs(600);

/// A subject under load, and what was seen of it.
pub struct Lane {
    subject: Arc<dyn Subject>,
    start: Instant,
    seen: Mutex<Seen>,
}

struct Seen {
    record: Record,
    truth: Truth,
    /// Of a subject whose data are in Redis itself. What it reads is judged in the end, by this.
    ledger: Option<Ledger>,
}

impl Lane {
    /// A subject whose load starts at `start`.
    pub fn new(
        subject: Arc<dyn Subject>,
        start: Instant,
        phases: Phases,
        allowed_age: Duration,
    ) -> Self {
        let seen = Seen {
            record: Record::new(phases),
            truth: Truth::new(allowed_age),
            ledger: None,
        };
        Self {
            subject,
            start,
            seen: Mutex::new(seen),
        }
    }

    /// The same, of a subject that keeps a ledger.
    pub(crate) fn keeping_a_ledger(self) -> Self {
        self.seen().ledger = Some(Ledger::default());
        self
    }

    /// Reads the ledger, an empty one if none is kept.
    pub(crate) fn ledger<T>(&self, with: impl FnOnce(&Ledger) -> T) -> T {
        with(self.seen().ledger.as_ref().unwrap_or(&Ledger::default()))
    }

    /// A moment, from the start of the load.
    pub(crate) fn moment(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    /// The subject.
    pub fn subject(&self) -> &dyn Subject {
        &*self.subject
    }

    /// The time from the start of the load.
    pub fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.start)
    }

    /// Reads or writes the record. For moments only: calls that end wait meanwhile.
    pub fn record<T>(&self, with: impl FnOnce(&mut Record) -> T) -> T {
        with(&mut self.seen().record)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(self: &Arc<Self>, choice: Choice, due: Duration) {
        let begun = self.now();
        if begun > due + LATE {
            self.seen().record.late(begun - due);
        }
        let mut call = Open {
            lane: self.clone(),
            due,
            charged: begun.min(due + GRAIN),
            write: choice.write,
            ended: None,
        };
        call.ended = Some(match choice.write {
            true => self.write(choice.key).await,
            false => self.read(choice.key, begun).await,
        });
    }

    async fn write(&self, key: u64) -> Ended {
        let now = self.now();
        let (version, entry) = {
            let mut seen = self.seen();
            let version = seen.truth.next_version(key);
            let ledger = seen.ledger.as_mut();
            (
                version,
                ledger.map(|ledger| ledger.begin(key, version, now)),
            )
        };
        let written = timeout(HUNG, self.subject.write(key, version)).await;
        let (now, mut seen) = (self.now(), self.seen());
        if let (Some(ledger), Some(entry)) = (&mut seen.ledger, entry) {
            let said = match &written {
                Ok(Ok(())) => Said::Acknowledged,
                Ok(Err(failure)) if failure.denies() => Said::Denied,
                Ok(Err(_)) | Err(_) => Said::Unknown,
            };
            ledger.end(entry, said, now);
        }
        match written {
            Ok(Ok(())) => {
                seen.truth.confirm(key, version, now);
                Ended::Written
            }
            Ok(Err(failure)) => Ended::WriteFailed(failure.kind),
            Err(_) => Ended::WriteFailed("hung"),
        }
    }

    async fn read(&self, key: u64, begun: Duration) -> Ended {
        let read = timeout(HUNG, self.subject.read(key)).await;
        if let Some(ledger) = &mut self.seen().ledger {
            let answered = matches!(read, Ok(Ok(_)));
            ledger.read(key, (begun, self.now()), answered);
        }
        match read {
            Ok(Ok(answer)) => {
                let seen = self.seen();
                let wrong = seen.ledger.is_none() && seen.truth.is_wrong(key, &answer, begun);
                Ended::Read { answer, wrong }
            }
            failed => Ended::ReadFailed(failed.map_or("hung", |failed| {
                failed.map_or_else(|failure| failure.kind, |_| "hung")
            })),
        }
    }
}

/// A call under way. Whatever becomes of it, a panic of the subject included, it is recorded.
struct Open {
    lane: Arc<Lane>,
    due: Duration,
    charged: Duration,
    write: bool,
    ended: Option<Ended>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let unfinished = if self.write {
            Ended::WriteFailed("unfinished")
        } else {
            Ended::ReadFailed("unfinished")
        };
        let ended = self.ended.unwrap_or(unfinished);
        let now = self.lane.now();
        self.lane
            .seen()
            .record
            .call(self.due, self.charged, now, ended);
    }
}

/// Puts the load on the lane until its phases are over (or its number of calls is made), or until
/// `stop`. When it returns, no call is running.
pub async fn drive(
    lane: Arc<Lane>,
    load: Load,
    length: Duration,
    seed: u64,
    stop: CancellationToken,
) {
    drive_until(lane, load, length, seed, stop, CancellationToken::new()).await;
}

/// As [`drive`], but no further call starts once `finish` comes; those that are running are waited
/// for.
pub async fn drive_until(
    lane: Arc<Lane>,
    load: Load,
    length: Duration,
    seed: u64,
    stop: CancellationToken,
    finish: CancellationToken,
) {
    let abandon = CancellationToken::new();
    let places = Arc::new(Semaphore::new(load.in_flight));
    let loading = async {
        match load.arrivals {
            Arrivals::Open { rate } => {
                open_loop(&lane, &load, rate, length, seed, &places, &abandon).await
            }
            Arrivals::Closed { callers, pause } => {
                closed_loop(
                    &lane, &load, callers, pause, length, seed, &abandon, &finish,
                )
                .await;
            }
        }
    };
    tokio::select! {
        () = loading => {}
        // Of an open loop only the starting ends; its calls are tasks of their own.
        () = finish.cancelled(), if matches!(load.arrivals, Arrivals::Open { .. }) => {}
        () = stop.cancelled() => abandon.cancel(),
    }
    let all = u32::try_from(load.in_flight).expect("a scenario allows fewer");
    if timeout(DRAIN, places.acquire_many(all)).await.is_err() {
        abandon.cancel();
        let _ = places.acquire_many(all).await;
    }
}

async fn open_loop(
    lane: &Arc<Lane>,
    load: &Load,
    rate: f64,
    length: Duration,
    seed: u64,
    places: &Arc<Semaphore>,
    abandon: &CancellationToken,
) {
    let mut choices = Choices::new(load, seed);
    let calls = load.calls.unwrap_or((length.as_secs_f64() * rate) as u64);
    for number in 0..calls {
        let due = Duration::from_secs_f64(number as f64 / rate);
        if due > length + OVERTIME {
            break;
        }
        if due > lane.now() {
            sleep_until(lane.start + due).await;
        } else if number % 64 == 0 {
            // Behind: the calls already started must get their turn.
            tokio::task::yield_now().await;
        }
        let choice = choices.next();
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let (lane, abandon) = (lane.clone(), abandon.clone());
                tokio::spawn(async move {
                    let _place = place;
                    abandon.run_until_cancelled(lane.call(choice, due)).await;
                });
            }
            Err(_) => lane.seen().record.skip(due),
        }
    }
    sleep_until(lane.start + length).await;
}

#[expect(
    clippy::too_many_arguments,
    reason = "one caller, which has just these"
)]
async fn closed_loop(
    lane: &Arc<Lane>,
    load: &Load,
    callers: usize,
    pause: Duration,
    length: Duration,
    seed: u64,
    abandon: &CancellationToken,
    finish: &CancellationToken,
) {
    let left = Arc::new(std::sync::atomic::AtomicU64::new(
        load.calls.unwrap_or(u64::MAX),
    ));
    let end = if load.calls.is_some() {
        length + OVERTIME
    } else {
        length
    };
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let (lane, left, abandon) = (lane.clone(), left.clone(), abandon.clone());
        let finish = finish.clone();
        let mut choices = Choices::new(load, seed.wrapping_add(caller as u64));
        tasks.spawn(async move {
            let calling = async {
                while lane.now() < end && !finish.is_cancelled() && take_one(&left) {
                    lane.call(choices.next(), lane.now()).await;
                    // Even without a pause a caller lets others have their turn.
                    if pause.is_zero() {
                        tokio::task::yield_now().await
                    } else {
                        sleep(pause).await
                    }
                }
            };
            abandon.run_until_cancelled(calling).await;
        });
    }
    while tasks.join_next().await.is_some() {}
    if !finish.is_cancelled() {
        sleep_until(lane.start + length).await;
    }
}

fn take_one(left: &std::sync::atomic::AtomicU64) -> bool {
    use std::sync::atomic::Ordering::Relaxed;
    left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
        .is_ok()
}

struct Choices {
    rng: SmallRng,
    keys: Zipf<f64>,
    writes: f64,
}

#[derive(Clone, Copy)]
struct Choice {
    key: u64,
    write: bool,
}

impl Choices {
    fn new(load: &Load, seed: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            keys: Zipf::new(load.keys as f64, load.zipf)
                .expect("a scenario allows no other numbers"),
            writes: load.writes,
        }
    }

    fn next(&mut self) -> Choice {
        let key = self.keys.sample(&mut self.rng) as u64 - 1;
        Choice {
            key,
            write: self.rng.random_bool(self.writes),
        }
    }
}
