//! However a drill ends, and in whichever phase: nothing that it started runs on, and no file of it
//! is left.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use steadfast_drill::process::Redis;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::program::{Lines, PATIENCE, finish, is_running, run, signal, steadfast, wait};

/// Each phase is long enough to be told of, the last also to be ended in, and something is broken
/// in the one that is for that: two things, in two ways.
const SCENARIO: &str = "
name = 'ended'
about = 'Something is broken, and the drill is ended from outside.'
phases = { warm_up = '1s', baseline = '1s', fault = '4s', recovery = '1s', recovered = '3s' }
load = { rate = 50, keys = 20 }
[[steps]]
fault = 'crash'
for = '1s'
[[steps]]
fault = 'freeze'
at = '2s'
";

/// As the drill tells of them on standard error; the first is told of by the folders that are
/// there.
const PHASES: [&str; 7] = [
    "set up",
    "warm up",
    "baseline",
    "fault (crash)",
    "fault (freeze)",
    "recovery",
    "recovered",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_ctrl_c_in_any_phase_leaves_nothing_running() {
    ended_in_each("INT", Some(130)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_drill_that_is_told_to_end_leaves_nothing_running() {
    ended("TERM", "fault (freeze)", Some(130)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_drill_that_crashes_or_is_killed_in_any_phase_leaves_nothing_running() {
    let crashes = ended("ABRT", "fault (freeze)", None);
    tokio::join!(crashes, ended_in_each("KILL", None));
}

/// A few at a time: most of a drill's time is waited, but each has three servers and three loads.
async fn ended_in_each(name: &'static str, status: Option<i32>) {
    let mut all = JoinSet::new();
    for phase in PHASES {
        if all.len() == 3 {
            all.join_next().await.unwrap().unwrap();
        }
        all.spawn(ended(name, phase, status));
    }
    while let Some(one) = all.join_next().await {
        one.unwrap();
    }
}

/// Runs the drill until it is in that phase, and ends it by that signal.
async fn ended(name: &'static str, phase: &'static str, status: Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let (file, files) = (folder.path().join("ended.toml"), folder.path().join("tmp"));
    std::fs::write(&file, SCENARIO).unwrap();
    std::fs::create_dir(&files).unwrap();
    let mut command = steadfast(&["drill", "run", file.to_str().unwrap()]);
    let mut child = command.env("TMPDIR", &files).spawn().unwrap();
    reaches(&mut child, phase, &files).await;
    assert!(!left(&files).is_empty(), "{phase}: it runs nothing");
    signal(child.id(), name);
    assert_eq!(wait(&mut child).await, status, "{name} in {phase}");
    nothing_left(&files, &format!("{name} in {phase}")).await;
}

/// Waits until the drill is in that phase.
async fn reaches(child: &mut Child, phase: &str, files: &Path) {
    if phase == PHASES[0] {
        let until = Instant::now() + PATIENCE;
        while left(files).is_empty() {
            assert!(Instant::now() < until, "nothing was set up");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        return;
    }
    let told = BufReader::new(child.stderr.take().unwrap());
    let phase = format!("s  {phase}");
    let reached = tokio::task::spawn_blocking(move || {
        let mut told = told.lines().map_while(Result::ok);
        let mut before = Vec::new();
        // What is told after that must still find a reader, so it is read to its end by another
        // thread.
        for line in told.by_ref() {
            if line.contains(&phase) {
                std::thread::spawn(move || told.count());
                return;
            }
            before.push(line);
        }
        panic!("the drill ended before{phase}: {before:#?}");
    });
    reached.await.unwrap();
}

/// Waits until neither a process nor a file of the drill is there.
async fn nothing_left(files: &Path, when: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = left(files);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{when}: left behind: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The files in that folder, and the processes that work in it or were told of it. (Zombies do
/// neither.)
fn left(files: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(files).unwrap().flatten();
    let mut left: Vec<_> = entries
        .map(|entry| entry.path().display().to_string())
        .collect();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = process.path();
        let cwd = std::fs::read_link(path.join("cwd")).unwrap_or_default();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if cwd.starts_with(files) || line.contains(&*files.to_string_lossy()) {
            left.push(format!("{}: {line}", path.display()));
        }
    }
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_an_application_that_is_drilled_ends_with_the_drill_and_its_redis_stays() {
    let redis = Redis::start().await.unwrap();
    for name in ["INT", "TERM", "KILL"] {
        let folder = tempfile::tempdir().unwrap();
        let (file, pid) = (folder.path().join("ended.toml"), folder.path().join("pid"));
        std::fs::write(&file, SCENARIO.replace("'crash'", "'down'")).unwrap();
        // The shell, and a child of it.
        let application = format!(
            "trap '' HUP; sleep 600 & echo \"$$ $!\" > {}; wait",
            pid.display()
        );
        let mut child = steadfast(&[
            "drill",
            "run",
            file.to_str().unwrap(),
            "--target",
            &redis.addr().to_string(),
            "--command",
            &application,
        ])
        .spawn()
        .unwrap();
        let until = Instant::now() + PATIENCE;
        let pids: Vec<u32> = loop {
            let text = std::fs::read_to_string(&pid).unwrap_or_default();
            if text.ends_with('\n') {
                break text
                    .split_whitespace()
                    .map(|pid| pid.parse().unwrap())
                    .collect();
            }
            assert!(Instant::now() < until, "the application was not started");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(pids.len(), 2);
        signal(child.id(), name);
        let status = (name != "KILL").then_some(130);
        assert_eq!(wait(&mut child).await, status, "{name}");
        let until = Instant::now() + PATIENCE;
        while pids.iter().any(|pid| is_running(*pid)) {
            assert!(
                Instant::now() < until,
                "{name}: {pids:?} outlived the drill"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        redis.command(&["PING"]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_demo_that_is_killed_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = steadfast(&["demo", "--listen", "127.0.0.1:0"]);
    let mut child = command.env("TMPDIR", folder.path()).spawn().unwrap();
    // Kept open: a program whose output nobody takes may end in order, and it is to be killed at
    // work.
    let mut lines = Lines::of(&mut child);
    assert!(!lines.next().is_empty(), "{}", finish(child).await.all());
    assert!(!left(folder.path()).is_empty());
    signal(child.id(), "KILL");
    assert_eq!(wait(&mut child).await, None);
    nothing_left(folder.path(), "a killed demo").await;
}

#[tokio::test]
async fn d7_what_is_taken_or_not_there_is_a_clear_line_and_status_69() {
    let redis = Redis::start().await.unwrap();
    let taken = redis.addr().to_string();
    let folder = tempfile::tempdir().unwrap();
    let touched = folder.path().join("touched");
    let touch = format!("touch {}", touched.display());
    let cases: [(&[&str], &str); 4] = [
        (&["proxy", "--api", &taken], &taken),
        (
            &[
                "proxy",
                "--upstream",
                &taken,
                "--listen",
                &taken,
                "--api",
                "127.0.0.1:0",
            ],
            "address already in use",
        ),
        (
            &[
                "run",
                "crash",
                "--target",
                &taken,
                "--proxy",
                &taken,
                "--command",
                &touch,
            ],
            "is taken",
        ),
        (
            &[
                "run",
                "crash",
                "--target",
                "127.0.0.1:1",
                "--command",
                &touch,
            ],
            "no server at 127.0.0.1:1",
        ),
    ];
    for (args, says) in cases {
        let ended = run(&[&["drill"], args].concat()).await;
        assert_eq!(ended.status, Some(69), "{args:?}: {}", ended.all());
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.all());
    }
    assert!(
        !touched.exists(),
        "the application ran, though there was nothing to drill"
    );
    redis.command(&["PING"]).await.unwrap();
}
