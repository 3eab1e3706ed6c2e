//! C13: subscriptions on a connection of their own, which come back by themselves and say what may
//! have been missed.

use std::time::Duration;

use redis::AsyncCommands;
use steadfast::{Backoff, Client, ErrorKind, Limits, PubSub, PubSubEvent};
use steadfast_drill::process::Redis;
use steadfast_drill::scripted::{Script, Server};

use crate::support::{cmd, ms, now, pair, until};

async fn next(pubsub: &mut PubSub) -> PubSubEvent {
    next_or_end(pubsub).await.unwrap()
}

async fn next_or_end(pubsub: &mut PubSub) -> Option<PubSubEvent> {
    tokio::time::timeout(Duration::from_secs(20), pubsub.next())
        .await
        .expect("something is heard")
}

async fn payload(pubsub: &mut PubSub) -> Vec<u8> {
    loop {
        if let PubSubEvent::Message { payload, .. } = next(pubsub).await {
            return payload;
        }
    }
}

#[tokio::test]
async fn c13_a_subscription_says_why_its_connection_cannot_be_made() {
    let redis = Redis::start().await.unwrap();
    let builder = Client::builder(&redis.url()).unwrap().deadline(ms(500));
    let client = builder.connect().await.unwrap();
    // What administers the server, and the client's own connection.
    let full = ["CONFIG", "SET", "maxclients", "1"];
    redis.command(&full).await.unwrap();
    let mut news = client.pubsub();
    let error = news.subscribe("news").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Connect { .. }), "{error}");
    assert!(error.to_string().contains("maxclients"), "{error}");
    let room = cmd("CONFIG SET maxclients 100");
    client.send(&room).await.unwrap();
    assert_eq!(next(&mut news).await, PubSubEvent::Resumed { gap: None });
}

#[tokio::test]
async fn c13_messages_of_channels_and_patterns_are_heard() {
    for protocol in ["resp2", "resp3"] {
        let redis = Redis::start().await.unwrap();
        let url = format!("{}?protocol={protocol}", redis.url());
        let mut client = Client::builder(&url).unwrap().connect().await.unwrap();
        let mut pubsub = client.pubsub();
        pubsub.subscribe("news").await.unwrap();
        pubsub.psubscribe("user:*").await.unwrap();
        assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
        let () = client.publish("news", "one").await.unwrap();
        let () = client.publish("user:7", "two").await.unwrap();
        assert_eq!(payload(&mut pubsub).await, b"one", "{protocol}");
        let PubSubEvent::Message {
            channel,
            pattern,
            payload,
        } = next(&mut pubsub).await
        else {
            panic!("a message");
        };
        assert_eq!(
            (&*channel, pattern.as_deref(), &*payload),
            (&b"user:7"[..], Some(&b"user:*"[..]), &b"two"[..])
        );
        pubsub.control().unsubscribe("news").await.unwrap();
    }
}

#[tokio::test]
async fn c13_a_subscriber_comes_back_after_a_restart_and_reports_the_gap() {
    let (redis, mut client) = pair().await;
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
    redis.kill().await;
    assert!(matches!(next(&mut pubsub).await, PubSubEvent::Lost { .. }));
    redis.restart().await.unwrap();
    let PubSubEvent::Resumed { gap: Some(gap) } = next(&mut pubsub).await else {
        panic!("it resumes");
    };
    assert!(gap < Duration::from_secs(20), "{gap:?}");
    let () = client.publish("news", "again").await.unwrap();
    assert_eq!(payload(&mut pubsub).await, b"again");
}

#[tokio::test]
async fn c13_a_frozen_server_is_noticed_by_a_subscriber_that_hears_nothing_anyway() {
    let (redis, client) = pair().await;
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
    redis.freeze().unwrap();
    assert!(matches!(next(&mut pubsub).await, PubSubEvent::Lost { .. }));
    redis.resume().unwrap();
    assert!(matches!(
        next(&mut pubsub).await,
        PubSubEvent::Resumed { gap: Some(_) }
    ));
}

#[tokio::test]
async fn c13_a_subscription_asked_for_while_redis_is_down_is_made_when_it_is_back() {
    let (redis, mut client) = pair().await;
    redis.kill().await;
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap_err();
    redis.restart().await.unwrap();
    while !matches!(next(&mut pubsub).await, PubSubEvent::Resumed { .. }) {}
    let heard = async {
        loop {
            let receivers: i64 = client.publish("news", "late").await.unwrap_or(0);
            if receivers > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), heard)
        .await
        .unwrap();
    assert_eq!(payload(&mut pubsub).await, b"late");
}

