//! Asks nodes who owns which slot: off the path of calls, in rounds of which one runs at a time,
//! and never too many. It never gives up, and forgets no seed.
//!
//! Very many nodes may be known of which none answers, and each may take its whole time not to. So
//! a round does not wait for all of a wave before it asks others, and ends before all were asked:
//! the next begins with those that were not, and with seeds again, which may lead elsewhere by now.

mod asking;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::node::{Endpoint, NodeId};
use steadfast_core::report::{ClusterInfo, ClusterReport};
use steadfast_core::resp::Limits;
use steadfast_core::topology::{Explained, Ignored, Trigger, View};

use super::Cluster;
use super::answers::{ClusterAnswers, refused};
use crate::clock;
use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
use crate::event::{EventItem, EventKind, Events};
use crate::link::alive::Alive;
use crate::link::connect::{Exchange, Network, WaitsFor, ask_at_each, auth, within};
use crate::wire::stream::Stream;
use crate::wire::words::{command, text};

/// The number of nodes that are asked at the same time.
const AT_ONCE: usize = 3;

/// The time after which others are asked besides, if none of them has answered.
const SILENT: Duration = Duration::from_millis(250);

/// How many may be asked at the same time then.
pub(super) const UNDER_WAY: usize = 2 * AT_ONCE;

/// After so many times `connect_timeout` a round asks nobody else. A question takes four at most:
/// DNS, TCP, TLS and the answers. So the first six have time to answer, however slow they are, and
/// twelve if none is slow in all four.
const ROUND: u32 = 5;
const QUESTION: u32 = 4;

/// How many times that many are asked, if there are so many, before a seed that leads to a cluster
/// of strangers is believed.
const WAVES: usize = 4;

/// How many are asked besides in one discovery, for what only their own word decides.
const AT_MOST: usize = 4 * AT_ONCE;

/// How long the others of these may still answer once one has.
const FOR_OTHERS: Duration = Duration::from_millis(100);

/// The least time between two discoveries for the sake of new credentials.
const RENEW_LEAST: Duration = Duration::from_millis(100);

/// How many nodes of other clusters are remembered, so that each is told of once.
const STRANGERS: usize = 64;

/// The time after an event when the states of the nodes are looked at once more.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// Returns the bounds on a node's reply: some hundred bytes for each of at most 1 024 nodes, and a
/// range for each slot.
fn limits() -> Limits {
    Limits {
        depth: 8,
        elements: 1 << 18,
        bulk_bytes: 4 << 20,
        line_bytes: 1 << 16,
        total_bytes: 16 << 20,
    }
}

/// Keeps the view of the cluster new. Ends with the client.
pub(crate) async fn watch(cluster: Arc<Cluster>, _alive: Arc<Alive>) {
    let mut events = cluster.shared.hub.subscribe();
    // What an event tells of is true a moment later.
    let mut look = None;
    loop {
        cluster.tell_state();
        let due = cluster.gate.lock().poll_timeout();
        let renewal = cluster.renewal_due();
        let due = due.into_iter().chain(look.take()).chain(renewal).min();
        let wait = async {
            match due {
                Some(at) => clock::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cluster.shared.closing() => return,
            () = wait => {}
            () = cluster.wake.notified() => {}
            event = trouble(&mut events) => {
                look = Some(clock::now() + LOOK_AFTER);
                match event {
                    true => cluster.trigger(Trigger::Loss),
                    false => continue,
                }
            }
        }
        if renewal.is_some_and(|at| at <= clock::now()) {
            *cluster.renew_at.lock() = None;
            cluster.trigger(Trigger::Contradiction);
        }
        if cluster.gate.lock().poll(clock::now()) {
            let mut running = Running(&cluster, Explained::NotYet);
            running.1 = tokio::select! {
                biased;
                () = cluster.shared.closing() => return,
                explained = cluster.discover() => explained,
            };
        }
    }
}

/// A discovery under way, and what came of it. However it ends, by a panic or with its runtime too,
/// another may begin afterwards.
struct Running<'a>(&'a Cluster, Explained);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.gate.lock().finished(self.1, clock::now());
    }
}

/// Waits for the next event; true if it is a reason to doubt who serves.
async fn trouble(events: &mut Events) -> bool {
    match events.next().await {
        Some(EventItem::Event(event)) => matches!(
            event.kind,
            EventKind::Lost { .. }
                | EventKind::Unresponsive { .. }
                | EventKind::Down { .. }
                | EventKind::ConnectFailed { .. }
        ),
        Some(EventItem::Gap(_)) => true,
        None => std::future::pending().await,
    }
}

impl Cluster {
    /// Asks for a newer view as soon as that is allowed.
    pub(super) fn trigger(&self, trigger: Trigger) {
        self.gate.lock().trigger(trigger, clock::now());
        self.wake.notify_one();
        // Should the runtime have ended in which discovery lived.
        let _ = self.shared.runtime();
    }

