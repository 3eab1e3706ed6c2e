//! The memory that requests and replies take.

use super::*;

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
