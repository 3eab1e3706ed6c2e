//! What one process does: read and write items through its cache, and write down what happened.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
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

/// Written by the first of the processes alone, if they are wide. Strict, and on no shelf.
const FOREIGN: i64 = 5;

/// For how long a value is fresh to the class `brisk`, and what may pass between judging an answer
/// and telling its age.
const BRISK: Duration = Duration::from_millis(500);
const LEEWAY: Duration = Duration::from_secs(1);

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
    /// Which of the processes it is.
    pub(crate) n: usize,
    /// Also reads slowly, without naming tags, and through views of another type and class.
    pub(crate) wide: bool,
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
    /// Redis is read however long invalidations wait.
    Lag,
    FlightAge,
    Stripped,
    Class,
    /// Each type of the process has a cache of its own.
    TwoCaches,
}

impl Break {
    /// Whether it shows only in what a wide process does.
    pub(crate) fn needs_width(self) -> bool {
        matches!(
            self,
            Self::FlightAge | Self::Stripped | Self::Class | Self::TwoCaches
        )
    }
}

/// How an item is read.
#[derive(Clone, Copy)]
enum Form {
    Alone,
    /// Together with another of its class.
    InBatch,
    /// By somebody who names no tag and can load nothing: only what is there already, and whatever
    /// it carries.
    Peek,
    /// By somebody who names no tag and loads again what is there already.
    Untagged,
    /// By a class that allows less.
    Brisk,
    /// By that class, as another type.
    Typed,
}

/// What other types call the same text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Shown(String);

impl Order {
    /// The last process, where no rule is broken.
    fn is_forgetful(&self) -> bool {
        self.rule.is_none() && self.n + 1 == super::WORKERS
    }

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
    /// The same cache, unless that rule is broken.
    typed: Cache,
    n: usize,
    wide: bool,
    /// Holds nothing in memory, so that each read looks at Redis.
    forgetful: bool,
    log: Arc<File>,
    /// The database has answered: from then on a read that is refused counts.
    sql_seen: Arc<AtomicBool>,
    end: u64,
    write_end: u64,
    die_at: Option<u64>,
}

pub(crate) async fn work(order: Order) {
    let now = now();
    let cache = build(&order).await;
    let process = Process {
        typed: match order.rule {
            Some(Break::TwoCaches) => build(&order).await,
            _ => cache.clone(),
        },
        cache,
        n: order.n,
        wide: order.wide,
        forgetful: order.is_forgetful(),
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
    if order.wide {
        tasks.push(tokio::spawn(process.clone().dawdles()));
    }
    tasks.push(tokio::spawn(process.tells_what_it_believes()));
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
        hard_limit: Duration::from_secs(8),
        // So that what took some milliseconds to load is often loaded again before its time.
        early_refresh: if order.wide { 1000.0 } else { 1.0 },
        ..Ttl::default()
    };
    let (mut sabotage, mut lag_max) = (Sabotage::default(), Duration::from_secs(1));
    match order.rule {
        Some(Break::Outbox) => sabotage.outbox_off = true,
        Some(Break::Lease) => sabotage.lease_unchecked = true,
        Some(Break::Watermark) => sabotage.watermark_ignored = true,
        Some(Break::Flight) => sabotage.flight_not_detached = true,
        Some(Break::Stripe) => sabotage.stripe_not_bumped = true,
        Some(Break::Tags) => sabotage.tags_dropped = true,
        Some(Break::AwaitSql) => sabotage.sql_not_awaited = true,
        Some(Break::Rollback) => sabotage.rollback_ignored = true,
        Some(Break::FlightAge) => sabotage.flight_age_ignored = true,
        Some(Break::Stripped) => sabotage.tags_stripped = true,
        Some(Break::Class) => sabotage.class_ignored = true,
        Some(Break::Lag) => lag_max = Duration::from_secs(3600),
        Some(Break::TwoCaches) | None => {}
    }
    let memory_bytes = if order.is_forgetful() { 1 } else { 64 << 20 };
    Cache::builder(database)
        .redis(client)
        .namespace("history")
        .memory_bytes(memory_bytes)
        .guard(GuardOptions::new(16, 5000.0))
        .class("user", ttl)
        .class(
            "strict",
            Ttl {
                stale: Duration::ZERO,
                ..ttl
            },
        )
        .class(
            "brisk",
            Ttl {
                fresh: BRISK,
                ..ttl
            },
        )
        .seed(order.seed)
        .outbox_lag_max(lag_max)
        .sabotage(sabotage)
        .build()
        .await
        .unwrap()
}

