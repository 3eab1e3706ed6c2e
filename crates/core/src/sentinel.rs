//! The choice of the primary from the answers of several sentinels.
//!
//! A sentinel's answer can be years old: one that was cut off, or restored from a backup, names the
//! primary of that time with the same confidence as any other. What tells answers apart is
//! `config-epoch`, which each failover raises. So all sentinels are asked, and:
//!
//! - The highest epoch wins, also by one sentinel's word: only an election by a majority, or an
//!   operator, makes one.
//! - At the same epoch the majority decides; while there is none, what was believed stays.
//! - A lower epoch never wins against a higher one that some sentinel still tells. When none has
//!   told it for a while, and a majority tells the lower one, that is believed: the sentinel that
//!   led a failover may have died before it told the others, who then undo it; or all sentinels
//!   were made anew.
//! - One sentinel has one vote, under however many names it is reached.
//!
//! To be *confirmed* takes more than to be believed: a majority of all sentinels that are known,
//! not only of those that answer, within the last moments.
//!
//! A sentinel that was replaced must not count for ever among those that are known, or after a few
//! replacements there is no majority any more. Nor may one that is only cut off be forgotten, or
//! the few on this side of a partition become the majority. So three things come together before
//! one is forgotten: it has not answered for a minute; no other has told of it for as long, and a
//! sentinel goes on telling of those that it cannot reach until an operator resets it; and of all
//! that ever answered at the same time at least half answer now. Few sentinels that have lost their
//! memory in a partition are not enough, then: what was known of the others stays. With just half
//! of them neither side can elect. A seed always counts, because an operator has named it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::node::{Endpoint, MAX_SENTINELS};
use crate::report::{MonitoredPrimary, PeerSentinel};

/// The number of a primary's time of office. It rises by one with each switch, and travels with
/// each request: an answer that belongs to an earlier term comes from a server that was deposed
/// meanwhile, and does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// The times of a [`SentinelCouncil`].
#[derive(Clone, Copy, Debug)]
pub struct CouncilConfig {
    /// For how long an answer counts. Default 10 s, the pause between two confirmations.
    pub fresh: Duration,
    /// For how long no sentinel may have told the believed epoch before a lower one is believed.
    /// Default 10 s.
    pub unconfirmed: Duration,
    /// For how long a sentinel must have been silent, and no other have told of it, before it is
    /// forgotten. Default 60 s, several rounds of questions.
    pub forgotten_after: Duration,
}

impl Default for CouncilConfig {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(10),
            unconfirmed: Duration::from_secs(10),
            forgotten_after: Duration::from_secs(60),
        }
    }
}

/// The answer of one sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Testimony {
    /// The primary by `SENTINEL GET-MASTER-ADDR-BY-NAME`, which was asked second. `None` if it
    /// watches none of this name.
    pub primary: Option<Endpoint>,
    /// The answer to `SENTINEL MASTER`, which was asked first.
    pub monitored: MonitoredPrimary,
    /// The sentinel's own identity, where it tells one (`SENTINEL MYID`, Redis 6.2).
    pub sentinel: Option<Arc<str>>,
    /// When the questions were sent.
    pub asked: Instant,
}

/// The primary that the sentinels name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primacy {
    /// The endpoint of the primary.
    pub primary: Endpoint,
    /// The epoch of the configuration.
    pub epoch: u64,
    /// The term, counted by this client.
    pub term: Term,
    /// When the question was sent whose answer first told of it.
    pub since: Instant,
}

/// How well the believed primary is confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The sentinels that name this primary and epoch in answers that still count.
    pub votes: usize,
    /// The sentinels that have a vote: those that are known, or that one of them says there are; 32
    /// at most.
    pub voters: usize,
    /// The last moment at which a majority of them was known to agree.
    pub majority_at: Option<Instant>,
    /// The sentinels whose answers that still count name another primary or another epoch.
    pub dissenters: Vec<Endpoint>,
}

