//! A key figure: a number, what it is held to, and both as people read them. Pure; what is
//! measured, and when it is good enough, is for those who judge.

use serde::Serialize;

/// A key figure and whether it is good enough.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kpi {
    /// The figure's name, one of those that the judge lists.
    pub name: &'static str,
    /// The phases it is taken from.
    pub phase: &'static str,
    /// A share from 0 to 1, milliseconds or a count, as `unit` says. Null if there was nothing to
    /// measure, or no recovery.
    pub value: Option<f64>,
    /// The target, in the same unit.
    pub target: f64,
    /// Whether it is good enough.
    pub pass: bool,
    /// How value and target are compared.
    pub bound: Bound,
    /// Of value and target.
    pub unit: Unit,
    /// How it is computed, in words.
    pub formula: &'static str,
    /// A note to the figure: how exact it is, or what it is made of. Empty if there is none.
    pub note: String,
}

/// How a value and its target are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The value must be greater.
    Above,
    /// The value must be smaller.
    Below,
    /// The value must not be greater.
    AtMost,
}

impl Bound {
    /// Returns whether the value is good enough. Nothing is below 0, so a target of 0 allows
    /// 0.
    fn holds(self, value: f64, target: f64) -> bool {
        match self {
            Bound::Above => value > target,
            Bound::Below if target == 0.0 => value == 0.0,
            Bound::Below => value < target,
            Bound::AtMost => value <= target,
        }
    }
}

/// The unit of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share from 0 to 1.
    Ratio,
    /// Milliseconds.
    Ms,
    /// A count.
    Count,
}

impl Kpi {
    /// A figure with what it is held to. It stands for nothing until a value is
    /// [`seen`](Self::seen).
    pub(crate) fn held_to(
        (name, phase): (&'static str, &'static str),
        bound: Bound,
        target: f64,
        unit: Unit,
        formula: &'static str,
    ) -> Self {
        Self {
            name,
            phase,
            value: None,
            target,
            pass: false,
            bound,
            unit,
            formula,
            note: String::new(),
        }
    }

    /// The figure with its value, which decides whether it is good enough. Nothing to measure is
    /// not good enough.
    pub(crate) fn seen(self, value: Option<f64>) -> Self {
        Self {
            value,
            pass: value.is_some_and(|value| self.bound.holds(value, self.target)),
            ..self
        }
    }

    /// The figure with a note.
    pub(crate) fn noted(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }
}

/// A key figure as people read it: `99.2 %`, `214 ms`, `0`.
pub(crate) fn figure(value: Option<f64>, unit: Unit) -> String {
    match (value, unit) {
        (None, Unit::Ms) => "never".to_owned(),
        (None, _) => "–".to_owned(),
        (Some(value), Unit::Ratio) => {
            let percent = value * 100.0;
            let digits = if percent > 99.0 && percent < 100.0 {
                2
            } else {
                1
            };
            format!("{percent:.digits$} %").replace(".0 %", " %")
        }
        (Some(value), Unit::Ms) => duration(value),
        (Some(value), Unit::Count) => format!("{value:.0}"),
    }
}

/// Returns the target of a key figure as people read it: `> 99 %`.
pub(crate) fn target(kpi: &Kpi) -> String {
    if kpi.bound == Bound::AtMost && kpi.target == 0.0 {
        return if kpi.name == "exit_status" {
            "0"
        } else {
            "none"
        }
        .to_owned();
    }
    let sign = match kpi.bound {
        Bound::Above => ">",
        Bound::Below => "<",
        Bound::AtMost => "≤",
    };
    format!("{sign} {}", figure(Some(kpi.target), kpi.unit))
}

/// Milliseconds as people read them, with three digits that matter.
pub(crate) fn duration(ms: f64) -> String {
    match ms {
        0.0 => "0 ms".to_owned(),
        ms if ms < 1.0 => format!("{:.0} µs", ms * 1e3),
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => {
            format!("{:.2}", ms / 1e3)
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
                + " s"
        }
    }
}

/// A key figure's name as people read it.
pub(crate) fn title(name: &str) -> &str {
    match name {
        "connection_success" => "Redis calls answered",
        "fallback" => "Fallback to the database",
        "hit_rate" => "Hit rate",
        "errors" => "Failed reads",
        "write_errors" => "Failed writes",
        "wrong_answers" => "Wrong answers",
        "stale_answers" => "Stale answers once recovered",
        "slowest_call" => "Slowest call",
        "fault_p99" => "p99 during the fault",
        "exit_status" => "Exit status",
        "untouched" => "Faults that touched nothing",
        "users_well" => "Users well again",
        "redis_in_use" => "Redis in use again",
        "used_redis" => "Answered by Redis before",
        "lost" => "Acknowledged writes lost",
        "lost_late" => "Lost after the switch",
        "applied_twice" => "Writes applied twice",
        "denied" => "Applied, and denied",
        "back_in_service" => "Back in service after",
        "failed_elsewhere" => "Calls of other shards that failed",
        "discoveries" => "Discoveries",
        "p99_elsewhere" => "p99 of other shards, of before",
        "refused_within" => "Refused within",
        "lived" => "Lived through the fault",
        other => other,
    }
}
