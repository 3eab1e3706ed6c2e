//! A drill from start to end: it sets up what it will break, puts the load on, breaks and heals at
//! the times of the scenario, and takes everything down again, whatever happens in between. What is
//! broken is private to the drill, and dies with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::ledger::LedgerReport;
use crate::load::{Lane, drive};
use crate::process::ProcessError;
use crate::record::{Record, SAMPLE};
use crate::report::Report;
use crate::scenario::{Fault, Phase, Scenario, Store};
pub use crate::site::SiteError;
use crate::site::{FAULT_LIMIT, Site};
use crate::subject::{Breaker, Connection, Role, SetUpError, Subject, SubjectFactory};
use crate::timeline::{self, FaultSpan, Faults, Id};

/// How often progress is told.
const TELL: Duration = Duration::from_millis(250);
const WARM_LIMIT: Duration = Duration::from_secs(30);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
/// The time that healing may take once the drill is stopped.
const LAST_LIMIT: Duration = Duration::from_secs(2);

/// How to run a scenario.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// Whether the control runs beside. Default: no.
    pub control: bool,
    /// Whether the second control runs beside, whose resilience is built by hand. Default: no.
    pub hand_built: bool,
    /// A seed other than the scenario's.
    pub seed: Option<u64>,
    /// Told of progress four times a second. Must not block.
    pub progress: Option<Listener>,
    /// Ends the run early, as [`RunError::Interrupted`]; all is taken down first.
    pub stop: CancellationToken,
}

/// A function that is told of progress.
pub type Listener = Arc<dyn Fn(&Progress) + Send + Sync>;

/// How far a drill has come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    /// From the start of the load.
    pub elapsed_ms: u64,
    /// The planned length of the load.
    pub total_ms: u64,
    /// The phase it is in.
    pub phase: Phase,
    /// The names of the faults of now.
    pub broken: Vec<&'static str>,
    /// The subject that is judged.
    pub subject: Live,
    /// The control, if one runs.
    pub control: Option<Live>,
    /// The second control, if it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hand_built: Option<Live>,
}

/// How a subject is doing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Live {
    /// Calls that ended, warm-up included.
    pub calls: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Calls that could not be started.
    pub skipped: u64,
    /// Calls a second, in the last quarter of a second.
    pub rate: f64,
    /// Reads answered from memory.
    pub memory: u64,
    /// Reads answered by Redis.
    pub redis: u64,
    /// Reads answered by SQL.
    pub database: u64,
    /// Answers that said they were stale.
    pub stale: u64,
    /// Answers that were wrong.
    pub wrong: u64,
    /// The connection now.
    pub connection: Connection,
    /// The breaker now.
    pub breaker: Breaker,
}

/// Why a drill came to no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The drill was stopped. Everything was taken down.
    #[error("interrupted")]
    Interrupted,
    /// A server that the drill needs could not be started.
    #[error("{0}")]
    Server(SiteError),
    /// A subject could not be started or warmed.
    #[error("{}: {cause}", role_name(*.role))]
    SetUp {
        /// The subject's role.
        role: Role,
        /// Why.
        cause: SetUpError,
    },
    /// A fault could not be made or healed.
    #[error("the fault {fault} could not be {}: {cause}", if *.healing { "healed" } else { "made" })]
    Fault {
        /// The fault's name, as in a scenario file.
        fault: &'static str,
        /// Whether it was to be healed.
        healing: bool,
        /// Why not.
        cause: ProcessError,
    },
}

impl RunError {
    /// The exit status of a program that ends with this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            RunError::Interrupted => 130,
            RunError::Server(_) => 69,
            RunError::SetUp { .. } | RunError::Fault { .. } => 1,
        }
    }
}

