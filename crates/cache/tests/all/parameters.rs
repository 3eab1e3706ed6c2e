//! What is bound to a placeholder comes back as it was, from each database.

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::types::time::{Date, OffsetDateTime, PrimitiveDateTime, Time};
use sqlx::types::{BigDecimal, Uuid};
use steadfast_cache::{
    Database, NotInCalendar, Param, ParamType, Source, SourceError, View, iso8601,
};
use steadfast_drill::process::{MariaDb, Postgres};

use crate::site::{Site, connect, patient, sqlite};

/// A truth that the caller has wrapped.
#[derive(Debug, PartialEq, Deserialize)]
struct Wrapped(bool);

/// The same columns where truth is asked for.
#[derive(Debug, PartialEq, Deserialize)]
struct Truths {
    yes: Option<bool>,
    wrapped: Option<Wrapped>,
    no: bool,
}

/// Reads truth as such, on whatever database, and nothing else as truth.
async fn truth_is_read(database: &Database) {
    let sql = "SELECT yes, yes AS wrapped, n IS NULL AS no, n FROM p ORDER BY n IS NULL";
    let rows: Vec<Truths> = database.select_as(sql, &[]).await.unwrap();
    let (yes, wrapped) = (Some(true), Some(Wrapped(true)));
    let no = false;
    assert_eq!(rows[0], Truths { yes, wrapped, no });
    let (yes, wrapped, no) = (None, None, true);
    assert_eq!(rows[1], Truths { yes, wrapped, no });

    let seven = database
        .select_one_as::<std::collections::HashMap<String, bool>>(
            "SELECT n FROM p WHERE n = 7",
            &[],
        )
        .await
        .unwrap_err()
        .to_string();
    assert!(
        seven.contains("column n: invalid type: integer, expected") && !seven.contains('7'),
        "{seven}"
    );
    // What a type asks for by serde's own means is handed on: a column as it came, and a whole row.
    type Raw = Box<serde_json::value::RawValue>;
    let raw = database.select_one_as::<Raw>("SELECT n FROM p WHERE n = 7", &[]);
    assert_eq!(raw.await.unwrap().unwrap().get(), r#"{"n":7}"#);
    let raw = database.select_one_as::<std::collections::HashMap<String, Raw>>(
        "SELECT n FROM p WHERE n = 7",
        &[],
    );
    assert_eq!(raw.await.unwrap().unwrap()["n"].get(), "7");
    let tuple =
        database.select_one_as::<Option<serde_json::Value>>("SELECT n FROM p WHERE n = 7", &[]);
    assert_eq!(
        tuple.await.unwrap().unwrap().unwrap(),
        serde_json::json!({"n": 7})
    );
}

/// A type of bytes, as `serde_bytes` and `bytes` have them.
#[derive(Debug, PartialEq)]
struct Blob(Vec<u8>);

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        from.deserialize_byte_buf(Bytes)
    }
}

/// The same column as whatever can hold bytes, and as text.
#[derive(Debug, PartialEq, Deserialize)]
struct Bytes {
    list: Vec<u8>,
    array: [u8; 3],
    own: Blob,
    optional: Option<Vec<u8>>,
    none: Option<Vec<u8>>,
    empty: Vec<u8>,
    text: String,
    any: serde_json::Value,
}

/// Reads bytes as such; `param` is a placeholder for bytes, as this database writes it.
async fn bytes_are_read(database: &Database, param: impl Fn(u8) -> String) {
    let names = [
        "list", "array", "own", "optional", "text", "any", "empty", "none",
    ];
    let columns = names.iter().zip(1..);
    let columns = columns.map(|(name, at)| format!("{} AS {name}", param(at)));
    let sql = format!("SELECT {}", columns.collect::<Vec<_>>().join(", "));
    let mut params = vec![Param::Bytes(vec![0, 255, 16]); 6];
    params.extend([Param::Bytes(Vec::new()), None::<Vec<u8>>.into()]);
    let read = || database.select_one_as::<Bytes>(&sql, &params);
    let expected = Bytes {
        list: vec![0, 255, 16],
        array: [0, 255, 16],
        own: Blob(vec![0, 255, 16]),
        optional: Some(vec![0, 255, 16]),
        none: None,
        empty: Vec::new(),
        text: "00ff10".into(),
        any: "00ff10".into(),
    };
    assert_eq!(read().await.unwrap(), Some(expected));

    let two = database.select_one_as::<std::collections::HashMap<String, [u8; 2]>>(&sql, &params);
    let two = two.await.unwrap_err().to_string();
    assert!(two.contains("column list: invalid length"), "{two}");
    // Text is not bytes, be it made of hexadecimal digits.
    let text = database.select_one_as::<std::collections::HashMap<String, Vec<u8>>>(
        "SELECT '00ff10' AS text",
        &[],
    );
    let text = text.await.unwrap_err().to_string();
    assert!(text.contains("column text: invalid type: string"), "{text}");
}

