//! The runtime that a client's tasks live in, and how they come to live in another.
//!
//! A client may outlive the runtime in which it was built: a `static` does, in a program of several
//! runtimes or in tests that have one each. Then all its tasks are gone, and with them whoever
//! would notice. So the last of them to go marks the client's queues as orphaned, and the next
//! call, finding them so, has the tasks started anew where it runs itself.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::client::cluster::{self, Cluster};
use crate::error::{Error, ErrorKind};
use crate::failover;
use crate::link::alive::Alive;
use crate::link::connect::Connector;
use crate::link::shared::Shared;
use crate::link::supervisor;
use crate::task::{Owned, check_drivers};

/// A client's tasks, which end with it.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connector: Arc<Connector>,
    cluster: Option<Arc<Cluster>>,
    state: Mutex<Tasks>,
}

#[derive(Debug)]
struct Tasks {
    runtime: Handle,
    tasks: Vec<Owned<()>>,
}

impl Home {
    /// Starts the tasks.
    pub(crate) fn new(
        shared: Arc<Shared>,
        connector: Arc<Connector>,
        cluster: Option<Arc<Cluster>>,
        runtime: Handle,
    ) -> Arc<Self> {
        let tasks = start(&shared, &connector, cluster.as_ref(), &runtime);
        let home = Arc::new(Self {
            state: Mutex::new(Tasks { runtime, tasks }),
            shared,
            connector,
            cluster,
        });
        let found = Arc::downgrade(&home);
        home.shared.lives_in(move || match found.upgrade() {
            Some(home) => home.runtime(),
            None => Err(Error::not_sent(ErrorKind::Closed)),
        });
        home
    }

    /// The runtime in which the tasks live: their own, while it lives, or else that of the caller,
    /// where they are started anew.
    ///
    /// # Errors
    /// It has ended, and the caller is in none.
    pub(crate) fn runtime(&self) -> Result<Handle, Error> {
        let mut state = self.state.lock();
        let orphaned = |queue: &crate::wire::queue::SubmitQueue| queue.is_orphaned();
        if self.shared.links.iter().any(|link| orphaned(&link.queue)) {
            let runtime =
                Handle::try_current().map_err(|_| Error::not_sent(crate::wire::queue::ORPHANED))?;
            check_drivers(&runtime).map_err(|_| Error::not_sent(NO_DRIVERS))?;
            for link in &self.shared.links {
                link.queue.adopt();
            }
            state.tasks = start(
                &self.shared,
                &self.connector,
                self.cluster.as_ref(),
                &runtime,
            );
            state.runtime = runtime;
        }
        Ok(state.runtime.clone())
    }

    /// The tasks, if they find out which server serves, for somebody to keep alive.
    pub(crate) fn discovery(self: &Arc<Self>) -> Option<Arc<dyn std::fmt::Debug + Send + Sync>> {
        let discovers = self.cluster.is_some() || self.shared.discovery.is_some();
        discovers.then(|| Arc::clone(self) as _)
    }

    /// Takes the tasks, to wait for their end.
    pub(crate) fn take_tasks(&self) -> Vec<Owned<()>> {
        std::mem::take(&mut self.state.lock().tasks)
    }
}

/// The message for a caller in a runtime in which the tasks cannot go on.
const NO_DRIVERS: ErrorKind = ErrorKind::Runtime {
    why: "the tokio runtime in which it lived has ended, and that of this call has no timers or no \
          IO: call enable_all() on its builder",
};

fn start(
    shared: &Arc<Shared>,
    connector: &Arc<Connector>,
    cluster: Option<&Arc<Cluster>>,
    runtime: &Handle,
) -> Vec<Owned<()>> {
    let alive = Alive::new(shared);
    // Its nodes have tasks of their own.
    if let Some(cluster) = cluster {
        let kept = Arc::clone(cluster);
        let keeps = move || cluster::keep_view(Arc::clone(&kept), Arc::clone(&alive));
        let kept = Arc::clone(cluster);
        let measures = move || cluster::keep_measured(Arc::clone(&kept));
        return vec![
            Owned::new(runtime.spawn(Arc::clone(shared).kept(keeps))),
            Owned::new(runtime.spawn(Arc::clone(shared).kept(measures))),
        ];
    }
    let links = shared.links.iter();
    let discovery = shared.discovery.iter().flat_map(|_| {
        let kept = Arc::clone(shared);
        let watch = move || failover::watch(Arc::clone(&kept));
        let kept = Arc::clone(shared);
        let account = move || failover::keep_account(Arc::clone(&kept));
        [
            Owned::new(runtime.spawn(Arc::clone(shared).kept(watch))),
            Owned::new(runtime.spawn(Arc::clone(shared).kept(account))),
        ]
    });
    let tasks = links.map(|link| {
        let (shared, link) = (Arc::clone(shared), Arc::clone(link));
        let (connector, alive) = (Arc::clone(connector), Arc::clone(&alive));
        Owned::new(runtime.spawn(supervisor::watchdog(shared, link, connector, alive)))
    });
    tasks.chain(discovery).collect()
}
