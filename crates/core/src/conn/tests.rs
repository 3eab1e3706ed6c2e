//! Of the connection and its batches.

use bytes::BufMut;
use proptest::prelude::*;

use super::batch::Submission;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn start() -> Instant {
    tests_clock::start()
}

mod tests_clock {
    use std::time::Instant;

    #[expect(
        clippy::disallowed_methods,
        reason = "an instant to count virtual time from"
    )]
    pub(super) fn start() -> Instant {
        Instant::now()
    }
}

fn conn(now: Instant) -> Conn<u32> {
    let watch = Watch {
        doubtful: SECOND * 2 / 5,
        response_idle_timeout: SECOND / 2,
        heartbeat: SECOND,
    };
    Conn::new(watch, Limits::default(), now)
}

fn terms(now: Instant, deadline: Duration, seq: u64) -> Terms {
    Terms {
        replies: 1,
        deadline: now + deadline,
        submitted: now,
        seq,
        read_only: false,
        apart: false,
    }
}

fn push(batch: &mut Batch<u32>, ticket: u32, terms: Terms) {
    batch.push(ticket, terms, |bytes| {
        bytes.extend_from_slice(format!("{ticket:04}").as_bytes());
        bytes.len()
    });
}

fn submit(conn: &mut Conn<u32>, tickets: std::ops::Range<u32>, now: Instant) {
    let mut batch = Batch::default();
    for ticket in tickets {
        push(&mut batch, ticket, terms(now, SECOND, u64::from(ticket)));
    }
    conn.submit(&mut batch, now);
}

/// Returns the bytes that are to be written, in one piece.
fn to_write(conn: &Conn<u32>) -> Vec<u8> {
    conn.transmit().collect::<Vec<_>>().concat()
}

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

fn replies(conn: &mut Conn<u32>, bytes: &[u8], now: Instant) -> Vec<u32> {
    conn.input().extend_from_slice(bytes);
    conn.handle_input(now);
    let mut tickets = Vec::new();
    while let Some(incoming) = conn.poll_incoming().expect("good replies") {
        if let Incoming::Reply { ticket, .. } = incoming {
            tickets.push(ticket);
        }
    }
    tickets
}

