use std::net::SocketAddr;

use steadfast_drill::process::Redis;

use crate::program::{Lines, finish, is_running, run, signal, steadfast, wait};
use crate::web::get;

fn written(folder: &std::path::Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("report.json")).unwrap()).unwrap()
}

/// A short drill that only a subject which does not work at all can fail: what is tested here is
/// the program around it.
const SHORT: &str = "
name = 'short-crash'
about = 'Redis is killed for a moment.'
phases = { warm_up = '200ms', baseline = '500ms', fault = '500ms', recovery = '1500ms', recovered = '1500ms' }
[load]
rate = 100
keys = 100
[[steps]]
fault = 'crash'
";
const LENIENT: &str = "
[thresholds]
connection_success = '1%'
fallback = '99%'
recovery = '30s'
hit_rate = '1%'
errors = '99%'
write_errors = '99%'
fault_p99 = '1m'
slowest = '1m'
allowed_age = '1m'
stale_answers = '100%'
";

#[tokio::test]
async fn a_drill_ends_with_a_table_a_report_and_its_verdict_as_status() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("short.toml"), folder.path().join("out"));
    std::fs::write(&file, format!("{SHORT}{LENIENT}")).unwrap();
    let ended = run(&[
        "drill",
        "run",
        file.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--seed",
        "7",
    ])
    .await;
    let report = written(&out);
    assert_eq!(report["verdict"], "passed", "{}", ended.all());
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    assert_eq!(report["seed"], 7);
    for field in [
        "schema",
        "scenario",
        "phases",
        "recovery",
        "kpis",
        "connection",
        "database",
        "control",
    ] {
        assert!(!report[field].is_null(), "no {field} in {report}");
    }
    let phases: Vec<_> = report["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| &phase["name"])
        .collect();
    assert!(phases.len() >= 3, "{phases:?}");
    assert!(report["control"]["phases"].is_array(), "{report}");
    assert!(
        std::fs::read_to_string(out.join("report.html"))
            .unwrap()
            .contains("short-crash")
    );
    assert!(
        std::fs::read_to_string(out.join("junit.xml"))
            .unwrap()
            .contains("<testsuite")
    );
    assert!(
        std::fs::read_to_string(out.join("timeline.svg"))
            .unwrap()
            .starts_with("<svg xmlns=")
    );
    assert!(
        ended.stdout.contains("short-crash") && ended.stdout.contains("recovery"),
        "{}",
        ended.all()
    );
    assert!(
        ended.stderr.contains("fault"),
        "no progress was told: {}",
        ended.all()
    );
}

#[tokio::test]
async fn a_verdict_that_cannot_be_met_is_status_1() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("strict.toml");
    std::fs::write(&file, format!("{SHORT}[thresholds]\nslowest = '1us'\n")).unwrap();
    let ended = run(&["drill", "run", file.to_str().unwrap(), "--no-control"]).await;
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert!(ended.stdout.contains("FAILED"), "{}", ended.all());
}

#[tokio::test]
async fn several_drills_end_with_one_table_that_is_kept_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let files: Vec<String> = ["one", "two"]
        .map(|name| {
            let file = folder.path().join(format!("{name}.toml"));
            let text = format!("{SHORT}{LENIENT}").replace("short-crash", name);
            std::fs::write(&file, text).unwrap();
            file.to_str().unwrap().to_owned()
        })
        .to_vec();
    let ended = run(&[
        "drill",
        "run",
        &files[0],
        &files[1],
        "--out",
        out.to_str().unwrap(),
    ])
    .await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    assert!(
        ended
            .stdout
            .contains("Steadfast passes every one of 2 drills"),
        "{}",
        ended.all()
    );
    let table = std::fs::read_to_string(out.join("summary.md")).unwrap();
    for name in ["one", "two"] {
        assert!(table.contains(&format!("| `{name}` | passes |")), "{table}");
        assert!(out.join(name).join("report.html").exists());
    }
    let junit = std::fs::read_to_string(out.join("junit.xml")).unwrap();
    assert_eq!(junit.matches("<testsuite ").count(), 2, "{junit}");
}

