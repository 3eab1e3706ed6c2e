//! The readers who will ask together, from the first to come until Redis is asked for them.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Id;

use super::seats::{Seated, Seats};
use crate::monotonic::Monotonic;
use crate::tier::redis::answer::{EpochView, RedisResult};
use crate::tier::redis::look::{Found, Wanted};
use crate::tier::redis::names::Names;

/// The gatherings for which Redis has not been asked yet.
#[derive(Default)]
pub(super) struct Open {
    /// The number of the gathering that is opened next.
    pub(super) next: u64,
    pub(super) gathering: Option<Gathering>,
    /// Those that nobody joins any more, and whose task has not run yet.
    pub(super) due: Vec<Gathering>,
    pub(super) watch: WatchState,
    /// What gatherings that are over have left to others.
    left: Vec<Room>,
}

/// Readers who will ask together.
pub(super) struct Gathering {
    pub(super) number: u64,
    pub(super) began: Monotonic,
    /// All of them run in this runtime.
    pub(super) runtime: Id,
    /// All of them believe in this epoch, of this server. Its watermark is the highest that one of
    /// them expects.
    pub(super) epoch_view: EpochView,
    pub(super) room: Room,
}

/// The memory that a gathering takes. It is used again by others: so much at once, asked for and
/// given back with each question, made every small piece dearer.
pub(super) struct Room {
    pub(super) readers: Vec<Reader>,
    /// The names of their values, one behind the other.
    pub(super) names: Vec<u8>,
    /// Told of the answer; if they are dropped, that nobody has asked.
    pub(super) seats: Seats<Part>,
}

pub(super) struct Reader {
    /// The number of its seat.
    pub(super) seat: usize,
    /// The place of its value's name among the names.
    pub(super) value: Range<usize>,
    pub(super) tags: Vec<Vec<u8>>,
}

/// A reader that is to join those who ask together.
pub(super) struct Newcomer<'a> {
    pub(super) wanted: &'a Wanted<'a>,
    pub(super) epoch_view: &'a EpochView,
    pub(super) came: Monotonic,
    pub(super) runtime: Id,
}

/// The steps that follow a reader's coming.
pub(super) enum Step {
    /// Nothing: another sees to it.
    None,
    /// The gathering of this number is to be asked for after a turn.
    Wait(u64),
    /// The gathering of this number is to be asked for at once.
    Ask(u64),
}

/// What becomes of a reader that has joined others, and when; nothing, if nobody has asked.
pub(super) struct Part {
    /// Without an answer the question has failed, perhaps because of another's value: it is to be
    /// asked alone.
    pub(super) answer: Option<RedisResult<Found>>,
    pub(super) at: Monotonic,
}

/// How far the thread has looked at the gatherings of a tier.
#[derive(Default)]
pub(super) struct WatchState {
    pub(super) is_watched: bool,
    /// The number of the gathering that was to be opened next, at the last look.
    seen: u64,
    /// Looks in a row at which there was nothing new.
    idle: u32,
    /// Looks in a row at which somebody was sent away, and in between Redis was asked for nobody.
    pub(super) late: u32,
}

impl WatchState {
    /// Says that there is something to look at; returns whether nobody looks at it yet.
    pub(super) fn begins(&mut self) -> bool {
        !mem::replace(&mut self.is_watched, true)
    }

    #[cfg(test)]
    pub(super) fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// As if somebody looked already, or nobody yet.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, is_watched: bool) {
        self.is_watched = is_watched;
    }

    /// Says that the task of a gathering has run.
    pub(super) fn runs(&mut self) {
        self.late = 0;
    }
}

