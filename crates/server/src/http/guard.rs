//! What must hold for every request, before any handler sees it: that it was meant for this service (a page of another
//! origin, or a name that points here by trickery, is refused, also on loopback), that there is room for it, and that
//! it ends in time. And for every answer: that no browser guesses at it, frames it or keeps it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tokio::time::Instant;
use tracing::Instrument;

use crate::app::App;
use crate::auth;
use crate::http::route::{Route, path_asked_for};
use crate::problem::{Problem, ProblemKind};
use crate::query::waiting::within;
use crate::serve::{Counted, Spare};
use crate::telemetry;

/// Which limits apply to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// Answers from known state, and must answer when all else is full.
    Vital,
    /// Lasts as long as its reader stays.
    Stream,
    /// All else.
    Ordinary,
}

impl Lane {
    fn of(request: &Request) -> Self {
        if is_stream(request.uri().path()) {
            Self::Stream
        } else if is_probe(request) {
            Self::Vital
        } else {
            Self::Ordinary
        }
    }
}

/// Whether what is answered there lasts as long as its reader stays.
pub(crate) fn is_stream(path: &str) -> bool {
    path == "/v1/events" || (path.starts_with("/v1/drills/") && path.ends_with("/events"))
}

/// The middleware around every route.
pub(super) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    app.proxies().find_caller(&mut request);
    let method = request.method().clone();
    let route = Route::of(&request);
    let asked = Asked::now(&app, method_label(&method), route.clone());
    // In a loop that is not ours, nobody else counts; until when the answer is written is not known there.
    let counted = request.extensions().get::<Counted>().is_some();
    let _in_flight = (!counted).then(|| app.enter());
    let mut response = match meant_for_us(&app, &request) {
        Ok(()) if telemetry::traces_are_enabled() => {
            traced(&app, route.as_ref(), request, next).await
        }
        Ok(()) => admitted(&app, request, next).await,
        Err(problem) => problem.into_response(),
    };
    let took = asked.answered(response.status());
    if response.status().is_server_error() {
        tracing::debug!(%method, route = route.as_ref().map_or("unmatched", Route::as_str), status = response.status().as_u16(), ?took, "request failed");
    }
    harden(response.headers_mut());
    if app.tells_https() {
        response.headers_mut().insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000"),
        );
    }
    if app.is_draining() {
        // So that callers move to another instance before this one closes its connections.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A request that is to be counted, whatever becomes of it: its caller may go away before it is answered, and an outage in which
/// all callers lose patience must not look like an hour in which nobody called.
struct Asked {
    app: App,
    method: &'static str,
    route: Option<Route>,
    began: Instant,
    answered: bool,
}

/// What others call it when a caller closed its connection before it had its answer.
const GIVEN_UP: u16 = 499;

impl Asked {
    fn now(app: &App, method: &'static str, route: Option<Route>) -> Self {
        Self {
            app: app.clone(),
            method,
            route,
            began: Instant::now(),
            answered: false,
        }
    }

    fn answered(mut self, status: StatusCode) -> Duration {
        self.answered = true;
        self.count(status)
    }

    fn count(&self, status: StatusCode) -> Duration {
        let route = self.route.as_ref().map_or("unmatched", Route::as_str);
        let took = self.began.elapsed();
        self.app.observe_request(self.method, route, status, took);
        took
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered
            && let Ok(status) = StatusCode::from_u16(GIVEN_UP)
        {
            self.count(status);
        }
    }
}

/// As [`admitted`], within a span that continues the caller's trace.
async fn traced(app: &App, route: Option<&Route>, request: Request, next: Next) -> Response {
    let route = route.map_or("unmatched", Route::as_str);
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{} {route}", request.method()),
        otel.kind = "server",
        http.request.method = %request.method(),
        http.route = route,
        http.response.status_code = tracing::field::Empty,
        steadfast.source = tracing::field::Empty,
        steadfast.stale = tracing::field::Empty,
    );
    telemetry::adopt_parent(&span, request.headers());
    let response = admitted(app, request, next).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    response
}

