use std::sync::Arc;

use redis::Value;
use steadfast_core::conn::Batch;
use steadfast_core::policy::breaker::{BreakerMode, State};

use super::*;
use crate::settings::Settings;
use crate::target::Target;
use crate::wire::queue::{Backlog, Job};
use crate::wire::slot::{Blame, Ended};

/// No connection yet, so calls wait, though the breaker is open.
fn waiting() -> Shared {
    let settings = Settings::new(Target::parse("redis://h").expect("a good url"));
    let shared = Shared::new(settings, clock::now()).expect("good settings");
    shared
        .breaker
        .set_mode(BreakerMode::ForcedOpen, clock::now());
    shared
}

async fn get(shared: &Shared, key: &str) -> Result<Reply, Error> {
    let mut cmd = redis::cmd("GET");
    cmd.arg(key);
    let payload = Payload::Command(&cmd);
    let plan = payload.plan(1, true)?;
    call(shared, payload, plan, &CallOptions::new()).await
}

#[tokio::test(start_paused = true)]
async fn c13_past_the_open_breaker_nobody_goes_before_those_in_line() {
    let shared = waiting();
    let ahead = shared.breaker.ramp.join(clock::now(), 1);
    let mut call = Box::pin(get(&shared, "k"));
    assert!(futures_util::poll!(&mut call).is_pending());
    let queue = &shared.links[0].queue;
    assert_eq!(queue.in_flight(), 0, "it waits behind the other");
    drop(ahead);
    assert!(futures_util::poll!(&mut call).is_pending());
    assert_eq!(queue.in_flight(), 1);
}

/// Closed again, and its ramp has begun.
fn ramping() -> Shared {
    let shared = waiting();
    shared
        .breaker
        .set_mode(BreakerMode::Automatic, clock::now());
    shared
}

/// Returns the requests submitted so far, in their order.
fn submitted(shared: &Shared) -> Batch<Job> {
    let mut batch = Batch::default();
    shared.links[0]
        .queue
        .take(&mut batch, Backlog::default(), false);
    batch
}

#[tokio::test(start_paused = true)]
async fn c13_when_a_ramp_is_cut_short_all_go_at_once_in_their_order() {
    // Either the breaker lets them all go, or it refuses them, and they may wait for a connection
    // nevertheless.
    for mode in [BreakerMode::ForcedClosed, BreakerMode::ForcedOpen] {
        let shared = ramping();
        let begun = clock::now();
        let keys: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let mut calls: Vec<_> = keys.iter().map(|key| Box::pin(get(&shared, key))).collect();
        for call in &mut calls {
            assert!(futures_util::poll!(call).is_pending());
        }
        assert_eq!(submitted(&shared).len(), 1, "only the first has its turn");
        shared.breaker.set_mode(mode, begun);
        for n in (1..calls.len()).rev().chain(1..calls.len()) {
            assert!(futures_util::poll!(&mut calls[n]).is_pending());
        }
        assert_eq!(clock::now(), begun, "the old turns hold up nobody");
        let places: Vec<_> = submitted(&shared).drain().collect();
        assert_eq!(places.len(), calls.len() - 1, "{mode:?}");
        for (n, job) in places.into_iter().enumerate() {
            answer(job);
            let next = futures_util::poll!(&mut calls[n + 1]);
            assert!(next.is_ready(), "{mode:?}: {n} of the line is another's");
        }
    }
}

fn answer(job: Job) {
    answer_at(job, clock::now(), true);
}

fn answer_at(job: Job, at: Instant, fair: bool) {
    let reply = Reply::One(Value::Nil);
    let ticket = job.into_ticket().expect("it is a call");
    ticket.end(Ended::Answered { reply, at, fair });
}

#[tokio::test(start_paused = true)]
async fn c19_a_probe_is_not_slow_because_this_process_stood_still() {
    let slow = Duration::from_secs(30);
    for (fair, heard_late, state) in [
        (true, false, State::Open),
        (false, false, State::Closed),
        // Answered at once, and its caller had no turn.
        (true, true, State::Closed),
    ] {
        let shared = ramping();
        let link = &shared.links[0];
        link.open(clock::now());
        while shared.breaker.state() == State::Closed {
            shared.breaker.record_loss(clock::now());
        }
        tokio::time::advance(Duration::from_millis(200)).await;
        let options = CallOptions::new().deadline(shared.settings.deadline);
        let needed = shared.settings.breaker.probe_successes as usize;
        for _ in 0..needed {
            let get = redis::cmd("GET").arg("k").to_owned();
            let payload = Payload::Command(&get);
            let plan = payload.plan(1, true).expect("it may be sent");
            let mut probe = Box::pin(call(&shared, payload, plan, &options));
            assert!(futures_util::poll!(&mut probe).is_pending());
            let jobs: Vec<_> = submitted(&shared).drain().collect();
            let [job] = <[Job; 1]>::try_from(jobs).expect("it is let through");
            let sent = clock::now();
            tokio::time::advance(slow).await;
            answer_at(job, if heard_late { sent } else { clock::now() }, fair);
            assert!(futures_util::poll!(&mut probe).is_ready());
            if state == State::Open {
                break;
            }
        }
        assert_eq!(shared.breaker.state(), state, "{fair} {heard_late}");
    }
}