fn ends(conn: &mut Conn<u32>) -> Vec<(u32, Certainty)> {
    let ends = conn.close();
    ends.map(|end| (end.ticket, end.certainty)).collect()
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
fn c20_a_batch_lets_go_what_may_travel_and_the_rest_comes_behind() {
    let now = start();
    let filled = |apart: &[u32]| {
        let mut batch = Batch::default();
        for ticket in 0..4u32 {
            let terms = Terms {
                apart: apart.contains(&ticket),
                ..terms(now, SECOND, u64::from(ticket))
            };
            push(&mut batch, ticket, terms);
        }
        batch
    };
    let written = |batch: &Batch<u32>| batch.bytes.iter().collect::<Vec<_>>().concat();
    for (apart, idle, go, rest) in [
        (&[][..], false, "0000000100020003", ""),
        (&[2], false, "00000001", "00020003"),
        (&[2, 3], true, "00000001", "00020003"),
        (&[0], false, "", "0000000100020003"),
        (&[0], true, "0000", "000100020003"),
        (&[0, 1], true, "0000", "000100020003"),
    ] {
        let mut batch = filled(apart);
        assert_eq!(batch.has_apart(), !apart.is_empty());
        let behind = batch.split_apart(idle);
        let case = format!("{apart:?} {idle}");
        assert_eq!(written(&batch), go.as_bytes(), "{case}");
        assert_eq!(written(&behind), rest.as_bytes(), "{case}");
        assert_eq!((batch.len(), behind.len()), (go.len() / 4, rest.len() / 4));
        assert_eq!(batch.has_apart(), apart.contains(&0) && idle, "{case}");
        let left = apart.len() - usize::from(batch.has_apart());
        assert_eq!(behind.apart, left, "{case}");
        assert_eq!(behind.longest(), 4, "{case}");
        // The rest knows where each of its requests begins and ends.
        let places = |request: &Submission<u32>| (request.start, request.commit, request.end);
        let starts = (0..behind.len()).map(|place| 4 * place);
        let expected: Vec<_> = starts.map(|at| (at, at + 4, at + 4)).collect();
        assert_eq!(
            behind.requests.iter().map(places).collect::<Vec<_>>(),
            expected
        );
        // Put back before what came meanwhile, it is as it was.
        let mut whole = batch;
        let mut behind = behind;
        whole.append(&mut behind);
        assert_eq!(written(&whole), b"0000000100020003", "{case}");
        assert_eq!(whole.apart, apart.len(), "{case}");
        assert!(behind.is_empty() && !behind.has_apart() && !whole.disordered);
    }
}

#[test]
fn a_large_request_leaves_from_the_memory_in_which_it_was_encoded() {
    let now = start();
    let mut conn = conn(now);
    let (mut batch, mut places) = (Batch::default(), Vec::new());
    for ticket in [0, 2, 4] {
        push(&mut batch, ticket, terms(now, SECOND, u64::from(ticket)));
        let large = request(ticket + 1, 256 << 10);
        places.push(large.as_ptr());
        let terms = terms(now, SECOND, u64::from(ticket + 1));
        batch.push_encoded(ticket + 1, terms, large, 256 << 10);
        // Those that come one after the other, and those that come together.
        if ticket == 0 {
            conn.submit(&mut batch, now);
        }
    }
    conn.submit(&mut batch, now);
    let pieces: Vec<_> = conn.transmit().collect();
    let lengths: Vec<_> = pieces.iter().map(|piece| piece.len()).collect();
    assert_eq!(lengths, [4, 256 << 10, 4, 256 << 10, 4, 256 << 10]);
    let large = pieces.iter().skip(1).step_by(2);
    assert_eq!(
        large.map(|piece| piece.as_ptr()).collect::<Vec<_>>(),
        places
    );
}

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
fn what_is_sent_again_takes_its_old_place() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    push(&mut batch, 5, terms(now, SECOND, 5));
    push(&mut batch, 6, terms(now, SECOND, 6));
    push(&mut batch, 3, terms(now, SECOND, 3));
    conn.submit(&mut batch, now);
    assert_eq!(to_write(&conn), b"000300050006");
}

#[test]
fn what_a_burst_of_large_values_needed_is_given_back() {
    let now = start();
    let mut conn = conn(now);
    let (mut batch, large) = (Batch::default(), 8 << 20);
    for seq in 0..4u32 {
        for ticket in [2 * seq, 2 * seq + 1] {
            batch.push(ticket, terms(now, SECOND, u64::from(ticket)), |bytes| {
                bytes.resize(bytes.len() + large, b'x');
                bytes.len()
            });
            // The second finds the first still unwritten.
            conn.submit(&mut batch, now);
            assert!(batch.bytes.held() <= KEEP_BYTES);
        }
        conn.transmitted(conn.unsent());
    }
    let mut reply = format!("${large}\r\n").into_bytes();
    reply.resize(reply.len() + large, b'x');
    reply.extend_from_slice(b"\r\n");
    for ticket in 0..8 {
        assert_eq!(replies(&mut conn, &reply, now), [ticket]);
    }
    assert!(conn.out.held() <= KEEP_BYTES);
    assert!(conn.input().capacity() <= KEEP_BYTES + READ_BYTES);
}

