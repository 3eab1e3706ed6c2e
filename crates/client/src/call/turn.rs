//! The turn of a call among those whose keys belong to several connections.

use redis::Value;
use steadfast_core::conn::Reply;

use super::plan::Payload;
use super::{AttemptHistory, Call, Carried};
use crate::clock;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::link::Link;
use crate::link::crossing::{CrossingTurn, LinkSet};
use crate::link::liveness::LivenessProbe;
use crate::options::CallOptions;
use crate::wire::queue::Gate;
use crate::wire::words::OUT_OF_STEP;
use futures_util::future::BoxFuture;

impl Call<'_> {
    /// Waits for the turn of a call, if it has to. See [`crate::link::crossing`].
    /// Asks besides whether the client's runtime runs, which others' turns hang on.
    pub(super) async fn take_turn(
        &self,
        probe: &mut Option<LivenessProbe>,
    ) -> Result<Option<CrossingTurn<'_>>, Error> {
        let (crossings, route) = (&self.shared.crossings, self.plan.route);
        if crossings.len() >= self.shared.settings.in_flight {
            return Err(Error::not_sent(ErrorKind::Overloaded {
                bound: Bound::InFlight,
                retry_after: self.shared.settings.reconnect_grace,
            }));
        }
        let Some(turn) = crossings.join(route.links, route.crosses, self.deadline) else {
            return Ok(None);
        };
        *probe = Some(self.shared.probe_liveness()?);
        // Of a type that is named, as in `Client::run`.
        let waits: BoxFuture<'_, Result<_, Error>> = Box::pin(async {
            clock::timeout_at(self.deadline, turn.reached())
                .await
                .ok_or_else(|| self.timed_out(Certainty::NotSent))?;
            let others = self.shared.links.iter().skip(1);
            let behind = others
                .filter(|link| route.crosses && route.links.meets(LinkSet::of(link.index)))
                .map(|link| self.pass_behind(link));
            futures_util::future::try_join_all(behind).await
        });
        waits.await?;
        Ok(Some(turn))
    }

    /// Waits until what was submitted to another connection before has been answered.
    async fn pass_behind(&self, link: &Link) -> Result<(), Error> {
        if link.queue.in_flight() == 0 && matches!(link.queue.gate(), Gate::Open) {
            return Ok(());
        }
        let epoch = link.epoch();
        let ping = redis::cmd("PING");
        let payload = Payload::Command(&ping);
        let ping = Call {
            queue: &link.queue,
            link: Some(link),
            payload,
            plan: payload.plan(1, true)?,
            ..*self
        };
        let options = CallOptions::new();
        let mut carried = Carried::default();
        let answer = ping.run_from(
            clock::now(),
            AttemptHistory::default(),
            &options,
            &mut carried,
        );
        match answer.await {
            Ok(Reply::One(Value::SimpleString(pong))) if pong == "PONG" => Ok(()),
            // Whoever is behind it would get replies of others.
            Ok(_) => {
                link.reset(epoch, OUT_OF_STEP);
                let cause = OUT_OF_STEP.into();
                Err(Error::not_sent(ErrorKind::Lost { cause }))
            }
            Err(error) => Err(Error::not_sent(error.kind().clone())),
        }
    }
}
