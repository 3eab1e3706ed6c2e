//! The tasks that follow a primary which sentinels watch: asking them, and telling what a switch
//! cost.

mod account;
mod watch;

pub(crate) use self::account::keep_account;
pub(crate) use self::watch::watch;
