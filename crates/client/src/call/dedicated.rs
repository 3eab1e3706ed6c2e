//! A connection that one caller has to itself: for sessions and for commands that block.
//!
//! It is not replaced when it is lost, because what made it special (a transaction begun, a key
//! watched) is lost with it. Nor does it outlive the client's being served by the server that it
//! was made to: see [`crate::link::following`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{Cmd, Pipeline, Value};
use steadfast_core::certainty::Refusal;
use steadfast_core::conn::{Reply, Watch};
use tokio::sync::mpsc;

use crate::call::call_dedicated;
use crate::call::identification::{ask_who_serves, why_reset};
use crate::call::plan::{Payload, Plan, many, one};
use crate::clock;
use crate::error::connect::ConnectError;
use crate::error::{Error, ErrorKind};
use crate::link::connect::{self, Connector};
use crate::link::driver::{Driver, Finished, Signal};
use crate::link::fence::{FENCE_AGAIN, FenceOnDrop};
use crate::link::following::{Parting, Tie};
use crate::link::liveness::LivenessProbe;
use crate::link::rotation::Rotation;
use crate::link::shared::Shared;
use crate::options::CallOptions;
use crate::task::Owned;
use crate::wire::identity::Identity;
use crate::wire::queue::{DriverCommand, Gate, SubmitQueue, TxStep};
use crate::wire::slot::{Blame, Ended};

/// Nothing but the deadlines of its calls watches a connection of one's own: a heartbeat would be
/// queued in a transaction, and silence is what a blocking command asks for.
const UNWATCHED: Watch = Watch {
    doubtful: Duration::from_secs(365 * 86_400),
    response_idle_timeout: Duration::from_secs(365 * 86_400),
    heartbeat: Duration::from_secs(365 * 86_400),
};

/// A connection that one caller has to itself. Dropped with requests unanswered, it is killed on
/// the server too.
#[derive(Debug)]
pub(crate) struct Dedicated {
    shared: Arc<Shared>,
    queue: Arc<SubmitQueue>,
    identity: Option<Identity>,
    tie: Tie,
    /// The server refused it the credentials in force: it works for as long as the server lets it,
    /// and is not used anew.
    stale: Arc<AtomicBool>,
    /// The server said that it is not the one that is wanted.
    unfit: AtomicBool,
}

