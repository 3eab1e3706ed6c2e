//! Values as a database has them and as callers get them: from the database, from memory and from
//! Redis. What is answered stands in `docs/values.md`, which these tests hold to the truth, and
//! write anew when `STEADFAST_WRITE_DOCS` is set.

use std::path::Path;

use serde_json::json;
use steadfast_cache::Pool;
use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_server::config::Sources;
use steadfast_server::{App, Config};

use crate::harness::{Service, redis};

/// Types, and values of each as SQL has them.
type Cases = &'static [(&'static str, &'static [&'static str])];

const SQLITE: Cases = &[
    (
        "INTEGER",
        &[
            "NULL",
            "0",
            "-9223372036854775808",
            "9223372036854775807",
            "9007199254740993",
            "TRUE",
        ],
    ),
    (
        "REAL",
        &[
            "0.1",
            "-0.0",
            "1.7976931348623157e308",
            "5e-324",
            "9e999",
            "-9e999",
        ],
    ),
    (
        "TEXT",
        &[
            "''",
            "'ünï''🦀'",
            "char(0, 31, 127)",
            "'2026-11-23 00:00:00'",
            "CAST(X'ff' AS TEXT)",
        ],
    ),
    ("BLOB", &["X''", "X'00ff10'", "'text'", "7"]),
    (
        "NUMERIC(10, 2)",
        &["1.50", "'1.50'", "9007199254740993", "'9007199254740993.5'"],
    ),
    ("BOOLEAN", &["TRUE", "FALSE", "5"]),
    ("JSON", &["'{\"b\": 1e400, \"a\": [0.10]}'"]),
];

const MARIADB: Cases = &[
    ("TINYINT(1)", &["NULL", "0", "1", "5", "-128"]),
    ("TINYINT(1) UNSIGNED", &["200"]),
    ("TINYINT UNSIGNED", &["255"]),
    ("SMALLINT", &["-32768", "32767"]),
    ("MEDIUMINT", &["-8388608"]),
    ("MEDIUMINT UNSIGNED", &["16777215"]),
    ("INT", &["-2147483648", "2147483647"]),
    ("INT UNSIGNED", &["4294967295"]),
    ("BIGINT", &["-9223372036854775808", "9007199254740993"]),
    ("BIGINT UNSIGNED", &["18446744073709551615"]),
    ("BIT(1)", &["b'1'"]),
    ("BIT(64)", &["18446744073709551615"]),
    ("FLOAT", &["0.1", "3.4028234e38", "-0.0"]),
    ("DOUBLE", &["0.1", "1.7976931348623157e308", "5e-324"]),
    ("DECIMAL(10, 2)", &["1.5", "-0.01"]),
    (
        "DECIMAL(65, 30)",
        &["12345678901234567890123456789012345.000000000000000000000000000001"],
    ),
    (
        "DATE",
        &["NULL", "'0000-00-00'", "'1000-01-01'", "'9999-12-31'"],
    ),
    (
        "DATETIME",
        &[
            "'0000-00-00 00:00:00'",
            "'2026-11-23 00:00:00'",
            "'2026-11-23 12:34:56'",
        ],
    ),
    (
        "DATETIME(6)",
        &[
            "'2026-11-23 12:34:56.000001'",
            "'9999-12-31 23:59:59.999999'",
        ],
    ),
    (
        "TIMESTAMP",
        &["'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'"],
    ),
    ("TIME", &["'00:00:00'", "'-838:59:59'", "'838:59:59'"]),
    ("TIME(6)", &["'-00:00:00.000001'"]),
    ("YEAR", &["1901", "2155", "0"]),
    ("CHAR(5)", &["'a'", "'ünï'"]),
    ("CHAR(5) CHARACTER SET latin1", &["'ünï'"]),
    ("VARCHAR(20) COLLATE utf8mb4_bin", &["''", "'Straße🦀'"]),
    ("TEXT COLLATE utf8mb4_bin", &["'a\\nb'"]),
    ("LONGTEXT", &["'a'"]),
    ("BINARY(3)", &["X'00'"]),
    ("VARBINARY(3)", &["X'00ff10'", "''"]),
    ("BLOB", &["X'00ff10'"]),
    ("ENUM('a', 'é')", &["'é'"]),
    ("SET('a', 'b') COLLATE utf8mb4_bin", &["'a,b'", "''"]),
    ("JSON", &["'{\"b\": 1.10, \"a\": [9007199254740993]}'"]),
    ("UUID", &["'0190a5b0-0000-7000-8000-000000000001'"]),
    ("INET6", &["'2001:db8::7'"]),
    ("POINT", &["POINT(1, 2)"]),
];

