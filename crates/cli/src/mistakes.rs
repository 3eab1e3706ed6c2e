//! A file with mistakes in it, told so that a person sees the line with a mark under it, and an
//! editor or a build machine finds `file:line:column:` where it looks for it. A line that may hold
//! a secret is named, and not shown.

use std::fmt;
use std::ops::Range;

/// Everything that is wrong with one file, as it is printed.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(String);

/// Where a mistake stands in a file whose text is at hand.
#[derive(Debug)]
pub(crate) struct InFile<'a> {
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
    /// From 1.
    pub(crate) line: usize,
    /// In characters, from 1.
    pub(crate) column: usize,
    /// In bytes of the text.
    pub(crate) span: Range<usize>,
}

impl Mistakes {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one that stands in a file.
    pub(crate) fn in_file(&mut self, at: &InFile<'_>, message: &str, help: Option<&str>) {
        let first = format!("{}:{}:{}: {message}", at.name, at.line, at.column);
        self.add(&first, at.shown(), help);
    }

    /// Adds one that stands in something with a name (a variable, a flag), or nowhere at all.
    pub(crate) fn elsewhere(&mut self, name: Option<&str>, message: &str, help: Option<&str>) {
        let first = name.map_or(message.to_owned(), |name| format!("{name}: {message}"));
        self.add(&first, None, help);
    }

    fn add(&mut self, first: &str, shown: Option<String>, help: Option<&str>) {
        let help = help.map(|help| format!("  help: {help}"));
        for part in [Some(first.to_owned()), shown, help].into_iter().flatten() {
            if !self.0.is_empty() {
                self.0.push('\n');
            }
            self.0.push_str(&part);
        }
    }
}

impl InFile<'_> {
    /// The line, and a mark under what is wrong in it.
    fn shown(&self) -> Option<String> {
        let line = self.text.lines().nth(self.line.checked_sub(1)?)?;
        if may_hold_a_secret(line) {
            return None;
        }
        let before = self.column - 1;
        let marked = self
            .text
            .get(self.span.clone())
            .and_then(|text| text.lines().next())
            .unwrap_or_default();
        let room = line.chars().count().saturating_sub(before).max(1);
        let marks = "^".repeat(marked.chars().count().clamp(1, room));
        let (number, line) = (self.line, line.replace('\t', " "));
        Some(format!(
            "{number:>5} | {line}\n{:>5} | {:before$}{marks}",
            "", ""
        ))
    }
}

/// By its words; and a line that is neither a table nor a setting may be the middle of anything.
fn may_hold_a_secret(line: &str) -> bool {
    let lower = line.trim_start().to_lowercase();
    let signs = [
        "://", "url", "password", "secret", "token", "key", "jwks", "endpoint",
    ];
    signs.iter().any(|sign| lower.contains(sign))
        || !(lower.starts_with('[') || lower.contains('='))
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str, line: usize, column: usize, span: Range<usize>) -> String {
        let mut mistakes = Mistakes::default();
        let at = InFile {
            name: "steadfast.toml",
            text,
            line,
            column,
            span,
        };
        mistakes.in_file(&at, "is wrong", Some("make it right"));
        mistakes.to_string()
    }

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_mark() {
        assert_eq!(
            drawn("a = 1\nä = soon\n", 2, 5, 11..15),
            "steadfast.toml:2:5: is wrong\n    2 | ä = soon\n      |     ^^^^\n  help: make it right"
        );
    }

    #[test]
    fn a_line_that_may_hold_a_secret_is_not_shown() {
        let drawn = drawn("url = \"redjs://:hunter2@host\"\n", 1, 7, 6..29);
        assert_eq!(drawn, "steadfast.toml:1:7: is wrong\n  help: make it right");
    }

    #[test]
    fn a_place_outside_of_the_text_is_told_without_it() {
        for (line, column, span) in [(7, 1, 0..0), (1, 400, 90..95), (1, 1, 3..1_000)] {
            assert!(drawn("a = 1\n", line, column, span).contains("is wrong"));
        }
    }

    #[test]
    fn mistakes_follow_each_other_line_by_line() {
        let mut mistakes = Mistakes::default();
        mistakes.elsewhere(Some("--listen"), "is not an address", None);
        mistakes.elsewhere(None, "nothing to serve", None);
        assert_eq!(
            mistakes.to_string(),
            "--listen: is not an address\nnothing to serve"
        );
    }
}
