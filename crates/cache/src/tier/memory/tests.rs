use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::freshness::Life;
use crate::monotonic::Monotonic;
use crate::tier::entry::{Label, TagNames, Times};

mod choice;

const NONE: &[&str] = &[];

fn loaded_now() -> Times {
    Times {
        loaded_at: Monotonic::now(),
        life: Life {
            fresh: Duration::from_secs(9),
            keep: Duration::from_secs(9),
            own: false,
        },
        cost: Duration::ZERO,
        early_refresh: 1.0,
    }
}

fn entry(generations: &Generations, key: &[u8], value: u32) -> (Arc<Entry>, Snapshot) {
    let snapshot = generations.snapshot(key, &["tag"]);
    (make(key, value, &snapshot, 4), snapshot)
}

fn make<V: Send + Sync + 'static>(
    key: &[u8],
    value: V,
    snapshot: &Snapshot,
    bytes: usize,
) -> Arc<Entry> {
    let label = Label {
        view: 0,
        class: 0,
        version: 0,
    };
    let governed = (snapshot, TagNames::default());
    Entry::new(key, Some(value), loaded_now(), governed, label, bytes)
}

fn number(entry: &Entry) -> u32 {
    *entry.value::<u32>().unwrap().unwrap()
}

#[test]
fn k6_a_value_loaded_before_an_invalidation_does_not_enter() {
    let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
    let key = b"k".as_slice();
    let (value, snapshot) = entry(&generations, key, 1);
    generations.bump_key(key);
    assert!(!memory.insert(&value, &snapshot, &generations));
    assert!(memory.get(key, NONE, &generations).is_none());
}

#[test]
fn a_key_is_found_by_its_bytes_however_long_it_is() {
    let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
    let keys: Vec<_> = (0..100).map(|length| vec![b'x'; length]).collect();
    for key in &keys {
        let (value, snapshot) = entry(&generations, key, key.len() as u32);
        assert!(memory.insert(&value, &snapshot, &generations));
    }
    for key in &keys {
        let found = memory.get(key, NONE, &generations).unwrap();
        assert_eq!(number(&found), key.len() as u32);
        memory.remove(key);
        assert!(memory.get(key, NONE, &generations).is_none());
    }
    assert_eq!(memory.bytes(), 0);
}

#[test]
fn a_value_that_is_replaced_is_let_go() {
    let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
    let (first, snapshot) = entry(&generations, b"k", 1);
    memory.insert(&first, &snapshot, &generations);
    let (second, snapshot) = entry(&generations, b"k", 2);
    memory.insert(&second, &snapshot, &generations);
    assert_eq!((Arc::strong_count(&first), memory.entries()), (1, 1));
}

#[test]
fn k11_a_tag_takes_its_entries_out() {
    let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
    let key = b"k".as_slice();
    let (value, snapshot) = entry(&generations, key, 1);
    assert!(memory.insert(&value, &snapshot, &generations));
    assert!(memory.get(key, NONE, &generations).is_some());
    generations.bump_tag(b"tag");
    assert!(memory.get(key, NONE, &generations).is_none());
}

#[test]
fn k11_each_of_its_tags_takes_an_entry_out_however_many_it_has() {
    let names = ["first", "second", "third", "fourth"];
    for count in 0..=names.len() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let (carried, others) = names.split_at(count);
        let store = || {
            let snapshot = generations.snapshot(b"k", carried);
            assert!(memory.insert(&make(b"k", 1, &snapshot, 4), &snapshot, &generations));
        };
        let is_there = |tags: &[&str]| memory.get(b"k", tags, &generations).is_some();
        store();
        assert!(is_there(NONE) && is_there(carried));
        for tag in others {
            assert!(!is_there(&[tag]));
            generations.bump_tag(tag.as_bytes());
            assert!(is_there(NONE), "it does not carry {tag}");
        }
        for tag in carried {
            store();
            generations.bump_tag(tag.as_bytes());
            assert!(!is_there(NONE), "{tag} of {count}");
        }
    }
}

#[test]
fn k11_a_reader_who_names_a_tag_gets_only_what_carries_it() {
    let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
    let key = b"k".as_slice();
    let (value, snapshot) = entry(&generations, key, 1);
    assert!(memory.insert(&value, &snapshot, &generations));
    assert!(memory.get(key, &["tag"], &generations).is_some());
    assert!(memory.get(key, NONE, &generations).is_some());
    assert!(memory.get(key, &["tag", "other"], &generations).is_none());
}

#[test]
fn k10_the_longest_value_finds_room_on_any_number_of_cores() {
    for (bytes, value_max) in [(64 << 20, 1 << 20), (1 << 20, 200_000), (5000, 1000)] {
        let (memory, generations) = (Memory::new(bytes, value_max), Generations::new());
        let key = b"k".as_slice();
        let snapshot = generations.snapshot(key, NONE);
        memory.insert(&make(key, 1, &snapshot, value_max), &snapshot, &generations);
        assert!(memory.get(key, NONE, &generations).is_some(), "{bytes}");
    }
}

