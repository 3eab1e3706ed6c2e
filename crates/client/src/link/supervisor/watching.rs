//! What a supervisor keeps in mind while a connection serves: is it silent, is it too old, are its credentials, and is a challenger under way?

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinError;

use steadfast_core::policy::Backoff;

use super::inquiry::{self, Finding};
use super::outage::go_down;
use super::{Dial, Supervisor};
use crate::clock;
use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
use crate::event::EventKind;
use crate::link::ConnectionState;
use crate::link::connect::{Connector, Established, MARGIN};
use crate::link::driver::Signal;
use crate::link::fence::FENCE_AGAIN;
use crate::link::following::{OLD, retirement};
use crate::task::Owned;
use crate::wire::identity::Identity;
use crate::wire::queue::Order;

/// A connection that is ready to take over.
pub(super) struct Successor {
    pub(super) established: Established,
    /// What its handshake has killed.
    pub(super) ghosts: Vec<Identity>,
    pub(super) attempt: u32,
    pub(super) began: Instant,
}

/// See the module.
pub(super) struct Watching {
    /// What the server calls the connection in service.
    identity: Option<Identity>,
    challenge: Option<Challenge>,
    /// Takes over as soon as the connection in service has ended, or stepped aside.
    pub(super) successor: Option<Successor>,
    /// Takes over if that turns out to be needed.
    standby: Option<Successor>,
    /// When it is let go, if it was not needed.
    standby_until: Option<Instant>,
    asking: Option<Asking>,
    silence: Silence,
    /// Since when no byte has come, if that is too long.
    quiet_since: Option<Instant>,
    /// When the server counts as down, if no standby connection is ready by then.
    down_at: Option<Instant>,
    abandon_at: Option<Instant>,
    /// A call under way was given longer than usual.
    patient: bool,
    /// What has arrived at the server of a request, as it said last.
    received: Option<u64>,
    /// Why it steps aside.
    aside_for: Arc<str>,
    rejoining: Option<mpsc::Receiver<()>>,
    /// Why the connection is to be replaced although it works.
    replaces_for: Option<Arc<str>>,
    retire_at: Option<Instant>,
    /// When to have those killed again that the server could not kill.
    fence_at: Option<Instant>,
    renew_at: Option<Instant>,
    renewing: Option<Renewing>,
    /// Renewals that failed, one after another.
    renewals_failed: u32,
    /// An attempt that keeps its thread, and cannot be ended. While it does there is no other.
    hanging: Option<Dialling>,
    /// What is wrong with the credentials, as it was told last.
    troubled: Option<Arc<str>>,
    /// What it has given, or what another is dialled to give.
    credentials: Option<Credentials>,
}

/// What is known of a silence of the connection in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    None,
    /// It may be nothing.
    Doubtful,
    /// It is too long.
    Overdue,
    /// There are bytes, and no reply is completed.
    Stuck,
}

type Asked = Result<(Successor, Finding), Arc<str>>;

/// A question to the server about the connection in service, on a standby connection.
struct Asking {
    task: Owned<Asked>,
}

/// A reason for another connection, and the attempts to get one.
struct Challenge {
    why: Arc<str>,
    /// The old one works: it is not cut, it finishes what it has. Not for one that is silent.
    gently: bool,
    /// How long each phase may take.
    limit: Duration,
    attempt: u32,
    next_at: Instant,
    dial: Option<Dial>,
}

type Dialling = Owned<Result<Established, ConnectError>>;

struct Renewing {
    task: Owned<Result<Option<Credentials>, ConnectError>>,
    began: Instant,
    /// When it is told (again) that it hangs.
    due: Instant,
    told: bool,
}

/// What [`Watching::next`] found due.
pub(super) enum Due {
    /// An attempt to connect is over.
    Dialled(Result<Result<Established, ConnectError>, JoinError>),
    /// The server has said what it knows of the connection in service.
    Asked(Result<Asked, JoinError>),
    /// The credentials provider has answered.
    Renewed(Result<Result<Option<Credentials>, ConnectError>, JoinError>),
    /// It is time for something.
    Time,
}

