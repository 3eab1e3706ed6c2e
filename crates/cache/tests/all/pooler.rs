//! Behind a PgBouncer, which hands sessions of the server from client to client.

use steadfast_cache::{Cache, Database, DatabaseOptions, Param};
use steadfast_drill::process::{PgBouncer, PoolMode, Postgres, Redis};

use crate::site::{connect, create_table, eventually, plain, read_item, write_item};

/// Refused as it comes, or dropped without a word: what is said with a connection's first message.
const REFUSES_OPTIONS: &str = "";
const DROPS_OPTIONS: &str = "ignore_startup_parameters = extra_float_digits, options";

fn database(bouncer: &PgBouncer, readers: Option<u32>) -> Database {
    let mut options = DatabaseOptions::default();
    options.max_connections = 4;
    options.read_only_connections = readers;
    options.acquire_timeout = std::time::Duration::from_secs(20);
    options.query_limit = std::time::Duration::from_secs(20);
    Database::connect(&bouncer.url(), options).unwrap()
}

/// Three clients of two sessions, each with statements of its own, in an order of its own: each
/// gets what it asked for.
async fn nobody_gets_what_another_asked_for(bouncer: &PgBouncer, table: &str) {
    let owner = database(bouncer, None);
    let mut tx = owner.begin().await.unwrap();
    let sql = format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, a BIGINT, b BIGINT)");
    tx.execute(&sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let clients = [None, Some(3), Some(2)].into_iter().enumerate();
    let asking = clients.map(|(client, readers)| {
        let database = database(bouncer, readers);
        let table = table.to_owned();
        tokio::spawn(async move {
            let columns = ["a", "b"];
            for n in 0..25_i64 {
                let id = client as i64 * 1000 + n;
                let first = (client + n as usize) % 2;
                let mut tx = database.begin().await.unwrap();
                let (one, two) = (columns[first], columns[1 - first]);
                let insert = format!("INSERT INTO {table} (id, {one}) VALUES ($1, $2)");
                let params = [Param::Int(id), Param::Int(id * 10 + first as i64)];
                tx.execute(&insert, &params).await.unwrap();
                let update = format!("UPDATE {table} SET {two} = $2 WHERE id = $1 RETURNING id, {two} AS changed");
                let params = [Param::Int(id), Param::Int(id * 10 + 1 - first as i64)];
                let rows = tx.select(&update, &params).await.unwrap();
                assert_eq!(rows[0]["changed"], id * 10 + 1 - first as i64);
                tx.commit().await.unwrap();
                let kinds = (0..4).map(|k| {
                    let kind = (k + n + client as i64) % 7;
                    let sql = format!("SELECT {kind}::bigint AS kind{kind}, a, b, $1::bigint AS id FROM {table} WHERE id = $1");
                    (kind, sql)
                });
                let database = &database;
                let reads = kinds.map(|(kind, sql)| async move {
                    let rows = database.select(&sql, &[Param::Int(id)]).await.unwrap();
                    let row = &rows[0];
                    assert_eq!(row[&format!("kind{kind}")], kind, "{row:?}");
                    assert_eq!((&row["id"], &row["a"], &row["b"]), (&id.into(), &(id * 10).into(), &(id * 10 + 1).into()), "{row:?}");
                });
                futures_util::future::join_all(reads).await;
            }
            if readers.is_some() {
                let sql = format!("DELETE FROM {table} RETURNING id");
                let error = database.select(&sql, &[]).await.unwrap_err();
                assert!(error.writes(), "{error}");
            }
            database.ping(std::time::Duration::from_secs(20)).await.unwrap();
        })
    });
    for done in asking.collect::<Vec<_>>() {
        done.await.unwrap();
    }
    let rows = owner
        .select(&format!("SELECT COUNT(*) AS n FROM {table}"), &[])
        .await
        .unwrap();
    assert_eq!(rows[0]["n"], 75);
}

#[tokio::test]
async fn s14_behind_a_pooler_nobody_gets_what_another_asked_for() {
    let server = Postgres::start().await.unwrap();
    let cases = [
        (PoolMode::Transaction, REFUSES_OPTIONS),
        (PoolMode::Transaction, DROPS_OPTIONS),
        (PoolMode::Session, REFUSES_OPTIONS),
        (PoolMode::Session, DROPS_OPTIONS),
    ];
    for (at, (mode, settings)) in cases.into_iter().enumerate() {
        // In session mode each connection of a client takes a session, and keeps it.
        let sessions = if mode == PoolMode::Session { 40 } else { 2 };
        let bouncer = PgBouncer::start(&server, mode, sessions, settings)
            .await
            .unwrap();
        nobody_gets_what_another_asked_for(&bouncer, &format!("t{at}")).await;
    }
}

#[tokio::test]
async fn s14_behind_a_pooler_the_outbox_and_two_caches_work() {
    let (server, redis) = (
        Postgres::start().await.unwrap(),
        Redis::start().await.unwrap(),
    );
    let bouncer = PgBouncer::start(&server, PoolMode::Transaction, 4, REFUSES_OPTIONS)
        .await
        .unwrap();
    let shared = database(&bouncer, Some(2));
    create_table(&shared).await;
    let mut caches: Vec<Cache> = Vec::new();
    for _ in 0..2 {
        let client = steadfast::Client::builder(&redis.url())
            .unwrap()
            .connect()
            .await
            .unwrap();
        let database = database(&bouncer, Some(2));
        caches.push(plain(&database).redis(client).build().await.unwrap());
    }
    for version in 1..20 {
        write_item(&caches[0], 7, version).await;
        let wanted = version.to_string();
        assert_eq!(read_item(&caches[0], 7).await.as_deref(), Some(&*wanted));
        eventually("the other has heard", || async {
            read_item(&caches[1], 7).await.as_deref() == Some(&*wanted)
        })
        .await;
    }
    eventually("the outbox is drained", || async {
        shared
            .select("SELECT id FROM steadfast_outbox", &[])
            .await
            .unwrap()
            .is_empty()
    })
    .await;
}

/// What is given up is stopped, though the session is lent.
#[tokio::test]
async fn s14_behind_a_pooler_what_is_given_up_ends() {
    let server = Postgres::start().await.unwrap();
    let bouncer = PgBouncer::start(&server, PoolMode::Transaction, 4, DROPS_OPTIONS)
        .await
        .unwrap();
    let mut options = DatabaseOptions::default();
    options.query_limit = std::time::Duration::from_millis(500);
    let hurried = Database::connect(&bouncer.url(), options).unwrap();
    let direct = connect(&server.url());
    assert!(
        hurried
            .select("SELECT pg_sleep(60)::text AS slept", &[])
            .await
            .is_err()
    );
    eventually("it has ended", || async {
        let sql = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()";
        direct.select(sql, &[]).await.unwrap().is_empty()
    })
    .await;
}
