//! A task that ends with whoever owns it, places for the work of others' code, and whether a
//! runtime can serve at all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle};

use crate::clock;
use crate::error::ConfigError;

/// Passes an answer on, and has an error cost its task a turn. A refusal takes no wait: whoever
/// asks again at once would never leave its thread, on which the task that connects may have to
/// run. (tokio lets a task go on for 128 such turns; on another executor this does nothing.)
pub(crate) async fn cooperatively<T, E>(answer: Result<T, E>) -> Result<T, E> {
    if answer.is_err() {
        tokio::task::coop::consume_budget().await;
    }
    answer
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Owned<T>(JoinHandle<T>);

impl<T> Owned<T> {
    pub(crate) fn new(task: JoinHandle<T>) -> Self {
        Self(task)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) {
        let _ = (&mut self.0).await;
    }
}

impl<T> Future for Owned<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Places for work in which code of others runs, which may hang, panic, or keep its thread: each in
/// a task of its own. Work that keeps its thread keeps its place, so that no more threads are lost
/// than there are places.
#[derive(Debug)]
pub(crate) struct Apart(Arc<Semaphore>);

/// How work ended that came to no end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Astray {
    Panicked,
    /// It keeps its thread, or hangs.
    Hangs,
    /// Earlier work keeps all places: it was not begun.
    NoPlace,
}

impl Apart {
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Semaphore::new(places)))
    }

    /// Does the work, for so long at most; a place for it may take as long. Whoever waits for it
    /// ends it by going away.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Astray> {
        let place = clock::timeout(limit, Arc::clone(&self.0).acquire_owned()).await;
        let Some(Ok(place)) = place else {
            return Err(Astray::NoPlace);
        };
        let task = Owned::new(tokio::spawn(async move {
            let _place = place;
            work.await
        }));
        match clock::timeout(limit, task).await {
            Some(Ok(done)) => Ok(done),
            Some(Err(_)) => Err(Astray::Panicked),
            None => Err(Astray::Hangs),
        }
    }
}

/// Checks that a runtime has timers and IO. Without them every task of a client would panic, be
/// started anew, and panic again. tokio tells only by a panic of its own, once.
///
/// # Errors
/// It has not: which is missing.
pub(crate) fn check_drivers(runtime: &Handle) -> Result<(), ConfigError> {
    let _inside = runtime.enter();
    let works = |probe: &dyn Fn()| catch_unwind(AssertUnwindSafe(probe)).is_ok();
    if !works(&|| drop(tokio::time::sleep(Duration::ZERO))) {
        return Err(ConfigError::RuntimeLacks { missing: "timers" });
    }
    let socket = || {
        let bound = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0));
        let Ok(socket) = bound else {
            // Whether there is IO will be seen when it is needed.
            return;
        };
        let _ = socket.set_nonblocking(true);
        drop(tokio::net::UdpSocket::from_std(socket));
    };
    match works(&socket) {
        true => Ok(()),
        false => Err(ConfigError::RuntimeLacks { missing: "IO" }),
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;
    use crate::Client;

    #[test]
    fn c19_a_runtime_without_timers_or_io_is_refused_by_name() {
        let build = |builder: &mut Builder| {
            let runtime = builder.build().expect("a runtime");
            let _inside = runtime.enter();
            let client = Client::builder("redis://127.0.0.1:1").expect("a good url");
            client.build().map(drop).map_err(|error| error.to_string())
        };
        for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
            let error = build(builder.enable_io()).expect_err("it has no timers");
            assert!(error.contains("no timers"), "{error}");
            assert!(error.contains("enable_all()"), "{error}");
        }
        for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
            let error = build(builder.enable_time()).expect_err("it has no IO");
            assert!(error.contains("no IO"), "{error}");
            assert_eq!(build(builder.enable_all()), Ok(()));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c8_what_keeps_its_thread_keeps_its_place_until_it_has_really_ended() {
        let apart = Apart::new(1);
        let [short, long] = [20, 20_000].map(Duration::from_millis);
        let (free, kept) = std::sync::mpsc::channel::<()>();
        let keeps = async move {
            let _ = kept.recv();
        };
        assert_eq!(apart.run(short, keeps).await, Err(Astray::Hangs));
        let begun = apart.run(short, async { panic!("it is not begun") });
        assert_eq!(begun.await, Err::<(), _>(Astray::NoPlace));
        drop(free);
        assert_eq!(apart.run(long, async { 7 }).await, Ok(7));
        let panics = apart.run(long, async { panic!("its own mistake") });
        assert_eq!(panics.await, Err::<(), _>(Astray::Panicked));
        let hangs = apart.run(short, std::future::pending::<()>());
        assert_eq!(hangs.await, Err(Astray::Hangs));
        assert_eq!(apart.run(long, async { 8 }).await, Ok(8), "it was ended");
    }
}
