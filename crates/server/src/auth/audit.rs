//! The audit log: who did what, and who was kept from it, one JSON object a line. Requests never
//! wait for the disk: lines go through a bounded queue to a thread of their own, and lines that did
//! not fit are counted, so that a gap is known to be one.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

/// A line of the audit log.
#[derive(Debug, Serialize)]
pub(crate) struct AuditEntry<'a> {
    pub(crate) at_ms: u64,
    /// The subject of the token; `null` if nobody is known.
    pub(crate) who: Option<&'a str>,
    pub(crate) role: Option<&'a str>,
    pub(crate) peer: Option<String>,
    pub(crate) method: &'a str,
    /// The address as it was asked for, without its query, whose values may be personal.
    pub(crate) path: &'a str,
    /// `allowed`, `unauthorized`, `forbidden`, `limited`, or `unfinished`: the caller hung up, or
    /// the time was over.
    pub(crate) outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
}

/// The audit log: a bounded queue, and a thread that writes it out.
pub(crate) struct AuditLog {
    queue: Option<SyncSender<Vec<u8>>>,
    /// Disconnected once everything is written and the thread has ended.
    written: Mutex<Option<Receiver<()>>>,
    /// The beginning of the present second of refusals, and their number in it.
    refusals: Mutex<(Option<Instant>, u32)>,
}

/// Lines that may wait to be written: some 4 MB at most.
const QUEUE: usize = 8192;

/// The time that the end of the program waits for the last lines: a pipe that nobody reads must not
/// keep it for ever.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Refusals of nobody in particular that are written down in a second. Anyone can cause them, and
/// must not fill the disk by that, nor crowd out the lines of those who did something.
const REFUSALS: u32 = 100;

impl AuditLog {
    /// `stderr`, `off`, or a file that is appended to and read by its owner only.
    pub(crate) fn open(target: &str) -> io::Result<Self> {
        let mut sink = match target {
            "off" => {
                return Ok(Self {
                    queue: None,
                    written: Mutex::default(),
                    refusals: Mutex::default(),
                });
            }
            "stderr" => Sink::Stderr,
            path => Sink::file(PathBuf::from(path))?,
        };
        let (queue, lines) = sync_channel(QUEUE);
        let (ended, written) = sync_channel(0);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                let _ended: SyncSender<()> = ended;
                write_all(&lines, &mut sink);
            })?;
        Ok(Self {
            queue: Some(queue),
            written: Mutex::new(Some(written)),
            refusals: Mutex::default(),
        })
    }

    pub(crate) fn write(&self, entry: &AuditEntry<'_>) {
        let Some(queue) = &self.queue else { return };
        if entry.who.is_none() && !self.has_room_for_a_refusal() {
            metrics::counter!("steadfast_audit_suppressed_total").increment(1);
            return;
        }
        let mut line = serde_json::to_vec(entry).unwrap_or_default();
        line.push(b'\n');
        if queue.try_send(line).is_err() {
            metrics::counter!("steadfast_audit_lost_total").increment(1);
        }
    }

    fn has_room_for_a_refusal(&self) -> bool {
        let now = crate::clock::now();
        let mut refusals = self.refusals.lock();
        let (began, count) = &mut *refusals;
        if began.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1))
        {
            (*began, *count) = (Some(now), 0);
        }
        *count += 1;
        *count <= REFUSALS
    }
}

/// Everything that was told is written before the program goes on to end, if anybody takes it.
impl Drop for AuditLog {
    fn drop(&mut self) {
        self.queue = None;
        let written = self.written.lock().take();
        let waited = written.map(|written| written.recv_timeout(LAST_LINES));
        if waited == Some(Err(RecvTimeoutError::Timeout)) {
            tracing::warn!(
                "the last lines of the audit log were not taken within {} s, and are lost",
                LAST_LINES.as_secs()
            );
        }
    }
}

enum Sink {
    Stderr,
    File {
        path: PathBuf,
        inode: u64,
        file: BufWriter<File>,
    },
}

impl Sink {
    fn file(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        let inode = file.metadata()?.ino();
        Ok(Self::File {
            path,
            inode,
            file: BufWriter::new(file),
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().lock().write_all(line),
            Self::File { file, .. } => file.write_all(line),
        }
    }

    /// Writes out the buffer, and makes a file that was moved away anew; called when no line waits.
    fn rest(&mut self) -> io::Result<()> {
        let Self::File { path, inode, file } = self else {
            return Ok(());
        };
        file.flush()?;
        if std::fs::metadata(&*path).map(|found| found.ino()).ok() != Some(*inode) {
            *self = Self::file(path.clone())?;
        }
        Ok(())
    }
}

fn write_all(lines: &Receiver<Vec<u8>>, sink: &mut Sink) {
    let mut failing = false;
    while let Ok(first) = lines.recv() {
        let mut outcome = sink.write(&first);
        // All of them may lie in a buffer until the end of the round.
        let mut round = 1;
        while outcome.is_ok()
            && let Ok(next) = lines.try_recv()
        {
            outcome = sink.write(&next);
            round += 1;
        }
        let outcome = outcome.and_then(|()| sink.rest());
        if let Err(error) = &outcome {
            metrics::counter!("steadfast_audit_lost_total").increment(round);
            if !failing {
                tracing::error!(%error, "the audit log cannot be written");
            }
        }
        failing = outcome.is_err();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn s6_every_line_that_could_not_be_written_is_counted() {
        let metrics = crate::telemetry::metrics();
        let log = AuditLog::open("/dev/full").unwrap();
        for _ in 0..500 {
            log.write(&AuditEntry {
                at_ms: 0,
                who: Some("ada"),
                role: None,
                peer: None,
                method: "POST",
                path: "/",
                outcome: "allowed",
                reason: None,
                status: None,
            });
        }
        drop(log);
        let text = metrics.render();
        let lost = text
            .lines()
            .find_map(|line| line.strip_prefix("steadfast_audit_lost_total "));
        assert_eq!(lost, Some("500"), "{text}");
    }

    #[test]
    fn s9_an_audit_log_that_nobody_reads_does_not_hold_up_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let _reader = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let log = AuditLog::open(path.to_str().unwrap()).unwrap();
        for _ in 0..2000 {
            log.write(&AuditEntry {
                at_ms: 0,
                who: Some("ada"),
                role: None,
                peer: None,
                method: "POST",
                path: "/a/path/of/some/length/so/that/a/pipe/is/full/of/it/before/long",
                outcome: "allowed",
                reason: None,
                status: None,
            });
        }
        let (ended, over) = sync_channel(0);
        std::thread::spawn(move || {
            drop(log);
            ended.send(())
        });
        over.recv_timeout(LAST_LINES * 20).unwrap();
    }

    #[test]
    fn s6_refusals_of_nobody_in_particular_are_bounded_and_crowd_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let log = AuditLog::open(path.to_str().unwrap()).unwrap();
        let entry = |who| AuditEntry {
            at_ms: 0,
            who,
            role: None,
            peer: None,
            method: "POST",
            path: "/",
            outcome: "x",
            reason: None,
            status: None,
        };
        for _ in 0..20_000 {
            log.write(&entry(None));
        }
        log.write(&entry(Some("ada")));
        drop(log);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("\"ada\""), "crowded out");
        let lines = text.lines().count();
        assert!((REFUSALS as usize..10_000).contains(&lines), "{lines}");
    }
}
