//! A scan of all keys while slots move there and back, keys lie on two nodes, primaries fail over
//! to replicas that hash otherwise, and the view is late.

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;
use steadfast_core::scan::{ClusterScan, ScanPage, ScanStep, Uncovered};
use steadfast_core::slot::{SLOTS, Slot};

use super::seeds;

/// The rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A node is taken to own what the view says, whatever it says itself.
    TrustsTheView,
    /// A slot that is moving counts as whole.
    ForgetsMigrations,
    /// A cursor is taken to another process.
    KeepsCursors,
}

const PRIMARIES: usize = 3;
/// Slots with keys; the others have none, and never move.
const USED: u16 = 6;
const BUCKETS: u64 = 32;
/// Steps until nothing goes wrong any more.
const CHAOS: usize = 150;

/// The keys of one process, in a table of its own order.
#[derive(Clone)]
struct Process {
    run: u64,
    keys: BTreeSet<Vec<u8>>,
}

impl Process {
    fn bucket(&self, key: &[u8]) -> u64 {
        let mut hash = self.run.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in key {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        (hash >> 20) % BUCKETS
    }

    /// So many buckets from the cursor on, and the next cursor.
    fn scan(&self, cursor: u64, count: u64) -> (u64, Vec<Vec<u8>>) {
        let end = (cursor + count).min(BUCKETS);
        let wanted = |key: &&Vec<u8>| (cursor..end).contains(&self.bucket(key));
        let keys = self.keys.iter().filter(wanted).cloned().collect();
        (if end == BUCKETS { 0 } else { end }, keys)
    }
}

struct World {
    rng: fastrand::Rng,
    broken: Broken,
    nodes: Vec<Process>,
    runs: u64,
    /// The owner of each used slot.
    owners: Vec<usize>,
    /// Where a used slot is moving to.
    moving: BTreeMap<u16, usize>,
    /// The owners as the client knows them.
    view: Vec<usize>,
    stable: BTreeSet<Vec<u8>>,
    yielded: BTreeSet<Vec<u8>>,
}

/// The used slots lie apart from each other.
fn number(used: u16) -> u16 {
    used * 2_500
}

fn used(slot: Slot) -> Option<u16> {
    (slot.number().is_multiple_of(2_500) && slot.number() / 2_500 < USED)
        .then(|| slot.number() / 2_500)
}

/// Keys of a used slot, by their tag.
fn tags() -> Vec<String> {
    let mut tags = vec![String::new(); usize::from(USED)];
    for n in 0.. {
        let tag = format!("t{n}");
        if let Some(at) = used(Slot::of_key(tag.as_bytes())) {
            tags[usize::from(at)] = tag;
        }
        if tags.iter().all(|tag| !tag.is_empty()) {
            return tags;
        }
    }
    unreachable!("some key belongs to each slot")
}

impl World {
    fn new(seed: u64, broken: Broken, tags: &[String]) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let owners: Vec<usize> = (0..USED).map(|_| rng.usize(..PRIMARIES)).collect();
        let process = |run| Process {
            run: 1_000 * seed + run,
            keys: BTreeSet::new(),
        };
        let mut world = Self {
            broken,
            nodes: (0..PRIMARIES as u64).map(process).collect(),
            runs: PRIMARIES as u64,
            view: owners.clone(),
            owners,
            moving: BTreeMap::new(),
            stable: BTreeSet::new(),
            yielded: BTreeSet::new(),
            rng,
        };
        for (at, tag) in tags.iter().enumerate() {
            for n in 0..6 {
                let key = format!("{{{tag}}}:{n}").into_bytes();
                world.nodes[world.owners[at]].keys.insert(key.clone());
                world.stable.insert(key);
            }
        }
        world
    }

    fn owner(&self, slot: Slot) -> Option<usize> {
        // The slots without keys belong to the first.
        Some(used(slot).map_or(0, |at| self.view[usize::from(at)]))
    }

