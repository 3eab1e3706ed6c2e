//! Changes to nodes: others take over, addresses change, nodes come and go.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::layout::{NOBODY, report};
use super::{Cluster, failed, meet};
use crate::process::ProcessError;
use steadfast_core::report::ReportedRole;

/// How a replica is made to take over, by which word of `CLUSTER FAILOVER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailoverKind {
    /// Both nodes take part, and no write is lost.
    Planned,
    /// `FORCE`: the primary is not asked, but the other primaries have to vote.
    Forced,
    /// `TAKEOVER`: nobody is asked.
    Takeover,
}

impl Cluster {
    /// Has the first replica of a primary that is awake take over, as [`Cluster::promote`] does.
    /// Tells the position of the new primary.
    ///
    /// # Errors
    /// As [`Cluster::promote`]; there is no such replica.
    pub async fn fail_over(
        &self,
        primary: usize,
        kind: FailoverKind,
    ) -> Result<usize, ProcessError> {
        let replicas = self.replicas_of(primary).await?;
        let replica = replicas.into_iter().find(|at| self.node(*at).is_awake());
        let replica = replica.ok_or_else(|| failed(format!("node {primary} has no replica")))?;
        self.promote(replica, kind).await?;
        Ok(replica)
    }

    /// Makes a replica the primary of its slots, and waits until all that are awake agree.
    ///
    /// # Errors
    /// It does not come to that within a minute.
    pub async fn promote(&self, replica: usize, kind: FailoverKind) -> Result<(), ProcessError> {
        let node = self.node(replica);
        let word = match kind {
            FailoverKind::Planned => None,
            FailoverKind::Forced => Some("FORCE"),
            FailoverKind::Takeover => Some("TAKEOVER"),
        };
        let order: Vec<&str> = ["CLUSTER", "FAILOVER"].into_iter().chain(word).collect();
        let limit = Instant::now() + super::PATIENCE;
        while !node.info("replication").await?.contains("role:master") {
            // One that is already under way, or that nobody votes for yet, is asked for again.
            let refused = node.told(&order).await.err();
            let until = Instant::now() + AGAIN;
            while Instant::now() < until && !node.info("replication").await?.contains("role:master")
            {
                sleep(Duration::from_millis(10)).await;
            }
            if Instant::now() > limit {
                let cause = format!("node {replica} does not take over: {refused:?}");
                return Err(failed(cause));
            }
        }
        self.until("all agree on the new primary", || async {
            for other in self.awake() {
                let report = report(&other).await?;
                let told = report
                    .nodes
                    .iter()
                    .find(|told| told.id.as_ref().is_some_and(|id| id.as_str() == node.id()));
                if told.is_none_or(|told| told.role != ReportedRole::Primary) {
                    return Ok(false);
                }
            }
            self.is_agreed().await
        })
        .await
    }

    /// Starts these nodes again at other ports, all being down for a moment, and waits until all
    /// that are awake know where they are now. What a node without persistence held is gone.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`](crate::process::RedisBuilder::start) and [`Cluster::agree`].
    pub async fn change_addresses(&self, at: &[usize]) -> Result<(), ProcessError> {
        let moved: Vec<_> = at.iter().map(|at| self.node(*at)).collect();
        for node in &moved {
            node.kill().await;
        }
        try_join_all(moved.iter().map(|node| node.restart_elsewhere())).await?;
        self.until("all know the new addresses", || async {
            for node in self.awake() {
                let report = report(&node).await?;
                let known = |moved: &super::ClusterNode| {
                    report.nodes.iter().any(|node| {
                        let id = node.id.as_ref().map(|id| id.as_str());
                        id == Some(moved.id()) && node.port == moved.port()
                    })
                };
                if !moved.iter().all(|moved| known(moved)) {
                    return Ok(false);
                }
            }
            self.is_agreed().await
        })
        .await
    }

