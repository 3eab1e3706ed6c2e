//! The time without a connection: calls wait for a while, then they are refused.

use std::sync::Arc;
use std::time::Instant;

use crate::clock;
use crate::event::EventKind;
use crate::link::shared::Shared;
use crate::link::{ConnectionState, Link};
use crate::wire::queue::{Gate, Outage};

/// The grace in which calls wait for a connection: keeps their deadlines, and turns them away when
/// it is spent.
pub(super) struct GracePeriod {
    pub(super) link: Arc<Link>,
    pub(super) shared: Arc<Shared>,
    pub(super) grace_until: Option<Instant>,
}

impl GracePeriod {
    /// Does the work meanwhile. Returns `None` if the client was closed.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let link = Arc::clone(&self.link);
        let mut work = std::pin::pin!(work);
        let mut deadlines = std::pin::pin!(link.queue.keep_deadlines());
        let mut closed = std::pin::pin!(link.closed());
        loop {
            let spent = async {
                match self.grace_until {
                    Some(until) => clock::sleep_fairly_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut closed => return None,
                result = &mut work => return Some(result),
                () = spent => {
                    self.grace_until = None;
                    go_down(&self.shared, &self.link, None);
                }
                () = &mut deadlines => {}
            }
        }
    }
}

/// Refuses calls from now on. Told once per outage.
pub(super) fn go_down(shared: &Shared, link: &Link, cause: Option<Arc<str>>) {
    if link.state() == ConnectionState::Down {
        return;
    }
    let now = clock::now();
    let (since, cause) = {
        let mut view = link.view.lock();
        let since = *view.outage_since.get_or_insert(now);
        let cause = cause
            .or_else(|| view.last_error.clone())
            .unwrap_or_else(|| "not connected yet".into());
        (since, cause)
    };
    let outage = Arc::new(Outage {
        since,
        cause: Arc::clone(&cause),
    });
    let soon = now + shared.settings.reconnect.longest(1);
    link.queue.set_gate(Gate::Down(outage, soon));
    link.set_state(ConnectionState::Down, now);
    shared.hub.emit(link.index, EventKind::Down { cause });
}
