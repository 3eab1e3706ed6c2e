//! Rules that a test may break, one at a time, to show that the history checker would notice.

/// The rules that are broken. All false in every program that is not such a test.
#[derive(Clone, Copy, Debug, Default)]
#[doc(hidden)]
#[cfg_attr(
    not(any(test, feature = "sabotage")),
    expect(unreachable_pub, reason = "only tests can reach it")
)]
pub struct Sabotage {
    /// Invalidations are not written to the outbox.
    pub outbox_off: bool,
    /// A fill does not need its lease.
    pub lease_unchecked: bool,
    /// A Redis that was rolled back is believed.
    pub watermark_ignored: bool,
    /// Callers join loads that are older than an invalidation.
    pub flight_not_detached: bool,
    /// An invalidation leaves the generations in memory as they are.
    pub stripe_not_bumped: bool,
    /// A value from Redis is governed in memory only by the tags that its reader named.
    pub tags_dropped: bool,
    /// Redis is believed before SQL was held against it.
    pub sql_not_awaited: bool,
    /// A database that was rolled back is not noticed.
    pub rollback_ignored: bool,
    /// Callers join loads however old they are, though nobody vouches that an invalidation would
    /// have been heard.
    pub flight_age_ignored: bool,
    /// A value that is loaded again carries only the tags that its reader named.
    pub tags_stripped: bool,
    /// A value that another class has stored is fresh for as long as that class says.
    pub class_ignored: bool,
}
