//! Keys rotate without anybody telling us: one day a token names a key that is not known yet. Then the set must be read
//! again at once; but anyone can write a token that names an unknown key, so this happens once in `auth.jwks_cooldown`,
//! for whoever asks, and everyone else is refused at the cost of one look into a table.

use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use url::Url;

use super::fetch::fetch;
use super::key::{Key, KeySet};
use crate::app::now;

pub(crate) struct Jwks {
    url: Url,
    shown: String,
    refresh: Duration,
    cooldown: Duration,
    set: ArcSwap<KeySet>,
    /// When the set was asked for last; whoever holds it is asking.
    asked: Mutex<Option<Instant>>,
}

impl Jwks {
    pub(crate) fn new(url: Url, shown: String, refresh: Duration, cooldown: Duration) -> Self {
        Self {
            url,
            shown,
            refresh,
            cooldown,
            set: ArcSwap::default(),
            asked: Mutex::default(),
        }
    }

    /// Whether the set has been read at all.
    pub(crate) fn is_known(&self) -> bool {
        !self.set.load().is_empty()
    }

    /// The key of that name; the set is read again for one that is not known, if that is due.
    pub(crate) async fn find(&self, kid: Option<&str>) -> Option<Key> {
        if let Some(key) = self.set.load().find(kid) {
            return Some(key.clone());
        }
        self.read_if_due(self.cooldown).await;
        self.set.load().find(kid).cloned()
    }

    /// Reads the set for ever; a set that cannot be read leaves the last one in force.
    pub(crate) async fn keep(&self) {
        loop {
            let pause = if self.is_known() {
                self.refresh
            } else {
                self.cooldown
            };
            self.read_if_due(pause).await;
            tokio::time::sleep(pause.min(self.refresh)).await;
        }
    }

    async fn read_if_due(&self, pause: Duration) {
        // Those who come while it is asked wait for the answer, and find that it is not due any more.
        let mut asked = self.asked.lock().await;
        let due = asked.is_none_or(|at| now().saturating_duration_since(at) >= pause);
        if !due {
            return;
        }
        *asked = Some(now());
        let set = match fetch(&self.url).await {
            Ok(document) => KeySet::of_jwks(&document),
            Err(why) => Err(why),
        };
        match set {
            Ok(set) => self.set.store(set.into()),
            Err(why) => {
                tracing::warn!(jwks = self.shown, why, "the keys of callers cannot be read")
            }
        }
    }
}
