//! The report as one page that can be forwarded, opened from a disk years later, and printed: no
//! library, no font, no outside request (its own policy forbids them). It says first what was felt,
//! then shows it, then how it was judged.

use std::fmt::Write as _;

use super::{FaultSpan, PhaseReport, Report, Verdict, duration, figure, svg, target, title};
use crate::kpi::{Kpi, Unit};
use crate::ledger::LedgerReport;
use crate::scenario::Store;
use crate::subject::Role;
use crate::timeline::trouble_ms;

const STYLE: &str = concat!(
    include_str!("palette.css"),
    include_str!("plots.css"),
    include_str!("report.css")
);
const SCRIPT: &str = include_str!("report.js");

/// The report as a page.
pub fn render(report: &Report) -> String {
    let mut main = String::with_capacity(64 * 1024);
    header(&mut main, report);
    felt(&mut main, report);
    plots(&mut main, report);
    kpis(&mut main, report);
    phases(&mut main, report);
    notes(&mut main, report);
    framed(&report.scenario, report.verdict, &main, &hover_data(report))
}

/// A whole page around what is to be read on it.
pub(super) fn framed(name: &str, verdict: Verdict, main: &str, data: &serde_json::Value) -> String {
    let (name, verdict) = (escaped(name), verdict_word(verdict));
    let data = data.to_string().replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{name}: {verdict} · Steadfast drill</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{main}</main>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

fn header(page: &mut String, report: &Report) {
    title_and_verdict(
        page,
        (&report.scenario, &report.about),
        report.verdict,
        &sentence(report),
    );
    for caveat in report.proves_nothing().into_iter().chain(report.caveat()) {
        let _ = writeln!(
            page,
            "<p class=\"caveat\"><span aria-hidden=\"true\">⚠</span> {caveat}.</p>"
        );
    }
}

/// Writes the head of a page. `felt` is HTML, the rest is not.
pub(super) fn title_and_verdict(
    page: &mut String,
    (name, about): (&str, &str),
    verdict: Verdict,
    felt: &str,
) {
    let passed = verdict == Verdict::Passed;
    let _ = write!(
        page,
        "<header>\n<div class=\"top\"><span class=\"brand\"><svg viewBox=\"0 0 24 24\" aria-hidden=\"true\"><path d=\"M12 2 4 5v6c0 5 3.4 9.2 8 11 4.6-1.8 8-6 8-11V5z\"/><path class=\"pulse\" d=\"M5.5 12h3.2l1.8-4 3 8 1.8-4h3.2\"/></svg>Steadfast <i>drill report</i></span>\
         <button id=\"theme\" type=\"button\" hidden><span aria-hidden=\"true\">◐</span> <span id=\"theme-name\">Theme</span></button></div>\n\
         <h1>{}</h1>\n<p class=\"about\">{}</p>\n\
         <div class=\"verdict {}\"><span class=\"mark\" aria-hidden=\"true\">{}</span><div><b>{}</b><p>{}</p></div></div>\n</header>\n",
        escaped(name),
        escaped(about),
        class(passed),
        mark(passed),
        verdict_word(verdict),
        felt,
    );
}

/// Returns what happened, as one would tell it.
fn sentence(report: &Report) -> String {
    let value = |report: &Report, name| {
        report
            .kpis
            .iter()
            .find(|kpi| kpi.name == name)
            .map(|kpi| kpi.value)
    };
    let failed = |report: &Report| match value(report, "errors").flatten() {
        Some(0.0) => "not one read failed".to_owned(),
        share => format!(
            "{} of reads failed",
            figure(share, Unit::Ratio).replace(' ', "\u{a0}")
        ),
    };
    let broken = trouble_ms(&report.faults);
    let mut text = match report.faults.first() {
        Some(_) => format!(
            "Through {} of trouble {}",
            duration(broken as f64),
            failed(report)
        ),
        None => format!("In this run {}", failed(report)),
    };
    if let Some(slowest) = value(report, "slowest_call").flatten() {
        let _ = write!(text, " and no call took longer than {}", duration(slowest));
    }
    match (value(report, "users_well"), value(report, "redis_in_use")) {
        (Some(Some(users)), Some(Some(redis))) => {
            let _ = write!(
                text,
                "; users were well {} after it was over, and Redis was in use again after {}",
                duration(users),
                duration(redis)
            );
        }
        (Some(_), Some(_)) => text.push_str("; it had not recovered when the drill ended"),
        _ => {}
    }
    if let Some(ledger) = &report.ledger {
        let _ = write!(text, "; {}", of_the_writes(ledger));
    }
    text.push('.');
    for (who, control) in report.all().skip(1) {
        let _ = write!(text, " {who}: <strong>{}</strong>", failed(control));
        if let Some(wrong) = value(control, "wrong_answers")
            .flatten()
            .filter(|wrong| *wrong > 0.0)
        {
            let _ = write!(
                text,
                ", <strong>{} answers were wrong</strong>",
                grouped(wrong as u64)
            );
        }
        if let Some(ledger) = &control.ledger {
            let _ = write!(text, ", <strong>{}</strong>", of_the_writes(ledger));
        }
        match value(control, "redis_in_use") {
            Some(None) => text.push_str(", and it had not recovered when the drill ended."),
            _ => text.push('.'),
        }
    }
    text
}

/// Returns the sentences about the writes of a subject whose data are in Redis itself.
fn of_the_writes(ledger: &LedgerReport) -> String {
    let count = |count: u64| match count {
        0 => "none".to_owned(),
        count => grouped(count),
    };
    format!(
        "of {} acknowledged writes {} lost, {} of them after the switch, and {} applied twice",
        grouped(ledger.acknowledged),
        match ledger.lost {
            1 => "one was".to_owned(),
            lost => format!("{} were", count(lost)),
        },
        count(ledger.lost_late),
        count(ledger.twice)
    )
}

/// Side by side, in figures that need no explanation.
fn felt(page: &mut String, report: &Report) {
    if report.all().count() < 2 {
        return;
    }
    let _ = writeln!(
        page,
        "<section class=\"felt\" aria-label=\"What users felt\">"
    );
    for (name, label) in [
        ("lost", "acknowledged writes lost"),
        ("lost_late", "lost after the switch"),
        ("applied_twice", "writes applied twice"),
        ("denied", "applied, and denied"),
        ("back_in_service", "until back in service"),
        ("errors", "reads that failed"),
        ("slowest_call", "slowest call"),
        ("users_well", "until users were well again"),
        ("redis_in_use", "until Redis was in use again"),
        ("wrong_answers", "wrong answers"),
        ("stale_answers", "stale answers once recovered"),
    ] {
        let find = |report: &Report| report.kpis.iter().find(|kpi| kpi.name == name).cloned();
        let found: Vec<_> = report
            .all()
            .filter_map(|(who, report)| Some((who, find(report)?)))
            .collect();
        if found.len() < 2 {
            continue;
        }
        let _ = write!(page, "<div class=\"versus\"><h3>{label}</h3>");
        for (who, kpi) in &found {
            let _ = write!(
                page,
                "<div class=\"row {}\"><span class=\"who\">{who}</span><span class=\"bar\"><i style=\"width:{:.1}%\"></i></span><b>{}</b></div>",
                if kpi.pass { "good" } else { "bad" },
                bar(kpi, found.iter().map(|(_, kpi)| kpi)),
                figure(kpi.value, kpi.unit),
            );
        }
        page.push_str("</div>\n");
    }
    page.push_str("</section>\n");
}

/// How long the bar of one is, in percent, beside those of all.
fn bar<'a>(kpi: &Kpi, all: impl Iterator<Item = &'a Kpi> + Clone) -> f64 {
    let longest = all.clone().filter_map(|kpi| kpi.value).fold(0.0, f64::max);
    match kpi.value {
        None => 100.0,
        Some(value) if value <= 0.0 => 0.0,
        // Beside one that never came, nothing is the longest.
        Some(value) if all.clone().any(|kpi| kpi.value.is_none()) => {
            (value / longest * 50.0).max(1.0)
        }
        Some(value) => (value / longest * 100.0).max(1.0),
    }
}

