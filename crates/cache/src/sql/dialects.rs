//! The table of the databases: the variant of each in [`Pool`](super::Pool), [`Tx`](super::Tx) and
//! their kind, the feature that brings it, and the module that speaks to it.
//!
//! Their connections, transactions and rows are of types that have nothing in common but sqlx's
//! traits, and bounds on those do not say that a future may be sent to another thread. So what is
//! said to all of them in the same words is written once for each by a macro.

/// Does the same with whichever database it is. With a name after the binding, that name stands for
/// the module of the database.
macro_rules! each {
    ($value:expr, $of:ident[$($binding:tt)+] => $does:expr) => {
        match $value {
            #[cfg(feature = "sqlite")]
            $of::Sqlite($($binding)+) => $does,
            #[cfg(feature = "mysql")]
            $of::MySql($($binding)+) => $does,
            #[cfg(feature = "postgres")]
            $of::Postgres($($binding)+) => $does,
        }
    };
    ($value:expr, $of:ident[$($binding:tt)+], $dialect:ident => $does:expr) => {
        match $value {
            #[cfg(feature = "sqlite")]
            $of::Sqlite($($binding)+) => {
                use $crate::sql::sqlite as $dialect;
                $does
            }
            #[cfg(feature = "mysql")]
            $of::MySql($($binding)+) => {
                use $crate::sql::mysql as $dialect;
                $does
            }
            #[cfg(feature = "postgres")]
            $of::Postgres($($binding)+) => {
                use $crate::sql::postgres as $dialect;
                $does
            }
        }
    };
}
