//! The log line of each event.

use super::{EventKind, Flapping};

/// Writes what happened to the log; not aloud if it is a part of something that is.
pub(super) fn log(connection: usize, kind: &EventKind, aloud: bool) {
    if aloud {
        log_aloud(connection, kind);
    } else {
        tracing::debug!(connection, event = kind.name(), details = ?kind, "redis flaps");
    }
}

fn log_aloud(connection: usize, kind: &EventKind) {
    match kind {
        EventKind::Connected {
            address,
            version,
            attempt,
            outage_ms,
            took_ms,
            refused,
        } => tracing::info!(
            connection,
            address,
            version,
            attempt,
            outage_ms,
            took_ms,
            refused,
            "connected to redis"
        ),
        EventKind::ConnectFailed {
            attempt,
            cause,
            retry_in_ms,
        } => log_attempt(connection, *attempt, cause, *retry_in_ms),
        EventKind::Lost {
            cause,
            unknown,
            not_sent,
        } => tracing::warn!(connection, %cause, unknown, not_sent, "connection to redis lost"),
        EventKind::Unresponsive { quiet_ms } => {
            tracing::warn!(connection, quiet_ms, "redis is overdue with its answers");
        }
        EventKind::Down { cause } => {
            tracing::error!(connection, %cause, "redis is down, calls are refused at once");
        }
        EventKind::Breaker { from, to, cause } => {
            tracing::warn!(connection, from, to, cause, "breaker changed");
        }
        EventKind::StuckReset { stuck_ms } => {
            tracing::error!(connection, stuck_ms, "supervisor was stuck, started anew");
        }
        EventKind::FenceRefused { cause } => tracing::warn!(
            connection, %cause,
            "redis does not allow CLIENT KILL: last-wins writes of unknown outcome are not repeated"
        ),
        EventKind::CredentialsFailed { cause } => {
            tracing::error!(connection, %cause, "credentials failed");
        }
        EventKind::Replaced { cause, unknown } => {
            tracing::warn!(connection, %cause, unknown, "connection to redis replaced");
        }
        EventKind::FailedOver { .. } | EventKind::OtherCluster { .. } => log_other_servers(kind),
        EventKind::Flapping(state) => log_flapping(connection, state),
        EventKind::FlappingEnded(state) => log_steady(connection, state),
        EventKind::Recovered { .. }
        | EventKind::Retired { .. }
        | EventKind::Fenced { .. }
        | EventKind::Reauthenticated
        | EventKind::Closed { .. } => {
            tracing::info!(connection, event = kind.name(), details = ?kind, "redis connection");
        }
    }
}

/// Tells that other servers are believed to serve, or are not.
fn log_other_servers(kind: &EventKind) {
    match kind {
        EventKind::FailedOver {
            from,
            to,
            epoch,
            votes,
            voters,
            history,
        } => tracing::warn!(
            from,
            to,
            epoch,
            votes,
            voters,
            ?history,
            "redis failed over to another primary"
        ),
        EventKind::OtherCluster {
            address,
            id,
            believed: false,
        } => tracing::warn!(
            address,
            id,
            "a seed leads to another cluster, which is not believed while members of this one answer"
        ),
        EventKind::OtherCluster { address, id, .. } => tracing::error!(
            address,
            id,
            "no node of the cluster answers, and a seed leads to another one: taken for ours, made anew"
        ),
        _ => {}
    }
}

/// Tells of an attempt to connect that failed. An outage of an hour is some 14 000 attempts: the
/// first tells what is wrong, a doubling number of them that it still is.
fn log_attempt(connection: usize, attempt: u32, cause: &str, retry_in_ms: f64) {
    if attempt.is_power_of_two() {
        tracing::warn!(connection, attempt, %cause, retry_in_ms, "cannot connect to redis");
    } else {
        tracing::debug!(connection, attempt, %cause, retry_in_ms, "cannot connect to redis");
    }
}

fn log_flapping(connection: usize, state: &Flapping) {
    tracing::warn!(
        connection, reconnects = state.reconnects, since_ms = state.since_ms, cause = %state.cause,
        "the connection to redis flaps: it is lost and replaced again and again"
    );
}

fn log_steady(connection: usize, state: &Flapping) {
    tracing::info!(
        connection,
        reconnects = state.reconnects,
        since_ms = state.since_ms,
        "the connection to redis no longer flaps"
    );
}
