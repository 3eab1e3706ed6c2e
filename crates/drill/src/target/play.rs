//! A drill from the start of the application to its end: it puts the load on, breaks and heals,
//! and looks on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::judge::{self, Evidence};
use super::plan::{Action, on_the_wire};
use super::redact::redacted;
use super::requests::HttpSubject;
use super::spawn::Program;
use super::watch::{SAMPLE, Seen, WINDOW};
use super::{TargetError, TargetOptions, UP_LIMIT};
use crate::fault::Toxic;
use crate::kpi::Kpi;
use crate::load::{Lane, drive_until};
use crate::proxy::{Proxy, ToxicId};
use crate::record::Record;
use crate::report::application::{SCHEMA, TargetReport};
use crate::report::users::Users;
use crate::scenario::{Load, Scenario, Wire};
use crate::timeline::Id;
use crate::verdict::{NOTHING_IS_BROKEN, ms, verdict};

/// How a play ended: the exit status of the application, if it ended by itself, and what its users
/// got.
pub(super) type Played = Result<(Option<i32>, Option<Arc<Lane>>), TargetError>;

/// A drill under way.
pub(super) struct Drill<'a> {
    scenario: &'a Scenario,
    options: &'a TargetOptions,
    redis: Proxy,
    database: Option<Proxy>,
    program: Option<Program>,
    users: Option<Arc<HttpSubject>>,
    seen: Seen,
    broken: Vec<LastingFault>,
    untouched: Vec<&'static str>,
}

/// A fault that lasts.
struct LastingFault {
    id: Id,
    toxic: ToxicId,
    wire: Wire,
}

impl<'a> Drill<'a> {
    /// Nothing has been broken yet. `wires` are those to Redis and, if it has one, to its database.
    pub(super) fn new(
        scenario: &'a Scenario,
        options: &'a TargetOptions,
        (redis, database): (Proxy, Option<Proxy>),
        program: Option<Program>,
        users: Option<Arc<HttpSubject>>,
    ) -> Self {
        Self {
            scenario,
            options,
            redis,
            database,
            program,
            users,
            seen: Seen::new(scenario.phases),
            broken: Vec::new(),
            untouched: Vec::new(),
        }
    }

    /// Waits for the application, puts the load on it, breaks and heals, until it has ended or
    /// there is nothing more to be seen.
    pub(super) async fn play(&mut self, plan: Vec<Action>) -> Played {
        self.up().await?;
        let start = Instant::now();
        self.seen.begin(self.redis.counters());
        if let Some(program) = &self.program {
            program.begin(start);
        }
        let (stop, finish) = (CancellationToken::new(), CancellationToken::new());
        let _stopped = stop.clone().drop_guard();
        let lane = self.users.clone().map(|users| {
            let (phases, age) = (self.scenario.phases, self.scenario.thresholds.allowed_age);
            Arc::new(Lane::new(users, start, phases, age))
        });
        let load = lane.clone().map(|lane| {
            let load = self.load();
            let length = self.scenario.phases.total() + self.options.recovery + WINDOW;
            let seed = self.scenario.seed;
            tokio::spawn(drive_until(lane, load, length, seed, stop, finish.clone()))
        });
        let status = self.steps(plan, start, lane.as_deref()).await?;
        finish.cancel();
        if let Some(load) = load {
            let _ = load.await;
        }
        Ok((status, lane))
    }

    /// Waits until the application answers its users.
    async fn up(&mut self) -> Result<(), TargetError> {
        let Some(users) = self.users.clone() else {
            return Ok(());
        };
        let outcome = tokio::select! {
            () = self.options.stop.cancelled() => return Err(TargetError::Interrupted),
            outcome = users.up(UP_LIMIT) => outcome,
        };
        outcome.map_err(|cause| TargetError::NotUp {
            url: users.url().to_owned(),
            cause,
            ended: self
                .program
                .as_mut()
                .and_then(Program::ended)
                .map_or(String::new(), |status| {
                    format!("; it has ended with status {status}")
                }),
        })
    }

    /// The scenario's load, in the shape of the requests.
    fn load(&self) -> Load {
        let mut load = self.scenario.load.clone();
        if let Some(users) = &self.users {
            (load.keys, load.writes, load.calls) = (users.keys(), users.writes(), None);
        }
        load
    }

