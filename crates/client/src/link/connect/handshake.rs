//! The first words with a server: who are we, who is it, and is it fit for service?
//!
//! Everything goes out in one write and is judged from the replies, so that a handshake costs one round trip: two on servers before Redis 6, and one
//! more where there are abandoned connections to kill, which is done only once it is known that this is the server they were made to.
//!
//! Replies are matched by their places, so each must also be of the kind that its question has: a peer that answers `+OK` to everything is no
//! server, and one that leaves a reply out must not be believed in the next.

use std::sync::Arc;

use bytes::BytesMut;
use redis::Value;
use steadfast_core::certainty::{Refusal, refusal};
use steadfast_core::report::ServerMode;
use steadfast_core::resp::{Decoder, Limits, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ConnectError, Place};
use crate::credentials::Credentials;
use crate::settings::{Protocol, Role, Settings};
use crate::wire::stream::Stream;

/// What the server said of itself.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    pub(crate) address: String,
    /// Where it was found.
    pub(crate) place: Option<Place>,
    /// The primary's time of office in which it was looked for, where sentinels name it; else 0.
    pub(crate) term: u64,
    pub(crate) version: String,
    pub(crate) role: String,
    /// `standalone`, `cluster` or `sentinel`, where it says so.
    pub(crate) mode: Option<ServerMode>,
    /// What is spoken: RESP2 where RESP3 was asked for, if the server is too old for it.
    pub(crate) protocol: Protocol,
    pub(crate) tls: Option<String>,
    pub(crate) identity: Option<Identity>,
    /// What the server process calls itself, until it is restarted; `None` where the ACL does not allow INFO.
    pub(crate) run_id: Option<Arc<str>>,
    /// Whether this user may kill connections, and if not, why.
    pub(crate) fencing: Result<(), String>,
}

impl Default for ServerFacts {
    fn default() -> Self {
        Self {
            address: String::new(),
            place: None,
            term: 0,
            version: String::new(),
            role: String::new(),
            mode: None,
            protocol: Protocol::Resp2,
            tls: None,
            identity: None,
            run_id: None,
            fencing: Ok(()),
        }
    }
}

/// What the server calls our connection: enough to have it killed, and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) addr: String,
    /// Of the server; `None` where that cannot be known, and never on a unix socket, where all clients have one address.
    pub(crate) run_id: Option<Arc<str>>,
}

impl Identity {
    /// A connection that cannot be: killing it shows whether killing is allowed.
    fn nobody() -> Self {
        Self {
            id: i64::MAX,
            addr: "0.0.0.0:0".into(),
            run_id: None,
        }
    }

    /// True if it is known to be a connection to another server than this one, or to this one before it was restarted.
    pub(crate) fn is_elsewhere(&self, run_id: Option<&str>) -> bool {
        let known = self.run_id.as_deref().zip(run_id);
        known.is_some_and(|(of, here)| of != here)
    }

    /// The command that kills the connection, and only this one, on the server that it [is not elsewhere](Self::is_elsewhere) of.
    pub(crate) fn kill(&self) -> Vec<u8> {
        command(&[
            "CLIENT",
            "KILL",
            "ID",
            &self.id.to_string(),
            "ADDR",
            &self.addr,
        ])
    }
}

/// What a handshake needs to know.
pub(super) struct Handshake<'a> {
    pub(super) settings: &'a Settings,
    pub(super) protocol: Protocol,
    pub(super) credentials: Option<&'a Credentials>,
    pub(super) fences: &'a [Identity],
    pub(super) address: &'a str,
}

type Fenced = Vec<Fence>;