    /// Adds a primary without slots, and tells its position, once all know it and it serves.
    ///
    /// # Errors
    /// As [`ClusterBuilder::start`](super::ClusterBuilder::start).
    pub async fn add_node(&self) -> Result<usize, ProcessError> {
        let known = self.awake();
        let known = known.first().ok_or_else(|| failed(NOBODY.into()))?;
        let node = self.start_node().await?;
        meet(known, &node).await?;
        let at = {
            let mut nodes = self.lock();
            nodes.push(node.clone());
            nodes.len() - 1
        };
        self.note()?;
        self.agree().await?;
        // Until it has been a member for a moment it refuses whatever is sent to it.
        self.until("the new node serves", || node.serves()).await?;
        Ok(at)
    }

    /// Adds a replica of a primary, and tells its position, once it is in step.
    ///
    /// # Errors
    /// As [`Cluster::add_node`].
    pub async fn add_replica(&self, of: usize) -> Result<usize, ProcessError> {
        let at = self.add_node().await?;
        self.follow(at, of).await?;
        Ok(at)
    }

    /// Makes a node without slots a replica of another, and waits until it is in step.
    ///
    /// # Errors
    /// It refuses, or [`Cluster::agree`].
    pub async fn follow(&self, at: usize, primary: usize) -> Result<(), ProcessError> {
        let (node, primary) = (self.node(at), self.node(primary));
        node.told(&["CLUSTER", "REPLICATE", primary.id()]).await?;
        self.until("the replica is in step", || async {
            let replication = node.info("replication").await?;
            Ok(replication.contains("master_link_status:up") && self.is_agreed().await?)
        })
        .await
    }

    /// Moves all slots of a node, with their keys, to the other primaries in turn.
    ///
    /// # Errors
    /// As [`Cluster::migrate`]; there is no other primary.
    pub async fn empty(&self, at: usize) -> Result<(), ProcessError> {
        let layout = self.layout().await?;
        let (node, nodes) = (self.node(at), self.nodes());
        let others = nodes.iter().enumerate();
        let others = others.filter(|(_, other)| {
            other.is_awake() && other.id() != node.id() && layout.is_primary(other.id())
        });
        let others: Vec<usize> = others.map(|(at, _)| at).collect();
        let slots = layout.slots_of(node.id());
        if slots.is_empty() {
            return Ok(());
        }
        if others.is_empty() {
            return Err(failed("there is no other primary".into()));
        }
        let share = slots.len().div_ceil(others.len());
        for (slots, to) in slots.chunks(share).zip(others) {
            self.migrate_all(slots, at, to).await?;
            self.agree().await?;
        }
        Ok(())
    }

    /// Empties a node, gives its replicas to another primary, has all forget it, and ends it. Those
    /// behind it move up by one position.
    ///
    /// # Errors
    /// As [`Cluster::empty`]; a node refuses.
    pub async fn remove(&self, at: usize) -> Result<(), ProcessError> {
        self.empty(at).await?;
        let node = self.node(at);
        let layout = self.layout().await?;
        let nodes = self.nodes();
        let heir = nodes.iter().position(|other| {
            other.is_awake() && other.id() != node.id() && layout.is_primary(other.id())
        });
        let heir = heir.ok_or_else(|| failed("there is no other primary".into()))?;
        for replica in self.replicas_of(at).await? {
            self.follow(replica, heir).await?;
        }
        self.forget(at).await
    }

    /// Has all forget a node that owns nothing, and ends it.
    pub(super) async fn forget(&self, at: usize) -> Result<(), ProcessError> {
        let node = self.lock().remove(at);
        for other in self.awake() {
            other.told(&["CLUSTER", "FORGET", node.id()]).await?;
        }
        node.kill().await;
        self.note()?;
        self.agree().await
    }
}

/// After so long an order that has led to nothing is given again. A planned one gives up after 5 s.
const AGAIN: Duration = Duration::from_secs(6);
