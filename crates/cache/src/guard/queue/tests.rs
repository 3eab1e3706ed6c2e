use super::*;
use crate::clock::clock;

const LONG: Duration = Duration::from_secs(3600);

fn queue(concurrency: usize, rate: f64, waiting: usize) -> (AdmissionQueue, Instant) {
    let now = clock();
    (
        AdmissionQueue::new(
            &GuardOptions {
                waiting,
                ..GuardOptions::new(concurrency, rate)
            },
            &[None, None],
            now,
        ),
        now,
    )
}

fn admitted(entry: Entrance) -> bool {
    matches!(entry, Entrance::Admitted)
}

fn queued(entry: Entrance) -> oneshot::Receiver<()> {
    match entry {
        Entrance::Waiting(turn) => turn,
        _ => panic!("not queued"),
    }
}

#[test]
fn k9_no_more_at_once_than_the_bulkhead_holds() {
    let (mut queue, now) = queue(3, 1e6, 10);
    assert_eq!(
        (0..10)
            .filter(|_| admitted(queue.enter(0, Urgency::Needed, now + LONG, now)))
            .count(),
        3
    );
}

#[test]
fn k9_no_more_in_a_second_than_the_rate_and_its_burst() {
    let (mut queue, start) = queue(1_000_000, 100.0, 0);
    let went = (0..1000)
        .filter(|ms| {
            admitted(queue.enter(
                0,
                Urgency::Needed,
                start + LONG,
                start + Duration::from_millis(*ms),
            ))
        })
        .count();
    assert!((105..=110).contains(&went), "{went}");
}

#[test]
fn k9_who_is_needed_goes_first_then_the_hottest() {
    let (mut queue, now) = queue(1, 1e6, 10);
    assert!(admitted(queue.enter(0, Urgency::Needed, now + LONG, now)));
    let mut cold = queued(queue.enter(0, Urgency::Refresh { hit_count: 1 }, now + LONG, now));
    let mut hot = queued(queue.enter(0, Urgency::Refresh { hit_count: 9 }, now + LONG, now));
    let mut needed = queued(queue.enter(0, Urgency::Needed, now + LONG, now));
    for turn in [&mut needed, &mut hot, &mut cold] {
        assert!(turn.try_recv().is_err());
        queue.leave(0);
        queue.let_in(now);
        assert!(turn.try_recv().is_ok());
    }
}

#[test]
fn k9_a_full_queue_pushes_out_the_coldest() {
    let (mut queue, now) = queue(1, 1e6, 2);
    assert!(admitted(queue.enter(0, Urgency::Needed, now + LONG, now)));
    let mut coldest = queued(queue.enter(0, Urgency::Refresh { hit_count: 1 }, now + LONG, now));
    let _warm = queued(queue.enter(0, Urgency::Refresh { hit_count: 5 }, now + LONG, now));
    assert!(matches!(
        queue.enter(0, Urgency::Refresh { hit_count: 0 }, now + LONG, now),
        Entrance::Full
    ));
    let _hot = queued(queue.enter(0, Urgency::Refresh { hit_count: 9 }, now + LONG, now));
    assert_eq!(
        coldest.try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    );
}

#[test]
fn k9_a_class_at_its_own_bounds_holds_up_no_other() {
    let now = clock();
    let reports = ClassGuard::new(1, 10.0);
    let classes = [Some(reports), None];
    let mut queue = AdmissionQueue::new(&GuardOptions::new(3, 1e6), &classes, now);
    assert!(admitted(queue.enter(0, Urgency::Needed, now + LONG, now)));
    let mut second = queued(queue.enter(0, Urgency::Needed, now + LONG, now));
    let mut third = queued(queue.enter(0, Urgency::Needed, now + LONG, now));
    assert!(admitted(queue.enter(
        1,
        Urgency::Refresh { hit_count: 0 },
        now + LONG,
        now
    )));
    assert!(admitted(queue.enter(1, Urgency::Needed, now + LONG, now)));
    let mut other = queued(queue.enter(1, Urgency::Refresh { hit_count: 0 }, now + LONG, now));
    // A priority of the whole is free, but none of the class that waited first.
    queue.leave(1);
    assert_eq!(queue.let_in(now), None);
    assert!(second.try_recv().is_err() && other.try_recv().is_ok());
    // A priority of the class is free, but its rate is used up: when to look again is told.
    queue.leave(0);
    let pause = queue.let_in(now).unwrap();
    assert!(pause > Duration::from_millis(50) && pause <= Duration::from_millis(100));
    assert!(queue.let_in(now + pause).is_some() || second.try_recv().is_ok());
    assert!(third.try_recv().is_err());
    assert!(queue.retry_after(0) >= Duration::from_millis(200));
    assert!(queue.retry_after(1) < Duration::from_millis(50));
}