impl Handshake<'_> {
    pub(super) async fn perform(
        &self,
        mut stream: Stream,
    ) -> Result<(Stream, ServerFacts, Fenced), ConnectError> {
        let on_unix = matches!(stream, Stream::Unix(_));
        let mut wire = Wire::new(&mut stream, self.address);
        let mut first = self.hello();
        self.settle(&mut first);
        let mut replies = wire.exchange(&first).await?;
        let hello = replies.remove(0);
        let mut facts = ServerFacts::default();
        match as_error(&hello) {
            None => {
                facts.protocol = self.protocol;
                read_hello(&hello, &mut facts);
                if facts.version.is_empty() && facts.role.is_empty() {
                    return Err(self.no_answer("HELLO"));
                }
            }
            // Older than Redis 6, or an ACL without HELLO.
            Some((code, text)) if knows_no_hello(&code, &text) => {
                replies = self.greet_without_hello(&mut wire, &mut facts).await?;
            }
            Some(_) => refused(&hello)?,
        }
        if facts.mode == Some(ServerMode::Sentinel) {
            return Err(ConnectError::Sentinel {
                address: self.address.into(),
            });
        }
        self.read_settled(&replies, on_unix, &mut facts)?;
        if self.settings.role == Role::Primary && matches!(facts.role.as_str(), "replica" | "slave")
        {
            return Err(ConnectError::Replica);
        }
        let fences = self.fence(&mut wire, facts.run_id.as_deref()).await?;
        facts.tls = stream.tls_facts();
        Ok((stream, facts, fences))
    }

    /// The greeting of old, and the questions that HELLO answers by itself. Returns the replies to what follows the greeting.
    async fn greet_without_hello(
        &self,
        wire: &mut Wire<'_>,
        facts: &mut ServerFacts,
    ) -> Result<Vec<Value>, ConnectError> {
        let mut commands = self.old_hello();
        let login = commands.len();
        commands.push(command(&["ROLE"]));
        commands.push(command(&["INFO"]));
        if let Some(name) = &self.settings.name {
            commands.push(command(&["CLIENT", "SETNAME", name]));
        }
        let greeting = commands.len();
        self.settle(&mut commands);
        let mut replies = wire.exchange(&commands).await?;
        let settled = replies.split_off(greeting);
        for reply in &replies[..login] {
            refused(reply)?;
            self.expect(matches!(reply, Value::Okay), "AUTH")?;
        }
        let role = &replies[login];
        self.expect(
            matches!(role, Value::Array(_) | Value::ServerError(_)),
            "ROLE",
        )?;
        read_role(&replies[login], &replies[login + 1], facts);
        Ok(settled)
    }

    fn hello(&self) -> Vec<Vec<u8>> {
        let protocol = match self.protocol {
            Protocol::Resp2 => "2",
            Protocol::Resp3 => "3",
        };
        let mut hello = vec!["HELLO", protocol];
        if let Some(credentials) = self.credentials {
            hello.extend(["AUTH", credentials.user(), credentials.password()]);
        }
        if let Some(name) = &self.settings.name {
            hello.extend(["SETNAME", name]);
        }
        vec![command(&hello)]
    }

    fn old_hello(&self) -> Vec<Vec<u8>> {
        match self.credentials {
            Some(credentials) if credentials.user() == "default" => {
                vec![command(&["AUTH", credentials.password()])]
            }
            Some(credentials) => vec![auth(credentials)],
            None => Vec::new(),
        }
    }

    /// What follows the greeting: database, our identity, is it fit for service, fences.
    fn settle(&self, commands: &mut Vec<Vec<u8>>) {
        commands.push(command(&["CLIENT", "SETINFO", "LIB-NAME", "steadfast"]));
        let db = self.settings.target.db.to_string();
        commands.push(command(&["SELECT", &db]));
        commands.push(command(&["CLIENT", "INFO"]));
        commands.push(command(&["PING"]));
        commands.push(Identity::nobody().kill());
        commands.push(command(&["INFO", "server"]));
    }

    fn read_settled(
        &self,
        replies: &[Value],
        on_unix: bool,
        facts: &mut ServerFacts,
    ) -> Result<(), ConnectError> {
        let [_, selected, client, ping, may_kill, server] = replies else {
            return Err(self.no_answer("the handshake"));
        };
        // The PING first: LOADING and MASTERDOWN answer everything, and are the better reason.
        match ping {
            Value::SimpleString(pong) if pong == "PONG" => {}
            Value::ServerError(error) if error.code() == "NOPERM" => {}
            Value::ServerError(_) => refused(ping)?,
            _ => return Err(self.no_answer("PING")),
        }
        if self.settings.target.db != 0 {
            refused(selected)?;
            self.expect(matches!(selected, Value::Okay), "SELECT")?;
        }
        self.expect(is_text_or_error(server), "INFO")?;
        self.expect(is_text_or_error(client), "CLIENT INFO")?;
        let server = text(server);
        facts.run_id = info_field(&server, "run_id").map(Into::into);
        if let Some(version) = own_version(&server) {
            facts.version = version;
        }
        facts.identity = parse_identity(&text(client), facts.run_id.clone());
        let nameless = on_unix && facts.run_id.is_none();
        facts.fencing = match Fence::of(may_kill) {
            None => return Err(self.no_answer("CLIENT KILL")),
            Some(Fence::NotNow) => return Err(not_now(may_kill)),
            Some(Fence::Refused(why)) => Err(why),
            Some(_) if facts.identity.is_none() => {
                Err("CLIENT INFO does not tell who this connection is".into())
            }
            Some(_) if nameless => Err(NAMELESS.into()),
            Some(_) => Ok(()),
        };
        if nameless {
            facts.identity = None;
        }
        Ok(())
    }

    /// Has abandoned connections killed, as far as they were made to this server.
    async fn fence(
        &self,
        wire: &mut Wire<'_>,
        run_id: Option<&str>,
    ) -> Result<Fenced, ConnectError> {
        let here = |ghost: &&Identity| !ghost.is_elsewhere(run_id);
        let kills: Vec<_> = self
            .fences
            .iter()
            .filter(here)
            .map(Identity::kill)
            .collect();
        let mut replies = match kills.is_empty() {
            true => Vec::new(),
            false => wire.exchange(&kills).await?,
        }
        .into_iter();
        let fenced = self.fences.iter().map(|ghost| {
            if ghost.is_elsewhere(run_id) {
                return Ok(Fence::Gone);
            }
            let reply = replies.next().unwrap_or(Value::Nil);
            match Fence::of(&reply) {
                None => Err(self.no_answer("CLIENT KILL")),
                Some(Fence::NotNow) => Err(not_now(&reply)),
                Some(fence) => Ok(fence),
            }
        });
        fenced.collect()
    }

    fn expect(&self, is_answer: bool, asked: &str) -> Result<(), ConnectError> {
        match is_answer {
            true => Ok(()),
            false => Err(self.no_answer(asked)),
        }
    }

    fn no_answer(&self, asked: &str) -> ConnectError {
        ConnectError::NotRedis {
            address: self.address.into(),
            why: format!("it answers {asked} by what is no answer to it"),
        }
    }
}

