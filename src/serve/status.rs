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

/// The description of all endpoints, which a test holds to them.
const OPENAPI: &str = include_str!("openapi.json");

/// GET /openapi.json, and /spec, where LibreTranslate has it
pub(super) async fn openapi(_: Call) -> Result<Response<Body>, Failure> {
    Ok(json_text(OPENAPI.to_owned()))
}

/// POST /v1/admin/reload
pub(super) async fn reload(call: Call) -> Result<Response<Body>, Failure> {
    if !call.caller.key.as_ref().is_some_and(|key| key.is_admin) {
        let message = "reload: expected an administrator's key, got another, or none";
        return Err(Failure::new(StatusCode::FORBIDDEN, "key", message));
    }
    let opened = call.server.reload().await;
    let models = opened.map_err(|message| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "reload", message))?;
    let listed: Vec<_> = models.iter().map(|model| json!({ "name": model.name, "version": model.version })).collect();
    Ok(json_text(json!({ "models": listed }).to_string()))
}