    /// Returns the nodes that may be asked, the likeliest last: primaries that are well, then all
    /// others that are known; but those first that were not asked in vain. With every two of these
    /// goes a seed: they stay candidates for ever, and when all nodes have got other addresses at
    /// once, they are the ones to ask.
    pub(super) fn candidates(&self) -> Vec<Endpoint> {
        let mut rng = self.shared.rng();
        let mut seeds = self.seeds.clone();
        rng.shuffle(&mut seeds);
        let mut members: Vec<((bool, u8), Endpoint)> = {
            let known = self.known.lock();
            let is_new = |at: &Endpoint| !known.asked_in_vain.contains(at);
            seeds.sort_by_key(is_new);
            let members = known.topology.members();
            let mut members: Vec<_> = members
                .filter_map(|(_, member)| {
                    let rank = match member {
                        member if !member.is_present => 0,
                        member if member.is_failing => 1,
                        member if !member.is_primary => 2,
                        _ => 3,
                    };
                    let endpoint = member.endpoint.clone()?;
                    Some(((is_new(&endpoint), rank), endpoint))
                })
                .collect();
            // A member's name that was asked in vain may lead elsewhere by now, if it is a seed.
            seeds.retain(|seed| !is_new(seed) || members.iter().all(|(_, at)| at != seed));
            members.retain(|(_, at)| !seeds.contains(at));
            members
        };
        rng.shuffle(&mut members);
        members.sort_by_key(|(rank, _)| *rank);
        let mut members: Vec<Endpoint> =
            members.into_iter().map(|(_, endpoint)| endpoint).collect();
        let mut all = Vec::with_capacity(seeds.len() + members.len());
        while !members.is_empty() || !seeds.is_empty() {
            all.extend(members.pop());
            all.extend(members.pop());
            all.extend(seeds.pop());
        }
        all.reverse();
        all
    }

    /// The name that the certificate of this node is expected to carry.
    pub(super) fn name_at(&self, at: &Endpoint) -> Arc<str> {
        let hostname = {
            let known = self.known.lock();
            let index = known.topology.find_at(at);
            index.and_then(|index| known.topology.member(index).hostname.clone())
        };
        let name = self.name_in_certificate(at, hostname.as_ref());
        name.unwrap_or_else(|| Arc::clone(&at.host))
    }

    /// Asks the provider for credentials, once for all nodes that are asked now.
    async fn given(&self) -> Result<Option<Credentials>, ConnectError> {
        let limit = self.settings().connect_timeout;
        let connector = Arc::clone(&self.connector);
        let asks = async move {
            let given = connector.credentials(limit).await?;
            Ok((given, connector.renew_in()))
        };
        let given = self.shared.apart(&self.asks_provider, limit, asks).await;
        let (given, renew_in) = given?;
        self.last_given.lock().clone_from(&given);
        let renew_in = renew_in.map(|every| every.max(RENEW_LEAST));
        *self.renew_at.lock() = renew_in.and_then(|every| clock::now().checked_add(every));
        Ok(given)
    }

    /// When the provider is to be asked again. The nodes that are connected to do that themselves,
    /// for all; where there are none, a discovery does, for the subscribers.
    fn renewal_due(&self) -> Option<Instant> {
        let due = *self.renew_at.lock();
        due.filter(|_| self.routes.nodes().is_empty())
    }

    /// Asks one node, at whichever of its addresses an answer comes from that counts.
    async fn ask(
        &self,
        at: &Endpoint,
        credentials: Option<&Credentials>,
    ) -> Result<View, ConnectError> {
        let settings = self.settings();
        let limit = settings.connect_timeout;
        let name = self.name_at(at);
        let network = Network::new(Arc::clone(&self.shared.settings), None);
        let ask = |address| {
            let (network, name) = (&network, &name);
            async move {
                let nobody = WaitsFor::default();
                let opened = network.open_tcp(name, address, limit, &nobody).await?;
                within("handshake", limit, self.ask_on(opened, credentials, at)).await?
            }
        };
        ask_at_each(settings, at, limit, ask).await
    }

