//! One discovery: who is asked, until a view counts, and what it changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use steadfast_core::node::{Endpoint, NodeId};
use steadfast_core::topology::{Explained, MemberIndex, View};

use super::{AT_MOST, AT_ONCE, FOR_OTHERS, STRANGERS, WAVES};
use crate::client::cluster::Cluster;
use crate::clock;
use crate::credentials::Credentials;
use crate::event::EventKind;
use crate::link::ConnectionState;

/// What a discovery has found so far.
#[derive(Default)]
struct Findings {
    /// Why nodes could not be asked.
    errors: Vec<String>,
    /// The views that know no member.
    foreign: Vec<View>,
    /// Whether there was a view that counts.
    heard: bool,
    /// Whether one has changed what was known.
    changed: bool,
    /// The members of which others say what they have to say themselves.
    disputed: BTreeSet<MemberIndex>,
}

impl Cluster {
    /// Asks until a node has answered whose view counts, or all have been asked.
    pub(in crate::client::cluster) async fn discover(self: &Arc<Self>) -> Explained {
        self.discoveries
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut candidates = self.candidates();
        let began = clock::now();
        let mut found = Findings::default();
        let given = self.given().await;
        let refused = given.as_ref().err().map(ToString::to_string);
        found.errors.extend(refused);
        // What was given last may still be good, and nodes are asked only who serves.
        let last = || self.last_given.lock().clone();
        let given = given.or_else(|error| last().map(Some).ok_or(error));
        if given.is_err() {
            candidates.clear();
        }
        let credentials = given.as_ref().ok().and_then(Option::as_ref);
        self.ask_candidates(candidates, credentials, &mut found)
            .await;
        self.take_in_foreign(began, &mut found);
        let most = if given.is_ok() { AT_MOST } else { 0 };
        self.ask_themselves(most, credentials, &mut found).await;
        if !found.heard {
            self.known.lock().error = Some(found.errors.join("; ").into());
            self.tell_state();
            self.version.send_modify(|version| *version += 1);
        }
        let in_doubt = !self.doubted().is_empty();
        match found.heard && !in_doubt {
            true if found.changed => Explained::Yes,
            true if self.is_well() => Explained::AllWell,
            _ => Explained::NotYet,
        }
    }

    /// Asks some at a time, from the last, until a view counts or all have been asked.
    async fn ask_candidates(
        self: &Arc<Self>,
        mut candidates: Vec<Endpoint>,
        credentials: Option<&Credentials>,
        found: &mut Findings,
    ) {
        let mut waves = 0;
        while !candidates.is_empty() && !found.heard && (found.foreign.is_empty() || waves < WAVES)
        {
            waves += 1;
            let wave = candidates.split_off(candidates.len().saturating_sub(AT_ONCE));
            let Findings {
                errors,
                foreign,
                heard,
                changed,
                disputed,
            } = found;
            self.ask_each(wave, credentials, errors, &mut |view: View| {
                if self.is_foreign(&view) {
                    foreign.push(view);
                    return false;
                }
                let changes = self.believe(&view);
                *heard |= changes.ignored.is_none();
                *changed |= !changes.is_empty();
                disputed.extend(changes.disputed);
                true
            })
            .await;
        }
    }

    /// Takes views in that know no member, if none of those that were known is there any more: the
    /// cluster was made anew.
    fn take_in_foreign(self: &Arc<Self>, began: Instant, found: &mut Findings) {
        let made_anew = self.is_left_by_all_since(began);
        for (nth, view) in found.foreign.iter().enumerate() {
            if made_anew && (nth == 0 || !self.is_foreign(view)) {
                if self.is_foreign(view) {
                    self.tell_of_stranger(view, true);
                }
                let changes = self.believe(view);
                found.heard |= changes.ignored.is_none();
                found.changed |= !changes.is_empty();
            } else if !made_anew {
                self.tell_of_stranger(view, false);
            }
        }
    }

