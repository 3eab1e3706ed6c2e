//! A caller's own way to read and write, where a closure at each call would repeat itself.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use crate::answer::Answer;
use crate::cache::Cache;
use crate::error::CacheError;
use crate::source::Tx;
use crate::target::Target;
use crate::write::{WriteError, Written};

/// Reads and writes the values of one kind, from and to whatever holds the truth.
///
/// ```
/// # use steadfast_cache::{Database, Param, Repository, SourceError, Tx};
/// struct Names(Database);
///
/// impl Repository<String> for Names {
///     type Error = SourceError;
///
///     async fn read(&self, key: Vec<u8>) -> Result<Option<String>, SourceError> {
///         let rows = self.0.select("SELECT name FROM users WHERE login = ?", &[Param::Bytes(key)]).await?;
///         Ok(rows.first().map(|row| row["name"].to_string()))
///     }
///
///     async fn write(&self, tx: &mut Tx, key: &[u8], name: &String) -> Result<(), SourceError> {
///         let params = [Param::Text(name.clone()), Param::Bytes(key.to_vec())];
///         tx.execute("UPDATE users SET name = ? WHERE login = ?", &params).await.map(drop)
///     }
/// }
/// ```
pub trait Repository<V>: Send + Sync + 'static {
    /// What can go wrong.
    type Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static;

    /// Reads the value of a key; `None` if there is none.
    fn read(&self, key: Vec<u8>) -> impl Future<Output = Result<Option<V>, Self::Error>> + Send;

    /// Writes the value of a key within a transaction, which the cache commits together with the key's invalidation.
    fn write(
        &self,
        tx: &mut Tx,
        key: &[u8],
        value: &V,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// As [`get`](Self::get), loading through a repository.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_from<R, K>(
        &self,
        repository: &Arc<R>,
        key: K,
        class: &str,
    ) -> Result<Answer<V>, CacheError>
    where
        R: Repository<V>,
        K: AsRef<[u8]>,
    {
        let (repository, owned) = (repository.clone(), key.as_ref().to_vec());
        self.get(
            key,
            class,
            move || async move { repository.read(owned).await },
        )
        .await
    }

    /// Writes through a repository, and invalidates the key in the same transaction; see [`write`](Self::write).
    ///
    /// # Errors
    /// As [`Write::commit`](crate::Write::commit).
    pub async fn put_to<R, K>(
        &self,
        repository: &R,
        key: K,
        value: &V,
    ) -> Result<Written<()>, WriteError<R::Error>>
    where
        R: Repository<V>,
        K: AsRef<[u8]>,
    {
        let key = key.as_ref();
        self.write(async |tx: &mut Tx| repository.write(tx, key, value).await)
            .invalidates([Target::key(key)])
            .commit()
            .await
    }
}
