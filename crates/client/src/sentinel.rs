//! The primary that the sentinels name: who is asked, who is believed, and how old that is.
//!
//! One task per sentinel asks and listens; what they hear goes to one council, whose rules are
//! those of `docs/design/several-servers.md`. The council only says which server to dial. That it
//! is a primary by its own word is asked in each handshake, as ever.

mod proof;
mod status;
mod target;
mod translation;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::node::Endpoint;
use steadfast_core::report::{PeerSentinel, SentinelReplica};
use steadfast_core::sentinel::{CouncilConfig, Heard, Primacy, SentinelCouncil, Testimony};

pub(crate) use self::proof::InLine;
pub use self::status::{FailoverHistory, ReplicaStatus, SentinelContact, SentinelStatus};
pub(crate) use self::target::{SENTINELS, SentinelTarget};
pub(crate) use self::translation::Translation;
use crate::clock;
use crate::error::connect::ConnectError;

/// The time that the first answer waits for a majority before one sentinel's word is enough.
const FOR_A_MAJORITY: Duration = Duration::from_millis(200);

/// The time for which a sentinel's word on replicas stands: two rounds of questions, and a half.
const REPLICAS_FRESH: Duration = Duration::from_secs(25);

/// The failovers that wait to be told, at most.
const UNTOLD: usize = 16;

/// A sentinel's answers in one round of questions.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) testimony: Testimony,
    /// The other sentinels that it knows.
    pub(crate) peers: Vec<PeerSentinel>,
    /// The replicas that it knows, those that are away too. `None` if it does not say.
    pub(crate) replicas: Option<Vec<SentinelReplica>>,
}

impl Answer {
    pub(crate) fn translate(&mut self, by: &Translation) {
        let primary = self.testimony.primary.iter_mut();
        let peers = self.peers.iter_mut().map(|peer| &mut peer.endpoint);
        let replicas = self.replicas.iter_mut().flatten();
        let replicas = replicas.map(|replica| &mut replica.endpoint);
        for endpoint in primary.chain(peers).chain(replicas) {
            *endpoint = by.of(endpoint.clone());
        }
    }
}

/// The state of the discovery of a primary by sentinels.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) service: Arc<str>,
    known: Mutex<KnownSentinels>,
    pub(crate) believed: tokio::sync::watch::Sender<Option<Primacy>>,
    /// Counts up when all sentinels are to be asked at once.
    pub(crate) wanted: tokio::sync::watch::Sender<u64>,
    /// Counts up when a sentinel has told of a switch: that is worth a question to all, however
    /// often they were asked just before.
    pub(crate) told: tokio::sync::watch::Sender<u64>,
    started: Instant,
    /// The time at which the last majority was known to agree: nanoseconds after `started`, and
    /// one; or 0.
    majority_at: AtomicU64,
    /// The writes that wait for a proof, one after the other; and how many there are.
    line: tokio::sync::Mutex<()>,
    in_line: AtomicUsize,
    /// Of the last proof that was found too old: which, and when it was.
    lapsed: Mutex<Option<(u64, Instant)>>,
    /// Calls that may have written and were answered, ever.
    acknowledged: AtomicU64,
    /// The replicas, as the primary told of them last; `None` while it tells nothing.
    pub(crate) replicas: Mutex<Option<Vec<ReplicaStatus>>>,
    /// The commands by which the server does not let this user ask it of itself.
    pub(crate) not_allowed: Mutex<BTreeSet<&'static str>>,
    /// Failovers whose cost is not known yet.
    pub(crate) untold: Mutex<VecDeque<Switch>>,
}

#[derive(Debug)]
struct KnownSentinels {
    council: SentinelCouncil,
    contacts: BTreeMap<Endpoint, Contact>,
    /// The replicas, as a sentinel told of them last that names the believed primary.
    replicas: Vec<SentinelReplica>,
    /// The time at which it did.
    replicas_at: Option<Instant>,
}

/// The last contact with one sentinel.
#[derive(Clone, Debug, Default)]
struct Contact {
    answered: Option<Instant>,
    /// The cause for which the last attempt failed, if it did.
    error: Option<Arc<str>>,
    /// The last answer.
    said: Option<LastAnswers>,
}

