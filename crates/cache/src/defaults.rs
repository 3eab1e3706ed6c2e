//! The default of each setting that programs around the cache show or judge, stated once. What each
//! costs stands with the method of [`CacheBuilder`](crate::CacheBuilder) that sets it. The times to
//! live have theirs in [`Ttl`](crate::Ttl), the bounds on loads in
//! [`GuardOptions`](crate::GuardOptions), the pool in [`DatabaseOptions`](crate::DatabaseOptions).

use std::time::Duration;

/// Bytes that the memory tier may take.
pub const MEMORY_BYTES: u64 = 64 << 20;
/// Bytes of the largest value that is kept.
pub const VALUE_MAX: u64 = 1 << 20;
/// Bytes from which a value is compressed in Redis.
pub const COMPRESS_ABOVE: u64 = 4 << 10;
/// The longest that a read waits for Redis.
pub const REDIS_LIMIT: Duration = Duration::from_millis(100);
/// The time between two looks at the outbox.
pub const OUTBOX_POLL: Duration = Duration::from_millis(250);
/// The age of an unapplied invalidation from which Redis is not believed.
pub const OUTBOX_LAG_MAX: Duration = Duration::from_secs(1);
