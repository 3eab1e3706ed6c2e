//! Where one subject lives, and what is done to it there: a single Redis, one with a replica that
//! sentinels watch, or a cluster.

mod alone;
mod clustered;
mod watched;

use std::time::Duration;

use self::alone::Alone;
use self::clustered::ClusteredSite;
use self::watched::WatchedSite;
use crate::ledger::LedgerReport;
use crate::load::Lane;
use crate::process::ProcessError;
use crate::proxy::ProxyError;
use crate::scenario::{Fault, Scenario, Store};
use crate::subject::{Endpoint, Subject};

/// Why the servers of a subject could not be started.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum SiteError {
    /// No server.
    Server(#[from] ProcessError),
    /// No proxy.
    Proxy(#[from] ProxyError),
}

/// The servers to be broken, all of them private to one subject. Dropped, all of it is gone.
pub(crate) enum Site {
    Alone(Box<Alone>),
    Watched(Box<WatchedSite>),
    Clustered(Box<ClusteredSite>),
}

impl Site {
    pub(crate) async fn start(scenario: &Scenario) -> Result<Self, SiteError> {
        Ok(match scenario.store {
            Store::Cache => Self::Alone(Box::new(Alone::start(scenario).await?)),
            Store::Sentinel => Self::Watched(Box::new(WatchedSite::start().await?)),
            Store::Cluster => Self::Clustered(Box::new(ClusteredSite::start().await?)),
        })
    }

    /// Where the subject finds its Redis.
    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Alone(site) => site.endpoint(),
            Self::Watched(site) => site.endpoint(),
            Self::Clustered(site) => site.endpoint(),
        }
    }

    /// Keeps the data of now, if some fault will bring them back.
    pub(crate) async fn prepare(&self, scenario: &Scenario) -> Result<(), ProcessError> {
        match self {
            Self::Alone(site) => site.prepare(scenario).await,
            Self::Watched(_) | Self::Clustered(_) => Ok(()),
        }
    }

    pub(crate) async fn begin(
        &self,
        fault: &Fault,
        subject: &dyn Subject,
    ) -> Result<(), ProcessError> {
        match self {
            Self::Alone(site) => site.begin(fault, subject).await,
            Self::Watched(site) => site.begin(fault).await,
            Self::Clustered(site) => site.begin(fault).await,
        }
    }

    pub(crate) async fn end(
        &self,
        fault: &Fault,
        subject: &dyn Subject,
    ) -> Result<(), ProcessError> {
        match self {
            Self::Alone(site) => site.end(fault, subject).await,
            Self::Watched(site) => site.end(fault).await,
            Self::Clustered(site) => site.end(fault).await,
        }
    }

    /// Returns the fate of the writes, once no call is running any more, if the subject keeps a
    /// ledger.
    pub(crate) async fn ledger(&self, lane: &Lane) -> Result<Option<LedgerReport>, ProcessError> {
        match self {
            Self::Alone(_) => Ok(None),
            Self::Watched(site) => site.ledger(lane).await.map(Some),
            Self::Clustered(site) => site.ledger(lane).await.map(Some),
        }
    }

    /// Faults that acted on nothing: what they were to show was not shown.
    pub(crate) fn untouched(&self) -> Vec<&'static str> {
        match self {
            Self::Alone(site) => site.untouched(),
            Self::Watched(site) => site.untouched(),
            Self::Clustered(site) => site.untouched(),
        }
    }
}

/// The longest that a fault may take to begin or end.
pub(crate) const FAULT_LIMIT: Duration = Duration::from_secs(40);
