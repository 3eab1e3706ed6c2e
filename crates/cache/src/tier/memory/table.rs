//! A part of the memory tier: its entries by the hashes of their keys.
//!
//! A look-up takes no lock that others need who look for something else: the lock lies in the same
//! line of the processor's cache as the slots that it guards, and that line has to be fetched
//! anyway. Under it nothing runs that others have written: a reader copies out what certainly is
//! none of theirs, or a reference to the entry. Slots, what tells which of them is the right one,
//! and the lock lie in one place; with the entry, that is two places in memory.
//!
//! Writers have a lock for the whole shard besides, and give that of a line back between any two
//! steps. What is taken out is handed to the caller, who drops it when no lock is held. Entries
//! that stay never move but in two cases, a hole that is closed behind one that was taken out, and
//! a larger table. Then each is put into its new slot before it leaves its old one, and `moves` is
//! counted before and after. A reader that finds nothing looks again if that count has changed, for
//! it may have looked at the right slots at the wrong times.

use std::array;
use std::hint;
use std::mem;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
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

/// As many slots as the processor fetches at a time, and the lock for what lies in them.
#[repr(align(64))]
struct Line {
    entries: RwLock<[Option<Arc<Entry>>; SLOTS]>,
    /// The places in the queues; for writers only.
    nodes: [AtomicU32; SLOTS],
    /// A part of each hash, never zero; zero if there is no entry.
    marks: [AtomicU16; SLOTS],
}

struct Content {
    node: u32,
    entry: Arc<Entry>,
}

/// Entries that were taken out, to be dropped when no lock is held.
pub(super) type Removed = SmallVec<[Arc<Entry>; 4]>;

/// An entry that was found, and that stays where it is while this is held.
struct Found<'t> {
    at: usize,
    line: RwLockReadGuard<'t, [Option<Arc<Entry>>; SLOTS]>,
}

