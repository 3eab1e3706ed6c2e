//! The tables of RESULTS.md.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::memory::Memory;
use crate::outage::{Outages, Trial, middle};
use crate::subjects::Kind;
use crate::throughput::{Figures, Throughput};
use crate::workloads::Workload;

/// Everything that one run showed.
#[derive(Default)]
pub struct Run {
    pub throughput: Throughput,
    pub outages: Vec<Outages>,
    pub memory: Vec<Memory>,
    /// (connections, commands under way on each, calls a second)
    pub limits: Vec<(usize, usize, f64)>,
    /// Of the machine over the last minute, before and after.
    pub load: (f64, f64),
    pub minutes: f64,
}

/// One promise of the design, and whether a figure keeps it.
struct Target {
    name: String,
    promised: String,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

pub fn render(runs: &[Run], machine: &str, quick: bool) -> String {
    let mut out = String::from("# The clients side by side\n\n");
    let _ = writeln!(
        out,
        "Written by `make bench`; do not edit. Every client ran in one process beside the same server, in turns; ratios are taken within a\n\
         repeat and the median of them is shown, so that they mean something although the machine is never quiet for long. Compare within this\n\
         page only. Throughput: each client as it comes; ours with every policy on. Times are of the caller. CPU is of the client's process,\n\
         kernel included.\n\n{machine}\n"
    );
    if quick {
        out.push_str("A quick run: too short to settle anything.\n\n");
    }
    targets(&mut out, runs);
    let measured: Vec<_> = runs.iter().map(|run| &run.throughput).collect();
    out.push_str("\n## Every row, to the fastest beside it\n\n");
    out.push_str(&rows(&measured));
    let Some(last) = runs.last() else { return out };
    throughput(&mut out, last);
    if !last.outages.is_empty() {
        outages(&mut out, last);
    }
    memory(&mut out, last);
    let failures: Vec<_> = last
        .throughput
        .failures
        .iter()
        .chain(last.outages.iter().flat_map(|outage| &outage.failures))
        .collect();
    if !failures.is_empty() {
        out.push_str("\n## What failed\n\n");
        for failure in failures {
            let _ = writeln!(out, "- {failure}");
        }
    }
    out
}

/// The outages alone: their promises and their table.
pub fn of_outages(run: &Run) -> String {
    let mut out = String::new();
    targets(&mut out, std::slice::from_ref(run));
    outages(&mut out, run);
    out
}

fn targets(out: &mut String, runs: &[Run]) {
    out.push_str("## The design's ratios\n\n| GET of 64 bytes unless named | promised |");
    for (number, run) in runs.iter().enumerate() {
        let _ = write!(
            out,
            " run {} (load {:.0} to {:.0}) |",
            number + 1,
            run.load.0,
            run.load.1
        );
    }
    out.push_str(" met |\n|---|---|");
    out.push_str(&"---|".repeat(runs.len() + 1));
    out.push('\n');
    let columns: Vec<Vec<(Target, Option<f64>)>> = runs.iter().map(promises).collect();
    let Some(last) = columns.last() else { return };
    for (target, _) in last {
        // Outages are tried in the last run only.
        let tried = |column: &[(Target, Option<f64>)]| {
            let found = column.iter().find(|(other, _)| other.name == target.name);
            found.map(|(_, seen)| *seen)
        };
        let seen: Vec<Option<Option<f64>>> = columns.iter().map(|column| tried(column)).collect();
        let _ = write!(out, "| {} | {} |", target.name, target.promised);
        for value in &seen {
            let shown = match value {
                None => "–".into(),
                Some(None) => "never".into(),
                Some(Some(value)) => number(*value),
            };
            let _ = write!(out, " {shown} |");
        }
        let seen: Vec<_> = seen.into_iter().flatten().collect();
        let met = seen.iter().filter(|value| target.keeps(**value)).count();
        let verdict = match met {
            all if all == seen.len() => "yes".to_owned(),
            0 => "no".to_owned(),
            some => format!("{some} of {}", seen.len()),
        };
        let _ = writeln!(out, " {verdict} |");
    }
}

/// Calls a second of ours to those of the fastest other client: in each row, by each number of
/// callers, in each run.
pub fn rows(runs: &[&Throughput]) -> String {
    rows_of(runs, &Workload::ALL)
}

/// The same of these workloads.
fn rows_of(runs: &[&Throughput], workloads: &[Workload]) -> String {
    let speed: fn(&Figures) -> f64 = |figures| figures.per_second;
    let mut out = String::from("| row | callers | ours | through the traits | the fastest |\n");
    out.push_str("|---|---:|---|---|---|\n");
    for &workload in workloads {
        for callers in workload.callers() {
            let (mut native, mut traits, mut names) = (Vec::new(), Vec::new(), Vec::new());
            for run in runs {
                let Some(fastest) = run.fastest_other(workload, callers) else {
                    continue;
                };
                let to = |ours| {
                    let ratio = run.ratio(workload, callers, speed, ours, fastest);
                    ratio.map_or("–".into(), number)
                };
                native.push(to(Kind::Native));
                traits.push(to(Kind::Traits));
                if !names.contains(&fastest.name()) {
                    names.push(fastest.name());
                }
            }
            if native.is_empty() {
                continue;
            }
            let _ = writeln!(
                out,
                "| {} | {callers} | {} | {} | {} |",
                workload.name(),
                native.join(", "),
                traits.join(", "),
                names.join("; "),
            );
        }
    }
    out
}

impl Target {
    fn keeps(&self, seen: Option<f64>) -> bool {
        seen.is_some_and(|seen| {
            self.at_least.is_none_or(|least| seen >= least)
                && self.at_most.is_none_or(|most| seen <= most)
        })
    }
}

fn promises(run: &Run) -> Vec<(Target, Option<f64>)> {
    let speed: fn(&Figures) -> f64 = |figures| figures.per_second;
    let cpu: fn(&Figures) -> f64 = |figures| figures.cpu_us;
    let mut rows = Vec::new();
    let mut least = |name: String, least: f64, seen| {
        let promised = format!("at least {least}");
        rows.push((
            Target {
                name,
                promised,
                at_least: Some(least),
                at_most: None,
            },
            seen,
        ));
    };
    for (callers, factor) in [(1, 1.0), (64, 1.2), (512, 1.2)] {
        let fastest = run.throughput.fastest_other(Workload::GET, callers);
        let seen = fastest.and_then(|fastest| {
            run.throughput
                .ratio(Workload::GET, callers, speed, Kind::Native, fastest)
        });
        least(
            format!("calls a second, {callers} callers, to the fastest beside it"),
            factor,
            seen,
        );
    }
    for (callers, factor) in [(64, 1.3), (512, 1.8)] {
        let seen = run.throughput.ratio(
            Workload::GET,
            callers,
            speed,
            Kind::Traits,
            Kind::Multiplexed,
        );
        least(
            format!(
                "calls a second, {callers} callers, through the traits, to redis-rs multiplexed"
            ),
            factor,
            seen,
        );
    }
    let mut most = |name: String, promised: String, most: f64, seen| {
        rows.push((
            Target {
                name,
                promised,
                at_least: None,
                at_most: Some(most),
            },
            seen,
        ));
    };
    for callers in [64, 512] {
        let fastest = run.throughput.fastest_other(Workload::GET, callers);
        let seen = fastest.and_then(|fastest| {
            run.throughput
                .ratio(Workload::GET, callers, cpu, Kind::Native, fastest)
        });
        most(
            format!("CPU per call, {callers} callers, to the same"),
            "at most 1".into(),
            1.0,
            seen,
        );
    }
    let Some(ours) = run
        .outages
        .iter()
        .find(|outage| outage.kind == Kind::Native)
    else {
        return rows;
    };
    let p50: fn(&Trial) -> Option<f64> = |trial| trial.refused_p50_us;
    let p99: fn(&Trial) -> Option<f64> = |trial| trial.refused_p99_us;
    most(
        "a refused call, median, µs (its task's turn included)".into(),
        "at most 1".into(),
        1.0,
        middle(&ours.killed, p50),
    );
    most(
        "a refused call, p99, µs".into(),
        "at most 1000".into(),
        1000.0,
        middle(&ours.killed, p99),
    );
    most(
        "back in service after a restart, ms".into(),
        "at most 300".into(),
        300.0,
        middle(&ours.killed, |trial| trial.back),
    );
    most(
        "a cut wire is replaced, ms".into(),
        "at most 600".into(),
        600.0,
        middle(&ours.cut, |trial| trial.back),
    );
    rows
}

fn throughput(out: &mut String, run: &Run) {
    out.push_str(
        "\n## Throughput\n\nThe limit of server and machine, by `redis-benchmark` (GET): ",
    );
    let limits: Vec<String> = run
        .limits
        .iter()
        .map(|(connections, pipelined, speed)| {
            format!(
                "{connections} connections × {pipelined} under way: {} a second",
                count(*speed)
            )
        })
        .collect();
    let _ = writeln!(out, "{}.", limits.join("; "));
    for workload in Workload::ALL {
        table(out, &run.throughput, workload, &Kind::ALL);
    }
}

/// One workload of each client by each number of callers.
fn table(out: &mut String, seen: &Throughput, workload: Workload, kinds: &[Kind]) {
    let _ = write!(out, "\n### {}\n\n| client |", workload.name());
    for callers in workload.callers() {
        let _ = write!(
            out,
            " {callers} callers: calls/s | p50 µs | p99 µs | CPU µs |"
        );
    }
    out.push_str("\n|---|");
    out.push_str(&"---:|".repeat(workload.callers().len() * 4));
    out.push('\n');
    for &kind in kinds {
        let _ = write!(out, "| {} |", kind.name());
        for callers in workload.callers() {
            let seen = |of| seen.median((workload, callers, kind), of);
            let show = |value: Option<f64>| value.map_or("–".into(), number);
            let speed = seen(|figures| figures.per_second).map_or("–".into(), count);
            let (p50, p99, cpu) = (
                seen(|figures| figures.p50_us),
                seen(|figures| figures.p99_us),
                seen(|figures| figures.cpu_us),
            );
            let _ = write!(
                out,
                " {speed} | {} | {} | {} |",
                show(p50),
                show(p99),
                show(cpu)
            );
        }
        out.push('\n');
    }
}

/// The page of the clients of a cluster.
pub fn of_a_cluster(runs: &[Throughput], machine: &str, load: (f64, f64)) -> String {
    let mut out = String::from("# The clients of a cluster side by side\n\n");
    let _ = writeln!(
        out,
        "Written by `scripts/bench cluster`; do not edit. Every client ran in one process beside the same cluster of three\n\
         primaries, in turns; ratios are taken within a repeat and the median of them is shown. Compare within this page only. Each client\n\
         as it comes, one client for all callers; the keys are 100, over all three shards. CPU is of the client's process, kernel included.\n\n\
         {machine} Load of the machine {:.1} before, {:.1} after.\n",
        load.0, load.1
    );
    let measured: Vec<_> = runs.iter().collect();
    out.push_str("## Calls a second to those of the fastest beside it\n\n");
    out.push_str("Promised: at least 1.2 in each row.\n\n");
    out.push_str(&rows_of(&measured, &Workload::OF_A_CLUSTER));
    let Some(last) = runs.last() else { return out };
    out.push_str("\n## Processor time per call to that of the same\n\n");
    out.push_str("Promised: at most 1 in each row.\n\n| row | callers | ours | through the traits |\n|---|---:|---:|---:|\n");
    for workload in Workload::OF_A_CLUSTER {
        for callers in workload.callers() {
            let Some(fastest) = last.fastest_other(workload, callers) else {
                continue;
            };
            let to = |ours| {
                let ratio = last.ratio(workload, callers, |figures| figures.cpu_us, ours, fastest);
                ratio.map_or("–".into(), number)
            };
            let (native, traits) = (to(Kind::Native), to(Kind::Traits));
            let _ = writeln!(
                out,
                "| {} | {callers} | {native} | {traits} |",
                workload.name()
            );
        }
    }
    out.push_str("\n## Throughput\n");
    for workload in Workload::OF_A_CLUSTER {
        table(&mut out, last, workload, &Kind::OF_A_CLUSTER);
    }
    let mut failures = BTreeMap::new();
    for failure in runs
        .iter()
        .flat_map(|run| &run.failures)
        .map(String::as_str)
    {
        // Whichever repeat it was, and whichever node.
        let (row, rest) = failure.split_once(", repeat ").unwrap_or((failure, ""));
        let why = rest.split_once(": ").map_or("", |(_, why)| why);
        let (client, why) = why.split_once(": ").unwrap_or((why, ""));
        let (times, seen) = failures.entry((row, client)).or_insert((0, why));
        *times += 1;
        *seen = (*seen).min(why);
    }
    if !failures.is_empty() {
        out.push_str("\n## What failed\n\nA client's turn ends with the first call that fails; one such failure of each.\n\n");
        for ((row, client), (times, why)) in failures {
            let _ = writeln!(out, "- {row}: {client}, {times} turns: {why}");
        }
    }
    out
}

fn outages(out: &mut String, run: &Run) {
    out.push_str(
        "\n## Outages\n\nEight callers SET every 5 ms; clients that can be told so give a call up after 1 s, the bench gives every call up after 3 s.\n\
         Killed: 1.8 s without a server, then started again. Frozen: SIGSTOP for 1.8 s. Cut: every connection there is goes silent, new ones\n\
         work. *Noticed*: from the fault until a call fails at once. *Back*: from the first PING answered (resumed; cut) until a call is\n\
         answered. Medians; *never*: not within 4 s.\n\n\
         | client | killed: noticed ms | refused call p50 µs | p99 µs | back ms | frozen: noticed ms | refused call p50 µs | back ms | longest call ms | cut: back ms |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for outage in &run.outages {
        let show = |trials: &[Trial], of| middle(trials, of).map_or("never".into(), number);
        let cost = |trials: &[Trial], of| middle(trials, of).map_or("none ended".into(), number);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            outage.kind.name(),
            show(&outage.killed, |trial| trial.noticed),
            cost(&outage.killed, |trial| trial.refused_p50_us),
            cost(&outage.killed, |trial| trial.refused_p99_us),
            show(&outage.killed, |trial| trial.back),
            show(&outage.frozen, |trial| trial.noticed),
            cost(&outage.frozen, |trial| trial.refused_p50_us),
            show(&outage.frozen, |trial| trial.back),
            show(&outage.frozen, |trial| Some(trial.longest)),
            show(&outage.cut, |trial| trial.back),
        );
    }
}

fn memory(out: &mut String, run: &Run) {
    out.push_str("\n## Memory\n\nWhat a process grew by when it connected and served 512 callers of GET, resident, KiB.\n\n| client | KiB |\n|---|---:|\n");
    for memory in &run.memory {
        let _ = writeln!(out, "| {} | {} |", memory.kind.name(), memory.added);
    }
    let _ = writeln!(out, "\nThis run took {:.1} minutes.", run.minutes);
}

fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn count(value: f64) -> String {
    match value {
        value if value >= 1e5 => format!("{:.0} k", value / 1e3),
        value if value >= 1e3 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}
