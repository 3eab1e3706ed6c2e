//! What a user of redis-rs' `ConnectionManager` wrote runs with only the type swapped.

use std::collections::HashMap;

use redis::streams::StreamReadReply;
use redis::{AsyncCommands, Value};
use steadfast::Certainty;

use crate::support::{cmd, pair, pair_with, values_come_back_as_they_went};

#[tokio::test]
async fn strings_hashes_lists_sets_and_sorted_sets_work_through_the_traits() {
    let (_redis, mut con) = pair().await;
    let () = con.set("s", "v").await.unwrap();
    assert_eq!(con.get::<_, String>("s").await.unwrap(), "v");
    assert_eq!(con.get::<_, Option<String>>("none").await.unwrap(), None);
    assert_eq!(con.incr::<_, _, i64>("n", 5).await.unwrap(), 5);
    let () = con.hset_multiple("h", &[("a", 1), ("b", 2)]).await.unwrap();
    let map: HashMap<String, i64> = con.hgetall("h").await.unwrap();
    assert_eq!(map["b"], 2);
    assert_eq!(con.rpush::<_, _, i64>("l", &[1, 2, 3]).await.unwrap(), 3);
    assert_eq!(
        con.lrange::<_, Vec<i64>>("l", 0, -1).await.unwrap(),
        [1, 2, 3]
    );
    assert_eq!(con.sadd::<_, _, i64>("set", &["x", "y"]).await.unwrap(), 2);
    assert!(con.sismember::<_, _, bool>("set", "x").await.unwrap());
    let () = con
        .zadd_multiple("z", &[(1.5, "one"), (2.5, "two")])
        .await
        .unwrap();
    let ranked: Vec<(String, f64)> = con.zrange_withscores("z", 0, -1).await.unwrap();
    assert_eq!(ranked[1], ("two".to_owned(), 2.5));
}

#[tokio::test]
async fn streams_and_geo_work_through_the_traits() {
    let (_redis, mut con) = pair().await;
    let id: String = con.xadd("log", "*", &[("k", "v")]).await.unwrap();
    let read: StreamReadReply = con.xread(&["log"], &["0"]).await.unwrap();
    assert_eq!(read.keys[0].ids[0].id, id);
    let () = con
        .geo_add(
            "places",
            &[
                (13.361_389, 38.115_556, "Palermo"),
                (15.087_269, 37.502_669, "Catania"),
            ],
        )
        .await
        .unwrap();
    let km: f64 = con
        .geo_dist("places", "Palermo", "Catania", redis::geo::Unit::Kilometers)
        .await
        .unwrap();
    assert!((km - 166.27).abs() < 0.1, "{km}");
}

#[tokio::test]
async fn pipelines_transactions_scripts_and_scans_work_unchanged() {
    let (_redis, mut con) = pair().await;
    let (a, b): (i64, i64) = redis::pipe()
        .set("a", 1)
        .ignore()
        .set("b", 2)
        .ignore()
        .get("a")
        .get("b")
        .query_async(&mut con)
        .await
        .unwrap();
    assert_eq!((a, b), (1, 2));
    let (n,): (i64,) = redis::pipe()
        .atomic()
        .set("k", 41)
        .ignore()
        .incr("k", 1)
        .query_async(&mut con)
        .await
        .unwrap();
    assert_eq!(n, 42);
    let script = redis::Script::new("return redis.call('GET', KEYS[1]) .. ARGV[1]");
    let text: String = script
        .key("k")
        .arg("!")
        .invoke_async(&mut con)
        .await
        .unwrap();
    assert_eq!(text, "42!");
    let mut found = 0;
    for n in 0..500 {
        let () = con.set(format!("scan:{n}"), n).await.unwrap();
    }
    let mut scan = con.scan_match::<_, String>("scan:*").await.unwrap();
    while let Some(key) = scan.next_item().await {
        assert!(key.unwrap().starts_with("scan:"));
        found += 1;
    }
    assert!(found >= 500, "{found}");
}

