//! Connects, watches, reconnects, for ever; owns the connection's state.
//!
//! Whatever ends an attempt, another follows: there is no error after which this loop gives up. A
//! peer that stops answering is not taken at its word either: a standby connection is dialled, and
//! only its fate decides whether the old connection is replaced or the server is down.

mod inquiry;
mod outage;
mod renewal;
mod replacement;
mod silence;
mod watchdog;
mod watching;

use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast_core::conn::Watch;
use tokio::sync::mpsc;
use tokio::task::JoinError;

use self::outage::GracePeriod;
use self::replacement::Successor;
pub(crate) use self::watchdog::watchdog;
use self::watching::Watching;
use crate::clock;
use crate::credentials::Credentials;
use crate::error::Certainty;
use crate::error::connect::ConnectError;
use crate::event::EventKind;
use crate::link::alive::Alive;
use crate::link::connect::{Connector, Established, MARGIN};
use crate::link::driver::{self, Driver, Finished, Signal};
use crate::link::fence::FenceOnDrop;
use crate::link::shared::Shared;
use crate::link::{ConnectionState, Link};
use crate::task::Owned;
use crate::wire::identity::Identity;
use crate::wire::queue::{DriverCommand, Gate};
use crate::wire::slot::{Blame, Ended};
use crate::wire::stream::Stream;

/// The task that keeps one link connected.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    link: Arc<Link>,
    connector: Arc<Connector>,
    alive: Arc<Alive>,
    rng: fastrand::Rng,
    /// Ends when every call of the last connection has been submitted again, or will not be.
    rejoining: Option<mpsc::Receiver<()>>,
    /// The credentials that the provider has given last.
    latest: Option<Credentials>,
}

/// An attempt to connect, in a task of its own: whatever a provider or a resolver does there,
/// deadlines are kept here.
struct Dial {
    task: Owned<Result<Established, ConnectError>>,
    /// The abandoned connections that its handshake is to kill.
    abandoned: Vec<Identity>,
    began: Instant,
    /// The instant at which it is over, if every phase keeps to its deadline.
    due: Instant,
}

const DEPOSED: &str = "the sentinels name another primary";

/// The time that the next connection waits for the calls of the last one that come again, so that
/// they keep their places. They come at once, as a rule while it is dialled; a caller that is not
/// polled is not waited for.
const REJOIN: Duration = Duration::from_millis(20);

impl Supervisor {
    fn new(
        shared: Arc<Shared>,
        link: Arc<Link>,
        connector: Arc<Connector>,
        alive: Arc<Alive>,
    ) -> Self {
        Self {
            alive,
            rng: shared.rng(),
            shared,
            link,
            connector,
            rejoining: None,
            latest: None,
        }
    }

    /// Ends when the client is closed, and never before.
    async fn run(mut self) {
        let mut ready = None;
        loop {
            let established = match ready.take() {
                Some(established) => established,
                None => match self.connect_until_up().await {
                    Some(established) => established,
                    None => return,
                },
            };
            ready = self.serve(established).await;
        }
    }

