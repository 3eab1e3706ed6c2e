//! Somebody who hears of Steadfast should see it serve, lose its Redis and go on serving, within a
//! minute and without setting anything up. So everything the demo needs comes with it, belongs to
//! it, and ends with it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use steadfast_cache::{Database, DatabaseOptions, Param};
use steadfast_drill::process;

use crate::app::{App, StartError};
use crate::config::{Config, SAMPLE, Sources};
use crate::status::Overview;

/// Rows of the demo's table.
const USERS: usize = 10_000;
/// Rows per INSERT: below the number of values that any SQLite takes.
const BATCH: usize = 200;
/// The seed of the made-up people, the same in every demo.
const SEED: u64 = 1815;

/// The choices for a demo.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DemoOptions {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The level of the log, as `[log] level`.
    pub log_level: String,
}

impl DemoOptions {
    /// A demo that listens there and logs warnings.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            log_level: "warn".to_owned(),
        }
    }
}

/// A service with a Redis and a database of its own, which end with it.
#[derive(Debug)]
pub struct Demo {
    app: App,
    redis: Option<process::Redis>,
    notice: Option<String>,
    // Last, so that nothing uses the folder any more when it is removed.
    _folder: process::Scratch,
}

impl Demo {
    /// Starts a private redis-server without persistence, makes the sample's table with 10 000
    /// made-up people, and starts the service on both. Without a redis-server to be found it starts
    /// all the same, degraded, and [`notice`](Self::notice) says what to install.
    ///
    /// # Errors
    /// If the temporary folder or the table cannot be made, or the service cannot start.
    pub async fn start(options: DemoOptions) -> Result<Self, StartError> {
        let folder = process::Scratch::new("steadfast-demo-")
            .map_err(|error| StartError::Demo(format!("no temporary folder: {error}")))?;
        let (redis, url, notice) = match process::Redis::start().await {
            Ok(redis) => {
                let url = redis.url();
                (Some(redis), url, None)
            }
            Err(error) => {
                let port = process::Port::free()
                    .map_err(|error| StartError::Demo(format!("no free port: {error}")))?
                    .number();
                let notice = format!(
                    "Without Redis: {error}. Answers come from memory and the database. \
                     A Redis that listens on port {port} is taken into use at once."
                );
                (None, format!("redis://127.0.0.1:{port}/"), Some(notice))
            }
        };
        let database = format!("sqlite://{}", folder.path().join("demo.db").display());
        populate(&database).await?;
        let app = App::start(configure(&options, &url, &database, folder.path())?).await?;
        *app.part::<Arc<Overview>>().notice.write() = notice.clone();
        Ok(Self {
            app,
            redis,
            notice,
            _folder: folder,
        })
    }

    /// The service.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// The port of the private Redis, and its process id while it runs.
    #[must_use]
    pub fn redis(&self) -> Option<(u16, Option<u32>)> {
        self.redis.as_ref().map(|redis| (redis.port(), redis.pid()))
    }

    /// Returns what is missing, and what to install.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Ends the service and all that was started for it.
    pub async fn stop(self) {
        self.app.close().await;
        if let Some(redis) = &self.redis {
            redis.stop().await;
        }
    }
}

fn configure(
    options: &DemoOptions,
    redis: &str,
    database: &str,
    folder: &Path,
) -> Result<Config, StartError> {
    let sources = Sources::new()
        .text("demo", SAMPLE)
        .flag("--listen", "server.listen", options.listen.to_string())
        .flag("demo", "namespace", "demo")
        .flag("demo", "server.drain_delay", "0s")
        .flag("demo", "log.level", options.log_level.clone())
        .flag("demo", "redis.url", redis)
        .flag("demo", "database.url", database)
        .flag("demo", "drill.enabled", "true")
        .flag(
            "demo",
            "drill.reports",
            folder.join("reports").display().to_string(),
        );
    Config::load(&sources).map_err(|error| StartError::Demo(error.to_string()))
}

