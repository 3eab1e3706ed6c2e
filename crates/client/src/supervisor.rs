//! Connects, watches, reconnects, for ever; owns the connection's state.
//!
//! Whatever ends an attempt, another follows: there is no error after which this loop gives up. A peer that stops answering is not taken at
//! its word either: a challenger is dialled, and only its fate decides whether the old connection is replaced or the server is down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast_core::conn::Watch;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock;
use crate::connect::{self, ConnectError, Connector, Established, Identity};
use crate::credentials::Credentials;
use crate::driver::{Driver, Finished, Signal};
use crate::event::EventKind;
use crate::lane::{Gate, Job, Order, Outage};
use crate::link::{ConnectionState, Link};
use crate::shared::Shared;
use crate::slot::Ended;

/// See the module.
pub(crate) struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<Link>,
    pub(crate) connector: Arc<Connector>,
    pub(crate) rng: fastrand::Rng,
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
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Supervisor {
    /// Never ends by itself.
    pub(crate) async fn run(mut self) {
        let mut ready = None;
        loop {
            let established = match ready.take() {
                Some(established) => established,
                None => self.connect_until_up().await,
            };
            ready = self.serve(established).await;
        }
    }

    /// Attempts with growing pauses. Calls wait while the allowance for short interruptions lasts, then they are refused.
    async fn connect_until_up(&mut self) -> Established {
        let now = clock::now();
        let blip_until = {
            let mut view = self.link.view.lock();
            view.outage_begins(self.shared.settings.blip_wait, now)
        };
        let mut patience = Patience {
            link: Arc::clone(&self.link),
            shared: Arc::clone(&self.shared),
            blip_until: Some(blip_until),
        };
        loop {
            let limit = self.shared.settings.connect_timeout;
            let attempt = self.begin_attempt(limit * 5);
            let began = clock::now();
            let ghosts = self.link.ghosts.lock().clone();
            let connector = Arc::clone(&self.connector);
            let result = patience.during(connector.connect(limit, &ghosts)).await;
            match result {
                Ok(established) => {
                    self.put_into_service(&established, &ghosts, attempt, began);
                    return established;
                }
                Err(error) => {
                    let pause = self.attempt_failed(attempt, &error);
                    let link = Arc::clone(&self.link);
                    patience
                        .during(async {
                            tokio::select! {
                                () = tokio::time::sleep(pause) => {}
                                () = link.kick.notified() => {}
                            }
                        })
                        .await;
                }
            }
        }
    }

    fn begin_attempt(&self, longest: Duration) -> u32 {
        let stuck_after = self.shared.settings.stuck_after.max(longest);
        *self.link.stuck_at.lock() = clock::now().checked_add(stuck_after);
        let mut view = self.link.view.lock();
        view.attempts += 1;
        view.attempt += 1;
        view.attempt
    }

    fn attempt_failed(&mut self, attempt: u32, error: &ConnectError) -> Duration {
        let pause = self.shared.settings.reconnect.pause(attempt, &mut self.rng);
        let now = clock::now();
        *self.link.stuck_at.lock() =
            now.checked_add(pause.saturating_add(self.shared.settings.stuck_after));
        let cause: Arc<str> = error.to_string().into();
        self.link.view.lock().last_error = Some(Arc::clone(&cause));
        self.link.lane.set_retry_at(now + pause);
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
        ghosts: &[Identity],
        attempt: u32,
        began: Instant,
    ) {
        let now = clock::now();
        self.shared
            .fencing_known(self.link.index, &established.facts.fencing);
        for (ghost, result) in ghosts.iter().zip(&established.fences) {
            self.shared.fenced(self.link.index, ghost.id, result);
        }
        let outage = {
            let mut view = self.link.view.lock();
            view.facts = Some(established.facts.clone());
            view.outage_ends(now)
        };
        *self.link.stuck_at.lock() = None;
        self.shared.hub.emit(
            self.link.index,
            EventKind::Connected {
                address: established.facts.address.clone(),
                version: established.facts.version.clone(),
                attempt,
                outage_ms: outage.map(clock::as_ms),
                took_ms: clock::as_ms(now.saturating_duration_since(began)),
                refused: self.link.lane.take_refused(),
            },
        );
        let transition = self.shared.guard.probe_succeeded(now);
        self.shared.breaker_changed(transition);
    }

    /// Serves until the connection ends. Returns its successor if there is one already.
    async fn serve(&mut self, established: Established) -> Option<Established> {
        let (signals, mut told) = mpsc::unbounded_channel();
        let driver = Driver::new(
            Arc::clone(&self.shared),
            Arc::clone(&self.link.lane),
            self.link.index,
            established.stream,
            Watch {
                reply_overdue: self.shared.settings.reply_overdue,
                heartbeat: self.shared.settings.heartbeat,
            },
            signals,
        );
        let identity = established.facts.identity;
        // Those that this connection's handshake did not kill: of the connection that it replaces.
        for ghost in self.link.ghosts.lock().iter() {
            self.link.lane.order(Order::Fence {
                id: ghost.id,
                command: ghost.kill(),
            });
        }
        let mut driver = Owned::new(tokio::spawn(driver.run()));
        self.link.lane.set_gate(Gate::Open);
        self.link.set_state(ConnectionState::Ready, clock::now());
        let mut watch = Watching::new(self, established.credentials);
        let finished = loop {
            tokio::select! {
                finished = &mut driver.0 => break finished,
                Some(signal) = told.recv() => watch.heard(self, signal),
                result = watch.challenge(&self.connector, &self.link) => watch.challenged(self, result),
                () = watch.tick() => watch.ticked(self).await,
                () = self.link.kick.notified() => watch.kicked(self),
            }
        };
        let successor = watch.successor.take();
        match finished {
            Ok(finished) => self.ended(finished, identity, successor.is_some()),
            // The driver panicked: its tickets told their callers as they were dropped.
            Err(_) => {
                self.shared.bury(identity, Some(self.link.index));
                self.link.lane.release();
                self.link.lane.set_gate(Gate::Waiting);
            }
        }
        successor.map(|(established, ghosts, attempt, began)| {
            self.put_into_service(&established, &ghosts, attempt, began);
            established
        })
    }

    fn ended(&self, finished: Finished, identity: Option<Identity>, replaced: bool) {
        let now = clock::now();
        let Finished {
            cause,
            mut conn,
            ordered,
        } = finished;
        if conn.has_unanswered_writes() {
            self.shared.bury(identity, Some(self.link.index));
        }
        self.link.lane.release();
        self.link.view.lock().last_error = Some(Arc::clone(&cause));
        if self.link.state() == ConnectionState::Ready {
            // The gate first: a caller that hears of the loss and comes again shall wait here.
            self.link.lane.set_gate(Gate::Waiting);
            self.link.set_state(ConnectionState::Connecting, now);
        }
        if !replaced {
            self.link.view.lock().outage_since.get_or_insert(now);
        }
        let (mut unknown, mut not_sent) = (0, 0);
        let mut told = Vec::with_capacity(conn.awaiting());
        for (job, certainty) in conn.close() {
            match certainty {
                crate::error::Certainty::NotSent => not_sent += 1,
                _ => unknown += 1,
            }
            if let Job::Call(ticket) = job {
                told.push((ticket, certainty));
            }
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
        let transition = self.shared.guard.record_loss(now);
        self.shared.breaker_changed(transition);
        for (ticket, certainty) in told {
            let cause = Arc::clone(&cause);
            ticket.end(Ended::Lost { certainty, cause });
        }
    }
}

/// While there is no connection: keeps the deadlines of calls that wait, and turns them away when the allowance is spent.
struct Patience {
    link: Arc<Link>,
    shared: Arc<Shared>,
    blip_until: Option<Instant>,
}

impl Patience {
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let lane = Arc::clone(&self.link.lane);
        let mut work = std::pin::pin!(work);
        let mut deadlines = std::pin::pin!(lane.keep_deadlines());
        loop {
            match self.blip_until {
                Some(until) => tokio::select! {
                    biased;
                    result = &mut work => return result,
                    () = clock::sleep_until(until) => {
                        self.blip_until = None;
                        go_down(&self.shared, &self.link, None);
                    }
                    () = &mut deadlines => {}
                },
                None => return work.await,
            }
        }
    }
}

