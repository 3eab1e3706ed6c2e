//! What one process does: read and write items through its cache, and write down what happened.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use steadfast::Client;
use steadfast_cache::{
    Answer, Cache, CacheError, Database, DatabaseOptions, GuardOptions, Param, Sabotage, Source,
    SourceError, Target, Ttl, Tx,
};

use super::judge::Line;
use crate::site::{create_table, select_item, text};

/// The environment variable that holds the order.
pub(crate) const ORDER: &str = "STEADFAST_HISTORY_ORDER";

pub(crate) const ITEMS: i64 = 8;

/// What a process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) redis: String,
    pub(crate) database: String,
    pub(crate) log: PathBuf,
    pub(crate) seed: u64,
    pub(crate) run_ms: u64,
    pub(crate) write_ms: u64,
    /// Ends itself between a commit and its relay, this long after it began.
    pub(crate) die_after_ms: Option<u64>,
    pub(crate) rule: Option<Break>,
}

/// A rule to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Break {
    Outbox,
    Lease,
    Watermark,
    Flight,
    Stripe,
    Tags,
    AwaitSql,
    Rollback,
}

/// How an item is read.
#[derive(Clone, Copy)]
enum Form {
    Alone,
    /// Together with another of its class.
    InBatch,
    /// By somebody who names no tag and can load nothing: only what is there already, and whatever it carries.
    Peek,
}

