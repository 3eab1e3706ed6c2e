//! Times of requests, by route, method and status. A name and three labels take longer to find in
//! the recorder than a hit in memory takes to answer, so each is looked up there once and kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::StatusCode;
use metrics::{Histogram, histogram};

/// The histograms of one route. Few methods and statuses occur on each.
type OfRoute = Vec<(&'static str, StatusCode, Histogram)>;

/// Histograms of every route that has been asked for. Routes, methods and statuses are bounded, so
/// this is.
#[derive(Default)]
pub(crate) struct RequestMeters {
    known: ArcSwap<HashMap<Box<str>, OfRoute>>,
}

impl RequestMeters {
    /// A request was answered.
    pub(crate) fn took(
        &self,
        method: &'static str,
        route: &str,
        status: StatusCode,
        took: Duration,
    ) {
        let is_it = |(m, s, _): &(&str, StatusCode, Histogram)| (*m, *s) == (method, status);
        let known = self.known.load();
        let of_route = known.get(route).map_or(&[][..], Vec::as_slice);
        if let Some((_, _, histogram)) = of_route.iter().find(|meter| is_it(meter)) {
            histogram.record(took);
            return;
        }
        drop(known);
        let fresh = histogram!(
            "http_server_request_duration_seconds",
            "http_request_method" => method,
            "http_route" => route.to_owned(),
            "http_response_status_code" => status.as_u16().to_string()
        );
        fresh.record(took);
        self.known.rcu(|old| {
            let mut next = HashMap::clone(old);
            let of_route = next.entry(route.into()).or_default();
            // Another who asked for the first time may have come before.
            if !of_route.iter().any(is_it) {
                of_route.push((method, status, fresh.clone()));
            }
            Arc::new(next)
        });
    }
}
