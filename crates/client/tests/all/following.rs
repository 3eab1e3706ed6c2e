//! C13: blocking calls, sessions and subscribers are served by the server that the shared
//! connection serves from.

use redis::Value;
use steadfast::{
    CallOptions, Certainty, Client, ClientBuilder, ConnectionState, ErrorKind, PubSub, PubSubEvent,
};
use steadfast_drill::process::Redis;

use crate::support::{Name, cmd, ms, now, pair, pair_with, until, until_state};

/// Two servers, and a client that is connected to the first by a name.
async fn named(set: impl FnOnce(ClientBuilder) -> ClientBuilder) -> (Redis, Redis, Name, Client) {
    let (a, b) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let name = Name::at(a.addr());
    let builder = Client::builder("redis://primary.example")
        .unwrap()
        .resolver(name.clone())
        .deadline(ms(10_000));
    let client = set(builder).connect().await.unwrap();
    (a, b, name, client)
}

async fn becomes_replica(server: &Redis, of: &Redis) {
    let port = of.addr().port().to_string();
    let replicaof = ["REPLICAOF", "127.0.0.1", &port];
    server.command(&replicaof).await.unwrap();
}

/// Waits until so many clients are blocked in the server.
async fn until_blocked(server: &Redis, clients: usize) {
    let info = || server.command_blocking(&["INFO", "clients"]).unwrap();
    let blocked = format!("blocked_clients:{clients}\r\n");
    let is_so = || {
        redis::from_redis_value::<String>(info())
            .unwrap()
            .contains(&blocked)
    };
    until(&blocked, is_so).await;
}

/// So many calls at once; how many were answered by an element.
async fn pops(client: &Client, calls: usize, words: &str) -> usize {
    let pop = cmd(words);
    let calls = (0..calls).map(|_| client.send(&pop));
    let answers = futures_util::future::join_all(calls).await;
    let elements = answers.into_iter().filter(|answer| {
        assert!(answer.is_ok(), "{answer:?}");
        !matches!(answer, Ok(Value::Nil))
    });
    elements.count()
}

async fn pushed(server: &Redis, key: &str, elements: usize) {
    for _ in 0..elements {
        server.command(&["RPUSH", key, "v"]).await.unwrap();
    }
}

#[tokio::test]
async fn c13_forty_blocking_calls_follow_a_failover_that_nobody_else_has_noticed() {
    let (a, b, name, client) = named(|b| b.blocking_connections(40)).await;
    assert_eq!(pops(&client, 40, "BLPOP none 0.2").await, 0);
    pushed(&b, "jobs", 40).await;
    name.moves_to(b.addr());
    becomes_replica(&a, &b).await;
    assert_eq!(pops(&client, 40, "BLPOP jobs 8").await, 40);
    assert_eq!(
        client.status().reconnects,
        1,
        "the shared one followed, once"
    );
    assert_eq!(client.state(), ConnectionState::Ready);
}

#[tokio::test]
async fn c13_blocking_connections_that_are_idle_do_not_stay_behind_after_a_failover() {
    let (a, b, name, client) = named(|b| b.blocking_connections(40)).await;
    assert_eq!(pops(&client, 40, "BLPOP none 0.2").await, 0);
    name.moves_to(b.addr());
    becomes_replica(&a, &b).await;
    client.send(&cmd("SET k v")).await.unwrap();
    pushed(&b, "jobs", 40).await;
    assert_eq!(pops(&client, 40, "BLPOP jobs 8").await, 40);
}

#[tokio::test]
async fn c13_a_blocking_call_under_way_when_its_server_is_demoted_is_made_again_at_the_new_one() {
    let (a, b, name, client) = named(|b| b).await;
    let calls = [
        "BLPOP jobs 9",
        "BLMOVE jobs done LEFT RIGHT 9",
        "BZPOPMIN scores 9",
    ];
    let calls: Vec<_> = calls
        .into_iter()
        .map(|words| {
            let client = client.clone();
            tokio::spawn(async move { client.send(&cmd(words)).await })
        })
        .collect();
    until_blocked(&a, 3).await;
    name.moves_to(b.addr());
    becomes_replica(&a, &b).await;
    until_blocked(&b, 3).await;
    pushed(&b, "jobs", 2).await;
    b.command(&["ZADD", "scores", "1", "v"]).await.unwrap();
    for call in calls {
        assert_ne!(call.await.unwrap().unwrap(), Value::Nil);
    }
}

