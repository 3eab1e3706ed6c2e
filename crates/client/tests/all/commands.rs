//! C2, C3, C9, C11: what is judged of commands and of the replies to them.

use redis::Value;
use steadfast::{CallOptions, Certainty, Client, ConnectionState, Effect, ErrorKind, Limits};
use steadfast_drill::fault::{Latency, RespSilence, Toxic};

use crate::support::{cmd, ms, pair, pair_with, proxied, until, until_seen, until_state};

/// In the words of the server, each of which would be worth a repeat, a reset or a failure of the
/// breaker.
const WORDS: [&str; 8] = [
    "LOADING Redis is loading the dataset in memory",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script.",
    "MASTERDOWN Link with MASTER is down",
    "CLUSTERDOWN The cluster is down",
    "READONLY You can't write against a read only replica.",
    "NOAUTH Authentication required.",
    "ERR unknown command 'EVAL', with args beginning with: ",
];

fn eval(script: &str) -> redis::Cmd {
    let mut eval = redis::cmd("EVAL");
    eval.arg(script).arg(0);
    eval
}

async fn number(client: &Client, key: &str) -> i64 {
    let value = client.send(&cmd(&format!("GET {key}"))).await.unwrap();
    redis::from_redis_value(value).unwrap()
}

#[tokio::test]
async fn c3_a_script_or_function_that_was_answered_has_run_once_whatever_the_words_of_its_error() {
    let (_redis, client) = pair().await;
    let load = "#!lua name=l\nredis.register_function('f', function(_, words) \
                redis.call('INCR', 'n') return redis.error_reply(words[1]) end)";
    let mut function = redis::cmd("FUNCTION");
    function.arg("LOAD").arg(load);
    client.send(&function).await.unwrap();
    let mut runs = 0;
    for words in WORDS {
        let mut script = redis::cmd("EVAL");
        script.arg("redis.call('INCR', 'n') return redis.error_reply(ARGV[1])");
        script.arg(0).arg(words);
        let mut function = redis::cmd("FCALL");
        function.arg("f").arg(0).arg(words);
        for cmd in [&script, &function] {
            let error = client.send(cmd).await.expect_err(words);
            assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
            assert!(matches!(error.kind(), ErrorKind::Server(_)), "{error}");
            runs += 1;
            assert_eq!(number(&client, "n").await, runs, "{words}");
            let pipe = redis::pipe().add_command(cmd.clone()).to_owned();
            client.send_pipeline(&pipe).await.expect("it has run");
            runs += 1;
            assert_eq!(number(&client, "n").await, runs, "{words} in a pipeline");
        }
    }
    let status = client.status();
    assert_eq!(
        (status.breaker, status.reconnects),
        ("closed", 0),
        "for all callers"
    );
}

#[tokio::test]
async fn c3_a_script_that_hands_on_what_a_command_of_its_own_was_told_is_not_run_again() {
    let (redis, client) = pair().await;
    client.send(&cmd("SET runs 0")).await.unwrap();
    // Written before the server lacks replicas, and by publishing after it: the script has done
    // something each time.
    let mut listener = client.pubsub();
    listener.subscribe("runs").await.unwrap();
    redis
        .command(&["CONFIG", "SET", "min-replicas-to-write", "1"])
        .await
        .unwrap();
    let script = "redis.call('PUBLISH', 'runs', '1') local r = redis.pcall('SET', 'k', '1') \
                  if r.err then return r end";
    let error = client.send(&eval(script)).await.unwrap_err();
    assert!(error.to_string().starts_with("NOREPLICAS"), "{error}");
    assert_eq!(error.certainty(), Certainty::Unknown);
    redis.command(&["PUBLISH", "runs", "end"]).await.unwrap();
    let mut heard = 0;
    while next_message(&mut listener).await != b"end" {
        heard += 1;
    }
    assert_eq!(heard, 1, "once");
}

async fn next_message(listener: &mut steadfast::PubSub) -> Vec<u8> {
    loop {
        if let steadfast::PubSubEvent::Message { payload, .. } = listener.next().await.unwrap() {
            return payload;
        }
    }
}

