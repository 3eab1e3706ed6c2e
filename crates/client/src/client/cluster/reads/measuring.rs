//! The age of what replicas have, measured by the history of their primaries.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::Value;
use steadfast_core::conn::Reply;
use steadfast_core::report::InfoReplication;
use steadfast_core::topology::MemberIndex;

use super::{Measured, On, epochs};
use crate::call::plan::Payload;
use crate::client::cluster::Cluster;
use crate::client::cluster::limits::Limits;
use crate::client::cluster::node::Node;
use crate::clock;
use crate::options::CallOptions;

impl Cluster {
    /// The primaries that have replicas, and these.
    fn families(&self) -> BTreeMap<u16, Vec<u16>> {
        let known = self.known.lock();
        let topology = &known.topology;
        let mut families: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
        for (index, member) in topology.members() {
            let serves = member.is_present && !member.is_failing && !member.is_primary;
            let primary = member.follows.as_ref().filter(|_| serves);
            let Some(primary) = primary.and_then(|id| topology.find(id)) else {
                continue;
            };
            let primary = MemberIndex::number(primary);
            families.entry(primary).or_default().push(index.number());
        }
        families
    }

    /// Measures the replicas of each primary again and again, for ever. A family that takes its
    /// time holds no other up.
    async fn measure(&self, on: &On) {
        let mut marks: BTreeMap<u16, VecDeque<Mark>> = BTreeMap::new();
        let mut under_way = FuturesUnordered::new();
        let mut busy: BTreeSet<u16> = BTreeSet::new();
        loop {
            let next = clock::now() + self.settings().max_lag / TIMES;
            let families = self.families();
            on.forget_but(&families);
            marks.retain(|primary, _| families.contains_key(primary));
            for (primary, replicas) in families {
                if busy.insert(primary) {
                    let marks = marks.remove(&primary).unwrap_or_default();
                    under_way.push(self.measure_family(primary, replicas, marks));
                }
            }
            while let Some(ended) = clock::timeout_at(next, under_way.next()).await.flatten() {
                on.keep(ended.primary, ended.measured);
                marks.insert(ended.primary, ended.marks);
                busy.remove(&ended.primary);
            }
            clock::sleep_until(next).await;
        }
    }

    async fn measure_family(
        &self,
        primary: u16,
        replicas: Vec<u16>,
        mut marks: VecDeque<Mark>,
    ) -> Family {
        let at = clock::now();
        if let Ok(Some(node)) = self.node(primary)
            && let Some(said) = self.ask_history(&node).await
            && said.is_primary
        {
            marks.truncate(MARKS - 1);
            marks.push_front(Mark {
                at,
                history: said.history,
                offset: said.offset,
            });
        }
        let asks = replicas.iter().map(|number| async {
            let node = self.replica(*number).ok().flatten()?;
            let before: Arc<[u64]> = epochs(&node).collect();
            let said = self.ask_history(&node).await?;
            Some((node, before, said))
        });
        let answers = join_all(asks).await.into_iter().flatten();
        let measured = answers.filter_map(|(node, epochs, said)| {
            let proven = proven(&marks, &said)?;
            Some(Measured {
                of: primary,
                node,
                epochs,
                proven,
            })
        });
        Family {
            primary,
            measured: measured.collect(),
            marks,
        }
    }

    async fn ask_history(&self, node: &Node) -> Option<InfoReplication> {
        let ask = redis::cmd("INFO").arg("replication").to_owned();
        let payload = Payload::Command(&ask);
        let plan = payload.plan(1, true).ok()?;
        // One that hangs does not hold up what is measured of others.
        let limits = Limits::new(self.settings().max_lag / TIMES);
        let options = CallOptions::new().attempts(1);
        let answer = node.attempt(payload, plan, &options, limits.of_attempt(0));
        let text = match answer.await.ok()? {
            Reply::One(Value::BulkString(text)) => String::from_utf8(text).ok()?,
            Reply::One(Value::VerbatimString { text, .. }) => text,
            _ => return None,
        };
        InfoReplication::read(&text).ok()
    }
}

/// Measures replicas from when the first call wants to read from them. Ends with the client.
pub(crate) async fn keep_measured(cluster: Arc<Cluster>) {
    let measure = async {
        let on = cluster.reads.begun().await;
        cluster.measure(on).await;
    };
    tokio::select! {
        biased;
        () = cluster.shared.closing() => {}
        () = measure => {}
    }
}

/// The latest moment of which a replica that says this has everything.
pub(super) fn proven(marks: &VecDeque<Mark>, said: &InfoReplication) -> Option<Instant> {
    let has = |mark: &&Mark| mark.history == said.history && mark.offset <= said.offset;
    marks.iter().filter(has).map(|mark| mark.at).max()
}

/// How long the history of a primary was at a moment, by an answer to a question that was sent
/// after it.
pub(super) struct Mark {
    pub(super) at: Instant,
    pub(super) history: Arc<str>,
    pub(super) offset: u64,
}

/// A primary and its replicas, as they were measured.
pub(super) struct Family {
    pub(super) primary: u16,
    pub(super) measured: Vec<Measured>,
    pub(super) marks: VecDeque<Mark>,
}

/// The number of times that replicas are measured within the age that is allowed.
pub(super) const TIMES: u32 = 4;

/// The moments of a primary's history that are kept.
pub(super) const MARKS: usize = 8;