/// Why nobody is killed over a unix socket of a server whose run id is not known.
const NAMELESS: &str = "INFO does not tell the server's run id, without which connections over a unix socket cannot be told from those \
     before its restart: allow INFO to this user";

/// What a server answered to CLIENT KILL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Killed, or gone already.
    Done,
    /// Not asked: it was a connection to another server, or to this one before its restart.
    Gone,
    /// Not allowed, not known to this server, or refused in words that are not known to pass.
    Refused(String),
    /// The server could not now, for a reason that will pass (LOADING, BUSY…): that says nothing of what is allowed.
    NotNow,
}

impl Fence {
    /// `None` if the reply is no answer to CLIENT KILL.
    pub(crate) fn of(reply: &Value) -> Option<Self> {
        let Some((code, text)) = as_error(reply) else {
            return matches!(reply, Value::Int(_)).then_some(Self::Done);
        };
        if text.to_ascii_lowercase().contains("no such client") {
            return Some(Self::Done);
        }
        Some(match refusal(&code, &text) {
            Refusal::Lasting => Self::Refused(format!("{code} {text}")),
            // Protected mode would have said so to the greeting: this is a proxy that does not kill.
            Refusal::Unauthenticated if code == "DENIED" => Self::Refused(format!("{code} {text}")),
            _ => Self::NotNow,
        })
    }
}

/// A connection that cannot kill those before it now is not fit for service now.
fn not_now(reply: &Value) -> ConnectError {
    match refused(reply) {
        Err(error) => error,
        Ok(()) => ConnectError::Refused("CLIENT KILL was queued".into()),
    }
}

fn knows_no_hello(code: &str, text: &str) -> bool {
    code == "ERR" && text.contains("unknown command") || code == "NOPERM" && text.contains("hello")
}

pub(crate) fn as_error(reply: &Value) -> Option<(String, String)> {
    match reply {
        Value::ServerError(error) => Some((
            error.code().to_owned(),
            error.details().unwrap_or_default().to_owned(),
        )),
        _ => None,
    }
}

/// A server that does not know a command says what it was told with it; and AUTH is told a
/// password.
pub(crate) fn without_arguments(mut text: String) -> String {
    if let Some(arguments) = text.find("with args") {
        text.truncate(arguments);
    }
    text
}

fn refused(reply: &Value) -> Result<(), ConnectError> {
    let Some((code, text)) = as_error(reply) else {
        return Ok(());
    };
    let text = without_arguments(text);
    Err(match code.as_str() {
        "LOADING" => ConnectError::Loading,
        "MASTERDOWN" => ConnectError::Replica,
        "WRONGPASS" | "NOAUTH" | "NOPERM" => ConnectError::Auth(format!("{code} {text}")),
        "ERR" if text.starts_with("max number of clients") => ConnectError::MaxClients,
        "ERR" if text.contains("AUTH") || text.contains("password") => ConnectError::Auth(text),
        _ => ConnectError::Refused(format!("{code} {text}")),
    })
}

