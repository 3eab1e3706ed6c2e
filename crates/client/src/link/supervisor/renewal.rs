//! Renewal of the credentials of a connection in service: when, by which task, and what is told.
//!
//! The provider is code of others. It runs in a task of its own, which may keep its thread: then it
//! is told that it hangs, again and again, and no second one is started.

use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast_core::policy::Backoff;
use tokio::task::JoinError;

use super::Supervisor;
use crate::clock;
use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
use crate::event::EventKind;
use crate::link::connect::{Connector, MARGIN};
use crate::task::Owned;

/// The answer of a credentials provider: `None` where there is none.
pub(super) type Given = Result<Option<Credentials>, ConnectError>;

/// The pauses between renewals that fail: full jitter from the first to the second.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The least time between two renewals, whatever the provider says.
const LEAST: Duration = Duration::from_millis(10);

/// The credentials of a connection in service, and their renewal.
pub(super) struct Renewal {
    state: RenewalState,
    /// Renewals that failed, one after another.
    failed: u32,
    /// The trouble with the credentials, as it was told last.
    told: Option<Arc<str>>,
    /// The credentials that the connection has given, or that another is dialled to give.
    credentials: Option<Credentials>,
}

enum RenewalState {
    /// The next one begins at this instant; `None`: never.
    Due(Option<Instant>),
    Running(RunningRenewal),
}

struct RunningRenewal {
    task: Owned<Given>,
    began: Instant,
    /// The instant at which it is told (again) that it hangs.
    due: Instant,
    told: bool,
}

impl Renewal {
    pub(super) fn new(connector: &Connector, credentials: Option<Credentials>) -> Self {
        Self {
            state: RenewalState::Due(next_renewal(connector, clock::now())),
            failed: 0,
            told: None,
            credentials,
        }
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            RenewalState::Due(at) => *at,
            RenewalState::Running(running) => Some(running.due),
        }
    }

    /// Waits for the answer of the provider, if it is being asked. May be dropped and asked again.
    pub(super) async fn answer(&mut self) -> Result<Given, JoinError> {
        match &mut self.state {
            RenewalState::Running(running) => (&mut running.task).await,
            RenewalState::Due(_) => std::future::pending().await,
        }
    }

    /// Begins a renewal that is due, or tells that one hangs.
    pub(super) fn handle_timeout(&mut self, supervisor: &Supervisor, now: Instant) {
        match &mut self.state {
            RenewalState::Running(running) if running.due <= now => {
                let after = now.saturating_duration_since(running.began);
                // Again after as long as it has taken so far.
                running.due = now + after.min(RETRY_MAX);
                let told = std::mem::replace(&mut running.told, true);
                emit_hanging(supervisor, after, told);
            }
            RenewalState::Due(Some(at)) if *at <= now => {
                let connector = Arc::clone(&supervisor.connector);
                let limit = supervisor.shared.settings.connect_timeout;
                let task = async move { connector.credentials(limit).await };
                self.state = RenewalState::Running(RunningRenewal {
                    task: Owned::new(tokio::spawn(task)),
                    began: now,
                    due: now + limit + MARGIN,
                    told: false,
                });
            }
            RenewalState::Running(_) | RenewalState::Due(_) => {}
        }
    }

    /// Takes the answer of the provider. Returns whether it gave other credentials than those
    /// known; `None` if it gave none.
    pub(super) fn handle_answer(
        &mut self,
        supervisor: &mut Supervisor,
        answer: Result<Given, JoinError>,
    ) -> Option<bool> {
        let now = clock::now();
        let next = next_renewal(&supervisor.connector, now);
        let RenewalState::Running(running) =
            std::mem::replace(&mut self.state, RenewalState::Due(next))
        else {
            return None;
        };
        if running.due <= now && !running.told {
            let after = now.saturating_duration_since(running.began);
            emit_hanging(supervisor, after, false);
        }
        match supervisor.survived(answer, running.began) {
            Ok(given) => {
                self.failed = 0;
                let fresh = given?;
                let known = self.credentials.as_ref();
                let is_new = !known.is_some_and(|known| known.same(&fresh));
                if is_new {
                    supervisor.latest = Some(fresh.clone());
                    self.credentials = Some(fresh);
                }
                Some(is_new)
            }
            Err(error) => {
                self.failed = self.failed.saturating_add(1);
                let pauses = Backoff::full_jitter(RETRY, RETRY_MAX);
                let at = now + pauses.pause(self.failed, &mut supervisor.rng);
                // Sooner than usual, and for ever: there may be an hour between renewals.
                let at = next.map_or(at, |usual| usual.min(at));
                self.state = RenewalState::Due(Some(at));
                self.emit_trouble(supervisor, Some(error.to_string().into()));
                None
            }
        }
    }

    /// Tells what is wrong with the credentials, if anything: once, until it is something else.
    pub(super) fn emit_trouble(&mut self, supervisor: &Supervisor, trouble: Option<Arc<str>>) {
        if let Some(cause) = &trouble
            && self.told.as_ref() != Some(cause)
        {
            emit_failed(supervisor, Arc::clone(cause));
        }
        self.told = trouble;
    }
}

/// Tells that a renewal hangs; it is counted once.
fn emit_hanging(supervisor: &Supervisor, after: Duration, counted: bool) {
    if !counted {
        supervisor.shared.stuck(&supervisor.link, after);
    }
    let cause = format!("the credentials provider keeps its thread, for {after:.1?} now");
    emit_failed(supervisor, cause.into());
}

fn emit_failed(supervisor: &Supervisor, cause: Arc<str>) {
    let kind = EventKind::CredentialsFailed { cause };
    supervisor.shared.hub.emit(supervisor.link.index, kind);
}

fn next_renewal(connector: &Connector, now: Instant) -> Option<Instant> {
    let every = connector.renew_in()?;
    now.checked_add(every.max(LEAST))
}
