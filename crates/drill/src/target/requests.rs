//! Sends the load, and judges each answer as a user would: by its status, its content and its time,
//! and, where it reads what was written before, by whether that is still there.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, timeout};

use crate::http_load::{HttpLoad, HttpRequest};
use crate::subject::{Answer, DatabaseFault, Facts, Failure, SetUpError, Source, Subject};

/// Of an answer's body, at most so much is read.
const BODY_MAX: usize = 8 << 20;
/// A write whose fate is unknown may still happen for so long; until then nothing is said of its
/// key.
const LINGERS: Duration = Duration::from_secs(30);
/// Between two attempts to find the application up.
const PAUSE: Duration = Duration::from_millis(50);

/// An application as its users see it, over HTTP.
pub(super) struct HttpSubject {
    load: HttpLoad,
    headers: Vec<(HeaderName, HeaderValue)>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Added to each version that is written, so that values of earlier runs are told from those of
    /// this one.
    base: u64,
    state: Mutex<State>,
}

struct State {
    rng: SmallRng,
    keys: HashMap<u64, KeyHistory>,
    unjudged: u64,
}

/// The writes of one key.
#[derive(Default)]
struct KeyHistory {
    issued: u64,
    running: u32,
    /// Writes have overlapped, or one has an unknown fate: which of them is the last is not known
    /// until another is confirmed alone.
    unsettled: bool,
    /// A write of unknown fate may still happen until then.
    lingers: Option<Instant>,
}

impl KeyHistory {
    fn is_judged(&self) -> bool {
        !self.unsettled && self.running <= 1
    }
}

impl HttpSubject {
    /// Takes what headers name from the environment. `base` is a number larger than that of any
    /// earlier run.
    pub(super) fn new(load: HttpLoad, seed: u64, base: u64) -> Result<Self, String> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(load.timeout));
        let headers = load
            .headers
            .iter()
            .map(|(name, value)| filled(name, value))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            headers,
            client: Client::builder(TokioExecutor::new()).build(connector),
            base,
            state: Mutex::new(State {
                rng: SmallRng::seed_from_u64(seed),
                keys: HashMap::new(),
                unjudged: 0,
            }),
            load,
        })
    }

    /// Waits until the application answers anything at all.
    pub(super) async fn up(&self, limit: Duration) -> Result<(), String> {
        let read = self.load.requests.iter().find(|request| !request.writes());
        let Some(read) = read else { return Ok(()) };
        let until = Instant::now() + limit;
        loop {
            let failed = match self.send(read, *read.keys().start(), 0).await {
                Ok(_) => return Ok(()),
                Err(failed) => failed,
            };
            if Instant::now() > until {
                return Err(failed.to_owned());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Where the application is asked.
    pub(super) fn url(&self) -> &str {
        &self.load.url
    }

    pub(super) fn keys(&self) -> u64 {
        self.load.keys()
    }

    pub(super) fn writes(&self) -> f64 {
        self.load.writes()
    }

    /// The requests as people read them.
    pub(super) fn described(&self) -> Vec<String> {
        let requests = self.load.requests.iter();
        requests.map(HttpRequest::described).collect()
    }

    /// Reads that were not held against writes, as nobody could know which write was the last.
    pub(super) fn unjudged(&self) -> u64 {
        self.state().unjudged
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses among the requests that write, or that do not, by weight.
    fn choose(&self, writes: bool) -> &HttpRequest {
        let such = || {
            let requests = self.load.requests.iter();
            requests.filter(move |request| request.writes() == writes)
        };
        let sum: f64 = such().map(|request| request.weight).sum();
        let mut left = self.state().rng.random::<f64>() * sum;
        let chosen = such().find(|request| {
            left -= request.weight;
            left < 0.0
        });
        chosen
            .or_else(|| such().next_back())
            .expect("a load is checked to have reads, and writes only if it has some")
    }

    /// Sends a request and reads its answer: the status and the body.
    async fn send(
        &self,
        request: &HttpRequest,
        key: u64,
        value: u64,
    ) -> Result<(u16, Bytes), &'static str> {
        let uri = format!("{}{}", self.load.url, request.path.fill(key, value));
        let mut builder = Request::builder().method(request.method.clone()).uri(uri);
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        let body = request.body.as_ref().map(|body| body.fill(key, value));
        if body.is_some() {
            builder = builder.header(header::CONTENT_TYPE, &request.content_type);
        }
        let sent = builder
            .body(Full::from(body.unwrap_or_default()))
            .map_err(|_| "unsendable")?;
        let answering = async {
            let answer = self.client.request(sent).await.map_err(|error| {
                if error.is_connect() {
                    "unreachable"
                } else {
                    "broken"
                }
            })?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
            let body = body.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    "too_large"
                } else {
                    "broken"
                }
            })?;
            Ok((status, body.to_bytes()))
        };
        timeout(self.load.timeout, answering)
            .await
            .unwrap_or(Err("timeout"))
    }

    /// Sends it and holds the answer against what is expected.
    async fn ask(
        &self,
        request: &HttpRequest,
        key: u64,
        value: u64,
    ) -> Result<Bytes, &'static str> {
        let began = Instant::now();
        let (status, body) = self.send(request, key, value).await?;
        let expect = &request.expect;
        if !expect.status.contains(&status) {
            return Err(match status {
                300..=399 => "status_3xx",
                400..=499 => "status_4xx",
                500..=599 => "status_5xx",
                _ => "status_other",
            });
        }
        if expect.within.is_some_and(|within| began.elapsed() > within) {
            return Err("too_late");
        }
        let text = || String::from_utf8_lossy(&body);
        if expect
            .matches
            .as_ref()
            .is_some_and(|pattern| !pattern.is_match(&text()))
        {
            return Err("no_match");
        }
        if let Some(pointer) = &expect.json {
            let found = json(&body, pointer).is_some_and(|value| !value.is_null());
            if !found {
                return Err("no_json");
            }
        }
        Ok(body)
    }

    /// The key's number within the request's own range.
    fn key_of(&self, request: &HttpRequest, key: u64) -> u64 {
        let keys = request.keys();
        keys.start() + key % (keys.end() - keys.start()).saturating_add(1)
    }

    /// The version that a body holds: 0 if it is none that this run has written.
    fn version(&self, body: &Bytes, pointer: &str) -> u64 {
        let found = json(body, pointer).map(|value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        });
        let number = found.and_then(|text| last_number(&text));
        number.map_or(0, |number| number.saturating_sub(self.base))
    }
}