#[test]
fn the_memory_of_a_large_request_that_was_written_is_used_for_the_next() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    let mut fresh = 0;
    for ticket in 0..40 {
        let size = 3 * PIECE + ticket as usize;
        let mut bytes = batch.buffer(size);
        assert!(bytes.is_empty());
        fresh += usize::from(bytes.capacity() < size);
        bytes.reserve_exact(4 * PIECE);
        bytes.resize(size, b'x');
        batch.push_encoded(ticket, terms(now, SECOND, u64::from(ticket)), bytes, size);
        push(
            &mut batch,
            100 + ticket,
            terms(now, SECOND, u64::from(ticket)),
        );
        conn.submit(&mut batch, now);
        // The last is not written whole, so that there is always something in the way.
        conn.transmitted(conn.unsent() - 1);
    }
    assert!(fresh <= 4, "{fresh}");
    // One that is far too large for what comes next is not used for it.
    assert!(batch.buffer(PIECE / 2).capacity() <= 2 * PIECE);
}

#[test]
fn short_requests_share_a_piece_until_it_is_long_enough() {
    let mut pieces = Pieces::default();
    let add = |pieces: &mut Pieces, length: usize| {
        pieces.share(|out| {
            out.resize(out.len() + length, b'x');
            out.len()
        })
    };
    for _ in 0..8 {
        add(&mut pieces, PIECE / 2);
    }
    let lengths: Vec<_> = pieces.iter().map(<[u8]>::len).collect();
    assert_eq!(lengths, [PIECE; 4]);
    // The memory of one that has left is used for the next, unless it is far too large.
    let place = |pieces: &Pieces| pieces.iter().last().map(<[u8]>::as_ptr);
    let mut pieces = Pieces::default();
    for (room, reused) in [(PIECE, true), (2 * PIECE, true), (2 * PIECE + 1, false)] {
        let mut piece = Vec::with_capacity(room);
        piece.push(b'x');
        let first = piece.as_ptr();
        pieces.push(piece);
        pieces.advance(1);
        add(&mut pieces, 1);
        assert_eq!(place(&pieces) == Some(first), reused, "{room}");
        pieces = Pieces::default();
    }
}

#[test]
fn c11_a_backlog_that_never_runs_dry_does_not_grow() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    let size = 64 << 10;
    for ticket in 0..2000 {
        batch.push(ticket, terms(now, SECOND, u64::from(ticket)), |bytes| {
            bytes.resize(bytes.len() + size, b'x');
            bytes.len()
        });
        conn.submit(&mut batch, now);
        // One request is always left unwritten.
        conn.transmitted(conn.unsent() - size);
        assert_eq!(conn.unsent(), size);
        if ticket > 0 {
            assert_eq!(replies(&mut conn, b"+OK\r\n", now), [ticket - 1]);
        }
    }
    assert!(conn.out.held() <= KEEP_BYTES + size, "{}", conn.out.held());
    assert_eq!(ends(&mut conn), [(1999, Certainty::NotSent)]);
}

#[test]
fn many_that_expire_unwritten_leave_the_others_whole() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    for ticket in 0..6 {
        let limit = if ticket % 2 == 0 {
            SECOND / 4
        } else {
            SECOND * 9
        };
        push(&mut batch, ticket, terms(now, limit, u64::from(ticket)));
    }
    conn.submit(&mut batch, now);
    // The first is begun, so it stays; the third and fifth go.
    conn.transmitted(1);
    let mut expired = Vec::new();
    while let Some(Lapse::Expired {
        ticket, certainty, ..
    }) = conn.poll_lapse(now + SECOND / 3)
    {
        expired.push((ticket, certainty));
    }
    let (begun, unwritten) = (Certainty::Unknown, Certainty::NotSent);
    assert_eq!(expired, [(0, begun), (2, unwritten), (4, unwritten)]);
    assert_eq!(to_write(&conn), b"000000100030005");
    conn.transmitted(15);
    let answers = b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n";
    assert_eq!(replies(&mut conn, answers, now), [1, 3, 5]);
}

#[test]
fn a_reply_that_nobody_asked_for_ends_the_connection() {
    let now = start();
    let mut conn = conn(now);
    conn.input().extend_from_slice(b"+OK\r\n");
    assert!(conn.poll_incoming().is_err());
}

