//! A fault with where it takes hold, as Toxiproxy's clients write it.

use super::error::within;
use super::stage::{Stage, Touched};
use super::{
    Bandwidth, Corrupt, Down, FaultError, Hold, Latency, LimitData, RejectNext, ResetPeer,
    RespDelay, RespError, RespFault, RespReply, RespSilence, Slicer, SlowClose, Stall, Timeout,
};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A fault, and which connections it takes hold of.
///
/// As JSON or TOML it is what Toxiproxy's clients send and expect:
///
/// ```
/// use steadfast_drill::fault::{Direction, Fault, Latency, Toxic};
///
/// let toxic: Toxic = serde_json::from_str(
///     r#"{"name": "slow", "type": "latency", "stream": "upstream", "toxicity": 0.5,
///         "attributes": {"latency": 100}}"#,
/// )?;
/// assert_eq!(toxic.direction, Direction::Upstream);
/// assert_eq!(toxic.fault, Fault::Latency(Latency::of_millis(100)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenToxic", into = "WrittenToxic")]
pub struct Toxic {
    /// The toxic's name. Default: the fault's name and the direction, `latency_downstream`.
    pub name: String,
    /// The direction of the bytes that it touches. Default: downstream. Without meaning for `down`,
    /// `reject_next` and the RESP faults.
    pub direction: Direction,
    /// The share of connections that it takes hold of, 0 to 1. Default: 1. Without meaning for
    /// `down` and `reject_next`.
    pub toxicity: f64,
    /// The fault itself.
    pub fault: Fault,
}

/// The direction in which bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the client to the server.
    Upstream,
    /// From the server to the client.
    #[default]
    Downstream,
    /// Both ways. (Toxiproxy knows only the other two.)
    Both,
}

/// A fault of the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// See [`Latency`].
    Latency(Latency),
    /// See [`Bandwidth`].
    Bandwidth(Bandwidth),
    /// See [`SlowClose`].
    SlowClose(SlowClose),
    /// See [`Timeout`].
    Timeout(Timeout),
    /// See [`ResetPeer`].
    ResetPeer(ResetPeer),
    /// See [`Slicer`].
    Slicer(Slicer),
    /// See [`LimitData`].
    LimitData(LimitData),
    /// See [`Down`].
    Down(Down),
    /// See [`Stall`].
    Stall(Stall),
    /// See [`Hold`].
    Hold(Hold),
    /// See [`Corrupt`].
    Corrupt(Corrupt),
    /// See [`RejectNext`].
    RejectNext(RejectNext),
    /// See [`RespError`].
    RespError(RespError),
    /// See [`RespReply`].
    RespReply(RespReply),
    /// See [`RespDelay`].
    RespDelay(RespDelay),
    /// See [`RespSilence`].
    RespSilence(RespSilence),
}

impl Toxic {
    /// A fault that takes hold of every connection, downstream (from the server to the client).
    #[must_use]
    pub fn new(fault: impl Into<Fault>) -> Self {
        let fault = fault.into();
        let direction = Direction::default();
        Self {
            name: default_name(&fault, direction),
            direction,
            toxicity: 1.0,
            fault,
        }
    }

    /// The same fault in that direction, and named after it.
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self.name = default_name(&self.fault, direction);
        self
    }

    /// The same fault, from the client to the server.
    #[must_use]
    pub fn upstream(self) -> Self {
        self.direction(Direction::Upstream)
    }

    /// The same fault, both ways.
    #[must_use]
    pub fn both(self) -> Self {
        self.direction(Direction::Both)
    }

    /// The same fault for that share of the connections.
    #[must_use]
    pub fn toxicity(mut self, toxicity: f64) -> Self {
        self.toxicity = toxicity;
        self
    }

    /// Refuses numbers that mean nothing, NaN included.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn check(&self) -> Result<(), FaultError> {
        within("toxicity", self.toxicity, 0.0, 1.0)?;
        match &self.fault {
            Fault::Corrupt(corrupt) => corrupt.check(),
            Fault::RespError(error) => error.check(),
            Fault::RespReply(reply) => reply.check(),
            Fault::RespDelay(delay) => delay.check(),
            Fault::RespSilence(silence) => silence.check(),
            _ => Ok(()),
        }
    }

    /// Whether it takes hold of the connection of that number, by the seed.
    pub(crate) fn takes(&self, seed: u64, connection: u64) -> bool {
        self.toxicity >= 1.0 || self.rng(seed, connection).f64() < self.toxicity
    }

    /// Returns the random numbers that it draws on a connection.
    pub(crate) fn rng(&self, seed: u64, connection: u64) -> Rng {
        let name = self.name.bytes().fold(FNV_BASIS, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
        });
        Rng::with_seed(seed ^ name ^ connection.wrapping_mul(GOLDEN))
    }
}

