//! Slots on their way from one node to another, as the manual of Redis Cluster moves them.

use std::pin::{Pin, pin};
use std::time::Duration;

use redis::{Pipeline, Value, cmd};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Cluster, ClusterNode, HOST, PEER, failed};
use crate::process::ProcessError;

impl Cluster {
    /// Moves a slot with its keys from one primary to another, by their positions. Returns when
    /// both and all others were told; see [`Cluster::agree`].
    ///
    /// Move between one pair of nodes at a time, and have all agree before the next pair or the way
    /// back: faster than epochs spread, the cluster itself comes to disagree.
    ///
    /// # Errors
    /// A node refuses, or is not awake. The slot may be half way then.
    pub async fn migrate(&self, slot: u16, from: usize, to: usize) -> Result<(), ProcessError> {
        self.migrate_all(&[slot], from, to).await
    }

    /// Moves many slots, as [`Cluster::migrate`] does, some hundred at a time.
    ///
    /// # Errors
    /// As [`Cluster::migrate`].
    pub async fn migrate_all(
        &self,
        slots: &[u16],
        from: usize,
        to: usize,
    ) -> Result<(), ProcessError> {
        for some in slots.chunks(BATCH) {
            self.begin_migration(some, from, to).await?;
            self.move_keys(some, from, to, usize::MAX).await?;
            self.end_migration(some, from, to).await?;
        }
        Ok(())
    }

    /// Opens slots for their way: what is not at the one node is asked of the other (ASK).
    ///
    /// # Errors
    /// As [`Cluster::migrate`].
    pub async fn begin_migration(
        &self,
        slots: &[u16],
        from: usize,
        to: usize,
    ) -> Result<(), ProcessError> {
        let (from, to) = (self.node(from), self.node(to));
        set_slots(&to, slots, &["IMPORTING", from.id()]).await?;
        set_slots(&from, slots, &["MIGRATING", to.id()]).await
    }

    /// Moves up to so many keys of each of these slots, and tells how many went. As `redis-cli
    /// --cluster reshard` does, it replaces no key at the other node that has another value: a late
    /// command behind an ASKING has written it there, and was acknowledged.
    ///
    /// # Errors
    /// As [`Cluster::migrate`]; or a key is at both nodes, with two values.
    pub async fn move_keys(
        &self,
        slots: &[u16],
        from: usize,
        to: usize,
        limit: usize,
    ) -> Result<usize, ProcessError> {
        let (from, to) = (self.node(from), self.node(to));
        let mut moved = 0;
        let mut left: Vec<(u16, usize)> = slots.iter().map(|slot| (*slot, limit)).collect();
        while !left.is_empty() {
            let mut asked = Pipeline::new();
            for (slot, limit) in &left {
                let count = (*limit).min(KEYS);
                asked.add_command(
                    cmd("CLUSTER")
                        .arg("GETKEYSINSLOT")
                        .arg(slot)
                        .arg(count)
                        .to_owned(),
                );
            }
            let found = from.pipeline(&asked).await?;
            let mut batches = Vec::new();
            let mut next = Vec::new();
            for ((slot, limit), keys) in left.into_iter().zip(found) {
                let keys: Vec<Vec<u8>> =
                    redis::from_redis_value(keys).map_err(|error| failed(error.to_string()))?;
                if keys.is_empty() {
                    continue;
                }
                moved += keys.len();
                if limit > keys.len() {
                    next.push((slot, limit - keys.len()));
                }
                batches.push(keys);
            }
            self.migrate_keys(&batches, &from, &to).await?;
            left = next;
        }
        Ok(moved)
    }

    /// Moves keys, each batch of one slot by a command of its own.
    async fn migrate_keys(
        &self,
        batches: &[Vec<Vec<u8>>],
        from: &ClusterNode,
        to: &ClusterNode,
    ) -> Result<(), ProcessError> {
        if batches.is_empty() {
            return Ok(());
        }
        let told = |replaces: bool| {
            let mut told = Pipeline::new();
            for keys in batches {
                let mut migrate = cmd("MIGRATE");
                migrate.arg(HOST).arg(to.port()).arg("").arg(0);
                migrate.arg(MIGRATE_MS);
                if replaces {
                    migrate.arg("REPLACE");
                }
                migrate.arg("AUTH2").arg(PEER).arg(&self.secret);
                told.add_command(migrate.arg("KEYS").arg(keys).to_owned());
            }
            told
        };
        match from.pipeline(&told(false)).await {
            Err(error) if error.to_string().contains("BUSYKEY") => {
                // Where a move before this one ended half way, the key is at both.
                for key in batches.iter().flatten() {
                    are_alike(key, from, to).await?;
                }
                from.pipeline(&told(true)).await.map(drop)
            }
            moved => moved.map(drop),
        }
    }

    /// Gives slots whose keys have all moved to their new owner, and tells everybody.
    ///
    /// # Errors
    /// As [`Cluster::migrate`]; keys are left.
    pub async fn end_migration(
        &self,
        slots: &[u16],
        from: usize,
        to: usize,
    ) -> Result<(), ProcessError> {
        let (from, to) = (self.node(from), self.node(to));
        let owner = ["NODE", to.id()];
        set_slots(&to, slots, &owner).await?;
        set_slots(&from, slots, &owner).await?;
        for node in self.awake() {
            let is_third = node.id() != from.id() && node.id() != to.id();
            if is_third && node.info("replication").await?.contains("role:master") {
                set_slots(&node, slots, &owner).await?;
            }
        }
        Ok(())
    }

