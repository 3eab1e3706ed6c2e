//! A part of the memory tier: its entries by the hashes of their keys.
//!
//! A look-up takes no lock and writes to nothing that other readers use. Each slot holds an entry
//! behind an [`ArcSwapOption`], which lends it to a reader by a note in memory of the reader's own
//! thread. So while a reader clones a value, which runs what others have written, nobody waits for
//! it, and nothing that it does can wait for itself. A slot and what tells whether it is the right
//! one lie side by side; with the entry, that is two places in memory.
//!
//! Writers have a lock, under which nothing runs that others have written: what is taken out is
//! handed to the caller, who drops it afterwards. Entries that stay never move but in two cases, a
//! hole that is closed behind one that was taken out, and a larger table. Then each is put into its
//! new slot before it leaves its old one, and `moves` is counted before and after. A reader that
//! finds nothing looks again if that count has changed, for it may have looked at the right slots
//! at the wrong times.

use std::array;
use std::hint;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::queues::{Queues, Then};
use crate::tier::entry::Entry;

/// Aligned so that what the readers of one shard read is not what the writers of another write:
/// processors fetch two lines at a time.
#[repr(align(128))]
pub(super) struct Shard {
    /// Each twice as large as the one before. Those of the past are empty; that they stay is what
    /// lets a reader look into one without asking whether it is still there.
    tables: [OnceLock<Table>; TABLES],
    current: AtomicUsize,
    /// Odd while entries are moved.
    moves: AtomicU64,
    writers: Apart<Mutex<Queues>>,
}

/// Away from what readers look at.
#[repr(align(128))]
struct Apart<T>(T);

/// Slots, in each of which, or in one soon behind it, an entry lies that belongs there.
struct Table(Box<[Line]>);

/// As many slots as the processor fetches at a time.
#[repr(align(64))]
struct Line([Slot; SLOTS]);

struct Slot {
    entry: ArcSwapOption<Entry>,
    /// Half of the hash, never zero; zero if there is no entry.
    mark: AtomicU32,
    /// The place in the queues; for writers only.
    node: AtomicU32,
}

struct Content {
    node: u32,
    entry: Arc<Entry>,
}

/// Entries that were taken out, to be dropped when no lock is held.
pub(super) type Removed = SmallVec<[Arc<Entry>; 4]>;

type Lent = Guard<Option<Arc<Entry>>>;

