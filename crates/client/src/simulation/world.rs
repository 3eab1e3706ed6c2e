//! A server and the network before it, in memory and in virtual time.
//!
//! It keeps what a real one keeps: commands of one connection run in their order, bytes that were
//! sent before the client went away are still read, and a connection that was killed runs nothing
//! more. What goes wrong is drawn from a seed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use redis::Value;
use steadfast_core::resp::{Decoder, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, watch};

use crate::error::connect::ConnectError;
use crate::link::connect::{Found, Location, Transport, WaitsFor};
use crate::wire::stream::Stream;

/// The behaviour of the whole server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Well,
    /// The server runs nothing; what is sent waits.
    Frozen,
    /// The server is gone: nobody listens, and whatever was connected is cut.
    Gone,
    /// Connections are accepted into the void.
    Void,
    Loading,
    /// A user may not kill connections.
    Unfenced,
    /// The server runs a script: all but a few commands are refused, killing too.
    Busy,
}

/// The odds, in per mille, of what may happen to a connection as it serves a command.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Odds {
    pub(super) cut_before: u32,
    pub(super) cut_after: u32,
    pub(super) half_reply: u32,
    pub(super) garbage: u32,
    pub(super) slow: u32,
    /// A long stall, after which it goes on with what it was sent.
    pub(super) stall: u32,
}

/// The simulated server with the network before it.
#[derive(Clone)]
pub(super) struct World(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Wakes in the order in which they wait, which a `watch` does not: the same seed shall give
    /// the same history.
    turned: Notify,
}

struct State {
    rng: fastrand::Rng,
    mode: Mode,
    odds: Odds,
    data: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Every write that was ever run, with how often.
    ran: BTreeMap<Vec<u8>, u32>,
    connections: BTreeMap<i64, watch::Sender<bool>>,
    last_id: i64,
    faults: BTreeMap<Fault, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    CutBefore,
    CutAfter,
    HalfReply,
    Garbage,
    Slow,
    Stall,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl Transport for World {
    fn places(&self, _limit: Duration) -> BoxFuture<'_, Result<Found, ConnectError>> {
        Box::pin(std::future::ready(Ok(Found::of([Location::Unix]))))
    }

    fn open<'a>(
        &'a self,
        _place: Location,
        limit: Duration,
        _waits_for: &'a WaitsFor,
    ) -> BoxFuture<'a, Result<(Stream, String), ConnectError>> {
        Box::pin(async move {
            let mode = self.0.state.lock().mode;
            match mode {
                Mode::Gone => Err(ConnectError::Tcp {
                    address: "simulated".into(),
                    cause: "refused".into(),
                }),
                _ => Ok((Stream::Memory(self.accept(limit)), "simulated".into())),
            }
        })
    }
}

impl World {
    pub(super) fn new(seed: u64, odds: Odds) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                rng: fastrand::Rng::with_seed(seed),
                mode: Mode::Well,
                odds,
                data: BTreeMap::new(),
                ran: BTreeMap::new(),
                connections: BTreeMap::new(),
                last_id: 0,
                faults: BTreeMap::new(),
            }),
            turned: Notify::new(),
        }))
    }

    pub(super) fn turn(&self, mode: Mode) {
        self.0.state.lock().mode = mode;
        self.0.turned.notify_waiters();
        if mode == Mode::Gone {
            self.cut_all();
        }
    }

    pub(super) fn cut_all(&self) {
        for killed in self.0.state.lock().connections.values() {
            killed.send_replace(true);
        }
    }

    pub(super) fn set_odds(&self, odds: Odds) {
        self.0.state.lock().odds = odds;
    }

    pub(super) fn put(&self, key: &str, value: &str) {
        let mut state = self.0.state.lock();
        state.data.insert(key.into(), value.into());
    }

    pub(super) fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.0.state.lock().data.get(key.as_bytes()).cloned()
    }

    /// Returns how often this write was run.
    pub(super) fn ran(&self, words: &str) -> u32 {
        let state = self.0.state.lock();
        state.ran.get(words.as_bytes()).copied().unwrap_or(0)
    }

    /// The kinds of fault that have happened, and how often.
    pub(super) fn faults(&self) -> BTreeMap<Fault, u32> {
        self.0.state.lock().faults.clone()
    }

    fn accept(&self, _limit: Duration) -> DuplexStream {
        let mut state = self.0.state.lock();
        // Small enough that writes are taken in parts.
        let buffer = state.rng.usize(64..4096);
        let (ours, theirs) = tokio::io::duplex(buffer);
        state.last_id += 1;
        let id = state.last_id;
        let killed = watch::Sender::new(false);
        let connection = Connection {
            world: self.clone(),
            id,
            killed: killed.subscribe(),
            stream: theirs,
        };
        state.connections.insert(id, killed);
        drop(state);
        tokio::spawn(connection.serve());
        ours
    }
}

/// The server's end of a connection.
struct Connection {
    world: World,
    id: i64,
    killed: watch::Receiver<bool>,
    stream: DuplexStream,
}

/// The connection is over.
struct Over;

impl Connection {
    async fn serve(mut self) {
        let mut killed = self.killed.clone();
        tokio::select! {
            biased;
            _ = killed.wait_for(|killed| *killed) => {}
            _ = self.answer_all() => {}
        }
        let mut state = self.world.0.state.lock();
        state.connections.remove(&self.id);
    }

