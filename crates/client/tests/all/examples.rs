//! C21: each example runs by itself against a real server, and prints what its comment promises.

use std::path::PathBuf;

use steadfast_drill::process::{Cluster, Redis};
use tokio::process::Command;

use crate::support::ms;
use crate::tls::Authority;

/// Runs a compiled example, which stands beside this binary's folder, and returns what it prints.
async fn printed_by(example: &str, variables: &[(&str, &str)]) -> String {
    let binary = std::env::current_exe().unwrap();
    let profile: PathBuf = binary.ancestors().nth(2).unwrap().into();
    let path = profile.join("examples").join(example);
    let mut command = Command::new(&path);
    command.kill_on_drop(true).envs(variables.iter().copied());
    let run = tokio::time::timeout(ms(30_000), command.output()).await;
    let output = run
        .unwrap_or_else(|_| panic!("the example {example} does not end"))
        .unwrap_or_else(|error| panic!("{}: {error}; `cargo build --examples`", path.display()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What an example prints at a server of its own, of which it must leave nothing behind.
async fn printed_at_a_server_by(example: &str) -> String {
    let redis = Redis::start().await.unwrap();
    let printed = printed_by(example, &[("REDIS_URL", &redis.url())]).await;
    let left = redis.command(&["DBSIZE"]).await.unwrap();
    assert_eq!(left, redis::Value::Int(0), "{example} leaves keys behind");
    let users = redis.command(&["ACL", "LIST"]).await.unwrap();
    assert!(!format!("{users:?}").contains("example"), "{users:?}");
    printed
}

#[tokio::test]
async fn c21_the_example_of_the_swap_counts_and_says_what_is_known_of_an_error() {
    let printed = printed_at_a_server_by("swap").await;
    let allowed: Vec<&str> = printed.lines().take(4).collect();
    let third = "allowed: true";
    assert_eq!(allowed, [third, third, third, "allowed: false"]);
    assert!(printed.contains("nothing was done: "), "{printed}");
}

#[tokio::test]
async fn c21_the_example_of_a_session_loses_no_coin() {
    let printed = printed_at_a_server_by("session").await;
    assert_eq!(printed, "withdrawn: 98, left: 2\n");
}

#[tokio::test]
async fn c21_the_example_of_pubsub_tells_the_loss_and_hears_on() {
    let printed = printed_at_a_server_by("pubsub").await;
    let first_words: Vec<&str> = printed
        .lines()
        .map(|line| line.split([':', ',']).next().unwrap())
        .collect();
    let order = ["subscribed", "heard", "lost", "resumed", "heard"];
    assert_eq!(first_words, order, "{printed}");
    assert!(printed.ends_with("heard: after\n"), "{printed}");
}

#[tokio::test]
async fn c21_the_example_of_credentials_rotates_without_a_lost_connection() {
    let printed = printed_at_a_server_by("credentials").await;
    assert!(printed.starts_with("the user: true\n"), "{printed}");
    assert!(printed.contains("event: reauthenticated\n"), "{printed}");
    assert!(!printed.contains("event: lost"), "{printed}");
    assert!(printed.ends_with("still the user: true\n"), "{printed}");
}

#[tokio::test]
async fn c21_the_example_of_tls_trusts_the_named_authority_and_no_other() {
    let (redis, folder) = Authority::new().server("127.0.0.1", 2100, false).await;
    let (url, ca) = (redis.url(), folder.path().join("ca.pem"));
    let ca = ca.to_str().unwrap();
    let printed = printed_by("tls", &[("REDIS_URL", &url), ("REDIS_CA", ca)]).await;
    assert!(printed.starts_with("PONG over TLSv1_3 "), "{printed}");

    let other = folder.path().join("other.pem");
    std::fs::write(&other, Authority::new().pem()).unwrap();
    let other = other.to_str().unwrap();
    let printed = printed_by("tls", &[("REDIS_URL", &url), ("REDIS_CA", other)]).await;
    assert!(printed.starts_with("no connection: "), "{printed}");
    assert!(printed.contains("certificate"), "{printed}");
}

#[tokio::test]
async fn c21_the_example_of_retry_waits_for_a_result_and_gives_up_on_none() {
    let printed = printed_at_a_server_by("retry").await;
    assert!(
        printed.contains("attempt 2: not yet\nresult: Some(\"42\")\n"),
        "{printed}"
    );
    assert!(
        printed.ends_with("gave up at attempt 6: the attempts are used up\n"),
        "{printed}"
    );
}

#[tokio::test]
async fn c21_the_example_of_a_cluster_finds_all_its_keys_and_asks_each_node() {
    let cluster = Cluster::shared().await.unwrap();
    let printed = printed_by("cluster", &[("REDIS_URL", &cluster.url())]).await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..3], ["carts: 20", "found: 20", "cart 0: apples"]);
    assert_eq!(lines.len(), 6, "{printed}");
    assert!(
        printed.contains("node with slots 0-5460: has keys: true"),
        "{printed}"
    );
    for at in 0..3 {
        let left = cluster.node(at).command(&["DBSIZE"]).await.unwrap();
        assert_eq!(left, redis::Value::Int(0));
    }
}
