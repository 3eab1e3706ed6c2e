//! `steadfast drill list`.

use steadfast_drill::scenario;

use crate::failure::Failure;
use crate::figures;
use crate::output::line;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  steadfast drill list\n  for name in $(steadfast drill list --names); do steadfast drill run $name; done"
)]
pub(crate) struct Args {
    /// The names alone, for scripts
    #[arg(long)]
    names: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let scenarios = scenario::all();
        if self.names {
            for scenario in &scenarios {
                line(&scenario.name)?;
            }
            return Ok(());
        }
        let width = scenarios
            .iter()
            .map(|scenario| scenario.name.len())
            .max()
            .unwrap_or(0);
        for scenario in &scenarios {
            let length = figures::duration(scenario.phases.total());
            line(format_args!(
                "{:<width$}  {length:>6}  {}",
                scenario.name, scenario.about
            ))?;
        }
        line(
            "\nRun one with `steadfast drill run NAME`; a path to a scenario of your own serves as well.",
        )?;
        Ok(())
    }
}
