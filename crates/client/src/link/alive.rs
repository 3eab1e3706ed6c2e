//! Sign of life of a client's tasks: when the last of them goes, its links are orphaned.

use std::sync::Arc;

use super::ConnectionState;
use super::shared::Shared;
use crate::clock;

/// Held by each of a client's tasks. When the last one goes, nobody is left to serve the client.
#[derive(Debug)]
pub(crate) struct Alive {
    shared: Arc<Shared>,
}

impl Alive {
    pub(crate) fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let shared = Arc::clone(shared);
        Arc::new(Self { shared })
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let now = clock::now();
        for link in &self.shared.links {
            link.view.lock().outage_since.get_or_insert(now);
            link.set_state(ConnectionState::Connecting, now);
            link.queue.orphan();
        }
    }
}
