//! A connection that one caller has to itself: for sessions and for commands that block.
//!
//! It is not replaced when it is lost, because what made it special (a transaction begun, a key watched) is lost with it.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use steadfast_core::conn::{Reply, Watch};
use tokio::sync::mpsc;

use crate::call::{Payload, Plan, call_dedicated};
use crate::clock;
use crate::connect::{Connector, Identity};
use crate::driver::Driver;
use crate::error::{Certainty, Error, ErrorKind};
use crate::lane::{Gate, Job, Lane, LaneBounds, Order, Outage};
use crate::options::CallOptions;
use crate::shared::Shared;
use crate::slot::Ended;

/// Nothing but the deadlines of its calls watches a connection of one's own: a heartbeat would be queued in a transaction, and silence is what
/// a blocking command asks for.
const UNWATCHED: Watch = Watch {
    reply_overdue: Duration::from_secs(365 * 86_400),
    heartbeat: Duration::from_secs(365 * 86_400),
};

/// See the module. Dropped with requests unanswered, it is killed on the server too.
#[derive(Debug)]
pub(crate) struct Dedicated {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
}

impl Dedicated {
    /// Connects, under the client's connect deadlines.
    pub(crate) async fn open(shared: &Arc<Shared>, connector: &Connector) -> Result<Self, Error> {
        let limit = shared.settings.connect_timeout;
        let established = connector.connect(limit, &[]).await.map_err(|error| {
            Error::not_sent(ErrorKind::Connect {
                cause: error.to_string().into(),
            })
        })?;
        let lane = Arc::new(Lane::new(LaneBounds {
            in_flight: shared.settings.in_flight,
            bytes: shared.settings.buffered_bytes,
        }));
        lane.set_gate(Gate::Open);
        let (signals, _) = mpsc::unbounded_channel();
        let driver = Driver::new(
            Arc::clone(shared),
            Arc::clone(&lane),
            0,
            established.stream,
            UNWATCHED,
            signals,
        );
        let identity = established.facts.identity;
        tokio::spawn(serve(
            Arc::clone(shared),
            Arc::clone(&lane),
            driver,
            identity,
        ));
        Ok(Self {
            shared: Arc::clone(shared),
            lane,
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.lane.gate(), Gate::Open)
    }

    pub(crate) async fn call(
        &self,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        call_dedicated(&self.shared, &self.lane, payload, plan, options).await
    }

    pub(crate) async fn send(&self, cmd: &Cmd, options: &CallOptions) -> Result<Value, Error> {
        let payload = Payload::Command(cmd);
        let plan = payload.plan(1, false)?;
        one(self.call(payload, plan, options).await?)
    }

    pub(crate) async fn send_pipeline(
        &self,
        pipeline: &Pipeline,
        options: &CallOptions,
    ) -> Result<Vec<Value>, Error> {
        let payload = Payload::Pipeline(pipeline);
        let plan = payload.plan(1, false)?;
        Ok(many(self.call(payload, plan, options).await?))
    }
}

impl Drop for Dedicated {
    fn drop(&mut self) {
        self.lane
            .order(Order::Abandon("its owner let it go".into()));
    }
}

pub(crate) fn one(reply: Reply) -> Result<Value, Error> {
    match reply {
        Reply::One(value) => Ok(value),
        Reply::Many(_) => Err(Error::new(
            ErrorKind::Invalid {
                why: "a single command was answered by several replies",
            },
            Certainty::Unknown,
        )),
    }
}

pub(crate) fn many(reply: Reply) -> Vec<Value> {
    match reply {
        Reply::One(value) => vec![value],
        Reply::Many(values) => values,
    }
}

async fn serve(shared: Arc<Shared>, lane: Arc<Lane>, driver: Driver, identity: Option<Identity>) {
    let finished = driver.run().await;
    let mut conn = finished.conn;
    if conn.has_unanswered_writes() {
        shared.bury(identity, None);
    }
    let cause = finished.cause;
    let now = clock::now();
    let outage = Outage {
        since: now,
        cause: Arc::clone(&cause),
    };
    lane.set_gate(Gate::Down(Arc::new(outage), now));
    lane.release();
    for (job, certainty) in conn.close() {
        if let Job::Call(ticket) = job {
            let cause = Arc::clone(&cause);
            ticket.end(Ended::Lost { certainty, cause });
        }
    }
}
