//! The shards of a cluster: whose slots nobody serves, and what that means for the cache.

use metrics::{counter, gauge};
use serde::Serialize;
use steadfast::{ClusterStatus, NodeStatus};

use super::Expected;
use crate::health::{Check, Status};

/// The slots of a cluster, and who serves them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Shards {
    /// The primaries that own slots.
    primaries: usize,
    /// Those of them that do not serve.
    away: Vec<String>,
    /// Those of them that no replica follows.
    alone: Vec<String>,
    /// The slot in which all of the cache lies; absent if the cache has none.
    cache_slot: Option<u16>,
    /// Whether nobody serves that slot; absent if there is none, and if it is not known.
    cache_away: Option<bool>,
    /// The slots that nobody is known to own, such as `0-5460`; empty if all are owned.
    uncovered: String,
    uncovered_slots: usize,
    epoch: u64,
    /// How long ago a node last told who owns what; absent if none ever did.
    heard_ms_ago: Option<f64>,
    /// Why no node told it when they were asked last.
    error: Option<String>,
    discoveries: u64,
    redirects: u64,
    /// Absent where nothing is read from replicas.
    from_replicas: Option<FromReplicas>,
}

/// Reads that are to be served by replicas.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct FromReplicas {
    /// How old the data of a replica may be which is read from.
    max_lag_ms: u64,
    /// Reads that replicas served.
    served: u64,
    /// Reads that primaries served instead.
    by_primaries: u64,
    replicas: usize,
    /// The replicas whose data are known to be young enough.
    fit: usize,
    /// The greatest age of the data of a replica; absent while none is measured.
    lag_ms: Option<f64>,
}

/// The age of a cluster's view that is trouble: nodes are asked twice as often, if not more.
const VIEW_OLD_MS: f64 = 60_000.0;

impl Shards {
    pub(super) fn of(cluster: &ClusterStatus, expected: &Expected) -> Self {
        let address = |node: &NodeStatus| {
            let address = node.address.as_deref();
            address.unwrap_or("a node without an address").to_owned()
        };
        let away = cluster.owners().filter_map(|node| {
            let why = node.why_not()?;
            Some(format!("{} (slots {}): {why}", address(node), node.slots))
        });
        let alone = cluster
            .owners()
            .filter(|node| cluster.replicas_of(node).next().is_none());
        let cache_away = |slot| {
            let owner = cluster.owners().find(|node| node.owns(slot));
            let serves = owner.is_some_and(NodeStatus::serves);
            // Whoever answers nobody's question may refuse all calls as well.
            (!serves || cluster.error.is_none()).then_some(!serves)
        };
        Self {
            primaries: cluster.owners().count(),
            away: away.collect(),
            alone: alone.map(address).collect(),
            cache_slot: expected.cache_slot,
            cache_away: expected.cache_slot.and_then(cache_away),
            uncovered: cluster.uncovered.clone(),
            uncovered_slots: cluster.uncovered_slots,
            epoch: cluster.epoch,
            heard_ms_ago: cluster.heard_ms_ago,
            error: cluster.error.clone(),
            discoveries: cluster.discoveries,
            redirects: cluster.redirects,
            from_replicas: FromReplicas::of(cluster, expected),
        }
    }

    /// One shard that is away costs its own keys only, unless all nodes refuse all keys for it:
    /// then none of them tells who owns what (`cluster-require-full-coverage`).
    pub(super) fn check(&self) -> Check {
        let Some(heard_ms_ago) = self.heard_ms_ago else {
            let why = self.error.as_deref().unwrap_or("none was asked");
            let message = format!("no node has told who owns which slot: {why}");
            return Check::new(Status::Degraded, message);
        };
        let mut wrong = self.parts_away();
        if !wrong.is_empty() {
            match self.serving() {
                0 => wrong.push("Redis serves no key".to_owned()),
                _ if self.error.is_some() => {}
                _ => wrong.push("all other keys are served".to_owned()),
            }
            wrong.extend(self.cache_in_words());
        }
        let ago = heard_ms_ago / 1e3;
        match &self.error {
            Some(error) => wrong.push(format!(
                "no node tells who owns which slot, last heard {ago:.0} s ago: {error}"
            )),
            None if heard_ms_ago > VIEW_OLD_MS => wrong.push(format!(
                "no node has told who owns which slot for {ago:.0} s"
            )),
            None => {}
        }
        let status = match wrong.is_empty() {
            true => Status::Healthy,
            false => Status::Degraded,
        };
        let mut said = match status {
            Status::Healthy => format!("{} shards own all slots and serve", self.primaries),
            _ => wrong.join("; "),
        };
        if !self.alone.is_empty() {
            said.push_str(&format!("; without a replica: {}", self.alone.join(", ")));
        }
        if let Some(reads) = &self.from_replicas {
            said.push_str(&format!("; {}", reads.in_words()));
        }
        Check::new(status, said)
    }

    /// Returns what is away, in words, one for each kind.
    fn parts_away(&self) -> Vec<String> {
        let mut parts = Vec::new();
        if self.uncovered_slots > 0 {
            parts.push(format!("nobody owns the slots {}", self.uncovered));
        }
        if !self.away.is_empty() {
            parts.push(format!(
                "{} of {} shards do not serve: {}",
                self.away.len(),
                self.primaries,
                self.away.join("; ")
            ));
        }
        parts
    }

    pub(super) fn cache_in_words(&self) -> Option<String> {
        let slot = self.cache_slot?;
        Some(match self.cache_away? {
            true => format!("the cache's shard (slot {slot}) is away"),
            false => format!("the cache (slot {slot}) is not concerned"),
        })
    }

