//! The watchdog of a supervisor.

use std::sync::Arc;
use std::time::Duration;

use super::Supervisor;
use crate::clock;
use crate::link::alive::Alive;
use crate::link::connect::Connector;
use crate::link::shared::Shared;
use crate::link::{ConnectionState, Link};
use crate::task::Owned;

/// Keeps a supervisor running: starts it anew if it ends or makes no progress. Ends when the client
/// is closed.
pub(crate) async fn watchdog(
    shared: Arc<Shared>,
    link: Arc<Link>,
    connector: Arc<Connector>,
    alive: Arc<Alive>,
) {
    let every = (shared.settings.watchdog_timeout / 4).min(Duration::from_secs(1));
    while link.state() != ConnectionState::Closed {
        let supervisor = Supervisor::new(
            Arc::clone(&shared),
            Arc::clone(&link),
            Arc::clone(&connector),
            Arc::clone(&alive),
        );
        let mut task = Owned::new(tokio::spawn(supervisor.run()));
        let began = clock::now();
        loop {
            let ended = tokio::select! {
                biased;
                _ = &mut task => true,
                () = tokio::time::sleep(every) => false,
            };
            let now = clock::now();
            shared.hub.settle(link.index);
            let overdue = link.stuck_at.lock().is_some_and(|at| at <= now);
            if (ended || overdue) && link.state() != ConnectionState::Closed {
                shared.stuck(&link, now.saturating_duration_since(began));
            }
            if ended || overdue {
                *link.stuck_at.lock() = None;
                break;
            }
        }
    }
}
