//! S9 from outside: a process that is told to end, under load, with callers that read slowly.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use crate::program::{Lines, PATIENCE, signal, steadfast, wait};

/// More than all the buffers on the way can hold.
const LONG: usize = 16 << 20;

/// Asks on one connection, again and again, until it is told that the connection ends with the
/// answer; tells how many answers came.
async fn ask_until_told(server: SocketAddr) -> usize {
    let mut stream = BufReader::new(TcpStream::connect(server).await.unwrap());
    let request = b"GET /v1/queries/quick HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for answered in 1.. {
        stream
            .write_all(request)
            .await
            .expect("the connection was closed without a word");
        let (mut length, mut last, mut first) = (0, false, true);
        loop {
            let mut line = String::new();
            let read = stream.read_line(&mut line).await.unwrap();
            assert_ne!(read, 0, "an accepted request was not answered");
            let line = line.trim_end().to_lowercase();
            assert!(!first || line.starts_with("http/1.1 200"), "{line}");
            first = false;
            last |= line == "connection: close";
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream
            .read_exact(&mut body)
            .await
            .expect("an answer broke off");
        if last {
            return answered;
        }
    }
    0
}

async fn read_slowly(server: SocketAddr) -> usize {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 << 10).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    let request = b"GET /v1/queries/long HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut read = 0;
    loop {
        match stream
            .read(&mut buffer)
            .await
            .expect("an accepted answer broke off")
        {
            0 => return read,
            n => read += n,
        }
        // Some three seconds for all of it: long after the last quick answer.
        tokio::time::sleep(Duration::from_millis(if read % 16 == 0 { 6 } else { 5 })).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_sigterm_under_load_fails_no_accepted_request_however_slowly_its_answer_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("steadfast.toml");
    let text = format!(
        "[redis]\nurl = 'redis://127.0.0.1:1'\n[database]\nurl = 'sqlite://{}'\n[server]\ndrain_limit = '120s'\n\
         [queries.long]\nsql = \"SELECT printf('%.*c', {LONG}, 'x') AS t\"\n[queries.quick]\nsql = 'SELECT 1 AS n'\n",
        folder.path().join("t.db").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = steadfast(&["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = Lines::of(&mut child);
    let first = lines.next();
    let server = first.rsplit_once("://").unwrap().1.parse().unwrap();
    let quick: Vec<_> = (0..8)
        .map(|_| tokio::spawn(ask_until_told(server)))
        .collect();
    let slow: Vec<_> = (0..3).map(|_| tokio::spawn(read_slowly(server))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    signal(child.id(), "TERM");
    for caller in quick {
        let answered = tokio::time::timeout(PATIENCE, caller)
            .await
            .unwrap()
            .unwrap();
        assert!(answered > 10, "hardly any load: {answered}");
    }
    for reader in slow {
        let read = tokio::time::timeout(PATIENCE, reader)
            .await
            .unwrap()
            .unwrap();
        assert!(read > LONG, "only {read} bytes came");
    }
    assert_eq!(wait(&mut child).await, Some(0));
}
