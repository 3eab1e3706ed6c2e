//! Invalidations as SQL, for transactions that are not sqlx's.

use crate::invalidate::write::Invalidation;
use crate::outbox::now_sql;
use crate::parts::Cache;
use crate::sql::SourceError;
use crate::target::Target;

/// SQL with the values of its three placeholders, in their order: text, text, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statement {
    /// The text, with placeholders as the database has them: `$1` in PostgreSQL, `?` elsewhere. It
    /// is the same for all statements of a cache, so it may be prepared once.
    pub sql: String,
    /// The value of the first placeholder: the cache's namespace.
    pub namespace: String,
    /// The value of the second: the kind of the target.
    pub kind: &'static str,
    /// The value of the third: the name of the target, which is short however long its key or tag.
    pub target: Vec<u8>,
}

impl Cache {
    /// Returns the work of [`invalidate_in`](Self::invalidate_in) as statements for a transaction
    /// of any driver on the cache's database: execute them in it, commit, and call
    /// [`apply`](Invalidation::apply). Without Redis there are none: nobody else has to be told.
    ///
    /// ```no_run
    /// # use steadfast_cache::{Cache, SourceError, Target};
    /// # struct Transaction;
    /// # impl Transaction {
    /// #     async fn execute(
    /// #         &mut self,
    /// #         sql: &str,
    /// #         values: (&str, &str, &[u8]),
    /// #     ) -> Result<(), SourceError> {
    /// #         Ok(())
    /// #     }
    /// #     async fn commit(self) -> Result<(), SourceError> { Ok(()) }
    /// # }
    /// # async fn f(cache: Cache, mut tx: Transaction) -> Result<(), SourceError> {
    /// let (statements, invalidation) = cache.invalidation(&[Target::key("user:7")]).await?;
    /// for row in &statements {
    ///     tx.execute(&row.sql, (&row.namespace, row.kind, &row.target)).await?;
    /// }
    /// tx.commit().await?;
    /// invalidation.apply().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the database said when the outbox was prepared.
    pub async fn invalidation(
        &self,
        targets: &[Target],
    ) -> Result<(Vec<Statement>, Invalidation<'_>), SourceError> {
        let inner = &*self.inner;
        let targets = &targets.iter().map(Target::bounded).collect::<Vec<_>>()[..];
        let invalidation = Invalidation::new(inner, targets);
        let Some(relay) = &inner.relay else {
            return Ok((Vec::new(), invalidation));
        };
        relay.prepare().await?;
        let now = now_sql(inner.database.pool());
        let values = match inner.database.system() {
            "postgresql" => "$1, $2, $3",
            _ => "?, ?, ?",
        };
        let sql = format!(
            "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ({values}, {now})"
        );
        let namespace = relay.outbox().namespace();
        let statement = |target: &Target| {
            let (kind, name) = target.row();
            Statement {
                sql: sql.clone(),
                namespace: namespace.to_owned(),
                kind,
                target: name.to_vec(),
            }
        };
        Ok((targets.iter().map(statement).collect(), invalidation))
    }
}
