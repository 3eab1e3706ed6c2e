//! The senders: each node gets its part of a pipeline, when that has its turn.

use std::collections::BTreeSet;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::{Pipeline, Value};
use smallvec::SmallVec;
use steadfast_core::conn::{PIECE, Reply};
use steadfast_core::slot::Slot;
use steadfast_core::split::{Failed, Portion};

use super::answers::Answer;
use super::ending::not_sent_for;
use super::round::Round;
use super::{PipelinePart, PipelineRun, Whole};
use crate::call::Suspicion;
use crate::call::plan::{Payload, Plan};
use crate::client::cluster::Cluster;
use crate::client::cluster::limits::Limits;
use crate::client::cluster::node::Node;
use crate::client::cluster::order::{Again, Entered, LostKeys, NOBODY, Slots};
use crate::client::cluster::reach::no_room;
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::wire::queue::Encoded;

/// The result of sending them.
pub(super) enum RoundSent {
    Answered(Vec<Vec<Answer>>),
    /// Slots change hands, or have: nothing was sent.
    Elsewhere,
    /// The ASK of these slots is old: nothing was sent.
    Outdated(Slots),
    /// These slots change hands, and others do not: nothing was sent.
    Divided(Slots),
    /// Later commands of these keys have run: nothing was sent.
    Overtaken(LostKeys),
    /// The commands may not be sent again.
    Never(Error),
}

/// The result of an attempt at a node: its answers, whether an earlier try there may have run, and
/// which connections have ended at it.
pub(super) type Tried = (Result<Vec<Value>, Failed<Error>>, bool, Suspicion);

impl<'a> PipelineRun<'a> {
    pub(super) async fn send(&mut self, round: &Round, sent: Instant) -> RoundSent {
        let (cluster, limits) = (self.cluster, self.limits);
        let Round {
            parts, goes, asks, ..
        } = round;
        let whole = Whole {
            pipeline: self.pipeline,
            split: &self.split,
            suspicions: &self.suspicions,
            plan: &self.plan,
            options: self.options,
        };
        let times = limits.of_attempt(self.rounds);
        // After a pause there may be no time left: what is sent then is of unknown outcome.
        if times.1.is_zero() {
            return RoundSent::Never(limits.timed_out(Certainty::NotSent));
        }
        // While other nodes have yet to answer: the slots of what may be sent again, and those of
        // which all is served.
        let (unserved, served) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
        let (not_yet, over) = (&unserved, &served);
        // What is sent again may wait long for its turn, and is encoded when that comes.
        let is_first = self.places.is_none();
        let ahead = parts.iter().map(|part| match is_first {
            true => cluster.encoded_ahead(part, whole),
            false => None,
        });
        let ahead: SmallVec<[Option<Encoded>; 4]> = ahead.collect();
        let sends = parts.iter().zip(ahead).enumerate();
        let sends = sends.map(|(at, (part, ahead))| async move {
            let answers = cluster.send_in_turn(part, ahead, whole, times).await;
            // Others may take their time to answer, in which this grows old.
            cluster.note_asks(part.node, &answers);
            let slots = answers.iter().map(|answer| answer.may_go_again(whole));
            slots.for_each(|slots| not_yet.lock().extend(slots));
            let all = round.served_by(at, &answers, whole.split);
            over.lock().extend(all);
            answers
        });
        let mut sends = pin!(join_all(sends));
        // Whoever comes from now on waits for it: one that is served would overtake it.
        let close = || {
            let slots = std::mem::take(&mut *unserved.lock());
            slots.into_iter().for_each(|slot| cluster.order.close(slot));
        };
        let polled = match &mut self.places {
            None => {
                let entries = round.entries(limits.deadline);
                let owner = |slot: Slot| cluster.routes.owner(slot).unwrap_or(NOBODY);
                let stands = || goes.iter().all(|((slot, node), _)| owner(*slot) == *node);
                let line = (&mut self.line, limits.room);
                let entered = cluster
                    .order
                    .enter(entries, sent, stands, line, sends.as_mut());
                match entered.await {
                    Entered::Sent(entered, polled) => {
                        self.places = Some(entered);
                        Ok(polled)
                    }
                    Entered::Waited => Err(RoundSent::Elsewhere),
                    Entered::Divided(slots) => Err(RoundSent::Divided(slots)),
                    Entered::NoRoom => Err(RoundSent::Never(no_room())),
                }
            }
            Some(places) => {
                let goes: Vec<(Slot, u16)> = goes.iter().map(|(goes, _)| *goes).collect();
                for (slot, _) in &goes {
                    cluster.order.close(*slot);
                }
                let stands = |(slot, to)| {
                    !asks.contains(&(slot, to)) || cluster.asked.stands(slot, to, clock::now())
                };
                let again = places.again(&goes, limits.deadline, stands, sends.as_mut());
                sent_again(again.await, &limits)
            }
        };
        let polled = match polled {
            Ok(polled) => polled,
            Err(not_sent) => return not_sent,
        };
        let leave = || {
            if let Some(places) = &mut self.places {
                places.ran_in(&std::mem::take(&mut *served.lock()));
            }
        };
        RoundSent::Answered(all_of(sends, polled, close, leave).await)
    }
}

