//! The end of a client: what is under way may be answered first.

use std::sync::Arc;
use std::time::Duration;

use super::Client;
use crate::clock;
use crate::event::EventKind;
use crate::link::ConnectionState;
use crate::wire::queue::{DriverCommand, Gate};

/// The result of [`Client::close`]: what it could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "calls that were not finished may or may not have taken effect"]
pub struct CloseReport {
    /// Calls that were not finished in time; each was told what is known of it.
    pub unfinished: usize,
}

impl Client {
    /// Refuses what is new, waits for what is in flight up to `deadline`, and ends the connections,
    /// those of sessions, blocking calls and subscriptions too: a [`PubSub`](crate::PubSub) yields
    /// what it has heard, and then `None`. Whoever closes it once more waits for the same and finds
    /// nothing unfinished; the event [`Closed`](EventKind::Closed) comes once.
    pub async fn close(&self, deadline: Duration) -> CloseReport {
        let inner = &*self.inner;
        let shared = &inner.shared;
        shared.close();
        inner.blocking.close();
        for link in &shared.links {
            link.queue.refuse_new();
        }
        for queue in shared.fences.dedicated_queues() {
            queue.refuse_new();
        }
        let in_flight = || -> usize {
            let links = shared.links.iter().map(|link| link.queue.in_flight());
            let dedicated = shared.fences.dedicated_queues();
            links.sum::<usize>()
                + dedicated
                    .iter()
                    .map(|queue| queue.in_flight())
                    .sum::<usize>()
        };
        let drained = async {
            while in_flight() > 0 {
                clock::sleep(Duration::from_millis(1)).await;
            }
        };
        let of_nodes = self.close_nodes(deadline);
        let (_, of_nodes) = tokio::join!(clock::timeout(deadline, drained), of_nodes);
        let unfinished = in_flight() + of_nodes;
        let closed: Arc<str> = "the client was closed".into();
        for queue in shared.fences.dedicated_queues() {
            queue.command(DriverCommand::Abandon(Arc::clone(&closed)));
        }
        for link in &shared.links {
            link.set_state(ConnectionState::Closed, clock::now());
            link.queue.set_gate(Gate::Closed);
            link.queue
                .command(DriverCommand::Abandon(Arc::clone(&closed)));
        }
        let tasks = inner.home.take_tasks();
        // It was closed before, and that was told.
        if tasks.is_empty() {
            return CloseReport { unfinished: 0 };
        }
        if inner.cluster.is_some() {
            drop(tasks);
            shared.hub.emit(0, EventKind::Closed { unfinished });
            return CloseReport { unfinished };
        }
        // They end by themselves and tell each call what is known of it; whatever does not is
        // ended.
        let ended = async {
            for task in tasks {
                task.ended().await;
            }
        };
        let _ = clock::timeout(LAST_WORDS, ended).await;
        shared.hub.emit(0, EventKind::Closed { unfinished });
        CloseReport { unfinished }
    }

    /// Closes the nodes of a cluster. Returns how many calls they have not finished.
    async fn close_nodes(&self, deadline: Duration) -> usize {
        let nodes = self.nodes();
        let closes = nodes.iter().map(|node| Box::pin(node.close(deadline)));
        let closed = futures_util::future::join_all(closes).await;
        closed.iter().map(|closed| closed.unfinished).sum()
    }
}

/// The time that the tasks of a closed client may take to end.
const LAST_WORDS: Duration = Duration::from_millis(250);