/// Whatever a parameter can be, as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Whole {
    yes: bool,
    n: i64,
    x: f64,
    name: String,
    raw: Vec<u8>,
    id: Uuid,
    #[serde(with = "iso8601")]
    day: Date,
    #[serde(with = "iso8601")]
    at: Time,
    #[serde(with = "iso8601")]
    local: PrimitiveDateTime,
    #[serde(with = "iso8601")]
    moment: OffsetDateTime,
    #[serde(with = "iso8601")]
    never: Option<OffsetDateTime>,
    amount: BigDecimal,
    none: Option<BigDecimal>,
}

impl Whole {
    const COLUMNS: [&str; 13] = [
        "yes", "n", "x", "name", "raw", "id", "day", "at", "local", "moment", "never", "amount",
        "none",
    ];

    fn new() -> Self {
        let day = Date::from_ordinal_date(2026, 333).unwrap();
        let at = Time::from_hms_micro(1, 2, 3, 456_789).unwrap();
        let local = PrimitiveDateTime::new(day, at);
        Self {
            yes: true,
            n: -7,
            x: 0.1,
            name: "Ada".into(),
            raw: vec![0, 255, 16],
            id: Uuid::from_u128(1),
            day,
            at,
            local,
            moment: local.assume_utc(),
            never: None,
            amount: "12.30".parse().unwrap(),
            none: None,
        }
    }

    fn params(self) -> [Param; 13] {
        [
            self.yes.into(),
            self.n.into(),
            self.x.into(),
            self.name.into(),
            self.raw.into(),
            self.id.into(),
            self.day.into(),
            self.at.into(),
            self.local.into(),
            self.moment.into(),
            self.never.into(),
            self.amount.into(),
            self.none.into(),
        ]
    }

    /// Reads a row of them; `shown` is a placeholder's column, as this database needs it.
    async fn select(database: &Database, shown: impl Fn(usize, &str) -> String) -> Option<Self> {
        let columns = Self::COLUMNS.iter().zip(1..);
        let columns = columns.map(|(name, at)| format!("{} AS {name}", shown(at, name)));
        let sql = format!("SELECT {}", columns.collect::<Vec<_>>().join(", "));
        let mut tx = database.begin().await.unwrap();
        let in_tx = tx.select_one_as(&sql, &Self::new().params()).await;
        assert_eq!(in_tx.unwrap(), Some(Self::new()));
        tx.rollback().await.unwrap();
        let read = database.select_one_as(&sql, &Self::new().params()).await;
        read.unwrap()
    }
}

#[tokio::test]
async fn k1_a_typed_row_holds_whatever_a_parameter_can_be_also_through_a_view() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    for (cache, source) in [(&first, Source::Database), (&second, Source::Redis)] {
        let (view, database): (View<Whole>, _) =
            (cache.view("user").unwrap(), site.database.clone());
        let load = || async move { Ok(Whole::select(&database, |_, _| "?".to_owned()).await) };
        let answer = view.get(7, load).await.unwrap();
        assert_eq!((answer.value, answer.source), (Some(Whole::new()), source));
        assert_eq!(cache.finish_loads(Duration::from_secs(60)).await, 0);
    }
}

