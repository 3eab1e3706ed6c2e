//! The log line of each event.

use super::EventKind;

/// Writes what happened to the log; not aloud if it is a part of something that is.
pub(super) fn log(connection: usize, kind: &EventKind, aloud: bool) {
    match kind {
        kind if !aloud => {
            tracing::debug!(connection, event = kind.name(), details = ?kind, "redis flaps");
        }
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
        } => {
            // An outage of an hour is some 14 000 attempts: the first tells what is wrong, a
            // doubling number of them that it still is.
            if attempt.is_power_of_two() {
                tracing::warn!(connection, attempt, %cause, retry_in_ms, "cannot connect to redis");
            } else {
                tracing::debug!(connection, attempt, %cause, retry_in_ms, "cannot connect to redis");
            }
        }
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
        EventKind::Flapping(state) => tracing::warn!(
            connection, reconnects = state.reconnects, since_ms = state.since_ms, cause = %state.cause,
            "the connection to redis flaps: it is lost and replaced again and again"
        ),
        EventKind::FlappingEnded(state) => tracing::info!(
            connection,
            reconnects = state.reconnects,
            since_ms = state.since_ms,
            "the connection to redis no longer flaps"
        ),
        EventKind::Recovered { .. }
        | EventKind::Fenced { .. }
        | EventKind::Reauthenticated
        | EventKind::Closed { .. } => {
            tracing::info!(connection, event = kind.name(), details = ?kind, "redis connection");
        }
    }
}
