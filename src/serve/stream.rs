//! Answers that come bit by bit, as server-sent events.
//!
//! With `"stream": "items"` each segment comes as an `item` when it is done, with `"tokens"` before that as `delta`s whose texts put
//! together are its translation: what has been sent is never taken back. `done` or `error` is the last event.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use http_body::{Body as HttpBody, Frame};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::failure::{Failure, Style};
use super::http::{Call, typed};
use super::models::Model;
use super::work::{self, Started};
use super::{Phase, Server, reached};
use crate::jsonl::{BadLine, Fields, translation_json};
use crate::translator::TranslationHandle;
use crate::{DecodeOptions, Error, Translation};

/// What a request wants to see early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stream {
    Items,
    Tokens,
}

/// Events that may wait for a client that reads slowly; behind them deltas are merged.
const WAITING: usize = 16;

/// Where a segment stands: its item, and its place in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub index: usize,
    pub segment: usize,
}

/// A body of events as they come.
struct Events(mpsc::Receiver<Bytes>);

impl HttpBody for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// An event; the data is one line of JSON.
fn event(name: &str, data: &str) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

/// Options whose best translation is not known before the end cannot be told token by token.
pub(super) fn check_tokens(options: &DecodeOptions) -> Result<(), Failure> {
    let with = if options.candidates() > 1 {
        "several translations of a sentence, or a choice among them"
    } else if options.beam_groups > 1 {
        "beam_groups"
    } else {
        return Ok(());
    };
    Err(Error::conflict("stream", "tokens", with).into())
}

/// All that the tasks of an answer share.
struct Shared {
    server: Arc<Server>,
    model: Arc<Model>,
    events: mpsc::Sender<Bytes>,
    deadline: Instant,
    begun: Instant,
    stream: Stream,
    room: Mutex<work::Room>,
}

/// Starts to tell of sentences that are under way.
pub(super) fn answer(
    call: &Call,
    model: &Arc<Model>,
    stream: Stream,
    started: Started<TranslationHandle>,
    places: Vec<Place>,
    costs: Vec<u64>,
    deadline: Instant,
) -> Response<Body> {
    let (events, receiver) = mpsc::channel(WAITING);
    let Started { handles, room, begun } = started;
    let room = Mutex::new(room);
    let (server, model) = (call.server.clone(), model.clone());
    let shared = Arc::new(Shared { server, model, events, deadline, begun, stream, room });
    let tasks: Vec<_> = handles
        .into_iter()
        .zip(places)
        .zip(costs)
        .map(|((handle, place), cost)| tokio::spawn(segment(shared.clone(), handle, place, cost)))
        .collect();
    let id = call.id.clone();
    tokio::spawn(async move {
        let mut failure = None;
        for task in tasks {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(failed)) => failure = failure.or(Some(failed)),
                Err(panic) => {
                    let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
                    failure = failure.or(Some(Failure::new(status, "internal", format!("serve: {panic}"))));
                }
            }
        }
        let last = match failure {
            Some(failure) => event("error", &failure.json(Style::Native, &id).to_string()),
            None => {
                let (name, version) = (&shared.model.name, &shared.model.version);
                event("done", &json!({ "model": name, "version": version }).to_string())
            }
        };
        let _ = shared.events.send(last).await;
    });
    let mut response = typed("text/event-stream", Body::new(Events(receiver)));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Follows a segment to its end. What it comes to is an event; an error is the whole answer's.
async fn segment(
    shared: Arc<Shared>,
    handle: Result<TranslationHandle, BadLine>,
    place: Place,
    cost: u64,
) -> Result<(), Failure> {
    let mut phase = shared.server.phase.clone();
    let result = match handle {
        Err(bad) => Err(bad),
        // A client that has gone has dropped the other end: the handle is dropped, and the sentence given up.
        Ok(handle) => tokio::select! {
            biased;
            result = follow(&shared, handle, place) => result.map_err(|error| work::wrong(&error, None)),
            () = shared.events.closed() => return Ok(()),
            () = reached(&mut phase, Phase::Expired) => return Err(Failure::draining()),
            () = tokio::time::sleep_until(shared.deadline.into()) => Err(work::wrong(&Error::DeadlineExceeded, None)),
        },
    };
    work::count(&shared.server, &shared.model, &result, shared.begun);
    if result.is_ok() {
        shared.room.lock().unwrap_or_else(PoisonError::into_inner).admitted.finish(cost);
        shared.server.admission.measure(shared.model.translator.load().waiting);
    }
    let Place { index, segment } = place;
    let data = match result {
        Ok(translation) => {
            work::count_tokens(&shared.server, &shared.model, &translation);
            let text = translation.text();
            let line = translation_json(&translation, &Fields::new(), &[])?;
            let line = RawValue::from_string(line).map_err(|source| Error::Json { path: "-".into(), source })?;
            #[derive(serde::Serialize)]
            struct Item<'a> {
                index: usize,
                segment: usize,
                text: &'a str,
                result: Box<RawValue>,
            }
            crate::jsonl::json(&Item { index, segment, text, result: line })?
        }
        Err(bad) => {
            let error = json!({ "kind": bad.kind, "message": bad.message });
            json!({ "index": index, "segment": segment, "error": error }).to_string()
        }
    };
    let _ = shared.events.send(event("item", &data)).await;
    Ok(())
}

/// Waits for a translation, and tells of its text as far as it is settled.
async fn follow(shared: &Shared, mut handle: TranslationHandle, place: Place) -> crate::Result<Translation> {
    if shared.stream == Stream::Items {
        return handle.await;
    }
    let Place { index, segment } = place;
    let delta = |text: &str| event("delta", &json!({ "index": index, "segment": segment, "text": text }).to_string());
    let (mut ids, mut told) = (Vec::new(), String::new());
    while let Some(progress) = poll_fn(|context| handle.poll_progress(context)).await {
        if progress.tokens.is_empty() {
            continue;
        }
        ids.extend(progress.tokens);
        let text = shared.model.translator.tokenizer().detokenize(&ids);
        let settled = settled(&text);
        if let Some(new) = settled.strip_prefix(told.as_str()).filter(|new| !new.is_empty()) {
            let sent = shared.events.send(delta(new)).await;
            told.push_str(new);
            if sent.is_err() {
                break;
            }
        }
    }
    let translation = handle.await?;
    if let Some(rest) = translation.text().strip_prefix(told.as_str()).filter(|rest| !rest.is_empty()) {
        let _ = shared.events.send(delta(rest)).await;
    }
    Ok(translation)
}

/// The part of a text that further tokens leave as it is: a character whose bytes have not all come, and spaces at the end, may change.
fn settled(text: &str) -> &str {
    text.trim_end_matches(|c: char| c == char::REPLACEMENT_CHARACTER || c.is_whitespace())
}