#[test]
fn k9_what_refuses_a_class_is_named() {
    let now = clock();
    let classes = [
        Some(ClassGuard::new(1, 1e6)),
        Some(ClassGuard::new(3, 10.0)),
        Some(ClassGuard::new(3, 1e6)),
        None,
    ];
    let mut queue = AdmissionQueue::new(&GuardOptions::new(3, 1e6), &classes, now);
    let bound = |class, queue: &mut AdmissionQueue| match queue.refusal(class, now) {
        Rejection::Class { bound, .. } => Some(bound),
        _ => None,
    };
    for class in 0..3 {
        assert_eq!(bound(class, &mut queue), None, "nothing runs");
        assert!(admitted(queue.enter(
            class,
            Urgency::Needed,
            now + LONG,
            now
        )));
    }
    let own = [
        Some(ClassBound::Concurrency(1)),
        Some(ClassBound::Rate(10.0)),
        None,
        None,
    ];
    for (class, own) in own.into_iter().enumerate() {
        assert_eq!(bound(class, &mut queue), own, "{class}");
    }
}

#[test]
fn k9_after_an_outage_refreshes_ramp_and_the_needed_do_not() {
    let (mut queue, start) = queue(1_000_000, 1000.0, 0);
    queue.refreshes.tokens = 0.0;
    queue.ramp_from = Some(start);
    let refresh = |queue: &mut AdmissionQueue, from: u64| {
        let at = |ms| start + Duration::from_millis(from + ms);
        (0..1000)
            .filter(|ms| {
                admitted(queue.enter(0, Urgency::Refresh { hit_count: 1 }, start + LONG, at(*ms)))
            })
            .count()
    };
    let first = refresh(&mut queue, 0);
    assert!((150..=250).contains(&first), "{first}");
    assert!(admitted(queue.enter(
        0,
        Urgency::Needed,
        start + LONG,
        start + Duration::from_secs(1)
    )));
    let fourth = refresh(&mut queue, 3000);
    assert!((600..=900).contains(&fourth), "{fourth}");
}

#[test]
fn k9_a_queue_stands_still_in_which_nobody_was_admitted_for_as_long_as_several_loads_take() {
    let (mut queue, start) = queue(1, 1e6, 10);
    let (wait, at) = (Duration::from_millis(500), |ms| {
        start + Duration::from_millis(ms)
    });
    let enter =
        |queue: &mut AdmissionQueue, ms| queue.enter(0, Urgency::Needed, start + LONG, at(ms));
    assert!(admitted(enter(&mut queue, 0)));
    let _second = queued(enter(&mut queue, 10));
    let untried = queue.stands_still_at(0, wait);
    assert_eq!(untried, at(5010), "nobody knows yet");
    queue.note(0, Duration::from_millis(100));
    queue.leave(0);
    queue.let_in(at(100));
    let _third = queued(enter(&mut queue, 110));
    assert_eq!(
        queue.stands_still_at(0, wait),
        at(910),
        "eight times 100 ms"
    );
    queue.note(0, Duration::from_millis(20));
    let patient = queue.stands_still_at(0, Duration::from_secs(1));
    assert_eq!(patient, at(1110));
}

#[test]
fn k13_the_last_moment_to_begin_leaves_what_a_load_takes_and_half_of_the_time_at_most() {
    let (mut queue, start) = queue(1, 1e6, 10);
    let at = |ms| start + Duration::from_millis(ms);
    assert_eq!(queue.latest(0, at(800), start), at(700), "an eighth");
    queue.note(0, Duration::from_millis(100));
    assert_eq!(queue.latest(0, at(800), start), at(600), "twice the load");
    assert_eq!(queue.latest(0, at(300), start), at(150), "half");
}

#[test]
fn k9_what_the_first_in_the_queue_waited_for_says_nothing_of_the_pace() {
    let (mut queue, start) = queue(1, 1e6, 10_000);
    let at = |ms| start + Duration::from_millis(ms);
    let enter =
        |queue: &mut AdmissionQueue, ms| queue.enter(0, Urgency::Needed, at(10_000), at(ms));
    assert!(admitted(enter(&mut queue, 0)));
    let mut kept: Vec<_> = (0..3000).map(|_| queued(enter(&mut queue, 0))).collect();
    // The connection was opened first, which took three seconds.
    queue.leave(0);
    queue.let_in(at(3000));
    kept.push(queued(enter(&mut queue, 3000)));
}

#[test]
fn k9_who_could_not_be_admitted_in_time_at_the_pace_of_late_is_refused_at_once() {
    let (mut queue, start) = queue(1, 1e6, 10_000);
    let at = |ms| start + Duration::from_millis(ms);
    let deadline = |ms: u64| at(ms + 1000);
    assert!(admitted(queue.enter(
        0,
        Urgency::Needed,
        deadline(0),
        at(0)
    )));
    let mut kept = Vec::new();
    for _ in 0..2000 {
        kept.push(queued(queue.enter(0, Urgency::Needed, deadline(0), at(0))));
    }
    // One in a hundredth of a second: a hundred in a second.
    for n in 1..=200 {
        queue.leave(0);
        queue.let_in(at(n * 10));
    }
    let enter =
        |queue: &mut AdmissionQueue, urgency| queue.enter(0, urgency, deadline(2000), at(2000));
    assert!(matches!(enter(&mut queue, Urgency::Needed), Entrance::Full));
    kept.truncate(290);
    queue.classes[0].waiting.retain(|_, turn| !turn.is_closed());
    assert_eq!(queue.waiting(), 90);
    assert!(matches!(
        enter(&mut queue, Urgency::Needed),
        Entrance::Waiting(_)
    ));
}
