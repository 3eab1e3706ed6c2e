//! The rules by which a call is tried, paused, refused or let through.
//!
//! They are pure so that an outage of ten minutes can be tested in a microsecond: time comes in as
//! an argument, deadlines go out as return values, randomness is handed in. Nothing here knows what
//! a connection is; the client orders these rules around a call in one place, and owns the locks.
//!
//! | module | question it answers |
//! |---|---|
//! | [`backoff`] | how long to pause before the next attempt |
//! | [`stop`] | when to give up |
//! | [`retry`] | both of these, for one call |
//! | [`window`] | what happened lately |
//! | [`breaker`] | should this call be tried at all |
//! | [`budget`] | can the fleet afford a retry |
//! | [`bulkhead`] | is there room for one more |
//! | [`rate`] | is one more within the rate, and when is the next |
//! | [`deadline`] | when must it be over, and can it be |

pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod deadline;
pub mod rate;
pub mod retry;
pub mod stop;
pub mod window;

mod atomic;
mod instant;

pub use backoff::Backoff;
pub use breaker::{Breaker, BreakerConfig};
pub use budget::{Budget, BudgetConfig};
pub use bulkhead::Bulkhead;
pub use deadline::{Deadline, LatencyEstimate};
pub use rate::RateLimit;
pub use retry::{RetryPolicy, RetryState};
pub use stop::Stop;

/// A number that a policy cannot work with, found when the policy was set up.
///
/// Settings are refused once, at the door, so that no policy has to defend itself against them on
/// every call.
///
/// ```
/// use steadfast_core::policy::InvalidSetting;
///
/// let refused = InvalidSetting::new("probes", "must be at least 1");
/// assert_eq!(refused.to_string(), "setting `probes` must be at least 1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("setting `{setting}` {why}")]
pub struct InvalidSetting {
    /// The setting's name, as it is spelt in the configuration.
    pub setting: &'static str,
    /// The values that are allowed.
    pub why: &'static str,
}

impl InvalidSetting {
    /// Names a setting and what it must be.
    pub fn new(setting: &'static str, why: &'static str) -> Self {
        Self { setting, why }
    }
}
