//! One discovery: who is asked, until a view counts, and what it changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use steadfast_core::node::{Endpoint, NodeId};
use steadfast_core::policy::Deadline;
use steadfast_core::topology::{Explained, MemberIndex, View};

use super::{AT_MOST, AT_ONCE, FOR_OTHERS, QUESTION, ROUND, SILENT, STRANGERS, UNDER_WAY, WAVES};
use crate::client::cluster::Cluster;
use crate::clock;
use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
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
    /// Whether so many were asked, or all, that a cluster of strangers may be believed.
    enough_asked: bool,
}

/// The nodes that are asked in a round.
struct Questions {
    /// Those to be asked, from the last.
    nodes: Vec<Endpoint>,
    /// The number of those that were.
    asked: usize,
    /// Those that have failed to answer.
    in_vain: Vec<Endpoint>,
    /// After that nobody else is asked.
    until: Instant,
}

/// The worth of a node's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Nobody else need be asked.
    Counts,
    /// It may, if enough others have no answer.
    Aside,
    Other,
}

/// Whether nothing was heard of a node. One that answered may serve in a moment.
fn is_silence(error: &ConnectError) -> bool {
    matches!(
        error,
        ConnectError::Dns { .. }
            | ConnectError::Tcp { .. }
            | ConnectError::Tls { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Ended(_)
    )
}

impl Questions {
    fn of(nodes: Vec<Endpoint>, until: Instant) -> Self {
        Self {
            nodes,
            asked: 0,
            in_vain: Vec::new(),
            until,
        }
    }

    fn take_wave(&mut self) -> Vec<Endpoint> {
        let wave = self
            .nodes
            .split_off(self.nodes.len().saturating_sub(AT_ONCE));
        self.asked += wave.len();
        wave
    }
}

impl Cluster {
    /// Asks until a node has answered whose view counts, all have been asked, or the round has
    /// taken its time.
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
        let limit = self.settings().connect_timeout;
        let until = Deadline::after(clock::now(), limit.saturating_mul(ROUND)).instant();
        self.ask_candidates(candidates, credentials, until, &mut found)
            .await;
        self.take_in_foreign(began, &mut found);
        let most = if given.is_ok() { AT_MOST } else { 0 };
        self.ask_themselves(most, credentials, until, &mut found)
            .await;
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

    /// Asks some at a time, from the last, until a view counts, all have been asked, or the round
    /// has taken its time.
    async fn ask_candidates(
        self: &Arc<Self>,
        candidates: Vec<Endpoint>,
        credentials: Option<&Credentials>,
        until: Instant,
        found: &mut Findings,
    ) {
        let count = candidates.len();
        let Findings {
            errors,
            foreign,
            heard,
            changed,
            disputed,
            ..
        } = found;
        let mut questions = Questions::of(candidates, until);
        self.ask_each(&mut questions, credentials, errors, &mut |view: View| {
            if self.is_foreign(&view) {
                foreign.push(view);
                return Answer::Aside;
            }
            let changes = self.believe(&view);
            *heard |= changes.ignored.is_none();
            *changed |= !changes.is_empty();
            disputed.extend(changes.disputed);
            match *heard {
                true => Answer::Counts,
                false => Answer::Other,
            }
        })
        .await;
        found.enough_asked = questions.asked >= count.min(WAVES * AT_ONCE);
        let in_vain = &mut self.known.lock().asked_in_vain;
        if found.heard || questions.nodes.iter().all(|at| in_vain.contains(at)) {
            in_vain.clear();
        }
        if !found.heard {
            in_vain.extend(questions.in_vain);
        }
    }

    /// Takes views in that know no member, if none of those that were known is there any more: the
    /// cluster was made anew.
    fn take_in_foreign(self: &Arc<Self>, began: Instant, found: &mut Findings) {
        let made_anew = found.enough_asked && self.is_left_by_all_since(began);
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
        until: Instant,
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
        for (number, wave) in asked.chunks(AT_ONCE).enumerate() {
            if number > 0 && clock::now() >= until {
                break;
            }
            let Findings {
                errors, changed, ..
            } = &mut *found;
            let mut questions = Questions::of(wave.to_vec(), until);
            self.ask_each(&mut questions, credentials, errors, &mut |view: View| {
                if self.is_foreign(&view) {
                    return Answer::Other;
                }
                *changed |= !self.believe(&view).is_empty();
                Answer::Counts
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

    /// Asks these nodes, and hands on what they answer: the first at once, others when none of
    /// these is under way any more, or they are silent. Once one has answered whose answer counts,
    /// the others that were asked may still do so for a moment.
    async fn ask_each(
        self: &Arc<Self>,
        questions: &mut Questions,
        credentials: Option<&Credentials>,
        errors: &mut Vec<String>,
        take_in: &mut (dyn FnMut(View) -> Answer + Send),
    ) {
        let mut asks = FuturesUnordered::new();
        let (mut ends, mut is_aside) = (None, false);
        let mut next_wave = clock::now();
        loop {
            let now = clock::now();
            let begins = asks.is_empty() || asks.len() + AT_ONCE <= UNDER_WAY;
            let may_go_on = ends.is_none()
                && !questions.nodes.is_empty()
                && (questions.asked == 0 || now < questions.until)
                && (!is_aside || questions.asked < WAVES * AT_ONCE);
            if may_go_on && begins && (asks.is_empty() || next_wave <= now) {
                let wave = questions.take_wave().into_iter();
                asks.extend(wave.map(|endpoint| self.ask_apart(endpoint, credentials)));
                next_wave = now + SILENT;
                continue;
            }
            let look_at = ends.or((may_go_on && begins).then_some(next_wave));
            let next = match look_at {
                None => asks.next().await,
                Some(at) => match clock::timeout_at(at, asks.next()).await {
                    Some(next) => next,
                    None if ends.is_some() => return,
                    None => continue,
                },
            };
            match next {
                None => return,
                Some((_, Ok(view))) => match take_in(view) {
                    Answer::Counts => {
                        ends.get_or_insert(clock::now() + FOR_OTHERS);
                    }
                    Answer::Aside => is_aside = true,
                    Answer::Other => {}
                },
                Some((endpoint, Err(error))) => {
                    tracing::debug!(node = %endpoint, %error, "a node of the cluster cannot be asked");
                    errors.push(format!("{endpoint}: {error}"));
                    if is_silence(&error) {
                        questions.in_vain.push(endpoint);
                    }
                }
            }
        }
    }

    /// Asks a node in a task of its own.
    async fn ask_apart(
        self: &Arc<Self>,
        endpoint: Endpoint,
        credentials: Option<&Credentials>,
    ) -> (Endpoint, Result<View, ConnectError>) {
        let (cluster, at) = (Arc::clone(self), endpoint.clone());
        let credentials = credentials.cloned();
        let ask = async move { cluster.ask(&at, credentials.as_ref()).await };
        let limit = self.settings().connect_timeout.saturating_mul(QUESTION);
        let answer = self.shared.apart(&self.asks, limit, ask).await;
        (endpoint, answer)
    }
}
