//! A subscriber's connection: what was asked on it, in order, and when it was last heard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use redis::{PushKind, Value};
use steadfast_core::report::ClusterInfo;
use steadfast_core::resp::{DecodeError, Decoder, encode};
use tokio::io::AsyncWriteExt;

use super::SubscriptionKind;
use super::attendance::{Turns, WRITE};
use crate::clock;
use crate::credentials::Credentials;
use crate::error::ErrorKind;
use crate::link::connect::{self, Established, Location};
use crate::link::following::Tie;
use crate::link::rotation::Rotation;
use crate::link::shared::Shared;
use crate::target::{Address, Protocol};
use crate::wire::stream::Stream;
use crate::wire::words::{OUT_OF_STEP, text};

pub(super) struct SubscriberWire {
    pub(super) stream: Stream,
    pub(super) input: BytesMut,
    pub(super) heard_at: Instant,
    /// Every subscription stood, at some time.
    pub(super) resumed: bool,
    pub(super) rotation: Rotation,
    /// The tie to the server, for as long as the client serves from it.
    pub(super) tie: Tie,
    /// The place that it is connected to.
    pub(super) place: Option<Location>,
    decoder: Decoder,
    protocol: Protocol,
    /// The beginning of the value of which the rest has not come yet.
    begun_at: Option<Instant>,
    /// The questions that the server has not answered, in the order in which it will, and when they
    /// were asked.
    asked: VecDeque<(Asked, Instant)>,
    /// Of a cluster's node: when it is asked next whether its cluster serves.
    ask_state_at: Option<Instant>,
    /// Whether it has said so.
    has_served: bool,
    /// The turns of the task that it belongs to.
    turns: Arc<Turns>,
}

/// A question that the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Subscribe(SubscriptionKind, Vec<u8>),
    Unsubscribe(SubscriptionKind, Vec<u8>),
    Ping,
    /// Whether its cluster serves.
    State,
    Auth,
    /// The ECHO behind an AUTH, of that.
    Proof(String),
}

/// So many times as long as a server may be silent, its answer to a question, or the rest of what
/// it has begun to say, may be on its way: bytes are a sign of life, but not for ever.
const ON_ITS_WAY: u32 = 20;

impl SubscriberWire {
    pub(super) fn new(
        established: Established,
        tie: Tie,
        shared: &Shared,
        turns: Arc<Turns>,
    ) -> Self {
        let in_cluster = matches!(shared.settings.target.address, Address::Cluster(_));
        // In RESP2 nothing but subscriptions can be asked of.
        let may_ask = in_cluster && established.facts.protocol == Protocol::Resp3;
        Self {
            ask_state_at: may_ask.then(clock::now),
            has_served: false,
            stream: established.stream,
            input: BytesMut::with_capacity(16 << 10),
            heard_at: clock::now(),
            resumed: false,
            place: established.facts.place,
            tie: tie.made_to(established.facts.run_id),
            rotation: shared.credentials.rotation(established.credentials),
            decoder: Decoder::new(shared.settings.reply_limits),
            protocol: established.facts.protocol,
            begun_at: None,
            asked: VecDeque::new(),
            turns,
        }
    }

    pub(super) async fn subscribe(
        &mut self,
        kind: SubscriptionKind,
        name: Vec<u8>,
    ) -> Result<(), Arc<str>> {
        let command = encoded(&[kind.subscribe().as_bytes(), &name]);
        self.ask(Asked::Subscribe(kind, name), &command).await
    }

    pub(super) async fn unsubscribe(
        &mut self,
        kind: SubscriptionKind,
        name: Vec<u8>,
    ) -> Result<(), Arc<str>> {
        let command = encoded(&[kind.unsubscribe().as_bytes(), &name]);
        self.ask(Asked::Unsubscribe(kind, name), &command).await
    }

    /// Returns whether every question is answered.
    pub(super) fn is_quiet(&self) -> bool {
        self.asked.is_empty()
    }

    /// Returns whether the server has not answered to new credentials: nothing else is asked
    /// meanwhile.
    pub(super) fn authenticates(&self) -> bool {
        self.asked
            .iter()
            .any(|(asked, _)| matches!(asked, Asked::Proof(_)))
    }

    /// Gives new credentials, with a proof behind them that they are answered: a server may swallow
    /// that it refuses them, where messages are on their way. In RESP2 a connection that has
    /// subscribed takes none.
    pub(super) async fn give(
        &mut self,
        credentials: &Credentials,
        rng: &mut fastrand::Rng,
    ) -> Result<(), Arc<str>> {
        if self.protocol == Protocol::Resp2 {
            return Err("new credentials, which RESP2 takes only anew".into());
        }
        let (nonce, echo) = connect::proof(rng);
        let now = clock::now();
        let both = [Asked::Auth, Asked::Proof(nonce)];
        self.asked.extend(both.map(|asked| (asked, now)));
        let both = [connect::auth(credentials), echo].concat();
        self.write(&both).await
    }

    async fn ask(&mut self, asked: Asked, command: &[u8]) -> Result<(), Arc<str>> {
        self.asked.push_back((asked, clock::now()));
        self.write(command).await
    }

