//! `steadfast drill run`: breaks a private Redis as a scenario says, beside a control that takes it
//! as it comes. Progress goes to standard error and the report to standard output, so that the one
//! can be watched while the other is kept.

use std::path::{Path, PathBuf};

use steadfast_drill::report::repeat::{Repeated, Run};
use steadfast_drill::report::{self, Report};
use steadfast_drill::run::{RunError, RunOptions};
use steadfast_drill::scenario::{self, Scenario};
use steadfast_server::drills::Subjects;
use tokio_util::sync::CancellationToken;

use super::files::{can_write, unwritable, write};
use super::progress;
use super::target::{self, Target};
use crate::failure::{Failure, Status};
use crate::mistakes::{InFile, Mistakes};
use crate::output::{has_colour, line};
use crate::signals::Signals;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit status is the verdict: 0 if every drill passed, 1 if one failed, 69 if there is no
redis-server, 130 if interrupted. With --all, the plain client beside must also do as each drill
says that it will. Nothing is broken but servers that the drill itself starts, and nothing is left
running.

Examples:
  steadfast drill run crash
  steadfast drill run restart-5s --out /tmp/restart
  steadfast drill run freeze --repeat 5
  steadfast drill run crash freeze ./mine.toml --no-control
  steadfast drill run restart-5s --target 127.0.0.1:6379 --command './my-application' \\
    --http http://127.0.0.1:8000 --request 'GET /users/{1..1000}' --rate 50")]
pub(crate) struct Args {
    /// Names from `steadfast drill list`, or paths of scenario files
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// Every drill that comes with the program
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Write report.json, report.html, timeline.svg and junit.xml here; with several drills, into a
    /// folder for each, and summary.md and junit.xml of all
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace the report of an earlier run in that folder
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// Leave out what runs beside for comparison: a plain client, and one with resilience built by
    /// hand
    #[arg(long)]
    no_control: bool,
    /// Draw all chance from another seed than the scenario's
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Run each drill so many times, and end with the median and the range of each figure and how
    /// often each verdict was given; with --out, a folder for each run, and report.json and
    /// junit.xml of all. Every run must pass
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: Option<u32>,
    /// Make this many calls, in phases as much longer or shorter; how many look-ups `loop` makes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    calls: Option<u64>,
    #[command(flatten)]
    target: Target,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        self.target.check()?;
        let signals = Signals::listen()?;
        let scenarios = self.scenarios()?;
        let folders: Vec<_> = scenarios
            .iter()
            .map(|scenario| self.folder(scenario))
            .collect();
        for folder in folders.iter().flatten() {
            self.prepare(folder)?;
            for number in 1..=self.repeat.unwrap_or(0) {
                self.prepare(&folder.join(number.to_string()))?;
            }
        }
        let stop = CancellationToken::new();
        let stopper = stop.clone();
        tokio::spawn(async move {
            signals.asked_to_stop().await;
            stopper.cancel();
        });

