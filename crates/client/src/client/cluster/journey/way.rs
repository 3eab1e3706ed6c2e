//! The way on of a call after an attempt: where it goes, and when.

use std::sync::atomic::Ordering;
use std::time::Instant;

use steadfast_core::command::{self, Effect, Errors};
use steadfast_core::redirect::{MAX_HOPS, Routing, is_try_again_for_script};
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::topology::Trigger;

use super::Journey;
use crate::call::plan::Payload;
use crate::client::cluster::Aim;
use crate::client::cluster::node::{Node, may_go_on};
use crate::client::cluster::reach::{is_for_want_of_a_primary, pause_before_trying_again};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};

/// The way on of a call.
pub(super) enum Next {
    /// At another node, or the same.
    Go(Aim),
    /// When more is known of who serves.
    WhenKnown,
    /// The same, for as long as the caller lets it wait for a primary.
    WhenServed(Instant),
    /// After a pause, where its keys are together again.
    Later,
}

impl<'a> Journey<'a> {
    /// Returns how the call goes on after this error, and after a try at the same node that may
    /// have run `before`; `None` if that is its end.
    pub(super) fn next(
        &mut self,
        node: &Node,
        aim: &Aim,
        (error, before, routing): (&Error, bool, Option<&Routing>),
        sent: Instant,
    ) -> Option<Next> {
        let cluster = self.cluster;
        let unknown = before || error.certainty() == Certainty::Unknown;
        if let Some(routing) = routing {
            let next = match (routing, self.is_of_script(error)) {
                (Routing::Moved(redirect), true) => {
                    let aim = cluster.pointed(node, redirect);
                    Some(aim.map_or(Next::WhenKnown, Next::Go))
                }
                _ => self.next_by(node, routing, (sent, unknown)),
            };
            let hops = matches!(next, Some(Next::Go(_) | Next::WhenKnown));
            return next.filter(|_| !hops || self.hops < MAX_HOPS);
        }
        let doubts = match error.kind() {
            ErrorKind::Lost { .. } | ErrorKind::Down { .. } => true,
            // One that was given less time than usual has run out of its own.
            ErrorKind::Timeout { deadline } => *deadline >= cluster.settings().patience(),
            _ => false,
        };
        if doubts {
            cluster.trigger(Trigger::Loss);
        }
        let goes_on = may_go_on(error, self.effect()) && !self.suspicion.blamed_again;
        if cluster.shared.is_closing() || !goes_on {
            return None;
        }
        let owner = cluster.routes.owner(self.slot);
        if node.is_retired() || owner != Some(node.number) {
            // Where a redirect led to, the next one will lead again; and one that is back is the
            // same server. There a write that was given up could run after its repeat.
            let succeeded = *aim == Aim::Owner && owner != Some(node.number);
            let goes = !unknown || succeeded || self.effect() == Effect::Read;
            return (goes && self.hops < MAX_HOPS).then_some(Next::Go(Aim::Owner));
        }
        self.when_served(unknown)
    }

    /// Returns the way on of a call that waits for a primary, as long as the caller lets it.
    fn when_served(&self, unknown: bool) -> Option<Next> {
        let until = self.limits.waits_until(self.cluster.settings());
        let waits = clock::now() < until && !unknown;
        waits.then_some(Next::WhenServed(until))
    }

    fn next_by(
        &mut self,
        node: &Node,
        routing: &Routing,
        (sent, unknown): (Instant, bool),
    ) -> Option<Next> {
        let cluster = self.cluster;
        if let Routing::Moved(redirect) | Routing::Ask(redirect) = routing
            && redirect.slot != self.slot
        {
            // Of a module's command, of which the server knows another argument for the key.
            self.slot = redirect.slot;
            self.keys = KeySet::Unknown;
            self.places = None;
            self.line = None;
        }
        let known = |aim: Option<Aim>| Some(aim.map_or(Next::WhenKnown, Next::Go));
        match routing {
            Routing::Moved(redirect) => known(cluster.moved(node, redirect, sent)),
            Routing::Ask(redirect) => {
                cluster.note_ask(node, redirect);
                known(cluster.asked(node, redirect))
            }
            Routing::TryAgain => Some(Next::Later),
            Routing::Unblocked => {
                cluster.trigger(Trigger::Contradiction);
                Some(Next::WhenKnown)
            }
            routing => {
                if routing.triggers_discovery() {
                    cluster.trigger(Trigger::Contradiction);
                }
                match is_for_want_of_a_primary(routing) {
                    true => self.when_served(unknown),
                    false => None,
                }
            }
        }
    }

