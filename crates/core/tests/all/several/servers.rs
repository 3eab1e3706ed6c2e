//! Real servers on TCP ports of their own, as nodes of clusters and as sentinels.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::resp::{Decoder, encode};

pub(super) const HOST: &str = "127.0.0.1";

/// Generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for a fact.
pub(super) fn until<T>(fact: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "it never came that {fact}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) struct Node {
    process: Child,
    pub(super) port: u16,
    _dir: tempfile::TempDir,
}

impl Node {
    /// Starts a server with these settings. Ports that were free may be taken meanwhile; then it is
    /// tried with others.
    pub(super) fn start(settings: &[&str]) -> Self {
        Self::start_from(|_| settings.iter().map(ToString::to_string).collect())
    }

    pub(super) fn cluster_node() -> Self {
        Self::start_from(|spare| {
            let spare = spare.to_string();
            let settings = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &spare,
                "--cluster-node-timeout",
                "3000",
                "--cluster-replica-validity-factor",
                "0",
                "--cluster-allow-replica-migration",
                "no",
                "--cluster-require-full-coverage",
                "no",
                "--cluster-announce-ip",
                HOST,
                "--repl-diskless-sync-delay",
                "0",
            ];
            settings.map(ToString::to_string).to_vec()
        })
    }

    pub(super) fn sentinel(primary: u16) -> Self {
        Self::start_from(|_| {
            // Before the settings comes the file, which it writes to.
            let lines = format!(
                "sentinel monitor main {HOST} {primary} 2\n\
                 sentinel down-after-milliseconds main 60000\n\
                 sentinel failover-timeout main 60000\n"
            );
            vec!["--sentinel".to_owned(), lines]
        })
    }

    fn start_from(settings: impl Fn(u16) -> Vec<String>) -> Self {
        for _ in 0..20 {
            if let Some(node) = Self::try_start(&settings) {
                return node;
            }
        }
        panic!("redis-server did not start on any of 20 ports")
    }

    fn try_start(settings: &impl Fn(u16) -> Vec<String>) -> Option<Self> {
        let free = [0, 0].map(|_: i32| TcpListener::bind((HOST, 0)).unwrap());
        let [port, spare] = free.map(|listener| listener.local_addr().unwrap().port());
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(spare);
        let mut command = Command::new("redis-server");
        if settings[0] == "--sentinel" {
            let file = dir.path().join("sentinel.conf");
            std::fs::write(&file, settings.remove(1)).unwrap();
            command.arg(file);
        } else {
            command.args(["--save", ""]);
        }
        command
            .args(["--port", &port.to_string(), "--bind", HOST, "--dir"])
            .arg(dir.path())
            .args(settings)
            .stdout(Stdio::null());
        let mut node = Self {
            process: command.spawn().expect("redis-server is installed"),
            port,
            _dir: dir,
        };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && node.process.try_wait().unwrap().is_none() {
            // Somebody else's server may have the port.
            let own = format!("process_id:{}\r\n", node.process.id());
            let answers = Connection::try_to(port).and_then(|mut own| own.try_words("INFO server"));
            if answers.is_some_and(|info| text(&info).contains(&own)) {
                return Some(node);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    pub(super) fn connect(&self) -> Connection {
        until("a server accepts connections", || {
            Connection::try_to(self.port)
        })
    }

    /// One command on a connection of its own.
    pub(super) fn ask(&self, words: &str) -> Value {
        self.connect().words(words)
    }

    pub(super) fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        let done = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Connection {
    fn try_to(port: u16) -> Option<Self> {
        let stream = TcpStream::connect((HOST, port)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .ok()?;
        Some(Self {
            stream,
            decoder: Decoder::default(),
            buffer: Vec::new(),
        })
    }

    pub(super) fn words(&mut self, text: &str) -> Value {
        self.try_words(text).expect("the server answers")
    }

    pub(super) fn args(&mut self, args: &[&[u8]]) -> Value {
        self.try_args(args).expect("the server answers")
    }

    fn try_words(&mut self, text: &str) -> Option<Value> {
        let args: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
        self.try_args(&args)
    }

    fn try_args(&mut self, args: &[&[u8]]) -> Option<Value> {
        let mut out = Vec::new();
        encode::command(args.iter().copied(), &mut out);
        self.stream.write_all(&out).ok()?;
        loop {
            let decoded = self.decoder.decode(&self.buffer).ok()?;
            self.buffer.drain(..decoded.consumed);
            if let Some(value) = decoded.value {
                return Some(value);
            }
            let mut part = [0; 16_384];
            match self.stream.read(&mut part).ok()? {
                0 => return None,
                n => self.buffer.extend_from_slice(&part[..n]),
            }
        }
    }
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        Value::Okay => "OK".to_owned(),
        Value::ServerError(error) => {
            format!("-{} {}", error.code(), error.details().unwrap_or_default())
        }
        other => format!("{other:?}"),
    }
}