impl Watching {
    pub(super) fn new(
        supervisor: &mut Supervisor,
        credentials: Option<Credentials>,
        identity: Option<Identity>,
    ) -> Self {
        let now = clock::now();
        let settings = &supervisor.shared.settings;
        // It was dialled before the provider gave others.
        let overtaken = credentials
            .as_ref()
            .zip(supervisor.latest.as_ref())
            .is_some_and(|(gave, latest)| gave.before(latest) && !gave.same(latest));
        let mut watching = Self {
            identity,
            challenge: None,
            successor: None,
            standby: None,
            standby_until: None,
            asking: None,
            silence: Silence::None,
            quiet_since: None,
            down_at: None,
            abandon_at: None,
            patient: false,
            received: None,
            aside_for: STUCK.into(),
            rejoining: None,
            replaces_for: None,
            retire_at: settings
                .max_age
                .and_then(|age| retirement(age, &mut supervisor.rng)),
            fence_at: None,
            renew_at: renewal_due(&supervisor.connector, now),
            renewing: None,
            renewals_failed: 0,
            hanging: None,
            troubled: None,
            credentials,
        };
        if overtaken {
            watching.replace(supervisor, NEW_CREDENTIALS);
        }
        watching
    }

    /// Ends when those have come again that a connection which stepped aside has left to the next.
    pub(super) fn take_rejoining(&mut self) -> Option<mpsc::Receiver<()>> {
        self.rejoining.take()
    }

    /// Why the connection has stepped aside.
    pub(super) fn aside_for(&self) -> Arc<str> {
        Arc::clone(&self.aside_for)
    }

    /// The driver told something.
    pub(super) fn heard(&mut self, supervisor: &Supervisor, signal: Signal) {
        match signal {
            Signal::Doubtful => self.doubt(supervisor),
            Signal::Calm if self.silence == Silence::Stuck => {}
            Signal::Calm => {
                self.calm();
                self.go_on_replacing(supervisor);
            }
            Signal::Unresponsive(quiet, last) => self.overdue(supervisor, quiet, last),
            Signal::Stuck(unserved) => self.stuck(supervisor, unserved),
            Signal::Aside => {}
            Signal::Recovered(quiet, given_up) if self.quiet_since.is_some() => {
                self.woke(supervisor, quiet, given_up);
            }
            Signal::Recovered(..) => {}
            // It stays remembered; so does every other one.
            Signal::Unfenced(_) => self.fence_at = Some(clock::now() + FENCE_AGAIN),
            // Nothing of that travels on a connection that many share.
            Signal::Reauthenticated(_) => {}
        }
    }

    /// A silence may be nothing: a standby connection is dialled, and nobody is told.
    fn doubt(&mut self, supervisor: &Supervisor) {
        if self.silence == Silence::None {
            supervisor.shared.look_for_primary();
            self.silence = Silence::Doubtful;
            self.standby_until = None;
            match self.standby.take() {
                Some(standby) => self.ask(supervisor, standby),
                None => self.call_standby(supervisor, SILENT),
            }
        }
    }

    fn call_standby(&mut self, supervisor: &Supervisor, why: &str) {
        if self.successor.is_some() || self.standby.is_some() || self.asking.is_some() {
            return;
        }
        let settings = &supervisor.shared.settings;
        let limit = settings.connect_timeout.min(settings.response_idle_timeout);
        match &mut self.challenge {
            // What was dialled because the connection is old serves as well.
            Some(challenge) => challenge.gently = false,
            None => {
                self.challenge = Some(Challenge::new(why.into(), false, limit, clock::now()));
            }
        }
    }

    /// It was nothing, or is over.
    fn calm(&mut self) {
        self.silence = Silence::None;
        self.quiet_since = None;
        self.down_at = None;
        self.abandon_at = None;
        // Whatever was to take its place because it was silent is not needed. What is ready is kept for
        // a while: a server that pauses does so again.
        self.challenge = None;
        self.asking = None;
        self.standby_until = clock::now().checked_add(STANDBY_KEPT);
        if self.replaces_for.is_none() {
            self.successor = None;
        }
    }