    /// Asks those whose own word decides what others contradict each other about, so many at most.
    async fn ask_themselves(
        self: &Arc<Self>,
        most: usize,
        credentials: Option<&Credentials>,
        found: &mut Findings,
    ) {
        let mut asked: Vec<Endpoint> = {
            let known = self.known.lock();
            let members = found.disputed.iter();
            let members = members.map(|index| known.topology.member(*index));
            members
                .filter_map(|member| member.endpoint.clone())
                .collect()
        };
        asked.extend(self.doubted().iter().map(|node| node.endpoint()));
        asked.extend(self.to_be_asked());
        self.shared.rng().shuffle(&mut asked);
        asked.truncate(most);
        for wave in asked.chunks(AT_ONCE) {
            let Findings {
                errors, changed, ..
            } = found;
            self.ask_each(wave.to_vec(), credentials, errors, &mut |view: View| {
                let counts = !self.is_foreign(&view);
                if counts {
                    *changed |= !self.believe(&view).is_empty();
                }
                counts
            })
            .await;
        }
    }

    /// Whether every owner of slots that was asked for something serves.
    fn is_well(&self) -> bool {
        let owners = self.routes.owners();
        let mut nodes = owners.iter().filter_map(|owner| self.routes.node(*owner));
        self.routes.is_covered() && nodes.all(|node| node.client.state() == ConnectionState::Ready)
    }

    /// Whether a view is of another cluster than the one that is known, or of that one made anew.
    fn is_foreign(&self, view: &View) -> bool {
        self.known.lock().topology.is_foreign(view)
    }

    /// Whether no node has answered since then that knows a member, in service or not.
    fn is_left_by_all_since(&self, began: Instant) -> bool {
        let known = self.known.lock();
        known.kin_heard.is_none_or(|heard| heard < began)
    }

    /// Tells, once of each node, that a seed leads to another cluster, and whether that one is
    /// taken for ours, made anew. Its nodes may have got the addresses of ours.
    fn tell_of_stranger(&self, view: &View, believed: bool) {
        let mut nodes = view.report.nodes.iter();
        let port = nodes.find(|node| node.is_myself).map(|node| node.port);
        let address = match port {
            Some(port) => format!("{}:{port}", view.host),
            None => view.host.to_string(),
        };
        let id = view.by.as_ref().map_or("", NodeId::as_str).to_owned();
        {
            let strangers = &mut self.known.lock().strangers;
            if strangers.len() == STRANGERS {
                strangers.clear();
            }
            if !strangers.insert((id.clone(), believed)) {
                return;
            }
        }
        let told = EventKind::OtherCluster {
            address,
            id,
            believed,
        };
        self.shared.hub.emit(0, told);
    }

    /// Asks these nodes, and hands on what they answer. The others of them may still answer for a
    /// moment once one has whose answer counts.
    async fn ask_each(
        self: &Arc<Self>,
        wave: Vec<Endpoint>,
        credentials: Option<&Credentials>,
        errors: &mut Vec<String>,
        take_in: &mut (dyn FnMut(View) -> bool + Send),
    ) {
        let limit = self.settings().connect_timeout;
        let asks = wave.into_iter().map(|endpoint| async move {
            let (cluster, at) = (Arc::clone(self), endpoint.clone());
            let credentials = credentials.cloned();
            let ask = async move { cluster.ask(&at, credentials.as_ref()).await };
            // DNS, and TCP, TLS and the answers of the slowest of its addresses.
            let limit = limit.saturating_mul(4);
            let answer = self.shared.apart(&self.asks, limit, ask).await;
            (endpoint, answer)
        });
        let mut asks: FuturesUnordered<_> = asks.collect();
        let mut until = None;
        loop {
            let next = asks.next();
            let next = match until {
                None => next.await,
                Some(until) => clock::timeout_at(until, next).await.flatten(),
            };
            match next {
                None => return,
                Some((_, Ok(view))) => {
                    if take_in(view) {
                        until.get_or_insert(clock::now() + FOR_OTHERS);
                    }
                }
                Some((endpoint, Err(error))) => {
                    tracing::debug!(node = %endpoint, %error, "a node of the cluster cannot be asked");
                    errors.push(format!("{endpoint}: {error}"));
                }
            }
        }
    }
}
