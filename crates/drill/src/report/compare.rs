//! Two reports side by side: another branch, another client, with and without a cache, with Redis
//! well and broken. It works on the JSON form, so that reports of other days and machines can be
//! compared.

use comfy_table::Cell;
use serde_json::Value;

use super::table::{align_right, finished, new_table};
use super::{duration, figure, title};
use crate::kpi::Unit;

/// Two reports, and what the second does worse.
#[derive(Debug)]
pub struct Comparison<'a> {
    names: [&'a str; 2],
    reports: [&'a Value; 2],
}

/// A key figure as it stands in a report.
struct Figure<'a> {
    name: &'a str,
    value: Option<f64>,
    unit: Unit,
    pass: bool,
}

impl<'a> Comparison<'a> {
    /// Compares two reports, read from their `report.json`; `names` are what they are called in the
    /// table.
    ///
    /// # Errors
    /// Says which of the two is no report of a drill.
    pub fn new(names: [&'a str; 2], reports: [&'a Value; 2]) -> Result<Self, String> {
        for (name, report) in names.iter().zip(reports) {
            let schema = report["schema"].as_str().unwrap_or("");
            if !schema.starts_with("steadfast-drill") || !report["kpis"].is_array() {
                return Err(format!("{name} is not a report.json of a drill"));
            }
        }
        Ok(Self { names, reports })
    }

    /// The key figures that the first met and the second misses or does not have; and that the
    /// second touched nothing, if the first did not.
    pub fn regressions(&self) -> Vec<&'a str> {
        let [before, after] = self.reports.map(figures);
        let met = |name: &str| after.iter().any(|after| after.name == name && after.pass);
        let mut missed: Vec<_> = before
            .iter()
            .filter(|before| before.pass && !met(before.name))
            .map(|before| before.name)
            .collect();
        let [was_void, is_void] = self.reports.map(is_void);
        if is_void && !was_void && !missed.contains(&UNTOUCHED) {
            missed.push(UNTOUCHED);
        }
        missed
    }

    /// The comparison as text.
    pub fn render(&self, colour: bool) -> String {
        let [a, b] = self.names;
        let mut kpis = new_table(&["", a, "", b, ""]);
        let [before, after] = self.reports.map(figures);
        let mut names: Vec<_> = before
            .iter()
            .chain(&after)
            .map(|figure| figure.name)
            .collect();
        let mut known = std::collections::HashSet::new();
        names.retain(|name| known.insert(*name));
        for name in names {
            let mut row = vec![Cell::new(title(name))];
            for side in [&before, &after] {
                let found = side.iter().find(|figure| figure.name == name);
                row.push(Cell::new(found.map_or("–".to_owned(), |found| {
                    figure(found.value, found.unit)
                })));
                row.push(Cell::new(
                    found.map_or("", |f| if f.pass { "✓" } else { "✗" }),
                ));
            }
            kpis.add_row(row);
        }
        align_right(&mut kpis, &[1, 3]);
        let mut text = finished(kpis, colour) + "\n";
        // Several runs have no phases in common.
        if self.reports.iter().any(|report| !phases(report).is_empty()) {
            text = format!("{}\n\n{text}", finished(self.phases(), colour));
        }
        if self.reports[0]["scenario"] != self.reports[1]["scenario"] {
            text +=
                "\nThese are two different drills, so their figures say little of each other.\n";
        }
        for (name, _) in [a, b].iter().zip(self.reports).filter(|(_, r)| is_void(r)) {
            text += &format!(
                "\n{name} is void: what it was to break was not touched, so it proves nothing\n"
            );
        }
        match &self.regressions()[..] {
            [] => text += &format!("\n{b} misses nothing that {a} met\n"),
            missed => {
                let missed: Vec<_> = missed
                    .iter()
                    .map(|name| {
                        let lacks = !after.iter().any(|after| after.name == *name);
                        let lacks = if lacks { " (not there)" } else { "" };
                        title(name).to_lowercase() + lacks
                    })
                    .collect();
                text += &format!("\n{b} misses what {a} met: {}\n", missed.join(", "));
            }
        }
        text
    }

    /// Calls, failures and times of each phase, as the users felt them.
    fn phases(&self) -> comfy_table::Table {
        let mut table = new_table(&["phase", "", "calls", "failed", "wrong", "p50", "p99", "max"]);
        let [before, after] = self.reports.map(phases);
        for phase in before {
            let name = phase["name"].as_str().unwrap_or("");
            let other = after.iter().find(|other| other["name"] == phase["name"]);
            for (side, (who, phase)) in [Some(phase), other]
                .into_iter()
                .zip(self.names)
                .map(|(phase, who)| (who, phase))
                .enumerate()
            {
                let Some(phase) = phase else { continue };
                let count = |name: &str| phase[name].as_u64().unwrap_or(0);
                let failed: u64 = phase["errors"]
                    .as_object()
                    .map_or(0, |errors| errors.values().filter_map(Value::as_u64).sum());
                let took = |name: &str| duration(phase["latency_ms"][name].as_f64().unwrap_or(0.0));
                table.add_row([
                    if side == 0 {
                        name.replace('_', "-")
                    } else {
                        String::new()
                    },
                    who.to_owned(),
                    (count("calls") + count("skipped")).to_string(),
                    (failed + count("skipped")).to_string(),
                    count("wrong").to_string(),
                    took("p50"),
                    took("p99"),
                    took("max"),
                ]);
            }
        }
        align_right(&mut table, &[2, 3, 4, 5, 6, 7]);
        table
    }
}