    /// Gets ready for the next attempt. Returns where it goes; `None` if there is no time for it.
    pub(super) async fn goes_on(&mut self, next: Next) -> Option<Aim> {
        let cluster = self.cluster;
        let read = self.effect() == Effect::Read;
        let deadline = self.limits.deadline;
        let aim = match next {
            Next::Go(aim) => {
                self.hops += 1;
                aim
            }
            Next::WhenKnown => {
                self.hops += 1;
                cluster
                    .more_is_known(&self.limits)
                    .await
                    .then_some(Aim::Owner)?
            }
            Next::WhenServed(until) => {
                let until = until.min(deadline);
                // Before the wait, or whoever comes meanwhile would go ahead of it.
                if let Some(places) = &self.places {
                    places.hold(self.slot);
                }
                let pause = pause_before_trying_again(self.waits);
                self.waits += 1;
                let serves = cluster.somebody_serves(self.slot, pause, (until, self.limits.room));
                serves.await.then_some(Aim::Owner)?
            }
            Next::Later => {
                let pause = pause_before_trying_again(self.pauses);
                self.pauses += 1;
                // If its keys are nowhere yet, two nodes send it to and fro until they arrive.
                self.hops = 0;
                if clock::now() + pause >= deadline {
                    return None;
                }
                if !read {
                    cluster.order.close(self.slot);
                }
                let _room = cluster.order.room(self.limits.room)?;
                clock::sleep(pause).await;
                Aim::Owner
            }
        };
        cluster.redirects.fetch_add(1, Ordering::Relaxed);
        // Of reads of several keys that wait for a migration, nobody waits for their turn.
        self.in_turn = !(read && self.pauses > 0);
        if self.in_turn {
            cluster.order.close(self.slot);
        } else if let Some(places) = &mut self.places {
            places.stand_aside(|_| true);
        }
        if self.plan.blocking.is_some() {
            let passed = clock::now().saturating_duration_since(self.limits.started);
            self.rest = self.payload.with_time_left(passed);
        }
        Some(aim)
    }

    /// Returns what an error says about who serves, if nobody but the server can have said it. A
    /// script may write any words: it is believed a redirect, but none to the very node that it was
    /// asked of, and no second one in a row.
    pub(super) fn routing(&self, node: &Node, error: &Error) -> Option<Routing> {
        let ErrorKind::Server(said) = error.kind() else {
            return None;
        };
        let (code, details) = (said.code(), said.details().unwrap_or_default());
        let routing = Routing::of(code, details)?;
        let names = |slot| routing.may_redirect_script(Some(slot));
        let proven = error.certainty() == Certainty::Rejected
            || match (self.plan.errors, self.payload) {
                (Errors::ProveNothing, Payload::Command(cmd)) => {
                    let keys = command::key_names(command::arguments(cmd));
                    let follows = !self.redirected && !self.cluster.leads_to(&routing, node);
                    names(self.slot) && follows
                        || is_try_again_for_script(code, details) && keys.count() > 1
                }
                // Which of its arguments are keys only the server knows.
                (Errors::OfNoKnownCommand, Payload::Command(cmd)) => {
                    let mut args = command::arguments(cmd).skip(1);
                    args.any(|arg| names(Slot::of_key(arg)))
                }
                _ => false,
            };
        proven.then_some(routing)
    }

    /// Returns whether an error is in words that a script may have written.
    pub(super) fn is_of_script(&self, error: &Error) -> bool {
        self.plan.errors == Errors::ProveNothing && error.certainty() != Certainty::Rejected
    }

    /// Believes the redirect of a script once the node that it names has run the script: only the
    /// owner of its keys does, so the words were not the script's own. A script without keys runs
    /// anywhere, and proves nothing.
    pub(super) fn learn_where_it_was_served(&mut self, aim: &Aim, node: u16) {
        if matches!(aim, Aim::At { asking: true, .. }) {
            self.cluster.asked.note(self.slot, node, clock::now());
        }
        let Some((by, redirect, sent)) = self.pointed.take() else {
            return;
        };
        let Payload::Command(cmd) = self.payload else {
            return;
        };
        let has_keys = command::key_names(command::arguments(cmd)).next().is_some();
        if has_keys && matches!(aim, Aim::At { asking: false, .. }) {
            self.cluster.moved(&by, &redirect, sent);
        }
    }
}
