//! Values for placeholders, and how each database is handed them.

use std::borrow::Cow;
use std::num::TryFromIntError;

use serde_json::Value;
use sqlx::types::time::{Date, OffsetDateTime, PrimitiveDateTime, Time};
use sqlx::types::{BigDecimal, Uuid};

#[cfg(any(feature = "mysql", feature = "sqlite"))]
use crate::iso8601;

/// A value bound to a placeholder: `?` in SQLite and MySQL, `$1` in PostgreSQL. Never spliced into
/// the text. Rust's own values become one by `into`, an `Option` among them:
///
/// ```
/// # use steadfast_cache::{Param, ParamType};
/// let params: [Param; 3] = ["Ada".into(), 7.into(), None::<f64>.into()];
/// assert_eq!(params[2], Param::NullOf(ParamType::Float));
/// ```
///
/// A database's whole numbers are signed, so a `u64` or a `usize` may not be one:
///
/// ```
/// # use steadfast_cache::Param;
/// # fn f(id: u64) -> Result<(), std::num::TryFromIntError> {
/// let id: Param = id.try_into()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Param {
    /// NULL of whatever type stands in its place. PostgreSQL infers it, and refuses where it cannot
    /// (`$1 IS NULL`); as a statement that was prepared for one type does not fit another, it is
    /// prepared anew each time there. [`NullOf`](Self::NullOf) has neither drawback.
    Null,
    /// NULL of this type.
    NullOf(ParamType),
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A UUID: PostgreSQL's type; in MySQL and SQLite its 16 bytes, as sqlx binds it. Where a
    /// column holds it as text, bind text.
    Uuid(Uuid),
    /// A date.
    Date(Date),
    /// A time of day.
    Time(Time),
    /// A date and time of day without a zone.
    DateTime(PrimitiveDateTime),
    /// A point in time.
    Timestamp(OffsetDateTime),
    /// An exact decimal number; in SQLite, which has none, its digits as text.
    Decimal(BigDecimal),
    /// JSON.
    Json(Value),
    /// Truth values: an array in PostgreSQL (`= ANY($1)`), as all the lists below; in MySQL and
    /// SQLite, which have none, a JSON array as text, for `JSON_TABLE` and `json_each`.
    Bools(Vec<bool>),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// Floating-point numbers.
    Floats(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
    /// UUIDs; as text in MySQL's and SQLite's JSON.
    Uuids(Vec<Uuid>),
    /// Dates; as text in MySQL's and SQLite's JSON, as the two below.
    Dates(Vec<Date>),
    /// Points in time.
    Timestamps(Vec<OffsetDateTime>),
    /// Exact decimal numbers.
    Decimals(Vec<BigDecimal>),
    /// JSON documents.
    Jsons(Vec<Value>),
}

/// The type of a [`Param`], for a NULL that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParamType {
    /// [`Param::Bool`].
    Bool,
    /// [`Param::Int`].
    Int,
    /// [`Param::Float`].
    Float,
    /// [`Param::Text`].
    Text,
    /// [`Param::Bytes`].
    Bytes,
    /// [`Param::Uuid`].
    Uuid,
    /// [`Param::Date`].
    Date,
    /// [`Param::Time`].
    Time,
    /// [`Param::DateTime`].
    DateTime,
    /// [`Param::Timestamp`].
    Timestamp,
    /// [`Param::Decimal`].
    Decimal,
    /// [`Param::Json`].
    Json,
    /// [`Param::Bools`].
    Bools,
    /// [`Param::Ints`].
    Ints,
    /// [`Param::Floats`].
    Floats,
    /// [`Param::Texts`].
    Texts,
    /// [`Param::Uuids`].
    Uuids,
    /// [`Param::Dates`].
    Dates,
    /// [`Param::Timestamps`].
    Timestamps,
    /// [`Param::Decimals`].
    Decimals,
    /// [`Param::Jsons`].
    Jsons,
}

