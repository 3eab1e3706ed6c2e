//! The certainty of a request whose connection ends, and the blame for that.

use super::*;

/// A connection whose replies are held to be short.
fn strict(now: Instant) -> Conn<u32> {
    let limits = Limits {
        bulk_bytes: 10,
        elements: 4,
        ..Limits::default()
    };
    let watch = Watch {
        doubtful: SECOND / 4,
        response_idle_timeout: SECOND / 2,
        heartbeat: SECOND,
    };
    let mut conn = Conn::new(watch, limits, now);
    let mut batch = Batch::default();
    for ticket in 0..4 {
        let mut terms = terms(now, SECOND, u64::from(ticket));
        terms.replies = if ticket == 1 { 2 } else { 1 };
        push(&mut batch, ticket, terms);
    }
    conn.submit(&mut batch, now);
    conn
}

#[test]
fn c11_the_request_whose_reply_is_too_large_is_told_so_and_the_others_are_lost() {
    let now = start();
    for (before, large, blamed) in [
        ("", "$11\r\n", Some(0)),
        ("", "*2\r\n:1\r\n$11\r\n", Some(0)),
        ("", "*5\r\n", Some(0)),
        ("+OK\r\n", "$11\r\n", Some(1)),
        ("+OK\r\n:1\r\n", "$11\r\n", Some(1)),
        // What nobody asked for is nobody's fault; nor is what is not RESP.
        ("+OK\r\n", ">2\r\n$3\r\nfoo\r\n$11\r\n", None),
        ("+OK\r\n", ">5\r\n", None),
        ("+OK\r\n", "HTTP/1.1 400 Bad Request\r\n", None),
    ] {
        let mut conn = strict(now);
        let written = conn.unsent();
        conn.transmitted(written);
        conn.input().extend_from_slice(before.as_bytes());
        conn.input().extend_from_slice(large.as_bytes());
        conn.handle_input(now);
        let mut told = None;
        let error = loop {
            match conn.poll_incoming() {
                Ok(Some(Incoming::Reply { ticket, .. })) => assert_eq!(ticket, 0),
                Ok(Some(Incoming::TooLarge { ticket, error })) => {
                    assert!(error.is_limit());
                    told = Some(ticket);
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(told, blamed, "{before:?} {large:?}");
        assert!(matches!(error, ConnError::Decode(_)), "{error}");
        assert!(conn.poll_incoming().is_err(), "it stays so");
        let left = ends(&mut conn);
        let first = blamed.map_or(1, |blamed| blamed + 1);
        let expected: Vec<_> = (first..4).map(|n| (n, Certainty::Unknown)).collect();
        assert_eq!(left, expected, "{before:?} {large:?}");
    }
}

#[test]
fn c11_who_was_given_up_or_not_yet_written_is_not_blamed_for_a_reply() {
    let now = start();
    let mut conn = strict(now);
    conn.input().extend_from_slice(b"$11\r\n");
    assert!(conn.poll_incoming().is_err(), "nothing was asked");
    assert!(
        ends(&mut conn)
            .into_iter()
            .all(|(_, certainty)| certainty == Certainty::NotSent)
    );
    let mut conn = strict(now);
    let written = conn.unsent();
    conn.transmitted(written);
    while conn.poll_lapse(now + SECOND).is_some() {}
    conn.input().extend_from_slice(b"$11\r\n");
    assert!(conn.poll_incoming().is_err(), "nobody waits for it");
}

#[test]
fn a_request_is_not_sent_until_its_last_byte_is_written() {
    let now = start();
    let mut conn = conn(now);
    submit(&mut conn, 0..3, now);
    conn.transmitted(7);
    let ends = ends(&mut conn);
    assert_eq!(
        ends,
        [
            (0, Certainty::Unknown),
            (1, Certainty::NotSent),
            (2, Certainty::NotSent)
        ]
    );
}

#[test]
fn a_reply_too_many_is_not_taken_for_the_answer_to_what_is_still_to_be_written() {
    let now = start();
    let mut conn = conn(now);
    submit(&mut conn, 0..2, now);
    conn.transmitted(4);
    assert_eq!(replies(&mut conn, b"+OK\r\n", now), [0]);
    conn.input().extend_from_slice(b"+OK\r\n");
    conn.handle_input(now);
    let error = conn.poll_incoming().expect_err("nothing asked for it");
    assert!(matches!(error, ConnError::Unsolicited(_)), "{error}");
    assert_eq!(ends(&mut conn), [(1, Certainty::NotSent)]);
}

#[test]
fn a_pipeline_is_unknown_as_soon_as_its_first_command_is_written() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    batch.push(1, terms(now, SECOND, 0), |bytes| {
        bytes.extend_from_slice(b"firstsecond");
        5
    });
    conn.submit(&mut batch, now);
    conn.transmitted(5);
    assert!(conn.has_unanswered_writes());
    assert_eq!(ends(&mut conn), [(1, Certainty::Unknown)]);
}

#[test]
fn an_expired_request_is_cut_out_of_the_stream_before_it_is_called_not_sent() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    push(&mut batch, 0, terms(now, SECOND * 9, 0));
    push(&mut batch, 1, terms(now, SECOND / 4, 1));
    push(&mut batch, 2, terms(now, SECOND * 9, 2));
    conn.submit(&mut batch, now);
    conn.transmitted(2);
    let Some(Lapse::Expired {
        ticket, certainty, ..
    }) = conn.poll_lapse(now + SECOND / 3)
    else {
        panic!("it has expired");
    };
    assert_eq!((ticket, certainty), (1, Certainty::NotSent));
    assert_eq!(to_write(&conn), b"000002");
    conn.transmitted(6);
    assert_eq!(replies(&mut conn, b"+OK\r\n+OK\r\n", now), [0, 2]);
}

#[test]
fn the_late_reply_of_an_expired_request_goes_to_nobody() {
    let now = start();
    let mut conn = conn(now);
    submit(&mut conn, 0..2, now);
    conn.transmitted(8);
    let later = now + SECOND;
    let mut expired = Vec::new();
    while let Some(lapse) = conn.poll_lapse(later) {
        if let Lapse::Expired {
            ticket, certainty, ..
        } = lapse
        {
            expired.push((ticket, certainty));
        }
    }
    assert_eq!(expired, [(0, Certainty::Unknown), (1, Certainty::Unknown)]);
    submit(&mut conn, 2..3, later);
    conn.transmitted(4);
    assert_eq!(replies(&mut conn, b":0\r\n:1\r\n:2\r\n", later), [2]);
}

#[test]
fn c20_the_head_and_the_half_written_request_are_blamed_for_the_end() {
    let now = start();
    let blamed = |conn: &mut Conn<u32>| {
        let ends = conn.close().filter(|end| end.blamed);
        ends.map(|end| end.ticket).collect::<Vec<_>>()
    };
    let mut conn = conn(now);
    submit(&mut conn, 0..4, now);
    assert!(blamed(&mut conn).is_empty(), "nothing was written");
    submit(&mut conn, 0..4, now);
    conn.transmitted(10);
    assert_eq!(replies(&mut conn, b"+OK\r\n$9\r\nhal", now), [0]);
    assert_eq!(blamed(&mut conn), [1, 2]);
    // One that was given up is to blame, and nobody in its place.
    submit(&mut conn, 0..4, now);
    conn.transmitted(16);
    conn.give_up(now, |waiting| *waiting.ticket == 0);
    assert_eq!(conn.poll_given_up().map(|(ticket, ..)| ticket), Some(0));
    assert!(blamed(&mut conn).is_empty());
}

#[test]
fn c20_what_travels_apart_is_known_of_until_it_is_answered_or_given_up() {
    let now = start();
    let mut conn = conn(now);
    let submit_apart = |conn: &mut Conn<u32>, ticket| {
        let mut batch = Batch::default();
        let apart = Terms {
            apart: true,
            ..terms(now, SECOND, u64::from(ticket))
        };
        push(&mut batch, ticket, apart);
        conn.submit(&mut batch, now);
    };
    submit(&mut conn, 0..1, now);
    assert!(!conn.has_apart());
    submit_apart(&mut conn, 1);
    submit_apart(&mut conn, 2);
    conn.transmitted(conn.unsent());
    assert!(conn.has_apart());
    replies(&mut conn, b"+a\r\n+b\r\n", now);
    assert!(conn.has_apart(), "one is left");
    conn.give_up(now, |_| true);
    assert!(!conn.has_apart());
    // The late reply to what was given up counts nothing twice.
    replies(&mut conn, b"+c\r\n", now);
    assert!(!conn.has_apart());
    submit_apart(&mut conn, 3);
    assert_eq!(conn.close().count(), 1 + 1);
    assert!(!conn.has_apart());
}

#[test]
fn a_reply_that_nobody_asked_for_ends_the_connection() {
    let now = start();
    let mut conn = conn(now);
    conn.input().extend_from_slice(b"+OK\r\n");
    assert!(conn.poll_incoming().is_err());
}

#[test]
fn what_nobody_asked_for_is_described_without_its_data() {
    let now = start();
    for (bytes, described) in [
        (
            "-DENIED protected mode\r\n",
            "the error \"DENIED\": protected mode",
        ),
        ("*2\r\n:1\r\n:2\r\n", "an array of 2"),
        ("$6\r\nsecret\r\n", "a string of 6 bytes"),
        (":7\r\n", "an integer"),
        ("+secret\r\n", "a simple value"),
    ] {
        let mut conn = conn(now);
        conn.input().extend_from_slice(bytes.as_bytes());
        let error = conn.poll_incoming().expect_err("nothing was asked");
        let expected = format!("the server sent a reply that nothing asked for: {described}");
        assert_eq!(error.to_string(), expected);
    }
    let mut conn = conn(now);
    submit(&mut conn, 0..2, now);
    assert_eq!(format!("{conn:?}"), "Conn(2 requests)");
}
