//! The interface by its own description: a program that has never seen the service reads
//! `/openapi.json`, asks what it says may be asked and what it says may not, and holds every answer
//! to what it says is answered.

use std::path::{Path, PathBuf};
use std::process::Command;

use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config};

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

/// Every check, but one, where it cannot hold: no TOML that is made up is a scenario.
const CHECKS: &str = "
[checks]
enabled = true
[[operations]]
include-path = '/v1/drills'
include-method = 'POST'
[operations.checks.positive_data_acceptance]
enabled = false
# What its columns take, the description does not say.
[[operations]]
include-path = '/v1/statements/strict'
[operations.checks.positive_data_acceptance]
enabled = false
";

/// Asks what the description of `service` says, as far as `choice` goes; at least so many
/// operations.
async fn nothing_is_answered_otherwise(service: &Service, choice: &'static [&str], least: usize) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("schemathesis.toml"), CHECKS).unwrap();
    let address = service.url("/openapi.json");
    let asked = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(schemathesis());
        command
            .current_dir(folder.path())
            .args(["run", &address, "--no-color"])
            .args(choice)
            .args(["--phases", "coverage,fuzzing"])
            .args(["--seed", "1815", "--request-timeout", "30"])
            .args(["--suppress-health-check", "all", "--continue-on-failure"]);
        succeed(&mut command)
    });
    let said = asked.await.unwrap();
    let tested = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Tested: "));
    assert!(tested.unwrap().parse::<usize>().unwrap() >= least, "{said}");
    assert_eq!(service.get("/health/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_nothing_that_the_description_allows_is_answered_otherwise_than_it_says() {
    let service = Service::demo().await;
    // The streams of events do not end.
    nothing_is_answered_otherwise(
        &service,
        &["--max-examples", "30", "--exclude-path-regex", "events$"],
        17,
    )
    .await;
}

/// The queries and statements of the sample, and some with parameters that are left out, on another
/// database.
async fn nor_is_what_it_allows_of(url: &str, tables: &[&str]) {
    let more = "
[queries.optional]
sql = 'SELECT name FROM users WHERE (:least IS NULL OR id >= :least) ORDER BY id LIMIT 5'
params.least = { type = 'integer', optional = true }
[statements.strict]
sql = 'INSERT INTO strict_things (small, short) VALUES (:small, :short)'
params.small = { type = 'integer', optional = true }
params.short = { type = 'string', max_length = 40, optional = true }
";
    let sources = Sources::new()
        .text("sample", &format!("{SAMPLE}{more}"))
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "database.url", url);
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    for table in tables {
        let mut tx = app.database().begin().await.unwrap();
        tx.execute(table, &[]).await.unwrap();
        tx.commit().await.unwrap();
    }
    let service = Service::from_app(app).await;
    let choice = &[
        "--max-examples",
        "8",
        "--include-path-regex",
        "^/v1/(queries|statements)/",
    ];
    nothing_is_answered_otherwise(&service, choice, 7).await;
    let metrics = service.get("/metrics").await.text();
    let broken = metrics.lines().filter(|line| {
        line.contains("unavailable") && line.contains("steadfast_") && !line.ends_with(" 0")
    });
    assert_eq!(broken.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_nor_is_it_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let tables = [
        "CREATE TABLE users (id BIGINT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(200) NOT NULL, phone_number VARCHAR(32) NOT NULL, \
         email VARCHAR(254), created_at DATETIME NOT NULL) CHARACTER SET utf8mb4",
        "CREATE TABLE strict_things (small SMALLINT NOT NULL, short VARCHAR(10)) CHARACTER SET utf8mb4",
    ];
    nor_is_what_it_allows_of(&server.url(), &tables).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_nor_is_it_on_postgresql() {
    let server = Postgres::start().await.unwrap();
    let tables = [
        "CREATE TABLE users (id BIGSERIAL PRIMARY KEY, name TEXT NOT NULL, phone_number TEXT NOT NULL, email TEXT, created_at TIMESTAMPTZ NOT NULL)",
        "CREATE TABLE strict_things (small SMALLINT NOT NULL, short VARCHAR(10))",
    ];
    nor_is_what_it_allows_of(&server.url(), &tables).await;
}