fn plots(page: &mut String, report: &Report) {
    let subjects: Vec<(&str, &Report)> = report.all().collect();
    let scales = svg::Scales::of(subjects.iter().map(|(_, report)| *report), svg::WIDTH);
    let _ = write!(
        page,
        "<section><h2>What happened</h2>\n<p class=\"lead\">Shaded: {}.</p>\n",
        fault_words(&report.faults)
    );
    let legend = |entries: &[(&str, &str)]| {
        let entry =
            |(class, label): &(&str, &str)| format!("<li><i class=\"{class}\"></i>{label}</li>");
        format!(
            "<ul class=\"legend\">{}</ul>",
            entries.iter().map(entry).collect::<String>()
        )
    };
    let sources = [
        ("memory", "memory"),
        ("redis", "Redis"),
        ("database", "database"),
        ("written", "writes"),
        ("failed", "failed"),
    ];
    type Draw = fn(&Report, &svg::Scales) -> String;
    let panels: [(&str, String, Draw); 5] = [
        (
            "Calls a second, by who answered",
            legend(&sources),
            svg::throughput,
        ),
        (
            "Latency",
            legend(&[
                ("p50 line", "median"),
                ("p99 line", "99th percentile"),
                ("max line", "maximum"),
            ]),
            svg::latency,
        ),
        (
            "Errors a second",
            legend(&[
                ("failed", "failed"),
                ("wrong", "wrong"),
                ("skipped", "could not start"),
            ]),
            svg::failures,
        ),
        ("Queries of the database a second", String::new(), svg::sql),
        (
            "Connection and breaker",
            legend(&[
                ("good", "in service"),
                ("warn", "on trial"),
                ("bad", "out of service"),
            ]),
            svg::states,
        ),
    ];
    let _ = writeln!(
        page,
        "<div class=\"plots\" style=\"--columns:{}\">",
        subjects.len()
    );
    for (who, _) in subjects.iter().filter(|_| subjects.len() > 1) {
        let _ = write!(page, "<h3 class=\"subject\">{who}</h3>");
    }
    for (label, legend, draw) in panels {
        let _ = write!(page, "<div class=\"panel\"><h4>{label}</h4>{legend}</div>");
        for (index, (who, report)) in subjects.iter().enumerate() {
            let _ = writeln!(
                page,
                "<figure data-subject=\"{index}\"><figcaption>{who}</figcaption>{}</figure>",
                draw(report, &scales)
            );
        }
    }
    page.push_str("</div>\n<div id=\"tip\" role=\"status\" hidden></div>\n</section>\n");
}