/// A sentinel's last answers, as far as people want to see them.
#[derive(Clone, Debug)]
struct LastAnswers {
    primary: Option<Endpoint>,
    epoch: u64,
    quorum: usize,
    down: bool,
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
            known: Mutex::new(KnownSentinels {
                council,
                contacts: BTreeMap::new(),
                replicas: Vec::new(),
                replicas_at: None,
            }),
            believed: tokio::sync::watch::Sender::new(None),
            wanted: tokio::sync::watch::Sender::new(0),
            told: tokio::sync::watch::Sender::new(0),
            started: now,
            majority_at: AtomicU64::new(0),
            line: tokio::sync::Mutex::default(),
            in_line: AtomicUsize::new(0),
            lapsed: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            replicas: Mutex::default(),
            not_allowed: Mutex::default(),
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

    /// Has all sentinels asked, because one of them tells of a switch.
    pub(crate) fn tell(&self) {
        self.told.send_modify(|told| *told += 1);
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
    pub(crate) fn hear(&self, from: &Endpoint, answer: Answer, now: Instant) -> Option<Switch> {
        let Answer {
            testimony,
            peers,
            replicas,
        } = answer;
        let said = LastAnswers {
            primary: testimony.primary.clone(),
            epoch: testimony.monitored.config_epoch,
            quorum: testimony.monitored.quorum,
            down: testimony.monitored.objectively_down,
        };
        let mut known = self.known.lock();
        let KnownSentinels {
            council, contacts, ..
        } = &mut *known;
        council.learn(&peers, now);
        contacts.retain(|endpoint, _| council.sentinels().any(|one| one == endpoint));
        let heard = council.hear(from, testimony, now);
        let contact = contacts.entry(from.clone()).or_default();
        contact.answered = Some(now);
        contact.error = match (&heard, &said.primary) {
            (Heard::Stranger, _) => Some(STRANGER.into()),
            (_, None) => {
                let service = &self.service;
                Some(format!("it watches no primary named `{service}`").into())
            }
            _ => None,
        };
        if matches!(heard, Heard::Switched { .. }) {
            // Those that were told of belong to another primary.
            known.replicas.clear();
            known.replicas_at = None;
            *self.replicas.lock() = None;
        }
        let believed = known.council.primacy();
        let agrees =
            believed.is_some_and(|believed| Some(&believed.primary) == said.primary.as_ref());
        if let Some(replicas) = replicas.filter(|_| agrees && heard != Heard::Stranger) {
            known.replicas = replicas;
            known.replicas_at = Some(now);
        }
        known.contacts.entry(from.clone()).or_default().said = Some(said);
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
        let connected = self.replicas.lock().clone();
        let replicas_are_fresh = known
            .replicas_at
            .is_some_and(|at| now.saturating_duration_since(at) <= REPLICAS_FRESH);
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
                names: contact
                    .said
                    .as_ref()
                    .and_then(|said| said.primary.as_ref())
                    .map(Endpoint::to_string),
                epoch: contact.said.as_ref().map(|said| said.epoch),
                quorum: contact.said.as_ref().map(|said| said.quorum),
                thinks_down: contact.said.as_ref().is_some_and(|said| said.down),
            }
        });
        SentinelStatus {
            service: self.service.to_string(),
            primary: primacy.map(|primacy| primacy.primary.to_string()),
            epoch: primacy.map(|primacy| primacy.epoch),
            switches: primacy.map_or(0, |primacy| primacy.term.0.saturating_sub(1)),
            votes: confirmation.as_ref().map_or(0, |known| known.votes),
            voters: known.council.voters(),
            confirmed_ms_ago: self.proof_age(now).map(clock::as_ms),
            sentinels: sentinels.collect(),
            replicas_known: connected.is_some() || replicas_are_fresh,
            replicas: all_replicas(connected, &known.replicas, replicas_are_fresh),
            not_allowed: self.not_allowed.lock().iter().copied().collect(),
        }
    }
}

/// The replicas that the primary tells of, and those that only the sentinels know: they are away,
/// or if nobody has told of late, it is not known how they are.
fn all_replicas(
    connected: Option<Vec<ReplicaStatus>>,
    known: &[SentinelReplica],
    is_fresh: bool,
) -> Vec<ReplicaStatus> {
    let mut all = connected.unwrap_or_default();
    for replica in known {
        let address = replica.endpoint.to_string();
        match all.iter_mut().find(|one| one.address == address) {
            Some(one) => one.priority = replica.priority,
            None => all.push(ReplicaStatus {
                address,
                // The primary may not have been asked, or may not be allowed to be.
                in_sync: replica.in_sync && is_fresh,
                lag_bytes: None,
                priority: replica.priority,
            }),
        }
    }
    all
}

/// The answer of a sentinel that is not heard.
const STRANGER: &str =
    "it is not heard: it has another id than the sentinel that others know at this address";

#[cfg(test)]
mod tests;
