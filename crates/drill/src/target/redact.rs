//! The part of a command line or a log line that a report shows. Reports are forwarded and kept, so
//! what looks like a secret does not enter one.

use std::sync::LazyLock;

use regex::{Captures, Regex};

static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        // A password in a URL: scheme://user:password@
        r"(?P<url>[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*:)(?P<a>[^\s/]+)(?P<at>@)",
        // NAME=value, --name value and --name=value, where the name says that it is secret.
        r#"|(?P<name>(?i-u:[\w-]*(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|credential)[\w-]*)(?:=|:\s?|\s+))(?P<b>"[^"]*"|'[^']*'|\S+)"#,
        // What follows `Bearer` or redis-cli's -a.
        r"|(?P<bearer>(?i-u:bearer)\s+|\s-a\s+)(?P<c>\S+)",
    ))
    .expect("the pattern is well formed, as a test shows")
});

/// The text with `***` in place of what looks like a secret.
pub(super) fn redacted(text: &str) -> String {
    SECRET
        .replace_all(text, |found: &Captures<'_>| {
            let part = |name| found.name(name).map_or("", |part| part.as_str());
            format!(
                "{}{}{}***{}",
                part("url"),
                part("name"),
                part("bearer"),
                part("at")
            )
        })
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d7_a_command_is_shown_without_its_secrets() {
        for (text, shown) in [
            ("uvicorn app:app --port 8000", "uvicorn app:app --port 8000"),
            (
                "app --redis redis://u:hunt@er2@h:1/0",
                "app --redis redis://u:***@h:1/0",
            ),
            ("DB_PASSWORD=hunter2 app", "DB_PASSWORD=*** app"),
            ("app --api-key 'a b' x", "app --api-key *** x"),
            ("app --token=abc -v", "app --token=*** -v"),
            (
                "curl -H 'Authorization: Bearer abc.def'",
                "curl -H 'Authorization: Bearer ***",
            ),
            ("redis-cli -a hunter2 ping", "redis-cli -a *** ping"),
        ] {
            assert_eq!(redacted(text), shown);
        }
    }
}