    fn overdue(&mut self, supervisor: &Supervisor, quiet: Duration, last: Option<Instant>) {
        let (shared, link) = (&supervisor.shared, &supervisor.link);
        let now = clock::now();
        let quiet_ms = clock::as_ms(quiet);
        shared.look_for_primary();
        shared
            .hub
            .emit(link.index, EventKind::Unresponsive { quiet_ms });
        let since = now.checked_sub(quiet).unwrap_or(now);
        self.silence = Silence::Overdue;
        self.quiet_since = Some(since);
        // A call that was given longer gets it, in case the server is merely busy with it.
        let usual = now.checked_add(shared.settings.deadline);
        self.patient = last > usual;
        self.abandon_at = since
            .checked_add(shared.settings.unresponsive_timeout)
            .max(last);
        if self.successor.is_some() {
            // It was to retire, and does not even finish.
            link.lane.order(Order::Abandon(SILENT.into()));
            return;
        }
        self.call_standby(supervisor, SILENT);
        if let Some(standby) = self.standby.take() {
            self.ask(supervisor, standby);
            return;
        }
        // A first attempt is given a moment, should it have begun only now.
        let moment = shared.settings.response_idle_timeout / 5;
        let begun = self
            .challenge
            .as_ref()
            .map(|challenge| match &challenge.dial {
                Some(dial) => dial.began + moment,
                None if challenge.attempt == 0 => now + moment,
                None => now,
            });
        self.down_at = begun.map(|at| at.max(now));
    }

    fn stuck(&mut self, supervisor: &Supervisor, unserved: Duration) {
        if self.silence != Silence::Overdue && self.successor.is_none() {
            self.silence = Silence::Stuck;
            self.standby_until = None;
            let why = format!("no reply was completed for {unserved:.1?}, whatever bytes came");
            self.call_standby(supervisor, &why);
            if let Some(standby) = self.standby.take() {
                self.step_aside(supervisor, standby, &why);
            }
        }
    }

    /// A standby connection is ready: the server lives. What is wrong with the one in service?
    fn standby_ready(&mut self, supervisor: &Supervisor, standby: Successor, why: &str) {
        match self.silence {
            Silence::Stuck => self.step_aside(supervisor, standby, why),
            _ => self.ask(supervisor, standby),
        }
    }

    fn ask(&mut self, supervisor: &Supervisor, mut standby: Successor) {
        self.down_at = None;
        let limit = supervisor.shared.settings.response_idle_timeout;
        let about = self.identity.clone();
        let task = async move {
            let Some(about) = about else {
                return Ok((standby, Finding::Untold));
            };
            let asking = inquiry::ask(&mut standby.established.stream, &about);
            let found = clock::timeout(limit, asking).await;
            let found = found.unwrap_or_else(|| Err("no answer to CLIENT LIST".into()))?;
            Ok((standby, found))
        };
        let task = Owned::new(tokio::spawn(task));
        self.asking = Some(Asking { task });
    }

    fn asked(&mut self, supervisor: &mut Supervisor, asked: Result<Asked, JoinError>) {
        self.asking = None;
        let asked = asked.unwrap_or_else(|error| Err(error.to_string().into()));
        let (standby, finding) = match asked {
            Ok(asked) => asked,
            Err(cause) => {
                // The server was well a moment ago, and is not now.
                self.call_standby(supervisor, SILENT);
                if self.silence == Silence::Overdue {
                    self.take_for_down(supervisor, cause);
                }
                return;
            }
        };
        if let Finding::Receiving(bytes) = finding
            && self.received.replace(bytes) != Some(bytes)
        {
            // It comes in: that is a sign of life, which ends the silence.
            supervisor.link.lane.order(Order::Lives);
            self.standby = Some(standby);
            return;
        }
        match (self.silence, finding) {
            (Silence::Overdue, Finding::Blocked) => self.step_aside(supervisor, standby, BLOCKED),
            (Silence::Overdue, Finding::Untold) if self.patient => {
                self.step_aside(supervisor, standby, BLOCKED);
            }
            (Silence::Overdue, _) => {
                self.successor = Some(standby);
                supervisor.link.lane.order(Order::Yield(SILENT.into()));
            }
            (Silence::Stuck, _) => self.step_aside(supervisor, standby, STUCK),
            (Silence::None | Silence::Doubtful, _) => self.standby = Some(standby),
        }
    }

