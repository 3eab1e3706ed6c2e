//! A page that loses its connection for a moment must not lose the moment: what happened then is
//! what its reader is looking for. So everything told to pages is kept for a while in one bounded
//! ring, numbered, and a subscriber is only a position in it. One that reads slowly, or comes back,
//! goes on from its position; nothing is buffered for it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value as Json;
use tokio::sync::watch;

use crate::clock::unix_ms;
use crate::config::HISTORY_MAX;

/// The events of a connection or of the service, in the order they happened.
const EVENTS_KEPT: usize = HISTORY_MAX;
/// Snapshots, one a second: as much past as a page shows.
const TICKS_KEPT: usize = 300;
/// Frames handed to one subscriber at a time.
const BATCH: usize = 64;

/// The events and snapshots that every page is told, with those told lately.
#[derive(Debug)]
pub(crate) struct EventFeed {
    /// Tells this run of the service from the last one, whose numbers mean nothing here.
    run: String,
    rings: Mutex<Rings>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Rings {
    events: VecDeque<FeedFrame>,
    ticks: VecDeque<FeedFrame>,
    seq: u64,
}

#[derive(Debug, Clone)]
struct FeedFrame {
    seq: u64,
    text: Bytes,
    json: Option<Json>,
}

impl EventFeed {
    pub(crate) fn new(started_ms: u64) -> Self {
        Self {
            run: format!("{started_ms:x}"),
            rings: Mutex::default(),
            newest: watch::channel(0).0,
        }
    }

    /// Tells and keeps an event.
    pub(crate) fn event(&self, name: &str, data: &impl Serialize) {
        self.push(name, data, false);
    }

    /// Tells and keeps an event that takes the place of others: of those for which `replaced`
    /// holds, which are told to nobody any more.
    pub(crate) fn event_for(
        &self,
        name: &str,
        data: &impl Serialize,
        replaced: impl Fn(&Json) -> bool,
    ) {
        let kept = |frame: &FeedFrame| !frame.json.as_ref().is_some_and(&replaced);
        self.rings.lock().events.retain(kept);
        self.event(name, data);
    }

    /// Tells and keeps an event of the service itself.
    pub(crate) fn tell(&self, event: &str, details: Json) {
        #[derive(Serialize)]
        struct ServiceEvent<'a> {
            at_ms: u64,
            event: &'a str,
            #[serde(flatten)]
            details: Json,
        }
        let at_ms = unix_ms();
        let told = ServiceEvent {
            at_ms,
            event,
            details,
        };
        self.event("service", &told);
    }

    /// Tells and keeps a snapshot.
    pub(crate) fn tick(&self, data: &impl Serialize) {
        self.push("tick", data, true);
    }

    /// The last events, oldest first, at most `most`.
    pub(crate) fn history(&self, most: usize) -> Vec<Json> {
        let rings = self.rings.lock();
        let skip = rings.events.len().saturating_sub(most);
        let kept = rings.events.iter().skip(skip);
        kept.filter_map(|frame| frame.json.clone()).collect()
    }

    fn push(&self, name: &str, data: &impl Serialize, tick: bool) {
        let Ok(json) = serde_json::to_value(data) else {
            return;
        };
        let mut rings = self.rings.lock();
        rings.seq += 1;
        let seq = rings.seq;
        let text = format!("id: {}-{seq}\nevent: {name}\ndata: {json}\n\n", self.run);
        let (ring, keep) = if tick {
            (&mut rings.ticks, TICKS_KEPT)
        } else {
            (&mut rings.events, EVENTS_KEPT)
        };
        if ring.len() == keep {
            ring.pop_front();
        }
        ring.push_back(FeedFrame {
            seq,
            text: Bytes::from(text),
            json: (!tick).then_some(json),
        });
        // Under the lock, so that the number never runs ahead of what is kept.
        self.newest.send_replace(seq);
    }

    /// The position after `last_event_id`, or the beginning if it is missing, malformed or of
    /// another run.
    pub(crate) fn subscribe(&self, last_event_id: Option<&str>) -> Position {
        let resumed = last_event_id
            .and_then(|id| id.rsplit_once('-'))
            .filter(|(run, _)| *run == self.run)
            .and_then(|(_, seq)| seq.parse().ok());
        let newest = *self.newest.borrow();
        Position {
            seq: resumed.unwrap_or(0).min(newest),
            newest: self.newest.subscribe(),
        }
    }

