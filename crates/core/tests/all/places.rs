//! Where commands belong in a cluster, against the tips that a real server gives with `COMMAND`.

use std::collections::BTreeMap;

use redis::Value;
use steadfast_core::command::place::{Joining, Place, ServedBy, place};
use steadfast_core::split::{DivideMset, command};

use crate::command_table::{items, split, text};
use crate::redis::Server;
use crate::samples::{LOOK, RUN};

/// Where the client does otherwise than the server advises, and why.
const DEVIATIONS: [(Place, &str, &[&str]); 9] = [
    (
        Place::Refused(ServedBy::Node),
        "what a server says of itself, its load and its settings: the answer of whichever was asked, or \
         a sum that leaves out the replicas, would pass for one of the cluster",
        &[
            "ACL DRYRUN",
            "ACL GETUSER",
            "ACL LIST",
            "ACL LOG",
            "ACL USERS",
            "CLIENT GETNAME",
            "CLIENT GETREDIR",
            "CLIENT ID",
            "CLIENT INFO",
            "CLIENT LIST",
            "CLIENT TRACKINGINFO",
            "CLUSTER COUNT-FAILURE-REPORTS",
            "CLUSTER LINKS",
            "CLUSTER MYID",
            "CONFIG GET",
            "FUNCTION STATS",
            "INFO",
            "LASTSAVE",
            "LATENCY DOCTOR",
            "LATENCY GRAPH",
            "LATENCY HISTOGRAM",
            "LATENCY HISTORY",
            "LATENCY LATEST",
            "MEMORY DOCTOR",
            "MEMORY MALLOC-STATS",
            "MEMORY STATS",
            "MODULE LIST",
            "PUBSUB CHANNELS",
            "PUBSUB NUMPAT",
            "PUBSUB NUMSUB",
            "PUBSUB SHARDCHANNELS",
            "PUBSUB SHARDNUMSUB",
            "ROLE",
            "SLOWLOG GET",
            "SLOWLOG LEN",
        ],
    ),
    (
        Place::Refused(ServedBy::Node),
        "what is done to a server: which of them, replicas included, only the caller knows",
        &[
            "ACL DELUSER",
            "ACL LOAD",
            "ACL SAVE",
            "ACL SETUSER",
            "BGREWRITEAOF",
            "BGSAVE",
            "CLIENT KILL",
            "CLIENT PAUSE",
            "CLIENT UNBLOCK",
            "CLIENT UNPAUSE",
            "CLUSTER ADDSLOTS",
            "CLUSTER ADDSLOTSRANGE",
            "CLUSTER BUMPEPOCH",
            "CLUSTER DELSLOTS",
            "CLUSTER DELSLOTSRANGE",
            "CLUSTER FAILOVER",
            "CLUSTER FLUSHSLOTS",
            "CLUSTER FORGET",
            "CLUSTER MEET",
            "CLUSTER REPLICATE",
            "CLUSTER RESET",
            "CLUSTER SAVECONFIG",
            "CLUSTER SET-CONFIG-EPOCH",
            "CLUSTER SETSLOT",
            "CONFIG RESETSTAT",
            "CONFIG REWRITE",
            "CONFIG SET",
            "DEBUG",
            "FAILOVER",
            "LATENCY RESET",
            "MEMORY PURGE",
            "MODULE LOAD",
            "MODULE LOADEX",
            "MODULE UNLOAD",
            "PFSELFTEST",
            "REPLICAOF",
            "SAVE",
            "SHUTDOWN",
            "SLAVEOF",
            "SLOWLOG RESET",
        ],
    ),
    (
        Place::Refused(ServedBy::Node),
        "a container without a subcommand that is known: it may be of either kind",
        &[
            "ACL", "CLUSTER", "CONFIG", "FUNCTION", "LATENCY", "MEMORY", "MODULE", "PUBSUB",
            "SCRIPT", "SLOWLOG",
        ],
    ),
    (
        Place::Refused(ServedBy::Session),
        "the state of a connection, or of its own writes",
        &[
            "ASKING",
            "CLIENT",
            "CLIENT NO-EVICT",
            "CLIENT SETNAME",
            "DISCARD",
            "EXEC",
            "MULTI",
            "READONLY",
            "READWRITE",
            "SELECT",
            "UNWATCH",
            "WAIT",
            "WATCH",
        ],
    ),
    (
        Place::Refused(ServedBy::Subscriber),
        "a subscription outlives its connection",
        &[
            "PSUBSCRIBE",
            "PUNSUBSCRIBE",
            "SSUBSCRIBE",
            "SUBSCRIBE",
            "SUNSUBSCRIBE",
            "UNSUBSCRIBE",
        ],
    ),
    (
        Place::Refused(ServedBy::Nothing),
        "the client sees to it itself, or a cluster has no such thing (a second database)",
        &[
            "AUTH",
            "CLIENT CACHING",
            "CLIENT REPLY",
            "CLIENT TRACKING",
            "HELLO",
            "MONITOR",
            "PSYNC",
            "QUIT",
            "REPLCONF",
            "RESET",
            "SCRIPT DEBUG",
            "SWAPDB",
            "SYNC",
        ],
    ),
    (
        Place::AnyPrimary,
        "it asks whether somebody answers; that a shard is well its status says, not an echo",
        &["PING"],
    ),
    (
        Place::AllPrimaries(Joining::FirstPresent),
        "one key is asked for, not one of each server; the tip does not say how to join",
        &["RANDOMKEY"],
    ),
    (
        Place::AllPrimaries(Joining::AllSucceed),
        "replicas refuse it, or get what their primary has",
        &["SCRIPT FLUSH", "SCRIPT LOAD"],
    ),
];

