//! The view of the sentinels of a primary, one by one, and what in their set-up will hurt on the
//! day they are needed.

use std::collections::BTreeMap;
use std::time::Duration;

use steadfast::{Client, ReplicaStatus, SentinelContact, SentinelStatus};
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::figures::bytes;
use crate::output::row;

/// Between looks whether all have answered.
const LOOK: Duration = Duration::from_millis(20);

/// The findings, for the warnings.
pub(super) struct View {
    pub(super) sentinels: SentinelStatus,
    /// Whether the primary refuses writes while no replica follows; `None` if it does not say.
    pub(super) guards_writes: Option<bool>,
}

impl View {
    /// Waits until each sentinel has answered, or could not be asked, and the primary has told of
    /// its replicas; no longer than `limit`. `None` where no sentinels are asked.
    pub(super) async fn of(client: &Client, limit: Duration) -> Option<Self> {
        let until = Instant::now() + limit;
        loop {
            let sentinels = client.status().sentinel?;
            let heard =
                |one: &SentinelContact| one.answered_ms_ago.is_some() || one.error.is_some();
            let told = |one: &ReplicaStatus| one.lag_bytes.is_some() || !one.in_sync;
            let all = sentinels.sentinels.iter().all(heard)
                && sentinels.sentinels.len() >= sentinels.voters;
            let lag = sentinels.replicas.iter().all(told) || !sentinels.not_allowed.is_empty();
            if (all && lag) || Instant::now() > until {
                let guards_writes = guards_writes(client, limit).await;
                return Some(Self {
                    sentinels,
                    guards_writes,
                });
            }
            sleep(LOOK).await;
        }
    }

    pub(super) fn describe(&self) -> Result<(), Failure> {
        let watch = &self.sentinels;
        let majority = majority(watch);
        let votes = match &watch.primary {
            Some(primary) => format!(
                "{} of {} name {primary} as the primary of {}, epoch {}: {}",
                watch.votes,
                watch.voters,
                watch.service,
                watch.epoch.unwrap_or_default(),
                if watch.votes >= majority {
                    "a majority"
                } else {
                    "no majority"
                },
            ),
            None => format!("none names a primary for {}", watch.service),
        };
        row("sentinels", votes)?;
        for one in &watch.sentinels {
            row("", format_args!("  {}", says(one)))?;
        }
        match &watch.replicas[..] {
            [] => row("replicas", "none is known")?,
            replicas => {
                for (at, replica) in replicas.iter().enumerate() {
                    row(if at == 0 { "replicas" } else { "" }, follows(replica))?;
                }
            }
        }
        if !watch.not_allowed.is_empty() {
            let commands = watch.not_allowed.join(" and ");
            row(
                "",
                format_args!(
                    "{commands} not allowed to this user: how far they are behind is not known"
                ),
            )?;
        }
        for warning in self.warnings() {
            row("warning", warning)?;
        }
        Ok(())
    }

