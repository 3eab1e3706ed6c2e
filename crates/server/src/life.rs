//! Where the service is in its life, and what keeps it from ending: requests and event streams that
//! are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::now;
use crate::health::Phase;
use crate::shutdown::Shutdown;

/// The life of one service.
#[derive(Debug)]
pub(crate) struct Life {
    phase: AtomicU8,
    shutdown: RwLock<Shutdown>,
    started: Instant,
    in_flight: AtomicUsize,
    /// A permit for each event stream that may be open.
    streams: Arc<Semaphore>,
    most_streams: usize,
}

impl Life {
    /// A service that starts now, and keeps so many event streams at once.
    pub(crate) fn new(most_streams: usize) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            shutdown: RwLock::default(),
            started: now(),
            in_flight: AtomicUsize::new(0),
            streams: Arc::new(Semaphore::new(most_streams)),
            most_streams,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Relaxed))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.phase() == Phase::Draining
    }

    /// Requests are answered from now on, until `shutdown` begins.
    pub(crate) fn serving(&self, shutdown: &Shutdown) {
        *self.shutdown.write() = shutdown.clone();
        self.phase.store(Phase::Serving as u8, Relaxed);
    }

    /// Begins the end: the service is not ready from now on.
    pub(crate) fn draining(&self) {
        self.phase.store(Phase::Draining as u8, Relaxed);
    }

    pub(crate) fn shutdown(&self) -> Shutdown {
        self.shutdown.read().clone()
    }

    pub(crate) fn uptime(&self) -> Duration {
        now().saturating_duration_since(self.started)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Counts a request until what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight {
            life: Arc::clone(self),
        }
    }

    /// Takes the permit of one event stream; `None` if as many are open as may be.
    pub(crate) fn open_stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }

    pub(crate) fn stream_count(&self) -> usize {
        self.most_streams - self.streams.available_permits()
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    life: Arc<Life>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.life.in_flight.fetch_sub(1, Relaxed);
    }
}