/// Requests of a megabyte, each of its own letter.
fn letters(conn: &mut Conn<u32>, tickets: std::ops::Range<u32>, now: Instant) -> Vec<u8> {
    let mut all = Vec::new();
    let mut batch = Batch::default();
    for ticket in tickets {
        let letter = b'a' + ticket as u8;
        // The last is given less time than the others.
        let given = if ticket == 5 { SECOND / 4 } else { SECOND * 9 };
        batch.push(ticket, terms(now, given, u64::from(ticket)), |bytes| {
            bytes.resize(bytes.len() + KEEP_BYTES, letter);
            bytes.len()
        });
        all.resize(all.len() + KEEP_BYTES, letter);
    }
    conn.submit(&mut batch, now);
    all
}

#[test]
fn c2_what_is_left_after_a_part_was_written_keeps_its_bytes_and_its_place() {
    let now = start();
    // How much is written, in all, of six megabytes: around the ends of the third and the fourth.
    let steps = [
        3 * KEEP_BYTES,
        3 * KEEP_BYTES + 1,
        4 * KEEP_BYTES - 1,
        4 * KEEP_BYTES,
    ];
    let mut conn = conn(now);
    let all = letters(&mut conn, 0..6, now);
    let mut written = 0;
    for step in steps {
        conn.transmitted(step - written);
        written = step;
        assert!(to_write(&conn) == all[written..], "{written}");
        assert_eq!(conn.unsent(), all.len() - written);
        assert!(conn.has_unanswered_writes());
    }
    // The last is taken out, of which nothing was written; what came behind it moves up.
    letters(&mut conn, 6..7, now);
    let mut expired = Vec::new();
    while let Some(lapse) = conn.poll_lapse(now + SECOND / 3) {
        if let Lapse::Expired {
            ticket, certainty, ..
        } = lapse
        {
            expired.push((ticket, certainty));
        }
    }
    assert_eq!(expired, [(5, Certainty::NotSent)]);
    let mut left = all[4 * KEEP_BYTES..5 * KEEP_BYTES].to_vec();
    left.resize(2 * KEEP_BYTES, b'g');
    assert!(to_write(&conn) == left, "the fifth and the seventh");
    conn.transmitted(KEEP_BYTES);
    assert_eq!(
        replies(&mut conn, b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n", now),
        [0, 1, 2, 3]
    );
    assert_eq!(
        ends(&mut conn),
        [(4, Certainty::Unknown), (6, Certainty::NotSent)]
    );
    assert_eq!((conn.unsent(), conn.awaiting()), (0, 0));
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

#[test]
fn an_input_that_is_half_consumed_goes_on_where_it_stopped() {
    let now = start();
    let mut conn = conn(now);
    submit(&mut conn, 0..3, now);
    conn.transmitted(12);
    assert_eq!(replies(&mut conn, b"+OK\r\n$5\r\nhe", now), [0]);
    assert_eq!(replies(&mut conn, b"llo\r\n+O", now), [1]);
    assert_eq!(replies(&mut conn, b"K\r\n", now), [2]);
    assert_eq!(conn.input().len(), 0, "all of it is given back");
    assert_eq!(conn.consumed, 0);
    assert!(conn.input().capacity() >= READ_BYTES / 4, "room to read");
}

#[test]
fn of_a_large_string_only_its_beginning_passes_through_the_buffer_that_all_share() {
    let now = start();
    let mut conn = conn(now);
    submit(&mut conn, 0..2, now);
    conn.transmitted(conn.unsent());
    let large = request(7, 256 << 10);
    let (early, rest) = large.split_at(READ_BYTES);
    assert!(conn.input_of_string().is_none(), "nothing is on its way");
    conn.input().extend_from_slice(b"+OK\r\n$262144\r\n");
    conn.input().extend_from_slice(early);
    conn.handle_input(now);
    assert!(conn.poll_incoming().unwrap().is_some());
    assert!(conn.poll_incoming().unwrap().is_none());
    conn.input().extend_from_slice(&rest[..1]);
    assert!(conn.input_of_string().is_none(), "a byte before is unread");
    assert!(conn.poll_incoming().unwrap().is_none());
    let mut left = &rest[1..];
    while !left.is_empty() {
        let mut own = conn.input_of_string().expect("it is on its way");
        let part = own.remaining_mut().min(left.len());
        assert!(
            part >= READ_BYTES.min(left.len()),
            "a read is worth its call"
        );
        own.put_slice(&left[..part]);
        left = &left[part..];
        conn.handle_input(now);
        assert!(
            conn.poll_incoming().unwrap().is_none(),
            "its end is missing"
        );
    }
    assert!(conn.input_of_string().is_none(), "all of it is there");
    conn.input().extend_from_slice(b"\r\n");
    let Ok(Some(Incoming::Reply { reply, .. })) = conn.poll_incoming() else {
        panic!("it is whole");
    };
    assert!(reply == Reply::One(Value::BulkString(large)));
}

#[test]
fn a_batch_is_expired_taken_from_and_drained_as_a_list_would_be() {
    let now = start();
    let mut batch = Batch::default();
    assert!(batch.is_empty() && batch.earliest_deadline().is_none());
    for ticket in 0..5u32 {
        let deadline = SECOND * (5 - ticket);
        push(&mut batch, ticket, terms(now, deadline, u64::from(ticket)));
    }
    assert_eq!((batch.len(), batch.byte_len()), (5, 20));
    assert_eq!(format!("{batch:?}"), "Batch(5 requests)");
    assert_eq!(batch.earliest_deadline(), Some(now + SECOND));
    assert!(batch.expire(now).is_empty());
    assert_eq!(batch.expire(now + SECOND), [4]);
    assert_eq!(
        batch.take_out(|ticket, terms| *ticket == 1 || terms.seq == 2),
        [1, 2]
    );
    assert_eq!(batch.bytes.iter().collect::<Vec<_>>().concat(), b"00000003");
    assert_eq!((batch.requests[1].start, batch.requests[1].commit), (4, 8));
    assert_eq!(batch.requests[1].end, 8);
    assert_eq!(batch.drain().collect::<Vec<_>>(), [0, 3]);
    assert!(batch.is_empty() && batch.byte_len() == 0);
    // What came back out of order before is not remembered.
    push(&mut batch, 7, terms(now, SECOND, 7));
    assert!(!batch.disordered);
    push(&mut batch, 7, terms(now, SECOND, 7));
    assert!(!batch.disordered, "the same place is no disorder");
    push(&mut batch, 6, terms(now, SECOND, 6));
    assert!(batch.disordered);
    batch.drain().for_each(drop);
    assert!(!batch.disordered);
}

#[test]
fn c13_a_pipeline_that_is_put_back_to_its_place_may_still_have_begun_where_it_had() {
    let now = start();
    let mut conn = conn(now);
    let mut batch = Batch::default();
    push(&mut batch, 5, terms(now, SECOND, 5));
    batch.push(3, terms(now, SECOND, 3), |bytes| {
        bytes.extend_from_slice(b"firstsecond");
        bytes.len() - 6
    });
    conn.submit(&mut batch, now);
    assert_eq!(to_write(&conn), b"firstsecond0005");
    conn.transmitted(5);
    assert!(conn.has_unanswered_writes());
    assert_eq!(
        ends(&mut conn),
        [(3, Certainty::Unknown), (5, Certainty::NotSent)]
    );
}

/// A step in the life of a connection.
#[derive(Clone, Debug)]
enum Op {
    /// Requests that come together: their deadlines and lengths, and which of them come back out of
    /// order.
    Submit(Vec<(u16, usize)>, usize),
    Write(usize),
    Reply(usize),
    Wait(u16),
    GiveUp(u32),
}

/// Of a request: short ones that share a piece, and such as just do or do not have one of their
/// own.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 9usize..40,
        2 => PIECE - 2..PIECE + 3,
        1 => PIECE / 2..3 * PIECE,
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let asked = proptest::collection::vec((1u16..3000, lengths()), 1..6);
    let op = prop_oneof![
        3 => (asked, 0usize..9).prop_map(|(asked, turn)| Op::Submit(asked, turn)),
        2 => (0usize..60).prop_map(Op::Write),
        2 => (0usize..4 * PIECE).prop_map(Op::Write),
        3 => (0usize..4).prop_map(Op::Reply),
        1 => (1u16..1500).prop_map(Op::Wait),
        1 => (1u32..5).prop_map(Op::GiveUp),
    ];
    proptest::collection::vec(op, 1..60)
}

/// A request that says who and how long it is, and is made of that all the way.
fn request(ticket: u32, length: usize) -> Vec<u8> {
    let mut bytes = format!("{ticket:04}{length:05}").into_bytes();
    let (filling, head) = (b'a' + (ticket % 26) as u8, bytes.len());
    bytes.extend((head..length).map(|at| filling ^ (at / 251 % 2) as u8));
    bytes
}

/// Returns the requests in the bytes that a server got: those that are whole, and the rest of
/// another.
fn read(mut wire: &[u8]) -> (Vec<u32>, &[u8]) {
    let mut whole = Vec::new();
    while wire.len() >= 9 {
        let number = |part: &[u8]| std::str::from_utf8(part).unwrap().parse::<u32>().unwrap();
        let (ticket, length) = (number(&wire[..4]), number(&wire[4..9]) as usize);
        let Some((one, rest)) = wire.split_at_checked(length) else {
            break;
        };
        assert!(
            one == request(ticket, length),
            "request {ticket} is mixed with another"
        );
        whole.push(ticket);
        wire = rest;
    }
    (whole, wire)
}

proptest! {
    /// In any order of events each request ends exactly once; `NotSent` only if no byte of it has
    /// gone out, or not all of them as the connection ended; answers go to their own; and what is
    /// written are whole requests in their order.
    #[test]
    fn c2_every_request_ends_once_and_truly(ops in ops()) {
        let mut now = start();
        let mut conn = conn(now);
        let (mut next, mut ended, mut wire) = (0u32, std::collections::BTreeMap::new(), Vec::new());
        let mut answered = 0usize;
        for op in ops {
            match op {
                Op::Submit(asked, turn) => {
                    let (mut batch, mut late) = (Batch::default(), Batch::default());
                    let mut asked: Vec<_> = (next..).zip(asked).collect();
                    next += asked.len() as u32;
                    let places = asked.len();
                    asked.rotate_left(turn % places);
                    for (ticket, (ms, length)) in asked {
                        let deadline = Duration::from_millis(u64::from(ms));
                        let terms = terms(now, deadline, u64::from(ticket));
                        let batch = if turn % 3 == 0 && ticket % 2 == 0 { &mut late } else { &mut batch };
                        let bytes = request(ticket, length);
                        if length >= PIECE && turn % 2 == 0 {
                            batch.push_encoded(ticket, terms, bytes, length);
                        } else {
                            batch.push(ticket, terms, |out| {
                                out.extend_from_slice(&bytes);
                                out.len()
                            });
                        }
                    }
                    batch.append(&mut late);
                    // Some never reach the connection.
                    for ticket in batch.take_out(|ticket, _| ticket % 7 == 6) {
                        ended.insert(ticket, Some(Certainty::NotSent));
                    }
                    conn.submit(&mut batch, now);
                }
                Op::Write(bytes) => {
                    let bytes = bytes.min(conn.unsent());
                    let all = to_write(&conn);
                    prop_assert_eq!(all.len(), conn.unsent());
                    wire.extend_from_slice(&all[..bytes]);
                    conn.transmitted(bytes);
                }
                Op::Reply(count) => {
                    // The server echoes what it has received whole, in order.
                    for id in read(&wire).0.into_iter().skip(answered).take(count) {
                        answered += 1;
                        conn.input().extend_from_slice(format!(":{id}\r\n").as_bytes());
                        conn.handle_input(now);
                    }
                    while let Some(incoming) = conn.poll_incoming().unwrap() {
                        if let Incoming::Reply { ticket, reply, .. } = incoming {
                            prop_assert_eq!(reply, Reply::One(Value::Int(i64::from(ticket))));
                            prop_assert!(ended.insert(ticket, None).is_none());
                        }
                    }
                }
                Op::Wait(ms) => {
                    now += Duration::from_millis(u64::from(ms));
                    while let Some(lapse) = conn.poll_lapse(now) {
                        if let Lapse::Expired { ticket, certainty, .. } = lapse {
                            prop_assert!(ended.insert(ticket, Some(certainty)).is_none());
                        }
                    }
                    prop_assert!(conn.poll_timeout().is_none_or(|at| at > now));
                }
                Op::GiveUp(of) => {
                    conn.give_up(now, |waiting| waiting.ticket % of == 0);
                    while let Some((ticket, certainty, _)) = conn.poll_given_up() {
                        prop_assert!(ended.insert(ticket, Some(certainty)).is_none());
                    }
                }
            }
        }
        for Unanswered { ticket, certainty, .. } in conn.close() {
            prop_assert!(ended.insert(ticket, Some(certainty)).is_none());
        }
        prop_assert_eq!(ended.len(), next as usize);
        let (sent, part) = read(&wire);
        prop_assert!(sent.is_sorted(), "they leave in the order of submission");
        for (ticket, end) in ended {
            match end {
                Some(Certainty::NotSent) => prop_assert!(!sent.contains(&ticket)),
                Some(Certainty::Unknown) => prop_assert!(sent.contains(&ticket) || !part.is_empty()),
                _ => prop_assert!(sent.contains(&ticket)),
            }
        }
    }

    /// A large string is read into its own memory, in whatever parts it comes, and is what the
    /// server sent.
    #[test]
    fn a_string_read_into_its_own_memory_is_what_was_sent(
        lengths in proptest::collection::vec(prop_oneof![0usize..99, READ_BYTES - 3..READ_BYTES + 3, 0..8 * READ_BYTES], 1..5),
        parts in proptest::collection::vec(prop_oneof![1usize..40, 1..3 * READ_BYTES], 1..40),
        nested in any::<bool>(),
    ) {
        let now = start();
        let mut conn = conn(now);
        let asked = if nested { 1 } else { lengths.len() as u32 };
        submit(&mut conn, 0..asked, now);
        conn.transmitted(conn.unsent());
        let strings: Vec<_> = (0..).zip(lengths).map(|(ticket, length)| request(ticket, length.max(9))).collect();
        let mut wire = if nested { format!("*{}\r\n", strings.len()).into_bytes() } else { Vec::new() };
        for string in &strings {
            wire.extend_from_slice(format!("${}\r\n", string.len()).as_bytes());
            wire.extend_from_slice(string);
            wire.extend_from_slice(b"\r\n");
        }
        let (mut rest, mut values) = (&wire[..], Vec::new());
        let mut parts = parts.into_iter().cycle();
        while let (Some(part), false) = (parts.next(), rest.is_empty()) {
            let part = part.min(rest.len());
            let part = match conn.input_of_string() {
                Some(mut own) => {
                    let part = part.min(own.remaining_mut());
                    prop_assert!(part > 0);
                    own.put_slice(&rest[..part]);
                    part
                }
                None => {
                    conn.input().extend_from_slice(&rest[..part]);
                    part
                }
            };
            rest = &rest[part..];
            conn.handle_input(now);
            while let Some(incoming) = conn.poll_incoming().unwrap() {
                if let Incoming::Reply { reply: Reply::One(value), .. } = incoming {
                    match value {
                        Value::Array(several) => values.extend(several),
                        one => values.push(one),
                    }
                }
            }
        }
        prop_assert_eq!(values.len(), strings.len());
        for (value, string) in values.into_iter().zip(strings) {
            let Value::BulkString(bytes) = value else {
                return Err(TestCaseError::fail("it is a string"));
            };
            prop_assert!(bytes == string);
            prop_assert!(bytes.capacity() == bytes.len(), "nothing is wasted on it");
        }
    }

    /// Pieces are what one buffer would be.
    #[test]
    fn c2_pieces_are_as_one_buffer(
        asked in proptest::collection::vec((lengths(), any::<bool>()), 1..12),
        more in proptest::collection::vec((lengths(), any::<bool>()), 0..6),
        split in 0usize..12,
        left in 0usize..8 * PIECE,
        cut in proptest::collection::vec(any::<bool>(), 18),
    ) {
        let fill = |from: u32, asked: Vec<(usize, bool)>| {
            let (mut pieces, mut parts) = (Pieces::default(), Vec::new());
            for (ticket, (length, own)) in (from..).zip(asked) {
                let bytes = request(ticket, length);
                if own {
                    pieces.push(bytes.clone());
                } else {
                    let told = pieces.share(|out| {
                        out.extend_from_slice(&bytes);
                        out.len() - 1
                    });
                    assert_eq!(told, (length, length - 1));
                }
                parts.push(bytes);
            }
            (pieces, parts)
        };
        let seen = |pieces: &Pieces| {
            let several: Vec<_> = pieces.iter().collect();
            assert!(several.iter().all(|piece| !piece.is_empty()), "no place in a write is wasted");
            several.concat()
        };
        let (mut first, mut parts) = fill(0, asked);
        let (mut second, others) = fill(100, more);
        // Laid out anew, in another order.
        let mut ranges = Vec::new();
        let mut end = 0;
        for part in &parts {
            ranges.push(end..end + part.len());
            end += part.len();
        }
        parts.reverse();
        first.arrange(ranges.into_iter().rev());
        prop_assert!(seen(&first) == parts.concat());
        // Split, and put together again, with others behind.
        let split = split.min(parts.len());
        let at = parts[..split].concat().len();
        let mut rest = first.split_off(at);
        prop_assert!(seen(&first) == parts[..split].concat());
        prop_assert!(seen(&rest) == parts[split..].concat());
        first.append(&mut rest);
        first.append(&mut second);
        parts.extend(others);
        let mut flat = parts.concat();
        prop_assert!(seen(&first) == flat);
        prop_assert_eq!((first.len(), rest.len(), second.len()), (flat.len(), 0, 0));
        // A part leaves; of those behind some are taken out.
        let left = left.min(flat.len());
        first.advance(left);
        prop_assert!(seen(&first) == flat[left..]);
        let (mut ranges, mut end) = (Vec::new(), 0);
        for (part, cut) in parts.iter().zip(cut) {
            if cut && end >= left {
                ranges.push(end - left..end - left + part.len());
            }
            end += part.len();
        }
        first.cut(&ranges);
        for range in ranges.into_iter().rev() {
            flat.drain(range.start + left..range.end + left);
        }
        prop_assert!(seen(&first) == flat[left..]);
        prop_assert_eq!(first.len(), flat.len() - left);
        prop_assert!(first.held() <= KEEP_BYTES + 4 * flat.len());
        first.clear();
        prop_assert_eq!(first.len() + seen(&first).len(), 0);
        prop_assert!(first.held() <= KEEP_BYTES);
    }
}
