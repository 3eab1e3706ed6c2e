//! Nothing outlives the program that started it, however that program ends; and what cannot be
//! started says why.
//!
//! The program is this test binary, run once more with a variable that says how it is to end.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use steadfast_drill::process::{self, Death, MariaDb, Postgres, Redis};
use steadfast_drill::proxy::Proxy;
use steadfast_drill::waiting::until;

const ENDING: &str = "STEADFAST_TEST_ENDING";

/// The program; by itself, it ends well.
#[tokio::test]
async fn d6_a_program_that_succeeds_ends_its_servers() {
    let ending = std::env::var(ENDING).unwrap_or_default();
    let redis = match Redis::start().await {
        Ok(redis) => redis,
        Err(error) if ending == "refused" => return tell(&format!("refused: {error}")),
        Err(error) => panic!("{error}"),
    };
    let _proxy = Proxy::start(redis.addr()).await.unwrap();
    let (mut databases, mut started) = (
        None,
        vec![(redis.pid().unwrap(), redis.folder().to_owned())],
    );
    if ending == "databases" {
        let (maria, postgres) = tokio::join!(MariaDb::start(), Postgres::start());
        let (maria, postgres) = (maria.unwrap(), postgres.unwrap());
        started.push((maria.pid().unwrap(), maria.folder().to_owned()));
        started.push((postgres.pid().unwrap(), postgres.folder().to_owned()));
        postgres.freeze().unwrap();
        databases = Some((maria, postgres));
    }
    let mut busy = Vec::new();
    // Several, as one of them alone is lucky at times.
    for _ in 0..if ending == "writing" { 10 } else { 0 } {
        let folder = tempfile::tempdir().unwrap().keep();
        let args = ["-c".into(), WRITING.into()];
        let server =
            process::Child::spawn("/bin/sh".as_ref(), &args, &folder, Death::Killed).unwrap();
        until("it writes", || folder.join("before").exists()).await;
        started.push((server.pid(), folder));
        busy.push(server);
    }
    if ending == "frozen" {
        redis.freeze().unwrap();
    }
    for (pid, folder) in &started {
        tell(&format!("started: {pid} {}", folder.display()));
    }
    tell("ready:");
    match ending.as_str() {
        "" => {}
        "panic" => panic!("as told"),
        "exit" => exit(),
        "abort" => std::process::abort(),
        _ => std::future::pending().await,
    }
    drop((redis, databases, busy));
    started.iter().for_each(gone);
}

#[test]
fn d6_a_program_that_panics_ends_its_servers() {
    let mut program = Program::start("panic");
    assert_eq!(program.ends().code(), Some(101));
    program.left_nothing();
}

#[test]
fn d6_a_program_that_fails_without_cleaning_up_ends_its_servers() {
    for (ending, code) in [("exit", Some(7)), ("abort", None)] {
        let mut program = Program::start(ending);
        assert_eq!(program.ends().code(), code);
        program.left_nothing();
    }
}

#[test]
fn d6_a_program_ended_by_ctrl_c_ends_its_servers() {
    let mut program = Program::start("wait");
    // As a terminal does: to the whole group.
    kill_process_group(program.pid(), Signal::INT).unwrap();
    assert!(!program.ends().success());
    program.left_nothing();
}

#[test]
fn d6_a_program_that_is_killed_ends_its_servers() {
    for ending in ["wait", "frozen"] {
        let mut program = Program::start(ending);
        kill_process(program.pid(), Signal::KILL).unwrap();
        assert!(!program.ends().success());
        program.left_nothing();
    }
}

/// A server with a worker that goes on writing into the folder when the server is no more, as one
/// that saves does; on a busy machine that takes any time, so it does so until it is ended.
const WRITING: &str = r#"
(
  while [ -e /proc/$$/exe ]; do : > before; done
  n=0
  while :; do : > after-$n; n=$((n + 1)); done
) & exec sleep 600
"#;

#[test]
fn d6_the_folder_of_a_server_goes_though_a_worker_still_writes_into_it() {
    let mut program = Program::start("writing");
    kill_process(program.pid(), Signal::KILL).unwrap();
    assert!(!program.ends().success());
    program.left_nothing();
}

