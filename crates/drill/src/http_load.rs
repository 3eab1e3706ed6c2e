//! The load on an application's own interface: what its users ask for, and what counts as an
//! answer. Everything here is checked when it is read, so that a load that parses can be sent.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_drill::http_load::{Expect, HttpLoad, HttpRequest};
//!
//! let mut read = HttpRequest::parse("GET /users/{1..1000}")?;
//! read.weight = 9.0;
//! read.expect = Expect { within: Some(Duration::from_millis(500)), ..Expect::default() };
//! let write = HttpRequest::parse("PUT /users/{1..1000}?name={value}")?;
//! let mut load = HttpLoad::new("http://127.0.0.1:8000")?;
//! load.requests = vec![read, write]; // for `TargetOptions::http`
//! # Ok::<(), String>(())
//! ```

use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Uri};
use regex::Regex;

/// The requests of an application's users over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpLoad {
    /// Where the application listens: `http://host:port`, with a path before all others if need be.
    pub url: String,
    /// Headers of every request. `{env:NAME}` in a value is the environment variable of that name.
    pub headers: Vec<(String, String)>,
    /// A request that has no answer after this long has failed. Default 5 s.
    pub timeout: Duration,
    /// The requests; each is sent as often as its weight says.
    pub requests: Vec<HttpRequest>,
}

/// A kind of request.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRequest {
    /// The method.
    pub method: Method,
    /// The path with its query. `{1..1000}` is one of these numbers, drawn for each request: the
    /// key.
    pub path: Template,
    /// The body, with `{key}` and `{value}`. Default: none.
    pub body: Option<Template>,
    /// The `content-type` of the body. Default `application/json`.
    pub content_type: String,
    /// How often it is sent, compared with the others. Default 1.
    pub weight: f64,
    /// The mark of a good answer.
    pub expect: Expect,
    /// Where in the JSON of the answer the value stands that a write has put there, as a JSON
    /// pointer (`/name`). A write has `{value}` in its path or body.
    pub value: Option<String>,
    /// Where in the JSON of the answer `true` says that it may be out of date, as a JSON pointer.
    pub stale: Option<String>,
}

/// The mark of a good answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Expect {
    /// The status, as bounds. Default 200 to 299.
    pub status: RangeInclusive<u16>,
    /// A JSON pointer that must lead to something other than null. Default: the body is not looked
    /// at.
    pub json: Option<String>,
    /// A regular expression that the body must match. Default: none.
    pub matches: Option<Pattern>,
    /// An answer that takes longer counts as failed. Default: `timeout` only.
    pub within: Option<Duration>,
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            status: 200..=299,
            json: None,
            matches: None,
            within: None,
        }
    }
}

/// A regular expression that compiles.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Reads a regular expression in the syntax of the `regex` crate.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        Regex::new(text)
            .map(Self)
            .map_err(|error| format!("not a regular expression: {error}"))
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// A text with places for a key and a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    parts: Vec<TemplatePart>,
    /// The keys that `{low..high}` stands for.
    keys: Option<RangeInclusive<u64>>,
}

#[derive(Debug, Clone, PartialEq)]
enum TemplatePart {
    Text(String),
    Key,
    Value,
}

impl Template {
    /// Reads `{low..high}` and `{key}` as the key and `{value}` as the value; other braces are
    /// text.
    ///
    /// # Errors
    /// A range that is empty or given twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut keys) = (Vec::new(), None);
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let Some(close) = rest[open..].find('}').map(|at| open + at) else {
                break;
            };
            let inner = &rest[open + 1..close];
            let part = match inner {
                "key" => Some(TemplatePart::Key),
                "value" => Some(TemplatePart::Value),
                _ => {
                    let range = inner
                        .split_once("..")
                        .and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
                    if let Some((low, high)) = range {
                        if low > high {
                            return Err(format!(
                                "{{{inner}}} is empty: the lower number comes first"
                            ));
                        }
                        if keys.replace(low..=high).is_some() {
                            return Err(format!(
                                "{{{inner}}} is a second range of keys: {{key}} repeats the first"
                            ));
                        }
                    }
                    range.map(|_: (u64, u64)| TemplatePart::Key)
                }
            };
            // An unknown brace, as of JSON, is text up to and including itself.
            let upto = if part.is_some() { open } else { open + 1 };
            if upto > 0 {
                parts.push(TemplatePart::Text(rest[..upto].to_owned()));
            }
            rest = if part.is_some() {
                &rest[close + 1..]
            } else {
                &rest[open + 1..]
            };
            parts.extend(part);
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Text(rest.to_owned()));
        }
        Ok(Self { parts, keys })
    }

    /// The text with this key and value.
    pub(crate) fn fill(&self, key: u64, value: u64) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                TemplatePart::Text(part) => text.push_str(part),
                TemplatePart::Key => text.push_str(&key.to_string()),
                TemplatePart::Value => text.push_str(&value.to_string()),
            }
        }
        text
    }

    fn has_value(&self) -> bool {
        self.parts.contains(&TemplatePart::Value)
    }

    fn has_key(&self) -> bool {
        self.parts.contains(&TemplatePart::Key)
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for part in &self.parts {
            match (part, &self.keys) {
                (TemplatePart::Text(text), _) => f.write_str(text)?,
                (TemplatePart::Key, Some(keys)) => {
                    write!(f, "{{{}..{}}}", keys.start(), keys.end())?
                }
                (TemplatePart::Key, None) => f.write_str("{key}")?,
                (TemplatePart::Value, _) => f.write_str("{value}")?,
            }
        }
        Ok(())
    }
}

