//! In the place of the drills where the feature `drill` is off: there are none, and none can be
//! started.

use axum::Json;

use crate::problem::{Problem, ProblemKind};

/// `GET /v1/drills`
pub(crate) async fn list() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "enabled": false, "scenarios": [], "drills": [] }))
}

/// `POST /v1/drills`
pub(crate) async fn start() -> Problem {
    Problem::new(
        ProblemKind::Forbidden,
        "this program was built without the feature `drill` of steadfast-server",
    )
}