impl Shard {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            tables: array::from_fn(|_| OnceLock::new()),
            current: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            writers: Apart(Mutex::new(Queues::new(capacity))),
        }
    }

    /// Answers with what is to be said of the entry of this key; it may take its time.
    #[inline]
    pub(super) fn ask<R>(
        &self,
        hash: u64,
        key: &[u8],
        ask: impl FnOnce(&Arc<Entry>) -> Option<R>,
    ) -> Option<R> {
        let moves = self.moves.load(Ordering::SeqCst);
        let lent = match self.table().and_then(|table| table.find(hash, key)) {
            Some((_, lent)) => lent,
            None if moves.is_multiple_of(2) && self.moves.load(Ordering::SeqCst) == moves => {
                return None;
            }
            None => self.look_again(hash, key)?,
        };
        ask(lent.as_ref()?)
    }

    /// Finds an entry that may have been on the move.
    #[cold]
    fn look_again(&self, hash: u64, key: &[u8]) -> Option<Lent> {
        for _ in 0..LOOKS {
            let moves = self.moves.load(Ordering::SeqCst);
            if let Some((_, lent)) = self.table().and_then(|table| table.find(hash, key)) {
                return Some(lent);
            }
            if moves.is_multiple_of(2) && self.moves.load(Ordering::SeqCst) == moves {
                return None;
            }
            hint::spin_loop();
        }
        let _still = self.writers.0.lock();
        self.table()?.find(hash, key).map(|(_, lent)| lent)
    }

    /// Puts an entry into the place of what has the same key, or into one of its own, for which
    /// others may have to go. One that is heavier than the whole shard finds none.
    pub(super) fn insert(&self, hash: u64, entry: &Arc<Entry>) -> Removed {
        let mut removed = Removed::new();
        let mut queues = self.writers.0.lock();
        let there = self
            .table()
            .and_then(|table| Some((table, table.find(hash, &entry.key)?)));
        let is_too_heavy = u64::from(entry.weight) > queues.capacity();
        if let Some((table, (at, lent))) = there {
            if let Some(previous) = &*lent {
                entry.follow(previous);
            }
            drop(lent);
            if is_too_heavy {
                removed.extend(self.take_out(table, &mut queues, at));
                return removed;
            }
            let node = table.slot(at).node.load(Ordering::Relaxed);
            queues.unlink(node);
            self.make_room(&mut queues, entry.weight, &mut removed);
            queues.relink(node, entry.weight);
            let slot = table.slot(queues.slot(node) as usize);
            removed.extend(slot.entry.swap(Some(Arc::clone(entry))));
        } else if !is_too_heavy {
            self.make_room(&mut queues, entry.weight, &mut removed);
            let Some(table) = self.table_with_room(&mut queues, &mut removed) else {
                return removed;
            };
            let node = queues.enter(hash, entry.weight);
            table.put(&mut queues, node, Arc::clone(entry));
        }
        removed
    }

    /// Takes out the entry of this key, if it is the one that is meant.
    pub(super) fn remove_if(
        &self,
        hash: u64,
        key: &[u8],
        is_meant: impl FnOnce(&Arc<Entry>) -> bool,
    ) -> Option<Arc<Entry>> {
        let mut queues = self.writers.0.lock();
        let table = self.table()?;
        let (at, lent) = table.find(hash, key)?;
        if !is_meant(lent.as_ref()?) {
            return None;
        }
        drop(lent);
        self.take_out(table, &mut queues, at)
    }

    pub(super) fn clear(&self) -> Vec<Arc<Entry>> {
        let mut queues = self.writers.0.lock();
        queues.clear();
        let slots = self.table().into_iter().flat_map(Table::slots);
        slots.filter_map(Slot::vacate).collect()
    }

    pub(super) fn weight(&self) -> u64 {
        self.writers.0.lock().weight()
    }

    pub(super) fn len(&self) -> usize {
        self.writers.0.lock().len()
    }

    #[inline]
    fn table(&self) -> Option<&Table> {
        self.tables.get(self.current.load(Ordering::SeqCst))?.get()
    }

    fn make_room(&self, queues: &mut Queues, weight: u32, removed: &mut Removed) {
        while queues.weight() + u64::from(weight) > queues.capacity() {
            match self.expel(queues) {
                Some(entry) => removed.push(entry),
                None => return,
            }
        }
    }

    fn expel(&self, queues: &mut Queues) -> Option<Arc<Entry>> {
        let table = self.table()?;
        let node = queues.expel(|at, then| {
            let lent = table.slot(at as usize).entry.load();
            lent.as_ref()
                .map_or(0, |entry| entry.visits(then == Then::Forget))
        })?;
        let entry = self.close(table, queues, queues.slot(node) as usize);
        queues.forget(node);
        entry
    }

    fn take_out(&self, table: &Table, queues: &mut Queues, at: usize) -> Option<Arc<Entry>> {
        queues.leave(table.slot(at).node.load(Ordering::Relaxed));
        self.close(table, queues, at)
    }

    /// Takes an entry out of its slot. What lies behind it moves up as long as it is not where it
    /// belongs, or a look-up would end at the hole.
    fn close(&self, table: &Table, queues: &mut Queues, at: usize) -> Option<Arc<Entry>> {
        let (mut hole, mut at, mut taken) = (at, at, None);
        let mut moving = None;
        loop {
            at = table.next(at);
            let behind = table.slot(at);
            if behind.mark.load(Ordering::SeqCst) == 0 {
                break;
            }
            let node = behind.node.load(Ordering::Relaxed);
            let home = table.home(queues.hash(node));
            if table.distance(home, at) < table.distance(hole, at) {
                continue;
            }
            moving.get_or_insert_with(|| Moving::begin(&self.moves));
            let before = table
                .slot(hole)
                .fill(queues.hash(node), node, behind.entry.load_full());
            taken = taken.or(before);
            queues.set_slot(node, hole as u32);
            hole = at;
        }
        let before = table.slot(hole).vacate();
        taken.or(before)
    }

    /// Returns the table, a larger one if need be. If it is as large as can be, others have to go.
    fn table_with_room(&self, queues: &mut Queues, removed: &mut Removed) -> Option<&Table> {
        let current = self.current.load(Ordering::SeqCst);
        let table = self.tables[current].get_or_init(|| {
            queues.remember_up_to(SMALLEST * SLOTS);
            Table::new(SMALLEST, [], queues)
        });
        if queues.len() < table.room() {
            return Some(table);
        }
        let Some(next) = self.tables.get(current + 1) else {
            removed.extend(self.expel(queues));
            return (queues.len() < table.room()).then_some(table);
        };
        let larger = next.get_or_init(|| {
            let lines = table.0.len() * 2;
            queues.remember_up_to(lines * SLOTS);
            Table::new(lines, table.slots().filter_map(Slot::content), queues)
        });
        let moving = Moving::begin(&self.moves);
        self.current.store(current + 1, Ordering::SeqCst);
        drop(moving);
        // Whatever is dropped here lies in the larger table too.
        table.slots().for_each(|slot| drop(slot.vacate()));
        Some(larger)
    }
}

