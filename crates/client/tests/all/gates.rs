//! T8, T9: who waits for whom while a slot moves.

use std::pin::pin;

use steadfast::redis::{self, Value};
use steadfast::{CallOptions, Certainty, Client};
use steadfast_drill::process::Cluster;

use crate::support::{cmd, key_of, ms, slot, until};

#[tokio::test]
async fn t8_t9_while_keys_of_a_slot_are_apart_only_what_shares_a_key_with_who_waits_for_them_waits()
{
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(60_000)).connect().await.unwrap();
    let (key, elsewhere) = (
        key_of(&cluster, 0, "key").await,
        key_of(&cluster, 1, "other").await,
    );
    let slots = [slot(&key)];
    let keys = ["a", "b", "c", "d"].map(|name| format!("{{{key}}}{name}"));
    for key in &keys {
        client.send(&cmd(&format!("SET {key} 0"))).await.unwrap();
    }
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    cluster.move_keys(&slots, 0, 1, 1).await.unwrap();
    let mut gone = Vec::new();
    let mut here = Vec::new();
    for key in &keys {
        match cluster.node(0).command(&["GET", key]).await {
            Ok(_) => here.push(key.clone()),
            Err(_) => gone.push(key.clone()),
        }
    }
    let ([gone], [one, two, three]) = (&gone[..], &here[..]) else {
        panic!("{gone:?} have gone, {here:?} have not");
    };

    // One that cannot be served while its keys are apart, and behind it those of one of its keys.
    let both = cmd(&format!("MSET {gone} 1 {one} 1"));
    let mut both = pin!(client.send(&both));
    assert!(futures_util::poll!(&mut both).is_pending());
    let tries = client.status().cluster.unwrap().redirects;
    let tried = async {
        until("it was tried again", || {
            client.status().cluster.unwrap().redirects > tries + 3
        })
        .await;
    };
    tokio::select! {
        _ = &mut both => panic!("its keys are apart"),
        () = tried => {}
    }
    let behind = cmd(&format!("APPEND {one} 2"));
    let mut behind = pin!(client.send(&behind));
    let mut pipe = redis::pipe();
    pipe.append(one, 3).append(two, 1).append(&elsewhere, 1);
    let mut piped = pin!(client.send_pipeline(&pipe));
    let last = cmd(&format!("APPEND {elsewhere} 2"));
    let others = async {
        let text = |text: &str| Value::BulkString(text.into());
        // Of other keys, of that slot too: nobody waits.
        let get = cmd(&format!("GET {three}"));
        assert_eq!(client.send(&get).await.unwrap(), text("0"));
        assert_eq!(client.send(&last).await.unwrap(), Value::Int(2));
        let get = cmd(&format!("GET {elsewhere}"));
        assert_eq!(client.send(&get).await.unwrap(), text("12"));
        // For longer than slots take to change hands.
        tokio::time::sleep(ms(1_500)).await;
        client.send(&cmd(&format!("SET {three} 4"))).await.unwrap();
    };
    tokio::select! {
        biased;
        _ = &mut both => panic!("its keys are apart"),
        _ = &mut behind => panic!("it has overtaken the one before"),
        _ = &mut piped => panic!("it has overtaken the ones before"),
        () = others => {}
    }

    cluster.move_keys(&slots, 0, 1, 10).await.unwrap();
    cluster.end_migration(&slots, 0, 1).await.unwrap();
    let (both, behind, piped) = tokio::join!(both, behind, piped);
    both.unwrap();
    assert_eq!(behind.unwrap(), Value::Int(2));
    assert_eq!(
        piped.unwrap(),
        [Value::Int(3), Value::Int(2), Value::Int(1)]
    );
    let get = client.send(&cmd(&format!("GET {one}"))).await.unwrap();
    assert_eq!(get, Value::BulkString("123".into()));
}

#[tokio::test]
async fn t8_a_part_that_waits_for_its_slot_holds_up_none_that_is_redirected() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(60_000)).connect().await.unwrap();
    let (one, two) = (
        key_of(&cluster, 0, "one").await,
        key_of(&cluster, 0, "two").await,
    );
    let apart = [format!("{{{one}}}a"), format!("{{{one}}}b")];
    for key in [&apart[0], &apart[1], &two] {
        client.send(&cmd(&format!("SET {key} 0"))).await.unwrap();
    }
    // Of one slot a key has gone, of the other all have.
    let (one, whole) = ([slot(&one)], [slot(&two)]);
    cluster.begin_migration(&one, 0, 1).await.unwrap();
    cluster.move_keys(&one, 0, 1, 1).await.unwrap();
    cluster.begin_migration(&whole, 0, 1).await.unwrap();
    cluster.move_keys(&whole, 0, 1, 1).await.unwrap();

    let both = cmd(&format!("MSET {} 1 {} 1", apart[0], apart[1]));
    let mut both = pin!(client.send(&both));
    assert!(futures_util::poll!(&mut both).is_pending());
    let tries = client.status().cluster.unwrap().redirects;
    tokio::select! {
        _ = &mut both => panic!("its keys are apart"),
        () = until("it was tried again", || {
            client.status().cluster.unwrap().redirects > tries + 3
        }) => {}
    }
    let delete = cmd(&format!("DEL {} {two}", apart[0]));
    let mut delete = pin!(client.send(&delete));
    let gone = async {
        while cluster.node(1).command(&["DBSIZE"]).await.unwrap() != Value::Int(1) {
            tokio::time::sleep(ms(10)).await;
        }
    };
    tokio::select! {
        biased;
        _ = &mut both => panic!("its keys are apart"),
        _ = &mut delete => panic!("it has overtaken the one before"),
        () = gone => {}
    }
    cluster.move_keys(&one, 0, 1, 10).await.unwrap();
    cluster.end_migration(&one, 0, 1).await.unwrap();
    let (both, deleted) = tokio::join!(both, delete);
    both.unwrap();
    assert_eq!(deleted.unwrap(), Value::Int(2));
}

