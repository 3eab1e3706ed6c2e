//! The reasons why the cache has no answer, and the time after which to ask again.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use steadfast_core::policy::InvalidSetting;

use crate::guard::ClassBound;

/// A read that ends without a value: neither fresh, nor stale, nor a default.
///
/// ```no_run
/// # use steadfast_cache::{CacheError, View};
/// # async fn load_user(id: u64) -> std::io::Result<Option<String>> { Ok(None) }
/// # async fn f(users: View<String>) {
/// match users.get(7, || async { Ok(load_user(7).await?) }).await {
///     Ok(answer) => println!("{:?}", answer.value),
///     Err(CacheError::Load(error)) => println!("the loader failed: {error}"),
///     Err(error) => match error.retry_after() {
///         Some(after) => println!("503, Retry-After: {}", after.as_secs().max(1)),
///         None => println!("500: {error}"),
///     },
/// }
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The database is at the limit of what it may be asked, and there was nothing stale to serve.
    #[error("the database is at its limit; ask again in {retry_after:?}")]
    Overloaded {
        /// The time after which asking again may succeed.
        retry_after: Duration,
    },
    /// The class is at a bound of its own ([`ClassGuard`](crate::ClassGuard)), whatever the
    /// database could still be asked, and there was nothing stale to serve.
    #[error("the class {class:?} is at its own bound of {bound}; ask again in {retry_after:?}")]
    ClassOverloaded {
        /// The name of the class.
        class: Box<str>,
        /// The bound.
        bound: ClassBound,
        /// The time after which asking again may succeed.
        retry_after: Duration,
    },
    /// The database, or what else the loads of the class ask, has been failing, or the load of this
    /// key has, several times in a row, so it is not asked for now.
    #[error(
        "the database, or what else is asked, or the load of this key is failing; ask again in {retry_after:?}"
    )]
    Unavailable {
        /// The time after which asking again may succeed.
        retry_after: Duration,
    },
    /// The loader returned an error. Errors are never cached.
    #[error("loading failed: {0}")]
    Load(#[source] Arc<dyn Error + Send + Sync>),
    /// The load did not end within the hard limit of its class.
    #[error("loading did not end within {limit:?}")]
    LoadTimeout {
        /// The hard limit.
        limit: Duration,
    },
    /// The loader panicked. The process and the cache go on.
    #[error("the loader panicked: {message}")]
    LoadPanicked {
        /// The message of the panic, if it was text.
        message: String,
    },
    /// The loader of a key reads, by itself or through another loader, the key that it loads, and
    /// would wait for itself.
    #[error("the load of {key:?} reads {key:?} itself; load its parts under keys of their own")]
    OwnKey {
        /// The key.
        key: String,
    },
    /// Loads read each other's keys in a circle, and would wait for each other.
    #[error("loads wait for each other: {}; load what they share under a key of its own", keys.join(" -> "))]
    Circle {
        /// The keys, each read by the load of the one before it; the last is the first again.
        keys: Vec<String>,
    },
    /// The load was given up, because the runtime in which it ran has ended or is shutting down.
    /// Who asks again begins one of their own.
    #[error("the load was given up with the runtime in which it ran; ask again")]
    Abandoned,
    /// The read was made outside of any tokio runtime, where only what is fresh in memory can be
    /// answered.
    #[error(
        "the cache was asked outside of a tokio runtime for what is not in memory; read in a task of one, or enter one before (Handle::enter)"
    )]
    NoRuntime,
}

/// A view of a class that was not given to the builder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the class {class:?} is not known to this cache; add it with CacheBuilder::class")]
pub struct UnknownClass {
    /// The name asked for.
    pub class: String,
}

/// The error of a loader: any at all, which `?` turns into this one. A reader finds it in
/// [`CacheError::Load`].
///
/// ```
/// # use steadfast_cache::LoadError;
/// async fn load(path: &str) -> Result<Option<u64>, LoadError> {
///     let text = std::fs::read_to_string(path)?; // an io::Error
///     if text.is_empty() {
///         Err("there is nothing in the file")?; // a text
///     }
///     Ok(Some(text.parse()?)) // a ParseIntError
/// }
/// ```
/// It is the caller's own error again in the end:
///
/// ```
/// # use steadfast_cache::{CacheError, View};
/// # #[derive(Debug)]
/// # struct Forbidden;
/// # impl std::fmt::Display for Forbidden {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("no") }
/// # }
/// # impl std::error::Error for Forbidden {}
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use steadfast_cache::{Cache, Database, DatabaseOptions};
/// # let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
/// # let cache = Cache::builder(database).class("user", Default::default()).build().await?;
/// let users: View<String> = cache.view("user")?;
/// match users.get(7, || async { Err(Forbidden)? }).await {
///     Err(CacheError::Load(error)) if error.is::<Forbidden>() => println!("403"),
///     other => panic!("{other:?}"),
/// }
/// # Ok(()) }
/// ```
///
/// A loader that could not reach what it asked is told by its error: an `io::Error` of a
/// connection, or an error of sqlx, at whatever depth of the [`source`](Error::source)s. Where that
/// does not show, say it by [`LoadError::unavailable`]. A database that is out of reach, or gives
/// out no connection, is spared by all classes; one that takes too long by the class whose loads
/// fail.
#[derive(Debug)]
pub struct LoadError {
    error: Box<dyn Error + Send + Sync>,
    unavailable: bool,
}