/// Runs a scenario on subjects of the factory's.
///
/// ```no_run
/// use steadfast_drill::run::{RunOptions, run};
/// use steadfast_drill::scenario::builtin;
/// use steadfast_drill::subject::SubjectFactory;
///
/// # async fn example(mine: &dyn SubjectFactory) -> Result<(), Box<dyn std::error::Error>> {
/// let scenario = builtin("crash").ok_or("no such scenario")?;
/// let report = run(&scenario, mine, RunOptions::default()).await?;
/// assert!(report.passed());
/// # Ok(()) }
/// ```
///
/// # Errors
/// When it came to no verdict. A failed verdict is a report, not an error.
pub async fn run(
    scenario: &Scenario,
    factory: &dyn SubjectFactory,
    options: RunOptions,
) -> Result<Report, RunError> {
    let mut scenario = scenario.clone();
    scenario.seed = options.seed.unwrap_or(scenario.seed);
    let setting_up = Setup::set_up(&scenario, factory, roles(&scenario, &options));
    let setup = tokio::select! {
        setup = setting_up => setup?,
        () = options.stop.cancelled() => return Err(RunError::Interrupted),
    };
    let outcome = setup.play(&scenario, &options).await;
    setup.take_down().await;
    outcome
}

/// A subject and what it lives on, which goes last.
struct SubjectRun {
    role: Role,
    lane: Arc<Lane>,
    site: Site,
}

impl SubjectRun {
    /// Carries one action out on this subject's servers, and notes it in the subject's record at
    /// that moment.
    async fn carry_out(
        &self,
        action: &DueAction<'_>,
        scenario: &Scenario,
        heals: bool,
    ) -> Result<Duration, ProcessError> {
        let before = self.lane.now();
        match (action.what, action.fault) {
            (What::Begin, Some(fault)) => {
                self.lane.record(|record| record.broken(before));
                self.site.begin(fault, self.lane.subject()).await?;
                Ok(before)
            }
            (What::End, Some(fault)) => {
                self.site.end(fault, self.lane.subject()).await?;
                let now = self.lane.now();
                if heals {
                    self.lane.record(|record| record.healed(now));
                }
                Ok(now)
            }
            _ => self.site.prepare(scenario).await.map(|()| before),
        }
    }
}

/// The subjects with their servers, ready for the load.
struct Setup {
    runs: Vec<SubjectRun>,
    start: Instant,
}

impl Setup {
    async fn set_up(
        scenario: &Scenario,
        factory: &dyn SubjectFactory,
        roles: Vec<Role>,
    ) -> Result<Self, RunError> {
        let ready = try_join_all(
            roles
                .iter()
                .map(|role| set_up_one(scenario, factory, *role)),
        )
        .await?;
        let start = Instant::now() + Duration::from_millis(20);
        let lane = |subject| {
            let allowed_age = scenario.thresholds.allowed_age;
            let lane = Lane::new(subject, start, scenario.phases, allowed_age);
            match scenario.store {
                Store::Cache => lane,
                Store::Sentinel | Store::Cluster => lane.keeping_a_ledger(),
            }
        };
        let runs = ready
            .into_iter()
            .map(|(role, site, subject)| SubjectRun {
                role,
                site,
                lane: Arc::new(lane(subject)),
            })
            .collect();
        Ok(Self { runs, start })
    }

    async fn play(&self, scenario: &Scenario, options: &RunOptions) -> Result<Report, RunError> {
        let total = scenario.phases.total();
        // Ends the load early when the run is stopped and when a fault could not be made.
        let stop = options.stop.child_token();
        let broken = LastingFaults::default();
        let loads = join_all(self.runs.iter().map(|run| {
            drive(
                run.lane.clone(),
                scenario.load.clone(),
                total,
                scenario.seed,
                stop.clone(),
            )
        }));
        let faults = async {
            let outcome = self.break_and_heal(scenario, &broken, &stop).await;
            if outcome.is_err() {
                stop.cancel();
            }
            outcome
        };
        let playing = async { tokio::join!(loads, faults).1 };
        let outcome = tokio::select! {
            outcome = playing => outcome,
            () = self.watch(total, scenario, options, &broken) => unreachable!("it watches for ever"),
        };
        let faults = outcome?;
        if options.stop.is_cancelled() {
            return Err(RunError::Interrupted);
        }
        let looked_up = self.runs.iter();
        let looked_up = looked_up.map(|run| run.site.ledger(&run.lane));
        let ledgers = try_join_all(looked_up).await;
        let ledgers = ledgers.map_err(|cause| RunError::Server(cause.into()))?;
        Ok(self.report(scenario, &faults, &ledgers))
    }

