//! Abandoned connections, which are killed on the server before its next command.
//!
//! A connection that is given up with writes in it may still be read by the server, and a write
//! that was repeated meanwhile would be overtaken by its first copy. So whoever goes on has it
//! killed first. Why so, and what happens where that is not allowed: `docs/design/fencing.md`.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;
use steadfast_core::certainty::{Refusal, refusal};
use steadfast_core::conn::Reply;

use super::{ConnectionState, Link};
use crate::event::EventKind;
use crate::event::hub::Hub;
use crate::wire::identity::Identity;
use crate::wire::queue::{DriverCommand, Gate, SubmitQueue};
use crate::wire::words::as_error;

/// Whether abandoned connections can be killed on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Fencing {
    /// Nobody has tried yet.
    Untried,
    /// Yes: last-wins writes of unknown outcome are repeated safely.
    Works,
    /// No: the server does not allow it, or did not once since a connection was put into service;
    /// such writes are not repeated unless the caller allows it. A connection that replaces it
    /// finds out anew.
    Refused,
}

/// The abandoned connections of a client, and whoever has to have them killed.
#[derive(Debug)]
pub(crate) struct Fences {
    links: Vec<Arc<Link>>,
    /// The queues of dedicated connections.
    dedicated: Mutex<Vec<Weak<SubmitQueue>>>,
    /// The fencing of each link, as its last connection has shown.
    state: Mutex<Box<[Fencing]>>,
    /// Whether the client may come back to a server that it has left for another: where sentinels
    /// name it.
    roams: bool,
    hub: Arc<Hub>,
}

/// Between attempts to have an abandoned connection killed by a server that cannot now.
pub(crate) const FENCE_AGAIN: Duration = Duration::from_millis(20);
/// Abandoned connections remembered per link; there are as many only if connections are lost and
/// abandoned over and over with no handshake in between, or none that may kill. The oldest is
/// forgotten then.
const MOST_ABANDONED: usize = 256;

impl Fences {
    pub(crate) fn new(links: Vec<Arc<Link>>, hub: Arc<Hub>, roams: bool) -> Self {
        Self {
            roams,
            dedicated: Mutex::default(),
            state: Mutex::new(vec![Fencing::Untried; links.len()].into()),
            links,
            hub,
        }
    }

    /// Returns the fencing of the client: `Refused` while any connection cannot have others killed.
    pub(crate) fn fencing(&self) -> Fencing {
        of_all(&self.state.lock())
    }

    /// Records whether the next connection of this link can fence its predecessors. Its handshake
    /// has shown it, and has asked for these abandoned connections to be killed.
    pub(crate) fn serves(
        &self,
        link: &Link,
        may_kill: &Result<(), String>,
        abandoned: &[Identity],
        fences: &[Fence],
    ) {
        let refused = fences.iter().find_map(|fence| match fence {
            Fence::Refused(why) => Some(why),
            Fence::Done | Fence::Gone | Fence::NotNow => None,
        });
        match may_kill.as_ref().err().or(refused) {
            Some(why) => self.unfenced(link, why),
            None => {
                link.queue.serves(true);
                self.state.lock()[link.index] = Fencing::Works;
            }
        }
        for (identity, fence) in abandoned.iter().zip(fences) {
            self.fenced(link, identity, fence);
        }
    }

    /// Takes the server's answer to a CLIENT KILL of this link. One that it could not obey now
    /// stays to be done, and one that it refused is for the next connection, which may be allowed
    /// to: until then an abandoned connection is loose.
    pub(crate) fn fenced(&self, link: &Link, identity: &Identity, fence: &Fence) {
        match fence {
            Fence::Done => {
                let id = identity.id;
                self.hub.emit(link.index, EventKind::Fenced { id });
                link.abandoned.lock().retain(|known| known != identity);
            }
            // The other server may be the primary again, and then this is done there first.
            Fence::Gone if self.roams => {}
            Fence::Gone => link.abandoned.lock().retain(|known| known != identity),
            Fence::Refused(why) => self.unfenced(link, why),
            Fence::NotNow => {}
        }
    }

    /// Forgets an abandoned connection that was made to another server than this link's (`None`: of
    /// one caller), if the client does not come back to that one.
    pub(crate) fn gone(&self, link: Option<usize>, identity: &Identity) {
        if let Some(link) = link.and_then(|index| self.links.get(index)) {
            self.fenced(link, identity, &Fence::Gone);
        }
    }

    /// Notes that the connection in service cannot have others killed, for as long as it lives:
    /// whatever it may be allowed later, one has been left behind it.
    fn unfenced(&self, link: &Link, why: &str) {
        // Whatever has not been sent yet, and has been looked at before.
        link.queue.serves(false);
        let before = {
            let mut fencing = self.state.lock();
            let before = of_all(&fencing);
            fencing[link.index] = Fencing::Refused;
            before
        };
        if before != Fencing::Refused {
            let cause = why.into();
            self.hub.emit(link.index, EventKind::FenceRefused { cause });
        }
    }

    /// Has an abandoned connection killed, whose writes may still be applied: every connection that
    /// goes on does so before its next command. A link remembers it until the server says that it
    /// is gone, so that it survives the loss of the connection that was told.
    pub(crate) fn fence(&self, identity: Option<Identity>) {
        let Some(identity) = identity else { return };
        for link in &self.links {
            link.remember(identity.clone());
        }
        for queue in self.dedicated_queues() {
            queue.command(DriverCommand::Fence(identity.clone()));
        }
    }