#[tokio::test]
async fn d4_a_drill_is_run_again_and_again_and_told_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("again.toml"), folder.path().join("out"));
    std::fs::write(&file, format!("{SHORT}{LENIENT}")).unwrap();
    let (file, to) = (file.to_str().unwrap(), out.to_str().unwrap());
    let args = ["drill", "run", file, "--repeat", "2", "--out", to];
    let ended = run(&args).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    for shown in ["2 runs", "median", "2 of 2", "PASSED: passed 2 of 2"] {
        assert!(ended.stdout.contains(shown), "{shown}: {}", ended.all());
    }
    let all = written(&out);
    assert_eq!(
        (&all["runs"], &all["verdicts"]["passed"]),
        (&2.into(), &2.into())
    );
    assert!(all["kpis"].as_array().unwrap().len() > 5, "{all}");
    assert!(all["control"]["kpis"].is_array(), "{all}");
    for number in ["1", "2"] {
        assert_eq!(written(&out.join(number))["scenario"], "short-crash");
    }
    let junit = std::fs::read_to_string(out.join("junit.xml")).unwrap();
    assert_eq!(junit.matches("<testsuite ").count(), 2, "{junit}");
    let compared = run(&["drill", "compare", to, to]).await;
    assert_eq!(compared.status, Some(0), "{}", compared.all());
    let again = run(&args).await;
    assert_eq!(again.status, Some(2), "{}", again.all());
}

#[tokio::test]
async fn ctrl_c_ends_a_drill_with_status_130() {
    let mut child = steadfast(&["drill", "run", "crash", "--no-control"])
        .spawn()
        .unwrap();
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(stderr);
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("crash"), "{first}");
    signal(child.id(), "INT");
    let rest = tokio::task::spawn_blocking(move || {
        lines.map_while(Result::ok).collect::<Vec<_>>().join("\n")
    });
    let ended = finish(child).await;
    assert_eq!(ended.status, Some(130), "{}", ended.all());
    assert!(rest.await.unwrap().contains("interrupted"));
}