impl Shard {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            tables: array::from_fn(|_| OnceLock::new()),
            current: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            writers: Apart(Mutex::new(Queues::new(capacity))),
        }
    }

    /// Answers with what is to be said of the entry of this key. It is said while a lock is held,
    /// so nothing may be called that others have written.
    #[inline]
    pub(super) fn ask<R>(
        &self,
        hash: u64,
        key: &[u8],
        ask: impl FnOnce(&Arc<Entry>) -> Option<R>,
    ) -> Option<R> {
        let moves = self.moves.load(Ordering::SeqCst);
        let found = match self.table().and_then(|table| table.find(hash, key)) {
            Some(found) => found,
            None if moves.is_multiple_of(2) && self.moves.load(Ordering::SeqCst) == moves => {
                return None;
            }
            None => self.look_again(hash, key)?,
        };
        ask(found.entry()?)
    }

    /// Finds an entry that may have been on the move.
    #[cold]
    fn look_again(&self, hash: u64, key: &[u8]) -> Option<Found<'_>> {
        for _ in 0..LOOKS {
            let moves = self.moves.load(Ordering::SeqCst);
            if let Some(found) = self.table().and_then(|table| table.find(hash, key)) {
                return Some(found);
            }
            if moves.is_multiple_of(2) && self.moves.load(Ordering::SeqCst) == moves {
                return None;
            }
            hint::spin_loop();
        }
        let _still = self.writers.0.lock();
        self.table()?.find(hash, key)
    }

    /// Puts an entry into the place of what has the same key, or into one of its own, for which
    /// others may have to go. One that is heavier than the whole shard finds none. Says whether it
    /// is there now.
    pub(super) fn insert(&self, hash: u64, entry: &Arc<Entry>) -> (bool, Removed) {
        let mut removed = Removed::new();
        let mut queues = self.writers.0.lock();
        let table = self.table();
        let there = table.and_then(|table| Some((table, table.find(hash, entry.key())?)));
        let is_too_heavy = u64::from(entry.weight) > queues.capacity();
        if let Some((table, found)) = there {
            if let Some(previous) = found.entry() {
                entry.follow(previous);
            }
            let at = found.at;
            drop(found);
            if is_too_heavy {
                removed.extend(self.take_out(table, &mut queues, at));
                return (false, removed);
            }
            let node = table.node(at);
            queues.unlink(node);
            self.make_room(&mut queues, entry.weight, &mut removed);
            queues.relink(node, entry.weight);
            removed.extend(table.exchange(queues.slot(node) as usize, Some(Arc::clone(entry))));
        } else if !is_too_heavy {
            self.make_room(&mut queues, entry.weight, &mut removed);
            let Some(table) = self.table_with_room(&mut queues, &mut removed) else {
                return (false, removed);
            };
            let node = queues.enter(hash, entry.weight);
            table.put(&mut queues, node, Arc::clone(entry));
        }
        (!is_too_heavy, removed)
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
        let found = table.find(hash, key)?;
        if !is_meant(found.entry()?) {
            return None;
        }
        let at = found.at;
        drop(found);
        self.take_out(table, &mut queues, at)
    }

    pub(super) fn clear(&self) -> Vec<Arc<Entry>> {
        let mut queues = self.writers.0.lock();
        queues.clear();
        let lines = self.table().into_iter().flat_map(|table| &table.0);
        lines.flat_map(Line::clear).flatten().collect()
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
            let (line, lane) = table.line(at as usize);
            let entries = line.entries.read();
            let entry = entries[lane].as_ref();
            entry.map_or(0, |entry| entry.visits(then == Then::Forget))
        })?;
        let entry = self.close(table, queues, queues.slot(node) as usize);
        queues.forget(node);
        entry
    }

    fn take_out(&self, table: &Table, queues: &mut Queues, at: usize) -> Option<Arc<Entry>> {
        queues.leave(table.node(at));
        self.close(table, queues, at)
    }

    /// Takes an entry out of its slot. What lies behind it moves up as long as it is not where it
    /// belongs, or a look-up would end at the hole.
    fn close(&self, table: &Table, queues: &mut Queues, at: usize) -> Option<Arc<Entry>> {
        let (mut hole, mut at, mut taken) = (at, at, None);
        let mut moving = None;
        loop {
            at = table.next(at);
            if table.mark(at) == 0 {
                break;
            }
            let node = table.node(at);
            let home = table.home(queues.hash(node));
            if table.distance(home, at) < table.distance(hole, at) {
                continue;
            }
            moving.get_or_insert_with(|| Moving::begin(&self.moves));
            let before = table.fill(hole, queues.hash(node), node, table.entry(at));
            taken = taken.or(before);
            queues.set_slot(node, hole as u32);
            hole = at;
        }
        let before = table.vacate(hole);
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
            Table::new(lines, table.content(), queues)
        });
        let moving = Moving::begin(&self.moves);
        self.current.store(current + 1, Ordering::SeqCst);
        drop(moving);
        // Whatever is dropped here lies in the larger table too.
        table.0.iter().for_each(|line| drop(line.clear()));
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
        let mut line = || Line::new(array::from_fn(|_| places.next().flatten()), queues);
        Self((0..lines).map(|_| line()).collect())
    }

    /// The number of entries that it may hold: with more, look-ups would become long.
    fn room(&self) -> usize {
        self.0.len() * SLOTS / 8 * 5
    }

    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<Found<'_>> {
        let (mark, home) = (mark(hash), self.home(hash));
        let mut at = home;
        loop {
            let (line, lane) = self.line(at);
            let seen = line.marks[lane].load(Ordering::Acquire);
            if seen == mark {
                let line = line.entries.read();
                if line[lane].as_ref().is_some_and(|entry| entry.key() == key) {
                    return Some(Found { at, line });
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
        while self.mark(at) != 0 {
            at = self.next(at);
        }
        self.fill(at, hash, node, Some(entry));
        queues.set_slot(node, at as u32);
    }

    fn fill(
        &self,
        at: usize,
        hash: u64,
        node: u32,
        entry: Option<Arc<Entry>>,
    ) -> Option<Arc<Entry>> {
        let (line, lane) = self.line(at);
        line.nodes[lane].store(node, Ordering::Relaxed);
        let before = self.exchange(at, entry);
        line.marks[lane].store(mark(hash), Ordering::Release);
        before
    }

    fn vacate(&self, at: usize) -> Option<Arc<Entry>> {
        let (line, lane) = self.line(at);
        line.marks[lane].store(0, Ordering::Release);
        self.exchange(at, None)
    }

    /// Whatever was there is for the caller to drop: the lock of the line is given back by then.
    fn exchange(&self, at: usize, entry: Option<Arc<Entry>>) -> Option<Arc<Entry>> {
        let (line, lane) = self.line(at);
        mem::replace(&mut line.entries.write()[lane], entry)
    }

    #[inline]
    fn line(&self, at: usize) -> (&Line, usize) {
        (&self.0[at / SLOTS], at % SLOTS)
    }

    fn mark(&self, at: usize) -> u16 {
        let (line, lane) = self.line(at);
        line.marks[lane].load(Ordering::Relaxed)
    }

    fn node(&self, at: usize) -> u32 {
        let (line, lane) = self.line(at);
        line.nodes[lane].load(Ordering::Relaxed)
    }

    fn entry(&self, at: usize) -> Option<Arc<Entry>> {
        let (line, lane) = self.line(at);
        line.entries.read()[lane].clone()
    }

    fn content(&self) -> impl Iterator<Item = Content> {
        (0..self.0.len() * SLOTS).filter_map(|at| {
            Some(Content {
                node: self.node(at),
                entry: self.entry(at)?,
            })
        })
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

impl Line {
    fn new(content: [Option<Content>; SLOTS], queues: &Queues) -> Self {
        let node = |content: &Content| content.node;
        let nodes = content.each_ref().map(|it| it.as_ref().map_or(0, node));
        let marks = content.each_ref().map(|it| {
            let hash = it.as_ref().map(|content| queues.hash(content.node));
            AtomicU16::new(hash.map_or(0, mark))
        });
        Self {
            entries: RwLock::new(content.map(|it| it.map(|content| content.entry))),
            nodes: nodes.map(AtomicU32::new),
            marks,
        }
    }

    fn clear(&self) -> [Option<Arc<Entry>>; SLOTS] {
        for mark in &self.marks {
            mark.store(0, Ordering::Release);
        }
        mem::take(&mut *self.entries.write())
    }
}

impl Found<'_> {
    #[inline]
    fn entry(&self) -> Option<&Arc<Entry>> {
        self.line[self.at % SLOTS].as_ref()
    }
}

#[inline]
fn mark(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

const SLOTS: usize = 4;

const _: () = assert!(size_of::<Line>() == 64, "one place in memory");

/// The number of lines of the first table.
const SMALLEST: usize = 16;

/// The last has 128 million slots.
const TABLES: usize = 22;

/// The number of looks of a reader before it waits for the writers.
const LOOKS: u32 = 8;
