//! A JSON line per request on standard error.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::http::Notes;

/// What is said of a request.
#[derive(Debug, Serialize)]
pub(super) struct Entry<'a> {
    /// Seconds since 1970.
    pub time: f64,
    pub request_id: &'a str,
    pub endpoint: &'a str,
    /// None if the client had gone.
    pub status: Option<u16>,
    pub seconds: f64,
    #[serde(flatten)]
    pub notes: Notes,
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, rounded)
}

/// Seconds, to the microsecond.
pub(super) fn rounded(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

/// Writes a line. That nobody reads is no reason to stop.
pub(super) fn line(entry: &impl Serialize) {
    if let Ok(mut line) = serde_json::to_string(entry) {
        line.push('\n');
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Says what happens to the service itself.
pub(super) fn event(event: &str, detail: &str) {
    #[derive(Serialize)]
    struct Event<'a> {
        time: f64,
        event: &'a str,
        detail: &'a str,
    }
    line(&Event { time: now(), event, detail });
}
