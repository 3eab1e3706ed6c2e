use redis::Value;

use super::*;
use crate::node::{AnnouncedHost, Endpoint, NodeId};
use crate::resp::Decoder;
use crate::slot::Slot;

/// A reply as it came over the wire, with `|` for each line end.
fn reply(wire: &str) -> Value {
    let bytes = wire.replace('|', "\r\n").into_bytes();
    let decoded = Decoder::default().decode(&bytes).expect("it is RESP");
    assert_eq!(decoded.consumed, bytes.len(), "{wire}");
    decoded.value.expect("it is whole")
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

const A: &str = "1e5101f878e9fae84d9b50d8c725055bedeea69a";
const B: &str = "65c2a1f5c30903ecceffe73020fad99f8053ac81";
const C: &str = "a07f05dab530f705bafbdee7cd659cbcafc557fa";
const OF_A: &str = "34188c3a704aed10e2bf965158c0afa968ee667f";

fn id(text: &str) -> NodeId {
    NodeId::new(text).expect("an id")
}

fn ranges(node: &ReportedNode) -> Vec<String> {
    node.slots.iter().map(ToString::to_string).collect()
}

fn node<'a>(report: &'a ClusterReport, wanted: &str) -> &'a ReportedNode {
    let found = |node: &&ReportedNode| node.id.as_ref().is_some_and(|id| id.as_str() == wanted);
    report.nodes.iter().find(found).expect(wanted)
}

/// Three nodes of a Redis 7.0.15 cluster of six, as it answered.
const NODES: &str = "\
34188c3a704aed10e2bf965158c0afa968ee667f 127.0.0.1:42313@42333 slave 1e5101f878e9fae84d9b50d8c725055bedeea69a 0 1795945773774 1 connected
65c2a1f5c30903ecceffe73020fad99f8053ac81 127.0.0.1:42311@42331,one.example master - 0 1795945773674 2 connected 5461-10922
a07f05dab530f705bafbdee7cd659cbcafc557fa 127.0.0.1:42312@42332 master,fail? - 0 1795945773674 3 connected 10923-16383
1e5101f878e9fae84d9b50d8c725055bedeea69a 127.0.0.1:42310@42330 myself,master - 0 1795945773000 1 connected 0-93 95 97-5460 [93->-65c2a1f5c30903ecceffe73020fad99f8053ac81] [94-<-a07f05dab530f705bafbdee7cd659cbcafc557fa]
";

#[test]
fn cluster_nodes_tells_epochs_slots_and_migrations() {
    let report = ClusterReport::read_nodes(&bulk(NODES)).expect("it can be read");
    assert!(report.faults.is_empty());
    assert_eq!(report.nodes.len(), 4);
    let a = node(&report, A);
    assert!(a.is_myself && !a.is_failing);
    assert_eq!((a.epoch, a.port), (Some(1), 42310));
    assert_eq!(ranges(a), ["0-93", "95", "97-5460"]);
    let slot = |number| Slot::new(number).expect("a slot");
    let migrations = [
        Migration {
            slot: slot(93),
            kind: MigrationKind::Migrating,
            other: id(B),
        },
        Migration {
            slot: slot(94),
            kind: MigrationKind::Importing,
            other: id(C),
        },
    ];
    assert_eq!(a.migrations, migrations);
    assert_eq!(node(&report, B).hostname.as_deref(), Some("one.example"));
    assert!(node(&report, C).is_failing);
    let replica = node(&report, OF_A);
    assert_eq!(replica.role, ReportedRole::Replica(Some(id(A))));
    assert_eq!(replica.epoch, Some(1));
}

#[test]
fn cluster_nodes_of_a_node_that_does_not_know_its_address_or_others() {
    let text = "\
1e5101f878e9fae84d9b50d8c725055bedeea69a :42310@42330 myself,master - 0 0 1 connected 0
65c2a1f5c30903ecceffe73020fad99f8053ac81 :0@0 master,noaddr - 0 0 2 disconnected 1
a07f05dab530f705bafbdee7cd659cbcafc557fa 10.0.0.1:7000@17000 handshake - 0 0 0 connected
34188c3a704aed10e2bf965158c0afa968ee667f ::1:7001 slave - 0 0 0 connected
";
    let report = ClusterReport::read_nodes(&bulk(text)).expect("it can be read");
    assert_eq!(report.nodes.len(), 3, "one is in handshake");
    assert_eq!(node(&report, A).host, AnnouncedHost::AsAsked);
    let lost = node(&report, B);
    assert!(lost.host == AnnouncedHost::Unknown && lost.is_failing);
    let old = node(&report, OF_A);
    assert_eq!(old.host, AnnouncedHost::Named("::1".into()));
    assert_eq!(old.role, ReportedRole::Replica(None));
}

