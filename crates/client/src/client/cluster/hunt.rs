//! Abandoned connections on a node that was left.
//!
//! What was written to one may still be on its way, and be applied there when the slot has long
//! come back. So they are killed on their own server, however long it takes to answer again, by a
//! connection for that purpose; one that was restarted meanwhile knows them no more. Should the
//! node be in service again before that, its first connection kills them ahead of its first
//! command.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use steadfast_core::node::NodeId;

use crate::client::Client;
use crate::clock;
use crate::event::EventKind;
use crate::link::fence::Fence;
use crate::link::shared::Shared;
use crate::wire::identity::Identity;

/// The first pause between two attempts, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The most attempts: for about half an hour, after which no network delivers anything any more.
const ATTEMPTS: u32 = 64;
/// The most that are remembered of one node. The oldest is forgotten then.
const MOST: usize = 256;

/// The abandoned connections that nobody has had killed yet, on nodes that were left.
#[derive(Debug)]
pub(super) struct LeftBehind {
    /// The client of the whole: hunts end with it.
    whole: Weak<Shared>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_node: BTreeMap<NodeId, Vec<Identity>>,
    /// The nodes on which they are hunted now.
    hunted: BTreeSet<NodeId>,
}

/// The only hunt on a node. However it ends, by a panic or with its runtime too, another may begin
/// afterwards.
struct Hunt<'a> {
    left_behind: &'a LeftBehind,
    node: &'a NodeId,
    /// Whether it has ended: another may have begun since.
    is_over: bool,
}

impl Drop for Hunt<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.left_behind.state.lock().hunted.remove(self.node);
        }
    }
}

impl LeftBehind {
    pub(super) fn new(whole: &Arc<Shared>) -> Self {
        Self {
            whole: Arc::downgrade(whole),
            state: Mutex::default(),
        }
    }

    /// Returns those on this node.
    pub(super) fn on(&self, node: &NodeId) -> Vec<Identity> {
        let state = self.state.lock();
        state.by_node.get(node).cloned().unwrap_or_default()
    }

    /// Has what a node's client has abandoned killed there. The client has been closed.
    pub(super) async fn hunt(&self, id: &NodeId, node: &Client) {
        let shared = &node.inner.shared;
        if !self.add(id, shared.fences.abandoned()) {
            return;
        }
        let Some(mut hunt) = self.begin(id) else {
            return;
        };
        let limit = shared.settings.connect_timeout;
        let connector = Arc::new(node.inner.connector.of_any_role());
        let mut pause = PAUSES.0;
        for _ in 0..ATTEMPTS {
            let abandoned = self.on(id);
            let asked = connector.dialled(connector.ask(limit, abandoned.clone()));
            match asked.await {
                Ok(connected) => {
                    for (identity, fence) in abandoned.iter().zip(&connected.fences) {
                        if *fence == Fence::Done {
                            let id = identity.id;
                            shared.hub.emit(0, EventKind::Fenced { id });
                        }
                    }
                    if hunt.has_killed(&abandoned) {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "abandoned connections cannot be killed yet"),
            }
            clock::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            let ends = |whole: Arc<Shared>| whole.is_closing();
            if self.whole.upgrade().is_none_or(ends) {
                return;
            }
        }
        hunt.give_up();
    }

    /// Begins a hunt on this node, if nobody is at it.
    fn begin<'a>(&'a self, node: &'a NodeId) -> Option<Hunt<'a>> {
        let is_first = self.state.lock().hunted.insert(node.clone());
        is_first.then_some(Hunt {
            left_behind: self,
            node,
            is_over: false,
        })
    }

    /// Remembers these; false if there are none of that node.
    pub(super) fn add(&self, node: &NodeId, abandoned: Vec<Identity>) -> bool {
        let by_node = &mut self.state.lock().by_node;
        if abandoned.is_empty() {
            return by_node.contains_key(node);
        }
        let known = by_node.entry(node.clone()).or_default();
        let new = abandoned.into_iter().filter(|one| !known.contains(one));
        let new: Vec<_> = new.collect();
        known.extend(new);
        let over = known.len().saturating_sub(MOST);
        known.drain(..over);
        true
    }
}

impl Hunt<'_> {
    /// Forgets these; true if there are no others of that node, which ends the hunt.
    fn has_killed(&mut self, killed: &[Identity]) -> bool {
        let state = &mut *self.left_behind.state.lock();
        if let Some(known) = state.by_node.get_mut(self.node) {
            known.retain(|one| !killed.contains(one));
            if !known.is_empty() {
                return false;
            }
            state.by_node.remove(self.node);
        }
        state.hunted.remove(self.node);
        self.is_over = true;
        true
    }

    /// Forgets all of that node, and ends.
    fn give_up(mut self) {
        let state = &mut *self.left_behind.state.lock();
        state.by_node.remove(self.node);
        state.hunted.remove(self.node);
        self.is_over = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(id: i64) -> Identity {
        Identity {
            id,
            ..Identity::nobody()
        }
    }

    #[test]
    fn t22_a_hunt_that_was_broken_off_keeps_no_other_from_beginning() {
        let left_behind = LeftBehind {
            whole: Weak::new(),
            state: Mutex::default(),
        };
        let node = &NodeId::new("a").expect("an id");
        assert!(!left_behind.add(node, Vec::new()), "there is nobody");
        assert!(left_behind.add(node, vec![one(1)]));
        let hunt = left_behind.begin(node).expect("nobody is at it");
        assert!(left_behind.begin(node).is_none(), "one is at it");
        // As by the end of its runtime.
        drop(hunt);
        assert!(left_behind.add(node, Vec::new()), "it is not forgotten");
        let mut hunt = left_behind.begin(node).expect("it is over");
        assert!(left_behind.add(node, vec![one(2)]));
        assert!(!hunt.has_killed(&[one(1)]), "one has come since");
        assert!(hunt.has_killed(&[one(2)]));
        // Another that begins now stays the only one when the first goes.
        let other = left_behind.begin(node).expect("the first is over");
        drop(hunt);
        assert!(left_behind.begin(node).is_none());
        other.give_up();
        assert!(left_behind.begin(node).is_some());
    }
}
