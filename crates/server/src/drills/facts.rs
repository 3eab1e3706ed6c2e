//! A subject's facts, from what its client knows of itself.

use steadfast::{ConnectionState, Status};
use steadfast_drill::subject::{Breaker, Connection, Facts};

/// Returns a client's view of its connection. Its calls and queries are counted by whoever makes
/// them.
pub(super) fn facts_of(status: &Status) -> Facts {
    Facts {
        connection: match status.state {
            ConnectionState::Ready => Connection::Ready,
            ConnectionState::Connecting => Connection::Connecting,
            _ => Connection::Down,
        },
        breaker: match status.breaker {
            "open" => Breaker::Open,
            "half_open" => Breaker::HalfOpen,
            _ => Breaker::Closed,
        },
        attempts: status.attempts,
        reconnects: status.reconnects,
        stuck_resets: status.stuck_resets,
        redis_replies: status.answered,
        discoveries: status.cluster.as_ref().map(|cluster| cluster.discoveries),
        ..Facts::default()
    }
}
