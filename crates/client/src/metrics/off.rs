//! In the place of the metrics where the feature `metrics` is off: the same doors, and nothing
//! behind them.

use std::time::Duration;

use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Metrics;

impl Metrics {
    pub(crate) fn new(_events: &[&'static str]) -> Self {
        Self
    }

    pub(crate) fn retried(&self) {}

    pub(crate) fn answered(&self, _name: &'static str, _took: Duration) {}
}

pub(crate) fn count_error(_error: &Error) {}

pub(crate) fn count_event(_name: &'static str) {}

pub(crate) fn begin_replica_reads() {}

pub(crate) fn count_replica_read(_by: &'static str) {}

#[cfg(feature = "entra-id")]
pub(crate) fn begin_refreshes() {}

#[cfg(feature = "entra-id")]
pub(crate) fn count_refresh(_outcome: &'static str) {}

#[cfg(feature = "entra-id")]
pub(crate) fn credentials_expire_in(_left: Duration) {}
