//! The report for CI: each subject that is judged a suite, each key figure a case. Of the control
//! there is one case: whether it did what the scenario says that it will.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::application::TargetReport;
use super::repeat::Run;
use super::{Report, figure, target};
use crate::kpi::Kpi;

/// The reports as a JUnit file.
pub fn render(reports: &[Report]) -> String {
    let suites = reports.iter().map(|report| {
        let mut suite = suite(&report.scenario, &report.kpis, report.length());
        if report.control.is_some() {
            suite.add_test_case(control(report));
        }
        suite
    });
    written(suites)
}

/// The report on somebody's own application as a JUnit file.
pub fn render_target(report: &TargetReport) -> String {
    let length = report.phases.last().map_or(0, |phase| phase.to_ms);
    written(
        [suite(
            &report.scenario,
            &report.kpis,
            Duration::from_millis(length),
        )]
        .into_iter(),
    )
}

/// Several runs of one drill as a JUnit file: a suite for each.
pub fn render_repeated(runs: &[Run]) -> String {
    let suites = runs.iter().enumerate().map(|(number, run)| {
        let name = format!("{} {}", run.scenario(), number + 1);
        suite(&name, run.kpis(), Duration::ZERO)
    });
    written(suites)
}

fn written(suites: impl Iterator<Item = TestSuite>) -> String {
    let mut junit = quick_junit::Report::new("steadfast drill");
    junit.add_test_suites(suites);
    junit.to_string().expect("writing to a string cannot fail")
}

fn control(report: &Report) -> TestCase {
    let status = if report.control_as_expected() {
        TestCaseStatus::success()
    } else {
        let mut missed = TestCaseStatus::non_success(NonSuccessKind::Failure);
        missed
            .set_type("control")
            .set_message(if report.control_fails {
                "the control passed, but the scenario is there to show that it fails"
            } else {
                "the control failed, but the scenario says that it passes"
            });
        missed
    };
    let mut case = TestCase::new("control", status);
    case.set_classname(format!("drill.{}", report.scenario))
        .set_time(Duration::ZERO);
    case
}

fn suite(scenario: &str, kpis: &[Kpi], length: Duration) -> TestSuite {
    let mut suite = TestSuite::new(scenario);
    for kpi in kpis {
        let status = if kpi.pass {
            TestCaseStatus::success()
        } else {
            let mut missed = TestCaseStatus::non_success(NonSuccessKind::Failure);
            missed.set_type(kpi.name).set_message(format!(
                "{} is {}, but should be {} ({}; {})",
                kpi.name,
                figure(kpi.value, kpi.unit),
                target(kpi),
                kpi.formula,
                kpi.phase
            ));
            missed
        };
        let mut case = TestCase::new(kpi.name, status);
        case.set_classname(format!("drill.{scenario}"))
            .set_time(Duration::ZERO);
        suite.add_test_case(case);
    }
    suite.set_time(length);
    suite
}
