//! The report on a terminal: what was felt in each phase, then what it is judged by, with the
//! control beside it.

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, LineStyle, Table, TableStyle};

use super::application::TargetReport;
use super::users::Users;
use super::{
    PhaseReport, Report, Verdict, duration, figure, other_targets, target, title, traffic,
};
use crate::kpi::Kpi;

/// The report as text. With `colour` the verdicts are green and red, by ANSI escapes.
pub fn render(report: &Report, colour: bool) -> String {
    let mut text = format!(
        "{} · {}\nseed {}\n\n",
        report.scenario, report.about, report.seed
    );
    text += &format!(
        "{}\n\n{}\n\n",
        phases(report),
        finished(kpis(report, colour), colour)
    );
    text += &closing(report);
    text
}

/// The report on somebody's own application, as text.
pub fn render_target(report: &TargetReport, colour: bool) -> String {
    let mut phases = new_table(&[
        "Redis, by phase",
        "connections",
        "commands answered",
        "bytes sent",
        "bytes answered",
    ]);
    for phase in &report.phases {
        let row = [
            phase.name.replace('_', "-"),
            phase.connections.to_string(),
            phase.answered.to_string(),
            phase.bytes_up.to_string(),
            phase.bytes_down.to_string(),
        ];
        phases.add_row(row);
    }
    align_right(&mut phases, &[1, 2, 3, 4]);
    let users = match &report.users {
        Some(users) => finished(users_phases(users), colour) + "\n\n",
        None => String::new(),
    };
    let mut kpis = new_table(&["", "phase", "target", "seen", "", ""]);
    for kpi in &report.kpis {
        let mut row = vec![
            Cell::new(title(kpi.name)),
            Cell::new(kpi.phase),
            Cell::new(target(kpi)),
        ];
        row.extend(judged(kpi, colour));
        row.push(Cell::new(&kpi.note));
        kpis.add_row(row);
    }
    align_right(&mut kpis, &[2, 3]);
    let ended = report
        .exit_status
        .map_or("was still running at the end".to_owned(), |status| {
            format!("ended with status {status}")
        });
    let said: String = traffic::beware(report)
        .into_iter()
        .map(|text| text + "\n")
        .collect();
    format!(
        "{} · {}\n{} before {}\n\n{users}{}\n\n{}\n\n{said}{}: the program {ended}\n",
        report.scenario,
        report.about,
        report
            .command
            .as_deref()
            .unwrap_or("a program that runs already"),
        report.target,
        finished(phases, colour),
        finished(kpis, colour),
        match report.verdict {
            Verdict::Passed => "PASSED",
            Verdict::Failed => "FAILED",
            Verdict::Void => "VOID",
        },
    )
}

/// Makes the table of what the users got.
fn users_phases(users: &Users) -> Table {
    let mut table = new_table(&[
        "users, by phase",
        "requests",
        "ok",
        "failed",
        "wrong",
        "p50",
        "p99",
        "max",
        "",
    ]);
    for phase in &users.phases {
        let kinds: Vec<_> = phase
            .errors
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        table.add_row([
            phase.name.replace('_', "-"),
            (phase.calls + phase.skipped).to_string(),
            phase.ok.to_string(),
            (phase.errors.values().sum::<u64>() + phase.skipped).to_string(),
            phase.wrong.to_string(),
            duration(phase.latency_ms.p50),
            duration(phase.latency_ms.p99),
            duration(phase.latency_ms.max),
            kinds.join(", "),
        ]);
    }
    align_right(&mut table, &[1, 2, 3, 4, 5, 6, 7]);
    table
}

fn phases(report: &Report) -> Table {
    let mut table = new_table(&[
        "", "phase", "calls", "ok", "errors", "memory", "redis", "sql", "stale", "wrong", "p50",
        "p99", "p99.9", "max",
    ]);
    for (who, report) in report.all() {
        for (number, phase) in report.phases.iter().enumerate() {
            let mut row = vec![if number == 0 {
                who.to_owned()
            } else {
                String::new()
            }];
            row.extend(phase_row(phase));
            table.add_row(row);
        }
    }
    align_right(&mut table, &(2..14).collect::<Vec<_>>());
    table
}

fn phase_row(phase: &PhaseReport) -> [String; 13] {
    let skipped = if phase.skipped > 0 {
        format!(" ({} skipped)", phase.skipped)
    } else {
        String::new()
    };
    [
        phase.name.replace('_', "-"),
        format!("{}{skipped}", phase.calls),
        phase.ok.to_string(),
        phase.errors.values().sum::<u64>().to_string(),
        phase.sources.memory.to_string(),
        phase.sources.redis.to_string(),
        phase.sources.database.to_string(),
        phase.stale.to_string(),
        phase.wrong.to_string(),
        duration(phase.latency_ms.p50),
        duration(phase.latency_ms.p99),
        duration(phase.latency_ms.p999),
        duration(phase.latency_ms.max),
    ]
}

