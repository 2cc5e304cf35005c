//! A request as handlers see it, its body read whole, and their answers.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Server;
use super::caller::{self, Caller};
use super::failure::Failure;
use super::keys;
use super::models::Route;
use crate::error::room;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub SocketAddr);

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const DEADLINE: HeaderName = HeaderName::from_static("x-deadline-ms");

/// A request on its way through a handler.
#[derive(Debug)]
pub(super) struct Call {
    pub server: Arc<Server>,
    pub parts: Parts,
    /// Locked, so that a call can be shared.
    pub body: Mutex<Body>,
    pub id: String,
    pub caller: Caller,
    pub arrived: Instant,
    pub notes: SharedNotes,
}

/// What the log says of a request: no text, no key, no address.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Notes {
    /// The name of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub characters: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Items that have an error in their place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<usize>,
}

impl Notes {
    /// Adds another part's counts.
    pub fn add(&mut self, part: &Notes) {
        let add =
            |sum: &mut Option<usize>, more: Option<usize>| *sum = sum.map_or(more, |sum| Some(sum + more.unwrap_or(0)));
        add(&mut self.items, part.items);
        add(&mut self.characters, part.characters);
        self.output_tokens = Some(self.output_tokens.unwrap_or(0) + part.output_tokens.unwrap_or(0));
    }

    /// Takes over the counts of all parts.
    pub fn set_counts(&mut self, sum: &Notes) {
        (self.items, self.characters, self.output_tokens) = (sum.items, sum.characters, sum.output_tokens);
    }
}

/// Notes as they are shared with whoever writes the log.
pub(super) type SharedNotes = Arc<Mutex<Notes>>;

/// The id of a request: the caller's own, if it is harmless in a log, or a new one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_plain = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte))
    };
    given.filter(is_plain).map_or_else(new_id, str::to_owned)
}

/// An id that no other request of this process has, nor, by all odds, one of another.
fn new_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let process = PROCESS.get_or_init(|| RandomState::new().hash_one(std::process::id()));
    format!("{process:016x}-{:x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Call {
    /// Notes something for the log.
    pub fn note(&self, note: impl FnOnce(&mut Notes)) {
        note(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Characters of the request, once they have been counted.
    pub fn characters(&self) -> usize {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).characters.unwrap_or(0)
    }

    /// Finds out who asks: by a key in a header, else by one that the body has. Where there are keys, one is needed.
    pub fn sign_in(&mut self, in_body: Option<&str>) -> Result<(), Failure> {
        let Some(keys) = &self.server.keys else { return Ok(()) };
        let Some(shown) = caller::shown_key(&self.parts.headers).or(in_body) else {
            let message = "sign in: expected a key, got none";
            return Err(Failure::new(StatusCode::UNAUTHORIZED, "key", message));
        };
        let Some(key) = keys::find(keys, shown) else {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                "key",
                "sign in: expected a key of this service, got another",
            ));
        };
        self.note(|notes| notes.key = Some(key.name.clone()));
        self.caller = Caller::with(key);
        Ok(())
    }

    /// The model for a request, if its key is good for it.
    pub fn route(&self, name: Option<&str>, source: Option<&str>, target: Option<&str>) -> Result<Route, Failure> {
        let route = self.server.models.route(name, source, target)?;
        match &self.caller.key {
            Some(key) if !key.may_use(&route.model.name) => {
                let message = format!("sign in: expected a key for the model {}, got one for others", route.model.name);
                Err(Failure::new(StatusCode::FORBIDDEN, "key", message))
            }
            _ => Ok(route),
        }
    }

    /// When the answer is of no more use.
    pub fn deadline(&self, asked_ms: Option<u64>) -> Result<Instant, Failure> {
        let header = match self.parts.headers.get(DEADLINE) {
            None => None,
            Some(value) => {
                Some(value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()).ok_or_else(|| {
                    Failure::bad("input", format!("read X-Deadline-Ms: expected milliseconds, got {value:?}"))
                })?)
            }
        };
        let most = self.server.config.limits.deadline;
        let asked = asked_ms.or(header).map_or(most, Duration::from_millis);
        Ok(self.arrived + asked.min(most))
    }

    /// The body, whole.
    pub async fn bytes(&mut self) -> Result<Vec<u8>, Failure> {
        let limits = &self.server.config.limits;
        let body = std::mem::take(self.body.get_mut().unwrap_or_else(PoisonError::into_inner));
        let declared =
            self.parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        match tokio::time::timeout(limits.body_time, collect(body, limits.body, declared)).await {
            Ok(read) => read,
            Err(_) => {
                let message = format!("read the body: expected it within {:?}, got a part", limits.body_time);
                Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message))
            }
        }
    }

    /// The body as JSON.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let kind = self.content_type()?;
        if kind != Content::Json {
            return Err(wrong_content("application/json", &self.parts.headers));
        }
        parse(&self.bytes().await?)
    }

    /// The fields of a body that is JSON or a form, and of the query, which stand under them; a field that comes several times is an
    /// array.
    pub async fn fields(&mut self) -> Result<Map<String, Value>, Failure> {
        let query = self.parts.uri.query().unwrap_or_default().as_bytes().to_vec();
        let mut fields = pairs(&query);
        let content = self.content_type()?;
        let body = self.bytes().await?;
        match content {
            _ if body.is_empty() => {}
            Content::Other if self.parts.method == Method::GET => {}
            Content::Json => fields.extend(parse::<Map<String, Value>>(&body)?),
            Content::Form => fields.extend(pairs(&body)),
            Content::Other => {
                return Err(wrong_content(
                    "application/json or application/x-www-form-urlencoded",
                    &self.parts.headers,
                ));
            }
        }
        Ok(fields)
    }

    fn content_type(&self) -> Result<Content, Failure> {
        let Some(value) = self.parts.headers.get(header::CONTENT_TYPE) else { return Ok(Content::Other) };
        let text = value.to_str().map_err(|_| wrong_content("a media type", &self.parts.headers))?;
        let (kind, parameters) = text.split_once(';').unwrap_or((text, ""));
        let charset =
            parameters.split(';').filter_map(|p| p.trim().split_once('=')).find(|(name, _)| *name == "charset");
        if let Some((_, charset)) = charset.filter(|(_, set)| !set.trim_matches('"').eq_ignore_ascii_case("utf-8")) {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media_type",
                format!("read the body: expected UTF-8, got the charset {charset}"),
            ));
        }
        Ok(match kind.trim().to_ascii_lowercase().as_str() {
            "application/json" => Content::Json,
            "application/x-www-form-urlencoded" => Content::Form,
            _ => Content::Other,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Json,
    Form,
    Other,
}

fn wrong_content(expected: &str, headers: &HeaderMap) -> Failure {
    let got = headers.get(header::CONTENT_TYPE).map_or("none".to_owned(), |value| format!("{value:?}"));
    let message = format!("read the body: expected the content type {expected}, got {got}");
    Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", message)
}

/// Reads JSON; bytes that are not UTF-8 are an error like any other.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        Failure::bad("json", format!("read the body: expected UTF-8, got an invalid byte at offset {at}"))
    })?;
    serde_json::from_str(text)
        .map_err(|error| Failure::bad("json", format!("read the body: expected JSON as documented, got {error}")))
}

