//! D7: the example of a drill from the tests of an application of one's own runs by itself, and finds what its comment promises.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

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
