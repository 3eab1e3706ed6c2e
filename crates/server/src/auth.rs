//! No caller gets further than its role. Who a caller is, is told by a token that somebody else
//! signed; what its role may do stands in one table; and what was done or refused is written down.
//! One door, `admit`, in front of every route.
//!
//! ```
//! use steadfast_server::auth::{RULES, Role, rule_for};
//! use steadfast_server::axum::http::Method;
//!
//! let rule = rule_for(&Method::POST, "/v1/statements/{name}");
//! assert!(rule.is_some_and(|rule| rule.needs == Some(Role::Operator) && rule.audited));
//! let open = RULES.iter().filter(|rule| rule.needs.is_none());
//! println!("{:?}", open.map(|rule| rule.path).collect::<Vec<_>>());
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::counter;

use crate::clock::unix_ms;
use crate::config::AuthConfig;
use crate::peer::Peer;
use crate::problem::{Problem, ProblemKind};
use crate::route::{Route, path_asked_for};

mod audit;
mod fetch;
mod jwks;
mod key;
mod token;

pub use crate::role::{RULES, Role, Rule, rule_for};
pub use token::{Caller, IssueError, TokenSpec, issue};

use audit::{AuditEntry, AuditLog};
use token::{TokenRejection, Verifier};

/// Everything that `[auth]` comes to.
pub(crate) struct Auth {
    verifier: Verifier,
    audit: AuditLog,
}

impl Auth {
    pub(crate) fn start(config: &AuthConfig) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self {
            verifier: Verifier::new(config)?,
            audit: AuditLog::open(&config.audit)
                .map_err(|error| format!("`auth.audit`: {}: {error}", config.audit))?,
        }))
    }

    /// Whether `config` can be started; nothing is left open.
    pub(crate) fn try_out(config: &AuthConfig) -> Result<(), String> {
        Verifier::new(config)?;
        let audit = std::path::Path::new(&config.audit);
        let folder = audit
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        match folder {
            Some(folder) if !folder.is_dir() => Err(format!(
                "`auth.audit`: {}: there is no such folder",
                folder.display()
            )),
            _ => Ok(()),
        }
    }

    /// Lets a request pass or refuses it. The caller of one that passes is left in its extensions.
    pub(crate) async fn admit(self: &Arc<Self>, request: &mut Request) -> Result<Passed, Response> {
        let rule = Route::of(request).map(|route| rule_for(request.method(), route.as_str()));
        let mut passed = Passed {
            auth: Arc::clone(self),
            method: request.method().clone(),
            path: path_asked_for(request).to_owned(),
            peer: request.extensions().get::<Peer>().map(|peer| peer.0),
            caller: None,
            audited: false,
            told: AtomicBool::new(false),
        };
        let needs = match rule {
            // An address that does not exist, or not with that method, is nobody's secret.
            None => return Ok(passed),
            Some(None) => Role::Admin,
            Some(Some(rule)) => {
                passed.audited = rule.audited;
                match rule.needs {
                    Some(role) => role,
                    None => {
                        // Whoever brings a token all the same is shown what it allows; health waits
                        // for no identity provider.
                        if let Ok(token) = bearer(request) {
                            passed.caller = self.verifier.verify_at_once(token).ok();
                        }
                        if let Some(caller) = &passed.caller {
                            request.extensions_mut().insert(caller.clone());
                        }
                        return Ok(passed);
                    }
                }
            }
        };
        let verdict = match bearer(request) {
            Ok(token) => self.verifier.verify(token).await,
            Err(refusal) => Err(refusal),
        };
        let caller = match verdict {
            Ok(caller) => caller,
            Err(refusal) => return Err(refused(&passed, refusal)),
        };
        passed.caller = Some(caller.clone());
        if caller.role < needs {
            return Err(forbidden(&passed, needs, &caller));
        }
        request.extensions_mut().insert(caller);
        Ok(passed)
    }

    /// Keeps the keys current; ends only if there is nothing to keep.
    pub(crate) async fn keep(self: Arc<Self>) {
        if let Some(jwks) = &self.verifier.jwks {
            jwks.keep().await;
        }
    }
}

/// The right of a caller to an answer that lasts. A token says for how long it is good, and whoever
/// asks once must not be answered for ever.
pub(crate) struct LastingRight {
    /// Nobody is asked who it is where there is no `[auth]`.
    of: Option<(Arc<Auth>, Caller)>,
}

impl LastingRight {
    pub(crate) fn new(auth: Option<&Arc<Auth>>, caller: Option<Caller>) -> Self {
        Self {
            of: auth.cloned().zip(caller),
        }
    }

    /// Whether it holds still.
    pub(crate) fn holds(&self) -> bool {
        let of = self.of.as_ref();
        of.is_none_or(|(auth, caller)| auth.verifier.believes(caller))
    }
}

