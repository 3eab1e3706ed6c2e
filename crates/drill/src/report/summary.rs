//! Many drills as one table, for the end of a run of them and for a page that shows what they
//! found. A cell holds as many figures as there are subjects: what the users of Steadfast felt, and
//! what those of the controls beside it did.

use std::fmt::Write as _;

use comfy_table::{Cell, Color};

use super::{Report, Verdict, figure, table};
use crate::scenario::Store;

/// The columns of a table: of each the heading, and the key figure below it.
type Figures = &'static [(&'static str, &'static str)];

/// The columns of drills of a cache.
const FIGURES: Figures = &[
    ("failed reads", "errors"),
    ("failed writes", "write_errors"),
    ("p99 during the fault", "fault_p99"),
    ("slowest call", "slowest_call"),
    ("users well after", "users_well"),
    ("Redis in use after", "redis_in_use"),
    ("wrong answers", "wrong_answers"),
    ("stale once recovered", "stale_answers"),
];

/// The same of drills whose subjects have their data in Redis itself.
const FIGURES_OF_LEDGER: Figures = &[
    ("acknowledged writes lost", "lost"),
    ("of those, after the switch", "lost_late"),
    ("writes applied twice", "applied_twice"),
    ("back in service after", "back_in_service"),
    ("failed reads", "errors"),
    ("failed writes", "write_errors"),
    ("slowest call", "slowest_call"),
];

/// The same of drills on a cluster.
const FIGURES_OF_SHARDS: Figures = &[
    ("acknowledged writes lost", "lost"),
    ("writes applied twice", "applied_twice"),
    ("calls of other shards that failed", "failed_elsewhere"),
    ("discoveries", "discoveries"),
    ("back in service after", "back_in_service"),
    ("failed reads", "errors"),
    ("failed writes", "write_errors"),
];

/// The figures of drills with their data in each store, and the heading of their table.
const STORES: [(Store, Figures, &str); 3] = [
    (Store::Cache, FIGURES, ""),
    (Store::Sentinel, FIGURES_OF_LEDGER, SENTINELS),
    (Store::Cluster, FIGURES_OF_SHARDS, CLUSTERS),
];

/// Returns a line for each report, for a terminal. A control that did not do as its scenario says
/// it will is marked (!).
pub fn render(reports: &[Report], colour: bool) -> String {
    let tables = STORES
        .iter()
        .filter_map(|(store, figures, _)| rendered(&of_store(reports, *store), figures, colour));
    tables.collect::<Vec<_>>().join("\n")
}

/// Returns the reports of subjects that have their data there.
fn of_store(reports: &[Report], store: Store) -> Vec<&Report> {
    let is_there = |report: &&Report| report.store() == store;
    reports.iter().filter(is_there).collect()
}

fn rendered(reports: &[&Report], figures: Figures, colour: bool) -> Option<String> {
    let keeps_a_ledger = reports.first()?.ledger.is_some();
    let mut header = vec!["drill", "Steadfast", "plain client"];
    header.extend((!keeps_a_ledger).then_some("built by hand"));
    let first = header.len();
    header.extend(figures.iter().map(|(heading, _)| heading));
    let mut table = table::new_table(&header);
    for report in reports {
        let mut row = vec![
            Cell::new(&report.scenario),
            table::verdict(report.verdict, colour),
            control_cell(report, colour),
        ];
        row.extend((!keeps_a_ledger).then(|| hand_built_cell(report, colour)));
        row.extend(
            figures
                .iter()
                .map(|(_, name)| Cell::new(pair(report, name))),
        );
        table.add_row(row);
    }
    let numbers: Vec<usize> = (first..first + figures.len()).collect();
    table::align_right(&mut table, &numbers);
    Some(table::finished(table, colour))
}

/// Returns a drill in a line, for a run that has more to come.
pub fn in_a_line(report: &Report, colour: bool) -> String {
    let [first, second, third] = match report.ledger {
        Some(_) => ["lost", "applied_twice", "back_in_service"],
        None => ["errors", "fault_p99", "users_well"],
    };
    let told = |report: &Report| {
        let of = |name| {
            let kpi = report.kpis.iter().find(|kpi| kpi.name == name);
            kpi.map_or_else(|| "–".to_owned(), |kpi| figure(kpi.value, kpi.unit))
        };
        (of(first), of(second), of(third))
    };
    let (first, second, third) = told(report);
    let mut text = format!(
        "{:<21} {}  ",
        report.scenario,
        table::mark(report.verdict, colour)
    );
    text += &match report.ledger {
        Some(_) => format!(
            "{first} acknowledged writes lost, {second} applied twice, back in service after {third}"
        ),
        None => format!(
            "{first} of reads failed, p99 {second} during the fault, users well after {third}"
        ),
    };
    if let Some(control) = &report.control {
        let (first, second, third) = told(control);
        let _ = write!(
            text,
            "; plain client {}{}: {first}, {second}, {third}",
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

/// The same as tables of Markdown, with what they come to below them.
pub fn markdown(reports: &[Report]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (store, figures, heading) in STORES {
        let Some(table) = in_markdown(&of_store(reports, store), figures) else {
            continue;
        };
        if !parts.is_empty() {
            parts.push(heading.to_owned());
        }
        parts.push(table);
    }
    parts.push(in_words(reports));
    parts.join("\n\n") + "\n"
}

/// The heading of the third table.
const CLUSTERS: &str = "\
Data in a cluster of three primaries with a replica each. Left is Steadfast, right a plain client:
redis-rs with its client for clusters, whose calls to a shard that is away wait.";
/// The heading of the second table.
const SENTINELS: &str = "\
Data in Redis itself, a primary with a replica that three sentinels watch. Left is Steadfast, right
a plain client: redis-rs with its client for sentinels, which asks one at each connection.";

fn in_markdown(reports: &[&Report], figures: Figures) -> Option<String> {
    let keeps_a_ledger = reports.first()?.ledger.is_some();
    let by_hand = |text: &str| match keeps_a_ledger {
        true => String::new(),
        false => format!(" {text} |"),
    };
    let mut text = format!(
        "| drill | Steadfast | plain client |{}",
        by_hand("built by hand")
    );
    figures
        .iter()
        .for_each(|(heading, _)| text += &format!(" {heading} |"));
    text += "\n|---|---|---|";
    text += if keeps_a_ledger { "" } else { "---|" };
    text += &"---:|".repeat(figures.len());
    for report in reports {
        let other = report.hand_built.as_ref();
        let _ = write!(
            text,
            "\n| `{}` | {} | {} |{}",
            report.scenario,
            word(report.verdict),
            control_word(report),
            by_hand(other.map_or("–", |other| word(other.verdict))),
        );
        for (_, name) in figures {
            let _ = write!(text, " {} |", pair(report, name));
        }
    }
    Some(text)
}

/// Returns the outcome of a run of many.
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

/// Whether the judged subject passed each drill, and the control did in each as its scenario says
/// that it will.
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