/// A place and a limit in time for everything that follows; who is not known yet has no more of either than others.
async fn admitted(app: &App, request: Request, next: Next) -> Response {
    let spare = request.extensions().get::<Spare>().is_some();
    let _place = match Lane::of(&request) {
        Lane::Ordinary | Lane::Stream if spare => {
            return overloaded("as many connections as `limits.connections` allows are open")
                .into_response();
        }
        Lane::Ordinary => match Arc::clone(app.places()).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => return overloaded(BUSY).into_response(),
        },
        Lane::Vital | Lane::Stream => None,
    };
    let changes = request.method() == Method::POST;
    let limit = app.config().limits.request_timeout;
    // A stream of events has begun within it, and goes on.
    match within(limit, known(app, request, next)).await {
        Ok(response) => response,
        Err(_) => late(limit, changes).into_response(),
    }
}

/// Who asks and whether they may, then the rest. A refusal counts against the address that it goes to, and nobody else.
async fn known(app: &App, mut request: Request, next: Next) -> Response {
    match auth::admit(app, &mut request).await {
        Ok(passed) => {
            let response = counted(app, request, next).await;
            if let Some(passed) = passed {
                passed.answered(response.status());
            }
            response
        }
        Err(refused) => {
            let asked = app.limiter().look_at(&request);
            match app.limiter().admit_refused(app, asked).await {
                Ok(_) => refused,
                Err(limited) => limited,
            }
        }
    }
}

/// Within the caller's rate, or refused; either way the caller learns what is left.
async fn counted(app: &App, request: Request, next: Next) -> Response {
    let asked = app.limiter().look_at(&request);
    match app.limiter().admit(app, asked).await {
        Ok(told) => {
            let mut response = unharmed(request, next).await;
            told.write(response.headers_mut());
            response
        }
        Err(response) => response,
    }
}

/// Answers for a handler that panics: it ends its own request, and the caller learns of it.
async fn unharmed(request: Request, next: Next) -> Response {
    let path = path_asked_for(&request).to_owned();
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            let message = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            tracing::error!(path, message, "a handler panicked");
            let detail = "the request ran into a fault of the service; the log says which";
            Problem::new(ProblemKind::Internal, detail).into_response()
        }
    }
}

fn late(limit: Duration, changes: bool) -> Problem {
    let unknown = if changes {
        "; whether the change was made is unknown: send it again with the same Idempotency-Key, if it had one"
    } else {
        ""
    };
    let detail = format!(
        "the request took longer than {} ms{unknown}",
        limit.as_millis()
    );
    Problem::new(ProblemKind::Timeout, detail)
}

const BUSY: &str = "as many requests as `limits.concurrency` allows are under way";

fn overloaded(why: &'static str) -> Problem {
    Problem::new(ProblemKind::Overloaded, why).retry_after(Some(Duration::from_secs(1)))
}

/// Holds Host, Origin and Sec-Fetch-Site against what this service is called.
fn meant_for_us(app: &App, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    if hosts.next().is_some() && hosts.next().is_some() {
        let problem = "the request names more than one host";
        return Err(Problem::new(ProblemKind::Plain, problem));
    }
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str())
        .or_else(|| text(headers, header::HOST));
    let Some(host) = host else {
        // A probe of HTTP/1.0 need not name one, and no browser speaks it.
        if request.version() == Version::HTTP_10 && is_probe(request) {
            return Ok(());
        }
        return Err(Problem::new(
            ProblemKind::Plain,
            "the request names no host",
        ));
    };
    let rule = app.host_rule();
    let probed = is_probe(request) && names_an_address(host);
    if !probed && !rule.allows(host) {
        return Err(Problem::new(
            ProblemKind::Forbidden,
            "the host of the request is not one of this service; name it in `server.hosts`",
        ));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let same = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
        if !same {
            return Err(foreign());
        }
    }
    let navigates =
        request.method() == Method::GET && text(headers, FETCH_MODE) == Some("navigate");
    if text(headers, FETCH_SITE) == Some("cross-site") && !navigates {
        return Err(foreign());
    }
    Ok(())
}

fn foreign() -> Problem {
    Problem::new(
        ProblemKind::Forbidden,
        "the request comes from a page of another origin",
    )
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Says to browsers what they may not do with an answer.
pub(crate) fn harden(headers: &mut HeaderMap) {
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::X_FRAME_OPTIONS)
        .or_insert(HeaderValue::from_static("DENY"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'",
        ));
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}

