//! The primary that the sentinels name: who is asked, who is believed, and how old that is.
//!
//! One task per sentinel asks and listens; what they hear goes to one council, whose rules are
//! those of `docs/design/several-servers.md`. The council only says which server to dial. That it
//! is a primary by its own word is asked in each handshake, as ever.

mod status;
mod target;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::node::Endpoint;
use steadfast_core::report::PeerSentinel;
use steadfast_core::sentinel::{CouncilConfig, Heard, Primacy, SentinelCouncil, Testimony};

pub use self::status::{FailoverHistory, ReplicaStatus, SentinelContact, SentinelStatus};
pub(crate) use self::target::{SENTINELS, SentinelTarget};
use crate::clock;
use crate::error::connect::ConnectError;

/// The time that the first answer waits for a majority before one sentinel's word is enough.
const FOR_A_MAJORITY: Duration = Duration::from_millis(200);

/// The failovers that wait to be told, at most.
const UNTOLD: usize = 16;

/// Turns the addresses that sentinels announce into those that can be reached from here.
#[derive(Clone, Default)]
pub(crate) struct Translation(Option<Arc<Translate>>);

type Translate = dyn Fn(&str, u16) -> (String, u16) + Send + Sync;

impl Translation {
    pub(crate) fn new(by: impl Fn(&str, u16) -> (String, u16) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(by)))
    }

    pub(crate) fn of(&self, announced: Endpoint) -> Endpoint {
        match &self.0 {
            Some(translate) => {
                let (host, port) = translate(&announced.host, announced.port);
                Endpoint::new(&host, port)
            }
            None => announced,
        }
    }
}

impl std::fmt::Debug for Translation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "by a function"
        } else {
            "none"
        })
    }
}

/// The state of the discovery of a primary by sentinels.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) service: Arc<str>,
    known: Mutex<Known>,
    pub(crate) believed: tokio::sync::watch::Sender<Option<Primacy>>,
    /// Counts up when all sentinels are to be asked at once.
    pub(crate) wanted: tokio::sync::watch::Sender<u64>,
    started: Instant,
    /// The time at which the last majority was known to agree: nanoseconds after `started`, and
    /// one; or 0.
    majority_at: AtomicU64,
    /// Calls that may have written and were answered, ever.
    acknowledged: AtomicU64,
    /// The replicas, as the primary told of them last.
    pub(crate) replicas: Mutex<Vec<ReplicaStatus>>,
    /// Failovers whose cost is not known yet.
    pub(crate) untold: Mutex<VecDeque<Switch>>,
}

#[derive(Debug)]
struct Known {
    council: SentinelCouncil,
    contacts: BTreeMap<Endpoint, Contact>,
}

/// The last contact with one sentinel.
#[derive(Clone, Debug, Default)]
struct Contact {
    answered: Option<Instant>,
    /// The cause for which the last attempt failed, if it did.
    error: Option<Arc<str>>,
}

/// The change of the primary that an answer brought.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    pub(crate) from: Endpoint,
    pub(crate) to: Primacy,
    pub(crate) votes: usize,
    pub(crate) voters: usize,
    /// The time at which it became known, and the writes acknowledged until then.
    pub(crate) at: Instant,
    pub(crate) acknowledged: u64,
}

impl Discovery {
    pub(crate) fn new(target: &SentinelTarget, now: Instant) -> Self {
        let council = SentinelCouncil::new(target.seeds.clone(), CouncilConfig::default());
        Self {
            service: Arc::clone(&target.service),
            known: Mutex::new(Known {
                council,
                contacts: BTreeMap::new(),
            }),
            believed: tokio::sync::watch::Sender::new(None),
            wanted: tokio::sync::watch::Sender::new(0),
            started: now,
            majority_at: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            replicas: Mutex::default(),
            untold: Mutex::default(),
        }
    }

    /// Counts a call that may have written and was answered.
    pub(crate) fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Keeps a switch until it can be told with what it cost.
    pub(crate) fn note(&self, switch: &Switch) {
        let mut untold = self.untold.lock();
        if untold.len() == UNTOLD {
            untold.pop_front();
        }
        untold.push_back(switch.clone());
    }

