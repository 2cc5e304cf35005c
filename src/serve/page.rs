//! The page for people: one file, which fetches nothing but this service.

use std::hash::{BuildHasher, RandomState};

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};

use super::failure::Failure;
use super::http::{Call, typed};

const PAGE: &str = include_str!("page.html");

/// What the page may load and run.
const POLICY: &str = include_str!("page.policy");

/// GET /
pub(super) async fn page(call: Call) -> Result<Response<Body>, Failure> {
    // Of the scripts that a page may come to hold, only its own runs.
    let nonce = format!("{:016x}{:016x}", RandomState::new().hash_one(&call.id), RandomState::new().hash_one(1));
    let policy = POLICY.replace("{{nonce}}", &nonce);
    let mut response = typed("text/html; charset=utf-8", PAGE.replace("{{nonce}}", &nonce));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