/// Decided by an argument, where the server knows no key: a channel keeps its order, and only the
/// owner of a slot has its keys.
const BY_ARGUMENT: [(&str, &str); 3] = [
    ("PUBLISH", "PUBLISH a text"),
    ("CLUSTER COUNTKEYSINSLOT", "CLUSTER COUNTKEYSINSLOT 15495"),
    ("CLUSTER GETKEYSINSLOT", "CLUSTER GETKEYSINSLOT 15495 1"),
];

/// The tips `multi_shard`: which of them are divided.
const DIVIDED: [(&str, Option<DivideMset>); 7] = [
    ("DEL", Some(DivideMset::No)),
    ("EXISTS", Some(DivideMset::No)),
    ("MGET", Some(DivideMset::No)),
    // On request only: in parts it is not atomic.
    ("MSET", Some(DivideMset::Yes)),
    // Never: its answer says that all keys were set, or none.
    ("MSETNX", None),
    ("TOUCH", Some(DivideMset::No)),
    ("UNLINK", Some(DivideMset::No)),
];

struct Advice {
    name: String,
    has_keys: bool,
    request: Option<String>,
    response: Option<String>,
}

fn advised(entry: &Value, all: &mut Vec<Advice>) {
    let entry = items(entry);
    let flags: Vec<String> = items(&entry[2]).iter().map(text).collect();
    let tips: Vec<String> = items(&entry[7]).iter().map(text).collect();
    let tip = |of: &str| {
        tips.iter()
            .find_map(|tip| Some(tip.strip_prefix(of)?.to_owned()))
    };
    all.push(Advice {
        name: text(&entry[0]).to_uppercase().replace('|', " "),
        has_keys: entry[3] != Value::Int(0) || flags.iter().any(|flag| flag == "movablekeys"),
        request: tip("request_policy:"),
        response: tip("response_policy:"),
    });
    items(&entry[9]).iter().for_each(|sub| advised(sub, all));
}

fn advice() -> Vec<Advice> {
    let server = Server::start();
    let mut all = Vec::new();
    items(&server.connect().words("COMMAND"))
        .iter()
        .for_each(|entry| advised(entry, &mut all));
    assert!(all.len() > 350);
    all
}

fn placed(words: &str) -> Place {
    let args = split(words);
    place(args.iter().map(Vec::as_slice))
}

/// The place that the tips give a command without keys.
fn by_tips(advice: &Advice) -> Place {
    let Some(request) = &advice.request else {
        return Place::AnyPrimary;
    };
    if request == "special" {
        return Place::Refused(ServedBy::Scan);
    }
    assert!(
        request == "all_shards" || request == "all_nodes",
        "{request}"
    );
    Place::AllPrimaries(match advice.response.as_deref() {
        None => Joining::Concatenation,
        Some("agg_sum") => Joining::Sum,
        Some("agg_logical_and") => Joining::And,
        Some("all_succeeded") => Joining::AllSucceed,
        Some("one_succeeded") => Joining::OneSucceeds,
        // No place of ours: it has to be among the deviations.
        Some(_) => return Place::Slots(slot("a"), slot("b")),
    })
}

