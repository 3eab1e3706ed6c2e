//! The same drill run several times, as one: a single run may owe its verdict to chance. Each
//! figure is the median of the runs with its range, and it is good only if it was good in every
//! run.

use comfy_table::Cell;
use serde::Serialize;

use super::application::TargetReport;
use super::table::{align_right, finished, new_table};
use super::{Report, Verdict, figure, target, title};
use crate::kpi::{Kpi, Unit};

/// The version of the JSON form.
pub const SCHEMA: &str = "steadfast-drill-repeated/1";

/// The summary of several runs of one drill. Its serialised form is their common `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Repeated {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The name of the scenario.
    pub scenario: String,
    /// The point of the scenario, in a sentence.
    pub about: String,
    /// The seed of all chance, in each run.
    pub seed: u64,
    /// How many runs there were.
    pub runs: usize,
    /// How often each verdict was given.
    pub verdicts: Verdicts,
    /// Passed if each run passed; void if one was void and none failed.
    pub verdict: Verdict,
    /// The key figures of all runs.
    pub kpis: Vec<RepeatedKpi>,
    /// The same of the control, if one ran.
    pub control: Option<Box<RepeatedControl>>,
    /// The same of the second control, whose resilience is built by hand, if it ran.
    pub hand_built: Option<Box<RepeatedControl>>,
}

/// How often each verdict was given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// Runs that passed.
    pub passed: usize,
    /// Runs that failed.
    pub failed: usize,
    /// Runs that proved nothing.
    pub void: usize,
}

/// The summary of a control over several runs.
#[derive(Debug, Clone, Serialize)]
pub struct RepeatedControl {
    /// How often each verdict was given.
    pub verdicts: Verdicts,
    /// The key figures of all runs.
    pub kpis: Vec<RepeatedKpi>,
}

/// A key figure over several runs.
#[derive(Debug, Clone, Serialize)]
pub struct RepeatedKpi {
    /// The figure of the run in the middle, with its name, phase, target and formula. Good if it
    /// was good in each run.
    #[serde(flatten)]
    pub median: Kpi,
    /// The smallest value that was measured; null if none was.
    pub min: Option<f64>,
    /// The greatest.
    pub max: Option<f64>,
    /// Runs in which there was no value: nothing to measure, or no recovery.
    pub without: usize,
    /// Runs in which it was good enough.
    pub good: usize,
}

/// The part of one run that the summary needs.
#[derive(Debug, Clone)]
pub struct Run {
    scenario: String,
    about: String,
    seed: u64,
    own: (Verdict, Vec<Kpi>),
    control: Option<(Verdict, Vec<Kpi>)>,
    hand_built: Option<(Verdict, Vec<Kpi>)>,
}

impl Run {
    /// The name of its scenario.
    pub(super) fn scenario(&self) -> &str {
        &self.scenario
    }

    /// Returns the run's key figures.
    pub(super) fn kpis(&self) -> &[Kpi] {
        &self.own.1
    }
}

impl From<&Report> for Run {
    fn from(report: &Report) -> Self {
        let of = |report: &Report| (report.verdict, report.kpis.clone());
        Self {
            scenario: report.scenario.clone(),
            about: report.about.clone(),
            seed: report.seed,
            own: of(report),
            control: report.control.as_deref().map(of),
            hand_built: report.hand_built.as_deref().map(of),
        }
    }
}

impl From<&TargetReport> for Run {
    fn from(report: &TargetReport) -> Self {
        Self {
            scenario: report.scenario.clone(),
            about: report.about.clone(),
            seed: report.seed,
            own: (report.verdict, report.kpis.clone()),
            control: None,
            hand_built: None,
        }
    }
}

