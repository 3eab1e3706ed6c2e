//! Why a fault is refused, below all faults, since each refuses its own settings.

/// Why a toxic is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// A number lies outside its range, or is NaN.
    #[error("{name} is {value}, but must be a number from {from} to {to}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// The value that was given.
        value: f64,
        /// The least that it may be.
        from: f64,
        /// The most that it may be.
        to: f64,
    },
    /// Text that is to be sent as a reply would not be one.
    #[error("{name} must be {what}, but is {value:?}")]
    NoReply {
        /// The setting.
        name: &'static str,
        /// The form that is needed.
        what: &'static str,
        /// The text that was given.
        value: String,
    },
    /// The type is unknown, or its attributes are not its own.
    #[error("no such fault: {0}")]
    Unknown(String),
}

/// Refuses a number outside `from..=to`, and NaN.
pub(super) fn within(name: &'static str, value: f64, from: f64, to: f64) -> Result<(), FaultError> {
    if (from..=to).contains(&value) {
        Ok(())
    } else {
        Err(FaultError::OutOfRange {
            name,
            value,
            from,
            to,
        })
    }
}
