//! The text of a scenario and what may stand in it. The form is kept apart from the meaning, so that a mistake is found where
//! its place in the text is still known, and the rest of the lab never meets one.

use std::ops::Range;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _};
use toml::Spanned;

use super::{Arrivals, Fault, Load, Phases, Scenario, ScenarioError, Step, Thresholds};
use crate::fault::{self, Direction, Toxic};

pub(super) fn parse(text: &str) -> Result<Scenario, ScenarioError> {
    let source: Source = toml::from_str(text).map_err(|error| {
        ScenarioError::new(
            text,
            error.span().unwrap_or(0..0),
            error.message().trim_end(),
        )
    })?;
    source
        .checked()
        .map_err(|Mistake { span, message }| ScenarioError::new(text, span, message))
}

struct Mistake {
    span: Range<usize>,
    message: String,
}

impl Mistake {
    fn at<T>(place: &Spanned<T>, message: impl Into<String>) -> Self {
        Self {
            span: place.span(),
            message: message.into(),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    name: Spanned<String>,
    #[serde(default)]
    about: String,
    seed: Option<u64>,
    #[serde(default)]
    load: LoadSource,
    phases: Spanned<PhasesSource>,
    #[serde(default)]
    steps: Vec<Spanned<StepSource>>,
    #[serde(default)]
    thresholds: ThresholdsSource,
}

impl Source {
    fn checked(self) -> Result<Scenario, Mistake> {
        if self.name.get_ref().trim().is_empty() {
            return Err(Mistake::at(&self.name, "the name is empty"));
        }
        let phases = checked_phases(&self.phases)?;
        let steps = self
            .steps
            .into_iter()
            .map(|step| checked_step(step, phases.fault));
        Ok(Scenario {
            steps: steps.collect::<Result<_, _>>()?,
            name: self.name.into_inner(),
            about: self.about,
            seed: self.seed.unwrap_or(1),
            load: self.load.checked()?,
            phases,
            thresholds: self.thresholds.checked(),
        })
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LoadSource {
    rate: Option<Spanned<f64>>,
    callers: Option<Spanned<usize>>,
    pause: Option<Spanned<Time>>,
    keys: Option<Spanned<u64>>,
    zipf: Option<Spanned<f64>>,
    writes: Option<Spanned<f64>>,
    in_flight: Option<Spanned<usize>>,
    calls: Option<Spanned<u64>>,
}

impl LoadSource {
    fn checked(self) -> Result<Load, Mistake> {
        Ok(Load {
            arrivals: checked_arrivals(self.rate, self.callers, self.pause)?,
            keys: within(self.keys, 1, 10_000_000, "keys")?.unwrap_or(1000),
            zipf: share_of(self.zipf, 0.0, 5.0)?.unwrap_or(1.0),
            writes: share_of(self.writes, 0.0, 1.0)?.unwrap_or(0.02),
            in_flight: within(self.in_flight, 1, 1 << 20, "calls at once")?.unwrap_or(1024),
            calls: within(self.calls, 1, u64::MAX, "calls")?,
        })
    }
}

fn checked_arrivals(
    rate: Option<Spanned<f64>>,
    callers: Option<Spanned<usize>>,
    pause: Option<Spanned<Time>>,
) -> Result<Arrivals, Mistake> {
    match (rate, callers) {
        (Some(_), Some(callers)) => Err(Mistake::at(
            &callers,
            "the load has both a `rate` (open loop) and `callers` (closed loop): give one of them",
        )),
        (rate, None) => {
            if let Some(pause) = pause {
                return Err(Mistake::at(
                    &pause,
                    "`pause` goes with `callers`, not with a `rate`",
                ));
            }
            match rate {
                Some(rate) if *rate.get_ref() > 0.0 && *rate.get_ref() <= 1e6 => {
                    Ok(Arrivals::Open {
                        rate: rate.into_inner(),
                    })
                }
                Some(rate) => Err(Mistake::at(
                    &rate,
                    "a rate is calls a second, more than 0 and at most a million",
                )),
                None => Ok(Arrivals::Open { rate: 200.0 }),
            }
        }
        (None, Some(callers)) => {
            let pause = pause.map_or(Duration::ZERO, |pause| pause.into_inner().0);
            let callers = within(Some(callers), 1, 100_000, "callers")?;
            Ok(Arrivals::Closed {
                callers: callers.unwrap_or(1),
                pause,
            })
        }
    }
}

fn within<T: PartialOrd + Copy + std::fmt::Display>(
    value: Option<Spanned<T>>,
    low: T,
    high: T,
    what: &str,
) -> Result<Option<T>, Mistake> {
    match value {
        Some(value) if *value.get_ref() < low || *value.get_ref() > high => Err(Mistake::at(
            &value,
            format!("{what}: between {low} and {high}"),
        )),
        value => Ok(value.map(Spanned::into_inner)),
    }
}

/// As `within`, for numbers that may be NaN.
fn share_of(value: Option<Spanned<f64>>, low: f64, high: f64) -> Result<Option<f64>, Mistake> {
    match value {
        Some(value) if !(low..=high).contains(value.get_ref()) => Err(Mistake::at(
            &value,
            format!("this is a number between {low} and {high}"),
        )),
        value => Ok(value.map(Spanned::into_inner)),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PhasesSource {
    warm_up: Option<Time>,
    baseline: Time,
    fault: Time,
    recovery: Time,
    recovered: Time,
}

fn checked_phases(source: &Spanned<PhasesSource>) -> Result<Phases, Mistake> {
    let phases = source.get_ref();
    let phases = Phases {
        warm_up: phases.warm_up.map_or(Duration::from_secs(1), |time| time.0),
        baseline: phases.baseline.0,
        fault: phases.fault.0,
        recovery: phases.recovery.0,
        recovered: phases.recovered.0,
    };
    if phases.baseline.is_zero() || phases.recovered.is_zero() {
        return Err(Mistake::at(
            source,
            "baseline and recovered are what the rest is judged by: they cannot be 0",
        ));
    }
    if phases.total() > Duration::from_secs(24 * 3600) {
        return Err(Mistake::at(source, "a drill ends within a day"));
    }
    Ok(phases)
}

/// A step and what its fault is told. Each fault takes some of the attributes and refuses the others.
/// (They stand in one struct, as flattening would lose their places.)
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StepSource {
    fault: Spanned<String>,
    at: Option<Spanned<Time>>,
    r#for: Option<Spanned<Time>>,
    every: Option<Spanned<Time>>,
    times: Option<Spanned<u32>>,
    latency: Option<Spanned<Time>>,
    jitter: Option<Spanned<Time>>,
    delay: Option<Spanned<Time>>,
    rate: Option<Spanned<u64>>,
    size: Option<Spanned<usize>>,
    bytes: Option<Spanned<u64>>,
    share: Option<Spanned<f64>>,
    error: Option<Spanned<String>>,
    timeout: Option<Spanned<Time>>,
    commands: Option<Spanned<Vec<String>>>,
    direction: Option<Spanned<String>>,
}

fn checked_step(step: Spanned<StepSource>, phase: Duration) -> Result<Step, Mistake> {
    let step = step.into_inner();
    let at = step.at.as_ref().map_or(Duration::ZERO, |at| at.get_ref().0);
    let times = within(step.times.clone(), 1, 10_000, "times")?.unwrap_or(1);
    let every = match (&step.every, &step.times) {
        (Some(every), _) if every.get_ref().0.is_zero() => {
            return Err(Mistake::at(every, "`every` cannot be 0"));
        }
        (Some(every), _) => every.get_ref().0,
        (None, Some(times)) if *times.get_ref() > 1 => {
            return Err(Mistake::at(
                times,
                "a step that happens several times needs `every`",
            ));
        }
        (None, _) => Duration::ZERO,
    };
    let last_start = at + every * (times - 1);
    let lasts = match &step.r#for {
        Some(lasts) => lasts.get_ref().0,
        None if times > 1 => every / 2,
        None => phase.saturating_sub(at),
    };
    if last_start + lasts > phase {
        let place = step.r#for.as_ref().or(step.at.as_ref());
        let span = place.map_or_else(|| step.fault.span(), Spanned::span);
        let message = format!(
            "this step ends {:?} after the fault phase began, which lasts {phase:?}: it would end after the fault phase",
            last_start + lasts
        );
        return Err(Mistake { span, message });
    }
    if times > 1 && lasts >= every {
        return Err(Mistake::at(
            step.r#for
                .as_ref()
                .map_or(&step.every, |_| &step.every)
                .as_ref()
                .expect("checked above"),
            "the fault must end before it comes again: `for` is less than `every`",
        ));
    }
    Ok(Step {
        at,
        lasts,
        every,
        times,
        fault: checked_fault(step)?,
    })
}

fn checked_fault(mut given: StepSource) -> Result<Fault, Mistake> {
    let name = given.fault.clone();
    let fault = match name.get_ref().as_str() {
        "crash" => Fault::Crash,
        "old_snapshot" => Fault::OldSnapshot,
        "freeze" => Fault::Freeze,
        "maxclients" => Fault::MaxClients,
        "oom" => Fault::OutOfMemory,
        "loading" => Fault::Loading,
        "readonly" => Fault::ReadOnly,
        "password_changed" => Fault::PasswordChanged,
        "user_deleted" => Fault::UserDeleted,
        "token_expired" => Fault::TokenExpired,
        "database_down" => Fault::DatabaseDown,
        "database_slow" => Fault::DatabaseSlow(needed(given.latency.take(), &name, "latency")?.0),
        _ => wire(&name, &mut given)?,
    };
    given.refuse_leftovers(name.get_ref())?;
    Ok(fault)
}

/// The faults of the proxy, by the names that they have there.
fn wire(name: &Spanned<String>, given: &mut StepSource) -> Result<Fault, Mistake> {
    let zero =
        |time: Option<Spanned<Time>>| time.map_or(Duration::ZERO, |time| time.into_inner().0);
    let mut commands = || {
        given
            .commands
            .take()
            .map_or_else(Vec::new, Spanned::into_inner)
    };
    let wire: fault::Fault = match name.get_ref().as_str() {
        "down" => fault::Down {}.into(),
        "timeout" => fault::Timeout {
            timeout: zero(given.timeout.take()),
        }
        .into(),
        "stall" => fault::Stall {}.into(),
        "hold" => fault::Hold {}.into(),
        "reset_peer" => fault::ResetPeer {
            timeout: zero(given.timeout.take()),
        }
        .into(),
        "slow_close" => fault::SlowClose {
            delay: needed(given.delay.take(), name, "delay")?.0,
        }
        .into(),
        "latency" => {
            let latency = needed(given.latency.take(), name, "latency")?.0;
            fault::Latency {
                latency,
                jitter: zero(given.jitter.take()),
            }
            .into()
        }
        "bandwidth" => fault::Bandwidth {
            rate: needed(given.rate.take(), name, "rate")?,
        }
        .into(),
        "slicer" => fault::Slicer {
            average_size: needed(given.size.take(), name, "size")?,
            size_variation: 0,
            delay: zero(given.delay.take()),
        }
        .into(),
        "limit_data" => fault::LimitData {
            bytes: needed(given.bytes.take(), name, "bytes")?,
        }
        .into(),
        "corrupt" => fault::Corrupt {
            share: share_of(given.share.take(), 0.0, 1.0)?.unwrap_or(1.0),
        }
        .into(),
        "resp_error" => fault::RespError {
            commands: commands(),
            percentage: percentage(given.share.take())?,
            error: needed(given.error.take(), name, "error")?,
        }
        .into(),
        "resp_delay" => fault::RespDelay {
            commands: commands(),
            percentage: percentage(given.share.take())?,
            delay: needed(given.delay.take(), name, "delay")?.0,
        }
        .into(),
        "resp_silence" => fault::RespSilence {
            commands: commands(),
            percentage: percentage(given.share.take())?,
        }
        .into(),
        other => {
            let message = format!(
                "there is no fault {other:?}; there are {}",
                FAULTS.join(", ")
            );
            return Err(Mistake::at(name, message));
        }
    };
    let direction = match given.direction.take() {
        None => Direction::Both,
        Some(way) => match way.get_ref().as_str() {
            "upstream" => Direction::Upstream,
            "downstream" => Direction::Downstream,
            "both" => Direction::Both,
            _ => {
                return Err(Mistake::at(
                    &way,
                    "a direction is upstream, downstream or both",
                ));
            }
        },
    };
    let toxic = Toxic::new(wire).direction(direction);
    toxic
        .check()
        .map_err(|error| Mistake::at(name, error.to_string()))?;
    Ok(Fault::Wire(Box::new(toxic)))
}

fn percentage(share: Option<Spanned<f64>>) -> Result<f64, Mistake> {
    Ok(share_of(share, 0.0, 1.0)?.unwrap_or(1.0) * 100.0)
}

const FAULTS: &[&str] = &[
    "crash",
    "old_snapshot",
    "freeze",
    "maxclients",
    "oom",
    "loading",
    "readonly",
    "password_changed",
    "user_deleted",
    "token_expired",
    "down",
    "timeout",
    "stall",
    "hold",
    "reset_peer",
    "slow_close",
    "latency",
    "bandwidth",
    "slicer",
    "limit_data",
    "corrupt",
    "resp_error",
    "resp_delay",
    "resp_silence",
    "database_down",
    "database_slow",
];

fn needed<T>(value: Option<Spanned<T>>, fault: &Spanned<String>, what: &str) -> Result<T, Mistake> {
    value
        .map(Spanned::into_inner)
        .ok_or_else(|| Mistake::at(fault, format!("{} needs `{what}`", fault.get_ref())))
}

impl StepSource {
    fn refuse_leftovers(self, fault: &str) -> Result<(), Mistake> {
        fn left<T>(
            name: &'static str,
            value: &Option<Spanned<T>>,
        ) -> Option<(&'static str, Range<usize>)> {
            value.as_ref().map(|value| (name, value.span()))
        }
        let leftovers = [
            left("latency", &self.latency),
            left("jitter", &self.jitter),
            left("delay", &self.delay),
            left("rate", &self.rate),
            left("size", &self.size),
            left("bytes", &self.bytes),
            left("share", &self.share),
            left("error", &self.error),
            left("timeout", &self.timeout),
            left("commands", &self.commands),
            left("direction", &self.direction),
        ];
        match leftovers.into_iter().flatten().next() {
            Some((name, span)) => Err(Mistake {
                span,
                message: format!("{fault} takes no {name}"),
            }),
            None => Ok(()),
        }
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ThresholdsSource {
    connection_success: Option<Share>,
    fallback: Option<Share>,
    recovery: Option<Time>,
    hit_rate: Option<Share>,
    errors: Option<Share>,
    write_errors: Option<Share>,
    slowest: Option<Time>,
    allowed_age: Option<Time>,
    control_fails: Option<bool>,
}

impl ThresholdsSource {
    fn checked(self) -> Thresholds {
        let usual = Thresholds::default();
        Thresholds {
            connection_success: self
                .connection_success
                .map_or(usual.connection_success, |s| s.0),
            fallback: self.fallback.map_or(usual.fallback, |s| s.0),
            recovery: self.recovery.map_or(usual.recovery, |t| t.0),
            hit_rate: self.hit_rate.map_or(usual.hit_rate, |s| s.0),
            errors: self.errors.map_or(usual.errors, |s| s.0),
            write_errors: self.write_errors.map_or(usual.write_errors, |s| s.0),
            slowest: self.slowest.map_or(usual.slowest, |t| t.0),
            allowed_age: self.allowed_age.map_or(usual.allowed_age, |t| t.0),
            control_fails: self.control_fails.unwrap_or(usual.control_fails),
        }
    }
}

/// A length of time such as `250ms`, `5s` or `2m`.
#[derive(Debug, Clone, Copy)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let unit = match text[digits..].trim() {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => {
                return Err(D::Error::custom(format!(
                    "{text:?} is not a time such as 250ms, 5s or 2m"
                )));
            }
        };
        let number: f64 = text[..digits].parse().map_err(|_| {
            D::Error::custom(format!("{text:?} is not a time such as 250ms, 5s or 2m"))
        })?;
        Duration::try_from_secs_f64(number * unit)
            .ok()
            .filter(|time| *time <= Duration::from_secs(24 * 3600))
            .map(Time)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is longer than a day")))
    }
}

/// A share such as `5%`, or a number between 0 and 1.
#[derive(Clone, Copy)]
struct Share(f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        let share = match Either::deserialize(deserializer) {
            Ok(Either::Number(number)) => Some(number),
            Ok(Either::Text(text)) => text
                .strip_suffix('%')
                .and_then(|number| number.trim().parse::<f64>().ok())
                .map(|n| n / 100.0),
            Err(_) => None,
        };
        share
            .filter(|share| (0.0..=1.0).contains(share))
            .map(Share)
            .ok_or_else(|| {
                D::Error::custom("this is a percentage such as '5%', or a number between 0 and 1")
            })
    }
}
