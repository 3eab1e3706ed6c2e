//! The answers of Redis, and the reasons why there is none.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use smallvec::SmallVec;
use steadfast::{Certainty, certainty};

/// The belief that values of this epoch are good, as it was at one moment.
#[derive(Clone, Debug)]
pub(crate) struct EpochView {
    pub(crate) epoch: Arc<str>,
    pub(super) watermark: u64,
    /// The number of the server that it is about.
    pub(super) server: u32,
    /// SQL was held against Redis since that was connected to.
    pub(crate) proven: bool,
}

/// A value that was seen in Redis, known well enough to be told from another: whoever fills must
/// not have been overtaken by another fill.
#[derive(Clone, Debug)]
pub(crate) struct SeenValue {
    pub(super) epoch_view: EpochView,
    /// The first bytes, which hold the checksum; none if there was nothing.
    pub(super) head: SmallVec<[u8; HEAD]>,
}

/// The reason why Redis was not of use.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RedisFailure {
    #[error("redis is not asked: {0}")]
    NotAsked(&'static str),
    #[error("redis has been replaced or rolled back")]
    Replaced,
    #[error("sql was rolled back: redis has applied what neither is in the outbox nor was counted")]
    Fallen,
    #[error("redis failed: {0}")]
    Failed(#[from] RedisError),
    #[error("redis did not answer within its limit")]
    Slow,
    #[error(
        "redis is not asked: less is left of what a read may spend on it than a question takes"
    )]
    NoTime,
}

/// The errors by which a server refuses a script before it begins.
const BEFORE_A_SCRIPT: [&str; 5] = ["NOPERM", "NOAUTH", "LOADING", "BUSY", "MASTERDOWN"];

impl RedisFailure {
    /// Whether Redis may have done what it was asked.
    pub(super) fn may_have_run(&self) -> bool {
        match self {
            Self::NoTime | Self::Fallen => false,
            // The client believes no script's words; those of the cache's own scripts never begin
            // so.
            Self::Failed(error) if BEFORE_A_SCRIPT.contains(&error.code().unwrap_or("")) => false,
            Self::Failed(error) => certainty(error) == Certainty::Unknown,
            Self::NotAsked(_) | Self::Replaced | Self::Slow => true,
        }
    }
}

pub(crate) type RedisResult<T> = Result<T, RedisFailure>;

pub(super) fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// The bytes that `TAKE_LEASE` compares.
pub(super) const HEAD: usize = 6;

/// The number of no server.
pub(super) const NO_SERVER: u32 = u32::MAX;