impl Open {
    /// Adds a reader; `None` if it has to ask alone.
    pub(super) fn add(
        &mut self,
        newcomer: &Newcomer<'_>,
        names: &Names,
        most: usize,
    ) -> Option<(Step, Seated<Part>)> {
        let (epoch_view, now) = (newcomer.epoch_view, newcomer.came);
        let Some(open) = &mut self.gathering else {
            let number = self.next;
            self.next += 1;
            let room = self.left.iter_mut().position(|left| left.seats.clear());
            let room = room.map(|place| self.left.swap_remove(place));
            let gathering = self.gathering.insert(Gathering {
                number,
                began: now,
                runtime: newcomer.runtime,
                epoch_view: epoch_view.clone(),
                room: room.unwrap_or_else(|| Room::new(most)),
            });
            return Some((Step::Wait(number), gathering.seat(newcomer, names)));
        };
        let overdue = now.since(open.began) > OVERDUE.into();
        if !open.admits(newcomer.runtime, epoch_view) {
            return None;
        }
        let seated = open.seat(newcomer, names);
        let watermark = &mut open.epoch_view.watermark;
        *watermark = epoch_view.watermark.max(*watermark);
        if overdue || open.room.readers.len() >= most {
            let gathering = self.gathering.take()?;
            let number = gathering.number;
            self.due.push(gathering);
            return Some((Step::Ask(number), seated));
        }
        Some((Step::None, seated))
    }

    /// The number of gatherings whose memory is kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.left.len()
    }

    /// Keeps the memory of a gathering that is over.
    pub(super) fn take_back(&mut self, mut room: Room) {
        if self.left.len() < LEFT && room.names.capacity() <= LONG_NAMES {
            room.readers.clear();
            room.names.clear();
            self.left.push(room);
        }
    }

    /// Takes those that were there at the last look.
    pub(super) fn look(&mut self) -> Vec<Gathering> {
        let seen = mem::replace(&mut self.watch.seen, self.next);
        let is_late = |gathering: &mut Gathering| gathering.number < seen;
        let mut late: Vec<_> = self.due.extract_if(.., is_late).collect();
        late.extend(self.gathering.take_if(is_late));
        let is_new = self.next != seen || self.gathering.is_some() || !self.due.is_empty();
        self.watch.idle = if is_new { 0 } else { self.watch.idle + 1 };
        self.watch.is_watched = self.watch.idle < AT_REST;
        if !late.is_empty() {
            self.watch.late += 1;
        }
        late
    }
}

impl Gathering {
    /// Whether a reader of this runtime may ask along that believes in this.
    fn admits(&self, runtime: Id, epoch_view: &EpochView) -> bool {
        self.runtime == runtime
            && Arc::ptr_eq(&self.epoch_view.epoch, &epoch_view.epoch)
            && self.epoch_view.server == epoch_view.server
    }

    pub(super) fn name_of(&self, reader: &Reader) -> &[u8] {
        &self.room.names[reader.value.clone()]
    }

    /// Gives a reader a seat.
    fn seat(&mut self, newcomer: &Newcomer<'_>, names: &Names) -> Seated<Part> {
        let (wanted, room) = (newcomer.wanted, &mut self.room);
        let begin = room.names.len();
        names.add_value(&newcomer.epoch_view.epoch, wanted.key, &mut room.names);
        room.readers.push(Reader {
            seat: room.readers.len(),
            value: begin..room.names.len(),
            tags: match wanted.tags {
                [] => Vec::new(),
                tags => tags.iter().map(|tag| names.tag(tag)).collect(),
            },
        });
        room.seats.take()
    }
}

impl Room {
    fn new(most: usize) -> Self {
        Self {
            readers: Vec::with_capacity(most),
            names: Vec::with_capacity(most * TYPICAL_NAME),
            seats: Seats::with_capacity(most),
        }
    }
}

/// So much is kept that gatherings have left: some are asked for while the readers of others have
/// not looked at their answers.
const LEFT: usize = 8;

/// What has had room for longer names is not kept.
const LONG_NAMES: usize = 64 << 10;

/// The bytes of the name of a value, for which there is room from the beginning.
const TYPICAL_NAME: usize = 80;

/// The time after which a gathering should have been closed.
pub(super) const OVERDUE: Duration = Duration::from_millis(1);

/// After so many looks in a row at which there was nothing, a tier is at rest.
const AT_REST: u32 = 200;
