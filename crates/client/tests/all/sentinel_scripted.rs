//! T2, T3, T16, T17, T22, T25, T26, T31: sentinels that do what no real one can be brought to do in
//! a test: they are wrong, stale, silent or slow. The servers that they name are real.

mod believing;
mod reaching;
mod serving;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::BoxFuture;
use steadfast::{Client, ClientBuilder, ConnectionState, Resolve, SentinelContact};
use steadfast_drill::process::Redis;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::support::{cmd, ms, now, until, until_down_for, until_state};

/// A sentinel that says what the test has it say.
struct Scripted {
    addr: SocketAddr,
    part: Arc<Part>,
    serving: JoinHandle<()>,
}

/// What a scripted sentinel shares with its connections.
struct Part {
    says: Mutex<Says>,
    messages: broadcast::Sender<String>,
    asked: Mutex<Vec<Instant>>,
    listened_to: Mutex<Vec<Instant>>,
}

#[derive(Clone)]
struct Says {
    id: String,
    primary: (String, u16),
    epoch: u64,
    /// The other sentinels: id and address.
    peers: Vec<(String, SocketAddr)>,
    manner: Manner,
}

#[derive(Clone, PartialEq)]
enum Manner {
    Plain,
    /// A byte at a time, and never to the end.
    Drips,
    /// This to everything.
    Only(&'static str),
}

impl Scripted {
    async fn start(id: &str, primary: SocketAddr, epoch: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let part = Arc::new(Part {
            says: Mutex::new(Says {
                id: id.into(),
                primary: (primary.ip().to_string(), primary.port()),
                epoch,
                peers: Vec::new(),
                manner: Manner::Plain,
            }),
            messages: broadcast::Sender::new(16),
            asked: Mutex::default(),
            listened_to: Mutex::default(),
        });
        let serves = Arc::clone(&part);
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(Arc::clone(&serves).serve(stream));
            }
        });
        Self {
            addr,
            part,
            serving,
        }
    }

    /// So many, which know nothing of each other and name this primary.
    async fn several(number: usize, primary: SocketAddr, epoch: u64) -> Vec<Self> {
        let mut all = Vec::new();
        for at in 0..number {
            all.push(Self::start(&format!("id-{at}"), primary, epoch).await);
        }
        all
    }

    fn says(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.part.says.lock().unwrap());
    }

    fn names(&self, primary: SocketAddr, epoch: u64) {
        self.says(|says| {
            says.primary = (primary.ip().to_string(), primary.port());
            says.epoch = epoch;
        });
    }

    /// Tells those that listen.
    fn tells_of_a_switch(&self) {
        let _ = self
            .part
            .messages
            .send("main 127.0.0.1 1 127.0.0.1 2".into());
    }

    fn asked(&self) -> Vec<Instant> {
        self.part.asked.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Part {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let mut messages = None::<broadcast::Receiver<String>>;
        loop {
            let message = async {
                match &mut messages {
                    Some(messages) => messages.recv().await.unwrap(),
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                words = next_command(&mut read) => {
                    let Some(words) = words else { return };
                    if words[0].eq_ignore_ascii_case("SUBSCRIBE") {
                        self.listened_to.lock().unwrap().push(now());
                        messages = Some(self.messages.subscribe());
                    }
                    let says = self.says.lock().unwrap().clone();
                    if words.last().is_some_and(|word| word == "MYID") {
                        self.asked.lock().unwrap().push(now());
                    }
                    let answer = says.answer(&words, messages.is_some());
                    if says.manner == Manner::Drips {
                        for byte in answer.into_bytes() {
                            tokio::time::sleep(ms(100)).await;
                            if write.write_all(&[byte]).await.is_err() {
                                return;
                            }
                        }
                        std::future::pending::<()>().await;
                        return;
                    }
                    answer
                }
                text = message => list(&[bulk("message"), bulk("+switch-master"), bulk(&text)]),
            };
            if write.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

impl Says {
    fn answer(&self, words: &[String], listens: bool) -> String {
        if let Manner::Only(said) = self.manner {
            return format!("{said}\r\n");
        }
        let words: Vec<_> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (host, port) = (&self.primary.0, self.primary.1.to_string());
        match words[..] {
            ["PING"] if listens => list(&[bulk("pong"), bulk("")]),
            ["PING"] => "+PONG\r\n".into(),
            ["AUTH", ..] => "+OK\r\n".into(),
            ["SUBSCRIBE", _] => format!(
                "*3\r\n{}{}:1\r\n",
                bulk("subscribe"),
                bulk("+switch-master")
            ),
            ["SENTINEL", "MYID"] => bulk(&self.id),
            ["SENTINEL", "MASTER", _] => fields(&[
                ("name", "main"),
                ("ip", host),
                ("port", &port),
                ("runid", ""),
                ("flags", "master"),
                ("config-epoch", &self.epoch.to_string()),
                ("num-other-sentinels", &self.peers.len().to_string()),
                ("quorum", "2"),
            ]),
            ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", _] => list(&[bulk(host), bulk(&port)]),
            ["SENTINEL", "SENTINELS", _] => {
                let peers = self.peers.iter().map(|(id, addr)| {
                    let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
                    fields(&[("ip", &ip), ("port", &port), ("runid", id)])
                });
                list(&peers.collect::<Vec<_>>())
            }
            _ => "*0\r\n".into(),
        }
    }
}

async fn next_command(read: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> Option<Vec<String>> {
    let mut line = String::new();
    read.read_line(&mut line)
        .await
        .ok()
        .filter(|read| *read > 0)?;
    let count: usize = line.trim().strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        read.read_line(&mut line).await.ok()?;
        let length: usize = line.trim().strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; length + 2];
        read.read_exact(&mut word).await.ok()?;
        word.truncate(length);
        words.push(String::from_utf8(word).ok()?);
    }
    Some(words)
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn list(items: &[String]) -> String {
    format!("*{}\r\n{}", items.len(), items.concat())
}

fn fields(fields: &[(&str, &str)]) -> String {
    let items: Vec<_> = fields
        .iter()
        .flat_map(|(name, value)| [bulk(name), bulk(value)])
        .collect();
    list(&items)
}

fn builder_of(sentinels: &[Scripted]) -> ClientBuilder {
    let seeds: Vec<_> = sentinels.iter().map(|one| one.addr.to_string()).collect();
    let url = format!("redis-sentinel://{}/main", seeds.join(","));
    Client::builder(&url).unwrap()
}

/// The primary that is believed.
fn believed(client: &Client) -> Option<String> {
    client.status().sentinel.unwrap().primary
}

/// What is known of this sentinel.
fn contact(client: &Client, of: SocketAddr) -> SentinelContact {
    let all = client.status().sentinel.unwrap().sentinels;
    let found = all.into_iter().find(|one| one.address == of.to_string());
    found.expect("it is asked")
}

/// Which of the servers answers a read.
async fn served_by(client: &Client) -> String {
    let own = client.send(&cmd("GET own-address")).await.unwrap();
    redis::from_redis_value(own).unwrap()
}

/// A server that knows its address.
async fn server() -> Redis {
    let redis = Redis::start().await.unwrap();
    let set = ["SET", "own-address", &redis.addr().to_string()];
    redis.command(&set).await.unwrap();
    redis
}

async fn two() -> (Redis, Redis) {
    tokio::join!(server(), server())
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Addresses by name; IP addresses are their own. Another name leads nowhere.
#[derive(Clone, Debug, Default)]
struct Names(Arc<Mutex<HashMap<String, SocketAddr>>>);

impl Names {
    fn leads(&self, name: &str, to: SocketAddr) {
        self.0.lock().unwrap().insert(name.into(), to);
    }
}

impl Resolve for Names {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        let known = self.0.lock().unwrap().get(host).copied();
        let own = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        let found = known.or(own).map(|addr| vec![addr]);
        let found = found.ok_or_else(|| std::io::Error::other("no such name"));
        Box::pin(std::future::ready(found))
    }
}
