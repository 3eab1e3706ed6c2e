//! Drills started over HTTP. One runs at a time, because it is meant to be looked at and the
//! machine is shared with the service; a few that ended are kept with their reports. What is broken
//! is the drill's own: never the service's Redis or database.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use steadfast_drill::report::{Report, Verdict, html, json};
use steadfast_drill::run::{Progress, RunError, RunOptions, run};
use steadfast_drill::scenario::{self, Scenario};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::{millis, unix_ms};
use crate::observe::feed::EventFeed;
use crate::problem::{Problem, ProblemKind};

mod aside;
mod facts;
mod ledger;
mod subject;
mod table;

pub use subject::Subjects;

/// Drills kept after they ended, with their reports.
const KEPT: usize = 16;

/// Calls that a loop started over HTTP may make: some ten minutes at the usual rate.
const MOST_CALLS: u64 = 200_000;

/// The request of a caller for a drill.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DrillRequest {
    /// A built-in scenario by name.
    scenario: Option<String>,
    /// Or a scenario of the caller's own, as TOML.
    toml: Option<String>,
    /// Whether a client without resilience runs beside.
    control: bool,
    /// Whether one whose resilience is built by hand runs beside.
    hand_built: bool,
    seed: Option<u64>,
    /// Ends the load after so many calls.
    calls: Option<u64>,
}

/// A built-in scenario, for a list.
#[derive(Debug, Serialize)]
pub(crate) struct Offer {
    name: String,
    about: String,
    length_ms: u64,
}

/// A drill as callers see it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DrillSummary {
    id: u64,
    scenario: String,
    about: String,
    control: bool,
    hand_built: bool,
    started_ms: u64,
    state: DrillState,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum DrillState {
    Running,
    Passed,
    Failed,
    Void,
    Stopped,
    Broken,
}

impl DrillSummary {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

/// A drill that runs or ran.
pub(crate) struct DrillRun {
    summary: Mutex<DrillSummary>,
    report: Mutex<Option<Arc<Report>>>,
    feed: EventFeed,
    stop: CancellationToken,
    over: CancellationToken,
}

/// All drills of a service.
#[derive(Default)]
pub(crate) struct Drills {
    shelf: Mutex<Shelf>,
    reports: Option<PathBuf>,
}

#[derive(Default)]
struct Shelf {
    drills: BTreeMap<u64, Arc<DrillRun>>,
    running: Option<JoinHandle<()>>,
    last_id: u64,
}

impl Drills {
    pub(crate) fn new(reports: Option<PathBuf>) -> Self {
        Self {
            shelf: Mutex::default(),
            reports,
        }
    }

    /// Returns the scenarios that can be started by name.
    pub(crate) fn offers() -> Vec<Offer> {
        let offer = |scenario: Scenario| Offer {
            length_ms: millis(scenario.phases.total()),
            name: scenario.name,
            about: scenario.about,
        };
        scenario::all().into_iter().map(offer).collect()
    }

    pub(crate) fn list(&self) -> Vec<DrillSummary> {
        let shelf = self.shelf.lock();
        let newest_first = shelf.drills.values().rev();
        newest_first.map(|drill| drill.summary()).collect()
    }

    pub(crate) fn find(&self, id: u64) -> Result<Arc<DrillRun>, Problem> {
        let found = self.shelf.lock().drills.get(&id).cloned();
        found.ok_or_else(|| {
            Problem::new(ProblemKind::UnknownQuery, format!("there is no drill {id}"))
        })
    }

    /// Starts a drill, unless one is running.
    pub(crate) fn start(&self, request: DrillRequest) -> Result<DrillSummary, Problem> {
        let scenario = request.scenario()?;
        let mut shelf = self.shelf.lock();
        // One that has told of its end is over, though its task may have a moment to go.
        let newest_runs = shelf
            .drills
            .values()
            .next_back()
            .is_some_and(|drill| !drill.is_over());
        let running = shelf.running.as_ref();
        if newest_runs && running.is_some_and(|running| !running.is_finished()) {
            let problem = "another drill is running; wait for it, or stop it";
            return Err(Problem::new(ProblemKind::Conflict, problem));
        }
        shelf.last_id += 1;
        let id = shelf.last_id;
        let drill = Arc::new(DrillRun::new(id, &scenario, &request));
        let folder = self
            .reports
            .as_ref()
            .map(|reports| reports.join(format!("{id}-{}", scenario.name)));
        let options = drill.options(&request);
        shelf.running = Some(tokio::spawn(
            Arc::clone(&drill).play(scenario, options, folder),
        ));
        while shelf.drills.len() >= KEPT {
            shelf.drills.pop_first();
        }
        let summary = drill.summary();
        shelf.drills.insert(id, drill);
        Ok(summary)
    }