    /// Asks on a connection for this question.
    async fn ask_on(
        &self,
        (mut stream, address): (Stream, String),
        credentials: Option<&Credentials>,
        at: &Endpoint,
    ) -> Result<View, ConnectError> {
        let mut wire = Exchange::limited(&mut stream, &address, limits());
        if let Some(credentials) = credentials {
            let words = match credentials.user() {
                "" | "default" => command(&["AUTH", credentials.password()]),
                _ => auth(credentials),
            };
            let replies = wire.exchange(&[words]).await?;
            refused(&replies[0])?;
            if !matches!(replies[0], Value::Okay) {
                let why = "it answers AUTH by what is no answer to it".into();
                return Err(ConnectError::NotRedis { address, why });
            }
            // For those connections that no node's own connection speaks for.
            self.shared.credentials.offer(credentials);
        }
        let asked = clock::now();
        let questions = ["MYID", "INFO", "NODES", "SHARDS"];
        let mut answers = ClusterAnswers::to(&mut wire, &address, &questions).await?;
        if answers.any_says("cluster support disabled") {
            return Err(ConnectError::NotCluster { address });
        }
        // SHARDS and SLOTS tell no epochs, but where nodes want to be dialled.
        if answers.told("SHARDS")?.is_none() && answers.read_nodes()?.as_ref().is_none_or(has_names)
        {
            answers.also(&mut wire, &["SLOTS"]).await?;
        }
        let info = match answers.told("INFO")? {
            Some(info) => Some(ClusterInfo::read(&text(info)).map_err(|_| answers.wrong("INFO"))?),
            None => None,
        };
        let mut report = answers.report()?;
        let id = match answers.told("MYID")? {
            Some(Value::BulkString(id)) => std::str::from_utf8(id).ok().and_then(NodeId::new),
            _ => None,
        };
        self.known.lock().not_allowed = answers.not_allowed();
        self.translate(&mut report);
        let tls = self.speaks_tls();
        // Who may not be asked for its id is the one that says to be there.
        let is_there = || report.node_at(&at.host, at.port, tls)?.id.clone();
        let view = View {
            by: id.or_else(is_there),
            host: Arc::clone(&at.host),
            asked,
            heard: clock::now(),
            tls,
            report,
            info,
        };
        let ignored = view.why_ignored();
        if ignored != Some(Ignored::Empty) {
            let known = &mut *self.known.lock();
            if known.topology.is_kin(&view) {
                known.kin_heard = Some(view.heard);
            }
        }
        match ignored {
            None => Ok(view),
            Some(Ignored::NotServing) => Err(ConnectError::ClusterDown { address }),
            Some(Ignored::Empty) => Err(ConnectError::NoNode {
                why: format!("{address} knows of no slots"),
            }),
        }
    }
}

/// Whether nodes announce host names, so that redirects may name them by those.
fn has_names(report: &ClusterReport) -> bool {
    let mut nodes = report.nodes.iter();
    nodes.any(|node| node.hostname.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::cluster::view::view_of;

    #[tokio::test]
    async fn t2_who_was_asked_in_vain_comes_behind_the_others_and_is_not_forgotten() {
        let url = "redis-cluster://127.0.0.1:8,127.0.0.1:9";
        let client = crate::Client::builder(url).expect("a good url").build();
        let client = client.expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let text = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-5\n\
                    b 127.0.0.1:2@12 master - 0 0 2 connected 6-9\n\
                    c 127.0.0.1:3@13 slave a 0 0 1 connected\n";
        assert!(cluster.believe(&view_of(text)).ignored.is_none());
        let order = |in_vain: &[u16]| {
            let in_vain = in_vain.iter();
            cluster.known.lock().asked_in_vain = in_vain
                .map(|port| Endpoint::new("127.0.0.1", *port))
                .collect();
            let ports = cluster.candidates().into_iter().rev();
            ports.map(|endpoint| endpoint.port).collect::<Vec<_>>()
        };
        for _ in 0..20 {
            let first = order(&[]);
            assert!(
                [[1, 2], [2, 1]].contains(&[first[0], first[1]]),
                "{first:?}"
            );
            let next = order(&[1, 2, 8]);
            assert_eq!((next[0], next[2]), (3, 9), "{next:?}");
            let mut all = next.clone();
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3, 8, 9]);
        }
    }

    /// As where the cluster announces the names that lead to it.
    #[tokio::test]
    async fn t2_a_seed_that_is_a_member_stays_a_seed_when_it_was_asked_in_vain() {
        let client = crate::Client::builder("redis-cluster://127.0.0.1:1").expect("a good url");
        let client = client.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let line = |n: u16| format!("{n} 127.0.0.1:{n}@1{n} master - 0 0 {n} connected {n}");
        let text: Vec<_> = (1..=8).map(line).collect();
        assert!(
            cluster
                .believe(&view_of(&text.join("\n")))
                .ignored
                .is_none()
        );
        cluster.known.lock().asked_in_vain = [Endpoint::new("127.0.0.1", 1)].into();
        let ports = cluster.candidates().into_iter().rev();
        let ports: Vec<u16> = ports.map(|endpoint| endpoint.port).collect();
        assert_eq!(ports[2], 1, "{ports:?}");
        assert_eq!(ports.len(), 8, "{ports:?}");
    }
}
