//! D7: the examples of a drill from the tests of an application of one's own run by themselves, and
//! find what their comments promise.

use std::path::PathBuf;
use std::time::Duration;

use steadfast_drill::api::{Proxies, serve};
use steadfast_drill::process::Redis;
use tokio::process::Command;

use crate::targets::{copied, example, node, python};

#[tokio::test]
async fn d7_the_example_drills_an_application_from_its_own_tests() {
    let binary = std::env::current_exe().unwrap();
    let profile: PathBuf = binary.ancestors().nth(2).unwrap().into();
    let path = profile.join("examples/own_tests");
    let mut command = Command::new(&path);
    let run = tokio::time::timeout(Duration::from_secs(60), command.kill_on_drop(true).output());
    let output = run
        .await
        .expect("the example ends")
        .unwrap_or_else(|error| panic!("{}: {error}; `cargo build --examples`", path.display()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "healthy: 3\nslow: list price\nfrozen: list price\nkilled: list price\nrestarted: 4\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_the_example_for_pytest_breaks_redis_by_toxiproxys_api() {
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let mut command = Command::new(python);
    let file = example("python/own_tests/test_price.py");
    command.args(["-m", "pytest", "-p", "no:cacheprovider", "-q"]);
    let said = passes(command.arg(file).env("PYTHONDONTWRITEBYTECODE", "1")).await;
    assert!(said.contains("5 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_the_example_for_node_test_breaks_redis_by_toxiproxys_api() {
    let folder = tokio::task::spawn_blocking(node).await.unwrap();
    let copy = copied(&example("node/own-tests/price.test.mjs"), &folder);
    let mut command = Command::new("node");
    let said = passes(command.args(["--test", "--test-reporter=tap"]).arg(copy)).await;
    assert!(said.contains("# pass 5"), "{said}");
}

/// Runs tests before a proxy and a Redis of their own; they pass, and this is what they say.
async fn passes(tests: &mut Command) -> String {
    let redis = Redis::start().await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(serve(listener, Proxies::new(1)));
    tests.env("REDIS_ADDR", redis.addr().to_string());
    tests.env("TOXIPROXY_ADDR", api);
    let run = tokio::time::timeout(Duration::from_secs(120), tests.kill_on_drop(true).output());
    let output = run.await.expect("they end").unwrap();
    serving.abort();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    said
}