    fn keys_of(&self, node: usize, at: u16) -> Vec<Vec<u8>> {
        let keys = self.nodes[node].keys.iter();
        let of_slot = keys.filter(|key| used(Slot::of_key(key)) == Some(at));
        of_slot.cloned().collect()
    }

    fn move_keys(&mut self, from: usize, to: usize, keys: Vec<Vec<u8>>) {
        for key in keys {
            self.nodes[from].keys.remove(&key);
            self.nodes[to].keys.insert(key);
        }
    }

    /// Something happens between two steps.
    fn happen(&mut self) {
        let at = self.rng.u16(..USED);
        let owner = self.owners[usize::from(at)];
        match self.rng.u8(..12) {
            0 | 1 => {
                let to = self.rng.usize(..PRIMARIES);
                if to != owner {
                    self.moving.entry(at).or_insert(to);
                }
            }
            2..=4 => {
                // One of its keys moves.
                if let Some(to) = self.moving.get(&at).copied() {
                    let mut keys = self.keys_of(owner, at);
                    self.rng.shuffle(&mut keys);
                    keys.truncate(2);
                    self.move_keys(owner, to, keys);
                }
            }
            5 | 6 => {
                if let Some(to) = self.moving.remove(&at) {
                    self.move_keys(owner, to, self.keys_of(owner, at));
                    self.owners[usize::from(at)] = to;
                }
            }
            7 => {
                // The migration is given up.
                if let Some(to) = self.moving.remove(&at) {
                    self.move_keys(to, owner, self.keys_of(to, at));
                }
            }
            8 => {
                // Another process takes the place of a node, with all that it had. Who had it is
                // known by the same name, as where an address leads to another server.
                let node = self.rng.usize(..PRIMARIES);
                self.runs += 1;
                self.nodes[node].run = self.nodes[node].run / 1_000 * 1_000 + self.runs;
            }
            9 => {
                // Keys come and go.
                let n = self.rng.u8(..4);
                let tag = self.keys_of(owner, at).pop();
                if let Some(like) = tag {
                    let key = [&like[..], format!("x{n}").as_bytes()].concat();
                    if !self.nodes[owner].keys.remove(&key) {
                        self.nodes[owner].keys.insert(key);
                    }
                }
            }
            _ => self.view.clone_from(&self.owners),
        }
    }

    /// What a node answers to a step.
    fn page(&self, node: usize, cursor: u64, count: u64) -> ScanPage {
        let owns = |at: u16| {
            let owners = match self.broken {
                Broken::TrustsTheView => &self.view,
                _ => &self.owners,
            };
            owners[usize::from(at)] == node
        };
        let mut line = format!("n{node} 127.0.0.1:7000@17000 myself,master - 0 0 1 connected");
        for at in 0..USED {
            if owns(at) {
                line += &format!(" {}", number(at));
            }
            if node == 0 {
                let end = if at + 1 < USED { number(at + 1) } else { SLOTS };
                line += &format!(" {}-{}", number(at) + 1, end - 1);
            }
        }
        for (at, to) in &self.moving {
            if owns(*at) && self.broken != Broken::ForgetsMigrations {
                line += &format!(" [{}->-n{to}]", number(*at));
            } else if *to == node {
                line += &format!(" [{}-<-n{}]", number(*at), self.owners[usize::from(*at)]);
            }
        }
        let (cursor, keys) = self.nodes[node].scan(cursor, count);
        let keys = keys.into_iter().map(Value::BulkString).collect();
        let cursor = Value::BulkString(cursor.to_string().into_bytes());
        let answer = vec![
            Value::BulkString(line.into_bytes()),
            Value::Array(vec![cursor, Value::Array(keys)]),
        ];
        ScanPage::read(Value::Array(answer)).expect("it can be read")
    }

