//! The heart of the report as one picture, for a page that cannot hold the whole: what answered, how fast, and what the connection
//! did meanwhile, of both side by side. It brings its own colours, light and dark as the reader's system has it.

use std::fmt::Write as _;

use super::html::{escaped, fault_words};
use super::{Report, Verdict, figure, svg};
use crate::verdict::Unit;

const STYLE: &str = concat!(include_str!("palette.css"), include_str!("plots.css"));
/// Of one column.
const WIDTH: f64 = 450.0;
const MARGIN: f64 = 18.0;
/// What stands above the first plot.
const TOP: f64 = 112.0;
/// What stands above every other.
const HEADING: f64 = 24.0;

/// The picture, as a file of its own.
pub fn render(report: &Report) -> String {
    let control = report.control.as_deref();
    let subjects: Vec<(&str, &Report)> = std::iter::once(("Steadfast", report))
        .chain(control.map(|control| ("Plain client", control)))
        .collect();
    let scales = svg::Scales::of(subjects.iter().map(|(_, report)| *report), WIDTH);
    let mut body = String::new();
    let mut bottom = TOP;
    for (number, (who, report)) in subjects.iter().enumerate() {
        let left = MARGIN + number as f64 * (WIDTH + MARGIN);
        heading(&mut body, left, who, report);
        bottom = plots(&mut body, left, report, &scales);
    }
    let width = MARGIN + subjects.len() as f64 * (WIDTH + MARGIN);
    let height = bottom + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{label}\">\n\
         <style>\n{STYLE}{OWN}</style>\n<rect class=\"sheet\" width=\"{width}\" height=\"{height}\" rx=\"12\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"32\">{name}</text><text class=\"lead\" x=\"{MARGIN}\" y=\"52\">{words}</text>\n{legend}\n{body}</svg>\n",
        label = escaped(&report.about),
        name = escaped(&report.scenario),
        words = escaped(&shaded(report)),
        legend = legend(&SOURCES, width - MARGIN, 31.0),
    )
}

fn shaded(report: &Report) -> String {
    format!("Shaded: {}", fault_words(&report.faults))
}

fn heading(body: &mut String, left: f64, who: &str, report: &Report) {
    let value = |name| report.kpis.iter().find(|kpi| kpi.name == name);
    let failed = value("errors").map_or_else(
        || "–".to_owned(),
        |kpi| match kpi.value {
            Some(0.0) => "no read failed".to_owned(),
            value => format!("{} of reads failed", figure(value, Unit::Ratio)),
        },
    );
    let (class, mark) = match report.verdict {
        Verdict::Passed => ("good", "✓"),
        Verdict::Failed | Verdict::Void => ("bad", "✗"),
    };
    let _ = writeln!(
        body,
        "<text class=\"who\" x=\"{left}\" y=\"86\">{who} <tspan class=\"{class}\" dx=\"6\">{mark} {failed}</tspan></text>"
    );
}

/// The plots of one subject below each other, and where they end.
fn plots(body: &mut String, left: f64, report: &Report, scales: &svg::Scales) -> f64 {
    type Draw = fn(&Report, &svg::Scales) -> String;
    let plots: [(&str, Draw, f64); 3] = [
        (
            "Calls a second, by who answered",
            svg::throughput,
            svg::THROUGHPUT,
        ),
        ("Latency", svg::latency, svg::LATENCY),
        ("Connection and breaker", svg::states, svg::STATES),
    ];
    let mut top = TOP;
    for (title, draw, height) in plots {
        let plot = draw(report, scales).replacen(
            "<svg ",
            &format!("<svg x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{height}\" "),
            1,
        );
        let beside = match title {
            "Latency" => legend(&LATENCIES, left + WIDTH, top - 6.0),
            _ => String::new(),
        };
        let _ = writeln!(
            body,
            "<text class=\"plot\" x=\"{left}\" y=\"{}\">{title}</text>{beside}{plot}",
            top - 6.0
        );
        top += height + HEADING;
    }
    top - HEADING
}

/// A class, what it means, and the room that it takes.
type Entry = (&'static str, &'static str, f64);

const SOURCES: [Entry; 5] = [
    ("memory", "memory", 66.0),
    ("redis", "Redis", 54.0),
    ("database", "database", 72.0),
    ("written", "writes", 56.0),
    ("failed", "failed", 50.0),
];
const LATENCIES: [Entry; 3] = [
    ("p50", "median", 62.0),
    ("p99", "99th percentile", 104.0),
    ("max", "maximum", 66.0),
];

/// What the colours mean, in a line that ends at `right`.
fn legend(entries: &[Entry], right: f64, y: f64) -> String {
    let mut left = right - entries.iter().map(|(_, _, room)| room).sum::<f64>();
    let mut text = String::new();
    for (class, label, room) in entries {
        let _ = write!(
            text,
            "<rect class=\"key {class}\" x=\"{left}\" y=\"{}\" width=\"9\" height=\"9\" rx=\"2\"/><text class=\"label\" x=\"{}\" y=\"{y}\">{label}</text>",
            y - 8.0,
            left + 13.0
        );
        left += room;
    }
    text
}

/// What the page has by other means.
const OWN: &str = "\
svg .sheet { fill: var(--card); stroke: var(--rule); }
svg .title { font-size: 19px; font-weight: 650; fill: var(--ink); }
svg .lead, svg .label { font-size: 12px; fill: var(--soft); }
svg .label { font-size: 11px; }
svg .who { font-size: 14px; font-weight: 650; fill: var(--ink); }
svg .who .good { fill: var(--good); } svg .who .bad { fill: var(--bad); }
svg .plot { font-size: 12px; font-weight: 600; fill: var(--ink); }
svg .key.p50 { fill: var(--p50); } svg .key.p99 { fill: var(--p99); } svg .key.max { fill: var(--max); }
";