    /// Attempts with growing pauses. Calls wait while the allowance for short interruptions lasts,
    /// then they are refused. `None` if closed.
    async fn connect_until_up(&mut self) -> Option<Established> {
        let now = clock::now();
        let grace_until = {
            let mut view = self.link.view.lock();
            let settings = &self.shared.settings;
            let longer = view.outage_since.unwrap_or(now) + settings.wait_for_primary;
            view.outage_begins(settings.reconnect_grace, now)
                .max(longer)
        };
        let mut patience = GracePeriod {
            link: Arc::clone(&self.link),
            shared: Arc::clone(&self.shared),
            grace_until: (self.link.state() != ConnectionState::Down).then_some(grace_until),
        };
        loop {
            let limit = self.shared.settings.connect_timeout;
            let attempt = self.begin_attempt(limit * 5);
            if self.is_news() {
                let longer = limit.min(self.shared.settings.deadline / 2);
                patience.grace_until = Some(grace_until.max(clock::now() + longer));
            }
            let term = self.shared.term();
            let connector = Arc::clone(&self.connector);
            let mut moved = connector.moved();
            let dial = self.dial(limit);
            let dialled = async {
                tokio::select! {
                    biased;
                    () = self.shared.deposed(term) => None,
                    () = &mut moved => None,
                    result = self.dialled(dial) => Some(result),
                }
            };
            // What was dialled is not the primary any more, or was not looked for there.
            let Some(result) = patience.during(dialled).await? else {
                continue;
            };
            match result {
                Ok((established, ..)) if established.facts.term != self.shared.term() => {}
                Ok((established, abandoned, began)) => {
                    // While it is not in service, their deadlines are still kept.
                    patience.during(self.all_rejoined()).await?;
                    self.put_into_service(&established, &abandoned, attempt, began);
                    return Some(established);
                }
                Err(error) => {
                    let pause = self.attempt_failed(attempt, &error);
                    patience.grace_until = patience.grace_until.map(|_| grace_until);
                    let (link, shared) = (Arc::clone(&self.link), Arc::clone(&self.shared));
                    patience
                        .during(async {
                            tokio::select! {
                                biased;
                                () = tokio::time::sleep(pause) => {}
                                () = link.kick.notified() => {}
                                // Of one that was told to connect anew before, no kick comes.
                                () = shared.deposed(term) => {}
                                () = moved => {}
                            }
                        })
                        .await?;
                }
            }
        }
    }

    /// Whether no attempt to connect to a node that a cluster has named has succeeded or failed
    /// yet. That is no outage: the node may have taken over from one that was in health. Calls wait
    /// longer for it, but so that they are still refused within their time if nothing comes.
    fn is_news(&self) -> bool {
        let settings = &self.shared.settings;
        let is_owner = settings
            .member
            .as_ref()
            .is_some_and(|node| !node.as_replica);
        let view = self.link.view.lock();
        let is_tried = view.was_up || view.last_error.is_some();
        is_owner && !is_tried && !settings.reconnect_grace.is_zero()
    }

    fn dial(&self, limit: Duration) -> Dial {
        let abandoned = self.shared.fences.abandoned();
        let ask = self.connector.ask(limit, abandoned.clone());
        let began = clock::now();
        Dial {
            due: began + ask.longest() + MARGIN,
            task: self.connector.dial(ask),
            abandoned,
            began,
        }
    }

    async fn dialled(
        &self,
        mut dial: Dial,
    ) -> Result<(Established, Vec<Identity>, Instant), ConnectError> {
        let result = (&mut dial.task).await;
        let established = self.survived(result, dial.began)?;
        Ok((established, dial.abandoned, dial.began))
    }

    /// The result of a task that runs what others wrote. A panic there ends one attempt, and counts
    /// as one that was stuck.
    fn survived<T>(
        &self,
        result: Result<Result<T, ConnectError>, JoinError>,
        began: Instant,
    ) -> Result<T, ConnectError> {
        result.unwrap_or_else(|_| {
            let after = clock::now().saturating_duration_since(began);
            self.shared.stuck(&self.link, after);
            Err(ConnectError::Panicked)
        })
    }

    async fn all_rejoined(&mut self) {
        if let Some(mut rejoining) = self.rejoining.take() {
            let _ = clock::timeout(REJOIN, rejoining.recv()).await;
        }
    }

    fn begin_attempt(&self, longest: Duration) -> u32 {
        let watchdog_timeout = self.shared.settings.watchdog_timeout.max(longest);
        *self.link.stuck_at.lock() = clock::now().checked_add(watchdog_timeout);
        let mut view = self.link.view.lock();
        view.attempts += 1;
        view.attempt += 1;
        view.attempt
    }

    fn pause(&mut self, attempt: u32) -> Duration {
        self.shared.settings.reconnect.pause(attempt, &mut self.rng)
    }

    fn attempt_failed(&mut self, attempt: u32, error: &ConnectError) -> Duration {
        let pause = self.pause(attempt);
        let now = clock::now();
        *self.link.stuck_at.lock() =
            now.checked_add(pause.saturating_add(self.shared.settings.watchdog_timeout));
        let cause: Arc<str> = error.to_string().into();
        self.link.view.lock().last_error = Some(Arc::clone(&cause));
        self.link.queue.set_retry_at(now + pause);
        self.shared.hub.emit(
            self.link.index,
            EventKind::ConnectFailed {
                attempt,
                cause,
                retry_in_ms: clock::as_ms(pause),
            },
        );
        pause
    }

