//! Silence, and what is due when.

use super::*;

#[test]
fn c7_bytes_without_a_reply_are_told_once_their_head_was_given_up() {
    let now = start();
    let mut conn = conn(now);
    submit(&mut conn, 0..2, now);
    conn.transmitted(8);
    let stuck = |conn: &mut Conn<u32>, at| {
        let mut lapses = std::iter::from_fn(|| conn.poll_lapse(at));
        lapses.any(|lapse| matches!(lapse, Lapse::Stuck { .. }))
    };
    let (mut at, mut reply) = (now, b"$99\r\n".as_slice());
    for _ in 0..9 {
        at += SECOND / 10;
        replies(&mut conn, reply, at);
        reply = b"x";
        assert!(!stuck(&mut conn, at), "somebody waits for it");
    }
    at = now + SECOND;
    conn.handle_life(at);
    assert!(stuck(&mut conn, at), "nobody does any more");
    assert!(!stuck(&mut conn, at), "it is told once");
}

#[test]
fn silence_is_told_once_and_again_only_after_a_byte() {
    let now = start();
    let mut conn = conn(now);
    submit(&mut conn, 0..1, now);
    conn.transmitted(4);
    let doubtful =
        |conn: &mut Conn<u32>, at| matches!(conn.poll_lapse(at), Some(Lapse::Doubtful { .. }));
    let overdue =
        |conn: &mut Conn<u32>, at| matches!(conn.poll_lapse(at), Some(Lapse::Unresponsive { .. }));
    assert!(!doubtful(&mut conn, now + SECOND / 5));
    assert!(doubtful(&mut conn, now + SECOND * 2 / 5));
    assert!(!overdue(&mut conn, now + SECOND * 2 / 5));
    assert!(overdue(&mut conn, now + SECOND / 2));
    assert!(conn.poll_lapse(now + SECOND * 2 / 3).is_none());
    replies(&mut conn, b"$5\r\nhe", now + SECOND * 2 / 3);
    assert!(doubtful(&mut conn, now + SECOND * 7 / 6));
    assert!(overdue(&mut conn, now + SECOND * 7 / 6));
}

#[test]
fn an_idle_connection_asks_for_a_heartbeat() {
    let now = start();
    let mut conn = conn(now);
    assert_eq!(conn.poll_timeout(), Some(now + SECOND));
    assert!(conn.poll_lapse(now + SECOND / 2).is_none());
    assert!(matches!(
        conn.poll_lapse(now + SECOND),
        Some(Lapse::Heartbeat)
    ));
}

#[test]
fn what_a_connection_has_to_do_next_is_told_by_its_timeout() {
    let now = start();
    let mut conn = conn(now);
    assert_eq!(conn.poll_timeout(), Some(now + SECOND), "a heartbeat");
    let mut batch = Batch::default();
    push(&mut batch, 0, terms(now, SECOND / 4, 0));
    push(&mut batch, 1, terms(now, SECOND * 9, 1));
    let at = now + SECOND / 10;
    conn.submit(&mut batch, at);
    assert_eq!(conn.poll_timeout(), Some(now + SECOND / 4), "a deadline");
    conn.transmitted(8);
    let Some(Lapse::Expired { waited, .. }) = conn.poll_lapse(now + SECOND / 4) else {
        panic!("it has expired");
    };
    assert_eq!(waited, SECOND / 4 - SECOND / 10);
    assert_eq!(conn.awaiting(), 2, "its reply is still to come");
    let doubtful = at + SECOND * 2 / 5;
    assert_eq!(conn.poll_timeout(), Some(doubtful), "silence");
    let told = conn.poll_lapse(doubtful);
    assert!(matches!(told, Some(Lapse::Doubtful { quiet }) if quiet == SECOND * 2 / 5));
    let overdue = at + SECOND / 2;
    assert_eq!(conn.poll_timeout(), Some(overdue), "longer silence");
    let Some(Lapse::Unresponsive { quiet }) = conn.poll_lapse(overdue) else {
        panic!("it is overdue");
    };
    assert_eq!(quiet, SECOND / 2);
    while conn.poll_lapse(overdue).is_some() {}
    assert_eq!(
        conn.poll_timeout(),
        Some(now + SECOND * 9),
        "the next deadline"
    );
    assert_eq!(conn.latest_deadline(|_| true), Some(now + SECOND * 9));
    assert_eq!(conn.latest_deadline(|ticket| *ticket == 0), None);
    assert_eq!(replies(&mut conn, b"+OK\r\n+OK\r\n", overdue), [1]);
    assert_eq!(conn.poll_timeout(), Some(overdue + SECOND), "a heartbeat");
    assert!(matches!(
        conn.poll_lapse(overdue + SECOND),
        Some(Lapse::Heartbeat)
    ));
    assert!(conn.poll_lapse(overdue + SECOND).is_none(), "told once");
}

#[test]
fn a_reply_says_since_when_it_was_waited_for_and_how_long_it_could_have_taken() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    push(&mut batch, 0, terms(now, SECOND * 2, 0));
    let mut many = terms(now, SECOND * 3, 1);
    many.replies = 3;
    push(&mut batch, 1, many);
    let later = now + SECOND / 4;
    conn.submit(&mut batch, later);
    conn.transmitted(8);
    conn.input().extend_from_slice(b"+OK\r\n:1\r\n:2\r\n");
    conn.handle_input(later);
    let Ok(Some(Incoming::Reply {
        ticket,
        reply,
        taken,
        given,
    })) = conn.poll_incoming()
    else {
        panic!("it was answered");
    };
    assert_eq!((ticket, taken, given), (0, later, SECOND * 2));
    assert_eq!(reply, Reply::One(Value::Okay));
    assert!(matches!(conn.poll_incoming(), Ok(None)), "one is missing");
    assert!(conn.has_unanswered_writes());
    conn.input().extend_from_slice(b":3\r\n>1\r\n+hello\r\n");
    let Ok(Some(Incoming::Reply { ticket, reply, .. })) = conn.poll_incoming() else {
        panic!("it was answered");
    };
    let values = [1, 2, 3].map(Value::Int).to_vec();
    assert_eq!((ticket, reply), (1, Reply::Many(values)));
    assert!(matches!(conn.poll_incoming(), Ok(Some(Incoming::Push(_)))));
    assert!(!conn.has_unanswered_writes());
    assert!(matches!(conn.poll_incoming(), Ok(None)));
}