#[tokio::test]
async fn c7_readonly_in_the_words_of_a_script_is_believed_of_a_server_that_is_a_replica_only() {
    let (redis, client) = pair().await;
    for words in WORDS {
        let mut script = redis::cmd("EVAL");
        script
            .arg("return redis.error_reply(ARGV[1])")
            .arg(0)
            .arg(words);
        client.send(&script).await.unwrap_err();
        let pipe = redis::pipe().add_command(script).to_owned();
        client.send_pipeline(&pipe).await.unwrap();
    }
    assert_eq!(client.status().reconnects, 0, "it was made up");
    assert_eq!(client.state(), ConnectionState::Ready);
    // Nothing but scripts is sent, and yet it is found out.
    redis
        .command(&["REPLICAOF", "127.0.0.1", "1"])
        .await
        .unwrap();
    let write = eval("return redis.call('SET', 'k', 'v')");
    until("the replica is left", || {
        client.state() != ConnectionState::Ready || {
            let client = client.clone();
            let write = write.clone();
            tokio::spawn(async move { client.send(&write).await });
            false
        }
    })
    .await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client.send(&write).await.unwrap();
}

#[tokio::test]
async fn c2_a_command_that_the_server_does_not_know_is_rejected() {
    let (_redis, client) = pair().await;
    for words in [
        "NO.SUCH k 1",
        "CLIENT NO-SUCH-THING",
        "CONFIG NO-SUCH-THING",
    ] {
        let cmd = cmd(words);
        let error = match words.starts_with("CLIENT") {
            // It might change the connection.
            true => client
                .session()
                .await
                .unwrap()
                .send(&cmd)
                .await
                .unwrap_err(),
            false => client.send(&cmd).await.unwrap_err(),
        };
        assert!(error.to_string().contains("unknown"), "{error}");
        assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    }
}

#[tokio::test]
async fn c9_a_callers_own_short_deadline_does_not_open_the_breaker_for_all() {
    let (_redis, proxy, client) = proxied(|b| b.deadline(ms(5000))).await;
    let slow = Latency {
        latency: ms(40),
        jitter: ms(0),
    };
    let _id = proxy.add(Toxic::new(slow)).await.unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(5)));
    let get = cmd("GET k");
    let calls = (0..60).map(|_| hasty.send(&get));
    let mut timeouts = 0;
    for result in futures_util::future::join_all(calls).await {
        let error = result.expect_err("it takes longer");
        timeouts += usize::from(matches!(error.kind(), ErrorKind::Timeout { .. }));
    }
    assert!(timeouts >= 20, "{timeouts} of 60 reached the server");
    for _ in 0..10 {
        client.send(&get).await.expect("others have more time");
    }
    assert_eq!(client.status().breaker, "closed");
}

#[tokio::test]
async fn c11_a_reply_past_the_limits_is_asked_for_once_and_the_limits_can_be_set() {
    let limits = Limits {
        bulk_bytes: 1000,
        ..Limits::default()
    };
    let (redis, client) = pair_with(|b| b.reply_limits(limits).deadline(ms(5000))).await;
    let fits = "x".repeat(1000);
    redis.command(&["SET", "fits", &fits]).await.unwrap();
    redis
        .command(&["SET", "large", &format!("{fits}y")])
        .await
        .unwrap();
    client.send(&cmd("GET fits")).await.unwrap();
    redis.command(&["CONFIG", "RESETSTAT"]).await.unwrap();
    let error = client.send(&cmd("GET large")).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ReplyTooLarge { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("reply_limits"), "{error}");
    assert_eq!(error.certainty(), Certainty::Unknown, "it has run");
    assert!(!error.is_infrastructure());
    let lua = "return {redis.call('INCR', 'n'), string.rep('y', 1001)}";
    client.send(&eval(lua)).await.unwrap_err();
    let reads = client.with(CallOptions::new().effect(Effect::Read));
    reads.send(&eval(lua)).await.unwrap_err();
    assert_eq!(number(&client, "n").await, 2);
    let stats = redis.info("commandstats").await.unwrap();
    let gets = stats.lines().find(|line| line.starts_with("cmdstat_get:"));
    assert!(
        gets.unwrap().contains("calls=2,"),
        "one of n, one of large: {gets:?}"
    );
    assert_eq!(client.status().breaker, "closed");
}

