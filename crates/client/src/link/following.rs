//! The server that the client serves from, and the connections that have to follow it there.
//!
//! Sessions, blocking calls and subscribers have connections beside the shared one. When a name
//! moves, or after a failover, the old server may live on and answer them as if nothing had
//! happened: with values that nobody writes any more, and with a silence that nobody hears. So each
//! of these connections knows which server it was made to, and ends when the shared one serves from
//! another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::clock;

/// Tells connections which server the shared one serves from.
#[derive(Debug)]
pub(crate) struct Following(watch::Sender<ServedFrom>);

/// The server that the shared connection serves from, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ServedFrom {
    run_id: Option<Arc<str>>,
    /// Times that the client was told to connect anew.
    resets: u64,
    /// Times that sentinels named another primary.
    moves: u64,
}

/// Ties a connection to the server that it was made to. One that lands elsewhere than the shared
/// connection (behind a load balancer, say) serves until that one moves.
#[derive(Clone, Debug)]
pub(crate) struct Tie {
    /// The run id of the server that it was made to; `None` while, or where, that is not known.
    run_id: Option<Arc<str>>,
    /// The server of the shared connection as this one began to connect.
    then: ServedFrom,
    heard: watch::Receiver<ServedFrom>,
    retire_at: Option<Instant>,
}

/// The reason why a connection is not to serve any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    /// The connection ends at once: its answers are not to be believed from now on.
    Cut(&'static str),
    /// The connection ends when it has answered what it was asked.
    Retire(&'static str),
}

impl Parting {
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::Cut(why) | Self::Retire(why) => why,
        }
    }
}

impl Following {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// The shared connection serves from this server. One that does not say its run id is not taken
    /// for another.
    pub(crate) fn serves_from(&self, run_id: Option<&Arc<str>>) {
        self.0.send_if_modified(|served| {
            let moved = run_id.is_some() && served.run_id.as_ref() != run_id;
            if moved {
                served.run_id = run_id.cloned();
            }
            moved
        });
    }

    /// The client connects anew because it was told to: so does every connection beside the shared
    /// one.
    pub(crate) fn reset(&self) {
        self.0.send_modify(|served| served.resets += 1);
    }

    /// Sentinels name another primary: every connection beside the shared one was made to one that
    /// is deposed.
    pub(crate) fn moved(&self) {
        self.0.send_modify(|served| served.moves += 1);
    }

    /// Ties a connection that begins to connect now, and is to live so long.
    pub(crate) fn tie(&self, max_age: Option<Duration>, rng: &mut fastrand::Rng) -> Tie {
        let heard = self.0.subscribe();
        let then = heard.borrow().clone();
        Tie {
            run_id: None,
            then,
            heard,
            retire_at: max_age.and_then(|age| retirement(age, rng)),
        }
    }
}

impl Tie {
    /// The connection was made to this server.
    pub(crate) fn made_to(mut self, run_id: Option<Arc<str>>) -> Self {
        self.run_id = run_id;
        self
    }

    /// Whether the shared connection serves from the same server; `None` if that is not known.
    pub(crate) fn is_shared(&self) -> Option<bool> {
        let served = self.heard.borrow();
        let both = self.run_id.as_ref().zip(served.run_id.as_ref());
        both.map(|(own, served)| own == served)
    }

    /// Whether it is time to part, and why.
    pub(crate) fn parting(&self, now: Instant) -> Option<Parting> {
        let served = self.heard.borrow();
        if served.resets != self.then.resets {
            return Some(Parting::Cut(BY_HAND));
        }
        if served.moves != self.then.moves {
            return Some(Parting::Cut(DEPOSED));
        }
        let elsewhere = self.run_id.is_some() && served.run_id != self.run_id;
        if elsewhere && served.run_id != self.then.run_id {
            return Some(Parting::Cut(MOVED));
        }
        let old = self.retire_at.is_some_and(|at| at <= now);
        old.then_some(Parting::Retire(OLD))
    }

