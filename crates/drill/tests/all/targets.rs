//! Applications that are not ours, drilled through the proxy.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use steadfast_drill::process::{Port, Redis};
use steadfast_drill::report::{Verdict, json, junit, table, timeline, traffic};
use steadfast_drill::scenario::{Phases, Scenario};
use steadfast_drill::target::{TargetError, TargetOptions, TargetReport, run_target};
use steadfast_drill::verdict::Kpi;
use steadfast_drill::waiting::until;

/// A Python with redis-py and a client of Toxiproxy, made once for all tests.
pub(crate) fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let (python, done) = (folder.join("bin/python"), folder.join("done-3"));
    if !done.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        succeed(
            Command::new(&python).args([
                "-m",
                "pip",
                "install",
                "-q",
                "-r",
                example("python/fastapi_users/requirements.txt")
                    .to_str()
                    .unwrap(),
                "-r",
                example("python/own_tests/requirements.txt")
                    .to_str()
                    .unwrap(),
            ]),
        );
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
    let done = folder.join("done-2");
    if !done.exists() {
        succeed(
            Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund"])
                .args(["--prefix", folder.to_str().unwrap()])
                .args(["toxiproxy-node-client@4.1.0", "ioredis@5.11.1"]),
        );
        std::fs::write(done, "").unwrap();
    }
    folder
}

/// A copy of an example in that folder, since node looks for its packages from where the program
/// lies. It appears there whole: other tests may be running it.
pub(crate) fn copied(example: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join(example.file_name().unwrap());
    let whole = tempfile::NamedTempFile::new_in(folder).unwrap();
    std::fs::copy(example, whole.path()).unwrap();
    whole.persist(&copy).unwrap();
    copy
}

pub(crate) fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(path)
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
    let mut options = TargetOptions::new(redis.addr().to_string(), command);
    options.recovery = Duration::from_secs(4);
    options
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

/// The examples as they stand: what their users got is for their authors to judge, but it is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_the_examples_in_python_and_node_are_drilled_as_they_stand() {
    let redis = Redis::start().await.unwrap();
    let (python, node) = tokio::task::spawn_blocking(|| (python(), node()))
        .await
        .unwrap();
    let copy = copied(&example("node/user-search/app.mjs"), &node);
    let fastapi = format!(
        "exec {} -m uvicorn --app-dir {} app:app --log-level warning --port",
        python.display(),
        example("python/fastapi_users").display()
    );
    let redis = &redis;
    let drills = [
        ("python/fastapi_users", fastapi),
        ("node/user-search", format!("exec node {}", copy.display())),
    ]
    .map(|(folder, command)| async move {
        let port = Port::free().unwrap().addr().port();
        let text = std::fs::read_to_string(example(folder).join("scenario.toml")).unwrap();
        let mut scenario = Scenario::parse(&text).unwrap();
        let second = Duration::from_secs(1);
        scenario.phases = Phases {
            warm_up: second,
            baseline: second,
            fault: second,
            recovery: second,
            recovered: second,
        };
        scenario.steps[0].lasts = second;
        let load = scenario.http.as_mut().unwrap();
        load.url = format!("http://127.0.0.1:{port}");
        let report = run_target(&scenario, options(redis, format!("{command} {port}")))
            .await
            .unwrap();
        let text = table::render_target(&report, false);
        let users = report.users.as_ref().unwrap();
        assert!(
            users.phases.iter().all(|phase| phase.ok > 10),
            "{folder}: {text}"
        );
        assert_eq!(report.untouched.len(), 0, "{folder}: {text}");
        assert!(report.exit_status.is_none(), "{folder}: {text}");
    });
    futures_util::future::join_all(drills).await;
}

