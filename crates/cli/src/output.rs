//! Standard output that may be a pipe whose reader has left: the macros of std panic then, these
//! return the error.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Writes a line on standard output, there before this returns.
pub(crate) fn line(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Two columns: a name, and what is to be said of it, which may take several lines.
pub(crate) fn row(name: &str, text: impl fmt::Display) -> io::Result<()> {
    let text = text.to_string();
    for (i, part) in text.lines().enumerate() {
        line(format_args!(
            "{:<12} {part}",
            if i == 0 { name } else { "" }
        ))?;
    }
    Ok(())
}

/// Whether whoever reads standard output can be expected to like colours (see no-color.org).
pub(crate) fn has_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
