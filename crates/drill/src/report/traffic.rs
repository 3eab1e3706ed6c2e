//! The page on somebody's own application. What went on inside it is not known here, so nothing is
//! said of it: only what its users got, what passed the proxy, what it wrote, and how it ended.

use std::fmt::Write as _;

use super::application::TargetReport;
use super::svg::{Plot, Scales, linear_ticks, nice};
use super::users::Users;
use super::{Verdict, duration, figure, html};
use crate::kpi::Kpi;
use crate::timeline::trouble_ms;
use crate::verdict::proves_nothing;

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
    if let Some(users) = &report.users {
        felt(&mut main, report, users);
    }
    plots(&mut main, report);
    main.push_str("<section><h2>How it is judged</h2>\n<div class=\"cards\">\n");
    for kpi in &report.kpis {
        html::card(&mut main, kpi, "");
    }
    main.push_str("</div>\n</section>\n");
    phases(&mut main, report);
    log(&mut main, report);
    let nothing = serde_json::Value::Array(Vec::new());
    html::framed(&report.scenario, report.verdict, &main, &nothing)
}

/// Returns what happened, as one would tell it.
fn sentence(report: &TargetReport) -> String {
    let broken = trouble_ms(&report.faults);
    let find = |name| report.kpis.iter().find(|kpi: &&Kpi| kpi.name == name);
    let lived = find("lived").is_none_or(|kpi| kpi.pass);
    let mut text = String::new();
    if let Some(errors) = find("errors") {
        let share = match errors.value {
            Some(0.0) => "No read of its users failed".to_owned(),
            value => format!("{} of its users’ reads failed", figure(value, errors.unit)),
        };
        let _ = write!(text, "<strong>{share}</strong>");
        match find("wrong_answers").and_then(|kpi| kpi.value) {
            Some(wrong) if wrong > 0.0 => {
                let _ = write!(
                    text,
                    ", and <strong>{} answers were older than a confirmed write</strong>. ",
                    html::grouped(wrong as u64)
                );
            }
            _ => text.push_str(". "),
        }
    } else {
        text.push_str("What its users got was not seen: no load was put on its interface. ");
    }
    let _ = write!(
        text,
        "{} {} {} of trouble",
        match &report.command {
            Some(command) => format!("<code>{}</code>", html::escaped(command)),
            None => "The program".to_owned(),
        },
        if lived {
            "lived through"
        } else {
            "did not live through"
        },
        duration(broken as f64)
    );
    match find("redis_in_use").map(|kpi| kpi.value) {
        Some(Some(after)) => {
            let _ = write!(
                text,
                ", used Redis again {} after it was over",
                duration(after)
            );
        }
        Some(None) => text.push_str(", and did not use Redis again as before"),
        None => {}
    }
    match report.exit_status {
        Some(status) => {
            let _ = write!(text, ", and ended with status {status}.");
        }
        None => text.push_str(", and was still running at the end."),
    }
    if report.verdict != Verdict::Passed {
        let missed: Vec<_> = report
            .kpis
            .iter()
            .filter(|kpi| !kpi.pass)
            .map(|kpi| super::title(kpi.name).to_lowercase())
            .collect();
        let _ = write!(text, " Missed: {}.", missed.join(", "));
    }
    for beware in beware(report) {
        let _ = write!(text, " Beware: {beware}.");
    }
    text
}

/// Returns what a reader must know before believing the figures.
pub(super) fn beware(report: &TargetReport) -> Vec<String> {
    let mut said = Vec::new();
    said.extend(report.untouched.iter().map(|name| proves_nothing(name)));
    if report.users.is_none() {
        said.push(
            "what its users got was not seen; put a load on its interface with --http and --request".to_owned(),
        );
    }
    if let Some(users) = &report.users {
        if users.unjudged > 0 {
            said.push(format!(
                "{} reads were not held against writes, as nobody could know which write of their key was the last",
                users.unjudged
            ));
        }
        if report.staleness_unseen {
            said.push(
                "stale answers were not measured: once all had recovered no answer could say that it was stale (a request's `stale` names where it does)".to_owned(),
            );
        }
        if users.late > 0 {
            said.push(format!(
                "{} requests started late: this machine had no time for them, and what they took is partly its own",
                users.late
            ));
        }
    }
    said.extend(unfollowed(report));
    said
}

