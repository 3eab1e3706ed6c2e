//! The checks of every request, before any handler sees it: that it was meant for this service
//! (a page of another origin, or a name that points here by trickery, is refused, also on
//! loopback), that there is room for it, and that it ends in time. And for every answer: that no
//! browser guesses at it, frames it or keeps it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use steadfast::Client;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;

use super::harden::harden;
use super::hosts::HostRule;
use super::meters::RequestMeters;
use super::proxies::Proxies;
use crate::auth::Auth;
use crate::config::Config;
use crate::life::Life;
use crate::limit::Limiter;
use crate::peer::{Counted, Peer, Spare};
use crate::problem::{Problem, ProblemKind};
use crate::query::waiting::within;
use crate::route::{Route, path_asked_for};
use crate::telemetry;

/// The limit that applies to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestLimit {
    /// No limit: it is answered from known state, and must be when all else is full.
    Probe,
    /// `limits.subscribers`: it lasts as long as its reader stays.
    Stream,
    /// `limits.concurrency`.
    Concurrency,
}

impl RequestLimit {
    fn of(request: &Request) -> Self {
        if is_stream(request.uri().path()) {
            Self::Stream
        } else if is_probe(request) {
            Self::Probe
        } else {
            Self::Concurrency
        }
    }
}

/// Whether the answer lasts as long as its reader stays.
pub(crate) fn is_stream(path: &str) -> bool {
    path == "/v1/events" || (path.starts_with("/v1/drills/") && path.ends_with("/events"))
}

/// The rules by which a request is let in, and the meters that count it.
pub(crate) struct Middleware {
    host_rule: HostRule,
    proxies: Proxies,
    pub(crate) auth: Option<Arc<Auth>>,
    limiter: Limiter,
    /// The Redis in which the fleet counts requests.
    redis: Client,
    permits: Arc<Semaphore>,
    request_timeout: Duration,
    requests: RequestMeters,
    life: Arc<Life>,
    /// Whether browsers are told to come by TLS only: not on loopback, where they would take it to
    /// heart for every other port.
    tells_https: bool,
}

impl Middleware {
    pub(crate) fn new(
        config: &Config,
        redis: Client,
        life: Arc<Life>,
        auth: Option<Arc<Auth>>,
        speaks_tls: bool,
    ) -> Self {
        Self {
            host_rule: HostRule::new(&config.server),
            proxies: Proxies::new(&config.server),
            auth,
            limiter: Limiter::new(config),
            redis,
            permits: Arc::new(Semaphore::new(config.limits.concurrency)),
            request_timeout: config.limits.request_timeout,
            requests: RequestMeters::default(),
            life,
            tells_https: speaks_tls && !config.server.listen.ip().is_loopback(),
        }
    }
}