/// Gathers the answers of the sentinels that watch one primary.
#[derive(Debug)]
pub struct SentinelCouncil {
    config: CouncilConfig,
    sentinels: BTreeMap<Endpoint, Sentinel>,
    believed: Option<Primacy>,
    /// When the question was sent whose answer last told the believed primary and epoch.
    told: Option<Instant>,
    /// The sentinels that have answered at the same time, at most, since some were forgotten last.
    most_answered: usize,
}

#[derive(Debug, Default)]
struct Sentinel {
    /// When others first told of it. `None` of a seed.
    learnt: Option<Instant>,
    /// When others last told of it.
    named: Option<Instant>,
    /// The identity under which others told of it.
    told_id: Option<Arc<str>>,
    testimony: Option<Testimony>,
}

impl Sentinel {
    /// The name under which it votes, once, however many addresses it has.
    fn voter(&self, endpoint: &Endpoint) -> String {
        let own = self
            .testimony
            .as_ref()
            .and_then(|own| own.sentinel.as_ref());
        match own.or(self.told_id.as_ref()) {
            Some(id) => id.to_string(),
            None => endpoint.to_string(),
        }
    }
}

/// The effect of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A primary is believed from now on that was not before: another one, or the first one.
    Switched {
        /// The one until now.
        from: Option<Endpoint>,
        /// The one from now on.
        to: Primacy,
    },
    /// Everything stays as it was.
    Unchanged,
    /// The answer is older than one that this sentinel has given already.
    Outdated,
    /// The sentinel is not one of those that are known, or it is another than the one that others
    /// told of at this address. Its answer does not count.
    Stranger,
}

impl SentinelCouncil {
    /// Returns a council of these sentinels, of which the first 32 are taken.
    pub fn new(seeds: impl IntoIterator<Item = Endpoint>, config: CouncilConfig) -> Self {
        let seeds = seeds.into_iter().take(MAX_SENTINELS);
        Self {
            config,
            sentinels: seeds
                .map(|endpoint| (endpoint, Sentinel::default()))
                .collect(),
            believed: None,
            told: None,
            most_answered: 0,
        }
    }

    /// Returns all sentinels that are to be asked: the seeds, and those that others have told of.
    pub fn sentinels(&self) -> impl Iterator<Item = &Endpoint> {
        self.sentinels.keys()
    }

    /// Returns the primary that is believed.
    pub fn primacy(&self) -> Option<&Primacy> {
        self.believed.as_ref()
    }

    /// Takes in sentinels that another one has told of, as far as there are places. A place is
    /// taken from one that was told of before and has not answered lately, never from a seed.
    pub fn learn(&mut self, peers: &[PeerSentinel], now: Instant) {
        for peer in peers {
            if let Some(known) = self.sentinels.get_mut(&peer.endpoint) {
                known.named = known.named.max(Some(now));
                if known.learnt.is_some() && peer.run_id.is_some() {
                    known.told_id.clone_from(&peer.run_id);
                }
                continue;
            }
            if self.sentinels.len() >= MAX_SENTINELS {
                let silent = (self.sentinels.iter())
                    .find(|(_, sentinel)| {
                        let new = sentinel.learnt.is_none_or(|at| self.is_fresh(at, now));
                        !new && !self.counts(sentinel, now)
                    })
                    .map(|(endpoint, _)| endpoint.clone());
                let Some(silent) = silent else { return };
                self.sentinels.remove(&silent);
            }
            let learnt = Sentinel {
                learnt: Some(now),
                named: Some(now),
                told_id: peer.run_id.clone(),
                testimony: None,
            };
            self.sentinels.insert(peer.endpoint.clone(), learnt);
        }
    }

