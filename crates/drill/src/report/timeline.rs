//! The heart of the report as one picture, for a page that cannot hold the whole: what answered,
//! how fast, and what the connection did meanwhile, of both side by side. It brings its own
//! colours, light and dark as the reader's system has it.

use std::fmt::Write as _;

use super::application::TargetReport;
use super::html::{escaped, fault_words};
use super::{FaultSpan, Report, Verdict, figure, svg};
use crate::kpi::{Kpi, Unit};

const STYLE: &str = concat!(include_str!("palette.css"), include_str!("plots.css"));
/// Of one column.
const WIDTH: f64 = 450.0;
const MARGIN: f64 = 18.0;
/// Side by side at most; more stand below.
const COLUMNS: usize = 2;
/// Between the end of a row and the heading of the next.
const ROW: f64 = 50.0;
/// The height of what stands above the first plot.
const TOP: f64 = 112.0;
/// The height of what stands above every other.
const HEADING: f64 = 24.0;

/// The picture, as a file of its own.
pub fn render(report: &Report) -> String {
    let subjects: Vec<(&str, &Report)> = report.all().collect();
    let scales = svg::Scales::of(subjects.iter().map(|(_, report)| *report), WIDTH);
    let mut body = String::new();
    let (mut top, mut bottom) = (0.0, TOP);
    for (number, (who, report)) in subjects.iter().enumerate() {
        if number > 0 && number % COLUMNS == 0 {
            top = bottom + ROW - TOP;
        }
        let left = MARGIN + (number % COLUMNS) as f64 * (WIDTH + MARGIN);
        heading(&mut body, (left, top), who, report);
        bottom = plots(&mut body, (left, top), report, &scales);
    }
    let width = MARGIN + subjects.len().min(COLUMNS) as f64 * (WIDTH + MARGIN);
    sheet(
        (width, bottom + MARGIN),
        (&report.scenario, &report.about, &shaded(&report.faults)),
        &(legend(&SOURCES, width - MARGIN, 31.0) + &body),
    )
}

/// The picture of somebody's own application: what its users got, and what Redis answered it.
pub fn render_target(report: &TargetReport) -> String {
    let length = report.phases.last().map_or(0, |phase| phase.to_ms);
    let scales = svg::Scales::of_time(length as f64, WIDTH);
    let mut body = String::new();
    heading_of(
        &mut body,
        (MARGIN, 0.0),
        "Its users",
        report.verdict,
        &report.kpis,
    );
    let mut top = TOP;
    let mut draw =
        |title: &'static str, interval: u64, height: f64, layers: &[(&str, Vec<f64>)]| {
            let most = layers.iter().flat_map(|(_, values)| values).copied();
            let full = svg::nice(most.fold(1.0, f64::max));
            let mut plot = svg::Plot::of(title, (height, 24.0), &report.faults, interval, &scales);
            let phases = report.phases.iter();
            plot.phases(phases.map(|phase| (phase.name, phase.from_ms, phase.to_ms)));
            plot.grid(&svg::linear_ticks(full), |value| value / full);
            for (class, values) in layers {
                plot.area(class, &vec![0.0; values.len()], values, full);
            }
            place(
                &mut body,
                title,
                (MARGIN, top, height),
                &plot.finish(true),
                "",
            );
            top += height + HEADING;
        };
    if let Some(users) = &report.users {
        let timeline = &users.timeline;
        let interval = timeline.interval_ms;
        draw(
            "Requests a second: answered, wrong, failed",
            interval,
            170.0,
            &[
                ("written", timeline.answered.clone()),
                ("wrong", timeline.wrong.clone()),
                ("failed", timeline.failed.clone()),
            ],
        );
        let p99 = timeline.p99_ms.iter().map(|ms| ms.unwrap_or(0.0));
        let layers = [("p99", p99.collect())];
        draw("Milliseconds, 99th percentile", interval, 125.0, &layers);
    }
    let per_second = 1e3 / report.timeline.interval_ms.max(1) as f64;
    let answered = report.timeline.answered.iter();
    let answered = answered.map(|count| *count as f64 * per_second).collect();
    let interval = report.timeline.interval_ms;
    draw(
        "Commands a second, answered by Redis",
        interval,
        95.0,
        &[("redis", answered)],
    );
    let bottom = top - HEADING;
    sheet(
        (WIDTH + 2.0 * MARGIN, bottom + MARGIN),
        (&report.scenario, &report.about, &shaded(&report.faults)),
        &body,
    )
}

