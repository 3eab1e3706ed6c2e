//! How far a drill has come: where somebody watches, a bar and a line for each subject; else a line
//! whenever something changes, which is what a log can use.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use steadfast_drill::run::{Live, Progress};
use steadfast_drill::scenario::{Phase, Scenario};
use steadfast_drill::subject::{Breaker, Connection};

use crate::figures::{count, duration};

type Told = Arc<dyn Fn(&Progress) + Send + Sync>;

/// The display on the terminal while a drill runs.
pub(super) struct Shown(Option<ProgressBar>);

impl Shown {
    /// Clears it.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Starts the display of progress, and returns what is to be told of it.
pub(super) fn start(scenario: &Scenario) -> (Shown, Told) {
    if !std::io::stderr().is_terminal() {
        return (Shown(None), lines(scenario.name.clone()));
    }
    let bar = ProgressBar::new(scenario.phases.total().as_millis() as u64);
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}");
    bar.set_style(
        style
            .expect("the template is a constant that parses")
            .progress_chars("=> "),
    );
    bar.set_prefix(scenario.name.clone());
    bar.set_message("starting servers, filling caches");
    let (told, calls) = (bar.clone(), scenario.load.calls);
    let show = move |progress: &Progress| {
        told.set_position(progress.elapsed_ms);
        told.set_message(table(progress, calls));
    };
    (Shown(Some(bar)), Arc::new(show))
}

/// The rest of the bar's line, and below it a line for each subject.
fn table(progress: &Progress, calls: Option<u64>) -> String {
    let seconds = |ms| duration(Duration::from_millis(ms));
    let mut text = format!(
        "{} of {} · {}",
        seconds(progress.elapsed_ms),
        seconds(progress.total_ms),
        phase(progress)
    );
    if let Some(calls) = calls {
        text += &format!(
            " · call {} of {}",
            count(progress.subject.calls),
            count(calls)
        );
    }
    let subjects = [
        ("steadfast", Some(&progress.subject)),
        ("plain", progress.control.as_ref()),
        ("by hand", progress.hand_built.as_ref()),
    ];
    for (who, live) in subjects {
        if let Some(live) = live {
            text += &format!("\n  {who:<9}  {}", row(live));
        }
    }
    text
}

fn row(live: &Live) -> String {
    let connection = match live.connection {
        Connection::Ready => "ready",
        Connection::Connecting => "connecting",
        Connection::Down => "down",
    };
    let breaker = match live.breaker {
        Breaker::Closed => "closed",
        Breaker::HalfOpen => "half-open",
        Breaker::Open => "open",
    };
    format!(
        "{:>6.0}/s  failed {:<7} memory {:<8} redis {:<8} database {:<8} connection {connection}, breaker {breaker}",
        live.rate,
        count(live.failed),
        count(live.memory),
        count(live.redis),
        count(live.database),
    )
}

/// A line for each change of phase or of what is broken.
fn lines(name: String) -> Told {
    let last: Mutex<Option<(Phase, Vec<&'static str>)>> = Mutex::new(None);
    Arc::new(move |progress| {
        let now = Some((progress.phase, progress.broken.clone()));
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != now {
            *last = now;
            eprintln!(
                "{name} {:>5.1} s  {}",
                progress.elapsed_ms as f64 / 1e3,
                words(progress)
            );
        }
    })
}

fn words(progress: &Progress) -> String {
    let live = &progress.subject;
    let mut words = format!(
        "{}: {:.0}/s, {} failed, from memory {}, redis {}, database {}",
        phase(progress),
        live.rate,
        count(live.failed),
        count(live.memory),
        count(live.redis),
        count(live.database),
    );
    if let Some(control) = &progress.control {
        words += &format!(" (plain client {} failed)", count(control.failed));
    }
    words
}

/// The phase, and what is broken in it.
fn phase(progress: &Progress) -> String {
    let name = progress.phase.name().replace('_', " ");
    if progress.broken.is_empty() {
        name
    } else {
        format!("{name} ({})", progress.broken.join(", "))
    }
}