    /// The shards that serve.
    fn serving(&self) -> usize {
        self.primaries.saturating_sub(self.away.len())
    }

    pub(super) fn set_gauges(&self) {
        let (serving, away) = (self.serving(), self.away.len());
        for (state, count) in [("serving", serving), ("away", away)] {
            gauge!("steadfast_redis_shards", "state" => state).set(count as f64);
        }
        gauge!("steadfast_redis_shards_without_replica").set(self.alone.len() as f64);
        gauge!("steadfast_redis_uncovered_slots").set(self.uncovered_slots as f64);
        // Infinite before the first one, so that an alert on this age fires.
        let age = self.heard_ms_ago.map_or(f64::INFINITY, |ms| ms / 1e3);
        gauge!("steadfast_redis_cluster_view_age_seconds").set(age);
        counter!("steadfast_redis_discoveries_total").absolute(self.discoveries);
        counter!("steadfast_redis_redirects_total").absolute(self.redirects);
        if let Some(reads) = &self.from_replicas {
            gauge!("steadfast_redis_readable_replicas").set(reads.fit as f64);
            let lag = reads.lag_ms.map_or(f64::NAN, |ms| ms / 1e3);
            gauge!("steadfast_redis_replica_lag_seconds").set(lag);
        }
    }
}

impl FromReplicas {
    fn of(cluster: &ClusterStatus, expected: &Expected) -> Option<Self> {
        let (served, by_primaries) = (cluster.replica_reads, cluster.replica_fallbacks);
        // A program that embeds the service may ask for it call by call.
        if !expected.reads_replicas && served + by_primaries == 0 {
            return None;
        }
        let lags = || {
            let replicas = cluster
                .nodes
                .iter()
                .filter(|one| one.member && !one.primary);
            replicas.map(|one| one.lag_ms)
        };
        let young = |lag: &f64| *lag <= expected.max_lag_ms as f64;
        Some(Self {
            max_lag_ms: expected.max_lag_ms,
            served,
            by_primaries,
            replicas: lags().count(),
            fit: lags().flatten().filter(young).count(),
            lag_ms: lags().flatten().reduce(f64::max),
        })
    }

    /// That no replica is fit is no trouble: the primaries serve.
    fn in_words(&self) -> String {
        let (served, instead) = (self.served, self.by_primaries);
        if served + instead == 0 {
            return "replicas may be read from, and nothing was read yet".to_owned();
        }
        let fit = match self.fit {
            0 => "no replica is fit to be read from".to_owned(),
            fit => format!(
                "{fit} of {} replicas are fit to be read from",
                self.replicas
            ),
        };
        format!("{fit}; they served {served} reads, primaries {instead} instead")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards() -> Shards {
        Shards {
            primaries: 3,
            away: Vec::new(),
            alone: Vec::new(),
            cache_slot: Some(7),
            cache_away: Some(false),
            uncovered: String::new(),
            uncovered_slots: 0,
            epoch: 4,
            heard_ms_ago: Some(400.0),
            error: None,
            discoveries: 1,
            redirects: 0,
            from_replicas: None,
        }
    }

    #[test]
    fn s4_other_keys_are_served_only_if_some_shard_serves_and_a_node_tells_so() {
        let away = |count: usize| Shards {
            away: vec!["b:1 (slots 5-9): refused".to_owned(); count],
            ..shards()
        };
        let said = away(1).check().message;
        assert!(
            said.ends_with("all other keys are served; the cache (slot 7) is not concerned"),
            "{said}"
        );
        let all = Shards {
            cache_away: Some(true),
            ..away(3)
        };
        let said = all.check().message;
        assert!(
            said.ends_with("Redis serves no key; the cache's shard (slot 7) is away"),
            "{said}"
        );
        let nobody_tells = Shards {
            error: Some("a:1: CLUSTERDOWN".to_owned()),
            cache_away: None,
            ..away(1)
        };
        let said = nobody_tells.check().message;
        assert!(!said.contains("other keys"), "{said}");
        assert!(
            said.ends_with("last heard 0 s ago: a:1: CLUSTERDOWN"),
            "{said}"
        );
    }

    #[test]
    fn s4_a_view_that_nobody_renews_is_trouble_though_all_serve() {
        assert_eq!(shards().check().status, Status::Healthy);
        let refused = Shards {
            error: Some("a:1: NOPERM".to_owned()),
            ..shards()
        };
        let check = refused.check();
        assert_eq!(check.status, Status::Degraded);
        assert!(check.message.contains("NOPERM"), "{check:?}");
        let old = Shards {
            heard_ms_ago: Some(VIEW_OLD_MS + 5e3),
            ..shards()
        };
        let check = old.check();
        assert_eq!(check.status, Status::Degraded);
        assert!(check.message.ends_with("which slot for 65 s"), "{check:?}");
    }
    #[test]
    fn t24_health_says_what_replicas_serve_and_that_none_is_fit_is_no_trouble() {
        let reading = |served, fit| Shards {
            from_replicas: Some(FromReplicas {
                max_lag_ms: 1000,
                served,
                by_primaries: 2 * served,
                replicas: 3,
                fit,
                lag_ms: None,
            }),
            ..shards()
        };
        for (check, said) in [
            (reading(0, 0).check(), "nothing was read yet"),
            (
                reading(5, 2).check(),
                "2 of 3 replicas are fit to be read from; they served 5 reads, primaries 10 instead",
            ),
            (
                reading(5, 0).check(),
                "no replica is fit to be read from; they served 5",
            ),
        ] {
            assert_eq!(check.status, Status::Healthy);
            assert!(check.message.contains(said), "{check:?}");
        }
        assert!(!shards().check().message.contains("replica"));
    }
}
