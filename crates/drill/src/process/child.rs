//! A server process that cannot outlive the process that started it.
//!
//! Drop covers success, failure and panic. It does not cover SIGKILL, so somebody else must watch.
//! The kernel's parent-death signal would, but it is tied to the *thread* that spawned the child,
//! and the threads of a tokio runtime come and go; setting it also takes unsafe code between fork
//! and exec. So a pipe is watched instead: this process holds the only write end, in [`Child`], and
//! the kernel closes it when this process ends, in whatever way.
//!
//! The child begins as a shell, which forks the watcher and then becomes the server by `exec`. So
//! the server is this process's own child, with a pid known at once, and there is no moment in
//! which it runs unwatched. Both are in a process group of their own: Ctrl-C in a terminal does not
//! reach them behind this process's back, and since the watcher belongs to the group whose number
//! is the server's pid, the kernel gives that number to nobody else while the watcher lives. Its
//! kill cannot hit a stranger.
//!
//! The watcher ignores the signals that it can: when the starter of a stopped server dies, the
//! kernel finds an orphaned group with a stopped member, and sends SIGHUP to all of it.
//!
//! No other child inherits the write end: the standard library opens it with O_CLOEXEC.
//!
//! A server that several processes take turns with has no pipe: see [`Runner`].

use super::ProcessError;
use super::runner::{ALIVE, Runner};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// `$1` is the folder to remove once the parent died, `$2` the signal that ends the server, `$3`
/// and `$4` the process to watch instead of the parent (or 0), the rest the server. One that is
/// asked rather than killed gets eight seconds, more than PostgreSQL takes to kill its own stopped
/// children. What a server has forked may write longer than the server lives, on a busy machine for
/// any time. So what is left of the group is killed (but not the watcher, whose own pid is the
/// first word of its `stat`), and the folder is removed until it stays so.
const SCRIPT: &str = r#"
folder=$1 signal=$2 runner=$3 start=$4; shift 4
exec 3<&0 </dev/null
(
  trap '' HUP INT TERM QUIT
  if [ "$runner" = 0 ]; then read -r _ <&3; else while alive "$runner" "$start"; do sleep 3; done; fi
  kill -CONT $(cat /proc/$$/task/$$/children); kill -CONT $$; kill -s "$signal" $$
  turns=0
  while [ "$signal" != KILL ] && kill -0 $$ && [ $turns -lt 80 ]; do sleep 0.1; turns=$((turns + 1)); done
  kill -KILL $$
  turns=0
  read -r own _ </proc/self/stat
  while [ $turns -lt 100 ]; do
    for process in /proc/[0-9]*; do
      read -r stat <"$process/stat" || continue
      set -- ${stat##*) }
      [ "$3" != "$$" ] || [ "${process#/proc/}" = "$own" ] || kill -KILL "${process#/proc/}"
    done
    rm -rf -- "$folder" && break
    sleep 0.1; turns=$((turns + 1))
  done
  kill -KILL 0
) >/dev/null 2>&1 &
exec 3<&- "$@"
"#;

/// How a server is made to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL: nothing of the server's own happens any more, as in a crash.
    Killed,
    /// SIGTERM: as an operator stops it.
    Asked,
    /// SIGINT: what PostgreSQL calls a fast shutdown, without waiting for its clients to go.
    Interrupted,
    /// SIGQUIT: at once, but giving back what the kernel would keep (PostgreSQL's shared memory).
    Quit,
}

impl Death {
    fn signal(self) -> (Signal, &'static str) {
        match self {
            Self::Killed => (Signal::KILL, "KILL"),
            Self::Asked => (Signal::TERM, "TERM"),
            Self::Interrupted => (Signal::INT, "INT"),
            Self::Quit => (Signal::QUIT, "QUIT"),
        }
    }
}

/// A running server and the watcher beside it. Dropped, both end.
#[derive(Debug)]
pub struct Child {
    process: Handle,
    pid: Pid,
    drop_by: Death,
    /// Whether others use it too: then neither this process's end nor a drop ends it.
    is_shared: bool,
}

#[derive(Debug)]
enum Handle {
    /// A child of this process, whose stdin is the write end of the pipe.
    Own(std::process::Child),
    /// A server that another process has started.
    Found(Runner),
}

impl Child {
    /// Starts `program`, its output going to a log in `folder`. When this process dies, `drop_by`
    /// is what befalls the server, and then the folder, which must be a temporary one, is removed.
    ///
    /// # Errors
    /// [`ProcessError::Folder`] when the log cannot be written, [`ProcessError::Spawn`] when the
    /// system refuses to fork.
    pub fn spawn(
        program: &Path,
        args: &[OsString],
        folder: &Path,
        drop_by: Death,
    ) -> Result<Self, ProcessError> {
        Self::spawn_for(None, program, args, folder, drop_by)
    }

