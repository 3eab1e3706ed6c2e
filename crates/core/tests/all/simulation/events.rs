//! What is to happen, in its order.

use std::collections::BTreeMap;

/// Events by their time, in milliseconds; those of the same time in the order in which they were
/// planned.
pub(super) struct Events<E> {
    planned: BTreeMap<(u64, u64), E>,
    count: u64,
}

impl<E> Events<E> {
    pub(super) fn new() -> Self {
        Self {
            planned: BTreeMap::new(),
            count: 0,
        }
    }

    pub(super) fn plan(&mut self, at: u64, event: E) {
        self.count += 1;
        self.planned.insert((at, self.count), event);
    }

    pub(super) fn next(&mut self) -> Option<(u64, E)> {
        let ((at, _), event) = self.planned.pop_first()?;
        Some((at, event))
    }
}