#[test]
fn d6_a_program_that_is_killed_ends_its_databases_too() {
    let mut program = Program::start("databases");
    assert_eq!(program.started.len(), 3);
    let segments = shared_memory();
    kill_process(program.pid(), Signal::KILL).unwrap();
    program.ends();
    program.left_nothing();
    // Another test's server may be leaving at this moment; what is left behind stays.
    let start = now();
    while shared_memory() > segments {
        assert!(
            now() - start < Duration::from_secs(20),
            "shared memory is left behind"
        );
        std::thread::yield_now();
    }
}

#[test]
fn d6_what_is_missing_taken_or_full_is_one_clear_line() {
    let no_program = refusal("PATH=/nowhere exec \"$@\"");
    assert_eq!(
        no_program,
        "no redis-server or valkey-server on the PATH; install the package redis-server"
    );

    let no_folder = refusal("TMPDIR=/proc/self exec \"$@\"");
    assert!(
        no_folder.starts_with("cannot write to the folder /proc/self: "),
        "{no_folder}"
    );

    let no_such_folder = refusal("TMPDIR=/no/such/folder exec \"$@\"");
    assert!(
        no_such_folder.starts_with("cannot write to the folder /no/such/folder: "),
        "{no_such_folder}"
    );

    // A disk without room for a single byte more: no write succeeds, as with ENOSPC, and no
    // privilege is needed for it.
    let no_room = refusal("trap '' XFSZ; ulimit -f 0; exec \"$@\"");
    assert!(
        no_room.starts_with("cannot write to the folder /") && no_room.contains("too large"),
        "{no_room}"
    );
}

/// What the program says when it is started by that line of shell and can start nothing.
fn refusal(shell: &str) -> String {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", shell, "sh"])
        .arg(std::env::current_exe().unwrap());
    let output = told(&mut command, "refused").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find_map(|line| line.split_once("refused: "));
    line.unwrap_or_else(|| panic!("{said}")).1.to_owned()
}

fn told<'a>(command: &'a mut Command, ending: &str) -> &'a mut Command {
    let test = [
        "--exact",
        "endings::d6_a_program_that_succeeds_ends_its_servers",
        "--nocapture",
    ];
    command.args(test).env(ENDING, ending).stderr(Stdio::null())
}

/// The program, running.
struct Program {
    child: Child,
    started: Vec<(u32, PathBuf)>,
}

impl Program {
    /// Starts the program, and returns once it has started its servers.
    fn start(ending: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = told(&mut command, ending)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut started = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some((pid, folder)) = line
                .strip_prefix("started: ")
                .and_then(|line| line.split_once(' '))
            {
                started.push((pid.parse().unwrap(), PathBuf::from(folder)));
            }
            if line == "ready:" {
                break;
            }
        }
        assert!(!started.is_empty(), "the program started nothing");
        Self { child, started }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn ends(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    fn left_nothing(&self) {
        self.started.iter().for_each(gone);
    }
}

/// Waits until neither the server, nor its watcher, nor its folder is there any more.
fn gone((pid, folder): &(u32, PathBuf)) {
    let start = now();
    while !running(*pid).is_empty() || folder.exists() {
        let left = (running(*pid), folder.exists());
        assert!(
            now() - start < Duration::from_secs(20),
            "left running: {left:?} of {pid} in {folder:?}"
        );
        std::thread::yield_now();
    }
}

/// The processes of the group that the server led, zombies aside: nobody may be there to wait for
/// those.
fn running(group: u32) -> Vec<String> {
    let stats = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            (fields[2] == group.to_string() && fields[0] != "Z").then_some(stat.clone())
        });
    stats.collect()
}

/// How many segments of System V shared memory there are in which nobody takes part.
fn shared_memory() -> usize {
    let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    segments
        .lines()
        .skip(1)
        .filter(|line| line.split_whitespace().nth(6) == Some("0"))
        .count()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time is that of other processes"
)]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "the pipe to the test")]
fn tell(line: &str) {
    println!("\n{line}");
}

#[expect(clippy::exit, reason = "the program fails without cleaning up")]
fn exit() -> ! {
    std::process::exit(7)
}