impl Cluster {
    /// Sends a part when it is polled. Before that it takes little memory: of a pipeline that waits
    /// for very many slots each has one.
    async fn send_in_turn(
        &self,
        part: &PipelinePart,
        ahead: Option<Encoded>,
        whole: Whole<'_>,
        times: (Instant, Duration),
    ) -> Vec<Answer> {
        Box::pin(self.send_part(part, ahead, whole, times)).await
    }

    /// Encodes a part ahead, if it is large: the slots that are locked as it is sent are those of
    /// other nodes too.
    fn encoded_ahead(&self, part: &PipelinePart, whole: Whole<'_>) -> Option<Encoded> {
        let Whole { plan, options, .. } = whole;
        if part.asking || plan.blocking.is_some() {
            return None;
        }
        let node = || part.node.and_then(|number| self.node(number).ok()?);
        if part.is_whole {
            let payload = Payload::Pipeline(whole.pipeline);
            return node()?.encoded_ahead(payload, plan, options);
        }
        let bytes = || whole.split.portions(part.units()).map(Portion::most_bytes);
        if bytes().sum::<usize>() < PIECE {
            return None;
        }
        let portions: Vec<Portion<'_>> = whole.split.portions(part.units()).collect();
        let plan = self.plan_of(part, &portions, whole);
        node()?.encoded_ahead(Payload::Portions(&portions), &plan, options)
    }

