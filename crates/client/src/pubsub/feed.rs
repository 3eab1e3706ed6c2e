//! From the subscriber's task to whoever listens, who may be slow.
//!
//! The task never waits for its listener, or a slow one would make the connection look dead. What
//! does not fit is counted instead; the count, and what became of the connection, are owed to the
//! listener and told as soon as there is room, whether or not anything else is heard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::{Notify, mpsc};

use super::PubSubEvent;

/// The task's end.
pub(super) struct Feed {
    events: mpsc::Sender<PubSubEvent>,
    waiting: Arc<Unread>,
    most_bytes: usize,
    /// The events that there was no room for, as few as tell them.
    owed: VecDeque<PubSubEvent>,
}

/// The listener's end.
#[derive(Debug)]
pub(super) struct FeedReader {
    events: mpsc::Receiver<PubSubEvent>,
    waiting: Arc<Unread>,
}

/// The messages that wait.
#[derive(Debug, Default)]
struct Unread {
    bytes: AtomicUsize,
    fewer: Notify,
}

/// Messages that wait for a listener.
const QUEUE: usize = 4096;
/// Words owed, at most: beyond, losses that are over are left out.
const OWED: usize = 16;

pub(super) fn pair(most_bytes: usize) -> (Feed, FeedReader) {
    let (sender, events) = mpsc::channel(QUEUE);
    let waiting = Arc::new(Unread::default());
    let feed = Feed {
        events: sender,
        waiting: Arc::clone(&waiting),
        most_bytes,
        owed: VecDeque::new(),
    };
    (feed, FeedReader { events, waiting })
}

impl Feed {
    /// Never waits.
    pub(super) fn tell(&mut self, event: PubSubEvent) {
        self.settle();
        let size = size(&event);
        if self.owed.is_empty() && (size == 0 || self.fits()) {
            self.waiting.bytes.fetch_add(size, Ordering::Relaxed);
            if let Err(error) = self.events.try_send(event) {
                self.waiting.bytes.fetch_sub(size, Ordering::Relaxed);
                self.owe(error.into_inner());
            }
        } else {
            self.owe(event);
        }
    }

    /// Ends when something that is owed can be told: then [`settle`](Self::settle). Never, if
    /// nothing is.
    pub(super) async fn room(&self) {
        while !self.owed.is_empty() && !self.fits() {
            self.waiting.fewer.notified().await;
        }
        if self.owed.is_empty() || self.events.reserve().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn fits(&self) -> bool {
        self.waiting.bytes.load(Ordering::Relaxed) < self.most_bytes
    }

    pub(super) fn settle(&mut self) {
        while !self.owed.is_empty()
            && self.fits()
            && let Ok(permit) = self.events.try_reserve()
            && let Some(event) = self.owed.pop_front()
        {
            permit.send(event);
        }
    }

    fn owe(&mut self, event: PubSubEvent) {
        let event = match (event, self.owed.back_mut()) {
            (PubSubEvent::Message { .. }, Some(PubSubEvent::Dropped { messages })) => {
                *messages += 1;
                return;
            }
            (PubSubEvent::Message { .. }, _) => PubSubEvent::Dropped { messages: 1 },
            (event, _) => event,
        };
        self.owed.push_back(event);
        if self.owed.len() > OWED {
            self.shorten();
        }
    }

    /// Keeps how many messages were dropped, and what the connection is like now.
    fn shorten(&mut self) {
        let messages = self.owed.iter().map(|event| match event {
            PubSubEvent::Dropped { messages } => *messages,
            _ => 0,
        });
        let messages = messages.sum();
        let state = |event: &&PubSubEvent| !matches!(event, PubSubEvent::Dropped { .. });
        let last = self.owed.iter().rev().find(state).cloned();
        // A loss that is over must still be told as one.
        let lost = self
            .owed
            .iter()
            .find(|event| matches!(event, PubSubEvent::Lost { .. }))
            .filter(|_| !matches!(last, Some(PubSubEvent::Lost { .. })))
            .cloned();
        self.owed.clear();
        if messages > 0 {
            self.owed.push_back(PubSubEvent::Dropped { messages });
        }
        self.owed.extend(lost);
        self.owed.extend(last);
    }
}

impl FeedReader {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<PubSubEvent>> {
        let event = self.events.poll_recv(cx);
        if let Poll::Ready(Some(event)) = &event {
            self.waiting.bytes.fetch_sub(size(event), Ordering::Relaxed);
            self.waiting.fewer.notify_one();
        }
        event
    }
}

fn size(event: &PubSubEvent) -> usize {
    match event {
        PubSubEvent::Message {
            channel,
            pattern,
            payload,
        } => channel.len() + pattern.as_ref().map_or(0, Vec::len) + payload.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> PubSubEvent {
        PubSubEvent::Message {
            channel: Vec::new(),
            pattern: None,
            payload: vec![b'x'; bytes],
        }
    }

    fn lost() -> PubSubEvent {
        PubSubEvent::Lost {
            cause: "it is gone".into(),
        }
    }

    async fn next(heard: &mut FeedReader) -> PubSubEvent {
        std::future::poll_fn(|cx| heard.poll(cx))
            .await
            .expect("the feed lives")
    }

    #[tokio::test]
    async fn c13_what_did_not_fit_is_told_without_another_message_and_so_is_the_loss() {
        let (mut feed, mut heard) = pair(1 << 20);
        for _ in 0..QUEUE + 3 {
            feed.tell(message(1));
        }
        feed.tell(lost());
        for _ in 0..QUEUE {
            assert_eq!(next(&mut heard).await, message(1));
        }
        feed.room().await;
        feed.settle();
        let dropped = PubSubEvent::Dropped { messages: 3 };
        assert_eq!(next(&mut heard).await, dropped);
        assert_eq!(next(&mut heard).await, lost());
        feed.tell(message(2));
        assert_eq!(next(&mut heard).await, message(2));
    }

    #[tokio::test]
    async fn c11_messages_that_wait_are_bounded_in_bytes() {
        let (mut feed, mut heard) = pair(100);
        for _ in 0..5 {
            feed.tell(message(60));
        }
        assert_eq!(next(&mut heard).await, message(60));
        assert_eq!(next(&mut heard).await, message(60));
        feed.room().await;
        feed.settle();
        assert_eq!(next(&mut heard).await, PubSubEvent::Dropped { messages: 3 });
        feed.tell(message(60));
        assert_eq!(next(&mut heard).await, message(60));
    }

    #[tokio::test]
    async fn what_is_owed_stays_short_and_ends_with_the_truth() {
        let (mut feed, mut heard) = pair(1 << 20);
        for _ in 0..QUEUE {
            feed.tell(message(1));
        }
        for _ in 0..100 {
            feed.tell(message(1));
            feed.tell(lost());
            feed.tell(PubSubEvent::Resumed { gap: None });
        }
        assert!(feed.owed.len() <= OWED);
        for _ in 0..QUEUE {
            next(&mut heard).await;
        }
        let (mut messages, mut last, mut losses) = (0, None, 0);
        loop {
            feed.settle();
            let Ok(event) = heard.events.try_recv() else {
                break;
            };
            match event {
                PubSubEvent::Dropped { messages: more } => messages += more,
                event => {
                    losses += usize::from(event == lost());
                    last = Some(event);
                }
            }
        }
        assert_eq!(messages, 100);
        assert!(losses > 0);
        assert_eq!(last, Some(PubSubEvent::Resumed { gap: None }));
    }
}
