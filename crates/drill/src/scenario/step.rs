//! The steps of a scenario file, and their meaning. A fault takes some attributes and refuses the
//! others, since an attribute that is silently ignored makes a drill that shows something else than
//! its file says.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::value::{Mistake, Time, share_of, within};
use super::{Fault, Step, Wire};
use crate::fault::{self, Direction, Toxic};

/// A step and what its fault is told. Each fault takes some of the attributes and refuses the
/// others. (They stand in one struct, as flattening would lose their places.)
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepSource {
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
    on: Option<Spanned<String>>,
}

pub(super) fn checked_step(step: Spanned<StepSource>, phase: Duration) -> Result<Step, Mistake> {
    let mut step = step.into_inner();
    let at = step.at.as_ref().map_or(Duration::ZERO, |at| at.get_ref().0);
    let times = within(step.times.clone(), 1, 1_000, "times")?.unwrap_or(1);
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
    let on = step.on.take();
    let fault = checked_fault(step, lasts)?;
    Ok(Step {
        at,
        lasts,
        every,
        times,
        on: checked_wire(on, &fault)?,
        fault,
    })
}

/// Between which two a fault of the wire happens.
fn checked_wire(on: Option<Spanned<String>>, fault: &Fault) -> Result<Wire, Mistake> {
    let Some(on) = on else {
        return Ok(Wire::default());
    };
    let Fault::Wire(toxic) = fault else {
        let message = format!("{} takes no on: it does not happen on a wire", fault.name());
        return Err(Mistake::at(&on, message));
    };
    match on.get_ref().as_str() {
        "redis" => Ok(Wire::Redis),
        "database" if toxic.fault.resp().is_none() => Ok(Wire::Database),
        "database" => Err(Mistake::at(
            &on,
            "a fault of Redis' protocol cannot happen on the way to a database",
        )),
        _ => Err(Mistake::at(&on, "on is redis or database")),
    }
}

fn checked_fault(mut given: StepSource, lasts: Duration) -> Result<Fault, Mistake> {
    let name = given.fault.clone();
    let fault = match name.get_ref().as_str() {
        "crash" => Fault::Crash,
        "old_snapshot" => Fault::OldSnapshot,
        "freeze" => Fault::Freeze,
        "pause" => Fault::Pause(lasts),
        "maxclients" => Fault::MaxClients,
        "oom" => Fault::OutOfMemory,
        "loading" => Fault::Loading,
        "readonly" => Fault::ReadOnly,
        "password_changed" => Fault::PasswordChanged,
        "user_deleted" => Fault::UserDeleted,
        "token_expired" => Fault::TokenExpired,
        "certificate_expired" => Fault::CertificateExpired,
        "certificate_wrong" => Fault::CertificateWrong,
        "database_down" => Fault::DatabaseDown,
        "failover_planned" => Fault::FailoverPlanned,
        "primary_killed" => Fault::PrimaryKilled,
        "primary_frozen" => Fault::PrimaryFrozen,
        "split_brain" => Fault::SplitBrain,
        "sentinels_away" => Fault::SentinelsAway,
        "sentinel_stale" => Fault::SentinelStale,
        "replica_lag" => Fault::ReplicaLag,
        "slots_moving" => {
            let rate = within(given.rate.take(), 1, 1_000, "rate")?;
            let rate = rate.and_then(|rate| u32::try_from(rate).ok());
            Fault::SlotsMoving(rate.unwrap_or(SLOTS_A_SECOND))
        }
        "shard_down" => Fault::ShardDown,
        "shard_frozen" => Fault::ShardFrozen,
        "node_added" => Fault::NodeAdded,
        "all_restarted" => Fault::AllRestarted,
        "addresses_changed" => Fault::AddressesChanged,
        "map_stale" => Fault::MapStale,
        "database_slow" => Fault::DatabaseSlow(needed(given.latency.take(), &name, "latency")?.0),
        _ => wire(&name, &mut given)?,
    };
    given.refuse_leftovers(name.get_ref())?;
    Ok(fault)
}

