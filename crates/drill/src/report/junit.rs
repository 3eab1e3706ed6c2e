//! The report for CI: each subject that is judged a suite, each key figure a case. The control is not judged, so it is not in it.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::{Report, figure, target};
use crate::target::TargetReport;
use crate::verdict::Kpi;

/// The reports as a JUnit file.
pub fn render(reports: &[Report]) -> String {
    let suites = reports
        .iter()
        .map(|report| suite(&report.scenario, &report.kpis, report.length()));
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

fn written(suites: impl Iterator<Item = TestSuite>) -> String {
    let mut junit = quick_junit::Report::new("steadfast drill");
    junit.add_test_suites(suites);
    junit.to_string().expect("writing to a string cannot fail")
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
