//! What several tests need.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use steadfast::credentials::{Credentials, CredentialsError, CredentialsProvider};
use steadfast::{Client, ClientBuilder, ConnectionState, Resolve};
use steadfast_core::slot::Slot;
use steadfast_drill::process::{Cluster, Redis};
use steadfast_drill::proxy::Proxy;
pub(crate) use steadfast_drill::waiting::{eventually, until};

/// A server of the test's own, and a client of it that is connected.
pub(crate) async fn pair() -> (Redis, Client) {
    pair_with(|builder| builder).await
}

pub(crate) async fn pair_with(set: impl FnOnce(ClientBuilder) -> ClientBuilder) -> (Redis, Client) {
    let redis = Redis::start().await.unwrap();
    let builder = Client::builder(&redis.url()).unwrap();
    (redis, connected(set(builder)).await)
}

/// However long that takes on a busy machine.
async fn connected(builder: ClientBuilder) -> Client {
    let client = builder.build().unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

pub(crate) async fn until_state(client: &Client, state: ConnectionState) {
    until(&format!("{state:?}"), || client.status().state == state).await;
}

/// Waits until it cannot connect and says why in these words: it is down as soon as a first attempt
/// takes longer than a blip, and knows why when that has ended.
pub(crate) async fn until_down_for(client: &Client, words: &str) {
    until_state(client, ConnectionState::Down).await;
    until(words, || {
        let error = client.status().last_error.unwrap_or_default();
        error.contains(words)
    })
    .await;
}

pub(crate) fn cmd(words: &str) -> redis::Cmd {
    let mut cmd = redis::Cmd::new();
    for word in words.split_whitespace() {
        cmd.arg(word);
    }
    cmd
}

/// Values of every size go and come back whole, many at a time: those that share a buffer, those
/// that have their own, and all of them in one pipeline.
pub(crate) async fn values_come_back_as_they_went(client: &Client) {
    let sizes = [
        0,
        1 << 10,
        (16 << 10) - 40,
        16 << 10,
        (64 << 10) + 1,
        300 << 10,
        3 << 20,
    ];
    let value = |number: usize| {
        let size = sizes[number % sizes.len()];
        let text: Vec<u8> = (0..size).map(|at| (at / 97 + number) as u8).collect();
        text
    };
    let options = steadfast::CallOptions::new().deadline(Duration::from_secs(30));
    let client = client.with(options);
    let tasks: Vec<_> = (0..3 * sizes.len())
        .map(|number| {
            let (client, value) = (client.clone(), value(number));
            tokio::spawn(async move {
                let key = format!("value {number}");
                for _ in 0..3 {
                    let set = redis::cmd("SET").arg(&key).arg(&value).to_owned();
                    client.send(&set).await.unwrap();
                    let got = client.send(redis::cmd("GET").arg(&key)).await.unwrap();
                    assert!(got == redis::Value::BulkString(value.clone()), "{key}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut pipeline = redis::pipe();
    for number in 0..sizes.len() {
        pipeline.cmd("SET").arg(number).arg(value(number));
        pipeline.cmd("GET").arg(number);
    }
    let replies = client.send_pipeline(&pipeline).await.unwrap();
    for (number, reply) in replies.iter().skip(1).step_by(2).enumerate() {
        assert!(
            *reply == redis::Value::BulkString(value(number)),
            "{number}"
        );
    }
}

/// A server behind a proxy, and a client that is connected through it.
pub(crate) async fn proxied(
    set: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> (Redis, Proxy, Client) {
    let redis = Redis::start().await.unwrap();
    let proxy = Proxy::builder()
        .resp(true)
        .start(redis.addr())
        .await
        .unwrap();
    let builder = Client::builder(&format!("redis://{}", proxy.addr())).unwrap();
    let client = connected(set(builder)).await;
    (redis, proxy, client)
}

/// How often an event of this name has happened.
pub(crate) fn seen(client: &Client, name: &str) -> usize {
    client
        .history()
        .iter()
        .filter(|event| event.kind.name() == name)
        .count()
}

pub(crate) async fn until_seen(client: &Client, name: &str) {
    until(name, || seen(client, name) > 0).await;
}

/// `make soak` runs the long forms.
pub(crate) fn soaking() -> bool {
    std::env::var_os("STEADFAST_SOAK").is_some()
}

/// Returns how many connections are abandoned, one after another.
pub(crate) fn rounds() -> usize {
    if soaking() { 200 } else { 20 }
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A name whose address changes.
#[derive(Clone, Debug)]
pub(crate) struct Name(Arc<Mutex<SocketAddr>>);

impl Name {
    pub(crate) fn at(addr: SocketAddr) -> Self {
        Self(Arc::new(Mutex::new(addr)))
    }

    pub(crate) fn moves_to(&self, addr: SocketAddr) {
        *self.0.lock().unwrap() = addr;
    }
}

impl Resolve for Name {
    fn resolve(&self, _host: &str, _port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        let addr = *self.0.lock().unwrap();
        Box::pin(std::future::ready(Ok(vec![addr])))
    }
}

/// Blocks the thread, and with it the runtime of a client.
#[expect(
    clippy::disallowed_methods,
    reason = "code that blocks the runtime of the client"
)]
pub(crate) fn stand_still(time: Duration) {
    std::thread::sleep(time);
}

/// What code of others does that has a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Then {
    Hang,
    Fail,
    Panic,
    Block,
}

pub(crate) fn misbehave(then: Then, for_so_long: Duration) -> BoxFuture<'static, std::io::Error> {
    match then {
        Then::Hang => Box::pin(std::future::pending()),
        Then::Fail => Box::pin(std::future::ready(std::io::Error::other("no such name"))),
        Then::Panic => panic_in_silence("a provider's own mistake"),
        Then::Block => Box::pin(async move {
            block(for_so_long);
            std::io::Error::other("too late")
        }),
    }
}

/// Prints nothing: a backtrace takes a busy machine a second, for which this thread stands still
/// and all that would print one too.
fn panic_in_silence(message: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(message))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a provider that blocks its thread"
)]
fn block(for_so_long: Duration) {
    std::thread::sleep(for_so_long);
}

/// A provider, a resolver and a translation of addresses that have one fault, the first time that
/// they are asked.
#[derive(Clone, Debug)]
pub(crate) struct Faulty {
    then: Then,
    asked: Arc<AtomicBool>,
    /// Whether the thread that it keeps is let go.
    is_over: Arc<AtomicBool>,
    /// Where every name leads.
    leads: SocketAddr,
}

impl Faulty {
    pub(crate) fn new(then: Then, leads: SocketAddr) -> Self {
        Self {
            then,
            asked: Arc::default(),
            is_over: Arc::default(),
            leads,
        }
    }

    /// Lets the thread go that it keeps.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Keeps its thread until it is told to let it go, or for longer than the test has patience.
    fn keep_its_thread(&self) {
        let begun = now();
        while !self.is_over.load(Ordering::Relaxed) && now() - begun < ms(60_000) {
            block(ms(5));
        }
    }

    async fn fault(&self) -> Option<std::io::Error> {
        let first = !self.asked.swap(true, Ordering::Relaxed);
        match (first, self.then) {
            (false, _) => None,
            (true, Then::Block) => {
                self.keep_its_thread();
                Some(std::io::Error::other("too late"))
            }
            (true, then) => Some(misbehave(then, Duration::ZERO).await),
        }
    }

    pub(crate) fn translate(&self, host: &str, port: u16) -> (String, u16) {
        let first = !self.asked.swap(true, Ordering::Relaxed);
        match self.then {
            Then::Panic => panic_in_silence("a translation's own mistake"),
            Then::Block if first => self.keep_its_thread(),
            _ => {}
        }
        (host.to_owned(), port)
    }
}

impl Resolve for Faulty {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        let own = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        Box::pin(async move {
            if let Some(own) = own {
                return Ok(vec![own]);
            }
            self.fault().await.map_or(Ok(vec![self.leads]), Err)
        })
    }
}

impl CredentialsProvider for Faulty {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(async move {
            let fault = self.fault().await;
            let error = fault.map(|error| CredentialsError::new(error.to_string()));
            error.map_or(Ok(Credentials::new("app", "pw")), Err)
        })
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

/// Has a runtime look at its timers and sockets, whatever some of its threads do. Else that is for
/// the thread that waited for them last: if it comes to keep a task that never yields, tokio has no
/// other take its place until one is woken from without.
pub(crate) struct KeptAwake(Arc<AtomicBool>);

impl KeptAwake {
    pub(crate) fn here() -> Self {
        let runtime = tokio::runtime::Handle::current();
        let is_over = Arc::<AtomicBool>::default();
        let ends = Arc::clone(&is_over);
        std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                drop(runtime.spawn(async {}));
                block(ms(10));
            }
        });
        Self(is_over)
    }
}

impl Drop for KeptAwake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn slot(key: &str) -> u16 {
    Slot::of_key(key.as_bytes()).number()
}

/// A key of this node.
pub(crate) async fn key_of(cluster: &Cluster, node: usize, name: &str) -> String {
    let layout = cluster.layout().await.unwrap();
    let mut keys = (0..).map(|n| format!("{name}:{n}"));
    let is_there = |key: &String| layout.owner(slot(key)) == Some(cluster.node(node).id());
    keys.find(is_there).unwrap()
}
