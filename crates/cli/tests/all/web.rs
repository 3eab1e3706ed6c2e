//! Asks by HTTP/1.1 as `curl` does: one connection for each request, so that an answer is as slow
//! as a newcomer sees it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// GET; fails the test if the server cannot be reached or does not end its answer.
pub(crate) async fn get(server: SocketAddr, path: &str) -> Answer {
    get_with(server, path, "").await
}

/// GET with more lines in its head, each ended by CR LF.
pub(crate) async fn get_with(server: SocketAddr, path: &str, more: &str) -> Answer {
    let began = Instant::now();
    let mut stream = TcpStream::connect(server).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let took = began.elapsed();

    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("not HTTP: {text:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| panic!("not HTTP: {head:?}"));
    let head = head.to_ascii_lowercase();
    assert!(
        !head.contains("transfer-encoding: chunked"),
        "this small client does not read chunks: {head}"
    );
    Answer {
        status,
        head,
        body: body.to_owned(),
        took,
    }
}
