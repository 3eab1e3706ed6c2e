//! The names of a cluster: the nodes of its URL, and who a node has to be.

use std::fmt;

use steadfast_core::node::{Endpoint, NodeId};
use url::Url;

use crate::error::ConfigError;
use crate::seeds::Hosts;

/// The form of the nodes of a URL: `redis-cluster://host[:6379][,host…]`.
pub(crate) const NODES: Hosts = Hosts {
    ending: "-cluster",
    what: "node",
    port: 6379,
    most: MOST_SEEDS,
};

/// The most nodes that a URL may name. The others are learnt from them.
const MOST_SEEDS: usize = 64;

/// The nodes of a cluster to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterTarget {
    /// From 1 to 64.
    pub(crate) seeds: Vec<Endpoint>,
}

/// Writes `cluster at a:6379, b:6379`.
impl fmt::Display for ClusterTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cluster at ")?;
        for (at, seed) in self.seeds.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{seed}")?;
        }
        Ok(())
    }
}

impl ClusterTarget {
    /// Reads what the URL says of the nodes.
    ///
    /// # Errors
    /// A host cannot be read.
    pub(crate) fn read(url: &Url, others: &[&str]) -> Result<Self, ConfigError> {
        let seeds = NODES.read(url, others)?;
        Ok(Self { seeds })
    }
}

/// The identity that a server must prove to be put into service as a node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The ids of which the server must answer one to `CLUSTER MYID`.
    pub(crate) ids: Vec<NodeId>,
    /// Whether the node is read from as a replica: it need not be a primary, and is told READONLY.
    pub(crate) as_replica: bool,
    /// Whether it must say that its cluster serves.
    pub(crate) must_serve: bool,
}

impl Membership {
    /// Whom it is to be, for people.
    pub(crate) fn wanted(&self) -> String {
        match &self.ids[..] {
            [id] => id.to_string(),
            ids => format!("one of {} members", ids.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::target::Target;

    #[test]
    fn t1_a_url_names_some_nodes_of_the_cluster() {
        let url = "valkey-cluster://ada:p%40ss@a.example:7000,b.example,[::1]:7001?protocol=resp3";
        let target = Target::parse(url).expect("a good url");
        let said = "cluster at a.example:7000, b.example:6379, [::1]:7001";
        assert_eq!(target.address.to_string(), said);
        let credentials = target.credentials.expect("it names a user");
        assert_eq!(
            (credentials.user(), credentials.password()),
            ("ada", "p@ss")
        );
        for url in ["redis-cluster://h/", "redis-cluster://h/0?db=0"] {
            assert_eq!(Target::parse(url).expect(url).db, 0, "{url}");
        }
    }

    #[test]
    fn t1_a_bad_url_of_a_cluster_says_what_is_wrong() {
        for (url, want) in [
            ("redis-cluster://h/1", "a cluster has database 0 only"),
            ("redis-cluster://h?db=3", "a cluster has database 0 only"),
            ("redis-cluster://a,,b", "has no host"),
            ("redis-cluster://a,b:x", "host 2 is no address of a node"),
            ("redis-cluster://a,password=s3cret", "host 2 is no address"),
            ("redis-cluster://ada:99/s3cret@h/0", "percent-encode"),
            ("redis-cluster://h?wat=1", "unknown parameter `wat`"),
            ("redis-cluster://h?sentinel_user=x", "only where sentinels"),
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains(want), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
