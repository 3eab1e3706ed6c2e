//! Trying a server that is down costs every caller a timeout, and costs the server its recovery. A
//! breaker remembers, refuses at once, and finds out with a few calls when it may stop refusing.
//!
//! **Closed** lets calls through and counts. It *opens* on the rate of failures over a window, on
//! failures in a row (the rate alone would sleep through an outage at five calls a second), and on
//! the rate of slow calls. **Open** refuses, saying since when and when to try again, for a time
//! that grows while health does not last. **Half-open** admits a bounded number of probes. A permit
//! belongs to the half-open cycle that issued it: a result that comes late can neither close nor
//! reopen a newer one. Probes that never report lose their places after `open_cap`, so that leaked
//! permits cannot wedge the breaker. After closing, a [ramp](BreakerConfig::ramp) spreads the
//! waiting crowd out in time.
//!
//! On the healthy path nobody needs to ask: while [`passes_freely`](Breaker::passes_freely) is
//! true, callers may go with [`Permit::passed`] and the shell folds its own count of successes in
//! with [`record_successes`](Breaker::record_successes), before it records a failure (else failures
//! would seem to come in a row).
//!
//! Two promises are the caller's: only failures of the infrastructure are reported as such, and a
//! lost connection is reported once, by [`record_loss`](Breaker::record_loss), while the calls it
//! took with it are forgotten.
//!
//! ```
//! # #![allow(clippy::disallowed_methods)]
//! use std::time::Instant;
//! use steadfast_core::policy::breaker::{Admission, Breaker, BreakerConfig, Cause, Outcome, State};
//!
//! let now = Instant::now();
//! let mut breaker = Breaker::new(BreakerConfig::default(), now)?;
//! for _ in 0..5 {
//!     let Ok(Admission::Now(permit)) = breaker.try_acquire(now) else { panic!("closed") };
//!     breaker.record(permit, Outcome::Failure, now);
//! }
//! let refused = breaker.try_acquire(now).unwrap_err();
//! let Ok(Admission::Now(probe)) = breaker.try_acquire(now + refused.retry_after) else {
//!     panic!("a probe")
//! };
//! assert!(probe.is_probe());
//! let half_open = probe.transition().map(|t| (t.to, &t.cause));
//! assert_eq!(half_open, Some((State::HalfOpen, &Cause::OpenTimeOver)));
//! # Ok::<(), steadfast_core::policy::InvalidSetting>(())
//! ```

use std::time::{Duration, Instant};

mod config;
mod permit;
mod ramp;
mod transition;

pub use config::BreakerConfig;
pub use permit::{Admission, Outcome, Permit, Refused};
pub use transition::{BreakerMode, Cause, State, Transition};

use self::ramp::Ramp;
use super::{
    InvalidSetting,
    backoff::grown,
    instant::after,
    window::{Counts, Window},
};

/// Decides whether a call should be tried at all. Owned by one lock; every operation is constant
/// time.
#[derive(Clone, Debug)]
pub struct Breaker {
    config: BreakerConfig,
    mode: BreakerMode,
    phase: BreakerPhase,
    /// Changes whenever permits issued before must no longer count.
    generation: u64,
    window: Window,
    in_a_row: u32,
    /// Openings since health last lasted.
    openings: u32,
    closed_since: Instant,
    /// When the present trouble began; kept through half-open.
    trouble_since: Instant,
}

impl Breaker {
    /// A closed breaker, without a ramp. Errors: a setting that [`BreakerConfig::validate`]
    /// refuses.
    pub fn new(config: BreakerConfig, now: Instant) -> Result<Self, InvalidSetting> {
        config.validate()?;
        Ok(Self {
            window: Window::new(config.window, now),
            config,
            mode: BreakerMode::Automatic,
            phase: BreakerPhase::Closed { ramp: None },
            generation: 1,
            in_a_row: 0,
            openings: 0,
            closed_since: now,
            trouble_since: now,
        })
    }