    /// Waits until it is time to part; to retire, once only. May be dropped and asked again.
    pub(crate) async fn parted(&mut self) -> Parting {
        loop {
            self.heard.borrow_and_update();
            if let Some(parting) = self.parting(clock::now()) {
                if let Parting::Retire(_) = parting {
                    self.retire_at = None;
                }
                return parting;
            }
            let old = async {
                match self.retire_at {
                    Some(at) => clock::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = self.heard.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                () = old => {}
            }
        }
    }
}

/// Returns when a connection that is made now is too old: up to a tenth sooner, so that those of a
/// fleet do not all retire at once.
pub(crate) fn retirement(max_age: Duration, rng: &mut fastrand::Rng) -> Option<Instant> {
    let spread = 1.0 - 0.1 * rng.f64();
    let age = Duration::try_from_secs_f64(max_age.as_secs_f64() * spread).ok()?;
    clock::now().checked_add(age)
}

const BY_HAND: &str = "reset by hand";
const DEPOSED: &str = "the sentinels name another primary now";
const MOVED: &str = "the client serves from another server now";
pub(crate) const OLD: &str = "its maximum age was reached";

#[cfg(test)]
mod tests {
    use super::*;

    fn tie(following: &Following, own: Option<&str>) -> Tie {
        let rng = &mut fastrand::Rng::with_seed(1);
        following.tie(None, rng).made_to(own.map(Into::into))
    }

    fn parting(tie: &Tie) -> Option<Parting> {
        tie.parting(clock::now())
    }

    fn serves_from(following: &Following, run_id: &str) {
        following.serves_from(Some(&run_id.into()));
    }

    #[test]
    fn c13_a_connection_ends_when_the_shared_one_moves_to_another_server() {
        let following = Following::new();
        serves_from(&following, "a");
        let (here, unknown) = (tie(&following, Some("a")), tie(&following, None));
        serves_from(&following, "a");
        following.serves_from(None);
        assert_eq!(parting(&here), None, "connected anew, to the same server");
        serves_from(&following, "b");
        assert_eq!(parting(&here), Some(Parting::Cut(MOVED)));
        assert_eq!(parting(&unknown), None, "it may be the same");
        assert_eq!((here.is_shared(), unknown.is_shared()), (Some(false), None));
        following.reset();
        assert_eq!(parting(&unknown), Some(Parting::Cut(BY_HAND)));
        assert_eq!(parting(&tie(&following, Some("b"))), None);
    }

    #[test]
    fn c13_one_that_is_elsewhere_from_the_start_serves_until_the_shared_one_moves() {
        let following = Following::new();
        serves_from(&following, "a");
        let balanced = tie(&following, Some("b"));
        assert_eq!(parting(&balanced), None);
        serves_from(&following, "b");
        assert_eq!(parting(&balanced), None, "to where it is itself");
        serves_from(&following, "c");
        assert_eq!(parting(&balanced), Some(Parting::Cut(MOVED)));
    }

    #[test]
    fn t18_a_connection_ends_when_sentinels_name_another_primary_whether_that_serves_or_not() {
        let following = Following::new();
        serves_from(&following, "a");
        let (here, unknown) = (tie(&following, Some("a")), tie(&following, None));
        following.moved();
        assert_eq!(parting(&here), Some(Parting::Cut(DEPOSED)));
        assert_eq!(parting(&unknown), Some(Parting::Cut(DEPOSED)));
        assert_eq!(parting(&tie(&following, Some("b"))), None);
    }

    #[test]
    fn c13_what_changes_while_it_connects_counts() {
        let following = Following::new();
        serves_from(&following, "a");
        let rng = &mut fastrand::Rng::with_seed(1);
        let (moved, reset) = (following.tie(None, rng), following.tie(None, rng));
        serves_from(&following, "b");
        assert!(parting(&moved.made_to(Some("a".into()))).is_some());
        following.reset();
        assert!(parting(&reset.made_to(None)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn c13_a_connection_of_its_maximum_age_retires() {
        let following = Following::new();
        let age = Duration::from_secs(60);
        let rng = &mut fastrand::Rng::with_seed(1);
        let mut tie = following.tie(Some(age), rng);
        let begun = clock::now();
        assert_eq!(tie.parted().await, Parting::Retire(OLD));
        let lived = clock::now() - begun;
        assert!(lived <= age && lived >= age.mul_f64(0.9), "{lived:?}");
    }
}
