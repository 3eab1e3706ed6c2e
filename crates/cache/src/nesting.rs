//! Loads that read through the cache.
//!
//! Composing cached reads is common, and a nested load that waited for a permit of the guard while its parent holds one would starve: a guard full of
//! parents lets no child in. So a nested load goes by its parent's permit. Its own key a load cannot wait for, which is an error at once. A load is known by
//! its task: what a loader spawns is on its own.

use std::sync::{Arc, Weak};

use crate::cache::Inner;
use crate::error::CacheError;
use crate::tier::Key;

/// A load under way, with those that it is nested in.
#[derive(Debug)]
pub(crate) struct Loading {
    cache: Weak<Inner>,
    keys: Vec<Key>,
    parent: Option<Arc<Self>>,
}

tokio::task_local! {
    static LOADING: Arc<Loading>;
}

impl Loading {
    /// The load that this task is in, if it is one of this cache.
    pub(crate) fn current(cache: &Arc<Inner>) -> Option<Arc<Self>> {
        let current = LOADING.try_with(Arc::clone).ok()?;
        current.is_of(cache).then_some(current)
    }

    /// Runs a load of these keys, which is nested in `parent`.
    pub(crate) async fn within<T>(
        cache: &Arc<Inner>,
        keys: Vec<Key>,
        parent: Option<Arc<Self>>,
        load: impl Future<Output = T>,
    ) -> T {
        let cache = Arc::downgrade(cache);
        let loading = Arc::new(Self {
            cache,
            keys,
            parent,
        });
        LOADING.scope(loading, load).await
    }

    /// Refuses a key that is being loaded by this load, or by one that it is nested in.
    pub(crate) fn check(this: Option<&Arc<Self>>, name: &[u8]) -> Result<(), CacheError> {
        let mut loading = this;
        while let Some(outer) = loading {
            if outer.keys.iter().any(|key| **key == *name) {
                let key = String::from_utf8_lossy(name).into_owned();
                return Err(CacheError::OwnKey { key });
            }
            loading = outer.parent.as_ref();
        }
        Ok(())
    }

    fn is_of(&self, cache: &Arc<Inner>) -> bool {
        std::ptr::eq(self.cache.as_ptr(), Arc::as_ptr(cache))
    }
}
