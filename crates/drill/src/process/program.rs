//! Finds the programs that are broken.

use super::ProcessError;
use std::path::{Path, PathBuf};

/// The first of `names` that is to be found on the PATH or, after it, in `folders`.
///
/// # Errors
/// [`ProcessError::NotInstalled`], naming them all and the Debian `package` to install.
pub fn find(
    names: &[&'static str],
    folders: &[PathBuf],
    package: &'static str,
) -> Result<PathBuf, ProcessError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path)
        .chain(folders.iter().cloned())
        .collect();
    let places = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places
        .filter(|program| program.is_absolute())
        .find(|program| is_executable(program))
        .ok_or_else(|| ProcessError::NotInstalled {
            names: names.to_vec(),
            package,
        })
}

fn is_executable(program: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(program)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_what_to_install() {
        let missing = find(&["no-such-server", "nor-this-one"], &[], "some-package").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "no no-such-server or nor-this-one on the PATH; install the package some-package"
        );
        assert!(
            find(&["no-such-server", "sh"], &[], "dash")
                .unwrap()
                .ends_with("sh")
        );
    }
}
