//! The language in which an operator writes queries and statements: SQL with named parameters, the
//! types of the parameters, and templates for keys and tags. The configuration checks it and the
//! queries run it, so it lies below both.

pub(crate) mod dialect;
pub(crate) mod param;
pub(crate) mod sql;
pub(crate) mod template;