macro_rules! from {
    ($($of:ty => $variant:ident),* $(,)?) => {$(
        impl From<$of> for Param {
            fn from(value: $of) -> Self {
                Self::$variant(value.into())
            }
        }

        impl From<Option<$of>> for Param {
            fn from(value: Option<$of>) -> Self {
                value.map_or(Self::NullOf(ParamType::$variant), Self::from)
            }
        }
    )*};
}

from!(
    bool => Bool, i8 => Int, i16 => Int, i32 => Int, i64 => Int, u8 => Int, u16 => Int, u32 => Int, f32 => Float, f64 => Float,
    &str => Text, String => Text, &[u8] => Bytes, Vec<u8> => Bytes, Uuid => Uuid, Date => Date, Time => Time,
    PrimitiveDateTime => DateTime, OffsetDateTime => Timestamp, BigDecimal => Decimal, Value => Json, Vec<bool> => Bools,
    Vec<i64> => Ints, Vec<f64> => Floats, Vec<String> => Texts, Vec<Uuid> => Uuids, Vec<Date> => Dates,
    Vec<OffsetDateTime> => Timestamps, Vec<BigDecimal> => Decimals, Vec<Value> => Jsons, &String => Text, Cow<'_, str> => Text,
    &[i64] => Ints, &[f64] => Floats, &[String] => Texts, &[Uuid] => Uuids,
);

/// Lists of what is not what the variant holds.
macro_rules! from_list_of {
    ($($of:ty => $variant:ident),* $(,)?) => {$(
        impl From<Vec<$of>> for Param {
            fn from(values: Vec<$of>) -> Self {
                Self::$variant(values.into_iter().map(Into::into).collect())
            }
        }

        impl From<&[$of]> for Param {
            fn from(values: &[$of]) -> Self {
                Self::$variant(values.iter().copied().map(Into::into).collect())
            }
        }
    )*};
}

from_list_of!(i16 => Ints, i32 => Ints, u32 => Ints, f32 => Floats, &str => Texts);

macro_rules! try_from {
    ($($of:ty),*) => {$(
        /// A whole number that has to be one of the database's too.
        impl TryFrom<$of> for Param {
            type Error = TryFromIntError;

            fn try_from(value: $of) -> Result<Self, TryFromIntError> {
                i64::try_from(value).map(Self::Int)
            }
        }
    )*};
}

try_from!(u64, i128, u128, usize, isize);

/// NULL of no type in particular: what `unknown` is to PostgreSQL, which infers the type from where
/// it stands.
#[cfg(feature = "postgres")]
struct Untyped;

#[cfg(feature = "postgres")]
impl sqlx::Type<sqlx::Postgres> for Untyped {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        const UNKNOWN: sqlx::postgres::types::Oid = sqlx::postgres::types::Oid(705);
        sqlx::postgres::PgTypeInfo::with_oid(UNKNOWN)
    }
}

#[cfg(feature = "postgres")]
impl sqlx::Encode<'_, sqlx::Postgres> for Untyped {
    fn encode_by_ref(
        &self,
        _: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        Ok(sqlx::encode::IsNull::Yes)
    }
}

/// Whether a statement with these may be prepared once for all: one with an untyped NULL would be
/// prepared for a type that another value in its place need not have.
#[cfg(feature = "postgres")]
pub(super) fn may_stay_prepared(params: &[Param]) -> bool {
    !params.contains(&Param::Null)
}

/// What each type is to PostgreSQL, which has them all: by this name a statement is prepared for
/// it, and its NULL is one of that type.
macro_rules! of_postgres {
    ($($variant:ident $of:ty = $name:literal),* $(,)?) => {
        #[cfg(feature = "postgres")]
        impl Param {
            /// Returns the type that a statement is prepared for, by PostgreSQL's name.
            pub(super) fn type_name(&self) -> &'static str {
                match self {
                    Self::Null => "unknown",
                    $(Self::$variant(_) | Self::NullOf(ParamType::$variant) => $name,)*
                }
            }
        }

        #[cfg(feature = "postgres")]
        pub(super) fn postgres(params: &[Param]) -> Result<sqlx::postgres::PgArguments, sqlx::Error> {
            use sqlx::Arguments;
            let mut arguments = sqlx::postgres::PgArguments::default();
            for param in params {
                match param.clone() {
                    Param::Null => arguments.add(Untyped),
                    $(
                        Param::NullOf(ParamType::$variant) => arguments.add(None::<$of>),
                        Param::$variant(value) => arguments.add(value),
                    )*
                }
                .map_err(sqlx::Error::Encode)?;
            }
            Ok(arguments)
        }
    };
}

