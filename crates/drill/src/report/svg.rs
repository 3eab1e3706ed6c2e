//! The plots of the page, drawn here so that the page needs no library and prints as it looks.
//! Colours are left to the page's style sheet by class names, so one drawing serves light, dark and
//! paper.

use std::fmt::Write as _;

use super::{FaultSpan, Report, StateChange, Timeline, duration};
use crate::subject::{Breaker, Connection};

/// The width of a plot on the page, in units of its drawing.
pub(super) const WIDTH: f64 = 560.0;
/// The heights of the plots that are shown elsewhere too.
pub(super) const THROUGHPUT: f64 = 190.0;
pub(super) const LATENCY: f64 = 180.0;
pub(super) const STATES: f64 = 96.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 10.0;

/// The scales that all plots of a page have in common, so that they can be compared at a glance.
pub(super) struct Scales {
    width: f64,
    length_ms: f64,
    calls: f64,
    failures: f64,
    sql: f64,
    latency: (i32, i32),
}

impl Scales {
    /// For plots of that width that share nothing but their time.
    pub(super) fn of_time(length_ms: f64, width: f64) -> Self {
        Self {
            width,
            length_ms: length_ms.max(1.0),
            calls: 1.0,
            failures: 1.0,
            sql: 1.0,
            latency: (0, 1),
        }
    }

    /// The least that holds all of them, for plots of that width.
    pub(super) fn of<'a>(reports: impl Iterator<Item = &'a Report> + Clone, width: f64) -> Self {
        let most = |column: fn(&Timeline, usize) -> f64| {
            let of = |report: &Report| {
                (0..report.timeline.memory.len())
                    .map(|at| column(&report.timeline, at))
                    .fold(0.0, f64::max)
            };
            reports.clone().map(of).fold(0.0, f64::max)
        };
        let latencies = || {
            reports.clone().flat_map(|report| {
                report
                    .timeline
                    .p50_ms
                    .iter()
                    .chain(&report.timeline.max_ms)
                    .flatten()
                    .copied()
            })
        };
        let lowest = latencies().fold(1.0, f64::min).max(1e-3);
        let highest = latencies().fold(10.0, f64::max);
        Self {
            width,
            length_ms: reports
                .clone()
                .map(|report| report.length().as_millis() as f64)
                .fold(1.0, f64::max),
            calls: nice(most(|t, at| {
                t.memory[at] + t.redis[at] + t.database[at] + t.written[at] + t.failed[at]
            })),
            failures: nice(most(|t, at| t.failed[at] + t.wrong[at] + t.skipped[at]).max(1.0)),
            sql: nice(most(|t, at| t.sql[at]).max(1.0)),
            latency: (lowest.log10().floor() as i32, highest.log10().ceil() as i32),
        }
    }
}

/// Calls a second by who answered, stacked, with the failed on top.
pub(super) fn throughput(report: &Report, scales: &Scales) -> String {
    let timeline = &report.timeline;
    let mut plot = Plot::new(
        "Calls a second by who answered",
        THROUGHPUT,
        24.0,
        report,
        scales,
    );
    plot.phases(
        report
            .phases
            .iter()
            .map(|phase| (phase.name, phase.from_ms, phase.to_ms)),
    );
    plot.grid(&linear_ticks(scales.calls), |value| value / scales.calls);
    let mut floor = vec![0.0; timeline.memory.len()];
    let layers: [(&str, &[f64]); 5] = [
        ("memory", &timeline.memory),
        ("redis", &timeline.redis),
        ("database", &timeline.database),
        ("written", &timeline.written),
        ("failed", &timeline.failed),
    ];
    for (class, values) in layers {
        let top: Vec<f64> = floor
            .iter()
            .zip(values)
            .map(|(floor, value)| floor + value)
            .collect();
        if values.iter().any(|value| *value > 0.0) {
            plot.area(class, &floor, &top, scales.calls);
        }
        floor = top;
    }
    plot.finish(true)
}

/// Median, 99th percentile and maximum, on a logarithmic scale.
pub(super) fn latency(report: &Report, scales: &Scales) -> String {
    let (low, high) = scales.latency;
    let ticks: Vec<(f64, String)> = (low..=high)
        .map(|power| 10f64.powi(power))
        .map(|ms| (ms, duration(ms).replace(".00", "").replace(".0 ", " ")))
        .collect();
    let share = move |ms: f64| (ms.max(1e-6).log10() - f64::from(low)) / f64::from(high - low);
    let mut plot = Plot::new(
        "Latency, on a logarithmic scale",
        LATENCY,
        8.0,
        report,
        scales,
    );
    plot.grid(&ticks, share);
    plot.line("max", &report.timeline.max_ms, share);
    plot.line("p99", &report.timeline.p99_ms, share);
    plot.line("p50", &report.timeline.p50_ms, share);
    plot.finish(true)
}