    /// Stops what runs, and waits until everything it started is gone.
    pub(crate) async fn close(&self) {
        let running = {
            let mut shelf = self.shelf.lock();
            shelf.drills.values().for_each(|drill| drill.stop());
            shelf.running.take()
        };
        if let Some(running) = running {
            let _ = running.await;
        }
    }
}

impl DrillRequest {
    fn scenario(&self) -> Result<Scenario, Problem> {
        let bad = |why: String| Problem::new(ProblemKind::BadParameter, why);
        let scenario = match (&self.scenario, &self.toml) {
            (Some(name), None) => scenario::builtin(name).ok_or_else(|| {
                Problem::new(
                    ProblemKind::UnknownQuery,
                    format!("there is no scenario `{name}`; GET /v1/drills lists them"),
                )
            })?,
            (None, Some(text)) => {
                Scenario::parse_own(text).map_err(|error| bad(error.to_string()))?
            }
            _ => return Err(bad("name a `scenario`, or send one as `toml`".to_owned())),
        };
        match self.calls {
            None => Ok(scenario),
            Some(calls) if (1..=MOST_CALLS).contains(&calls) => Ok(scenario.with_calls(calls)),
            Some(_) => Err(bad(format!("`calls` must be between 1 and {MOST_CALLS}"))),
        }
    }
}

impl DrillRun {
    fn new(id: u64, scenario: &Scenario, request: &DrillRequest) -> Self {
        let started_ms = unix_ms();
        Self {
            summary: Mutex::new(DrillSummary {
                id,
                scenario: scenario.name.clone(),
                about: scenario.about.clone(),
                control: request.control,
                hand_built: request.hand_built,
                started_ms,
                state: DrillState::Running,
                progress: None,
                error: None,
            }),
            report: Mutex::default(),
            feed: EventFeed::new(started_ms),
            stop: CancellationToken::new(),
            over: CancellationToken::new(),
        }
    }

    pub(crate) fn summary(&self) -> DrillSummary {
        self.summary.lock().clone()
    }

    /// The summary without its last progress, for the history.
    pub(crate) fn outcome(&self) -> DrillSummary {
        let mut summary = self.summary();
        summary.progress = None;
        summary
    }

    pub(crate) fn feed(&self) -> &EventFeed {
        &self.feed
    }

    /// Asks it to end early. It heals what it broke first.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns once the drill is over and its last event is told.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// The report, once there is one.
    pub(crate) fn report(&self) -> Result<Arc<Report>, Problem> {
        self.report.lock().clone().ok_or_else(|| {
            let state = self.summary.lock().state;
            let detail = match state {
                DrillState::Running => "the drill is still running",
                _ => "the drill came to no verdict, so there is no report",
            };
            Problem::new(ProblemKind::Conflict, detail)
        })
    }

    fn options(self: &Arc<Self>, request: &DrillRequest) -> RunOptions {
        let drill = Arc::clone(self);
        let told = move |progress: &Progress| {
            drill.feed.tick(progress);
            drill.summary.lock().progress = Some(progress.clone());
        };
        RunOptions {
            control: request.control,
            hand_built: request.hand_built,
            seed: request.seed,
            progress: Some(Arc::new(told)),
            stop: self.stop.clone(),
        }
    }

    async fn play(
        self: Arc<Self>,
        scenario: Scenario,
        options: RunOptions,
        folder: Option<PathBuf>,
    ) {
        let running = {
            let scenario = scenario.clone();
            aside::run(async move { run(&scenario, &Subjects, options).await })
        };
        // Whatever goes wrong in there, this drill comes to an end that is seen.
        let (state, error) = match running.await {
            Ok(Ok(report)) => {
                if let Some(folder) = folder {
                    keep(&report, &folder).await;
                }
                let state = match report.verdict {
                    Verdict::Passed => DrillState::Passed,
                    Verdict::Failed => DrillState::Failed,
                    Verdict::Void => DrillState::Void,
                };
                *self.report.lock() = Some(Arc::new(report));
                (state, None)
            }
            Ok(Err(RunError::Interrupted)) => (DrillState::Stopped, None),
            Ok(Err(error)) => {
                tracing::warn!(scenario = scenario.name, %error, "a drill came to no verdict");
                (DrillState::Broken, Some(error.to_string()))
            }
            Err(fault) => {
                tracing::error!(scenario = scenario.name, %fault, "a drill ended in a fault of its own");
                let error = "it ended in a fault of its own; the log has more";
                (DrillState::Broken, Some(error.to_owned()))
            }
        };
        {
            let mut summary = self.summary.lock();
            summary.state = state;
            summary.error = error;
        }
        self.feed.event("over", &self.summary());
        self.over.cancel();
    }
}

/// Writes the report into `folder`; that it cannot be written is no reason to lose the drill.
async fn keep(report: &Report, folder: &Path) {
    let written = async {
        tokio::fs::create_dir_all(folder).await?;
        tokio::fs::write(folder.join("report.json"), json::render(report)).await?;
        tokio::fs::write(folder.join("report.html"), html::render(report)).await
    };
    if let Err(error) = written.await {
        tracing::warn!(folder = %folder.display(), %error, "the report could not be written");
    }
}