of_postgres!(
    Bool bool = "bool",
    Int i64 = "int8",
    Float f64 = "float8",
    Text String = "text",
    Bytes Vec<u8> = "bytea",
    Uuid Uuid = "uuid",
    Date Date = "date",
    Time Time = "time",
    DateTime PrimitiveDateTime = "timestamp",
    Timestamp OffsetDateTime = "timestamptz",
    Decimal BigDecimal = "numeric",
    Json Value = "jsonb",
    Bools Vec<bool> = "bool[]",
    Ints Vec<i64> = "int8[]",
    Floats Vec<f64> = "float8[]",
    Texts Vec<String> = "text[]",
    Uuids Vec<Uuid> = "uuid[]",
    Dates Vec<Date> = "date[]",
    Timestamps Vec<OffsetDateTime> = "timestamptz[]",
    Decimals Vec<BigDecimal> = "numeric[]",
    Jsons Vec<Value> = "jsonb[]",
);

/// What MySQL and SQLite take alike: a NULL of no type, and a list as JSON. They differ in
/// decimals.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
macro_rules! without_lists {
    ($name:ident, $arguments:ty, $decimal:ident => $bound:expr) => {
        pub(super) fn $name(params: &[Param]) -> Result<$arguments, sqlx::Error> {
            use sqlx::Arguments;
            let mut arguments = <$arguments>::default();
            for param in params {
                match param.clone() {
                    Param::Null | Param::NullOf(_) => arguments.add(None::<String>),
                    Param::Bool(value) => arguments.add(value),
                    Param::Int(value) => arguments.add(value),
                    Param::Float(value) => arguments.add(value),
                    Param::Text(value) => arguments.add(value),
                    Param::Bytes(value) => arguments.add(value),
                    Param::Uuid(value) => arguments.add(value),
                    Param::Date(value) => arguments.add(value),
                    Param::Time(value) => arguments.add(value),
                    Param::DateTime(value) => arguments.add(value),
                    Param::Timestamp(value) => arguments.add(value),
                    Param::Decimal($decimal) => arguments.add($bound),
                    Param::Json(value) => arguments.add(value),
                    Param::Bools(_)
                    | Param::Ints(_)
                    | Param::Floats(_)
                    | Param::Texts(_)
                    | Param::Uuids(_)
                    | Param::Dates(_)
                    | Param::Timestamps(_)
                    | Param::Decimals(_)
                    | Param::Jsons(_) => arguments.add(list(param)),
                }
                .map_err(sqlx::Error::Encode)?;
            }
            Ok(arguments)
        }
    };
}

#[cfg(feature = "mysql")]
without_lists!(mysql, sqlx::mysql::MySqlArguments, decimal => decimal);
#[cfg(feature = "sqlite")]
without_lists!(sqlite, sqlx::sqlite::SqliteArguments, decimal => decimal.to_plain_string());

/// A list as JSON, for a database that has no arrays.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
fn list(param: &Param) -> String {
    let values: Value = match param {
        Param::Bools(values) => values.clone().into(),
        Param::Ints(values) => values.clone().into(),
        Param::Floats(values) => values.clone().into(),
        Param::Texts(values) => values.clone().into(),
        Param::Uuids(values) => values.iter().map(Uuid::to_string).collect(),
        Param::Dates(values) => values.iter().map(Date::to_string).collect(),
        Param::Timestamps(values) => values.iter().map(iso8601::text).collect(),
        Param::Decimals(values) => values.iter().map(BigDecimal::to_plain_string).collect(),
        Param::Jsons(values) => values.clone().into(),
        _ => Value::Null,
    };
    values.to_string()
}
