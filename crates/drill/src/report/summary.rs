//! Many drills as one table, for the end of a run of them and for a page that shows what they found. A cell holds as many
//! figures as there are subjects: what the users of Steadfast felt, and what those of the controls beside it did.

use std::fmt::Write as _;

use comfy_table::{Cell, Color};

use super::{Report, Verdict, figure, table};

/// What is told of each drill: the heading, and the key figure below it.
const FIGURES: [(&str, &str); 7] = [
    ("failed reads", "errors"),
    ("failed writes", "write_errors"),
    ("p99 during the fault", "fault_p99"),
    ("slowest call", "slowest_call"),
    ("users well after", "users_well"),
    ("Redis in use after", "redis_in_use"),
    ("wrong answers", "wrong_answers"),
];

/// One line for each report, for a terminal. A control that did not do as its scenario says it will is marked (!).
pub fn render(reports: &[Report], colour: bool) -> String {
    let mut header = vec!["drill", "Steadfast", "plain client", "built by hand"];
    header.extend(FIGURES.map(|(heading, _)| heading));
    let mut table = table::new_table(&header);
    for report in reports {
        let mut row = vec![
            Cell::new(&report.scenario),
            table::verdict(report.verdict, colour),
            control_cell(report, colour),
            hand_built_cell(report, colour),
        ];
        row.extend(FIGURES.map(|(_, name)| Cell::new(pair(report, name))));
        table.add_row(row);
    }
    table::align_right(&mut table, &[4, 5, 6, 7, 8, 9, 10]);
    table::finished(table, colour)
}

/// One drill in a line, for a run that has more to come.
pub fn in_a_line(report: &Report, colour: bool) -> String {
    let told = |report: &Report| {
        let of = |name| {
            let kpi = report.kpis.iter().find(|kpi| kpi.name == name);
            kpi.map_or_else(|| "–".to_owned(), |kpi| figure(kpi.value, kpi.unit))
        };
        (of("errors"), of("fault_p99"), of("users_well"))
    };
    let (errors, p99, recovery) = told(report);
    let mut text = format!(
        "{:<21} {}  {errors} of reads failed, p99 {p99} during the fault, users well after {recovery}",
        report.scenario,
        table::mark(report.verdict, colour),
    );
    if let Some(control) = &report.control {
        let (errors, p99, recovery) = told(control);
        let _ = write!(
            text,
            "; plain client {}{}: {errors}, {p99}, {recovery}",
            word(control.verdict),
            if report.control_as_expected() {
                ""
            } else {
                ", which is not expected"
            }
        );
    }
    text
}

/// The same as a table of Markdown, with what it comes to below it.
pub fn markdown(reports: &[Report]) -> String {
    let mut text = String::from("| drill | Steadfast | plain client | built by hand |");
    FIGURES
        .iter()
        .for_each(|(heading, _)| text += &format!(" {heading} |"));
    text += "\n|---|---|---|---|";
    text += &"---:|".repeat(FIGURES.len());
    for report in reports {
        let _ = write!(
            text,
            "\n| `{}` | {} | {} | {} |",
            report.scenario,
            word(report.verdict),
            control_word(report),
            report
                .hand_built
                .as_ref()
                .map_or("–", |other| word(other.verdict)),
        );
        for (_, name) in FIGURES {
            let _ = write!(text, " {} |", pair(report, name));
        }
    }
    let _ = write!(text, "\n\n{}\n", in_words(reports));
    text
}

/// What a run of many comes to.
pub fn in_words(reports: &[Report]) -> String {
    let names = |of: Vec<&Report>| -> String {
        let names: Vec<_> = of.iter().map(|report| report.scenario.as_str()).collect();
        names.join(", ")
    };
    let failed: Vec<_> = reports.iter().filter(|report| !report.passed()).collect();
    let mut text = match failed.len() {
        0 => format!("Steadfast passes every one of {} drills.", reports.len()),
        missed => format!(
            "Steadfast fails {missed} of {} drills: {}.",
            reports.len(),
            names(failed)
        ),
    };
    let with_control = || reports.iter().filter(|report| report.control.is_some());
    let otherwise: Vec<_> = with_control()
        .filter(|report| !report.control_as_expected())
        .collect();
    let busy: Vec<_> = reports
        .iter()
        .filter(|report| report.load.late > 0)
        .collect();
    if !busy.is_empty() {
        let _ = write!(
            text,
            " The machine was too busy to start all calls in time in {}.",
            names(busy)
        );
    }
    let by_hand: Vec<_> = reports
        .iter()
        .filter_map(|report| report.hand_built.as_deref())
        .collect();
    if with_control().next().is_none() {
        return text;
    }
    if otherwise.is_empty() {
        let fails = with_control().filter(|report| report.control_fails).count();
        let of = with_control().count();
        let _ = write!(
            text,
            " The plain client fails {fails} of {of}, as expected."
        );
    } else {
        let _ = write!(
            text,
            " The plain client does not as the scenario expects in {}.",
            names(otherwise)
        );
    }
    if !by_hand.is_empty() {
        let fails = by_hand.iter().filter(|report| !report.passed()).count();
        let _ = write!(
            text,
            " What is built by hand fails {fails} of {}.",
            by_hand.len()
        );
    }
    text
}

/// Whether the judged subject passed each drill, and the control did in each as its scenario says that it will.
pub fn all_as_expected(reports: &[Report]) -> bool {
    reports
        .iter()
        .all(|report| report.passed() && report.control_as_expected())
}

/// The key figure of that name of all subjects that ran.
fn pair(report: &Report, name: &str) -> String {
    let of = |report: &Report| {
        let kpi = report.kpis.iter().find(|kpi| kpi.name == name);
        kpi.map_or_else(|| "–".to_owned(), |kpi| figure(kpi.value, kpi.unit))
    };
    let all: Vec<_> = report.all().map(|(_, report)| of(report)).collect();
    all.join(" / ")
}

fn hand_built_cell(report: &Report, colour: bool) -> Cell {
    let other = report.hand_built.as_ref();
    other.map_or_else(
        || Cell::new("–"),
        |other| table::verdict(other.verdict, colour),
    )
}

fn control_cell(report: &Report, colour: bool) -> Cell {
    let Some(control) = &report.control else {
        return Cell::new("–");
    };
    let cell = table::verdict(control.verdict, colour);
    if report.control_as_expected() {
        return cell;
    }
    let cell = Cell::new(format!("{} (!)", cell.content()));
    if colour { cell.fg(Color::Yellow) } else { cell }
}

fn control_word(report: &Report) -> String {
    match &report.control {
        None => "–".to_owned(),
        Some(control) if report.control_as_expected() => word(control.verdict).to_owned(),
        Some(control) => format!("{} (unexpected)", word(control.verdict)),
    }
}

/// The verdict as a word with its mark, for a line of a terminal.
pub fn mark(verdict: Verdict, colour: bool) -> String {
    table::mark(verdict, colour)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passes",
        Verdict::Failed => "fails",
        Verdict::Void => "void",
    }
}
