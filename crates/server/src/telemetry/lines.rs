//! A log whose reader stalls must not stall the service: a worker that waits in a write answers
//! nobody, not even a health check. Lines go through a bounded queue to a thread of their own; what
//! does not fit is counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait to be written: some 4 MB at most.
const QUEUE: usize = 8192;
/// The time that the end of the program waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

enum LogCommand {
    Write(Vec<u8>),
    /// Answers when everything before it is written.
    Flush(SyncSender<()>),
}

/// The queue of the log's lines; clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    queue: SyncSender<LogCommand>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Lines to standard error.
    pub(super) fn to_stderr() -> io::Result<Self> {
        Self::to(io::stderr())
    }

    fn to(mut sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, orders) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&orders, &mut sink, &counted))?;
        Ok(Self { queue, lost })
    }

    /// Waits, but not for long, until what was said is written.
    pub(super) fn flush(&self) {
        let (done, written) = sync_channel(1);
        // Full: it is stuck, and will not be written within any time that is worth waiting.
        if self.queue.try_send(LogCommand::Flush(done)).is_ok() {
            let _: Result<(), RecvTimeoutError> = written.recv_timeout(LAST_LINES);
        }
    }
}

fn write_all(orders: &Receiver<LogCommand>, sink: &mut impl Write, lost: &AtomicU64) {
    while let Ok(order) = orders.recv() {
        match order {
            LogCommand::Write(line) => {
                let _ = sink.write_all(&line);
            }
            LogCommand::Flush(done) => {
                let _ = sink.flush();
                let _ = done.try_send(());
            }
        }
        let missing = lost.swap(0, Relaxed);
        if missing > 0 {
            metrics::counter!("steadfast_log_lost_total").increment(missing);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine {
            lines: self,
            text: Vec::new(),
        }
    }
}

/// A line while it is put together; handed over when it is dropped.
pub(super) struct LogLine<'a> {
    lines: &'a Lines,
    text: Vec<u8>,
}

impl Write for LogLine<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine<'_> {
    fn drop(&mut self) {
        let line = LogCommand::Write(std::mem::take(&mut self.text));
        if self.lines.queue.try_send(line).is_err() {
            self.lines.lost.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use parking_lot::{Condvar, Mutex};

    /// A reader that takes nothing until it is told to.
    #[derive(Clone, Default)]
    struct Stalled(Arc<(Mutex<bool>, Condvar)>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stalled {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let (goes_on, told) = &*self.0;
            let mut goes_on = goes_on.lock();
            while !*goes_on {
                told.wait(&mut goes_on);
            }
            self.1.lock().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn s4_a_reader_that_stalls_stalls_nobody_and_lines_that_fit_come_in_order() {
        let sink = Stalled::default();
        let lines = Lines::to(sink.clone()).unwrap();
        for n in 0..QUEUE * 2 {
            writeln!(lines.make_writer(), "{n}").unwrap(); // would hang here for ever
        }
        let lost = lines.lost.load(Relaxed) as usize;
        // The reader holds one line at most beside the queue; before it has begun it holds none.
        assert!((QUEUE - 1..=QUEUE).contains(&lost), "{lost}");
        *sink.0.0.lock() = true;
        sink.0.1.notify_all();
        let written = || String::from_utf8(sink.1.lock().clone()).unwrap();
        while written().lines().count() < QUEUE * 2 - lost {
            lines.flush();
        }
        let numbers: Vec<usize> = written().lines().map(|n| n.parse().unwrap()).collect();
        // A reader that begins late makes room for one more line, when others have been lost
        // already.
        let (fits, later) = numbers.split_at(QUEUE);
        assert!(fits.iter().copied().eq(0..QUEUE));
        assert!(
            later.len() <= 1 && later.iter().all(|n| *n >= QUEUE),
            "{later:?}"
        );
        writeln!(lines.make_writer(), "last").unwrap();
        while !written().ends_with("last\n") {
            lines.flush();
        }
    }
}
