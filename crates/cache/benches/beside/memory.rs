//! How long the machine takes to fetch from memory, at this moment.
//!
//! What a hit costs is for a great part waiting for memory, and on a machine whose host has other
//! guests that wait may double from one second to the next. So a figure of a hit means something
//! beside this one only.

use std::hint::black_box;

/// Places in memory, a line of the processor's cache each, each of which tells the next, in random
/// order. None of them can be fetched before the one ahead of it is there.
pub(crate) struct Places(Vec<Line>);

#[repr(align(64))]
struct Line(u32);

impl Places {
    pub(crate) fn new(count: usize) -> Self {
        let mut order: Vec<u32> = (0..count as u32).collect();
        fastrand::Rng::with_seed(3).shuffle(&mut order);
        let mut lines: Vec<Line> = (0..count).map(|_| Line(0)).collect();
        for (here, next) in order.iter().zip(order.iter().cycle().skip(1)) {
            lines[*here as usize].0 = *next;
        }
        Self(lines)
    }

    /// Goes on by so many places from this one, and returns the place it came to.
    pub(crate) fn walk(&self, from: u32, steps: usize) -> u32 {
        (0..steps).fold(from, |place, _| self.0[black_box(place) as usize].0)
    }
}