#[tokio::test]
async fn c13_a_call_that_is_made_again_waits_for_the_rest_of_its_timeout() {
    let (a, b, name, client) = named(|b| b).await;
    let begun = now();
    let call = {
        let patient = client.with(CallOptions::new().deadline(ms(60_000)));
        tokio::spawn(async move { patient.send(&cmd("BLPOP none 5")).await })
    };
    until_blocked(&a, 1).await;
    tokio::time::sleep(ms(3_500)).await;
    name.moves_to(b.addr());
    becomes_replica(&a, &b).await;
    assert_eq!(call.await.unwrap().unwrap(), Value::Nil);
    let took = now() - begun;
    assert!(took >= ms(4_990), "{took:?}");
    assert!(
        took < ms(8_000),
        "not its whole timeout once more: {took:?}"
    );
}

#[tokio::test]
async fn c13_one_that_somebody_unblocks_by_hand_is_not_made_again() {
    let (redis, client) = pair().await;
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.send(&cmd("BLPOP none 30")).await })
    };
    until_blocked(&redis, 1).await;
    let list = redis.command(&["CLIENT", "LIST"]).await.unwrap();
    let list: String = redis::from_redis_value(list).unwrap();
    let blocked = list
        .lines()
        .find(|line| line.contains("cmd=blpop"))
        .unwrap();
    let id = blocked["id=".len()..].split(' ').next().unwrap();
    let unblock = ["CLIENT", "UNBLOCK", id, "ERROR"];
    redis.command(&unblock).await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("UNBLOCKED"), "{error}");
    assert_eq!(error.certainty(), Certainty::Rejected);
    assert_eq!(client.status().reconnects, 0);
    assert_eq!(client.state(), ConnectionState::Ready);
}

async fn next(pubsub: &mut PubSub) -> PubSubEvent {
    tokio::time::timeout(ms(20_000), pubsub.next())
        .await
        .expect("something is heard")
        .expect("the client lives")
}

/// What is between an old server that lives on and a new one: a session, a subscriber, idle
/// connections of blocking calls, and two under way.
struct Beside {
    client: Client,
    session: steadfast::Session,
    pubsub: PubSub,
    pop: tokio::task::JoinHandle<Result<Value, steadfast::Error>>,
    read: tokio::task::JoinHandle<Result<Value, steadfast::Error>>,
}

impl Beside {
    async fn of(client: &Client, old: &Redis) -> Self {
        let mut pubsub = client.pubsub();
        pubsub.subscribe("news").await.unwrap();
        assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
        let session = client.session().await.unwrap();
        session.send(&cmd("SET s 1")).await.unwrap();
        assert_eq!(pops(client, 2, "BLPOP none 0.1").await, 0);
        let spawn = |words: &'static str| {
            let client = client.clone();
            tokio::spawn(async move { client.send(&cmd(words)).await })
        };
        let pop = spawn("BLPOP jobs 15");
        let read = spawn("XREAD BLOCK 15000 STREAMS stream 0");
        until_blocked(old, 2).await;
        Self {
            client: client.clone(),
            session,
            pubsub,
            pop,
            read,
        }
    }

    /// All of it is at the new server, though the old one lives.
    async fn follows_to(mut self, new: &Redis) {
        until("the session ends", || !self.session.is_open()).await;
        let error = self.session.send(&cmd("GET s")).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
        assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
        let lost = next(&mut self.pubsub).await;
        assert!(matches!(lost, PubSubEvent::Lost { .. }), "{lost:?}");
        // One whose age is reached first may find the old one once more.
        while new.command(&["PUBLISH", "news", "here"]).await.unwrap() == Value::Int(0) {
            let event = next(&mut self.pubsub).await;
            let told = matches!(
                event,
                PubSubEvent::Lost { .. } | PubSubEvent::Resumed { gap: Some(_) }
            );
            assert!(told, "it says that there was a gap: {event:?}");
        }
        if let resumed @ PubSubEvent::Resumed { .. } = next(&mut self.pubsub).await {
            assert!(matches!(resumed, PubSubEvent::Resumed { gap: Some(_) }));
            let message = next(&mut self.pubsub).await;
            assert!(
                matches!(message, PubSubEvent::Message { .. }),
                "{message:?}"
            );
        }
        // It may have taken an element with it.
        let error = self.pop.await.unwrap().unwrap_err();
        assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
        // It takes nothing, and so was made again.
        new.command(&["XADD", "stream", "*", "f", "v"])
            .await
            .unwrap();
        assert_ne!(self.read.await.unwrap().unwrap(), Value::Nil);
        pushed(new, "jobs", 4).await;
        assert_eq!(pops(&self.client, 4, "BLPOP jobs 9").await, 4);
        let session = self.client.session().await.unwrap();
        session.send(&cmd("SET s 2")).await.unwrap();
        let set = new.command(&["GET", "s"]).await.unwrap();
        assert_eq!(set, Value::BulkString(b"2".to_vec()));
    }
}

