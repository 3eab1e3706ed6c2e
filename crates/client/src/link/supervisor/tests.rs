//! How long calls wait for a connection that does not come, in virtual time.

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use steadfast_core::node::NodeId;

use super::*;
use crate::link::connect::{Found, Location, Transport, WaitsFor};
use crate::membership::Membership;
use crate::settings::Settings;
use crate::target::Target;

/// A network without the server: it swallows each attempt to connect, but for the first, if it is
/// to be refused after so long.
#[derive(Debug)]
struct Nowhere(Mutex<Option<Duration>>);

impl Nowhere {
    fn new(first_refused_after: Option<Duration>) -> Self {
        Self(Mutex::new(first_refused_after))
    }
}

impl Transport for Nowhere {
    fn places(&self, _limit: Duration) -> BoxFuture<'_, Result<Found, ConnectError>> {
        Box::pin(async {
            let refused_after = self.0.lock().take();
            match refused_after {
                Some(refused_after) => tokio::time::sleep(refused_after).await,
                None => std::future::pending().await,
            }
            Err(ConnectError::Tcp {
                address: "nowhere".into(),
                cause: "refused".into(),
            })
        })
    }

    fn open<'a>(
        &'a self,
        _place: Location,
        _limit: Duration,
        _waits_for: &'a WaitsFor,
    ) -> BoxFuture<'a, Result<(Stream, String), ConnectError>> {
        Box::pin(std::future::pending())
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Those of a node of a cluster, of which calls wait for the next connection for a quarter of a
/// second.
fn of_node(as_replica: bool) -> Settings {
    Settings {
        reconnect_grace: ms(250),
        member: Some(Arc::new(Membership {
            ids: NodeId::new("a").into_iter().collect(),
            as_replica,
            must_serve: true,
        })),
        ..Settings::new(Target::parse("redis://h").expect("a good url"))
    }
}

/// Returns how long calls wait, in milliseconds.
async fn calls_wait(settings: Settings, network: Nowhere, was_up: bool) -> u128 {
    let began = clock::now();
    let shared = Arc::new(Shared::new(settings, began).expect("good settings"));
    let link = Arc::clone(&shared.links[0]);
    link.view.lock().was_up = was_up;
    let connector = Connector::new(Arc::clone(&shared.settings), None, Arc::new(network));
    let supervisor = Supervisor::new(
        Arc::clone(&shared),
        Arc::clone(&link),
        Arc::new(connector),
        Alive::new(&shared),
    );
    let _task = Owned::new(tokio::spawn(supervisor.run()));
    while link.state() != ConnectionState::Down {
        tokio::time::sleep(ms(1)).await;
    }
    clock::now().saturating_duration_since(began).as_millis()
}

#[tokio::test(start_paused = true)]
async fn t23_calls_wait_longer_for_the_first_attempt_to_connect_to_a_node_and_not_for_ever() {
    let timed = |connect_timeout, deadline, refused_after| {
        let settings = Settings {
            connect_timeout: ms(connect_timeout),
            deadline: ms(deadline),
            ..of_node(false)
        };
        calls_wait(settings, Nowhere::new(refused_after), false)
    };
    let about = |expected: u128| expected..expected + 10;
    let waited = timed(1000, 60_000, None).await;
    assert!(about(1000).contains(&waited), "connect_timeout: {waited}");
    let waited = timed(60_000, 1000, None).await;
    assert!(about(500).contains(&waited), "half of deadline: {waited}");
    let waited = timed(60_000, 100, None).await;
    assert!(about(250).contains(&waited), "reconnect_grace: {waited}");
    let waited = timed(60_000, 60_000, Some(ms(700))).await;
    assert!(about(700).contains(&waited), "it has failed: {waited}");
}

/// Where nobody may have taken over unheard, and where somebody wants to wait for nothing.
#[tokio::test(start_paused = true)]
async fn t23_calls_wait_no_longer_than_the_grace_for_any_other_attempt_to_connect() {
    let nowhere = || Nowhere::new(None);
    let about = |expected: u128| expected..expected + 10;
    let refused = calls_wait(of_node(false), Nowhere::new(Some(ms(10))), false).await;
    assert!(about(250).contains(&refused), "the next: {refused}");
    let again = calls_wait(of_node(false), nowhere(), true).await;
    assert!(about(250).contains(&again), "an outage: {again}");
    let replica = calls_wait(of_node(true), nowhere(), false).await;
    assert!(about(250).contains(&replica), "a replica: {replica}");
    let single = Settings {
        member: None,
        ..of_node(false)
    };
    let single = calls_wait(single, nowhere(), false).await;
    assert!(about(250).contains(&single), "no cluster: {single}");
    let hasty = Settings {
        reconnect_grace: Duration::ZERO,
        ..of_node(false)
    };
    let hasty = calls_wait(hasty, nowhere(), false).await;
    assert!(about(0).contains(&hasty), "no grace: {hasty}");
}
