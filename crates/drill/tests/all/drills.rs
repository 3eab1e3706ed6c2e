//! Whole drills, short ones, on real servers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use steadfast_drill::load::{Lane, drive};
use steadfast_drill::report::{Verdict, html, json, junit, summary, table, timeline};
use steadfast_drill::run::{RunError, RunOptions, run};
use steadfast_drill::scenario::{Arrivals, Phase, Scenario, Thresholds};
use steadfast_drill::subject::{Breaker, Source};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::subjects::{DoubtfulFactory, Factory, Null};

/// Times that a busy machine cannot miss, for drills that are not about these; shares of failed
/// calls stay as strict as ever.
const PATIENT: &str = "
[thresholds]
connection_success = '50%'
fallback = '60%'
recovery = '10s'
hit_rate = '20%'
fault_p99 = '20s'
slowest = '30s'
";

/// A drill of a few seconds with that step.
fn scenario(rest: &str) -> Scenario {
    let rest = if rest.contains("[thresholds]") {
        rest.to_owned()
    } else {
        format!("{rest}{PATIENT}")
    };
    let text = format!(
        "name = 'test'\nabout = 'A test.'\n\
         phases = {{ warm_up = '200ms', baseline = '700ms', fault = '900ms', recovery = '1500ms', recovered = '1200ms' }}\n\
         load = {{ rate = 150, keys = 50, writes = 0.05 }}\n{rest}"
    );
    Scenario::parse(&text).unwrap()
}

