//! `steadfast drill compare`: two reports side by side; the exit status says whether the second
//! does worse.

use std::path::{Path, PathBuf};

use steadfast_drill::report::compare::Comparison;

use crate::failure::{Failure, Status};
use crate::output::{has_colour, line};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit status is 0 if the second misses no key figure that the first met, else 1.

Example:
  steadfast drill compare /tmp/main /tmp/my-branch")]
pub(crate) struct Args {
    /// A folder that `steadfast drill run --out` has left, or its report.json
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// The other
    #[arg(value_name = "AFTER")]
    after: PathBuf,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let [before, after] = [read(&self.before)?, read(&self.after)?];
        let names = [name(&self.before), name(&self.after)];
        let comparison = Comparison::new([&names[0], &names[1]], [&before, &after])
            .map_err(|why| Failure::new(Status::Usage, why))?;
        line(comparison.render(has_colour()).trim_end())?;
        if comparison.regressions().is_empty() {
            Ok(())
        } else {
            Err(Failure::said(Status::Failed))
        }
    }
}

fn read(path: &Path) -> Result<serde_json::Value, Failure> {
    let file = if path.is_dir() {
        path.join("report.json")
    } else {
        path.to_owned()
    };
    let text = std::fs::read_to_string(&file).map_err(|error| {
        Failure::new(
            Status::Unavailable,
            format_args!("{} cannot be read: {error}", file.display()),
        )
    })?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(
            Status::Usage,
            format_args!("{} is not a report.json: {error}", file.display()),
        )
    })
}

/// The folder's name, by which people know their runs.
fn name(path: &Path) -> String {
    let is_file = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let folder = if is_file { path.parent() } else { Some(path) };
    folder
        .and_then(Path::file_name)
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
