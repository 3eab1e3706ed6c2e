//! Where one subject lives: a Redis of its own, and what the lab does to it. Each fault is begun
//! and ended here, by the means that come closest to how it happens in the field: a signal, a
//! command of an operator, or the wire.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::SiteError;
use crate::certificates::Certificates;
use crate::fault::{FaultError, Toxic};
use crate::process::{ProcessError, Redis, Scratch, Tls};
use crate::proxy::{Proxy, ToxicId};
use crate::scenario::{Fault, Scenario};
use crate::subject::{DatabaseFault, Endpoint, Subject};

/// As which subjects know the server.
const HOST: &str = "127.0.0.1";
const USER: &str = "app";
const PASSWORD: &str = "first-password";
const OTHER_PASSWORD: &str = "second-password";
/// While it loads, a server looks at its clients once for each KiB that it has read. Rows are so
/// small that it might not look once; so as many keys of that size lie between them.
const BALLAST: u64 = 256;

/// A Redis to be broken. Dropped, all of it is gone.
pub(crate) struct Alone {
    redis: std::sync::Arc<Redis>,
    /// Where the current token stands.
    token: Option<PathBuf>,
    /// Whether the subject may keep a tier in memory.
    memory: bool,
    /// The certificates that it may show, if it speaks TLS.
    certificates: Option<Certificates>,
    loading: Mutex<Option<JoinHandle<Result<(), ProcessError>>>>,
    proxy: Option<Proxy>,
    wired: Mutex<Vec<(Toxic, ToxicId)>>,
    /// Faults of the wire that acted on nothing.
    untouched: Mutex<Vec<&'static str>>,
    /// Last, so that nothing writes into it any more when it goes.
    scratch: Scratch,
}

impl Alone {
    pub(super) async fn start(scenario: &Scenario) -> Result<Self, SiteError> {
        let scratch = Scratch::new("steadfast-drill-")?;
        let mut builder = Redis::builder().within(scratch.path());
        let faults = || scenario.steps.iter().map(|step| &step.fault);
        let mut token = None;
        if faults().any(Fault::needs_users) {
            builder = builder
                .acl(format!("{USER} on >{PASSWORD} ~* &* +@all"))
                .acl("default off");
            let file = scratch.path().join("token");
            write_token(&file, PASSWORD)?;
            token = Some(file);
        }
        if let Some(step) = scenario
            .steps
            .iter()
            .find(|step| step.fault == Fault::Loading)
        {
            // With so long for each key, all keys together take as long as the step.
            let delay = step.lasts.as_micros() / u128::from(scenario.load.keys + BALLAST);
            builder = builder
                .config("rdbcompression", "no")
                .config("key-load-delay", delay.to_string())
                .config("loading-process-events-interval-bytes", "1024");
        }
        let mut certificates = None;
        if faults().any(Fault::needs_tls) {
            let made = Certificates::make(scratch.path(), HOST)?;
            builder = builder.tls(made.good.clone());
            certificates = Some(made);
        }
        let redis = std::sync::Arc::new(builder.start().await?);
        let proxy = if faults().any(Fault::needs_proxy) {
            // RESP faults take hold of open connections only if those were followed from their
            // start.
            let resp = |fault: &Fault| fault.name().starts_with("resp_");
            let builder = Proxy::builder()
                .seed(scenario.seed)
                .resp(faults().any(resp));
            Some(builder.start(redis.addr()).await?)
        } else {
            None
        };
        Ok(Self {
            proxy,
            wired: Mutex::default(),
            untouched: Mutex::default(),
            redis,
            token,
            memory: scenario.memory,
            certificates,
            loading: Mutex::default(),
            scratch,
        })
    }

    /// Where the subject connects to: the server, or the proxy if one stands before it.
    fn addr(&self) -> SocketAddr {
        self.proxy
            .as_ref()
            .map_or_else(|| self.redis.addr(), Proxy::addr)
    }