impl Fault {
    /// Returns the fault's name, which is Toxiproxy's `type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Latency(_) => "latency",
            Self::Bandwidth(_) => "bandwidth",
            Self::SlowClose(_) => "slow_close",
            Self::Timeout(_) => "timeout",
            Self::ResetPeer(_) => "reset_peer",
            Self::Slicer(_) => "slicer",
            Self::LimitData(_) => "limit_data",
            Self::Down(_) => "down",
            Self::Stall(_) => "stall",
            Self::Hold(_) => "hold",
            Self::Corrupt(_) => "corrupt",
            Self::RejectNext(_) => "reject_next",
            Self::RespError(_) => "resp_error",
            Self::RespReply(_) => "resp_reply",
            Self::RespDelay(_) => "resp_delay",
            Self::RespSilence(_) => "resp_silence",
        }
    }

    /// Returns what it does to the bytes of one direction of a connection, if it concerns those.
    /// Faults that act on some bytes only count them in `touched` themselves; others have acted
    /// once they take hold.
    pub(crate) fn stage(
        &self,
        now: Instant,
        rng: Rng,
        touched: &Touched,
    ) -> Option<Box<dyn Stage>> {
        let stage: Box<dyn Stage> = match self {
            Self::SlowClose(slow_close) => {
                return Some(Box::new(slow_close.stage(touched.clone())));
            }
            Self::LimitData(limit_data) => {
                return Some(Box::new(limit_data.stage(touched.clone())));
            }
            Self::Corrupt(corrupt) => return Some(Box::new(corrupt.stage(rng, touched.clone()))),
            Self::Latency(latency) => Box::new(latency.stage(rng)),
            Self::Bandwidth(bandwidth) => Box::new(bandwidth.stage()),
            Self::Timeout(timeout) => Box::new(timeout.stage(now)),
            Self::ResetPeer(reset_peer) => Box::new(reset_peer.stage(now)),
            Self::Slicer(slicer) => Box::new(slicer.stage(rng)),
            Self::Stall(stall) => Box::new(stall.stage()),
            Self::Hold(hold) => Box::new(hold.stage()),
            Self::Down(_)
            | Self::RejectNext(_)
            | Self::RespError(_)
            | Self::RespReply(_)
            | Self::RespDelay(_)
            | Self::RespSilence(_) => return None,
        };
        touched.once();
        Some(stage)
    }

    /// Returns what it does to commands and replies, if it concerns those.
    pub(crate) fn resp(&self) -> Option<RespFault> {
        match self {
            Self::RespError(error) => Some(error.resp()),
            Self::RespReply(reply) => Some(reply.resp()),
            Self::RespDelay(delay) => Some(delay.resp()),
            Self::RespSilence(silence) => Some(silence.resp()),
            _ => None,
        }
    }
}

macro_rules! into_fault {
    ($($fault:ident),*) => {
        $(impl From<$fault> for Fault {
            fn from(fault: $fault) -> Self {
                Self::$fault(fault)
            }
        })*
    };
}

into_fault!(
    Latency,
    Bandwidth,
    SlowClose,
    Timeout,
    ResetPeer,
    Slicer,
    LimitData,
    Down,
    Stall,
    Hold,
    Corrupt,
    RejectNext,
    RespError,
    RespReply,
    RespDelay,
    RespSilence
);

fn default_name(fault: &Fault, direction: Direction) -> String {
    let direction = match direction {
        Direction::Upstream => "upstream",
        Direction::Downstream => "downstream",
        Direction::Both => "both",
    };
    format!("{}_{direction}", fault.name())
}

/// A toxic as it is written in JSON or TOML.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenToxic {
    #[serde(default)]
    name: Option<String>,
    #[serde(rename = "type")]
    fault: String,
    #[serde(default)]
    stream: Direction,
    #[serde(default = "every")]
    toxicity: f64,
    #[serde(default)]
    attributes: serde_json::Map<String, serde_json::Value>,
}

