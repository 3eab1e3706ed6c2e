//! The second control is the application as it is written with care, and without a library for it:
//! a pool of connections with time-outs, retries with exponential pauses, a breaker around each
//! attempt, and the database where Redis does not answer. Its values are common ones. Like the
//! first control it has no tier in memory, and like most it forgets that a deletion has failed.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig, RedisError};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::control::{Rows, Table, client_of};
use crate::subject::{
    Answer, Breaker, Connection, DatabaseFault, Endpoint, Facts, Failure, SetUpError, Subject,
};

/// Connections at most, each of which serves one call at a time.
const POOL: usize = 10;
/// For connecting, for an answer, and for a place in the pool.
const TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 5;
/// The pause after the first attempt; each next is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// So many attempts that fail one after the other open the breaker,
const THRESHOLD: u32 = 5;
/// and so long it stays open; then one attempt passes on trial.
const OPEN: Duration = Duration::from_secs(5);
/// The seconds for which a value stays in Redis.
const EXPIRES: u64 = 360;

/// A subject whose resilience is built by hand.
pub struct HandBuilt {
    client: redis::Client,
    options: AsyncConnectionConfig,
    rows: Rows,
    places: Semaphore,
    idle: Mutex<Vec<MultiplexedConnection>>,
    breaker: Mutex<CircuitGate>,
}

/// The breaker: how many attempts failed one after the other, and since when it is open.
#[derive(Default)]
struct CircuitGate {
    failed: u32,
    open: Option<Instant>,
    on_trial: bool,
}

impl CircuitGate {
    fn admits(&mut self, now: Instant) -> bool {
        match self.open {
            None => true,
            Some(since) if now >= since + OPEN && !self.on_trial => {
                self.on_trial = true;
                true
            }
            Some(_) => false,
        }
    }

    fn record(&mut self, well: bool, now: Instant) {
        // What was under way when it opened is no trial.
        if self.open.is_some() && !self.on_trial {
            return;
        }
        self.on_trial = false;
        if well {
            *self = Self::default();
            return;
        }
        self.failed += 1;
        if self.failed >= THRESHOLD {
            self.open = Some(now);
        }
    }

    fn state(&self) -> Breaker {
        match (self.open, self.on_trial) {
            (None, _) => Breaker::Closed,
            (Some(_), true) => Breaker::HalfOpen,
            (Some(_), false) => Breaker::Open,
        }
    }
}

/// Redis did not answer, or was not asked.
struct Unanswered;

impl HandBuilt {
    /// A subject at that Redis and over that table. Connects when it is first used.
    ///
    /// # Errors
    /// When the URL is not one of a Redis.
    pub fn start(endpoint: &Endpoint, table: Box<dyn Table>) -> Result<Self, SetUpError> {
        let options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        Ok(Self {
            client: client_of(endpoint)?,
            options,
            rows: Rows::new("hand-built", table),
            places: Semaphore::new(POOL),
            idle: Mutex::default(),
            breaker: Mutex::default(),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<MultiplexedConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self) -> MutexGuard<'_, CircuitGate> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call with its retries.
    async fn redis<T, F>(&self, call: impl Fn(MultiplexedConnection) -> F) -> Result<T, Unanswered>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            if !self.gate().admits(Instant::now()) {
                break;
            }
            let trial = OnTrial(self);
            let outcome = self.attempt(&call).await;
            trial.over(outcome.as_ref().is_ok_and(Result::is_ok));
            match outcome {
                Ok(Ok(value)) => {
                    self.rows.counts.redis(true);
                    return Ok(value);
                }
                // What the server has refused it would refuse again.
                Ok(Err(error)) if !worth_repeating(&error) => break,
                _ if attempt < ATTEMPTS => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                _ => {}
            }
        }
        self.rows.counts.redis(false);
        Err(Unanswered)
    }