    /// The connection in service lives, and others shall not wait for it: it finishes what it has
    /// begun, and the standby takes over.
    fn step_aside(&mut self, supervisor: &Supervisor, standby: Successor, why: &str) {
        self.standby_until = None;
        if supervisor.link.asides() >= ASIDE {
            // There are enough of them. Its calls wait where they are.
            supervisor.link.lane.order(Order::Lives);
            self.standby = Some(standby);
            return;
        }
        let aside = supervisor.link.lane.aside();
        supervisor.link.count_aside(&aside);
        supervisor.shared.fences.register(&aside);
        aside.watch();
        self.aside_for = why.into();
        self.successor = Some(standby);
        let (rejoin, rejoining) = mpsc::channel(1);
        self.rejoining = Some(rejoining);
        supervisor.link.lane.order(Order::StepAside(aside, rejoin));
    }

    fn take_for_down(&mut self, supervisor: &Supervisor, cause: Arc<str>) {
        self.down_at = None;
        let link = &supervisor.link;
        if let Some(since) = self.quiet_since {
            link.view.lock().outage_since.get_or_insert(since);
        }
        go_down(&supervisor.shared, link, Some(cause));
        // Their callers may have something else to fall back on.
        link.lane.order(Order::EndReads);
    }

    fn woke(&mut self, supervisor: &Supervisor, quiet: Duration, unknown: usize) {
        let (shared, link) = (&supervisor.shared, &supervisor.link);
        let now = clock::now();
        self.calm();
        let kind = EventKind::Recovered {
            quiet_ms: clock::as_ms(quiet),
            refused: link.lane.take_refused(),
            unknown,
        };
        shared.hub.emit(link.index, kind);
        if link.state() == ConnectionState::Down {
            link.view.lock().outage_ends(now);
            link.open(now);
        }
        let transition = shared.guard.probe_succeeded(now);
        shared.breaker_changed(transition);
        self.go_on_replacing(supervisor);
    }

    fn go_on_replacing(&mut self, supervisor: &Supervisor) {
        if let Some(why) = self.replaces_for.clone() {
            if self.successor.is_some() {
                supervisor.link.lane.order(Order::Retire(why));
            } else {
                self.replace(supervisor, &why);
            }
        }
    }

    /// The connection works, and another shall take its place.
    fn replace(&mut self, supervisor: &Supervisor, why: &str) {
        self.replaces_for = Some(why.into());
        if self.challenge.is_none() && self.successor.is_none() && self.silence == Silence::None {
            let limit = supervisor.shared.settings.connect_timeout;
            self.challenge = Some(Challenge::new(why.into(), true, limit, clock::now()));
        }
    }

    /// The next thing that is due. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Due {
        let at = self.next_at();
        let dialled = async {
            match &mut self.challenge {
                Some(Challenge {
                    dial: Some(dial), ..
                }) => (&mut dial.task).await,
                _ => std::future::pending().await,
            }
        };
        let asked = async {
            match &mut self.asking {
                Some(asking) => (&mut asking.task).await,
                None => std::future::pending().await,
            }
        };
        let renewed = async {
            match &mut self.renewing {
                Some(renewing) => (&mut renewing.task).await,
                None => std::future::pending().await,
            }
        };
        let time = async {
            match at {
                Some(at) => clock::sleep_fairly_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = dialled => Due::Dialled(result),
            result = asked => Due::Asked(result),
            result = renewed => Due::Renewed(result),
            () = time => Due::Time,
        }
    }

    pub(super) fn handle(&mut self, supervisor: &mut Supervisor, due: Due) {
        match due {
            Due::Dialled(result) => self.challenged(supervisor, result),
            Due::Asked(result) => self.asked(supervisor, result),
            Due::Renewed(result) => self.renewed(supervisor, result),
            Due::Time => self.ticked(supervisor),
        }
    }