/// Seven applications of one purpose, and what their users would have felt: the verdict is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_an_application_is_judged_by_what_its_users_get() {
    let redis = Redis::start().await.unwrap();
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/applications/users.py");
    let (redis, python, program) = (&redis, &python, &program);
    let drills = [
        ("falls-back", "down", None),
        ("answers-500", "down", Some("errors")),
        ("hangs", "stall", Some("errors")),
        ("serves-the-overwritten", "down", Some("wrong_answers")),
        ("stays-stale", "down", Some("stale_answers")),
        ("exits", "down", Some("exit_status")),
        ("gives-up", "down", Some("redis_in_use")),
    ]
    .map(|(kind, fault, missed)| async move {
        let port = Port::free().unwrap();
        let address = port.addr();
        drop(port);
        let mut scenario = with_users(fault, address);
        if kind != "hangs" {
            // No longer than is felt: only who hangs keeps its users for their whole time-out.
            let long = Duration::from_millis(2500);
            (scenario.phases.fault, scenario.steps[0].lasts) = (long, long);
        }
        let command = format!(
            "exec {} {} {} {kind}",
            python.display(),
            program.display(),
            address.port()
        );
        let mut options = options(redis, command);
        // One never comes back; the others end as soon as they have.
        let patience = if kind == "gives-up" { 4 } else { 10 };
        options.recovery = Duration::from_secs(patience);
        let report = run_target(&scenario, options).await.unwrap();
        let text = table::render_target(&report, false);
        let failed: Vec<_> = report
            .kpis
            .iter()
            .filter(|kpi| !kpi.pass)
            .map(|kpi| kpi.name)
            .collect();
        match missed {
            None => assert!(report.passed(), "{kind}: {text}"),
            Some(missed) => assert!(failed.contains(&missed), "{kind}: {failed:?}\n{text}"),
        }
        if kind == "gives-up" {
            assert_eq!(
                failed,
                [missed.unwrap()],
                "its users noticed nothing: {text}"
            );
        }
        let page = traffic::render(&report);
        assert!(page.contains("What its users got"), "{kind}");
        // One verdict, wherever it is read.
        let junit = junit::render_target(&report);
        let wanted = format!("failures=\"{}\"", failed.len());
        assert!(junit.contains(&wanted), "{kind}: {junit}");
        assert_eq!(page.contains("<b>Passed</b>"), report.passed(), "{kind}");
        let resolved = text.contains("± 20.0 ms");
        assert_eq!(resolved, kind != "exits", "{kind}: {text}");
        let picture = timeline::render_target(&report);
        assert!(picture.contains("Its users"), "{kind}: {picture}");
    });
    // A few at a time: they are judged by what they do, not by how busy they make the machine.
    let drills = futures_util::stream::iter(drills).buffer_unordered(3);
    drills.collect::<()>().await;
}

fn users_py(address: std::net::SocketAddr, python: &Path) -> String {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/applications/users.py");
    let (python, program) = (python.display(), program.display());
    format!("exec {python} {program} {} falls-back", address.port())
}