    fn put_into_service(
        &self,
        established: &Established,
        abandoned: &[Identity],
        attempt: u32,
        began: Instant,
    ) {
        let now = clock::now();
        self.shared.fences.serves(
            &self.link,
            &established.facts.fencing,
            abandoned,
            &established.fences,
        );
        let outage = self.link.connected(&established.facts, now);
        // Those of several connections follow the first, as do all that are beside them.
        if self.link.index == 0 {
            self.shared
                .following
                .serves_from(established.facts.run_id.as_ref());
        }
        *self.link.stuck_at.lock() = None;
        self.shared.hub.emit(
            self.link.index,
            EventKind::Connected {
                address: established.facts.address.clone(),
                version: established.facts.version.clone(),
                attempt,
                outage_ms: outage.map(clock::as_ms),
                took_ms: clock::as_ms(now.saturating_duration_since(began)),
                refused: self.link.queue.take_refused(),
            },
        );
        let transition = self.shared.breaker.probe_succeeded(now);
        self.shared.breaker_changed(transition);
        if let Some(credentials) = &established.credentials {
            self.shared.credentials.offer(credentials);
        }
    }

    /// Serves until the connection ends. Returns its successor if there is one already.
    async fn serve(&mut self, established: Established) -> Option<Established> {
        let (signals, mut told) = mpsc::unbounded_channel();
        let driver = self
            .driver_of(established.stream, signals)
            .of_server(established.facts.run_id);
        let identity = established.facts.identity;
        let term = established.facts.term;
        let mut deposed = false;
        // Before the driver's first look: what its handshake did not kill comes ahead of what
        // waits.
        self.link.open(clock::now());
        let mut driver = Owned::new(tokio::spawn(driver.run()));
        let fence = FenceOnDrop::new(&self.shared.fences, identity.clone());
        let gave = established.credentials;
        let mut watch = Watching::new(self, gave.clone(), identity.clone());
        // Each branch may be dropped and asked again without losing what it waits for.
        let finished = loop {
            tokio::select! {
                biased;
                finished = &mut driver => break Some(finished),
                Some(signal) = told.recv() => match signal {
                    Signal::Aside => break None,
                    signal => watch.on_signal(self, signal),
                },
                due = watch.next() => watch.handle(self, due),
                // Also by one that was named while this connection was on its way into service.
                // Before the kick that comes with it, after which late answers would be handed out.
                () = self.shared.deposed(term), if !deposed => {
                    deposed = true;
                    self.link.queue.command(DriverCommand::Depose(DEPOSED.into()));
                }
                () = self.link.kick.notified() => watch.kicked(self),
            }
        };
        fence.accounted_for();
        let aside_for = watch.aside_for();
        let term = self.shared.term();
        let of_this_term = |next: &Successor| next.established.facts.term == term;
        let successor = watch.take_successor().filter(of_this_term);
        match finished {
            Some(Ok(finished)) => self.ended(finished, identity, successor.is_some()),
            None => {
                let (cause, unknown) = (aside_for, 0);
                let kind = EventKind::Replaced { cause, unknown };
                self.shared.hub.emit(self.link.index, kind);
                self.rejoining = watch.take_rejoining();
                tokio::spawn(drain(Arc::clone(&self.shared), driver, identity));
            }
            // The driver panicked: it told its callers as it was dropped.
            Some(Err(_)) => {
                self.link.queue.set_gate(Gate::Waiting);
                self.link
                    .set_state(ConnectionState::Connecting, clock::now());
                self.link.queue.release();
                self.shared.fences.fence(identity);
            }
        }
        let Successor {
            established,
            abandoned,
            attempt,
            began,
        } = successor?;
        let mut patience = GracePeriod {
            link: Arc::clone(&self.link),
            shared: Arc::clone(&self.shared),
            grace_until: None,
        };
        patience.during(self.all_rejoined()).await?;
        self.put_into_service(&established, &abandoned, attempt, began);
        let gives = established.credentials.as_ref();
        if gives.is_some_and(|gives| !gave.is_some_and(|gave| gave.same(gives))) {
            self.shared
                .hub
                .emit(self.link.index, EventKind::Reauthenticated);
        }
        Some(established)
    }

