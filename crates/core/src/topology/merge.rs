//! Taking in the answer of one node.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::{Member, MemberIndex, Rival, SlotState, Topology};
use crate::node::{Endpoint, NodeId};
use crate::report::{ClusterInfo, ClusterReport, ReportedNode, ReportedRole};
use crate::slot::{Slot, SlotRange};

/// The answer of one node to the question who owns what.
#[derive(Clone, Debug)]
pub struct View {
    /// The node that answered, where it is known: from `CLUSTER MYID`, or as `myself` in `CLUSTER
    /// NODES`.
    pub by: Option<NodeId>,
    /// The host under which the node was asked.
    pub host: Arc<str>,
    /// When the question was sent.
    pub asked: Instant,
    /// When the answer came.
    pub heard: Instant,
    /// Whether the connections speak TLS, so that the ports for it count.
    pub tls: bool,
    /// The nodes and slots.
    pub report: ClusterReport,
    /// The standing of the node that answered, from the same write as the question for the report.
    /// `None` where that may not be asked: then the view is judged by what the report tells.
    pub info: Option<ClusterInfo>,
}

impl View {
    /// Returns why the view is not to be believed at all, if so.
    pub fn why_ignored(&self) -> Option<Ignored> {
        if !self.serves() {
            return Some(Ignored::NotServing);
        }
        let empty = self.report.nodes.iter().all(|node| node.slots.is_empty());
        empty.then_some(Ignored::Empty)
    }

    /// Whether the node that answered serves: by its own word, else by the rule by which it would
    /// say so, that most of the primaries which own slots are well.
    fn serves(&self) -> bool {
        if let Some(info) = &self.info {
            return info.is_ok;
        }
        let nodes = self.report.nodes.iter();
        let owners = nodes.filter(|node| !node.slots.is_empty());
        let (well, away): (Vec<_>, Vec<_>) = owners.partition(|node| !node.is_failing);
        well.len() > away.len() || away.is_empty()
    }

    /// The cluster's epoch: of its nodes' the highest, where it is not told itself.
    fn current_epoch(&self) -> Option<u64> {
        match &self.info {
            Some(info) => Some(info.current_epoch),
            None => (self.report.nodes.iter())
                .filter_map(|node| node.epoch)
                .max(),
        }
    }
}

/// The differences that a view has made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Why the view was not believed at all.
    pub ignored: Option<Ignored>,
    /// The slots that have another owner now.
    pub slots: Vec<SlotRange>,
    /// The nodes that are new.
    pub joined: Vec<MemberIndex>,
    /// The nodes that no longer belong to the cluster, and own nothing.
    pub left: Vec<MemberIndex>,
    /// The nodes that have another endpoint now: connections to the old one are to be replaced.
    pub relocated: Vec<MemberIndex>,
    /// The nodes whose own word is needed, because others contradict each other about them.
    pub disputed: Vec<MemberIndex>,
    /// The nodes that found no place, because 1024 are known.
    pub refused: usize,
}

impl Changes {
    /// Returns whether the view has told anything new, so that what triggered the discovery may be
    /// explained.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
            && self.joined.is_empty()
            && self.left.is_empty()
            && self.relocated.is_empty()
    }
}

/// Why a view was not believed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The node that answered does not serve (`cluster_state:fail`): it may have been cut off for
    /// long.
    NotServing,
    /// The view has no slots, as that of a node which has just been started.
    Empty,
}

/// The word of a view about one slot.
struct Claim {
    owner: MemberIndex,
    epoch: Option<u64>,
    cluster_epoch: Option<u64>,
    by: Option<MemberIndex>,
    asked: Instant,
    heard: Instant,
    /// The claimed owner was known as a primary before this view.
    was_primary: bool,
    /// The view does not know the owner that is known here.
    owner_is_unknown: bool,
}

/// The judgement of a claim.
#[derive(Debug, PartialEq, Eq)]
enum ClaimVerdict {
    Confirmed,
    Accepted,
    Refused,
    /// The claimed owner itself has to say so.
    Disputed,
}

