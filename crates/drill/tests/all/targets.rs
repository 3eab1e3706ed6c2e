//! Applications that are not ours, drilled through the proxy.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use steadfast_drill::process::Redis;
use steadfast_drill::report::{junit, table, traffic};
use steadfast_drill::scenario::Scenario;
use steadfast_drill::target::{TargetError, TargetOptions, run_target};
use tokio_util::sync::CancellationToken;

/// A Python with redis-py and a client of Toxiproxy, made once for all tests.
pub(crate) fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let (python, done) = (folder.join("bin/python"), folder.join("done"));
    if !done.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        succeed(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "-q",
            "redis==8.1.0",
            "toxiproxy-python==0.1.1",
        ]));
        std::fs::write(done, "").unwrap();
    }
    python
}

/// A folder with another client of Toxiproxy, for node.
pub(crate) fn node() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let done = folder.join("done");
    if !done.exists() {
        succeed(
            Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund"])
                .args(["--prefix", folder.to_str().unwrap()])
                .arg("toxiproxy-node-client@4.1.0"),
        );
        std::fs::write(done, "").unwrap();
    }
    folder
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn scenario(fault: &str) -> Scenario {
    Scenario::parse(&format!(
        "name = 'test'\nphases = {{ warm_up = '0s', baseline = '1500ms', fault = '1s', recovery = '1s', recovered = '1s' }}\n\
         [[steps]]\nfault = '{fault}'\n"
    ))
    .unwrap()
}

fn options(redis: &Redis, command: impl Into<String>) -> TargetOptions {
    TargetOptions {
        target: redis.addr().to_string(),
        command: command.into(),
        listen: None,
        stop: CancellationToken::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_python_program_is_drilled_through_the_proxy_and_its_redis_is_left_alone() {
    let redis = Redis::start().await.unwrap();
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python/page_views.py");
    let command = format!("{} {} --seconds 7", python.display(), program.display());
    let pid = redis.pid();
    let mut scenario = scenario("crash");
    // Time enough for an interpreter to start on a busy machine, and to end by itself.
    scenario.phases.baseline = Duration::from_secs(4);
    scenario.phases.recovered = Duration::from_secs(30);
    let report = run_target(&scenario, options(&redis, command))
        .await
        .unwrap();
    let text = table::render_target(&report, false);
    assert!(report.passed(), "{text}");
    assert_eq!(report.exit_status, Some(0), "{text}");
    let traffic = |name| {
        report
            .phases
            .iter()
            .find(|phase| phase.name == name)
            .unwrap()
    };
    assert!(
        traffic("baseline").bytes_down > 0 && traffic("recovered").bytes_down > 0,
        "{text}"
    );
    let page = traffic::render(&report);
    for shown in [
        "page_views.py",
        "Redis is down",
        "ended with status 0",
        "class=\"fault\"",
    ] {
        assert!(page.contains(shown), "the page lacks {shown}");
    }
    for outside in ["src=\"", "href=", "url(", "@import", "http://", "https://"] {
        assert!(!page.contains(outside), "the page asks for {outside}");
    }
    let seen: u64 = report.timeline.bytes_down.iter().sum();
    let told: u64 = report.phases.iter().map(|phase| phase.bytes_down).sum();
    assert_eq!(seen, told);
    let junit = junit::render_target(&report);
    assert!(
        junit.contains("name=\"exit_status\"") && junit.contains("failures=\"0\""),
        "{junit}"
    );
    assert_eq!(redis.pid(), pid);
    redis.command(&["PING"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_program_that_ends_badly_or_too_soon_or_never_asks_redis_fails() {
    let redis = Redis::start().await.unwrap();
    for (command, fails) in [
        ("sleep 2; exit 3", "exit_status"),
        ("exit 0", "lived"),
        ("sleep 9", "used_redis"),
    ] {
        let report = run_target(&scenario("down"), options(&redis, command))
            .await
            .unwrap();
        let failed: Vec<_> = report
            .kpis
            .iter()
            .filter(|kpi| !kpi.pass)
            .map(|kpi| kpi.name)
            .collect();
        assert!(
            !report.passed() && failed.contains(&fails),
            "{command}: {failed:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_connection_that_faults_of_the_protocol_do_not_reach_is_told_of() {
    let redis = Redis::start().await.unwrap();
    let subscribes = r#"bash -c "exec 3<>/dev/tcp/\$REDIS_HOST/\$REDIS_PORT
        printf '*2\r\n\$9\r\nSUBSCRIBE\r\n\$1\r\nc\r\n' >&3; sleep 60""#;
    let redis = &redis;
    let drills = [("oom", 1), ("down", 0)].map(|(fault, unfollowed)| async move {
        let report = run_target(&scenario(fault), options(redis, subscribes))
            .await
            .unwrap();
        let text = table::render_target(&report, false);
        assert_eq!(report.unfollowed, unfollowed, "{fault}: {text}");
        let says = "did not act on 1 connection that";
        assert_eq!(text.contains(says), unfollowed > 0, "{fault}: {text}");
        let page = traffic::render(&report);
        assert_eq!(page.contains(says), unfollowed > 0, "{fault}");
    });
    futures_util::future::join_all(drills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_what_cannot_be_drilled_is_refused_before_anything_runs() {
    let redis = Redis::start().await.unwrap();
    let refused =
        |scenario, options| async move { run_target(&scenario, options).await.unwrap_err() };
    let error = refused(scenario("old_snapshot"), options(&redis, "true")).await;
    assert!(
        matches!(
            error,
            TargetError::NotOnTheWire {
                fault: "old_snapshot"
            }
        ),
        "{error}"
    );
    let mut nowhere = options(&redis, "true");
    nowhere.target = "127.0.0.1:1".to_owned();
    let error = refused(scenario("down"), nowhere).await;
    assert_eq!(error.exit_status(), 69, "{error}");
    let mut taken = options(&redis, "true");
    taken.listen = Some(redis.addr());
    let error = refused(scenario("down"), taken).await;
    assert!(error.to_string().contains("is taken"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_stopped_drill_ends_the_program_and_all_that_it_started() {
    let redis = Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let options = options(
        &redis,
        format!("sleep 600 & echo $! > {}; wait", pid_file.display()),
    );
    let stop = options.stop.clone();
    let scenario = scenario("stall");
    let running = tokio::spawn(async move { run_target(&scenario, options).await });
    while std::fs::read_to_string(&pid_file).map_or(0, |text| text.len()) < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pid = std::fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .to_owned();
    stop.cancel();
    assert!(matches!(
        running.await.unwrap(),
        Err(TargetError::Interrupted)
    ));
    let gone = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        status.is_empty() || status.contains(") Z ")
    };
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while !gone() {
        assert!(
            tokio::time::Instant::now() < until,
            "{pid} outlived the drill"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