    /// Makes one attempt, on a connection of the pool. Fails without an error if there was no
    /// place.
    async fn attempt<T, F>(
        &self,
        call: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<Result<T, RedisError>, Unanswered>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let place = timeout(TIMEOUT, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(Unanswered);
        };
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                self.rows.counts.attempts.fetch_add(1, Relaxed);
                let dialled = self
                    .client
                    .get_multiplexed_async_connection_with_config(&self.options)
                    .await;
                match dialled {
                    Ok(connection) => {
                        self.rows.counts.connected.fetch_add(1, Relaxed);
                        connection
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
        };
        let outcome = call(connection.clone()).await;
        match &outcome {
            // One that did not answer in time may answer the next call with what belongs to this
            // one.
            Err(error) if error.is_unrecoverable_error() || error.is_timeout() => {
                self.rows.counts.lost.fetch_add(1, Relaxed);
                // Those that wait beside it have been lost with it.
                self.idle().clear();
            }
            _ => self.idle().push(connection),
        }
        Ok(outcome)
    }

    async fn read(&self, key: u64) -> Result<Answer, Failure> {
        let name = self.rows.name(key);
        let get = |mut connection: MultiplexedConnection| {
            let name = name.clone();
            async move { connection.get::<_, Option<String>>(name).await }
        };
        let cached = self.redis(get).await;
        let now = self.rows.now();
        let answered = cached.is_ok();
        let kept = cached.ok().flatten();
        if let Some(answer) = kept.and_then(|text| Rows::answer(&text, now)) {
            return Ok(answer);
        }
        let answer = self.rows.load(key).await?;
        if answered {
            let set = |mut connection: MultiplexedConnection| {
                let (name, value) = (name.clone(), Rows::value(answer.version, now));
                async move { connection.set_ex::<_, _, ()>(name, value, EXPIRES).await }
            };
            let _ = self.redis(set).await;
        }
        Ok(answer)
    }

    async fn write(&self, key: u64, version: u64) -> Result<(), Failure> {
        self.rows.raise(key, version).await?;
        let name = self.rows.name(key);
        let del = |mut connection: MultiplexedConnection| {
            let name = name.clone();
            async move { connection.del::<_, ()>(name).await }
        };
        let _ = self.redis(del).await;
        Ok(())
    }
}

/// An attempt that the breaker has admitted; one that is abandoned counts as failed.
struct OnTrial<'a>(&'a HandBuilt);

impl OnTrial<'_> {
    fn over(self, well: bool) {
        self.0.gate().record(well, Instant::now());
        std::mem::forget(self);
    }
}

impl Drop for OnTrial<'_> {
    fn drop(&mut self) {
        self.0.gate().record(false, Instant::now());
    }
}

fn worth_repeating(error: &RedisError) -> bool {
    error.is_timeout() || error.is_unrecoverable_error() || error.is_connection_refusal()
}

impl Subject for HandBuilt {
    fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        self.rows.warm(self, keys)
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        self.read(key).boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        self.write(key, version).boxed()
    }

    fn database_fault(&self, fault: DatabaseFault) {
        self.rows.table.fault(fault);
    }

    fn facts(&self) -> Facts {
        let (breaker, failing) = {
            let gate = self.gate();
            (gate.state(), gate.failed > 0)
        };
        let connection = if failing {
            Connection::Down
        } else {
            Connection::Ready
        };
        let counts = &self.rows.counts;
        // Each connection that was lost had been made before; those made since stand for the lost.
        let made = counts.connected.load(Relaxed).saturating_sub(1);
        let reconnects = counts.lost.load(Relaxed).min(made);
        counts.facts(connection, breaker, reconnects)
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        self.idle().clear();
        std::future::ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d5_its_breaker_opens_admits_one_on_trial_and_closes() {
        let mut gate = CircuitGate::default();
        let mut now = Instant::now();
        for _ in 0..THRESHOLD {
            assert!(gate.admits(now));
            gate.record(false, now);
        }
        assert!(!gate.admits(now) && gate.state() == Breaker::Open);
        now += OPEN;
        assert!(gate.admits(now), "one on trial");
        assert!(!gate.admits(now) && gate.state() == Breaker::HalfOpen);
        gate.record(false, now);
        assert!(!gate.admits(now), "open again");
        now += OPEN;
        assert!(gate.admits(now));
        gate.record(true, now);
        assert!(gate.admits(now) && gate.state() == Breaker::Closed);
    }
}
