//! Connections for commands that block, so that nobody else waits behind them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::certainty::Refusal;
use steadfast_core::command::Effect;
use steadfast_core::conn::Reply;
use steadfast_core::policy::Deadline;
use tokio::sync::{Semaphore, TryAcquireError};

use crate::call::dedicated::Dedicated;
use crate::call::plan::{OwnPayload, Payload, Plan};
use crate::call::{After, Carried, Repeats};
use crate::clock;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::link::connect::Connector;
use crate::link::shared::Shared;
use crate::options::CallOptions;
use crate::target::Role;

/// A few connections for commands that block, so that nobody else waits behind them.
#[derive(Debug)]
pub(crate) struct Blocking {
    places: Semaphore,
    idle: Mutex<Vec<Dedicated>>,
}

impl Blocking {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            places: Semaphore::new(connections),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Runs one blocking call. Its connection is used again only after a clean answer: one that was
    /// given up may still pop an element, and is killed instead. Where that is safe, a call whose
    /// connection was lost is made once more on another; one that was refused because the server is
    /// not the primary, or not any more, follows to the one that is; and one that was refused for
    /// the moment is made again. It then waits for what is left of its timeout. All of these are
    /// attempts under the client's retry policy and budget.
    pub(crate) async fn call(
        &self,
        shared: &Arc<Shared>,
        connector: &Arc<Connector>,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
        carried: &mut Carried,
    ) -> Result<Reply, Error> {
        let started = clock::now();
        let limit = plan.limit(options, shared.settings.deadline)?;
        let _place = self.places.try_acquire().map_err(|error| {
            Error::not_sent(match error {
                TryAcquireError::Closed => ErrorKind::Closed,
                TryAcquireError::NoPermits => ErrorKind::Overloaded {
                    bound: Bound::Blocking,
                    retry_after: limit,
                },
            })
        })?;
        let call = BlockingCall {
            pool: self,
            shared,
            connector,
            acknowledged_by: options
                .acknowledged_by
                .filter(|_| plan.effect != Effect::Read),
            plan,
            started,
            limit,
        };
        let result = call.run(payload, options, carried).await;
        result.inspect_err(crate::metrics::count_error)
    }

    fn take_idle(&self) -> Option<Dedicated> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if connection.is_reusable() {
                return Some(connection);
            }
        }
        None
    }

    pub(crate) fn close(&self) {
        self.places.close();
        self.idle.lock().clear();
    }
}

/// A blocking call, from its first attempt to its last.
struct BlockingCall<'a> {
    pool: &'a Blocking,
    shared: &'a Arc<Shared>,
    connector: &'a Arc<Connector>,
    plan: Plan,
    /// The replicas to wait for, and for how long.
    acknowledged_by: Option<(u32, Duration)>,
    started: Instant,
    limit: Duration,
}