    /// May a call go? If it may, `record` or `forget` its permit when it is over.
    ///
    /// Errors: [`Refused`], which costs nanoseconds and says when to try again.
    pub fn try_acquire(&mut self, now: Instant) -> Result<Admission, Refused> {
        let began = self.handle_timeout(now);
        let generation = self.generation;
        match &mut self.phase {
            BreakerPhase::Closed { ramp } => {
                let permit = Permit {
                    generation,
                    probe: false,
                    began: None,
                };
                Ok(match ramp.as_mut().map(|ramp| ramp.admit(now)) {
                    Some(until) if until > now => Admission::Delay { until, permit },
                    _ => Admission::Now(permit),
                })
            }
            BreakerPhase::HalfOpen { placed, .. } if *placed < self.config.probes => {
                *placed += 1;
                Ok(Admission::Now(Permit {
                    generation,
                    probe: true,
                    began,
                }))
            }
            BreakerPhase::HalfOpen { .. } => Err(self.refusal(self.config.open_first, now)),
            BreakerPhase::Open { until } => {
                let retry_after = until.map_or(self.config.open_cap, |until| {
                    until.saturating_duration_since(now)
                });
                Err(self.refusal(retry_after, now))
            }
        }
    }

    /// A call that held a permit is over. Results of an earlier generation are ignored.
    pub fn record(&mut self, permit: Permit, outcome: Outcome, now: Instant) -> Option<Transition> {
        if permit.generation != self.generation {
            return None;
        }
        match &mut self.phase {
            BreakerPhase::Closed { .. } => self.count(outcome, now),
            BreakerPhase::HalfOpen {
                placed, succeeded, ..
            } if permit.probe => {
                *placed = placed.saturating_sub(1);
                if outcome != Outcome::Success {
                    return Some(self.open(Cause::ProbeFailed, now));
                }
                *succeeded += 1;
                (*succeeded >= self.config.probe_successes)
                    .then(|| self.close(Cause::ProbesSucceeded, now))
            }
            BreakerPhase::HalfOpen { .. } | BreakerPhase::Open { .. } => None,
        }
    }

    /// So many calls have ended well since the last report: the shell's own count, folded in.
    pub fn record_successes(&mut self, n: u64, now: Instant) {
        if n > 0 && self.counts() {
            self.in_a_row = 0;
            self.window.add(Counts::ok(n), now);
        }
    }

    /// A connection was lost: one failure, however many calls it took with it. Half-open, it is a
    /// failed probe.
    ///
    /// ```
    /// # #![allow(clippy::disallowed_methods)]
    /// use std::time::Instant;
    /// use steadfast_core::policy::breaker::{Breaker, BreakerConfig, State};
    ///
    /// let now = Instant::now();
    /// let config = BreakerConfig {
    ///     consecutive_failures: Some(1),
    ///     ..BreakerConfig::default()
    /// };
    /// let mut breaker = Breaker::new(config, now)?;
    /// breaker.record_loss(now);
    /// assert_eq!(breaker.state(), State::Open);
    /// breaker.probe_succeeded(now); // the client itself has found the server well
    /// assert_eq!(breaker.state(), State::Closed);
    /// # Ok::<(), steadfast_core::policy::InvalidSetting>(())
    /// ```
    pub fn record_loss(&mut self, now: Instant) -> Option<Transition> {
        match self.phase {
            BreakerPhase::Closed { .. } => self.count(Outcome::Failure, now),
            BreakerPhase::HalfOpen { .. } => Some(self.open(Cause::ProbeFailed, now)),
            BreakerPhase::Open { .. } => None,
        }
    }

    /// A call that held a permit ended without telling anything of the server: it was dropped, or
    /// refused elsewhere. A probe gives its place back.
    pub fn forget(&mut self, permit: Permit) {
        if let BreakerPhase::HalfOpen { placed, .. } = &mut self.phase
            && permit.probe
            && permit.generation == self.generation
        {
            *placed = placed.saturating_sub(1);
        }
    }

    /// The client's own probe has been answered (a handshake with a server fit for service): no
    /// need to spend callers on finding out. Closes at once, with a ramp.
    pub fn probe_succeeded(&mut self, now: Instant) -> Option<Transition> {
        match (self.mode, &self.phase) {
            (BreakerMode::Automatic, BreakerPhase::Open { .. } | BreakerPhase::HalfOpen { .. }) => {
                Some(self.close(Cause::OwnProbe, now))
            }
            _ => None,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do: the open time or the ramp
    /// ends, or the probes of a half-open cycle have kept their places too long.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            BreakerPhase::Closed { ramp } => ramp.as_ref().map(Ramp::end),
            BreakerPhase::Open { until } => *until,
            BreakerPhase::HalfOpen { began, placed, .. } => {
                (*placed >= self.config.probes).then(|| after(*began, self.config.open_cap))
            }
        }
    }

