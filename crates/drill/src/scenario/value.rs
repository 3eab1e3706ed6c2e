//! Values that may stand in a scenario, and a mistake with its place in the text.

use std::ops::Range;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _};
use toml::Spanned;

/// A mistake, and where in the text it is.
pub(super) struct Mistake {
    pub(super) span: Range<usize>,
    pub(super) message: String,
}

impl Mistake {
    pub(super) fn at<T>(place: &Spanned<T>, message: impl Into<String>) -> Self {
        Self {
            span: place.span(),
            message: message.into(),
        }
    }
}

/// A length of time such as `250ms`, `5s` or `2m`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let unit = match text[digits..].trim() {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => {
                return Err(D::Error::custom(format!(
                    "{text:?} is not a time such as 250ms, 5s or 2m"
                )));
            }
        };
        let number: f64 = text[..digits].parse().map_err(|_| {
            D::Error::custom(format!("{text:?} is not a time such as 250ms, 5s or 2m"))
        })?;
        Duration::try_from_secs_f64(number * unit)
            .ok()
            .filter(|time| *time <= Duration::from_secs(24 * 3600))
            .map(Time)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is longer than a day")))
    }
}

/// A share such as `5%`, or a number between 0 and 1.
#[derive(Clone, Copy)]
pub(super) struct Share(pub(super) f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        let share = match Either::deserialize(deserializer) {
            Ok(Either::Number(number)) => Some(number),
            Ok(Either::Text(text)) => text
                .strip_suffix('%')
                .and_then(|number| number.trim().parse::<f64>().ok())
                .map(|n| n / 100.0),
            Err(_) => None,
        };
        share
            .filter(|share| (0.0..=1.0).contains(share))
            .map(Share)
            .ok_or_else(|| {
                D::Error::custom("this is a percentage such as '5%', or a number between 0 and 1")
            })
    }
}

pub(super) fn within<T: PartialOrd + Copy + std::fmt::Display>(
    value: Option<Spanned<T>>,
    low: T,
    high: T,
    what: &str,
) -> Result<Option<T>, Mistake> {
    match value {
        Some(value) if *value.get_ref() < low || *value.get_ref() > high => Err(Mistake::at(
            &value,
            format!("{what}: between {low} and {high}"),
        )),
        value => Ok(value.map(Spanned::into_inner)),
    }
}

/// As `within`, for numbers that may be NaN.
pub(super) fn share_of(
    value: Option<Spanned<f64>>,
    low: f64,
    high: f64,
) -> Result<Option<f64>, Mistake> {
    match value {
        Some(value) if !(low..=high).contains(value.get_ref()) => Err(Mistake::at(
            &value,
            format!("this is a number between {low} and {high}"),
        )),
        value => Ok(value.map(Spanned::into_inner)),
    }
}