/// CLUSTER SHARDS of the same cluster, one shard of three, in RESP2 and RESP3.
const SHARDS_2: &str = "*1|*4|$5|slots|*2|:5461|:10922|$5|nodes|*2|*16|$2|id|$40|65c2a1f5c30903ecceffe73020fad99f8053ac81|$4|port|:42311|$2|ip|$9|127.0.0.1|$8|endpoint|$9|127.0.0.1|$8|hostname|$11|one.example|$4|role|$6|master|$18|replication-offset|:28|$6|health|$6|online|*14|$2|id|$40|37f421e66edbad211471839a2633371d4582a4c7|$4|port|:42314|$2|ip|$9|127.0.0.1|$8|endpoint|$9|127.0.0.1|$4|role|$7|replica|$18|replication-offset|:28|$6|health|$6|online|";
const SHARDS_3: &str = "*1|%2|$5|slots|*2|:5461|:10922|$5|nodes|*2|%8|$2|id|$40|65c2a1f5c30903ecceffe73020fad99f8053ac81|$4|port|:42311|$2|ip|$9|127.0.0.1|$8|endpoint|$9|127.0.0.1|$8|hostname|$11|one.example|$4|role|$6|master|$18|replication-offset|:28|$6|health|$6|online|%7|$2|id|$40|37f421e66edbad211471839a2633371d4582a4c7|$4|port|:42314|$2|ip|$9|127.0.0.1|$8|endpoint|$9|127.0.0.1|$4|role|$7|replica|$18|replication-offset|:28|$6|health|$6|online|";
const SLOTS_2: &str = "*2|*4|:0|:5460|*4|$9|127.0.0.1|:42310|$40|1e5101f878e9fae84d9b50d8c725055bedeea69a|*0|*4|$9|127.0.0.1|:42313|$40|34188c3a704aed10e2bf965158c0afa968ee667f|*0|*3|:5461|:10922|*4|$-1|:42311|$40|65c2a1f5c30903ecceffe73020fad99f8053ac81|*2|$8|hostname|$11|one.example|";

#[test]
fn cluster_shards_is_read_in_both_protocols() {
    for wire in [SHARDS_2, SHARDS_3] {
        let report = ClusterReport::read_shards(&reply(wire)).expect("it can be read");
        assert!(report.faults.is_empty(), "{:?}", report.faults);
        let [primary, replica] = report.nodes.as_slice() else {
            panic!("{} nodes", report.nodes.len())
        };
        assert_eq!(ranges(primary), ["5461-10922"]);
        assert_eq!(primary.hostname.as_deref(), Some("one.example"));
        assert_eq!(primary.epoch, None, "shards tell none");
        assert_eq!(replica.role, ReportedRole::Replica(None));
        assert!(replica.slots.is_empty());
    }
}

#[test]
fn t25_cluster_slots_with_a_host_left_out_means_the_one_that_was_asked() {
    let report = ClusterReport::read_slots(&reply(SLOTS_2)).expect("it can be read");
    let b = node(&report, B);
    assert_eq!(b.host, AnnouncedHost::AsAsked);
    assert_eq!(b.hostname.as_deref(), Some("one.example"));
    assert_eq!(ranges(b), ["5461-10922"]);
    let replica = node(&report, OF_A);
    assert_eq!(replica.role, ReportedRole::Replica(Some(id(A))));
    // Servers before 4.0 tell no ids.
    let old = ClusterReport::read_slots(&reply("*1|*3|:0|:9|*2|$1|a|:1|")).expect("it can be read");
    assert_eq!((old.nodes[0].id.as_ref(), old.nodes[0].port), (None, 1));
}