async fn populate(url: &str) -> Result<(), StartError> {
    let failed = |error: steadfast_cache::SourceError| StartError::Demo(error.to_string());
    let database = Database::connect(url, DatabaseOptions::default()).map_err(failed)?;
    let mut tx = database.begin().await.map_err(failed)?;
    let table = "CREATE TABLE users (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        phone_number TEXT NOT NULL,
        email TEXT,
        created_at TEXT NOT NULL
    )";
    tx.execute(table, &[]).await.map_err(failed)?;
    let mut rng = fastrand::Rng::with_seed(SEED);
    let rows = vec!["(?, ?, ?, ?)"; BATCH].join(", ");
    let insert = format!("INSERT INTO users (name, phone_number, email, created_at) VALUES {rows}");
    for batch in 0..USERS / BATCH {
        let params: Vec<Param> = (0..BATCH)
            .flat_map(|row| person(batch * BATCH + row + 1, &mut rng))
            .collect();
        tx.execute(&insert, &params).await.map_err(failed)?;
    }
    tx.execute(
        "CREATE INDEX users_search ON users (name, phone_number)",
        &[],
    )
    .await
    .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    database.close().await;
    Ok(())
}

/// Name, phone number, address and day: nobody's. The numbers are of the range kept free for films,
/// the addresses of a domain kept free for examples.
fn person(id: usize, rng: &mut fastrand::Rng) -> [Param; 4] {
    let first = FIRST[rng.usize(..FIRST.len())];
    let last = LAST[rng.usize(..LAST.len())];
    let phone = format!("+44 7700 900{:03}", rng.u32(..1000));
    let email = format!(
        "{}.{}.{id}@example.org",
        first.to_lowercase(),
        last.to_lowercase()
    );
    let day = format!(
        "20{:02}-{:02}-{:02} {:02}:{:02}:00",
        rng.u32(18..26),
        rng.u32(1..13),
        rng.u32(1..29),
        rng.u32(..24),
        rng.u32(..60)
    );
    [format!("{first} {last}"), phone, email, day].map(Param::Text)
}

const FIRST: [&str; 48] = [
    "Ada",
    "Alan",
    "Amara",
    "Anita",
    "Arjun",
    "Astrid",
    "Barbara",
    "Beatriz",
    "Bjorn",
    "Carmen",
    "Chen",
    "Clara",
    "Dana",
    "Diego",
    "Edith",
    "Elif",
    "Emeka",
    "Fatima",
    "Felix",
    "Grace",
    "Hana",
    "Hedy",
    "Ines",
    "Ivan",
    "Jamal",
    "Joan",
    "Kaito",
    "Katherine",
    "Lars",
    "Leila",
    "Linus",
    "Malik",
    "Margaret",
    "Mei",
    "Nadia",
    "Nikolai",
    "Olga",
    "Omar",
    "Priya",
    "Quentin",
    "Radia",
    "Rosa",
    "Sofia",
    "Tariq",
    "Ulla",
    "Vera",
    "Wanda",
    "Yuki",
];

const LAST: [&str; 48] = [
    "Abara",
    "Almeida",
    "Andersen",
    "Bauer",
    "Bennett",
    "Bianchi",
    "Chandra",
    "Costa",
    "Dubois",
    "Eriksen",
    "Farouk",
    "Fischer",
    "Garcia",
    "Goldberg",
    "Haddad",
    "Hopper",
    "Ito",
    "Ivanova",
    "Jensen",
    "Johansson",
    "Kaya",
    "Keller",
    "Kim",
    "Kowalski",
    "Lamarr",
    "Liskov",
    "Lovelace",
    "Marchetti",
    "Mbeki",
    "Moreau",
    "Nakamura",
    "Novak",
    "Okafor",
    "Olsen",
    "Patel",
    "Perlman",
    "Quispe",
    "Rossi",
    "Sato",
    "Schmidt",
    "Silva",
    "Tanaka",
    "Turing",
    "Umarov",
    "Vargas",
    "Wang",
    "Yilmaz",
    "Zhang",
];