/// A bounded label: whatever a caller invents is `OTHER`.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

/// Which values of Host are this service.
#[derive(Debug, Clone)]
pub(crate) struct HostRule {
    named: Vec<String>,
    loopback: bool,
}

impl HostRule {
    pub(crate) fn new(config: &crate::config::ServerConfig) -> Self {
        Self {
            named: config
                .hosts
                .iter()
                .map(|host| host.to_lowercase())
                .collect(),
            loopback: config.listen.ip().is_loopback(),
        }
    }

    /// On loopback: its names and addresses, and those configured. Elsewhere those configured, or any if there are none,
    /// since callers there bring a token that no foreign page has.
    fn allows(&self, host: &str) -> bool {
        let name = without_port(host);
        if self
            .named
            .iter()
            .any(|named| named.eq_ignore_ascii_case(name))
        {
            return true;
        }
        if !self.loopback {
            return self.named.is_empty();
        }
        is_localhost(name) || literal(name).is_some_and(|address| address.is_loopback())
    }
}

/// What load balancers and Prometheus ask each instance for; HAProxy, where it is told nothing, whether `/` has any options.
fn is_probe(request: &Request) -> bool {
    let path = request.uri().path();
    (path == "/" && request.method() == Method::OPTIONS)
        || path == "/health"
        || path.starts_with("/health/")
        || path == "/metrics"
}

/// How a probe calls an instance: by an address, or as this machine. A foreign page cannot make a browser say either of a
/// name that it controls, so that health and metrics may be asked for so whatever `server.hosts` names.
pub(crate) fn names_an_address(host: &str) -> bool {
    let name = without_port(host);
    is_localhost(name) || literal(name).is_some()
}

fn is_localhost(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
}

fn literal(name: &str) -> Option<std::net::IpAddr> {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse().ok()
}

fn without_port(host: &str) -> &str {
    if let Some(end) = host.rfind(']') {
        return &host[..=end];
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(listen: &str, hosts: &[&str]) -> HostRule {
        HostRule {
            named: hosts.iter().map(|host| (*host).to_owned()).collect(),
            loopback: listen.parse::<std::net::IpAddr>().unwrap().is_loopback(),
        }
    }

    #[test]
    fn s5_only_names_of_this_service_are_answered() {
        let local = rule("127.0.0.1", &["steadfast.test"]);
        for host in [
            "127.0.0.1:8080",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8080",
            "steadfast.test:80",
        ] {
            assert!(local.allows(host), "{host}");
        }
        for host in [
            "evil.test",
            "127.0.0.1.evil.test:8080",
            "",
            "[::2]",
            "10.0.0.1",
            "localhost.evil",
        ] {
            assert!(!local.allows(host), "{host}");
        }
        assert!(rule("0.0.0.0", &[]).allows("anything"));
        assert!(!rule("0.0.0.0", &["a"]).allows("b"));
    }

    #[test]
    fn s5_a_probe_names_an_instance_by_address_and_nothing_else() {
        for host in [
            "10.1.2.3:8080",
            "[fd00::7]:80",
            "[::1]",
            "localhost:80",
            "127.0.0.1",
        ] {
            assert!(names_an_address(host), "{host}");
        }
        for host in ["evil.test", "10.1.2.3.evil.test:80", "", "localhost.evil"] {
            assert!(!names_an_address(host), "{host}");
        }
        for path in ["/healthy", "/", "/v1/health", "/metrics/"] {
            let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
            assert!(!is_probe(&request), "{path}");
        }
    }

    #[tokio::test]
    async fn s14_a_handler_that_panics_is_answered_for() {
        use tower::ServiceExt;
        let router = axum::Router::new()
            .route(
                "/broken",
                axum::routing::get(|| async { panic_of_a_handler() }),
            )
            .layer(axum::middleware::from_fn(unharmed));
        let request = Request::get("/broken")
            .body(axum::body::Body::empty())
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    fn panic_of_a_handler() -> &'static str {
        panic!("one night")
    }
}