    async fn answer_all(&mut self) -> Result<(), Over> {
        let mut input = BytesMut::new();
        let mut decoder = Decoder::new(Limits::default());
        loop {
            while !input.is_empty() {
                let decoded = decoder.decode(&input).map_err(|_| Over)?;
                bytes::Buf::advance(&mut input, decoded.consumed);
                let Some(command) = decoded.value else { break };
                self.answer(&words(command)).await?;
            }
            self.runs().await;
            match self.stream.read_buf(&mut input).await {
                Ok(1..) => {}
                _ => return Err(Over),
            }
        }
    }

    /// Waits while the server runs nothing.
    async fn runs(&self) {
        loop {
            let turned = self.world.0.turned.notified();
            let mode = self.world.0.state.lock().mode;
            if !matches!(mode, Mode::Frozen | Mode::Void) {
                return;
            }
            turned.await;
        }
    }

    async fn answer(&mut self, words: &[Vec<u8>]) -> Result<(), Over> {
        self.runs().await;
        let fault = self.world.0.state.lock().fault();
        match fault {
            Some(Fault::CutBefore) => return Err(Over),
            Some(Fault::Slow) => self.stand_still(20..400).await,
            Some(Fault::Stall) => self.stand_still(2_000..20_000).await,
            _ => {}
        }
        self.runs().await;
        let reply = self.world.run(self.id, words);
        let reply = match fault {
            Some(Fault::CutAfter) => return Err(Over),
            Some(Fault::HalfReply) => &reply[..reply.len() / 2],
            Some(Fault::Garbage) => b"HTTP/1.1 400 Bad Request\r\n\r\n",
            _ => &reply[..],
        };
        // A client that has gone hears nothing, and what it sent is run all the same.
        let _ = self.stream.write_all(reply).await;
        match fault {
            Some(Fault::HalfReply) => Err(Over),
            _ => Ok(()),
        }
    }

    async fn stand_still(&self, ms: std::ops::Range<u64>) {
        let ms = self.world.0.state.lock().rng.u64(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

impl State {
    fn fault(&mut self) -> Option<Fault> {
        let odds = self.odds;
        let mut drawn = self.rng.u32(0..1000);
        for (odds, fault) in [
            (odds.cut_before, Fault::CutBefore),
            (odds.cut_after, Fault::CutAfter),
            (odds.half_reply, Fault::HalfReply),
            (odds.garbage, Fault::Garbage),
            (odds.slow, Fault::Slow),
            (odds.stall, Fault::Stall),
        ] {
            if drawn < odds {
                *self.faults.entry(fault).or_default() += 1;
                return Some(fault);
            }
            drawn -= odds;
        }
        None
    }

    fn address(id: i64) -> String {
        format!("10.0.0.1:{id}")
    }
}

impl World {
    /// Runs one command, all at once, as Redis does.
    fn run(&self, id: i64, words: &[Vec<u8>]) -> Vec<u8> {
        let mut state = self.0.state.lock();
        let mode = state.mode;
        let text = |at: usize| {
            let word = words.get(at).map(Vec::as_slice).unwrap_or_default();
            String::from_utf8_lossy(word).to_uppercase()
        };
        let data = || (words[1].clone(), words.get(2).cloned().unwrap_or_default());
        match (mode, text(0).as_str(), text(1).as_str()) {
            (_, "HELLO", _) => {
                b"*4\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$4\r\nrole\r\n$6\r\nmaster\r\n".to_vec()
            }
            (_, "CLIENT", "SETINFO") | (_, "SELECT", _) => b"+OK\r\n".to_vec(),
            (_, "CLIENT", "INFO") => {
                let info = format!("id={id} addr={}", State::address(id));
                format!("${}\r\n{info}\r\n", info.len()).into_bytes()
            }
            (Mode::Well, "INFO", _) => b"$11\r\nrun_id:one\n\r\n".to_vec(),
            (Mode::Busy, ..) => b"-BUSY Redis is busy running a script\r\n".to_vec(),
            (Mode::Unfenced, "CLIENT", "KILL") => b"-NOPERM no permissions to run it\r\n".to_vec(),
            (_, "CLIENT", "KILL") => {
                let wanted: i64 = text(3).parse().unwrap_or(-1);
                let named = text(5) == State::address(wanted);
                let killed = state.connections.get(&wanted).filter(|_| named);
                if let Some(killed) = killed {
                    killed.send_replace(true);
                }
                format!(":{}\r\n", u8::from(killed.is_some())).into_bytes()
            }
            (Mode::Loading, ..) => b"-LOADING Redis is loading the dataset in memory\r\n".to_vec(),
            (_, "PING", _) => b"+PONG\r\n".to_vec(),
            (_, "GET", _) => match state.data.get(&data().0) {
                Some(value) => {
                    let value = String::from_utf8_lossy(value);
                    format!("${}\r\n{value}\r\n", value.len()).into_bytes()
                }
                None => b"$-1\r\n".to_vec(),
            },
            (_, "SET", _) => {
                let (key, value) = data();
                state.data.insert(key, value);
                *state.ran.entry(words.join(&b' ')).or_default() += 1;
                b"+OK\r\n".to_vec()
            }
            (_, "INCR", _) => {
                *state.ran.entry(words.join(&b' ')).or_default() += 1;
                b":1\r\n".to_vec()
            }
            _ => b"-ERR unknown command\r\n".to_vec(),
        }
    }
}

fn words(command: Value) -> Vec<Vec<u8>> {
    let Value::Array(words) = command else {
        return Vec::new();
    };
    words
        .into_iter()
        .map(|word| match word {
            Value::BulkString(word) => word,
            _ => Vec::new(),
        })
        .collect()
}