#[test]
fn k1_parameters_are_made_of_rusts_own_values() {
    assert_eq!(Param::from(vec![7i32]), Param::Ints(vec![7]));
    assert_eq!(Param::from(&[7i64, 8][..]), Param::Ints(vec![7, 8]));
    assert_eq!(Param::from(vec!["a"]), Param::Texts(vec!["a".into()]));
    assert_eq!(Param::from(&"a".to_owned()), Param::Text("a".into()));
    assert_eq!(Param::from(Cow::Borrowed("a")), Param::Text("a".into()));
    assert_eq!(Param::try_from(7u64), Ok(Param::Int(7)));
    assert_eq!(Param::try_from(7usize), Ok(Param::Int(7)));
    assert!(Param::try_from(u64::MAX).is_err());
    let none = Param::from(None::<Vec<Date>>);
    assert_eq!(none, Param::NullOf(ParamType::Dates));
}

#[test]
fn k1_parameters_are_made_of_the_values_of_chrono_and_rust_decimal() {
    let day = |year| NaiveDate::from_yo_opt(year, 333).unwrap();
    let ours = Date::from_ordinal_date(2026, 333).unwrap();
    assert_eq!(Param::try_from(day(2026)), Ok(Param::Date(ours)));
    assert_eq!(
        Param::try_from(vec![day(2026)]),
        Ok(Param::Dates(vec![ours]))
    );
    assert_eq!(Param::try_from(day(10_000)), Err(NotInCalendar));
    let leap = NaiveTime::from_hms_nano_opt(23, 59, 59, 1_000_000_000);
    assert_eq!(Param::try_from(leap.unwrap()), Err(NotInCalendar));
    let none = Param::try_from(None::<NaiveDateTime>);
    assert_eq!(none, Ok(Param::NullOf(ParamType::DateTime)));
    // The moment counts, not the zone that it is told in.
    let east = chrono::FixedOffset::east_opt(3600).unwrap();
    let epoch = DateTime::UNIX_EPOCH.with_timezone(&east);
    let ours = OffsetDateTime::UNIX_EPOCH;
    assert_eq!(Param::try_from(epoch), Ok(Param::Timestamp(ours)));
    assert_eq!(
        Param::try_from(vec![epoch]),
        Ok(Param::Timestamps(vec![ours]))
    );
    let amount = Decimal::new(-1230, 2);
    let Param::Decimal(ours) = amount.into() else {
        panic!("another type");
    };
    assert_eq!(ours.to_string(), "-12.30");
    let ours = "79228162514264337593543950335"
        .parse::<BigDecimal>()
        .unwrap();
    assert_eq!(Param::from(vec![Decimal::MAX]), Param::Decimals(vec![ours]));
    assert_eq!(
        Param::from(None::<Decimal>),
        Param::NullOf(ParamType::Decimal)
    );
}

/// Values of other crates, as they come back; `M` is what a moment is read as.
#[derive(Debug, PartialEq, Deserialize)]
struct Foreign<M> {
    day: NaiveDate,
    at: NaiveTime,
    local: NaiveDateTime,
    moment: M,
    amount: Decimal,
}

/// Binds values of other crates and reads them; `param` is a placeholder for what has this name, as
/// this database writes it.
async fn foreign_values_come_back<M>(
    database: &Database,
    param: impl Fn(usize, &str) -> String,
    moment: impl Fn(NaiveDateTime) -> M,
) where
    M: PartialEq + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let local = DateTime::from_timestamp_micros(1_795_955_696_789_000).unwrap();
    let local = local.naive_utc();
    let amount = Decimal::new(1230, 2);
    let columns = ["day", "at", "local", "moment", "amount"];
    let columns = columns.into_iter().zip(1..);
    let columns = columns.map(|(name, at)| format!("{} AS {name}", param(at, name)));
    let sql = format!("SELECT {}", columns.collect::<Vec<_>>().join(", "));
    let params = [
        local.date().try_into().unwrap(),
        local.time().try_into().unwrap(),
        local.try_into().unwrap(),
        local.and_utc().try_into().unwrap(),
        amount.into(),
    ];
    let read = database.select_one_as(&sql, &params).await.unwrap();
    let expected = Foreign {
        day: local.date(),
        at: local.time(),
        local,
        moment: moment(local),
        amount,
    };
    assert_eq!(read, Some(expected));
}

/// Lists of dates, moments, decimals and documents.
fn lists() -> [Param; 4] {
    let whole = Whole::new();
    [
        vec![whole.day].into(),
        vec![whole.moment].into(),
        vec![whole.amount].into(),
        vec![serde_json::json!({"a": [1]})].into(),
    ]
}

