//! The common part of all servers: a port, a folder, a child that may be down at the moment, and a
//! log.

use super::child::{Child, Death, is_awake};
use super::runner::Runner;
use super::{LOG, Port, ProcessError, START_LIMIT};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// A server of whatever kind: what [`Redis`](super::Redis), [`MariaDb`](super::MariaDb),
/// [`Postgres`](super::Postgres) and the others have in common. Its methods take `&self`, so that a
/// drill can break what others hold too.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    drop_by: Death,
    // Dropped in this order: the child first, so that nothing writes into a folder that is being
    // removed.
    child: Mutex<Option<Child>>,
    /// The last is the one in use. Those before it are kept too, so that nobody answers on them.
    ports: Mutex<Vec<Port>>,
    folder: Folder,
    /// With whom it ends, if it is not this process.
    runner: Option<Runner>,
}

#[derive(Debug)]
enum Folder {
    Own(TempDir),
    /// Of a server that several processes take turns with.
    Shared(PathBuf),
}

impl Server {
    /// A server that has a port and an empty folder, and does not run yet.
    pub(super) fn new(
        name: &'static str,
        port: Option<u16>,
        drop_by: Death,
    ) -> Result<Self, ProcessError> {
        Self::within(&std::env::temp_dir(), name, port, drop_by)
    }

    /// The same, its folder being one of `place`.
    pub(super) fn within(
        place: &Path,
        name: &'static str,
        port: Option<u16>,
        drop_by: Death,
    ) -> Result<Self, ProcessError> {
        let port = match port {
            Some(number) => Port::numbered(number)?,
            None => Port::free()?,
        };
        let folder = tempfile::Builder::new()
            .prefix(&format!("steadfast-{name}-"))
            .tempdir_in(place)
            .map_err(|cause| ProcessError::Folder {
                path: place.to_owned(),
                cause,
            })?;
        Ok(Self {
            name,
            drop_by,
            child: Mutex::new(None),
            ports: Mutex::new(vec![port]),
            folder: Folder::Own(folder),
            runner: None,
        })
    }

    /// The same, but it ends with that process rather than with this one, and its folder stays.
    pub(super) fn shared(self, runner: Runner) -> Self {
        let folder = match self.folder {
            Folder::Own(folder) => folder.keep(),
            Folder::Shared(folder) => folder,
        };
        Self {
            folder: Folder::Shared(folder),
            runner: Some(runner),
            ..self
        }
    }

    /// A shared server that another process has started, by its folder; running or not.
    pub(super) fn find(
        name: &'static str,
        folder: &Path,
        drop_by: Death,
        runner: Runner,
    ) -> Result<Self, ProcessError> {
        let (server, port) = Self::noted(folder).ok_or_else(|| ProcessError::Down {
            program: name.to_owned(),
        })?;
        Ok(Self {
            name,
            drop_by,
            child: Mutex::new(Child::find(server, drop_by)),
            ports: Mutex::new(vec![Port::of_other(port)]),
            folder: Folder::Shared(folder.to_owned()),
            runner: Some(runner),
        })
    }

    /// Returns the process that ran last in the folder of a shared server, and its port.
    fn noted(folder: &Path) -> Option<(Runner, u16)> {
        let noted = std::fs::read_to_string(folder.join(RUNNING)).ok()?;
        let mut words = noted.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let start = words.next()?.parse().ok()?;
        Some((Runner { pid, start }, words.next()?.parse().ok()?))
    }

