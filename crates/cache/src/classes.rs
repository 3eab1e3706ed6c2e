//! Classes by their names.
//!
//! A class is looked up once, when a view is made, and a name that does not exist is an error
//! there. Views hold the class itself, whose times to live may be changed meanwhile. Classes are
//! never taken away.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use steadfast_core::policy::breaker::{Admission, Breaker, BreakerConfig, Outcome, Permit};

use crate::clock::clock;
use crate::error::{BuildError, UnknownClass};
use crate::freshness::Ttl;

/// A class of data.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) name: Box<str>,
    /// Tells it from the others of the cache.
    pub(crate) number: usize,
    /// The number of the class at the guard.
    pub(crate) queue: usize,
    /// The tags that all its values carry.
    pub(crate) tags: Box<[Vec<u8>]>,
    ttl: RwLock<Ttl>,
    /// Opens when loads of the class run out of their own time, or do not reach what they ask and
    /// that is not the database: no reason to refuse those of another class.
    breaker: Mutex<Breaker>,
}

impl Class {
    /// Asks whether loads of the class are well; if not, answers when to ask again.
    pub(crate) fn try_load(&self) -> Result<ClassPermit<'_>, Duration> {
        match self.breaker.lock().try_acquire(clock()) {
            Ok(Admission::Now(permit) | Admission::Delay { permit, .. }) => Ok(ClassPermit {
                class: self,
                permit: Some(permit),
            }),
            Err(refused) => Err(refused.retry_after),
        }
    }

    /// Returns its times, as they are now.
    pub(crate) fn ttl(&self) -> Ttl {
        *self.ttl.read()
    }
}

/// The right to one load of a class. Dropped, as by a caller who goes away, it says nothing of the
/// class.
pub(crate) struct ClassPermit<'c> {
    class: &'c Class,
    permit: Option<Permit>,
}

impl ClassPermit<'_> {
    /// Tells how the load went.
    pub(crate) fn record(mut self, outcome: Outcome) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let change = self.class.breaker.lock().record(permit, outcome, clock());
        // Told without the lock: whoever listens may ask the cache for its status.
        if let Some(change) = change {
            tracing::warn!(class = %self.class.name, from = ?change.from, to = ?change.to, "breaker of a class whose loads run out of time or do not reach what they ask");
        }
    }
}

impl Drop for ClassPermit<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.class.breaker.lock().forget(permit);
        }
    }
}

pub(crate) struct Classes {
    all: RwLock<Vec<Arc<Class>>>,
    /// The number at the guard of classes that were added later: they have no bounds of their own.
    queue_of_others: usize,
}

impl Classes {
    pub(crate) fn new(given: &[(Box<str>, Ttl)], tags: &[(Box<str>, Vec<u8>)]) -> Self {
        let classes = Self {
            all: RwLock::default(),
            queue_of_others: given.len(),
        };
        classes.put(given, tags);
        classes
    }

    pub(crate) fn find(&self, name: &str) -> Result<Arc<Class>, UnknownClass> {
        let all = self.all.read();
        let found = all.iter().find(|class| *class.name == *name);
        found.cloned().ok_or_else(|| UnknownClass {
            class: name.to_owned(),
        })
    }

    /// Returns the names of all.
    pub(crate) fn names(&self) -> Vec<Box<str>> {
        let all = self.all.read();
        all.iter().map(|class| class.name.clone()).collect()
    }

    /// Gives them other times, or adds some.
    pub(crate) fn change(&self, given: &[(Box<str>, Ttl)]) {
        self.put(given, &[]);
    }

    fn put(&self, given: &[(Box<str>, Ttl)], tags: &[(Box<str>, Vec<u8>)]) {
        let mut all = self.all.write();
        for (name, ttl) in given {
            if let Some(class) = all.iter().find(|class| class.name == *name) {
                *class.ttl.write() = *ttl;
                continue;
            }
            let number = all.len();
            let tags = tags.iter().filter(|(class, _)| class == name);
            all.push(Arc::new(Class {
                tags: tags.map(|(_, tag)| tag.clone()).collect(),
                name: name.clone(),
                number,
                queue: number.min(self.queue_of_others),
                ttl: RwLock::new(*ttl),
                breaker: Mutex::new(
                    Breaker::new(BreakerConfig::default(), clock())
                        .expect("the default configuration is valid"),
                ),
            }));
        }
    }
}

/// Refuses a class that is given twice, or whose times mean nothing.
pub(crate) fn check_classes(classes: &[(Box<str>, Ttl)]) -> Result<(), BuildError> {
    for (at, (class, ttl)) in classes.iter().enumerate() {
        let named = || class.to_string();
        if classes[..at].iter().any(|(earlier, _)| earlier == class) {
            return Err(BuildError::ClassTwice { class: named() });
        }
        ttl.validate().map_err(|setting| BuildError::Class {
            class: named(),
            setting,
        })?;
    }
    Ok(())
}

/// Refuses a class whose keys could be those of another: they are written behind its name and a
/// colon.
pub(crate) fn check_apart(names: &[Box<str>]) -> Result<(), BuildError> {
    let is_within = |class: &str, within: &str| {
        let rest = class.strip_prefix(within);
        rest.is_some_and(|rest| rest.starts_with(':'))
    };
    for class in names {
        if let Some(within) = names.iter().find(|within| is_within(class, within)) {
            return Err(BuildError::ClassWithinClass {
                class: class.to_string(),
                within: within.to_string(),
            });
        }
    }
    Ok(())
}

/// No value of these classes lives longer.
pub(crate) fn longest_life(classes: &[(Box<str>, Ttl)]) -> Duration {
    let lives = classes
        .iter()
        .map(|(_, ttl)| ttl.fresh + ttl.stale + ttl.negative + ttl.hard_limit);
    lives.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k9_a_class_that_is_added_later_shares_no_bounds_with_the_first_ones() {
        let ttl = Ttl::default();
        let classes = Classes::new(&[("a".into(), ttl), ("b".into(), ttl)], &[]);
        classes.change(&[("b".into(), ttl), ("c".into(), ttl), ("d".into(), ttl)]);
        let class_bounds = ["a", "b", "c", "d"].map(|name| classes.find(name).unwrap().queue);
        assert_eq!(class_bounds, [0, 1, 2, 2]);
        assert!(classes.find("e").is_err());
    }

    #[test]
    fn k4_who_holds_a_class_sees_its_times_change() {
        let classes = Classes::new(&[("a".into(), Ttl::default())], &[]);
        let held = classes.find("a").unwrap();
        let fresh = std::time::Duration::from_secs(1);
        let changed = Ttl {
            fresh,
            ..Ttl::default()
        };
        classes.change(&[("a".into(), changed)]);
        assert_eq!(held.ttl(), changed);
    }
}