    /// Where the subject finds this Redis.
    pub(super) fn endpoint(&self) -> Endpoint {
        let addr = self.addr();
        let scheme = match self.certificates {
            None => "redis",
            Some(_) => "rediss",
        };
        let login = match self.token {
            None => String::new(),
            Some(_) => format!("{USER}:{PASSWORD}@"),
        };
        let mut endpoint = Endpoint::new(format!("{scheme}://{login}{addr}/0"))
            .with_folder(self.scratch.path().to_owned());
        if !self.memory {
            endpoint = endpoint.without_memory();
        }
        if let Some(file) = &self.token {
            endpoint = endpoint.with_password_file(file.clone());
        }
        if let Some(certificates) = &self.certificates {
            endpoint = endpoint.with_ca_file(certificates.authority.clone());
        }
        endpoint
    }

    /// Keeps the data of now, if some fault will bring them back.
    pub(super) async fn prepare(&self, scenario: &Scenario) -> Result<(), ProcessError> {
        if scenario
            .steps
            .iter()
            .any(|step| step.fault == Fault::OldSnapshot)
        {
            self.redis.save_snapshot().await?;
        }
        Ok(())
    }

    pub(super) async fn begin(
        &self,
        fault: &Fault,
        subject: &dyn Subject,
    ) -> Result<(), ProcessError> {
        let redis = &self.redis;
        match fault {
            Fault::Crash | Fault::OldSnapshot => redis.kill().await,
            Fault::Freeze => redis.freeze()?,
            Fault::Pause(lasts) => {
                let ms = lasts.as_millis().max(1).to_string();
                redis.command(&["CLIENT", "PAUSE", &ms, "ALL"]).await?;
            }
            Fault::MaxClients => redis.occupy().await?,
            Fault::OutOfMemory => config(redis, "maxmemory", "1").await?,
            Fault::Loading => {
                let ballast = BALLAST.to_string();
                redis.command(&["EVAL", FILL, "0", &ballast]).await?;
                redis.save_snapshot().await?;
                redis.kill().await;
                let redis = redis.clone();
                let restarted = tokio::spawn(async move { redis.restart_from_snapshot().await });
                *lock(&self.loading) = Some(restarted);
            }
            // Nobody listens on port 1, so this replica keeps its data and never hears of new ones.
            Fault::ReadOnly => drop(redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await?),
            Fault::PasswordChanged => {
                let password = format!(">{OTHER_PASSWORD}");
                redis
                    .command(&["ACL", "SETUSER", USER, "resetpass", &password])
                    .await?;
                redis.command(&["CLIENT", "KILL", "USER", USER]).await?;
            }
            Fault::UserDeleted => drop(redis.command(&["ACL", "DELUSER", USER]).await?),
            Fault::TokenExpired => {
                self.write_token(OTHER_PASSWORD)?;
                let password = format!(">{OTHER_PASSWORD}");
                redis
                    .command(&["ACL", "SETUSER", USER, "resetpass", &password])
                    .await?;
                redis.command(&["CLIENT", "KILL", "USER", USER]).await?;
            }
            Fault::CertificateExpired => self.present(|made| &made.expired).await?,
            Fault::CertificateWrong => self.present(|made| &made.wrong).await?,
            Fault::DatabaseDown => subject.database_fault(DatabaseFault::Down),
            Fault::DatabaseSlow(by) => subject.database_fault(DatabaseFault::Slow(*by)),
            Fault::Wire(toxic) => self.wire(toxic).await?,
            other => unreachable!("{} needs sentinels", other.name()),
        }
        Ok(())
    }

