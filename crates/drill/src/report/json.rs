//! `report.json`, for machines. Its names are promised: they change only with the number in
//! `schema`.

use serde::Serialize;

use super::Report;
use super::application::TargetReport;
use super::repeat::Repeated;

/// The report as JSON, indented, with a newline at its end.
pub fn render(report: &Report) -> String {
    written(report)
}

/// The report on somebody's own application as JSON.
pub fn render_target(report: &TargetReport) -> String {
    written(report)
}

/// Returns the summary of several runs as JSON.
pub fn render_repeated(repeated: &Repeated) -> String {
    written(repeated)
}

fn written(report: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("a report holds only what JSON can");
    text.push('\n');
    text
}
