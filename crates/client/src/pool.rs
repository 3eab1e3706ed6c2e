//! Which connection serves a command: decided by its keys, and by whether it blocks. Nothing else assumes that there is one server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::command::Effect;
use steadfast_core::conn::Reply;
use tokio::sync::{Semaphore, TryAcquireError};

use crate::clock;
use crate::connect::Connector;
use crate::dedicated::Dedicated;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::options::CallOptions;
use crate::plan::{Payload, Plan};
use crate::shared::Shared;

/// The same key, the same connection: so its commands keep their order. Keys with the same hash tag (`{…}`) go together, as in a cluster.
pub(crate) fn lane_of_key(key: &[u8], lanes: usize) -> usize {
    let tag = hash_tag(key);
    // FNV-1a: short, spreads well enough over a handful of connections.
    let hash = tag.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % lanes as u64) as usize
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    match key[open + 1..].iter().position(|byte| *byte == b'}') {
        Some(length) if length > 0 => &key[open + 1..open + 1 + length],
        _ => key,
    }
}

/// A few connections for commands that block, so that nobody else waits behind them.
#[derive(Debug)]
pub(crate) struct Blocking {
    places: Semaphore,
    idle: Mutex<Vec<Dedicated>>,
}

impl Blocking {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            places: Semaphore::new(connections),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Runs one blocking call. Its connection is used again only after a clean answer: one that was given up may still pop an element, and is
    /// killed instead. Where that is safe, a call whose connection was lost is made once more on another.
    pub(crate) async fn call(
        &self,
        shared: &Arc<Shared>,
        connector: &Arc<Connector>,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let started = clock::now();
        let limit = plan.limit(options, shared.settings.deadline)?;
        let _place = self.places.try_acquire().map_err(|error| {
            Error::not_sent(match error {
                TryAcquireError::Closed => ErrorKind::Closed,
                TryAcquireError::NoPermits => ErrorKind::Overloaded {
                    bound: Bound::Blocking,
                    retry_after: limit,
                },
            })
        })?;
        let once = options.attempts == Some(1);
        let attempt = || self.attempt(shared, connector, payload, plan.clone(), started, limit);
        let result = match attempt().await {
            Err(error) if !once && may_repeat(&error, plan.effect) => {
                shared.metrics.retried();
                let unknown = error.certainty() == Certainty::Unknown;
                attempt().await.map_err(|error| error.at_best(unknown))
            }
            result => result,
        };
        result.inspect_err(crate::metrics::count_error)
    }

    async fn attempt(
        &self,
        shared: &Arc<Shared>,
        connector: &Arc<Connector>,
        payload: Payload<'_>,
        plan: Plan,
        started: Instant,
        limit: Duration,
    ) -> Result<Reply, Error> {
        let connection = match self.take_idle() {
            Some(connection) => connection,
            None => {
                let passed = clock::now().saturating_duration_since(started);
                let left = limit.saturating_sub(passed);
                let opened = Dedicated::open(shared, connector, left).await;
                opened.map_err(|error| match error.kind() {
                    ErrorKind::Timeout { .. } => {
                        Error::not_sent(ErrorKind::Timeout { deadline: limit })
                    }
                    _ => error,
                })?
            }
        };
        let result = connection.call(payload, plan, started, limit).await;
        let clean = match &result {
            Ok(_) => true,
            Err(error) => matches!(error.kind(), ErrorKind::Server(_)),
        };
        if clean && connection.is_reusable() && !self.places.is_closed() {
            self.idle.lock().push(connection);
        }
        result
    }

    fn take_idle(&self) -> Option<Dedicated> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if connection.is_reusable() {
                return Some(connection);
            }
        }
        None
    }

    pub(crate) fn close(&self) {
        self.places.close();
        self.idle.lock().clear();
    }
}

fn may_repeat(error: &Error, effect: Effect) -> bool {
    matches!(error.kind(), ErrorKind::Lost { .. })
        && (error.certainty() != Certainty::Unknown || effect == Effect::Read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_one_hash_tag_share_a_connection() {
        for lanes in 1..9 {
            assert_eq!(
                lane_of_key(b"{user:1}:name", lanes),
                lane_of_key(b"{user:1}:mail", lanes)
            );
        }
        assert_eq!(hash_tag(b"a{}b"), b"a{}b");
        assert_eq!(hash_tag(b"a{x"), b"a{x");
    }

    #[test]
    fn keys_spread_over_all_connections() {
        let mut seen = [0usize; 4];
        for n in 0..4000 {
            seen[lane_of_key(format!("key:{n}").as_bytes(), 4)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 600), "{seen:?}");
    }
}