    /// The same, but it dies with that process rather than with this one, if there is one.
    pub(super) fn spawn_for(
        runner: Option<Runner>,
        program: &Path,
        args: &[OsString],
        folder: &Path,
        drop_by: Death,
    ) -> Result<Self, ProcessError> {
        let path = folder.join(super::LOG);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.and_then(|log| Ok((log.try_clone()?, log)));
        let (out, err) = log.map_err(|cause| ProcessError::Folder { path, cause })?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("{ALIVE}{SCRIPT}")).arg("sh");
        command.arg(folder).arg(drop_by.signal().1);
        let watched = runner.map_or((0, 0), |runner| (runner.pid, runner.start));
        command.args([watched.0.to_string(), watched.1.to_string()]);
        command.arg(program).args(args);
        command.current_dir(folder).process_group(0);
        command.stdin(Stdio::piped()).stdout(out).stderr(err);
        let failed = |cause| ProcessError::Spawn {
            program: program.display().to_string(),
            cause,
        };
        let process = command.spawn().map_err(failed)?;
        let pid = Pid::from_child(&process);
        Ok(Self {
            process: Handle::Own(process),
            pid,
            drop_by,
            is_shared: runner.is_some(),
        })
    }

    /// A shared server that another process has started, if it still runs.
    pub(super) fn find(server: Runner, drop_by: Death) -> Option<Self> {
        let pid = Pid::from_raw(server.pid.try_into().ok()?)?;
        server.lives().then_some(Self {
            process: Handle::Found(server),
            pid,
            drop_by,
            is_shared: true,
        })
    }

    /// The server's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether the server has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        match &mut self.process {
            // What was waited for is remembered, and the watcher keeps the pid from being used
            // again.
            Handle::Own(process) => !matches!(process.try_wait(), Ok(None)),
            Handle::Found(server) => !server.lives(),
        }
    }

    /// SIGSTOP: the server keeps its sockets, and the kernel goes on accepting for it, but it does
    /// nothing. Returns once it stands still: a process takes a signal when it runs next, and on a
    /// busy machine it may answer before that.
    ///
    /// # Errors
    /// When the server is no more.
    pub fn freeze(&self) -> io::Result<()> {
        kill_process(self.pid, Signal::STOP)?;
        wait_until_it_stands(self.pid);
        for worker in self.workers() {
            kill_process(worker, Signal::STOP)?;
            wait_until_it_stands(worker);
        }
        Ok(())
    }

    /// SIGCONT: it goes on from where it stopped.
    ///
    /// # Errors
    /// When the server is no more.
    pub fn resume(&self) -> io::Result<()> {
        for worker in self.workers() {
            let _ = kill_process(worker, Signal::CONT);
        }
        Ok(kill_process(self.pid, Signal::CONT)?)
    }

    /// Ends the server and waits until it is gone. One that does not go when asked is killed after
    /// `patience`.
    pub async fn end(mut self, death: Death, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        if death != Death::Killed {
            let _ = self.signal(death);
            while !self.has_ended() && tokio::time::Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        self.kill_group();
        while !self.has_ended() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn signal(&self, death: Death) -> io::Result<()> {
        self.resume()?;
        Ok(kill_process(self.pid, death.signal().0)?)
    }

    /// The server if it still runs, what it forked, and the watcher.
    fn kill_group(&self) {
        if kill_process(self.pid, Signal::STOP).is_ok() {
            wait_until_it_stands(self.pid);
            for worker in self.workers() {
                let _ = kill_process(worker, Signal::KILL);
            }
        }
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// The processes that the server forked and that left its group: PostgreSQL serves each
    /// connection by one. They are its children until it waits for them, which a stopped server
    /// does not; so their pids are safe to signal then.
    fn workers(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        numbers
            .filter(|number| self.is_worker(*number))
            .filter_map(Pid::from_raw)
            .collect()
    }

    fn is_worker(&self, number: i32) -> bool {
        let stat = stat(Path::new(&format!("/proc/{number}")));
        let fields = stat.split_whitespace().skip(1);
        let mut fields = fields.map(str::parse::<i32>);
        let (parent, group) = (fields.next(), fields.next());
        let own = self.pid.as_raw_nonzero().get();
        parent == Some(Ok(own)) && group != Some(Ok(own))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.is_shared {
            return;
        }
        if self.drop_by != Death::Killed && !self.has_ended() && self.signal(self.drop_by).is_ok() {
            for _ in 0..DROP_TURNS {
                if self.has_ended() {
                    break;
                }
                pause();
            }
        }
        self.kill_group();
        if let Handle::Own(process) = &mut self.process {
            let _ = process.wait();
        }
    }
}

/// Returns whether a process runs and does not stand still, with all its threads.
pub(super) fn is_awake(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let mut threads = threads.into_iter().flatten().flatten();
    threads.any(|thread| {
        let stat = stat(&thread.path());
        !stat.is_empty() && !stat.starts_with(['T', 't', 'Z', 'X'])
    })
}

/// Returns what the kernel says of a process or thread: state, parent, group and more; nothing of
/// one that is no more.
fn stat(process: &Path) -> String {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    // The name, in brackets, may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.trim_start().to_owned()
}

/// Waits for a process to which SIGSTOP was sent. One that waits for a disk stands as soon as that
/// is done; it is not waited for longer than a second.
fn wait_until_it_stands(pid: Pid) {
    let pid = pid.as_raw_nonzero().get().unsigned_abs();
    for _ in 0..STAND_TURNS {
        if !is_awake(pid) {
            return;
        }
        pause();
    }
}

/// How often [`pause`] is repeated for a server to stand still: a second.
const STAND_TURNS: usize = 200;
/// How often [`pause`] is repeated before a dropped server that does not go is killed: eight
/// seconds.
const DROP_TURNS: usize = 1600;

#[expect(
    clippy::disallowed_methods,
    reason = "drop cannot await; the wait is for a process that was told to stand or to go"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
