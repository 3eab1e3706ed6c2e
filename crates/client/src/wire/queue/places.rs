//! The one place that a call has in a queue, however many parts of it are under way there.
//!
//! A call that is divided goes on in parts: what waits for a slot of a cluster does so by itself,
//! and what is redirected goes alone. Each part is a request of its own, and would count as a call
//! of its own: one pipeline of many slots could take all places of a node, or be refused for want
//! of them.
//!
//! A reply frees the place of its request at once, and a share goes only when its caller is polled.
//! Of a call whose answers are here and whose task does not run yet, each part but one counts as a
//! free place until then: so many more calls than may can be in flight.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::SubmitQueue;

/// The places of a call, one in each queue in which parts of it are under way.
#[derive(Debug, Default)]
pub(crate) struct SharedPlaces {
    /// The number of parts by queue, which is known by its address: whoever has a share borrows it.
    parts: Mutex<BTreeMap<usize, usize>>,
}

/// A part's share in the place of its call, until it is dropped.
pub(crate) struct PlaceShare<'a> {
    places: &'a SharedPlaces,
    queue: &'a SubmitQueue,
}

impl SharedPlaces {
    /// Takes a share in the call's place in this queue. From then on it is one place, together with
    /// what the other parts of the call have submitted. What is dropped before it is answered takes
    /// a place of its own until it is.
    pub(crate) fn share<'a>(&'a self, queue: &'a SubmitQueue) -> PlaceShare<'a> {
        let mut parts = self.parts.lock();
        let of_queue = parts.entry(address(queue)).or_default();
        *of_queue += 1;
        if *of_queue > 1 {
            queue.lock().shared += 1;
        }
        PlaceShare {
            places: self,
            queue,
        }
    }
}

impl Drop for PlaceShare<'_> {
    fn drop(&mut self) {
        let mut parts = self.places.parts.lock();
        let Some(of_queue) = parts.get_mut(&address(self.queue)) else {
            return;
        };
        *of_queue -= 1;
        match *of_queue {
            0 => drop(parts.remove(&address(self.queue))),
            _ => self.queue.lock().shared -= 1,
        }
    }
}

fn address(queue: &SubmitQueue) -> usize {
    std::ptr::from_ref(queue).addr()
}