const POSTGRES: Cases = &[
    ("boolean", &["NULL", "true", "false"]),
    ("smallint", &["-32768"]),
    ("integer", &["2147483647"]),
    ("bigint", &["-9223372036854775808", "9007199254740993"]),
    ("oid", &["4294967295"]),
    (
        "real",
        &[
            "0.1",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "3.4028235e38",
            "1e-45",
        ],
    ),
    (
        "double precision",
        &[
            "0.1",
            "'NaN'",
            "'-Infinity'",
            "1.7976931348623157e308",
            "5e-324",
        ],
    ),
    (
        "numeric",
        &[
            "0",
            "-0.00001",
            "12345678901234567890.10",
            "1e-20",
            "1e20",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "10000",
            "99999999.9999",
        ],
    ),
    ("numeric(10, 2)", &["1.5"]),
    ("text", &["''", "'ünï''🦀'"]),
    ("varchar(5)", &["'a'"]),
    ("char(5)", &["'a'"]),
    ("\"char\"", &["'x'"]),
    ("name", &["'a'"]),
    ("bytea", &["''", "'\\x00ff10'"]),
    (
        "date",
        &[
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 BC'",
            "'0001-01-01'",
            "'2026-11-23'",
            "'5874897-12-31'",
        ],
    ),
    (
        "timestamp",
        &[
            "'infinity'",
            "'0001-12-31 23:59:59.999999 BC'",
            "'2026-11-23 00:00:00'",
            "'294276-12-31 23:59:59.999999'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'-infinity'",
            "'4713-11-24 00:00:00+00 BC'",
            "'2026-11-23 12:34:56.000001+01'",
        ],
    ),
    ("time", &["'00:00:00'", "'24:00:00'"]),
    (
        "timetz",
        &["'12:34:56.000001+05:30'", "'00:00:00-15:59:59'"],
    ),
    ("uuid", &["'0190a5b0-0000-7000-8000-000000000001'"]),
    (
        "json",
        &[
            "'{\"b\": 1e400, \"a\": 0.10, \"a\": 9007199254740993}'",
            "'null'",
            "('\"' || repeat('x', 20) || '\"')::json",
        ],
    ),
    (
        "jsonb",
        &[
            "'{\"b\": 1e400, \"a\": [0.10]}'",
            "(repeat('[', 200) || repeat(']', 200))::jsonb",
        ],
    ),
    ("mood", &["'so so'"]),
    ("interval", &["'1 day'"]),
    ("integer[]", &["'{1,2}'"]),
    ("double precision[]", &["'{{0.1, NaN}, {NULL, -Infinity}}'"]),
    ("bytea[]", &["ARRAY['\\x00ff'::bytea, NULL]"]),
    (
        "json[]",
        &["ARRAY['{\"b\": 1e400, \"a\": 0.10}', NULL, 'null']::json[]"],
    ),
    ("inet", &["'::1'"]),
    ("money", &["1"]),
    ("bit(3)", &["B'101'"]),
];

async fn run(app: &App, sql: String) {
    let asked = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone()));
    let done = match app.database().pool() {
        Pool::Sqlite(pool) => asked.execute(pool).await.map(|_| ()),
        Pool::MySql(pool) => asked.execute(pool).await.map(|_| ()),
        Pool::Postgres(pool) => asked.execute(pool).await.map(|_| ()),
        _ => unreachable!(),
    };
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// What a query answers: its first row, or why there is none; and where it came from.
async fn answer(service: &Service, path: &str) -> (String, String) {
    let reply = service.get(path).await;
    let text = reply.text();
    if reply.status != 200 {
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        return (format!("refused: {detail}"), "nowhere".to_owned());
    }
    let rows = text.split_once("\"rows\":[{\"v\":").unwrap().1;
    let (row, tail) = rows.split_once("}],\"truncated\":false,").unwrap();
    let source = tail.split('"').nth(3).unwrap();
    (row.to_owned(), source.to_owned())
}

