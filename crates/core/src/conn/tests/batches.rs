//! Requests that come, leave and come back together.

use super::super::batch::Submission;
use super::*;

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
