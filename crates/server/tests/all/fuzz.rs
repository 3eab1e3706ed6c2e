//! The interface by its own description: a program that has never seen the service reads `/openapi.json`, asks what it says may be
//! asked and what it says may not, and holds every answer to what it says is answered.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::Service;

/// Schemathesis, installed once for all runs.
fn schemathesis() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schemathesis");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let (program, done) = (folder.join("bin/st"), folder.join("done-4.32.5"));
    if !done.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        let install = ["-m", "pip", "install", "-q", "schemathesis==4.32.5"];
        succeed(Command::new(folder.join("bin/python")).args(install));
        std::fs::write(done, "").unwrap();
    }
    program
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = format!(
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    said
}

/// Every check, but one: no TOML that is made up is a scenario.
const CHECKS: &str = "
[checks]
enabled = true
[[operations]]
include-path = '/v1/drills'
include-method = 'POST'
[operations.checks.positive_data_acceptance]
enabled = false
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_nothing_that_the_description_allows_is_answered_otherwise_than_it_says() {
    let service = Service::demo().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("schemathesis.toml"), CHECKS).unwrap();
    let address = service.url("/openapi.json");
    let asked = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(schemathesis());
        command
            .current_dir(folder.path())
            .args(["run", &address, "--no-color"])
            // The streams of events do not end.
            .args(["--exclude-path-regex", "events$"])
            .args(["--phases", "coverage,fuzzing", "--max-examples", "30"])
            .args(["--seed", "1815", "--request-timeout", "30"])
            .args(["--suppress-health-check", "all", "--continue-on-failure"]);
        succeed(&mut command)
    });
    let said = asked.await.unwrap();
    let tested = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Tested: "));
    assert!(tested.unwrap().parse::<usize>().unwrap() >= 17, "{said}");
    assert_eq!(service.get("/health/ready").await.status, 200);
}
