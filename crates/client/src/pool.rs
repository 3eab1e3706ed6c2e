//! Which connection serves a command: decided by its keys, and by whether it blocks. Nothing else assumes that there is one server.

use std::sync::Arc;

use parking_lot::Mutex;
use steadfast_core::conn::Reply;
use tokio::sync::Semaphore;

use crate::call::{Payload, Plan};
use crate::connect::Connector;
use crate::dedicated::Dedicated;
use crate::error::{Bound, Error, ErrorKind};
use crate::options::CallOptions;
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
    /// killed instead.
    pub(crate) async fn call(
        &self,
        shared: &Arc<Shared>,
        connector: &Connector,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let limit = plan.limit(options, shared.settings.deadline)?;
        let _place = self.places.try_acquire().map_err(|_| {
            Error::not_sent(ErrorKind::Overloaded {
                bound: Bound::Blocking,
                retry_after: limit,
            })
        })?;
        let idle = self.take_idle();
        let connection = match idle {
            Some(connection) => connection,
            None => Dedicated::open(shared, connector).await?,
        };
        let result = connection.call(payload, plan, options).await;
        let clean = match &result {
            Ok(_) => true,
            Err(error) => matches!(error.kind(), ErrorKind::Server(_)),
        };
        if clean {
            self.idle.lock().push(connection);
        }
        result
    }

    fn take_idle(&self) -> Option<Dedicated> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if connection.is_open() {
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
