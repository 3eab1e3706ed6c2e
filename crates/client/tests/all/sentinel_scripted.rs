//! T2, T3, T16, T17, T22, T25, T26, T31: sentinels that do what no real one can be brought to do in
//! a test: they are wrong, stale, silent or slow. The servers that they name are real.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use steadfast::{
    Backoff, Certainty, Client, ClientBuilder, ConnectionState, ErrorKind, Resolve, SentinelContact,
};
use steadfast_drill::process::Redis;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::support::{Faulty, KeptAwake, Then, cmd, ms, now, until, until_down_for, until_state};

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

#[tokio::test]
async fn t3_t17_a_stale_sentinel_is_left_as_soon_as_a_newer_epoch_is_told_and_never_returned_to() {
    let (old, new) = two().await;
    let stale = Scripted::start("stale", old.addr(), 3).await;
    let second = Scripted::start("second", new.addr(), 7).await;
    second.says(|says| says.manner = Manner::Only("-LOADING not yet"));
    let sentinels = [stale, second];
    let builder = builder_of(&sentinels).deadline(ms(5_000));
    // Asked often, so that the test need not wait.
    let client = builder.primary_proof(ms(1_000)).connect().await.unwrap();
    assert_eq!(served_by(&client).await, old.addr().to_string());
    sentinels[1].says(|says| says.manner = Manner::Plain);
    let [stale, second] = sentinels;
    until("the newer one is believed", || {
        believed(&client) == Some(new.addr().to_string())
    })
    .await;
    assert_eq!(served_by(&client).await, new.addr().to_string());
    // The stale one goes on telling what it knows, and the newer one is away.
    second.says(|says| says.manner = Manner::Only("-LOADING not now"));
    let asked = stale.asked().len();
    until("it is asked again and again", || {
        stale.asked().len() > asked + 5
    })
    .await;
    assert_eq!(believed(&client), Some(new.addr().to_string()));
    assert!(contact(&client, stale.addr).dissents);
}

#[tokio::test]
async fn t17_a_switch_of_which_no_message_tells_is_found_by_asking() {
    let (old, new) = two().await;
    let sentinels = Scripted::several(3, old.addr(), 1).await;
    let builder = builder_of(&sentinels).deadline(ms(5_000));
    let client = builder.primary_proof(ms(1_500)).connect().await.unwrap();
    assert_eq!(served_by(&client).await, old.addr().to_string());
    // The old one lives and answers: nothing but their answers says that it is deposed.
    for sentinel in &sentinels {
        sentinel.names(new.addr(), 2);
    }
    until("it is found", || {
        believed(&client) == Some(new.addr().to_string())
    })
    .await;
    assert_eq!(served_by(&client).await, new.addr().to_string());
}

#[tokio::test]
async fn t17_a_message_of_a_switch_does_not_wait_for_how_often_they_were_asked_in_vain() {
    // Nobody serves, so that they are wanted again and again.
    let sentinels = Scripted::several(5, nobody().await, 1).await;
    let client = builder_of(&sentinels).build().unwrap();
    until("all are listened to, and asked ever less often", || {
        let rarely = |one: &Scripted| {
            let asked = one.asked();
            let gaps = asked.windows(2).map(|two| two[1].duration_since(two[0]));
            one.part.messages.receiver_count() > 0 && gaps.max() > Some(ms(700))
        };
        sentinels.iter().all(rarely)
    })
    .await;
    let told = now();
    for sentinel in &sentinels {
        sentinel.tells_of_a_switch();
    }
    let after = |one: &Scripted| one.asked().into_iter().find(|at| *at > told);
    until("all are asked", || {
        sentinels.iter().all(|one| after(one).is_some())
    })
    .await;
    let mut waited: Vec<_> = sentinels
        .iter()
        .filter_map(after)
        .map(|at| at.duration_since(told))
        .collect();
    waited.sort();
    // The middle one: a busy machine holds up one or the other.
    assert!(waited[2] < ms(250), "{waited:?}");
    drop(client);
}

