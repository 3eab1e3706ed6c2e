//! New credentials for connections that live.
//!
//! The supervisors ask the provider; every other connection hears of what was given and compares it with what it gave itself. So one that was
//! opened, or refused new credentials, while they were changing is not forgotten: it is told again whenever some connection has been let in.

use tokio::sync::watch;

use crate::credentials::Credentials;

/// Tells connections which credentials were given last.
#[derive(Debug)]
pub(crate) struct InForce(watch::Sender<Option<Credentials>>);

/// One connection's share: what the server has taken of it, and what it was offered since.
#[derive(Debug)]
pub(crate) struct Rotation {
    heard: watch::Receiver<Option<Credentials>>,
    taken: Option<Credentials>,
    offered: Option<Credentials>,
}

impl InForce {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// To be offered by every connection that has not given them yet.
    pub(crate) fn offer(&self, credentials: &Credentials) {
        self.0.send_replace(Some(credentials.clone()));
    }

    /// For a connection whose handshake gave `taken`.
    pub(crate) fn rotation(&self, taken: Option<Credentials>) -> Rotation {
        let mut heard = self.0.subscribe();
        // What changed during the handshake counts.
        heard.mark_changed();
        Rotation {
            heard,
            taken,
            offered: None,
        }
    }
}

impl Rotation {
    /// Waits for credentials that this connection has not given. May be dropped and asked again.
    pub(crate) async fn fresh(&mut self) -> Credentials {
        loop {
            if self.heard.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let Some(fresh) = self.heard.borrow_and_update().clone() else {
                continue;
            };
            let known = [&self.taken, &self.offered];
            if !known.into_iter().flatten().any(|known| known.same(&fresh)) {
                self.offered = Some(fresh.clone());
                return fresh;
            }
        }
    }

    /// The server answered to what was offered. What it refused is offered again when it is told again.
    pub(crate) fn answered(&mut self, taken: bool) {
        let offered = self.offered.take();
        if taken {
            self.taken = offered;
        }
    }
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
}