    /// Scans to the end, while things happen; answers with how it ended.
    fn scan(&mut self, rounds: u32) -> Option<Uncovered> {
        let mut scan = ClusterScan::new(rounds);
        for step in 0..10_000 {
            if step < CHAOS {
                for _ in 0..self.rng.u8(..4) {
                    self.happen();
                }
            } else if step == CHAOS && rounds > 100 {
                for at in 0..USED {
                    if let Some(to) = self.moving.remove(&at) {
                        self.move_keys(to, self.owners[usize::from(at)], self.keys_of(to, at));
                    }
                }
            }
            match scan.next_step(|slot| self.owner(slot)) {
                ScanStep::Finished => return None,
                ScanStep::GaveUp(uncovered) => return Some(uncovered),
                ScanStep::Wait => self.view.clone_from(&self.owners),
                ScanStep::Ask { .. } if self.rng.u8(..12) == 0 => scan.failed(),
                ScanStep::Ask { node, cursor } => {
                    let count = self.rng.u64(1..=12);
                    let page = self.page(node, cursor, count);
                    let run = match self.broken {
                        Broken::KeepsCursors => String::new(),
                        _ => self.nodes[node].run.to_string(),
                    };
                    let keys = scan.answered(&run, page, |slot| self.owner(slot));
                    self.yielded.extend(keys);
                }
            }
        }
        panic!("the scan does not end");
    }

    /// Keys that were there all the time, whose slot counts as covered, and that never came.
    fn missed(&self, uncovered: &Option<Uncovered>) -> Vec<String> {
        let is_named = |key: &[u8]| {
            let slot = Slot::of_key(key);
            let ranges = uncovered.iter().flat_map(|uncovered| &uncovered.slots);
            ranges
                .into_iter()
                .any(|range| (range.first()..=range.last()).contains(&slot))
        };
        let missed = self.stable.difference(&self.yielded);
        let missed = missed.filter(|key| !is_named(key));
        missed
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect()
    }
}

#[test]
fn t13_every_key_that_stays_comes_however_slots_move_and_processes_change() {
    let tags = tags();
    for seed in seeds(60) {
        let mut world = World::new(seed, Broken::Nothing, &tags);
        let ended = world.scan(1_000);
        assert_eq!(ended, None, "seed {seed}: all is calm in the end");
        let missed = world.missed(&ended);
        assert!(missed.is_empty(), "seed {seed} misses {missed:?}");
    }
}

#[test]
fn t13_a_scan_that_gives_up_names_every_slot_of_which_keys_may_be_missing() {
    let tags = tags();
    let mut gave_up = 0;
    for seed in seeds(60) {
        let mut world = World::new(seed, Broken::Nothing, &tags);
        let ended = world.scan(2);
        gave_up += u32::from(ended.is_some());
        let missed = world.missed(&ended);
        assert!(
            missed.is_empty(),
            "seed {seed} misses {missed:?} and names {ended:?}"
        );
    }
    assert!(gave_up > 0 || seeds(60).end == 1);
}

#[test]
fn t13_each_rule_of_the_scan_is_needed() {
    let tags = tags();
    for broken in [
        Broken::TrustsTheView,
        Broken::ForgetsMigrations,
        Broken::KeepsCursors,
    ] {
        let noticed = (0..2_000).any(|seed| {
            let mut world = World::new(seed, broken, &tags);
            let ended = world.scan(1_000);
            !world.missed(&ended).is_empty()
        });
        assert!(noticed, "no history notices {broken:?}");
    }
}

