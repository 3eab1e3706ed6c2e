//! Follows a connection command by command, so that some can be answered otherwise, late or not at
//! all.
//!
//! Replies carry no number: the n-th belongs to the n-th command. So each command leaves a place in
//! a row of answers, to be filled by the server's next reply or by one made here, and answers leave
//! from the head of that row only. RESP3's pushes belong to no command and pass at once.
//!
//! Where the row cannot be known any longer (subscriptions in RESP2, MONITOR, CLIENT REPLY,
//! replication, bytes that are no RESP, one command or reply that takes more than 64 MiB), the
//! connection is no longer followed: its bytes pass as they are. Only if answers made here would
//! then be missing among the server's, the connection is reset.
//!
//! What is kept is bounded: past 16 MiB of answers that do not have their turn, or of places in the
//! row, the side that would add to them is not read from, as with a server that does not answer.

use super::{ToxicId, Way};
use crate::fault::{RespFault, Treatment};
use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use redis::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use steadfast_core::resp::{DecodeError, Decoder, Limits};

/// The commands and replies of one connection.
#[derive(Default)]
pub(super) struct Exchange {
    faults: Vec<Placed>,
    commands: Framer,
    replies: Framer,
    /// The answers owed, the oldest first.
    row: VecDeque<PendingReply>,
    /// The memory that those places take, with the answers made here.
    row_bytes: usize,
    /// Replies of the server that do not have their turn yet.
    arrived: VecDeque<Bytes>,
    arrived_bytes: usize,
    /// The client has begun a transaction, and not ended it.
    in_multi: bool,
    /// Commands are no longer followed; nor are replies, once the row is empty.
    lost: bool,
    /// Answers made here have lost their places among the server's.
    broken: bool,
    /// Grows by one with every change of the faults, so that a command from before one is told from
    /// those after it.
    era: u32,
    /// Commands that the server answered and that nobody has asked about yet; see
    /// [`Exchange::take_answered`].
    answered: u64,
}

/// A fault, what its chance is drawn from, and the count of commands that it acted on.
struct Placed {
    id: ToxicId,
    fault: RespFault,
    rng: Rng,
    treated: Arc<AtomicU64>,
}

/// The bytes that may wait each way for their turn. The worst case of memory is this and
/// [`LARGEST`], each way, and what one read adds.
const KEPT: usize = 16 << 20;
/// The memory that one command or one reply may take while it is followed.
const LARGEST: usize = 64 << 20;

/// The place of one command in the row.
struct PendingReply {
    /// The answer that was made here; else the server's next reply belongs here.
    answer: Option<Bytes>,
    /// The server was told something in place of the command: its next reply is taken out for what
    /// was made here.
    replaces: bool,
    /// Not to be left before.
    not_before: Option<Instant>,
    /// Not to be left while this fault lasts.
    silenced_by: Option<ToxicId>,
    /// The era in which it came; nothing if it is a command that only sets up or checks the
    /// connection.
    era: Option<u32>,
}

impl Exchange {
    pub(super) fn add(
        &mut self,
        id: ToxicId,
        fault: RespFault,
        rng: Rng,
        treated: &Arc<AtomicU64>,
    ) {
        if !self.faults.iter().any(|placed| placed.id == id) {
            let treated = Arc::clone(treated);
            self.faults.push(Placed {
                id,
                fault,
                rng,
                treated,
            });
        }
    }

    /// Puts a fault in the place of `old`, if that is here; what that silenced stays so.
    pub(super) fn replace(
        &mut self,
        old: ToxicId,
        id: ToxicId,
        fault: RespFault,
        rng: Rng,
        treated: &Arc<AtomicU64>,
    ) {
        let Some(placed) = self.faults.iter_mut().find(|placed| placed.id == old) else {
            return;
        };
        let treated = Arc::clone(treated);
        *placed = Placed {
            id,
            fault,
            rng,
            treated,
        };
        for place in &mut self.row {
            if place.silenced_by == Some(old) {
                place.silenced_by = Some(id);
            }
        }
    }