    pub(super) async fn end(
        &self,
        fault: &Fault,
        subject: &dyn Subject,
    ) -> Result<(), ProcessError> {
        let redis = &self.redis;
        match fault {
            Fault::Crash => redis.restart().await?,
            Fault::OldSnapshot => redis.restart_from_snapshot().await?,
            Fault::Freeze => redis.resume()?,
            // Nothing is done for anybody before its time is over, also no order to end it.
            Fault::Pause(_) => {
                while redis.command(&["PING"]).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Fault::MaxClients => redis.make_room().await?,
            Fault::OutOfMemory => config(redis, "maxmemory", "0").await?,
            Fault::Loading => {
                let restarted = lock(&self.loading).take();
                if let Some(restarted) = restarted {
                    restarted.await.unwrap_or(Ok(()))?;
                }
            }
            Fault::ReadOnly => redis.promote().await?,
            Fault::PasswordChanged | Fault::UserDeleted => {
                let user = ["ACL", "SETUSER", USER, "reset", "on", "~*", "&*", "+@all"];
                let password = format!(">{PASSWORD}");
                redis.command(&[&user[..], &[&password]].concat()).await?;
            }
            Fault::CertificateExpired | Fault::CertificateWrong => {
                if let Some(made) = &self.certificates {
                    redis.present(&made.good).await?;
                }
            }
            // A token that has expired does not come back.
            Fault::TokenExpired => {}
            Fault::DatabaseDown | Fault::DatabaseSlow(_) => {
                subject.database_fault(DatabaseFault::Healthy)
            }
            Fault::Wire(toxic) => self.unwire(toxic).await,
            other => unreachable!("{} needs sentinels", other.name()),
        }
        Ok(())
    }

    async fn wire(&self, toxic: &Toxic) -> Result<(), ProcessError> {
        let Some(proxy) = &self.proxy else {
            return Ok(());
        };
        let refused = |error: FaultError| ProcessError::Command {
            program: "the proxy".to_owned(),
            cause: error.to_string(),
        };
        let id = proxy.add(toxic.clone()).await.map_err(refused)?;
        lock(&self.wired).push((toxic.clone(), id));
        Ok(())
    }

    async fn unwire(&self, toxic: &Toxic) {
        let Some(proxy) = &self.proxy else { return };
        let wired = {
            let mut wired = lock(&self.wired);
            wired
                .iter()
                .position(|(there, _)| there == toxic)
                .map(|at| wired.remove(at))
        };
        if let Some((_, id)) = wired {
            if proxy.touched(id) == Some(0) {
                lock(&self.untouched).push(toxic.fault.name());
            }
            proxy.remove(id).await;
        }
    }

    /// Faults of the wire that acted on nothing: what they were to show was not shown.
    pub(super) fn untouched(&self) -> Vec<&'static str> {
        lock(&self.untouched).clone()
    }

    /// Shows another certificate, and closes the connections that were made under the one before.
    async fn present(&self, which: impl Fn(&Certificates) -> &Tls) -> Result<(), ProcessError> {
        let Some(made) = &self.certificates else {
            return Ok(());
        };
        self.redis.present(which(made)).await?;
        for kind in ["normal", "pubsub"] {
            self.redis
                .command(&["CLIENT", "KILL", "TYPE", kind])
                .await?;
        }
        Ok(())
    }

    fn write_token(&self, token: &str) -> Result<(), ProcessError> {
        match &self.token {
            Some(file) => write_token(file, token),
            None => Ok(()),
        }
    }
}

/// Replaced as a whole, so that nobody ever reads half a token.
fn write_token(file: &Path, token: &str) -> Result<(), ProcessError> {
    let new = file.with_extension("new");
    std::fs::write(&new, token)
        .and_then(|()| std::fs::rename(&new, file))
        .map_err(|cause| ProcessError::Folder {
            path: file.to_owned(),
            cause,
        })
}

async fn config(redis: &Redis, name: &str, value: &str) -> Result<(), ProcessError> {
    redis
        .command(&["CONFIG", "SET", name, value])
        .await
        .map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sets as many keys of 1 KiB as it is told.
const FILL: &str =
    "for n = 1, tonumber(ARGV[1]) do redis.call('SET', 'ballast:' .. n, string.rep('x', 1024)) end";