#[test]
fn k10_memory_is_bounded_in_bytes() {
    let (memory, generations) = (Memory::new(100_000, 1000), Generations::new());
    for n in 0..10_000u32 {
        // Keys count too, and are the most of it here.
        let key = format!("{n:01000}");
        let key = key.as_bytes();
        let (value, snapshot) = entry(&generations, key, n);
        memory.insert(&value, &snapshot, &generations);
    }
    assert!(memory.bytes() <= 100_000, "{}", memory.bytes());
    assert!(
        (50..100).contains(&memory.entries()),
        "{}",
        memory.entries()
    );
}

/// Writers invalidate and raise the truth; loaders read it and try to store what they read. A
/// reader that looks after an invalidation has returned must never find anything older.
#[test]
fn k6_no_interleaving_shows_an_overtaken_value() {
    let memory = Arc::new(Memory::new(1 << 20, 1000));
    let generations = Arc::new(Generations::new());
    let (truth, floor) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let key = b"k".as_slice();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let snapshot = generations.snapshot(key, NONE);
                    let read = truth.load(Ordering::SeqCst);
                    let entry = make(key, read, &snapshot, 4);
                    memory.insert(&entry, &snapshot, &generations);
                    let least = floor.load(Ordering::SeqCst);
                    if let Some(found) = memory.get(key, NONE, &generations) {
                        assert!(number(&found) >= least);
                    }
                }
            });
        }
        scope.spawn(|| {
            for n in 1..20_000 {
                truth.store(n, Ordering::SeqCst);
                generations.bump_key(key);
                memory.remove(key);
                floor.store(n, Ordering::SeqCst);
            }
        });
    });
}

#[test]
fn k10_a_value_for_which_there_is_no_room_leaves_none_of_its_key() {
    let (memory, generations) = (Memory::new(5000, 1000), Generations::new());
    let (small, snapshot) = entry(&generations, b"k", 1);
    memory.insert(&small, &snapshot, &generations);
    for there in [true, false] {
        let large = make(b"k", 2, &snapshot, 6000);
        let held = memory.insert(&large, &snapshot, &generations);
        assert!(!held, "in the place of another: {there}");
        assert!(memory.get(b"k", NONE, &generations).is_none());
    }
    assert_eq!((memory.entries(), memory.bytes()), (0, 0));
}

/// A value whose end, and whose copy, look into the memory that holds it.
struct Nosy {
    memory: Weak<Memory>,
    generations: Arc<Generations>,
    looks: Arc<AtomicU32>,
}

impl Nosy {
    fn look(&self) {
        let Some(memory) = self.memory.upgrade() else {
            return;
        };
        memory.get(b"k", NONE, &self.generations);
        memory.remove(b"l");
        let (entry, snapshot) = entry(&self.generations, b"l", 1);
        memory.insert(&entry, &snapshot, &self.generations);
        assert!(memory.bytes() > 0);
        self.looks.fetch_add(1, Ordering::SeqCst);
    }
}

impl Clone for Nosy {
    fn clone(&self) -> Self {
        self.look();
        Self {
            memory: Weak::new(),
            generations: self.generations.clone(),
            looks: self.looks.clone(),
        }
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.look();
    }
}

#[test]
fn a_value_may_use_the_cache_when_it_is_copied_and_when_it_ends() {
    let memory = Arc::new(Memory::new(20_000, 1000));
    let (generations, looks) = (Arc::new(Generations::new()), Arc::new(AtomicU32::new(0)));
    let store = |key: &[u8]| {
        let value = Nosy {
            memory: Arc::downgrade(&memory),
            generations: generations.clone(),
            looks: looks.clone(),
        };
        let snapshot = generations.snapshot(key, NONE);
        memory.insert(&make(key, value, &snapshot, 1000), &snapshot, &generations);
    };
    let looked = || looks.swap(0, Ordering::SeqCst);
    store(b"k");
    let entry = memory.get(b"k", NONE, &generations).unwrap();
    let copy = entry.value::<Nosy>().unwrap().cloned();
    drop(entry);
    assert!(copy.is_some() && looked() == 1, "copied");
    store(b"k");
    assert_eq!(looked(), 1, "replaced");
    memory.remove(b"k");
    assert_eq!(looked(), 1, "removed");
    store(b"k");
    memory.clear();
    assert_eq!(looked(), 1, "cleared");
    (0..100u8).for_each(|n| store(&[n]));
    assert!(looked() > 50, "driven out");
}

#[test]
fn a_copy_that_panics_harms_nobody() {
    let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
    let (value, snapshot) = entry(&generations, b"k", 1);
    memory.insert(&value, &snapshot, &generations);
    for _ in 0..100 {
        let ask = || memory.ask::<&str, ()>(b"k", NONE, &generations, |_| panic!("as it may"));
        assert!(catch_unwind(AssertUnwindSafe(ask)).is_err());
    }
    let (newer, snapshot) = entry(&generations, b"k", 2);
    memory.insert(&newer, &snapshot, &generations);
    assert_eq!(number(&memory.get(b"k", NONE, &generations).unwrap()), 2);
    assert_eq!(Arc::strong_count(&value), 1);
}

