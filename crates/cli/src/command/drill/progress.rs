//! How far a drill has come: a bar where somebody watches, else a line whenever something changes, which is what a log can use.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use steadfast_drill::run::Progress;
use steadfast_drill::scenario::{Phase, Scenario};

use crate::figures::count;

type Told = Arc<dyn Fn(&Progress) + Send + Sync>;

/// What is on the terminal while a drill runs.
pub(super) struct Shown(Option<ProgressBar>);

impl Shown {
    /// Clears it.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// What shows progress, and what is to be told of it.
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
    bar.set_message("setting up");
    let told = bar.clone();
    (
        Shown(Some(bar)),
        Arc::new(move |progress| {
            told.set_position(progress.elapsed_ms);
            told.set_message(words(progress));
        }),
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
    let mut words = progress.phase.name().replace('_', " ");
    if !progress.broken.is_empty() {
        words += &format!(" ({})", progress.broken.join(", "));
    }
    let live = &progress.subject;
    words += &format!(": {:.0}/s, {} failed", live.rate, count(live.failed));
    if let Some(control) = &progress.control {
        words += &format!(" (control {})", count(control.failed));
    }
    words
}