// It is no error itself, so that every error can be turned into it.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            unavailable: false,
        }
    }
}

impl LoadError {
    /// Says that what the loader asked is out of reach, rather than that it refused this question.
    /// After a few such failures in a row the loads of the class are spared for a while, with
    /// [`CacheError::Unavailable`] or a stale value in their place.
    ///
    /// ```no_run
    /// # use steadfast_cache::LoadError;
    /// # struct Reply { status: u16 }
    /// # async fn ask() -> std::io::Result<Reply> { Ok(Reply { status: 503 }) }
    /// async fn load() -> Result<Option<u16>, LoadError> {
    ///     match ask().await?.status {
    ///         404 => Ok(None),
    ///         503 => Err(LoadError::unavailable("the service is down")),
    ///         status => Ok(Some(status)),
    ///     }
    /// }
    /// ```
    pub fn unavailable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            error: error.into(),
            unavailable: true,
        }
    }

    /// Returns whether it was made by [`unavailable`](Self::unavailable).
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.unavailable
    }

    pub(crate) fn inner(&self) -> &(dyn Error + 'static) {
        &*self.error
    }

    /// Returns the error that it was made of.
    #[must_use]
    pub fn into_inner(self) -> Box<dyn Error + Send + Sync> {
        self.error
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl CacheError {
    /// Whether a loader was run, and it is that which failed.
    pub(crate) fn was_tried(&self) -> bool {
        matches!(
            self,
            Self::Load(_) | Self::LoadTimeout { .. } | Self::LoadPanicked { .. }
        )
    }

    /// Returns the time after which asking again may succeed, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after }
            | Self::ClassOverloaded { retry_after, .. }
            | Self::Unavailable { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

/// A cache cannot be built so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No class was given, so nothing could be read.
    #[error("a cache needs at least one class; add one with CacheBuilder::class")]
    NoClass,
    /// A class was given twice.
    #[error("the class {class:?} is given twice")]
    ClassTwice {
        /// The name of the class.
        class: String,
    },
    /// The name of a class is that of another one with a colon and more behind it: keys of the one
    /// could be keys of the other, since they are written behind the name and a colon.
    #[error(
        "the class {class:?} begins with the class {within:?} and a colon, so that a key of the one can be a key of the other; name it otherwise"
    )]
    ClassWithinClass {
        /// The name of the class.
        class: String,
        /// The name that it begins with.
        within: String,
    },
    /// A class has a setting that means nothing.
    #[error("class {class:?}: {setting}")]
    Class {
        /// The name of the class.
        class: String,
        /// The setting of its [`Ttl`](crate::Ttl), and the values that are allowed.
        setting: InvalidSetting,
    },
    /// Bounds were given for a class that there is not.
    #[error(
        "class_guard is given for the class {class:?}, which is not a class; add it with CacheBuilder::class"
    )]
    GuardWithoutClass {
        /// The name given.
        class: String,
    },
    /// Tags were given for a class that there is not.
    #[error(
        "class_tags are given for the class {class:?}, which is not a class; add it with CacheBuilder::class"
    )]
    TagsWithoutClass {
        /// The name given.
        class: String,
    },
    /// Bounds of a class mean nothing.
    #[error("class_guard of {class:?}: {setting}")]
    ClassGuard {
        /// The class.
        class: String,
        /// The setting of its [`ClassGuard`](crate::ClassGuard), and the values that are allowed.
        setting: InvalidSetting,
    },
    /// A setting of the [`CacheBuilder`](crate::CacheBuilder) that means nothing.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// It was built outside of any tokio runtime.
    #[error("a cache lives on a tokio runtime: call build() inside one")]
    NoRuntime,
}