#[test]
fn t3_one_bad_entry_does_not_refuse_the_others_and_is_not_kept_silent() {
    let wire = SLOTS_2
        .replace(":0|:5460", ":5|:4")
        .replace("*2|*4", "*3|:1|*4");
    let report = ClusterReport::read_slots(&reply(&wire)).expect("it can be read");
    assert_eq!(report.nodes.len(), 1);
    assert_eq!(report.faults.count, 2);
    let first = report.faults.first.expect("a mistake").to_string();
    let said = "the reply to CLUSTER SLOTS cannot be read: entry 0 is not an array";
    assert_eq!(first, said);
    let text = NODES.replace(" 2 connected", " x connected");
    let report = ClusterReport::read_nodes(&bulk(&text)).expect("it can be read");
    assert_eq!((report.nodes.len(), report.faults.count), (3, 1));
    let said =
        "the reply to CLUSTER NODES cannot be read: line 1, epoch is not a number of its range";
    assert_eq!(report.faults.first.expect("a mistake").to_string(), said);
}

#[test]
fn t31_more_nodes_than_the_bound_are_refused() {
    let line = |n: usize| format!("{n:040} 10.0.0.1:1@2 master - 0 0 1 connected\n");
    let text = |nodes| (0..nodes).map(line).collect::<String>();
    assert!(ClusterReport::read_nodes(&bulk(&text(1_024))).is_ok());
    let error = ClusterReport::read_nodes(&bulk(&text(1_025))).expect_err("too many");
    assert_eq!(
        error.to_string(),
        "the reply to CLUSTER NODES cannot be read: the nodes are more than 1024"
    );
}

#[test]
fn cluster_info_tells_whether_a_node_serves() {
    let text = "cluster_state:fail\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:5\r\ncluster_my_epoch:1\r\n";
    let info = ClusterInfo::read(text).expect("it can be read");
    assert!(!info.is_ok);
    assert_eq!((info.current_epoch, info.my_epoch), (5, 1));
    let error = ClusterInfo::read("cluster_state:ok").expect_err("fields are missing");
    assert_eq!(
        error.to_string(),
        "the reply to CLUSTER INFO cannot be read: cluster_current_epoch is missing"
    );
}

#[test]
fn role_tells_of_primaries_replicas_and_sentinels() {
    let read = |wire| RoleReport::read(&reply(wire)).expect("it can be read");
    let RoleReport::Primary {
        offset, replicas, ..
    } = read("*3|$6|master|:4341|*1|*3|$9|127.0.0.1|$5|42361|$4|3951|")
    else {
        panic!("it is a primary")
    };
    assert_eq!(offset, 4341);
    assert_eq!(replicas[0].endpoint, Endpoint::new("127.0.0.1", 42361));
    assert_eq!(replicas[0].offset, 3951);
    let replica = |link, offset| RoleReport::Replica {
        primary: Endpoint::new("127.0.0.1", 42360),
        link,
        offset,
    };
    assert_eq!(
        read("*5|$5|slave|$9|127.0.0.1|:42360|$9|connected|:4341|"),
        replica(ReplicaLink::Connected, Some(4341))
    );
    assert_eq!(
        read("*5|$5|slave|$9|127.0.0.1|:42360|$7|connect|:-1|"),
        replica(ReplicaLink::Interrupted, None)
    );
    assert_eq!(
        read("*2|$8|sentinel|*1|$4|main|"),
        RoleReport::Sentinel { primaries: 1 }
    );
}

#[test]
fn info_tells_which_history_a_server_has() {
    let text = "# Replication\r\nrole:master\r\nconnected_slaves:1\r\nslave0:ip=127.0.0.1,port=42361,state=online,offset=38900,lag=1\r\nslave1:ip=,port=1,state=online,offset=1,lag=1\r\nmaster_replid:2104b84de72c0b5c0e8ac46649704d2dd07344b1\r\nmaster_replid2:4695f4b4a115fd30cb2d250d83547dcd540cc94e\r\nmaster_repl_offset:38922\r\nsecond_repl_offset:36950\r\n";
    let info = InfoReplication::read(text).expect("it can be read");
    assert!(info.is_primary && info.offset == 38_922);
    let shared = info.shared.expect("it was promoted");
    assert_eq!(&*shared.history, "4695f4b4a115fd30cb2d250d83547dcd540cc94e");
    assert_eq!(shared.until, 36_950);
    assert_eq!((info.replicas.len(), info.faults.count), (1, 1));
    let first = text
        .replace("4695f4b4a115fd30cb2d250d83547dcd540cc94e", &"0".repeat(40))
        .replace("36950", "-1");
    let info = InfoReplication::read(&first).expect("it can be read");
    assert_eq!(info.shared, None);
    let replica = text.replace("role:master", "role:slave\r\nmaster_link_status:up");
    let info = InfoReplication::read(&replica).expect("it can be read");
    assert_eq!((info.is_primary, info.link_up), (false, Some(true)));
    let server = "redis_version:7.0.15\r\nredis_mode:cluster\r\nrun_id:0a65a9f3308cbe560b68e4ecd17c7d073f4814d6\r\n";
    let info = InfoServer::read(server).expect("it can be read");
    assert_eq!(info.mode, Some(ServerMode::Cluster));
    assert!(InfoServer::read("redis_mode:cluster").is_err());
}