impl HttpRequest {
    /// Reads a line such as `GET /users/{1..1000}`; without a method it is GET.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let (method, path) = line.split_once(' ').unwrap_or(("GET", line));
        let path = path.trim();
        if !path.starts_with('/') || path.contains(char::is_whitespace) {
            return Err(format!(
                "`{line}` is not a request: write a method and a path, such as `GET /users/{{1..1000}}`"
            ));
        }
        let method = Method::from_bytes(method.as_bytes())
            .ok()
            .filter(|method| {
                method
                    .as_str()
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase())
            })
            .ok_or_else(|| format!("`{method}` is not a method such as GET or POST"))?;
        let path = Template::parse(path)?;
        path.fill(1, 1)
            .parse::<Uri>()
            .map_err(|error| format!("`{line}`: {error}; percent-encode what a URL cannot hold"))?;
        Ok(Self {
            method,
            path,
            body: None,
            content_type: "application/json".to_owned(),
            weight: 1.0,
            expect: Expect::default(),
            value: None,
            stale: None,
        })
    }

    /// Whether it puts a value where a read can find it.
    pub fn writes(&self) -> bool {
        self.path.has_value() || self.body.as_ref().is_some_and(Template::has_value)
    }

    /// The keys that it draws from: one, if it names no range.
    pub(crate) fn keys(&self) -> RangeInclusive<u64> {
        self.path.keys.clone().unwrap_or(1..=1)
    }

    /// The line that it was read from, and its weight.
    pub(crate) fn described(&self) -> String {
        let weight = if self.weight == 1.0 {
            String::new()
        } else {
            format!(" × {}", self.weight)
        };
        format!("{} {}{weight}", self.method, self.path)
    }

    fn check(&self) -> Result<(), String> {
        let uses_key = self.body.as_ref().is_some_and(Template::has_key);
        if uses_key && self.path.keys.is_none() {
            return Err(
                "`{key}` repeats the key of a range such as {1..1000} in the path, which has none"
                    .to_owned(),
            );
        }
        if self.writes() && self.value.is_some() {
            return Err("a request either writes {value} or reads it back by `value`: give the read a request of its own".to_owned());
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err("a weight is a number above 0".to_owned());
        }
        for pointer in [&self.value, &self.stale, &self.expect.json]
            .into_iter()
            .flatten()
        {
            if !pointer.is_empty() && !pointer.starts_with('/') {
                return Err(format!(
                    "`{pointer}` is not a JSON pointer: write /{pointer}"
                ));
            }
        }
        Ok(())
    }
}

