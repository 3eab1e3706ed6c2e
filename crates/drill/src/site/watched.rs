//! A primary with a replica that three sentinels watch, and what is done to them. Sentinels and
//! replica come as users of their own, so that each can be cut off from a server by an ACL while
//! clients reach it: a partition without privileges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::SiteError;
use crate::ledger::LedgerReport;
use crate::load::Lane;
use crate::process::{ProcessError, Redis, Scratch, Watched};
use crate::scenario::Fault;
use crate::subject::Endpoint;

/// As whom the subject comes to the servers. Nobody gets in without a name: whoever was turned away
/// by one would come back without.
const APPLICATION: &str = "app";
/// As whom each sentinel comes to the servers.
const WATCHERS: [&str; 3] = ["watcher-0", "watcher-1", "watcher-2"];
/// As whom a replica comes to its primary.
const COPIER: &str = "copier";
/// Nobody but this machine reaches the servers.
const PASSWORD: &str = "of-the-drill";
/// How often the sentinels are asked whom they name.
const LOOK: Duration = Duration::from_millis(20);
/// How long a sentinel may take to answer that.
const ANSWER: Duration = Duration::from_millis(200);
/// Generous: a loaded machine is no failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// Values that are looked up at once in the end.
const AT_ONCE: usize = 500;

pub(crate) struct WatchedSite {
    watched: Watched,
    lookout: Lookout,
    /// The server that a fault has taken, until it is given back.
    taken: Mutex<Option<usize>>,
    /// Faults that have not done what they are for.
    untouched: Mutex<Vec<&'static str>>,
    /// Faults begun, each with how many primaries had been named before.
    begun: Mutex<Vec<(&'static str, usize)>>,
    /// Last, so that nothing writes into it any more when it goes.
    _scratch: Scratch,
}

impl WatchedSite {
    pub(super) async fn start() -> Result<Self, SiteError> {
        let scratch = Scratch::new("steadfast-drill-")?;
        let user = |name: &str| format!("{name} on >{PASSWORD} ~* &* +@all");
        let watched = Watched::start_each(
            |mut server| {
                server = server.within(scratch.path()).acl("default off");
                server = server.acl(user(APPLICATION)).acl(user(COPIER));
                for watcher in WATCHERS {
                    server = server.acl(user(watcher));
                }
                server
                    .config("masteruser", COPIER)
                    .config("masterauth", PASSWORD)
            },
            |number| {
                vec![
                    format!("sentinel auth-user main {}", WATCHERS[number]),
                    format!("sentinel auth-pass main {PASSWORD}"),
                ]
            },
            scratch.path(),
        )
        .await?;
        let sentinels = watched.sentinels.iter().map(|one| one.addr().to_string());
        let lookout = Lookout::start(sentinels.collect(), watched.data[0].port());
        Ok(Self {
            watched,
            lookout,
            taken: Mutex::default(),
            untouched: Mutex::default(),
            begun: Mutex::default(),
            _scratch: scratch,
        })
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        let url = self.watched.url();
        let login = format!("://{APPLICATION}:{PASSWORD}@");
        Endpoint::new(url.replacen("://", &login, 1)).keeping_a_ledger()
    }

    pub(super) async fn begin(&self, fault: &Fault) -> Result<(), ProcessError> {
        lock(&self.begun).push((fault.name(), self.lookout.named().len()));
        let at = self.primary();
        let primary = &self.watched.data[at];
        match fault {
            Fault::FailoverPlanned => return self.fail_over().await,
            Fault::PrimaryKilled => primary.kill().await,
            Fault::PrimaryFrozen => primary.freeze()?,
            Fault::SplitBrain => {
                self.admit(primary, &WATCHERS, false).await?;
                self.admit(primary, &[COPIER], false).await?;
            }
            Fault::SentinelsAway => {
                for sentinel in &self.watched.sentinels {
                    sentinel.kill().await;
                }
            }
            Fault::SentinelStale => {
                for server in &self.watched.data {
                    self.admit(server, &WATCHERS[..1], false).await?;
                }
                // Sentinels tell each other too, without a server between them.
                self.hears_of_others(false).await?;
                return self.fail_over().await;
            }
            Fault::ReplicaLag => {
                self.admit(primary, &[COPIER], false).await?;
                if !is_left_alone(primary).await {
                    self.touched_nothing(fault);
                }
            }
            other => unreachable!("{} is none of a scenario with sentinels", other.name()),
        }
        if !matches!(fault, Fault::ReplicaLag) {
            *lock(&self.taken) = Some(at);
        }
        Ok(())
    }

