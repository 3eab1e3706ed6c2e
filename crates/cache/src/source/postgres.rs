//! PostgreSQL.

use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Column, Executor, Postgres, Row as _, TypeInfo, ValueRef};

use super::{DatabaseOptions, Executed, Param, Pool, Row, SourceError, hex, number};

/// The pool, and one of connections that only read, if there are to be any.
pub(super) fn connect(options: PgConnectOptions, limits: &DatabaseOptions) -> (Pool, Option<Pool>) {
    let options = match &limits.tls {
        Some(tls) => super::tls::postgres(options, tls),
        None => options,
    };
    let pool = |connections, options| {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(limits.acquire_timeout);
        Pool::Postgres(pool.connect_lazy_with(options))
    };
    let readers = limits.read_only_connections.map(|connections| {
        // Said with a connection's first message: it costs nothing, and a proxy that shares connections refuses it rather than let
        // it leak into those of others.
        let read_only = [("default_transaction_read_only", "on")];
        pool(connections, options.clone().options(read_only))
    });
    (pool(limits.max_connections, options), readers)
}

pub(super) async fn select<'e, E>(
    executor: E,
    sql: AssertSqlSafe<String>,
    params: &[Param],
    most: usize,
) -> Result<Vec<Row>, SourceError>
where
    E: Executor<'e, Database = Postgres>,
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
    E: Executor<'e, Database = Postgres>,
{
    let done = sqlx::query_with(sql, bind(params)?)
        .execute(executor)
        .await?;
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: None,
    })
}

fn bind(params: &[Param]) -> Result<PgArguments, SourceError> {
    use sqlx::Arguments;
    let mut arguments = PgArguments::default();
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

fn json(row: &PgRow) -> Result<Row, SourceError> {
    row.columns()
        .iter()
        .enumerate()
        .map(|(at, column)| Ok((column.name().to_owned(), value(row, at, column.name())?)))
        .collect()
}

fn value(row: &PgRow, at: usize, column: &str) -> Result<Value, SourceError> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let type_name = raw.type_info().name().to_owned();
    let bytes = || raw.as_bytes().map_err(sqlx::Error::Decode);
    Ok(match type_name.as_str() {
        "BOOL" => row.try_get_unchecked::<bool, _>(at)?.into(),
        "INT2" => row.try_get_unchecked::<i16, _>(at)?.into(),
        "INT4" => row.try_get_unchecked::<i32, _>(at)?.into(),
        "INT8" => row.try_get_unchecked::<i64, _>(at)?.into(),
        "FLOAT4" => number(f64::from(row.try_get_unchecked::<f32, _>(at)?)),
        "FLOAT8" => number(row.try_get_unchecked(at)?),
        "TEXT" | "VARCHAR" | "CHAR" | "NAME" | "UNKNOWN" => {
            row.try_get_unchecked::<String, _>(at)?.into()
        }
        "BYTEA" => hex(row.try_get_unchecked(at)?),
        "TIMESTAMP" => moment(bytes()?, "").unwrap_or(Value::Null),
        "TIMESTAMPTZ" => moment(bytes()?, "Z").unwrap_or(Value::Null),
        "DATE" => date(bytes()?).unwrap_or(Value::Null),
        "UUID" => uuid(bytes()?),
        "JSON" => serde_json::from_slice(bytes()?).unwrap_or(Value::Null),
        "JSONB" => {
            serde_json::from_slice(bytes()?.get(1..).unwrap_or_default()).unwrap_or(Value::Null)
        }
        _ => {
            return Err(SourceError::ColumnType {
                column: column.to_owned(),
                type_name,
            });
        }
    })
}

/// Microseconds since the beginning of 2000.
fn moment(bytes: &[u8], zone: &str) -> Option<Value> {
    let micros = i64::from_be_bytes(bytes.try_into().ok()?);
    let (days, rest) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let (year, month, day) = civil(days)?;
    let (second, micro) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Some(Value::String(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}{zone}"
    )))
}

/// Days since the beginning of 2000.
fn date(bytes: &[u8]) -> Option<Value> {
    let days = i32::from_be_bytes(bytes.try_into().ok()?);
    let (year, month, day) = civil(i64::from(days))?;
    Some(Value::String(format!("{year:04}-{month:02}-{day:02}")))
}

/// The date so many days after 2000-01-01, in the proleptic Gregorian calendar, counted in years that begin in March, so
/// that the leap day is the last of its year. `None` for PostgreSQL's infinities.
fn civil(days: i64) -> Option<(i64, i64, i64)> {
    if days.abs() > 4_000_000_000 / 2 {
        return None;
    }
    let days = days + 730_425; // from 0000-03-01 to 2000-01-01
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    Some((year_of_era + era * 400 + i64::from(month <= 2), month, day))
}

fn uuid(bytes: &[u8]) -> Value {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let group = |from, to| text.get(from..to).unwrap_or_default();
    Value::String(format!(
        "{}-{}-{}-{}-{}",
        group(0, 8),
        group(8, 12),
        group(12, 16),
        group(16, 20),
        group(20, 32)
    ))
}

const DAY: i64 = 86_400_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), Some((2000, 1, 1)));
        assert_eq!(civil(59), Some((2000, 2, 29)));
        assert_eq!(civil(60), Some((2000, 3, 1)));
        assert_eq!(civil(-1), Some((1999, 12, 31)));
        assert_eq!(civil(-10_957), Some((1970, 1, 1)));
        assert_eq!(civil(9_862), Some((2027, 1, 1)));
        assert_eq!(civil(i64::from(i32::MAX)), None);
    }

    #[test]
    fn micros_become_moments() {
        let text = moment(&(DAY + 3_723_000_004i64).to_be_bytes(), "Z");
        assert_eq!(
            text,
            Some(Value::String("2000-01-02T01:02:03.000004Z".into()))
        );
    }
}