fn failed(report: &TargetReport) -> Vec<&'static str> {
    let failed = report.kpis.iter().filter(|kpi| !kpi.pass);
    failed.map(|kpi| kpi.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_redis_and_the_database_of_an_application_break_together_and_neither_is_touched() {
    let (redis, database) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let beside = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let (first, second) = (Port::free().unwrap(), Port::free().unwrap());
    let [address, other] = [first.addr(), second.addr()];
    drop((first, second));
    let both =
        "[[steps]]\nfault = 'down'\n[[steps]]\nfault = 'database_down'\nat = '1s'\nfor = '3s'\n";
    let text = format!(
        "name = 'both'\nphases = {{ baseline = '1s', fault = '5s', recovery = '1s', recovered = '1s' }}\n{both}"
    );
    let steps = Scenario::parse(&text).unwrap().steps;
    let drill = |address, redis, database: &Redis| {
        let mut scenario = with_users("down", address);
        scenario.steps = steps.clone();
        let mut options = options(redis, users_py(address, &python));
        options.database = Some(database.addr().to_string());
        options.recovery = Duration::from_secs(30);
        (scenario, options)
    };
    let (scenario, options) = drill(address, &redis, &database);
    // The same with nothing broken, to compare with.
    let (as_broken, mut unbroken) = drill(other, &beside.0, &beside.1);
    unbroken.well = true;
    let (report, well) = tokio::join!(
        run_target(&scenario, options.clone()),
        run_target(&as_broken, unbroken)
    );
    let (report, well) = (report.unwrap(), well.unwrap());
    let text = table::render_target(&report, false);
    let names: Vec<_> = report.faults.iter().map(|fault| fault.name).collect();
    assert_eq!(names, ["down", "database_down"], "{text}");
    assert!(report.untouched.is_empty(), "{text}");
    // Away from Redis it goes to its database, and without that it has nothing to say.
    assert!(failed(&report).contains(&"errors"), "{text}");
    let users = report.users.unwrap();
    assert!(users.well_ms.is_some(), "{text}");

    let text = table::render_target(&well, false);
    assert!(well.faults.is_empty() && well.passed(), "{text}");

    let without = TargetOptions {
        database: None,
        ..options
    };
    let error = run_target(&scenario, without).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--database host:port"), "{error}");
    for server in [&redis, &database] {
        server.command(&["PING"]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_an_application_that_runs_already_is_drilled_at_the_address_that_it_has_for_redis() {
    let redis = Redis::start().await.unwrap();
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let [address, proxy] = [Port::free().unwrap().addr(), Port::free().unwrap().addr()];
    let mut application = tokio::process::Command::new("sh");
    application.args(["-c", &users_py(address, &python)]);
    application.env("REDIS_HOST", proxy.ip().to_string());
    application.env("REDIS_PORT", proxy.port().to_string());
    let mut application = application.kill_on_drop(true).spawn().unwrap();
    let mut options = options(&redis, "");
    (options.command, options.listen) = (None, Some(proxy));
    options.recovery = Duration::from_secs(10);
    let report = run_target(&with_users("down", address), options)
        .await
        .unwrap();
    let text = table::render_target(&report, false);
    assert!(report.passed(), "{text}");
    assert!(text.contains("a program that runs already"), "{text}");
    let ends = ["exit_status", "lived"];
    assert!(
        report.kpis.iter().all(|kpi| !ends.contains(&kpi.name)),
        "{text}"
    );
    assert!(application.try_wait().unwrap().is_none(), "it was ended");
}

/// No figure would be taken for a good one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_limit_of_stale_answers_that_no_answer_could_be_held_against_is_told_of() {
    let redis = Redis::start().await.unwrap();
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let address = Port::free().unwrap().addr();
    let mut silent = with_users("down", address);
    let second = Duration::from_secs(1);
    (silent.phases.fault, silent.steps[0].lasts) = (second, second);
    for request in &mut silent.http.as_mut().unwrap().requests {
        request.stale = None;
    }
    let report = run_target(&silent, options(&redis, users_py(address, &python)));
    let report = report.await.unwrap();
    assert!(report.staleness_unseen);
    let is_there = |kpi: &Kpi| kpi.name == "stale_answers";
    assert!(!report.kpis.iter().any(is_there));
    let text = table::render_target(&report, false);
    for told in [text, traffic::render(&report)] {
        assert!(told.contains("stale answers were not measured"), "{told}");
    }
}

/// A scenario with a load on an application at that address: reads, and writes that are read back.
fn with_users(fault: &str, address: std::net::SocketAddr) -> Scenario {
    Scenario::parse(&format!(
        r#"
        name = "users"
        load = {{ rate = 40, zipf = 0.5 }}
        phases = {{ warm_up = "500ms", baseline = "1500ms", fault = "5s", recovery = "1s", recovered = "1s" }}
        steps = [{{ fault = "{fault}" }}]
        # A busy machine is not what is judged here.
        thresholds = {{ fault_p99 = "4s", slowest = "20s", errors = "5%", write_errors = "5%", allowed_age = "1s", stale_answers = "1%" }}
        [target.http]
        url = "http://{address}"
        timeout = "3s"
        [[target.http.requests]]
        request = "GET /users/{{1..10}}"
        weight = 3
        json = "/name"
        value = "/name"
        stale = "/stale"
        [[target.http.requests]]
        request = "PUT /users/{{1..10}}"
        body = '{{"name": "v{{value}}"}}'
        "#
    ))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_fault_that_touches_nothing_makes_the_drill_void_everywhere() {
    let redis = Redis::start().await.unwrap();
    // A misspelt command, and a program that asks for others.
    let scenario = Scenario::parse(
        "name = 'misspelt'\nphases = { warm_up = '0s', baseline = '500ms', fault = '500ms', recovery = '500ms', recovered = '500ms' }\n\
         [[steps]]\nfault = 'resp_error'\nerror = 'ERR no'\ncommands = ['GTE']\n",
    )
    .unwrap();
    let asks = r#"bash -c "exec 3<>/dev/tcp/\$REDIS_HOST/\$REDIS_PORT
        while printf '*2\r\n\$3\r\nGET\r\n\$1\r\nk\r\n' >&3 && read -r _ <&3; do sleep 0.02; done""#;
    let mut options = options(&redis, asks);
    options.recovery = Duration::from_secs(2);
    let report = run_target(&scenario, options).await.unwrap();
    let text = table::render_target(&report, false);
    assert_eq!(report.verdict, Verdict::Void, "{text}");
    assert!(
        text.contains("VOID") && text.contains("resp_error touched nothing"),
        "{text}"
    );
    let junit = junit::render_target(&report);
    assert!(junit.contains("failures=\"1\""), "{junit}");
    assert!(traffic::render(&report).contains("Void: nothing is proven"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_scenario_that_breaks_nothing_proves_nothing_of_an_application() {
    let redis = Redis::start().await.unwrap();
    let mut nothing = scenario("down");
    nothing.steps.clear();
    let report = run_target(&nothing, options(&redis, "sleep 60")).await;
    let report = report.unwrap();
    let text = table::render_target(&report, false);
    assert_eq!(report.verdict, Verdict::Void, "{text}");
    let says = "nothing is broken by this scenario, so this drill proves nothing\n";
    assert!(text.contains(says), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_what_left_the_programs_session_is_ended_too_and_secrets_stay_out_of_reports() {
    let redis = Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let command = format!(
        "setsid sleep 600 & echo $! > {}; echo password=hunter2; : --token hunter2; sleep 600",
        pid_file.display()
    );
    let mut options = options(&redis, command);
    // It never asks Redis for anything.
    options.recovery = Duration::ZERO;
    let report = run_target(&scenario("down"), options).await.unwrap();
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let alive = Path::new("/proc").join(pid.trim()).join("cmdline");
    let left = std::fs::read(alive).unwrap_or_default();
    assert!(left.is_empty(), "{pid} outlived the drill");
    let json = json::render_target(&report);
    assert!(json.contains("password=***"), "its lines are kept: {json}");
    for text in [
        json,
        traffic::render(&report),
        table::render_target(&report, false),
    ] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_program_that_ends_badly_or_too_soon_or_never_asks_redis_fails() {
    let redis = Redis::start().await.unwrap();
    let redis = &redis;
    let drills = [
        ("sleep 2; exit 3", "exit_status"),
        ("exit 0", "lived"),
        ("sleep 60", "used_redis"),
    ]
    .map(|(command, fails)| async move {
        let mut options = options(redis, command);
        // None of them is ever seen with Redis.
        options.recovery = Duration::from_secs(1);
        let report = run_target(&scenario("down"), options).await.unwrap();
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
    });
    futures_util::future::join_all(drills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_connection_that_faults_of_the_protocol_do_not_reach_is_told_of() {
    let redis = Redis::start().await.unwrap();
    let subscribes = r#"bash -c "exec 3<>/dev/tcp/\$REDIS_HOST/\$REDIS_PORT
        printf '*2\r\n\$9\r\nSUBSCRIBE\r\n\$1\r\nc\r\n' >&3; sleep 60""#;
    let redis = &redis;
    let drills = [("oom", 1), ("down", 0)].map(|(fault, unfollowed)| async move {
        let mut options = options(redis, subscribes);
        // It sits there, and is not waited for.
        options.recovery = Duration::ZERO;
        let report = run_target(&scenario(fault), options).await.unwrap();
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
    until("the program runs", || {
        std::fs::read_to_string(&pid_file).is_ok_and(|text| text.len() >= 2)
    })
    .await;
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