pub(super) fn fault_words(faults: &[FaultSpan]) -> String {
    let at = |fault: &FaultSpan| {
        format!(
            "{:.1} s to {:.1} s",
            fault.from_ms as f64 / 1e3,
            fault.to_ms as f64 / 1e3
        )
    };
    match faults {
        [] => "nothing, as nothing was broken".to_owned(),
        [one] => format!("{}, {}", told(one.name), at(one)),
        [first, rest @ ..] if rest.iter().all(|fault| fault.name == first.name) => {
            format!(
                "{}, {} times from {:.1} s on",
                told(first.name),
                faults.len(),
                first.from_ms as f64 / 1e3
            )
        }
        several => several
            .iter()
            .map(|fault| format!("{}, {}", told(fault.name), at(fault)))
            .collect::<Vec<_>>()
            .join("; "),
    }
}

pub(super) fn told(fault: &str) -> &str {
    match fault {
        "crash" => "Redis is down",
        "old_snapshot" => "Redis is down, and comes back with old data",
        "freeze" => "Redis stands still",
        "pause" => "Redis pauses its clients",
        "maxclients" => "Redis has no place for clients",
        "oom" => "Redis is out of memory",
        "loading" => "Redis is loading its data",
        "readonly" => "Redis refuses writes",
        "password_changed" => "the password is another",
        "user_deleted" => "the user is gone",
        "token_expired" => "the first token has expired",
        "timeout" | "stall" => "the network swallows bytes",
        "down" => "connections are refused",
        "latency" => "the network is slow",
        "database_down" => "the database is down",
        "database_slow" => "the database is slow",
        other => other,
    }
}