/// The faults of the proxy, by the names that they have there.
fn wire(name: &Spanned<String>, given: &mut StepSource) -> Result<Fault, Mistake> {
    let fault = match on_bytes(name, given)? {
        Some(fault) => fault,
        None => on_commands(name, given)?,
    };
    let toxic = Toxic::new(fault).direction(direction(given.direction.take())?);
    toxic
        .check()
        .map_err(|error| Mistake::at(name, error.to_string()))?;
    Ok(Fault::Wire(Box::new(toxic)))
}

/// Reads the faults that act on bytes and connections.
fn on_bytes(
    name: &Spanned<String>,
    given: &mut StepSource,
) -> Result<Option<fault::Fault>, Mistake> {
    let zero =
        |time: Option<Spanned<Time>>| time.map_or(Duration::ZERO, |time| time.into_inner().0);
    Ok(Some(match name.get_ref().as_str() {
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
        "latency" => fault::Latency {
            latency: needed(given.latency.take(), name, "latency")?.0,
            jitter: zero(given.jitter.take()),
        }
        .into(),
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
        _ => return Ok(None),
    }))
}

/// Reads the faults that act on commands.
fn on_commands(name: &Spanned<String>, given: &mut StepSource) -> Result<fault::Fault, Mistake> {
    let mut commands = || {
        let commands = given.commands.take();
        commands.map_or_else(Vec::new, Spanned::into_inner)
    };
    Ok(match name.get_ref().as_str() {
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
            let known = FAULTS.join(", ");
            let message = format!("there is no fault {other:?}; there are {known}");
            return Err(Mistake::at(name, message));
        }
    })
}

fn direction(way: Option<Spanned<String>>) -> Result<Direction, Mistake> {
    let Some(way) = way else {
        return Ok(Direction::Both);
    };
    match way.get_ref().as_str() {
        "upstream" => Ok(Direction::Upstream),
        "downstream" => Ok(Direction::Downstream),
        "both" => Ok(Direction::Both),
        _ => Err(Mistake::at(
            &way,
            "a direction is upstream, downstream or both",
        )),
    }
}

fn percentage(share: Option<Spanned<f64>>) -> Result<f64, Mistake> {
    Ok(share_of(share, 0.0, 1.0)?.unwrap_or(1.0) * 100.0)
}

const FAULTS: &[&str] = &[
    "crash",
    "old_snapshot",
    "freeze",
    "pause",
    "maxclients",
    "oom",
    "loading",
    "readonly",
    "password_changed",
    "user_deleted",
    "token_expired",
    "certificate_expired",
    "certificate_wrong",
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
    "failover_planned",
    "primary_killed",
    "primary_frozen",
    "split_brain",
    "sentinels_away",
    "sentinel_stale",
    "replica_lag",
    "slots_moving",
    "shard_down",
    "shard_frozen",
    "node_added",
    "all_restarted",
    "addresses_changed",
    "map_stale",
];

/// Slots that move in a second, unless the scenario says otherwise.
const SLOTS_A_SECOND: u32 = 20;

fn needed<T>(value: Option<Spanned<T>>, fault: &Spanned<String>, what: &str) -> Result<T, Mistake> {
    value
        .map(Spanned::into_inner)
        .ok_or_else(|| Mistake::at(fault, format!("{} needs `{what}`", fault.get_ref())))
}

impl StepSource {
    /// Where in the text its fault is named.
    pub(super) fn place(&self) -> Range<usize> {
        self.fault.span()
    }

    /// Where it says that it happens on the wire to a database, if it does.
    pub(super) fn on_database(&self) -> Option<Range<usize>> {
        let on = self.on.as_ref()?;
        (on.get_ref() == "database").then(|| on.span())
    }

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
