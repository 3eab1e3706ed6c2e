//! The smaller sections: `[log]`, `[drill]`, `[metrics]` and `[tracing]`.

use std::path::PathBuf;

use serde::Serialize;

use super::secret::SecretUrl;
use super::section::Section;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// `[log]`: what is logged, to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogConfig {
    /// `text` (default) or `json`.
    pub format: LogFormat,
    /// `error`, `warn`, `info` (default), `debug`, `trace`, or a filter such as `info,sqlx=warn`.
    /// Reloaded by SIGHUP.
    pub level: String,
}

impl LogConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let level = section.string("level").unwrap_or_else(|| "info".to_owned());
        if let Err(why) = check_level(&level) {
            let mistake = section.mistake("level", why);
            section.refuse(mistake.help(format!(
                "one of {}, or such a level and others for parts of the program: info,sqlx=warn",
                LEVELS.join(", ")
            )));
        }
        Self {
            format: section
                .choice(
                    "format",
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                )
                .unwrap_or(LogFormat::Text),
            level,
        }
    }
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Holds a level against the little of the filter's language that can be checked. The whole of it
/// takes any word for the name of a part of the program, `warning` among them, and logs nothing
/// else.
fn check_level(text: &str) -> Result<(), String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let mut overall = 0;
    for directive in text.split(',').map(str::trim) {
        match directive.split_once('=') {
            None if is_level(directive) => overall += 1,
            None => return Err(format!("names {directive:?}, which is no level")),
            Some((part, level)) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                if part.is_empty() || !part.chars().all(plain) || !is_level(level) {
                    return Err(format!("has {directive:?}, which is no part=level"));
                }
            }
        }
    }
    match overall {
        1 => Ok(()),
        0 => Err("names parts of the program, but no level for all the others".to_owned()),
        _ => Err("names more than one level for the whole program".to_owned()),
    }
}

/// `[drill]`: breaking things on purpose from the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DrillConfig {
    /// Whether drills may be started over HTTP; default no. Drills break only servers that they
    /// started themselves.
    pub enabled: bool,
    /// Folder for the reports; default none: a report is kept in memory, until newer drills take
    /// its place or the service ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reports: Option<PathBuf>,
}

impl DrillConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let enabled = section.boolean("enabled").unwrap_or(false);
        if enabled && !cfg!(feature = "drill") {
            let message =
                "cannot be: this program was built without the feature `drill` of steadfast-server";
            section.refuse(section.mistake("enabled", message));
        }
        Self {
            enabled,
            reports: section.string("reports").map(PathBuf::from),
        }
    }
}

/// `[metrics]`: the Prometheus endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// Whether `/metrics` answers; default yes.
    pub enabled: bool,
}

impl MetricsConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            enabled: section.boolean("enabled").unwrap_or(true),
        }
    }
}

/// `[tracing]`: traces by OTLP.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TracingConfig {
    /// Where traces are sent, OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`; default
    /// nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SecretUrl>,
    /// Share of requests that start a trace of their own; default 0.1. A caller's decision is kept.
    pub sample: f64,
    /// The name of this service in the traces; default `steadfast`.
    pub service_name: String,
}

impl TracingConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let endpoint = section
            .has("endpoint")
            .then(|| SecretUrl::read(section, "endpoint", "", &["http", "https"]));
        if endpoint.as_ref().is_some_and(SecretUrl::names_a_user) {
            let mistake = section.mistake("endpoint", "names a user, which would not be sent");
            section.refuse(
                mistake.help("put `authorization=…` into the variable OTEL_EXPORTER_OTLP_HEADERS"),
            );
        }
        Self {
            endpoint,
            sample: section.number("sample", 0.0, 1.0).unwrap_or(0.1),
            service_name: section
                .string("service_name")
                .unwrap_or_else(|| "steadfast".to_owned()),
        }
    }
}
