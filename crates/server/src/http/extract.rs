//! What the framework says of a path or a query string that it cannot read is plain text; here
//! every refusal is a problem that a program can read.

use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::problem::{Problem, ProblemKind};

/// The one part of the path that a route leaves open. A program that has nested the router may
/// leave parts of its own open: they come before.
pub(crate) struct PathParam(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathParam {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let not_text = |_| Problem::new(ProblemKind::Plain, "the path is not valid UTF-8");
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(not_text)?;
        let last = params.iter().last().map(|(_, value)| value.to_owned());
        Ok(Self(last.unwrap_or_default()))
    }
}

/// The parameters of the query string.
pub(crate) struct QueryParams<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(error) => Err(Problem::new(ProblemKind::BadParameter, error.body_text())),
        }
    }
}