impl Dedicated {
    /// Connects, under the client's connect deadlines and within `limit`. In a short interruption
    /// it waits for its end; while the server is down it is refused.
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        connector: &Arc<Connector>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let began = clock::now();
        let mut rng = shared.rng();
        let probe = Mutex::new(shared.probe_liveness()?);
        let opening = async {
            let mut attempt = 0;
            loop {
                attempt += 1;
                believed_up(shared).await?;
                let error = match Self::connect_at_home(shared, connector, &probe).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => error,
                };
                // The interruption may be one that the client's own connection is yet to notice.
                if clock::now().saturating_duration_since(began) >= shared.settings.reconnect_grace
                {
                    return Err(error);
                }
                clock::sleep(shared.settings.reconnect.pause(attempt, &mut rng)).await;
            }
        };
        if let Some(opened) = clock::timeout(limit, opening).await {
            return opened;
        }
        // It may have waited for an interruption to end, which nobody ends.
        let late = Error::not_sent(ErrorKind::Timeout { deadline: limit });
        Err(probe.into_inner().or_unattended_if_late(late).await)
    }

    /// Connects where the client lives, whatever its caller runs in. Asks besides whether that
    /// runtime runs, in place of what `probe` has asked.
    async fn connect_at_home(
        shared: &Arc<Shared>,
        connector: &Arc<Connector>,
        probe: &Mutex<LivenessProbe>,
    ) -> Result<Self, Error> {
        let runtime = shared.runtime()?;
        *probe.lock() = shared.liveness.ask(&runtime);
        let (shared, connector) = (Arc::clone(shared), Arc::clone(connector));
        let task = async move { Self::connect(&shared, &connector).await };
        Owned::new(runtime.spawn(task)).await.unwrap_or_else(|_| {
            let cause = "the runtime in which the client lived has ended".into();
            Err(Error::not_sent(ErrorKind::Lost { cause }))
        })
    }

    async fn connect(shared: &Arc<Shared>, connector: &Arc<Connector>) -> Result<Self, Error> {
        let queue = SubmitQueue::new(shared.settings.bulkhead());
        let queue = Arc::new(queue.counted_in(shared.settings.total_bytes.clone()));
        // Known first, so that none is missed that is abandoned from now on; then those of before.
        shared.fences.register(&queue);
        let abandoned = shared.fences.abandoned();
        if shared.is_closing() {
            return Err(Error::not_sent(ErrorKind::Closed));
        }
        // Before it is known where to: whatever changes meanwhile counts.
        let tie = shared
            .following
            .tie(shared.settings.max_age, &mut shared.rng());
        let link = &shared.links[0];
        let epoch = link.epoch();
        let mut request = connector.ask(shared.settings.connect_timeout, abandoned);
        request.first = shared.place();
        let established = match connector.dialled(request).await {
            Ok(established) => established,
            Err(error) => {
                if matches!(error, ConnectError::Replica) {
                    // The shared connection may be to the same one, and yet to notice.
                    let until = clock::now() + shared.settings.deadline;
                    ask_who_serves(shared, link, epoch, until).await;
                }
                let cause = error.to_string().into();
                return Err(Error::not_sent(ErrorKind::Connect { cause }));
            }
        };
        let tie = tie.made_to(established.facts.run_id.clone());
        if let Some(parting) = tie.parting(clock::now()) {
            let cause = parting.why().into();
            return Err(Error::not_sent(ErrorKind::Connect { cause }));
        }
        queue.set_gate(Gate::Open);
        let (signals, told) = mpsc::unbounded_channel();
        let driver = Driver::new(
            Arc::clone(shared),
            Arc::clone(&queue),
            None,
            established.stream,
            UNWATCHED,
            signals,
            None,
        )
        .of_server(established.facts.run_id);
        queue.watch();
        let identity = established.facts.identity;
        let stale = Arc::new(AtomicBool::new(false));
        let keeper = PoolKeeper {
            shared: Arc::clone(shared),
            queue: Arc::clone(&queue),
            told,
            rotation: shared.credentials.rotation(established.credentials),
            stale: Arc::clone(&stale),
            tie: tie.clone(),
            unfenced: Vec::new(),
        };
        tokio::spawn(keeper.keep(driver, identity.clone()));
        Ok(Self {
            shared: Arc::clone(shared),
            queue,
            identity,
            tie,
            stale,
            unfit: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.queue.gate(), Gate::Open)
    }

    /// Returns whether it may serve another caller.
    pub(crate) fn is_reusable(&self) -> bool {
        self.is_open()
            && !self.stale.load(Ordering::Relaxed)
            && !self.unfit.load(Ordering::Relaxed)
            && self.tie.parting(clock::now()).is_none()
    }

    pub(crate) async fn call(
        &self,
        payload: Payload<'_>,
        plan: Plan,
        started: Instant,
        limit: Duration,
    ) -> Result<Reply, Error> {
        let epoch = self.shared.links[0].epoch();
        let call = call_dedicated(&self.shared, &self.queue, payload, plan, started, limit);
        let (result, unfit) = call.await;
        if let Some(refusal) = unfit {
            self.give_up(refusal, epoch).await;
        }
        result
    }

    /// Ends the connection, because the server has said that it is not the one that is wanted. The
    /// shared connection of this epoch may be to the same one.
    async fn give_up(&self, refusal: Refusal, epoch: u64) {
        self.unfit.store(true, Ordering::Relaxed);
        let why = why_reset(&self.shared, refusal);
        let cause = why.unwrap_or("the server was demoted");
        self.queue.command(DriverCommand::Abandon(cause.into()));
        let link = &self.shared.links[0];
        match (why, self.tie.is_shared()) {
            _ if refusal == Refusal::Unauthenticated => {}
            (Some(why), Some(true)) => link.reset(epoch, why),
            (Some(_), None) => {
                let until = clock::now() + self.shared.settings.deadline;
                ask_who_serves(&self.shared, link, epoch, until).await;
            }
            (Some(_), Some(false)) | (None, _) => {}
        }
    }

    pub(crate) async fn send(&self, cmd: &Cmd, options: &CallOptions) -> Result<Value, Error> {
        one(self.run(Payload::Command(cmd), options).await?)
    }

    pub(crate) async fn send_pipeline(
        &self,
        pipeline: &Pipeline,
        options: &CallOptions,
    ) -> Result<Vec<Value>, Error> {
        Ok(many(self.run(Payload::Pipeline(pipeline), options).await?))
    }

    async fn run(&self, payload: Payload<'_>, options: &CallOptions) -> Result<Reply, Error> {
        let plan = payload.plan(1, false)?;
        let mut steps = payload.steps().into_iter();
        if steps.any(|(_, step)| step == TxStep::Exec) && self.queue.holds_a_fence() {
            return Err(self.give_up_transaction());
        }
        let limit = plan.limit(options, self.shared.settings.deadline)?;
        let reply = self.call(payload, plan, clock::now(), limit).await;
        reply.inspect_err(crate::metrics::count_error)
    }

    /// Ends the connection, because another of this client was abandoned since MULTI. What is left
    /// in it must not be applied after this transaction, and it cannot be killed from within one:
    /// so nothing of the transaction is done.
    fn give_up_transaction(&self) -> Error {
        let cause: Arc<str> = "another connection was abandoned during the transaction".into();
        self.queue
            .command(DriverCommand::Abandon(Arc::clone(&cause)));
        Error::not_sent(ErrorKind::Lost { cause })
    }
}

