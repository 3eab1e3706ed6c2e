//! New credentials for connections that live.
//!
//! The supervisors ask the provider; every other connection hears of what was given and compares it
//! with what it gave itself. So one that was opened, or refused new credentials, while they were
//! changing is not forgotten: it is told again whenever some connection has been let in. Answers of
//! the provider overtake one another, and a handshake may have got a newer one than the supervisors
//! know of; so they are numbered, and none takes the place of a later one.

use tokio::sync::watch;

use crate::credentials::Credentials;

/// Tells connections which credentials were given last.
#[derive(Debug)]
pub(crate) struct InForce(watch::Sender<Option<Credentials>>);

/// The credentials of one connection: those that the server has taken, and those that it was
/// offered since. One offer at a time, or an answer could not be told from the next one's.
#[derive(Debug)]
pub(crate) struct Rotation {
    heard: watch::Receiver<Option<Credentials>>,
    taken: Option<Credentials>,
    offered: Option<Credentials>,
    /// Heard of before the last offer was answered.
    next: Option<Credentials>,
}

impl InForce {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Has every connection offer these that has not given them yet, unless later ones are in
    /// force.
    pub(crate) fn offer(&self, credentials: &Credentials) {
        self.0.send_if_modified(|in_force| {
            let overtaken = in_force
                .as_ref()
                .is_some_and(|in_force| credentials.before(in_force));
            if !overtaken {
                *in_force = Some(credentials.clone());
            }
            // One that was refused them hears of it even so, if they are the same.
            in_force
                .as_ref()
                .is_some_and(|in_force| in_force.same(credentials))
        });
    }

    /// Returns the rotation of a connection whose handshake gave `taken`.
    pub(crate) fn rotation(&self, taken: Option<Credentials>) -> Rotation {
        let mut heard = self.0.subscribe();
        // What changed during the handshake counts.
        heard.mark_changed();
        Rotation {
            heard,
            taken,
            offered: None,
            next: None,
        }
    }
}

impl Rotation {
    /// Waits for credentials that this connection has not given. May be dropped and asked again.
    pub(crate) async fn fresh(&mut self) -> Credentials {
        loop {
            if self.offered.is_none()
                && let Some(next) = self.next.take()
                && is_new(&next, self.taken.as_ref())
            {
                self.offered = Some(next.clone());
                return next;
            }
            if self.heard.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let heard = self.heard.borrow_and_update().clone();
            let known = self.offered.as_ref().or(self.taken.as_ref());
            self.next = heard.filter(|heard| is_new(heard, known));
        }
    }

    /// The server answered to what was offered. What it refused is offered again when it is told
    /// again.
    pub(crate) fn answered(&mut self, taken: bool) {
        let offered = self.offered.take();
        if taken {
            self.taken = offered;
        }
    }
}

fn is_new(fresh: &Credentials, known: Option<&Credentials>) -> bool {
    known.is_none_or(|known| !fresh.same(known) && !fresh.before(known))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn fresh(rotation: &mut Rotation) -> Option<Credentials> {
        tokio::time::timeout(Duration::from_secs(1), rotation.fresh())
            .await
            .ok()
    }

    #[tokio::test(start_paused = true)]
    async fn c16_what_was_refused_is_offered_again_only_when_it_is_told_again() {
        let [old, new] = ["old", "new"].map(|password| Credentials::new("ada", password));
        let in_force = InForce::new();
        in_force.offer(&new);
        let mut rotation = in_force.rotation(Some(old));
        assert!(fresh(&mut rotation).await.is_some_and(|c| c.same(&new)));
        in_force.offer(&new);
        assert!(fresh(&mut rotation).await.is_none(), "it is being asked");
        rotation.answered(false);
        assert!(fresh(&mut rotation).await.is_none(), "it was refused");
        in_force.offer(&new);
        assert!(fresh(&mut rotation).await.is_some_and(|c| c.same(&new)));
        rotation.answered(true);
        in_force.offer(&new);
        assert!(fresh(&mut rotation).await.is_none(), "it is taken");
    }

    fn answers() -> [Credentials; 3] {
        [1, 2, 3].map(|n| Credentials::new("ada", format!("password {n}")).answering(n))
    }

    #[tokio::test(start_paused = true)]
    async fn c16_a_connection_that_has_given_newer_ones_is_not_offered_those_in_force() {
        let [old, new, newer] = answers();
        let in_force = InForce::new();
        in_force.offer(&old);
        let mut rotation = in_force.rotation(Some(new.clone()));
        assert!(fresh(&mut rotation).await.is_none(), "it has newer ones");
        in_force.offer(&newer);
        in_force.offer(&new);
        let offered = fresh(&mut rotation).await.expect("there are newer ones");
        assert!(offered.same(&newer), "whatever a slow attempt asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn c16_each_answer_of_the_server_is_taken_for_that_to_its_own_offer() {
        for taken in [true, false] {
            let [old, new, newer] = answers();
            let in_force = InForce::new();
            let mut rotation = in_force.rotation(Some(old));
            in_force.offer(&new);
            assert!(fresh(&mut rotation).await.is_some());
            in_force.offer(&newer);
            assert!(fresh(&mut rotation).await.is_none(), "one at a time");
            rotation.answered(taken);
            let offered = fresh(&mut rotation).await.expect("it was not forgotten");
            assert!(offered.same(&newer));
            rotation.answered(false);
            in_force.offer(&newer);
            assert!(fresh(&mut rotation).await.is_some(), "it was refused");
        }
    }
}
