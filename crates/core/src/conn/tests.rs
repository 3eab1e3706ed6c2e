//! Of the connection and its batches.

mod batches;
mod certainty;
mod laws;
mod memory;
mod silence;

use bytes::BufMut;
use proptest::prelude::*;

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

/// A request that says who and how long it is, and is made of that all the way.
fn request(ticket: u32, length: usize) -> Vec<u8> {
    let mut bytes = format!("{ticket:04}{length:05}").into_bytes();
    let (filling, head) = (b'a' + (ticket % 26) as u8, bytes.len());
    bytes.extend((head..length).map(|at| filling ^ (at / 251 % 2) as u8));
    bytes
}
