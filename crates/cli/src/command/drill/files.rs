//! Reports that are left in a folder.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Status};

/// Writes a file, and says which.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf, Failure> {
    let file = folder.join(name);
    std::fs::write(&file, text).map_err(|error| unwritable(&file, &error))?;
    Ok(file)
}

/// Whether a file can be made there.
pub(super) fn can_write(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join(".steadfast-drill");
    std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe))
}

pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Status::Unavailable,
        format_args!("cannot write {}: {error}", path.display()),
    )
}
