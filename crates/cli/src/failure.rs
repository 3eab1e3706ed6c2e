//! Why a command did not do what it was asked, as a person can act on it: what is wrong, what to
//! do, and an exit status of its own kind so that a script need not read the words.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::mistakes::Mistakes;

/// The exit status of the process. The numbers are those of `sysexits.h` where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// The work failed, or its verdict did.
    Failed = 1,
    /// The command line makes no sense. Clap uses the same number.
    Usage = 2,
    /// Something needed is not there: a port is taken, no server to be found.
    Unavailable = 69,
    /// The configuration is wrong.
    Config = 78,
    /// Stopped from outside.
    Interrupted = 130,
}

/// A command that ended badly.
#[derive(Debug)]
pub(crate) struct Failure {
    status: Status,
    words: Words,
}

#[derive(Debug)]
enum Words {
    /// All has been said already, or nobody listens any more.
    None,
    Plain {
        cause: String,
        hint: Option<String>,
    },
    /// Says where in a file.
    Mistakes(Mistakes),
}

impl Failure {
    pub(crate) fn new(status: Status, cause: impl Display) -> Self {
        let words = Words::Plain {
            cause: cause.to_string(),
            hint: None,
        };
        Self { status, words }
    }

    /// Ends with `status` without a further word: the report just printed is the word.
    pub(crate) fn said(status: Status) -> Self {
        Self {
            status,
            words: Words::None,
        }
    }

    /// A file with mistakes in it, each shown with its line and column.
    pub(crate) fn mistakes(status: Status, mistakes: Mistakes) -> Self {
        Self {
            status,
            words: Words::Mistakes(mistakes),
        }
    }

    /// Adds what to do about it, as a whole sentence or a command.
    #[must_use]
    pub(crate) fn hint(mut self, text: impl Display) -> Self {
        if let Words::Plain { hint, .. } = &mut self.words {
            *hint = Some(text.to_string());
        }
        self
    }

    /// Says it on standard error, and turns into the exit status.
    pub(crate) fn report(self) -> ExitCode {
        match self.words {
            Words::None => {}
            Words::Plain { cause, hint } => say(match hint {
                Some(hint) => format!("error: {cause}\n  hint: {hint}"),
                None => format!("error: {cause}"),
            }),
            Words::Mistakes(mistakes) => say(mistakes.to_string()),
        }
        ExitCode::from(self.status as u8)
    }
}

/// The time that the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Says it on standard error, in a thread that is left behind if nobody takes it: a pipe that is
/// full must not keep a process that was told to end.
pub(crate) fn say(text: String) {
    let (done, said) = sync_channel::<()>(0);
    let saying = std::thread::Builder::new().spawn(move || {
        eprintln!("{text}");
        drop(done);
    });
    if saying.is_ok() {
        let _ = said.recv_timeout(LAST_WORDS);
    }
}

/// Mostly a reader of our output that went away (`steadfast drill list | head -1`): that is no
/// error of ours.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::said(Status::Failed);
        }
        Self::new(Status::Failed, error)
    }
}

/// An error and all its causes in one line, without saying the same thing twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = next.source();
    }
    text
}