/// Draws what went wrong: failed, wrong and skipped calls a second.
pub(super) fn failures(report: &Report, scales: &Scales) -> String {
    let timeline = &report.timeline;
    let mut plot = Plot::new(
        "Failed, wrong and skipped calls a second",
        92.0,
        8.0,
        report,
        scales,
    );
    plot.grid(&linear_ticks(scales.failures), |value| {
        value / scales.failures
    });
    let mut floor = vec![0.0; timeline.failed.len()];
    for (class, values) in [
        ("failed", &timeline.failed),
        ("wrong", &timeline.wrong),
        ("skipped", &timeline.skipped),
    ] {
        let top: Vec<f64> = floor
            .iter()
            .zip(values)
            .map(|(floor, value)| floor + value)
            .collect();
        if values.iter().any(|value| *value > 0.0) {
            plot.area(class, &floor, &top, scales.failures);
        }
        floor = top;
    }
    if floor.iter().all(|value| *value == 0.0) {
        plot.note("none");
    }
    plot.finish(false)
}

/// Queries of the database a second.
pub(super) fn sql(report: &Report, scales: &Scales) -> String {
    let mut plot = Plot::new(
        "Queries of the database a second",
        92.0,
        8.0,
        report,
        scales,
    );
    plot.grid(&linear_ticks(scales.sql), |value| value / scales.sql);
    plot.area(
        "database",
        &vec![0.0; report.timeline.sql.len()],
        &report.timeline.sql,
        scales.sql,
    );
    plot.finish(false)
}

/// The states of connection and breaker as bands, and a mark for each connection made anew.
pub(super) fn states(report: &Report, scales: &Scales) -> String {
    let mut plot = Plot::new(
        "Connection to Redis, breaker, and connections made anew",
        STATES,
        4.0,
        report,
        scales,
    );
    plot.band(
        0,
        "connection",
        &report.timeline.states,
        |change| match change.connection {
            Connection::Ready => ("good", "ready"),
            Connection::Connecting => ("warn", "connecting"),
            Connection::Down => ("bad", "down"),
        },
    );
    plot.band(
        1,
        "breaker",
        &report.timeline.states,
        |change| match change.breaker {
            Breaker::Closed => ("good", "closed"),
            Breaker::HalfOpen => ("warn", "half-open"),
            Breaker::Open => ("bad", "open"),
        },
    );
    plot.marks(2, "reconnects", &report.timeline);
    plot.finish(true)
}

/// A plot that is being drawn: time from left to right, what was broken shaded.
pub(super) struct Plot<'a> {
    body: String,
    title: &'static str,
    height: f64,
    top: f64,
    scales: &'a Scales,
    interval_ms: f64,
}

/// Room for the labels of the time axis.
const AXIS: f64 = 20.0;
const BAND: f64 = 22.0;

impl<'a> Plot<'a> {
    fn new(
        title: &'static str,
        height: f64,
        top: f64,
        report: &Report,
        scales: &'a Scales,
    ) -> Self {
        let interval_ms = report.timeline.interval_ms;
        Self::of(title, (height, top), &report.faults, interval_ms, scales)
    }

    /// An empty one, so high, with so much room above it.
    pub(super) fn of(
        title: &'static str,
        (height, top): (f64, f64),
        faults: &[FaultSpan],
        interval_ms: u64,
        scales: &'a Scales,
    ) -> Self {
        let interval_ms = interval_ms.max(1) as f64;
        let mut plot = Self {
            body: String::new(),
            title,
            height,
            top,
            scales,
            interval_ms,
        };
        plot.shade(faults);
        plot.cap(faults);
        plot
    }

    fn x(&self, ms: f64) -> f64 {
        LEFT + (ms / self.scales.length_ms).clamp(0.0, 1.0) * (self.scales.width - LEFT - RIGHT)
    }

    fn y(&self, share: f64) -> f64 {
        let bottom = self.height - AXIS;
        bottom - share.clamp(0.0, 1.0) * (bottom - self.top)
    }