impl Topology {
    /// Takes in the answer of a node, and returns what it has changed.
    pub fn merge(&mut self, view: &View) -> Changes {
        let mut changes = Changes {
            ignored: view.why_ignored(),
            ..Changes::default()
        };
        if changes.ignored.is_some() {
            return changes;
        }
        let epoch = view.current_epoch();
        let newest = epoch.is_none_or(|epoch| epoch >= self.current_epoch);
        self.current_epoch = self.current_epoch.max(epoch.unwrap_or_default());
        let primaries: HashSet<MemberIndex> = (self.members())
            .filter(|(_, member)| member.is_primary && member.id.is_some())
            .map(|(index, _)| index)
            .collect();
        let told: Vec<Option<MemberIndex>> = (view.report.nodes.iter())
            .map(|node| self.take_in(node, view, &mut changes))
            .collect();
        let named: HashSet<MemberIndex> = told.iter().flatten().copied().collect();
        let by = (view.report.nodes.iter().zip(&told))
            .find(|(node, _)| node.is_myself)
            .and_then(|(_, index)| *index)
            .or_else(|| self.find(view.by.as_ref()?));
        let (mut changed, mut disputed) = (BTreeSet::new(), BTreeSet::new());
        for (node, owner) in view.report.nodes.iter().zip(&told) {
            let (ReportedRole::Primary, Some(owner)) = (&node.role, *owner) else {
                continue;
            };
            for slot in node.slots.iter().flat_map(|range| range.slots()) {
                let known = self.slots[slot.index()].owner;
                let claim = Claim {
                    owner,
                    epoch: node.epoch,
                    cluster_epoch: epoch,
                    by,
                    asked: view.asked,
                    heard: view.heard,
                    was_primary: primaries.contains(&owner),
                    owner_is_unknown: known.is_some_and(|known| !named.contains(&known)),
                };
                match self.claim(slot, &claim) {
                    ClaimVerdict::Accepted => drop(changed.insert(slot)),
                    ClaimVerdict::Disputed => drop(disputed.insert(owner)),
                    ClaimVerdict::Confirmed | ClaimVerdict::Refused => {}
                }
            }
        }
        changes.slots = SlotRange::join(changed);
        changes.disputed = disputed.into_iter().collect();
        if newest && view.report.is_exhaustive && view.report.faults.is_empty() {
            self.notice_absence(&named, &mut changes);
        }
        changes
    }

    /// Returns whether a view names none of the nodes that belong to the cluster: it is of another
    /// one, or this one was made anew. Whoever asks several nodes at once does not
    /// [`merge`](Self::merge) it while one answers that knows a member.
    pub fn is_foreign(&self, view: &View) -> bool {
        let mut members = self.members();
        members.any(|(_, member)| is_known(member)) && !self.is_kin(view)
    }

    /// Returns whether a view names a node that belongs to the cluster, or tells no identities by
    /// which that could be known. A node that knows of no slots has left its cluster.
    pub fn is_kin(&self, view: &View) -> bool {
        let nodes = &view.report.nodes;
        let is_member = |node: &ReportedNode| match &node.id {
            None => true,
            Some(id) => self.find(id).is_some_and(|at| is_known(self.member(at))),
        };
        nodes.iter().any(|node| !node.slots.is_empty()) && nodes.iter().any(is_member)
    }

    /// Finds or adds a node of a view.
    fn take_in(
        &mut self,
        node: &ReportedNode,
        view: &View,
        changes: &mut Changes,
    ) -> Option<MemberIndex> {
        let port = match node.tls_port {
            Some(tls) if view.tls => tls,
            _ => node.port,
        };
        let host = node.host.resolve(&view.host).filter(|_| port != 0);
        let endpoint = host.map(|host| Endpoint { host, port });
        let others: Vec<Endpoint> = (node.other_hosts.iter().cloned())
            .map(|host| Endpoint { host, port })
            .filter(|other| port != 0 && Some(other) != endpoint.as_ref())
            .collect();
        let index = match self.lookup(node.id.as_ref(), endpoint.as_ref(), &others) {
            Some(index) => index,
            // For one of them there was no place, and none has become free.
            None if changes.refused > 0 => {
                changes.refused += 1;
                return None;
            }
            None => {
                let Some(index) = self.add(node.id.clone(), endpoint.clone(), view.asked) else {
                    changes.refused += 1;
                    return None;
                };
                changes.joined.push(index);
                index
            }
        };
        let member = &mut self.members[index.index()];
        if view.asked >= member.located {
            member.located = view.asked;
            // One that the others have forgotten does not know that.
            let own_word = node.is_myself && node.slots.is_empty();
            member.is_present |= !own_word;
            member.is_failing = node.is_failing;
            member.is_failed = node.is_failed;
            member.is_primary = node.role == ReportedRole::Primary;
            member.follows = match &node.role {
                ReportedRole::Primary => None,
                ReportedRole::Replica(primary) => primary.clone(),
            };
            if node.hostname.is_some() {
                member.hostname.clone_from(&node.hostname);
            }
            if endpoint.is_some() {
                member.other_endpoints = others;
            }
            // Of a node whose address is not known to the one that answered, the last one stays.
            if endpoint.is_some() && member.endpoint != endpoint {
                if member.endpoint.is_some() {
                    changes.relocated.push(index);
                }
                member.endpoint = endpoint;
            }
        }
        member.epoch = member.epoch.max(node.epoch);
        Some(index)
    }

