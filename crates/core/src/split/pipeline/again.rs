//! The choice of the commands of a pipeline that are sent again.

use std::collections::{HashMap, HashSet};

use redis::Value;

use super::{SplitPipeline, State, Unit};
use crate::certainty::{Certainty, Refusal, refusal, was_refused_before_running};
use crate::command::{Effect, Errors, key_names, looks_before_it_writes};
use crate::redirect::{Routing, is_try_again_for_script};
use crate::slot::Slot;

/// The sender's terms for sending commands again.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Redirects may be followed: fewer than [`MAX_HOPS`](crate::redirect::MAX_HOPS) were. That
    /// costs nothing of the retry budget.
    pub follow: bool,
    /// Whether policy and budget allow another attempt.
    pub retry: bool,
    /// The effect that the caller has said all commands have. It is believed.
    pub effect: Option<Effect>,
}

/// How many commands are sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// The number of commands that follow a redirect.
    pub followed: usize,
    /// The number of commands that were not sent, or refused for now, or are repeated.
    pub retried: usize,
    /// The number of commands that were held back, and wait as before.
    pub held: usize,
}

impl Again {
    /// Returns whether nothing is sent again, so that the pipeline has ended.
    pub fn is_nothing(self) -> bool {
        self.followed + self.retried + self.held == 0
    }
}

/// Why a command may be sent again.
#[derive(Clone, Debug, PartialEq)]
enum Reason {
    Follows(Routing),
    Retries,
}

