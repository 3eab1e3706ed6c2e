//! Routes as this crate writes them, wherever a program with a router of its own has nested them.
//! Rules and limits name routes, so they hold for an embedded service only if its prefix is left
//! out.

use axum::extract::{MatchedPath, NestedPath, OriginalUri, Request};

/// The route that a request has matched, without the path below which the router is nested.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    matched: MatchedPath,
    prefix: usize,
}

impl Route {
    /// Returns the route of a request, or nothing if it has matched none.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let extensions = request.extensions();
        let matched = extensions.get::<MatchedPath>()?.clone();
        let nest = extensions.get::<NestedPath>();
        let prefix = nest.map_or(0, |nest| prefix_length(matched.as_str(), nest.as_str()));
        Some(Self { matched, prefix })
    }

    /// Returns the route as the table of rules and the configuration write it.
    pub(crate) fn as_str(&self) -> &str {
        match &self.matched.as_str()[self.prefix..] {
            "" => "/",
            route => route,
        }
    }
}

/// Returns the path of a request as its caller wrote it, also where the router is nested below a
/// part of it.
pub(crate) fn path_asked_for(request: &Request) -> &str {
    let original = request.extensions().get::<OriginalUri>();
    original
        .map_or(request.uri(), |original| &original.0)
        .path()
}

/// Returns how many bytes of the matched path are the nest's; 0 if it does not begin with
/// whole segments of the nest.
fn prefix_length(matched: &str, nest: &str) -> usize {
    let nest = nest.trim_end_matches('/');
    match matched.strip_prefix(nest) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => nest.len(),
        _ => 0,
    }
}