    /// Takes in the answer of a sentinel.
    pub fn hear(&mut self, from: &Endpoint, testimony: Testimony, now: Instant) -> Heard {
        let Some(sentinel) = self.sentinels.get_mut(from) else {
            return Heard::Stranger;
        };
        let told = sentinel.told_id.as_ref().zip(testimony.sentinel.as_ref());
        if told.is_some_and(|(told, own)| told != own) {
            // Somebody else's, at an address that was another's.
            return Heard::Stranger;
        }
        let earlier = sentinel.testimony.as_ref();
        if earlier.is_some_and(|earlier| earlier.asked > testimony.asked) {
            return Heard::Outdated;
        }
        sentinel.testimony = Some(testimony);
        self.forget(now);
        self.note_told();
        let Some((primary, epoch, since)) = self.elect(now) else {
            return Heard::Unchanged;
        };
        let from = self.believed.as_ref().map(|known| known.primary.clone());
        let term = self.believed.as_ref().map_or(Term(1), |known| {
            // Another epoch of the same primary is no switch: nobody was deposed.
            Term(known.term.0 + u64::from(known.primary != primary))
        });
        let is_switch = from.as_ref() != Some(&primary);
        let to = Primacy {
            primary,
            epoch,
            term,
            since,
        };
        self.believed = Some(to.clone());
        self.told = None;
        self.note_told();
        if is_switch {
            Heard::Switched { from, to }
        } else {
            Heard::Unchanged
        }
    }

    /// Returns how well the believed primary is confirmed. `None` before there is one.
    pub fn confirmation(&self, now: Instant) -> Option<Confirmation> {
        let believed = self.believed.as_ref()?;
        let agrees = |testimony: &Testimony| is_for(testimony, &believed.primary, believed.epoch);
        let votes = self.votes(|testimony| agrees(testimony));
        let voters = self.voters();
        let majority_at = votes.get(majority(voters) - 1).copied();
        let fresh = |asked: &Instant| self.is_fresh(*asked, now);
        let dissenters = (self.sentinels.iter())
            .filter(|(_, sentinel)| self.counts(sentinel, now))
            .filter(|(_, sentinel)| !sentinel.testimony.as_ref().is_some_and(agrees))
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        Some(Confirmation {
            votes: votes.iter().filter(|asked| fresh(asked)).count(),
            voters,
            majority_at,
            dissenters,
        })
    }

    /// Returns whether a majority of all sentinels has named the believed primary with its epoch
    /// within this time.
    pub fn is_proven(&self, within: Duration, now: Instant) -> bool {
        let confirmation = self.confirmation(now);
        let at = confirmation.and_then(|confirmation| confirmation.majority_at);
        at.is_some_and(|at| now.saturating_duration_since(at) <= within)
    }

    /// The primary and epoch to believe, if they differ from those that are believed.
    fn elect(&self, now: Instant) -> Option<(Endpoint, u64, Instant)> {
        let counting = || {
            let sentinels = self.sentinels.values();
            sentinels
                .filter(|sentinel| self.counts(sentinel, now))
                .filter_map(|sentinel| sentinel.testimony.as_ref())
        };
        let newest = counting()
            .filter(|testimony| testimony.primary.is_some())
            .map(|testimony| testimony.monitored.config_epoch)
            .max()?;
        let known = self.believed.as_ref();
        let candidates: BTreeSet<&Endpoint> = counting()
            .filter(|testimony| testimony.monitored.config_epoch == newest)
            .filter_map(|testimony| testimony.primary.as_ref())
            .collect();
        let votes = |candidate: &Endpoint| {
            let votes = self.votes(|testimony| is_for(testimony, candidate, newest));
            votes.iter().filter(|at| self.is_fresh(**at, now)).count()
        };
        let majority = majority(self.voters());
        let winner = candidates
            .iter()
            .copied()
            .find(|&one| votes(one) >= majority);
        let elected = match known {
            Some(known) if newest > known.epoch => match *candidates.iter().collect::<Vec<_>>() {
                [only] => only,
                // Two at once, both new: by an operator's hand at two sentinels.
                _ => winner?,
            },
            Some(known) if newest == known.epoch => {
                winner.filter(|winner| **winner != known.primary)?
            }
            Some(_) if self.is_told_no_more(now) => winner?,
            Some(_) => return None,
            None => match *candidates.iter().collect::<Vec<_>>() {
                [only] => only,
                _ => winner?,
            },
        };
        let asked = counting()
            .filter(|testimony| is_for(testimony, elected, newest))
            .map(|testimony| testimony.asked)
            .min()?;
        Some((elected.clone(), newest, asked))
    }