impl Repeated {
    /// Makes the summary of these runs of one drill; nothing if there were none.
    pub fn of(runs: &[Run]) -> Option<Self> {
        let first = runs.first()?;
        let own: Vec<_> = runs.iter().map(|run| &run.own).collect();
        let control = runs.iter().filter_map(|run| run.control.as_ref());
        let hand_built = runs.iter().filter_map(|run| run.hand_built.as_ref());
        let verdicts = Verdicts::of(&own);
        Some(Self {
            schema: SCHEMA,
            scenario: first.scenario.clone(),
            about: first.about.clone(),
            seed: first.seed,
            runs: runs.len(),
            verdicts,
            verdict: match verdicts {
                Verdicts { failed: 1.., .. } => Verdict::Failed,
                Verdicts { void: 1.., .. } => Verdict::Void,
                _ => Verdict::Passed,
            },
            kpis: kpis(&own),
            control: RepeatedControl::of(&control.collect::<Vec<_>>()),
            hand_built: RepeatedControl::of(&hand_built.collect::<Vec<_>>()),
        })
    }

    /// Whether every run passed.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }

    /// The table for a terminal.
    pub fn render(&self, colour: bool) -> String {
        let mut table = new_table(&["", "", "target", "median", "from", "to", "good in"]);
        let subjects = [
            ("", Some(&self.kpis)),
            ("plain client", self.control.as_ref().map(|c| &c.kpis)),
            ("built by hand", self.hand_built.as_ref().map(|c| &c.kpis)),
        ];
        for (who, kpis) in subjects {
            for (number, kpi) in kpis.into_iter().flatten().enumerate() {
                let shown = |value| figure(value, kpi.median.unit);
                table.add_row([
                    Cell::new(if number == 0 { who } else { "" }),
                    Cell::new(title(kpi.median.name)),
                    Cell::new(target(&kpi.median)),
                    Cell::new(shown(kpi.median.value)),
                    Cell::new(kpi.min.map_or("–".to_owned(), |min| shown(Some(min)))),
                    Cell::new(kpi.greatest()),
                    Cell::new(format!("{} of {}", kpi.good, self.runs)),
                ]);
            }
        }
        align_right(&mut table, &[2, 3, 4, 5, 6]);
        let said = |who: &str, control: &Option<Box<RepeatedControl>>| {
            control.as_ref().map_or(String::new(), |control| {
                format!("; {who} {}", control.verdicts.words())
            })
        };
        let control = said("the plain client", &self.control)
            + &said("what is built by hand", &self.hand_built);
        format!(
            "{} · {} runs with seed {}\n\n{}\n\n{}: {}{control}",
            self.scenario,
            self.runs,
            self.seed,
            finished(table, colour),
            match self.verdict {
                Verdict::Passed => "PASSED",
                Verdict::Failed => "FAILED",
                Verdict::Void => "VOID",
            },
            self.verdicts.words(),
        )
    }
}

impl RepeatedControl {
    fn of(runs: &[&(Verdict, Vec<Kpi>)]) -> Option<Box<Self>> {
        (!runs.is_empty()).then(|| {
            Box::new(Self {
                verdicts: Verdicts::of(runs),
                kpis: kpis(runs),
            })
        })
    }
}

impl RepeatedKpi {
    /// The end of its range, as people read it: no recovery is later than every other.
    fn greatest(&self) -> String {
        match self.median.unit {
            Unit::Ms if self.without > 0 => figure(None, Unit::Ms),
            unit => self
                .max
                .map_or("–".to_owned(), |max| figure(Some(max), unit)),
        }
    }
}

impl Verdicts {
    fn of(runs: &[&(Verdict, Vec<Kpi>)]) -> Self {
        let count = |wanted| {
            runs.iter()
                .filter(|(verdict, _)| *verdict == wanted)
                .count()
        };
        Self {
            passed: count(Verdict::Passed),
            failed: count(Verdict::Failed),
            void: count(Verdict::Void),
        }
    }

    fn words(self) -> String {
        let said = [
            ("passed", self.passed),
            ("failed", self.failed),
            ("void", self.void),
        ];
        let of = self.passed + self.failed + self.void;
        let said: Vec<_> = said
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(word, count)| format!("{word} {count} of {of}"))
            .collect();
        said.join(", ")
    }
}

/// The figures of all runs, in the order of the first run that has each.
fn kpis(runs: &[&(Verdict, Vec<Kpi>)]) -> Vec<RepeatedKpi> {
    let all = || runs.iter().flat_map(|(_, kpis)| kpis);
    let mut names = Vec::new();
    for kpi in all() {
        if !names.contains(&kpi.name) {
            names.push(kpi.name);
        }
    }
    let of = |name| one(&all().filter(|kpi| kpi.name == name).collect::<Vec<_>>());
    names.into_iter().map(of).collect()
}

