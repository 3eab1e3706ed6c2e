//! The load on an application's own interface, as it stands in a scenario file under
//! `[target.http]`.

use std::collections::BTreeMap;

use toml::Spanned;

use super::value::{Mistake, Time};
use crate::http_load::{Expect, HttpLoad, HttpRequest, Pattern, Template};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpSource {
    url: Spanned<String>,
    #[serde(default)]
    headers: BTreeMap<String, Spanned<String>>,
    timeout: Option<Spanned<Time>>,
    requests: Spanned<Vec<Spanned<RequestSource>>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestSource {
    request: Spanned<String>,
    weight: Option<f64>,
    body: Option<Spanned<String>>,
    content_type: Option<String>,
    status: Option<Spanned<StatusSource>>,
    json: Option<String>,
    matches: Option<Spanned<String>>,
    within: Option<Spanned<Time>>,
    value: Option<String>,
    stale: Option<String>,
}

/// A status such as 200, or a class such as "2xx".
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum StatusSource {
    Number(u16),
    Class(String),
}

impl HttpSource {
    pub(super) fn checked(self) -> Result<HttpLoad, Mistake> {
        let mut load =
            HttpLoad::new(self.url.get_ref()).map_err(|why| Mistake::at(&self.url, why))?;
        if let Some(timeout) = self.timeout {
            if timeout.get_ref().0.is_zero() {
                return Err(Mistake::at(&timeout, "a timeout is longer than 0"));
            }
            load.timeout = timeout.get_ref().0;
        }
        let headers = self.headers.into_iter();
        load.headers = headers
            .map(|(name, value)| (name, value.into_inner()))
            .collect();
        let place = self.requests.span();
        let requests = self.requests.into_inner();
        let places: Vec<_> = requests.iter().map(Spanned::span).collect();
        for request in requests {
            load.requests.push(request.into_inner().checked()?);
        }
        load.check().map_err(|(number, message)| Mistake {
            span: number.map_or(place, |number| places[number].clone()),
            message,
        })?;
        Ok(load)
    }
}

impl RequestSource {
    fn checked(self) -> Result<HttpRequest, Mistake> {
        let mut request = HttpRequest::parse(self.request.get_ref())
            .map_err(|why| Mistake::at(&self.request, why))?;
        if let Some(body) = self.body {
            let template = Template::parse(body.get_ref());
            request.body = Some(template.map_err(|why| Mistake::at(&body, why))?);
        }
        request.weight = self.weight.unwrap_or(1.0);
        if let Some(content_type) = self.content_type {
            request.content_type = content_type;
        }
        let status = match self.status {
            Some(status) => checked_status(&status)?,
            None => Expect::default().status,
        };
        let matches = self.matches.map(|pattern| {
            Pattern::new(pattern.get_ref()).map_err(|why| Mistake::at(&pattern, why))
        });
        request.expect = Expect {
            status,
            json: self.json,
            matches: matches.transpose()?,
            within: self.within.map(|time| time.get_ref().0),
        };
        (request.value, request.stale) = (self.value, self.stale);
        Ok(request)
    }
}

fn checked_status(
    status: &Spanned<StatusSource>,
) -> Result<std::ops::RangeInclusive<u16>, Mistake> {
    let class = |text: &str| {
        let digit = text.strip_suffix("xx")?.parse::<u16>().ok()?;
        (1..=5)
            .contains(&digit)
            .then(|| digit * 100..=digit * 100 + 99)
    };
    let bounds = match status.get_ref() {
        StatusSource::Number(number) => (100..=599).contains(number).then_some(*number..=*number),
        StatusSource::Class(text) => class(text),
    };
    bounds.ok_or_else(|| {
        Mistake::at(
            status,
            "a status is a number such as 200, or a class such as \"2xx\"",
        )
    })
}