#[tokio::test]
async fn t3_sentinels_that_disagree_at_one_epoch_change_nothing_until_a_majority_agrees() {
    let (one, other) = two().await;
    let sentinels = Scripted::several(3, one.addr(), 4).await;
    let builder = builder_of(&sentinels).deadline(ms(5_000));
    let client = builder.primary_proof(ms(1_500)).connect().await.unwrap();
    let other_port = other.addr();
    sentinels[0].names(other_port, 4);
    until("one dissents", || {
        contact(&client, sentinels[0].addr).dissents
    })
    .await;
    assert_eq!(believed(&client), Some(one.addr().to_string()));
    // A third one, of whom nobody knows anything: none of the three has a majority.
    sentinels[1].names(nobody().await, 4);
    until("two dissent", || {
        contact(&client, sentinels[1].addr).dissents
    })
    .await;
    assert_eq!(believed(&client), Some(one.addr().to_string()));
    assert_eq!(served_by(&client).await, one.addr().to_string());
    sentinels[1].names(other_port, 4);
    until("two of three", || {
        believed(&client) == Some(other_port.to_string())
    })
    .await;
    assert_eq!(served_by(&client).await, other_port.to_string());
}

#[tokio::test]
async fn t17_t31_sentinels_that_drip_know_nothing_or_name_what_is_no_name_cost_only_themselves() {
    let primary = server().await;
    // Five of nine are well, which is a majority.
    let mut sentinels = Scripted::several(9, primary.addr(), 1).await;
    sentinels[1].says(|says| says.manner = Manner::Drips);
    let ignorant =
        "-IDONTKNOW I have not enough information to reply. Please ask another Sentinel.";
    sentinels[2].says(|says| says.manner = Manner::Only(ignorant));
    sentinels[3].says(|says| says.primary = ("nowhere.invalid".into(), 6379));
    // It promises more than a sentinel has to say.
    sentinels[4].says(|says| says.manner = Manner::Only("$9000000000"));
    let client = builder_of(&sentinels)
        .resolver(Names::default())
        .connect_timeout(ms(500))
        .deadline(ms(5_000))
        .connect()
        .await
        .unwrap();
    assert_eq!(served_by(&client).await, primary.addr().to_string());
    for (at, words) in [
        (1, "took longer than 500ms"),
        (2, "IDONTKNOW I have not enough information"),
        (4, "is larger than the limit"),
    ] {
        let said = || {
            contact(&client, sentinels[at].addr)
                .error
                .unwrap_or_default()
        };
        until(words, || said().contains(words)).await;
        assert!(!said().contains("not a sentinel"), "{}", said());
    }
    assert!(contact(&client, sentinels[3].addr).dissents);
    assert_eq!(believed(&client), Some(primary.addr().to_string()));

    // All of them name what does not resolve: that is said, and over when it does.
    sentinels.truncate(1);
    sentinels[0].says(|says| says.primary = ("moved.invalid".into(), 1));
    let names = Names::default();
    let client = builder_of(&sentinels)
        .resolver(names.clone())
        .build()
        .unwrap();
    until_down_for(&client, "moved.invalid").await;
    names.leads("moved.invalid", primary.addr());
    until_state(&client, ConnectionState::Ready).await;
}

/// A name that stands for all of these; IP addresses are their own.
#[derive(Debug)]
struct Several(Vec<SocketAddr>);

impl Resolve for Several {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        let own = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        let found = own.map_or_else(|| self.0.clone(), |own| vec![own]);
        Box::pin(std::future::ready(Ok(found)))
    }
}

