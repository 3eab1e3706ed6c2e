//! The beat of the service: what a page shows once a second is computed once a second, however many
//! pages look. The same beat keeps the metrics recorder tidy, and a slower one asks the database
//! and the embedding program's checks how they are, so that health answers never have to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value as Json;
use steadfast::EventKind;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::active_config::ActiveConfig;
use crate::checks::Checks;
use crate::clock::unix_ms;
use crate::health::{Phase, Status};
use crate::observe::failovers;
use crate::observe::felt::{self, ReadsChange};
use crate::observe::figures::SAMPLED_EVERY;
use crate::observe::minutes::Second;
use crate::observe::outages::{Outage, OutageOf};
use crate::observe::tally::{Buckets, ReadCounts};
use crate::query::once::Records;
use crate::telemetry;

/// A second of the service, as pages draw it.
#[derive(Debug, Serialize)]
struct Tick {
    at_ms: u64,
    phase: Phase,
    status: Status,
    ready: bool,
    redis: String,
    breaker: String,
    rtt_ms: Option<f64>,
    reads: ReadCounts,
    hit_rate: Option<f64>,
    error_rate: Option<f64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    /// The same over the last ten seconds.
    p50_10s_ms: Option<f64>,
    p99_10s_ms: Option<f64>,
    in_flight: usize,
    subscribers: usize,
    /// Loads from SQL, refreshes behind a served value included.
    loads: u64,
    outbox_lag_ms: Option<u64>,
    cpu_percent: f64,
    memory_percent: f64,
    /// The outage that lasts.
    outage: Option<Outage>,
    /// Whether the connection to Redis is lost and replaced again and again.
    flapping: bool,
}

/// Everything that the tasks in the background look at.
#[derive(Clone)]
pub(crate) struct Background {
    pub(crate) checks: Arc<Checks>,
    pub(crate) in_force: Arc<ActiveConfig>,
    pub(crate) records: Arc<Records>,
}