fn read_hello(hello: &Value, facts: &mut ServerFacts) {
    let pairs: Vec<(&Value, &Value)> = match hello {
        Value::Map(pairs) => pairs.iter().map(|(key, value)| (key, value)).collect(),
        Value::Array(items) => items
            .chunks_exact(2)
            .map(|pair| (&pair[0], &pair[1]))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in pairs {
        match text(key).as_str() {
            "version" => facts.version = text(value),
            "role" => facts.role = text(value),
            "mode" => facts.mode = ServerMode::read(&text(value)),
            _ => {}
        }
    }
}

/// The role as ROLE tells it; where that is not allowed, as INFO does. Where neither is, it cannot be known and stays `unknown`.
fn read_role(role: &Value, info: &Value, facts: &mut ServerFacts) {
    let info = text(info);
    facts.version = own_version(&info).unwrap_or_default();
    facts.mode = info_field(&info, "redis_mode").and_then(|mode| ServerMode::read(&mode));
    facts.role = match role {
        Value::Array(parts) => parts.first().map(text),
        _ => info_field(&info, "role"),
    }
    .unwrap_or_else(|| "unknown".into());
}

/// The version of the server by its own count, as INFO tells it. `redis_version` may be that of Redis which it is compatible with.
pub(crate) fn own_version(info: &str) -> Option<String> {
    let name = info_field(info, "server_name").unwrap_or_else(|| "valkey".into());
    info_field(info, &format!("{name}_version")).or_else(|| info_field(info, "redis_version"))
}

/// A field of what INFO says.
fn info_field(info: &str, name: &str) -> Option<String> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

fn is_text_or_error(reply: &Value) -> bool {
    matches!(
        reply,
        Value::BulkString(_) | Value::VerbatimString { .. } | Value::ServerError(_)
    )
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

fn parse_identity(info: &str, run_id: Option<Arc<str>>) -> Option<Identity> {
    let field = |name: &str| {
        info.split_whitespace()
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    Some(Identity {
        id: field("id")?.parse().ok()?,
        addr: field("addr")?.to_owned(),
        run_id,
    })
}

/// The stream during the handshake: commands out, as many replies in.
pub(crate) struct Wire<'a> {
    stream: &'a mut Stream,
    decoder: Decoder,
    input: BytesMut,
    address: &'a str,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(stream: &'a mut Stream, address: &'a str) -> Self {
        Self::limited(stream, address, Limits::default())
    }

    /// The same, with replies up to these limits.
    pub(crate) fn limited(stream: &'a mut Stream, address: &'a str, limits: Limits) -> Self {
        Self {
            stream,
            decoder: Decoder::new(limits),
            input: BytesMut::with_capacity(4096),
            address,
        }
    }

    pub(crate) async fn exchange(
        &mut self,
        commands: &[Vec<u8>],
    ) -> Result<Vec<Value>, ConnectError> {
        // A server that is full says so and closes before it reads: what it said is worth more than the failure to write.
        let written = self.stream.write_all(&commands.concat()).await;
        let _ = self.stream.flush().await;
        let mut replies = Vec::with_capacity(commands.len());
        while replies.len() < commands.len() {
            match self.reply().await {
                Ok(Value::Push { .. }) => {}
                Ok(reply) => {
                    if replies.is_empty() && is_full(&reply) {
                        return Err(ConnectError::MaxClients);
                    }
                    replies.push(reply);
                }
                Err(error @ ConnectError::Ended(_)) => {
                    // A server that refuses everybody (protected mode, loading behind some proxies) says so once and closes.
                    if let Some(said) = replies.last() {
                        refused(said)?;
                    }
                    return Err(written
                        .map_or_else(|write| ConnectError::Ended(write.to_string()), |()| error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(replies)
    }

    /// Sends a command without waiting for its reply.
    pub(crate) async fn send(&mut self, command: &[u8]) -> Result<(), ConnectError> {
        let ended = |error: std::io::Error| ConnectError::Ended(error.to_string());
        self.stream.write_all(command).await.map_err(ended)?;
        self.stream.flush().await.map_err(ended)
    }

    /// The next reply. May be dropped and asked again.
    pub(crate) async fn reply(&mut self) -> Result<Value, ConnectError> {
        loop {
            if !self.input.is_empty() {
                self.looks_like_tls()?;
                let decoded =
                    self.decoder
                        .decode(&self.input)
                        .map_err(|error| ConnectError::NotRedis {
                            address: self.address.into(),
                            why: error.to_string(),
                        })?;
                bytes::Buf::advance(&mut self.input, decoded.consumed);
                if let Some(value) = decoded.value {
                    return Ok(value);
                }
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => {
                    return Err(ConnectError::Ended(
                        "the server closed it; if it speaks TLS on this port, use rediss://".into(),
                    ));
                }
                Ok(_) => {}
                Err(error) => {
                    return Err(ConnectError::Ended(self.stream.explain(&error)));
                }
            }
        }
    }

    /// A TLS server answers plain text with an alert record: 21, then a version that begins with 3.
    fn looks_like_tls(&self) -> Result<(), ConnectError> {
        if self.input.starts_with(&[21, 3]) && self.decoder.is_idle() {
            return Err(ConnectError::Tls {
                address: self.address.into(),
                cause: "the server speaks TLS on this port: use rediss://".into(),
            });
        }
        Ok(())
    }
}

fn is_full(reply: &Value) -> bool {
    as_error(reply).is_some_and(|(_, text)| text.starts_with("max number of clients"))
}

/// An ECHO of what nobody else has said, and what it must be answered by.
pub(crate) fn proof(rng: &mut fastrand::Rng) -> (String, Vec<u8>) {
    let nonce = format!("steadfast-{:032x}", rng.u128(..));
    let echo = command(&["ECHO", &nonce]);
    (nonce, echo)
}

/// The command that gives new credentials to a live connection.
pub(crate) fn auth(credentials: &Credentials) -> Vec<u8> {
    command(&["AUTH", credentials.user(), credentials.password()])
}

pub(crate) fn command(args: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::command(args.iter().map(|arg| arg.as_bytes()), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> Value {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error reply")
    }

    #[test]
    fn c18_only_what_is_known_to_pass_keeps_a_server_that_does_not_kill_out_of_service() {
        for (reply, fence) in [
            (Value::Int(1), Fence::Done),
            (Value::Int(0), Fence::Done),
            (error("ERR No such client"), Fence::Done),
            (error("LOADING Redis is loading"), Fence::NotNow),
            (error("BUSY Redis is busy"), Fence::NotNow),
            (error("ERR max number of clients reached"), Fence::NotNow),
        ] {
            assert_eq!(Fence::of(&reply), Some(fence), "{reply:?}");
        }
        let queued = Value::SimpleString("QUEUED".into());
        for odd in [Value::Nil, Value::Okay, queued] {
            assert_eq!(Fence::of(&odd), None, "{odd:?} is no answer");
        }
        for line in [
            "NOPERM this user has no permissions to run the 'client|kill' command",
            "ERR unknown command 'CLIENT'",
            "ERR syntax error",
            "ERR value is not an integer or out of range",
            "ERR command is not allowed",
            "DENIED by the proxy",
        ] {
            assert!(
                matches!(Fence::of(&error(line)), Some(Fence::Refused(_))),
                "{line}"
            );
        }
    }

    #[test]
    fn c16_a_server_that_knows_no_auth_cannot_make_us_tell_the_password() {
        let told = error("ERR unknown command 'AUTH', with args beginning with: 'ada' 's3cret' ");
        let refusal = refused(&told).expect_err("it is an error").to_string();
        assert!(refusal.contains("unknown command"), "{refusal}");
        assert!(!refusal.contains("s3cret"), "{refusal}");
    }

    #[test]
    fn c8_a_role_is_known_from_whichever_question_is_allowed() {
        let role = Value::Array(vec![Value::BulkString(b"slave".to_vec())]);
        let info = Value::BulkString(b"redis_version:5.0.7\r\nrole:master\r\n".to_vec());
        let no = error("NOPERM this user has no permissions");
        for (role, info, want) in [
            (&role, &no, ("slave", "")),
            (&no, &info, ("master", "5.0.7")),
            (&no, &no, ("unknown", "")),
        ] {
            let mut facts = ServerFacts::default();
            read_role(role, info, &mut facts);
            assert_eq!((facts.role.as_str(), facts.version.as_str()), want);
        }
    }

    #[test]
    fn an_identity_is_read_from_client_info() {
        let info = "id=7 addr=127.0.0.1:5 laddr=127.0.0.1:6379 fd=8 name=";
        let identity = parse_identity(info, Some("one run".into())).expect("it has both");
        assert_eq!(identity.id, 7);
        assert_eq!(identity.addr, "127.0.0.1:5");
        assert!(!identity.is_elsewhere(Some("one run")) && !identity.is_elsewhere(None));
        assert!(identity.is_elsewhere(Some("another")));
    }
}
