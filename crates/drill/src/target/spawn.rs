//! The application: run as its users run it, with what it says kept beside the timeline, and ended
//! with all that it started, also what has moved to a session of its own.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::TargetError;
use super::redact::redacted;
use crate::report::application::LogLine;
use crate::timeline::millis;

/// The time that a program that is told to end is given to do so; the script below counts to it
/// too.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at what it left behind.
const LOOK: Duration = Duration::from_millis(20);
/// In the environment of the application and of all that it starts: how what it left behind is
/// found.
const MARK: &str = "STEADFAST_DRILL_RUN";
/// Lines of the application that are kept, and the bytes of each.
const LINES: usize = 2_000;
const LINE_MAX: usize = 500;
/// Bytes of a line that are read at once, at most: a line need not end.
const PART: u64 = 64 << 10;

/// Runs `$1`, and ends whatever is left of it when this process is gone, which closes the pipe on
/// fd 3.
const WATCHED: &str = r#"
exec 3<&0 </dev/null
(
  trap '' HUP INT TERM QUIT
  read -r _ <&3
  kill -TERM 0
  turns=0
  while kill -0 $$ && [ $turns -lt 50 ]; do sleep 0.1; turns=$((turns + 1)); done
  for process in /proc/[0-9]*; do
    if grep -qs "STEADFAST_DRILL_RUN=$STEADFAST_DRILL_RUN" "$process/environ"; then
      group=$(cut -d' ' -f5 "$process/stat" 2>/dev/null)
      [ "$group" = "$$" ] || kill -KILL "${process#/proc/}"
    fi
  done
  kill -KILL 0
) >/dev/null 2>&1 &
exec 3<&- sh -c "$1"
"#;

/// A running application.
pub(super) struct Program {
    child: Child,
    group: Option<u32>,
    mark: String,
    said: Arc<SaidLines>,
}

#[derive(Default)]
struct SaidLines {
    start: Mutex<Option<Instant>>,
    lines: Mutex<(Vec<LogLine>, u64)>,
}

/// Where the application is to find what it uses.
pub(super) struct Addresses {
    pub(super) redis: SocketAddr,
    /// The database's, if it stands behind a proxy.
    pub(super) database: Option<SocketAddr>,
}

impl Program {
    pub(super) fn spawn(command: &str, addresses: &Addresses) -> Result<Self, TargetError> {
        let variable = |name| std::env::var(name).ok();
        let redis = variable("REDIS_URL");
        if redis
            .as_deref()
            .is_some_and(|url| url.starts_with("rediss:"))
        {
            return Err(TargetError::Tls);
        }
        let mark = format!("{}-{}", std::process::id(), addresses.redis.port());
        let mut builder = Command::new("/bin/sh");
        builder
            .args(["-c", WATCHED, "sh", command])
            .env(MARK, &mark)
            .env("REDIS_URL", through(redis.as_deref(), addresses.redis))
            .env("REDIS_HOST", addresses.redis.ip().to_string())
            .env("REDIS_PORT", addresses.redis.port().to_string());
        if let Some(database) = addresses.database {
            if let Some(url) = variable("DATABASE_URL") {
                builder.env("DATABASE_URL", at(&url, database).unwrap_or(url));
            }
            for (host, port) in [("DATABASE_HOST", "DATABASE_PORT"), ("PGHOST", "PGPORT")] {
                builder
                    .env(host, database.ip().to_string())
                    .env(port, database.port().to_string());
            }
        }
        let mut child = builder
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|cause| TargetError::Command {
                command: redacted(command),
                cause,
            })?;
        let said = Arc::new(SaidLines::default());
        if let Some(out) = child.stdout.take() {
            tokio::spawn(listen(out, said.clone()));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(listen(err, said.clone()));
        }
        Ok(Self {
            group: child.id(),
            child,
            mark,
            said,
        })
    }

    /// From now on its lines have times; those from before have the time 0.
    pub(super) fn begin(&self, start: Instant) {
        *lock(&self.said.start) = Some(start);
    }

    /// How it ended by itself, if it did: its exit status, or -1 if a signal ended it.
    pub(super) fn ended(&mut self) -> Option<i32> {
        // The pipe stays ours: `wait` would close it, and so end the application.
        let status = self.child.try_wait().ok().flatten()?;
        Some(status.code().unwrap_or(-1))
    }

    /// The lines that it wrote, and how many more there were than are kept.
    pub(super) fn lines(&self) -> (Vec<LogLine>, u64) {
        lock(&self.said.lines).clone()
    }

    /// Asks the application and all that it started to end, and sees to it that they do.
    pub(super) async fn end(mut self) {
        let group = self
            .group
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let until = Instant::now() + END_LIMIT + Duration::from_secs(2);
        drop(self.child.stdin.take());
        let leftovers = self.elsewhere(Signal::TERM);
        if tokio::time::timeout_at(until, self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
        let Some(group) = group else { return };
        while (test_kill_process_group(group).is_ok() || self.is_elsewhere(leftovers))
            && Instant::now() < until
        {
            tokio::time::sleep(LOOK).await;
        }
        self.elsewhere(Signal::KILL);
    }

    fn is_elsewhere(&self, leftovers: usize) -> bool {
        leftovers > 0 && !self.marked().is_empty()
    }

    /// Signals what has left the application's process group; how many there were.
    fn elsewhere(&self, signal: Signal) -> usize {
        let marked = self.marked();
        for pid in &marked {
            let _ = kill_process(*pid, signal);
        }
        marked.len()
    }

    /// The processes with the mark in their environment that are not in the application's group.
    fn marked(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.mark);
        let group = self.group.unwrap_or(0).to_string();
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            let is_marked = environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes());
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // After the name, which may hold anything: state, parent, group.
            let of = stat.rsplit_once(") ")?.1.split(' ').nth(2)?;
            (is_marked && of != group)
                .then(|| Pid::from_raw(pid))
                .flatten()
        })
        .collect()
    }
}

