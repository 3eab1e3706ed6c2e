//! Invalidations as SQL, for transactions that are not sqlx's.

use crate::invalidate::write::Invalidation;
use crate::outbox::now_sql;
use crate::parts::Cache;
use crate::sql::{Param, SourceError};
use crate::target::Target;

/// SQL with its parameters, in the order of its placeholders.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Statement {
    /// The text, with placeholders as the database has them: `$1` in PostgreSQL, `?` elsewhere.
    pub sql: String,
    /// Text and bytes only.
    pub params: Vec<Param>,
}

impl Cache {
    /// Returns the work of [`invalidate_in`](Self::invalidate_in) as statements for a transaction
    /// of any driver on the cache's database: execute them in it, commit, and call
    /// [`apply`](Invalidation::apply).
    ///
    /// ```no_run
    /// # use steadfast_cache::{Cache, Param, SourceError, Target};
    /// # struct Transaction;
    /// # impl Transaction {
    /// #     async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<(), SourceError> {
    /// #         Ok(())
    /// #     }
    /// #     async fn commit(self) -> Result<(), SourceError> { Ok(()) }
    /// # }
    /// # async fn f(cache: Cache, mut tx: Transaction) -> Result<(), SourceError> {
    /// let (statements, invalidation) = cache.invalidation(&[Target::key("user:7")]).await?;
    /// for statement in &statements {
    ///     tx.execute(&statement.sql, &statement.params).await?;
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
                params: vec![namespace.into(), kind.into(), name.into()],
            }
        };
        Ok((targets.iter().map(statement).collect(), invalidation))
    }
}
