use super::*;
use crate::clock;
use crate::wire::identity::Identity;

const BOUNDS: Bulkhead = Bulkhead::new(3, 100);

fn submit(queue: &SubmitQueue, bytes: usize, limit: Duration) -> Result<Submitted, Error> {
    let now = clock::now();
    let submission = Submission {
        replies: 1,
        started: now,
        deadline: now + limit,
        now,
        seq: None,
        only_fenced: false,
        read_only: false,
        apart: false,
    };
    queue.submit(submission, |out: &mut Vec<u8>| {
        out.resize(out.len() + bytes, b'x');
        out.len()
    })
}

fn down() -> Gate {
    let now = clock::now();
    let outage = Outage {
        since: now,
        cause: "it is gone".into(),
    };
    Gate::Down(Arc::new(outage), now + Duration::from_millis(70))
}

fn identity() -> Identity {
    Identity {
        id: 7,
        addr: "127.0.0.1:1".into(),
        run_id: None,
    }
}

#[test]
fn a_full_queue_refuses_and_says_which_bound() {
    let queue = SubmitQueue::new(BOUNDS);
    let held: Vec<_> = (0..3).map(|_| submit(&queue, 10, BOUND)).collect();
    assert!(held.iter().all(Result::is_ok));
    let error = submit(&queue, 10, BOUND).expect_err("it is full");
    let in_flight = matches!(
        error.kind(),
        ErrorKind::Overloaded {
            bound: Bound::InFlight,
            ..
        }
    );
    assert!(in_flight, "{error}");
    let queue = SubmitQueue::new(BOUNDS);
    let _held = [100, 100].map(|bytes| submit(&queue, bytes, BOUND).expect("it passes"));
    let error = submit(&queue, 1, BOUND).expect_err("it is full");
    let bytes = matches!(
        error.kind(),
        ErrorKind::Overloaded {
            bound: Bound::Bytes,
            ..
        }
    );
    assert!(bytes, "{error}");
}

#[test]
fn c11_what_was_written_leaves_its_room_as_soon_as_the_driver_parks() {
    let queue = SubmitQueue::new(Bulkhead::new(9, 100));
    let _held = [100, 100].map(|bytes| submit(&queue, bytes, BOUND).expect("it passes"));
    let mut batch = Batch::default();
    queue.take(&mut batch, Backlog::default(), false);
    assert!(submit(&queue, 1, BOUND).is_err(), "it is not written yet");
    let written = Backlog {
        awaiting: 2,
        ..Backlog::default()
    };
    assert!(queue.park(Waker::noop(), written, Left::Nothing));
    assert!(submit(&queue, 1, BOUND).is_ok());
}

#[test]
fn c11_one_large_value_that_waits_does_not_shut_out_the_others() {
    let queue = SubmitQueue::new(Bulkhead::new(99, 100));
    let _large = submit(&queue, 5_000, BOUND).expect("it passes");
    let _small = [(); 9].map(|()| submit(&queue, 10, BOUND).expect("there is room"));
    // Nor while the driver has it, and has written a part.
    queue.take(&mut Batch::default(), Backlog::default(), false);
    let held = Backlog {
        awaiting: 10,
        unsent: 4_090,
        longest: 4_000,
    };
    assert!(queue.park(Waker::noop(), held, Left::Nothing));
    let _last = submit(&queue, 10, BOUND).expect("there is room");
    assert!(submit(&queue, 10, BOUND).is_err(), "90 and 10 are 100");
}

#[tokio::test]
async fn c20_what_travels_apart_waits_for_those_before_and_those_after_wait_for_it() {
    let queue = SubmitQueue::new(Bulkhead::new(99, 100));
    let now = clock::now();
    let send = |apart| {
        let submission = Submission {
            replies: 1,
            started: now,
            deadline: now + BOUND,
            now,
            seq: None,
            only_fenced: false,
            read_only: false,
            apart,
        };
        let submitted = queue.submit(submission, |out: &mut Vec<u8>| {
            out.push(b'x');
            out.len()
        });
        submitted.expect("there is room").pending
    };
    let _pending = [false, true, false].map(send);
    let mut batch = Batch::default();
    let mut take = |awaiting, all| {
        let backlog = Backlog {
            awaiting,
            ..Backlog::default()
        };
        let (_, left) = queue.take(&mut batch, backlog, all);
        (batch.drain().count(), left)
    };
    assert_eq!(take(0, false), (1, Left::Some));
    assert_eq!(take(1, false), (0, Left::Some), "the first is under way");
    assert_eq!(take(0, false), (1, Left::Some), "it goes alone");
    assert_eq!(take(0, false), (1, Left::Nothing));
    let _pending = [false, true, false].map(send);
    assert_eq!(take(9, true), (3, Left::Nothing), "it has waited enough");
}

