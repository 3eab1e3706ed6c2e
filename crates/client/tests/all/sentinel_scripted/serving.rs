//! Which primary serves, and what is left of the one before.

use std::time::Duration;

use steadfast::{Backoff, Certainty, ErrorKind};

use super::*;

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
