//! What a page shows once a second is computed once a second, however many pages look. The same beat keeps the metrics
//! recorder tidy, and a slower one asks the database and the embedding program's checks how they are, so that health
//! answers never have to.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value as Json;
use steadfast::EventKind;
use tokio::time::{MissedTickBehavior, interval};

use crate::app::{App, unix_ms};
use crate::felt::{self, Change};
use crate::figures::SAMPLED_EVERY;
use crate::health::{Phase, Status};
use crate::minutes::Second;
use crate::outages::{Of, Outage};
use crate::tally::{Buckets, Counts};
use crate::telemetry;

/// One second of the service, as pages draw it.
#[derive(Debug, Serialize)]
struct Tick {
    at_ms: u64,
    phase: Phase,
    status: Status,
    ready: bool,
    redis: String,
    breaker: String,
    rtt_ms: Option<f64>,
    reads: Counts,
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

/// Counts a second and tells it, for ever.
pub(crate) async fn beat(app: App) {
    let mut ticker = interval(Duration::from_secs(1));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counts = app.tally().counts();
    let mut latencies = app.tally().latencies();
    let mut window = Window::default();
    let mut loads = app.cache().status().counts.loads;
    let mut faults = app.tally().faults();
    let mut beats = 0_u64;
    ticker.tick().await;
    loop {
        ticker.tick().await;
        let (counts_now, latencies_now) = (app.tally().counts(), app.tally().latencies());
        let reads = counts_now.since(counts);
        let [p50_ms, p99_ms, p999_ms] =
            latencies_now.quantiles_since(&latencies, [0.5, 0.99, 0.999]);
        let [p50_10s_ms, p99_10s_ms] = window.quantiles(&latencies, &latencies_now);
        let loads_now = app.cache().status().counts.loads;
        let faults_now = app.tally().faults();
        if let Some(change) = app.felt().second(reads.reads(), faults_now - faults) {
            tell_felt(&app, &change, counts_now);
        }
        faults = faults_now;
        let redis = app.backend().redis();
        let health = app.health();
        let second = Second {
            at_ms: unix_ms(),
            reads,
            loads: loads_now.saturating_sub(loads),
            redis_away: redis.state != "ready",
            outbox_lag_ms: app.backend().outbox_lag_ms(),
        };
        app.minutes().add(second, &latencies, &latencies_now);
        app.feed().tick(&Tick {
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
            in_flight: app.in_flight(),
            subscribers: app.subscriber_count(),
            outbox_lag_ms: second.outbox_lag_ms,
            cpu_percent: round(app.vitals().cpu_percent()),
            memory_percent: round(app.vitals().memory_percent()),
            outage: app.outages().current(counts_now),
            flapping: redis.flaps,
        });
        (counts, latencies, loads) = (counts_now, latencies_now, loads_now);
        beats += 1;
        if beats.is_multiple_of(5) {
            telemetry::metrics().run_upkeep();
        }
        if beats.is_multiple_of(SAMPLED_EVERY.as_secs()) {
            let programs = app.programs();
            for (_, figures) in programs.figures().into_iter().flatten() {
                figures.sample();
            }
        }
    }
}

/// Latencies counted at the beginnings of the last ten seconds.
#[derive(Debug, Default)]
struct Window(VecDeque<Buckets>);

impl Window {
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

/// Tells a change that callers feel: to pages and in the log.
fn tell_felt(app: &App, change: &Change, counts: Counts) {
    let details = serde_json::to_value(change).unwrap_or_default();
    let trouble = match change {
        Change::Began { query, cause, .. } => Some(felt::named(query, cause)),
        Change::Ended { .. } => None,
    };
    app.outages()
        .is(Of::Reads, trouble.as_deref(), unix_ms(), counts);
    match change {
        Change::Began {
            query,
            cause,
            share,
        } => tracing::error!(query, cause, share, "reads have begun to fail"),
        Change::Ended { lasted_ms, failed } => {
            tracing::info!(lasted_ms, failed, "reads are answered again");
        }
    }
    app.tell(change.event(), details);
}

/// Hands the connection's events on to the feed and to the outages, for ever.
pub(crate) async fn relay(app: App) {
    let mut events = app.client().events();
    // Those from before anyone listened; what follows is told as it comes.
    let mut last = 0;
    for event in app.client().history() {
        last = event.seq;
        hand_on(&app, &event);
    }
    while let Some(next) = events.next().await {
        match next {
            steadfast::EventOrGap::Event(event) if event.seq > last => hand_on(&app, &event),
            steadfast::EventOrGap::Gap(missed) => {
                app.tell("missed", serde_json::json!({ "events": missed }));
            }
            _ => {}
        }
    }
}

fn hand_on(app: &App, event: &steadfast::Event) {
    app.outages().connection(event, app.tally().counts());
    match &event.kind {
        EventKind::Flapping(now) | EventKind::FlappingEnded(now) => {
            let (connection, since) = (event.connection, now.since_ms);
            let part = |earlier: &Json| is_part(earlier, connection, since);
            app.feed().event_for("connection", event, part);
        }
        _ if event.folded => {}
        _ => app.feed().event("connection", event),
    }
}

/// Whether an event is told by the flapping of this connection since then.
fn is_part(event: &Json, connection: usize, since_ms: u64) -> bool {
    const PARTS: [&str; 10] = [
        "connected",
        "connect_failed",
        "lost",
        "overdue",
        "woke",
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

/// Asks Redis how it is, for ever: as often as a load balancer does, and no more, since the connection itself is watched all the time.
pub(crate) async fn watch_redis(app: App) {
    let mut ticker = interval(Duration::from_secs(5));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        app.backend().ask_redis().await;
    }
}

/// Sees whether anything can be written while the last statement has failed, for ever; by itself, since a database that does not write may let it wait.
pub(crate) async fn watch_writes(app: App) {
    let mut ticker = interval(Duration::from_secs(1));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        app.backend().try_to_write().await;
    }
}

/// Asks the database and registered checks how they are, for ever.
pub(crate) async fn watch(app: App) {
    let mut ticker = interval(Duration::from_secs(1));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beats = 0_u64;
    loop {
        ticker.tick().await;
        let trouble = app.backend().ask_database().await;
        let counts = app.tally().counts();
        app.outages()
            .is(Of::Database, trouble.as_deref(), unix_ms(), counts);
        if beats.is_multiple_of(5) {
            app.registry().refresh().await;
        }
        beats += 1;
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
