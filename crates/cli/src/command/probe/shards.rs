//! What the nodes of a cluster say of it, and what in its set-up will hurt on the day that one of
//! them fails.

use std::collections::BTreeMap;
use std::time::Duration;

use steadfast::{CallOptions, Client, ClusterStatus, NodeStatus};
use tokio::task::JoinSet;

use super::plural;
use crate::failure::Failure;
use crate::figures::duration;
use crate::output::row;

/// The most nodes that are listed, and asked for their settings.
const LISTED: usize = 64;

/// What was seen, for the warnings.
pub(super) struct Shards {
    pub(super) cluster: ClusterStatus,
    /// The primaries that refuse everything while any slot has no owner.
    pub(super) all_or_nothing: Vec<String>,
}

impl Shards {
    /// Asks each primary what it says of itself, for no longer than `limit`. `None` where there is
    /// no cluster.
    pub(super) async fn of(client: &Client, limit: Duration) -> Option<Self> {
        let known = client.status().cluster?;
        let once = CallOptions::new().deadline(limit).attempts(1);
        let mut asks = JoinSet::new();
        for address in known
            .owners()
            .take(LISTED)
            .filter_map(|node| node.address.clone())
        {
            let mut node = client.node(&address).with(once.clone());
            asks.spawn(async move {
                let mut ask = redis::cmd("CONFIG");
                ask.arg("GET").arg("cluster-require-full-coverage");
                let said = ask.query_async::<Vec<String>>(&mut node).await;
                let requires = said.is_ok_and(|pair| pair.get(1).is_some_and(|yes| yes == "yes"));
                requires.then_some(address)
            });
        }
        let mut all_or_nothing: Vec<_> = asks.join_all().await.into_iter().flatten().collect();
        all_or_nothing.sort_unstable();
        Some(Self {
            // They have been connected to meanwhile.
            cluster: client.status().cluster?,
            all_or_nothing,
        })
    }

    pub(super) fn describe(&self) -> Result<(), Failure> {
        let cluster = &self.cluster;
        let owners = cluster.owners().count();
        let age = cluster.heard_ms_ago.map_or("never told".to_owned(), |ms| {
            let age = duration(Duration::from_secs_f64(ms / 1e3));
            format!("told {age} ago")
        });
        let covered = match cluster.uncovered_slots {
            0 => "all slots are owned".to_owned(),
            n => format!("{n} of 16384 slots have no owner"),
        };
        row(
            "cluster",
            format_args!(
                "{}, {covered}, epoch {}, {age}",
                plural(owners as u64, "shard"),
                cluster.epoch
            ),
        )?;
        if let Some(error) = &cluster.error {
            row("", error)?;
        }
        let members = || cluster.nodes.iter().filter(|node| node.member);
        for node in members().take(LISTED) {
            row("", format_args!("  {}", says(node)))?;
        }
        if members().count() > LISTED {
            row(
                "",
                format_args!("  and {} more", members().count() - LISTED),
            )?;
        }
        for warning in self.warnings() {
            row("warning", warning)?;
        }
        Ok(())
    }

    /// What to see to before it is needed.
    pub(super) fn warnings(&self) -> Vec<String> {
        let cluster = &self.cluster;
        let mut all = Vec::new();
        if cluster.uncovered_slots > 0 {
            all.push(format!(
                "nobody owns the slots {}: what belongs to them fails (redis-cli --cluster fix)",
                cluster.uncovered
            ));
        }
        for node in cluster.owners() {
            let Some(why) = node.why_not() else { continue };
            all.push(format!(
                "{} does not serve, and its slots {} with it: {why}",
                name(node),
                node.slots,
            ));
        }
        let owners = cluster.owners().count();
        if (1..3).contains(&owners) {
            all.push(format!(
                "fewer than three primaries own slots ({owners}): if one fails, the rest are no majority and no replica takes over"
            ));
        }
        let alone: Vec<String> = cluster
            .owners()
            .filter(|node| cluster.replicas_of(node).next().is_none())
            .map(name)
            .collect();
        if !alone.is_empty() {
            all.push(format!(
                "no replica of {}: should it fail, its slots fail until it is back",
                alone.join(", ")
            ));
        }
        if !self.all_or_nothing.is_empty() {
            all.push(format!(
                "cluster-require-full-coverage is yes on {}: one shard that is down takes all others down with it (CONFIG SET cluster-require-full-coverage no, and in redis.conf)",
                self.all_or_nothing.join(", ")
            ));
        }
        all.extend(shared_hosts(cluster));
        all
    }
}

/// Hosts whose end ends more than one node, so that nobody takes over.
fn shared_hosts(cluster: &ClusterStatus) -> Vec<String> {
    let mut all = Vec::new();
    let mut on_host: BTreeMap<&str, usize> = BTreeMap::new();
    for node in cluster.owners() {
        *on_host.entry(host(node)).or_default() += 1;
    }
    let owners = cluster.owners().count();
    let most = on_host.into_iter().max_by_key(|(_, count)| *count);
    if let Some((host, count)) = most
        && owners >= 3
        && count > (owners - 1) / 2
    {
        all.push(format!(
            "{count} of {owners} primaries are on {host}: if that host fails, the rest are no majority and no replica takes over"
        ));
    }
    let together: Vec<String> = cluster
        .owners()
        .filter(|primary| {
            let mut replicas = cluster.replicas_of(primary).peekable();
            replicas.peek().is_some() && replicas.all(|replica| host(replica) == host(primary))
        })
        .map(name)
        .collect();
    if !together.is_empty() {
        all.push(format!(
            "all replicas of {} are on its own host: if that fails, its slots fail until it is back",
            together.join(", ")
        ));
    }
    all
}

fn host(node: &NodeStatus) -> &str {
    let address = node.address.as_deref().unwrap_or_default();
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn name(node: &NodeStatus) -> String {
    let named = node.address.as_ref().or(node.id.as_ref());
    named
        .map_or("a node without an address", String::as_str)
        .to_owned()
}

fn says(node: &NodeStatus) -> String {
    let role = match (node.primary, node.slots.is_empty(), &node.follows) {
        (true, true, _) => "primary without slots".to_owned(),
        (true, false, _) => format!("primary, slots {}", node.slots),
        (false, _, Some(of)) => format!("replica of {of}"),
        (false, _, None) => "replica".to_owned(),
    };
    match node.why_not() {
        None => format!("{} {role}", name(node)),
        Some(why) => format!("{} {role}: {why}", name(node)),
    }
}