async fn s12_a_value_is_answered_exactly_or_as_text_or_refused_by_column(
    url: &str,
    name: &str,
    setup: &str,
    cases: Cases,
) {
    let redis = redis().await;
    let mut text = format!(
        "[redis]\nurl = '{}'\ndeadline = '20s'\n[cache]\nredis_limit = '10s'\n[database]\nurl = '{url}'\n",
        redis.url()
    );
    for n in 0..cases.len() {
        text.push_str(&format!(
            "[queries.q{n}]\nsql = 'SELECT v FROM t{n} WHERE at = :at'\nparams.at.type = 'integer'\n"
        ));
    }
    let config = Config::load(&Sources::new().text("values", &text)).unwrap();
    let one = Service::of(config.clone()).await;
    if !setup.is_empty() {
        run(&one.app, setup.to_owned()).await;
    }
    for (n, (of_type, values)) in cases.iter().enumerate() {
        run(
            &one.app,
            format!("CREATE TABLE t{n} (at INT, v {of_type} NULL)"),
        )
        .await;
        for (at, value) in values.iter().enumerate() {
            run(&one.app, format!("INSERT INTO t{n} VALUES ({at}, {value})")).await;
        }
    }
    let two = Service::of(config).await;
    for service in [&one, &two] {
        service
            .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
            .await;
    }
    let mut section = format!("## {name}\n\n| type | value | answered |\n|---|---|---|\n");
    for (n, (of_type, values)) in cases.iter().enumerate() {
        for (at, value) in values.iter().enumerate() {
            let path = format!("/v1/queries/q{n}?at={at}");
            let (first, source) = answer(&one, &path).await;
            if source != "nowhere" {
                assert_eq!(source, "database", "{of_type} {value}");
                for (service, from) in [(&one, "memory"), (&two, "redis")] {
                    let again = answer(service, &path).await;
                    assert_eq!(again, (first.clone(), from.to_owned()), "{of_type} {value}");
                }
            }
            let shown = |text: &str| text.replace('|', "\\|");
            let (value, first) = (shown(value), shown(&first));
            section.push_str(&format!("| `{of_type}` | `{value}` | `{first}` |\n"));
        }
    }
    hold_to("docs/values.md", &section);
}