    fn challenged(
        &mut self,
        supervisor: &mut Supervisor,
        result: Result<Result<Established, ConnectError>, JoinError>,
    ) {
        let Some(challenge) = &mut self.challenge else {
            return;
        };
        let Some(dial) = challenge.dial.take() else {
            return;
        };
        challenge.attempt += 1;
        let link = Arc::clone(&supervisor.link);
        {
            let mut view = link.view.lock();
            view.attempts += 1;
            view.attempt = challenge.attempt;
        }
        let result = supervisor.survived(result, dial.began);
        if result.is_err() && !dial.task.is_finished() {
            self.hanging = Some(dial.task);
        }
        match result {
            Ok(established) => {
                let why = Arc::clone(&challenge.why);
                let gently = challenge.gently;
                let successor = Successor {
                    established,
                    ghosts: dial.ghosts,
                    attempt: challenge.attempt,
                    began: dial.began,
                };
                self.challenge = None;
                if gently {
                    self.successor = Some(successor);
                    link.lane.order(Order::Retire(why));
                } else {
                    self.standby_ready(supervisor, successor, &why);
                }
            }
            // While it may be nothing, nobody is told.
            Err(_) if self.silence == Silence::Doubtful => {
                let attempt = challenge.attempt;
                let pause = supervisor.pause(attempt);
                challenge.next_at = clock::now() + pause;
            }
            Err(error) => {
                let pause = supervisor.attempt_failed(challenge.attempt, &error);
                *link.stuck_at.lock() = None;
                challenge.next_at = clock::now() + pause;
                if self.silence == Silence::Overdue {
                    self.take_for_down(supervisor, error.to_string().into());
                }
                if let ConnectError::Auth(_) | ConnectError::Credentials(_) = &error {
                    self.trouble(supervisor, Some(error.to_string().into()));
                }
            }
        }
    }

    /// The next of: dial, abandon, retire, renew.
    fn next_at(&self) -> Option<Instant> {
        let dial_at = self
            .challenge
            .as_ref()
            .map(|challenge| match &challenge.dial {
                Some(dial) => dial.due,
                None => challenge.next_at,
            });
        let renew_at = match &self.renewing {
            Some(renewing) => Some(renewing.due),
            None => self.renew_at,
        };
        let next = [
            dial_at,
            self.down_at,
            self.standby_until,
            self.abandon_at,
            self.retire_at,
            self.fence_at,
            renew_at,
        ];
        next.into_iter().flatten().min()
    }

    fn ticked(&mut self, supervisor: &mut Supervisor) {
        let now = clock::now();
        self.dial_if_due(supervisor, now);
        if self.abandon_at.is_some_and(|at| at <= now) {
            self.abandon_at = None;
            let quiet = self.quiet_since.unwrap_or(now);
            let quiet = now.saturating_duration_since(quiet);
            supervisor.link.lane.order(Order::Yield(
                format!("no answer for {quiet:.1?}, given up").into(),
            ));
        }
        if self.standby_until.is_some_and(|at| at <= now) {
            self.standby_until = None;
            self.standby = None;
        }
        if self.down_at.is_some_and(|at| at <= now) {
            let cause = "no answer, and none to a standby connection";
            self.take_for_down(supervisor, cause.into());
        }
        if self.fence_at.is_some_and(|at| at <= now) {
            self.fence_at = None;
            supervisor.link.fence();
        }
        if self.retire_at.is_some_and(|at| at <= now) {
            self.retire_at = None;
            self.replace(supervisor, OLD);
        }
        self.renew_if_due(supervisor, now);
    }

    fn dial_if_due(&mut self, supervisor: &mut Supervisor, now: Instant) {
        let Some(challenge) = &mut self.challenge else {
            return;
        };
        match &challenge.dial {
            None if challenge.next_at > now => {}
            None if self
                .hanging
                .as_ref()
                .is_some_and(|task| !task.is_finished()) =>
            {
                challenge.next_at = now + HANGING_LOOK;
            }
            None => challenge.dial = Some(supervisor.dial(challenge.limit)),
            Some(dial) if dial.due <= now => {
                let limit = now.saturating_duration_since(dial.began);
                supervisor.shared.stuck(&supervisor.link, limit);
                let phase = "attempt";
                self.challenged(supervisor, Ok(Err(ConnectError::TimedOut { phase, limit })));
            }
            Some(_) => {}
        }
    }

    fn renew_if_due(&mut self, supervisor: &Supervisor, now: Instant) {
        match &mut self.renewing {
            Some(renewing) if renewing.due <= now => {
                let after = now.saturating_duration_since(renewing.began);
                // Again after as long as it has taken so far.
                renewing.due = now + after.min(RENEW_AGAIN_MAX);
                let told = std::mem::replace(&mut renewing.told, true);
                self.tell_hanging(supervisor, after, told);
            }
            None if self.renew_at.is_some_and(|at| at <= now) => {
                self.renew_at = None;
                let connector = Arc::clone(&supervisor.connector);
                let limit = supervisor.shared.settings.connect_timeout;
                let task = async move { connector.credentials(limit).await };
                self.renewing = Some(Renewing {
                    task: Owned::new(tokio::spawn(task)),
                    began: now,
                    due: now + limit + MARGIN,
                    told: false,
                });
            }
            _ => {}
        }
    }

