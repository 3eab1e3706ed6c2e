//! Any reply, well formed or not, is read to a report within the bounds or to an error in words.
//! None panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use redis::Value;
use steadfast_core::node::{MAX_NODES, MAX_SENTINELS};
use steadfast_core::redirect::Routing;
use steadfast_core::report::{
    ClusterInfo, ClusterReport, InfoReplication, InfoServer, MonitoredPrimary, PeerSentinel,
    ReportError, RoleReport, SentinelReplica, SwitchMaster, primary_address,
};
use steadfast_core::resp::{Decoder, Limits};
use steadfast_core::slot::{SLOTS, Slot, hash_tag};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    said(&InfoReplication::read(&text));
    said(&InfoServer::read(&text));
    said(&ClusterInfo::read(&text));
    if let Some((code, detail)) = text.split_once(' ')
        && let Some(routing) = Routing::of(code, detail)
    {
        assert!(!(routing.follows() && routing.is_failure_of_server()));
    }
    assert!(Slot::of_key(data).number() < SLOTS);
    assert!(hash_tag(data).len() <= data.len());

    let as_text = Value::BulkString(data.to_vec());
    read_all(&as_text);
    let limits = Limits {
        depth: 32,
        elements: 16_384,
        bulk_bytes: 1 << 20,
        line_bytes: 4_096,
        total_bytes: 4 << 20,
    };
    if let Ok(decoded) = Decoder::new(limits).decode(data)
        && let Some(value) = decoded.value
    {
        read_all(&value);
    }
});

fn read_all(value: &Value) {
    for report in [
        ClusterReport::read_nodes(value),
        ClusterReport::read_shards(value),
        ClusterReport::read_slots(value),
    ] {
        said(&report);
        if let Ok(report) = report {
            assert!(report.nodes.len() <= MAX_NODES);
            let ranges = report.nodes.iter().map(|node| node.slots.len());
            assert!(ranges.sum::<usize>() <= usize::from(SLOTS));
        }
    }
    let role = RoleReport::read(value);
    said(&role);
    if let Ok(RoleReport::Primary { replicas, .. }) = role {
        assert!(replicas.len() <= MAX_NODES);
    }
    said(&MonitoredPrimary::read(value));
    said(&primary_address(value));
    said(&SwitchMaster::read(value));
    let sentinels = PeerSentinel::read_all(value);
    said(&sentinels);
    if let Ok((all, _)) = sentinels {
        assert!(all.len() <= MAX_SENTINELS);
    }
    said(&SentinelReplica::read_all(value));
}

/// An error says in words what is wrong and where, and is short.
fn said<T>(read: &Result<T, ReportError>) {
    if let Err(error) = read {
        let words = error.to_string();
        assert!(words.starts_with("the reply to ") && words.len() < 200);
    }
}