impl Process {
    fn note(&self, line: &Line) {
        (&*self.log).write_all(line.write().as_bytes()).unwrap();
    }

    /// Writes down what it believes whenever that has changed.
    async fn tells_what_it_believes(self) {
        let mut before = String::new();
        while now() < self.end {
            let status = self.cache.status();
            let text = format!(
                "{:?}, memory proven: {}, waiting for {:?} ms, {} pending, trouble: {:?}",
                status.redis,
                status.memory_proven,
                status.outbox_lag_ms,
                status.outbox_pending,
                status.outbox_trouble.is_some()
            );
            if text != before {
                before.clone_from(&text);
                self.note(&Line::Note { at: now(), text });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn reads(self, mut rng: fastrand::Rng) {
        while now() < self.end {
            if self.forgetful {
                self.reads_all_at_once(&mut rng).await;
                continue;
            }
            let (item, form) = (rng.i64(0..ITEMS), self.any_form(&mut rng));
            if self.wide && item == FOREIGN {
                continue; // which has readers of its own, who may have to wait for long
            }
            for _ in 0..=u8::from(rng.bool()) {
                self.read(item, form, slow(&mut rng)).await;
            }
            tokio::time::sleep(Duration::from_micros(rng.u64(500..8000))).await;
        }
    }

    /// Many readers look at Redis at the same moment, who ask it together.
    async fn reads_all_at_once(&self, rng: &mut fastrand::Rng) {
        let (form, dawdle) = (self.any_form(rng), slow(rng));
        let items = (0..ITEMS).filter(|item| !self.wide || *item != FOREIGN);
        join_all(items.map(|item| self.read(item, form, dawdle))).await;
        self.note(&Line::Shared(self.cache.status().counts.redis_shared));
        tokio::time::sleep(Duration::from_micros(rng.u64(5000..50_000))).await;
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
            Form::Untagged => {
                // Only what replaces a value that is there: what is loaded anew by somebody who
                // names no tag carries none.
                let (there, told) = tokio::sync::oneshot::channel();
                let load = move || async move {
                    tokio::time::timeout(Duration::from_secs(1), told).await??;
                    let found = select_item(&database, item).await;
                    tokio::time::sleep(dawdle).await;
                    Ok(found?)
                };
                let answer = text(&self.cache, class(item)).get(key(item), load).await;
                if answer.is_ok() {
                    let _ = there.send(());
                    self.note_answer(item, from, answer);
                }
            }
            Form::Brisk => {
                let load = move || async move {
                    let found = select_item(&database, item).await;
                    tokio::time::sleep(dawdle).await;
                    Ok(found?)
                };
                let (shelf, view) = (shelf(item), text(&self.typed, "brisk"));
                let answer = view.read(key(item)).tags(&shelf).get(load).await;
                self.note_answer_of(item, from, "brisk", answer, |text| text);
            }
            Form::Typed => {
                let load = move || async move {
                    let found = select_item(&database, item).await;
                    tokio::time::sleep(dawdle).await;
                    Ok(found?.map(Shown))
                };
                let (shelf, view) = (
                    shelf(item),
                    self.typed.view::<Shown>("brisk").unwrap().prefix(""),
                );
                let answer = view.read(key(item)).tags(&shelf).get(load).await;
                self.note_answer_of(item, from, "brisk", answer, |Shown(text)| text);
            }
            Form::InBatch => {
                let beside = (item + 2) % ITEMS;
                let beside = match self.wide && beside == FOREIGN {
                    true => (item + 4) % ITEMS,
                    false => beside,
                };
                let items = [item, beside];
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
        self.note_answer_of(item, from, class(item), answer, |text| text);
    }

    fn note_answer_of<V>(
        &self,
        item: i64,
        from: u64,
        class: &str,
        answer: Result<Answer<V>, CacheError>,
        text: impl FnOnce(V) -> String,
    ) {
        if matches!(&answer, Ok(answer) if answer.source == Source::Database) {
            self.sql_seen.store(true, Ordering::SeqCst);
        } else if answer.is_err() && !self.sql_seen.load(Ordering::SeqCst) {
            return;
        }
        self.note(&match answer {
            Ok(answer) => Line::Read {
                item,
                source: answer.source,
                age_ms: answer.age.as_millis() as u64,
                late: class == "brisk"
                    && answer.stale.is_none()
                    && answer.source != Source::Database
                    && answer.age > BRISK + LEEWAY,
                stale: answer.stale.is_some(),
                version: answer
                    .value
                    .and_then(|value| text(value).parse().ok())
                    .unwrap_or(-1),
                from,
                to: now(),
                strict: class == "strict",
            },
            Err(_) => Line::Refused,
        });
    }

    /// Loads slowly, again and again, what this process does not write itself; meanwhile others
    /// come who may join, and should not when the load is old and nobody can tell whether it was
    /// overtaken.
    async fn dawdles(self) {
        let mut rng = fastrand::Rng::with_seed(self.end);
        let readers = tokio::spawn(self.clone().comes_again_and_again());
        while now() < self.write_end {
            let (database, from) = (self.cache.database().clone(), now());
            let dawdle = Duration::from_millis(rng.u64(4000..5000));
            let load = move || async move {
                let found = select_item(&database, FOREIGN).await;
                tokio::time::sleep(dawdle).await;
                Ok(found?)
            };
            let view = text(&self.cache, class(FOREIGN));
            let answer = view.refresh(key(FOREIGN), load).await;
            if answer.is_ok() {
                self.note_answer(FOREIGN, from, answer);
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(100..1000))).await;
        }
        readers.await.unwrap();
    }

    async fn comes_again_and_again(self) {
        while now() < self.write_end {
            let process = self.clone();
            tokio::spawn(async move { process.read(FOREIGN, Form::Alone, Duration::ZERO).await });
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn any_form(&self, rng: &mut fastrand::Rng) -> Form {
        let forms = [
            Form::Alone,
            Form::Alone,
            Form::InBatch,
            Form::Peek,
            Form::Untagged,
            Form::Brisk,
            Form::Typed,
        ];
        forms[rng.usize(..if self.wide { 7 } else { 4 })]
    }

    /// An item to be written. Each is written for three seconds of eight and then left alone, in
    /// turn, so that a value which is wrong stays so for long enough to be noticed. One that is
    /// loaded slowly is written all the time: each of those loads is to be overtaken.
    fn active(&self, rng: &mut fastrand::Rng) -> i64 {
        if self.wide && self.n == 0 && rng.u8(..4) == 0 {
            return FOREIGN;
        }
        let second = (now() / 1_000_000) as i64;
        loop {
            let item = (second + rng.i64(0..3)) % ITEMS;
            if item != FOREIGN || self.n == 0 || !self.wide {
                return item;
            }
        }
    }

    async fn writes(self, mut rng: fastrand::Rng) {
        while now() < self.write_end {
            let item = self.active(&mut rng);
            let dies = self.die_at.is_some_and(|at| now() > at);
            // Now and then a transaction is long in coming to its end after it has written its
            // invalidation.
            let linger = match rng.u8(..30) {
                0 => Duration::from_millis(rng.u64(300..1500)),
                _ => Duration::ZERO,
            };
            match self.write(item, linger, dies).await {
                Ok(()) => {
                    let form = self.any_form(&mut rng);
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

/// Now and then it lasts longer than an invalidation takes on a machine that is busy.
fn slow(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(match rng.u8(..16) {
        0..8 => 0,
        8..15 => rng.u64(5..100),
        _ => rng.u64(100..1500),
    })
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