/// Passes on what the application writes, and keeps it.
async fn listen(from: impl AsyncRead + Unpin, said: Arc<SaidLines>) {
    let mut lines = BufReader::new(from);
    let mut out = tokio::io::stderr();
    let mut line = Vec::new();
    let mut goes_on = false;
    loop {
        line.clear();
        let mut part = (&mut lines).take(PART);
        match part.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let _ = out.write_all(&line).await;
        // Of a long line only the beginning is kept, which is in its first part.
        let is_rest = std::mem::replace(&mut goes_on, !line.ends_with(b"\n"));
        if is_rest {
            continue;
        }
        let now = Instant::now();
        let at = (*lock(&said.start))
            .map_or(Duration::ZERO, |start| now.saturating_duration_since(start));
        let text = String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]);
        let mut kept = lock(&said.lines);
        if kept.0.len() < LINES {
            kept.0.push(LogLine {
                at_ms: millis(at),
                text: redacted(text.trim_end()),
            });
        } else {
            kept.1 += 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The application's own URL, if it has one, with the proxy in place of its server: user, password
/// and database stay.
fn through(own: Option<&str>, proxy: SocketAddr) -> String {
    own.filter(|url| url.starts_with("redis://"))
        .and_then(|url| at(url, proxy))
        .unwrap_or_else(|| format!("redis://{proxy}/0"))
}

/// A URL with another server in it.
fn at(url: &str, proxy: SocketAddr) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
    Some(format!("{scheme}://{user}{proxy}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn d7_a_line_that_does_not_end_is_kept_by_its_beginning_and_read_in_parts() {
        let said = Arc::new(SaidLines::default());
        let (mut program, pipe) = tokio::io::duplex(1 << 20);
        let listening = tokio::spawn(listen(pipe, said.clone()));
        let endless = vec![b'x'; 3 * PART as usize / 2];
        program.write_all(&endless).await.unwrap();
        let kept = async {
            while lock(&said.lines).0.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), kept).await;
        in_time.expect("what was said is kept before its line ends");
        program.write_all(b"y\nthe next\n").await.unwrap();
        drop(program);
        listening.await.unwrap();
        let lines = lock(&said.lines);
        let texts: Vec<_> = lines.0.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["x".repeat(LINE_MAX).as_str(), "the next"]);
    }

    #[test]
    fn d7_the_applications_own_url_keeps_all_but_its_server() {
        let proxy = SocketAddr::from(([127, 0, 0, 1], 7));
        for (own, through_proxy) in [
            (None, "redis://127.0.0.1:7/0"),
            (Some(""), "redis://127.0.0.1:7/0"),
            (Some("unix:///run/redis.sock"), "redis://127.0.0.1:7/0"),
            (Some("redis://cache.internal"), "redis://127.0.0.1:7"),
            (
                Some("redis://ada:p%40ss@cache.internal:6380/3?protocol=resp3"),
                "redis://ada:p%40ss@127.0.0.1:7/3?protocol=resp3",
            ),
        ] {
            assert_eq!(through(own, proxy), through_proxy, "{own:?}");
        }
    }
}
