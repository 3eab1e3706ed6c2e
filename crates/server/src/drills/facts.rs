//! What the client of a subject knows of itself, in the words of the lab.

use steadfast::{ConnectionState, Status};
use steadfast_drill::subject::{Breaker, Connection, Facts};

/// What a client knows of its connection. Its calls and queries are counted by whoever makes them.
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
        ..Facts::default()
    }
}
