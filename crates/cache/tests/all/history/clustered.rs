//! The processes' Redis as a cluster: what happens to the shard in which the cache lies.

use std::time::Duration;

use steadfast_core::slot::Slot;
use steadfast_drill::process::Cluster;
use steadfast_drill::waiting::eventually;

/// Three primaries with a replica each.
pub(crate) struct Clustered(Cluster);

impl Clustered {
    pub(crate) async fn start() -> Self {
        let builder = Cluster::builder().node_timeout(Duration::from_secs(1));
        Self(builder.start().await.unwrap())
    }

    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    /// The primary of the cache's shard is killed, its replica is elected, and it comes back as a
    /// replica of that.
    pub(crate) async fn kill_primary(&self) {
        let primary = self.owner().await;
        self.0.node(primary).kill().await;
        self.until_another_owns_it(primary).await;
        self.0.node(primary).restart().await.unwrap();
        self.0.well().await.unwrap();
    }

    /// The primary of the cache's shard stands still until its replica is elected, and wakes with
    /// all that was sent to it meanwhile.
    pub(crate) async fn freeze_primary(&self) {
        let primary = self.owner().await;
        self.0.node(primary).freeze().unwrap();
        self.until_another_owns_it(primary).await;
        self.0.node(primary).resume().unwrap();
        self.0.well().await.unwrap();
    }

    /// The cache's slot moves to a primary of another shard, with all that is in it.
    pub(crate) async fn move_slot(&self) {
        let from = self.owner().await;
        let layout = self.0.layout().await.unwrap();
        let mut others = (0..self.0.nodes().len()).filter(|at| *at != from);
        let is_primary = |at: &usize| layout.is_primary(self.0.node(*at).id());
        let to = others.find(is_primary).unwrap();
        self.0.migrate(slot(), from, to).await.unwrap();
        self.0.agree().await.unwrap();
    }

    async fn owner(&self) -> usize {
        self.0.owner(slot()).await.unwrap()
    }

    async fn until_another_owns_it(&self, primary: usize) {
        eventually("a replica is elected", async || {
            let owner = self.0.owner(slot()).await;
            owner.is_ok_and(|owner| owner != primary)
        })
        .await;
    }
}

/// The slot of all that the processes' caches keep.
fn slot() -> u16 {
    Slot::of_key(b"{history}").number()
}
