//! Abandoned connections on a node that was left.
//!
//! What was written to one may still be on its way, and be applied there when the slot has long
//! come back. So they are killed on their own server, however long it takes to answer again, by a
//! connection for that purpose; one that was restarted meanwhile knows them no more. Should the
//! node be in service again before that, its first connection kills them ahead of its first
//! command.

use std::collections::BTreeMap;
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
    by_node: Mutex<BTreeMap<NodeId, Vec<Identity>>>,
}

impl LeftBehind {
    pub(super) fn new(whole: &Arc<Shared>) -> Self {
        Self {
            whole: Arc::downgrade(whole),
            by_node: Mutex::default(),
        }
    }

    /// Returns those on this node.
    pub(super) fn on(&self, node: &NodeId) -> Vec<Identity> {
        let by_node = self.by_node.lock();
        by_node.get(node).cloned().unwrap_or_default()
    }

    /// Has what a node's client has abandoned killed there. The client has been closed.
    pub(super) async fn hunt(&self, id: &NodeId, node: &Client) {
        let shared = &node.inner.shared;
        if !self.add(id, shared.fences.abandoned()) {
            return;
        }
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
                    if self.remove(id, &abandoned) {
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
        self.by_node.lock().remove(id);
    }

    /// Remembers these; false if there are none, or others of that node are hunted already.
    fn add(&self, node: &NodeId, abandoned: Vec<Identity>) -> bool {
        if abandoned.is_empty() {
            return false;
        }
        let mut by_node = self.by_node.lock();
        let known = by_node.entry(node.clone()).or_default();
        let is_first = known.is_empty();
        let new = abandoned.into_iter().filter(|one| !known.contains(one));
        let new: Vec<_> = new.collect();
        known.extend(new);
        let over = known.len().saturating_sub(MOST);
        known.drain(..over);
        is_first
    }

    /// Forgets these; true if there are no others of that node.
    fn remove(&self, node: &NodeId, killed: &[Identity]) -> bool {
        let mut by_node = self.by_node.lock();
        let Some(known) = by_node.get_mut(node) else {
            return true;
        };
        known.retain(|one| !killed.contains(one));
        let over = known.is_empty();
        if over {
            by_node.remove(node);
        }
        over
    }
}
