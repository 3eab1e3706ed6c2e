//! Named queries and statements: SQL that an operator wrote once, and that callers may only fill in.

pub(crate) mod param;
pub(crate) mod sql;
pub(crate) mod template;