const BOUND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn what_waits_is_turned_away_when_the_server_is_down_and_so_is_what_comes() {
    let queue = SubmitQueue::new(BOUNDS);
    let waiting = submit(&queue, 1, BOUND).expect("it waits");
    queue.set_gate(down());
    assert!(matches!(waiting.pending.await, Ended::Turned));
    let error = submit(&queue, 1, BOUND).expect_err("it is down");
    assert_eq!(error.certainty(), Certainty::NotSent);
    assert!(error.retry_after().expect("it says when") <= Duration::from_millis(70));
    assert_eq!(queue.take_refused(), 1);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_closed_queue_stays_closed() {
    let queue = SubmitQueue::new(BOUNDS);
    queue.refuse_new();
    queue.set_gate(Gate::Open);
    let error = submit(&queue, 1, BOUND).expect_err("it is closed");
    assert!(matches!(error.kind(), ErrorKind::Closed));
}

#[tokio::test]
async fn those_whose_time_is_up_end_and_the_others_keep_their_places() {
    let queue = SubmitQueue::new(BOUNDS);
    let hasty = submit(&queue, 5, Duration::ZERO).expect("it waits");
    let patient = submit(&queue, 7, BOUND).expect("it waits");
    assert!(queue.expire(clock::now()).is_some(), "one is left");
    let Ended::Expired { certainty, .. } = hasty.pending.await else {
        panic!("it has expired");
    };
    assert_eq!(certainty, Certainty::NotSent);
    let mut batch = Batch::default();
    queue.take(&mut batch, Backlog::default(), false);
    assert_eq!((batch.len(), batch.byte_len()), (1, 7));
    drop(patient);
}

#[tokio::test]
async fn c18_what_relies_on_a_fence_does_not_go_with_a_connection_that_has_none() {
    let queue = SubmitQueue::new(BOUNDS);
    let now = clock::now();
    let submission = Submission {
        replies: 1,
        started: now,
        deadline: now + BOUND,
        now,
        seq: None,
        only_fenced: true,
        read_only: false,
        apart: false,
    };
    let relying = queue
        .submit(submission, |out: &mut Vec<u8>| out.len())
        .expect("it waits");
    let other = submit(&queue, 7, BOUND).expect("it waits");
    queue.serves(false);
    let Ended::Lost { certainty, .. } = relying.pending.await else {
        panic!("it is turned away");
    };
    assert_eq!(certainty, Certainty::NotSent);
    assert_eq!(queue.in_flight(), 1, "the other goes");
    // Nor does one that comes while it serves.
    queue.set_gate(Gate::Open);
    let late = queue.submit(submission, |out: &mut Vec<u8>| out.len());
    let error = late.expect_err("it relies on a fence");
    assert_eq!(error.certainty(), Certainty::NotSent);
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
    assert!(submit(&queue, 7, BOUND).is_ok(), "others may");
    // The next one may be another.
    queue.release();
    assert!(
        queue
            .submit(submission, |out: &mut Vec<u8>| out.len())
            .is_ok()
    );
    drop(other);
}

#[test]
fn a_transaction_is_not_interrupted_but_by_its_end() {
    let queue = SubmitQueue::new(BOUNDS);
    let now = clock::now();
    let submission = Submission {
        replies: 1,
        started: now,
        deadline: now + BOUND,
        now,
        seq: None,
        only_fenced: false,
        read_only: false,
        apart: false,
    };
    let multi = vec![(0, TxStep::Multi)];
    let begun = queue.submit_transition(multi, submission, |out: &mut Vec<u8>| out.len());
    assert!(begun.is_ok());
    queue.command(DriverCommand::Fence(identity()));
    assert!(queue.holds_a_fence());
    queue.command(DriverCommand::Abandon("over".into()));
    assert_eq!(
        queue.take_commands(Backlog::default()).len(),
        1,
        "only the end is told at once"
    );
    let done = Reply::One(redis::Value::Nil);
    queue.answered(&vec![(0, TxStep::Exec)], &done);
    assert!(!queue.holds_a_fence());
    assert!(
        matches!(&queue.take_commands(Backlog::default())[..], [DriverCommand::Fence(known)] if *known == identity())
    );
}
