//! Which entries stay: S3-FIFO ([Yang et al., SOSP 2023](https://doi.org/10.1145/3600006.3613147)),
//! without the entries themselves.
//!
//! What is new waits in a short queue, a tenth of the room, and leaves it for the long one only if
//! it was read meanwhile; so a scan, whose keys are read once, passes through the short queue and
//! takes nothing from the long one. What left the short queue unread is remembered for a while by
//! its hash, and goes into the long one at once if it comes back. Nothing is moved at a hit:
//! only the entry counts it, up to three.

/// The place of an entry in its queue.
pub(super) struct Queues {
    nodes: Vec<Node>,
    /// The first node that is not in use; they are linked by `older`.
    unused: u32,
    short: Queue,
    long: Queue,
    ghosts: Ghosts,
    capacity: u64,
}

struct Node {
    hash: u64,
    weight: u32,
    slot: u32,
    newer: u32,
    older: u32,
    is_long: bool,
}

/// From the newest node to the oldest.
struct Queue {
    newest: u32,
    oldest: u32,
    weight: u64,
    len: usize,
}

const NOBODY: u32 = u32::MAX;

impl Queues {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            nodes: Vec::new(),
            unused: NOBODY,
            short: Queue::new(),
            long: Queue::new(),
            ghosts: Ghosts::new(0),
            capacity,
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(super) fn weight(&self) -> u64 {
        self.short.weight + self.long.weight
    }

    pub(super) fn len(&self) -> usize {
        self.short.len + self.long.len
    }

    /// Adds an entry and answers with its node.
    pub(super) fn enter(&mut self, hash: u64, weight: u32) -> u32 {
        let node = Node {
            hash,
            weight,
            slot: NOBODY,
            newer: NOBODY,
            older: NOBODY,
            is_long: self.ghosts.recall(hash),
        };
        let at = self.unused;
        let at = match self.nodes.get_mut(at as usize) {
            Some(unused) => {
                self.unused = unused.older;
                *unused = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.link(at);
        at
    }

    /// Takes a node out of its queue, to be [linked](Self::relink) again with another weight.
    pub(super) fn unlink(&mut self, at: u32) {
        let Node {
            newer,
            older,
            weight,
            is_long,
            ..
        } = self.nodes[at as usize];
        let queue = if is_long {
            &mut self.long
        } else {
            &mut self.short
        };
        queue.weight -= u64::from(weight);
        queue.len -= 1;
        match newer {
            NOBODY => queue.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NOBODY => queue.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
    }

    /// Puts a node that was taken out back into its queue, as the newest.
    pub(super) fn relink(&mut self, at: u32, weight: u32) {
        self.nodes[at as usize].weight = weight;
        self.link(at);
    }

    pub(super) fn leave(&mut self, at: u32) {
        self.unlink(at);
        self.forget(at);
    }

    /// Decides who has to go: takes it out of its queue, and answers with its node, which is still
    /// to be [forgotten](Self::forget). `visits` answers how often what is in a slot was read since
    /// it was last asked, and forgets that or counts it down.
    pub(super) fn expel(&mut self, mut visits: impl FnMut(u32, Then) -> u8) -> Option<u32> {
        for tries_left in (0..MOST_TRIES).rev() {
            let shorten = self.short.weight * SHORT_SHARE >= self.capacity;
            let from_short = self.short.len > 0 && (shorten || self.long.len == 0);
            let queue = if from_short { &self.short } else { &self.long };
            let at = queue.oldest;
            let slot = self.nodes.get(at as usize)?.slot;
            let then = if from_short {
                Then::Forget
            } else {
                Then::CountDown
            };
            let visits = visits(slot, then);
            self.unlink(at);
            let needed = if from_short { PROMOTION } else { 1 };
            if visits < needed || tries_left == 0 {
                if from_short {
                    self.ghosts.remember(self.nodes[at as usize].hash);
                }
                return Some(at);
            }
            self.nodes[at as usize].is_long = true;
            self.link(at);
        }
        None
    }

    /// Gives a node back that is in no queue.
    pub(super) fn forget(&mut self, at: u32) {
        self.nodes[at as usize].older = self.unused;
        self.unused = at;
    }

    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.unused = NOBODY;
        (self.short, self.long) = (Queue::new(), Queue::new());
    }

    pub(super) fn hash(&self, at: u32) -> u64 {
        self.nodes[at as usize].hash
    }

    pub(super) fn slot(&self, at: u32) -> u32 {
        self.nodes[at as usize].slot
    }

    pub(super) fn set_slot(&mut self, at: u32, slot: u32) {
        self.nodes[at as usize].slot = slot;
    }

    /// Remembers about so many of those that had to go; those of before are forgotten.
    pub(super) fn remember_up_to(&mut self, count: usize) {
        self.ghosts = Ghosts::new(count);
    }

    fn link(&mut self, at: u32) {
        let node = &mut self.nodes[at as usize];
        let queue = if node.is_long {
            &mut self.long
        } else {
            &mut self.short
        };
        queue.weight += u64::from(node.weight);
        queue.len += 1;
        (node.newer, node.older) = (NOBODY, queue.newest);
        let older = std::mem::replace(&mut queue.newest, at);
        match older {
            NOBODY => queue.oldest = at,
            older => self.nodes[older as usize].newer = at,
        }
    }
}

/// The part of the capacity, as a divisor, that the short queue may have while the long one can
/// spare something.
const SHORT_SHARE: u64 = 10;

/// The number of reads after which an entry goes from the short queue into the long one.
const PROMOTION: u8 = 1;

/// The number of entries that are looked at for one that has to go: if all of them were read, the
/// last has to, so that nobody waits long for the lock.
const MOST_TRIES: u32 = 256;

/// What becomes of the count of an entry's reads once it has been asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Forget,
    CountDown,
}

impl Queue {
    fn new() -> Self {
        Self {
            newest: NOBODY,
            oldest: NOBODY,
            weight: 0,
            len: 0,
        }
    }
}

/// The hashes of entries that had to go without having been read, each in a place that it shares
/// with others: the last one is remembered.
struct Ghosts(Box<[u32]>);

impl Ghosts {
    fn new(count: usize) -> Self {
        Self(vec![0; count.next_power_of_two()].into())
    }

    fn remember(&mut self, hash: u64) {
        let (at, mark) = self.place(hash);
        self.0[at] = mark;
    }

    /// Whether it is remembered, which it then is no more.
    fn recall(&mut self, hash: u64) -> bool {
        let (at, mark) = self.place(hash);
        let is_it = self.0[at] == mark;
        if is_it {
            self.0[at] = 0;
        }
        is_it
    }

    fn place(&self, hash: u64) -> (usize, u32) {
        (hash as usize & (self.0.len() - 1), (hash >> 32) as u32 | 1)
    }
}
