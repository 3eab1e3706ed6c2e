//! Keys rotate without anybody telling us: one day a token names a key that is not known yet. Then
//! the set must be read again at once; but anyone can write a token that names an unknown key, so
//! this happens once in `auth.jwks_cooldown`, for whoever asks, and everyone else is refused at the
//! cost of one look into a table. The reading belongs to no caller: one that hangs up ends its own
//! waiting, and nothing else. Few wait for it at once, because each holds one of the places of all
//! callers while the identity provider takes its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use url::Url;

use super::fetch::fetch;
use super::key::KeySet;
use crate::clock::now;
use crate::token_key::Key;

/// Requests that wait for a reading at once; the others are refused without it.
const WAITERS: usize = 64;

/// Clones are the same one.
#[derive(Clone)]
pub(crate) struct Jwks {
    inner: Arc<JwksInner>,
}

struct JwksInner {
    url: Url,
    shown: String,
    refresh: Duration,
    cooldown: Duration,
    /// `None` until one was read.
    set: ArcSwapOption<KeySet>,
    /// The keys of the last set that were passed over, so that each is told of once.
    passed_over: Mutex<Vec<String>>,
    reads: Mutex<JwksReads>,
    /// Counts the readings that have ended.
    ended: watch::Sender<u64>,
    waiters: Semaphore,
}

#[derive(Default)]
struct JwksReads {
    under_way: bool,
    /// The end of the last reading.
    tried: Option<Instant>,
    /// The end of the last reading that brought keys.
    succeeded: Option<Instant>,
}

impl Jwks {
    pub(crate) fn new(url: Url, shown: String, refresh: Duration, cooldown: Duration) -> Self {
        Self {
            inner: Arc::new(JwksInner {
                url,
                shown,
                refresh,
                cooldown,
                set: ArcSwapOption::empty(),
                passed_over: Mutex::default(),
                reads: Mutex::default(),
                ended: watch::Sender::new(0),
                waiters: Semaphore::new(WAITERS),
            }),
        }
    }

    /// Whether the set has been read at all.
    pub(crate) fn is_known(&self) -> bool {
        self.inner.set.load().is_some()
    }

    /// The key of that name, if it is known already.
    pub(crate) fn known(&self, kid: Option<&str>) -> Option<Key> {
        self.inner.set.load().as_ref()?.find(kid).cloned()
    }

    /// The key of that name; the set is read again for one that is not known, if that is due. Waits
    /// for one reading at the most, and for none where many wait already.
    pub(crate) async fn find(&self, kid: Option<&str>) -> Option<Key> {
        if let Some(key) = self.known(kid) {
            return Some(key);
        }
        let _waits = self.inner.waiters.try_acquire().ok()?;
        self.read_if(|_| true).await;
        self.known(kid)
    }

    /// Reads the set for ever; a set that cannot be read leaves the last one in force, and is tried
    /// again soon.
    pub(crate) async fn keep(&self) {
        let (refresh, cooldown) = (self.inner.refresh, self.inner.cooldown);
        let pause = cooldown.max(Duration::from_millis(100)).min(refresh);
        loop {
            self.read_if(|reads| is_past(reads.succeeded, refresh))
                .await;
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads, or waits for the reading that is under way; does neither if it is not due.
    async fn read_if(&self, due: impl Fn(&JwksReads) -> bool) {
        let mut ended = self.inner.ended.subscribe();
        {
            let mut reads = self.inner.reads.lock();
            if !reads.under_way {
                if !is_past(reads.tried, self.inner.cooldown) || !due(&reads) {
                    return;
                }
                reads.under_way = true;
                tokio::spawn(read(JwksReading {
                    jwks: Arc::clone(&self.inner),
                    succeeded: false,
                }));
            }
        }
        // The reading has its own limit.
        let _ = ended.changed().await;
    }
}

fn is_past(at: Option<Instant>, pause: Duration) -> bool {
    at.is_none_or(|at| now().saturating_duration_since(at) >= pause)
}

async fn read(mut reading: JwksReading) {
    let jwks = Arc::clone(&reading.jwks);
    let set = match fetch(&jwks.url).await {
        Ok(document) => KeySet::of_jwks(&document),
        Err(why) => Err(why),
    };
    let lines = match set {
        Ok((set, passed_over)) => {
            let is_empty = set.is_empty();
            jwks.set.store(Some(set.into()));
            reading.succeeded = true;
            let before = std::mem::replace(&mut *jwks.passed_over.lock(), passed_over.clone());
            let is_news = before != passed_over;
            Ok((is_empty, is_news.then_some(passed_over)))
        }
        Err(why) => Err(why),
    };
    // Callers wait for the reading, and not for whoever writes the log.
    drop(reading);
    match lines {
        Ok((is_empty, passed_over)) => {
            if is_empty {
                tracing::warn!(
                    jwks = jwks.shown,
                    "the set of keys is empty: no token is taken"
                );
            }
            for why in passed_over.iter().flatten() {
                tracing::warn!(jwks = jwks.shown, why, "a key of callers is not used");
            }
        }
        Err(why) => {
            tracing::warn!(jwks = jwks.shown, why, "the keys of callers cannot be read");
        }
    }
}

/// A reading; over when it is dropped, also by a panic, so that nobody waits for one that never
/// ends.
struct JwksReading {
    jwks: Arc<JwksInner>,
    succeeded: bool,
}

impl Drop for JwksReading {
    fn drop(&mut self) {
        let mut reads = self.jwks.reads.lock();
        reads.under_way = false;
        reads.tried = Some(now());
        if self.succeeded {
            reads.succeeded = reads.tried;
        }
        drop(reads);
        self.jwks.ended.send_modify(|ended| *ended += 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::telemetry::listen;

    #[tokio::test]
    async fn s4_a_slow_reader_of_the_log_keeps_no_caller_waiting_for_keys() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let url = Url::from_file_path(&file).unwrap();
        let jwks = Jwks::new(url, "keys".to_owned(), Duration::ZERO, Duration::ZERO);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (of, told) = (jwks.clone(), Arc::clone(&lines));
        let _listens = listen(move || {
            let reads = of.inner.reads.try_lock();
            let is_over = reads.is_some_and(|reads| !reads.under_way);
            told.lock()
                .push(is_over && of.inner.passed_over.try_lock().is_some());
        });
        let good = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        for keys in [
            "none",
            r#"{"keys":[]}"#,
            &format!(r#"{{"keys":[{good},{{}}]}}"#),
        ] {
            std::fs::write(&file, keys).unwrap();
            jwks.read_if(|_| true).await;
        }
        assert_eq!(*lines.lock(), [true; 3], "a line of each");
    }

    #[tokio::test]
    async fn s6_while_the_identity_provider_hangs_few_callers_wait_for_it() {
        // It takes connections, and says nothing.
        let provider = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", provider.local_addr().unwrap());
        let pause = Duration::from_secs(1);
        let jwks = Jwks::new(url.parse().unwrap(), url, pause, pause);
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..WAITERS {
            let jwks = jwks.clone();
            waiting.spawn(async move { jwks.find(Some("unknown")).await.is_some() });
        }
        while jwks.inner.waiters.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(jwks.find(Some("unknown")).await.is_none());
        assert!(jwks.inner.reads.lock().under_way, "it has waited");
        waiting.shutdown().await;
        assert_eq!(jwks.inner.waiters.available_permits(), WAITERS);
    }
}