/// Both connections, of which one is redis-rs' own.
async fn with_theirs() -> (
    steadfast_drill::process::Redis,
    steadfast::Client,
    redis::aio::MultiplexedConnection,
) {
    let (redis, ours) = pair().await;
    let theirs = redis::Client::open(redis.url()).unwrap();
    let theirs = theirs.get_multiplexed_async_connection().await.unwrap();
    (redis, ours, theirs)
}

#[tokio::test]
async fn c2_an_aborted_transaction_is_the_error_that_redis_rs_makes_of_it() {
    let (_redis, mut con, mut theirs) = with_theirs().await;
    let mut pipe = redis::pipe();
    pipe.atomic().set("k", 1).cmd("NOSUCHCOMMAND").incr("k", 1);
    pipe.cmd("GET").cmd("EVAL");
    let error = pipe.query_async::<()>(&mut con).await.unwrap_err();
    let said = pipe.query_async::<()>(&mut theirs).await.unwrap_err();
    assert_eq!(error.to_string(), said.to_string());
    assert_eq!(error.kind(), said.kind());
    assert_eq!(error.code(), Some("EXECABORT"));
    assert_eq!(steadfast::certainty(&error), Certainty::Rejected);
    let at = |error: redis::RedisError| -> Vec<_> {
        let errors = error.into_server_errors().expect("they are the server's");
        errors
            .iter()
            .map(|(at, error)| (*at, error.to_string()))
            .collect()
    };
    let ours = at(error);
    assert_eq!(
        ours.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [1, 3, 4]
    );
    assert_eq!(ours, at(said));
    assert_eq!(con.get::<_, Option<i64>>("k").await.unwrap(), None);
}

#[tokio::test]
async fn c2_what_is_empty_is_answered_as_redis_rs_answers_it() {
    let (_redis, client, mut theirs) = with_theirs().await;
    let session = client.session().await.unwrap();
    let transaction = redis::pipe().atomic().to_owned();
    let none = redis::pipe();
    let nothing = redis::Cmd::new();
    let all: Vec<Value> = transaction.query_async(&mut theirs).await.unwrap();
    assert!(all.is_empty());
    async fn judge<C: redis::aio::ConnectionLike>(
        mut con: C,
        transaction: &redis::Pipeline,
        [none, nothing]: [String; 2],
    ) {
        let () = transaction.query_async(&mut con).await.unwrap();
        let all: Vec<Value> = transaction.query_async(&mut con).await.unwrap();
        assert!(all.is_empty());
        let error = redis::pipe().query_async::<()>(&mut con).await.unwrap_err();
        assert_eq!(error.to_string(), none);
        let cmd = redis::Cmd::new();
        let error = cmd.query_async::<()>(&mut con).await.unwrap_err();
        assert_eq!(error.to_string(), nothing);
    }
    let said = [
        none.query_async::<()>(&mut theirs)
            .await
            .unwrap_err()
            .to_string(),
        nothing
            .query_async::<()>(&mut theirs)
            .await
            .unwrap_err()
            .to_string(),
    ];
    judge(client.clone(), &transaction, said.clone()).await;
    judge(session, &transaction, said).await;
}

#[tokio::test]
async fn c2_a_transaction_or_script_that_ran_half_way_is_unknown_through_the_traits_too() {
    let (_redis, client) = pair().await;
    let mut session = client.session().await.unwrap();
    for words in ["SET text x", "MULTI", "INCR n", "LPUSH text x"] {
        let _: redis::Value = cmd(words).query_async(&mut session).await.unwrap();
    }
    let exec = cmd("EXEC").query_async::<redis::Value>(&mut session).await;
    let error = exec.expect_err("LPUSH failed");
    assert_eq!(error.code(), Some("WRONGTYPE"), "{error}");
    assert_eq!(steadfast::certainty(&error), Certainty::Unknown, "INCR ran");
    let half_way = "redis.call('INCR', 'n') return {redis.pcall('LPUSH', 'text', 'x')}";
    let mut script = redis::cmd("EVAL");
    script.arg(half_way).arg(0);
    let answer = script
        .query_async::<redis::Value>(&mut client.clone())
        .await;
    let error = answer.expect_err("it holds an error");
    assert_eq!(steadfast::certainty(&error), Certainty::Unknown, "INCR ran");
    assert_eq!(client.clone().get::<_, i64>("n").await.unwrap(), 2);
}

