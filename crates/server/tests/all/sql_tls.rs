//! TLS towards real database servers, as `[database.tls]` says.

use std::path::Path;

use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_server::config::Sources;
use steadfast_server::{App, Config};

use crate::authority::{Authority, written};

/// A service on `url`, of which only the database is used.
async fn app(url: &str, settings: &[(&str, &Path)], mode: &str) -> App {
    let mut sources = Sources::new()
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "database.url", url)
        .flag("test", "database.tls.mode", mode);
    for (name, path) in settings {
        let name = format!("database.tls.{name}");
        sources = sources.flag("test", &name, path.display().to_string());
    }
    App::start(Config::load(&sources).unwrap()).await.unwrap()
}

/// How the connection is protected, as the server sees it; or why there is none.
async fn protected(app: &App, asks: &str) -> Result<String, String> {
    let rows = app.database().select(asks, &[]).await;
    app.close().await;
    let rows = rows.map_err(|error| error.to_string())?;
    Ok(rows[0]["how"].to_string())
}

struct Files {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            authority: Authority::new("right"),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Everything that does not differ from one database to the other.
async fn c17_holds_on(
    url: &str,
    named_otherwise: &str,
    asks: &str,
    in_the_clear: &str,
    files: &Files,
) {
    let ca = files.path().join("ca.pem");
    let wrong = Authority::new("wrong").pem();
    let wrong = written(files.path(), "wrong.pem", &wrong);
    for mode in ["verify-full", "verify-ca"] {
        let right = app(url, &[("ca", &ca)], mode).await;
        assert_ne!(
            protected(&right, asks).await.unwrap(),
            in_the_clear,
            "{mode}"
        );
        let unknown = app(url, &[("ca", &wrong)], mode).await;
        let why = protected(&unknown, asks).await.unwrap_err();
        assert!(why.contains("unknown authority"), "{mode}: {why}");
    }
    let why = protected(&app(url, &[], "verify-full").await, asks)
        .await
        .unwrap_err();
    assert!(
        why.contains("unknown authority"),
        "the web's do not vouch for it: {why}"
    );
    let other = app(named_otherwise, &[("ca", &ca)], "verify-full").await;
    let why = protected(&other, asks).await.unwrap_err();
    assert!(why.contains("for another name"), "{why}");
    let other = app(named_otherwise, &[("ca", &ca)], "verify-ca").await;
    assert_ne!(protected(&other, asks).await.unwrap(), in_the_clear);
    let off = app(url, &[], "off").await;
    assert_eq!(protected(&off, asks).await.unwrap(), in_the_clear);
    let prefer = app(url, &[], "prefer").await;
    assert_ne!(protected(&prefer, asks).await.unwrap(), in_the_clear);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_the_way_to_postgres_is_as_safe_as_it_was_told_to_be() {
    let files = Files::new();
    let mut tls = files.authority.server(files.path(), "127.0.0.1");
    tls.client_certificates = true;
    let server = Postgres::start_with_tls(&tls).await.unwrap();
    let asks = "SELECT ssl::text AS how FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let ca = files.path().join("ca.pem");

    // It asks for a certificate: without one, and with ours.
    let without = app(&server.url(), &[("ca", &ca)], "verify-full").await;
    let why = protected(&without, asks).await.unwrap_err();
    assert!(why.contains("client certificate"), "{why}");
    let (chain, key) = files.authority.certify("us", 7);
    let chain = written(files.path(), "us.pem", &chain);
    let key = written(files.path(), "us.key", &key);
    let pair = [("ca", &*ca), ("certificate", &*chain), ("key", &*key)];
    let with = app(&server.url(), &pair, "verify-full").await;
    assert_eq!(protected(&with, asks).await.unwrap(), "\"true\"");

    let tls = files.authority.server(files.path(), "127.0.0.1");
    let server = Postgres::start_with_tls(&tls).await.unwrap();
    let named_otherwise = server.url().replace("127.0.0.1", "localhost");
    c17_holds_on(&server.url(), &named_otherwise, asks, "\"false\"", &files).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_the_way_to_mariadb_is_as_safe_as_it_was_told_to_be() {
    let files = Files::new();
    let tls = files.authority.server(files.path(), "127.0.0.1");
    let server = MariaDb::start_with_tls(&tls).await.unwrap();
    let asks = "SELECT VARIABLE_VALUE AS how FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'SSL_CIPHER'";
    let named_otherwise = server.url().replace("127.0.0.1", "localhost");
    c17_holds_on(&server.url(), &named_otherwise, asks, "\"\"", &files).await;

    let ca = files.path().join("ca.pem");
    let root = app(&server.url(), &[("ca", &ca)], "verify-full").await;
    let mut tx = root.database().begin().await.unwrap();
    tx.execute("CREATE USER us REQUIRE X509", &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let us = server
        .url()
        .replace("root@", "us@")
        .replace("/steadfast", "/");
    let without = app(&us, &[("ca", &ca)], "verify-full").await;
    let why = protected(&without, asks).await.unwrap_err();
    assert!(why.contains("Access denied"), "{why}");
    let (chain, key) = files.authority.certify("us", 7);
    let chain = written(files.path(), "us.pem", &chain);
    let key = written(files.path(), "us.key", &key);
    let pair = [("ca", &*ca), ("certificate", &*chain), ("key", &*key)];
    let with = app(&us, &pair, "verify-full").await;
    assert_ne!(protected(&with, asks).await.unwrap(), "\"\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_a_database_without_tls_is_not_spoken_to_where_tls_is_asked_for() {
    let postgres = Postgres::start().await.unwrap();
    let mariadb = MariaDb::start().await.unwrap();
    for url in [postgres.url(), mariadb.url()] {
        let app = app(&url, &[], "verify-full").await;
        let why = protected(&app, "SELECT 1 AS how").await.unwrap_err();
        assert!(why.contains("TLS"), "{why}");
    }
}

#[test]
fn s10_tls_settings_that_make_no_sense_for_the_database_are_named() {
    for (text, words) in [
        (
            "url = 'sqlite://x.db'\n[database.tls]\nmode = 'verify-full'",
            "SQLite is a file",
        ),
        (
            "url = 'postgres://h/d'\n[database.tls]\nmode = 'require'",
            "must be one of",
        ),
        (
            "url = 'postgres://h/d'\n[database.tls]\nca = '/nowhere/ca.pem'",
            "cannot be read",
        ),
        (
            "url = 'mysql://h/d'\n[database.tls]\nkey = '/etc/hostname'",
            "without `database.tls.certificate`",
        ),
        (
            "url = 'mysql://h/d'\n[database.tls]\nmode = 'off'\nca = '/etc/hostname'",
            "of no use in this mode",
        ),
    ] {
        let error = Config::load(&Sources::new().text("t", &format!("[database]\n{text}")));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