impl HttpLoad {
    /// A load on the application at that URL, of no requests yet.
    ///
    /// # Errors
    /// A URL that cannot be asked.
    pub fn new(url: &str) -> Result<Self, String> {
        let uri: Uri = url
            .parse()
            .map_err(|error| format!("this is not a URL such as http://127.0.0.1:8000: {error}"))?;
        match uri.scheme_str() {
            Some("http") if uri.query().is_none() => {}
            Some("http") => {
                return Err(
                    "the URL of the application has no query; each request has its own".to_owned(),
                );
            }
            Some("https") => {
                return Err("the load speaks plain HTTP: give the address behind the TLS proxy, http://host:port".to_owned());
            }
            _ => return Err("this is not a URL such as http://127.0.0.1:8000".to_owned()),
        }
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(
                "the URL holds a user or a password: send them as a header instead".to_owned(),
            );
        }
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            headers: Vec::new(),
            timeout: Duration::from_secs(5),
            requests: Vec::new(),
        })
    }

    /// Checks what the requests have in common.
    ///
    /// # Errors
    /// Says what is wrong, and with which request.
    pub fn check(&self) -> Result<(), (Option<usize>, String)> {
        if self.requests.is_empty() {
            return Err((
                None,
                "there is no request to send: name at least one, such as `GET /`".to_owned(),
            ));
        }
        for (number, request) in self.requests.iter().enumerate() {
            request.check().map_err(|why| (Some(number), why))?;
        }
        for (name, value) in &self.headers {
            let named = HeaderName::from_bytes(name.as_bytes()).is_ok();
            if !named || HeaderValue::from_str(value).is_err() {
                return Err((None, format!("`{name}` is not a header that can be sent")));
            }
        }
        if self.requests.iter().all(HttpRequest::writes) {
            return Err((
                None,
                "all requests write: a load is judged by what its reads get".to_owned(),
            ));
        }
        let written = self.requests.iter().find(|request| request.writes());
        let compared = || {
            self.requests
                .iter()
                .enumerate()
                .filter(|(_, request)| request.value.is_some())
        };
        if let Some(written) = written {
            if let Some((number, _)) = compared().find(|(_, read)| read.keys() != written.keys()) {
                return Err((
                    Some(number),
                    "a read that is held against writes draws from the same keys as they do"
                        .to_owned(),
                ));
            }
        } else if let Some((number, _)) = compared().next() {
            return Err((
                Some(number),
                "`value` reads back what a write has put there, and no request writes {value}"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// The share of requests that write.
    pub(crate) fn writes(&self) -> f64 {
        let sum = |writes: bool| -> f64 {
            let such = self
                .requests
                .iter()
                .filter(|request| request.writes() == writes);
            such.map(|request| request.weight).sum()
        };
        sum(true) / (sum(true) + sum(false))
    }

    /// The number of keys of the request that has the most.
    pub(crate) fn keys(&self) -> u64 {
        let count = |keys: RangeInclusive<u64>| (keys.end() - keys.start()).saturating_add(1);
        let counts = self.requests.iter().map(|request| count(request.keys()));
        counts.max().unwrap_or(1).min(10_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d7_a_request_is_read_with_its_keys_and_refused_with_a_reason() {
        let read = HttpRequest::parse("GET /users/{1..1000}?full=1").unwrap();
        assert_eq!((read.keys(), read.writes()), (1..=1000, false));
        assert_eq!(read.path.fill(7, 0), "/users/7?full=1");
        assert_eq!(HttpRequest::parse("/").unwrap().method, Method::GET);
        for (line, why) in [
            ("GET users", "write a method and a path"),
            ("get /", "is not a method"),
            ("GET /{9..1}", "is empty"),
            ("GET /{1..2}/{3..4}", "a second range"),
            ("GET /a b", "write a method and a path"),
        ] {
            let error = HttpRequest::parse(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn d7_braces_of_json_stay_text() {
        let body = Template::parse(r#"{"id": {key}, "name": "v{value}", "tags": {}}"#).unwrap();
        assert_eq!(body.fill(3, 9), r#"{"id": 3, "name": "v9", "tags": {}}"#);
        assert!(body.has_value() && body.has_key());
    }

    #[test]
    fn d7_a_load_that_contradicts_itself_is_refused() {
        let load = |requests: &[(&str, Option<&str>, Option<&str>)]| {
            let mut load = HttpLoad::new("http://127.0.0.1:1/").unwrap();
            for (line, body, value) in requests {
                let mut request = HttpRequest::parse(line).unwrap();
                request.body = body.map(|body| Template::parse(body).unwrap());
                request.value = value.map(str::to_owned);
                load.requests.push(request);
            }
            load.check().map_err(|(_, why)| why)
        };
        let put = ("PUT /u/{1..9}", Some("v{value}"), None);
        assert_eq!(load(&[("GET /u/{1..9}", None, Some("/name")), put]), Ok(()));
        for (requests, why) in [
            (&[][..], "no request"),
            (&[put][..], "all requests write"),
            (
                &[("GET /u/{1..8}", None, Some("/name")), put][..],
                "the same keys",
            ),
            (
                &[("GET /u/{1..9}", None, Some("/name"))][..],
                "no request writes",
            ),
            (&[("GET /", None, Some("name")), put][..], "JSON pointer"),
            (&[("GET /", Some("{key}"), None)][..], "repeats the key"),
        ] {
            let error = load(requests).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for (url, why) in [
            ("https://a", "plain HTTP"),
            ("http://a:b@c", "a header instead"),
            ("a", "not a URL"),
        ] {
            assert!(HttpLoad::new(url).unwrap_err().contains(why), "{url}");
        }
    }
}