#[tokio::test]
async fn the_error_of_a_pipeline_is_found_at_its_place() {
    let (_redis, mut con) = pair().await;
    let results: Vec<redis::RedisResult<redis::Value>> = redis::pipe()
        .set("k", "text")
        .incr("k", 1)
        .get("k")
        .ignore_errors()
        .query_async(&mut con)
        .await
        .unwrap();
    assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok());
}

#[tokio::test]
async fn resp3_a_database_and_a_name_are_taken_from_the_url_and_the_builder() {
    let redis = steadfast_drill::process::Redis::start().await.unwrap();
    let url = format!("{}/3?protocol=resp3", redis.url().trim_end_matches('/'));
    let mut con = steadfast::Client::builder(&url)
        .unwrap()
        .name("compat")
        .connect()
        .await
        .unwrap();
    let () = con.hset("h", "f", 1).await.unwrap();
    let map: HashMap<String, i64> = con.hgetall("h").await.unwrap();
    assert_eq!(map["f"], 1);
    let info: String = redis::cmd("CLIENT")
        .arg("INFO")
        .query_async(&mut con)
        .await
        .unwrap();
    assert!(
        info.contains("db=3") && info.contains("name=compat") && info.contains("resp=3"),
        "{info}"
    );
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let redis = steadfast_drill::process::Redis::start().await.unwrap();
    let socket = redis.folder().join("control.sock");
    let mut con = steadfast::Client::builder(&format!("unix://{}", socket.display()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let () = con.set("k", 1).await.unwrap();
    assert_eq!(con.get::<_, i64>("k").await.unwrap(), 1);
    values_come_back_as_they_went(&con).await;
}

#[tokio::test]
async fn values_of_every_size_come_back_as_they_went() {
    let (_redis, client) = pair().await;
    values_come_back_as_they_went(&client).await;
}

#[tokio::test]
async fn large_values_and_ten_thousand_commands_in_one_pipeline_pass() {
    let (_redis, mut con) = pair_with(|b| b.deadline(std::time::Duration::from_secs(20))).await;
    let big = vec![7u8; 20 << 20];
    let () = con.set("big", &big).await.unwrap();
    assert_eq!(con.get::<_, Vec<u8>>("big").await.unwrap(), big);
    let mut pipe = redis::pipe();
    for n in 0..10_000 {
        pipe.cmd("ECHO").arg(n);
    }
    let echoed: Vec<i64> = pipe.query_async(&mut con).await.unwrap();
    assert_eq!(echoed.len(), 10_000);
    assert!(echoed.iter().enumerate().all(|(n, e)| n as i64 == *e));
}

#[tokio::test]
async fn a_pipeline_of_one_command_answers_as_one_of_more_and_as_redis_rs_does() {
    let (redis, mut con) = pair().await;
    let theirs = redis::Client::open(redis.url()).unwrap();
    let mut theirs = theirs.get_multiplexed_async_connection().await.unwrap();
    con.set::<_, _, ()>("text", "x").await.unwrap();
    let pipe = redis::pipe().incr("text", 1).to_owned();
    let ours = pipe.query_async::<()>(&mut con).await.unwrap_err();
    let theirs_said = pipe.query_async::<()>(&mut theirs).await.unwrap_err();
    assert_eq!(ours.to_string(), theirs_said.to_string());
    assert_eq!(ours.code(), theirs_said.code());
    let mut ignoring = pipe.clone();
    ignoring.ignore_errors();
    let results: Vec<redis::RedisResult<i64>> = ignoring.query_async(&mut con).await.unwrap();
    assert!(results.len() == 1 && results[0].is_err());
    let replies = con.send_pipeline(&pipe).await.unwrap();
    assert!(matches!(&replies[..], [redis::Value::ServerError(_)]));
}