    /// Moves slots, each with its keys, from their owners to the next primaries and back, again and
    /// again, at most so many a second, until `stop` comes; then brings home what is away. Tells
    /// how many slots have changed hands.
    ///
    /// It runs only as long as it is polled: join it with the load. Dropped half way, it leaves a
    /// slot on its way ([`Cluster::heal_to`] mends that).
    ///
    /// # Errors
    /// As [`Cluster::migrate`] and [`Cluster::agree`].
    pub async fn keep_moving(
        &self,
        slots: &[u16],
        a_second: u32,
        stop: impl Future<Output = ()>,
    ) -> Result<u64, ProcessError> {
        let mut ticks = interval(Duration::from_secs(1) / a_second.max(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ways = self.ways(slots).await?;
        let mut stop = pin!(stop);
        let (mut moved, mut stopped) = (0, false);
        while !stopped {
            let mut away = Vec::new();
            for way in &ways {
                if away
                    .last()
                    .is_some_and(|before: &SlotWay| !before.is_along(way))
                {
                    self.agree().await?;
                }
                stopped = stopped || is_over(stop.as_mut(), &mut ticks).await;
                if stopped {
                    break;
                }
                self.migrate(way.slot, way.from, way.to).await?;
                away.push(*way);
            }
            self.agree().await?;
            moved += 2 * away.len() as u64;
            for (n, way) in away.iter().enumerate() {
                if n > 0 && !away[n - 1].is_along(way) {
                    self.agree().await?;
                }
                stopped = stopped || is_over(stop.as_mut(), &mut ticks).await;
                self.migrate(way.slot, way.to, way.from).await?;
            }
            self.agree().await?;
        }
        Ok(moved)
    }

    /// The ways of [`Cluster::keep_moving`], pair of nodes by pair: from each owner to the next
    /// primary.
    async fn ways(&self, slots: &[u16]) -> Result<Vec<SlotWay>, ProcessError> {
        let layout = self.layout().await?;
        let nodes = self.nodes();
        let primaries = nodes.iter().enumerate();
        let primaries = primaries.filter(|(_, node)| layout.is_primary(node.id()));
        let primaries: Vec<usize> = primaries.map(|(at, _)| at).collect();
        if primaries.len() < 2 {
            return Err(failed("there is only one primary".into()));
        }
        let mut ways = Vec::new();
        for (n, &from) in primaries.iter().enumerate() {
            let to = primaries[(n + 1) % primaries.len()];
            let owned = |slot: &&u16| layout.owner(**slot) == Some(nodes[from].id());
            let own = slots.iter().filter(owned);
            ways.extend(own.map(|&slot| SlotWay { slot, from, to }));
        }
        Ok(ways)
    }
}

/// Where a slot goes.
#[derive(Debug, Clone, Copy)]
struct SlotWay {
    slot: u16,
    from: usize,
    to: usize,
}

impl SlotWay {
    fn is_along(&self, other: &Self) -> bool {
        (self.from, self.to) == (other.from, other.to)
    }
}

/// Waits for the next turn; tells whether the end came first. Not to be asked again after that.
async fn is_over(stop: Pin<&mut impl Future<Output = ()>>, ticks: &mut Interval) -> bool {
    tokio::select! {
        biased;
        () = stop => true,
        _ = ticks.tick() => false,
    }
}

/// Finds that a key that is at both nodes has one value.
///
/// # Errors
/// It has two.
async fn are_alike(key: &[u8], from: &ClusterNode, to: &ClusterNode) -> Result<(), ProcessError> {
    let mut dump = Pipeline::new();
    dump.add_command(cmd("ASKING"));
    dump.add_command(cmd("DUMP").arg(key).to_owned());
    let [here, there] = [from.pipeline(&dump).await, to.pipeline(&dump).await];
    // What has gone already is answered ASK by the one.
    let (Ok(here), Ok(there)) = (here, there) else {
        return Ok(());
    };
    let is_at_both = here[1] != Value::Nil && there[1] != Value::Nil;
    if is_at_both && here[1] != there[1] {
        return Err(failed(format!(
            "a key is at both nodes of a migration, {} and {}, with two values: the second was \
             written by a late command behind an ASKING, and nothing is replaced",
            from.port(),
            to.port()
        )));
    }
    Ok(())
}

/// Tells a node something of slots.
pub(super) async fn set_slots(
    node: &ClusterNode,
    slots: &[u16],
    what: &[&str],
) -> Result<(), ProcessError> {
    let mut told = Pipeline::new();
    for slot in slots {
        let mut set = cmd("CLUSTER");
        told.add_command(set.arg("SETSLOT").arg(slot).arg(what).to_owned());
    }
    let answers = node.pipeline(&told).await?;
    match answers.iter().find(|answer| **answer != Value::Okay) {
        None => Ok(()),
        Some(answer) => Err(failed(format!(
            "SETSLOT {what:?} was answered by {answer:?}"
        ))),
    }
}

/// So many slots are on their way at once at most.
const BATCH: usize = 256;
/// So many keys of a slot are moved by one command.
const KEYS: usize = 100;
/// How long one command may take to move them. The owner answers nobody meanwhile.
const MIGRATE_MS: u64 = 5_000;
