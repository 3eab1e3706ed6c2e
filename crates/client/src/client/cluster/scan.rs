//! One step of a scan of all slots, by the rules of [`steadfast_core::scan`].

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use steadfast_core::conn::Reply;
use steadfast_core::scan::{ClusterScan, ScanPage, ScanQuery, ScanStep};
use steadfast_core::topology::Trigger;

use super::limits::Limits;
use super::node::Node;
use super::{Aim, Cluster};
use crate::call::plan::Payload;
use crate::client::Client;
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::link::liveness::{Silence, is_unattended};
use crate::options::CallOptions;
use crate::wire::queue::UNATTENDED;

/// The process that a client's shared connection leads to, which nothing but a restart changes.
/// Where INFO is not allowed that cannot be known, and each connection counts as one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Of the client: a node that is taken out of service and started anew counts from 1 again.
    instance: u64,
    epoch: u64,
    run_id: Option<Arc<str>>,
}

impl Process {
    /// `None` while there is no connection.
    pub(crate) fn of(client: &Client) -> Option<Self> {
        let link = &client.inner.shared.links[0];
        // Both change under its lock.
        let view = link.view.lock();
        let facts = view.facts.as_ref()?;
        Some(Self {
            instance: client.inner.shared.instance,
            epoch: link.epoch(),
            run_id: facts.run_id.clone(),
        })
    }

    pub(crate) fn name(&self) -> Arc<str> {
        match &self.run_id {
            Some(run_id) => Arc::clone(run_id),
            None => format!("connection {} of {}", self.epoch, self.instance).into(),
        }
    }
}

/// A scan of all slots, and what hindered it last.
#[derive(Debug)]
pub(crate) struct SlotScan {
    scan: ClusterScan<u16>,
    cause: Option<Arc<str>>,
    silence: Silence,
    patience: Duration,
}

impl SlotScan {
    /// Begins a scan that gives up after so many rounds in a row without progress, and once the
    /// client's runtime has not run for so long.
    pub(crate) fn new(query: &ScanQuery, (rounds, patience): (u32, Duration)) -> Self {
        Self {
            scan: ClusterScan::of(query, rounds),
            cause: None,
            silence: Silence::default(),
            patience,
        }
    }

    /// Takes in that a question has failed so.
    ///
    /// # Errors
    /// The client's runtime has not run for longer than the scan is patient.
    fn failed(&mut self, error: &Error) -> Result<(), Error> {
        self.cause = Some(error.to_string().into());
        match self.silence.outlasts(self.patience, Some(error)) {
            true => Err(self.gave_up()),
            false => Ok(()),
        }
    }

    fn gave_up(&self) -> Error {
        let slots = self.scan.uncovered().slots;
        let slots: Vec<String> = slots.iter().map(ToString::to_string).collect();
        let kind = ErrorKind::Uncovered {
            slots: slots.join(", ").into(),
            cause: self.cause.clone(),
        };
        Error::new(kind, Certainty::Rejected)
    }
}

/// The ways in which a question may have ended.
enum Asked {
    Answered(Arc<str>, ScanPage),
    /// The question may be asked again.
    Failed(Error),
    /// The question would end likewise if asked again.
    Refused(Error),
}