    /// Ends the faults that are not to `stay`.
    pub(super) fn retain(&mut self, stay: impl Fn(ToxicId) -> bool) {
        self.faults.retain(|placed| stay(placed.id));
        for place in &mut self.row {
            place.silenced_by = place.silenced_by.filter(|id| stay(*id));
        }
    }

    /// Begins another era: the faults have changed.
    pub(super) fn change_era(&mut self) {
        self.era = self.era.wrapping_add(1);
    }

    /// Returns how many commands the server answered since the last call. Those that came in an
    /// earlier era do not count: their answers may only have waited for the end of a fault.
    pub(super) fn take_answered(&mut self) -> u64 {
        std::mem::take(&mut self.answered)
    }

    /// Takes bytes of the client; gives those that are for the server: none, once it is broken.
    pub(super) fn requests(&mut self, bytes: &Bytes, now: Instant) -> Bytes {
        if self.broken {
            return Bytes::new();
        }
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

    /// Takes bytes of the server; gives those that are for the client: none, once it is broken, as
    /// it would take them for other answers.
    pub(super) fn replies(&mut self, bytes: &Bytes, now: Instant) -> Bytes {
        if self.broken {
            return Bytes::new();
        }
        self.replies.extend(bytes);
        let mut pushes = BytesMut::new();
        while !(self.lost && self.row.is_empty()) {
            match self.replies.next() {
                Ok(Some((frame, Value::Push { .. }))) => pushes.extend_from_slice(&frame),
                Ok(Some((frame, _))) => {
                    self.arrived_bytes += weight(&frame);
                    self.arrived.push_back(frame);
                }
                Ok(None) => break,
                Err(_) => {
                    self.lost = true;
                    self.broken = self.row.iter().any(|place| place.answer.is_some());
                    self.row.clear();
                    self.row_bytes = 0;
                    if self.broken {
                        return Bytes::new();
                    }
                }
            }
            pushes.extend_from_slice(&self.ready(now));
        }
        if self.lost && self.row.is_empty() {
            pushes.extend(self.arrived.drain(..).flatten());
            self.arrived_bytes = 0;
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
            let replied = if place.is_of_server() {
                let Some(reply) = self.arrived.pop_front() else {
                    break;
                };
                self.arrived_bytes -= weight(&reply);
                reply
            } else {
                Bytes::new()
            };
            self.row_bytes -= place.weight();
            if place.answer.is_none() && place.era == Some(self.era) {
                self.answered += 1;
            }
            ready.extend_from_slice(place.answer.as_ref().unwrap_or(&replied));
            self.row.pop_front();
        }
        ready.freeze()
    }

    /// When an answer that is there already may leave.
    pub(super) fn due(&self) -> Option<Instant> {
        let place = self.row.front()?;
        let is_there = !place.is_of_server() || !self.arrived.is_empty();
        place
            .not_before
            .filter(|_| is_there && place.silenced_by.is_none())
    }

    /// Whether more may be taken of that side.
    pub(super) fn admits(&self, way: Way) -> bool {
        match way {
            Way::Up => self.row_bytes < KEPT,
            Way::Down => self.arrived_bytes < KEPT,
        }
    }

    /// Whether it is no longer followed, or will not be once the row is empty.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the client can no longer be given the answers it is owed.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    fn command(&mut self, frame: &[u8], value: &Value, now: Instant, through: &mut BytesMut) {
        let args = arguments(value);
        if LOSING.iter().any(|name| is_called(&args, name)) {
            self.lost = true;
            through.extend_from_slice(frame);
            return;
        }
        let mut place = PendingReply {
            answer: None,
            replaces: false,
            not_before: None,
            silenced_by: None,
            era: (!SET_UP.iter().any(|name| is_called(&args, &[name]))).then_some(self.era),
        };
        let treatment = self.faults.iter_mut().find_map(|placed| {
            let treatment = placed.fault.treats(&args, &mut placed.rng)?;
            placed.treated.fetch_add(1, Ordering::Relaxed);
            Some((placed.id, treatment))
        });
        match treatment {
            Some((_, Treatment::Answer(answer))) => place.answer = Some(answer.clone()),
            Some((_, Treatment::Refuse(error))) => {
                place.answer = Some(refusal_of(&args, error));
                place.replaces = self.in_multi;
            }
            Some((_, Treatment::Delay(delay))) => place.not_before = Some(now + *delay),
            Some((id, Treatment::Silence)) => place.silenced_by = Some(id),
            None => {}
        }
        let is = |name| is_called(&args, &[name]);
        if place.answer.is_none() {
            through.extend_from_slice(frame);
            self.in_multi = is("MULTI") || (self.in_multi && !ENDING.into_iter().any(is));
        } else if place.replaces {
            let ends = is("EXEC");
            through.extend_from_slice(if ends { DISCARD } else { SPOILER });
            self.in_multi = !ends;
        }
        self.row_bytes += place.weight();
        self.row.push_back(place);
    }
}

