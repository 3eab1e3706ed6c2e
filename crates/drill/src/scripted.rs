//! A server that speaks a script, for what no real one can be brought to do.
//!
//! A client has to survive a peer that is broken or hostile: garbage, half a reply, lengths that
//! promise gigabytes, nesting without end, answers in the wrong order. Each connection gets a
//! script of steps, done one after the other; after the last step the connection stays open and
//! silent, as long as nothing was said about its end.

use bytes::{Bytes, BytesMut};
use redis::Value;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use steadfast_core::resp::Decoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A running scripted server. Dropped, it closes all its connections.
///
/// ```no_run
/// # async fn example() -> std::io::Result<()> {
/// use steadfast_drill::scripted::{Script, Server};
///
/// // Behaves until the first real command, and answers that with half a reply.
/// let script = Script::new().handshake().read(1).send("$10\r\nhalf").close();
/// let server = Server::start(script).await?;
/// println!("{}", server.url());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    seen: Arc<SeenCommands>,
    serving: JoinHandle<()>,
}

/// The server's part on a connection, step by step.
///
/// ```
/// use std::time::Duration;
/// use steadfast_drill::scripted::Script;
///
/// let slow = Script::new().handshake().read(1).pause(Duration::from_secs(1)).send("+OK\r\n");
/// let hostile = [Script::garbage(7), Script::huge_length(1 << 40), Script::deep_nesting(100_000)];
/// let full = Script::max_clients();
/// let mean = Script::new().handshake().read(1).reset();
/// # let _ = (slow, hostile, full, mean);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Script(Vec<Step>);

#[derive(Debug, Clone)]
enum Step {
    Handshake,
    Read(usize),
    ReadBytes(usize),
    Send(Bytes),
    SendForever(Bytes),
    Echo { commands: usize, reversed: bool },
    Pause(Duration),
    Close,
    Reset,
}

#[derive(Debug, Default)]
struct SeenCommands {
    connections: AtomicU64,
    commands: Mutex<Vec<Vec<Vec<u8>>>>,
}

/// Commands that are remembered, at most; later ones are not.
const REMEMBERED: usize = 10_000;

impl Script {
    /// A script without steps: connections are accepted, and nothing is ever said.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers what clients ask before their first command (HELLO, AUTH, CLIENT, SELECT, ROLE,
    /// INFO, PING…) as a healthy primary does, until something else is asked; that is left for the
    /// next step.
    #[must_use]
    pub fn handshake(self) -> Self {
        self.then(Step::Handshake)
    }

    /// Waits for so many commands.
    #[must_use]
    pub fn read(self, commands: usize) -> Self {
        self.then(Step::Read(commands))
    }

    /// Waits for so many bytes, whatever they are.
    #[must_use]
    pub fn read_bytes(self, bytes: usize) -> Self {
        self.then(Step::ReadBytes(bytes))
    }

    /// Sends these bytes.
    #[must_use]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Send(Bytes::copy_from_slice(bytes.as_ref())))
    }

    /// Sends these bytes again and again, as fast as they are taken, until the client goes.
    #[must_use]
    pub fn send_forever(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::SendForever(Bytes::copy_from_slice(bytes.as_ref())))
    }

    /// Waits for so many commands and answers each by its last argument, in their order.
    #[must_use]
    pub fn echo(self, commands: usize) -> Self {
        self.then(Step::Echo {
            commands,
            reversed: false,
        })
    }

    /// The same, in the reverse order: what no server does, and no client can notice.
    #[must_use]
    pub fn echo_reversed(self, commands: usize) -> Self {
        self.then(Step::Echo {
            commands,
            reversed: true,
        })
    }

    /// Waits.
    #[must_use]
    pub fn pause(self, time: Duration) -> Self {
        self.then(Step::Pause(time))
    }

    /// Closes the connection.
    #[must_use]
    pub fn close(self) -> Self {
        self.then(Step::Close)
    }

    /// Resets the connection (RST).
    #[must_use]
    pub fn reset(self) -> Self {
        self.then(Step::Reset)
    }

    /// Does as a server at its `maxclients` does to the next one.
    #[must_use]
    pub fn max_clients() -> Self {
        Self::new()
            .send("-ERR max number of clients reached\r\n")
            .close()
    }

    /// The first command is answered by bytes drawn from the seed.
    #[must_use]
    pub fn garbage(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let garbage: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(4_096).collect();
        Self::new().handshake().read(1).send(garbage)
    }

    /// The first command is answered by a string that claims to have so many bytes, and has few.
    #[must_use]
    pub fn huge_length(claimed: u64) -> Self {
        Self::new()
            .handshake()
            .read(1)
            .send(format!("${claimed}\r\nabc"))
    }

    /// The first command is answered by arrays within arrays.
    #[must_use]
    pub fn deep_nesting(levels: usize) -> Self {
        Self::new()
            .handshake()
            .read(1)
            .send("*1\r\n".repeat(levels))
            .send(":1\r\n")
    }

    /// After the handshake come push messages, without end and whatever is asked.
    #[must_use]
    pub fn endless_pushes() -> Self {
        Self::new()
            .handshake()
            .send_forever(">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n".repeat(100))
    }

    fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }
}