    /// Has all sentinels asked at once.
    pub(crate) fn want(&self) {
        self.wanted.send_modify(|wanted| *wanted += 1);
    }

    /// Returns the number of the believed primary's time of office; 0 before there is one.
    pub(crate) fn term(&self) -> u64 {
        let believed = self.believed.borrow();
        believed.as_ref().map_or(0, |primacy| primacy.term.0)
    }

    /// Waits until another primary is believed than in this term.
    pub(crate) async fn switched(&self, term: u64) {
        let mut believed = self.believed.subscribe();
        // What was dialled before there was one is dialled for the first.
        let term = term.max(1);
        let other =
            |primacy: &Option<Primacy>| primacy.as_ref().is_some_and(|now| now.term.0 != term);
        let _ = believed.wait_for(other).await;
    }

    /// Returns the primary to dial. All sentinels are asked meanwhile, and while none is believed
    /// this waits.
    ///
    /// # Errors
    /// No sentinel has named one within the limit.
    pub(crate) async fn primary(&self, limit: Duration) -> Result<Primacy, ConnectError> {
        self.want();
        let mut believed = self.believed.subscribe();
        if believed.borrow().is_none() {
            let proven = async {
                while self.majority_at.load(Ordering::Relaxed) == 0 {
                    if believed.changed().await.is_err() {
                        break;
                    }
                }
            };
            let _ = clock::timeout(FOR_A_MAJORITY.min(limit), proven).await;
        }
        let named = believed.wait_for(Option::is_some);
        let named = clock::timeout(limit, named).await;
        let primacy = named.and_then(|named| named.ok().and_then(|named| named.clone()));
        primacy.ok_or_else(|| self.unnamed())
    }

    /// Says that no sentinel names a primary, and of each why.
    pub(crate) fn unnamed(&self) -> ConnectError {
        ConnectError::NoPrimary {
            service: self.service.to_string(),
            why: self.why_none(),
        }
    }

    /// Returns all sentinels that are to be asked.
    pub(crate) fn sentinels(&self) -> Vec<Endpoint> {
        self.known.lock().council.sentinels().cloned().collect()
    }

    /// Takes in what a sentinel has answered. Returns the switch, if that was one.
    pub(crate) fn hear(
        &self,
        from: &Endpoint,
        testimony: Testimony,
        peers: &[PeerSentinel],
        now: Instant,
    ) -> Option<Switch> {
        let mut known = self.known.lock();
        let contact = known.contacts.entry(from.clone()).or_default();
        contact.answered = Some(now);
        contact.error = testimony.primary.is_none().then(|| {
            let service = &self.service;
            format!("it watches no primary named `{service}`").into()
        });
        known.council.learn(peers, now);
        let Known { council, contacts } = &mut *known;
        contacts.retain(|endpoint, _| council.sentinels().any(|one| one == endpoint));
        let heard = known.council.hear(from, testimony, now);
        let confirmation = known.council.confirmation(now);
        // Of the primary that is believed now: what was proven of another proves nothing of it.
        let majority_at = confirmation.as_ref().and_then(|known| known.majority_at);
        let after = |at: Instant| at.saturating_duration_since(self.started).as_nanos() as u64;
        let majority_at = majority_at.map_or(0, |at| after(at) + 1);
        self.majority_at.store(majority_at, Ordering::Relaxed);
        // Told under the lock, so that nobody hears of an earlier one later.
        let primacy = known.council.primacy().cloned();
        self.believed.send_replace(primacy);
        drop(known);
        match heard {
            Heard::Switched {
                from: Some(from),
                to,
            } => Some(Switch {
                from,
                to,
                votes: confirmation.as_ref().map_or(0, |known| known.votes),
                voters: confirmation.map_or(0, |known| known.voters),
                at: now,
                acknowledged: self.acknowledged(),
            }),
            _ => None,
        }
    }

