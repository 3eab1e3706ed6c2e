//! How often callers may ask. Several limits may hold at once, each with a name that callers see in
//! the answers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::section::Section;
use super::units::duration;

/// The way in which requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Algorithm {
    /// A bucket that fills evenly: `burst` at once, then `requests` in each `per`.
    TokenBucket,
    /// At most `requests` in any `per`, estimated from two windows.
    SlidingWindow,
}

/// The share of a limit: whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum By {
    /// The requests of each caller: the subject of the token, or else the address.
    Caller,
    /// The requests of each caller to each route.
    CallerAndRoute,
    /// All to each route.
    Route,
}

/// The fate of requests while the fleet's count in Redis is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhenDown {
    /// All pass.
    Open,
    /// Each process counts for itself, from what was last known.
    Local,
    /// None pass.
    Closed,
}

/// `[limits.rate.NAME]`: one limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RateConfig {
    /// Requests allowed in each `per`; required.
    pub requests: u32,
    /// The time in which so many are allowed; default 1 s, at most a day.
    #[serde(serialize_with = "duration")]
    pub per: Duration,
    /// Requests that may come at once, for a token bucket; default `requests`.
    pub burst: u32,
    /// `token_bucket` (default) or `sliding_window`.
    pub algorithm: Algorithm,
    /// `caller` (default), `caller_and_route` or `route`.
    pub by: By,
    /// While Redis is down: `open`, `local` (default) or `closed`. Local lets at most as many times
    /// the limit pass as there are processes.
    pub when_down: WhenDown,
    /// Routes that it holds for, such as `/v1/queries/{name}`; default all but health, metrics and
    /// the page.
    pub routes: Vec<String>,
}

impl RateConfig {
    pub(crate) fn read_all(limits: &Section<'_>) -> BTreeMap<String, Self> {
        limits
            .sections("rate")
            .into_iter()
            .map(|(name, section)| {
                let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
                if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
                    let message = "must have 1 to 32 letters, digits, `_` or `-`";
                    limits.refuse(limits.mistake(
                        "rate",
                        format!("has the name {name:?}, but a name {message}"),
                    ));
                }
                let config = Self::read(&section);
                section.finish();
                (name, config)
            })
            .collect()
    }

    fn read(section: &Section<'_>) -> Self {
        if !section.has("requests") {
            section.refuse(section.mistake("requests", "is missing"));
        }
        let whole = |key: &str| {
            section
                .integer(key, 1, 1_000_000)
                .and_then(|number| u32::try_from(number).ok())
        };
        let requests = whole("requests").unwrap_or(1);
        let per = section.positive("per").unwrap_or(Duration::from_secs(1));
        if per > Duration::from_secs(86_400) || per < Duration::from_millis(1) {
            section.refuse(section.mistake("per", "must be between 1ms and 24h"));
        }
        let algorithms = [
            ("token_bucket", Algorithm::TokenBucket),
            ("sliding_window", Algorithm::SlidingWindow),
        ];
        let algorithm = section
            .choice("algorithm", &algorithms)
            .unwrap_or(Algorithm::TokenBucket);
        if algorithm == Algorithm::SlidingWindow && section.has("burst") {
            let message =
                "means nothing to a sliding window, which lets all of `requests` come at once";
            section.refuse(section.mistake("burst", message));
        }
        let by = [
            ("caller", By::Caller),
            ("caller_and_route", By::CallerAndRoute),
            ("route", By::Route),
        ];
        let down = [
            ("open", WhenDown::Open),
            ("local", WhenDown::Local),
            ("closed", WhenDown::Closed),
        ];
        let routes = section.strings("routes").unwrap_or_default();
        for route in &routes {
            if !crate::role::RULES.iter().any(|rule| rule.path == route) {
                let message = format!("names {route:?}, which is not a route of this service");
                section.refuse(section.mistake("routes", message));
            }
        }
        Self {
            requests,
            per,
            burst: whole("burst").unwrap_or(requests),
            algorithm,
            by: section.choice("by", &by).unwrap_or(By::Caller),
            when_down: section
                .choice("when_down", &down)
                .unwrap_or(WhenDown::Local),
            routes,
        }
    }
}
