use std::pin::Pin;
use std::task::{Context, Poll};

use steadfast_core::conn::Watch;
use steadfast_core::resp::Limits;

use super::*;
use crate::clock;
use crate::wire::identity::Identity;

const BOUNDS: Bulkhead = Bulkhead::new(3, 100);

const BOUND: Duration = Duration::from_secs(1);

fn submission(limit: Duration) -> Submission {
    let now = clock::now();
    Submission {
        replies: 1,
        started: now,
        deadline: now + limit,
        now,
        seq: None,
        only_fenced: false,
        read_only: false,
        apart: false,
    }
}

fn submit(queue: &SubmitQueue, bytes: usize, limit: Duration) -> Result<Submitted, Error> {
    queue.submit(submission(limit), |out: &mut Vec<u8>| {
        out.resize(out.len() + bytes, b'x');
        out.len()
    })
}

/// A request that is encoded before the queue is locked, while something else happens.
struct Large<F>(usize, F);

impl<F: FnOnce()> Encode for Large<F> {
    fn size(&self) -> usize {
        self.0
    }

    fn encode(self, out: &mut Vec<u8>) -> usize {
        (self.1)();
        out.resize(out.len() + self.0, b'x');
        out.len()
    }
}

/// A request that looks at its queue as it is measured, and is never encoded.
struct Measured<'a>(&'a SubmitQueue);

impl Encode for Measured<'_> {
    fn size(&self) -> usize {
        assert!(self.0.inner.try_lock().is_some(), "measured under the lock");
        PIECE
    }

    fn encode(self, _: &mut Vec<u8>) -> usize {
        panic!("it is encoded already");
    }
}

#[test]
fn t5_what_was_encoded_ahead_is_not_copied_and_nothing_is_measured_under_the_lock() {
    const FAR: Duration = Duration::from_secs(60);
    let queue = SubmitQueue::new(BOUNDS);
    assert!(Encoded::ahead(Large(PIECE - 1, || ())).is_none(), "short");
    let request = PerhapsEncoded {
        encoded: Encoded::ahead(Large(PIECE, || ())),
        request: Measured(&queue),
    };
    assert!(queue.submit(submission(FAR), request).is_ok());
    let small = PerhapsEncoded {
        encoded: None,
        request: |out: &mut Vec<u8>| {
            out.push(b'y');
            out.len()
        },
    };
    assert!(queue.submit(submission(FAR), small).is_ok());
    assert_eq!(queue.lock().bytes(), PIECE + 1);
    let unencoded = PerhapsEncoded {
        encoded: None,
        request: Large(PIECE, || assert_eq!(queue.in_flight(), 2)),
    };
    assert!(queue.submit(submission(FAR), unencoded).is_ok());
    assert_eq!(queue.in_flight(), 3);
}

#[test]
fn t31_parts_of_a_call_take_one_place_together_until_the_last_is_answered() {
    const FAR: Duration = Duration::from_secs(60);
    let queue = SubmitQueue::new(BOUNDS);
    let submit = || submit(&queue, 1, FAR);
    let (call, other) = (SharedPlaces::default(), SharedPlaces::default());
    let part = |_| (call.share(&queue), submit().expect("they have one place"));
    let mut parts: Vec<_> = (0..5).map(part).collect();
    let others = [(); 2].map(|()| submit().expect("there are three places"));
    let share = other.share(&queue);
    assert!(submit().is_err(), "it has none yet");
    drop((share, others));
    // Those of the others and all but one of the parts are answered.
    take_all(&queue);
    let awaiting = |awaiting| Backlog {
        awaiting,
        ..Backlog::default()
    };
    parts.truncate(1);
    queue.take_commands(awaiting(1));
    let _others = [(); 2].map(|()| submit().expect("there are three places"));
    assert!(submit().is_err());
    // Parts that are given up without an answer are no call's any more.
    parts.extend((0..2).map(part));
    parts.clear();
    queue.take_commands(awaiting(0));
    assert_eq!(queue.in_flight(), 4);
    assert!(submit().is_err());
}

/// Everything that waits goes to a driver that has nothing.
fn take_all(queue: &SubmitQueue) -> Batch<Job> {
    let mut batch = Batch::default();
    queue.take(&mut batch, Backlog::default(), false);
    batch
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
        apart: false,
    };
    assert!(queue.park(Waker::noop(), held, Left::Nothing));
    let _last = submit(&queue, 10, BOUND).expect("there is room");
    assert!(submit(&queue, 10, BOUND).is_err(), "90 and 10 are 100");
}