    /// Notes that a sentinel could not be asked.
    pub(crate) fn failed(&self, at: &Endpoint, why: &ConnectError) {
        let mut known = self.known.lock();
        let contact = known.contacts.entry(at.clone()).or_default();
        contact.error = Some(why.to_string().into());
    }

    /// Returns whether a majority of the sentinels has confirmed the primary within this time.
    pub(crate) fn is_proven(&self, within: Duration, now: Instant) -> bool {
        self.proof_age(now).is_some_and(|age| age <= within)
    }

    /// Returns how long ago a majority was last known to agree; `None` if it never was.
    pub(crate) fn proof_age(&self, now: Instant) -> Option<Duration> {
        let after = self.majority_at.load(Ordering::Relaxed).checked_sub(1)?;
        let at = self.started + Duration::from_nanos(after);
        Some(now.saturating_duration_since(at))
    }

    /// Says of each sentinel why it names no primary.
    fn why_none(&self) -> String {
        let known = self.known.lock();
        let each = known.council.sentinels().map(|endpoint| {
            let error = known
                .contacts
                .get(endpoint)
                .and_then(|c| c.error.as_deref());
            format!("{endpoint}: {}", error.unwrap_or("no answer yet"))
        });
        each.collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn status(&self, now: Instant) -> SentinelStatus {
        let known = self.known.lock();
        let confirmation = known.council.confirmation(now);
        let primacy = known.council.primacy();
        let sentinels = known.council.sentinels().map(|endpoint| {
            let contact = known.contacts.get(endpoint).cloned().unwrap_or_default();
            let dissents = confirmation
                .as_ref()
                .is_some_and(|known| known.dissenters.contains(endpoint));
            SentinelContact {
                address: endpoint.to_string(),
                answered_ms_ago: contact
                    .answered
                    .map(|at| clock::as_ms(now.saturating_duration_since(at))),
                error: contact.error.as_deref().map(str::to_owned),
                dissents,
            }
        });
        SentinelStatus {
            service: self.service.to_string(),
            primary: primacy.map(|primacy| primacy.primary.to_string()),
            epoch: primacy.map(|primacy| primacy.epoch),
            switches: primacy.map_or(0, |primacy| primacy.term.0.saturating_sub(1)),
            votes: confirmation.as_ref().map_or(0, |known| known.votes),
            voters: confirmation.as_ref().map_or(0, |known| known.voters),
            confirmed_ms_ago: self.proof_age(now).map(clock::as_ms),
            sentinels: sentinels.collect(),
            replicas: self.replicas.lock().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use steadfast_core::report::MonitoredPrimary;

    use super::*;

    #[test]
    fn t19_what_was_proven_of_the_old_primary_proves_nothing_of_the_new_one() {
        let seeds: Vec<_> = (1..4).map(|port| Endpoint::new("s", port)).collect();
        let target = SentinelTarget {
            seeds: seeds.clone(),
            service: "main".into(),
        };
        let now = clock::now();
        let discovery = Discovery::new(&target, now);
        let says = |primary: &str, epoch| Testimony {
            primary: Some(Endpoint::new(primary, 1)),
            monitored: MonitoredPrimary {
                config_epoch: epoch,
                run_id: None,
                other_sentinels: 2,
                quorum: 2,
                subjectively_down: false,
                objectively_down: false,
                failing_over: false,
            },
            sentinel: None,
            asked: now,
        };
        let within = Duration::from_secs(60);
        assert!(!discovery.is_proven(within, now));
        for seed in &seeds {
            discovery.hear(seed, says("a", 1), &[], now);
        }
        assert!(discovery.is_proven(within, now));
        let switch = discovery.hear(&seeds[0], says("b", 2), &[], now);
        assert!(switch.is_some(), "one word is enough to switch");
        assert!(!discovery.is_proven(within, now), "and not to write");
        discovery.hear(&seeds[1], says("b", 2), &[], now);
        assert!(discovery.is_proven(within, now));
    }
}