    pub(super) async fn end(&self, fault: &Fault) -> Result<(), ProcessError> {
        self.note_whether_it_touched(fault).await;
        let taken = || lock(&self.taken).take().map(|at| &self.watched.data[at]);
        match fault {
            Fault::PrimaryKilled => {
                if let Some(server) = taken() {
                    server.restart().await?;
                }
            }
            Fault::PrimaryFrozen => {
                if let Some(server) = taken() {
                    server.resume()?;
                }
            }
            Fault::SentinelsAway => {
                for sentinel in &self.watched.sentinels {
                    sentinel.relaunch().await?;
                }
            }
            _ => {
                if matches!(fault, Fault::SentinelStale) {
                    self.hears_of_others(true).await?;
                }
                for server in self.watched.data.iter().filter(|one| one.is_awake()) {
                    self.admit(server, &WATCHERS, true).await?;
                    self.admit(server, &[COPIER], true).await?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn untouched(&self) -> Vec<&'static str> {
        lock(&self.untouched).clone()
    }

    pub(super) async fn ledger(&self, lane: &Lane) -> Result<LedgerReport, ProcessError> {
        let primary = self.only_primary().await?;
        let names = lane.ledger(|ledger| ledger.names());
        let mut held = HashMap::new();
        for some in names.chunks(AT_ONCE) {
            let mut command = vec!["MGET"];
            command.extend(some.iter().map(String::as_str));
            let values = primary.command(&command).await?;
            let values: Vec<Option<u64>> =
                redis::from_redis_value(values).map_err(|error| ProcessError::Command {
                    program: "redis-server".into(),
                    cause: error.to_string(),
                })?;
            let known = some.iter().cloned().zip(values);
            held.extend(known.filter_map(|(name, value)| Some((name, value?))));
        }
        let named = self.lookout.named();
        let named: Vec<_> = named.iter().map(|(at, _)| lane.moment(*at)).collect();
        Ok(lane.ledger(|ledger| ledger.judge(&held, &named)))
    }

    /// The position of the server that the sentinels name.
    fn primary(&self) -> usize {
        let port = self.lookout.port();
        let mut servers = self.watched.data.iter();
        servers
            .position(|server| server.port() == port)
            .unwrap_or(0)
    }

    /// Waits until the server that is named is a primary, and the other follows it.
    async fn only_primary(&self) -> Result<&Redis, ProcessError> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let at = self.primary();
            let (named, other) = (&self.watched.data[at], &self.watched.data[1 - at]);
            let role = async |server: &Redis| server.info("replication").await;
            if let (Ok(named_says), Ok(other_says)) = (role(named).await, role(other).await)
                && named_says.contains("role:master")
                && other_says.contains("master_link_status:up")
            {
                return Ok(named);
            }
            if Instant::now() > limit {
                return Err(ProcessError::Silent {
                    program: "the servers".into(),
                    waited: PATIENCE,
                    line: "they did not become one primary and its replica again".into(),
                });
            }
            sleep(LOOK).await;
        }
    }

    /// Has a sentinel that knows the truth order a failover, as an operator does.
    async fn fail_over(&self) -> Result<(), ProcessError> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let order = ["SENTINEL", "FAILOVER", "main"];
            match self.watched.sentinels[1].command(&order).await {
                Err(_) if Instant::now() < limit => sleep(LOOK).await,
                outcome => return outcome.map(drop),
            }
        }
    }

