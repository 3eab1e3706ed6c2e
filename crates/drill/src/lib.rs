//! Breaks Redis on purpose and judges what the users of an application would have felt.

pub mod api;
mod certificates;
pub mod fault;
pub mod load;
pub mod plain;
pub mod process;
pub mod proxy;
pub mod record;
pub mod report;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod scripted;
mod site;
pub mod subject;
pub mod target;
pub mod truth;
pub mod verdict;