impl Drop for Dedicated {
    /// Has it fenced at once if requests are unanswered, so that whatever the caller does next
    /// comes after them.
    fn drop(&mut self) {
        if self.queue.in_flight() > 0 {
            self.shared.fences.fence(self.identity.clone());
        }
        self.queue
            .command(DriverCommand::Abandon("its owner let it go".into()));
    }
}

/// Waits while the client's own connection is being replaced.
async fn believed_up(shared: &Shared) -> Result<(), Error> {
    let link = &shared.links[0];
    let mut state = link.state.subscribe();
    loop {
        state.borrow_and_update();
        match link.queue.gate() {
            Gate::Open => return Ok(()),
            Gate::Down(..) | Gate::Ended(_) | Gate::Closed => {
                return Err(link.queue.refusal(clock::now()));
            }
            Gate::Orphaned => {
                shared.runtime()?;
            }
            Gate::Waiting => {}
        }
        if state.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// The task that looks after a dedicated connection while it serves.
struct PoolKeeper {
    shared: Arc<Shared>,
    queue: Arc<SubmitQueue>,
    told: mpsc::UnboundedReceiver<Signal>,
    rotation: Rotation,
    stale: Arc<AtomicBool>,
    tie: Tie,
    /// Abandoned connections that the server could not kill when it was asked.
    unfenced: Vec<Identity>,
}

impl PoolKeeper {
    async fn keep(mut self, driver: Driver, identity: Option<Identity>) {
        let fence = FenceOnDrop::new(&self.shared.fences, identity.clone());
        let mut serving = std::pin::pin!(driver.run());
        let mut cut = false;
        let finished = loop {
            let again = async {
                match self.unfenced.is_empty() {
                    true => std::future::pending().await,
                    false => clock::sleep(FENCE_AGAIN).await,
                }
            };
            tokio::select! {
                biased;
                finished = &mut serving => break finished,
                Some(signal) = self.told.recv() => self.heard(signal),
                fresh = self.rotation.fresh() => {
                    self.queue.command(DriverCommand::Reauthenticate(connect::auth(&fresh)));
                }
                parting = self.tie.parted(), if !cut => {
                    cut = matches!(parting, Parting::Cut(_));
                    self.queue.command(match parting {
                        Parting::Cut(why) => DriverCommand::Abandon(why.into()),
                        Parting::Retire(why) => DriverCommand::Retire(why.into()),
                    });
                }
                () = again => {
                    for identity in self.unfenced.drain(..) {
                        self.queue.command(DriverCommand::Fence(identity));
                    }
                }
            }
        };
        fence.accounted_for();
        self.ended(finished, identity);
    }

    fn heard(&mut self, signal: Signal) {
        match signal {
            Signal::Unfenced(identity) => self.unfenced.push(*identity),
            Signal::Reauthenticated(refused) => {
                if let Some(code) = &refused {
                    tracing::warn!(
                        code,
                        "a session or blocking connection was refused new credentials"
                    );
                }
                self.stale.store(refused.is_some(), Ordering::Relaxed);
                self.rotation.answered(refused.is_none());
            }
            // Nobody watches it for silence.
            Signal::Doubtful
            | Signal::Calm
            | Signal::Unresponsive { .. }
            | Signal::Stuck(_)
            | Signal::Aside
            | Signal::Recovered(..) => {}
        }
    }

    fn ended(self, finished: Finished, identity: Option<Identity>) {
        let mut conn = finished.conn;
        // Before anyone hears of the loss.
        if conn.has_unanswered_writes() {
            self.shared.fences.fence(identity);
        }
        let cause = finished.cause;
        self.queue.set_gate(Gate::Ended(Arc::clone(&cause)));
        self.queue.release();
        for unanswered in conn.close() {
            if let Some(ticket) = unanswered.ticket.into_ticket() {
                ticket.end(Ended::Lost {
                    certainty: unanswered.certainty,
                    cause: Arc::clone(&cause),
                    rejoin: None,
                    blame: Blame::None,
                });
            }
        }
    }
}