fn go_down(shared: &Shared, link: &Link, cause: Option<Arc<str>>) {
    let now = clock::now();
    let (since, cause) = {
        let mut view = link.view.lock();
        let since = *view.outage_since.get_or_insert(now);
        let cause = cause
            .or_else(|| view.last_error.clone())
            .unwrap_or_else(|| "not connected yet".into());
        (since, cause)
    };
    let outage = Arc::new(Outage {
        since,
        cause: Arc::clone(&cause),
    });
    let soon = now + shared.settings.reconnect.longest(1);
    link.lane.set_gate(Gate::Down(outage, soon));
    link.set_state(ConnectionState::Down, now);
    shared.hub.emit(link.index, EventKind::Down { cause });
}

type Successor = (Established, Vec<Identity>, u32, Instant);

/// What a supervisor keeps in mind while a connection serves.
struct Watching {
    /// When the next challenger is dialled; `None` while there is no reason to.
    challenge_at: Option<Instant>,
    why: Option<Arc<str>>,
    /// How long a challenger's phases may take.
    limit: Duration,
    attempt: u32,
    quiet_since: Option<Instant>,
    abandon_at: Option<Instant>,
    retire_at: Option<Instant>,
    renew_at: Option<Instant>,
    credentials: Option<Credentials>,
    offered: Option<Credentials>,
    successor: Option<Successor>,
}

