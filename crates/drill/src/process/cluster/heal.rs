//! The way back to an earlier layout, so that one cluster can serve many tests.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use redis::cmd;
use tokio::time::Instant;

use super::layout::report;
use super::migration::set_slots;
use super::{Cluster, FailoverKind, Layout, PATIENCE, failed};
use crate::process::ProcessError;

impl Cluster {
    /// Makes the cluster what it was when it had this layout, whatever was done to it: nodes are
    /// thawed or started again, slots on their way are stopped, added nodes removed, roles and
    /// slots given back. Then it is empty: keys, scripts and functions are gone, and no client is
    /// paused.
    ///
    /// What was changed by CONFIG SET or ACL stays, and so do new addresses.
    ///
    /// # Errors
    /// A node of that layout was removed, or the cluster is not what it was within some minutes; it
    /// serves for nothing then.
    pub async fn heal_to(&self, first: &Layout) -> Result<(), ProcessError> {
        if let Some(id) = first.nodes.keys().find(|id| self.position(id).is_none()) {
            return Err(failed(format!("node {id} is not a member any more")));
        }
        self.wake().await?;
        // What has just woken may still become a replica under it; it is done again at the end.
        let _ = self.wipe().await;
        self.stop_migrations().await?;
        let limit = Instant::now() + 3 * PATIENCE;
        loop {
            let now = self.layout().await?;
            if now == *first {
                break;
            }
            if Instant::now() > limit {
                return Err(failed(format!("it is {now:?}, and was {first:?}")));
            }
            self.approach(first, &now).await?;
        }
        self.wipe().await?;
        self.well().await
    }

    async fn wake(&self) -> Result<(), ProcessError> {
        let nodes = self.nodes();
        let woken = nodes.iter().map(|node| async move {
            if node.pid().is_none() {
                return node.restart().await;
            }
            node.resume()?;
            node.told(&["CLIENT", "UNPAUSE"]).await
        });
        try_join_all(woken).await.map(drop)
    }

    /// Empties every primary, of code too.
    async fn wipe(&self) -> Result<(), ProcessError> {
        for node in self.nodes() {
            if node.info("replication").await?.contains("role:master") {
                let mut all = redis::Pipeline::new();
                all.add_command(cmd("FLUSHALL"));
                all.add_command(cmd("SCRIPT").arg("FLUSH").to_owned());
                all.add_command(cmd("FUNCTION").arg("FLUSH").to_owned());
                node.pipeline(&all).await?;
            }
        }
        Ok(())
    }

    /// Leaves slots that are on their way where they are. There are no keys any more.
    async fn stop_migrations(&self) -> Result<(), ProcessError> {
        for node in self.nodes() {
            let report = report(&node).await?;
            let moving = report.nodes.iter().flat_map(|node| &node.migrations);
            let moving: Vec<u16> = moving.map(|moving| moving.slot.number()).collect();
            if !moving.is_empty() {
                set_slots(&node, &moving, &["STABLE"]).await?;
            }
        }
        Ok(())
    }

    /// Goes one step towards the layout: roles first, then slots, then replicas, then strangers.
    async fn approach(&self, first: &Layout, now: &Layout) -> Result<(), ProcessError> {
        let at = |id: &str| {
            let at = self.position(id);
            at.ok_or_else(|| failed(format!("node {id} is not a member any more")))
        };
        for id in first.nodes.keys() {
            if first.is_primary(id) && !now.is_primary(id) {
                return self.promote(at(id)?, FailoverKind::Planned).await;
            }
        }
        if self.take_unowned(first, now).await? {
            return self.agree().await;
        }
        let mut ways: BTreeMap<(&str, &str), Vec<u16>> = BTreeMap::new();
        for id in first.nodes.keys() {
            for slot in first.slots_of(id) {
                match now.owner(slot) {
                    Some(owner) if owner != id => ways.entry((owner, id)).or_default().push(slot),
                    _ => {}
                }
            }
        }
        if let Some(((from, to), slots)) = ways.first_key_value() {
            self.migrate_all(slots, at(from)?, at(to)?).await?;
            return self.agree().await;
        }
        for (id, node) in &first.nodes {
            match &node.replica_of {
                Some(primary) if now.nodes.get(id) != Some(node) => {
                    return self.follow(at(id)?, at(primary)?).await;
                }
                _ => {}
            }
        }
        match now.nodes.keys().find(|id| !first.nodes.contains_key(*id)) {
            Some(stranger) => self.forget(at(stranger)?).await,
            None => Ok(()),
        }
    }

    /// Gives slots that nobody owns to those who had them; tells whether there were any.
    async fn take_unowned(&self, first: &Layout, now: &Layout) -> Result<bool, ProcessError> {
        let mut any = false;
        for id in first.nodes.keys() {
            let slots = first.slots_of(id).into_iter();
            let lost: Vec<u16> = slots.filter(|slot| now.owner(*slot).is_none()).collect();
            if let (false, Some(at)) = (lost.is_empty(), self.position(id)) {
                let mut add = redis::Pipeline::new();
                add.add_command(cmd("CLUSTER").arg("ADDSLOTS").arg(lost).to_owned());
                self.node(at).pipeline(&add).await?;
                any = true;
            }
        }
        Ok(any)
    }
}
