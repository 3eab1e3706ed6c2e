//! Runs the built program, to its end or beside the test, and never leaves one behind.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// Longer than anything here takes, on a machine that is busy with something else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// All it said, for the message of a failed assertion.
    pub(crate) fn all(&self) -> String {
        format!(
            "status {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.status, self.stdout, self.stderr
        )
    }
}

/// `steadfast` with these arguments, and none of the variables by which a machine might configure
/// it.
pub(crate) fn steadfast(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("STEADFAST")
            || ["REDIS_URL", "DATABASE_URL", "HEALTH_CHECK_REDIS_TIMEOUT"].contains(&&*text)
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs it to its end.
pub(crate) async fn run(args: &[&str]) -> Ended {
    finish(steadfast(args).spawn().unwrap()).await
}

/// Waits for the end of a program that was started with both outputs piped.
pub(crate) async fn finish(mut child: Child) -> Ended {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = |mut from: Box<dyn Read + Send>| {
        tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        })
    };
    let stdout = stdout.map(|out| read(Box::new(out)));
    let stderr = stderr.map(|err| read(Box::new(err)));
    let status = wait(&mut child).await;
    let text = async |reader: Option<tokio::task::JoinHandle<String>>| match reader {
        Some(reader) => reader.await.unwrap(),
        None => String::new(),
    };
    Ended {
        status,
        stdout: text(stdout).await,
        stderr: text(stderr).await,
    }
}

/// The exit status; a program that does not end is killed and fails the test.
pub(crate) async fn wait(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("the program did not end within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The lines that a program prints while it runs.
pub(crate) struct Lines(BufReader<ChildStdout>);

impl Lines {
    pub(crate) fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stdout.take().unwrap()))
    }

    /// The next line; empty once the program has closed its output.
    pub(crate) fn next(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// Sends a signal by its name (`INT`, `KILL`) to one process.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// Whether a process of that id is there (a zombie counts as gone).
pub(crate) fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}
