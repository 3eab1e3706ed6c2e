//! A real server on a unix socket of its own, spoken to with the codec under test.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::redis::Value;
use steadfast_core::resp::{Decoder, encode};

pub(crate) struct Server {
    process: Child,
    dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Command::new("redis-server")
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--enable-debug-command",
                "yes",
                "--unixsocket",
            ])
            .arg(dir.path().join("redis.sock"))
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server is installed");
        let mut log = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = log
            .by_ref()
            .any(|line| line.unwrap().contains("ready to accept connections"));
        assert!(ready, "redis-server did not start");
        // Its log goes on, and must not fill the pipe.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, dir }
    }

    pub(crate) fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.dir.path().join("redis.sock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Connection {
            stream,
            decoder: Decoder::default(),
            buffer: Vec::new(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn send(&mut self, args: &[Vec<u8>]) -> Value {
        let mut out = Vec::new();
        encode::command(args.iter().map(Vec::as_slice), &mut out);
        self.stream.write_all(&out).unwrap();
        loop {
            let decoded = self.decoder.decode(&self.buffer).unwrap();
            self.buffer.drain(..decoded.consumed);
            if let Some(value) = decoded.value {
                return value;
            }
            let mut part = [0; 16_384];
            let n = self.stream.read(&mut part).unwrap();
            assert!(n > 0, "the server closed the connection");
            self.buffer.extend_from_slice(&part[..n]);
        }
    }

    pub(crate) fn words(&mut self, text: &str) -> Value {
        self.send(
            &text
                .split(' ')
                .map(|word| word.as_bytes().to_vec())
                .collect::<Vec<_>>(),
        )
    }
}