#[tokio::test(start_paused = true)]
async fn c9_one_that_was_recalled_from_a_ramp_is_a_probe_of_the_half_open_breaker() {
    let shared = ramping();
    let link = &shared.links[0];
    link.open(clock::now());
    let mut calls: Vec<_> = (0..4).map(|_| Box::pin(get(&shared, "k"))).collect();
    for call in &mut calls {
        assert!(futures_util::poll!(call).is_pending());
    }
    assert_eq!(
        submitted(&shared).len(),
        1,
        "the others wait for their turns"
    );
    while shared.breaker.state() == State::Closed {
        shared.breaker.record_loss(clock::now());
    }
    // Nobody asks while it is open.
    tokio::time::advance(Duration::from_millis(200)).await;
    for call in &mut calls[1..] {
        assert!(futures_util::poll!(call).is_pending());
    }
    assert_eq!(shared.breaker.state(), State::HalfOpen);
    let probes: Vec<_> = submitted(&shared).drain().collect();
    assert_eq!(probes.len(), 3);
    let needed = shared.settings.breaker.probe_successes as usize;
    for (job, call) in probes.into_iter().zip(&mut calls[1..]).take(needed) {
        assert_eq!(shared.breaker.state(), State::HalfOpen);
        answer(job);
        assert!(futures_util::poll!(call).is_ready());
    }
    assert_eq!(shared.breaker.state(), State::Closed, "the probes tell it");
}

#[tokio::test(start_paused = true)]
async fn c1_one_whose_time_is_up_in_line_is_not_submitted() {
    let shared = waiting();
    let _ahead = shared
        .breaker
        .ramp
        .join(clock::now() + Duration::from_secs(60), 1);
    let error = tokio::time::timeout(Duration::from_secs(30), get(&shared, "k"))
        .await
        .expect("it has a deadline")
        .expect_err("its turn did not come");
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}");
    assert_eq!(error.certainty(), Certainty::NotSent);
    assert_eq!(shared.links[0].queue.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn c2_a_redirect_after_a_lost_attempt_proves_itself_and_not_what_came_before() {
    let settings = Settings::new(Target::parse("redis://h").expect("a good url"));
    let shared = Shared::new(settings, clock::now()).expect("good settings");
    shared.links[0].open(clock::now());
    let get = redis::cmd("GET").arg("k").to_owned();
    let payload = Payload::Command(&get);
    let plan = payload.plan(1, true).expect("it may be sent");
    let (options, mut carried) = (CallOptions::new(), Carried::default());
    let times = (clock::now(), shared.settings.deadline);
    let error = {
        let mut call = Box::pin(call_within(
            &shared,
            payload,
            plan,
            &options,
            times,
            &mut carried,
        ));
        assert!(futures_util::poll!(&mut call).is_pending());
        let job = submitted(&shared).drain().next().expect("it was sent");
        job.into_ticket().expect("it is a call").end(Ended::Lost {
            certainty: Certainty::Unknown,
            cause: Arc::from("reset"),
            rejoin: None,
            blame: Blame::Shared,
        });
        assert!(futures_util::poll!(&mut call).is_pending());
        let job = submitted(&shared)
            .drain()
            .next()
            .expect("it was sent again");
        let mut decoder = steadfast_core::resp::Decoder::default();
        let moved = decoder.decode(b"-MOVED 12706 h:1\r\n").expect("good");
        job.into_ticket()
            .expect("it is a call")
            .end(Ended::Answered {
                reply: Reply::One(moved.value.expect("whole")),
                at: clock::now(),
                fair: true,
            });
        call.await.expect_err("it was redirected")
    };
    assert!(matches!(error.kind(), ErrorKind::Server(_)), "{error}");
    assert_eq!(error.certainty(), Certainty::Unknown, "for who asks once");
    assert_eq!(
        carried.alone,
        Some(Certainty::Rejected),
        "so it is followed"
    );
}

#[tokio::test]
async fn c16_an_asking_that_is_not_answered_as_such_ends_the_connection() {
    use steadfast_drill::scripted::{Script, Server};

    // A value of somebody else's in the place of the reply to ASKING.
    let out_of_step = Script::new().handshake().read(2).send("$1\r\nx\r\n+OK\r\n");
    let well = Script::new().handshake().echo(99);
    let server = Server::start_each(vec![out_of_step, well]).await;
    let server = server.expect("there is a port");
    let builder = crate::Client::builder(&server.url()).expect("a good url");
    let client = builder.connect().await.expect("it connects");
    let set = redis::cmd("INCR").arg("k").to_owned();
    let payload = Payload::Command(&set);
    let plan = Plan {
        asking: true,
        ..payload.plan(1, true).expect("it may be sent")
    };
    let options = CallOptions::new();
    let error = call(client.shared(), payload, plan, &options).await;
    let error = error.expect_err("whose reply that is nobody knows");
    assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
    assert!(error.to_string().contains("ASKING"), "{error}");
    let echoed = client.send(redis::cmd("GET").arg("k")).await;
    assert_eq!(echoed.expect("anew"), Value::BulkString(b"k".to_vec()));
    assert_eq!(client.status().reconnects, 1);
}