    /// Returns the port; the same after every restart, unless the server was given another.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// Returns address and port.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        let ports = self.ports();
        ports.last().expect("it has one from the start").addr()
    }

    /// Takes another free port for the next start. Nobody else gets the one before.
    pub(super) fn move_elsewhere(&self) -> Result<(), ProcessError> {
        let port = Port::free()?;
        self.ports().push(port);
        Ok(())
    }

    /// Returns the server's folder, which is removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        match &self.folder {
            Folder::Own(folder) => folder.path(),
            Folder::Shared(folder) => folder,
        }
    }

    /// The pid of its first process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let mut child = self.child();
        let child = child.as_mut()?;
        (!child.has_ended()).then(|| child.pid())
    }

    /// Whether it runs and does not stand still.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        self.pid().is_some_and(is_awake)
    }

    /// SIGSTOP to all its processes: connections are still accepted, by the kernel, and nothing is
    /// answered.
    ///
    /// # Errors
    /// [`ProcessError::Down`] when it does not run.
    pub fn freeze(&self) -> Result<(), ProcessError> {
        self.child()
            .as_ref()
            .and_then(|child| child.freeze().ok())
            .ok_or_else(|| self.down())
    }

    /// SIGCONT to all its processes: it goes on, beginning with what was sent to it meanwhile.
    ///
    /// # Errors
    /// [`ProcessError::Down`] when it does not run.
    pub fn resume(&self) -> Result<(), ProcessError> {
        self.child()
            .as_ref()
            .and_then(|child| child.resume().ok())
            .ok_or_else(|| self.down())
    }

    /// Ends it and waits until it is gone; nothing happens if it is down.
    pub(super) async fn end(&self, death: Death) {
        let child = self.child().take();
        if let Some(child) = child {
            child.end(death, START_LIMIT).await;
        }
        // Until now it was kept by who listened on it.
        let mut ports = self.ports();
        if let Some(port) = ports.last_mut().filter(|port| !port.is_kept()) {
            *port = Port::of_other(port.number());
        }
    }

    /// Starts `program`, unless it runs.
    pub(super) fn launch(&self, program: &Path, args: &[OsString]) -> Result<(), ProcessError> {
        let mut child = self.child();
        if child.as_mut().is_some_and(|child| !child.has_ended()) {
            return Ok(());
        }
        *child = None;
        let _ = std::fs::remove_file(self.folder().join(LOG));
        let (folder, drop_by) = (self.folder(), self.drop_by);
        let spawned = Child::spawn_for(self.runner, program, args, folder, drop_by)?;
        let server = Runner::of(spawned.pid()).filter(|_| self.runner.is_some());
        *child = Some(spawned);
        drop(child);
        server.map_or(Ok(()), |server| self.note(server))
    }

    /// Leaves word of a shared server to whoever has it next.
    fn note(&self, server: Runner) -> Result<(), ProcessError> {
        let path = self.folder().join(RUNNING);
        let word = format!("{} {} {}", server.pid, server.start, self.port());
        std::fs::write(&path, word).map_err(|cause| ProcessError::Folder { path, cause })
    }

    /// Waits until `answers` says that it does, or the server has ended, or 30 s are over.
    // Not an `AsyncFnMut`: of the futures of those the compiler cannot yet see that they may be
    // sent to another thread.
    pub(super) async fn until<F: Future<Output = bool>>(
        &self,
        mut answers: impl FnMut() -> F,
    ) -> Result<(), ProcessError> {
        let limit = Instant::now() + START_LIMIT;
        loop {
            // Looked at first: who answers on the port of a server that has ended is somebody else.
            let ended = self.child().as_mut().is_none_or(Child::has_ended);
            if ended {
                return Err(self.explained(None));
            }
            if answers().await {
                return Ok(());
            }
            if Instant::now() > limit {
                return Err(self.explained(Some(START_LIMIT)));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Why it ended, or kept silent for `waited`, by its log.
    pub(super) fn explained(&self, waited: Option<Duration>) -> ProcessError {
        match ProcessError::from_log(self.name, self.folder(), waited) {
            ProcessError::Ended { line, .. }
                if PORT_TAKEN.iter().any(|said| line.contains(said)) =>
            {
                ProcessError::PortTaken { port: self.port() }
            }
            other => other,
        }
    }

    fn down(&self) -> ProcessError {
        ProcessError::Down {
            program: self.name.to_owned(),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports(&self) -> MutexGuard<'_, Vec<Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file in which a shared server's process and port are noted.
const RUNNING: &str = "running";

/// How Redis, MariaDB and PostgreSQL say that somebody else listens on their port.
const PORT_TAKEN: [&str; 4] = [
    "Address already in use",
    "listening on port",
    "Is there already another",
    "could not bind IPv4 address",
];