/// SENTINEL MASTER of 7.0.15 in the midst of a failover: the old port with the new epoch.
const MASTER: &str = "*24|$4|name|$4|main|$2|ip|$9|127.0.0.1|$4|port|$5|42360|$5|runid|$40|5cee310a0194304ec2a5e40605d514ee6340df5b|$5|flags|$42|master,failover_in_progress,force_failover|$12|config-epoch|$1|1|$10|num-slaves|$1|1|$19|num-other-sentinels|$1|2|$6|quorum|$1|2|$16|failover-timeout|$4|3000|$14|parallel-syncs|$1|1|$1|x|$1|y|";

#[test]
fn t3_the_epoch_is_read_from_sentinel_master_and_the_address_from_the_other_answer() {
    let primary = MonitoredPrimary::read(&reply(MASTER)).expect("it can be read");
    assert_eq!((primary.config_epoch, primary.quorum), (1, 2));
    assert_eq!(primary.other_sentinels, 2);
    assert!(primary.failing_over && !primary.objectively_down);
    let address = primary_address(&reply("*2|$9|127.0.0.1|$5|42361|")).expect("it can be read");
    assert_eq!(address, Some(Endpoint::new("127.0.0.1", 42361)));
    for nobody in ["*-1|", "_|"] {
        assert_eq!(primary_address(&reply(nobody)), Ok(None));
    }
    let error = MonitoredPrimary::read(&reply("-ERR No such master with that name|"));
    assert_eq!(
        error.expect_err("an error").to_string(),
        "the reply to SENTINEL MASTER cannot be read: the reply is an error of the server"
    );
}

#[test]
fn sentinels_tell_of_other_sentinels_and_of_replicas() {
    let sentinels = "*2|%4|$4|name|$1|x|$2|ip|$9|127.0.0.1|$4|port|$5|42371|$5|runid|$40|d9657a8f2245a31408618a04946df9554b05988a|%1|$2|ip|$1|a|";
    let (peers, faults) = PeerSentinel::read_all(&reply(sentinels)).expect("it can be read");
    assert_eq!(peers[0].endpoint, Endpoint::new("127.0.0.1", 42371));
    assert_eq!((peers.len(), faults.count), (1, 1));
    let one = sentinels
        .trim_start_matches("*2|")
        .split_once("%1|")
        .expect("two")
        .0;
    let many = Value::Array(vec![reply(one); 40]);
    let (peers, _) = PeerSentinel::read_all(&many).expect("it can be read");
    assert_eq!(peers.len(), 32);
    let replicas = "*1|*14|$2|ip|$9|127.0.0.1|$4|port|$5|42361|$5|runid|$0||$5|flags|$5|slave|$18|master-link-status|$2|ok|$17|slave-repl-offset|$4|3547|$14|slave-priority|$1|0|";
    let (replicas, _) = SentinelReplica::read_all(&reply(replicas)).expect("it can be read");
    assert!(replicas[0].in_sync && replicas[0].run_id.is_none());
    assert_eq!((replicas[0].offset, replicas[0].priority), (3_547, Some(0)));
}

#[test]
fn t17_a_switch_is_read_from_its_message() {
    let message = bulk("main 127.0.0.1 42360 ::1 42361");
    let switch = SwitchMaster::read(&message).expect("it can be read");
    assert_eq!(&*switch.name, "main");
    assert_eq!(switch.to, Endpoint::new("::1", 42361));
    for bad in [
        "",
        "main a 1 b",
        "main a 1 b 0",
        "main a 1 b 2 c",
        "main a x b 2",
    ] {
        assert!(SwitchMaster::read(&bulk(bad)).is_err(), "{bad}");
    }
}