    /// Carries the steps out at their times, and heals what is broken when `stop` comes.
    async fn break_and_heal(
        &self,
        scenario: &Scenario,
        broken: &LastingFaults,
        stop: &CancellationToken,
    ) -> Result<Vec<FaultSpan>, RunError> {
        for action in plan(scenario) {
            tokio::select! {
                () = sleep_until(self.start + action.at) => {}
                () = stop.cancelled() => {}
            }
            if stop.is_cancelled() && action.what != What::End {
                continue;
            }
            if action.what == What::End && !broken.lock().lasts(action.id) {
                continue;
            }
            let heals = action.what == What::End && broken.lock().is_alone(action.id);
            let at = self.carry_out(&action, scenario, heals, stop).await?;
            let name = action.fault.map_or("", Fault::name);
            match action.what {
                What::Prepare => {}
                What::Begin => broken.lock().begin(action.id, name, at),
                What::End => broken.lock().end(action.id, at),
            }
        }
        Ok(broken.lock().spans())
    }

    /// Carries one action out on all subjects. Returns when it began, or ended, for the first of
    /// them.
    async fn carry_out(
        &self,
        action: &DueAction<'_>,
        scenario: &Scenario,
        heals: bool,
        stop: &CancellationToken,
    ) -> Result<Duration, RunError> {
        let all = try_join_all(
            self.runs
                .iter()
                .map(|run| run.carry_out(action, scenario, heals)),
        );
        // What is healed only to be taken down need not be healed to its end.
        let limit = async {
            tokio::select! {
                () = sleep(FAULT_LIMIT) => {}
                () = async { stop.cancelled().await; sleep(LAST_LIMIT).await } => {}
            }
        };
        let outcome = tokio::select! {
            outcome = all => outcome.map(|times| times[0]),
            () = limit => Err(ProcessError::Command {
                program: "redis-server".to_owned(),
                cause: format!("it took more than {FAULT_LIMIT:?}"),
            }),
        };
        match outcome {
            Err(_) if stop.is_cancelled() => Ok(self.runs[0].lane.now()),
            outcome => outcome.map_err(|cause| RunError::Fault {
                fault: action.fault.map_or("old_snapshot", Fault::name),
                healing: action.what == What::End,
                cause,
            }),
        }
    }

    /// Asks the subjects for their facts, and tells of progress. For ever.
    async fn watch(
        &self,
        total: Duration,
        scenario: &Scenario,
        options: &RunOptions,
        broken: &LastingFaults,
    ) {
        let mut ticks = interval_at(self.start, SAMPLE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut told, mut calls) = (self.start, vec![0; self.runs.len()]);
        loop {
            let now = ticks.tick().await;
            for run in &self.runs {
                let facts = run.lane.subject().facts();
                let at = run.lane.now();
                run.lane.record(|record| record.sample(at, facts));
            }
            let since = now.duration_since(told);
            if let Some(progress) = &options.progress
                && since >= TELL
            {
                told = now;
                let mut live = self.runs.iter().zip(&mut calls).map(|(run, before)| {
                    let mut live = run.lane.record(|record| live(record));
                    live.rate = (live.calls - *before) as f64 / since.as_secs_f64();
                    *before = live.calls;
                    live
                });
                let elapsed = now.duration_since(self.start);
                progress(&Progress {
                    elapsed_ms: elapsed.as_millis() as u64,
                    total_ms: total.as_millis() as u64,
                    phase: scenario.phases.at(elapsed),
                    broken: broken.lock().names(),
                    subject: live.next().expect("there is always one subject"),
                    control: options.control.then(|| live.next()).flatten(),
                    hand_built: live.next(),
                });
            }
        }
    }