fn lists_as_json() -> serde_json::Value {
    serde_json::json!({
        "days": ["2026-11-29"], "moments": ["2026-11-29T01:02:03.456789Z"], "amounts": ["12.30"],
        "docs": [{"a": [1]}]})
}

/// Where there are no arrays, they are text.
async fn lists_are_json(database: &Database) {
    let sql = "SELECT ? AS days, ? AS moments, ? AS amounts, ? AS docs";
    let row = database.select(sql, &lists()).await.unwrap().remove(0);
    for (name, expected) in lists_as_json().as_object().unwrap() {
        let text = row[name.as_str()].as_str().unwrap();
        let read: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(read, *expected, "{name}");
    }
}

#[derive(Debug, PartialEq, Deserialize)]
struct Row {
    n: Option<i64>,
    amount: Option<String>,
    id: Option<String>,
    day: Option<String>,
    doc: Option<serde_json::Value>,
    yes: Option<serde_json::Value>,
}

fn whole() -> [Param; 6] {
    let day = Date::from_ordinal_date(2026, 333).unwrap();
    [
        7.into(),
        "12.30".parse::<BigDecimal>().unwrap().into(),
        Uuid::from_u128(1).into(),
        day.into(),
        serde_json::json!({"a": [1]}).into(),
        true.into(),
    ]
}

async fn execute(database: &Database, sql: &str, params: &[Param]) -> Result<(), SourceError> {
    let mut tx = database.begin().await?;
    tx.execute(sql, params).await?;
    tx.commit().await
}

/// NULL goes into a column of any type, before and after a value has been bound in its place, and
/// as untyped as typed.
async fn comes_back(database: &Database, create: &str, insert: &str, select: &str) {
    execute(database, create, &[]).await.unwrap();
    let untyped = std::array::from_fn::<_, 6, _>(|_| Param::Null);
    let typed = [
        None::<i64>.into(),
        None::<BigDecimal>.into(),
        None::<Uuid>.into(),
        None::<Date>.into(),
        Param::NullOf(ParamType::Json),
        None::<bool>.into(),
    ];
    for params in [&untyped, &whole(), &untyped, &typed] {
        execute(database, insert, params).await.unwrap();
    }
    let rows: Vec<Row> = database.select_as(select, &[]).await.unwrap();
    let nothing = Row {
        n: None,
        amount: None,
        id: None,
        day: None,
        doc: None,
        yes: None,
    };
    let (full, empty): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.n.is_some());
    assert_eq!(full.len(), 1);
    assert_eq!(full[0].amount.as_deref(), Some("12.30"));
    assert_eq!(
        full[0].id.as_deref().map(|id| id.replace('-', "")),
        Some(format!("{:032}", 1))
    );
    assert_eq!(full[0].day.as_deref(), Some("2026-11-29"));
    // Text, where JSON is kept as text.
    let doc = match full[0].doc.clone().unwrap() {
        serde_json::Value::String(text) => serde_json::from_str(&text).unwrap(),
        doc => doc,
    };
    assert_eq!(doc, serde_json::json!({"a": [1]}));
    // MySQL and SQLite have numbers for truth.
    let yes = full[0].yes.clone().unwrap();
    assert!(yes == true || yes == 1, "{yes}");
    assert_eq!(empty.len(), 3);
    assert!(empty.iter().all(|row| *row == nothing), "{empty:?}");
    let wrong = database.select_as::<u64>(select, &[]).await.unwrap_err();
    assert!(wrong.to_string().starts_with("row 1 is no u64"), "{wrong}");
    truth_is_read(database).await;
}

