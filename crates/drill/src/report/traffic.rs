//! The page on somebody's own application. What went on inside it is not known here, so nothing is said of it: only what passed
//! the proxy, when, and how the program ended.

use std::fmt::Write as _;

use super::svg::{Plot, Scales, linear_ticks, nice};
use super::{Verdict, duration, html};
use crate::target::TargetReport;
use crate::verdict::Kpi;

/// The plots stand alone on this page, so they are wider than those of two subjects side by side.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 130.0;
const TOP: f64 = 24.0;

/// The report as a page.
pub fn render(report: &TargetReport) -> String {
    let mut main = String::with_capacity(32 * 1024);
    html::title_and_verdict(
        &mut main,
        (&report.scenario, &report.about),
        report.verdict,
        &sentence(report),
    );
    plots(&mut main, report);
    main.push_str("<section><h2>How it is judged</h2>\n<div class=\"cards\">\n");
    for kpi in &report.kpis {
        html::card(&mut main, kpi, "");
    }
    main.push_str("</div>\n</section>\n");
    phases(&mut main, report);
    let nothing = serde_json::Value::Array(Vec::new());
    html::framed(&report.scenario, report.verdict, &main, &nothing)
}

/// What happened, as one would tell it.
fn sentence(report: &TargetReport) -> String {
    let broken: u64 = report
        .faults
        .iter()
        .map(|fault| fault.to_ms - fault.from_ms)
        .sum();
    let find = |name| report.kpis.iter().find(|kpi: &&Kpi| kpi.name == name);
    let lived = find("lived").is_some_and(|kpi| kpi.pass);
    let mut text = format!(
        "<code>{}</code> {} {} of trouble",
        html::escaped(&report.command),
        if lived {
            "lived through"
        } else {
            "did not live through"
        },
        duration(broken as f64)
    );
    match find("recovery").map(|kpi| kpi.value) {
        Some(Some(after)) => {
            let _ = write!(
                text,
                ", heard from Redis again {} after it was over",
                duration(after)
            );
        }
        Some(None) => text.push_str(", never heard from Redis again"),
        None => {}
    }
    match report.exit_status {
        Some(status) => {
            let _ = write!(text, ", and ended with status {status}.");
        }
        None => text.push_str(", and was still running at the end."),
    }
    if report.verdict == Verdict::Failed {
        let missed: Vec<_> = report
            .kpis
            .iter()
            .filter(|kpi| !kpi.pass)
            .map(|kpi| super::title(kpi.name).to_lowercase())
            .collect();
        let _ = write!(text, " Missed: {}.", missed.join(", "));
    }
    if let Some(unreached) = unfollowed(report) {
        let _ = write!(text, " Beware: {unreached}.");
    }
    text
}

/// What the faults of the protocol could not reach, if anything.
pub(super) fn unfollowed(report: &TargetReport) -> Option<String> {
    let connections = match report.unfollowed {
        0 => return None,
        1 => "1 connection".to_owned(),
        more => format!("{more} connections"),
    };
    Some(format!(
        "faults of the protocol did not act on {connections} that could not be followed to the end: a subscription in RESP2, MONITOR and the like"
    ))
}

fn plots(page: &mut String, report: &TargetReport) {
    let timeline = &report.timeline;
    let length = report.phases.last().map_or(0, |phase| phase.to_ms);
    let scales = Scales::of_time(length as f64, WIDTH);
    let per_second = 1e3 / timeline.interval_ms.max(1) as f64;
    let _ = write!(
        page,
        "<section><h2>What passed between it and Redis</h2>\n<p class=\"lead\">Shaded: {}.</p>\n<div class=\"plots\" style=\"--columns:1\">\n",
        html::fault_words(&report.faults)
    );
    for (title, class, column, factor) in [
        (
            "Bytes a second, answered by Redis",
            "redis",
            &timeline.bytes_down,
            per_second,
        ),
        (
            "Bytes a second, sent by the program",
            "memory",
            &timeline.bytes_up,
            per_second,
        ),
        ("Connections opened", "database", &timeline.connections, 1.0),
    ] {
        let values: Vec<f64> = column.iter().map(|value| *value as f64 * factor).collect();
        let full = nice(values.iter().copied().fold(1.0, f64::max));
        let shape = (HEIGHT, TOP);
        let mut plot = Plot::of(title, shape, &report.faults, timeline.interval_ms, &scales);
        plot.phases(
            report
                .phases
                .iter()
                .map(|phase| (phase.name, phase.from_ms, phase.to_ms)),
        );
        plot.grid(&linear_ticks(full), |value| value / full);
        if values.iter().all(|value| *value == 0.0) {
            plot.note("none");
        } else {
            plot.area(class, &vec![0.0; values.len()], &values, full);
        }
        let _ = writeln!(
            page,
            "<div class=\"panel\"><h4>{title}</h4></div><figure>{}</figure>",
            plot.finish(true)
        );
    }
    page.push_str("</div>\n</section>\n");
}

fn phases(page: &mut String, report: &TargetReport) {
    page.push_str(
        "<section><h2>Phase by phase</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Phase</th>\
         <th>connections opened</th><th>bytes sent</th><th>bytes answered</th></tr></thead>\n<tbody>\n",
    );
    for phase in &report.phases {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{} <small>{:.1}–{:.1} s</small></th><td>{}</td><td>{}</td><td>{}</td></tr>",
            phase.name.replace('_', "-"),
            phase.from_ms as f64 / 1e3,
            phase.to_ms as f64 / 1e3,
            html::grouped(phase.connections),
            html::grouped(phase.bytes_up),
            html::grouped(phase.bytes_down),
        );
    }
    let _ = write!(
        page,
        "</tbody></table></div>\n<p class=\"small\">The program ran before {}, with a proxy between them; only the proxy was broken. \
         steadfast drill run {} --seed {} --target {0} --command '…'</p>\n</section>\n",
        html::escaped(&report.target),
        html::escaped(&report.scenario),
        report.seed,
    );
}