impl Order {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

pub(crate) async fn create_items(database: &Database) {
    create_table(database).await;
    let mut tx = database.begin().await.unwrap();
    for id in 0..ITEMS {
        tx.execute(
            &format!("INSERT INTO items (id, version) VALUES ({id}, 0)"),
            &[],
        )
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
}

#[derive(Clone)]
struct Process {
    cache: Cache,
    log: Arc<File>,
    /// The database has answered: from then on a read that is refused counts.
    sql_seen: Arc<AtomicBool>,
    end: u64,
    write_end: u64,
    die_at: Option<u64>,
}

pub(crate) async fn work(order: Order) {
    let now = now();
    let process = Process {
        cache: build(&order).await,
        log: Arc::new(
            File::options()
                .create(true)
                .append(true)
                .open(&order.log)
                .unwrap(),
        ),
        sql_seen: Arc::default(),
        end: now + order.run_ms * 1000,
        write_end: now + order.write_ms * 1000,
        die_at: order.die_after_ms.map(|ms| now + ms * 1000),
    };
    let mut tasks = Vec::new();
    for n in 0..6u64 {
        let rng = fastrand::Rng::with_seed(order.seed * 100 + n);
        let process = process.clone();
        tasks.push(if n < 4 {
            tokio::spawn(process.reads(rng))
        } else {
            tokio::spawn(process.writes(rng))
        });
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn build(order: &Order) -> Cache {
    let database = Database::connect(&order.database, DatabaseOptions::default()).unwrap();
    let client = Client::builder(&order.redis).unwrap().build().unwrap();
    let ttl = Ttl {
        fresh: Duration::from_secs(120),
        soft_limit: Duration::from_millis(500),
        ..Ttl::default()
    };
    let mut sabotage = Sabotage::default();
    match order.rule {
        Some(Break::Outbox) => sabotage.outbox_off = true,
        Some(Break::Lease) => sabotage.lease_unchecked = true,
        Some(Break::Watermark) => sabotage.watermark_ignored = true,
        Some(Break::Flight) => sabotage.flight_not_detached = true,
        Some(Break::Stripe) => sabotage.stripe_not_bumped = true,
        Some(Break::Tags) => sabotage.tags_dropped = true,
        Some(Break::AwaitSql) => sabotage.sql_not_awaited = true,
        Some(Break::Rollback) => sabotage.rollback_ignored = true,
        None => {}
    }
    Cache::builder(database)
        .redis(client)
        .namespace("history")
        .guard(GuardOptions::new(16, 5000.0))
        .class("user", ttl)
        .class(
            "strict",
            Ttl {
                stale: Duration::ZERO,
                ..ttl
            },
        )
        .seed(order.seed)
        .sabotage(sabotage)
        .build()
        .await
        .unwrap()
}

impl Process {
    fn note(&self, line: &Line) {
        (&*self.log).write_all(line.write().as_bytes()).unwrap();
    }

    async fn reads(self, mut rng: fastrand::Rng) {
        while now() < self.end {
            let (item, form) = (rng.i64(0..ITEMS), any_form(&mut rng));
            for _ in 0..=u8::from(rng.bool()) {
                self.read(item, form, slow(&mut rng)).await;
            }
            tokio::time::sleep(Duration::from_micros(rng.u64(500..8000))).await;
        }
    }

    /// A load may dawdle between asking SQL and handing over what it got.
    async fn read(&self, item: i64, form: Form, dawdle: Duration) {
        let database = self.cache.database().clone();
        let from = now();
        match form {
            Form::Alone => {
                let load = move || async move {
                    let found = select_item(&database, item).await;
                    tokio::time::sleep(dawdle).await;
                    Ok(found?)
                };
                let shelf = shelf(item);
                let view = text(&self.cache, class(item));
                let read = view.read(key(item)).tags(&shelf);
                self.note_answer(item, from, read.get(load).await);
            }
            Form::Peek => {
                let load = || async { Err::<Option<String>, _>("no".into()) };
                let answer = text(&self.cache, class(item)).get(key(item), load).await;
                if answer.is_ok() {
                    self.note_answer(item, from, answer);
                }
            }
            Form::InBatch => {
                let items = [item, (item + 2) % ITEMS];
                let load = move |_keys: Vec<String>| async move {
                    let mut found = HashMap::new();
                    for item in items {
                        let value = select_item(&database, item).await?;
                        found.extend(value.map(|value| (key(item), value)));
                    }
                    tokio::time::sleep(dawdle).await;
                    Ok(found)
                };
                let keys = items.map(key);
                let view = text(&self.cache, class(item));
                let read = view.read_many(&keys);
                let read = read.tags_of(|name| shelf(item_of(name)));
                for (item, answer) in items.into_iter().zip(read.get(load).await) {
                    self.note_answer(item, from, answer);
                }
            }
        }
    }

    fn note_answer(&self, item: i64, from: u64, answer: Result<Answer<String>, CacheError>) {
        if matches!(&answer, Ok(answer) if answer.source == Source::Database) {
            self.sql_seen.store(true, Ordering::SeqCst);
        } else if answer.is_err() && !self.sql_seen.load(Ordering::SeqCst) {
            return;
        }
        self.note(&match answer {
            Ok(answer) => Line::Read {
                item,
                version: answer
                    .value
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(-1),
                from,
                to: now(),
                stale: answer.stale.is_some(),
                strict: class(item) == "strict",
            },
            Err(_) => Line::Refused,
        });
    }

    async fn writes(self, mut rng: fastrand::Rng) {
        while now() < self.write_end {
            let item = active(&mut rng);
            let dies = self.die_at.is_some_and(|at| now() > at);
            // Now and then a transaction is long in coming to its end after it has written its invalidation.
            let linger = match rng.u8(..30) {
                0 => Duration::from_millis(rng.u64(300..1500)),
                _ => Duration::ZERO,
            };
            match self.write(item, linger, dies).await {
                Ok(()) => {
                    let form = any_form(&mut rng);
                    self.read(item, form, slow(&mut rng)).await;
                }
                Err(error) => tracing::debug!(%error, "a write failed"),
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(10..80))).await;
        }
    }

    async fn write(&self, item: i64, linger: Duration, dies: bool) -> Result<(), SourceError> {
        let mut tx = self.cache.database().begin().await?;
        let version = raise(&mut tx, item).await?;
        let invalidation = self.cache.invalidate_in(&mut tx, &[target(item)]).await?;
        tokio::time::sleep(linger).await;
        self.note(&Line::Begun {
            item,
            version,
            at: now(),
        });
        tx.commit().await?;
        if dies {
            self.note(&Line::Committed {
                item,
                version,
                at: now(),
            });
            std::process::abort();
        }
        invalidation.apply().await;
        self.note(&Line::Committed {
            item,
            version,
            at: now(),
        });
        Ok(())
    }
}

fn key(item: i64) -> String {
    format!("item:{item}")
}

fn item_of(key: &str) -> i64 {
    key.trim_start_matches("item:").parse().unwrap()
}

/// Half the items belong to each class.
fn class(item: i64) -> &'static str {
    if item % 2 == 0 { "user" } else { "strict" }
}

/// Half the items stand on a shelf, and are invalidated by it alone.
fn shelf(item: i64) -> Option<String> {
    (item % 4 >= 2).then(|| format!("shelf:{}", item / 4))
}

fn target(item: i64) -> Target {
    shelf(item).map_or_else(|| Target::key(key(item)), Target::tag)
}

fn any_form(rng: &mut fastrand::Rng) -> Form {
    [Form::Alone, Form::Alone, Form::InBatch, Form::Peek][rng.usize(..4)]
}

async fn raise(tx: &mut Tx, item: i64) -> Result<i64, SourceError> {
    let (update, select) = match tx {
        Tx::Postgres(_) => (
            "UPDATE items SET version = version + 1 WHERE id = $1",
            "SELECT version FROM items WHERE id = $1",
        ),
        _ => (
            "UPDATE items SET version = version + 1 WHERE id = ?",
            "SELECT version FROM items WHERE id = ?",
        ),
    };
    tx.execute(update, &[Param::Int(item)]).await?;
    let rows = tx.select(select, &[Param::Int(item)]).await?;
    Ok(rows[0]["version"].as_i64().unwrap())
}

/// An item to be written. Each is written for three seconds of eight and then left alone, in turn, so that a value which is wrong
/// stays so for long enough to be noticed.
fn active(rng: &mut fastrand::Rng) -> i64 {
    let second = (now() / 1_000_000) as i64;
    (second + rng.i64(0..3)) % ITEMS
}

fn slow(rng: &mut fastrand::Rng) -> Duration {
    if rng.bool() {
        Duration::from_millis(rng.u64(5..100))
    } else {
        Duration::ZERO
    }
}

/// Microseconds by a clock that all processes share.
#[expect(
    clippy::disallowed_methods,
    reason = "times of several processes are compared"
)]
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_micros() as u64
}
