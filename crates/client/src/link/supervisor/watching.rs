//! The state that a supervisor keeps while a connection serves: is it silent, is it too old, and
//! what is to be done about it?

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinError;

use super::Supervisor;
use super::inquiry::{self, Finding};
use super::outage::go_down;
use super::renewal::{Given, Renewal};
use super::replacement::{Dialled, Replacement, Successor};
use super::silence::{Silence, Unresponsive};
use crate::clock;
use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
use crate::event::EventKind;
use crate::link::ConnectionState;
use crate::link::driver::Signal;
use crate::link::fence::FENCE_AGAIN;
use crate::link::following::{OLD, retirement};
use crate::task::Owned;
use crate::wire::identity::Identity;
use crate::wire::queue::DriverCommand;

/// The state of a supervisor while a connection serves.
pub(super) struct Watching {
    /// The server's name for the connection in service.
    identity: Option<Identity>,
    silence: Silence,
    replacement: Replacement,
    renewal: Renewal,
    /// A question to the server about the connection in service, on a standby connection.
    asking: Option<Owned<Asked>>,
    /// The bytes of a request that have arrived at the server, as it said last.
    received: Option<u64>,
    /// The reason why the connection steps aside.
    aside_for: Arc<str>,
    rejoining: Option<mpsc::Receiver<()>>,
    /// The reason to replace the connection although it works.
    replaces_for: Option<Arc<str>>,
    retire_at: Option<Instant>,
    /// The instant at which to have those killed again that the server could not kill.
    fence_at: Option<Instant>,
}

type Asked = Result<(Successor, Finding), Arc<str>>;

/// A thing that [`Watching::next`] found due.
pub(super) enum Due {
    /// An attempt to connect is over.
    Dialled(Dialled),
    /// The server has said what it knows of the connection in service.
    Asked(Result<Asked, JoinError>),
    /// The credentials provider has answered.
    Renewed(Result<Given, JoinError>),
    /// A time that was waited for has come.
    Time,
}

/// Connections of one link that finish what they have, at most.
const ASIDE: usize = 4;
const SILENT: &str = "the server stopped answering";
const BLOCKED: &str = "a command on it waits, which the server says or the call allows";
const STUCK: &str = "no reply was completed, whatever bytes came";
const NEW_CREDENTIALS: &str = "there are new credentials";