impl Watching {
    fn new(supervisor: &mut Supervisor, credentials: Option<Credentials>) -> Self {
        let now = clock::now();
        let settings = &supervisor.shared.settings;
        // Up to a tenth less, so that the connections of a fleet do not all retire at once.
        let spread = 1.0 - 0.1 * supervisor.rng.f64();
        Self {
            challenge_at: None,
            why: None,
            limit: settings.connect_timeout,
            attempt: 0,
            quiet_since: None,
            abandon_at: None,
            retire_at: settings
                .max_age
                .and_then(|age| now.checked_add(age.mul_f64(spread))),
            renew_at: renewal(&supervisor.connector, now),
            credentials,
            offered: None,
            successor: None,
        }
    }

    fn heard(&mut self, supervisor: &Supervisor, signal: Signal) {
        let link = &supervisor.link;
        let settings = &supervisor.shared.settings;
        let now = clock::now();
        match signal {
            Signal::Overdue(quiet) => {
                let quiet_ms = clock::as_ms(quiet);
                supervisor
                    .shared
                    .hub
                    .emit(link.index, EventKind::Overdue { quiet_ms });
                let since = now.checked_sub(quiet).unwrap_or(now);
                self.quiet_since = Some(since);
                self.abandon_at = since.checked_add(settings.abandon_after);
                self.limit = settings.connect_timeout.min(settings.reply_overdue);
                self.dial(now, "the server stopped answering");
            }
            Signal::Woke(quiet) if self.quiet_since.is_some() => {
                self.quiet_since = None;
                self.abandon_at = None;
                self.challenge_at = None;
                self.attempt = 0;
                let quiet_ms = clock::as_ms(quiet);
                let refused = link.lane.take_refused();
                supervisor
                    .shared
                    .hub
                    .emit(link.index, EventKind::Woke { quiet_ms, refused });
                if link.state() == ConnectionState::Down {
                    link.view.lock().outage_ends(now);
                    link.lane.set_gate(Gate::Open);
                    link.set_state(ConnectionState::Ready, now);
                }
                let transition = supervisor.shared.guard.probe_succeeded(now);
                supervisor.shared.breaker_changed(transition);
            }
            Signal::Woke(_) => {}
            Signal::Reauthenticated(None) => {
                self.credentials = self.offered.take();
                supervisor
                    .shared
                    .hub
                    .emit(link.index, EventKind::Reauthenticated);
            }
            Signal::Reauthenticated(Some(code)) => {
                let cause: Arc<str> =
                    format!("the server refused the new credentials: {code}").into();
                supervisor
                    .shared
                    .hub
                    .emit(link.index, EventKind::CredentialsFailed { cause });
                self.limit = settings.connect_timeout;
                self.dial(now, "re-authentication failed");
            }
        }
    }

