//! Rows as types of the caller's own.

use serde::de::DeserializeOwned;

use super::{Bounds, Database, Param, Row, SourceError, Tx};

impl Database {
    /// Runs a query and gives its rows as values of a type, each column as the field of its name:
    /// numbers, text and booleans as such; UUIDs and decimals as text, which `Uuid` and
    /// `BigDecimal` of [`sqlx::types`] read; dates and moments as text, which
    /// [`iso8601`](crate::iso8601) reads. What JSON does not have is read where it is asked for:
    /// bytes as `Vec<u8>`, `[u8; 32]`, a type of bytes or a `Uuid`, NaN and the infinities as
    /// floating-point numbers, and the 0 and 1 that are truth in MySQL and SQLite as `bool`; but
    /// not within a `flatten`ed or an untagged type, which ask for nothing in particular, and get
    /// what [`select`](Self::select) gives.
    ///
    /// ```
    /// # use steadfast_cache::{Database, SourceError};
    /// #[derive(serde::Deserialize)]
    /// struct User { id: u64, name: String }
    ///
    /// # async fn f(database: Database) -> Result<(), SourceError> {
    /// let sql = "SELECT id, name FROM users WHERE id < ?";
    /// let users: Vec<User> = database.select_as(sql, &[10.into()]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`SourceError::Row`], if a row is not of the type; otherwise as [`select`](Self::select).
    pub async fn select_as<T: DeserializeOwned>(
        &self,
        sql: &str,
        params: &[Param],
    ) -> Result<Vec<T>, SourceError> {
        typed(self.select(sql, params).await?)
    }

    /// Runs a query as [`select_as`](Self::select_as) does, but reads only the first row, if there
    /// is one.
    ///
    /// # Errors
    /// As [`select_as`](Self::select_as).
    pub async fn select_one_as<T: DeserializeOwned>(
        &self,
        sql: &str,
        params: &[Param],
    ) -> Result<Option<T>, SourceError> {
        let rows = typed(self.select_at_most(1, sql, params).await?)?;
        Ok(rows.into_iter().next())
    }
}

impl Tx {
    /// Runs a query, or a statement with RETURNING, and gives its rows as [`Database::select_as`]
    /// does.
    ///
    /// # Errors
    /// As [`Database::select_as`].
    pub async fn select_as<T: DeserializeOwned>(
        &mut self,
        sql: &str,
        params: &[Param],
    ) -> Result<Vec<T>, SourceError> {
        typed(self.select(sql, params).await?)
    }

    /// Runs such a query, and keeps only the first row, if there is one; a statement runs to its
    /// end all the same.
    ///
    /// # Errors
    /// As [`Database::select_as`].
    pub async fn select_one_as<T: DeserializeOwned>(
        &mut self,
        sql: &str,
        params: &[Param],
    ) -> Result<Option<T>, SourceError> {
        let first = Bounds::new(1, usize::MAX);
        let rows = typed(self.select_within(first, sql, params).await?.rows)?;
        Ok(rows.into_iter().next())
    }
}

fn typed<T: DeserializeOwned>(rows: Vec<Row>) -> Result<Vec<T>, SourceError> {
    let read = |(at, row): (usize, Row)| {
        T::deserialize(&row).map_err(|problem| SourceError::Row {
            row: at + 1,
            type_name: std::any::type_name::<T>(),
            problem,
        })
    };
    rows.into_iter().enumerate().map(read).collect()
}
