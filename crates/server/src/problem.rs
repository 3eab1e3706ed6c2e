//! A caller that is refused must be able to tell, by program, what kind of refusal it was and when
//! to come back. So every error leaves as problem details (RFC 9457), with a type from a short list
//! and `Retry-After` where waiting helps.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_server::problem::{Problem, ProblemKind};
//!
//! // A page of the program's own refuses as the service does.
//! async fn print() -> Result<&'static str, Problem> {
//!     let refusal = Problem::new(ProblemKind::Overloaded, "the printer has no paper");
//!     Err(refusal.retry_after(Some(Duration::from_secs(60))))
//! }
//! # use steadfast_server::axum::{Router, routing::get};
//! # let _: Router = Router::new().route("/print", get(print));
//! ```

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The kinds of refusal, as they stand in `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// No query, statement, drill or page of that name.
    UnknownQuery,
    /// A parameter is missing, unknown, of the wrong type or out of its limits.
    BadParameter,
    /// More is asked than can be served now.
    Overloaded,
    /// Nothing that could answer is in reach.
    Unavailable,
    /// The caller did not say who it is.
    Unauthorized,
    /// The caller may not do this.
    Forbidden,
    /// The caller asked too often.
    TooManyRequests,
    /// The request is too large.
    TooLarge,
    /// The request took too long.
    Timeout,
    /// The request contradicts what is already so.
    Conflict,
    /// A fault of the service itself, such as a panic; the log says which.
    Internal,
    /// A fault of HTTP itself, that needs no type of its own (`about:blank`).
    Plain,
}

impl ProblemKind {
    /// Returns the kind's name, as in `type` and as a label of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownQuery => "unknown-query",
            Self::BadParameter => "bad-parameter",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::TooManyRequests => "too-many-requests",
            Self::TooLarge => "too-large",
            Self::Timeout => "timeout",
            Self::Conflict => "conflict",
            Self::Internal => "internal",
            Self::Plain => "plain",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::UnknownQuery => "There is nothing of that name",
            Self::BadParameter => "A parameter is wrong",
            Self::Overloaded => "The service is overloaded",
            Self::Unavailable => "Nothing that could answer is in reach",
            Self::Unauthorized => "The caller is not known",
            Self::Forbidden => "The caller may not do this",
            Self::TooManyRequests => "Too many requests",
            Self::TooLarge => "The request is too large",
            Self::Timeout => "It took too long",
            Self::Conflict => "It contradicts what is already so",
            Self::Internal => "The service has a fault",
            Self::Plain => "The request cannot be served",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::UnknownQuery => StatusCode::NOT_FOUND,
            Self::BadParameter | Self::Plain => StatusCode::BAD_REQUEST,
            Self::Overloaded | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
        }
    }
}

/// A refusal, as callers get it.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: ProblemKind,
    status: StatusCode,
    detail: Cow<'static, str>,
    parameter: Option<String>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A refusal with what is wrong this time.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            status: kind.status(),
            detail: detail.into(),
            parameter: None,
            retry_after: None,
        }
    }

    /// Sets another status than the kind's own.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Sets when to try again, told in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    pub(crate) fn parameter(mut self, name: String) -> Self {
        self.parameter = Some(name);
        self
    }

    /// Returns what is wrong, in words.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the service failed its caller, and not the caller the service.
    pub(crate) fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }

    /// Returns the problem's kind.
    #[must_use]
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }
}

#[derive(Serialize)]
struct Details<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// The details as JSON.
    pub(crate) fn body(&self) -> Vec<u8> {
        let details = Details {
            r#type: match self.kind {
                ProblemKind::Plain => "about:blank".to_owned(),
                kind => format!("/problems/{}", kind.name()),
            },
            title: match self.kind {
                ProblemKind::Plain => self.status.canonical_reason().unwrap_or("Error"),
                kind => kind.title(),
            },
            status: self.status.as_u16(),
            detail: &self.detail,
            parameter: self.parameter.as_deref(),
            retry_after_ms: self
                .retry_after
                .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        };
        serde_json::to_vec(&details).unwrap_or_default()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                headers.insert(header::RETRY_AFTER, value);
            }
        }
        response.extensions_mut().insert(self.kind);
        response
    }
}
