//! A slow dependency fills whatever it is given: threads, memory, sockets. A bulkhead bounds it, in
//! calls and in bytes, so that the rest of the ship stays dry; past a bound a call is told at once,
//! because a queue in front of a queue only hides that there is no room.
//!
//! These are the bounds only. What is inside is counted by whoever holds it: the client's queue,
//! which has a lock for that already.
//!
//! ```
//! use steadfast_core::policy::bulkhead::{Bulkhead, Full};
//!
//! let bulkhead = Bulkhead::new(8192, 64 << 20);
//! assert!(bulkhead.admit(100, 4096).is_ok());
//! assert_eq!(bulkhead.admit(8192, 4096), Err(Full::Calls));
//! assert_eq!(bulkhead.admit(100, 64 << 20), Err(Full::Bytes));
//! ```

/// Bounds what may be inside at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bulkhead {
    calls: usize,
    bytes: usize,
}

/// The bound that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// So many calls are inside.
    #[error("every place is taken")]
    Calls,
    /// So many bytes are inside.
    #[error("the send buffer is full")]
    Bytes,
}

impl Bulkhead {
    /// So many `calls`, and one more of any size while fewer than so many `bytes` wait.
    pub const fn new(calls: usize, bytes: usize) -> Self {
        Self { calls, bytes }
    }

    /// Is there room for one more beside so many `calls` and `bytes`? A call that is larger than
    /// the bound on bytes itself passes while fewer wait: it could never pass otherwise. So what is
    /// inside exceeds the bound by one call at most.
    ///
    /// # Errors
    /// Which bound is reached; of calls, if both are.
    #[inline]
    pub const fn admit(&self, calls: usize, bytes: usize) -> Result<(), Full> {
        if calls >= self.calls {
            return Err(Full::Calls);
        }
        if bytes >= self.bytes {
            return Err(Full::Bytes);
        }
        Ok(())
    }
}