/// The middleware around every route.
pub(crate) async fn around_every_route(
    State(admission): State<Arc<Middleware>>,
    mut request: Request,
    next: Next,
) -> Response {
    Peer::find(&mut request);
    admission.proxies.find_caller(&mut request);
    let method = request.method().clone();
    let route = Route::of(&request);
    let timed = TimedRequest::begin(&admission, method_label(&method), route.clone());
    // In a loop that is not ours, nobody else counts; until when the answer is written is not known
    // there.
    let counted = request.extensions().get::<Counted>().is_some();
    let _in_flight = (!counted).then(|| admission.life.enter());
    let probe = is_probe(&request);
    let mut response = match admission.host_rule.check(&request, probe) {
        Ok(()) if telemetry::traces_are_enabled() => {
            admission.traced(route.as_ref(), request, next).await
        }
        Ok(()) => admission.limited(request, next).await,
        Err(problem) => problem.into_response(),
    };
    let took = timed.answered(response.status());
    if response.status().is_server_error() {
        let route = route.as_ref().map_or("unmatched", Route::as_str);
        let status = response.status().as_u16();
        tracing::debug!(%method, route, status, ?took, "request failed");
    }
    harden(response.headers_mut());
    if admission.tells_https {
        response.headers_mut().insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000"),
        );
    }
    if admission.life.is_draining() {
        // So that callers move to another instance before this one closes its connections.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

impl Middleware {
    /// As [`limited`](Self::limited), within a span that continues the caller's trace.
    async fn traced(&self, route: Option<&Route>, request: Request, next: Next) -> Response {
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
        let response = self.limited(request, next).instrument(span.clone()).await;
        span.record("http.response.status_code", response.status().as_u16());
        response
    }

    /// A permit and a limit in time for everything that follows. A caller that is not known yet has
    /// no more of either than others.
    async fn limited(&self, request: Request, next: Next) -> Response {
        let spare = request.extensions().get::<Spare>().is_some();
        let _permit = match RequestLimit::of(&request) {
            RequestLimit::Concurrency | RequestLimit::Stream if spare => {
                return overloaded("as many connections as `limits.connections` allows are open")
                    .into_response();
            }
            RequestLimit::Concurrency => match Arc::clone(&self.permits).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => return overloaded(BUSY).into_response(),
            },
            RequestLimit::Probe | RequestLimit::Stream => None,
        };
        let changes = request.method() == Method::POST;
        let limit = self.request_timeout;
        // A stream of events has begun within it, and goes on.
        match within(limit, self.known(request, next)).await {
            Ok(response) => response,
            Err(_) => late(limit, changes).into_response(),
        }
    }

    /// Finds out who asks and whether they may, and then goes on. A refusal counts against the
    /// address that it goes to, and nobody else.
    async fn known(&self, mut request: Request, next: Next) -> Response {
        let Some(auth) = &self.auth else {
            return self.counted(request, next).await;
        };
        match auth.admit(&mut request).await {
            Ok(passed) => {
                let response = self.counted(request, next).await;
                passed.answered(response.status());
                response
            }
            Err(refused) => {
                let asked = self.limiter.look_at(&request);
                match self.limiter.admit_refused(&self.redis, asked).await {
                    Ok(_) => refused,
                    Err(limited) => limited,
                }
            }
        }
    }

    /// Counts the request against the caller's rate; either way the caller learns what is left.
    async fn counted(&self, request: Request, next: Next) -> Response {
        let asked = self.limiter.look_at(&request);
        match self.limiter.admit(&self.redis, asked).await {
            Ok(told) => {
                let mut response = unharmed(request, next).await;
                told.write(response.headers_mut());
                response
            }
            Err(response) => response,
        }
    }
}

/// A request that is to be counted, whatever becomes of it: its caller may go away before it is
/// answered, and an outage in which all callers lose patience must not look like an hour in which
/// nobody called.
struct TimedRequest {
    admission: Arc<Middleware>,
    method: &'static str,
    route: Option<Route>,
    began: Instant,
    answered: bool,
}

/// The status for a caller that closed its connection before it had its answer, as nginx has it.
const GIVEN_UP: u16 = 499;

impl TimedRequest {
    fn begin(admission: &Arc<Middleware>, method: &'static str, route: Option<Route>) -> Self {
        Self {
            admission: Arc::clone(admission),
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
        self.admission
            .requests
            .took(self.method, route, status, took);
        took
    }
}

impl Drop for TimedRequest {
    fn drop(&mut self) {
        if !self.answered
            && let Ok(status) = StatusCode::from_u16(GIVEN_UP)
        {
            self.count(status);
        }
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

/// Whether a request is one that load balancers and Prometheus send to each instance. HAProxy,
/// unless told otherwise, asks for the options of `/`.
fn is_probe(request: &Request) -> bool {
    let path = request.uri().path();
    (path == "/" && request.method() == Method::OPTIONS)
        || path == "/health"
        || path.starts_with("/health/")
        || path == "/metrics"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_only_what_probes_ask_for_is_a_probe() {
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