fn kpis(report: &Report, colour: bool) -> Table {
    let mut header = vec!["", "phase", "target"];
    for (who, _) in report.all() {
        header.extend([who, ""]);
    }
    header.push("");
    let mut table = new_table(&header);
    for kpi in &report.kpis {
        let mut row = vec![
            Cell::new(title(kpi.name)),
            Cell::new(kpi.phase),
            Cell::new(targets(report, kpi)),
        ];
        for (_, subject) in report.all() {
            let theirs = subject.kpis.iter().find(|theirs| theirs.name == kpi.name);
            row.extend(theirs.map_or(["–", ""].map(Cell::new), |kpi| judged(kpi, colour)));
        }
        row.push(Cell::new(&kpi.note));
        table.add_row(row);
    }
    align_right(&mut table, &[2, 3, 5, 7]);
    table
}

/// Returns the target of a figure, and that of the controls, where it is another.
fn targets(report: &Report, kpi: &Kpi) -> String {
    let other = other_targets(report, kpi);
    let beside = other.map_or(String::new(), |other| format!(" (controls {other})"));
    target(kpi) + &beside
}

fn judged(kpi: &Kpi, colour: bool) -> [Cell; 2] {
    let mark = if kpi.pass { "✓" } else { "✗" };
    [
        Cell::new(figure(kpi.value, kpi.unit)),
        coloured(Cell::new(mark), kpi.pass, colour),
    ]
}

fn closing(report: &Report) -> String {
    let mut text = String::new();
    for (who, report) in report.all() {
        let moment = |ms: Option<f64>| ms.map_or("never".to_owned(), duration);
        let errors = report.phases.iter().flat_map(|phase| &phase.errors);
        let mut kinds = std::collections::BTreeMap::<&str, u64>::new();
        errors.for_each(|(kind, count)| *kinds.entry(kind).or_default() += count);
        let kinds: Vec<_> = kinds
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        text += &format!(
            "{who}: {}; noticed after {}, first answer {}, users well {} and Redis in use {} after healing; {}, {} stuck; database {} → {} queries/s{}{}\n",
            match report.verdict {
                Verdict::Passed => "PASSED",
                Verdict::Failed => "FAILED",
                Verdict::Void => "VOID",
            },
            moment(report.recovery.detect_ms),
            moment(report.recovery.first_success_ms),
            moment(report.recovery.users_well_ms),
            moment(report.recovery.redis_in_use_ms),
            match report.connection.reconnects {
                1 => "1 reconnect".to_owned(),
                more => format!("{more} reconnects"),
            },
            report.connection.stuck_resets,
            report.database.baseline_qps,
            report.database.fault_max_qps,
            if kinds.is_empty() { "" } else { "; errors: " },
            kinds.join(", "),
        );
        for said in report.proves_nothing().into_iter().chain(report.caveat()) {
            text += &format!("{who}: {said}\n");
        }
    }
    for (who, control) in report.all().skip(1) {
        let built = control.subject.built(control.store());
        text += &format!("{who} is {built}\n");
    }
    text
}

pub(super) fn verdict(verdict: Verdict, colour: bool) -> Cell {
    coloured(
        Cell::new(marked(verdict)),
        verdict == Verdict::Passed,
        colour,
    )
}

/// The verdict as a word, with colour by an escape.
pub(super) fn mark(verdict: Verdict, colour: bool) -> String {
    let word = marked(verdict);
    match (colour, verdict == Verdict::Passed) {
        (false, _) => word.to_owned(),
        (true, true) => format!("\x1b[32m{word}\x1b[0m"),
        (true, false) => format!("\x1b[31m{word}\x1b[0m"),
    }
}

fn marked(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "✓ passed",
        Verdict::Failed => "✗ failed",
        Verdict::Void => "✗ void",
    }
}

fn coloured(cell: Cell, good: bool, colour: bool) -> Cell {
    match (colour, good) {
        (false, _) => cell,
        (true, true) => cell.fg(Color::Green),
        (true, false) => cell.fg(Color::Red),
    }
}

pub(super) fn new_table(header: &[&str]) -> Table {
    let rule = LineStyle::none().fill('─').junction('─');
    let style = TableStyle::new()
        .top_border(rule)
        .header_separator(rule)
        .bottom_border(rule);
    let mut table = Table::new();
    table
        .load_style(style)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

pub(super) fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Whether this is a terminal is for the caller to know, who says so by `colour`.
pub(super) fn finished(mut table: Table, colour: bool) -> String {
    if colour {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    table.to_string()
}