impl Watching {
    pub(super) fn new(
        supervisor: &mut Supervisor,
        credentials: Option<Credentials>,
        identity: Option<Identity>,
    ) -> Self {
        let settings = &supervisor.shared.settings;
        // It was dialled before the provider gave others.
        let overtaken = credentials
            .as_ref()
            .zip(supervisor.latest.as_ref())
            .is_some_and(|(gave, latest)| gave.before(latest) && !gave.same(latest));
        let mut watching = Self {
            identity,
            silence: Silence::None,
            replacement: Replacement::default(),
            asking: None,
            received: None,
            aside_for: STUCK.into(),
            rejoining: None,
            replaces_for: None,
            retire_at: settings
                .max_age
                .and_then(|age| retirement(age, &mut supervisor.rng)),
            fence_at: None,
            renewal: Renewal::new(&supervisor.connector, credentials),
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

    /// Takes the connection that is ready to take over, if one is.
    pub(super) fn take_successor(&mut self) -> Option<Successor> {
        self.replacement.successor.take()
    }

    /// Returns why the connection has stepped aside.
    pub(super) fn aside_for(&self) -> Arc<str> {
        Arc::clone(&self.aside_for)
    }

    /// Takes what the driver tells.
    pub(super) fn on_signal(&mut self, supervisor: &Supervisor, signal: Signal) {
        match signal {
            Signal::Doubtful => self.doubt(supervisor),
            Signal::Calm if matches!(self.silence, Silence::Stuck) => {}
            Signal::Calm => {
                self.calm();
                self.go_on_replacing(supervisor);
            }
            Signal::Unresponsive {
                quiet,
                last,
                on_its_way,
            } => self.unresponsive(supervisor, quiet, last, on_its_way),
            Signal::Stuck(unserved) => self.stuck(supervisor, unserved),
            Signal::Aside => {}
            Signal::Recovered(quiet, given_up)
                if matches!(self.silence, Silence::Unresponsive(_)) =>
            {
                self.recovered(supervisor, quiet, given_up);
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
        if matches!(self.silence, Silence::None) {
            supervisor.shared.look_for_primary();
            self.silence = Silence::Doubtful;
            self.replacement.keep_standby();
            match self.replacement.standby.take() {
                Some(standby) => self.ask(supervisor, standby),
                None => self.call_standby(supervisor, SILENT),
            }
        }
    }

    fn call_standby(&mut self, supervisor: &Supervisor, why: &str) {
        let replacement = &mut self.replacement;
        let ready = replacement.successor.is_some() || replacement.standby.is_some();
        if ready || self.asking.is_some() {
            return;
        }
        let settings = &supervisor.shared.settings;
        let limit = settings.connect_timeout.min(settings.response_idle_timeout);
        replacement.dial_standby(why, limit);
    }

    /// The silence was nothing, or is over.
    fn calm(&mut self) {
        self.silence = Silence::None;
        // Whatever was to take its place because it was silent is not needed.
        self.replacement.stand_down();
        self.asking = None;
        if self.replaces_for.is_none() {
            self.replacement.successor = None;
        }
    }

    fn unresponsive(
        &mut self,
        supervisor: &Supervisor,
        quiet: Duration,
        last: Option<Instant>,
        on_its_way: bool,
    ) {
        let (shared, link) = (&supervisor.shared, &supervisor.link);
        let now = clock::now();
        let quiet_ms = clock::as_ms(quiet);
        shared.look_for_primary();
        let kind = EventKind::Unresponsive { quiet_ms };
        shared.hub.emit(link.index, kind);
        let since = now.checked_sub(quiet).unwrap_or(now);
        let abandon_at = since.checked_add(shared.settings.unresponsive_timeout);
        // A call that was given longer gets it, in case the server is merely busy with it. So does
        // a long one: to send it again would fare no better.
        let usual = now.checked_add(shared.settings.deadline);
        let patient = on_its_way || last > usual;
        self.silence = Silence::Unresponsive(Unresponsive {
            since,
            down_at: None,
            abandon_at: abandon_at.max(last),
            patient,
        });
        if self.rejoining.is_some() {
            // It is told to step aside already.
            return;
        }
        match self.replacement.successor.take() {
            // It was to retire: it finishes what it has, and nobody waits for that.
            Some(successor) if patient => {
                self.step_aside(supervisor, successor, BLOCKED);
                return;
            }
            // It was to retire, and does not even finish.
            Some(successor) => {
                self.replacement.successor = Some(successor);
                link.queue.command(DriverCommand::Abandon(SILENT.into()));
                return;
            }
            None => {}
        }
        self.call_standby(supervisor, SILENT);
        if let Some(standby) = self.replacement.standby.take() {
            self.ask(supervisor, standby);
            return;
        }
        // A first attempt is given a moment, should it have begun only now.
        let moment = shared.settings.response_idle_timeout / 5;
        let begun = self
            .replacement
            .dial
            .as_ref()
            .map(|dial| match &dial.running {
                Some(running) => running.began + moment,
                None if dial.attempt == 0 => now + moment,
                None => now,
            });
        self.silence.set_down_at(begun.map(|at| at.max(now)));
    }

    fn stuck(&mut self, supervisor: &Supervisor, unserved: Duration) {
        let silent = matches!(self.silence, Silence::Unresponsive(_));
        if !silent && self.rejoining.is_none() {
            self.silence = Silence::Stuck;
            self.replacement.keep_standby();
            let why = format!("no reply was completed for {unserved:.1?}, whatever bytes came");
            self.call_standby(supervisor, &why);
            // One that was to take over once this one has finished need not wait for that.
            let replacement = &mut self.replacement;
            let ready = replacement.successor.take();
            if let Some(ready) = ready.or_else(|| replacement.standby.take()) {
                self.step_aside(supervisor, ready, &why);
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
        self.silence.set_down_at(None);
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
        self.asking = Some(Owned::new(tokio::spawn(task)));
    }

    fn asked(&mut self, supervisor: &mut Supervisor, asked: Result<Asked, JoinError>) {
        self.asking = None;
        let asked = asked.unwrap_or_else(|error| Err(error.to_string().into()));
        let (standby, finding) = match asked {
            Ok(asked) => asked,
            Err(cause) => {
                // The server was well a moment ago, and is not now.
                self.call_standby(supervisor, SILENT);
                self.take_for_down(supervisor, cause);
                return;
            }
        };
        if let Finding::Receiving(bytes) = finding
            && self.received.replace(bytes) != Some(bytes)
        {
            // It comes in: that is a sign of life, which ends the silence.
            supervisor.link.queue.command(DriverCommand::Lives);
            self.replacement.standby = Some(standby);
            return;
        }
        match (&self.silence, finding) {
            (Silence::Unresponsive(_), Finding::Blocked) => {
                self.step_aside(supervisor, standby, BLOCKED);
            }
            (Silence::Unresponsive(silent), Finding::Untold) if silent.patient => {
                self.step_aside(supervisor, standby, BLOCKED);
            }
            (Silence::Unresponsive(_), _) => {
                self.replacement.successor = Some(standby);
                let command = DriverCommand::Yield(SILENT.into());
                supervisor.link.queue.command(command);
            }
            (Silence::Stuck, _) => self.step_aside(supervisor, standby, STUCK),
            (Silence::None | Silence::Doubtful, _) => self.replacement.standby = Some(standby),
        }
    }

    /// The connection in service lives, and others shall not wait for it: it finishes what it has
    /// begun, and the standby takes over.
    fn step_aside(&mut self, supervisor: &Supervisor, standby: Successor, why: &str) {
        self.replacement.keep_standby();
        let link = &supervisor.link;
        if link.asides() >= ASIDE {
            // There are enough of them. Its calls wait where they are.
            link.queue.command(DriverCommand::Lives);
            match self.replaces_for {
                Some(_) => self.replacement.successor = Some(standby),
                None => self.replacement.standby = Some(standby),
            }
            return;
        }
        let aside = link.queue.aside();
        link.count_aside(&aside);
        supervisor.shared.fences.register(&aside);
        aside.watch();
        self.aside_for = why.into();
        self.replacement.successor = Some(standby);
        let (rejoin, rejoining) = mpsc::channel(1);
        self.rejoining = Some(rejoining);
        link.queue.command(DriverCommand::StepAside(aside, rejoin));
    }

    /// Takes the server for down, if the connection in service has been silent for too long.
    fn take_for_down(&mut self, supervisor: &Supervisor, cause: Arc<str>) {
        let Silence::Unresponsive(silent) = &mut self.silence else {
            return;
        };
        silent.down_at = None;
        let link = &supervisor.link;
        link.view.lock().outage_since.get_or_insert(silent.since);
        go_down(&supervisor.shared, link, Some(cause));
        // Their callers may have something else to fall back on.
        link.queue.command(DriverCommand::EndReads);
    }

    fn recovered(&mut self, supervisor: &Supervisor, quiet: Duration, unknown: usize) {
        let (shared, link) = (&supervisor.shared, &supervisor.link);
        let now = clock::now();
        self.calm();
        let kind = EventKind::Recovered {
            quiet_ms: clock::as_ms(quiet),
            refused: link.queue.take_refused(),
            unknown,
        };
        shared.hub.emit(link.index, kind);
        if link.state() == ConnectionState::Down {
            link.view.lock().outage_ends(now);
            link.open(now);
        }
        let transition = shared.breaker.probe_succeeded(now);
        shared.breaker_changed(transition);
        self.go_on_replacing(supervisor);
    }

    fn go_on_replacing(&mut self, supervisor: &Supervisor) {
        if let Some(why) = self.replaces_for.clone() {
            if self.replacement.successor.is_some() {
                supervisor.link.queue.command(DriverCommand::Retire(why));
            } else {
                self.replace(supervisor, &why);
            }
        }
    }

    /// The connection works, and another shall take its place.
    fn replace(&mut self, supervisor: &Supervisor, why: &str) {
        self.replaces_for = Some(why.into());
        if matches!(self.silence, Silence::None) {
            let limit = supervisor.shared.settings.connect_timeout;
            self.replacement.dial_gently(why, limit);
        }
    }

    /// Waits for the next thing that is due. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Due {
        let at = self.poll_timeout();
        let asked = async {
            match &mut self.asking {
                Some(asking) => asking.await,
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
            result = self.replacement.dialled() => Due::Dialled(result),
            result = asked => Due::Asked(result),
            result = self.renewal.answer() => Due::Renewed(result),
            () = time => Due::Time,
        }
    }

    pub(super) fn handle(&mut self, supervisor: &mut Supervisor, due: Due) {
        match due {
            Due::Dialled(result) => self.dialled(supervisor, result),
            Due::Asked(result) => self.asked(supervisor, result),
            Due::Renewed(result) => self.renewed(supervisor, result),
            Due::Time => self.handle_timeout(supervisor),
        }
    }

    fn dialled(&mut self, supervisor: &mut Supervisor, result: Dialled) {
        let Some(result) = self.replacement.handle_dialled(supervisor, result) else {
            return;
        };
        match result {
            Ok((successor, dial)) if dial.gently => {
                self.replacement.successor = Some(successor);
                let command = DriverCommand::Retire(dial.why);
                supervisor.link.queue.command(command);
            }
            Ok((successor, dial)) => self.standby_ready(supervisor, successor, &dial.why),
            Err(error) => self.dial_failed(supervisor, &error),
        }
    }

    fn dial_failed(&mut self, supervisor: &mut Supervisor, error: &ConnectError) {
        let Some(dial) = &mut self.replacement.dial else {
            return;
        };
        if matches!(self.silence, Silence::Doubtful) {
            // While it may be nothing, nobody is told.
            dial.next_at = clock::now() + supervisor.pause(dial.attempt);
            return;
        }
        let pause = supervisor.attempt_failed(dial.attempt, error);
        *supervisor.link.stuck_at.lock() = None;
        dial.next_at = clock::now() + pause;
        let cause: Arc<str> = error.to_string().into();
        self.take_for_down(supervisor, Arc::clone(&cause));
        if let ConnectError::Auth(_) | ConnectError::Credentials(_) = error {
            self.renewal.emit_trouble(supervisor, Some(cause));
        }
    }

    /// Returns when something is to be done: dial, abandon, retire, renew.
    fn poll_timeout(&self) -> Option<Instant> {
        let next = [
            self.replacement.poll_timeout(),
            self.silence.poll_timeout(),
            self.retire_at,
            self.fence_at,
            self.renewal.poll_timeout(),
        ];
        next.into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, supervisor: &mut Supervisor) {
        let now = clock::now();
        if let Some(error) = self.replacement.handle_timeout(supervisor, now) {
            self.dialled(supervisor, Ok(Err(error)));
        }
        if let Silence::Unresponsive(silent) = &mut self.silence
            && silent.abandon_at.is_some_and(|at| at <= now)
        {
            silent.abandon_at = None;
            let quiet = now.saturating_duration_since(silent.since);
            let why = format!("no answer for {quiet:.1?}, given up");
            let command = DriverCommand::Yield(why.into());
            supervisor.link.queue.command(command);
        }
        self.replacement.expire_standby(now);
        if let Silence::Unresponsive(silent) = &self.silence
            && silent.down_at.is_some_and(|at| at <= now)
        {
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
        self.renewal.handle_timeout(supervisor, now);
    }

    fn renewed(&mut self, supervisor: &mut Supervisor, answer: Result<Given, JoinError>) {
        let Some(is_new) = self.renewal.handle_answer(supervisor, answer) else {
            return;
        };
        if is_new {
            self.replace(supervisor, NEW_CREDENTIALS);
        }
        let trouble = supervisor.connector.trouble().map(|error| error.why);
        // Credentials that the server refuses are not made good by being had again.
        if trouble.is_some() || self.replacement.dial.is_none() {
            self.renewal.emit_trouble(supervisor, trouble);
        }
    }

    pub(super) fn kicked(&mut self, supervisor: &Supervisor) {
        // A kick that was meant for the connection before has lost its reason.
        if let Some(cause) = supervisor.link.view.lock().kick.take() {
            let command = DriverCommand::Abandon(cause);
            supervisor.link.queue.command(command);
        }
    }
}
