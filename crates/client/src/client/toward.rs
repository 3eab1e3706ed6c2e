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
    /// Returns the state of the connection to the server of this key. In a cluster that connection
    /// begins with the first call to the server, or with this question.
    pub fn state(&self) -> ConnectionState {
        match &self.client.inner.cluster {
            Some(cluster) => cluster.wanted_state_of(self.slot),
            None => self.client.state(),
        }
    }

    /// Returns the client, if the server of this key is believed to answer.
    pub fn available(&self) -> Option<&Client> {
        (self.state() == ConnectionState::Ready).then_some(&self.client)
    }

    /// Returns the number of the server of this key: while the number is the same, so is the
    /// server. `None` while nobody is known to serve the key. Costs one look at a table.
    ///
    /// Where there is one server the number is 0, also when sentinels name another primary: that
    /// shows in [events](Client::events).
    pub fn server(&self) -> Option<u16> {
        match &self.client.inner.cluster {
            Some(cluster) => cluster.number_of(self.slot),
            None => Some(0),
        }
    }

    /// Returns the address of the node that owns the key's slot, as events name it
    /// ([`Event::node`](crate::Event::node)); `None` where there is one server, and while nobody is
    /// known to own the slot.
    pub fn node(&self) -> Option<String> {
        let cluster = self.client.inner.cluster.as_ref()?;
        cluster.address_of(self.slot)
    }

    /// Returns the slot that the key has in a cluster.
    pub fn slot(&self) -> u16 {
        self.slot.number()
    }
}

impl Client {
    /// Returns whether it serves a cluster (`redis-cluster://`), whose nodes divide the slots among
    /// them.
    pub fn is_cluster(&self) -> bool {
        self.inner.cluster.is_some()
    }

    /// The server that serves this key: its state, apart from that of others in a cluster.
    pub fn toward(&self, key: impl AsRef<[u8]>) -> Toward {
        Toward {
            client: self.clone(),
            slot: Slot::of_key(key.as_ref()),
        }
    }
}
