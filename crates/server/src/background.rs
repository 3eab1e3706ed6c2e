//! The beat of the service: what a page shows once a second is computed once a second, however many
//! pages look. The same beat keeps the metrics recorder tidy, and others ask the database and the
//! embedding program's checks how they are, so that health answers never have to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value as Json;
use steadfast::{ConnectionState, EventItem, EventKind};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::active_config::ActiveConfig;
use crate::checks::Checks;
use crate::clock::unix_ms;
use crate::health::{Phase, Status};
use crate::observe::felt::{self, FeltSecond, ReadsChange};
use crate::observe::figures::SAMPLED_EVERY;
use crate::observe::minutes::Second;
use crate::observe::outages::{Outage, OutageOf};
use crate::observe::tally::{Buckets, ReadCounts};
use crate::observe::{Observations, failovers};
use crate::query::once::Records;
use crate::tasks::keep;
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
    cpu_percent: Option<f64>,
    memory_percent: Option<f64>,
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
    /// The number of the last event of a connection that was handed on.
    pub(crate) handed_on: Arc<AtomicU64>,
}

impl Background {
    /// Starts each of the tasks.
    pub(crate) fn spawn(self, tasks: &mut JoinSet<()>) {
        keep(tasks, "beat", &self, Self::beat);
        keep(tasks, "relay", &self, Self::relay);
        keep(tasks, "watch", &self, Self::watch);
        keep(tasks, "watch_checks", &self, Self::watch_checks);
        keep(tasks, "watch_redis", &self, Self::watch_redis);
        keep(tasks, "watch_writes", &self, Self::watch_writes);
        keep(tasks, "sweep", &self, Self::sweep);
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
        let felt = FeltSecond {
            reads: reads.reads(),
            answered: reads.answered(),
            failed: now.faults.saturating_sub(before.faults),
        };
        if let Some(change) = observations.felt.second(felt) {
            self.tell_felt(&change);
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
            cpu_percent: observations.vitals.cpu_percent().map(round),
            memory_percent: observations.vitals.memory_percent().map(round),
            outage: observations.outages.current(|| observations.tally.counts()),
            flapping: redis.flaps,
        });
    }

    /// Tells a change that callers feel: to pages and in the log.
    fn tell_felt(&self, change: &ReadsChange) {
        let observations = &self.checks.observations;
        let details = serde_json::to_value(change).unwrap_or_default();
        let trouble = match change {
            ReadsChange::Began { query, cause, .. } => Some(felt::named(query, cause)),
            ReadsChange::Ended { .. } => None,
        };
        let counts = || observations.tally.counts();
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
        self.hand_on_history();
        let mut ticker = every(Duration::from_secs(1));
        let mut serving = ServingProof::default();
        loop {
            tokio::select! {
                next = events.next() => match next {
                    Some(EventItem::Event(event)) => {
                        if is_trouble(&event.kind) && self.concerns_slots(&event) {
                            serving.look_again();
                        }
                        self.hand_on_new(&event);
                    }
                    Some(EventItem::Gap(missed)) => {
                        let told = serde_json::json!({ "events": missed });
                        self.checks.observations.feed.tell("missed", told);
                        self.hand_on_history();
                        serving.missed_some();
                    }
                    Some(_) => {}
                    None => return,
                },
                _ = ticker.tick() => {
                    let status = client.status();
                    let ready = status.state == ConnectionState::Ready;
                    if serving.has_proof(status.cluster.is_some(), ready) {
                        let Observations { outages, tally, .. } = &*self.checks.observations;
                        outages.redis_serves(unix_ms(), || tally.counts());
                    }
                }
            }
        }
    }

    fn hand_on_history(&self) {
        let history = self.checks.backend.client.history();
        // The entry on flapping gives way to the one on its end.
        let flap = |event: &&steadfast::Event| matches!(event.kind, EventKind::Flapping(_));
        let flapping = history.iter().filter(flap).map(|event| event.connection);
        let outages = &self.checks.observations.outages;
        outages.none_flaps_but(&flapping.collect());
        for event in &history {
            self.hand_on_new(event);
        }
    }

    fn hand_on_new(&self, event: &steadfast::Event) {
        if self.handed_on.fetch_max(event.seq, Relaxed) < event.seq {
            self.hand_on(event);
        }
    }

    fn hand_on(&self, event: &steadfast::Event) {
        let observations = &self.checks.observations;
        let feed = &observations.feed;
        if !is_trouble(&event.kind) || self.concerns_slots(event) {
            let counts = || observations.tally.counts();
            observations.outages.connection(event, counts);
        }
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

    /// Whether the server that an event is of serves keys, as far as is known. A replica that is
    /// away, or a node that another has taken over from, is missed by nobody.
    fn concerns_slots(&self, event: &steadfast::Event) -> bool {
        let client = &self.checks.backend.client;
        let Some(node) = event.node.as_deref().filter(|_| client.is_cluster()) else {
            return true;
        };
        let status = client.status();
        let Some(cluster) = &status.cluster else {
            return true;
        };
        let mut owners = cluster.owners().peekable();
        owners.peek().is_none() || owners.any(|owner| owner.address.as_deref() == Some(node))
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

    /// Asks the database how it is, for ever.
    async fn watch(self) {
        let mut ticker = every(Duration::from_secs(1));
        loop {
            ticker.tick().await;
            let trouble = self.checks.backend.ask_database().await;
            let observations = &self.checks.observations;
            let counts = || observations.tally.counts();
            observations
                .outages
                .is(OutageOf::Database, trouble.as_deref(), unix_ms(), counts);
        }
    }

    /// Asks the registered checks how they are, for ever; by themselves, since one of them may take
    /// its time.
    async fn watch_checks(self) {
        let mut ticker = every(Duration::from_secs(5));
        loop {
            ticker.tick().await;
            self.checks.registry.refresh().await;
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

/// Whether an event tells that a connection is out of service.
fn is_trouble(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Lost { .. } | EventKind::ConnectFailed { .. } | EventKind::Unresponsive { .. }
    )
}

/// Whether Redis is known to serve although some of its connections were lost and not replaced.
#[derive(Debug, Default)]
struct ServingProof {
    /// Looks in a row that found it so, without trouble in between: the state that is seen may be a
    /// moment older than the event.
    looks: u32,
    /// Events were missed, and the outages may not be what they are.
    doubted: bool,
}

impl ServingProof {
    fn look_again(&mut self) {
        self.looks = 0;
    }

    fn missed_some(&mut self) {
        *self = Self {
            looks: 0,
            doubted: true,
        };
    }

    /// Takes a look at the state. Of one server the events tell all, unless some were missed; of a
    /// cluster it matters whether all shards are served, and not by whom.
    fn has_proof(&mut self, cluster: bool, ready: bool) -> bool {
        self.looks = if ready { self.looks + 1 } else { 0 };
        let proven = self.looks >= 2 && (cluster || self.doubted);
        self.doubted &= !proven;
        proven
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_a_cluster_serves_when_all_of_it_does_and_one_server_when_events_were_missed() {
        let mut cluster = ServingProof::default();
        assert!(!cluster.has_proof(true, true), "once is a moment");
        cluster.look_again();
        assert!(!cluster.has_proof(true, true), "something happened");
        assert!(cluster.has_proof(true, true));
        assert!(!cluster.has_proof(true, false));
        let mut single = ServingProof::default();
        assert!(!(0..9).any(|_| single.has_proof(false, true)));
        single.missed_some();
        assert!(!single.has_proof(false, false) && !single.has_proof(false, true));
        assert!(single.has_proof(false, true));
        assert!(!single.has_proof(false, true), "told once");
    }
}