/// Writes what its users got, as plots and phase by phase.
fn felt(page: &mut String, report: &TargetReport, users: &Users) {
    let scales = Scales::of_time(length(report) as f64, WIDTH);
    let shape = (HEIGHT, TOP);
    let timeline = &users.timeline;
    let _ = write!(
        page,
        "<section><h2>What its users got</h2>\n<p class=\"lead\">Shaded: {}. Asked: {}.</p>\n<div class=\"plots\" style=\"--columns:1\">\n",
        html::fault_words(&report.faults),
        users
            .requests
            .iter()
            .map(|request| format!("<code>{}</code>", html::escaped(request)))
            .collect::<Vec<_>>()
            .join(", "),
    );
    let edges = || {
        let phases = users.phases.iter();
        phases.map(|phase| (phase.name, phase.from_ms, phase.to_ms))
    };
    for (title, class, values) in [
        (
            "Requests a second, answered as expected",
            "redis",
            &timeline.answered,
        ),
        ("Requests a second, failed", "failed", &timeline.failed),
        (
            "Answers a second, older than a confirmed write",
            "wrong",
            &timeline.wrong,
        ),
    ] {
        let full = nice(values.iter().copied().fold(1.0, f64::max));
        let mut plot = Plot::of(title, shape, &report.faults, timeline.interval_ms, &scales);
        plot.phases(edges());
        plot.grid(&linear_ticks(full), |value| value / full);
        if values.iter().all(|value| *value == 0.0) {
            plot.note("none");
        } else {
            plot.area(class, &vec![0.0; values.len()], values, full);
        }
        panel(page, title, plot);
    }
    let slowest = timeline
        .p99_ms
        .iter()
        .flatten()
        .copied()
        .fold(1.0, f64::max);
    let full = nice(slowest);
    let title = "Milliseconds, what 99 of 100 requests took at most";
    let mut plot = Plot::of(title, shape, &report.faults, timeline.interval_ms, &scales);
    plot.phases(edges());
    plot.grid(&linear_ticks(full), |value| value / full);
    plot.line("p99", &timeline.p99_ms, |value| value / full);
    panel(page, title, plot);
    page.push_str(
        "</div>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Phase</th><th>requests</th><th>ok</th>\
         <th>failed</th><th>wrong</th><th>p50</th><th>p99</th><th>max</th></tr></thead>\n<tbody>\n",
    );
    for phase in &users.phases {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{} <small>{:.1}–{:.1} s</small></th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            phase.name.replace('_', "-"),
            phase.from_ms as f64 / 1e3,
            phase.to_ms as f64 / 1e3,
            html::grouped(phase.calls + phase.skipped),
            html::grouped(phase.ok),
            html::grouped(phase.errors.values().sum::<u64>() + phase.skipped),
            html::grouped(phase.wrong),
            duration(phase.latency_ms.p50),
            duration(phase.latency_ms.p99),
            duration(phase.latency_ms.max),
        );
    }
    page.push_str("</tbody></table></div>\n</section>\n");
}

fn panel(page: &mut String, title: &str, plot: Plot<'_>) {
    let _ = writeln!(
        page,
        "<div class=\"panel\"><h4>{title}</h4></div><figure>{}</figure>",
        plot.finish(true)
    );
}

fn length(report: &TargetReport) -> u64 {
    report.phases.last().map_or(0, |phase| phase.to_ms)
}

/// Writes the application's log, beside the moments at which something was broken and healed.
fn log(page: &mut String, report: &TargetReport) {
    if report.log.is_empty() {
        return;
    }
    let mut moments: Vec<(u64, String)> = Vec::new();
    for fault in &report.faults {
        moments.push((fault.from_ms, format!("— {} —", html::told(fault.name))));
        moments.push((fault.to_ms, format!("— {}: over —", html::told(fault.name))));
    }
    moments.sort();
    let mut moments = moments.into_iter().peekable();
    page.push_str("<section><h2>What it wrote</h2>\n<details><summary>");
    let _ = write!(page, "{} lines", report.log.len());
    if report.log_dropped > 0 {
        let _ = write!(page, ", and {} more that are not kept", report.log_dropped);
    }
    page.push_str("</summary>\n<pre>");
    for line in &report.log {
        while let Some((at, moment)) = moments.next_if(|(at, _)| *at <= line.at_ms) {
            let _ = writeln!(page, "{:>8.3} {moment}", at as f64 / 1e3);
        }
        let text = html::escaped(&line.text);
        let _ = writeln!(page, "{:>8.3} {text}", line.at_ms as f64 / 1e3);
    }
    for (at, moment) in moments {
        let _ = writeln!(page, "{:>8.3} {moment}", at as f64 / 1e3);
    }
    page.push_str("</pre></details>\n</section>\n");
}

/// Returns a sentence about connections that faults of the protocol could not reach, if any.
fn unfollowed(report: &TargetReport) -> Option<String> {
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
    let scales = Scales::of_time(length(report) as f64, WIDTH);
    let per_second = 1e3 / timeline.interval_ms.max(1) as f64;
    let _ = write!(
        page,
        "<section><h2>What passed between it and Redis</h2>\n<p class=\"lead\">Shaded: {}.</p>\n<div class=\"plots\" style=\"--columns:1\">\n",
        html::fault_words(&report.faults)
    );
    for (title, class, column, factor) in [
        (
            "Commands a second, answered by Redis",
            "redis",
            &timeline.answered,
            per_second,
        ),
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
        panel(page, title, plot);
    }
    page.push_str("</div>\n</section>\n");
}

fn phases(page: &mut String, report: &TargetReport) {
    page.push_str(
        "<section><h2>Phase by phase</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Phase</th>\
         <th>connections opened</th><th>commands answered</th><th>bytes sent</th><th>bytes answered</th></tr></thead>\n<tbody>\n",
    );
    for phase in &report.phases {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{} <small>{:.1}–{:.1} s</small></th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            phase.name.replace('_', "-"),
            phase.from_ms as f64 / 1e3,
            phase.to_ms as f64 / 1e3,
            html::grouped(phase.connections),
            html::grouped(phase.answered),
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
