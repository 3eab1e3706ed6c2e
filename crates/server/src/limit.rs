//! One caller must not spend what all others need. The count is the fleet's, in Redis, on its
//! clock; while Redis is down each process goes on counting for itself, from the last answers,
//! because a limit that opens in an outage makes the outage worse.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use metrics::counter;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use steadfast::{CallOptions, Client};

use crate::auth::Caller;
use crate::clock::now;
use crate::config::{Algorithm, By, Config, RateConfig, WhenDown};
use crate::peer::Peer;
use crate::problem::{Problem, ProblemKind};
use crate::route::Route;

mod local;

use local::Local;

/// The terms of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateTerms {
    algorithm: Algorithm,
    quota: u32,
    period: Duration,
    burst: u32,
}

/// The decision on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    passes: bool,
    remaining: u32,
    /// The time until one more would pass.
    wait: Duration,
    /// The time until nothing is held against the caller.
    reset: Duration,
}

/// The route and the caller that a request is counted by.
pub(crate) struct CountedBy {
    route: String,
    caller: String,
}

struct Policy {
    name: String,
    terms: RateTerms,
    by: By,
    when_down: WhenDown,
    routes: Vec<String>,
    /// The text in the header.
    told: String,
}

/// Every limit of the configuration.
pub(crate) struct Limiter {
    prefix: String,
    policies: Vec<Policy>,
    script: redis::Script,
    redis_limit: Duration,
    local: Mutex<Local>,
}

/// Health, metrics and the page are never limited: they are how one finds out why.
const EXEMPT: &[&str] = &[
    "/",
    "/assets/{*path}",
    "/docs",
    "/docs/{*path}",
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
];

impl Limiter {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            prefix: format!("{}:r:", config.namespace),
            policies: config
                .limits
                .rate
                .iter()
                .map(|(name, rate)| Policy::new(name, rate))
                .collect(),
            script: redis::Script::new(include_str!("limit/count.lua")),
            redis_limit: config.cache.redis_limit,
            local: Mutex::default(),
        }
    }

    /// Returns what a request is counted by; `None` if nothing is limited.
    pub(crate) fn look_at(&self, request: &Request) -> Option<CountedBy> {
        if self.policies.is_empty() {
            return None;
        }
        Some(CountedBy {
            route: Route::of(request)?.as_str().to_owned(),
            caller: who(request),
        })
    }

    /// Counts a request against every limit that holds for it. What callers are told goes into the
    /// answer, whichever it is.
    pub(crate) async fn admit(
        &self,
        redis: &Client,
        asked: Option<CountedBy>,
    ) -> Result<RateHeaders, Response> {
        self.count(redis, asked, |_| true).await
    }

    /// As [`admit`](Self::admit), for one that was refused: against what its own address has, and
    /// never against what all callers share, which a stranger could use up.
    pub(crate) async fn admit_refused(
        &self,
        redis: &Client,
        asked: Option<CountedBy>,
    ) -> Result<RateHeaders, Response> {
        self.count(redis, asked, |policy| policy.by != By::Route)
            .await
    }

    async fn count(
        &self,
        redis: &Client,
        asked: Option<CountedBy>,
        concerns: impl Fn(&Policy) -> bool,
    ) -> Result<RateHeaders, Response> {
        let mut told = RateHeaders::default();
        let Some(CountedBy { route, caller }) = &asked else {
            return Ok(told);
        };
        let policies = self.policies.iter();
        for policy in policies.filter(|policy| policy.holds_for(route) && concerns(policy)) {
            let key = self.key(policy, route, caller);
            let decision = self.decide(redis, policy, &key).await;
            let Some(decision) = decision else {
                let problem =
                    "requests cannot be counted now, and this limit lets none pass uncounted";
                let problem = Problem::new(ProblemKind::Unavailable, problem);
                return Err(problem
                    .retry_after(Some(Duration::from_secs(1)))
                    .into_response());
            };
            told.add(policy, &decision);
            if !decision.passes {
                counter!("steadfast_rate_limited_total", "limit" => policy.name.clone())
                    .increment(1);
                let detail = format!("more than `{}` allows", policy.name);
                let problem = Problem::new(ProblemKind::TooManyRequests, detail);
                let mut response = problem.retry_after(Some(decision.wait)).into_response();
                told.write(response.headers_mut());
                return Err(response);
            }
        }
        Ok(told)
    }

    /// `None`: nobody may pass.
    async fn decide(&self, redis: &Client, policy: &Policy, key: &str) -> Option<Decision> {
        // In a cluster each counter has a shard, and another that is down does not concern it.
        if let Some(client) = redis.toward(key).available() {
            let mut scoped = client.with(CallOptions::new().deadline(self.redis_limit));
            let terms = &policy.terms;
            let mut script = self.script.prepare_invoke();
            script
                .key(key)
                .arg(match terms.algorithm {
                    Algorithm::TokenBucket => "bucket",
                    Algorithm::SlidingWindow => "window",
                })
                .arg(terms.quota)
                .arg(terms.period.as_micros() as u64)
                .arg(terms.burst);
            let asked: redis::RedisResult<(bool, i64, u64, u64)> =
                script.invoke_async(&mut scoped).await;
            if let Ok((passes, remaining, wait, reset)) = asked {
                let decision = Decision {
                    passes,
                    remaining: u32::try_from(remaining).unwrap_or(0),
                    wait: Duration::from_micros(wait),
                    reset: Duration::from_micros(reset),
                };
                self.local.lock().learn(key, terms, &decision, now());
                return Some(decision);
            }
        }
        counter!("steadfast_rate_limit_uncounted_total", "limit" => policy.name.clone())
            .increment(1);
        match policy.when_down {
            WhenDown::Local => Some(self.local.lock().decide(key, &policy.terms, now())),
            WhenDown::Open => Some(Decision {
                passes: true,
                remaining: policy.terms.quota,
                wait: Duration::ZERO,
                reset: Duration::ZERO,
            }),
            WhenDown::Closed => None,
        }
    }

    /// The counter's name. Callers appear in it as a hash: of bounded length, and no names in
    /// Redis.
    fn key(&self, policy: &Policy, route: &str, caller: &str) -> String {
        let (caller, route) = match policy.by {
            By::Caller => (caller, ""),
            By::CallerAndRoute => (caller, route),
            By::Route => ("", route),
        };
        let digest = Sha256::digest(caller.as_bytes());
        // What was counted under other terms is another count: also while a fleet goes over from
        // one to the other.
        let RateTerms {
            algorithm,
            quota,
            period,
            burst,
        } = policy.terms;
        let algorithm = match algorithm {
            Algorithm::TokenBucket => 'b',
            Algorithm::SlidingWindow => 'w',
        };
        let mut key = format!(
            "{}{}:{algorithm}{quota}-{burst}-{}:",
            self.prefix,
            policy.name,
            period.as_micros()
        );
        for byte in &digest[..12] {
            key.push_str(&format!("{byte:02x}"));
        }
        key.push(':');
        key.push_str(route);
        key
    }
}