    /// Makes the driver of a connection that is put into service.
    fn driver_of(&self, stream: Stream, signals: mpsc::UnboundedSender<Signal>) -> Driver {
        let (doubtful, response_idle_timeout) =
            driver::patience(self.shared.settings.response_idle_timeout, false);
        Driver::new(
            Arc::clone(&self.shared),
            Arc::clone(&self.link.queue),
            Some(self.link.index),
            stream,
            Watch {
                doubtful,
                response_idle_timeout,
                heartbeat: self.shared.settings.heartbeat,
            },
            signals,
            Some(Arc::clone(&self.alive)),
        )
    }

    fn ended(&mut self, finished: Finished, identity: Option<Identity>, replaced: bool) {
        let now = clock::now();
        let Finished {
            cause,
            mut conn,
            given_up,
            ordered,
            blames,
        } = finished;
        // The gate first: a caller that hears of the loss and comes again shall wait here.
        if self.link.state() == ConnectionState::Ready {
            self.link.queue.set_gate(Gate::Waiting);
            self.link.set_state(ConnectionState::Connecting, now);
        }
        self.link.queue.release();
        if conn.has_unanswered_writes() {
            self.shared.fences.fence(identity);
        }
        {
            let mut view = self.link.view.lock();
            view.last_error = Some(Arc::clone(&cause));
            if !replaced {
                view.outage_since.get_or_insert(now);
            }
        }
        let (rejoin, rejoining) = mpsc::channel(1);
        let (mut unknown, mut not_sent) = (given_up, 0);
        let mut told = Vec::with_capacity(conn.awaiting());
        // One that travelled apart when the connection ended at it has itself to blame.
        let apart = conn.has_apart() && conn.awaiting() == 1;
        for unanswered in conn.close() {
            let certainty = unanswered.certainty;
            let Some(ticket) = unanswered.ticket.into_ticket() else {
                continue;
            };
            match certainty {
                Certainty::NotSent => not_sent += 1,
                _ => unknown += 1,
            }
            let blame = match (blames, certainty) {
                (true, _) if unanswered.blamed => Blame::Own,
                (true, Certainty::Unknown) => Blame::Shared,
                _ => Blame::None,
            };
            told.push((ticket, certainty, blame));
        }
        let kind = if ordered {
            EventKind::Replaced {
                cause: Arc::clone(&cause),
                unknown,
            }
        } else {
            EventKind::Lost {
                cause: Arc::clone(&cause),
                unknown,
                not_sent,
            }
        };
        self.shared.hub.emit(self.link.index, kind);
        // One that was replaced with nothing left in it tells nothing of the server.
        if !(ordered && told.is_empty() || apart) {
            let transition = self.shared.breaker.record_loss(now);
            self.shared.breaker_changed(transition);
        }
        for (ticket, certainty, blame) in told {
            ticket.end(Ended::Lost {
                certainty,
                cause: Arc::clone(&cause),
                rejoin: Some(rejoin.clone()),
                blame,
            });
        }
        self.rejoining = Some(rejoining);
    }
}

/// Waits for the end of a connection that stepped aside, when nobody waits for it any more.
async fn drain(shared: Arc<Shared>, driver: Owned<Finished>, identity: Option<Identity>) {
    let fence = FenceOnDrop::new(&shared.fences, identity.clone());
    let Ok(Finished {
        cause, mut conn, ..
    }) = driver.await
    else {
        return;
    };
    fence.accounted_for();
    if conn.has_unanswered_writes() {
        shared.fences.fence(identity);
    }
    for unanswered in conn.close() {
        if let Some(ticket) = unanswered.ticket.into_ticket() {
            ticket.end(Ended::Lost {
                certainty: unanswered.certainty,
                cause: Arc::clone(&cause),
                rejoin: None,
                blame: Blame::None,
            });
        }
    }
}

#[cfg(test)]
mod tests;