fn kpis(page: &mut String, report: &Report) {
    page.push_str("<section><h2>How it is judged</h2>\n<div class=\"cards\">\n");
    for kpi in &report.kpis {
        let theirs = report.all().skip(1).filter_map(|(who, control)| {
            let found = control.kpis.iter().find(|theirs| theirs.name == kpi.name);
            found.map(|theirs| (who, theirs))
        });
        let beside: String = theirs
            .map(|(who, theirs)| {
                let limit = if theirs.target == kpi.target {
                    String::new()
                } else {
                    format!(" ({})", target(theirs).replace('<', "&lt;"))
                };
                format!(
                    "<p class=\"beside\">{who}{limit} <b class=\"{}\">{} {}</b></p>",
                    class(theirs.pass),
                    figure(theirs.value, theirs.unit),
                    mark(theirs.pass)
                )
            })
            .collect();
        card(page, kpi, &beside);
    }
    page.push_str("</div>\n</section>\n");
}

/// A key figure, with what is to be said beside it.
pub(super) fn card(page: &mut String, kpi: &Kpi, beside: &str) {
    let _ = writeln!(
        page,
        "<article class=\"card {}\"><h3>{}</h3><p class=\"value\">{}</p><p class=\"target\"><span class=\"chip\">{} {}</span> {} in {}</p><p class=\"formula\">{}</p>{beside}</article>",
        class(kpi.pass),
        title(kpi.name),
        figure(kpi.value, kpi.unit),
        mark(kpi.pass),
        if kpi.pass { "good" } else { "missed" },
        target(kpi).replace('<', "&lt;").replace('>', "&gt;"),
        kpi.phase.replace("whole run", "the whole run"),
        note(kpi),
    );
}

/// How it is computed, and what belongs to it.
fn note(kpi: &Kpi) -> String {
    match kpi.note.as_str() {
        "" => kpi.formula.to_owned(),
        note => format!("{} ({note})", kpi.formula),
    }
}

fn phases(page: &mut String, report: &Report) {
    page.push_str(
        "<section><h2>Phase by phase</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Phase</th>\
         <th>calls</th><th>ok</th><th>errors</th><th>memory</th><th>Redis</th><th>database</th><th>stale</th><th>wrong</th>\
         <th>p50</th><th>p99</th><th>p99.9</th><th>max</th></tr></thead>\n",
    );
    for (who, report) in report.all() {
        let _ = writeln!(
            page,
            "<tbody><tr class=\"who\"><th colspan=\"13\" scope=\"rowgroup\">{who}</th></tr>"
        );
        report
            .phases
            .iter()
            .for_each(|phase| phase_row(page, phase));
        page.push_str("</tbody>\n");
    }
    page.push_str("</table></div>\n</section>\n");
}

fn phase_row(page: &mut String, phase: &PhaseReport) {
    let kinds: Vec<_> = phase
        .errors
        .iter()
        .map(|(kind, count)| format!("{} {count}", escaped(kind)))
        .collect();
    let errors: u64 = phase.errors.values().sum();
    let bad = |number: u64| if number > 0 { " class=\"bad\"" } else { "" };
    let skipped = if phase.skipped > 0 {
        format!(" <small>+{} could not start</small>", phase.skipped)
    } else {
        String::new()
    };
    let _ = writeln!(
        page,
        "<tr><th scope=\"row\">{} <small>{:.1}–{:.1} s</small></th><td>{}{skipped}</td><td>{}</td><td{} title=\"{}\">{errors}{}</td>\
         <td>{}</td><td>{}</td><td>{}</td><td>{}</td><td{}>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        phase.name.replace('_', "-"),
        phase.from_ms as f64 / 1e3,
        phase.to_ms as f64 / 1e3,
        grouped(phase.calls),
        grouped(phase.ok),
        bad(errors),
        kinds.join(", "),
        if kinds.is_empty() {
            String::new()
        } else {
            format!("<small class=\"kinds\">{}</small>", kinds.join("<br>"))
        },
        grouped(phase.sources.memory),
        grouped(phase.sources.redis),
        grouped(phase.sources.database),
        grouped(phase.stale),
        bad(phase.wrong),
        grouped(phase.wrong),
        duration(phase.latency_ms.p50),
        duration(phase.latency_ms.p99),
        duration(phase.latency_ms.p999),
        duration(phase.latency_ms.max),
    );
}

