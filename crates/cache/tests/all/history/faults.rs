//! The processes and what is done to them, drawn from a seed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use steadfast_cache::{Database, DatabaseOptions, SourceError, Tx};
use steadfast_drill::fault::{Direction, Fault as Wire, Stall, Toxic};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;
use tokio::time::{Instant, sleep, timeout};

use super::clustered::Clustered;
use super::judge::{BOUND, Line, STAGE};
use super::worker::{Break, ORDER, Order, now};
use crate::site::eventually;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Redis is killed and comes back empty.
    Restart,
    Freeze,
    /// One process cannot reach Redis; the others can.
    CutOffOne,
    /// The same for longer than a slow load takes.
    CutOffLong,
    /// Redis comes back with what it held a while ago.
    RestoreSnapshot,
    /// Redis dies and a replica that lagged takes its place. Once.
    Failover,
    /// Redis runs out of memory and forgets keys at random.
    Evict,
    /// A process dies between a commit and its relay; another takes its place.
    DieAfterCommit,
    /// Somebody keeps the outbox's state row locked.
    HoldLock,
    /// Nobody gets to deliver for longer than a row may wait; writers are not held up.
    HoldTurn,
    /// SQL comes back as it was a while ago, with what was in its outbox then.
    RollBackSql,
    /// The same while no process runs; Redis comes back as it was, or as a while ago.
    RollBackUnseen,
    /// All processes die; Redis comes back with what it held a while ago, and the processes before
    /// SQL does.
    PowerCut,
    /// On a cluster: the primary of the cache's shard is killed, and its replica elected.
    ShardKilled,
    /// On a cluster: the same primary stands still meanwhile, and wakes deposed.
    ShardFrozen,
    /// On a cluster: the cache's slot moves to another shard.
    SlotMoved,
}

impl Fault {
    fn needs_cluster(self) -> bool {
        matches!(
            self,
            Self::ShardKilled | Self::ShardFrozen | Self::SlotMoved
        )
    }
}

impl Fault {
    /// Whether it locks the outbox's state row.
    fn locks(self) -> bool {
        matches!(self, Self::HoldLock | Self::RollBackSql)
    }
}

/// Each process reaches Redis through a proxy of its own, and all of them through one that a
/// failover points elsewhere.
pub(crate) struct Stage {
    servers: Vec<Redis>,
    /// In place of all of these, if something is to happen to one.
    cluster: Option<Clustered>,
    replication: Option<Proxy>,
    front: Option<Proxy>,
    proxies: Vec<Proxy>,
    database: Database,
    way_to_sql: Way,
    workers: Vec<Option<Child>>,
    faults: Vec<Fault>,
    rng: fastrand::Rng,
    order: Order,
    folder: PathBuf,
    began: Instant,
    spans: (Duration, Duration),
    started: u64,
    done: Vec<String>,
    /// What SQL and Redis held when that was noted last.
    held: String,
}

/// How the processes reach SQL, so that it can be taken away from them.
enum Way {
    /// A link to the folder in which the file lies.
    Link(PathBuf),
    Proxy(Proxy),
}

impl Way {
    /// Makes one to this database; answers the URL by which it is reached.
    async fn make(url: &str, folder: &Path) -> (Self, String) {
        if let Some(path) = url.strip_prefix("sqlite://") {
            let link = folder.join("way");
            let file = Path::new(path).file_name().unwrap();
            let url = format!("sqlite://{}", link.join(file).display());
            let way = Self::Link(link);
            way.open(folder).await;
            return (way, url);
        }
        let (scheme, rest) = url.split_once("://").unwrap();
        let (address, name) = rest.split_once('/').unwrap();
        let (user, port) = (
            address.rsplit_once('@').map_or("", |(user, _)| user),
            address.rsplit_once(':').unwrap().1.parse().unwrap(),
        );
        let proxy = Proxy::start(([127, 0, 0, 1], port).into()).await.unwrap();
        let url = format!("{scheme}://{user}@{}/{name}", proxy.addr());
        (Self::Proxy(proxy), url)
    }

