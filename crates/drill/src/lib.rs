//! Breaks Redis on purpose and judges what the users of an application would have felt.

pub mod process;
pub mod scenario;
pub mod subject;
