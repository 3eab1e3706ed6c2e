//! The worker on a real Redis, which is restarted under it.

use steadfast_drill::process::Redis;
use tokio::process::Command;

#[tokio::test]
async fn c21_a_program_with_the_client_alone_needs_no_redis_rs_of_its_own() {
    let redis = Redis::start().await.unwrap();
    redis
        .command(&["RPUSH", "jobs", "sweep", "polish"])
        .await
        .unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_client"))
        .arg(redis.url())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let complaint = String::from_utf8_lossy(&ran.stderr);
    let expected = "sweep: 5 bytes, job 1\npolish: 6 bytes, job 2\n0 calls left unfinished\n";
    assert!(said.ends_with(expected), "{said}{complaint}");
    assert!(ran.status.success(), "{complaint}");
}
