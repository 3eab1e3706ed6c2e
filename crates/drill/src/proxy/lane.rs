//! The lane of one direction of one connection: what is read, what becomes of it, what is written.
//!
//! With no fault on it, a lane is a buffer that is filled from one socket and emptied into the
//! other. With faults, what is read passes through their stages one after another, each of which
//! says when it may go on, and waits in a queue until then.

use super::exchange::Exchange;
use super::{ToxicId, Way};
use crate::fault::{Admits, Item, Out, Stage};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How things stand with a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// The direction is open.
    Open,
    /// All that there was has been written, the end too; or nobody is there any more to write to.
    Finished,
    /// Both sides of the connection are to be closed.
    Close,
    /// Both sides of the connection are to be reset.
    Reset,
}

pub(super) struct Lane {
    way: Way,
    flow: Flow,
    /// The sender has said all it will say.
    ended: bool,
    buffer: Box<[u8]>,
    /// The part of the buffer that has been read and not been written yet.
    filled: Range<usize>,
    stages: Vec<(ToxicId, Box<dyn Stage>)>,
    /// The pieces that are on their way, by the moment from which each may go on.
    queue: VecDeque<(Instant, Item)>,
    queued_bytes: usize,
    /// The piece that is being written.
    writing: Bytes,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Read at once, at most. A pipeline of a thousand commands fits.
const BUFFER: usize = 64 << 10;

/// Bytes that may wait in a lane's queue before its sender is no longer read from. The worst case
/// of memory per lane.
const QUEUE_LIMIT: usize = 16 << 20;

impl Lane {
    pub(super) fn new(way: Way) -> Self {
        Self {
            way,
            flow: Flow::Open,
            ended: false,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            filled: 0..0,
            stages: Vec::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            writing: Bytes::new(),
            timer: None,
        }
    }

    pub(super) fn has_stage(&self, id: ToxicId) -> bool {
        self.stages.iter().any(|(placed, _)| *placed == id)
    }

    pub(super) fn add(&mut self, id: ToxicId, stage: Box<dyn Stage>) {
        self.stages.push((id, stage));
    }

    /// Removes the stages that are not to `stay`. What they kept, and what they made wait, goes on
    /// at once.
    pub(super) fn retain(&mut self, now: Instant, stay: impl Fn(ToxicId) -> bool) {
        while let Some(place) = self.stages.iter().position(|(id, _)| !stay(*id)) {
            self.queue.iter_mut().for_each(|(due, _)| *due = now);
            let (_, mut stage) = self.stages.remove(place);
            let mut kept = Out::new();
            stage.release(now, &mut kept);
            self.pass_from(place, kept);
        }
    }

    /// Puts `stage` in the place of that of `old`, if it is here. What the old one kept goes on
    /// through the new one; that it would end the connection where it is removed does not matter,
    /// as the fault goes on.
    pub(super) fn replace(
        &mut self,
        now: Instant,
        old: ToxicId,
        id: ToxicId,
        stage: Option<Box<dyn Stage>>,
    ) {
        let Some(place) = self.stages.iter().position(|(placed, _)| *placed == old) else {
            return;
        };
        self.queue.iter_mut().for_each(|(due, _)| *due = now);
        let (_, mut before) = self.stages.remove(place);
        let mut kept = Out::new();
        before.release(now, &mut kept);
        kept.retain(|(_, item)| matches!(item, Item::Bytes(_) | Item::End));
        if let Some(stage) = stage {
            self.stages.insert(place, (id, stage));
        }
        self.pass_from(place, kept);
    }

    /// Lets an item set out.
    pub(super) fn feed(&mut self, item: Item, now: Instant) {
        self.pass_from(0, vec![(now, item)]);
    }

    /// Reads, writes and waits as far as it can without blocking.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        mut exchange: Option<&mut Exchange>,
        read: &AtomicU64,
    ) -> Flow {
        loop {
            let now = tokio::time::Instant::now().into_std();
            self.wake_stages(now);
            self.write(cx, to, now, exchange.as_deref_mut());
            if self.flow != Flow::Open {
                return self.flow;
            }
            let progress = self.read(cx, from, now, exchange.as_deref_mut(), read);
            if !progress && !self.timer_fires(cx, now) {
                return Flow::Open;
            }
        }
    }

    fn wake_stages(&mut self, now: Instant) {
        for place in 0..self.stages.len() {
            let (_, stage) = &mut self.stages[place];
            if stage.due().is_some_and(|due| due <= now) {
                let mut out = Out::new();
                stage.wake(now, &mut out);
                self.pass_from(place + 1, out);
            }
        }
    }

    /// Sends items through the stages from that place on, into the queue.
    fn pass_from(&mut self, place: usize, mut items: Out) {
        for (_, stage) in self.stages.iter_mut().skip(place) {
            let mut out = Out::with_capacity(items.len());
            for (at, item) in items {
                stage.pass(item, at, &mut out);
            }
            items = out;
        }
        for (due, item) in items {
            if let Item::Bytes(bytes) = &item {
                self.queued_bytes += bytes.len();
            }
            // Stages keep the order of bytes; only an order to close or reset may overtake.
            let place = self.queue.partition_point(|(other, _)| *other <= due);
            self.queue.insert(place, (due, item));
        }
    }