fn with_control() -> RunOptions {
    RunOptions {
        control: true,
        ..RunOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_a_crash_is_survived_by_the_sturdy_and_felt_by_the_control() {
    let report = run(
        &scenario("[[steps]]\nfault = 'crash'\n"),
        &Factory,
        with_control(),
    )
    .await
    .unwrap();
    let (text, json) = (table::render(&report, false), json::render(&report));
    assert!(report.passed(), "{text}");
    let control = report.control.as_deref().unwrap();
    assert!(!control.passed(), "{text}");
    let fault = |report: &steadfast_drill::report::Report| {
        report
            .phases
            .iter()
            .find(|p| p.name == "fault")
            .unwrap()
            .clone()
    };
    assert!(
        fault(&report).sources.database > 50 && fault(&report).errors.is_empty(),
        "{text}"
    );
    assert!(fault(control).errors.values().sum::<u64>() > 50, "{text}");
    assert!(
        report.recovery.detect_ms.is_some() && report.recovery.full_ms.is_some(),
        "{text}"
    );
    assert!(report.connection.reconnects >= 1, "{text}");
    assert!(
        report.database.fault_max_qps > report.database.baseline_qps,
        "{text}"
    );
    assert!(
        json.contains("\"verdict\": \"passed\"") && json.contains("\"first_success_ms\""),
        "{json}"
    );
    let page = html::render(&report);
    for outside in [
        "src=\"", "href=", "url(", "@import", "fetch(", "http://", "https://",
    ] {
        assert!(
            !page.contains(outside),
            "the page asks for something outside: {outside}"
        );
    }
    let picture = timeline::render(&report);
    for shown in [
        "Plain client",
        "class=\"fault\"",
        "no read failed",
        "prefers-color-scheme",
    ] {
        assert!(picture.contains(shown), "the picture lacks {shown}");
    }
    let junit = junit::render(std::slice::from_ref(&report));
    assert!(
        junit.contains("failures=\"0\"") && junit.contains("name=\"redis_in_use\""),
        "{junit}"
    );
    let junit = junit::render(std::slice::from_ref(control));
    assert!(
        junit.contains("errors is ") && junit.contains("but should be &lt; 1 %"),
        "{junit}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_what_is_built_by_hand_falls_back_and_serves_what_was_overwritten() {
    // Long enough for its time-outs and its breaker, on a busy machine too.
    let mut scenario = Scenario::parse(
        "name = 'test'\nphases = { warm_up = '200ms', baseline = '700ms', fault = '6s', recovery = '6s', recovered = '2s' }\n\
         load = { rate = 100, keys = 10, writes = 0.3 }\n[[steps]]\nfault = 'down'\n[thresholds]\nallowed_age = '100ms'\n",
    )
    .unwrap();
    scenario.thresholds.errors = 0.5;
    let options = RunOptions {
        hand_built: true,
        ..with_control()
    };
    let report = run(&scenario, &Factory, options).await.unwrap();
    let text = table::render(&report, false);
    let names: Vec<_> = report.all().map(|(who, _)| who).collect();
    assert_eq!(names, ["Steadfast", "Plain client", "Built by hand"]);
    let by_hand = report.hand_built.as_deref().unwrap();
    let total = |count: fn(&steadfast_drill::report::PhaseReport) -> u64| -> u64 {
        by_hand.phases.iter().map(count).sum()
    };
    assert_eq!(total(|phase| phase.errors.values().sum()), 0, "{text}");
    assert!(total(|phase| phase.sources.database) > 50, "{text}");
    assert!(total(|phase| phase.wrong) > 0, "{text}");
    let opened = by_hand.timeline.states.iter();
    assert!(opened.clone().any(|s| s.breaker == Breaker::Open), "{text}");
    assert!(by_hand.recovery.redis_in_use_ms.is_some(), "{text}");
    let line = summary::markdown(std::slice::from_ref(&report));
    assert!(line.contains("| built by hand |"), "{line}");
    // What the controls are held to, and what cannot be expected of them.
    for limit in [
        "< 1 s (controls < 30 s)",
        "Plain client is redis-rs as its documentation shows it",
        "it has neither a tier in memory nor a way round Redis",
        "Built by hand is an application with a pool, time-outs of 3 s",
    ] {
        assert!(text.contains(limit), "no {limit} in {text}");
    }
    assert!(html::render(&report).contains("Built by hand (&lt; 30 s)"));
    for page in [html::render(&report), timeline::render(&report)] {
        assert!(page.contains("Built by hand"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_fault_of_the_wire_that_acts_on_nothing_makes_the_drill_void() {
    let drills = [
        ("'limit_data'\nbytes = 1000000000", "limit_data"),
        ("'corrupt'\nshare = 0.0", "corrupt"),
    ];
    let drills = drills.map(|(step, name)| async move {
        let step = format!("[[steps]]\nfault = {step}\n");
        let report = run(&scenario(&step), &Factory, RunOptions::default())
            .await
            .unwrap();
        let text = table::render(&report, false);
        assert_eq!(report.verdict, Verdict::Void, "{text}");
        let says = format!("{name} touched nothing");
        assert!(text.contains(&says), "{text}");
    });
    futures_util::future::join_all(drills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_fault_of_the_protocol_that_meets_no_command_makes_the_drill_void() {
    let drills = [("GTE", Verdict::Void, 1), ("GET", Verdict::Passed, 0)];
    let drills = drills.map(|(command, verdict, failures)| async move {
        let step = format!(
            "[[steps]]\nfault = 'resp_error'\nerror = 'ERR no'\ncommands = ['{command}']\n\
             [thresholds]\nconnection_success = '1%'\nslowest = '1m'\nfault_p99 = '1m'\nrecovery = '30s'\nfallback = '99%'\nhit_rate = '1%'\n"
        );
        let report = run(&scenario(&step), &Factory, RunOptions::default())
            .await
            .unwrap();
        let text = table::render(&report, false);
        assert_eq!(report.verdict, verdict, "{text}");
        let void = verdict == Verdict::Void;
        assert_eq!(text.contains("resp_error touched nothing"), void, "{text}");
        let junit = junit::render(std::slice::from_ref(&report));
        assert!(
            junit.contains(&format!("failures=\"{failures}\"")),
            "{junit}"
        );
        assert_eq!(html::render(&report).contains("Void: nothing"), void);
    });
    futures_util::future::join_all(drills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_scenario_that_breaks_nothing_is_void_and_says_so() {
    let report = run(&scenario(""), &Factory, with_control()).await.unwrap();
    let text = table::render(&report, false);
    assert_eq!(report.verdict, Verdict::Void, "{text}");
    let says = "Steadfast: nothing is broken by this scenario, so this drill proves nothing";
    assert!(text.contains(says), "{text}");
    let page = html::render(&report);
    assert!(page.contains("Void: nothing is proven"), "{text}");
    assert!(page.contains("nothing is broken by this scenario, so"));
    let junit = junit::render(std::slice::from_ref(&report));
    assert!(junit.contains("name=\"untouched\""), "{junit}");
    assert!(!junit.contains("failures=\"0\""), "{junit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_a_run_of_many_holds_the_control_to_what_each_scenario_expects_of_it() {
    let crash = scenario("[[steps]]\nfault = 'crash'\n");
    let crashed = run(&crash, &Factory, with_control()).await.unwrap();
    let mut reports = vec![crashed.clone(), crashed];
    assert!(summary::all_as_expected(&reports));
    for report in &mut reports {
        // Another test may have had the machine for itself meanwhile.
        report.load.late = 0;
    }
    let said = summary::in_words(&reports);
    assert_eq!(
        said,
        "Steadfast passes every one of 2 drills. The plain client fails 2 of 2, as expected."
    );
    // The same control, but expected to do well.
    reports[1].control_fails = false;
    assert!(!summary::all_as_expected(&reports));
    let said = summary::in_words(&reports);
    assert!(
        said.ends_with("does not as the scenario expects in test."),
        "{said}"
    );
    let text = summary::render(&reports, false);
    assert_eq!(text.matches("✗ failed").count(), 2, "{text}");
    assert_eq!(text.matches("(!)").count(), 1, "{text}");
    let markdown = summary::markdown(&reports);
    let rows: Vec<_> = markdown
        .lines()
        .filter(|line| line.starts_with("| `test` | passes | fails"))
        .collect();
    assert!(
        rows.len() == 2 && rows[1].contains("fails (unexpected)"),
        "{markdown}"
    );
    assert!(rows[0].contains(" | 0 % / "), "{markdown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_the_report_has_the_names_that_are_promised() {
    let mut scenario = scenario("[[steps]]\nfault = 'crash'\nfor = '300ms'\n");
    scenario.load.writes = 0.3;
    let report = run(&scenario, &Factory, with_control()).await.unwrap();
    let report: serde_json::Value = serde_json::from_str(&json::render(&report)).unwrap();
    for report in [&report, &report["control"]] {
        for (at, names) in [
            (
                "",
                "schema scenario seed phases recovery kpis connection database verdict control",
            ),
            (
                "/phases/2",
                "name from_ms to_ms calls ok skipped errors sources stale wrong latency_ms",
            ),
            ("/phases/2/sources", "memory redis database"),
            ("/phases/2/latency_ms", "p50 p99 p999 max"),
            (
                "/recovery",
                "detect_ms first_success_ms users_well_ms users_well_resolution_ms redis_in_use_ms redis_in_use_resolution_ms full_ms",
            ),
            ("/hit_rate", "memory redis database"),
            ("/kpis/0", "name phase value target pass"),
            ("/connection", "attempts reconnects stuck_resets"),
            ("/database", "baseline_qps fault_max_qps"),
        ] {
            let part = report.pointer(at).and_then(|part| part.as_object());
            let part = part.unwrap_or_else(|| panic!("no {at} in {report}"));
            for name in names.split(' ') {
                assert!(part.contains_key(name), "no {name} in {at} of {report}");
            }
        }
        let kpis = report["kpis"].as_array().unwrap();
        let kpis: Vec<_> = kpis
            .iter()
            .map(|kpi| kpi["name"].as_str().unwrap())
            .collect();
        for name in [
            "connection_success",
            "fallback",
            "users_well",
            "redis_in_use",
            "hit_rate",
            "errors",
            "stale_answers",
        ] {
            assert!(kpis.contains(&name), "no {name} in {kpis:?}");
        }
        let phases = report["phases"].as_array().unwrap();
        let phases: Vec<_> = phases
            .iter()
            .map(|phase| phase["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            phases,
            ["warm_up", "baseline", "fault", "recovery", "recovered"]
        );
    }
    assert!(report["control"]["control"].is_null(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_step_that_fails_ends_the_drill_and_says_which() {
    // A server that was killed cannot be told that it has no memory left. In a file that would be
    // refused.
    let steps =
        "[[steps]]\nfault = 'crash'\nfor = '300ms'\n[[steps]]\nfault = 'oom'\nat = '300ms'\n";
    let mut scenario = scenario(steps);
    scenario.steps[0].lasts = scenario.phases.fault;
    let error = run(&scenario, &Factory, with_control()).await.unwrap_err();
    assert!(
        matches!(
            error,
            RunError::Fault {
                fault: "oom",
                healing: false,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.exit_status(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_answers_from_an_old_snapshot_are_found_to_be_wrong() {
    let text =
        "[[steps]]\nfault = 'old_snapshot'\nat = '600ms'\n[thresholds]\nallowed_age = '100ms'\n";
    let mut scenario = scenario(text);
    scenario.load.writes = 0.5;
    scenario.load.keys = 5;
    let report = run(&scenario, &Factory, RunOptions::default())
        .await
        .unwrap();
    let wrong: u64 = report.phases.iter().map(|phase| phase.wrong).sum();
    assert!(
        wrong > 0 && !report.passed(),
        "{}",
        table::render(&report, false)
    );
}

/// None of its answers is wrong, as each says that it may be old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_a_cache_that_is_stale_once_all_has_recovered_fails_and_every_report_says_so() {
    let crash = scenario("[[steps]]\nfault = 'crash'\n");
    let report = run(&crash, &DoubtfulFactory, with_control()).await.unwrap();
    let text = table::render(&report, false);
    let missed: Vec<_> = report.kpis.iter().filter(|kpi| !kpi.pass).collect();
    assert!(
        matches!(missed[..], [kpi] if kpi.name == "stale_answers" && kpi.value == Some(1.0)),
        "{text}"
    );
    assert_eq!(report.verdict, Verdict::Failed, "{text}");
    // Whoever cannot say that an answer is stale is neither saved nor condemned by it.
    let control = report.control.as_deref().unwrap();
    let of_control = control.kpis.iter().find(|kpi| kpi.name == "stale_answers");
    let of_control = of_control.unwrap();
    assert_eq!((of_control.value, of_control.pass), (Some(0.0), true));
    let page = html::render(&report);
    let junit = junit::render(std::slice::from_ref(&report));
    let markdown = summary::markdown(std::slice::from_ref(&report));
    for (made, shown) in [
        (&text, "Stale answers once recovered"),
        (&page, "Stale answers once recovered"),
        (&junit, "stale_answers is 100 %, but should be &lt; 1 %"),
        (&markdown, "stale once recovered |"),
        (&markdown, "| 100 % / 0 % |"),
    ] {
        assert!(made.contains(shown), "no {shown}: {made}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_drill_that_is_stopped_in_its_fault_takes_everything_down() {
    let stop = CancellationToken::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (stopping, telling) = (stop.clone(), told.clone());
    let options = RunOptions {
        progress: Some(Arc::new(move |progress| {
            telling.lock().unwrap().push(progress.clone());
            if progress.phase == Phase::Fault {
                stopping.cancel();
            }
        })),
        stop,
        ..RunOptions::default()
    };
    let outcome = run(
        &scenario("[[steps]]\nfault = 'freeze'\n"),
        &Factory,
        options,
    )
    .await;
    assert!(
        matches!(&outcome, Err(RunError::Interrupted)),
        "{:?}",
        outcome.err()
    );
    assert_eq!(outcome.err().map(|error| error.exit_status()), Some(130));
    let last = told.lock().unwrap().pop().unwrap();
    assert_eq!((last.phase, last.broken), (Phase::Fault, vec!["freeze"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_drill_that_is_stopped_before_it_began_ends_at_once() {
    let stop = CancellationToken::new();
    stop.cancel();
    let options = RunOptions {
        stop,
        ..RunOptions::default()
    };
    assert!(matches!(
        run(&scenario(""), &Factory, options).await,
        Err(RunError::Interrupted)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_arrivals_that_cannot_start_are_counted_and_calls_that_never_end_are_errors() {
    let mut scenario = scenario("");
    scenario.load.in_flight = 10;
    scenario.load.writes = 0.0;
    let lane = Arc::new(Lane::new(
        Arc::new(Null { answers: false }),
        Instant::now(),
        scenario.phases,
        Duration::ZERO,
    ));
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stopping.cancel();
    });
    drive(
        lane.clone(),
        scenario.load.clone(),
        Duration::from_secs(60),
        1,
        stop,
    )
    .await;
    let (skipped, failed) = lane.record(|record| {
        let sum = |count: fn(&steadfast_drill::record::Counts) -> u64| -> u64 {
            Phase::ALL
                .iter()
                .map(|phase| count(record.counts(*phase)))
                .sum()
        };
        (
            sum(|counts| counts.skipped),
            sum(|counts| counts.reads_failed),
        )
    });
    assert_eq!(failed, 10);
    assert!(skipped > 50, "{skipped}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_latency_counts_from_the_intended_start() {
    // The runtime is blocked for a while, so arrivals start late; their latency must say so.
    let scenario = scenario("");
    let lane = Arc::new(Lane::new(
        Arc::new(Null { answers: true }),
        Instant::now(),
        scenario.phases,
        Duration::ZERO,
    ));
    let blocked = Duration::from_millis(300);
    let load = tokio::spawn(drive(
        lane.clone(),
        scenario.load.clone(),
        Duration::from_secs(1),
        1,
        CancellationToken::new(),
    ));
    for _ in 0..2 {
        tokio::spawn(async move {
            let until = Instant::now() + blocked;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        });
    }
    load.await.unwrap();
    let longest = lane.record(|record| {
        Phase::ALL
            .iter()
            .map(|phase| record.counts(*phase).latency.max())
            .max()
            .unwrap()
    });
    assert!(longest > 200_000, "{longest} µs");
    // And the report says that the machine had no time for them.
    let late = lane.record(|record| record.started_late());
    assert!(
        late.calls > 0 && late.most > Duration::from_millis(200),
        "{late:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_a_closed_loop_ends_after_its_calls() {
    let mut scenario = scenario("");
    scenario.load.arrivals = Arrivals::Closed {
        callers: 3,
        pause: Duration::ZERO,
    };
    let scenario = scenario.with_calls(500);
    let lane = Arc::new(Lane::new(
        Arc::new(Null { answers: true }),
        Instant::now(),
        scenario.phases,
        Duration::ZERO,
    ));
    drive(
        lane.clone(),
        scenario.load.clone(),
        Duration::from_millis(1),
        1,
        CancellationToken::new(),
    )
    .await;
    let calls: u64 = lane.record(|record| {
        Phase::ALL
            .iter()
            .map(|phase| record.counts(*phase).calls())
            .sum()
    });
    assert_eq!(calls, 500);
}

#[test]
fn a_drill_may_run_as_a_task_of_its_own() {
    fn may_be_spawned(_: &(impl Future + Send + 'static)) {}
    may_be_spawned(&async {
        run(&scenario(""), &Factory, RunOptions::default())
            .await
            .map(drop)
    });
}

#[test]
fn sources_are_named_as_in_the_report() {
    assert_eq!(
        serde_json::to_string(&Source::Database).unwrap(),
        "\"database\""
    );
}

/// Every fault but the one that its end does not heal (`token_expired`). In scenarios of their own,
/// so that they pass side by side: on the wire, in the server (what takes it its time last), and
/// with TLS.
const FAULTS: [&str; 3] = [
    "down|timeout|stall|hold|reset_peer|corrupt|resp_silence|slow_close delay='10ms'|latency latency='10ms'|bandwidth rate=1|slicer size=3|
     limit_data bytes=10|resp_error error='loading'|resp_delay delay='20ms'|database_down|database_slow latency='10ms'",
    "freeze|pause|maxclients|oom|readonly|password_changed|user_deleted|crash|loading|old_snapshot",
    "certificate_expired|certificate_wrong|maxclients|oom",
];

fn names_and_attributes(faults: &str) -> impl Iterator<Item = (&str, &str)> {
    let trimmed = faults.split('|').map(str::trim);
    trimmed.map(|fault| fault.split_once(' ').unwrap_or((fault, "")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_every_fault_can_be_made_and_healed() {
    let drills = FAULTS.map(|faults| async move {
        let steps: String = names_and_attributes(faults)
            .enumerate()
            .map(|(at, (name, attributes))| {
                format!(
                    "[[steps]]\nfault = '{name}'\nat = '{}ms'\nfor = '500ms'\n{attributes}\n",
                    at * 700
                )
            })
            .collect();
        let text = format!(
            "name = 'all'\nphases = {{ warm_up = '0s', baseline = '300ms', fault = '12s', recovery = '4s', recovered = '3s' }}\n\
             load = {{ rate = 30, keys = 100 }}\n{steps}"
        );
        let report = run(
            &Scenario::parse(&text).unwrap(),
            &Factory,
            RunOptions::default(),
        )
        .await
        .unwrap();
        let text = table::render(&report, false);
        let made: Vec<_> = report.faults.iter().map(|fault| fault.name).collect();
        let wanted: Vec<_> = names_and_attributes(faults).map(|(name, _)| name).collect();
        assert_eq!(made, wanted, "{text}");
        // One that falls due while a server starts again may be made and healed in one go; on a
        // machine that lags behind, any may.
        let slow = ["loading", "old_snapshot"];
        let kept_up = report.load.late == 0;
        let timely = report.faults.iter();
        for fault in timely.filter(|f| kept_up && !slow.contains(&f.name)) {
            let lasted = fault.to_ms - fault.from_ms;
            assert!(lasted >= 50, "{}: {lasted} ms, {text}", fault.name);
        }
        let recovered = report.phases.last().unwrap();
        assert!(
            recovered.sources.redis > 20 && recovered.errors.is_empty(),
            "{text}"
        );
    });
    futures_util::future::join_all(drills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_each_fault_of_redis_is_felt_by_the_control() {
    let names: [&str; 12] = [
        "certificate_expired",
        "certificate_wrong",
        "crash",
        "freeze",
        "pause",
        "maxclients",
        "loading",
        "password_changed",
        "user_deleted",
        "down",
        "timeout",
        "stall",
    ];
    const SHORT: Duration = Duration::from_millis(200);
    // Longer than a client waits for an answer, also if the fault begins late on a busy machine.
    let long = Duration::from_secs(3);
    let drills = names.map(|name| async move {
        let mut scenario = scenario(&format!("[[steps]]\nfault = '{name}'\n"));
        (scenario.phases.fault, scenario.steps[0].lasts) = (long, long);
        // What comes after it is not looked at.
        (scenario.phases.recovery, scenario.phases.recovered) = (SHORT, SHORT);
        // Few calls, as each that fails may dial anew, and handshakes are work.
        scenario.load.arrivals = Arrivals::Open { rate: 30.0 };
        let report = run(&scenario, &Factory, with_control()).await.unwrap();
        let control = report.control.as_deref().unwrap();
        let errors = control
            .kpis
            .iter()
            .find(|kpi| kpi.name == "errors")
            .unwrap();
        assert!(!errors.pass, "{name}: {}", table::render(&report, false));
    });
    // A few at a time: each has two servers and two loads.
    let drills = futures_util::stream::iter(drills).buffer_unordered(3);
    drills.collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_certificates_go_bad_and_are_good_again_beside_other_faults() {
    let steps = "\
        [[steps]]\nfault = 'certificate_expired'\nfor = '600ms'\n\
        [[steps]]\nfault = 'maxclients'\nat = '700ms'\nfor = '200ms'\n\
        [[steps]]\nfault = 'latency'\nlatency = '5ms'\nat = '1s'\nfor = '100ms'\n\
        [[steps]]\nfault = 'certificate_wrong'\nat = '1200ms'\nfor = '600ms'\n";
    let mut scenario = Scenario::parse(&format!(
        "name = 'test'\nphases = {{ warm_up = '200ms', baseline = '700ms', fault = '2s', recovery = '4s', recovered = '1s' }}\n\
         load = {{ rate = 30, keys = 50, writes = 0.05 }}\n{steps}"
    ))
    .unwrap();
    // Few calls, as each that fails dials anew, and a busy machine would not be done with so many
    // handshakes. What it adds to one is not what is looked at here.
    scenario.thresholds.fault_p99 = Duration::from_secs(30);
    scenario.thresholds.slowest = Duration::from_secs(30);
    let report = run(&scenario, &Factory, with_control()).await.unwrap();
    let text = table::render(&report, false);
    assert_eq!(report.faults.len(), 4, "{text}");
    let control = report.control.as_deref().unwrap();
    let errors = |report: &steadfast_drill::report::Report, phase: &str| {
        let phase = report.phases.iter().find(|p| p.name == phase).unwrap();
        phase.errors.values().sum::<u64>()
    };
    assert_eq!(errors(&report, "fault"), 0, "{text}");
    assert!(errors(control, "fault") > 10, "{text}");
    // A busy machine may let a call of the control time out, whose certificate is good.
    for name in ["baseline", "recovered"] {
        let phase = control.phases.iter().find(|p| p.name == name).unwrap();
        assert!(
            phase.sources.redis > errors(control, name),
            "{name}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_all_places_are_taken_and_given_back_while_a_certificate_is_bad_and_a_password_changed()
{
    // The places are taken while the rest is broken, and given back after it was healed.
    let steps = "\
        [[steps]]\nfault = 'certificate_expired'\nfor = '600ms'\n\
        [[steps]]\nfault = 'password_changed'\nat = '100ms'\nfor = '600ms'\n\
        [[steps]]\nfault = 'maxclients'\nat = '300ms'\nfor = '600ms'\n";
    let mut scenario = scenario(steps);
    // Few calls, and time to be done with their handshakes.
    scenario.load.arrivals = Arrivals::Open { rate: 30.0 };
    scenario.phases.recovery = Duration::from_secs(4);
    let report = run(&scenario, &Factory, RunOptions::default())
        .await
        .unwrap();
    let text = table::render(&report, false);
    assert_eq!(report.faults.len(), 3, "{text}");
    let recovered = report.phases.last().unwrap();
    assert!(
        recovered.sources.redis > 10 && recovered.errors.is_empty(),
        "{text}"
    );
}

#[test]
fn d2_the_page_on_drills_shows_a_scenario_that_runs_and_names_every_fault_and_drill() {
    let page = include_str!("../../../../docs/drills.md");
    let toml = page
        .split("```toml")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let scenario = Scenario::parse(toml).unwrap();
    assert_eq!(scenario.thresholds, Thresholds::default());
    let repeated = toml
        .replace("# every", "every")
        .replace("# times", "times")
        .replace("for = \"2s\"", "for = \"500ms\"");
    assert_eq!(
        Scenario::parse(&repeated).unwrap().steps[0].spans().count(),
        3
    );
    let faults = FAULTS.into_iter().flat_map(names_and_attributes);
    for name in faults.map(|(name, _)| name).chain(["token_expired"]) {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
    for drill in steadfast_drill::scenario::all() {
        assert!(
            page.contains(&format!("`{}`", drill.name)),
            "{}",
            drill.name
        );
    }
}

#[test]
fn d2_faults_of_sentinels_need_some_and_beside_them_nothing_else_can_be_broken() {
    let with = |store: &str, fault: &str| {
        Scenario::parse(&format!(
            "name = 'test'\n{store}\n\
             phases = {{ baseline = '1s', fault = '1s', recovery = '1s', recovered = '1s' }}\n\
             [[steps]]\nfault = '{fault}'\n"
        ))
    };
    assert!(with("store = 'sentinel'", "split_brain").is_ok());
    let refused = |store, fault| with(store, fault).unwrap_err().to_string();
    let said = refused("", "split_brain");
    assert!(
        said.contains("split_brain needs store = \"sentinel\""),
        "{said}"
    );
    let said = refused("store = 'sentinel'", "crash");
    assert!(said.contains("crash cannot be done"), "{said}");
    let said = refused("store = 'cluster'", "split_brain");
    assert!(said.contains("split_brain cannot be done"), "{said}");
    let said = refused("", "primary_killed");
    let stores = "needs store = \"sentinel\" or store = \"cluster\"";
    assert!(said.contains(stores), "{said}");
    let said = refused("store = 'swarm'", "crash");
    assert!(
        said.contains("store is cache, sentinel or cluster"),
        "{said}"
    );
}