    /// The known node of this id; else the one of which only a redirect has told, if it is at this
    /// endpoint or one of the others.
    fn lookup(
        &mut self,
        id: Option<&NodeId>,
        endpoint: Option<&Endpoint>,
        others: &[Endpoint],
    ) -> Option<MemberIndex> {
        let Some(id) = id else {
            return self.at(endpoint?);
        };
        let known = self.find(id);
        let is_there = |at: &Endpoint| Some(at) == endpoint || others.contains(at);
        let anonymous = self
            .members()
            .find(|(_, member)| {
                member.id.is_none() && member.endpoint.as_ref().is_some_and(is_there)
            })
            .map(|(index, _)| index);
        match (known, anonymous) {
            (known, None) => known,
            (None, Some(anonymous)) => {
                self.members[anonymous.index()].id = Some(id.clone());
                self.by_id.insert(id.clone(), anonymous);
                Some(anonymous)
            }
            // Redirects have led to a new endpoint of a node that was known.
            (Some(known), Some(anonymous)) => {
                for state in &mut self.slots {
                    if state.owner == Some(anonymous) {
                        state.owner = Some(known);
                    }
                }
                let left_over = &mut self.members[anonymous.index()];
                left_over.endpoint = None;
                left_over.is_present = false;
                Some(known)
            }
        }
    }

    /// Decides on what a view says of a slot.
    fn claim(&mut self, slot: Slot, claim: &Claim) -> ClaimVerdict {
        let state = &mut self.slots[slot.index()];
        let verdict = judge(state, claim);
        match verdict {
            ClaimVerdict::Confirmed => {
                state.epoch = state.epoch.max(claim.epoch);
                state.cluster_epoch = state.cluster_epoch.max(claim.cluster_epoch);
                if claim.by == Some(claim.owner) {
                    state.rival = None;
                }
            }
            ClaimVerdict::Accepted => {
                let disowned = state.owner.filter(|owner| claim.by == Some(*owner));
                let kept = state.disowned_by.filter(|node| *node != claim.owner);
                *state = SlotState {
                    owner: Some(claim.owner),
                    epoch: claim.epoch,
                    cluster_epoch: claim.cluster_epoch,
                    disowned_by: disowned.or(kept),
                    // A redirect in answer to what was sent before may be older than this.
                    since: Some(claim.heard),
                    redirected: None,
                    rival: None,
                };
            }
            ClaimVerdict::Disputed => {
                state.rival = Some(Rival {
                    owner: claim.owner,
                    by: claim.by,
                });
            }
            ClaimVerdict::Refused => {}
        }
        verdict
    }

    /// Marks the nodes that a whole and new view does not name.
    fn notice_absence(&mut self, named: &HashSet<MemberIndex>, changes: &mut Changes) {
        let mut owns = vec![false; self.members.len()];
        for owner in self.slots.iter().filter_map(|state| state.owner) {
            owns[owner.index()] = true;
        }
        let absent = (self.members.iter_mut().zip(owns).enumerate())
            .filter(|(_, (member, owns))| member.is_present && !owns)
            .filter_map(|(at, (member, _))| Some((MemberIndex(u16::try_from(at).ok()?), member)));
        for (index, member) in absent.filter(|(index, _)| !named.contains(index)) {
            member.is_present = false;
            changes.left.push(index);
        }
    }
}

fn is_known(member: &Member) -> bool {
    member.is_present && member.id.is_some()
}

/// The rules of the module above, for one slot.
fn judge(state: &SlotState, claim: &Claim) -> ClaimVerdict {
    let Some(owner) = state.owner else {
        return ClaimVerdict::Accepted;
    };
    if owner == claim.owner {
        return ClaimVerdict::Confirmed;
    }
    if state.redirected.is_some_and(|at| claim.asked <= at) {
        return ClaimVerdict::Refused;
    }
    let own_word = claim.by == Some(claim.owner);
    let gives_away = claim.by == Some(owner);
    let age = match (claim.epoch, state.epoch) {
        (Some(claimed), Some(known)) => Some(claimed.cmp(&known)),
        _ => (claim.cluster_epoch.zip(state.cluster_epoch))
            .map(|(claimed, known)| claimed.cmp(&known)),
    };
    let by_others = !own_word && !gives_away;
    let disowned = state.disowned_by == Some(claim.owner);
    let seconded = || {
        state.rival.is_some_and(|rival| {
            rival.owner == claim.owner && rival.by != claim.by && claim.by.is_some()
        })
    };
    match age {
        // A cluster that was made anew begins at low epochs; then nobody knows the old owner.
        Some(Ordering::Less) if own_word && claim.owner_is_unknown => ClaimVerdict::Accepted,
        Some(Ordering::Less) => ClaimVerdict::Refused,
        // Nobody tells of epochs. A deposed primary claims its slots too: it takes another node to
        // bear it out.
        None if gives_away || seconded() => ClaimVerdict::Accepted,
        None => ClaimVerdict::Disputed,
        _ if by_others && disowned => ClaimVerdict::Disputed,
        Some(Ordering::Greater) if by_others && claim.was_primary => ClaimVerdict::Disputed,
        Some(Ordering::Greater) => ClaimVerdict::Accepted,
        Some(Ordering::Equal) if !by_others || seconded() => ClaimVerdict::Accepted,
        Some(Ordering::Equal) => ClaimVerdict::Disputed,
    }
}
