//! The part of a client that one key concerns.

use steadfast_core::slot::Slot;

use super::Client;
use crate::link::ConnectionState;

/// The server that serves a key, as it is now. From [`Client::toward`].
///
/// In a cluster the shard that owns the key's slot decides: another that is down changes nothing
/// here. Elsewhere there is one server, and it is that of every key.
///
/// ```no_run
/// # async fn example(client: steadfast::Client) -> Result<(), steadfast::Error> {
/// if let Some(redis) = client.toward("cart:17").available() {
///     redis.send(steadfast::redis::cmd("GET").arg("cart:17")).await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Toward {
    client: Client,
    slot: Slot,
}

impl Toward {
    /// Returns the state of the connection to the server of this key.
    pub fn state(&self) -> ConnectionState {
        match &self.client.inner.cluster {
            Some(cluster) => cluster.state_of(self.slot),
            None => self.client.state(),
        }
    }

    /// Returns the client, if the server of this key is believed to answer.
    pub fn available(&self) -> Option<&Client> {
        (self.state() == ConnectionState::Ready).then_some(&self.client)
    }

    /// Returns the slot that the key has in a cluster.
    pub fn slot(&self) -> u16 {
        self.slot.number()
    }
}

impl Client {
    /// The server that serves this key: its state, apart from that of others in a cluster.
    pub fn toward(&self, key: impl AsRef<[u8]>) -> Toward {
        Toward {
            client: self.clone(),
            slot: Slot::of_key(key.as_ref()),
        }
    }
}
