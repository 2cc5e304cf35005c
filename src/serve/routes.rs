//! The endpoints, and what happens around each: an id, the caller, errors in the endpoint's form, a count and a line in the log.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{MethodFilter, MethodRouter, on};

use super::caller::{self, Caller};
use super::failure::{Failure, Style};
use super::http::{Call, Peer, REQUEST_ID, request_id};
use super::metrics::{Answer, Endpoint, Reason};
use super::{Phase, Server, libretranslate, log, native, status};

/// All endpoints.
pub(super) fn router(server: &Arc<Server>) -> Router {
    let mut router = Router::new();
    let mut paths: Vec<(&'static str, MethodRouter)> = Vec::new();
    let mut add = |path: &'static str, handler: MethodRouter| match paths.iter_mut().find(|(other, _)| *other == path) {
        Some((_, routes)) => *routes = std::mem::take(routes).merge(handler),
        None => paths.push((path, handler)),
    };
    macro_rules! endpoints {
        ($($method:ident $path:literal $style:ident $handler:path;)*) => {
            $(add($path, on(MethodFilter::$method, endpoint(server, $path, Style::$style, $handler)));)*
        };
    }
    endpoints! {
        POST "/translate" LibreTranslate libretranslate::translate;
        POST "/detect" LibreTranslate libretranslate::detect;
        GET "/languages" LibreTranslate libretranslate::languages;
        GET "/frontend/settings" LibreTranslate libretranslate::settings;
        POST "/translate_file" LibreTranslate libretranslate::refused;
        POST "/suggest" LibreTranslate libretranslate::refused;
        GET "/health" LibreTranslate status::live;
        POST "/v1/translate" Native native::translate;
        POST "/v1/score" Native native::score;
        GET "/v1/models" Native native::models;
        GET "/livez" Native status::live;
        GET "/readyz" Native status::ready;
        GET "/metrics" Native status::metrics;
    }
    for (path, routes) in paths {
        router = router.route(path, routes.fallback(endpoint(server, path, Style::Native, no_method)));
    }
    router.fallback(endpoint(server, "other", Style::Native, no_path))
}

async fn no_path(call: Call) -> Result<Response<Body>, Failure> {
    let message = format!("find {}: no such endpoint", call.parts.uri.path());
    Err(Failure::new(StatusCode::NOT_FOUND, "not_found", message))
}

async fn no_method(call: Call) -> Result<Response<Body>, Failure> {
    let message = format!("find {}: no such method here: {}", call.parts.uri.path(), call.parts.method);
    Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method", message))
}

/// A handler with all that stands around it.
fn endpoint<F, Fut>(
    server: &Arc<Server>,
    name: &'static str,
    style: Style,
    handler: F,
) -> impl Fn(Request) -> std::pin::Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Clone + Send + Sync + 'static
where
    F: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response<Body>, Failure>> + Send + 'static,
{
    let server = server.clone();
    move |request| Box::pin(answer(server.clone(), name, style, handler.clone(), request))
}

async fn answer<F, Fut>(
    server: Arc<Server>,
    endpoint: &'static str,
    style: Style,
    handler: F,
    request: Request,
) -> Response<Body>
where
    F: Fn(Call) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response<Body>, Failure>> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let arrived = Instant::now();
    let id = request_id(&parts.headers);
    let peer = parts.extensions.get::<Peer>().map_or(std::net::SocketAddr::from(([0, 0, 0, 0], 0)), |peer| peer.0);
    let address = caller::address(&parts.headers, peer, server.config.trust_proxy);
    let is_head = parts.method == Method::HEAD;
    let notes = Arc::default();
    let mut watched =
        Watched { server: &server, endpoint, id: &id, arrived, notes: Arc::clone(&notes), is_answered: false };
    let call = Call {
        server: server.clone(),
        parts,
        body: Mutex::new(body),
        id: id.clone(),
        caller: Caller::at(address),
        arrived,
        notes,
    };
    let result = caught(handler(call)).await.unwrap_or_else(|message| {
        Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("serve: {message}")))
    });
    let mut response = result.unwrap_or_else(|failure| failure.response(style, &id));
    if is_head {
        *response.body_mut() = Body::empty();
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if server.phase() >= Phase::Closing {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    watched.is_answered = true;
    watched.tell(Some(response.status()));
    response
}

/// Awaits a handler whose panic is an error of this request alone.
async fn caught<T>(handler: impl Future<Output = T>) -> Result<T, String> {
    let mut handler = pin!(handler);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Poll::Ready(Err(text.unwrap_or_else(|| "it panicked".to_owned())))
        }
    })
    .await
}

/// Counts and logs a request when it is answered, or dropped because its client has gone.
struct Watched<'a> {
    server: &'a Server,
    endpoint: &'static str,
    id: &'a str,
    arrived: Instant,
    notes: super::http::SharedNotes,
    is_answered: bool,
}

impl Watched<'_> {
    fn tell(&self, status: Option<StatusCode>) {
        let (endpoint, metrics) = (self.endpoint, &self.server.metrics);
        let seconds = self.arrived.elapsed();
        let named = status.map_or("gone".to_owned(), |status| status.as_u16().to_string());
        metrics.requests.get_or_create(&Answer { endpoint, status: named }).inc();
        metrics.request_seconds.get_or_create(&Endpoint { endpoint }).observe(seconds.as_secs_f64());
        if !self.server.config.log {
            return;
        }
        let notes = self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        log::line(&log::Entry {
            time: log::now(),
            request_id: self.id,
            endpoint,
            status: status.map(|status| status.as_u16()),
            seconds: log::rounded(seconds),
            notes,
        });
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.server.metrics.cancelled.get_or_create(&Reason { reason: "client_gone" }).inc();
            self.tell(None);
        }
    }
}