#[test]
fn t5_t31_past_the_bound_for_all_queues_only_those_that_hold_little_take_more() {
    let total = Arc::new(TotalBytes::new(64_000));
    let queue = || {
        let queue = SubmitQueue::new(Bulkhead::new(99, 40_000));
        queue.counted_in(Some(Arc::clone(&total)))
    };
    let (hangs, hangs_too, works) = (queue(), queue(), queue());
    let fill = |queue: &SubmitQueue| {
        let held = (0..99).map_while(|_| submit(queue, 1_000, BOUND).ok());
        held.collect::<Vec<_>>()
    };
    let (first, second) = (fill(&hangs), fill(&hangs_too));
    assert_eq!(first.len(), 41, "its own bound, and the longest");
    assert!((23..30).contains(&second.len()), "{}", second.len());
    // One that works is not refused for the sake of those.
    let _held = submit(&works, 1_000, BOUND).expect("it holds nothing yet");
    let error = fill(&works);
    assert!(error.len() <= 2, "{}", error.len());
    // What is turned away, and a queue that goes, give their room back.
    hangs.set_gate(Gate::Closed);
    drop((first, hangs_too, second));
    assert!(fill(&works).len() > 30);
}

#[tokio::test]
async fn c20_what_travels_apart_waits_for_those_before_and_those_after_wait_for_it() {
    let queue = SubmitQueue::new(Bulkhead::new(99, 100));
    let send = |apart| {
        let submission = Submission {
            apart,
            ..submission(BOUND)
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

#[tokio::test]
async fn what_waits_is_turned_away_when_the_server_is_down_and_so_is_what_comes() {
    let queue = SubmitQueue::new(BOUNDS);
    let waiting = submit(&queue, 1, BOUND).expect("it waits");
    queue.set_gate(down());
    assert!(matches!(waiting.pending.await, Ended::Turned));
    let error = submit(&queue, 1, BOUND).expect_err("it is down");
    assert_eq!(error.certainty(), Certainty::NotSent);
    assert!(error.retry_after().expect("it says when") <= Duration::from_millis(70));
    queue.set_retry_at(clock::now() + Duration::from_secs(3));
    let error = submit(&queue, 1, BOUND).expect_err("it is down");
    assert!(error.retry_after().expect("it says when") > Duration::from_secs(2));
    let error = queue.refusal(clock::now());
    assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}");
    assert_eq!((queue.take_refused(), queue.take_refused()), (3, 0));
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_closed_queue_stays_closed() {
    let queue = SubmitQueue::new(BOUNDS);
    queue.refuse_new();
    queue.set_gate(Gate::Open);
    let error = submit(&queue, 1, BOUND).expect_err("it is closed");
    assert!(matches!(error.kind(), ErrorKind::Closed));
    assert!(matches!(
        queue.refusal(clock::now()).kind(),
        ErrorKind::Closed
    ));
    queue.adopt();
    assert!(
        matches!(queue.gate(), Gate::Closed),
        "by another runtime too"
    );
    let aside = SubmitQueue::new(BOUNDS).aside();
    assert!(submit(&aside, 1, BOUND).is_err(), "nothing new comes there");
}

#[tokio::test]
async fn c19_whose_runtime_has_ended_turns_away_what_waits_and_serves_anew_when_adopted() {
    let queue = SubmitQueue::new(BOUNDS);
    let waiting = submit(&queue, 1, BOUND).expect("it waits");
    queue.orphan();
    assert!(matches!(waiting.pending.await, Ended::Turned));
    assert!(queue.is_orphaned());
    let error = submit(&queue, 1, BOUND).expect_err("nobody serves it");
    assert!(matches!(error.kind(), ErrorKind::Runtime { .. }), "{error}");
    let again = queue.refusal(clock::now());
    assert!(matches!(again.kind(), ErrorKind::Lost { .. }), "{again}");
    queue.adopt();
    assert!(!queue.is_orphaned());
    assert!(submit(&queue, 1, BOUND).is_ok());
}

#[test]
fn c11_what_the_driver_has_taken_counts_until_it_is_answered() {
    let queue = SubmitQueue::new(BOUNDS);
    let mut held: Vec<_> = (0..2).map(|_| submit(&queue, 1, BOUND)).collect();
    let _taken = take_all(&queue);
    assert_eq!(queue.in_flight(), 2);
    held.push(submit(&queue, 1, BOUND));
    assert!(held.iter().all(Result::is_ok));
    assert_eq!(queue.in_flight(), 3);
    assert!(submit(&queue, 1, BOUND).is_err(), "three are the bound");
    queue.release();
    assert_eq!(queue.in_flight(), 1, "its driver has ended");
}

#[test]
fn c13_requests_are_numbered_as_they_come_and_keep_the_number_that_they_had() {
    let queue = SubmitQueue::new(Bulkhead::new(99, 100));
    let number = |seq| {
        let submission = Submission {
            seq,
            ..submission(BOUND)
        };
        let submitted = queue.submit(submission, |out: &mut Vec<u8>| out.len());
        submitted.expect("there is room").seq
    };
    let numbers = [None, None, Some(0), None].map(number);
    assert_eq!(numbers, [0, 1, 0, 2]);
}

#[test]
fn a_driver_parks_only_if_nothing_has_come_since_it_looked() {
    let queue = SubmitQueue::new(BOUNDS);
    let park = |left| queue.park(Waker::noop(), Backlog::default(), left);
    assert!(park(Left::Nothing));
    let _waiting = submit(&queue, 1, BOUND).expect("it waits");
    assert!(!park(Left::Nothing), "it was submitted");
    assert!(park(Left::Some), "it was left on purpose");
    queue.command(DriverCommand::Lives);
    assert!(!park(Left::Some), "it was told something");
    assert_eq!(queue.take_commands(Backlog::default()).len(), 1);
    assert!(park(Left::Some));
}

#[test]
fn whoever_is_parked_is_woken_by_what_comes_and_by_what_it_is_told() {
    struct Woken(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let woken = Arc::new(Woken(Default::default()));
    let count = || woken.0.load(std::sync::atomic::Ordering::Relaxed);
    let waker = Waker::from(Arc::clone(&woken));
    let queue = SubmitQueue::new(BOUNDS);
    queue.park(&waker, Backlog::default(), Left::Nothing);
    let _waiting = submit(&queue, 1, BOUND).expect("it waits");
    assert_eq!(count(), 1);
    queue.park(&waker, Backlog::default(), Left::Some);
    queue.command(DriverCommand::Lives);
    assert_eq!(count(), 2);
}

#[test]
fn a_large_request_is_encoded_while_others_go_on_and_refused_if_the_gate_was_shut_meanwhile() {
    let queue = SubmitQueue::new(Bulkhead::new(99, 10 * PIECE));
    let mut other = None;
    let large = Large(PIECE, || other = submit(&queue, 7, BOUND).ok());
    let large = queue.submit(submission(BOUND), large).expect("it waits");
    let other = other.expect("it did not wait for the other to be encoded");
    assert_eq!((other.seq, large.seq), (0, 1));
    let batch = take_all(&queue);
    assert_eq!((batch.len(), batch.byte_len()), (2, PIECE + 7));
    let late = Large(PIECE, || queue.set_gate(Gate::Closed));
    let error = queue.submit(submission(BOUND), late).expect_err("closed");
    assert!(matches!(error.kind(), ErrorKind::Closed), "{error}");
}

#[test]
fn a_transaction_that_was_refused_or_never_sent_has_begun_nothing() {
    let queue = SubmitQueue::new(BOUNDS);
    let fences_at_once = || {
        queue.command(DriverCommand::Fence(identity()));
        queue.take_commands(Backlog::default()).len() == 1
    };
    let multi = || {
        let steps = vec![(0, TxStep::Multi)];
        queue.submit_transition(steps, submission(Duration::ZERO), |out: &mut Vec<u8>| {
            out.len()
        })
    };
    let _waiting = multi().expect("it waits");
    assert!(!fences_at_once(), "it may have begun");
    assert!(queue.expire(clock::now()).is_none());
    assert_eq!(queue.take_commands(Backlog::default()).len(), 1, "let go");
    queue.set_gate(down());
    assert!(multi().is_err());
    assert!(fences_at_once());
}

/// Waits until it has ended, which the thread beside all runtimes sees to.
async fn ended(pending: Pending) -> Ended {
    let ended = tokio::time::timeout(Duration::from_secs(60), pending);
    ended.await.expect("its deadline is kept")
}

#[tokio::test]
async fn c19_where_nobody_serves_the_queue_its_deadlines_are_kept_all_the_same() {
    let queue = Arc::new(SubmitQueue::new(BOUNDS));
    queue.watch();
    let multi = vec![(0, TxStep::Multi)];
    let transaction = queue
        .submit_transition(multi, submission(Duration::ZERO), |out: &mut Vec<u8>| {
            out.len()
        })
        .expect("it waits");
    queue.command(DriverCommand::Fence(identity()));
    let _patient = submit(&queue, 1, 60 * BOUND).expect("it waits");
    let gone = ended(transaction.pending).await;
    assert!(matches!(gone, Ended::Unattended(Certainty::NotSent)));
    assert_eq!(queue.in_flight(), 1, "the other waits still");
    assert_eq!(queue.take_commands(Backlog::default()).len(), 1, "let go");
}

#[test]
fn c19_what_somebody_serves_is_left_to_whoever_serves_it() {
    let queue = SubmitQueue::new(BOUNDS);
    let mut pending = submit(&queue, 1, Duration::ZERO).expect("it waits").pending;
    let mut seen = 0;
    let mut look = || {
        queue.look_after(&mut seen, clock::now());
        // Its caller runs.
        Pin::new(&mut pending).poll(&mut Context::from_waker(Waker::noop()))
    };
    for _ in 0..3 {
        queue.park(Waker::noop(), Backlog::default(), Left::Some);
        assert!(look().is_pending());
        queue.take_commands(Backlog::default());
        assert!(look().is_pending());
    }
    assert!(look().is_pending(), "it is only woken");
    assert!(matches!(
        look(),
        Poll::Ready(Ended::Unattended(Certainty::NotSent))
    ));
}

#[tokio::test]
async fn c19_where_nobody_drives_the_connection_its_deadlines_are_kept_all_the_same() {
    let queue = Arc::new(SubmitQueue::new(BOUNDS));
    queue.watch();
    let watch = Watch {
        doubtful: BOUND,
        response_idle_timeout: BOUND,
        heartbeat: BOUND,
    };
    let now = clock::now();
    let mut conn = Conn::new(watch, Limits::default(), now);
    let begun = submit(&queue, 10, Duration::ZERO).expect("it waits");
    let _patient = submit(&queue, 10, 60 * BOUND).expect("it waits");
    let unwritten = submit(&queue, 10, Duration::ZERO).expect("it waits");
    conn.submit(&mut take_all(&queue), now);
    conn.transmitted(20);
    *queue.serving.lock() = Some(conn);
    for (pending, certainty) in [
        (begun.pending, Certainty::Unknown),
        (unwritten.pending, Certainty::NotSent),
    ] {
        let Ended::Unattended(known) = ended(pending).await else {
            panic!("nobody attends to it");
        };
        assert_eq!(known, certainty);
    }
    let conn = queue.serving.lock().take().expect("it is there still");
    assert_eq!((conn.awaiting(), conn.unsent()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn c1_the_deadlines_of_what_waits_for_a_connection_are_kept_in_their_order() {
    let queue = Arc::new(SubmitQueue::new(BOUNDS));
    let keeping = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.keep_deadlines().await }
    });
    let begun = clock::now();
    let late = submit(&queue, 1, Duration::from_millis(80)).expect("it waits");
    tokio::time::sleep(Duration::from_millis(10)).await;
    let soon = submit(&queue, 1, Duration::from_millis(20)).expect("it waits");
    for (pending, at) in [(soon.pending, 30), (late.pending, 80)] {
        assert!(matches!(pending.await, Ended::Expired { .. }));
        let took = clock::now() - begun;
        assert!(
            (at..at + 5).contains(&(took.as_millis() as u64)),
            "{took:?}"
        );
    }
    keeping.abort();
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
    let submission = Submission {
        only_fenced: true,
        ..submission(BOUND)
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
    let multi = vec![(0, TxStep::Multi)];
    let begun = queue.submit_transition(multi, submission(BOUND), |out: &mut Vec<u8>| out.len());
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