    async fn write(&mut self, command: &[u8]) -> Result<(), Arc<str>> {
        let written = async {
            self.stream.write_all(command).await?;
            self.stream.flush().await
        };
        // However many writes follow one another, each may take its time.
        self.turns.take();
        let written = tokio::time::timeout(WRITE, written).await;
        self.turns.take();
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string().into()),
            Err(_) => Err("the server takes no more".into()),
        }
    }

    /// Bytes came.
    pub(super) fn handle_input(&mut self) {
        self.heard_at = clock::now();
    }

    /// The next thing that the server said, whole.
    pub(super) fn poll_value(&mut self) -> Result<Option<Value>, Arc<str>> {
        if self.input.is_empty() {
            return Ok(None);
        }
        let decoded = self.decoder.decode(&self.input).map_err(undecodable)?;
        bytes::Buf::advance(&mut self.input, decoded.consumed);
        let is_whole = decoded.value.is_some() || self.input.is_empty() && self.decoder.is_idle();
        match is_whole {
            true => self.begun_at = None,
            false => drop(self.begun_at.get_or_insert(self.heard_at)),
        }
        Ok(decoded.value)
    }

    /// Takes the question that an answer without a name belongs to: the oldest.
    pub(super) fn answered(&mut self) -> Option<Asked> {
        self.asked.pop_front().map(|(asked, _)| asked)
    }

    /// A reply that is no error, no message and no confirmation. It must be what the oldest
    /// question is answered by.
    pub(super) fn replied(&mut self, reply: &Value) -> Result<(), Arc<str>> {
        match (self.answered(), reply) {
            (Some(Asked::Auth), Value::Okay) => self.rotation.answered(true),
            (Some(Asked::Ping), Value::SimpleString(pong)) if pong == "PONG" => {}
            (Some(Asked::State), reply) => return self.state_told(reply),
            (Some(Asked::Proof(nonce)), Value::BulkString(echo)) if *echo == nonce.as_bytes() => {}
            _ => return Err(OUT_OF_STEP.into()),
        }
        Ok(())
    }

    /// A node that is cut off from the others lives, and hears of nothing that is published: it has
    /// served, and knows that it does no more. One that never did may be as good as any.
    fn state_told(&mut self, reply: &Value) -> Result<(), Arc<str>> {
        let info = ClusterInfo::read(&text(reply)).map_err(|_| OUT_OF_STEP)?;
        if self.has_served && !info.is_ok {
            return Err("the node is cut off from its cluster (cluster_state:fail)".into());
        }
        self.has_served = info.is_ok;
        Ok(())
    }

    /// The server does not let it be asked whether its cluster serves.
    pub(super) fn state_untold(&mut self) {
        self.ask_state_at = None;
    }

    /// The server named what it has done. False if that was not asked.
    pub(super) fn done(&mut self, done: &Asked) -> bool {
        let place = self.asked.iter().position(|(asked, _)| asked == done);
        place.is_some_and(|place| self.asked.remove(place).is_some())
    }

    pub(super) fn all_confirmed(&self) -> bool {
        let unconfirmed = |(asked, _): &(Asked, Instant)| matches!(asked, Asked::Subscribe(..));
        !self.asked.iter().any(unconfirmed)
    }

    /// When there is something to look at, should nothing come.
    pub(super) fn next_tick(&self, shared: &Shared) -> Instant {
        let silent = self.silent_until(shared);
        let state = self.ask_state_at.filter(|_| !self.authenticates());
        let others = state.into_iter().chain(self.owed_until(shared));
        others.fold(silent, Instant::min)
    }

    fn silent_until(&self, shared: &Shared) -> Instant {
        match self.pinged_at() {
            Some(pinged) => pinged.max(self.heard_at) + shared.settings.response_idle_timeout,
            None => self.heard_at + shared.settings.heartbeat,
        }
    }

    fn pinged_at(&self) -> Option<Instant> {
        let mut pings = self.asked.iter().filter(|(asked, _)| *asked == Asked::Ping);
        pings.next().map(|(_, at)| *at)
    }

    /// Until when the oldest question is to be answered, and a value that has begun to come is to
    /// be whole.
    fn owed_until(&self, shared: &Shared) -> Option<Instant> {
        let asked = self.asked.front().map(|(_, at)| *at);
        let since = asked.into_iter().chain(self.begun_at).min()?;
        Some(since + shared.settings.response_idle_timeout * ON_ITS_WAY)
    }

    /// Sends a heartbeat if one is due; fails if nothing has come since the last one for too long.
    pub(super) async fn tick(&mut self, shared: &Shared) -> Result<(), Arc<str>> {
        let now = clock::now();
        if self.ask_state_at.is_some_and(|at| at <= now) && !self.authenticates() {
            self.ask_state_at = Some(now + shared.settings.heartbeat);
            let question = encoded(&[b"CLUSTER", b"INFO"]);
            self.ask(Asked::State, &question).await?;
        }
        if now < self.silent_until(shared) {
            return Ok(());
        }
        if self.pinged_at().is_some() {
            let overdue = shared.settings.response_idle_timeout;
            return Err(format!("no answer to a heartbeat within {overdue:?}").into());
        }
        self.ask_for_life().await
    }

    /// Sends a heartbeat, if none is unanswered.
    pub(super) async fn ask_for_life(&mut self) -> Result<(), Arc<str>> {
        match self.is_asked_for_life() {
            true => Ok(()),
            false => self.ask(Asked::Ping, &encoded(&[b"PING"])).await,
        }
    }

    /// Returns whether a heartbeat is unanswered.
    pub(super) fn is_asked_for_life(&self) -> bool {
        self.pinged_at().is_some()
    }

    /// Fails if the server talks on and on, and never says what it owes: then it is not known what
    /// may have been missed. Time that this process has lost is not the server's: it was to go on
    /// at `due`.
    pub(super) fn check_owed(&mut self, due: Instant, shared: &Shared) -> Result<(), Arc<str>> {
        let now = clock::now();
        if let Some(lost) = clock::lost(due, now) {
            let times = self.asked.iter_mut().map(|(_, at)| at);
            for at in times.chain(&mut self.begun_at) {
                *at += lost;
            }
        }
        match self.owed_until(shared) {
            Some(until) if until <= now => {
                let limit = shared.settings.response_idle_timeout * ON_ITS_WAY;
                let what = match self.begun_at {
                    Some(_) => "the rest of what the server has begun to say has not come",
                    None => "what was asked was not answered, though the server talks,",
                };
                Err(format!("{what} within {limit:?}").into())
            }
            _ => Ok(()),
        }
    }
}