/// What is sent runs, is not answered, and loses its connection.
async fn unanswered<T>(
    (redis, proxy): (
        &steadfast_drill::process::Redis,
        &steadfast_drill::proxy::Proxy,
    ),
    commands: &[&str],
    call: impl Future<Output = T> + Send + 'static,
    has_run: impl FnMut() -> bool,
) -> T
where
    T: Send + 'static,
{
    let silence = RespSilence {
        commands: commands.iter().map(|&command| command.into()).collect(),
        percentage: 100.0,
    };
    let id = proxy.add(Toxic::new(silence)).await.unwrap();
    let call = tokio::spawn(call);
    until("it has run", has_run).await;
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    proxy.remove(id).await;
    call.await.unwrap()
}

#[tokio::test]
async fn c3_a_client_may_repeat_only_reads_and_a_call_may_say_otherwise() {
    let (redis, proxy, client) = proxied(|b| {
        let patient = b.deadline(ms(9_000)).reconnect_grace(ms(9_000));
        patient.repeat_only_reads(true)
    })
    .await;
    let at = (&redis, &proxy);
    let is = |key: &'static str, value: &'static str| {
        let redis = &redis;
        move || redis.command_blocking(&["GET", key]).unwrap() == Value::BulkString(value.into())
    };
    let sender = client.clone();
    let set = async move { sender.send(&cmd("SET a 1")).await };
    let error = unanswered(at, &["SET"], set, is("a", "1"))
        .await
        .unwrap_err();
    assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
    let willing = client.with(CallOptions::new().effect(Effect::LastWins));
    let set = async move { willing.send(&cmd("SET b 1")).await };
    unanswered(at, &["SET"], set, is("b", "1")).await.unwrap();
    until_seen(&client, "connected").await;
    redis.command(&["CONFIG", "RESETSTAT"]).await.unwrap();
    let reader = client.clone();
    let get = async move { reader.send(&cmd("STRLEN b")).await };
    let asked = || {
        let info = redis.command_blocking(&["INFO", "commandstats"]).unwrap();
        redis::from_redis_value::<String>(info)
            .unwrap()
            .contains("cmdstat_strlen")
    };
    unanswered(at, &["STRLEN"], get, asked)
        .await
        .expect("reads are repeated");
}

#[tokio::test]
async fn c3_what_empties_a_database_is_repeated_only_where_the_caller_says_so() {
    let patient = |b: steadfast::ClientBuilder| b.deadline(ms(9_000)).reconnect_grace(ms(9_000));
    let (redis, proxy, client) = proxied(patient).await;
    let at = (&redis, &proxy);
    for (effect, theirs) in [(None, true), (Some(Effect::LastWins), false)] {
        redis.command(&["SET", "before", "1"]).await.unwrap();
        let options = CallOptions::new();
        let options = match effect {
            Some(effect) => options.effect(effect),
            None => options,
        };
        let sender = client.with(options);
        let flush = async move { sender.send(&cmd("FLUSHALL")).await };
        let mut written = false;
        let emptied = || {
            let gone = redis.command_blocking(&["GET", "before"]).unwrap() == Value::Nil;
            if gone && !written {
                // Acknowledged, after it has run and before it could be repeated.
                redis.command_blocking(&["SET", "theirs", "1"]).unwrap();
                written = true;
            }
            gone
        };
        let result = unanswered(at, &["FLUSHALL"], flush, emptied).await;
        assert_eq!(result.is_err(), effect.is_none(), "{result:?}");
        let left = redis.command(&["EXISTS", "theirs"]).await.unwrap();
        assert_eq!(left, Value::Int(i64::from(theirs)), "{effect:?}");
    }
}