/// Few homes and fewer marks, so that everything lies in everything's way.
fn poor_hash(key: u16) -> u64 {
    u64::from(key % 3) << 49 | u64::from(key % 7)
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u16, usize),
    Remove(u16),
    RemoveAnother(u16),
    Read(u16),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..60u16;
    let step = prop_oneof![
        12 => (key.clone(), 0..800usize).prop_map(|(key, bytes)| Step::Insert(key, bytes)),
        4 => key.clone().prop_map(Step::Remove),
        1 => key.clone().prop_map(Step::RemoveAnother),
        6 => key.prop_map(Step::Read),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn k10_a_shard_is_a_map_from_which_only_want_of_room_takes(steps in steps(), scarce: bool) {
        let capacity = if scarce { 8000 } else { u64::MAX };
        let (shard, generations) = (Shard::new(capacity), Generations::new());
        let snapshot = generations.snapshot(b"", NONE);
        let mut model: HashMap<u16, Arc<Entry>> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert(key, bytes) => {
                    let entry = make(&key.to_be_bytes(), u32::from(key), &snapshot, bytes);
                    shard.insert(poor_hash(key), &entry);
                    model.insert(key, entry);
                }
                Step::Remove(key) => {
                    shard.remove_if(poor_hash(key), &key.to_be_bytes(), |_| true);
                    model.remove(&key);
                }
                Step::RemoveAnother(key) => {
                    shard.remove_if(poor_hash(key), &key.to_be_bytes(), |_| false);
                }
                Step::Read(key) => {
                    shard.ask(poor_hash(key), &key.to_be_bytes(), |entry| {
                        entry.count_hit();
                        Some(())
                    });
                }
                Step::Clear => {
                    shard.clear();
                    model.clear();
                }
            }
            let (mut len, mut weight) = (0, 0);
            model.retain(|key, entry| {
                let there = shard.ask(poor_hash(*key), &key.to_be_bytes(), |there| {
                    Some(Arc::clone(there))
                });
                let is_there = there.is_some_and(|there| Arc::ptr_eq(&there, entry));
                if is_there {
                    len += 1;
                    weight += u64::from(entry.weight);
                    assert_eq!(Arc::strong_count(entry), 2);
                } else {
                    assert_eq!(Arc::strong_count(entry), 1, "let go");
                }
                is_there
            });
            prop_assert!(scarce || len == model.len());
            prop_assert_eq!((shard.len(), shard.weight()), (len, weight));
            prop_assert!(weight <= capacity);
        }
    }
}

/// Others come and go in the same places, are moved up behind them, and make the table grow.
#[test]
fn k10_what_stays_is_found_whatever_comes_and_goes_around_it() {
    let (shard, generations) = (&Shard::new(u64::MAX), Generations::new());
    let snapshot = &generations.snapshot(b"", NONE);
    let hash = |key: u16| u64::from(key % 3) << 49 | u64::from(key % 50);
    let insert = |key: u16| {
        let entry = make(&key.to_be_bytes(), u32::from(key), snapshot, 4);
        shard.insert(hash(key), &entry);
    };
    (0..20).for_each(insert);
    let done = AtomicBool::new(false);
    let write = |first| {
        for round in 0..60 {
            let some = first..first + 2 * round;
            some.clone().for_each(insert);
            for key in some {
                shard.remove_if(hash(key), &key.to_be_bytes(), |_| true);
            }
        }
    };
    let read = || {
        while !done.load(Ordering::SeqCst) {
            for key in 0..20 {
                let found = shard.ask(hash(key), &key.to_be_bytes(), |it| Some(number(it)));
                assert_eq!(found, Some(u32::from(key)));
            }
        }
    };
    std::thread::scope(|scope| {
        let writers = [100, 1000].map(|first| scope.spawn(move || write(first)));
        let readers = [scope.spawn(read), scope.spawn(read)];
        let written = writers.map(|writer| writer.join());
        done.store(true, Ordering::SeqCst);
        for ended in readers
            .map(|reader| reader.join())
            .into_iter()
            .chain(written)
        {
            ended.unwrap();
        }
    });
    assert_eq!(shard.len(), 20);
}

/// All of them belong into one slot, so whenever the first goes, each of the others moves up by
/// one.
#[test]
fn k10_what_moves_up_is_found_at_any_moment() {
    const LAST: u16 = 30;
    let generations = Generations::new();
    let snapshot = generations.snapshot(b"", NONE);
    for _ in 0..300 {
        let (shard, done) = (Shard::new(u64::MAX), AtomicBool::new(false));
        for key in 0..=LAST {
            let entry = make(&key.to_be_bytes(), u32::from(key), &snapshot, 4);
            shard.insert(u64::from(key) << 49, &entry);
        }
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let last = LAST.to_be_bytes();
                    let found = shard.ask(u64::from(LAST) << 49, &last, |it| Some(number(it)));
                    assert_eq!(found, Some(u32::from(LAST)));
                }
            });
            for key in 0..LAST {
                shard.remove_if(u64::from(key) << 49, &key.to_be_bytes(), |_| true);
            }
            done.store(true, Ordering::SeqCst);
            reader.join().unwrap();
        });
    }
}