/// The cause of a loss by what cannot be decoded. What is too large is told as it is to callers.
fn undecodable(error: DecodeError) -> Arc<str> {
    let told = match error.is_limit() {
        true => ErrorKind::ReplyTooLarge { limit: error }.to_string(),
        false => error.to_string(),
    };
    told.into()
}

fn encoded(args: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::command(args.iter().copied(), &mut out);
    out
}

/// Returns the parts of a message: an array in RESP2, a push in RESP3.
pub(super) fn parts(value: Value) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    match value {
        Value::Array(items) => {
            let mut items = items.into_iter();
            let kind = bytes_of(items.next()?);
            Some((kind, items.map(bytes_of).collect()))
        }
        Value::Push { kind, data } => {
            let kind: &[u8] = match kind {
                PushKind::Message => b"message",
                PushKind::PMessage => b"pmessage",
                PushKind::SMessage => b"smessage",
                PushKind::Subscribe => b"subscribe",
                PushKind::PSubscribe => b"psubscribe",
                PushKind::Unsubscribe => b"unsubscribe",
                PushKind::PUnsubscribe => b"punsubscribe",
                PushKind::SSubscribe => b"ssubscribe",
                PushKind::SUnsubscribe => b"sunsubscribe",
                _ => return None,
            };
            Some((kind.to_vec(), data.into_iter().map(bytes_of).collect()))
        }
        _ => None,
    }
}

fn bytes_of(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::clock::keeper;
    use crate::link::connect::ServerFacts;
    use crate::pubsub::attendance::Attendance;
    use crate::settings::Settings;
    use crate::target::Target;

    /// A node that is asked two things in one turn, whether its cluster serves and whether it
    /// lives, and that takes each only just in time.
    #[tokio::test(start_paused = true)]
    async fn c19_a_task_that_writes_to_a_slow_peer_again_and_again_is_not_missed() {
        let target = Target::parse("redis-cluster://h").expect("a good url");
        let shared = Shared::new(Settings::new(target), clock::now()).expect("good settings");
        let (own, mut peer) = tokio::io::duplex(1);
        let facts = ServerFacts {
            protocol: Protocol::Resp3,
            ..ServerFacts::default()
        };
        let established = Established {
            stream: Stream::Memory(own),
            facts,
            credentials: None,
            fences: Vec::new(),
        };
        let turns = Arc::<Turns>::default();
        let tie = shared.following.tie(None, &mut shared.rng());
        let mut wire = SubscriberWire::new(established, tie, &shared, Arc::clone(&turns));
        tokio::time::advance(shared.settings.heartbeat).await;
        let slow = async {
            for command in [&[b"CLUSTER".as_slice(), b"INFO"][..], &[b"PING"]] {
                let command = encoded(command);
                tokio::time::sleep(WRITE.mul_f64(0.99)).await;
                let mut taken = vec![0; command.len()];
                peer.read_exact(&mut taken).await.expect("it writes");
                assert_eq!(taken, command);
            }
        };
        let looks = async {
            let mut attendance = Attendance::default();
            loop {
                attendance.look(&turns, true, &shared.settings);
                attendance.listener_runs();
                assert!(!attendance.is_missed(&turns), "it writes");
                tokio::time::sleep(keeper::EVERY).await;
            }
        };
        let writes = async { tokio::join!(wire.tick(&shared), slow) };
        tokio::select! {
            (ticked, ()) = writes => assert_eq!(ticked, Ok(())),
            () = looks => {}
        }
    }
}