fn pairs(form: &[u8]) -> Map<String, Value> {
    let mut fields: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(form) {
        fields.entry(name.into_owned()).or_default().push(Value::String(value.into_owned()));
    }
    let single = |mut values: Vec<Value>| if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
    fields.into_iter().map(|(name, values)| (name, single(values))).collect()
}

/// Bytes that a byte of a body may take when it is parsed: an array of empty strings has an item for three.
const PARSED: usize = 16;

/// A body of up to `limit` bytes. Of one that is longer some more is read and forgotten, so that a client which has sent it before it
/// reads finds the answer.
async fn collect(mut body: Body, limit: usize, declared: Option<u64>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut seen = 0;
    // Much more is not even begun with.
    while declared.is_none_or(|declared| declared <= 8 * limit as u64) {
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let Some(frame) = frame else { break };
        let frame =
            frame.map_err(|error| Failure::bad("body", format!("read the body: expected all of it, got {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen <= limit && declared.is_none_or(|declared| declared <= limit as u64) {
            bytes.try_reserve(data.len()).map_err(|_| room::no_room("read the body", data.len()))?;
            bytes.extend_from_slice(&data);
        } else if seen > 8 * limit {
            break;
        }
    }
    let length = declared.map_or(seen, |declared| declared.try_into().unwrap_or(usize::MAX)).max(seen);
    if length > limit {
        let message = format!("read the body: expected at most {limit} bytes, got {length} or more");
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    room::require("read the body", PARSED * bytes.len())?;
    Ok(bytes)
}

/// An answer in JSON that has been written already.
pub(super) fn json_text(text: String) -> Response<Body> {
    typed("application/json", text)
}

/// An answer in JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Response<Body>, Failure> {
    Ok(json_text(serde_json::to_string(value).map_err(internal)?))
}

/// What should not happen: an answer that cannot be written.
pub(super) fn internal(error: serde_json::Error) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("write JSON: {error}"))
}

/// An answer of this media type.
pub(super) fn typed(media_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
