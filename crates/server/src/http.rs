//! The interface that callers see. Each file holds the handlers of one part of it; the middleware
//! around them all holds what must be so for every request.

#[cfg_attr(not(feature = "drill"), path = "http/drills/off.rs")]
pub(crate) mod drills;
pub(crate) mod events;
mod extract;
pub(crate) mod harden;
pub(crate) mod health;
mod hosts;
mod meters;
pub(crate) mod middleware;
pub(crate) mod openapi;
pub(crate) mod page;
mod proxies;
pub(crate) mod queries;
pub(crate) mod status;