/// The whole file around what is drawn.
fn sheet(
    (width, height): (f64, f64),
    (name, about, words): (&str, &str, &str),
    body: &str,
) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{label}\">\n\
         <style>\n{STYLE}{OWN}</style>\n<rect class=\"sheet\" width=\"{width}\" height=\"{height}\" rx=\"12\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"32\">{name}</text><text class=\"lead\" x=\"{MARGIN}\" y=\"52\">{words}</text>\n{body}</svg>\n",
        label = escaped(about),
        name = escaped(name),
        words = escaped(words),
    )
}

fn shaded(faults: &[FaultSpan]) -> String {
    format!("Shaded: {}", fault_words(faults))
}

fn heading(body: &mut String, at: (f64, f64), who: &str, report: &Report) {
    heading_of(body, at, who, report.verdict, &report.kpis);
}

fn heading_of(
    body: &mut String,
    (left, top): (f64, f64),
    who: &str,
    verdict: Verdict,
    kpis: &[Kpi],
) {
    let value = |name| kpis.iter().find(|kpi| kpi.name == name);
    let failed = value("errors").map_or_else(
        || "–".to_owned(),
        |kpi| match kpi.value {
            Some(0.0) => "no read failed".to_owned(),
            value => format!("{} of reads failed", figure(value, Unit::Ratio)),
        },
    );
    let (class, mark) = match verdict {
        Verdict::Passed => ("good", "✓"),
        Verdict::Failed | Verdict::Void => ("bad", "✗"),
    };
    let wrong = match value("wrong_answers").and_then(|kpi| kpi.value) {
        Some(wrong) if wrong > 0.0 => format!(", {wrong} wrong answers"),
        _ => String::new(),
    };
    let _ = writeln!(
        body,
        "<text class=\"who\" x=\"{left}\" y=\"{}\">{who} <tspan class=\"{class}\" dx=\"6\">{mark} {failed}{wrong}</tspan></text>",
        top + 86.0
    );
}

/// The plots of one subject below each other, and where they end.
fn plots(
    body: &mut String,
    (left, above): (f64, f64),
    report: &Report,
    scales: &svg::Scales,
) -> f64 {
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
    let mut top = above + TOP;
    for (title, draw, height) in plots {
        let beside = match title {
            "Latency" => legend(&LATENCIES, left + WIDTH - MARGIN, top - 6.0),
            _ => String::new(),
        };
        let plot = draw(report, scales);
        place(body, title, (left, top, height), &plot, &beside);
        top += height + HEADING;
    }
    top - HEADING
}

/// A plot at its place, with its title above it.
fn place(
    body: &mut String,
    title: &str,
    (left, top, height): (f64, f64, f64),
    plot: &str,
    beside: &str,
) {
    let at = format!("<svg x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{height}\" ");
    let _ = writeln!(
        body,
        "<text class=\"plot\" x=\"{left}\" y=\"{}\">{title}</text>{beside}{}",
        top - 6.0,
        plot.replacen("<svg ", &at, 1)
    );
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

/// Draws the meaning of the colours, in a line that ends at `right`.
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

/// The styles that the page has by other means.
const OWN: &str = "\
svg .sheet { fill: var(--card); stroke: var(--rule); }
svg .title { font-size: 19px; font-weight: 650; fill: var(--ink); }
svg .lead, svg .label { font-size: 12px; fill: var(--soft); }
svg .label { font-size: 11px; }
svg .who { font-size: 14px; font-weight: 650; fill: var(--ink); }
svg .who .good { fill: var(--good); } svg .who .bad { fill: var(--bad); }
svg .plot { font-size: 12px; font-weight: 600; fill: var(--ink); }
svg .area.p99 { fill: var(--p99); }
svg .key.p50 { fill: var(--p50); } svg .key.p99 { fill: var(--p99); } svg .key.max { fill: var(--max); }
";
