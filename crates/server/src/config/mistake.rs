//! A configuration that is refused one mistake at a time is corrected one restart at a time. So
//! every mistake is collected, each with the place it stands at, and the caller decides how to draw
//! them.

use std::fmt;
use std::ops::Range;

/// A configuration that cannot be used, with everything that is wrong with it.
///
/// `Display` lists every mistake on a line of its own (`file:line:column: message (help)`). A
/// terminal may draw [`text`](Self::text) and the spans in [`Origin::File`] instead.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the file: its path, or a name such as `sample`.
    pub source_name: String,
    /// The file as it was read; empty where there is none. It may hold secrets: draw only the lines
    /// that are wrong.
    pub text: String,
    /// All that is wrong, in the order of the file, never empty.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match &mistake.place {
                Origin::File { line, column, .. } => {
                    write!(f, "{}:{line}:{column}: ", self.source_name)?;
                }
                Origin::Environment { name } => write!(f, "{name}: ")?,
                Origin::Flag { name } => write!(f, "{name}: ")?,
                Origin::Nowhere => {}
            }
            f.write_str(&mistake.message)?;
            if let Some(help) = &mistake.help {
                write!(f, " ({help})")?;
            }
        }
        Ok(())
    }
}

/// Leaves out the text: a program that returns this from `main` has it printed.
impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigError")
            .field("source_name", &self.source_name)
            .field("mistakes", &self.mistakes)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for ConfigError {}

/// A mistake: what is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mistake {
    /// The mistake, lower case, without a full stop.
    pub message: String,
    /// The remedy.
    pub help: Option<String>,
    /// The place of the mistake.
    pub place: Origin,
}

impl Mistake {
    pub(crate) fn new(place: Origin, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            place,
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The place that a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The file; line and column count from 1, the span is in bytes.
    File {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// Bytes of the file it covers.
        span: Range<usize>,
    },
    /// An environment variable.
    Environment {
        /// The variable's name.
        name: String,
    },
    /// A flag on the command line.
    Flag {
        /// The flag as it was given, `--listen`.
        name: String,
    },
    /// Nowhere: something that is missing altogether.
    Nowhere,
}

impl Origin {
    pub(crate) fn in_file(text: &str, span: Range<usize>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[line_start..].chars().count() + 1;
        Self::File { line, column, span }
    }

    /// Sorts mistakes as a reader meets them: the file from the top, then the rest.
    pub(crate) fn order(&self) -> usize {
        match self {
            Self::File { span, .. } => span.start,
            Self::Environment { .. } => usize::MAX - 2,
            Self::Flag { .. } => usize::MAX - 1,
            Self::Nowhere => usize::MAX,
        }
    }
}
