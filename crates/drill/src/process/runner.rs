//! The process with which servers end that several processes take turns with.
//!
//! A test runner gives each test a process of its own, so a server that belongs to its starter
//! serves one test. One that several share belongs to the runner instead, which need not know of
//! it: the watcher of such a server looks every few seconds whether the runner still lives, where
//! others wait for a pipe.

use std::path::Path;
use std::process::{Command, Stdio};

use super::ProcessError;

/// A process, told from a later one of the same number by when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Runner {
    pub(super) pid: u32,
    pub(super) start: u64,
}

impl Runner {
    /// Finds the program that runs this test: cargo or nextest where one is the parent, else this
    /// process.
    pub(super) fn of_this_process() -> Self {
        let parent = std::os::unix::process::parent_id();
        let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
        let runs_tests = name.starts_with("cargo");
        let own = std::process::id();
        let known = |pid| Self::of(pid).filter(|_| pid == own || runs_tests);
        known(parent)
            .or_else(|| known(own))
            .unwrap_or(Self { pid: own, start: 0 })
    }

    /// Finds the process of that number, if it lives.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything; after it come state and, as the 20th, the
        // start.
        let fields = stat.rsplit(')').next()?;
        let mut fields = fields.split_whitespace();
        let has_ended = fields.next()?.starts_with(['Z', 'X']);
        let start = fields.nth(18)?.parse().ok()?;
        (!has_ended).then_some(Self { pid, start })
    }

    /// Whether it is still there.
    pub(super) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Has a folder removed once this process is gone.
    pub(super) fn takes_along(self, folder: &Path) -> Result<(), ProcessError> {
        use std::os::unix::process::CommandExt;
        let script = format!("trap '' HUP INT TERM QUIT\n{ALIVE}{REMOVE}");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script, "sh"]).arg(folder);
        command.args([self.pid.to_string(), self.start.to_string()]);
        command.current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let spawned = command.stderr(Stdio::null()).spawn();
        spawned.map(drop).map_err(|cause| ProcessError::Spawn {
            program: "/bin/sh".to_owned(),
            cause,
        })
    }
}

/// A function of the shell that says whether a process lives, by its number and its start.
pub(super) const ALIVE: &str = r#"
alive() {
  runner=$1 start=$2
  read -r stat <"/proc/$runner/stat" || return 1
  set -- ${stat##*) }
  [ "${20}" = "$start" ]
}
"#;

/// Servers go first: each has a watcher of its own.
const REMOVE: &str = r#"
while alive "$2" "$3"; do sleep 3; done
turns=0
until sleep 3 && rm -rf -- "$1" || [ $turns -ge 20 ]; do turns=$((turns + 1)); done
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Redis;
    use std::time::Duration;

    #[tokio::test]
    async fn d6_a_shared_server_outlives_its_starter_s_handle_and_ends_with_its_runner() {
        let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
        let runner = Runner::of(sleeper.id()).unwrap();
        let base = tempfile::tempdir().unwrap().keep();
        runner.takes_along(&base).unwrap();
        let builder = || Redis::builder().within(&base).shared(runner);
        let redis = builder().start().await.unwrap();
        let (server, folder) = (redis.pid().unwrap(), redis.folder().to_owned());
        redis.command(&["SET", "k", "v"]).await.unwrap();
        drop(redis);

        let found = builder().find(&folder, runner).unwrap();
        assert_eq!(found.pid(), Some(server));
        found.freeze().unwrap();
        assert!(!found.is_awake());
        found.resume().unwrap();
        assert!(found.command(&["GET", "k"]).await.is_ok());
        found.restart().await.unwrap();
        let server = Runner::of(found.pid().unwrap()).unwrap();
        drop(found);
        assert!(server.lives());

        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        while server.lives() || base.exists() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