/// Joins one figure of all runs that have it, of which there is at least one.
fn one(kpis: &[&Kpi]) -> RepeatedKpi {
    let mut measured: Vec<f64> = kpis.iter().filter_map(|kpi| kpi.value).collect();
    measured.sort_by(f64::total_cmp);
    let (without, good) = (
        kpis.len() - measured.len(),
        kpis.iter().filter(|kpi| kpi.pass).count(),
    );
    // What has no value is the worst: it stands behind all others.
    let middle = |at: usize| measured.get(at).copied();
    let low = middle((kpis.len() - 1) / 2);
    let median = low
        .zip(middle(kpis.len() / 2))
        .map(|(a, b)| f64::midpoint(a, b));
    RepeatedKpi {
        median: Kpi {
            value: median,
            pass: good == kpis.len(),
            note: String::new(),
            ..kpis[0].clone()
        },
        min: measured.first().copied(),
        max: measured.last().copied(),
        without,
        good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kpi::Bound;

    fn run(recovery: Option<f64>, wrong: f64, verdict: Verdict) -> Run {
        let kpi = |name, value: Option<f64>, target, unit| Kpi {
            name,
            phase: "recovery",
            value,
            target,
            pass: value.is_some_and(|value| value <= target),
            bound: Bound::AtMost,
            unit,
            formula: "",
            note: String::new(),
        };
        Run {
            scenario: "crash".to_owned(),
            about: String::new(),
            seed: 1,
            own: (
                verdict,
                vec![
                    kpi("users_well", recovery, 1_000.0, Unit::Ms),
                    kpi("wrong_answers", Some(wrong), 0.0, Unit::Count),
                ],
            ),
            control: None,
            hand_built: None,
        }
    }

    #[test]
    fn d4_of_several_runs_the_median_the_range_and_each_verdict_are_told() {
        let runs = [
            run(Some(100.0), 0.0, Verdict::Passed),
            run(Some(900.0), 3.0, Verdict::Failed),
            run(Some(300.0), 0.0, Verdict::Passed),
        ];
        let all = Repeated::of(&runs).unwrap();
        assert_eq!((all.verdicts.passed, all.verdicts.failed), (2, 1));
        assert_eq!(all.verdict, Verdict::Failed);
        let well = &all.kpis[0];
        assert_eq!(
            (well.min, well.median.value, well.max),
            (Some(100.0), Some(300.0), Some(900.0))
        );
        assert!(well.median.pass && well.good == 3);
        let wrong = &all.kpis[1];
        assert!(!wrong.median.pass && wrong.good == 2, "{wrong:?}");
        let text = all.render(false);
        for shown in ["3 runs", "passed 2 of 3, failed 1 of 3", "300 ms", "2 of 3"] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json["kpis"][0]["value"], 300.0, "{json}");
    }

    #[test]
    fn d4_a_run_that_never_recovered_is_the_worst_of_its_range() {
        let runs = [
            run(Some(100.0), 0.0, Verdict::Passed),
            run(None, 0.0, Verdict::Failed),
        ];
        let well = &Repeated::of(&runs).unwrap().kpis[0];
        assert_eq!((well.median.value, well.without), (None, 1), "{well:?}");
        assert_eq!(well.greatest(), "never");
        assert!(!well.median.pass);
    }

    #[test]
    fn d4_a_run_that_proved_nothing_makes_the_whole_void_unless_one_failed() {
        let of = |verdicts: &[Verdict]| {
            let runs: Vec<_> = verdicts.iter().map(|v| run(None, 0.0, *v)).collect();
            Repeated::of(&runs).map(|all| all.verdict)
        };
        let (passed, failed, void) = (Verdict::Passed, Verdict::Failed, Verdict::Void);
        assert_eq!(of(&[passed, void]), Some(void));
        assert_eq!(of(&[void, failed, passed]), Some(failed));
        assert_eq!(of(&[passed, passed]), Some(passed));
        assert_eq!(of(&[]), None);
    }
}
