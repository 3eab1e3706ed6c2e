//! Any sequence of what can happen to a connection: submissions, partial writes, replies in any
//! pieces, time. Each request ends exactly once; one that is called not sent has left no byte on
//! the wire; answers go to their own.

#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use redis::Value;
use steadfast_core::certainty::Certainty;
use steadfast_core::conn::{Batch, Conn, Incoming, Lapse, PIECE, Reply, Terms, Watch};
use steadfast_core::resp::Limits;

/// Bytes of a short request: its number and its length.
const SIZE: usize = 10;

/// Every seventh has a piece of its own, every fifth is about as long and has none.
fn request(number: u32) -> Vec<u8> {
    let length = match number {
        n if n % 7 == 3 => PIECE + n as usize % 3,
        n if n % 5 == 3 => PIECE - n as usize % 3,
        _ => SIZE,
    };
    let mut bytes = format!("{number:04}{length:06}").into_bytes();
    bytes.resize(length, b'a' + (number % 26) as u8);
    bytes
}

/// The requests that are whole in what a server has received.
fn read(mut wire: &[u8]) -> Vec<u32> {
    let mut numbers = Vec::new();
    while wire.len() >= SIZE {
        let text = String::from_utf8_lossy(&wire[..SIZE]);
        let number: u32 = text[..4].parse().expect("a number");
        let length: usize = text[4..].parse().expect("a length");
        let Some((one, rest)) = wire.split_at_checked(length) else {
            break;
        };
        assert!(one == request(number), "requests are mixed");
        numbers.push(number);
        wire = rest;
    }
    numbers
}

fuzz_target!(|data: &[u8]| {
    let mut now = Instant::now();
    let ms = Duration::from_millis;
    let watch = Watch {
        doubtful: ms(250),
        response_idle_timeout: ms(500),
        heartbeat: ms(1000),
    };
    let mut conn: Conn<u32> = Conn::new(watch, Limits::default(), now);
    let mut batch = Batch::default();
    let (mut next, mut answered) = (0u32, 0usize);
    let (mut wire, mut unread) = (Vec::new(), Vec::new());
    let mut ended = BTreeMap::new();
    for step in data.chunks_exact(2) {
        let amount = usize::from(step[1]);
        match step[0] % 6 {
            0 => {
                let terms = Terms {
                    replies: 1,
                    deadline: now + ms(10 * step[1] as u64),
                    submitted: now,
                    seq: u64::from(next),
                    read_only: false,
                    apart: false,
                };
                let bytes = request(next);
                if next % 7 == 3 {
                    let commit = bytes.len();
                    batch.push_encoded(next, terms, bytes, commit);
                } else {
                    batch.push(next, terms, |out| {
                        out.extend_from_slice(&bytes);
                        out.len()
                    });
                }
                next = (next + 1) % 10_000;
            }
            1 => conn.submit(&mut batch, now),
            2 => {
                // Steps of a few bytes, or of many.
                let amount = if amount > 200 { amount << 8 } else { amount };
                let taken = amount.min(conn.unsent());
                let all: Vec<u8> = conn.transmit().collect::<Vec<_>>().concat();
                assert_eq!(all.len(), conn.unsent());
                wire.extend_from_slice(&all[..taken]);
                conn.transmitted(taken);
            }
            // The server answers what it has received whole, in order.
            3 => {
                if let Some(number) = read(&wire).get(answered) {
                    answered += 1;
                    unread.extend_from_slice(format!(":{number}\r\n").as_bytes());
                }
            }
            4 => {
                let come = amount.min(unread.len());
                conn.input().extend(unread.drain(..come));
                if come > 0 {
                    conn.handle_input(now);
                }
                while let Some(incoming) = conn.poll_incoming().expect("these are replies") {
                    if let Incoming::Reply { ticket, reply, .. } = incoming {
                        assert_eq!(reply, Reply::One(Value::Int(i64::from(ticket))));
                        assert!(ended.insert(ticket, None).is_none());
                    }
                }
            }
            _ => {
                now += ms(step[1] as u64 * 5);
                while let Some(lapse) = conn.poll_lapse(now) {
                    if let Lapse::Expired { ticket, certainty, .. } = lapse {
                        assert!(ended.insert(ticket, Some(certainty)).is_none());
                    }
                }
                assert!(conn.poll_timeout().is_none_or(|at| at > now));
            }
        }
        if next == 9_999 {
            return;
        }
    }
    for steadfast_core::conn::Unanswered {
        ticket, certainty, ..
    } in conn.close()
    {
        assert!(ended.insert(ticket, Some(certainty)).is_none());
    }
    let unsubmitted = batch.drain().count();
    assert_eq!(ended.len() + unsubmitted, next as usize);
    for number in read(&wire) {
        assert_ne!(ended.get(&number), Some(&Some(Certainty::NotSent)));
    }
});
