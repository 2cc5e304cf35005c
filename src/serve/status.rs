//! Whether the service is well.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::json;

use super::Phase;
use super::failure::Failure;
use super::http::{Call, json_text, typed};

/// GET /livez: whether the engines take work.
pub(super) async fn live(call: Call) -> Result<Response<Body>, Failure> {
    match call.server.models.are_running() {
        true => Ok(json_text(json!({ "status": "ok" }).to_string())),
        false => Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "engine_failed",
            "serve: an engine has failed for good",
        )),
    }
}

/// GET /readyz: whether to send requests.
pub(super) async fn ready(call: Call) -> Result<Response<Body>, Failure> {
    match call.server.phase() {
        Phase::Serving => live(call).await,
        _ => Err(Failure::draining()),
    }
}

/// GET /metrics
pub(super) async fn metrics(call: Call) -> Result<Response<Body>, Failure> {
    let text = call.server.metrics.text(&call.server);
    Ok(typed("application/openmetrics-text; version=1.0.0; charset=utf-8", text))
}