    fn plan_of(&self, part: &PipelinePart, portions: &[Portion<'_>], whole: Whole<'_>) -> Plan {
        let settings = self.settings();
        let effect = whole.split.effect_of(part.units());
        let plan = whole
            .plan
            .of_portions(portions, effect, settings.connections);
        plan.adjusted(whole.options, settings.repeat_only_reads)
    }

    async fn send_part(
        &self,
        part: &PipelinePart,
        ahead: Option<Encoded>,
        whole: Whole<'_>,
        times: (Instant, Duration),
    ) -> Vec<Answer> {
        let units = part.units();
        let all = |(result, before, suspicion): Tried| {
            vec![Answer {
                units: units.to_vec(),
                result,
                before,
                suspicion,
            }]
        };
        let suspicion = whole.suspicion_of(units);
        let node = match part.node.map(|number| self.node(number)) {
            Some(Ok(Some(node))) => node,
            Some(Err(error)) => return all(refused(error)),
            None | Some(Ok(None)) => {
                let slot = units.iter().find_map(|unit| whole.split.slot_of(*unit));
                let slot = slot.unwrap_or_else(|| self.any_slot());
                return all(refused(self.nobody_serves(slot)));
            }
        };
        let Whole { plan, options, .. } = whole;
        if part.asking {
            return self.send_asking(part, &node, whole, times).await;
        }
        if part.is_whole {
            let payload = Payload::Pipeline(whole.pipeline);
            let plan = plan.clone();
            let answer = node.attempt_encoded(ahead, payload, plan, options, times, suspicion);
            return all(Self::values_apart(&node, answer.await));
        }
        let portions = whole.split.portions(units);
        if plan.blocking.is_some() {
            // What waits in the server is sent again with what is left of its time.
            let mut own = Pipeline::with_capacity(units.len());
            portions.for_each(|portion| {
                own.add_command(portion.to_cmd());
            });
            let payload = Payload::Pipeline(&own);
            let answer = match self.planned(payload, whole) {
                Ok(plan) => {
                    let answer = node.attempt_after(payload, plan, options, times, suspicion);
                    answer.await
                }
                Err(error) => (Err(error), false, suspicion),
            };
            return all(Self::values_apart(&node, answer));
        }
        let portions: SmallVec<[Portion<'_>; 4]> = portions.collect();
        let plan = self.plan_of(part, &portions, whole);
        let payload = Payload::Portions(&portions);
        let answer = node.attempt_encoded(ahead, payload, plan, options, times, suspicion);
        all(Self::values_apart(&node, answer.await))
    }

    /// Sends each command behind an ASKING of its own. They are submitted in this order.
    async fn send_asking(
        &self,
        part: &PipelinePart,
        node: &Node,
        whole: Whole<'_>,
        times: (Instant, Duration),
    ) -> Vec<Answer> {
        let (units, options) = (part.units(), whole.options);
        let places = &whole.plan.places.clone().unwrap_or_default();
        let commands: Vec<_> = whole.split.portions(units).map(Portion::to_cmd).collect();
        let asks = commands.iter().zip(units).map(|(cmd, unit)| async move {
            let payload = Payload::Command(cmd);
            let suspicion = whole.suspicion_of(&[*unit]);
            let (answer, before, suspicion) = match self.planned(payload, whole) {
                Ok(plan) => {
                    let plan = Plan {
                        asking: true,
                        ..plan.in_place_of(places)
                    };
                    let answer = node.attempt_after(payload, plan, options, times, suspicion);
                    answer.await
                }
                Err(error) => (Err(error), false, suspicion),
            };
            let answer = match answer {
                Err(error) => match error.kind() {
                    ErrorKind::Server(said) => Ok(Reply::One(Value::ServerError(said.clone()))),
                    _ => Err(error),
                },
                answer => answer,
            };
            let tried = (answer, before, suspicion);
            let (result, before, suspicion) = Self::values_apart(node, tried);
            Answer {
                units: vec![*unit],
                result,
                before,
                suspicion,
            }
        });
        join_all(asks).await
    }

    /// The same as [`values`](Self::values), of a node's last try; a failure is as uncertain as all
    /// of them.
    fn values_apart(
        node: &Node,
        (result, before, suspicion): (Result<Reply, Error>, bool, Suspicion),
    ) -> Tried {
        let result = result.map_err(|error| error.at_best(before));
        (Self::values(node, result), before, suspicion)
    }

    /// Plans a part of this whole before it is sent.
    fn planned(&self, payload: Payload<'_>, whole: Whole<'_>) -> Result<Plan, Error> {
        let plan = payload.plan(self.settings().connections, true)?;
        let plan = plan.adjusted(whole.options, self.settings().repeat_only_reads);
        let places = whole.plan.places.clone();
        Ok(Plan { places, ..plan })
    }
}

fn refused(error: Error) -> Tried {
    (Err(not_sent_for(&error)), false, Suspicion::default())
}

/// Waits for all answers, and does the one whenever some have come, and the other if some have not.
async fn all_of<F: Future>(
    mut sends: Pin<&mut F>,
    polled: Poll<F::Output>,
    came: impl Fn(),
    mut missing: impl FnMut(),
) -> F::Output {
    if let Poll::Ready(answers) = polled {
        return answers;
    }
    came();
    let answered = std::future::poll_fn(|cx| {
        let polled = sends.as_mut().poll(cx);
        came();
        if polled.is_pending() {
            missing();
        }
        polled
    });
    answered.await
}

/// What was sent again, or why nothing was.
fn sent_again<T>(again: Again<T>, limits: &Limits<'_>) -> Result<Poll<T>, RoundSent> {
    Err(match again {
        Again::Sent(polled) => return Ok(polled),
        Again::Outdated(slots) => RoundSent::Outdated(slots),
        Again::Overtaken(keys) => RoundSent::Overtaken(keys),
        Again::Divided(slots) => RoundSent::Divided(slots),
        Again::TimedOut => RoundSent::Never(limits.timed_out(Certainty::NotSent)),
    })
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use steadfast_core::slot::KeySet;

    use super::*;
    use crate::client::cluster::order::Entry;
    use crate::client::cluster::view::view_of;
    use crate::options::CallOptions;

    fn size_of_sent<'a, F: Future>(
        _: impl FnOnce(
            &'a Cluster,
            &'a PipelinePart,
            Option<Encoded>,
            Whole<'a>,
            (Instant, Duration),
        ) -> F,
    ) -> usize {
        size_of::<F>()
    }

    fn size_of_run<'a, F: Future>(_: impl FnOnce(PipelineRun<'a>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn t31_what_waits_for_its_turn_takes_little_memory() {
        let in_turn = size_of_sent(|at, part, ahead, whole, times| {
            at.send_in_turn(part, ahead, whole, times)
        });
        let sent =
            size_of_sent(|at, part, ahead, whole, times| at.send_part(part, ahead, whole, times));
        assert!(in_turn < 256, "{in_turn} bytes, and when it is sent {sent}");
        let run = size_of_run(PipelineRun::run);
        assert!(run < 3_000, "{run} bytes: the design page says 2.5 KB");
    }

    #[tokio::test]
    async fn t5_large_parts_of_a_pipeline_are_encoded_before_the_locks_of_their_slots_are_taken() {
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:9").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let text = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-8191\n\
                    b 127.0.0.1:2@12 master - 0 0 2 connected 8192-16383\n";
        assert!(cluster.believe(&view_of(text)).ignored.is_none());
        let size = 4 << 20;
        let keys = ["a", "b"];
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("SET").arg(key).arg(vec![1_u8; size]);
        }
        // Others are in their slots, so that nothing is sent, which would be done under the locks.
        let others = keys.map(|key| Entry {
            slot: Slot::of_key(key.as_bytes()),
            keys: KeySet::Unknown,
            node: NOBODY,
            until: clock::now() + Duration::from_secs(20),
        });
        let _others = cluster.order.stand_in_line(others.into_iter().collect());
        let plan = Payload::Pipeline(&pipeline).plan(1, true);
        let (plan, options) = (plan.expect("it may be sent"), CallOptions::new());
        let mut sends = pin!(cluster.pipeline(&pipeline, plan, &options));
        let polls = allocation_counter::measure(|| {
            let polled = sends.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending(), "it waits for its turn");
        });
        let nodes = cluster.routes.nodes();
        assert_eq!(nodes.len(), keys.len());
        for node in nodes {
            assert_eq!(node.client.inner.shared.links[0].queue.in_flight(), 0);
        }
        assert!(polls.bytes_total >= (keys.len() * size) as u64, "{polls:?}");
    }
}
