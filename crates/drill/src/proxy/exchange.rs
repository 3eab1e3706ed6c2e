//! Follows a connection command by command, so that some can be answered otherwise, late or not at all.
//!
//! Replies carry no number: the n-th belongs to the n-th command. So each command leaves a place in a row of answers, to be
//! filled by the server's next reply or by one made here, and answers leave from the head of that row only. RESP3's pushes
//! belong to no command and pass at once.
//!
//! Where the row cannot be known any longer (subscriptions in RESP2, MONITOR, CLIENT REPLY, replication, bytes that are no
//! RESP), the connection is no longer followed: its bytes pass as they are.

use super::ToxicId;
use crate::fault::{RespFault, Treatment};
use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use redis::Value;
use std::collections::VecDeque;
use std::time::Instant;
use steadfast_core::resp::{DecodeError, Decoder};

/// The commands and replies of one connection.
#[derive(Default)]
pub(super) struct Exchange {
    faults: Vec<(ToxicId, RespFault, Rng)>,
    commands: Framer,
    replies: Framer,
    /// The answers owed, the oldest first.
    row: VecDeque<Place>,
    /// Replies of the server that do not have their turn yet.
    arrived: VecDeque<Bytes>,
    /// Commands are no longer followed; nor are replies, once the row is empty.
    lost: bool,
}

/// One command's place in the row.
struct Place {
    /// What was made here; else the server's next reply belongs here.
    answer: Option<Bytes>,
    /// Not to be left before.
    not_before: Option<Instant>,
    /// Not to be left while this fault lasts.
    silenced_by: Option<ToxicId>,
}

impl Exchange {
    pub(super) fn add(&mut self, id: ToxicId, fault: RespFault, rng: Rng) {
        if !self.faults.iter().any(|(placed, ..)| *placed == id) {
            self.faults.push((id, fault, rng));
        }
    }

    /// Puts a fault in the place of `old`, if that is here; what that silenced stays so.
    pub(super) fn replace(&mut self, old: ToxicId, id: ToxicId, fault: RespFault, rng: Rng) {
        let Some(place) = self.faults.iter_mut().find(|(placed, ..)| *placed == old) else {
            return;
        };
        *place = (id, fault, rng);
        for place in &mut self.row {
            if place.silenced_by == Some(old) {
                place.silenced_by = Some(id);
            }
        }
    }

    /// Ends the faults that are not to `stay`.
    pub(super) fn retain(&mut self, stay: impl Fn(ToxicId) -> bool) {
        self.faults.retain(|(id, ..)| stay(*id));
        for place in &mut self.row {
            place.silenced_by = place.silenced_by.filter(|id| stay(*id));
        }
    }

    /// Takes bytes of the client; gives those that are for the server.
    pub(super) fn requests(&mut self, bytes: &Bytes, now: Instant) -> Bytes {
        if self.lost {
            return bytes.clone();
        }
        self.commands.extend(bytes);
        let mut through = BytesMut::with_capacity(bytes.len());
        while !self.lost {
            match self.commands.next() {
                Ok(Some((frame, value))) => self.command(&frame, &value, now, &mut through),
                Ok(None) => return through.freeze(),
                Err(_) => self.lost = true,
            }
        }
        through.extend_from_slice(&self.commands.rest());
        through.freeze()
    }

    /// Takes bytes of the server; gives those that are for the client.
    pub(super) fn replies(&mut self, bytes: &Bytes, now: Instant) -> Bytes {
        self.replies.extend(bytes);
        let mut pushes = BytesMut::new();
        while !(self.lost && self.row.is_empty()) {
            match self.replies.next() {
                Ok(Some((frame, Value::Push { .. }))) => pushes.extend_from_slice(&frame),
                Ok(Some((frame, _))) => self.arrived.push_back(frame),
                Ok(None) => break,
                Err(_) => {
                    self.lost = true;
                    self.row.clear();
                }
            }
            pushes.extend_from_slice(&self.ready(now));
        }
        if self.lost && self.row.is_empty() {
            pushes.extend(self.arrived.drain(..).flatten());
            pushes.extend_from_slice(&self.replies.rest());
        }
        pushes.freeze()
    }

    /// The answers whose turn it is.
    pub(super) fn ready(&mut self, now: Instant) -> Bytes {
        let mut ready = BytesMut::new();
        while let Some(place) = self.row.front_mut() {
            if place.silenced_by.is_some() || place.not_before.is_some_and(|then| then > now) {
                break;
            }
            let Some(answer) = place.answer.take().or_else(|| self.arrived.pop_front()) else {
                break;
            };
            ready.extend_from_slice(&answer);
            self.row.pop_front();
        }
        ready.freeze()
    }

    /// When an answer that is there already may leave.
    pub(super) fn due(&self) -> Option<Instant> {
        let place = self.row.front()?;
        let is_there = place.answer.is_some() || !self.arrived.is_empty();
        place
            .not_before
            .filter(|_| is_there && place.silenced_by.is_none())
    }

    fn command(&mut self, frame: &[u8], value: &Value, now: Instant, through: &mut BytesMut) {
        let args = arguments(value);
        if LOSING.iter().any(|name| is_called(&args, name)) {
            self.lost = true;
            through.extend_from_slice(frame);
            return;
        }
        let mut place = Place {
            answer: None,
            not_before: None,
            silenced_by: None,
        };
        let treatment = self
            .faults
            .iter_mut()
            .find_map(|(id, fault, rng)| Some((*id, fault.treats(&args, rng)?)));
        match treatment {
            Some((_, Treatment::Answer(answer))) => place.answer = Some(answer.clone()),
            Some((_, Treatment::Delay(delay))) => place.not_before = Some(now + *delay),
            Some((id, Treatment::Silence)) => place.silenced_by = Some(id),
            None => {}
        }
        if place.answer.is_none() {
            through.extend_from_slice(frame);
        }
        self.row.push_back(place);
    }
}

/// Commands after which replies and commands no longer come in pairs.
const LOSING: [&[&str]; 7] = [
    &["SUBSCRIBE"],
    &["PSUBSCRIBE"],
    &["SSUBSCRIBE"],
    &["MONITOR"],
    &["SYNC"],
    &["PSYNC"],
    &["CLIENT", "REPLY"],
];

fn is_called(args: &[&[u8]], name: &[&str]) -> bool {
    args.len() >= name.len()
        && name
            .iter()
            .zip(args)
            .all(|(word, arg)| arg.eq_ignore_ascii_case(word.as_bytes()))
}

/// A command's arguments, its name first.
fn arguments(value: &Value) -> Vec<&[u8]> {
    let Value::Array(args) = value else {
        return Vec::new();
    };
    let bytes = args.iter().map(|arg| match arg {
        Value::BulkString(bytes) => bytes.as_slice(),
        _ => &[],
    });
    bytes.collect()
}

/// Cuts a stream into its top-level values.
#[derive(Default)]
struct Framer {
    decoder: Decoder,
    buffer: BytesMut,
    /// How much of the buffer the decoder has seen.
    seen: usize,
}

impl Framer {
    fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next value, with its bytes.
    fn next(&mut self) -> Result<Option<(Bytes, Value)>, DecodeError> {
        let decoded = self.decoder.decode(&self.buffer[self.seen..])?;
        self.seen += decoded.consumed;
        Ok(decoded.value.map(|value| {
            (
                self.buffer
                    .split_to(std::mem::take(&mut self.seen))
                    .freeze(),
                value,
            )
        }))
    }

    /// What was not cut into values.
    fn rest(&mut self) -> Bytes {
        self.seen = 0;
        self.buffer.split().freeze()
    }
}