    /// Lets users in, or turns them away and closes their connections.
    async fn admit(&self, server: &Redis, users: &[&str], come: bool) -> Result<(), ProcessError> {
        for user in users {
            let word = if come { "on" } else { "off" };
            server.command(&["ACL", "SETUSER", user, word]).await?;
            // A sentinel whose name was refused stays connected without one, for 15 s.
            let closed = if come { "default" } else { user };
            server.command(&["CLIENT", "KILL", "USER", closed]).await?;
        }
        Ok(())
    }

    /// Has the first sentinel take what the others tell it, or refuse it.
    async fn hears_of_others(&self, hears: bool) -> Result<(), ProcessError> {
        let right = if hears { "+publish" } else { "-publish" };
        let set = ["ACL", "SETUSER", "default", right];
        self.watched.sentinels[0].command(&set).await.map(drop)
    }

    /// A fault that deposes a primary has touched nothing if no other was named while it lasted;
    /// and a sentinel is not stale that names the same one as the others.
    async fn note_whether_it_touched(&self, fault: &Fault) {
        let before = {
            let mut begun = lock(&self.begun);
            let at = begun.iter().position(|(name, _)| *name == fault.name());
            at.map(|at| begun.swap_remove(at).1)
        };
        let deposes = !matches!(fault, Fault::SentinelsAway | Fault::ReplicaLag);
        let deposed = before.is_none_or(|before| self.lookout.named().len() > before);
        let stale = match fault {
            Fault::SentinelStale => {
                let named = self.watched.primary().await;
                named.is_ok_and(|port| port != self.lookout.port())
            }
            _ => true,
        };
        if deposes && !deposed || !stale {
            self.touched_nothing(fault);
        }
    }

    fn touched_nothing(&self, fault: &Fault) {
        lock(&self.untouched).push(fault.name());
    }
}

/// Whether a primary has no replica, after a moment at most.
async fn is_left_alone(primary: &Redis) -> bool {
    for _ in 0..20 {
        let said = primary.info("replication").await;
        if said.is_ok_and(|said| said.contains("connected_slaves:0")) {
            return true;
        }
        sleep(LOOK).await;
    }
    false
}

/// Sees when two of the sentinels name another primary.
struct Lookout {
    first: u16,
    named: Arc<Mutex<Vec<(Instant, u16)>>>,
    task: JoinHandle<()>,
}

impl Lookout {
    fn start(sentinels: Vec<String>, first: u16) -> Self {
        let named = Arc::new(Mutex::new(Vec::new()));
        let noted = named.clone();
        let task = tokio::spawn(async move {
            let mut connections: Vec<Option<MultiplexedConnection>> = vec![None; sentinels.len()];
            let mut now = first;
            loop {
                let mut votes: HashMap<u16, usize> = HashMap::new();
                for (address, connection) in sentinels.iter().zip(&mut connections) {
                    match timeout(ANSWER, ask(address, connection)).await {
                        Ok(Some(port)) => *votes.entry(port).or_default() += 1,
                        _ => *connection = None,
                    }
                }
                let most = votes.into_iter().find(|(_, votes)| *votes >= 2);
                if let Some((port, _)) = most.filter(|(port, _)| *port != now) {
                    now = port;
                    lock(&noted).push((Instant::now(), port));
                }
                sleep(LOOK).await;
            }
        });
        Self { first, named, task }
    }

    fn named(&self) -> Vec<(Instant, u16)> {
        lock(&self.named).clone()
    }

    fn port(&self) -> u16 {
        self.named().last().map_or(self.first, |(_, port)| *port)
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The port of the primary that a sentinel names.
async fn ask(address: &str, connection: &mut Option<MultiplexedConnection>) -> Option<u16> {
    if connection.is_none() {
        let client = redis::Client::open(format!("redis://{address}")).ok()?;
        *connection = client.get_multiplexed_async_connection().await.ok();
    }
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg("main");
    let named = question.query_async(connection.as_mut()?).await;
    let named: (String, u16) = named.ok()?;
    Some(named.1)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