    fn shade(&mut self, faults: &[FaultSpan]) {
        for fault in faults {
            let (from, to) = (self.x(fault.from_ms as f64), self.x(fault.to_ms as f64));
            let height = self.height - AXIS - self.top;
            let _ = write!(
                self.body,
                r#"<rect class="fault" x="{from:.1}" y="{:.1}" width="{:.1}" height="{height:.1}"/>"#,
                self.top,
                (to - from).max(1.5),
            );
        }
    }

    /// A bar above the plot where something was broken, as areas may hide the shade behind them.
    fn cap(&mut self, faults: &[FaultSpan]) {
        for fault in faults {
            let (from, to) = (self.x(fault.from_ms as f64), self.x(fault.to_ms as f64));
            let _ = write!(
                self.body,
                r#"<rect class="cap" x="{from:.1}" y="{:.1}" width="{:.1}" height="3"/>"#,
                self.top - 3.0,
                (to - from).max(1.5),
            );
        }
    }

    /// The names of phases, and lines between them.
    pub(super) fn phases(&mut self, phases: impl Iterator<Item = (&'static str, u64, u64)>) {
        for (name, from_ms, to_ms) in phases {
            let (from, to) = (self.x(from_ms as f64), self.x(to_ms as f64));
            let name = name.replace('_', "-");
            if from_ms > 0 {
                let _ = write!(
                    self.body,
                    r#"<line class="phase-edge" x1="{from:.1}" x2="{from:.1}" y1="6" y2="{:.1}"/>"#,
                    self.height - AXIS
                );
            }
            if to - from > name.len() as f64 * 6.2 {
                let _ = write!(
                    self.body,
                    r#"<text class="phase" x="{:.1}" y="14">{name}</text>"#,
                    (from + to) / 2.0
                );
            }
        }
    }

    pub(super) fn grid(&mut self, ticks: &[(f64, String)], share: impl Fn(f64) -> f64) {
        for (value, label) in ticks {
            let y = self.y(share(*value));
            let _ = write!(
                self.body,
                r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
                self.scales.width - RIGHT,
                LEFT - 6.0,
                y + 3.5,
            );
        }
    }

    pub(super) fn area(&mut self, class: &str, floor: &[f64], top: &[f64], full: f64) {
        let mut path = String::new();
        for (at, value) in top.iter().enumerate() {
            let (x, y) = (
                self.x((at as f64 + 0.5) * self.interval_ms),
                self.y(value / full),
            );
            let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" });
        }
        for (at, value) in floor.iter().enumerate().rev() {
            let (x, y) = (
                self.x((at as f64 + 0.5) * self.interval_ms),
                self.y(value / full),
            );
            let _ = write!(path, "L{x:.1} {y:.1}");
        }
        let _ = write!(self.body, r#"<path class="area {class}" d="{path}Z"/>"#);
    }

    pub(super) fn line(&mut self, class: &str, values: &[Option<f64>], share: impl Fn(f64) -> f64) {
        let (mut path, mut pen_down) = (String::new(), false);
        for (at, value) in values.iter().enumerate() {
            let Some(value) = value else {
                pen_down = false;
                continue;
            };
            let (x, y) = (
                self.x((at as f64 + 0.5) * self.interval_ms),
                self.y(share(*value)),
            );
            let _ = write!(path, "{}{x:.1} {y:.1}", if pen_down { "L" } else { "M" });
            pen_down = true;
        }
        let _ = write!(self.body, r#"<path class="line {class}" d="{path}"/>"#);
    }

    pub(super) fn note(&mut self, text: &str) {
        let (x, y) = ((LEFT + self.scales.width - RIGHT) / 2.0, self.y(0.5) + 4.0);
        let _ = write!(
            self.body,
            r#"<text class="note" x="{x:.1}" y="{y:.1}">{text}</text>"#
        );
    }

    fn band(
        &mut self,
        row: usize,
        name: &str,
        changes: &[StateChange],
        state: impl Fn(&StateChange) -> (&'static str, &'static str),
    ) {
        let y = self.row(row, name);
        let mut changes = changes.iter().peekable();
        while let Some(change) = changes.next() {
            // What looks alike in this band is one piece of it.
            while changes
                .next_if(|next| state(next) == state(change))
                .is_some()
            {}
            let end = changes
                .peek()
                .map_or(self.scales.length_ms, |next| next.at_ms as f64);
            let (from, to) = (self.x(change.at_ms as f64), self.x(end));
            let (class, label) = state(change);
            let _ = write!(
                self.body,
                r#"<rect class="state {class}" x="{from:.1}" y="{y:.1}" width="{:.1}" height="{}" rx="2"><title>{label} from {:.2} s</title></rect>"#,
                (to - from - 0.6).max(0.8),
                BAND - 4.0,
                change.at_ms as f64 / 1e3,
            );
            if to - from > label.len() as f64 * 6.4 + 6.0 {
                let _ = write!(
                    self.body,
                    r#"<text class="state-name" x="{:.1}" y="{:.1}">{label}</text>"#,
                    (from + to) / 2.0,
                    y + 12.5
                );
            }
        }
    }

    fn marks(&mut self, row: usize, name: &str, timeline: &Timeline) {
        let y = self.row(row, name);
        let mut none = true;
        for (at, count) in timeline
            .reconnects
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            none = false;
            let x = self.x((at as f64 + 0.5) * self.interval_ms);
            let _ = write!(
                self.body,
                r#"<path class="reconnect" d="M{x:.1} {:.1}l4 7h-8z"><title>{count} at {:.1} s</title></path>"#,
                y + 5.0,
                at as f64 * self.interval_ms / 1e3,
            );
        }
        if none {
            let _ = write!(
                self.body,
                r#"<text class="note" x="{:.1}" y="{:.1}">none</text>"#,
                (LEFT + self.scales.width - RIGHT) / 2.0,
                y + 13.0
            );
        }
    }

    fn row(&mut self, row: usize, name: &str) -> f64 {
        let y = self.top + row as f64 * BAND + 2.0;
        let _ = write!(
            self.body,
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"#,
            LEFT - 6.0,
            y + 12.5
        );
        y
    }

    pub(super) fn finish(mut self, labels: bool) -> String {
        let bottom = self.height - AXIS;
        let _ = write!(
            self.body,
            r#"<line class="axis" x1="{LEFT}" x2="{:.1}" y1="{bottom:.1}" y2="{bottom:.1}"/>"#,
            self.scales.width - RIGHT
        );
        let step = time_step(self.scales.length_ms);
        let mut ms = 0.0;
        while ms <= self.scales.length_ms {
            let x = self.x(ms);
            let _ = write!(
                self.body,
                r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{bottom:.1}" y2="{:.1}"/>"#,
                bottom + 3.0
            );
            if labels {
                let _ = write!(
                    self.body,
                    r#"<text class="tick" x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                    bottom + 15.0,
                    seconds(ms)
                );
            }
            ms += step;
        }
        format!(
            r#"<svg viewBox="0 0 {width} {}" role="img" aria-label="{}" data-left="{LEFT}" data-right="{RIGHT}" data-width="{width}">{}<line class="cross" y1="{}" y2="{bottom}" x1="-9" x2="-9"/></svg>"#,
            self.height,
            self.title,
            self.body,
            self.top,
            width = self.scales.width,
        )
    }
}

fn seconds(ms: f64) -> String {
    let text = format!("{:.1}", ms / 1e3);
    format!("{} s", text.trim_end_matches(".0"))
}

fn time_step(length_ms: f64) -> f64 {
    let steps = [
        500.0, 1e3, 2e3, 5e3, 10e3, 15e3, 30e3, 60e3, 300e3, 600e3, 3600e3,
    ];
    steps
        .into_iter()
        .find(|step| length_ms / step <= 9.0)
        .unwrap_or(6.0 * 3600e3)
}

pub(super) fn linear_ticks(full: f64) -> Vec<(f64, String)> {
    [0.0, 0.5, 1.0]
        .map(|share| (full * share, short(full * share)))
        .to_vec()
}

/// A number in as little room as it takes.
fn short(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{}M", trimmed(n / 1e6)),
        n if n >= 1e4 => format!("{}k", trimmed(n / 1e3)),
        n => trimmed(n),
    }
}

fn trimmed(number: f64) -> String {
    format!("{number:.1}").trim_end_matches(".0").to_owned()
}

/// The next number up that is 1, 2, 4, 5 or 8 with zeros.
pub(super) fn nice(number: f64) -> f64 {
    let power = 10f64.powf(number.max(1.0).log10().floor());
    let steps = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= number)
        .unwrap_or(power * 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (number, end) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (297.0, 300.0),
            (312.0, 400.0),
            (9700.0, 10_000.0),
        ] {
            assert_eq!(nice(number), end);
        }
        assert_eq!(
            (short(1500.0), short(15_000.0), short(2.5e6)),
            ("1500".into(), "15k".into(), "2.5M".into())
        );
    }
}