impl PendingReply {
    /// Whether the server's next reply belongs here, be it given or taken out.
    fn is_of_server(&self) -> bool {
        self.answer.is_none() || self.replaces
    }

    fn weight(&self) -> usize {
        size_of::<Self>() + self.answer.as_ref().map_or(0, Bytes::len)
    }
}

fn weight(reply: &Bytes) -> usize {
    size_of::<Bytes>() + reply.len()
}

/// Returns the answer of a server that refuses a command. An EXEC that is refused ends its
/// transaction, and says so, but where a cluster sends it elsewhere (`rejectCommand` and
/// `processCommand` in Redis' `server.c`).
fn refusal_of(args: &[&[u8]], error: &Bytes) -> Bytes {
    let redirects = REDIRECTIONS.iter().any(|code| error[1..].starts_with(code));
    if !is_called(args, &["EXEC"]) || redirects {
        return error.clone();
    }
    let mut answer = BytesMut::from(&b"-EXECABORT Transaction discarded because of: "[..]);
    answer.extend_from_slice(&error[1..]);
    answer.freeze()
}

const REDIRECTIONS: [&[u8]; 5] = [
    b"MOVED ",
    b"ASK ",
    b"CLUSTERDOWN ",
    b"CROSSSLOT ",
    b"TRYAGAIN ",
];

/// Commands by which clients set up and check a connection. A client that sends no others does not
/// use Redis.
const SET_UP: [&str; 11] = [
    "AUTH", "CLIENT", "COMMAND", "CONFIG", "ECHO", "HELLO", "INFO", "PING", "QUIT", "ROLE",
    "SELECT",
];

/// Commands that end a transaction.
const ENDING: [&str; 3] = ["EXEC", "DISCARD", "RESET"];

const DISCARD: &[u8] = b"*1\r\n$7\r\nDISCARD\r\n";

/// A command that every server refuses to queue, for want of a key: sent in place of a refused
/// command, it makes EXEC abort.
const SPOILER: &[u8] = b"*1\r\n$3\r\nGET\r\n";

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
struct Framer {
    decoder: Decoder,
    buffer: BytesMut,
    /// How much of the buffer the decoder has seen.
    seen: usize,
}

impl Default for Framer {
    fn default() -> Self {
        let limits = Limits {
            bulk_bytes: LARGEST,
            total_bytes: LARGEST,
            ..Limits::default()
        };
        Self {
            decoder: Decoder::new(limits),
            buffer: BytesMut::new(),
            seen: 0,
        }
    }
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

