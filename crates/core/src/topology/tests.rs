mod gates;
mod members;
mod order;
mod views;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::node::AnnouncedHost;
use crate::redirect::Routing;
use crate::report::{ClusterInfo, ClusterReport, ReportedNode, ReportedRole};

const ALL: (u16, u16) = (0, SLOTS - 1);

fn slot(number: u16) -> Slot {
    Slot::new(number).expect("a slot")
}

#[expect(clippy::disallowed_methods, reason = "a test's own time")]
fn start() -> Instant {
    Instant::now()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("an id")
}

/// A primary called like its host, with an epoch and slots.
fn primary(name: &str, epoch: impl Into<Option<u64>>, slots: &[(u16, u16)]) -> ReportedNode {
    ReportedNode {
        id: Some(id(name)),
        host: AnnouncedHost::Named(name.into()),
        hostname: None,
        other_hosts: Vec::new(),
        port: 1,
        tls_port: None,
        role: ReportedRole::Primary,
        epoch: epoch.into(),
        is_myself: false,
        is_failing: false,
        is_failed: false,
        slots: slots
            .iter()
            .filter_map(|&(first, last)| SlotRange::new(slot(first), slot(last)))
            .collect(),
        migrations: Vec::new(),
    }
}

fn view(by: &str, asked: Instant, current_epoch: u64, nodes: Vec<ReportedNode>) -> View {
    View {
        by: NodeId::new(by),
        host: by.into(),
        asked,
        heard: asked,
        tls: false,
        report: ClusterReport {
            nodes,
            is_exhaustive: true,
            ..ClusterReport::default()
        },
        info: Some(ClusterInfo {
            is_ok: true,
            current_epoch,
            my_epoch: 0,
            slots_assigned: SLOTS,
        }),
    }
}

fn owner(topology: &Topology, number: u16) -> Option<&str> {
    let owner = topology.owner(slot(number))?;
    topology.member(owner).id.as_ref().map(NodeId::as_str)
}

fn index(topology: &Topology, name: &str) -> MemberIndex {
    topology.find(&id(name)).expect(name)
}

fn redirect(number: u16, to: &str) -> Redirect {
    match Routing::of("MOVED", &format!("{number} {to}:1")) {
        Some(Routing::Moved(redirect)) => redirect,
        other => panic!("{other:?}"),
    }
}

/// Slots below 100 belong to `a` (epoch 1), the others to `b` (epoch 2), by the word of `c`.
fn two(now: Instant) -> Topology {
    let mut topology = Topology::new();
    let nodes = vec![
        primary("a", 1, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
        primary("c", 3, &[]),
    ];
    let changes = topology.merge(&view("c", now, 3, nodes));
    assert_eq!(changes.joined.len(), 3);
    assert_eq!(changes.slots, [SlotRange::all()]);
    topology
}

/// The true history of a cluster: at each step a slot is taken over by a node, whose epoch
/// rises above all others. Each node has heard of the first so many steps.
#[derive(Clone, Debug)]
struct Truth {
    /// The new owner at each step.
    owners: Vec<usize>,
    /// The node that answers, and how many steps it has heard of.
    answers: Vec<(usize, usize)>,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn truths() -> impl Strategy<Value = Truth> {
    let owners = prop::collection::vec(0..NAMES.len(), 1..8);
    owners.prop_flat_map(|owners| {
        let steps = owners.len();
        let answers = prop::collection::vec((0..NAMES.len(), 0..=steps), 1..24);
        (Just(owners), answers).prop_map(|(owners, answers)| Truth { owners, answers })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// In any order of answers of different age, what is believed of a slot is the
    /// newest that anybody has told; and it never goes back.
    #[test]
    fn t3_whatever_order_answers_come_in_the_newest_wins(truth in truths()) {
        let now = start();
        let mut topology = Topology::new();
        let mut newest: Option<usize> = None;
        for (at, (by, heard)) in truth.answers.iter().enumerate() {
            // Epochs as of that step: each owner's is that of the last step at which it took the
            // slot.
            let epoch = |node: usize| {
                let steps = truth.owners[..*heard].iter().rposition(|owner| *owner == node);
                steps.map_or(0, |step| step as u64 + 1)
            };
            let owner_then = heard.checked_sub(1).map(|step| truth.owners[step]);
            let nodes = || {
                let primaries = NAMES.iter().enumerate().map(|(node, name)| {
                    let slots: &[(u16, u16)] = if owner_then == Some(node) { &[(7, 7)] } else { &[] };
                    primary(name, epoch(node), slots)
                });
                primaries.collect()
            };
            let (asked, current) = (now + ms(at as u64), *heard as u64);
            let changes = topology.merge(&view(NAMES[*by], asked, current, nodes()));
            // One that gave the slot away is asked itself: it has heard of whatever it has taken
            // over.
            for disputed in changes.disputed {
                let id = topology.member(disputed).id.clone().expect("it has one");
                topology.merge(&view(id.as_str(), asked, current, nodes()));
            }
            if let Some(step) = heard.checked_sub(1) {
                newest = newest.max(Some(step));
            }
            let expected = newest.map(|step| NAMES[truth.owners[step]]);
            prop_assert_eq!(owner(&topology, 7), expected);
        }
    }
}
