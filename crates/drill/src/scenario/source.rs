//! The text of a scenario and what may stand in it. The form is kept apart from the meaning, so
//! that a mistake is found where its place in the text is still known, and the rest of the lab
//! never meets one.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::http::HttpSource;
use super::step::{StepSource, checked_step};
use super::value::{Mistake, Share, Time, share_of, within};
use super::{Arrivals, Fault, Load, Phases, Scenario, ScenarioError, Step, Store, Thresholds};

pub(super) fn parse(text: &str) -> Result<Scenario, ScenarioError> {
    checked(text, source(text)?)
}

/// As [`parse`], and refuses what needs a wire between an application and its database.
pub(super) fn parse_own(text: &str) -> Result<Scenario, ScenarioError> {
    let source = source(text)?;
    let on_database = source.steps.iter().find_map(|s| s.get_ref().on_database());
    let scenario = checked(text, source)?;
    match on_database {
        None => Ok(scenario),
        Some(place) => Err(ScenarioError::new(text, place, NO_WIRE_TO_A_DATABASE)),
    }
}

const NO_WIRE_TO_A_DATABASE: &str = "a drill of Steadfast itself has no wire to a database: break it by database_down or database_slow, \
     or drill an application of your own (--target and --database)";

fn source(text: &str) -> Result<Source, ScenarioError> {
    toml::from_str(text).map_err(|error| {
        ScenarioError::new(
            text,
            error.span().unwrap_or(0..0),
            error.message().trim_end(),
        )
    })
}