    fn renewed(
        &mut self,
        supervisor: &mut Supervisor,
        result: Result<Result<Option<Credentials>, ConnectError>, JoinError>,
    ) {
        let Some(renewing) = self.renewing.take() else {
            return;
        };
        let now = clock::now();
        self.renew_at = renewal_due(&supervisor.connector, now);
        if renewing.due <= now && !renewing.told {
            let after = now.saturating_duration_since(renewing.began);
            self.tell_hanging(supervisor, after, false);
        }
        let result = supervisor.survived(result, renewing.began);
        match &result {
            Ok(_) => self.renewals_failed = 0,
            Err(_) => {
                self.renewals_failed = self.renewals_failed.saturating_add(1);
                let again = Backoff::full_jitter(RENEW_AGAIN, RENEW_AGAIN_MAX);
                let at = now + again.pause(self.renewals_failed, &mut supervisor.rng);
                // Sooner than usual, and for ever: there may be an hour between renewals.
                self.renew_at = self.renew_at.map_or(Some(at), |usual| Some(usual.min(at)));
            }
        }
        match result {
            Ok(Some(fresh)) => {
                let known = self.credentials.as_ref();
                if !known.is_some_and(|known| known.same(&fresh)) {
                    supervisor.latest = Some(fresh.clone());
                    self.credentials = Some(fresh);
                    self.replace(supervisor, NEW_CREDENTIALS);
                }
                let trouble = supervisor.connector.trouble().map(|error| error.why);
                // Credentials that the server refuses are not made good by being had again.
                if trouble.is_some() || self.challenge.is_none() {
                    self.trouble(supervisor, trouble);
                }
            }
            Ok(None) => {}
            Err(error) => self.trouble(supervisor, Some(error.to_string().into())),
        }
    }

    /// What is wrong with the credentials, if anything: told once, until it is something else.
    fn trouble(&mut self, supervisor: &Supervisor, trouble: Option<Arc<str>>) {
        if let Some(cause) = &trouble
            && self.troubled.as_ref() != Some(cause)
        {
            self.credentials_failed(supervisor, cause);
        }
        self.troubled = trouble;
    }

    /// One that hangs is told again and again, and counted once.
    fn tell_hanging(&self, supervisor: &Supervisor, after: Duration, counted: bool) {
        if !counted {
            supervisor.shared.stuck(&supervisor.link, after);
        }
        let cause = format!("the credentials provider keeps its thread, for {after:.1?} now");
        self.credentials_failed(supervisor, &cause);
    }

    fn credentials_failed(&self, supervisor: &Supervisor, cause: &str) {
        let cause = cause.into();
        supervisor.shared.hub.emit(
            supervisor.link.index,
            EventKind::CredentialsFailed { cause },
        );
    }

    pub(super) fn kicked(&mut self, supervisor: &Supervisor) {
        // A kick that was meant for the connection before has lost its reason.
        if let Some(cause) = supervisor.link.view.lock().kick.take() {
            supervisor.link.lane.order(Order::Abandon(cause));
        }
    }
}

/// A standby connection that was not needed is kept for so long.
const STANDBY_KEPT: Duration = Duration::from_secs(5);
/// Connections of one link that finish what they have, at most.
const ASIDE: usize = 4;
const SILENT: &str = "the server stopped answering";
const BLOCKED: &str = "a command on it waits, which the server says or the call allows";
const STUCK: &str = "no reply was completed, whatever bytes came";
const NEW_CREDENTIALS: &str = "there are new credentials";
/// Between looks at an attempt that keeps its thread.
const HANGING_LOOK: Duration = Duration::from_millis(250);
/// Between renewals that fail: full jitter from the first to the second.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
const RENEW_AGAIN_MAX: Duration = Duration::from_secs(30);
impl Challenge {
    fn new(why: Arc<str>, gently: bool, limit: Duration, now: Instant) -> Self {
        Self {
            why,
            gently,
            limit,
            attempt: 0,
            next_at: now,
            dial: None,
        }
    }
}

fn renewal_due(connector: &Connector, now: Instant) -> Option<Instant> {
    let every = connector.renew_in()?;
    now.checked_add(every.max(Duration::from_millis(10)))
}