    async fn open(&self, folder: &Path) {
        match self {
            Self::Link(link) => std::os::unix::fs::symlink(folder, link).unwrap(),
            Self::Proxy(proxy) => proxy.clear().await,
        }
    }

    async fn close(&self) {
        match self {
            Self::Link(link) => std::fs::remove_file(link).unwrap(),
            Self::Proxy(proxy) => {
                proxy.add(cut()).await.unwrap();
            }
        }
    }
}

impl Stage {
    pub(crate) async fn set(
        workers: usize,
        faults: &[Fault],
        database: &str,
        rule: Option<Break>,
        folder: &Path,
        seed: u64,
    ) -> Self {
        let primary = Redis::start().await.unwrap();
        let front = Proxy::start(primary.addr()).await.unwrap();
        let mut proxies = Vec::new();
        for _ in 0..workers {
            proxies.push(Proxy::start(front.addr()).await.unwrap());
        }
        let (mut servers, mut replication) = (vec![primary], None);
        if faults.contains(&Fault::Failover) {
            let (replica, link) = (
                Redis::start().await.unwrap(),
                Proxy::start(servers[0].addr()).await.unwrap(),
            );
            let port = link.addr().port().to_string();
            replica
                .command(&["REPLICAOF", "127.0.0.1", &port])
                .await
                .unwrap();
            servers.push(replica);
            replication = Some(link);
        }
        let cluster = match faults.iter().any(|fault| fault.needs_cluster()) {
            true => Some(Clustered::start().await),
            false => None,
        };
        let (way_to_sql, url) = Way::make(database, folder).await;
        let order = Order {
            redis: String::new(),
            database: url,
            log: PathBuf::new(),
            seed,
            run_ms: 0,
            write_ms: 0,
            die_after_ms: None,
            rule,
            n: 0,
            wide: faults.contains(&Fault::CutOffLong) || rule.is_some_and(Break::needs_width),
        };
        Self {
            servers,
            cluster,
            replication,
            front: Some(front),
            proxies,
            database: Database::connect(database, DatabaseOptions::default()).unwrap(),
            way_to_sql,
            workers: (0..workers).map(|_| None).collect(),
            faults: faults.to_vec(),
            rng: fastrand::Rng::with_seed(seed),
            order,
            folder: folder.to_owned(),
            began: Instant::now(),
            spans: Default::default(),
            started: 0,
            done: Vec::new(),
            held: String::new(),
        }
    }

    /// Starts the processes, which run and write for so long.
    pub(crate) fn begin(&mut self, run: Duration, write: Duration) {
        self.began = Instant::now();
        self.spans = (run, write);
        for n in 0..self.workers.len() {
            self.start_worker(n, None);
        }
    }

    /// Waits until one of the processes has made the outbox, if that is to be taken hold of.
    pub(crate) async fn until_it_can_break(&self) {
        if !self.faults.iter().any(|fault| fault.locks()) {
            return;
        }
        let made = async || {
            let Ok(mut tx) = self.database.begin().await else {
                return false;
            };
            let rows = tx.select(lock(&tx), &[]).await;
            let _ = tx.rollback().await;
            rows.is_ok()
        };
        eventually("the processes have an outbox", made).await;
    }