/// The subject of the token, or else the address: an IPv6 caller has its /64 to itself, so that is
/// what counts.
fn who(request: &Request) -> String {
    let extensions = request.extensions();
    if let Some(caller) = extensions.get::<Caller>() {
        return format!("s{}", caller.subject);
    }
    match extensions
        .get::<Peer>()
        .map(|peer| peer.0.ip().to_canonical())
    {
        Some(IpAddr::V6(address)) => format!("6{:x?}", &address.segments()[..4]),
        Some(address) => format!("4{address}"),
        None => String::new(),
    }
}

impl Policy {
    fn new(name: &str, config: &RateConfig) -> Self {
        let burst = match config.algorithm {
            Algorithm::TokenBucket => config.burst,
            Algorithm::SlidingWindow => config.requests,
        };
        let window = config.per.as_secs_f64().ceil();
        Self {
            name: name.to_owned(),
            terms: RateTerms {
                algorithm: config.algorithm,
                quota: config.requests,
                period: config.per,
                burst,
            },
            by: config.by,
            when_down: config.when_down,
            routes: config.routes.clone(),
            told: format!("\"{name}\";q={};w={window}", config.requests),
        }
    }

    fn holds_for(&self, route: &str) -> bool {
        if self.routes.is_empty() {
            !EXEMPT.contains(&route)
        } else {
            self.routes.iter().any(|named| named == route)
        }
    }
}

/// `RateLimit` and `RateLimit-Policy`, as draft-ietf-httpapi-ratelimit-headers has them.
#[derive(Default)]
pub(crate) struct RateHeaders {
    policies: String,
    limits: String,
}

impl RateHeaders {
    fn add(&mut self, policy: &Policy, decision: &Decision) {
        if !self.limits.is_empty() {
            self.limits.push_str(", ");
            self.policies.push_str(", ");
        }
        let until = if decision.passes {
            decision.reset
        } else {
            decision.wait
        };
        let seconds = until.as_millis().div_ceil(1000);
        self.policies.push_str(&policy.told);
        self.limits.push_str(&format!(
            "\"{}\";r={};t={seconds}",
            policy.name, decision.remaining
        ));
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        for (name, text) in [
            ("ratelimit-policy", &self.policies),
            ("ratelimit", &self.limits),
        ] {
            if let Ok(value) = HeaderValue::from_str(text)
                && !text.is_empty()
            {
                headers.insert(name, value);
            }
        }
    }
}