#[tokio::test]
async fn c8_t17_of_several_addresses_of_a_sentinel_the_one_that_answers_wins_whatever_comes_first()
{
    let primary = server().await;
    // It accepts, and never answers.
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ignorant = Scripted::start("ignorant", primary.addr(), 1).await;
    ignorant.says(|says| says.manner = Manner::Only("*-1"));
    let yes = Scripted::start("says yes", primary.addr(), 1).await;
    yes.says(|says| says.manner = Manner::Only("+OK"));
    let well = Scripted::start("well", primary.addr(), 1).await;
    let unwell = [
        frozen.local_addr().unwrap(),
        primary.addr(),
        ignorant.addr,
        yes.addr,
    ];
    for first in 0..unwell.len() {
        let mut addresses = unwell.to_vec();
        addresses.rotate_left(first);
        addresses.push(well.addr);
        let client = Client::builder("redis-sentinel://the-name/main")
            .unwrap()
            .resolver(Several(addresses))
            .deadline(ms(8_000))
            .connect()
            .await
            .unwrap();
        assert_eq!(served_by(&client).await, primary.addr().to_string());
    }
    // If none of them is one, the one that says most is quoted.
    let client = Client::builder("redis-sentinel://the-name/main")
        .unwrap()
        .resolver(Several(unwell.to_vec()))
        .build()
        .unwrap();
    let said = || client.status().sentinel.unwrap().sentinels[0].error.clone();
    until("it is said", || {
        said().is_some_and(|said| said.contains("not a sentinel"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn c8_t17_what_others_wrote_may_hang_panic_or_keep_its_thread_and_sentinels_are_asked() {
    let _awake = KeptAwake::here();
    let primary = server().await;
    let sentinel = Scripted::start("well", primary.addr(), 1).await;
    let finds = async |then: Then, of: &'static str| {
        let faulty = Faulty::new(then, sentinel.addr);
        let fault = faulty.clone();
        let builder = Client::builder("redis-sentinel://the-name/main").unwrap();
        let builder = builder.connect_timeout(ms(200)).heartbeat(ms(50));
        let client = match of {
            "provider" => builder
                .resolver(Several(vec![sentinel.addr]))
                .sentinel_credentials_from(faulty),
            "resolver" => builder.resolver(faulty),
            _ => builder
                .resolver(Several(vec![sentinel.addr]))
                .translate_addresses(move |host, port| faulty.translate(host, port)),
        };
        let client = client.build().unwrap();
        let counted = then == Then::Block || then == Then::Panic && of != "translation";
        if counted {
            until(&format!("{then:?} {of} is counted"), || {
                client.status().stuck_resets > 0
            })
            .await;
        }
        // What keeps its thread keeps its place, too: nobody is asked there until it has ended.
        fault.end();
        until_state(&client, ConnectionState::Ready).await;
        assert_eq!(served_by(&client).await, primary.addr().to_string());
        until("what the primary tells of its replicas is known", || {
            client.status().sentinel.unwrap().replicas_known
        })
        .await;
        (client, counted, (then, of))
    };
    let parts = ["provider", "resolver", "translation"];
    let cases = [Then::Hang, Then::Panic, Then::Block];
    let cases = cases
        .into_iter()
        .flat_map(|then| parts.map(|of| finds(then, of)));
    // What keeps its thread is counted last: nothing else was by then.
    for (client, counted, of) in futures_util::future::join_all(cases).await {
        let resets = client.status().stuck_resets;
        assert_eq!(resets > 0, counted, "{of:?}: {resets}");
    }
}

#[tokio::test]
async fn c19_t19_writes_after_the_process_stood_still_wait_for_the_sentinels_in_their_order() {
    let primary = server().await;
    let sentinels = Scripted::several(3, primary.addr(), 1).await;
    let builder = builder_of(&sentinels).deadline(ms(20_000));
    let builder = builder.reconnect_grace(ms(5_000)).primary_proof(ms(1_000));
    let client = builder.connect().await.unwrap();
    client.send(&cmd("SET k v")).await.unwrap();
    for _ in 0..2 {
        crate::support::stand_still(ms(1_500));
        let pushes: Vec<_> = (0..20).map(|n| cmd(&format!("RPUSH list {n}"))).collect();
        let pushed = pushes.iter().map(|push| client.send(push));
        let pushed = futures_util::future::join_all(pushed).await;
        let at = pushed
            .into_iter()
            .map(|at| redis::from_redis_value::<u64>(at.unwrap()).unwrap());
        assert_eq!(at.collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
        client.send(&cmd("DEL list")).await.unwrap();
    }
    // Once nobody confirms it for longer than that, they are refused, and at once.
    for sentinel in &sentinels {
        sentinel.says(|says| says.manner = Manner::Only("-LOADING not now"));
    }
    until("a write is refused", || {
        let age = client.status().sentinel.unwrap().confirmed_ms_ago;
        age.is_some_and(|age| age > 1_000.0)
    })
    .await;
    let refused = client.send(&cmd("SET k v")).await.unwrap_err();
    assert!(
        matches!(refused.kind(), ErrorKind::Unproven { .. }),
        "{refused}"
    );
    let begun = now();
    client.send(&cmd("SET k v")).await.unwrap_err();
    assert!(now() - begun < ms(4_000), "it waits no more");
}

#[tokio::test]
async fn c16_a_sentinel_that_answers_auth_by_anything_but_ok_is_none() {
    let primary = server().await;
    let sentinel = Scripted::start("odd", primary.addr(), 1).await;
    sentinel.says(|says| says.manner = Manner::Only("+QUEUED"));
    let url = format!(
        "redis-sentinel://{}/main?sentinel_password=secret",
        sentinel.addr
    );
    let client = Client::builder(&url).unwrap().build().unwrap();
    until("it is said", || {
        let said = contact(&client, sentinel.addr).error.unwrap_or_default();
        said.contains("answers AUTH by what is no answer")
    })
    .await;
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

#[tokio::test]
async fn t2_when_all_addresses_change_service_is_back_once_a_seed_s_name_leads_to_a_sentinel() {
    let (old, new) = two().await;
    let names = Names::default();
    let first = Scripted::start("first", old.addr(), 1).await;
    names.leads("watch.test", first.addr);
    let client = Client::builder("redis-sentinel://watch.test/main")
        .unwrap()
        .resolver(names.clone())
        .connect()
        .await
        .unwrap();
    assert_eq!(served_by(&client).await, old.addr().to_string());
    // All of them are gone at once: the sentinel, and the primary. And nothing of the new ones is
    // newer by its epoch: they were made anew.
    drop(first);
    old.kill().await;
    until_state(&client, ConnectionState::Down).await;
    let second = Scripted::start("second", new.addr(), 1).await;
    names.leads("watch.test", second.addr);
    until_state(&client, ConnectionState::Ready).await;
    assert_eq!(served_by(&client).await, new.addr().to_string());
    assert_eq!(believed(&client), Some(new.addr().to_string()));
}

#[tokio::test]
async fn t16_only_a_server_that_says_itself_that_it_is_a_primary_serves_and_readonly_asks_at_once()
{
    let (first, second) = two().await;
    let replica_of = async |server: &Redis, of: Option<&Redis>| {
        let port = of.map_or("ONE".into(), |of| of.port().to_string());
        let host = if of.is_some() { "127.0.0.1" } else { "NO" };
        server.command(&["REPLICAOF", host, &port]).await.unwrap();
    };
    replica_of(&first, Some(&second)).await;
    let sentinels = Scripted::several(1, first.addr(), 1).await;
    let builder = builder_of(&sentinels).deadline(ms(5_000));
    let client = builder.build().unwrap();
    until_down_for(&client, "replica").await;
    replica_of(&first, None).await;
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("INCR n")).await.unwrap();
    // One that would wait long between two attempts.
    let minutes = Duration::from_secs(600);
    let client = builder_of(&sentinels)
        .reconnect(Backoff::full_jitter(minutes, minutes))
        .wait_for_primary(Duration::from_secs(20))
        .deadline(Duration::from_secs(20))
        .connect()
        .await
        .unwrap();
    // It is demoted behind the client's back: READONLY is a reason to ask at once, though no
    // message tells of anything.
    replica_of(&second, None).await;
    replica_of(&first, Some(&second)).await;
    let asked = sentinels[0].asked().len();
    let moved = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("INCR n")).await }
    });
    until("they are asked", || sentinels[0].asked().len() > asked).await;
    let said = || client.status().last_error.unwrap_or_default();
    until("it finds a replica", || said().contains("replica")).await;
    // And another primary is a reason not to wait any longer, and one more again.
    let gone = nobody().await;
    sentinels[0].names(gone, 2);
    sentinels[0].tells_of_a_switch();
    until("it is dialled", || said().contains(&gone.to_string())).await;
    sentinels[0].names(second.addr(), 3);
    sentinels[0].tells_of_a_switch();
    moved.await.unwrap().expect("it goes to the new one");
    let n = second.command(&["GET", "n"]).await.unwrap();
    assert_eq!(n, redis::Value::BulkString(b"1".to_vec()));
}

#[tokio::test]
async fn t22_what_was_abandoned_on_the_deposed_is_killed_there_and_nowhere_else() {
    let (old, new) = two().await;
    let sentinels = Scripted::several(1, old.addr(), 1).await;
    let client = builder_of(&sentinels)
        .deadline(Duration::from_secs(15))
        // The switch is to be heard of before the old one is taken for down.
        .response_idle_timeout(Duration::from_secs(5))
        .connect()
        .await
        .unwrap();
    client.send(&cmd("SET k first")).await.unwrap();
    for server in [&old, &new] {
        let all = ["CONFIG", "SET", "slowlog-log-slower-than", "0"];
        server.command(&all).await.unwrap();
        let many = ["CONFIG", "SET", "slowlog-max-len", "10000"];
        server.command(&many).await.unwrap();
    }
    old.freeze().unwrap();
    let set = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("SET k second")).await }
    });
    let incr = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("INCR n")).await }
    });
    tokio::time::sleep(ms(100)).await;
    sentinels[0].names(new.addr(), 2);
    sentinels[0].tells_of_a_switch();
    // By proof it has succeeded the old one, so what the last one wins is made again there at once;
    // what counts is not.
    set.await.unwrap().expect("it is repeated at its successor");
    let unknown = incr.await.unwrap().expect_err("it may have been applied");
    assert_eq!(unknown.certainty(), Certainty::Unknown, "{unknown}");
    let k = new.command(&["GET", "k"]).await.unwrap();
    assert_eq!(k, redis::Value::BulkString(b"second".to_vec()));
    old.resume().unwrap();
    // The office goes back, at which the old connection is killed ahead of anything.
    sentinels[0].names(old.addr(), 3);
    sentinels[0].tells_of_a_switch();
    until("it serves from the old one again", || {
        believed(&client) == Some(old.addr().to_string())
            && client.state() == ConnectionState::Ready
    })
    .await;
    client.send(&cmd("SET k third")).await.unwrap();
    let k = old.command(&["GET", "k"]).await.unwrap();
    assert_eq!(k, redis::Value::BulkString(b"third".to_vec()));
    let kills = async |server: &Redis| {
        let log = server.command(&["SLOWLOG", "GET", "-1"]).await.unwrap();
        let log = format!("{log:?}").to_ascii_lowercase();
        // That of nobody asks whether killing is allowed.
        let kills = log.matches(&words_of("kill")).count();
        kills - log.matches(&words_of(&i64::MAX.to_string())).count()
    };
    assert_eq!(kills(&new).await, 0, "nothing of another server's");
    assert!(kills(&old).await > 0, "what was abandoned there");
}