#[tokio::test]
async fn t7_a_write_of_several_keys_that_are_nowhere_yet_waits_for_its_slot_to_arrive() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(60_000)).connect().await.unwrap();
    let key = key_of(&cluster, 0, "new").await;
    cluster.begin_migration(&[slot(&key)], 0, 1).await.unwrap();
    // Its old owner sends it to the new one, which has not got all of its keys and sends it back.
    let single = cmd(&format!("MSET {{{key}}}a 1 {{{key}}}b 1"));
    let mut single = pin!(client.send(&single));
    let mut pipe = redis::pipe();
    pipe.add_command(cmd(&format!("MSET {{{key}}}c 1 {{{key}}}d 1")));
    let mut piped = pin!(client.send_pipeline(&pipe));
    let began = client.status().cluster.unwrap().redirects;
    tokio::select! {
        ended = &mut single => panic!("{ended:?}"),
        ended = &mut piped => panic!("{ended:?}"),
        () = until("both were sent to and fro", || {
            client.status().cluster.unwrap().redirects > began + 60
        }) => {}
    }
    cluster.end_migration(&[slot(&key)], 0, 1).await.unwrap();
    let (single, piped) = tokio::join!(single, piped);
    assert_eq!(
        (single.unwrap(), piped.unwrap()),
        (Value::Okay, vec![Value::Okay])
    );
}

#[tokio::test]
async fn t9_c2_a_call_that_was_never_sent_says_so_though_its_turn_is_lost() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(60_000)).build().unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(1_000)));
    let push = cmd("RPUSH list 1");
    // It waits for the first view, and nobody asks for it when that has come.
    let mut first = pin!(hasty.send(&push));
    assert!(futures_util::poll!(&mut first).is_pending());
    let later = client.send(&cmd("RPUSH list 2")).await.unwrap();
    assert_eq!(later, Value::Int(1));
    let error = first.await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
}

#[tokio::test]
async fn t6_an_ask_that_has_grown_old_behind_others_is_not_followed_into_a_later_migration() {
    let builder = Cluster::builder().replicas(0).node_timeout(ms(60_000));
    let cluster = builder.start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(30_000)).connect().await.unwrap();
    let key = key_of(&cluster, 0, "counter").await;
    let frozen = key_of(&cluster, 2, "frozen").await;
    let slots = [slot(&key)];
    client.send(&cmd(&format!("SET {key} 100"))).await.unwrap();
    client.send(&cmd(&format!("GET {frozen}"))).await.unwrap();
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();

    // Both are told to ask at the other node, and wait for one that came later: of that a part is
    // at a node which does not answer.
    cluster.node(2).freeze().unwrap();
    let incr = cmd(&format!("INCR {key}"));
    let mut one = pin!(client.send(&incr));
    let mut pipe = redis::pipe();
    pipe.incr(&key, 10);
    let mut piped = pin!(client.send_pipeline(&pipe));
    let mut later = redis::pipe();
    later.get(&key).get(&frozen);
    let mut later = pin!(client.send_pipeline(&later));
    assert!(futures_util::poll!(&mut one).is_pending());
    assert!(futures_util::poll!(&mut piped).is_pending());
    assert!(futures_util::poll!(&mut later).is_pending());
    let all = async { tokio::join!(&mut one, &mut piped, &mut later) };
    let mut all = pin!(all);
    let moves = async {
        until("they were told so", || {
            client.status().cluster.unwrap().redirects >= 2
        })
        .await;
        // The slot moves on, comes back, and is on its way again: its key is still at home.
        cluster.end_migration(&slots, 0, 1).await.unwrap();
        cluster.begin_migration(&slots, 1, 0).await.unwrap();
        cluster.move_keys(&slots, 1, 0, 100).await.unwrap();
        cluster.end_migration(&slots, 1, 0).await.unwrap();
        cluster.begin_migration(&slots, 0, 1).await.unwrap();
        cluster.node(2).resume().unwrap();
    };
    let ((), (one, piped, later)) = tokio::join!(moves, &mut all);
    assert_eq!(one.unwrap(), Value::Int(101));
    assert_eq!(piped.unwrap(), [Value::Int(111)]);
    assert_eq!(later.unwrap()[0], Value::BulkString(b"111".to_vec()));
    assert_eq!(cluster.move_keys(&slots, 0, 1, 100).await.unwrap(), 1);
    cluster.end_migration(&slots, 0, 1).await.unwrap();
    let value = client.send(&cmd(&format!("GET {key}"))).await.unwrap();
    assert_eq!(value, Value::BulkString(b"111".to_vec()));
}