    /// Returns the abandoned connections that some link has not had killed yet: a new connection
    /// does so in its handshake.
    pub(crate) fn abandoned(&self) -> Vec<Identity> {
        let mut all: Vec<Identity> = Vec::new();
        for link in &self.links {
            for identity in link.abandoned.lock().iter() {
                if !all.contains(identity) {
                    all.push(identity.clone());
                }
            }
        }
        all
    }

    /// Registers a dedicated connection, to be told of those that are abandoned.
    pub(crate) fn register(&self, queue: &Arc<SubmitQueue>) {
        let mut dedicated = self.dedicated.lock();
        dedicated.retain(|queue| queue.strong_count() > 0);
        dedicated.push(Arc::downgrade(queue));
    }

    /// Returns the queues of the dedicated connections that live.
    pub(crate) fn dedicated_queues(&self) -> Vec<Arc<SubmitQueue>> {
        let dedicated = self.dedicated.lock();
        let queues = dedicated.iter().filter_map(Weak::upgrade);
        queues
            .filter(|queue| !matches!(queue.gate(), Gate::Ended(_)))
            .collect()
    }

    /// Takes the answer to a CLIENT KILL of this link (`None`: of one caller). Returns false if it
    /// has to ask again; `None` if that was no answer to it.
    pub(crate) fn fence_answered(
        &self,
        link: Option<usize>,
        identity: &Identity,
        reply: &Reply,
    ) -> Option<bool> {
        let Reply::One(value) = reply else {
            return None;
        };
        let fence = Fence::of(value)?;
        if let Some(link) = link.and_then(|index| self.links.get(index)) {
            self.fenced(link, identity, &fence);
        }
        Some(fence != Fence::NotNow)
    }
}

impl Link {
    /// Remembers an abandoned connection, to be killed before the next command.
    pub(crate) fn remember(&self, identity: Identity) {
        let mut abandoned = self.abandoned.lock();
        if abandoned.contains(&identity) {
            return;
        }
        if abandoned.len() == MOST_ABANDONED {
            abandoned.remove(0);
        }
        if matches!(self.queue.gate(), Gate::Open) {
            self.queue.command(DriverCommand::Fence(identity.clone()));
        }
        abandoned.push(identity);
    }

    /// Has those abandoned connections killed, before the next command, that have not been yet.
    pub(crate) fn fence(&self) {
        for identity in self.abandoned.lock().iter() {
            self.queue.command(DriverCommand::Fence(identity.clone()));
        }
    }

    /// Lets calls pass; ahead of them, whatever has to be killed is killed.
    pub(crate) fn open(&self, now: Instant) {
        // Under this lock nobody can remember another one between the last order and the opening.
        let abandoned = self.abandoned.lock();
        // One whose handshake was refused that is not asked for it again.
        if self.queue.may_be_fenced() {
            for identity in abandoned.iter() {
                self.queue.command(DriverCommand::Fence(identity.clone()));
            }
        }
        self.queue.set_gate(Gate::Open);
        drop(abandoned);
        self.set_state(ConnectionState::Ready, now);
    }
}

/// A connection that is fenced unless it is accounted for: its supervisor may be ended from
/// without, and with it the driver.
pub(crate) struct FenceOnDrop {
    fences: Arc<Fences>,
    identity: Option<Identity>,
}

impl FenceOnDrop {
    pub(crate) fn new(fences: &Arc<Fences>, identity: Option<Identity>) -> Self {
        let fences = Arc::clone(fences);
        Self { fences, identity }
    }

    pub(crate) fn accounted_for(mut self) {
        self.identity = None;
    }
}

impl Drop for FenceOnDrop {
    fn drop(&mut self) {
        self.fences.fence(self.identity.take());
    }
}

/// The answer of a server to CLIENT KILL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Killed, or gone already.
    Done,
    /// The server was not asked: it was a connection to another one, or to this one before its
    /// restart.
    Gone,
    /// The server does not allow it, does not know it, or refused in words that are not known to
    /// pass.
    Refused(String),
    /// The server could not now, for a reason that will pass (LOADING, BUSY…): that says nothing of
    /// what is allowed.
    NotNow,
}

impl Fence {
    /// `None` if the reply is no answer to CLIENT KILL.
    pub(crate) fn of(reply: &Value) -> Option<Self> {
        let Some((code, text)) = as_error(reply) else {
            return matches!(reply, Value::Int(_)).then_some(Self::Done);
        };
        if text.to_ascii_lowercase().contains("no such client") {
            return Some(Self::Done);
        }
        Some(match refusal(&code, &text) {
            Refusal::Lasting => Self::Refused(format!("{code} {text}")),
            // Protected mode would have said so to the greeting: this is a proxy that does not
            // kill.
            Refusal::Unauthenticated if code == "DENIED" => Self::Refused(format!("{code} {text}")),
            _ => Self::NotNow,
        })
    }
}

/// Returns what is true of a client with these connections: its writes go through any of them.
fn of_all(each: &[Fencing]) -> Fencing {
    if each.contains(&Fencing::Refused) {
        Fencing::Refused
    } else if each.contains(&Fencing::Works) {
        Fencing::Works
    } else {
        Fencing::Untried
    }
}

#[cfg(test)]
mod tests;
