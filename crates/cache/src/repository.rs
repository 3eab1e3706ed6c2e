//! A caller's own way to read and write, where a closure at each call would repeat itself.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use crate::answer::Answer;
use crate::error::{CacheError, LoadError};
use crate::invalidate::write::{WriteError, Written};
use crate::key::Key;
use crate::read::view::View;
use crate::sql::Tx;

/// Reads and writes the values of one kind, from and to whatever holds the truth.
///
/// ```
/// # use std::sync::Arc;
/// # use steadfast_cache::{Cache, Database, Param, Repository, SourceError, Tx, View};
/// struct Names(Database);
///
/// impl Repository<String> for Names {
///     type Error = SourceError;
///
///     async fn read(&self, key: Vec<u8>) -> Result<Option<String>, SourceError> {
///         let sql = "SELECT name FROM users WHERE login = ?";
///         let rows = self.0.select(sql, &[Param::Bytes(key)]).await?;
///         Ok(rows.first().and_then(|row| row["name"].as_str()).map(str::to_owned))
///     }
///
///     async fn write(&self, tx: &mut Tx, key: &[u8], name: &String) -> Result<(), SourceError> {
///         let params = [Param::Text(name.clone()), Param::Bytes(key.to_vec())];
///         tx.execute("UPDATE users SET name = ? WHERE login = ?", &params).await.map(drop)
///     }
/// }
/// # async fn example(cache: Cache) -> Result<(), Box<dyn std::error::Error>> {
/// let names: View<String> = cache.view("user")?;
/// let repository = Arc::new(Names(cache.database().clone()));
/// println!("{:?}", names.get_from(&repository, "ada").await?.value);
/// names.put_to(&*repository, "ada", &"Ada".to_owned()).await?;
/// # Ok(()) }
/// ```
pub trait Repository<V>: Send + Sync + 'static {
    /// The error of reads and writes.
    type Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static;

    /// Reads the value of a key, which is given without the view's prefix; `None` if there is none.
    fn read(&self, key: Vec<u8>) -> impl Future<Output = Result<Option<V>, Self::Error>> + Send;

    /// Writes the value of a key within a transaction, which the cache commits together with the
    /// key's invalidation.
    fn write(
        &self,
        tx: &mut Tx,
        key: &[u8],
        value: &V,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Answers as [`get`](Self::get), loading through a repository.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_from<R, K>(&self, repository: &Arc<R>, key: K) -> Result<Answer<V>, CacheError>
    where
        R: Repository<V>,
        K: Key,
    {
        let (repository, owned) = (repository.clone(), key.name().to_vec());
        let load = move || async move { repository.read(owned).await.map_err(LoadError::from) };
        self.get(key, load).await
    }

    /// Writes through a repository, and invalidates the key in the same transaction; see
    /// [`Cache::write`](crate::Cache::write).
    ///
    /// # Errors
    /// As [`Commit::commit`](crate::Commit::commit).
    pub async fn put_to<R, K>(
        &self,
        repository: &R,
        key: K,
        value: &V,
    ) -> Result<Written<()>, WriteError<R::Error>>
    where
        R: Repository<V>,
        K: Key,
    {
        let name = key.name();
        self.cache()
            .write(async |tx: &mut Tx| repository.write(tx, &name, value).await)
            .invalidates([self.target(&key)])
            .commit()
            .await
    }
}