/// A word, as `Debug` of a list of bulk strings shows it.
fn words_of(word: &str) -> String {
    format!("bulk-string('\"{word}\"')")
}

#[tokio::test]
async fn t26_whoever_answers_at_the_address_of_another_sentinel_is_not_heard_nor_followed() {
    let (primary, elsewhere) = two().await;
    let first = Scripted::start("first", primary.addr(), 1).await;
    // It has another id than the one that was known there, and the highest epoch of all.
    let stranger = Scripted::start("stranger", elsewhere.addr(), 99).await;
    first.says(|says| says.peers = vec![("known".into(), stranger.addr)]);
    let sentinels = [first];
    let client = builder_of(&sentinels).connect().await.unwrap();
    until("it is asked", || {
        let all = client.status().sentinel.unwrap().sentinels;
        let stranger = all
            .iter()
            .find(|one| one.address == stranger.addr.to_string());
        let error = stranger.and_then(|one| one.error.clone());
        error.is_some_and(|error| error.contains("not heard"))
    })
    .await;
    assert_eq!(believed(&client), Some(primary.addr().to_string()));
    assert_eq!(served_by(&client).await, primary.addr().to_string());
}

#[tokio::test]
async fn t31_a_sentinel_that_tells_of_a_hundred_others_has_no_more_than_the_bound_asked() {
    let primary = Redis::start().await.unwrap();
    let first = Scripted::start("first", primary.addr(), 1).await;
    let peers = (1..=100).map(|n| (format!("peer-{n}"), SocketAddr::from(([127, 0, 0, 1], n))));
    first.says(|says| says.peers = peers.collect());
    let sentinels = [first];
    let client = builder_of(&sentinels).connect().await.unwrap();
    until("as many are asked as may be", || {
        client.status().sentinel.unwrap().sentinels.len() == 32
    })
    .await;
    client.send(&cmd("SET k v")).await.unwrap();
    let asked = sentinels[0].asked().len();
    client.reconnect();
    until("it is asked again", || sentinels[0].asked().len() > asked).await;
    let status = client.status().sentinel.unwrap();
    assert_eq!((status.sentinels.len(), status.voters), (32, 32));
}

#[tokio::test]
async fn t31_clients_that_start_together_do_not_come_with_all_their_connections_at_once() {
    let primary = Redis::start().await.unwrap();
    let sentinels = Scripted::several(1, primary.addr(), 1).await;
    let clients: Vec<_> = (0..30)
        .map(|_| builder_of(&sentinels).build().unwrap())
        .collect();
    let listened_to = || sentinels[0].part.listened_to.lock().unwrap().clone();
    until("all listen", || listened_to().len() == clients.len()).await;
    let times = listened_to();
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    // Of thirty that are spread over a second.
    let spread = last.duration_since(*first);
    assert!(spread > ms(400), "{spread:?}");
}