impl Cluster {
    /// Makes the next step. Returns the keys that it has brought; `None` at the end.
    pub(crate) async fn scan_on(
        &self,
        course: &mut SlotScan,
        query: &ScanQuery,
        options: &CallOptions,
        pause: Duration,
    ) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let heard = self.known.lock().heard;
        if heard.is_none() {
            let deadline = Limits::new(self.settings().deadline).deadline;
            let limits = Limits::until(deadline);
            match self.reach(self.any_slot(), &Aim::Owner, &limits).await {
                Err(error) if !may_pass(&error) => return Err(error),
                // Then no slot has an owner, and the round brings nothing.
                Err(error) => course.failed(&error)?,
                Ok(_) => {}
            }
        }
        let owner = |slot| self.routes.owner(slot);
        let (node, cursor) = match course.scan.next_step(owner) {
            ScanStep::Ask { node, cursor } => (node, cursor),
            ScanStep::Finished => return Ok(None),
            ScanStep::GaveUp(_) => return Err(course.gave_up()),
            ScanStep::Wait => {
                self.trigger(Trigger::Doubt);
                let probe = self.shared.probe_liveness()?;
                clock::sleep(pause).await;
                if probe.is_unanswered().await {
                    course.cause = Some(UNATTENDED.to_string().into());
                }
                return Ok(Some(Vec::new()));
            }
        };
        match self.ask_page(node, query, cursor, options).await {
            Asked::Answered(process, page) => {
                course.silence = Silence::default();
                Ok(Some(course.scan.answered(&process, page, owner)))
            }
            Asked::Refused(error) => Err(error),
            Asked::Failed(error) => {
                course.failed(&error)?;
                // The node is not to blame for a runtime that does not run.
                if !is_unattended(&error) {
                    course.scan.failed();
                }
                self.trigger(Trigger::Doubt);
                clock::sleep(pause / 10).await;
                Ok(Some(Vec::new()))
            }
        }
    }

    async fn ask_page(
        &self,
        number: u16,
        query: &ScanQuery,
        cursor: u64,
        options: &CallOptions,
    ) -> Asked {
        let node = match self.node(number) {
            Ok(Some(node)) => node,
            Ok(None) => return Asked::Failed(nobody_there()),
            Err(error) => return Asked::Refused(error),
        };
        let step = query.step(cursor);
        let before = Process::of(&node.client);
        let answer = self
            .ask_step(&node, Payload::Pipeline(&step), options)
            .await;
        let exec = match answer {
            Ok(exec) => exec,
            Err(error) if may_pass(&error) => return Asked::Failed(node.blame(error)),
            Err(error) => return Asked::Refused(error),
        };
        // Only if the connection is the same as before is it certain who has answered: it may have
        // been made again in between, to another process.
        let process = Process::of(&node.client).filter(|now| Some(now) == before.as_ref());
        match (process, ScanPage::read(exec)) {
            (Some(process), Ok(page)) => Asked::Answered(process.name(), page),
            (None, _) => Asked::Failed(Error::not_sent(ErrorKind::Lost {
                cause: "the node was connected to anew while it was asked".into(),
            })),
            (_, Err(error)) => {
                tracing::debug!(%error, node = %node.endpoint(), "a scan cannot go on");
                Asked::Refused(unreadable())
            }
        }
    }

    /// Sends the transaction of a step and returns the answer to its EXEC.
    async fn ask_step(
        &self,
        node: &Node,
        step: Payload<'_>,
        options: &CallOptions,
    ) -> Result<Value, Error> {
        let plan = step.plan(self.settings().connections, true)?;
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        let answer = node.attempt(step, plan, options, limits.of_attempt(0));
        let mut replies = match answer.await? {
            Reply::One(value) => vec![value],
            Reply::Many(values) => values,
        };
        let refusal = |value: &Value| match value {
            Value::ServerError(error) => Some(Error::refused(error.clone())),
            _ => None,
        };
        if let Some(error) = replies.iter().find_map(refusal) {
            return Err(error);
        }
        let exec = replies.pop().unwrap_or(Value::Nil);
        if let Value::Array(parts) = &exec
            && let Some(error) = parts.iter().find_map(refusal)
        {
            return Err(error);
        }
        Ok(exec)
    }
}

/// Returns whether what has failed so may do better later: patience is for what comes back, servers
/// and a runtime that does not run now.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Runtime { .. } => is_unattended(error),
        ErrorKind::Closed => false,
        _ => error.is_infrastructure(),
    }
}

fn nobody_there() -> Error {
    Error::not_sent(ErrorKind::Lost {
        cause: "its address is not known".into(),
    })
}

/// The answer of a server to SCAN is none.
pub(crate) fn unreadable() -> Error {
    let why = "a server has answered SCAN by what is no answer to it";
    Error::new(ErrorKind::Invalid { why }, Certainty::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn t13_a_process_that_does_not_say_who_it_is_is_another_when_its_client_is() {
        let of_new_client = || {
            let builder = Client::builder("redis://127.0.0.1:1").expect("a good url");
            let client = builder.build().expect("good settings");
            let link = &client.inner.shared.links[0];
            link.connected(&crate::link::connect::ServerFacts::default(), clock::now());
            Process::of(&client).expect("it is connected")
        };
        let (one, other) = (of_new_client(), of_new_client());
        assert_eq!(one.epoch, other.epoch);
        assert_ne!(one.name(), other.name());
        assert_ne!(one, other);
    }
}
