//! Classes by their names.
//!
//! Every read names one, and a name that does not exist is an error even where the value is at hand. Names are never taken away, so those that the
//! cache was built with can be looked at without asking for the times to live, which may be changed meanwhile.

use arc_swap::ArcSwap;

use crate::error::CacheError;
use crate::freshness::Ttl;

/// A class of data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    pub(crate) ttl: Ttl,
    /// Its number at the guard.
    pub(crate) lane: usize,
}

/// Few, so that comparing names finds one soonest.
pub(crate) struct Classes {
    first: Box<[Box<str>]>,
    all: ArcSwap<Vec<(Box<str>, Class)>>,
    /// The number at the guard of classes that were added later: they have no bounds of their own.
    lane_of_others: usize,
}

impl Classes {
    pub(crate) fn new(classes: Vec<(Box<str>, Ttl)>) -> Self {
        let all: Vec<_> = classes
            .into_iter()
            .enumerate()
            .map(|(lane, (name, ttl))| (name, Class { ttl, lane }))
            .collect();
        Self {
            first: all.iter().map(|(name, _)| name.clone()).collect(),
            lane_of_others: all.len(),
            all: ArcSwap::from_pointee(all),
        }
    }

    #[inline]
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.first.iter().any(|class| **class == *name) || self.find(name).is_ok()
    }

    /// Of one that has bounds of its own, by its number at the guard.
    pub(crate) fn name(&self, lane: usize) -> &str {
        self.first.get(lane).map_or("", |name| name)
    }

    pub(crate) fn find(&self, name: &str) -> Result<Class, CacheError> {
        let all = self.all.load();
        let found = all.iter().find(|(class, _)| **class == *name);
        found
            .map(|(_, class)| *class)
            .ok_or_else(|| CacheError::UnknownClass {
                class: name.to_owned(),
            })
    }

    /// Gives them other times, or adds some.
    pub(crate) fn change(&self, given: &[(Box<str>, Ttl)]) {
        // Again, if another has changed them meanwhile.
        self.all.rcu(|all| {
            let mut changed = Vec::clone(all);
            for (name, ttl) in given {
                match changed.iter_mut().find(|(class, _)| class == name) {
                    Some((_, class)) => class.ttl = *ttl,
                    None => {
                        let lane = self.lane_of_others;
                        changed.push((name.clone(), Class { ttl: *ttl, lane }));
                    }
                }
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k9_a_class_that_is_added_later_shares_no_bounds_with_the_first_ones() {
        let ttl = Ttl::default();
        let classes = Classes::new(vec![("a".into(), ttl), ("b".into(), ttl)]);
        classes.change(&[("b".into(), ttl), ("c".into(), ttl), ("d".into(), ttl)]);
        let lanes = ["a", "b", "c", "d"].map(|name| classes.find(name).unwrap().lane);
        assert_eq!(lanes, [0, 1, 2, 2]);
        assert!(classes.knows("a") && classes.knows("d") && !classes.knows("e"));
    }
}