fn notes(page: &mut String, report: &Report) {
    page.push_str("<section class=\"notes\"><h2>Connections and recovery</h2>\n<div class=\"scroll\"><table><thead><tr><th></th><th>noticed after</th><th>first answer after</th><th>users well after</th><th>Redis in use after</th><th>attempts</th><th>reconnects</th><th>stuck</th><th>database before</th><th>database at most</th></tr></thead><tbody>\n");
    let moment = |ms: Option<f64>| ms.map_or("never".to_owned(), duration);
    for (who, report) in report.all() {
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{who}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} /s</td><td>{} /s</td></tr>",
            moment(report.recovery.detect_ms),
            moment(report.recovery.first_success_ms),
            moment(report.recovery.users_well_ms),
            moment(report.recovery.redis_in_use_ms),
            report.connection.attempts,
            report.connection.reconnects,
            report.connection.stuck_resets,
            report.database.baseline_qps,
            report.database.fault_max_qps,
        );
    }
    let keeps_a_ledger = report.ledger.is_some();
    let controls: &[Role] = match keeps_a_ledger {
        true => &[Role::Plain],
        false => &[Role::Plain, Role::HandBuilt],
    };
    let told = |role: &Role| format!("<b>{}</b> is {}.", role.title(), role.built(report.store()));
    let mut controls = controls.iter().map(told).collect::<Vec<_>>().join(" ");
    controls += match report.store() {
        Store::Cache => "",
        Store::Sentinel => IN_SENTINEL,
        Store::Cluster => IN_CLUSTER,
    };
    if keeps_a_ledger {
        controls += OF_LEDGER;
    }
    let _ = write!(
        page,
        "</tbody></table></div>\n<p class=\"small\">Calls start when they are due, whether or not earlier ones have ended; latency counts from that moment. \
         An answer is wrong if the database had held a newer version for longer than the scenario allows and the answer did not say that it was stale. \
         <em>Noticed</em> counts from the first fault, the others from the last healing; users are well from the start of the first whole second without a failed read or a wrong answer, \
         Redis is in use from the start of the first in which it answers a quarter as much as in the baseline, no call to it fails and the connection is in service. \
         The controls run in the same run, each on a Redis and a database of its own. {}</p>\n\
         <p class=\"small\">steadfast drill run {} --seed {}</p>\n</section>\n",
        controls,
        escaped(&report.scenario),
        report.seed,
    );
}

/// Where the data are.
const IN_SENTINEL: &str =
    " The data are in Redis itself, a primary with a replica that three sentinels watch.";
const IN_CLUSTER: &str = " The data are in Redis itself, a cluster of three primaries with a replica each. \
    Calls of other shards are those for slots to which nothing was done; none of them should fail.";

/// How a ledger is read.
const OF_LEDGER: &str = " Every second write counts up a name of its own; one that was acknowledged \
    and is not there in the end is lost, one that is there twice was applied twice. Lost after the switch are those that were begun half a second or more after two sentinels, or two other primaries, had named another primary. \
    Back in service is the first acknowledged write that stays, counted from that naming.";

fn hover_data(report: &Report) -> serde_json::Value {
    let one = |(_, report): (&str, &Report)| {
        let t = &report.timeline;
        serde_json::json!({
            "interval": t.interval_ms, "length": report.length().as_millis() as u64,
            "memory": t.memory, "redis": t.redis, "database": t.database, "written": t.written, "failed": t.failed,
            "wrong": t.wrong, "skipped": t.skipped, "stale": t.stale, "sql": t.sql, "p50": t.p50_ms, "p99": t.p99_ms, "max": t.max_ms,
            "states": t.states.iter().map(|s| (s.at_ms, s.connection, s.breaker)).collect::<Vec<_>>(),
        })
    };
    report.all().map(one).collect()
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "Passed",
        Verdict::Failed => "Failed",
        Verdict::Void => "Void: nothing is proven",
    }
}

fn class(good: bool) -> &'static str {
    if good { "good" } else { "bad" }
}

fn mark(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

/// 12 345, with narrow spaces.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}