        let options = self.target.options(&stop)?;
        if options.is_some() && scenarios.len() != 1 {
            return Err(Failure::new(
                Status::Usage,
                "an application is drilled by one drill at a time",
            ));
        }
        if let Some(times) = self.repeat {
            let mut all = true;
            for (scenario, folder) in scenarios.iter().zip(&folders) {
                let folder = folder.as_deref();
                all &= self.run_repeatedly(times, scenario, folder, &stop).await?;
            }
            return passed(all);
        }
        if let Some(options) = options {
            let scenario = self.target.at_rate(&scenarios[0]);
            return passed(target::run(&scenario, options, folders[0].as_deref()).await?);
        }
        if let ([scenario], [folder]) = (&scenarios[..], &folders[..]) {
            let report = self.run_one(scenario, &stop).await?;
            line(report::table::render(&report, has_colour()).trim_end())?;
            if let Some(folder) = folder {
                write_all(folder, &report)?;
                line(format_args!(
                    "\nthe same to look at and to keep: {}",
                    folder.join("report.html").display()
                ))?;
            }
            return passed(report.passed() && (!self.all || report.control_as_expected()));
        }
        self.run_several(&scenarios, &folders, &stop).await
    }

    /// Runs one after the other: a line for each, all of one that failed, and one table in the end.
    async fn run_several(
        &self,
        scenarios: &[Scenario],
        folders: &[Option<PathBuf>],
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut reports = Vec::new();
        for (number, (scenario, folder)) in scenarios.iter().zip(folders).enumerate() {
            let report = self.run_one(scenario, stop).await?;
            line(format_args!(
                "{:>2} of {}  {}",
                number + 1,
                scenarios.len(),
                report::summary::in_a_line(&report, has_colour())
            ))?;
            if !report.passed() {
                line(format_args!(
                    "\n{}",
                    report::table::render(&report, has_colour())
                ))?;
            }
            if let Some(folder) = folder {
                write_all(folder, &report)?;
            }
            reports.push(report);
        }
        line(format_args!(
            "\n{}\n\n{}",
            report::summary::render(&reports, has_colour()),
            report::summary::in_words(&reports)
        ))?;
        if let Some(out) = &self.out {
            write(out, "summary.md", &report::summary::markdown(&reports))?;
            write(out, "junit.xml", &report::junit::render(&reports))?;
            line(format_args!(
                "\nthe same to look at and to keep: {}, and a folder for each drill beside it",
                out.join("summary.md").display()
            ))?;
        }
        passed(if self.all {
            report::summary::all_as_expected(&reports)
        } else {
            reports.iter().all(Report::passed)
        })
    }

    /// The same drill again and again: a line for each run, and one table in the end.
    async fn run_repeatedly(
        &self,
        times: u32,
        scenario: &Scenario,
        folder: Option<&Path>,
        stop: &CancellationToken,
    ) -> Result<bool, Failure> {
        let (mut runs, mut as_expected) = (Vec::new(), true);
        for number in 1..=times {
            let own = folder.map(|folder| folder.join(number.to_string()));
            let (run, verdict) = if let Some(options) = self.target.options(stop)? {
                let report = target::drill(&self.target.at_rate(scenario), options).await?;
                if let Some(own) = &own {
                    target::write_all(own, &report)?;
                }
                (Run::from(&report), report.verdict)
            } else {
                let report = self.run_one(scenario, stop).await?;
                if let Some(own) = &own {
                    write_all(own, &report)?;
                }
                as_expected &= !self.all || report.control_as_expected();
                (Run::from(&report), report.verdict)
            };
            let mark = report::summary::mark(verdict, has_colour());
            line(format_args!("{number:>3} of {times}  {mark}"))?;
            runs.push(run);
        }
        let Some(all) = Repeated::of(&runs) else {
            return Ok(false);
        };
        line(format_args!("\n{}", all.render(has_colour())))?;
        if let Some(folder) = folder {
            let json = report::json::render_repeated(&all);
            let written = write(folder, "report.json", &json)?;
            write(folder, "junit.xml", &report::junit::render_repeated(&runs))?;
            line(format_args!(
                "\nthe same to keep: {}, and a folder for each run beside it",
                written.display()
            ))?;
        }
        Ok(all.passed() && as_expected)
    }

    fn scenarios(&self) -> Result<Vec<Scenario>, Failure> {
        let found: Result<Vec<_>, _> = match self.all {
            true => Ok(scenario::all()),
            false => self.names.iter().map(|name| self.find(name)).collect(),
        };
        let mut scenarios = found?;
        if let Some(calls) = self.calls {
            scenarios = scenarios
                .into_iter()
                .map(|scenario| scenario.with_calls(calls))
                .collect();
        }
        for scenario in &mut scenarios {
            scenario.seed = self.seed.unwrap_or(scenario.seed);
        }
        Ok(scenarios)
    }

    /// A scenario by its name, or by the path of its file.
    fn find(&self, name: &str) -> Result<Scenario, Failure> {
        if let Some(scenario) = scenario::builtin(name) {
            return Ok(scenario);
        }
        if !name.contains('/') && !name.ends_with(".toml") {
            return Err(Failure::new(Status::Usage, format_args!("there is no drill `{name}`"))
                .hint("`steadfast drill list` names them; a scenario of your own is given by its path, ./mine.toml"));
        }
        let text = std::fs::read_to_string(name).map_err(|error| {
            Failure::new(
                Status::Config,
                format_args!("the scenario {name} cannot be read: {error}"),
            )
        })?;
        let parsed = match self.target.is_given() {
            true => Scenario::parse(&text),
            false => Scenario::parse_own(&text),
        };
        parsed.map_err(|error| {
            let mut mistakes = Mistakes::default();
            let at = InFile {
                name,
                text: &text,
                line: error.line,
                column: error.column,
                span: error.span.clone(),
            };
            mistakes.in_file(&at, &error.message, None);
            Failure::mistakes(Status::Config, mistakes)
        })
    }

    /// Makes the folder, and sees that a report can be left there: better now than after the drill.
    fn prepare(&self, folder: &Path) -> Result<(), Failure> {
        let report = folder.join("report.json");
        if report.exists() && !self.overwrite {
            return Err(Failure::new(
                Status::Usage,
                format_args!("{} holds the report of an earlier run", folder.display()),
            )
            .hint("choose another folder, or replace it with --overwrite"));
        }
        std::fs::create_dir_all(folder)
            .and_then(|()| can_write(folder))
            .map_err(|error| unwritable(folder, &error))
    }

    fn folder(&self, scenario: &Scenario) -> Option<PathBuf> {
        let out = self.out.as_ref()?;
        let single = !self.all && self.names.len() == 1;
        Some(if single {
            out.clone()
        } else {
            out.join(scenario.name.replace('/', "-"))
        })
    }

    async fn run_one(
        &self,
        scenario: &Scenario,
        stop: &CancellationToken,
    ) -> Result<Report, Failure> {
        let (shown, progress) = progress::start(scenario);
        let options = RunOptions {
            control: !self.no_control,
            hand_built: !self.no_control,
            seed: None,
            progress: Some(progress),
            stop: stop.clone(),
        };
        let factory = Subjects::default();
        let outcome = steadfast_drill::run::run(scenario, &factory, options).await;
        shown.end();
        outcome.map_err(|error| ended(&error))
    }
}

fn write_all(folder: &Path, report: &Report) -> Result<(), Failure> {
    let forms = [
        ("report.json", report::json::render(report)),
        ("report.html", report::html::render(report)),
        ("timeline.svg", report::timeline::render(report)),
        (
            "junit.xml",
            report::junit::render(std::slice::from_ref(report)),
        ),
    ];
    forms
        .iter()
        .try_for_each(|(name, text)| write(folder, name, text).map(drop))
}

fn passed(all: bool) -> Result<(), Failure> {
    if all {
        Ok(())
    } else {
        Err(Failure::said(Status::Failed))
    }
}

fn ended(error: &RunError) -> Failure {
    match error {
        RunError::Interrupted => Failure::new(
            Status::Interrupted,
            "interrupted; all that the drill started has been ended",
        ),
        RunError::Server(_) => Failure::new(Status::Unavailable, error),
        _ => Failure::new(Status::Failed, error),
    }
}
