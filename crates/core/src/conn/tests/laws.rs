//! Laws that hold in any order of events.

use super::*;

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