/// The time for which `moves` is odd.
struct Moving<'s>(&'s AtomicU64);

impl<'s> Moving<'s> {
    fn begin(moves: &'s AtomicU64) -> Self {
        moves.fetch_add(1, Ordering::SeqCst);
        Self(moves)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Table {
    /// With these in it, for which there is room.
    fn new(lines: usize, content: impl IntoIterator<Item = Content>, queues: &mut Queues) -> Self {
        let mask = lines * SLOTS - 1;
        let mut places: Vec<Option<Content>> = (0..=mask).map(|_| None).collect();
        for content in content {
            let mut at = queues.hash(content.node) as usize & mask;
            while places[at].is_some() {
                at = (at + 1) & mask;
            }
            queues.set_slot(content.node, at as u32);
            places[at] = Some(content);
        }
        let mut places = places.into_iter();
        let mut slot = || Slot::new(places.next().flatten(), queues);
        Self(
            (0..lines)
                .map(|_| Line(array::from_fn(|_| slot())))
                .collect(),
        )
    }

    /// The number of entries that it may hold: with more, look-ups would become long.
    fn room(&self) -> usize {
        self.0.len() * SLOTS / 8 * 5
    }

    /// Returns the entry of this key and the number of its slot.
    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<(usize, Lent)> {
        let (mark, home) = (mark(hash), self.home(hash));
        let mut at = home;
        loop {
            let slot = self.slot(at);
            let seen = slot.mark.load(Ordering::SeqCst);
            if seen == mark {
                let lent = slot.entry.load();
                if lent.as_ref().is_some_and(|entry| *entry.key == *key) {
                    return Some((at, lent));
                }
            }
            at = self.next(at);
            // It is never full, but may look so to who is overtaken by writers all the time.
            if seen == 0 || at == home {
                return None;
            }
        }
    }

    /// Puts an entry, of which there is none, into the first slot that is empty.
    fn put(&self, queues: &mut Queues, node: u32, entry: Arc<Entry>) {
        let hash = queues.hash(node);
        let mut at = self.home(hash);
        while self.slot(at).mark.load(Ordering::SeqCst) != 0 {
            at = self.next(at);
        }
        self.slot(at).fill(hash, node, Some(entry));
        queues.set_slot(node, at as u32);
    }

    #[inline]
    fn slot(&self, at: usize) -> &Slot {
        &self.0[at / SLOTS].0[at % SLOTS]
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter().flat_map(|line| &line.0)
    }

    /// The number of lines is a power of two.
    #[inline]
    fn mask(&self) -> usize {
        (self.0.len() * SLOTS).wrapping_sub(1)
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask()
    }

    #[inline]
    fn next(&self, at: usize) -> usize {
        (at + 1) & self.mask()
    }

    /// The number of steps from one slot to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & self.mask()
    }
}

impl Slot {
    fn new(content: Option<Content>, queues: &Queues) -> Self {
        let node = content.as_ref().map_or(0, |content| content.node);
        let mark = content.as_ref().map_or(0, |_| mark(queues.hash(node)));
        Self {
            entry: ArcSwapOption::new(content.map(|content| content.entry)),
            mark: AtomicU32::new(mark),
            node: AtomicU32::new(node),
        }
    }

    fn content(&self) -> Option<Content> {
        let (node, entry) = (self.node.load(Ordering::Relaxed), self.entry.load_full()?);
        Some(Content { node, entry })
    }

    fn fill(&self, hash: u64, node: u32, entry: Option<Arc<Entry>>) -> Option<Arc<Entry>> {
        self.node.store(node, Ordering::Relaxed);
        let before = self.entry.swap(entry);
        self.mark.store(mark(hash), Ordering::SeqCst);
        before
    }

    fn vacate(&self) -> Option<Arc<Entry>> {
        self.mark.store(0, Ordering::SeqCst);
        self.entry.swap(None)
    }
}

#[inline]
fn mark(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

const SLOTS: usize = 4;

/// The number of lines of the first table.
const SMALLEST: usize = 16;

/// The last has 128 million slots.
const TABLES: usize = 22;

/// The number of looks of a reader before it waits for the writers.
const LOOKS: u32 = 8;
