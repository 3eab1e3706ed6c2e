//! A cluster for the tests of many processes, one after another.
//!
//! A cluster takes seconds to form, and a test runner gives each test a process of its own. So the
//! nodes of a shared one belong to the program that runs the tests (see `runner.rs`), who has it at
//! the moment holds a lock, and each takes it over healed. What the next needs to know stands in
//! files: which nodes there are in `members.json`, which process and port a node has in the node's
//! own folder.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{CLUSTER, Cluster, ClusterBuilder, ClusterNode, Layout, Place, failed};
use crate::process::runner::Runner;
use crate::process::{Port, ProcessError, Redis};

/// A [`Cluster`] that tests take turns with. Dropped, the next may have it, who heals it.
///
/// Any node of it may be broken in any way, and also killed; nothing outlives the program that runs
/// the tests. But a test that changes passwords or settings of nodes starts a cluster of its own.
#[derive(Debug)]
pub struct SharedCluster {
    cluster: Cluster,
    first: Layout,
    /// Held for as long as this lives, also when the process is killed.
    _turn: File,
}

impl Deref for SharedCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl SharedCluster {
    /// Returns the layout with which the cluster was made, and which it has whenever somebody gets
    /// it.
    #[must_use]
    pub fn first(&self) -> &Layout {
        &self.first
    }
}

/// The facts of a cluster that the next process must know.
#[derive(Debug, Serialize, Deserialize)]
struct Members {
    secret: String,
    first: Layout,
    nodes: Vec<MemberNode>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MemberNode {
    folder: PathBuf,
    id: String,
    bus: u16,
}

impl Cluster {
    /// A cluster of three primaries with a replica each that tests take turns with, as
    /// [`ClusterBuilder::shared`] gives it.
    ///
    /// # Errors
    /// See there.
    pub async fn shared() -> Result<SharedCluster, ProcessError> {
        Self::builder().shared("plain").await
    }

    /// Writes down who is a member, if others are to have this cluster later.
    pub(super) fn note(&self) -> Result<(), ProcessError> {
        let Place::Shared(folder, _) = &self.place else {
            return Ok(());
        };
        // Before the first layout is known there is nothing to hand over.
        match read(folder) {
            Some(members) => self.note_with(&members.first),
            None => Ok(()),
        }
    }

    fn note_with(&self, first: &Layout) -> Result<(), ProcessError> {
        let nodes = self.nodes();
        let member = |node: &Arc<ClusterNode>| MemberNode {
            folder: node.folder().to_owned(),
            id: node.id().to_owned(),
            bus: node.bus.number(),
        };
        let members = Members {
            secret: self.secret.clone(),
            first: first.clone(),
            nodes: nodes.iter().map(member).collect(),
        };
        let text = serde_json::to_vec(&members).map_err(|error| failed(error.to_string()))?;
        let (path, new) = (
            self.place.path().join(MEMBERS),
            self.place.path().join("new"),
        );
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path));
        written.map_err(|cause| ProcessError::Folder { path, cause })
    }
}

impl ClusterBuilder {
    /// Waits for a turn with a cluster of that name, which is started if there is none: healed,
    /// empty, as it was at first. There are two of a name at most, so that two tests may run at
    /// once. Whoever uses a name has to use it with the same settings.
    ///
    /// # Errors
    /// As [`ClusterBuilder::start`]; no turn came within ten minutes.
    pub async fn shared(self, name: &str) -> Result<SharedCluster, ProcessError> {
        let runner = Runner::of_this_process();
        let base =
            std::env::temp_dir().join(format!("steadfast-shared-{}-{}", runner.pid, runner.start));
        let folder_error = |path: &Path| {
            let path = path.to_owned();
            move |cause| ProcessError::Folder { path, cause }
        };
        match std::fs::create_dir(&base) {
            Ok(()) => runner.takes_along(&base)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(folder_error(&base)(cause)),
        }
        let limit = Instant::now() + TURN;
        loop {
            for place in 0..PLACES {
                let folder = base.join(format!("{name}-{place}"));
                std::fs::create_dir_all(&folder).map_err(folder_error(&folder))?;
                let file = folder.join("turn");
                let turn = File::create(&file).map_err(folder_error(&file))?;
                if turn.try_lock().is_ok() {
                    return self.take_over(folder, runner, turn).await;
                }
            }
            if Instant::now() > limit {
                return Err(ProcessError::Silent {
                    program: CLUSTER.into(),
                    waited: TURN,
                    line: format!("all shared clusters named {name} are in use"),
                });
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn take_over(
        self,
        folder: PathBuf,
        runner: Runner,
        turn: File,
    ) -> Result<SharedCluster, ProcessError> {
        if let Some(members) = read(&folder)
            && let Ok(cluster) = self.clone().find(&folder, runner, &members)
            && cluster.heal_to(&members.first).await.is_ok()
        {
            return Ok(SharedCluster {
                cluster,
                first: members.first,
                _turn: turn,
            });
        }
        self.clear(&folder, runner).await?;
        let cluster = Cluster {
            secret: format!("shared-{}-{}", runner.pid, runner.start),
            nodes: Mutex::default(),
            place: Place::Shared(folder, runner),
            builder: self,
        };
        cluster.form().await?;
        let first = cluster.layout().await?;
        cluster.note_with(&first)?;
        Ok(SharedCluster {
            cluster,
            first,
            _turn: turn,
        })
    }

    /// The cluster that others have left.
    fn find(
        self,
        folder: &Path,
        runner: Runner,
        members: &Members,
    ) -> Result<Cluster, ProcessError> {
        let cluster = Cluster {
            secret: members.secret.clone(),
            nodes: Mutex::default(),
            place: Place::Shared(folder.to_owned(), runner),
            builder: self,
        };
        let mut nodes = Vec::new();
        for member in &members.nodes {
            let bus = Port::of_other(member.bus);
            let redis = cluster.settings(&bus).find(&member.folder, runner)?;
            let id = member.id.clone();
            nodes.push(Arc::new(ClusterNode { redis, id, bus }));
        }
        *cluster.lock() = nodes;
        Ok(cluster)
    }

    /// Ends what somebody has left that cannot be used any more.
    async fn clear(&self, folder: &Path, runner: Runner) -> Result<(), ProcessError> {
        let cleared = |cause| ProcessError::Folder {
            path: folder.to_owned(),
            cause,
        };
        let _ = std::fs::remove_file(folder.join(MEMBERS));
        for entry in std::fs::read_dir(folder).map_err(cleared)? {
            let left = entry.map_err(cleared)?.path();
            if left.is_dir() {
                if let Ok(redis) = Redis::builder().find(&left, runner) {
                    redis.kill().await;
                }
                std::fs::remove_dir_all(&left).map_err(cleared)?;
            }
        }
        Ok(())
    }
}

fn read(folder: &Path) -> Option<Members> {
    let text = std::fs::read(folder.join(MEMBERS)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The file that tells the members.
const MEMBERS: &str = "members.json";
/// How many clusters there are of one name.
const PLACES: usize = 2;
/// How long a turn is waited for.
const TURN: Duration = Duration::from_secs(600);