#[tokio::test]
async fn c13_orders_of_a_subscriber_are_taken_in_time_while_redis_is_down() {
    let (redis, mut client) = pair().await;
    let mut pubsub = client.pubsub();
    pubsub.subscribe("old").await.unwrap();
    assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
    redis.kill().await;
    assert!(matches!(next(&mut pubsub).await, PubSubEvent::Lost { .. }));
    let control = pubsub.control();
    // More than may wait in a queue that nobody empties.
    for n in 0..3000 {
        let channel = format!("channel:{n}");
        control.unsubscribe(channel).await.unwrap();
    }
    control.unsubscribe("old").await.unwrap();
    control.subscribe("new").await.unwrap_err();
    redis.restart().await.unwrap();
    while !matches!(next(&mut pubsub).await, PubSubEvent::Resumed { .. }) {}
    let begun = crate::support::now();
    while client
        .publish::<_, _, i64>("new", "heard")
        .await
        .unwrap_or(0)
        == 0
    {
        assert!(crate::support::now() - begun < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let nobody: i64 = client.publish("old", "unheard").await.unwrap();
    assert_eq!(nobody, 0);
    assert_eq!(payload(&mut pubsub).await, b"heard");
}

#[tokio::test]
async fn c13_a_channel_that_is_forbidden_is_refused_and_the_others_stand() {
    let redis = Redis::builder()
        .acl("app on >secret ~* resetchannels &news +@all")
        .start()
        .await
        .unwrap();
    let url = format!("redis://app:secret@{}", redis.addr());
    let mut client = Client::builder(&url).unwrap().connect().await.unwrap();
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    let error = pubsub.subscribe("secrets").await.unwrap_err();
    assert!(error.to_string().contains("NOPERM"), "{error}");
    assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
    let receivers: i64 = client.publish("news", "one").await.unwrap();
    assert_eq!(receivers, 1);
    assert_eq!(payload(&mut pubsub).await, b"one");
}

#[tokio::test]
async fn c15_closing_ends_subscriptions_sessions_and_blocking_connections() {
    let redis = Redis::start().await.unwrap();
    let client = Client::builder(&redis.url())
        .unwrap()
        .name("closing")
        .connect()
        .await
        .unwrap();
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    let session = client.session().await.unwrap();
    session.send(&cmd("MULTI")).await.unwrap();
    client.send(&cmd("BLPOP queue 0.01")).await.unwrap();
    let ours = || {
        let list = redis.command_blocking(&["CLIENT", "LIST"]).unwrap();
        match list {
            redis::Value::BulkString(text) => String::from_utf8_lossy(&text)
                .matches("name=closing")
                .count(),
            _ => 0,
        }
    };
    assert_eq!(ours(), 4);
    assert_eq!(client.close(Duration::from_secs(5)).await.unfinished, 0);
    until("every connection has ended", || ours() == 0).await;
    assert_eq!(
        next_or_end(&mut pubsub).await,
        Some(PubSubEvent::Resumed { gap: None })
    );
    assert_eq!(next_or_end(&mut pubsub).await, None);
    pubsub.subscribe("more").await.unwrap_err();
    pubsub.control().unsubscribe("news").await.unwrap_err();
    session.send(&cmd("EXEC")).await.unwrap_err();
    client.session().await.unwrap_err();
    assert_eq!(next_or_end(&mut client.pubsub()).await, None);
    assert_eq!(ours(), 0);
}

#[tokio::test]
async fn c13_sharded_channels_are_heard_and_outlive_their_connection_as_others_do() {
    let (redis, client) = pair().await;
    let mut pubsub = client.pubsub();
    pubsub.ssubscribe("orders").await.unwrap();
    assert_eq!(
        next_or_end(&mut pubsub).await,
        Some(PubSubEvent::Resumed { gap: None })
    );
    // Another channel of the same name.
    redis.command(&["PUBLISH", "orders", "0"]).await.unwrap();
    let published = |payload: &'static str| {
        let client = client.clone();
        async move {
            let publish = cmd(&format!("SPUBLISH orders {payload}"));
            client.send(&publish).await.unwrap()
        }
    };
    let heard = |payload: &str| {
        let (channel, payload) = (b"orders".to_vec(), payload.into());
        Some(PubSubEvent::Message {
            channel,
            pattern: None,
            payload,
        })
    };
    assert_eq!(published("1").await, redis::Value::Int(1));
    assert_eq!(next_or_end(&mut pubsub).await, heard("1"));
    let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
    redis.command(&kill).await.unwrap();
    let lost = next_or_end(&mut pubsub).await;
    assert!(matches!(lost, Some(PubSubEvent::Lost { .. })), "{lost:?}");
    let resumed = next_or_end(&mut pubsub).await;
    let Some(PubSubEvent::Resumed { gap: Some(_) }) = resumed else {
        panic!("{resumed:?}");
    };
    assert_eq!(published("2").await, redis::Value::Int(1));
    assert_eq!(next_or_end(&mut pubsub).await, heard("2"));
    pubsub.control().sunsubscribe("orders").await.unwrap();
    let begun = now();
    while published("3").await != redis::Value::Int(0) {
        assert!(now() - begun < ms(20_000), "it is not unsubscribed");
    }
    let again = pubsub.ssubscribe("orders").await;
    again.expect("one that was ended by its subscriber is no trouble");
}

#[tokio::test]
async fn c11_a_message_past_the_limits_is_lost_by_name_and_the_subscriptions_come_back() {
    let limits = Limits {
        bulk_bytes: 1_000,
        ..Limits::default()
    };
    for protocol in ["resp2", "resp3"] {
        let redis = Redis::start().await.unwrap();
        let url = format!("{}?protocol={protocol}", redis.url());
        let builder = Client::builder(&url).unwrap().reply_limits(limits);
        let client = builder.connect().await.unwrap();
        let mut news = client.pubsub();
        news.subscribe("news").await.unwrap();
        assert_eq!(next(&mut news).await, PubSubEvent::Resumed { gap: None });
        let publish = async |bytes| {
            let text = "x".repeat(bytes);
            let publish = ["PUBLISH", "news", &text];
            redis.command(&publish).await.unwrap()
        };
        publish(1_001).await;
        let PubSubEvent::Lost { cause } = next(&mut news).await else {
            panic!("{protocol}: it is too large");
        };
        assert!(cause.contains("the limit of 1000"), "{cause}");
        assert!(cause.contains("reply_limits"), "{cause}");
        let resumed = next(&mut news).await;
        let is_resumed = matches!(resumed, PubSubEvent::Resumed { gap: Some(_) });
        assert!(is_resumed, "{resumed:?}");
        publish(1_000).await;
        assert_eq!(payload(&mut news).await.len(), 1_000, "{protocol}");
    }
}

/// Anybody may publish what is too large, as often as he likes.
#[tokio::test]
async fn c8_c11_a_subscriber_pauses_before_it_connects_again_if_its_connections_do_not_last() {
    let limits = Limits {
        bulk_bytes: 1_000,
        ..Limits::default()
    };
    let redis = Redis::start().await.unwrap();
    let builder = Client::builder(&redis.url()).unwrap().reply_limits(limits);
    let builder = builder.reconnect(Backoff::fixed(ms(300)));
    let client = builder.connect().await.unwrap();
    let mut news = client.pubsub();
    news.subscribe("news").await.unwrap();
    assert_eq!(next(&mut news).await, PubSubEvent::Resumed { gap: None });
    let too_large = "x".repeat(1_001);
    let begun = now();
    // The first attempt after a connection is lost is made at once, the others after a pause.
    for _ in 0..4 {
        let publish = ["PUBLISH", "news", &too_large];
        redis.command(&publish).await.unwrap();
        let lost = next(&mut news).await;
        assert!(matches!(lost, PubSubEvent::Lost { .. }), "{lost:?}");
        let resumed = next(&mut news).await;
        assert!(
            matches!(resumed, PubSubEvent::Resumed { gap: Some(_) }),
            "{resumed:?}"
        );
    }
    assert!(now() - begun >= ms(900), "{:?}", now() - begun);
}

#[tokio::test]
async fn c13_a_server_that_talks_and_never_says_what_it_owes_is_left() {
    let confirmed = ">3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n";
    let message = ">3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n";
    // A message without an end; and one message after the other, and no answer to what was asked.
    let endless = Script::new().handshake().read(1).send(confirmed);
    let endless = endless.send(format!("{message}$99999999\r\n"));
    let deaf = Script::new().handshake().read(1);
    let server = Server::start_each(vec![
        // The client's own.
        Script::new().handshake(),
        endless.send_forever("x"),
        deaf.send_forever(format!("{message}$1\r\nx\r\n")),
        Script::new().handshake().read(1).send(confirmed),
    ])
    .await
    .unwrap();
    let builder = Client::builder(&server.url()).unwrap();
    let builder = builder.response_idle_timeout(ms(100));
    let client = builder.connect().await.unwrap();
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    assert_eq!(next(&mut pubsub).await, PubSubEvent::Resumed { gap: None });
    let lost = next(&mut pubsub).await;
    assert!(matches!(lost, PubSubEvent::Lost { .. }), "{lost:?}");
    // Of the second connection messages may have been heard; it has never stood.
    loop {
        match next(&mut pubsub).await {
            PubSubEvent::Message { .. } | PubSubEvent::Dropped { .. } => {}
            event => {
                let resumed = matches!(event, PubSubEvent::Resumed { gap: Some(_) });
                assert!(resumed, "{event:?}");
                return;
            }
        }
    }
}