fn checked(text: &str, source: Source) -> Result<Scenario, ScenarioError> {
    source
        .checked()
        .map_err(|Mistake { span, message }| ScenarioError::new(text, span, message))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    name: Spanned<String>,
    #[serde(default)]
    about: String,
    seed: Option<u64>,
    memory: Option<bool>,
    store: Option<Spanned<String>>,
    #[serde(default)]
    load: LoadSource,
    phases: Spanned<PhasesSource>,
    #[serde(default)]
    steps: Vec<Spanned<StepSource>>,
    #[serde(default)]
    thresholds: ThresholdsSource,
    #[serde(default)]
    target: TargetSource,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TargetSource {
    http: Option<HttpSource>,
}

impl Source {
    fn checked(self) -> Result<Scenario, Mistake> {
        if !is_plain(self.name.get_ref()) {
            return Err(Mistake::at(
                &self.name,
                "a name is 1 to 64 small letters, digits and dashes: it names files and folders too",
            ));
        }
        if self.steps.len() > MOST_STEPS {
            return Err(Mistake::at(
                &self.name,
                "a scenario has at most 1 000 steps; `times` repeats one",
            ));
        }
        let phases = checked_phases(&self.phases)?;
        let places: Vec<_> = self
            .steps
            .iter()
            .map(|step| step.get_ref().place())
            .collect();
        let steps: Vec<_> = self
            .steps
            .into_iter()
            .map(|step| checked_step(step, phases.fault))
            .collect::<Result<_, _>>()?;
        checked_overlaps(&steps, &places)?;
        checked_tls(&steps, &places)?;
        let store = checked_store(self.store, &steps, &places)?;
        Ok(Scenario {
            steps,
            name: self.name.into_inner(),
            about: self.about,
            seed: self.seed.unwrap_or(1),
            memory: self.memory.unwrap_or(true),
            store,
            load: self.load.checked(phases, self.phases.span())?,
            phases,
            thresholds: self.thresholds.checked()?,
            http: self.target.http.map(HttpSource::checked).transpose()?,
        })
    }
}

/// Refuses to break what is broken already, or by what cannot stand beside it. On the wire
/// things add up.
fn checked_overlaps(steps: &[Step], places: &[Range<usize>]) -> Result<(), Mistake> {
    let mut spans: Vec<_> = steps
        .iter()
        .zip(places)
        .filter(|(step, _)| !step.fault.needs_proxy())
        .flat_map(|(step, place)| step.spans().map(move |span| (span, &step.fault, place)))
        .collect();
    spans.sort_by_key(|(span, ..)| span.start);
    // One of each kind at most, as a second is refused.
    let mut broken: Vec<(Duration, &Fault)> = Vec::new();
    for (span, fault, place) in spans {
        broken.retain(|(until, _)| *until > span.start);
        if let Some(why) = broken.iter().find_map(|(_, other)| fault.conflict(other)) {
            return Err(Mistake {
                span: place.clone(),
                message: format!(
                    "{} begins {:?} after the fault phase did, {why}: let the one end before the other begins",
                    fault.name(),
                    span.start
                ),
            });
        }
        // A token that has expired does not come back.
        let ends = *fault != Fault::TokenExpired;
        broken.push((if ends { span.end } else { Duration::MAX }, fault));
    }
    Ok(())
}

/// Refuses faults of the protocol under TLS: what is encrypted cannot be followed command by
/// command.
fn checked_tls(steps: &[Step], places: &[Range<usize>]) -> Result<(), Mistake> {
    if !steps.iter().any(|step| step.fault.needs_tls()) {
        return Ok(());
    }
    let unread = |(step, _): &(&Step, &Range<usize>)| step.fault.name().starts_with("resp_");
    match steps.iter().zip(places).find(unread) {
        Some((step, place)) => Err(Mistake {
            span: place.clone(),
            message: format!(
                "{} reads the protocol, and beside a certificate that goes bad there is TLS: give each a scenario of its own",
                step.fault.name()
            ),
        }),
        None => Ok(()),
    }
}

/// Refuses faults of sentinels and those whom they watch where there are none, as nothing else can
/// be done to them.
fn checked_store(
    store: Option<Spanned<String>>,
    steps: &[Step],
    places: &[Range<usize>],
) -> Result<Store, Mistake> {
    let named = match store.as_ref().map(|store| store.get_ref().as_str()) {
        None | Some("cache") => Store::Cache,
        Some("sentinel") => Store::Sentinel,
        Some("cluster") => Store::Cluster,
        Some(_) => {
            let place = store.as_ref().map_or(0..0, Spanned::span);
            return Err(Mistake {
                span: place,
                message: "store is cache, sentinel or cluster".to_owned(),
            });
        }
    };
    let wrong = |(step, _): &(&Step, &Range<usize>)| !step.fault.stores().contains(&named);
    match steps.iter().zip(places).find(wrong) {
        None => Ok(named),
        Some((step, place)) => Err(Mistake {
            span: place.clone(),
            message: match named {
                Store::Cache => {
                    let stores = step.fault.stores().iter().map(|store| store.name());
                    let stores: Vec<_> = stores.map(|name| format!("store = \"{name}\"")).collect();
                    format!("{} needs {}", step.fault.name(), stores.join(" or "))
                }
                other => format!(
                    "{} cannot be done with store = \"{}\": give it a scenario of its own",
                    step.fault.name(),
                    other.name()
                ),
            },
        }),
    }
}

/// Steps of a scenario.
const MOST_STEPS: usize = 1000;
/// Calls a second, at least: below it a pause between two calls is no load.
const LEAST_RATE: f64 = 0.01;
/// Calls of a whole run.
pub(super) const MOST_CALLS: u64 = 100_000_000;

fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
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
    fn checked(self, phases: Phases, place: Range<usize>) -> Result<Load, Mistake> {
        let rate = [
            self.rate.as_ref().map(Spanned::span),
            self.callers.as_ref().map(Spanned::span),
        ];
        let place = rate.into_iter().flatten().next().unwrap_or(place);
        let place = self.writes.as_ref().map_or(place, Spanned::span);
        let load = Load {
            arrivals: checked_arrivals(self.rate, self.callers, self.pause)?,
            keys: within(self.keys, 1, 10_000_000, "keys")?.unwrap_or(1000),
            zipf: share_of(self.zipf, 0.0, 5.0)?.unwrap_or(1.0),
            writes: share_of(self.writes, 0.0, 1.0)?.unwrap_or(0.02),
            in_flight: within(self.in_flight, 1, 1 << 20, "calls at once")?.unwrap_or(1024),
            calls: within(self.calls, 1, MOST_CALLS, "calls")?,
        };
        if expected_reads(&load, phases) < LEAST_READS {
            let message = format!(
                "a drill is judged by its reads, and fewer than {LEAST_READS} are to be expected in the baseline or when all has recovered: \
                 let there be fewer writes, more calls, or longer phases"
            );
            return Err(Mistake {
                span: place,
                message,
            });
        }
        Ok(load)
    }
}