    /// Takes the bytes that were not cut into values.
    fn rest(&mut self) -> Bytes {
        self.seen = 0;
        self.buffer.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{RespError, RespSilence, Toxic};

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn exchange(toxic: Toxic) -> Exchange {
        let mut exchange = Exchange::default();
        let fault = toxic.fault.resp().expect("a fault of the protocol");
        exchange.add(ToxicId(1), fault, Rng::with_seed(0), &Arc::default());
        exchange
    }

    fn silenced() -> Exchange {
        let commands = vec!["GET".to_owned()];
        let percentage = 100.0;
        exchange(Toxic::new(RespSilence {
            commands,
            percentage,
        }))
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    const GET: &str = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    const PING: &str = "*1\r\n$4\r\nPING\r\n";

    #[test]
    fn d7_only_commands_of_the_present_era_that_use_redis_count_as_answered() {
        let mut exchange = Exchange::default();
        exchange.requests(&bytes(GET), now());
        exchange.requests(&bytes(PING), now());
        exchange.replies(&bytes("$-1\r\n+PONG\r\n"), now());
        assert_eq!(exchange.take_answered(), 1, "a GET, and not the PING");
        exchange.requests(&bytes(GET), now());
        exchange.change_era();
        exchange.requests(&bytes(GET), now());
        exchange.replies(&bytes("$-1\r\n$-1\r\n"), now());
        assert_eq!(exchange.take_answered(), 1, "the second GET only");
    }

    #[test]
    fn d1_what_waits_behind_silence_is_bounded_both_ways() {
        let mut exchange = silenced();
        exchange.requests(&bytes(GET), now());
        let mut commands = 0;
        while exchange.admits(Way::Up) {
            exchange.requests(&bytes(PING), now());
            commands += 1;
            assert!(commands * size_of::<PendingReply>() <= KEPT, "{commands}");
        }
        let (mut replies, reply) = (0, Bytes::from(format!("+{}\r\n", "x".repeat(500))));
        while exchange.admits(Way::Down) {
            assert!(exchange.replies(&reply, now()).is_empty());
            replies += 1;
            assert!(replies * reply.len() <= KEPT, "{replies}");
        }
        exchange.retain(|_| false);
        assert_eq!(exchange.ready(now()).len(), replies * reply.len());
        assert!(exchange.admits(Way::Up) && exchange.admits(Way::Down));
        assert_eq!(exchange.arrived_bytes, 0);
        assert_eq!(
            exchange.row_bytes,
            (commands + 1 - replies) * size_of::<PendingReply>()
        );
    }

    #[test]
    fn d1_a_reply_too_large_to_be_followed_passes_as_it_is() {
        let mut exchange = Exchange::default();
        exchange.requests(&bytes(GET), now());
        let reply = "$70000000\r\nand so on";
        assert_eq!(exchange.replies(&bytes(reply), now()), reply);
        assert!(exchange.is_lost() && !exchange.is_broken());
        assert_eq!(exchange.requests(&bytes(GET), now()), GET);
    }

    #[test]
    fn d1_a_command_too_large_to_be_followed_passes_after_those_before_it() {
        let mut exchange = silenced();
        let command = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$70000000\r\nand so on";
        assert_eq!(exchange.requests(&bytes(GET), now()), GET);
        assert_eq!(exchange.requests(&bytes(command), now()), command);
        assert!(exchange.is_lost());
        assert!(
            exchange.replies(&bytes("$-1\r\n+OK\r\n"), now()).is_empty(),
            "silenced"
        );
    }

    #[test]
    fn d1_a_connection_whose_answers_have_lost_their_places_is_broken() {
        let mut exchange = exchange(Toxic::new(RespError::oom()));
        let set = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";
        assert_eq!(exchange.requests(&bytes(GET), now()), GET);
        assert_eq!(exchange.requests(&bytes(set), now()), "");
        assert_eq!(
            exchange.replies(&bytes("$70000000\r\nand so on"), now()),
            ""
        );
        assert!(exchange.is_broken());
        assert_eq!(exchange.replies(&bytes("+and more\r\n"), now()), "");
        assert_eq!(exchange.requests(&bytes(GET), now()), "");
    }
}