fn every() -> f64 {
    1.0
}

impl TryFrom<WrittenToxic> for Toxic {
    type Error = FaultError;

    fn try_from(written: WrittenToxic) -> Result<Self, FaultError> {
        let fault = serde_json::json!({ written.fault: written.attributes });
        let fault: Fault = serde_json::from_value(fault)
            .map_err(|error| FaultError::Unknown(error.to_string()))?;
        let name = written.name.filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| default_name(&fault, written.stream));
        let toxic = Self {
            name,
            direction: written.stream,
            toxicity: written.toxicity,
            fault,
        };
        toxic.check()?;
        Ok(toxic)
    }
}

impl From<Toxic> for WrittenToxic {
    fn from(toxic: Toxic) -> Self {
        let attributes = match serde_json::to_value(&toxic.fault) {
            Ok(serde_json::Value::Object(mut fault)) => fault.remove(toxic.fault.name()),
            _ => None,
        };
        let attributes = match attributes {
            Some(serde_json::Value::Object(attributes)) => attributes,
            _ => serde_json::Map::new(),
        };
        let fault = toxic.fault.name().to_owned();
        Self {
            name: Some(toxic.name),
            fault,
            stream: toxic.direction,
            toxicity: toxic.toxicity,
            attributes,
        }
    }
}

/// FNV-1a: names differ in few letters, and their draws must differ.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_fault_is_written_as_toxiproxy_writes_it_and_read_back() {
        let faults: [(Fault, &str); 8] = [
            (
                Latency {
                    latency: Duration::from_millis(5),
                    jitter: Duration::from_millis(2),
                }
                .into(),
                r#"{"jitter":2,"latency":5}"#,
            ),
            (Bandwidth { rate: 9 }.into(), r#"{"rate":9}"#),
            (
                SlowClose {
                    delay: Duration::from_millis(3),
                }
                .into(),
                r#"{"delay":3}"#,
            ),
            (
                Timeout {
                    timeout: Duration::ZERO,
                }
                .into(),
                r#"{"timeout":0}"#,
            ),
            (
                ResetPeer {
                    timeout: Duration::from_secs(1),
                }
                .into(),
                r#"{"timeout":1000}"#,
            ),
            (
                Slicer {
                    average_size: 4,
                    size_variation: 2,
                    delay: Duration::from_micros(7),
                }
                .into(),
                r#"{"average_size":4,"delay":7,"size_variation":2}"#,
            ),
            (LimitData { bytes: 11 }.into(), r#"{"bytes":11}"#),
            (Down {}.into(), "{}"),
        ];
        for (fault, attributes) in faults {
            let toxic = Toxic::new(fault);
            let written = serde_json::to_value(&toxic).unwrap();
            assert_eq!(written["attributes"].to_string(), attributes);
            assert_eq!(written["type"], toxic.fault.name());
            assert_eq!(serde_json::from_value::<Toxic>(written).unwrap(), toxic);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for toxicity in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let refused = Toxic::new(Stall {}).toxicity(toxicity).check().unwrap_err();
            assert!(refused.to_string().starts_with("toxicity is"), "{refused}");
        }
        let read = |json: &str| serde_json::from_str::<Toxic>(json).unwrap_err().to_string();
        assert!(read(r#"{"type": "lightning"}"#).contains("lightning"));
        assert!(read(r#"{"type": "latency", "attributes": {"latencyy": 1}}"#).contains("latencyy"));
        assert!(read(r#"{"type": "stall", "toxicity": 7}"#).contains("toxicity"));
    }

    #[test]
    fn toxicity_takes_its_share_of_connections_and_the_same_ones_by_the_same_seed() {
        let toxic = Toxic::new(Stall {}).toxicity(0.3);
        let taken = |seed| {
            (0..10_000)
                .filter(|connection| toxic.takes(seed, *connection))
                .collect::<Vec<_>>()
        };
        assert!(
            (2_700..3_300).contains(&taken(1).len()),
            "{}",
            taken(1).len()
        );
        assert_eq!(taken(1), taken(1));
        assert_ne!(taken(1), taken(2));
        assert!(!(0..1_000).any(|connection| toxic.clone().toxicity(0.0).takes(1, connection)));
    }
}