fn slot(key: &str) -> steadfast_core::slot::Slot {
    steadfast_core::slot::Slot::of_key(key.as_bytes())
}

#[test]
fn t12_each_command_of_the_server_belongs_where_its_tips_say_but_for_those_listed() {
    let mut deviating = BTreeMap::new();
    for (place, why, names) in DEVIATIONS {
        for name in names {
            let twice = deviating.insert(*name, (place, why)).is_some();
            assert!(!twice, "{name} is listed twice");
        }
    }
    for advice in advice() {
        let name = advice.name.as_str();
        let deviates = deviating.remove(name);
        if let Some((_, example)) = BY_ARGUMENT.iter().find(|(of, _)| *of == name) {
            assert_eq!(placed(example), Place::Slot(slot("a")), "{name}");
        } else if let Some((place, why)) = deviates {
            assert_eq!(placed(name), place, "{name}: {why}");
            let as_advised = !advice.has_keys && place == by_tips(&advice);
            // Where primaries stand for all nodes.
            let narrower = advice.request.as_deref() == Some("all_nodes");
            assert!(!as_advised || narrower, "{name} does not deviate");
        } else if !advice.has_keys {
            assert_eq!(placed(name), by_tips(&advice), "{name}");
            assert_ne!(advice.request.as_deref(), Some("all_nodes"), "{name}");
        }
    }
    assert!(deviating.is_empty(), "unknown to the server: {deviating:?}");
}

#[test]
fn t11_commands_of_many_keys_go_by_their_slots_and_are_divided_where_the_tips_say() {
    for advice in advice() {
        let name = advice.name.as_str();
        if !advice.has_keys
            || placed(name) == Place::Refused(ServedBy::Session)
            || placed(name) == Place::Refused(ServedBy::Subscriber)
        {
            continue;
        }
        let mut samples = RUN.iter().chain(LOOK).map(|sample| sample.command);
        let sample = samples.find(|sample| format!("{sample} ").starts_with(&format!("{name} ")));
        let sample = sample.map_or_else(|| format!("{name} k k k k"), ToOwned::to_owned);
        let found = placed(&sample);
        // A script or a MIGRATE without keys may run anywhere.
        let keyless = ["EVAL", "FCALL", "MIGRATE"]
            .iter()
            .any(|of| name.starts_with(of));
        assert!(
            matches!(found, Place::Slot(_) | Place::Slots(..)) || keyless,
            "{sample}: {found:?}"
        );
        let words = format!("{name} a b c d");
        let args = split(&words);
        let mut cmd = redis::Cmd::new();
        args.iter().for_each(|arg| {
            cmd.arg(arg.as_slice());
        });
        let divided = |mset| matches!(command(&cmd, mset), Ok(Some(_)));
        let expected = DIVIDED.iter().find(|(of, _)| *of == name);
        let is_multi = advice.request.as_deref() == Some("multi_shard");
        assert_eq!(is_multi, expected.is_some(), "{name}");
        let on = expected.and_then(|(_, on)| *on);
        assert_eq!(
            divided(DivideMset::No),
            on == Some(DivideMset::No),
            "{name}"
        );
        assert_eq!(divided(DivideMset::Yes), on.is_some(), "{name}");
    }
}

#[test]
fn t12_a_channel_keeps_its_order_and_what_nobody_knows_goes_by_its_first_argument() {
    assert_eq!(placed("SPUBLISH a text"), placed("PUBLISH a text"));
    assert_eq!(placed("JSON.SET a $ 1"), Place::Slot(slot("a")));
    assert_eq!(placed("JSON.DEBUG"), Place::AnyPrimary);
    assert_eq!(placed("EVAL script 0"), Place::AnyPrimary);
    assert_eq!(placed("CLUSTER COUNTKEYSINSLOT 99999"), Place::AnyPrimary);
    assert_eq!(placed("RENAME a b"), Place::Slots(slot("a"), slot("b")));
    assert_eq!(placed("RENAME {a}1 {a}2"), Place::Slot(slot("a")));
    assert!(ServedBy::Node.advice().contains("client.node("));
    assert!(
        ServedBy::Session
            .to_string()
            .contains("client.session_for(key)")
    );
}
