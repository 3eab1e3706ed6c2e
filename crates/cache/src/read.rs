//! Reading: memory, then Redis, then the database.

pub(crate) mod batch;
pub(crate) mod database;
pub(crate) mod ending;
pub(crate) mod glancing;
pub(crate) mod keep;
pub(crate) mod load;
pub(crate) mod own_look;
pub(crate) mod put;
pub(crate) mod single;
pub(crate) mod view;
pub(crate) mod warm;

pub use batch::ReadMany;
pub use put::Put;
pub use single::Read;
pub use view::View;
pub use warm::Warmed;
