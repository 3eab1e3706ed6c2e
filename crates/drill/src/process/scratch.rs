//! A folder that goes with the process that made it. A server's own watcher removes the server's
//! folder, but there is none while the server is killed, and a subject's database has none at all.
//! So a drill keeps all its files in one folder, and that is watched for as long as the drill
//! lasts, by the same means as a server (see [`super::Child`]).

use super::ProcessError;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Removes `$1` once the pipe on its standard input is closed. What still dies in there may write
/// meanwhile, so it tries again.
const SCRIPT: &str = r#"
trap '' HUP INT TERM QUIT
read -r _
turns=0
until rm -rf -- "$1" || [ $turns -ge 100 ]; do sleep 0.2; turns=$((turns + 1)); done
"#;

/// A folder for files. Dropped, it is removed; and also when this process is gone without having
/// dropped anything.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    watcher: Child,
}

impl Scratch {
    /// A new folder within the system's place for temporary files, whose name begins with `prefix`.
    ///
    /// # Errors
    /// [`ProcessError::Folder`] when it cannot be made, [`ProcessError::Spawn`] when the system
    /// refuses to fork.
    pub fn new(prefix: &str) -> Result<Self, ProcessError> {
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .map_err(|cause| ProcessError::Folder {
                path: std::env::temp_dir(),
                cause,
            })?;
        let watcher = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder.path())
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|cause| ProcessError::Spawn {
                program: "/bin/sh".to_owned(),
                cause,
            })?;
        Ok(Self { folder, watcher })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // First the folder: who is killed half way through this must still be watched.
        if std::fs::remove_dir_all(self.folder.path()).is_err() {
            // Something still dies in there: the watcher tries until it is gone.
            drop(self.watcher.stdin.take());
            return;
        }
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}