impl BlockingCall<'_> {
    async fn run(
        &self,
        payload: Payload<'_>,
        options: &CallOptions,
        carried: &mut Carried,
    ) -> Result<Reply, Error> {
        let deadline = Deadline::after(self.started, self.limit).instant();
        let mut repeats = Repeats::new(self.shared, options, self.started, deadline);
        let (mut rest, mut was_lost, mut has_followed) = (None, false, false);
        loop {
            let next = rest.as_ref().map_or(payload, OwnPayload::payload);
            let error = match self.attempt(next).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            carried.alone = repeats.may_have_run().then_some(error.certainty());
            let after = if self.follows(&error) {
                // One that is refused once more finds no primary yet.
                match std::mem::replace(&mut has_followed, true) {
                    false => After::Loss,
                    true => After::Refusal,
                }
            } else if is_passing(&error) {
                After::Refusal
            } else if may_repeat(&error, self.plan.effect)
                && !std::mem::replace(&mut was_lost, true)
            {
                After::Loss
            } else {
                return Err(error.at_best(repeats.may_have_run()));
            };
            repeats.wait(error, after).await?;
            let passed = clock::now().saturating_duration_since(self.started);
            rest = payload.with_time_left(passed);
        }
    }

    async fn attempt(&self, payload: Payload<'_>) -> Result<Reply, Error> {
        let connection = match self.pool.take_idle() {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let (plan, started, limit) = (self.plan.clone(), self.started, self.limit);
        let mut result = connection.call(payload, plan, started, limit).await;
        if let (Ok(_), Some((wanted, within))) = (&result, self.acknowledged_by) {
            // The write has run: no error from here on may say otherwise, or it would be made
            // again.
            if let Err(error) = self.wait_for_replicas(&connection, wanted, within).await {
                result = Err(error.at_best(true));
            }
        }
        let clean = match &result {
            Ok(_) => true,
            Err(error) => matches!(
                error.kind(),
                ErrorKind::Server(_) | ErrorKind::NotReplicated { .. }
            ),
        };
        if clean && connection.is_reusable() && !self.pool.places.is_closed() {
            self.pool.idle.lock().push(connection);
        }
        result
    }

    async fn wait_for_replicas(
        &self,
        connection: &Dedicated,
        wanted: u32,
        within: Duration,
    ) -> Result<(), Error> {
        let passed = clock::now().saturating_duration_since(self.started);
        let left = self.limit.saturating_sub(passed);
        // Its answer is to come before the deadline; and 0 would be for ever.
        let within = within.min(left.saturating_sub(FOR_THE_ANSWER)).as_millis();
        let within = within.max(1) as u64;
        let mut wait = redis::cmd("WAIT");
        wait.arg(wanted).arg(within);
        let payload = Payload::Command(&wait);
        let plan = payload.plan(1, false)?;
        match connection
            .call(payload, plan, self.started, self.limit)
            .await?
        {
            Reply::One(redis::Value::Int(acked)) if acked >= i64::from(wanted) => Ok(()),
            Reply::One(redis::Value::Int(acked)) => {
                let acked = u32::try_from(acked).unwrap_or(0);
                Err(Error::new(
                    ErrorKind::NotReplicated { acked, wanted },
                    Certainty::Unknown,
                ))
            }
            _ => Err(Error::not_sent(ErrorKind::Invalid {
                why: "WAIT was answered by what is no answer to it",
            })),
        }
    }

    async fn open(&self) -> Result<Dedicated, Error> {
        let passed = clock::now().saturating_duration_since(self.started);
        let left = self.limit.saturating_sub(passed);
        let opened = Dedicated::open(self.shared, self.connector, left).await;
        opened.map_err(|error| match error.kind() {
            ErrorKind::Timeout { .. } => Error::not_sent(ErrorKind::Timeout {
                deadline: self.limit,
            }),
            _ => error,
        })
    }

    /// Returns whether the server that refused the call is known not to be the one that is wanted,
    /// and nothing of the call has run.
    fn follows(&self, error: &Error) -> bool {
        // In a cluster the call goes on at whichever node owns its slot now.
        self.shared.settings.member.is_none()
            && error.certainty() == Certainty::Rejected
            && match error.refusal() {
                Some(Refusal::Demoted) => true,
                Some(Refusal::WrongServer) => self.shared.settings.role == Role::Primary,
                _ => false,
            }
    }
}

/// Returns whether the server refused the call, of which nothing has run, and may serve it soon.
fn is_passing(error: &Error) -> bool {
    error.certainty() == Certainty::Rejected && error.refusal() == Some(Refusal::Passing)
}

fn may_repeat(error: &Error, effect: Effect) -> bool {
    matches!(error.kind(), ErrorKind::Lost { .. })
        && (error.certainty() != Certainty::Unknown || effect == Effect::Read)
}

/// The part of a call's time that is left for the answer to a WAIT that waits in vain.
const FOR_THE_ANSWER: Duration = Duration::from_millis(20);
