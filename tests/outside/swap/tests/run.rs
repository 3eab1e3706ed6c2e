//! The shop on a real Redis.

use steadfast_drill::process::Redis;
use tokio::process::Command;

#[tokio::test]
async fn c21_a_program_of_redis_rs_works_after_the_swap_with_redis_rs_s_default_features() {
    let redis = Redis::start().await.unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_swap"))
        .arg(redis.url())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let complaint = String::from_utf8_lossy(&ran.stderr);
    let expected = "sold 2 lamps and 1 rug\n1 × lamp\n0 × rug\n2 lines in the log\n18446744073709551615 grains\n";
    assert_eq!((&*said, &*complaint), (expected, ""));
}
