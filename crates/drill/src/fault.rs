//! Faults of the wire, a file each, named as Toxiproxy names them, so that whoever knows
//! that tool knows this one.
//!
//! A fault says nothing of sockets or tasks. It is given what comes along a connection, in pieces
//! with the moment of their arrival, and answers with pieces and the moments at which they may go
//! on. So each can be tested without a wire, and what it draws at random comes from a seed.
//!
//! Toxiproxy's: [`Latency`], [`Bandwidth`], [`SlowClose`], [`Timeout`], [`ResetPeer`], [`Slicer`],
//! [`LimitData`], and [`Down`], which there is a property of the proxy. Ours: [`Stall`], [`Hold`],
//! [`Corrupt`], [`RejectNext`], and those that know Redis' protocol: [`RespError`], [`RespReply`],
//! [`RespDelay`], [`RespSilence`].
//!
//! ```no_run
//! use std::time::Duration;
//! use steadfast_drill::fault::{Latency, ResetPeer, RespDelay, RespError, Stall, Toxic};
//! use steadfast_drill::proxy::Proxy;
//!
//! # async fn example(proxy: Proxy) -> Result<(), Box<dyn std::error::Error>> {
//! let jitter = Duration::from_millis(20);
//! proxy.add(Toxic::new(Latency { jitter, ..Latency::of_millis(100) })).await?;
//! proxy.add(Toxic::new(ResetPeer { timeout: Duration::ZERO }).toxicity(0.1)).await?; // a tenth
//! proxy.add(Toxic::new(Stall {}).both()).await?; // a network that is cut, and mended later
//! proxy.clear().await;
//!
//! // Those that know Redis' protocol need a proxy with `ProxyBuilder::resp`.
//! proxy.add(Toxic::new(RespError::readonly())).await?; // writes, as a replica refuses them
//! let late = r#"{"commands": ["GET"], "percentage": 50, "delay": 250}"#;
//! proxy.add(Toxic::new(serde_json::from_str::<RespDelay>(late)?)).await?;
//! # Ok(()) }
//! ```

mod bandwidth;
mod corrupt;
mod down;
mod error;
mod hold;
mod latency;
mod limit_data;
mod refused;
mod reject_next;
mod reset_peer;
mod resp;
mod resp_delay;
mod resp_error;
mod resp_reply;
mod resp_silence;
mod slicer;
mod slow_close;
mod stage;
mod stall;
mod timeout;
mod toxic;

pub use bandwidth::Bandwidth;
pub use corrupt::Corrupt;
pub use down::Down;
pub use error::FaultError;
pub use hold::Hold;
pub use latency::Latency;
pub use limit_data::LimitData;
pub use reject_next::RejectNext;
pub use reset_peer::ResetPeer;
pub use resp_delay::RespDelay;
pub use resp_error::RespError;
pub use resp_reply::RespReply;
pub use resp_silence::RespSilence;
pub use slicer::Slicer;
pub use slow_close::SlowClose;
pub use stall::Stall;
pub use timeout::Timeout;
pub use toxic::{Direction, Fault, Toxic};

pub(crate) use resp::{RespFault, Treatment};
pub(crate) use stage::{Admits, Item, Out, Stage, Touched};

/// Durations as Toxiproxy writes them: whole milliseconds.
mod millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// Durations as Toxiproxy's slicer writes them: whole microseconds.
mod micros {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}