    /// Reads once; whether anything came of it.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        now: Instant,
        exchange: Option<&mut Exchange>,
        count: &AtomicU64,
    ) -> bool {
        let admits = self
            .stages
            .iter()
            .all(|(_, stage)| match stage.admits(now) {
                Admits::Now => true,
                Admits::From(then) => then <= now,
                Admits::Full | Admits::Nothing => false,
            });
        let admits = admits
            && exchange
                .as_deref()
                .is_none_or(|exchange| exchange.admits(self.way));
        if self.ended || !admits || !self.filled.is_empty() || self.queued_bytes >= QUEUE_LIMIT {
            return false;
        }
        let mut buffer = ReadBuf::new(&mut self.buffer);
        let outcome = match Pin::new(from).poll_read(cx, &mut buffer) {
            Poll::Pending => return false,
            Poll::Ready(outcome) => outcome.map(|()| buffer.filled().len()),
        };
        match outcome {
            Ok(0) => self.end(Item::End, now),
            Err(_) => self.end(Item::Reset, now),
            Ok(length) => {
                count.fetch_add(length as u64, Ordering::Relaxed);
                self.take(length, now, exchange);
            }
        }
        true
    }

    fn end(&mut self, item: Item, now: Instant) {
        self.ended = true;
        self.feed(item, now);
    }

    /// The buffer holds `length` new bytes.
    fn take(&mut self, length: usize, now: Instant, exchange: Option<&mut Exchange>) {
        if exchange.is_none()
            && self.stages.is_empty()
            && self.queue.is_empty()
            && self.writing.is_empty()
        {
            self.filled = 0..length;
            return;
        }
        let mut bytes = Bytes::copy_from_slice(&self.buffer[..length]);
        if let (Some(exchange), Way::Down) = (exchange, self.way) {
            bytes = exchange.replies(&bytes, now);
        }
        if !bytes.is_empty() {
            self.feed(Item::Bytes(bytes), now);
        }
    }

    /// Writes what is due, until there is no more or the receiver takes no more.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        now: Instant,
        mut exchange: Option<&mut Exchange>,
    ) {
        if self.is_stalled(now) {
            self.flow = self.ordered(now);
            return;
        }
        while self.flow == Flow::Open {
            if !self.filled.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, &self.buffer[self.filled.clone()]) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(length)) => self.filled.start += length,
                    Poll::Ready(Err(_)) => self.lose(),
                }
            } else if !self.writing.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, &self.writing) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(length)) => self.writing.advance(length),
                    Poll::Ready(Err(_)) => self.lose(),
                }
            } else if self.queue.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, item)) = self.queue.pop_front() else {
                    return;
                };
                self.set_out(item, cx, to, now, exchange.as_deref_mut());
            } else {
                return;
            }
        }
    }

    fn set_out(
        &mut self,
        item: Item,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        now: Instant,
        exchange: Option<&mut Exchange>,
    ) {
        match item {
            Item::Bytes(bytes) => {
                self.queued_bytes -= bytes.len();
                self.writing = match exchange {
                    Some(exchange) if self.way == Way::Up => exchange.requests(&bytes, now),
                    _ => bytes,
                };
            }
            Item::End => {
                // Nothing is left to be flushed, so this does not wait.
                let _ = Pin::new(to).poll_shutdown(cx);
                self.flow = Flow::Finished;
            }
            Item::Close => self.flow = Flow::Close,
            Item::Reset => self.flow = Flow::Reset,
        }
    }

    /// The receiver is gone. Its own lane tells the sender so, when its faults let it.
    fn lose(&mut self) {
        self.flow = Flow::Finished;
        self.filled = 0..0;
        self.writing = Bytes::new();
        self.queue.clear();
    }

    fn is_stalled(&self, now: Instant) -> bool {
        self.stages
            .iter()
            .any(|(_, stage)| stage.admits(now) == Admits::Nothing)
    }

    /// An order to close or reset the connection that is due, which holds even where bytes are
    /// stalled.
    fn ordered(&self, now: Instant) -> Flow {
        let due = self.queue.iter().take_while(|(due, _)| *due <= now);
        let orders = due.filter_map(|(_, item)| match item {
            Item::Close => Some(Flow::Close),
            Item::Reset => Some(Flow::Reset),
            Item::Bytes(_) | Item::End => None,
        });
        orders.last().unwrap_or(self.flow)
    }

    /// Asks to be woken when something is due; whether that is already so.
    fn timer_fires(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.stages.is_empty() && self.queue.is_empty() {
            return false;
        }
        let wakes = self.stages.iter().filter_map(|(_, stage)| stage.due());
        let admissions = self
            .stages
            .iter()
            .filter_map(|(_, stage)| match stage.admits(now) {
                Admits::From(then) => Some(then),
                _ => None,
            });
        let waiting = self.writing.is_empty() && self.filled.is_empty();
        let front = self
            .queue
            .iter()
            .map(|(due, _)| *due)
            .find(|due| *due > now || (waiting && !self.is_stalled(now)));
        let Some(due) = wakes.chain(admissions).chain(front).min() else {
            return false;
        };
        let due = tokio::time::Instant::from_std(due);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}