#[test]
fn t13_a_slot_that_always_moves_or_has_no_owner_ends_the_scan_and_is_named() {
    let tags = tags();
    let mut world = World::new(1, Broken::Nothing, &tags);
    let at = 4;
    let to = (world.owners[4] + 1) % PRIMARIES;
    world.moving.insert(at, to);
    let mut scan = ClusterScan::new(3);
    let (mut waits, mut asked) = (0, BTreeSet::new());
    let orphan = Slot::new(9).expect("a slot");
    let owner = |world: &World, slot| (slot != orphan).then(|| world.owner(slot)).flatten();
    let uncovered = loop {
        match scan.next_step(|slot| owner(&world, slot)) {
            ScanStep::Ask { node, cursor } => {
                asked.insert(node);
                let page = world.page(node, cursor, 8);
                scan.answered("run", page, |slot| owner(&world, slot));
            }
            ScanStep::Wait => waits += 1,
            ScanStep::GaveUp(uncovered) => break uncovered,
            ScanStep::Finished => panic!("it cannot be covered"),
        }
    };
    let named: Vec<String> = uncovered.slots.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["9", "10000"]);
    assert_eq!(
        waits, 3,
        "one round that covered the others, and two of three in vain"
    );
    assert!(
        uncovered.to_string().contains("slots 9, 10000:"),
        "{uncovered}"
    );
    assert_eq!(scan.uncovered(), uncovered);
}

#[test]
fn t13_a_node_that_does_not_answer_is_left_for_later_and_holds_up_no_other() {
    let mut scan = ClusterScan::new(2);
    let half = |slot: Slot| Some(usize::from(slot.number() >= SLOTS / 2));
    let mut asked = Vec::new();
    let uncovered = loop {
        match scan.next_step(half) {
            ScanStep::Ask { node: 0, .. } => {
                asked.push(0);
                scan.failed();
            }
            ScanStep::Ask { node, cursor } => {
                asked.push(node);
                let line = format!(
                    "n1 h:1@2 myself,master - 0 0 1 connected {}-16383",
                    SLOTS / 2
                );
                let text = |text: String| Value::BulkString(text.into_bytes());
                let scanned = Value::Array(vec![text("0".to_owned()), Value::Array(vec![])]);
                let page = ScanPage::read(Value::Array(vec![text(line), scanned]));
                assert_eq!(cursor, 0);
                scan.answered("run", page.expect("it can be read"), half);
            }
            ScanStep::Wait => {}
            ScanStep::GaveUp(uncovered) => break uncovered,
            ScanStep::Finished => panic!("the first never answered"),
        }
    };
    assert_eq!(asked, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(uncovered.slots[0].to_string(), "0-8191");
}

#[test]
fn t13_a_page_that_cannot_be_read_says_where_and_counts_for_nothing() {
    let text = |text: &str| Value::BulkString(text.into());
    let nodes = || text("n1 h:1@2 myself,master - 0 0 1 connected 0-5\n");
    let keys = |keys: Vec<Value>| Value::Array(vec![text("0"), Value::Array(keys)]);
    for (answer, named) in [
        (Value::Nil, "not a list"),
        (Value::Array(vec![nodes()]), "two elements"),
        (
            Value::Array(vec![Value::Nil, keys(vec![])]),
            "CLUSTER NODES",
        ),
        (
            Value::Array(vec![
                text("n1 h:1@2 master - 0 0 1 connected 0-5\n"),
                keys(vec![]),
            ]),
            "myself",
        ),
        (Value::Array(vec![nodes(), Value::Nil]), "SCAN"),
        (
            Value::Array(vec![nodes(), keys(vec![Value::Nil])]),
            "not a key",
        ),
        (
            Value::Array(vec![
                nodes(),
                Value::Array(vec![text("x"), Value::Array(vec![])]),
            ]),
            "cursor",
        ),
    ] {
        let error = ScanPage::read(answer).expect_err(named).to_string();
        assert!(error.contains(named), "{error}");
    }
    // A replica owns nothing, whatever it lists.
    let replica = text("n1 h:1@2 myself,slave n2 0 0 1 connected 0-16383\n");
    let page = ScanPage::read(Value::Array(vec![replica, keys(vec![text("k")])])).expect("read");
    assert_eq!(format!("{page:?}"), "ScanPage { cursor: 0, keys: 1, .. }");
    let mut scan = ClusterScan::new(1);
    let one = |_| Some(());
    scan.next_step(one);
    assert!(scan.answered("run", page, one).is_empty());
    assert!(matches!(scan.next_step(one), ScanStep::GaveUp(_)));
}