#[tokio::test]
async fn k1_parameters_of_every_type_and_null_come_back_from_postgres() {
    let server = Postgres::start().await.unwrap();
    let database = connect(&server.url());
    comes_back(
        &database,
        "CREATE TABLE p (n INTEGER, amount NUMERIC(6,2), id UUID, day DATE, doc JSONB, yes BOOLEAN)",
        "INSERT INTO p (n, amount, id, day, doc, yes) VALUES ($1, $2, $3, $4, $5, $6)",
        "SELECT n, amount, id, day, doc, yes FROM p",
    )
    .await;
    let sql = "SELECT $1::bigint[] AS ints, $2::text[] AS texts, $3::uuid[] AS ids, $4::float8[] AS floats, $5::bool[] AS bools, \
               $6::time AS at, $7::timestamptz AS moment, ARRAY[1.50, NULL]::numeric[] AS amounts, \
               ARRAY['2026-11-29'::date] AS days, ARRAY[$7::timestamptz] AS moments, 'b'::letter AS letter, \
               (SELECT count(*) FROM p WHERE n = ANY($1)) AS found";
    execute(&database, "CREATE TYPE letter AS ENUM ('a', 'b')", &[])
        .await
        .unwrap();
    let params = [
        vec![7i64, 8].into(),
        vec!["a".to_owned()].into(),
        vec![Uuid::from_u128(1)].into(),
        vec![1.5].into(),
        vec![true].into(),
        Time::from_hms_milli(12, 34, 56, 789).unwrap().into(),
        OffsetDateTime::UNIX_EPOCH.into(),
    ];
    let row = database.select(sql, &params).await.unwrap().remove(0);
    let id = "00000000-0000-0000-0000-000000000001";
    let expected = serde_json::json!({
        "ints": [7, 8], "texts": ["a"], "ids": [id], "floats": [1.5], "bools": [true], "at": "12:34:56.789000",
        "moment": "1970-01-01T00:00:00.000000Z", "amounts": ["1.50", null], "days": ["2026-11-29"],
        "moments": ["1970-01-01T00:00:00.000000Z"], "letter": "b", "found": 1});
    assert_eq!(serde_json::to_value(row).unwrap(), expected);
    let sql = "SELECT $1 AS days, $2 AS moments, $3 AS amounts, $4 AS docs";
    let row = database.select(sql, &lists()).await.unwrap().remove(0);
    assert_eq!(serde_json::to_value(row).unwrap(), lists_as_json());
    let letter = "SELECT 1 AS found WHERE 'b'::letter = $1::letter";
    assert_eq!(
        database.select(letter, &["b".into()]).await.unwrap().len(),
        1
    );
    let read = Whole::select(&database, |at, _| format!("${at}")).await;
    assert_eq!(read, Some(Whole::new()));
    bytes_are_read(&database, |at| format!("${at}::bytea")).await;
    lists_and_floats_are_read_from_postgres(&database).await;
    foreign_values_come_back(&database, |at, _| format!("${at}"), |at| at.and_utc()).await;
    // An empty list has a type too.
    let none = database
        .select(
            "SELECT n FROM p WHERE n = ANY($1)",
            &[Vec::<i64>::new().into()],
        )
        .await;
    assert!(none.unwrap().is_empty());
}

/// Numbers that JSON does not have.
#[derive(Debug, PartialEq, Deserialize)]
struct Floats {
    one: f64,
    other: f64,
}

async fn lists_and_floats_are_read_from_postgres(database: &Database) {
    #[derive(Deserialize)]
    struct Lists {
        floats: Vec<Option<f32>>,
        blobs: Vec<Vec<Option<Blob>>>,
        nan: f64,
        name: String,
    }
    let sql = "SELECT ARRAY['NaN', '1.5', NULL]::real[] AS floats, ARRAY[ARRAY['\\x00ff'::bytea, NULL]] AS blobs, \
               'NaN'::float8 AS nan, 'NaN'::float8 AS name";
    let lists: Lists = database.select_one_as(sql, &[]).await.unwrap().unwrap();
    assert!(lists.floats[0].unwrap().is_nan() && lists.nan.is_nan());
    assert_eq!(lists.floats[1..], [Some(1.5), None]);
    assert_eq!(lists.blobs, [[Some(Blob(vec![0, 255])), None]]);
    assert_eq!(lists.name, "NaN");
    // Text is no number, be it the name of one.
    let text = database.select_one_as::<Floats>("SELECT 'NaN' AS one, 1 AS other", &[]);
    let text = text.await.unwrap_err().to_string();
    assert!(text.contains("column one: invalid type: string"), "{text}");
}

