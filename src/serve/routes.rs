//! The endpoints, and what happens around each: an id, the caller, errors in the endpoint's form, a count and a line in the log.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{MethodFilter, MethodRouter, on};

use super::caller::{self, Caller};
use super::failure::{Failure, Style};
use super::http::{Call, Peer, REQUEST_ID, request_id};
use super::metrics::{self, Answer, Reason};
use super::{Phase, Server, deepl, libretranslate, log, native, page, status};

/// Who may ask an endpoint, where there are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Anybody.
    Open,
    /// Who shows a key.
    Key,
    /// Who shows a key, which the body may hold: the handler looks.
    Body,
}

/// What stands around a handler.
#[derive(Clone, Copy, Debug)]
struct Endpoint {
    name: &'static str,
    style: Style,
    access: Access,
}

macro_rules! endpoints {
    ($($method:ident $path:literal $style:ident $access:ident $handler:path;)*) => {
        /// Methods and paths.
        #[cfg(test)]
        const ENDPOINTS: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn add_all(server: &Arc<Server>, mut add: impl FnMut(&'static str, MethodRouter)) {
            $(
                let own = Endpoint { name: $path, style: Style::$style, access: Access::$access };
                add($path, on(MethodFilter::$method, endpoint(server, own, $handler)));
            )*
        }
    };
}

endpoints! {
    GET "/" Native Open page::page;
    POST "/translate" LibreTranslate Body libretranslate::translate;
    POST "/detect" LibreTranslate Body libretranslate::detect;
    GET "/languages" LibreTranslate Open libretranslate::languages;
    GET "/frontend/settings" LibreTranslate Open libretranslate::settings;
    GET "/spec" LibreTranslate Open status::openapi;
    POST "/translate_file" LibreTranslate Open libretranslate::refused;
    POST "/suggest" LibreTranslate Open libretranslate::refused;
    GET "/health" LibreTranslate Open status::live;
    POST "/v2/translate" DeepL Body deepl::translate;
    GET "/v2/languages" DeepL Body deepl::languages;
    POST "/v2/languages" DeepL Body deepl::languages;
    GET "/v2/usage" DeepL Body deepl::usage;
    POST "/v2/usage" DeepL Body deepl::usage;
    POST "/v1/translate" Native Key native::translate;
    POST "/v1/score" Native Key native::score;
    POST "/v1/explain" Native Key native::explain;
    GET "/v1/models" Native Key native::models;
    POST "/v1/admin/reload" Native Key status::reload;
    GET "/livez" Native Open status::live;
    GET "/readyz" Native Open status::ready;
    GET "/metrics" Native Open status::metrics;
    GET "/openapi.json" Native Open status::openapi;
}

/// All endpoints.
pub(super) fn router(server: &Arc<Server>) -> Router {
    let mut paths: Vec<(&'static str, MethodRouter)> = Vec::new();
    add_all(server, |path, handler| match paths.iter_mut().find(|(other, _)| *other == path) {
        Some((_, routes)) => *routes = std::mem::take(routes).merge(handler),
        None => paths.push((path, handler)),
    });
    let mut router = Router::new();
    for (path, routes) in paths {
        let own = Endpoint { name: path, style: style_of(path), access: Access::Open };
        router = router.route(path, routes.fallback(endpoint(server, own, no_method)));
    }
    let other = Endpoint { name: "other", style: Style::Native, access: Access::Open };
    router.fallback(endpoint(server, other, no_path))
}

/// The form of errors on a path, for what no handler answers.
fn style_of(path: &str) -> Style {
    match path {
        path if path.starts_with("/v2/") => Style::DeepL,
        "/translate" | "/detect" | "/languages" => Style::LibreTranslate,
        _ => Style::Native,
    }
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
    own: Endpoint,
    handler: F,
) -> impl Fn(Request) -> Boxed<Response<Body>> + Clone + Send + Sync + 'static
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Response<Body>, Failure>> + Send + 'static,
{
    let server = server.clone();
    let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
    move |request| Box::pin(answer(server.clone(), own, handler.clone(), request))
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Any handler: what stands around it is compiled once.
type Handler = Arc<dyn Fn(Call) -> Boxed<Result<Response<Body>, Failure>> + Send + Sync>;

async fn answer(server: Arc<Server>, own: Endpoint, handler: Handler, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let arrived = Instant::now();
    let id = request_id(&parts.headers);
    let peer = parts.extensions.get::<Peer>().map_or(std::net::SocketAddr::from(([0, 0, 0, 0], 0)), |peer| peer.0);
    let address = caller::address(&parts.headers, peer, server.config.trust_proxy);
    let is_head = parts.method == Method::HEAD;
    let notes = Arc::default();
    let mut watched = Watched {
        server: &server,
        endpoint: own.name,
        id: &id,
        arrived,
        notes: Arc::clone(&notes),
        is_answered: false,
    };
    let origin = allowed_origin(&server, &parts.headers);
    let is_preflight = parts.method == Method::OPTIONS && origin.is_some();
    let mut call = Call {
        server: server.clone(),
        parts,
        body: Mutex::new(body),
        id: id.clone(),
        caller: Caller::at(address),
        arrived,
        notes,
    };
    let signed_in = if own.access == Access::Key { call.sign_in(None) } else { Ok(()) };
    let result = match signed_in {
        _ if is_preflight => Ok(preflight()),
        Ok(()) => caught(handler(call)).await.unwrap_or_else(|message| {
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("serve: {message}")))
        }),
        Err(failure) => Err(failure),
    };
    let mut response = result.unwrap_or_else(|failure| failure.response(own.style, &id));
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
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

/// The origin of a page that may ask.
fn allowed_origin(server: &Server, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let text = origin.to_str().ok()?;
    let is_allowed = server.config.cors_origins.iter().any(|allowed| allowed == "*" || allowed == text);
    is_allowed.then(|| origin.clone())
}

/// What a page of an allowed origin may do.
fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, x-deadline-ms, x-request-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
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
        let (endpoint, counts) = (self.endpoint, &self.server.metrics);
        let seconds = self.arrived.elapsed();
        let named = status.map_or("gone".to_owned(), |status| status.as_u16().to_string());
        counts.requests.get_or_create(&Answer { endpoint, status: named }).inc();
        counts.request_seconds.get_or_create(&metrics::Endpoint { endpoint }).observe(seconds.as_secs_f64());
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::ENDPOINTS;

    #[test]
    fn the_description_has_every_endpoint_and_no_other() {
        let described: Value = serde_json::from_str(include_str!("openapi.json")).expect("it is JSON");
        let paths = described["paths"].as_object().expect("an object");
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("an object");
                methods.keys().map(|method| (method.to_ascii_uppercase(), path.clone())).collect::<Vec<_>>()
            })
            .collect();
        let served = ENDPOINTS.iter().map(|(method, path)| (method.to_string(), path.to_string())).collect();
        assert_eq!(described, served);
    }
}