#[tokio::test]
async fn c13_whatever_is_beside_the_shared_connection_follows_a_reset_by_hand() {
    let (a, b, name, client) = named(|b| b).await;
    let beside = Beside::of(&client, &a).await;
    pushed(&b, "early", 1).await;
    name.moves_to(b.addr());
    client.reconnect();
    // At once, while the shared connection has not noticed.
    assert_eq!(pops(&client, 1, "BLPOP early 9").await, 1);
    beside.follows_to(&b).await;
}

#[tokio::test]
async fn c13_whatever_is_beside_the_shared_connection_follows_when_that_reaches_its_maximum_age() {
    let (a, b, name, client) = named(|b| b.max_age(ms(6_000))).await;
    let beside = Beside::of(&client, &a).await;
    name.moves_to(b.addr());
    beside.follows_to(&b).await;
}

/// As most do that hand out a Redis: no INFO, no CLIENT but what is harmless.
async fn without_info(server: &Redis) {
    let rules = "ACL SETUSER app on >pw ~* &* +@all -info";
    let rules: Vec<&str> = rules.split(' ').collect();
    server.command(&rules).await.unwrap();
}

#[tokio::test]
async fn c13_a_reset_by_hand_is_followed_where_servers_do_not_say_who_they_are() {
    let (a, b) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    without_info(&a).await;
    without_info(&b).await;
    let name = Name::at(a.addr());
    let client = Client::builder("redis://app:pw@primary.example")
        .unwrap()
        .resolver(name.clone())
        .deadline(ms(10_000))
        .connect()
        .await
        .unwrap();
    let beside = Beside::of(&client, &a).await;
    pushed(&b, "early", 1).await;
    name.moves_to(b.addr());
    client.reconnect();
    // At once, while the shared connection has not noticed.
    assert_eq!(pops(&client, 1, "BLPOP early 9").await, 1);
    beside.follows_to(&b).await;
}

#[tokio::test]
async fn c13_a_session_that_is_told_of_a_demotion_ends_and_has_the_shared_connection_follow() {
    let (a, b, name, client) = named(|b| b).await;
    let session = client.session().await.unwrap();
    session.send(&cmd("SET s 1")).await.unwrap();
    name.moves_to(b.addr());
    becomes_replica(&a, &b).await;
    let error = session.send(&cmd("SET s 2")).await.unwrap_err();
    assert!(error.to_string().starts_with("READONLY"), "{error}");
    until("the session ends", || !session.is_open()).await;
    until("the shared one follows", || client.status().reconnects == 1).await;
    until_state(&client, ConnectionState::Ready).await;
    let session = client.session().await.unwrap();
    session.send(&cmd("SET s 3")).await.unwrap();
    let set = b.command(&["GET", "s"]).await.unwrap();
    assert_eq!(set, Value::BulkString(b"3".to_vec()));
}

#[tokio::test]
async fn c13_a_session_of_its_maximum_age_ends_when_it_has_answered() {
    let (_redis, client) = pair_with(|b| b.max_age(ms(2_000)).deadline(ms(10_000))).await;
    let session = client.session().await.unwrap();
    let pop = session.send(&cmd("BLPOP none 4")).await;
    assert_eq!(pop.unwrap(), Value::Nil, "longer than its age, in one call");
    until("it has ended", || !session.is_open()).await;
    let error = session.send(&cmd("GET s")).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
    assert!(error.to_string().contains("maximum age"), "{error}");
}

#[tokio::test]
async fn c13_nothing_beside_the_shared_connection_is_lost_when_that_connects_anew_to_its_server() {
    let (redis, client) = pair_with(|b| b.deadline(ms(10_000))).await;
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
    let session = client.session().await.unwrap();
    session.send(&cmd("WATCH k")).await.unwrap();
    let pop = {
        let client = client.clone();
        tokio::spawn(async move { client.send(&cmd("BLPOP jobs 15")).await })
    };
    until_blocked(&redis, 1).await;
    let id: i64 = redis::from_redis_value(client.send(&cmd("CLIENT ID")).await.unwrap()).unwrap();
    let kill = ["CLIENT", "KILL", "ID", &id.to_string()];
    redis.command(&kill).await.unwrap();
    until("it connects anew", || client.status().reconnects == 1).await;
    client.send(&cmd("GET k")).await.unwrap();
    pushed(&redis, "jobs", 1).await;
    assert_ne!(pop.await.unwrap().unwrap(), Value::Nil);
    redis.command(&["PUBLISH", "news", "1"]).await.unwrap();
    let message = next(&mut pubsub).await;
    assert!(
        matches!(message, PubSubEvent::Message { .. }),
        "{message:?}"
    );
    session.send(&cmd("UNWATCH")).await.unwrap();
}