    fn start_worker(&mut self, n: usize, die_after_ms: Option<u64>) {
        self.started += 1;
        let passed = self.began.elapsed();
        let left = |span: Duration| span.saturating_sub(passed).as_millis() as u64;
        let order = Order {
            redis: match &self.cluster {
                Some(cluster) => cluster.url(),
                None => format!("redis://{}", self.proxies[n].addr()),
            },
            log: self.folder.join(format!("{}.history", self.started)),
            seed: self.order.seed * 1000 + self.started,
            run_ms: left(self.spans.0),
            write_ms: left(self.spans.1),
            die_after_ms,
            n,
            ..self.order.clone()
        };
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "history::a_process_of_the_history",
                "--nocapture",
            ])
            .env(ORDER, serde_json::to_string(&order).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.workers[n] = Some(child);
        self.note(&format!("process {n} is begun as {}", self.started));
    }

    fn redis(&self) -> &Redis {
        &self.servers[0]
    }

    fn cluster(&self) -> &Clustered {
        self.cluster.as_ref().unwrap()
    }

    /// Waits a little, then does the next thing and, where that is a thing with an end, ends it.
    pub(crate) async fn next_fault(&mut self) {
        self.pause(200..700).await;
        if self.faults.is_empty() {
            return;
        }
        // The first round goes through all of them, so that a short run has them all.
        let at = self.done.len();
        let fault = if at < self.faults.len() {
            self.faults[at]
        } else {
            self.faults[self.rng.usize(..self.faults.len())]
        };
        self.done
            .push(format!("{:?} at {:?}", fault, self.began.elapsed()));
        std::fs::write(self.folder.join("all.faults"), self.done.join(", ")).unwrap();
        self.note(&format!("{fault:?} begins"));
        self.happen(fault).await;
        self.note(&format!("{fault:?} has ended"));
    }

    async fn happen(&mut self, fault: Fault) {
        match fault {
            Fault::Restart => self.redis().restart().await.unwrap(),
            Fault::Freeze => {
                self.redis().freeze().unwrap();
                self.pause(300..1500).await;
                self.redis().resume().unwrap();
            }
            Fault::CutOffOne => self.cut_off_one(0, 300..2000).await,
            Fault::CutOffLong if self.order.rule.is_some() => {
                // What the first process writes itself it cannot overlook, and a load that begins
                // a while after the process was cut off has to grow old in it.
                self.cut_off_one(1, 9000..11_000).await;
            }
            Fault::CutOffLong => self.cut_off_one(0, 6000..8000).await,
            Fault::RestoreSnapshot => {
                self.redis().save_snapshot().await.unwrap();
                self.pause(300..2000).await;
                self.redis().restart_from_snapshot().await.unwrap();
            }
            Fault::Failover => self.fail_over().await,
            Fault::Evict => self.evict().await,
            Fault::DieAfterCommit => {
                let n = self.rng.usize(..self.workers.len());
                self.end_worker(n);
                let soon = self.rng.u64(200..500);
                self.start_worker(n, Some(soon));
                self.pause(500..900).await;
                // It died by itself, or had no chance to; in either case another takes its place.
                self.end_worker(n);
                self.start_worker(n, None);
            }
            Fault::HoldLock => self.hold_lock(300..2500).await,
            Fault::HoldTurn => self.hold_turn(5000..7000).await,
            Fault::RollBackSql => self.roll_back_at_last().await,
            Fault::RollBackUnseen => self.roll_back_unseen().await,
            Fault::PowerCut => self.cut_power().await,
            Fault::ShardKilled => self.cluster().kill_primary().await,
            Fault::ShardFrozen => self.cluster().freeze_primary().await,
            Fault::SlotMoved => self.cluster().move_slot().await,
        }
    }

    async fn hold_lock(&mut self, ms: std::ops::Range<u64>) {
        let mut tx = self.database.begin().await.unwrap();
        tx.select(lock(&tx), &[]).await.unwrap();
        self.pause(ms).await;
        tx.rollback().await.unwrap();
    }

    /// On SQLite, where one lock is for all, the turn is a lease.
    async fn hold_turn(&mut self, ms: std::ops::Range<u64>) {
        if self.database.system() != "sqlite" {
            return self.hold_lock(ms).await;
        }
        let ms = self.rng.u64(ms);
        let now = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";
        let take = format!(
            "INSERT INTO steadfast_outbox_relay (namespace, since, until) VALUES ('history', {now}, {now} + {ms}) \
             ON CONFLICT (namespace) DO UPDATE SET since = excluded.since, until = excluded.until"
        );
        let mut tx = self.database.begin().await.unwrap();
        // Until the first delivery there is no such table.
        let taken = tx.execute(&take, &[]).await.is_ok();
        tx.commit().await.unwrap();
        if taken {
            sleep(Duration::from_millis(ms)).await;
        }
    }

    async fn roll_back_at_last(&mut self) {
        for _ in 0..20 {
            match self.roll_back_sql().await {
                Ok(()) => break,
                Err(error) => assert!(error.is_passing(), "{error}"),
            }
        }
    }

    async fn roll_back_unseen(&mut self) {
        let redis_is_older = self.rng.bool();
        if redis_is_older {
            self.redis().save_snapshot().await.unwrap();
            self.pause(50..500).await;
        }
        for n in 0..self.workers.len() {
            self.end_worker(n);
        }
        self.roll_back_at_last().await;
        if redis_is_older {
            self.redis().restart_from_snapshot().await.unwrap();
        }
        for n in 0..self.workers.len() {
            self.start_worker(n, None);
        }
    }

    /// Cuts off one of the processes from this one on.
    async fn cut_off_one(&mut self, first: usize, ms: std::ops::Range<u64>) {
        let n = self.rng.usize(first..self.proxies.len());
        let toxic = self.proxies[n].add(cut()).await.unwrap();
        self.pause(ms).await;
        self.proxies[n].remove(toxic).await;
    }

    /// What the values are then is told as if it were new: a reader need not know that it is old,
    /// only that it is what SQL holds.
    async fn roll_back_sql(&mut self) -> Result<(), SourceError> {
        let mut tx = self.database.begin().await?;
        for sql in [
            lock(&tx),
            "UPDATE steadfast_outbox_state SET watermark = CASE WHEN watermark > 50 THEN watermark - 50 ELSE 0 END WHERE namespace = 'history'",
            "DELETE FROM steadfast_outbox WHERE namespace = 'history'",
            "UPDATE items SET version = version + 1000",
        ] {
            tx.execute(sql, &[]).await?;
        }
        let rows = tx.select("SELECT id, version FROM items", &[]).await?;
        let items: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row["id"].as_i64().unwrap(),
                    row["version"].as_i64().unwrap(),
                )
            })
            .collect();
        let write_all = |line: &dyn Fn(i64, i64) -> Line| {
            for &(item, version) in &items {
                self.write(&line(item, version));
            }
        };
        let at = now();
        write_all(&|item, version| Line::Begun { item, version, at });
        tx.commit().await?;
        let at = now();
        write_all(&|item, version| Line::Committed { item, version, at });
        self.note("sql is rolled back");
        Ok(())
    }

    async fn cut_power(&mut self) {
        self.redis().save_snapshot().await.unwrap();
        self.note("a snapshot of redis is saved");
        // What is overtaken soon after the snapshot is older than any bound when it is read.
        sleep(BOUND).await;
        for n in 0..self.workers.len() {
            self.end_worker(n);
        }
        self.way_to_sql.close().await;
        self.redis().restart_from_snapshot().await.unwrap();
        self.note("redis is restored");
        for n in 0..self.workers.len() {
            self.start_worker(n, None);
        }
        self.pause(3000..4000).await;
        self.way_to_sql.open(&self.folder).await;
        self.note("the way to sql is open again");
    }

    async fn fail_over(&mut self) {
        let Some(link) = self.replication.take() else {
            return;
        };
        link.add(cut()).await.unwrap();
        self.pause(300..800).await;
        let old = self.servers.remove(0);
        old.kill().await;
        let front = self.front.take().unwrap();
        let addr = front.addr();
        drop(front);
        self.servers[0].promote().await.unwrap();
        // The address is free again once the old listener is gone.
        let started = async {
            loop {
                match Proxy::builder()
                    .listen(addr)
                    .start(self.servers[0].addr())
                    .await
                {
                    Ok(front) => break front,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        self.front = Some(
            tokio::time::timeout(Duration::from_secs(10), started)
                .await
                .unwrap(),
        );
    }

    async fn evict(&mut self) {
        let redis = &self.servers[0];
        let used = redis.info("memory").await.unwrap();
        let used: u64 = used
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok())
            .unwrap();
        redis
            .command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"])
            .await
            .unwrap();
        redis
            .command(&["CONFIG", "SET", "maxmemory", &(used - 2000).to_string()])
            .await
            .unwrap();
        for n in 0..5 {
            let _ = redis
                .command(&["SET", &format!("ballast:{n}"), &"x".repeat(200)])
                .await;
        }
        redis
            .command(&["CONFIG", "SET", "maxmemory", "0"])
            .await
            .unwrap();
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let until = Instant::now() + Duration::from_millis(self.rng.u64(ms));
        while Instant::now() < until {
            self.note_what_is_held().await;
            let left = until.saturating_duration_since(Instant::now());
            sleep(left.min(NOTED_EVERY)).await;
        }
    }

    fn write(&self, line: &Line) {
        let path = self.folder.join(format!("{STAGE}.history"));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        log.unwrap().write_all(line.write().as_bytes()).unwrap();
    }

    fn note(&self, text: &str) {
        let (at, text) = (now(), text.to_owned());
        self.write(&Line::Note { at, text });
    }

    /// Notes how far SQL and Redis are, if that has changed; nothing of what does not answer.
    async fn note_what_is_held(&mut self) {
        let state = "SELECT watermark, (SELECT COUNT(*) FROM steadfast_outbox) AS waiting \
                     FROM steadfast_outbox_state WHERE namespace = 'history'";
        let ask = "MGET history:epoch history:watermark history:delivery";
        let ask: Vec<_> = ask.split(' ').collect();
        let limit = NOTED_EVERY / 2;
        let sql = timeout(limit, self.database.select(state, &[])).await;
        let sql = sql.ok().and_then(Result::ok).unwrap_or_default();
        let redis = match &self.cluster {
            // Whichever node has the slot just now.
            Some(_) => "a cluster is not asked".to_owned(),
            None => {
                let redis = timeout(limit, self.redis().command(&ask)).await;
                let redis = redis.ok().and_then(Result::ok);
                let redis = redis.map(redis::from_redis_value::<Vec<Option<String>>>);
                format!("redis: {redis:?}")
            }
        };
        let held = match sql.first() {
            Some(row) => format!(
                "sql is at {}, {} wait; {redis}",
                row["watermark"], row["waiting"]
            ),
            None => redis,
        };
        if held != self.held {
            self.note(&held);
            self.held = held;
        }
    }

    fn end_worker(&mut self, n: usize) {
        if let Some(mut child) = self.workers[n].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Nothing is broken any more.
    pub(crate) async fn heal(&mut self) {
        for proxy in &self.proxies {
            proxy.clear().await;
        }
        let _ = self.redis().resume();
    }

    /// Every process must end by itself, and well.
    pub(crate) async fn wait_for_the_end(&mut self, limit: Duration) {
        let give_up = Instant::now() + limit;
        for n in 0..self.workers.len() {
            let status = loop {
                let child = self.workers[n].as_mut().unwrap();
                match child.try_wait().unwrap() {
                    Some(status) => break status,
                    None if Instant::now() > give_up => panic!("process {n} hangs"),
                    None => sleep(Duration::from_millis(50)).await,
                }
                self.note_what_is_held().await;
            };
            assert!(status.success(), "process {n}: {status}");
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for n in 0..self.workers.len() {
            self.end_worker(n);
        }
    }
}

fn lock(tx: &Tx) -> &'static str {
    match tx {
        Tx::Sqlite(_) => "SELECT watermark FROM steadfast_outbox_state WHERE namespace = 'history'",
        _ => "SELECT watermark FROM steadfast_outbox_state WHERE namespace = 'history' FOR UPDATE",
    }
}

/// The interval at which it is looked how far SQL and Redis are.
const NOTED_EVERY: Duration = Duration::from_millis(100);

fn cut() -> Toxic {
    Toxic {
        name: "cut".into(),
        direction: Direction::Both,
        toxicity: 1.0,
        fault: Wire::Stall(Stall::default()),
    }
}
