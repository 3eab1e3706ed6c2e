//! Any sequence of views, redirects and answers of sentinels: no panic, nothing past its bound,
//! what owns a slot is known, epochs never fall by another's word, and terms never go back.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use steadfast_core::node::{AnnouncedHost, Endpoint, MAX_NODES, MAX_SENTINELS, NodeId};
use steadfast_core::redirect::Routing;
use steadfast_core::report::{
    ClusterInfo, ClusterReport, MonitoredPrimary, PeerSentinel, ReportedNode, ReportedRole,
};
use steadfast_core::sentinel::{CouncilConfig, SentinelCouncil, Term, Testimony};
use steadfast_core::slot::{KeySet, SLOTS, Slot, SlotRange};
use steadfast_core::topology::{
    DiscoveryGate, DiscoveryGateConfig, Explained, Passage, SlotGate, Topology, Trigger, UnderWay,
    View,
};

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    let mut now = start;
    let mut topology = Topology::new();
    let at = |name: u8| Endpoint::new(&format!("h{}", name % 40), 1 + u16::from(name % 3));
    let mut council = SentinelCouncil::new((0..3).map(at), CouncilConfig::default());
    let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), 7, now);
    let mut slots = SlotGate::new();
    let mut last = (Term(0), 0);
    for step in data.chunks_exact(8) {
        let [kind, a, b, c, d, e, f, g] = *step else {
            return;
        };
        now += Duration::from_millis(u64::from(a));
        let asked = now - Duration::from_millis(u64::from(b)).min(now - start);
        let slot = Slot::new(u16::from_le_bytes([c, d]) % SLOTS).expect("a slot");
        match kind % 7 {
            0 => {
                let changes = topology.merge(&view(step, asked, now));
                assert!(changes.ignored.is_none() || changes.is_empty());
            }
            1 => {
                let line = format!("{} h{}:{}", slot, e % 40, 1 + f % 3);
                let Some(Routing::Moved(redirect)) = Routing::of("MOVED", &line) else {
                    panic!("{line} is a redirect")
                };
                let known = topology
                    .members()
                    .map(|(index, _)| index)
                    .nth(usize::from(g));
                if let Some(by) = known {
                    topology.moved(by, &redirect, &"h0".into(), asked, now);
                }
            }
            2 => {
                let testimony = Testimony {
                    primary: (d % 8 > 0).then(|| at(d % 8)),
                    monitored: MonitoredPrimary {
                        config_epoch: u64::from(e % 8),
                        run_id: None,
                        other_sentinels: usize::from(f),
                        quorum: 2,
                        subjectively_down: false,
                        objectively_down: false,
                        failing_over: false,
                    },
                    sentinel: (g % 2 == 0).then(|| format!("s{}", g % 8).into()),
                    asked,
                };
                council.hear(&at(c % 4), testimony, now);
            }
            3 => {
                let peers: Vec<_> = (0..d)
                    .map(|n| PeerSentinel {
                        endpoint: at(n.wrapping_mul(e)),
                        run_id: None,
                    })
                    .collect();
                council.learn(&peers, now);
            }
            4 => {
                let trigger = match c % 3 {
                    0 => Trigger::Doubt,
                    1 => Trigger::Contradiction,
                    _ => Trigger::Loss,
                };
                gate.trigger(trigger, now);
            }
            5 => {
                if gate.poll(now) {
                    assert_eq!(gate.poll_timeout(), None);
                    gate.finished(
                        if c % 2 == 0 {
                            Explained::Yes
                        } else {
                            Explained::NotYet
                        },
                        now,
                    );
                }
                assert!(gate.poll_timeout().is_some_and(|at| at > now));
            }
            _ => {
                let (command, link) = (u64::from(e % 8), u64::from(f % 4));
                match g % 4 {
                    0 => {
                        let under_way = (0..command).map(|command| UnderWay {
                            command,
                            connection: link,
                            keys: keys(f.wrapping_add(command as u8)),
                            until: now + Duration::from_millis(20),
                        });
                        slots.close(slot, under_way);
                    }
                    1 => drop(slots.resubmit(slot, command, link, now)),
                    2 => slots.settle(slot, command, f % 2 == 0),
                    3 => slots.narrow(slot, command, &keys(f)),
                    _ => {}
                }
                if let Passage::Until(until) = slots.pass(slot, &keys(g), now) {
                    assert!(until > now && until <= now + Duration::from_millis(20));
                }
            }
        }
        assert!(topology.members().count() <= MAX_NODES);
        assert!(council.sentinels().count() <= MAX_SENTINELS);
        if let Some(owner) = topology.owner(slot) {
            topology.member(owner);
        }
        if let Some(primacy) = council.primacy() {
            assert!(primacy.term >= last.0, "a term never goes back");
            let confirmation = council.confirmation(now).expect("there is a primary");
            assert!(confirmation.votes <= confirmation.voters);
            last = (primacy.term, primacy.epoch);
        }
    }
    for (index, member) in topology.members() {
        if let Some(id) = &member.id {
            assert_eq!(topology.find(id), Some(index));
        }
    }
});

fn view(step: &[u8], asked: Instant, heard: Instant) -> View {
    let [_, _, _, c, d, e, f, g] = *step else {
        panic!("eight bytes")
    };
    let nodes = (0..d % 5).map(|n| {
        let name = c.wrapping_add(n.wrapping_mul(g));
        let first = u16::from(e)
            .wrapping_mul(61)
            .wrapping_add(u16::from(n) * 97)
            % SLOTS;
        let last = (first + u16::from(f)).min(SLOTS - 1);
        let range = Slot::new(first).zip(Slot::new(last));
        ReportedNode {
            id: (g % 7 > 0).then(|| NodeId::new(&format!("n{}", name % 50)).expect("an id")),
            host: match name % 11 {
                0 => AnnouncedHost::AsAsked,
                1 => AnnouncedHost::Unknown,
                _ => AnnouncedHost::Named(format!("h{}", name % 40).into()),
            },
            hostname: None,
            other_hosts: match name % 4 {
                0 => vec![format!("h{}", name % 23).into()],
                _ => Vec::new(),
            },
            port: 1 + u16::from(name % 3),
            tls_port: None,
            role: match name % 5 {
                0 => ReportedRole::Replica(NodeId::new("n1")),
                _ => ReportedRole::Primary,
            },
            epoch: (f % 9 > 0).then_some(u64::from(name % 13)),
            is_myself: n == 0 && f % 2 == 0,
            is_failing: false,
            is_failed: false,
            slots: range
                .and_then(|(first, last)| SlotRange::new(first, last))
                .into_iter()
                .collect(),
            migrations: Vec::new(),
        }
    });
    View {
        by: (g % 3 > 0).then(|| NodeId::new(&format!("n{}", g % 50)).expect("an id")),
        host: "h9".into(),
        asked,
        heard,
        tls: g % 2 == 0,
        report: ClusterReport {
            nodes: nodes.collect(),
            is_exhaustive: c % 2 == 0,
            ..ClusterReport::default()
        },
        info: (c % 5 > 0).then(|| ClusterInfo {
            is_ok: g % 10 > 0,
            current_epoch: u64::from(f % 16),
            my_epoch: 0,
            slots_assigned: SLOTS,
        }),
    }
}

fn keys(number: u8) -> KeySet {
    match number % 7 {
        0 => KeySet::Unknown,
        1 => KeySet::Empty,
        key @ 2..=4 => KeySet::One(key.into()),
        key => KeySet::hashed(vec![2, key.into()]),
    }
}
