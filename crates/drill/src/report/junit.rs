//! The report for CI: each subject that is judged a suite, each key figure a case. The control is not judged, so it is not in it.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::{Report, figure, target};

/// The reports as a JUnit file.
pub fn render(reports: &[Report]) -> String {
    let mut junit = quick_junit::Report::new("steadfast drill");
    for report in reports {
        let mut suite = TestSuite::new(report.scenario.as_str());
        for kpi in &report.kpis {
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
            case.set_classname(format!("drill.{}", report.scenario))
                .set_time(Duration::ZERO);
            suite.add_test_case(case);
        }
        suite.set_time(report.length());
        junit.add_test_suite(suite);
    }
    junit.to_string().expect("writing to a string cannot fail")
}
