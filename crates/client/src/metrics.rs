//! Metrics through the `metrics` facade, named as OpenTelemetry names those of a database client.
//!
//! Install a recorder before building a client: handles are fetched once, so that the hot path pays
//! a few nanoseconds and no look-up by name.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

use crate::error::{Certainty, Error, ErrorKind};

/// Seconds from submission to answer, by command.
const OPERATION: &str = "db_client_operation_duration_seconds";
/// Failed calls by command-independent kind and certainty.
const ERRORS: &str = "steadfast_client_errors_total";
/// Attempts after the first.
const RETRIES: &str = "steadfast_client_retries_total";
/// Events of connections, by name.
const EVENTS: &str = "steadfast_client_connection_events_total";

/// Reads for which replicas were asked for, by who served them.
const REPLICA_READS: &str = "steadfast_client_replica_reads_total";

/// Renewals of credentials, by outcome.
#[cfg(feature = "entra-id")]
const REFRESHES: &str = "steadfast_credentials_refresh_total";

type Handles = Vec<(&'static str, Histogram)>;

/// Handles of one client.
pub(crate) struct Metrics {
    operations: ArcSwap<Handles>,
    retries: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new(events: &[&'static str]) -> Self {
        describe_histogram!(
            OPERATION,
            metrics::Unit::Seconds,
            "Seconds from submission to answer, by command"
        );
        describe_counter!(
            ERRORS,
            "Calls that failed, by kind and what is known of the command"
        );
        describe_counter!(RETRIES, "Attempts after the first");
        describe_counter!(EVENTS, "What happened to connections");
        begin_counters(events);
        Self {
            operations: ArcSwap::default(),
            retries: counter!(RETRIES),
        }
    }

    /// Counts a call that is tried again.
    pub(crate) fn retried(&self) {
        self.retries.increment(1);
    }

    /// Records a call that was answered.
    pub(crate) fn answered(&self, name: &'static str, took: Duration) {
        let known = self.operations.load();
        // Few names are in use, and each is one static string: comparing addresses finds it in a
        // nanosecond or two.
        if let Some((_, histogram)) = known.iter().find(|(n, _)| std::ptr::eq(*n, name)) {
            histogram.record(took);
            return;
        }
        drop(known);
        let fresh = histogram!(OPERATION, "db_system_name" => "redis", "db_operation_name" => name);
        fresh.record(took);
        self.operations.rcu(|old| {
            let mut next = Handles::clone(old);
            next.push((name, fresh.clone()));
            Arc::new(next)
        });
    }
}

/// Lets every counter begin at 0, so that its first event is a rise, which alerts see, and not
/// a series from nowhere.
fn begin_counters(events: &[&'static str]) {
    for event in events {
        counter!(EVENTS, "event" => *event).increment(0);
    }
    for kind in ErrorKind::LABELS {
        for certainty in [Certainty::NotSent, Certainty::Rejected, Certainty::Unknown] {
            counter!(ERRORS, "kind" => *kind, "certainty" => certainty.as_str()).increment(0);
        }
    }
}

/// Counts a call that failed.
pub(crate) fn count_error(error: &Error) {
    counter!(ERRORS, "kind" => error.label(), "certainty" => error.certainty().as_str())
        .increment(1);
}

/// Counts an event of a connection.
pub(crate) fn count_event(name: &'static str) {
    counter!(EVENTS, "event" => name).increment(1);
}

/// Replicas are read from: what is read is counted from 0.
pub(crate) fn begin_replica_reads() {
    describe_counter!(
        REPLICA_READS,
        "Reads for which replicas were asked for, by who served them"
    );
    for by in ["replica", "primary"] {
        counter!(REPLICA_READS, "by" => by).increment(0);
    }
}

/// Counts a read for which replicas were asked for.
pub(crate) fn count_replica_read(by: &'static str) {
    counter!(REPLICA_READS, "by" => by).increment(1);
}

/// Credentials that are renewed are in use: what becomes of them is counted from 0.
#[cfg(feature = "entra-id")]
pub(crate) fn begin_refreshes() {
    for outcome in ["success", "failure"] {
        counter!(REFRESHES, "outcome" => outcome).increment(0);
    }
}

/// Credentials were renewed, or could not be.
#[cfg(feature = "entra-id")]
pub(crate) fn count_refresh(outcome: &'static str) {
    counter!(REFRESHES, "outcome" => outcome).increment(1);
}

/// Sets how long the credentials still work.
#[cfg(feature = "entra-id")]
pub(crate) fn credentials_expire_in(left: Duration) {
    metrics::gauge!("steadfast_credentials_expiry_seconds").set(left.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{
        Gauge, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder,
    };
    use parking_lot::Mutex;
    use tokio::runtime::Builder;

    use super::*;
    use crate::Client;

    /// Keeps what is counted, by the labels of errors.
    #[derive(Default)]
    struct Counted(Mutex<Vec<(String, Arc<AtomicU64>)>>);

    impl Recorder for Counted {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            if key.name() != ERRORS {
                return Counter::noop();
            }
            let labels: Vec<_> = key.labels().map(metrics::Label::value).collect();
            let count = Arc::new(AtomicU64::new(0));
            let entry = (labels.join(" "), Arc::clone(&count));
            self.0.lock().push(entry);
            Counter::from_arc(count)
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn c19_an_error_is_counted_once_and_as_its_caller_gets_it() {
        let runtime = || Builder::new_current_thread().enable_all().build();
        let (asks, undriven) = (runtime().expect("room"), runtime().expect("room"));
        let builder = Client::builder("redis://127.0.0.1:1").expect("a good url");
        let builder = builder.connections(3).deadline(Duration::from_millis(300));
        let client = undriven.block_on(async { builder.build() });
        let client = client.expect("good settings");
        let counted = Counted::default();
        // It asks the other connections first whether they are through.
        let crossing = redis::cmd("MGET")
            .arg("a")
            .arg("b")
            .arg("c")
            .arg("d")
            .clone();
        let error = with_local_recorder(&counted, || asks.block_on(client.send(&crossing)));
        let error = error.expect_err("nobody serves it");
        assert_eq!(error.label(), "runtime", "{error}");
        let counted = counted.0.into_inner();
        let counted: Vec<_> = counted
            .iter()
            .map(|(labels, count)| (&**labels, count.load(Ordering::Relaxed)))
            .collect();
        assert_eq!(counted, [("runtime not_sent", 1)]);
    }
}
