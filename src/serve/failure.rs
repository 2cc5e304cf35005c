//! Why a request has no answer: status, kind and message, in the form of the endpoint.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::Error;
use crate::jsonl::BadLine;

/// A refused or failed request.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: StatusCode,
    /// A short stable name.
    pub kind: &'static str,
    pub message: String,
    /// When to come again.
    pub retry_after: Option<Duration>,
}

/// Whose form an error takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `{"error": {"kind", "message", "request_id"}}`.
    Native,
    /// `{"error": text}`.
    LibreTranslate,
    /// `{"message": text}`.
    DeepL,
}

impl Failure {
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Failure { status, kind, message: message.into(), retry_after: None }
    }

    pub fn bad(kind: &'static str, message: impl Into<String>) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, kind, message)
    }

    /// One that goes away by itself.
    pub fn later(kind: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, kind, message);
        Failure { retry_after: Some(retry_after), ..failure }
    }

    /// The service is about to end.
    pub fn draining() -> Self {
        Failure::later("draining", "serve: the service is ending", Duration::from_secs(5))
    }

    fn of_kind(kind: &'static str, message: String) -> Self {
        let failure = Failure::new(status(kind), kind, message);
        let is_later = failure.status == StatusCode::SERVICE_UNAVAILABLE;
        Failure { retry_after: is_later.then_some(Duration::from_secs(1)), ..failure }
    }

    /// What is said of it.
    pub fn json(&self, style: Style, request_id: &str) -> Value {
        match style {
            Style::Native => {
                json!({ "error": { "kind": self.kind, "message": self.message, "request_id": request_id } })
            }
            Style::LibreTranslate => json!({ "error": self.message }),
            Style::DeepL => json!({ "message": self.message }),
        }
    }

    pub fn response(&self, style: Style, request_id: &str) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json(style, request_id).to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, and not at once.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

/// The status of an error of this kind, the library's or a line's.
fn status(kind: &str) -> StatusCode {
    match kind {
        "input_too_long" | "unmet_constraint" => StatusCode::UNPROCESSABLE_ENTITY,
        "deadline_exceeded" => StatusCode::GATEWAY_TIMEOUT,
        "overloaded" | "out_of_memory" | "device_lost" | "engine_stopped" | "engine_failed" => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        "option" | "conflict" | "input" | "json" | "shape" | "not_built" | "cancelled" => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::of_kind(error.kind(), error.to_string())
    }
}

impl From<&BadLine> for Failure {
    fn from(error: &BadLine) -> Self {
        Failure::of_kind(error.kind, error.message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_befalls_a_worker_is_told_by_its_kind() {
        let reason = || "the model has a bad day".to_owned();
        for (error, status, kind, is_later) in [
            (Error::WorkerLost { reason: reason() }, 500, "worker_lost", false),
            (Error::EngineFailed { deaths: 3, minutes: 10, reason: reason() }, 503, "engine_failed", true),
            (Error::EngineStopped, 503, "engine_stopped", true),
        ] {
            let failure = Failure::from(error);
            assert_eq!((failure.status.as_u16(), failure.kind), (status, kind));
            assert_eq!(failure.response(Style::Native, "x").headers().contains_key(header::RETRY_AFTER), is_later);
        }
    }
}