#[tokio::test]
async fn k1_the_same_sql_takes_parameters_of_other_types_on_the_same_connection_to_postgres() {
    let server = Postgres::start().await.unwrap();
    let mut options = patient();
    options.max_connections = 1;
    let database = Database::connect(&server.url(), options).unwrap();
    let sql = "SELECT $1::text AS value -- as it was given";
    let given: [(Param, serde_json::Value); 6] = [
        (7.into(), "7".into()),
        // Eight bytes, as a whole number has.
        ("abcdefgh".into(), "abcdefgh".into()),
        (Param::NullOf(ParamType::Bool), serde_json::Value::Null),
        (true.into(), "true".into()),
        (Param::Null, serde_json::Value::Null),
        (
            Uuid::from_u128(1).into(),
            Uuid::from_u128(1).to_string().into(),
        ),
    ];
    for (param, expected) in given {
        let row = database.select(sql, std::slice::from_ref(&param)).await;
        let row = serde_json::to_value(row.unwrap().remove(0)).unwrap();
        assert_eq!(row["value"], expected, "{param:?}");
    }
    execute(&database, "CREATE TABLE told (value TEXT)", &[])
        .await
        .unwrap();
    let insert = "INSERT INTO told VALUES ($1::text)";
    for param in [7.into(), "abcdefgh".into()] {
        execute(&database, insert, &[param]).await.unwrap();
    }
    let told = database.select("SELECT value FROM told", &[]).await;
    let told = serde_json::to_value(told.unwrap()).unwrap();
    assert_eq!(
        told,
        serde_json::json!([{"value": "7"}, {"value": "abcdefgh"}])
    );
}

#[tokio::test]
async fn k1_parameters_of_every_type_and_null_come_back_from_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let database = connect(&server.url());
    comes_back(
        &database,
        "CREATE TABLE p (n INTEGER, amount DECIMAL(6,2), id BINARY(16), day DATE, doc TEXT, yes BOOLEAN)",
        "INSERT INTO p (n, amount, id, day, doc, yes) VALUES (?, ?, ?, ?, ?, ?)",
        "SELECT n, amount, id, day, doc, yes FROM p",
    )
    .await;
    bytes_are_read(&database, |_| "CAST(? AS BINARY)".to_owned()).await;
    let shown = |_, name: &str| match name {
        "raw" | "id" => "CAST(? AS BINARY)".to_owned(),
        "day" => "CAST(? AS DATE)".to_owned(),
        "at" => "CAST(? AS TIME(6))".to_owned(),
        "local" | "moment" => "CAST(? AS DATETIME(6))".to_owned(),
        "amount" => "CAST(? AS DECIMAL(10, 2))".to_owned(),
        _ => "?".to_owned(),
    };
    let read = Whole::select(&database, shown).await;
    assert_eq!(read, Some(Whole::new()));
    // A moment has no zone there.
    foreign_values_come_back(&database, shown, |at| at).await;
    lists_are_json(&database).await;
}

#[tokio::test]
async fn k1_parameters_of_every_type_and_null_come_back_from_sqlite() {
    let (database, _folder) = sqlite().await;
    comes_back(
        &database,
        "CREATE TABLE p (n INTEGER, amount TEXT, id BLOB, day TEXT, doc TEXT, yes BOOLEAN)",
        "INSERT INTO p (n, amount, id, day, doc, yes) VALUES (?, ?, ?, ?, ?, ?)",
        "SELECT n, amount, id, day, doc, yes FROM p",
    )
    .await;
    bytes_are_read(&database, |_| "?".to_owned()).await;
    let shown = |_, name: &str| match name {
        "local" => "replace(?, ' ', 'T')".to_owned(),
        _ => "?".to_owned(),
    };
    foreign_values_come_back(&database, shown, |at| at.and_utc()).await;
    lists_are_json(&database).await;
    let infinite: Option<Floats> = database
        .select_one_as("SELECT 9e999 AS one, -9e999 AS other", &[])
        .await
        .unwrap();
    let (one, other) = (f64::INFINITY, f64::NEG_INFINITY);
    assert_eq!(infinite, Some(Floats { one, other }));
    let sql = "SELECT count(*) AS found FROM p WHERE n IN (SELECT value FROM json_each(?))";
    let found = database.select(sql, &[vec![7i64, 8].into()]).await.unwrap();
    assert_eq!(found[0]["found"], 1);
}
