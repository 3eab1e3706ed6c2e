//! The service's knowledge of itself, counted and kept while it runs. Everything that is shown or
//! told to anybody is derived from here.

pub(crate) mod failovers;
pub(crate) mod feed;
pub(crate) mod felt;
pub(crate) mod figures;
pub(crate) mod minutes;
pub(crate) mod outages;
pub(crate) mod tally;
pub(crate) mod vitals;

use std::sync::Arc;

use feed::EventFeed;
use felt::Felt;
use minutes::Minutes;
use outages::{Outage, Outages};
use tally::RequestStats;
use vitals::Vitals;

/// Counts, events and outages of one service.
#[derive(Debug)]
pub(crate) struct Observations {
    pub(crate) feed: EventFeed,
    pub(crate) tally: RequestStats,
    pub(crate) felt: Felt,
    pub(crate) minutes: Minutes,
    pub(crate) outages: Outages,
    pub(crate) vitals: Arc<Vitals>,
}

impl Observations {
    /// Creates the observations of a service that starts at this date.
    pub(crate) fn new(started_ms: u64) -> Self {
        Self {
            feed: EventFeed::new(started_ms),
            tally: RequestStats::default(),
            felt: Felt::default(),
            minutes: Minutes::default(),
            outages: Outages::default(),
            vitals: Arc::default(),
        }
    }

    /// The last outages, with what has been felt of them so far.
    pub(crate) fn outages_now(&self) -> Vec<Outage> {
        self.outages.list(|| self.tally.counts())
    }
}