    /// Returns what comes after the position, as soon as there is any; `None` after `quiet`.
    pub(crate) async fn next(&self, position: &mut Position, quiet: Duration) -> Option<Bytes> {
        let after = position.seq;
        let wait = position.newest.wait_for(|newest| *newest > after);
        tokio::time::timeout(quiet, wait).await.ok()?.ok()?;
        Some(self.after(position))
    }

    fn after(&self, position: &mut Position) -> Bytes {
        let rings = self.rings.lock();
        let from =
            |ring: &VecDeque<FeedFrame>| ring.partition_point(|frame| frame.seq <= position.seq);
        let mut frames: Vec<&FeedFrame> = rings.events.range(from(&rings.events)..).collect();
        frames.extend(rings.ticks.range(from(&rings.ticks)..));
        frames.sort_unstable_by_key(|frame| frame.seq);
        frames.truncate(BATCH);
        position.seq = frames.last().map_or(rings.seq, |frame| frame.seq);
        if let [only] = frames.as_slice() {
            return only.text.clone();
        }
        let mut text = Vec::with_capacity(frames.iter().map(|frame| frame.text.len()).sum());
        for frame in frames {
            text.extend_from_slice(&frame.text);
        }
        Bytes::from(text)
    }
}

/// The position of a subscriber.
#[derive(Debug)]
pub(crate) struct Position {
    seq: u64,
    newest: watch::Receiver<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(feed: &EventFeed, position: &mut Position) -> String {
        let mut text = String::new();
        while let Some(bytes) = feed.next(position, Duration::ZERO).await {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn s5_a_subscriber_that_comes_back_misses_nothing_and_gets_nothing_twice() {
        let feed = EventFeed::new(7);
        feed.event("one", &1);
        let mut position = feed.subscribe(None);
        assert_eq!(
            read(&feed, &mut position).await,
            "id: 7-1\nevent: one\ndata: 1\n\n"
        );
        feed.tick(&2);
        feed.event("three", &3);
        let mut again = feed.subscribe(Some("7-1"));
        let text = read(&feed, &mut again).await;
        assert_eq!(
            text,
            "id: 7-2\nevent: tick\ndata: 2\n\nid: 7-3\nevent: three\ndata: 3\n\n"
        );
        assert_eq!(read(&feed, &mut again).await, "");
    }

    #[tokio::test]
    async fn a_position_of_another_run_begins_anew() {
        let feed = EventFeed::new(7);
        feed.event("one", &1);
        for id in ["6-1", "7-x", "", "-", "7-99999999999999999999"] {
            let mut position = feed.subscribe(Some(id));
            assert!(read(&feed, &mut position).await.contains("7-1"), "{id}");
        }
        let mut ahead = feed.subscribe(Some("7-99"));
        feed.event("two", &2);
        assert!(read(&feed, &mut ahead).await.contains("7-2"));
    }

    #[tokio::test]
    async fn memory_is_bounded_and_snapshots_do_not_push_events_out() {
        let feed = EventFeed::new(1);
        feed.event("kept", &1);
        for n in 0..TICKS_KEPT * 3 {
            feed.tick(&n);
        }
        assert_eq!(feed.rings.lock().ticks.len(), TICKS_KEPT);
        let text = read(&feed, &mut feed.subscribe(None)).await;
        assert!(text.starts_with("id: 1-1\nevent: kept\n"));
        assert_eq!(text.matches("event: tick").count(), TICKS_KEPT);
        for n in 0..EVENTS_KEPT * 2 {
            feed.event("many", &n);
        }
        assert_eq!(feed.rings.lock().events.len(), EVENTS_KEPT);
        assert_eq!(feed.history(10).len(), 10);
    }

    #[tokio::test]
    async fn s5_an_event_that_grows_is_kept_once() {
        let feed = EventFeed::new(1);
        feed.event("service", &"other");
        for n in 0..500 {
            feed.event_for("connection", &n, Json::is_number);
        }
        assert_eq!(feed.history(10), [Json::from("other"), Json::from(499)]);
        let text = read(&feed, &mut feed.subscribe(None)).await;
        assert_eq!(text.matches("event: connection").count(), 1, "{text}");
    }

    #[tokio::test]
    async fn a_quiet_feed_is_told_as_such() {
        let feed = EventFeed::new(1);
        let mut position = feed.subscribe(None);
        assert!(
            feed.next(&mut position, Duration::from_millis(1))
                .await
                .is_none()
        );
    }
}