/// The phases as the users felt them: those of the load on an application, or those of the drill
/// itself.
fn phases(report: &Value) -> &[Value] {
    let users = report["users"]["phases"].as_array();
    users
        .or_else(|| report["phases"].as_array())
        .map_or(&[], Vec::as_slice)
}

/// The figure without which a drill proves nothing.
const UNTOUCHED: &str = "untouched";

fn is_void(report: &Value) -> bool {
    report["verdict"] == "void"
}

fn figures(report: &Value) -> Vec<Figure<'_>> {
    let kpis = report["kpis"].as_array().map_or(&[][..], Vec::as_slice);
    kpis.iter()
        .filter_map(|kpi| {
            Some(Figure {
                name: kpi["name"].as_str()?,
                value: kpi["value"].as_f64(),
                unit: match kpi["unit"].as_str()? {
                    "ratio" => Unit::Ratio,
                    "ms" => Unit::Ms,
                    _ => Unit::Count,
                },
                pass: kpi["pass"].as_bool()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(errors: f64, pass: bool) -> Value {
        json!({
            "schema": "steadfast-drill-target/2", "scenario": "crash",
            "kpis": [{ "name": "errors", "value": errors, "unit": "ratio", "pass": pass }],
            "users": { "phases": [{ "name": "fault", "calls": 9, "skipped": 1, "errors": { "timeout": 2 }, "wrong": 0,
                "latency_ms": { "p50": 1.0, "p99": 2.0, "p999": 2.0, "max": 3.0 } }] },
        })
    }

    #[test]
    fn d4_what_the_second_misses_and_the_first_met_is_named() {
        let (well, broken) = (report(0.0, true), report(0.3, false));
        let comparison = Comparison::new(["well", "broken"], [&well, &broken]).unwrap();
        assert_eq!(comparison.regressions(), ["errors"]);
        let text = comparison.render(false);
        for shown in ["failed reads", "30 %", "broken misses what well met", "10"] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let turned = Comparison::new(["broken", "well"], [&broken, &well]).unwrap();
        assert!(turned.regressions().is_empty());
    }

    #[test]
    fn d4_a_figure_that_the_second_lacks_is_none_that_it_met() {
        let (well, mut lacking) = (report(0.0, true), report(0.0, true));
        lacking["kpis"] = json!([]);
        let comparison = Comparison::new(["well", "lacking"], [&well, &lacking]).unwrap();
        assert_eq!(comparison.regressions(), ["errors"]);
        let text = comparison.render(false);
        let says = "lacking misses what well met: failed reads (not there)";
        assert!(text.contains(says), "{text}");
        let turned = Comparison::new(["lacking", "well"], [&lacking, &well]).unwrap();
        assert!(turned.regressions().is_empty());
    }

    #[test]
    fn d4_a_second_that_is_void_is_named_and_no_better_than_the_first() {
        let (well, mut void) = (report(0.0, true), report(0.0, true));
        void["verdict"] = json!("void");
        let comparison = Comparison::new(["well", "void"], [&well, &void]).unwrap();
        assert_eq!(comparison.regressions(), ["untouched"]);
        let text = comparison.render(false);
        assert!(text.contains("void is void: what it was"), "{text}");
        let both = Comparison::new(["void", "void"], [&void, &void]).unwrap();
        assert!(both.regressions().is_empty());
    }

    #[test]
    fn d4_what_is_no_report_is_refused_by_name() {
        let (well, other) = (report(0.0, true), json!({ "schema": "something" }));
        let error = Comparison::new(["a", "b"], [&well, &other]).unwrap_err();
        assert!(error.contains("b is not a report.json"), "{error}");
    }
}
