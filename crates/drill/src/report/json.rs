//! `report.json`, for machines. Its names are promised: they change only with the number in `schema`.

use super::Report;

/// The report as JSON, indented, with a newline at its end.
pub fn render(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("a report holds only what JSON can");
    text.push('\n');
    text
}