#[tokio::test]
async fn a_scenario_with_a_mistake_is_refused_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, SHORT.replace("'crash'", "'earthquake'")).unwrap();
    let ended = run(&["drill", "run", file.to_str().unwrap()]).await;
    assert_eq!(ended.status, Some(78), "{}", ended.all());
    assert!(
        ended.stderr.contains("bad.toml:9:9") && ended.stderr.contains("earthquake"),
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn an_unknown_drill_is_status_2_and_a_missing_server_69() {
    let ended = run(&["drill", "run", "brew-coffee"]).await;
    assert_eq!(ended.status, Some(2), "{}", ended.all());
    assert!(
        ended.stderr.contains("brew-coffee") && ended.stderr.contains("drill list"),
        "{}",
        ended.all()
    );

    let empty = tempfile::tempdir().unwrap();
    let mut command = steadfast(&["drill", "run", "crash"]);
    let ended = finish(command.env("PATH", empty.path()).spawn().unwrap()).await;
    assert_eq!(ended.status, Some(69), "{}", ended.all());
    assert!(ended.stderr.contains("redis-server"), "{}", ended.all());
}

#[tokio::test]
async fn the_schema_is_json() {
    let ended = run(&["drill", "schema"]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(schema["properties"]["phases"].is_object(), "{schema}");
}

#[tokio::test]
async fn the_drills_are_listed_with_a_sentence_each() {
    let ended = run(&["drill", "list"]).await;
    for name in ["crash", "restart-5s"] {
        assert!(
            ended
                .stdout
                .lines()
                .any(|line| line.starts_with(name) && line.ends_with('.')),
            "{}",
            ended.all()
        );
    }
    let names = run(&["drill", "list", "--names"]).await;
    assert!(
        names.stdout.lines().all(|name| !name.contains(' ')),
        "{}",
        names.all()
    );
}

#[tokio::test]
async fn a_report_is_not_replaced_unasked_nor_looked_for_in_vain() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let report = |errors: f64, pass: bool| {
        serde_json::json!({
            "schema": "steadfast-drill/1", "scenario": "crash", "phases": [],
            "kpis": [{ "name": "errors", "value": errors, "unit": "ratio", "pass": pass }],
        })
        .to_string()
    };
    for (name, text) in [("well", report(0.0, true)), ("broken", report(0.5, false))] {
        std::fs::create_dir(path(name)).unwrap();
        std::fs::write(path(name) + "/report.json", text).unwrap();
    }
    let ended = run(&["drill", "run", "crash", "--out", &path("well")]).await;
    assert_eq!(ended.status, Some(2), "{}", ended.all());
    assert!(ended.stderr.contains("--overwrite"), "{}", ended.all());
    std::fs::write(path("file"), "").unwrap();
    let ended = run(&["drill", "run", "crash", "--out", &path("file/in")]).await;
    assert_eq!(ended.status, Some(69), "{}", ended.all());

    let ended = run(&["drill", "compare", &path("well"), &path("broken")]).await;
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    let says = "broken misses what well met: failed reads";
    assert!(ended.stdout.contains(says), "{}", ended.all());
    let other_way = run(&[
        "drill",
        "compare",
        &path("broken/report.json"),
        &path("well"),
    ])
    .await;
    assert_eq!(other_way.status, Some(0), "{}", other_way.all());
}

#[tokio::test]
async fn an_application_of_the_users_own_is_judged_by_how_it_ends() {
    let redis = Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("short.toml"), folder.path().join("out"));
    std::fs::write(&file, SHORT.replace("rate = 100", "rate = 20")).unwrap();
    let target = redis.addr().to_string();
    let run_application = async |command: &str| {
        let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
        run(&[
            "drill",
            "run",
            file,
            "--target",
            &target,
            "--command",
            command,
            "--out",
            out,
            "--overwrite",
        ])
        .await
    };
    let ended = run_application("test -n \"$REDIS_URL\" && exit 3").await;
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert_eq!(written(&out)["exit_status"], 3, "{}", ended.all());
    for (file, says) in [
        ("report.html", "ended with status 3"),
        ("junit.xml", "exit_status is 3"),
    ] {
        let text = std::fs::read_to_string(out.join(file)).unwrap();
        assert!(text.contains(says), "{file}: {text}");
    }
    assert!(
        redis.pid().is_some_and(is_running),
        "the user's own server was broken"
    );

    redis.kill().await;
    let ended = run_application("true").await;
    assert_eq!(ended.status, Some(69), "{}", ended.all());
    assert!(ended.stderr.contains(&target), "{}", ended.all());
}

#[tokio::test]
async fn d7_the_proxy_is_driven_by_toxiproxys_api_and_ends_with_ctrl_c() {
    let redis = Redis::start().await.unwrap();
    let upstream = redis.addr().to_string();
    let mut proxy = steadfast(&[
        "drill",
        "proxy",
        "--upstream",
        &upstream,
        "--api",
        "127.0.0.1:0",
    ])
    .spawn()
    .unwrap();
    let mut lines = Lines::of(&mut proxy);
    let address = |line: String| -> SocketAddr {
        let found = line
            .split([' ', '/', ','])
            .find_map(|word| word.parse().ok());
        found.unwrap_or_else(|| panic!("no address in {line:?}"))
    };
    let (listens, api) = (address(lines.next()), address(lines.next()));
    let proxies = get(api, "/proxies").await;
    assert_eq!(proxies.json()["redis"]["upstream"], upstream, "{proxies:?}");
    let ended = run(&["probe", &format!("redis://{listens}"), "--operations", "30"]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());

    signal(proxy.id(), "INT");
    assert_eq!(wait(&mut proxy).await, Some(0));
}