    fn dial(&mut self, now: Instant, why: &str) {
        if self.challenge_at.is_none() {
            self.challenge_at = Some(now);
            self.why = Some(why.into());
        }
    }

    /// Dials a challenger when its time has come; waits for ever while there is no reason to.
    async fn challenge(
        &self,
        connector: &Connector,
        link: &Link,
    ) -> Result<Successor, ConnectError> {
        match self.challenge_at {
            Some(at) if self.successor.is_none() => {
                clock::sleep_until(at).await;
                let began = clock::now();
                // Not the one it challenges, which may still be the better one: that is killed when it is abandoned.
                let ghosts = link.ghosts.lock().clone();
                let established = connector.connect(self.limit, &ghosts).await?;
                Ok((established, ghosts, self.attempt + 1, began))
            }
            _ => std::future::pending().await,
        }
    }

    fn challenged(&mut self, supervisor: &mut Supervisor, result: Result<Successor, ConnectError>) {
        let now = clock::now();
        match result {
            Ok(successor) => {
                self.successor = Some(successor);
                self.challenge_at = None;
                let why = self.why.take().unwrap_or_else(|| "replaced".into());
                supervisor.link.lane.order(Order::Abandon(why));
            }
            Err(error) => {
                self.attempt += 1;
                let cause: Arc<str> = error.to_string().into();
                if self.quiet_since.is_some() && supervisor.link.state() == ConnectionState::Ready {
                    supervisor.link.view.lock().outage_since = self.quiet_since;
                    supervisor.link.view.lock().last_error = Some(Arc::clone(&cause));
                    go_down(&supervisor.shared, &supervisor.link, Some(cause));
                }
                {
                    let mut view = supervisor.link.view.lock();
                    view.attempts += 1;
                    view.attempt = self.attempt;
                }
                let pause = supervisor.attempt_failed(self.attempt, &error);
                *supervisor.link.stuck_at.lock() = None;
                self.challenge_at = Some(now + pause);
            }
        }
    }

    /// Waits for the next of: abandon, retire, renew.
    async fn tick(&self) {
        let next = [self.abandon_at, self.retire_at, self.renew_at]
            .into_iter()
            .flatten()
            .min();
        match next {
            Some(at) => clock::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    async fn ticked(&mut self, supervisor: &Supervisor) {
        let now = clock::now();
        if self.abandon_at.is_some_and(|at| at <= now) {
            self.abandon_at = None;
            let after = supervisor.shared.settings.abandon_after;
            supervisor.link.lane.order(Order::Abandon(
                format!("no answer for {after:?}, given up").into(),
            ));
        }
        if self.retire_at.is_some_and(|at| at <= now) {
            self.retire_at = None;
            self.limit = supervisor.shared.settings.connect_timeout;
            self.dial(now, "its maximum age was reached");
        }
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew(supervisor).await;
            self.renew_at = renewal(&supervisor.connector, clock::now());
        }
    }

    async fn renew(&mut self, supervisor: &Supervisor) {
        let limit = supervisor.shared.settings.connect_timeout;
        match supervisor.connector.credentials(limit).await {
            Ok(Some(fresh)) => {
                let known = self.offered.as_ref().or(self.credentials.as_ref());
                if !known.is_some_and(|known| known.same(&fresh)) {
                    let order = Order::Reauthenticate(connect::auth(&fresh));
                    self.offered = Some(fresh);
                    supervisor.link.lane.order(order);
                }
            }
            Ok(None) => {}
            Err(error) => {
                let cause = error.to_string().into();
                supervisor.shared.hub.emit(
                    supervisor.link.index,
                    EventKind::CredentialsFailed { cause },
                );
            }
        }
    }

    fn kicked(&mut self, supervisor: &Supervisor) {
        let cause = supervisor.link.view.lock().kick_cause.take();
        let cause = cause.unwrap_or_else(|| "reset by hand".into());
        supervisor.link.lane.order(Order::Abandon(cause));
    }
}

fn renewal(connector: &Connector, now: Instant) -> Option<Instant> {
    let every = connector.provider()?.renew_in()?;
    now.checked_add(every.max(Duration::from_millis(10)))
}
