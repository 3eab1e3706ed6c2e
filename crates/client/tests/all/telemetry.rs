//! C14: what an operator sees of calls and of outages.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use steadfast::{CallOptions, Client, ConnectionState};
use steadfast_drill::process::Cluster;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::{cmd, ms, pair, seen, until, until_seen, until_state};

/// Keeps the fields of spans as they are recorded.
#[derive(Clone, Default)]
struct Spans {
    ids: Arc<AtomicU64>,
    words: Arc<Mutex<Vec<String>>>,
}

struct Words<'a>(&'a mut Vec<String>);

impl Visit for Words<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push(format!("{}={value:?}", field.name()));
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut words = self.words.lock().unwrap();
        words.push(attributes.metadata().name().to_owned());
        attributes.record(&mut Words(&mut words));
        Id::from_u64(self.ids.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Words(&mut self.words.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn c14_a_call_has_a_span_that_names_it_and_tells_how_it_failed_and_never_its_data() {
    let (redis, client) = pair().await;
    let spans = Spans::default();
    let listening = tracing::subscriber::set_default(spans.clone());
    client.send(&cmd("SET k s3cret")).await.unwrap();
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    client.send(&cmd("GET k")).await.unwrap_err();
    drop(listening);
    let words = spans.words.lock().unwrap().join(" ");
    for word in [
        "db.operation.name=\"SET\"",
        "db.operation.name=\"GET\"",
        "db.system.name=\"redis\"",
        "error.type=\"down\"",
        "steadfast.certainty=\"not_sent\"",
        "connect to redis",
    ] {
        assert!(words.contains(word), "no {word} in {words}");
    }
    assert!(!words.contains("s3cret"), "{words}");
}

#[tokio::test]
async fn c14_the_record_of_a_silence_tells_how_long_it_took_to_notice_and_what_was_given_up() {
    let (redis, client) = pair().await;
    redis.freeze().unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(900)));
    let calls = (0..5).map(|n| {
        let hasty = hasty.clone();
        async move { hasty.send(&cmd(&format!("INCR n:{n}"))).await }
    });
    for result in futures_util::future::join_all(calls).await {
        result.unwrap_err();
    }
    until_state(&client, ConnectionState::Down).await;
    client.send(&cmd("GET k")).await.unwrap_err();
    redis.resume().unwrap();
    until_state(&client, ConnectionState::Ready).await;
    if seen(&client, "recovered") == 0 {
        until_seen(&client, "replaced").await;
    }
    let incidents = client.incidents();
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    let incident = &incidents[0];
    assert_eq!(incident.cause, "the server stopped answering");
    assert!(incident.detection_ms >= 500.0, "{incident:?}");
    assert_eq!(incident.unknown, 5, "{incident:?}");
    assert!(
        incident.refused >= 1 && incident.recovery_ms.is_some(),
        "{incident:?}"
    );
}

/// Asks something at each line of the log in this thread.
struct Asks<F>(F);

impl<F: Fn() + Send + Sync + 'static> Subscriber for Asks<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn event(&self, _: &Event<'_>) {
        (self.0)();
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// A layer of a subscriber that shows how the client is, whenever something is told.
#[test]
fn c14_whoever_asks_for_the_status_at_each_line_of_the_log_holds_nothing_up() {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let watched = Arc::new(OnceLock::<Client>::new());
        let of = Arc::clone(&watched);
        let asks = Asks(move || drop(of.get().map(Client::status)));
        let _listens = tracing::subscriber::set_default(asks);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::start().await.unwrap();
            let builder = Client::builder(&cluster.url()).unwrap();
            let client = builder.deadline(ms(10_000)).connect().await.unwrap();
            let _ = watched.set(client.clone());
            cluster.node(0).kill().await;
            until("another node has taken over", || {
                let mut history = client.history().into_iter();
                history.any(|event| event.kind.name() == "retired")
            })
            .await;
            let _ = client.close(ms(1_000)).await;
        });
        let _ = tell.send(());
    });
    let ended = told.recv_timeout(Duration::from_secs(120));
    ended.expect("nothing hangs");
}
