//! C13: subscriptions on a connection of their own, which come back by themselves and say what may have been missed.

use std::time::Duration;

use redis::AsyncCommands;
use steadfast::{Client, PubSub, PubSubEvent};
use steadfast_drill::process::Redis;

use crate::support::pair;

async fn next(pubsub: &mut PubSub) -> PubSubEvent {
    tokio::time::timeout(Duration::from_secs(20), pubsub.next())
        .await
        .expect("something is heard")
        .unwrap()
}

async fn payload(pubsub: &mut PubSub) -> Vec<u8> {
    loop {
        if let PubSubEvent::Message { payload, .. } = next(pubsub).await {
            return payload;
        }
    }
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
        pubsub.control().unsubscribe("news").await;
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