/// Fallback, hits and recovery are told by reads; in a phase without any, nothing would ever be
/// seen to be well.
const LEAST_READS: f64 = 3.0;

/// In the shorter of the phases that the figures are taken from.
fn expected_reads(load: &Load, phases: Phases) -> f64 {
    let rate = match load.arrivals {
        Arrivals::Open { rate } => rate,
        // An answer takes time too, also to those who do not pause.
        Arrivals::Closed { callers, pause } => {
            callers as f64 / pause.max(Duration::from_millis(1)).as_secs_f64()
        }
    };
    rate * (1.0 - load.writes) * phases.baseline.min(phases.recovered).as_secs_f64()
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
                Some(rate) if (LEAST_RATE..=1e6).contains(rate.get_ref()) => Ok(Arrivals::Open {
                    rate: rate.into_inner(),
                }),
                Some(rate) => Err(Mistake::at(
                    &rate,
                    "a rate is calls a second, from 0.01 to a million",
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

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ThresholdsSource {
    connection_success: Option<Share>,
    fallback: Option<Share>,
    recovery: Option<Time>,
    hit_rate: Option<Share>,
    errors: Option<Share>,
    write_errors: Option<Share>,
    fault_p99: Option<Time>,
    slowest: Option<Time>,
    allowed_age: Option<Time>,
    stale_answers: Option<Share>,
    lost: Option<u64>,
    failed_elsewhere: Option<u64>,
    discoveries: Option<u64>,
    p99_elsewhere: Option<Spanned<f64>>,
    refused_within: Option<Time>,
    control_fails: Option<bool>,
}

impl ThresholdsSource {
    fn checked(self) -> Result<Thresholds, Mistake> {
        let usual = Thresholds::default();
        Ok(Thresholds {
            connection_success: self
                .connection_success
                .map_or(usual.connection_success, |s| s.0),
            fallback: self.fallback.map_or(usual.fallback, |s| s.0),
            recovery: self.recovery.map_or(usual.recovery, |t| t.0),
            hit_rate: self.hit_rate.map_or(usual.hit_rate, |s| s.0),
            errors: self.errors.map_or(usual.errors, |s| s.0),
            write_errors: self.write_errors.map_or(usual.write_errors, |s| s.0),
            fault_p99: self.fault_p99.map_or(usual.fault_p99, |t| t.0),
            slowest: self.slowest.map_or(usual.slowest, |t| t.0),
            allowed_age: self.allowed_age.map_or(usual.allowed_age, |t| t.0),
            stale_answers: self.stale_answers.map(|s| s.0),
            lost: self.lost.unwrap_or(usual.lost),
            failed_elsewhere: self.failed_elsewhere.unwrap_or(usual.failed_elsewhere),
            discoveries: self.discoveries.unwrap_or(usual.discoveries),
            p99_elsewhere: share_of(self.p99_elsewhere, 0.01, 1e6)?,
            refused_within: self.refused_within.map(|t| t.0),
            control_fails: self.control_fails.unwrap_or(usual.control_fails),
        })
    }
}