    /// Breaks and heals at the planned times. How the application ended, if it did.
    async fn steps(
        &mut self,
        plan: Vec<Action>,
        start: Instant,
        users: Option<&Lane>,
    ) -> Result<Option<i32>, TargetError> {
        let mut ticks = interval(SAMPLE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut plan = plan.into_iter().peekable();
        let over = self.scenario.phases.total();
        loop {
            let next = plan.peek().map_or(over, |action| action.at);
            tokio::select! {
                () = self.options.stop.cancelled() => return Err(TargetError::Interrupted),
                () = sleep_until(start + next), if plan.peek().is_some() => {
                    if let Some(action) = plan.next() {
                        self.carry_out(action, start, users).await?;
                    }
                }
                _ = ticks.tick() => {
                    let now = start.elapsed();
                    self.seen.sample(now, self.redis.counters());
                    if let Some(users) = users {
                        let facts = users.subject().facts();
                        users.record(|record| record.sample(now, facts));
                    }
                    if let Some(status) = self.program.as_mut().and_then(Program::ended) {
                        return Ok(Some(status));
                    }
                    if now >= over && self.is_seen_to_the_end(now, users) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Whether all is well again, or the limit for that is over.
    fn is_seen_to_the_end(&self, now: Duration, users: Option<&Lane>) -> bool {
        let Some(healed) = self.seen.healed() else {
            return true;
        };
        let users_well =
            users.is_none_or(|users| users.record(|record| record.moments().users_well.is_some()));
        (self.seen.in_use().is_some() && users_well)
            || now >= healed + self.options.recovery + WINDOW
    }

    async fn carry_out(
        &mut self,
        action: Action,
        start: Instant,
        users: Option<&Lane>,
    ) -> Result<(), TargetError> {
        let (id, name) = (action.id, action.name);
        if let Some(toxic) = action.begins {
            self.begin(id, action.wire, toxic).await?;
            let now = start.elapsed();
            self.seen.begun(id, name, now);
            if let Some(users) = users {
                users.record(|record| record.broken(now));
            }
            return Ok(());
        }
        self.end(id, name).await;
        let now = start.elapsed();
        let all_well = self.seen.ended(id, now, self.redis.counters());
        if let Some(users) = users.filter(|_| all_well) {
            users.record(|record| record.healed(now));
        }
        Ok(())
    }

    fn proxy(&self, wire: Wire) -> &Proxy {
        match wire {
            Wire::Redis => &self.redis,
            Wire::Database => self.database.as_ref().expect("the plan was checked for it"),
        }
    }

    async fn begin(&mut self, id: Id, wire: Wire, toxic: Toxic) -> Result<(), TargetError> {
        let toxic = self.proxy(wire).add(toxic).await?;
        self.broken.push(LastingFault { id, toxic, wire });
        Ok(())
    }

    async fn end(&mut self, id: Id, name: &'static str) {
        let Some(at) = self.broken.iter().position(|broken| broken.id == id) else {
            return;
        };
        let broken = self.broken.remove(at);
        let proxy = self.proxy(broken.wire);
        let touched = proxy.touched(broken.toxic).unwrap_or(0);
        proxy.remove(broken.toxic).await;
        if touched == 0 {
            self.untouched.push(name);
        }
    }

    /// Heals the wires, ends the application, and says what was seen.
    pub(super) async fn finish(mut self, played: Played) -> Result<TargetReport, TargetError> {
        let unfollowed = self.redis.counters().unfollowed;
        // First the wires, so that the application can end in peace.
        self.redis.clear().await;
        if let Some(database) = &self.database {
            database.clear().await;
        }
        let is_ours = self.program.is_some();
        let (mut log, mut log_dropped) = (Vec::new(), 0);
        if let Some(program) = self.program.take() {
            (log, log_dropped) = program.lines();
            program.end().await;
        }
        let (exit_status, lane) = played?;
        let scenario = self.scenario;
        let untouched = if !self.options.well && scenario.steps.is_empty() {
            vec![NOTHING_IS_BROKEN]
        } else {
            std::mem::take(&mut self.untouched)
        };
        let kpis = self.judged(lane.as_deref(), exit_status, is_ours, &untouched);
        let limits_staleness = lane.is_some() && scenario.thresholds.stale_answers.is_some();
        let staleness_unseen =
            limits_staleness && kpis.iter().all(|kpi| kpi.name != "stale_answers");
        let users = lane.zip(self.users).map(|(lane, users)| {
            lane.record(|record| {
                Users::of(record, scenario.phases, users.described(), users.unjudged())
            })
        });
        let reads_protocol =
            |fault| on_the_wire(fault).is_ok_and(|toxic| toxic.fault.resp().is_some());
        let follows = scenario
            .steps
            .iter()
            .any(|step| reads_protocol(&step.fault));
        Ok(TargetReport {
            schema: SCHEMA,
            scenario: scenario.name.clone(),
            about: scenario.about.clone(),
            seed: scenario.seed,
            target: redacted(&self.options.target),
            command: self.options.command.as_deref().map(redacted),
            exit_status,
            users,
            redis_in_use_ms: self.seen.in_use().map(ms),
            unfollowed: if follows { unfollowed } else { 0 },
            verdict: verdict(&kpis),
            kpis,
            staleness_unseen,
            faults: self.seen.faults(),
            untouched,
            log,
            log_dropped,
            phases: self
                .seen
                .traffic
                .into_iter()
                .filter(|phase| phase.to_ms > phase.from_ms)
                .collect(),
            timeline: self.seen.timeline,
        })
    }

    fn judged(
        &self,
        lane: Option<&Lane>,
        exit_status: Option<i32>,
        is_ours: bool,
        untouched: &[&'static str],
    ) -> Vec<Kpi> {
        let judged = |users: Option<&Record>| {
            judge::judge(&Evidence {
                scenario: self.scenario,
                seen: &self.seen,
                users,
                exit_status,
                is_ours,
                untouched,
                breaks: !self.options.well,
                recovery: self.options.recovery,
            })
        };
        match lane {
            Some(lane) => lane.record(|record| judged(Some(record))),
            None => judged(None),
        }
    }
}