    fn report(
        &self,
        scenario: &Scenario,
        faults: &[FaultSpan],
        ledgers: &[Option<LedgerReport>],
    ) -> Report {
        let mut reports = self.runs.iter().zip(ledgers).map(|(run, ledger)| {
            let (faults, untouched, role) = (faults.to_vec(), run.site.untouched(), run.role);
            run.lane.record(|record| {
                Report::with_untouched(scenario, role, record, faults, untouched, *ledger)
            })
        });
        let mut report = reports.next().expect("there is always one subject");
        for other in reports {
            let place = match other.subject {
                Role::HandBuilt => &mut report.hand_built,
                _ => &mut report.control,
            };
            *place = Some(Box::new(other));
        }
        report
    }

    async fn take_down(self) {
        let shutdown = |run: SubjectRun| async move {
            let _ = timeout(SHUTDOWN_LIMIT, run.lane.subject().shutdown()).await;
        };
        join_all(self.runs.into_iter().map(shutdown)).await;
    }
}

/// The subjects of the run; the one that is judged comes first.
fn roles(scenario: &Scenario, options: &RunOptions) -> Vec<Role> {
    // What is built by hand is a cache.
    let has_cache = scenario.store == Store::Cache;
    let controls = [
        (Role::Plain, options.control),
        (Role::HandBuilt, options.hand_built && has_cache),
    ];
    let wanted = controls.iter().filter(|(_, runs)| *runs);
    std::iter::once(Role::Resilient)
        .chain(wanted.map(|(role, _)| *role))
        .collect()
}

async fn set_up_one(
    scenario: &Scenario,
    factory: &dyn SubjectFactory,
    role: Role,
) -> Result<(Role, Site, Arc<dyn Subject>), RunError> {
    let site = Site::start(scenario).await.map_err(RunError::Server)?;
    let failed = |cause| RunError::SetUp { role, cause };
    let subject: Arc<dyn Subject> =
        Arc::from(factory.start(role, site.endpoint()).await.map_err(failed)?);
    match timeout(WARM_LIMIT, subject.warm(scenario.load.keys)).await {
        Ok(warm) => warm.map_err(failed)?,
        Err(_) => return Err(failed(SetUpError(format!("not warm after {WARM_LIMIT:?}")))),
    }
    Ok((role, site, subject))
}

struct DueAction<'a> {
    at: Duration,
    what: What,
    fault: Option<&'a Fault>,
    id: Id,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Prepare,
    End,
    Begin,
}

/// Everything that happens, in the order of its times. Snapshots are taken before anything is
/// broken.
fn plan(scenario: &Scenario) -> Vec<DueAction<'_>> {
    let prepare = DueAction {
        at: scenario.phases.spans()[Phase::Baseline as usize].1.start,
        what: What::Prepare,
        fault: None,
        id: (usize::MAX, 0),
    };
    let moments = timeline::moments_of(scenario);
    let steps = moments.into_iter().map(|moment| DueAction {
        at: moment.at,
        what: if moment.begins {
            What::Begin
        } else {
            What::End
        },
        fault: Some(&scenario.steps[moment.id.0].fault),
        id: moment.id,
    });
    std::iter::once(prepare).chain(steps).collect()
}

/// The faults that were and are, as the load and whoever watches it see them.
#[derive(Default)]
struct LastingFaults(Mutex<Faults>);

impl LastingFaults {
    fn lock(&self) -> MutexGuard<'_, Faults> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn live(record: &Record) -> Live {
    let facts = record.facts();
    let all = || Phase::ALL.iter().map(|phase| record.counts(*phase));
    let source = |index: usize| all().map(|counts| counts.sources[index]).sum();
    Live {
        calls: all().map(|counts| counts.calls()).sum(),
        failed: all()
            .map(|counts| counts.reads_failed + counts.writes_failed)
            .sum(),
        skipped: all().map(|counts| counts.skipped).sum(),
        rate: 0.0,
        memory: source(0),
        redis: source(1),
        database: source(2),
        stale: all().map(|counts| counts.stale).sum(),
        wrong: all().map(|counts| counts.wrong).sum(),
        connection: facts.connection,
        breaker: facts.breaker,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Resilient => "the subject",
        Role::Plain => "the control",
        Role::HandBuilt => "the second control",
    }
}