/// Holds a section of a page, from its heading to the next, to what it is in truth.
fn hold_to(page: &str, section: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let heading = section.lines().next().unwrap();
    let from = text.find(&format!("{heading}\n")).unwrap();
    let to = text[from + 3..]
        .find("\n## ")
        .map_or(text.len(), |end| from + 3 + end);
    if std::env::var_os("STEADFAST_WRITE_DOCS").is_some() {
        let written = format!("{}{}\n{}", &text[..from], section.trim_end(), &text[to..]);
        std::fs::write(&path, format!("{}\n", written.trim_end())).unwrap();
        return;
    }
    for (written, true_now) in text[from..to].trim_end().lines().zip(section.lines()) {
        assert_eq!(
            written, true_now,
            "{page} is out of date; set STEADFAST_WRITE_DOCS to write it anew"
        );
    }
    assert_eq!(
        text[from..to].trim_end(),
        section.trim_end(),
        "{page} is out of date"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_values_of_sqlite_are_answered_exactly_from_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    s12_a_value_is_answered_exactly_or_as_text_or_refused_by_column(&url, "SQLite", "", SQLITE)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_values_of_mariadb_are_answered_exactly_from_everywhere() {
    let server = MariaDb::start().await.unwrap();
    let name = "MariaDB and MySQL";
    s12_a_value_is_answered_exactly_or_as_text_or_refused_by_column(
        &server.url(),
        name,
        "",
        MARIADB,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_values_of_postgresql_are_answered_exactly_from_everywhere() {
    let server = Postgres::start().await.unwrap();
    let setup = "CREATE TYPE mood AS ENUM ('so so')";
    s12_a_value_is_answered_exactly_or_as_text_or_refused_by_column(
        &server.url(),
        "PostgreSQL",
        setup,
        POSTGRES,
    )
    .await;
}

/// What each database is asked alike.
const ALIKE: &str = "
[queries.order]
sql = 'SELECT 1 AS z, 2 AS a, 3 AS m'
[queries.twice]
sql = 'SELECT 1 AS a, 2 AS b, 3 AS a'
[queries.optional]
sql = 'SELECT COUNT(*) AS n FROM numbers WHERE (:least IS NULL OR n >= :least) AND (:truth IS NULL OR yes = :truth)'
params.least = { type = 'integer', optional = true }
params.truth = { type = 'boolean', optional = true }
[statements.add]
sql = 'INSERT INTO things (id, name, small) VALUES (:id, :name, :small)'
params.id = { type = 'integer' }
params.name = { type = 'string', optional = true }
params.small = { type = 'integer', optional = true }
[statements.deferred]
sql = 'INSERT INTO children VALUES (:parent)'
params.parent = { type = 'integer' }
[statements.rule]
sql = 'INSERT INTO ruled VALUES (:n)'
params.n = { type = 'integer' }
";

/// Parameters that are left out, columns in their order, and mistakes of a caller, which are told
/// as such.
async fn alike(
    url: &str,
    setup: &str,
    statuses: &[(&str, serde_json::Value, u16)],
    more: &str,
) -> Service {
    let settings =
        format!("[redis]\nurl = 'redis://127.0.0.1:1'\n[database]\nurl = '{url}'\n{ALIKE}{more}");
    let config = Config::load(&Sources::new().text("alike", &settings)).unwrap();
    let service = Service::of(config).await;
    for sql in setup.split(";\n") {
        run(&service.app, sql.to_owned()).await;
    }
    let order = service.get("/v1/queries/order").await.text();
    assert!(
        order.contains("\"rows\":[{\"z\":1,\"a\":2,\"m\":3}]"),
        "{order}"
    );
    let twice = service.get("/v1/queries/twice").await;
    assert_eq!(twice.status, 503, "{}", twice.text());
    assert!(
        twice.text().contains("two columns are called a"),
        "{}",
        twice.text()
    );
    for (asked, n) in [
        ("", 3),
        ("least=2", 2),
        ("truth=true", 1),
        ("least=2&truth=true", 0),
        ("", 3),
    ] {
        let reply = service.get(&format!("/v1/queries/optional?{asked}")).await;
        assert_eq!(reply.status, 200, "{asked}: {}", reply.text());
        assert_eq!(reply.json()["rows"][0]["n"], n, "{asked}");
    }
    for (statement, body, status) in statuses {
        let reply = service
            .post(&format!("/v1/statements/{statement}"), body)
            .await;
        assert_eq!(
            reply.status,
            *status,
            "{statement} {body}: {}",
            reply.text()
        );
        let kind = reply.json()["type"].as_str().unwrap_or("").to_owned();
        let wanted = match status {
            409 => "/problems/conflict",
            422 => "/problems/bad-parameter",
            _ => "",
        };
        assert_eq!(kind, wanted, "{statement} {body}: {}", reply.text());
    }
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_callers_mistakes_are_its_own_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let setup = "CREATE TABLE numbers (n INTEGER, yes BOOLEAN);\nINSERT INTO numbers VALUES (1, TRUE), (2, FALSE), (3, NULL);\n\
                 CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT NOT NULL, small INTEGER CHECK (small < 100));\n\
                 CREATE TABLE children (parent INTEGER REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED);\n\
                 CREATE TABLE ruled (n INTEGER);\n\
                 CREATE TRIGGER rule BEFORE INSERT ON ruled BEGIN SELECT RAISE(ABORT, 'no'); END;\n\
                 CREATE TABLE strict_one (n INTEGER NOT NULL) STRICT";
    let more = "[statements.typed]\nsql = 'INSERT INTO strict_one VALUES (:n)'\nparams.n.type = 'string'\n";
    alike(
        &url,
        setup,
        &[
            ("add", json!({"id": 1, "name": "Ada", "small": 9}), 200),
            ("add", json!({"id": 1, "name": "Ada"}), 409),
            ("add", json!({"id": 2}), 422),
            ("add", json!({"id": 2, "name": "Ada", "small": 100}), 409),
            ("deferred", json!({"parent": 7}), 409),
            ("rule", json!({"n": 7}), 409),
            ("typed", json!({"n": "seven"}), 422),
        ],
        more,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_callers_mistakes_are_its_own_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let setup = "CREATE TABLE numbers (n INT, yes BOOLEAN);\nINSERT INTO numbers VALUES (1, TRUE), (2, FALSE), (3, NULL);\n\
                 CREATE TABLE things (id INT PRIMARY KEY, name VARCHAR(5) NOT NULL, small SMALLINT CHECK (small < 100));\n\
                 CREATE TABLE children (parent INT REFERENCES things (id));\n\
                 CREATE TABLE ruled (n INT);\n\
                 CREATE TRIGGER rule BEFORE INSERT ON ruled FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no';\n\
                 CREATE TABLE typed (id UUID, at DATETIME)";
    let more = "[statements.typed]\nsql = 'INSERT INTO typed VALUES (:id, :at)'\nparams.id.type = 'string'\nparams.at = { type = 'string', optional = true }\n";
    alike(
        &server.url(),
        setup,
        &[
            ("add", json!({"id": 1, "name": "Ada", "small": 9}), 200),
            ("add", json!({"id": 1, "name": "Ada"}), 409),
            ("add", json!({"id": 2}), 422),
            ("add", json!({"id": 2, "name": "Lovelace"}), 422),
            ("add", json!({"id": 2, "name": "Ada", "small": 70_000}), 422),
            ("add", json!({"id": 2, "name": "Ada", "small": 100}), 409),
            ("deferred", json!({"parent": 7}), 409),
            ("rule", json!({"n": 7}), 409),
            ("typed", json!({"id": "seven"}), 422),
            (
                "typed",
                json!({"id": "0190a5b0-0000-7000-8000-000000000001", "at": "soon"}),
                422,
            ),
        ],
        more,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_callers_mistakes_are_its_own_on_postgresql() {
    let server = Postgres::start().await.unwrap();
    let setup = "CREATE TABLE numbers (n INT, yes BOOLEAN);\nINSERT INTO numbers VALUES (1, TRUE), (2, FALSE), (3, NULL);\n\
                 CREATE TABLE things (id INT PRIMARY KEY, name VARCHAR(5) NOT NULL, small SMALLINT CHECK (small < 100));\n\
                 CREATE TABLE children (parent INT REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED);\n\
                 CREATE TABLE ruled (n INT);\n\
                 CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;\n\
                 CREATE TRIGGER rule BEFORE INSERT ON ruled EXECUTE FUNCTION no();\n\
                 CREATE TABLE typed (id UUID)";
    let more = "[statements.typed]\nsql = 'INSERT INTO typed VALUES (CAST(:id AS UUID))'\nparams.id.type = 'string'\n\
                [queries.typed]\nsql = 'SELECT id FROM typed WHERE id = CAST(:id AS UUID)'\nparams.id.type = 'string'\n";
    let service = alike(
        &server.url(),
        setup,
        &[
            ("add", json!({"id": 1, "name": "Ada", "small": 9}), 200),
            ("add", json!({"id": 1, "name": "Ada"}), 409),
            ("add", json!({"id": 2}), 422),
            ("add", json!({"id": 2, "name": "Lovelace"}), 422),
            ("add", json!({"id": 2, "name": "Ada", "small": 70_000}), 422),
            ("add", json!({"id": 2, "name": "Ada", "small": 100}), 409),
            ("deferred", json!({"parent": 7}), 409),
            ("rule", json!({"n": 7}), 409),
            ("typed", json!({"id": "seven"}), 422),
        ],
        more,
    )
    .await;
    let wrong = service.get("/v1/queries/typed?id=seven").await;
    assert_eq!(wrong.status, 422, "{}", wrong.text());
    let count = service
        .app
        .database()
        .select("SELECT COUNT(*) AS n FROM children", &[]);
    assert_eq!(
        count.await.unwrap()[0]["n"],
        0,
        "what was refused at the commit is not there"
    );
    let metrics = service.get("/metrics").await.text();
    let line = "steadfast_writes_total{statement=\"deferred\",outcome=\"conflict\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}