    /// Forgets those that were replaced: see the module. Of a seed only its last answer is
    /// forgotten, by which it voted and told how many there are.
    fn forget(&mut self, now: Instant) {
        let mut answering = BTreeSet::new();
        let mut signs: BTreeMap<String, Instant> = BTreeMap::new();
        for (endpoint, sentinel) in &self.sentinels {
            let voter = sentinel.voter(endpoint);
            let answered = sentinel.testimony.as_ref().map(|own| own.asked);
            // Each under all of its names.
            if let Some(sign) = answered.max(sentinel.named) {
                let last = signs.entry(voter.clone()).or_insert(sign);
                *last = (*last).max(sign);
            }
            if self.counts(sentinel, now) {
                answering.insert(voter);
            }
        }
        self.most_answered = self.most_answered.max(answering.len());
        if answering.len() * 2 < self.most_answered {
            return;
        }
        let limit = self.config.forgotten_after;
        let mut forgot = false;
        self.sentinels.retain(|endpoint, sentinel| {
            let sign = signs.get(&sentinel.voter(endpoint));
            if sign.is_none_or(|at| now.saturating_duration_since(*at) <= limit) {
                return true;
            }
            forgot = true;
            sentinel.testimony = None;
            sentinel.learnt.is_none()
        });
        if forgot {
            self.most_answered = answering.len();
        }
    }

    fn note_told(&mut self) {
        let Some(believed) = &self.believed else {
            return;
        };
        let votes = self.votes(|testimony| is_for(testimony, &believed.primary, believed.epoch));
        self.told = self.told.max(votes.first().copied());
    }

    fn is_told_no_more(&self, now: Instant) -> bool {
        self.told
            .is_none_or(|told| now.saturating_duration_since(told) > self.config.unconfirmed)
    }

    /// When each sentinel that agrees was asked, the latest first; each counted once, under however
    /// many names.
    fn votes(&self, agrees: impl Fn(&Testimony) -> bool) -> Vec<Instant> {
        let mut by_voter: BTreeMap<String, (Instant, bool)> = BTreeMap::new();
        for (endpoint, sentinel) in &self.sentinels {
            let Some(testimony) = &sentinel.testimony else {
                continue;
            };
            let vote = (testimony.asked, agrees(testimony));
            let voter = sentinel.voter(endpoint);
            let last = by_voter.entry(voter).or_insert(vote);
            if last.0 < vote.0 {
                *last = vote;
            }
        }
        let mut votes: Vec<Instant> = by_voter
            .into_values()
            .filter_map(|(asked, agrees)| agrees.then_some(asked))
            .collect();
        votes.sort_unstable_by(|a, b| b.cmp(a));
        votes
    }

    /// Returns the number of sentinels there are, by all that is known: before any has answered,
    /// that of the seeds. One that tells too high a number makes a majority harder to find, never
    /// easier.
    pub fn voters(&self) -> usize {
        let names: BTreeSet<String> = (self.sentinels.iter())
            .map(|(endpoint, sentinel)| sentinel.voter(endpoint))
            .collect();
        let told = (self.sentinels.values())
            .filter_map(|sentinel| sentinel.testimony.as_ref())
            .map(|testimony| testimony.monitored.other_sentinels.saturating_add(1))
            .max();
        names.len().max(told.unwrap_or(1)).clamp(1, MAX_SENTINELS)
    }

    fn counts(&self, sentinel: &Sentinel, now: Instant) -> bool {
        let testimony = sentinel.testimony.as_ref();
        testimony.is_some_and(|testimony| self.is_fresh(testimony.asked, now))
    }

    fn is_fresh(&self, asked: Instant, now: Instant) -> bool {
        now.saturating_duration_since(asked) <= self.config.fresh
    }
}

/// More than half.
fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn is_for(testimony: &Testimony, primary: &Endpoint, epoch: u64) -> bool {
    testimony.primary.as_ref() == Some(primary) && testimony.monitored.config_epoch == epoch
}

#[cfg(test)]
mod tests;
