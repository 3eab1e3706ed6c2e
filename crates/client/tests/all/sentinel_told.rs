//! T17: a switch that a sentinel tells of, played by a sentinel that says what the test wants.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steadfast::Client;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

use crate::support::{ms, now, until};

/// Names a primary at which nobody listens, so that the client asks again and again.
struct Sentinel {
    asked: Arc<Mutex<Vec<Instant>>>,
    tell: broadcast::Sender<()>,
    port: u16,
}

impl Sentinel {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (tell, _) = broadcast::channel(8);
        let (seen, told) = (Arc::clone(&asked), tell.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&seen), told.subscribe()));
            }
        });
        Self { asked, tell, port }
    }

    fn asked(&self) -> Vec<Instant> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(
    stream: TcpStream,
    asked: Arc<Mutex<Vec<Instant>>>,
    mut told: broadcast::Receiver<()>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut listens = false;
    loop {
        let words = tokio::select! {
            words = request(&mut read) => words?,
            Ok(()) = told.recv(), if listens => {
                let switch = "main 127.0.0.1 1 127.0.0.1 2";
                let message = format!(
                    "*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n${}\r\n{switch}\r\n",
                    switch.len()
                );
                write.write_all(message.as_bytes()).await?;
                continue;
            }
        };
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let reply = match &words[..] {
            ["SUBSCRIBE", ..] => {
                listens = true;
                "*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n".to_owned()
            }
            ["PING"] => array(&["pong", ""]),
            ["SENTINEL", "MYID"] => "$4\r\nself\r\n".into(),
            ["SENTINEL", "MASTER", _] => array(&[
                "flags",
                "master",
                "config-epoch",
                "1",
                "runid",
                "",
                "num-other-sentinels",
                "0",
                "quorum",
                "1",
            ]),
            ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", _] => {
                asked.lock().unwrap().push(now());
                array(&["127.0.0.1", "1"])
            }
            _ => "*0\r\n".into(),
        };
        write.write_all(reply.as_bytes()).await?;
    }
}

fn array(words: &[&str]) -> String {
    let words = words
        .iter()
        .map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), words.collect::<String>())
}

async fn request(
    read: &mut BufReader<tokio::net::tcp::OwnedReadHalf>,
) -> std::io::Result<Vec<String>> {
    let count = number(read).await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(read).await?;
        let mut word = vec![0; length + 2];
        read.read_exact(&mut word).await?;
        word.truncate(length);
        words.push(String::from_utf8(word).unwrap());
    }
    Ok(words)
}

async fn number(read: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> std::io::Result<usize> {
    let mut line = String::new();
    read.read_line(&mut line).await?;
    let number = line.trim_end().get(1..).and_then(|text| text.parse().ok());
    number.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

#[tokio::test]
async fn t17_a_switch_that_is_told_is_asked_after_at_once_however_often_was_asked_before() {
    let sentinel = Sentinel::start().await;
    let url = format!("redis-sentinel://127.0.0.1:{}/main", sentinel.port);
    let _client = Client::builder(&url).unwrap().build().unwrap();
    // An outage: each attempt to connect fails at once and wants to know where the primary is.
    // These questions become rare.
    let patient = ms(700);
    until("it asks more rarely", || {
        let asked = sentinel.asked();
        asked
            .windows(2)
            .any(|two| two[1].duration_since(two[0]) > patient)
    })
    .await;
    let (before, told) = (sentinel.asked().len(), now());
    sentinel.tell.send(()).unwrap();
    until("it asks", || sentinel.asked().len() > before).await;
    let after = sentinel.asked()[before].duration_since(told);
    assert!(after < Duration::from_millis(300), "only after {after:?}");
}