    /// Does what has become due. Not needed for correctness: [`try_acquire`](Self::try_acquire)
    /// does it too. It is for those who want the transition to be known when it is due and not when
    /// the next call comes.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Transition> {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return None;
        }
        if let BreakerPhase::Closed { ramp } = &mut self.phase {
            *ramp = None;
            return None;
        }
        let from = self.state();
        self.generation += 1;
        self.phase = BreakerPhase::HalfOpen {
            began: now,
            placed: 0,
            succeeded: 0,
        };
        (from == State::Open).then_some(Transition {
            from,
            to: State::HalfOpen,
            cause: Cause::OpenTimeOver,
            at: now,
        })
    }

    /// The state as it was left by the last operation.
    #[inline]
    pub fn state(&self) -> State {
        match self.phase {
            BreakerPhase::Closed { .. } => State::Closed,
            BreakerPhase::Open { .. } => State::Open,
            BreakerPhase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Closed, and no ramp: calls may pass without asking, with [`Permit::passed`]. A shell keeps
    /// this in an atomic beside the [`generation`](Self::generation), and renews both after each
    /// operation.
    ///
    /// ```
    /// # #![allow(clippy::disallowed_methods)]
    /// use std::time::Instant;
    /// use steadfast_core::policy::breaker::{Breaker, BreakerConfig, Outcome, Permit};
    ///
    /// let now = Instant::now();
    /// let mut breaker = Breaker::new(BreakerConfig::default(), now)?;
    /// let mut served = 0;
    /// if breaker.passes_freely() {
    ///     served += 1; // without asking; its permit is made for it only if it fails
    /// }
    /// breaker.record_successes(served, now);
    /// breaker.record(Permit::passed(breaker.generation()), Outcome::Failure, now);
    /// # Ok::<(), steadfast_core::policy::InvalidSetting>(())
    /// ```
    #[inline]
    pub fn passes_freely(&self) -> bool {
        matches!(self.phase, BreakerPhase::Closed { ramp: None })
    }

    /// Closed, and calls are being spread out in time.
    pub fn ramps(&self) -> bool {
        matches!(self.phase, BreakerPhase::Closed { ramp: Some(_) })
    }

    /// The number of the present stretch of one state; permits of another are void.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Since when calls have not been let through, if the breaker is not closed.
    pub fn trouble_since(&self) -> Option<Instant> {
        (self.state() != State::Closed).then_some(self.trouble_since)
    }

    /// The settings.
    pub fn config(&self) -> &BreakerConfig {
        &self.config
    }

    /// Returns who is in charge.
    pub fn mode(&self) -> BreakerMode {
        self.mode
    }

    /// By hand: refuses everything until [`enable`](Self::enable).
    ///
    /// ```
    /// # #![allow(clippy::disallowed_methods)]
    /// use std::time::Instant;
    /// use steadfast_core::policy::breaker::{Breaker, BreakerConfig, BreakerMode};
    ///
    /// let now = Instant::now();
    /// let mut breaker = Breaker::new(BreakerConfig::default(), now)?;
    /// breaker.force_open(now);
    /// assert_eq!(breaker.mode(), BreakerMode::ForcedOpen);
    /// assert!(breaker.try_acquire(now).is_err());
    /// breaker.enable(now);
    /// assert!(breaker.try_acquire(now).is_ok());
    /// # Ok::<(), steadfast_core::policy::InvalidSetting>(())
    /// ```
    pub fn force_open(&mut self, now: Instant) -> Option<Transition> {
        self.by_hand(
            BreakerMode::ForcedOpen,
            BreakerPhase::Open { until: None },
            now,
        )
    }

    /// By hand: lets everything through until [`enable`](Self::enable), and goes on counting.
    pub fn force_closed(&mut self, now: Instant) -> Option<Transition> {
        self.by_hand(
            BreakerMode::ForcedClosed,
            BreakerPhase::Closed { ramp: None },
            now,
        )
    }

    /// By hand: lets everything through and counts nothing until [`enable`](Self::enable).
    pub fn disable(&mut self, now: Instant) -> Option<Transition> {
        self.by_hand(
            BreakerMode::Disabled,
            BreakerPhase::Closed { ramp: None },
            now,
        )
    }

    /// Gives charge back to the breaker, which begins closed and with nothing counted; with a ramp
    /// if it was open.
    pub fn enable(&mut self, now: Instant) -> Option<Transition> {
        if self.mode == BreakerMode::Automatic {
            return None;
        }
        let ramp = match self.phase {
            BreakerPhase::Closed { .. } => None,
            _ => Ramp::begin(self.config.ramp, self.config.ramp_start, now),
        };
        self.openings = 0;
        self.by_hand(BreakerMode::Automatic, BreakerPhase::Closed { ramp }, now)
    }

    fn counts(&self) -> bool {
        matches!(self.phase, BreakerPhase::Closed { .. }) && self.mode != BreakerMode::Disabled
    }

    /// Counts one call while closed, and opens if that is one too many. A success never opens.
    fn count(&mut self, outcome: Outcome, now: Instant) -> Option<Transition> {
        if !self.counts() {
            return None;
        }
        let (counts, in_a_row) = match outcome {
            Outcome::Success => (Counts::ok(1), 0),
            Outcome::Slow => (Counts::slow(), 0),
            Outcome::Failure => (Counts::failure(), self.in_a_row.saturating_add(1)),
        };
        self.in_a_row = in_a_row;
        self.window.add(counts, now);
        if outcome == Outcome::Success || self.mode != BreakerMode::Automatic {
            return None;
        }
        self.one_too_many(now).map(|cause| self.open(cause, now))
    }

    fn one_too_many(&mut self, now: Instant) -> Option<Cause> {
        if self
            .config
            .consecutive_failures
            .is_some_and(|limit| self.in_a_row >= limit)
        {
            return Some(Cause::ConsecutiveFailures {
                failed: self.in_a_row,
            });
        }
        let counts = self.window.counts(now);
        let (calls, Counts { failed, slow, .. }) = (counts.total(), counts);
        if calls < u64::from(self.config.minimum_calls) {
            return None;
        }
        let reaches = |part: u64, rate: f64| part as f64 >= rate * calls as f64;
        if reaches(failed, self.config.failure_rate) {
            return Some(Cause::FailureRate { failed, calls });
        }
        reaches(slow, self.config.slow_rate).then_some(Cause::SlowCalls { slow, calls })
    }

    fn open(&mut self, cause: Cause, now: Instant) -> Transition {
        let from = self.state();
        if from == State::Closed {
            self.trouble_since = now;
            if now.saturating_duration_since(self.closed_since) >= self.config.healthy_after {
                self.openings = 0;
            }
        }
        self.openings = self.openings.saturating_add(1);
        let config = &self.config;
        let open_time = grown(
            config.open_first,
            config.open_cap,
            config.open_factor,
            self.openings,
        );
        self.go(
            BreakerPhase::Open {
                until: Some(after(now, open_time)),
            },
            cause,
            now,
        )
    }

    fn close(&mut self, cause: Cause, now: Instant) -> Transition {
        let ramp = Ramp::begin(self.config.ramp, self.config.ramp_start, now);
        self.go(BreakerPhase::Closed { ramp }, cause, now)
    }

    fn by_hand(
        &mut self,
        mode: BreakerMode,
        phase: BreakerPhase,
        now: Instant,
    ) -> Option<Transition> {
        self.mode = mode;
        if matches!(phase, BreakerPhase::Open { .. }) && self.state() == State::Closed {
            self.trouble_since = now;
        }
        let transition = self.go(phase, Cause::ByHand, now);
        (transition.from != transition.to).then_some(transition)
    }

    fn go(&mut self, phase: BreakerPhase, cause: Cause, now: Instant) -> Transition {
        let from = self.state();
        self.generation += 1;
        self.window.clear();
        self.in_a_row = 0;
        self.phase = phase;
        if self.state() == State::Closed {
            self.closed_since = now;
        }
        Transition {
            from,
            to: self.state(),
            cause,
            at: now,
        }
    }

    fn refusal(&self, retry_after: Duration, now: Instant) -> Refused {
        Refused {
            since: self.trouble_since.min(now),
            retry_after,
        }
    }
}

#[derive(Clone, Debug)]
enum BreakerPhase {
    Closed {
        ramp: Option<Ramp>,
    },
    /// Without `until`, by hand.
    Open {
        until: Option<Instant>,
    },
    HalfOpen {
        began: Instant,
        placed: u32,
        succeeded: u32,
    },
}

#[cfg(test)]
mod tests;