impl Background {
    /// Starts each of the tasks.
    pub(crate) fn spawn(self, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.clone().beat());
        tasks.spawn(self.clone().relay());
        tasks.spawn(self.clone().watch());
        tasks.spawn(self.clone().watch_redis());
        tasks.spawn(self.clone().watch_writes());
        tasks.spawn(self.sweep());
    }

    /// Counts a second and tells it, for ever.
    async fn beat(self) {
        let mut ticker = every(Duration::from_secs(1));
        let mut before = Reading::of(&self.checks);
        let mut window = TenSeconds::default();
        let mut beats = 0_u64;
        ticker.tick().await;
        loop {
            ticker.tick().await;
            let now = Reading::of(&self.checks);
            self.tell_second(&before, &now, &mut window);
            before = now;
            beats += 1;
            if beats.is_multiple_of(5) {
                telemetry::metrics().run_upkeep();
            }
            if beats.is_multiple_of(SAMPLED_EVERY.as_secs()) {
                let programs = self.in_force.programs();
                for (_, figures) in programs.figures().into_iter().flatten() {
                    figures.sample();
                }
            }
        }
    }

    /// Tells the second between two readings.
    fn tell_second(&self, before: &Reading, now: &Reading, window: &mut TenSeconds) {
        let Checks {
            backend,
            observations,
            life,
            ..
        } = &*self.checks;
        let reads = now.counts.since(before.counts);
        let [p50_ms, p99_ms, p999_ms] =
            (now.latencies).quantiles_since(&before.latencies, [0.5, 0.99, 0.999]);
        let [p50_10s_ms, p99_10s_ms] = window.quantiles(&before.latencies, &now.latencies);
        let faults = now.faults - before.faults;
        if let Some(change) = observations.felt.second(reads.reads(), faults) {
            self.tell_felt(&change, now.counts);
        }
        let redis = backend.redis();
        let health = self.checks.health();
        let second = Second {
            at_ms: unix_ms(),
            reads,
            loads: now.loads.saturating_sub(before.loads),
            redis_away: redis.state != "ready",
            outbox_lag_ms: backend.outbox_lag_ms(),
        };
        let (earlier, later) = (&before.latencies, &now.latencies);
        observations.minutes.add(second, earlier, later);
        observations.feed.tick(&Tick {
            at_ms: second.at_ms,
            phase: health.phase,
            status: health.status,
            ready: health.is_ready(),
            redis: redis.state.to_owned(),
            breaker: redis.breaker.to_owned(),
            rtt_ms: redis.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            hit_rate: reads.hit_rate(),
            error_rate: reads.error_rate(),
            reads,
            p50_ms,
            p99_ms,
            p999_ms,
            p50_10s_ms,
            p99_10s_ms,
            loads: second.loads,
            in_flight: life.in_flight(),
            subscribers: life.stream_count(),
            outbox_lag_ms: second.outbox_lag_ms,
            cpu_percent: round(observations.vitals.cpu_percent()),
            memory_percent: round(observations.vitals.memory_percent()),
            outage: observations.outages.current(now.counts),
            flapping: redis.flaps,
        });
    }

    /// Tells a change that callers feel: to pages and in the log.
    fn tell_felt(&self, change: &ReadsChange, counts: ReadCounts) {
        let observations = &self.checks.observations;
        let details = serde_json::to_value(change).unwrap_or_default();
        let trouble = match change {
            ReadsChange::Began { query, cause, .. } => Some(felt::named(query, cause)),
            ReadsChange::Ended { .. } => None,
        };
        observations
            .outages
            .is(OutageOf::Reads, trouble.as_deref(), unix_ms(), counts);
        match change {
            ReadsChange::Began {
                query,
                cause,
                share,
            } => tracing::error!(query, cause, share, "reads have begun to fail"),
            ReadsChange::Ended { lasted_ms, failed } => {
                tracing::info!(lasted_ms, failed, "reads are answered again");
            }
        }
        observations.feed.tell(change.event(), details);
    }

    /// Hands the connection's events on to the feed and to the outages, for ever.
    async fn relay(self) {
        let client = &self.checks.backend.client;
        let mut events = client.events();
        // Those from before anyone listened; what follows is told as it comes.
        let mut last = 0;
        for event in client.history() {
            last = event.seq;
            self.hand_on(&event);
        }
        while let Some(next) = events.next().await {
            match next {
                steadfast::EventItem::Event(event) if event.seq > last => self.hand_on(&event),
                steadfast::EventItem::Gap(missed) => {
                    self.checks
                        .observations
                        .feed
                        .tell("missed", serde_json::json!({ "events": missed }));
                }
                _ => {}
            }
        }
    }

    fn hand_on(&self, event: &steadfast::Event) {
        let observations = &self.checks.observations;
        let (feed, counts) = (&observations.feed, observations.tally.counts());
        observations.outages.connection(event, counts);
        if let EventKind::FailedOver { history, .. } = &event.kind {
            failovers::count(history);
        }
        match &event.kind {
            EventKind::Flapping(now) | EventKind::FlappingEnded(now) => {
                let (connection, since) = (event.connection, now.since_ms);
                let part = |earlier: &Json| is_part(earlier, connection, since);
                feed.event_for("connection", event, part);
            }
            _ if event.folded => {}
            _ => feed.event("connection", event),
        }
    }

    /// Asks Redis how it is, for ever: as often as a load balancer does, and no more, since the
    /// connection itself is watched all the time.
    async fn watch_redis(self) {
        let mut ticker = every(Duration::from_secs(5));
        loop {
            ticker.tick().await;
            self.checks.backend.ask_redis().await;
        }
    }

    /// Sees whether anything can be written while the last statement has failed, for ever; by
    /// itself, since a database that does not write may let it wait.
    async fn watch_writes(self) {
        let mut ticker = every(Duration::from_secs(1));
        loop {
            ticker.tick().await;
            self.checks.backend.try_to_write().await;
        }
    }

    /// Asks the database and registered checks how they are, for ever.
    async fn watch(self) {
        let mut ticker = every(Duration::from_secs(1));
        let mut beats = 0_u64;
        loop {
            ticker.tick().await;
            let trouble = self.checks.backend.ask_database().await;
            let observations = &self.checks.observations;
            let counts = observations.tally.counts();
            observations
                .outages
                .is(OutageOf::Database, trouble.as_deref(), unix_ms(), counts);
            if beats.is_multiple_of(5) {
                self.checks.registry.refresh().await;
            }
            beats += 1;
        }
    }

    /// Forgets `Idempotency-Key`s that have expired, for ever.
    async fn sweep(self) {
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            // A service that only reads may not be allowed to make the table, and needs none.
            if self.in_force.config().statements.is_empty() {
                continue;
            }
            match self.records.sweep(&self.checks.backend.database).await {
                Ok(0) | Err(_) => {}
                Ok(gone) => tracing::debug!(gone, "idempotency keys expired"),
            }
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticker = interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// The counts at one moment.
struct Reading {
    counts: ReadCounts,
    latencies: Buckets,
    loads: u64,
    faults: u64,
}

impl Reading {
    fn of(checks: &Checks) -> Self {
        let tally = &checks.observations.tally;
        Self {
            counts: tally.counts(),
            latencies: tally.latencies(),
            loads: checks.backend.cache.status().counts.loads,
            faults: tally.faults(),
        }
    }
}

/// Latencies counted at the beginnings of the last ten seconds.
#[derive(Debug, Default)]
struct TenSeconds(VecDeque<Buckets>);

impl TenSeconds {
    /// Takes a second that is over, and returns median and p99 of the last ten.
    fn quantiles(&mut self, before: &Buckets, after: &Buckets) -> [Option<f64>; 2] {
        if self.0.len() == 10 {
            self.0.pop_front();
        }
        self.0.push_back(before.clone());
        self.0
            .front()
            .map_or([None; 2], |began| after.quantiles_since(began, [0.5, 0.99]))
    }
}

/// Whether an event is told by the flapping of this connection since then.
fn is_part(event: &Json, connection: usize, since_ms: u64) -> bool {
    const PARTS: [&str; 10] = [
        "connected",
        "connect_failed",
        "lost",
        "unresponsive",
        "recovered",
        "replaced",
        "down",
        "breaker",
        "fenced",
        "flapping",
    ];
    let at_ms = event["at_ms"].as_u64();
    event["connection"].as_u64() == Some(connection as u64)
        && at_ms.is_some_and(|at_ms| at_ms >= since_ms)
        && PARTS.iter().any(|part| event["event"] == *part)
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