impl Server {
    /// Starts a server on a free port of 127.0.0.1 that does the same on every connection.
    ///
    /// # Errors
    /// When the system has no port left.
    pub async fn start(script: Script) -> std::io::Result<Self> {
        Self::start_each(vec![script]).await
    }

    /// Starts a server with a script for each connection in turn; the last serves all later ones
    /// too.
    ///
    /// # Errors
    /// When the system has no port left.
    pub async fn start_each(scripts: Vec<Script>) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let seen = Arc::new(SeenCommands::default());
        let serving = tokio::spawn(serve(listener, scripts, Arc::clone(&seen)));
        Ok(Self {
            addr,
            seen,
            serving,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `redis://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// The commands that it has read, of all connections, the first 10 000.
    #[must_use]
    pub fn commands(&self) -> Vec<Vec<Vec<u8>>> {
        self.seen
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, scripts: Vec<Script>, seen: Arc<SeenCommands>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                let number = usize::try_from(seen.connections.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                let script = scripts.get(number).or(scripts.last()).cloned().unwrap_or_default();
                let speaker = Speaker { stream, number, read: BytesMut::new(), decoder: Decoder::default(), next: None };
                connections.spawn(speaker.speak(script, Arc::clone(&seen)));
            }
        }
    }
}

/// The server's end of one connection.
struct Speaker {
    stream: TcpStream,
    number: usize,
    read: BytesMut,
    decoder: Decoder,
    /// A command that was read and is left for the next step.
    next: Option<Vec<Vec<u8>>>,
}

impl Speaker {
    async fn speak(mut self, script: Script, seen: Arc<SeenCommands>) {
        let _ = self.stream.set_nodelay(true);
        for step in script.0 {
            if self.take(step, &seen).await.is_none() {
                return;
            }
        }
        while matches!(self.stream.read_buf(&mut self.read).await, Ok(1..)) {
            self.read.clear();
        }
    }

    /// Does one step; nothing when the connection has ended.
    async fn take(&mut self, step: Step, seen: &SeenCommands) -> Option<()> {
        match step {
            Step::Handshake => loop {
                let command = self.command(seen).await?;
                let Some(answer) = greeting(&command, self.number) else {
                    self.next = Some(command);
                    return Some(());
                };
                self.send(answer.as_bytes()).await?;
            },
            Step::Read(commands) => {
                for _ in 0..commands {
                    self.command(seen).await?;
                }
            }
            Step::ReadBytes(bytes) => {
                while self.read.len() < bytes {
                    self.receive().await?;
                }
                let _ = self.read.split_to(bytes);
            }
            Step::Send(bytes) => self.send(&bytes).await?,
            Step::SendForever(bytes) => loop {
                self.send(&bytes).await?;
            },
            Step::Echo { commands, reversed } => self.echo(commands, reversed, seen).await?,
            Step::Pause(time) => tokio::time::sleep(time).await,
            Step::Close => return None,
            Step::Reset => {
                let _ = self.stream.set_zero_linger();
                return None;
            }
        }
        Some(())
    }

    async fn echo(&mut self, commands: usize, reversed: bool, seen: &SeenCommands) -> Option<()> {
        let mut answers = Vec::new();
        for _ in 0..commands {
            let mut command = self.command(seen).await?;
            let last = command.pop().unwrap_or_default();
            let answer = [
                format!("${}\r\n", last.len()).into_bytes(),
                last,
                b"\r\n".to_vec(),
            ]
            .concat();
            if reversed {
                answers.push(answer);
            } else {
                self.send(&answer).await?;
            }
        }
        for answer in answers.iter().rev() {
            self.send(answer).await?;
        }
        Some(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()
    }

    async fn receive(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.read).await.ok()?;
        (read > 0).then_some(())
    }

    async fn command(&mut self, seen: &SeenCommands) -> Option<Vec<Vec<u8>>> {
        if let Some(command) = self.next.take() {
            return Some(command);
        }
        loop {
            let decoded = self.decoder.decode(&self.read).ok()?;
            let _ = self.read.split_to(decoded.consumed);
            if let Some(value) = decoded.value {
                let command = arguments(value);
                let mut commands = seen.commands.lock().unwrap_or_else(PoisonError::into_inner);
                if commands.len() < REMEMBERED {
                    commands.push(command.clone());
                }
                return Some(command);
            }
            self.receive().await?;
        }
    }
}

fn arguments(value: Value) -> Vec<Vec<u8>> {
    let Value::Array(args) = value else {
        return Vec::new();
    };
    let bytes = args.into_iter().map(|arg| match arg {
        Value::BulkString(bytes) => bytes,
        _ => Vec::new(),
    });
    bytes.collect()
}

/// Returns a healthy primary's answer to a command that belongs to a handshake; nothing to any
/// other.
fn greeting(command: &[Vec<u8>], number: usize) -> Option<String> {
    let word = |place: usize| command.get(place).map(|arg| arg.to_ascii_uppercase());
    let answer = match word(0)?.as_slice() {
        b"HELLO" => {
            let fields = hello_fields(number + 1);
            let count = fields.len();
            let header = if word(1).as_deref() == Some(b"3") {
                format!("%{}\r\n", count / 2)
            } else {
                format!("*{count}\r\n")
            };
            header + &fields.concat()
        }
        b"CLIENT" => match word(1).as_deref() {
            Some(b"ID") => format!(":{}\r\n", number + 1),
            Some(b"INFO") => bulk(&format!("id={} addr=127.0.0.1:{number}", number + 1)),
            Some(b"KILL") => ":0\r\n".to_owned(),
            _ => "+OK\r\n".to_owned(),
        },
        b"AUTH" | b"SELECT" | b"READONLY" => "+OK\r\n".to_owned(),
        b"PING" => "+PONG\r\n".to_owned(),
        b"ROLE" => "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".to_owned(),
        b"COMMAND" => "*0\r\n".to_owned(),
        b"INFO" => bulk("redis_version:7.0.0\r\nrole:master\r\nloading:0\r\n"),
        _ => return None,
    };
    Some(answer)
}

fn hello_fields(id: usize) -> [String; 14] {
    let [server, version, proto, mode, role, modules] =
        ["server", "version", "proto", "mode", "role", "modules"].map(bulk);
    let [redis, seven, standalone, master] = ["redis", "7.0.0", "standalone", "master"].map(bulk);
    let (three, id_value, none) = (
        ":3\r\n".to_owned(),
        format!(":{id}\r\n"),
        "*0\r\n".to_owned(),
    );
    [
        server,
        redis,
        version,
        seven,
        proto,
        three,
        bulk("id"),
        id_value,
        mode,
        standalone,
        role,
        master,
        modules,
        none,
    ]
}

fn bulk(text: &str) -> String {
    let mut bulk = format!("${}\r\n", text.len());
    let _ = write!(bulk, "{text}\r\n");
    bulk
}
