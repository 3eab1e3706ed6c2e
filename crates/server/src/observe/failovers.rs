//! The cost of failovers, counted: an alert is to wake somebody for writes that may be lost, and
//! not for a primary that has moved.

use metrics::counter;
use steadfast::FailoverHistory;

const FAILOVERS: &str = "steadfast_redis_failovers_total";
const AT_RISK: &str = "steadfast_redis_writes_at_risk_total";

/// Lets each counter begin at 0.
pub(crate) fn begin_counters() {
    for history in ["same", "forked", "unknown"] {
        counter!(FAILOVERS, "history" => history).increment(0);
    }
    counter!(AT_RISK).increment(0);
}

/// Counts a failover.
pub(crate) fn count(history: &FailoverHistory) {
    let (name, at_risk) = match history {
        FailoverHistory::Same { at_risk, .. } => ("same", *at_risk),
        FailoverHistory::Forked => ("forked", 0),
        _ => ("unknown", 0),
    };
    counter!(FAILOVERS, "history" => name).increment(1);
    counter!(AT_RISK).increment(at_risk);
}
