//! The first words with a server: who are we, who is it, and is it fit for service?
//!
//! Everything goes out in one write and is judged from the replies, so that a handshake costs one round trip (two on servers before Redis 6).

use bytes::BytesMut;
use redis::Value;
use steadfast_core::resp::{Decoder, Limits, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ConnectError;
use crate::credentials::Credentials;
use crate::settings::{Protocol, Role, Settings};
use crate::stream::Stream;
use crate::tls;

/// What the server said of itself.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) role: String,
    pub(crate) tls: Option<String>,
    pub(crate) identity: Option<Identity>,
    /// Whether this user may kill connections, and if not, why.
    pub(crate) fencing: Result<(), String>,
}

impl Default for ServerFacts {
    fn default() -> Self {
        Self {
            address: String::new(),
            version: String::new(),
            role: String::new(),
            tls: None,
            identity: None,
            fencing: Ok(()),
        }
    }
}

/// What the server calls our connection: enough to have it killed, and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) addr: String,
}

impl Identity {
    /// A connection that cannot be: killing it shows whether killing is allowed.
    fn nobody() -> Self {
        Self {
            id: i64::MAX,
            addr: "0.0.0.0:0".into(),
        }
    }

    /// The command that kills the connection, and only this one: a restarted server gives ids anew, but hardly with the same address.
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
    pub(super) credentials: Option<&'a Credentials>,
    pub(super) fences: &'a [Identity],
    pub(super) address: &'a str,
}

type Fenced = Vec<Result<(), String>>;

impl Handshake<'_> {
    pub(super) async fn perform(
        &self,
        mut stream: Stream,
    ) -> Result<(Stream, ServerFacts, Fenced), ConnectError> {
        let mut wire = Wire::new(&mut stream, self.address);
        let mut first = self.hello();
        self.settle(&mut first);
        let mut replies = wire.exchange(&first).await?;
        let hello = replies.remove(0);
        let mut facts = ServerFacts::default();
        match as_error(&hello) {
            None => read_hello(&hello, &mut facts),
            Some((code, text)) if knows_no_hello(&code, &text) => {
                // Older than Redis 6, or an ACL without HELLO.
                let mut again = self.old_hello();
                let own = again.len();
                self.settle(&mut again);
                replies = wire.exchange(&again).await?;
                for reply in replies.drain(..own) {
                    refused(&reply)?;
                }
                facts.role = "unknown".into();
            }
            Some(_) => refused(&hello)?,
        }
        let fences = self.read_settled(replies, &mut facts)?;
        if self.settings.role == Role::Primary && matches!(facts.role.as_str(), "replica" | "slave")
        {
            return Err(ConnectError::Replica);
        }
        facts.tls = tls_facts(&stream);
        Ok((stream, facts, fences))
    }

    fn hello(&self) -> Vec<Vec<u8>> {
        let protocol = match self.settings.target.protocol {
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
        commands.extend(self.fences.iter().map(Identity::kill));
    }

    fn read_settled(
        &self,
        replies: Vec<Value>,
        facts: &mut ServerFacts,
    ) -> Result<Fenced, ConnectError> {
        let mut replies = replies.into_iter().skip(1);
        let mut next = || replies.next().unwrap_or(Value::Nil);
        let (selected, info, ping, may_kill) = (next(), next(), next(), next());
        // The PING first: LOADING and MASTERDOWN answer everything, and are the better reason.
        if !matches!(as_error(&ping), Some((code, _)) if code == "NOPERM") {
            refused(&ping)?;
        }
        if self.settings.target.db != 0 {
            refused(&selected)?;
        }
        facts.identity = match &info {
            Value::BulkString(text) => parse_identity(&String::from_utf8_lossy(text)),
            Value::VerbatimString { text, .. } => parse_identity(text),
            _ => None,
        };
        facts.fencing = match &facts.identity {
            Some(_) => fence_result(&may_kill),
            None => Err("CLIENT INFO does not tell who this connection is".into()),
        };
        Ok(replies.map(|reply| fence_result(&reply)).collect())
    }
}

/// What a server answered to CLIENT KILL: killed, or gone already, or not allowed.
pub(crate) fn fence_result(reply: &Value) -> Result<(), String> {
    match as_error(reply) {
        Some((code, text)) if !text.contains("No such client") => Err(format!("{code} {text}")),
        _ => Ok(()),
    }
}

fn knows_no_hello(code: &str, text: &str) -> bool {
    code == "ERR" && text.contains("unknown command") || code == "NOPERM" && text.contains("hello")
}

fn as_error(reply: &Value) -> Option<(String, String)> {
    match reply {
        Value::ServerError(error) => Some((
            error.code().to_owned(),
            error.details().unwrap_or_default().to_owned(),
        )),
        _ => None,
    }
}

fn refused(reply: &Value) -> Result<(), ConnectError> {
    let Some((code, text)) = as_error(reply) else {
        return Ok(());
    };
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
            _ => {}
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    }
}

fn parse_identity(info: &str) -> Option<Identity> {
    let field = |name: &str| {
        info.split_whitespace()
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    Some(Identity {
        id: field("id")?.parse().ok()?,
        addr: field("addr")?.to_owned(),
    })
}

fn tls_facts(stream: &Stream) -> Option<String> {
    match stream {
        Stream::Tls(tls) => {
            let (_, session) = tls.get_ref();
            let version = session.protocol_version()?.as_str()?;
            let suite = session.negotiated_cipher_suite()?.suite();
            Some(format!("{version} {}", suite.as_str()?))
        }
        Stream::Tcp(_) | Stream::Unix(_) => None,
    }
}

/// The stream during the handshake: commands out, as many replies in.
struct Wire<'a> {
    stream: &'a mut Stream,
    decoder: Decoder,
    input: BytesMut,
    address: &'a str,
}

impl<'a> Wire<'a> {
    fn new(stream: &'a mut Stream, address: &'a str) -> Self {
        Self {
            stream,
            decoder: Decoder::new(Limits::default()),
            input: BytesMut::with_capacity(4096),
            address,
        }
    }

    async fn exchange(&mut self, commands: &[Vec<u8>]) -> Result<Vec<Value>, ConnectError> {
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
                Err(error) => {
                    return Err(match written {
                        Err(write) if matches!(error, ConnectError::Ended(_)) => {
                            ConnectError::Ended(write.to_string())
                        }
                        _ => error,
                    });
                }
            }
        }
        Ok(replies)
    }

    async fn reply(&mut self) -> Result<Value, ConnectError> {
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
                    return Err(ConnectError::Ended(match self.stream {
                        Stream::Tls(_) => tls::explain(&error),
                        // A TLS server that is told plain text may reset the connection before its alert is read.
                        Stream::Tcp(_) | Stream::Unix(_) => {
                            format!("{error}; if the server speaks TLS on this port, use rediss://")
                        }
                    }));
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

/// The command that gives new credentials to a live connection.
pub(crate) fn auth(credentials: &Credentials) -> Vec<u8> {
    command(&["AUTH", credentials.user(), credentials.password()])
}

fn command(args: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::command(args.iter().map(|arg| arg.as_bytes()), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_from_client_info() {
        let identity = parse_identity("id=7 addr=127.0.0.1:5 laddr=127.0.0.1:6379 fd=8 name=")
            .expect("it has both");
        assert_eq!(identity.id, 7);
        assert_eq!(identity.addr, "127.0.0.1:5");
    }
}
