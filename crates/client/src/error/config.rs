//! Settings that cannot be.

use super::Error;

/// A setting that cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The URL cannot be read.
    #[error(
        "the redis URL cannot be read: {why}; write redis://[user:password@]host[:port][/db], rediss://… for TLS, or unix:///path"
    )]
    Url {
        /// The fault, in words; never shows the password.
        why: String,
    },
    /// The scheme is unknown.
    #[error(
        "unknown scheme `{scheme}` in the redis URL: use redis, rediss (TLS), unix, redis-sentinel and rediss-sentinel where sentinels are asked, or redis-cluster and rediss-cluster"
    )]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// A number or time is out of its range.
    #[error("setting `{setting}`: {why}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The fault, in words.
        why: String,
    },
    /// The URL asks for TLS, of which this build knows nothing.
    #[error(
        "the redis URL asks for TLS: build `steadfast` with its feature `tls`, which is on by default"
    )]
    NoTls,
    /// Certificates or keys for TLS cannot be used.
    #[error("tls: {why}")]
    Tls {
        /// The file or setting, and the fault.
        why: String,
    },
    /// The builder was used outside a tokio runtime.
    #[error("a client lives on a tokio runtime: call build() inside one")]
    NoRuntime,
    /// The tokio runtime cannot serve a client: it was built without timers, or without IO.
    #[error(
        "the tokio runtime has no {missing}: call enable_all() on its builder, as #[tokio::main] does"
    )]
    RuntimeLacks {
        /// `timers` or `IO`.
        missing: &'static str,
    },
}
