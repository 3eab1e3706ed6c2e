//! The first words with a server: who are we, who is it, and is it fit for service?
//!
//! Everything goes out in one write and is judged from the replies, so that a handshake costs one
//! round trip: two on servers before Redis 6, and one more where there are abandoned connections to
//! kill, which is done only once it is known that this is the server they were made to.
//!
//! Replies are matched by their places, so each must also be of the kind that its question has: a
//! peer that answers `+OK` to everything is no server, and one that leaves a reply out must not be
//! believed in the next.

use redis::Value;
use steadfast_core::report::ServerMode;

use super::exchange::{Exchange, auth, refused};
use super::facts::{ServerFacts, parse_identity, read_hello, read_role};
use super::membership::{self, is_of_the_kind};
use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
use crate::link::fence::Fence;
use crate::membership::Membership;
use crate::settings::Settings;
use crate::target::{Protocol, Role};
use crate::wire::identity::Identity;
use crate::wire::stream::Stream;
use crate::wire::words::{as_error, command, info_field, own_version, text};

/// The terms of a handshake.
pub(super) struct Handshake<'a> {
    pub(super) settings: &'a Settings,
    pub(super) protocol: Protocol,
    pub(super) credentials: Option<&'a Credentials>,
    pub(super) fences: &'a [Identity],
    pub(super) address: &'a str,
    /// The identity that it must prove, of a cluster's node.
    pub(super) member: Option<&'a Membership>,
}

type Fenced = Vec<Fence>;

impl Handshake<'_> {
    pub(super) async fn perform(
        &self,
        mut stream: Stream,
    ) -> Result<(Stream, ServerFacts, Fenced), ConnectError> {
        let on_unix = matches!(stream, Stream::Unix(_));
        let mut exchange = Exchange::new(&mut stream, self.address);
        let mut first = self.hello();
        self.settle(&mut first);
        let mut replies = exchange.exchange(&first).await?;
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
                replies = self.greet_without_hello(&mut exchange, &mut facts).await?;
            }
            Some(_) => refused(&hello)?,
        }
        if facts.mode == Some(ServerMode::Sentinel) {
            return Err(ConnectError::Sentinel {
                address: self.address.into(),
            });
        }
        is_of_the_kind(self.settings, &facts, self.address)?;
        self.read_settled(&replies, on_unix, &mut facts)?;
        if self.settings.role == Role::Primary && matches!(facts.role.as_str(), "replica" | "slave")
        {
            return Err(ConnectError::Replica);
        }
        if let Some(member) = self.member {
            membership::check(member, &mut exchange, self.address).await?;
        }
        let fences = self.fence(&mut exchange, facts.run_id.as_deref()).await?;
        facts.tls = stream.tls_facts();
        Ok((stream, facts, fences))
    }

    /// The greeting of old, and the questions that HELLO answers by itself. Returns the replies to
    /// what follows the greeting.
    async fn greet_without_hello(
        &self,
        exchange: &mut Exchange<'_>,
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
        let mut replies = exchange.exchange(&commands).await?;
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

    /// Adds the commands that follow the greeting: database, our identity, is it fit for service,
    /// fences.
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
        exchange: &mut Exchange<'_>,
        run_id: Option<&str>,
    ) -> Result<Fenced, ConnectError> {
        let here = |identity: &&Identity| !identity.is_elsewhere(run_id);
        let kills: Vec<_> = self
            .fences
            .iter()
            .filter(here)
            .map(Identity::kill)
            .collect();
        let mut replies = match kills.is_empty() {
            true => Vec::new(),
            false => exchange.exchange(&kills).await?,
        }
        .into_iter();
        let fenced = self.fences.iter().map(|identity| {
            if identity.is_elsewhere(run_id) {
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

/// The reason why nobody is killed over a unix socket of a server whose run id is not known.
const NAMELESS: &str = "INFO does not tell the server's run id, without which connections over a unix socket cannot be told from those \
     before its restart: allow INFO to this user";

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

fn is_text_or_error(reply: &Value) -> bool {
    matches!(
        reply,
        Value::BulkString(_) | Value::VerbatimString { .. } | Value::ServerError(_)
    )
}
