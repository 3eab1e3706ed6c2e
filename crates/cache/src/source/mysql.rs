//! MySQL and MariaDB.

use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlPoolOptions, MySqlRow};
use sqlx::{AssertSqlSafe, Column, Executor, MySql, MySqlConnection, Row as _, TypeInfo, ValueRef};

use super::{DatabaseOptions, Executed, Param, Pool, Row, SourceError, hex, number};

/// The pool, and one of connections that only read, if there are to be any.
pub(super) fn connect(
    options: MySqlConnectOptions,
    limits: &DatabaseOptions,
) -> (Pool, Option<Pool>) {
    let options = match &limits.tls {
        Some(tls) => super::tls::mysql(options, tls),
        None => options,
    };
    let pool = |connections| {
        MySqlPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(limits.acquire_timeout)
    };
    let readers = limits.read_only_connections.map(|connections| {
        let only_reads =
            pool(connections).after_connect(|connection, _| Box::pin(only_read(connection)));
        Pool::MySql(only_reads.connect_lazy_with(options.clone()))
    });
    let writers = pool(limits.max_connections).connect_lazy_with(options);
    (Pool::MySql(writers), readers)
}

pub(super) async fn only_read(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let sql = "SET SESSION TRANSACTION READ ONLY";
    connection.execute(sql).await.map(|_| ())
}

pub(super) async fn select<'e, E>(
    executor: E,
    sql: AssertSqlSafe<String>,
    params: &[Param],
    most: usize,
) -> Result<Vec<Row>, SourceError>
where
    E: Executor<'e, Database = MySql>,
{
    sqlx::query_with(sql, bind(params)?)
        .fetch(executor)
        .map(|row| json(&row?))
        .take(most)
        .try_collect()
        .await
}

pub(super) async fn execute<'e, E>(
    executor: E,
    sql: AssertSqlSafe<String>,
    params: &[Param],
) -> Result<Executed, SourceError>
where
    E: Executor<'e, Database = MySql>,
{
    let done = sqlx::query_with(sql, bind(params)?)
        .execute(executor)
        .await?;
    let id = i64::try_from(done.last_insert_id())
        .ok()
        .filter(|id| *id != 0);
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: id,
    })
}

fn bind(params: &[Param]) -> Result<MySqlArguments, SourceError> {
    use sqlx::Arguments;
    let mut arguments = MySqlArguments::default();
    for param in params {
        match param.clone() {
            Param::Null => arguments.add(None::<String>),
            Param::Bool(value) => arguments.add(value),
            Param::Int(value) => arguments.add(value),
            Param::Float(value) => arguments.add(value),
            Param::Text(value) => arguments.add(value),
            Param::Bytes(value) => arguments.add(value),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn json(row: &MySqlRow) -> Result<Row, SourceError> {
    row.columns()
        .iter()
        .enumerate()
        .map(|(at, column)| Ok((column.name().to_owned(), value(row, at, column.name())?)))
        .collect()
}

fn value(row: &MySqlRow, at: usize, column: &str) -> Result<Value, SourceError> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let type_name = raw.type_info().name().to_owned();
    Ok(match type_name.as_str() {
        "BOOLEAN" => row.try_get_unchecked::<bool, _>(at)?.into(),
        "TINYINT" | "SMALLINT" | "INT" | "MEDIUMINT" | "BIGINT" => {
            row.try_get_unchecked::<i64, _>(at)?.into()
        }
        "YEAR" | "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "INT UNSIGNED"
        | "MEDIUMINT UNSIGNED" | "BIGINT UNSIGNED" => row.try_get_unchecked::<u64, _>(at)?.into(),
        "FLOAT" => number(f64::from(row.try_get_unchecked::<f32, _>(at)?)),
        "DOUBLE" => number(row.try_get_unchecked(at)?),
        "TIMESTAMP" | "DATETIME" | "DATE" => moment(row.try_get_unchecked(at)?),
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => {
            hex(row.try_get_unchecked(at)?)
        }
        "CHAR" | "VARCHAR" | "ENUM" | "SET" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT"
        | "DECIMAL" => row.try_get_unchecked::<String, _>(at)?.into(),
        "JSON" => serde_json::from_slice(row.try_get_unchecked(at)?).unwrap_or(Value::Null),
        _ => {
            return Err(SourceError::ColumnType {
                column: column.to_owned(),
                type_name,
            });
        }
    })
}

/// The binary protocol's date: a length, then year, month, day, then hour, minute, second, then microseconds, as far as the length goes.
fn moment(bytes: &[u8]) -> Value {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let date = format!(
        "{:04}-{:02}-{:02}",
        u16::from_le_bytes([byte(1), byte(2)]),
        byte(3),
        byte(4)
    );
    let micros = u32::from_le_bytes([byte(8), byte(9), byte(10), byte(11)]);
    Value::String(match byte(0) {
        0 => "0000-00-00".to_owned(),
        4 => date,
        7 => format!("{date}T{:02}:{:02}:{:02}", byte(5), byte(6), byte(7)),
        _ => format!(
            "{date}T{:02}:{:02}:{:02}.{micros:06}",
            byte(5),
            byte(6),
            byte(7)
        ),
    })
}