    /// Returns what to see to before it is needed.
    fn warnings(&self) -> Vec<String> {
        let watch = &self.sentinels;
        let mut all = Vec::new();
        let (voters, majority) = (watch.voters, majority(watch));
        if voters < 3 {
            all.push(format!(
                "{voters} sentinel{} in all: if one fails, the rest are no majority and nothing fails over; run three or more",
                if voters == 1 { "" } else { "s" }
            ));
        }
        if watch.primary.is_some() && watch.votes < majority {
            all.push(format!(
                "{} of {voters} sentinels agree, and a majority is {majority}: nothing fails over while that is so",
                watch.votes
            ));
        }
        let quorum = watch.sentinels.iter().filter_map(|one| one.quorum).max();
        if let Some(quorum) = quorum.filter(|quorum| voters >= 3 && *quorum >= voters) {
            all.push(format!(
                "the quorum is {quorum} of {voters}: if one sentinel fails, the others cannot agree that the primary is down (SENTINEL SET {} quorum {majority})",
                watch.service
            ));
        }
        all.extend(shared_host(watch));
        for one in &watch.sentinels {
            if let (true, Some(names), Some(epoch)) = (one.dissents, &one.names, one.epoch) {
                all.push(format!(
                    "{} names {names}, epoch {epoch}: programs that ask only this one go to another server (there: SENTINEL REMOVE {service}, then SENTINEL MONITOR {service} with the address of the primary, and its SENTINEL SET lines again)",
                    one.address,
                    service = watch.service
                ));
            }
            if one.thinks_down {
                all.push(format!("{} says that the primary is down", one.address));
            }
        }
        let in_sync = watch.replicas.iter().any(|one| one.in_sync);
        let never = |one: &ReplicaStatus| one.priority == Some(0);
        if !watch.replicas.is_empty() && watch.replicas.iter().all(never) {
            all.push("replica-priority is 0 on every replica: none is ever promoted (CONFIG SET replica-priority 100)".to_owned());
        } else if !in_sync && watch.primary.is_some() {
            all.push(
                "no replica is in sync: should the primary fail, nothing can take over".to_owned(),
            );
        }
        if self.guards_writes == Some(false) {
            let in_sync = watch.replicas.iter().filter(|one| one.in_sync).count();
            let advice = match in_sync {
                // With fewer, the loss of one replica would end all writes.
                0 | 1 => "with two replicas in sync, min-replicas-to-write 1 would prevent it",
                _ => {
                    "CONFIG SET min-replicas-to-write 1, min-replicas-max-lag 10; writes then fail while no replica is in sync"
                }
            };
            all.push(format!(
                "min-replicas-to-write is 0: a primary that is cut off goes on acknowledging writes, which the failover then throws away ({advice})"
            ));
        }
        all
    }
}

fn majority(watch: &SentinelStatus) -> usize {
    watch.voters / 2 + 1
}

/// A host whose end ends the majority of the sentinels as well.
fn shared_host(watch: &SentinelStatus) -> Option<String> {
    let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &watch.sentinels {
        *hosts.entry(host(&one.address)).or_default() += 1;
    }
    let all = watch.sentinels.len();
    let (name, on_it) = hosts.into_iter().max_by_key(|(_, n)| *n)?;
    // With two there is a warning already.
    if all < 3 || all - on_it >= majority(watch) {
        return None;
    }
    let primary = watch
        .primary
        .as_deref()
        .is_some_and(|primary| host(primary) == name);
    let too = if primary {
        ", and so is the primary"
    } else {
        ""
    };
    Some(format!(
        "{on_it} of {all} sentinels are on {name}{too}: if that host fails, no majority is left and nothing fails over"
    ))
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn says(one: &SentinelContact) -> String {
    let address = &one.address;
    if let Some(error) = &one.error {
        return format!("{address}: {error}");
    }
    match (&one.names, one.epoch) {
        (Some(names), Some(epoch)) => {
            let quorum = one
                .quorum
                .map_or(String::new(), |quorum| format!(", quorum {quorum}"));
            format!("{address} names {names}, epoch {epoch}{quorum}")
        }
        _ => format!("{address}: no answer yet"),
    }
}

fn follows(one: &ReplicaStatus) -> String {
    let state = match (one.in_sync, one.lag_bytes) {
        (true, Some(lag)) => format!("in sync, {} behind", bytes(lag)),
        (true, None) => "in sync by the sentinels' word".to_owned(),
        (false, _) => "away, or not in sync".to_owned(),
    };
    let priority = one
        .priority
        .map_or(String::new(), |priority| format!(", priority {priority}"));
    format!("{} {state}{priority}", one.address)
}

/// INFO has a line of it only where it is set.
async fn guards_writes(client: &Client, limit: Duration) -> Option<bool> {
    let mut connection = client.available()?.clone();
    let mut info = redis::cmd("INFO");
    let asked = info
        .arg("replication")
        .query_async::<String>(&mut connection);
    let text = tokio::time::timeout(limit, asked).await.ok()?.ok()?;
    text.contains("role:master")
        .then(|| text.contains("min_slaves_good_slaves:"))
}