impl<E> SplitPipeline<'_, E> {
    /// Makes ready to be sent again what may be, in answer to `may_repeat` for those that may have
    /// run: by their effect, and by where they would be repeated.
    ///
    /// What was answered is never sent again, unless the answer proves that nothing has run. What
    /// has run, or may have, and is not repeated keeps earlier commands of its key from being sent
    /// again.
    pub fn again(&mut self, terms: Terms, may_repeat: impl Fn(Effect) -> bool) -> Again {
        let mut reasons: Vec<Option<Reason>> = self
            .units
            .iter()
            .map(|unit| self.reason(unit, terms))
            .collect();
        if terms.retry {
            for number in self.repeatable(terms.effect, may_repeat) {
                reasons[number] = Some(Reason::Retries);
            }
        }
        self.keep_order(&mut reasons, terms.effect);
        let mut again = Again::default();
        for (unit, reason) in self.units.iter_mut().zip(reasons) {
            match reason {
                None => {
                    again.held += usize::from(matches!(unit.state, State::Waiting));
                    continue;
                }
                Some(Reason::Follows(routing)) => {
                    again.followed += 1;
                    let waits = matches!(routing, Routing::TryAgain);
                    unit.aside |= waits && unit.effect == Effect::Read;
                    unit.redirect = Some(routing);
                }
                Some(Reason::Retries) => {
                    again.retried += 1;
                    unit.redirect = None;
                }
            }
            unit.state = State::Waiting;
        }
        again
    }

    /// Why a command that has certainly not run may be sent again.
    fn reason(&self, unit: &Unit<E>, terms: Terms) -> Option<Reason> {
        let retry = terms.retry && !unit.ends_here;
        match &unit.state {
            State::Answered(value) => {
                if let Some(routing) = self.redirect(unit, value) {
                    return terms.follow.then_some(Reason::Follows(routing));
                }
                (retry && self.was_refused_for_now(unit, value)).then_some(Reason::Retries)
            }
            State::Failed(failed) => {
                (retry && failed.certainty != Certainty::Unknown).then_some(Reason::Retries)
            }
            State::Waiting | State::Sent => None,
        }
    }

    /// The redirect in an answer, if it is the word of the server.
    fn redirect(&self, unit: &Unit<E>, answer: &Value) -> Option<Routing> {
        let Value::ServerError(error) = answer else {
            return None;
        };
        let routing = Routing::of(error.code(), error.details().unwrap_or_default())?;
        let is_servers = match unit.errors {
            Errors::Refuse | Errors::MayFollowAPart => true,
            Errors::ProveNothing => {
                let (code, detail) = (error.code(), error.details().unwrap_or_default());
                let last = unit.redirect.as_ref();
                let was_redirected = matches!(last, Some(Routing::Moved(_) | Routing::Ask(_)));
                routing.may_redirect_script(unit.slot) && !was_redirected && !unit.has_run
                    || is_try_again_for_script(code, detail) && self.has_several_keys(unit)
            }
            // Which of its arguments are keys only the server knows.
            Errors::OfNoKnownCommand => self
                .arguments(unit)
                .iter()
                .skip(1)
                .any(|arg| routing.may_redirect_script(Some(Slot::of_key(arg)))),
        };
        (is_servers && routing.follows()).then_some(routing)
    }

    fn was_refused_for_now(&self, unit: &Unit<E>, answer: &Value) -> bool {
        let Value::ServerError(error) = answer else {
            return false;
        };
        let (code, detail) = (error.code(), error.details().unwrap_or_default());
        let args = self.arguments(unit);
        let name = args.first().copied().unwrap_or_default();
        was_refused_before_running(code, detail, unit.errors, name)
            && matches!(
                refusal(code, detail),
                Refusal::Passing | Refusal::WrongServer | Refusal::Demoted
            )
    }

    /// The commands of unknown outcome that may be repeated. Those of one slot are, all together
    /// and in their order, or none of them is: what looks at a key before another writes it would
    /// find something else.
    fn repeatable(&self, said: Option<Effect>, may_repeat: impl Fn(Effect) -> bool) -> Vec<usize> {
        let mut by_slot: HashMap<(Option<Slot>, usize), Vec<usize>> = HashMap::new();
        for (number, unit) in self.units.iter().enumerate() {
            if is_unknown(unit) {
                // Without a slot they have nothing to do with each other.
                let apart = if unit.slot.is_none() { number } else { 0 };
                by_slot.entry((unit.slot, apart)).or_default().push(number);
            }
        }
        let may = |numbers: &Vec<usize>| {
            if numbers.iter().any(|number| self.units[*number].ends_here) {
                return false;
            }
            let mut effects = numbers.iter().map(|number| self.units[*number].effect);
            if !effects.all(|effect| may_repeat(said.unwrap_or(effect))) {
                return false;
            }
            let commands = numbers
                .iter()
                .map(|number| self.arguments(&self.units[*number]));
            let commands: Vec<Vec<&[u8]>> = commands.collect();
            said.is_some()
                || !looks_before_it_writes(commands.iter().map(|args| args.iter().copied()))
        };
        by_slot.into_values().filter(may).flatten().collect()
    }

    /// Leaves out what would run behind a later command of its key. Whether one is left out depends
    /// on later ones only, so the last is judged first.
    fn keep_order(&self, reasons: &mut [Option<Reason>], said: Option<Effect>) {
        if reasons.iter().all(Option::is_none) {
            return;
        }
        // By key: whether a later command has read it, or may have written it, and will not run
        // again.
        let mut done: HashMap<Vec<u8>, Effect> = HashMap::new();
        // The keys of later writes that may have run and are repeated. What has certainly not run
        // may not come between: it would see what they have written.
        let mut repeated: HashSet<Vec<u8>> = HashSet::new();
        for (number, unit) in self.units.iter().enumerate().rev() {
            let args = self.arguments(unit);
            let keys = || key_names(args.iter().copied());
            if reasons[number].is_some() {
                let overtaken = keys().any(|key| match done.get(key) {
                    None => false,
                    Some(Effect::Read) => unit.effect != Effect::Read,
                    Some(_) => true,
                });
                // One that only writes, and may have run itself, restores the order when it is
                // repeated together with them.
                let effect = said.unwrap_or(unit.effect);
                let only_writes = unit.may_have_run() && effect == Effect::LastWins;
                let would_see_them = !only_writes && keys().any(|key| repeated.contains(key));
                if !overtaken && !would_see_them {
                    if unit.may_have_run() && unit.effect != Effect::Read {
                        repeated.extend(keys().map(<[u8]>::to_vec));
                    }
                    continue;
                }
                reasons[number] = None;
            }
            if self.may_have_run(unit) {
                for key in keys() {
                    let worst = done.entry(key.to_vec()).or_insert(Effect::Read);
                    *worst = unit.effect.max(*worst);
                }
            }
        }
    }

    pub(super) fn may_have_run(&self, unit: &Unit<E>) -> bool {
        if unit.may_have_run() {
            return true;
        }
        match &unit.state {
            State::Answered(value) => {
                self.redirect(unit, value).is_none() && !self.was_refused_for_now(unit, value)
            }
            State::Sent => true,
            State::Failed(_) | State::Waiting => false,
        }
    }

    fn has_several_keys(&self, unit: &Unit<E>) -> bool {
        let args = self.arguments(unit);
        key_names(args.iter().copied()).nth(1).is_some()
    }

    fn arguments(&self, unit: &Unit<E>) -> Vec<&[u8]> {
        self.entries[unit.entry].portion(unit.part).arguments()
    }
}

fn is_unknown<E>(unit: &Unit<E>) -> bool {
    matches!(&unit.state, State::Failed(failed) if failed.certainty == Certainty::Unknown)
}