impl Subject for HttpSubject {
    /// The rows are the application's own.
    fn warm(&self, _keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        Box::pin(async move {
            let request = self.choose(false);
            let judged_before = request.value.is_some()
                && self
                    .state()
                    .keys
                    .get(&key)
                    .is_none_or(KeyHistory::is_judged);
            let body = self
                .ask(request, self.key_of(request, key), 0)
                .await
                .map_err(|kind| Failure { kind })?;
            let mut state = self.state();
            let known = state.keys.entry(key).or_default();
            // The newest version is never too old.
            let newest = known.issued;
            let judged = judged_before && known.is_judged();
            let version = match &request.value {
                Some(pointer) if judged => self.version(&body, pointer).min(newest),
                _ => newest,
            };
            state.unjudged += u64::from(request.value.is_some() && !judged);
            let says = serde_json::Value::Bool(true);
            let stale = request.stale.as_ref();
            Ok(Answer {
                // Where an application has its answers from is its own affair.
                source: Source::Database,
                version,
                age: Duration::ZERO,
                stale: stale.map(|pointer| json(&body, pointer) == Some(says)),
            })
        })
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let request = self.choose(true);
            let alone = {
                let mut state = self.state();
                let known = state.keys.entry(key).or_default();
                known.issued = known.issued.max(version);
                known.running += 1;
                known.unsettled |= known.running > 1;
                known.running == 1 && known.lingers.is_none_or(|until| Instant::now() > until)
            };
            let sent = self
                .ask(request, self.key_of(request, key), self.base + version)
                .await;
            let mut state = self.state();
            let known = state.keys.entry(key).or_default();
            known.running -= 1;
            match sent {
                Ok(_) => {
                    if alone && known.issued == version {
                        (known.unsettled, known.lingers) = (false, None);
                    }
                    Ok(())
                }
                Err(kind) => {
                    // An application that answered has ended its work; one that did not may still
                    // be at it.
                    if matches!(kind, "timeout" | "broken" | "too_large") {
                        (known.unsettled, known.lingers) = (true, Some(Instant::now() + LINGERS));
                    }
                    Err(Failure { kind })
                }
            }
        })
    }

    fn database_fault(&self, _fault: DatabaseFault) {}

    /// Nothing is known of the inside; what passes the proxy is seen there.
    fn facts(&self) -> Facts {
        Facts {
            connection: crate::subject::Connection::Ready,
            ..Facts::default()
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn json(body: &Bytes, pointer: &str) -> Option<serde_json::Value> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    value.pointer(pointer).cloned()
}

/// The last run of digits in a text, as a number.
fn last_number(text: &str) -> Option<u64> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let begin = text[..end].rfind(|c: char| !c.is_ascii_digit());
    text[begin.map_or(0, |at| {
        at + text[at..].chars().next().map_or(1, char::len_utf8)
    })..end]
        .parse()
        .ok()
}

/// A header with its variables filled in. A value is never shown.
fn filled(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let mut text = String::new();
    let mut rest = value;
    while let Some((before, behind)) = rest.split_once("{env:") {
        let (variable, after) = behind
            .split_once('}')
            .ok_or_else(|| format!("the header {name} has {{env: without its }}"))?;
        let set = std::env::var(variable).map_err(|_| {
            format!("the header {name} needs the environment variable {variable}, which is not set")
        })?;
        text.push_str(before);
        text.push_str(set.trim_end());
        rest = after;
    }
    text.push_str(rest);
    let wrong = || format!("the header {name} cannot be sent: it holds what a header cannot");
    let mut value = HeaderValue::from_str(&text).map_err(|_| wrong())?;
    value.set_sensitive(true);
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d7_the_value_is_the_last_number_of_a_text() {
        for (text, number) in [
            ("v1796000001", Some(1_796_000_001)),
            ("7", Some(7)),
            ("1 und é42!", Some(42)),
            ("none", None),
        ] {
            assert_eq!(last_number(text), number, "{text}");
        }
    }

    #[test]
    fn d7_a_header_takes_its_secret_from_the_environment_or_says_which_is_missing() {
        let error = filled("authorization", "Bearer {env:NOT_SET_ANYWHERE_7}").unwrap_err();
        assert!(error.contains("NOT_SET_ANYWHERE_7"), "{error}");
        let (_, value) = filled("authorization", "Bearer {env:PATH}").unwrap();
        assert!(value.is_sensitive());
    }
}