/// Lets what is counted here begin at 0.
pub(crate) fn begin_counters() {
    for reason in TokenRejection::ALL
        .map(TokenRejection::name)
        .into_iter()
        .chain(["role"])
    {
        counter!("steadfast_auth_refused_total", "reason" => reason).increment(0);
    }
}

/// Everything that the audit log says of a request. A request that is never answered, because the
/// caller hung up or the time was over, is written down as such when this is dropped: what was
/// asked for may have been done.
pub(crate) struct Passed {
    auth: Arc<Auth>,
    method: Method,
    path: String,
    peer: Option<SocketAddr>,
    caller: Option<Caller>,
    audited: bool,
    told: AtomicBool,
}

impl Drop for Passed {
    fn drop(&mut self) {
        if self.audited && !self.told.load(Relaxed) {
            self.tell("unfinished", None, None);
        }
    }
}

impl Passed {
    /// Writes down what came of it, if it is of a kind that is written down.
    pub(crate) fn answered(&self, status: StatusCode) {
        let outcome = if status == StatusCode::TOO_MANY_REQUESTS {
            "limited"
        } else if self.audited {
            "allowed"
        } else {
            return;
        };
        self.tell(outcome, None, Some(status));
    }

    fn tell(&self, outcome: &str, reason: Option<&str>, status: Option<StatusCode>) {
        self.told.store(true, Relaxed);
        self.auth.audit.write(&AuditEntry {
            at_ms: unix_ms(),
            who: self.caller.as_ref().map(|caller| &*caller.subject),
            role: self.caller.as_ref().map(|caller| caller.role.name()),
            peer: self.peer.map(|peer| peer.ip().to_string()),
            method: self.method.as_str(),
            path: shortened(&self.path),
            outcome,
            reason,
            status: status.map(|status| status.as_u16()),
        });
    }
}

/// The first 256 bytes of an address, or a few less where a character would be cut.
fn shortened(path: &str) -> &str {
    &path[..path.floor_char_boundary(256)]
}

/// The token, which comes in one header and nowhere else: addresses end up in logs.
fn bearer(request: &Request) -> Result<&str, TokenRejection> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(TokenRejection::Missing);
    };
    let text = value.to_str().map_err(|_| TokenRejection::NotAToken)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(TokenRejection::Missing),
    }
}

fn refused(passed: &Passed, refusal: TokenRejection) -> Response {
    let name = refusal.name();
    counter!("steadfast_auth_refused_total", "reason" => name).increment(1);
    if refusal == TokenRejection::NoKeys {
        passed.tell(
            "unauthorized",
            Some(name),
            Some(StatusCode::SERVICE_UNAVAILABLE),
        );
        return Problem::new(ProblemKind::Unavailable, refusal.words())
            .retry_after(Some(std::time::Duration::from_secs(5)))
            .into_response();
    }
    if refusal == TokenRejection::NoRole {
        passed.tell("forbidden", Some(name), Some(StatusCode::FORBIDDEN));
        let response = Problem::new(ProblemKind::Forbidden, refusal.words()).into_response();
        return challenge(response, "Bearer error=\"insufficient_scope\"");
    }
    passed.tell("unauthorized", Some(name), Some(StatusCode::UNAUTHORIZED));
    let response = Problem::new(ProblemKind::Unauthorized, refusal.words()).into_response();
    let said = match refusal {
        // RFC 6750, 3.1: nothing is said to be wrong with a token that is not there.
        TokenRejection::Missing => "Bearer realm=\"steadfast\"",
        TokenRejection::Expired => {
            "Bearer realm=\"steadfast\", error=\"invalid_token\", error_description=\"the token has expired\""
        }
        _ => "Bearer realm=\"steadfast\", error=\"invalid_token\"",
    };
    challenge(response, said)
}

fn forbidden(passed: &Passed, needs: Role, caller: &Caller) -> Response {
    counter!("steadfast_auth_refused_total", "reason" => "role").increment(1);
    passed.tell("forbidden", Some("role"), Some(StatusCode::FORBIDDEN));
    let detail = format!(
        "this takes the role {}, and the token has {}",
        needs.name(),
        caller.role.name()
    );
    let response = Problem::new(ProblemKind::Forbidden, detail).into_response();
    challenge(
        response,
        match needs {
            Role::Viewer => "Bearer error=\"insufficient_scope\", scope=\"viewer\"",
            Role::Operator => "Bearer error=\"insufficient_scope\", scope=\"operator\"",
            Role::Admin => "Bearer error=\"insufficient_scope\", scope=\"admin\"",
        },
    )
}

fn challenge(mut response: Response, words: &'static str) -> Response {
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(words));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s6_an_address_is_cut_whatever_letters_it_has() {
        for (letter, kept) in [("a", 256), ("é", 256), ("€", 255), ("🦀", 256)] {
            assert_eq!(shortened(&letter.repeat(300)).len(), kept, "{letter}");
        }
        assert_eq!(shortened("/v1/status"), "/v1/status");
    }
}
