//! The processes and what is done to them, drawn from a seed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use steadfast_drill::fault::{Direction, Fault as Wire, Stall, Toxic};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;
use tokio::time::{Instant, sleep};

use super::worker::{Break, ORDER, Order};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Redis is killed and comes back empty.
    Restart,
    Freeze,
    /// One process cannot reach Redis; the others can.
    CutOffOne,
    /// Redis comes back with what it held a while ago.
    RestoreSnapshot,
    /// Redis dies and a replica that lagged takes its place. Once.
    Failover,
    /// Redis runs out of memory and forgets keys at random.
    Evict,
    /// A process dies between a commit and its relay; another takes its place.
    DieAfterCommit,
}

/// Each process reaches Redis through a proxy of its own, and all of them through one that a failover points elsewhere.
pub(crate) struct Stage {
    servers: Vec<Redis>,
    replication: Option<Proxy>,
    front: Option<Proxy>,
    proxies: Vec<Proxy>,
    workers: Vec<Option<Child>>,
    faults: Vec<Fault>,
    rng: fastrand::Rng,
    order: Order,
    folder: PathBuf,
    began: Instant,
    spans: (Duration, Duration),
    started: u64,
    done: Vec<String>,
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
        let order = Order {
            redis: String::new(),
            database: database.to_owned(),
            log: PathBuf::new(),
            seed,
            run_ms: 0,
            write_ms: 0,
            die_after_ms: None,
            rule,
        };
        Self {
            servers,
            replication,
            front: Some(front),
            proxies,
            workers: (0..workers).map(|_| None).collect(),
            faults: faults.to_vec(),
            rng: fastrand::Rng::with_seed(seed),
            order,
            folder: folder.to_owned(),
            began: Instant::now(),
            spans: Default::default(),
            started: 0,
            done: Vec::new(),
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

    fn start_worker(&mut self, n: usize, die_after_ms: Option<u64>) {
        self.started += 1;
        let passed = self.began.elapsed();
        let left = |span: Duration| span.saturating_sub(passed).as_millis() as u64;
        let order = Order {
            redis: format!("redis://{}", self.proxies[n].addr()),
            log: self.folder.join(format!("{}.history", self.started)),
            seed: self.order.seed * 1000 + self.started,
            run_ms: left(self.spans.0),
            write_ms: left(self.spans.1),
            die_after_ms,
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
    }

    fn redis(&self) -> &Redis {
        &self.servers[0]
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
        match fault {
            Fault::Restart => self.redis().restart().await.unwrap(),
            Fault::Freeze => {
                self.redis().freeze().unwrap();
                self.pause(300..1500).await;
                self.redis().resume().unwrap();
            }
            Fault::CutOffOne => {
                let n = self.rng.usize(..self.proxies.len());
                let toxic = self.proxies[n].add(cut()).await.unwrap();
                self.pause(300..2000).await;
                self.proxies[n].remove(toxic).await;
            }
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
        }
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
        sleep(Duration::from_millis(self.rng.u64(ms))).await;
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
        for (n, child) in self.workers.iter_mut().enumerate() {
            let child = child.as_mut().unwrap();
            let status = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break status,
                    None if Instant::now() > give_up => panic!("process {n} hangs"),
                    None => sleep(Duration::from_millis(50)).await,
                }
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

fn cut() -> Toxic {
    Toxic {
        name: "cut".into(),
        direction: Direction::Both,
        toxicity: 1.0,
        fault: Wire::Stall(Stall::default()),
    }
}
