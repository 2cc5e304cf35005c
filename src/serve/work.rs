//! Sentences of a request: admitted together, handed to the engine, awaited, and given up if nobody waits any more.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;

use super::admission::{Admitted, Asked, cost};
use super::failure::Failure;
use super::http::Call;
use super::keys::UnderWay;
use super::metrics::{ByModel, Outcome, Reason};
use super::models::Model;
use super::{Phase, Server, reached};
use crate::jsonl::BadLine;
use crate::translator::{Explanation, ExplanationHandle, ScoreHandle, TranslationHandle};
use crate::{Error, Priority, Result, Score, Sentence, Terms, Translation};

/// On which terms a request is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions {
    pub owner: u64,
    pub priority: Priority,
    pub deadline: Instant,
}

impl Conditions {
    fn terms(&self) -> Terms {
        let mut terms = Terms::new().owner(self.owner).priority(self.priority);
        terms.deadline = Some(self.deadline);
        terms
    }
}

/// What an item comes to.
pub(super) type Outcomes<T> = Vec<Result<T, BadLine>>;

/// Notes what is wrong with an item.
pub(super) fn wrong(error: &Error, source: Option<String>) -> BadLine {
    BadLine { kind: error.kind(), message: error.to_string(), source }
}

/// Translates sentences; the results stand in their order. What could not be read keeps its error.
pub(super) async fn translate(
    call: &Call,
    model: &Arc<Model>,
    sentences: Outcomes<Sentence>,
    conditions: Conditions,
) -> Result<Outcomes<Translation>, Failure> {
    let (started, costs) = start(call, model, sentences, conditions, false).await?;
    let translations = collect(call, model, started, costs, conditions).await?;
    let tokens = translations.iter().flatten().map(|translation| count_tokens(&call.server, model, translation)).sum();
    call.note(|notes| notes.output_tokens = Some(tokens));
    Ok(translations)
}

/// Counts a translation's tokens; how many it has.
pub(super) fn count_tokens(server: &Server, model: &Model, translation: &Translation) -> u64 {
    let by_model = ByModel { model: model.name.clone() };
    server.metrics.source_tokens.get_or_create(&by_model).inc_by(translation.source_ids.len() as u64);
    let tokens: usize = translation.hypotheses.iter().map(|hypothesis| hypothesis.token_ids.len()).sum();
    server.metrics.output_tokens.get_or_create(&by_model).inc_by(tokens as u64);
    tokens as u64
}

/// Hands sentences to the engine, told step by step if `watched`; with what each costs.
pub(super) async fn start(
    call: &Call,
    model: &Arc<Model>,
    sentences: Outcomes<Sentence>,
    conditions: Conditions,
    watched: bool,
) -> Result<(Started<TranslationHandle>, Vec<u64>), Failure> {
    let characters = |sentence: &Sentence| sentence.source.chars().count();
    check_size(call, sentences.iter().map(|sentence| sentence.as_ref().map_or(0, characters)))?;
    let most = call.server.config.limits.beam;
    let costs: Vec<u64> = sentences
        .iter()
        .map(|sentence| {
            let Ok(sentence) = sentence else { return 0 };
            let options = sentence.options.as_deref().unwrap_or(&model.options);
            cost(options.beam_size.max(options.candidates()).min(most), characters(sentence))
        })
        .collect();
    let sentences = sentences
        .into_iter()
        .map(|sentence| {
            let sentence = sentence?;
            check_beam(model, &sentence, most).map_err(|error| wrong(&error, Some(sentence.source.clone())))?;
            Ok(sentence)
        })
        .collect();
    let begin = move |model: &Model, sentence: Sentence| match watched {
        true => model.translator.stream(sentence, &model.options, conditions.terms()),
        false => model.translator.submit(sentence, &model.options, conditions.terms()),
    };
    let started = submit::<Sentence, TranslationHandle>(call, model, sentences, &costs, conditions, begin).await?;
    Ok((started, costs))
}

/// The search for one sentence, told step by step.
pub(super) async fn explain(
    call: &Call,
    model: &Arc<Model>,
    sentence: Sentence,
    conditions: Conditions,
) -> Result<Explanation, Failure> {
    check_size(call, std::iter::once(sentence.source.chars().count()))?;
    check_beam(model, &sentence, call.server.config.limits.beam)?;
    let beams = sentence.options.as_deref().unwrap_or(&model.options).beam_size;
    let costs = [cost(beams, sentence.source.chars().count())];
    let search = move |model: &Model, sentence: Sentence| {
        let options = sentence.options.as_deref().unwrap_or(&model.options).clone();
        model.translator.submit_explain(sentence, &options, conditions.terms())
    };
    let sentences = vec![Ok(sentence)];
    let started = submit::<Sentence, ExplanationHandle>(call, model, sentences, &costs, conditions, search).await?;
    let explained = collect(call, model, started, costs.to_vec(), conditions).await?;
    let first = explained.into_iter().next();
    first.unwrap_or_else(|| Err(wrong(&Error::Cancelled, None))).map_err(|bad| Failure::from(&bad))
}

/// Scores targets under their sources; the results stand in their order.
pub(super) async fn score(
    call: &Call,
    model: &Arc<Model>,
    pairs: Outcomes<(Sentence, String)>,
    conditions: Conditions,
) -> Result<Outcomes<Score>, Failure> {
    let characters = |(sentence, target): &(Sentence, String)| sentence.source.chars().count() + target.chars().count();
    check_size(call, pairs.iter().map(|pair| pair.as_ref().map_or(0, characters)))?;
    let costs: Vec<u64> = pairs.iter().map(|pair| pair.as_ref().map_or(0, |pair| cost(1, characters(pair)))).collect();
    let start = move |model: &Model, (sentence, target): (Sentence, String)| {
        model.translator.submit_score(sentence, &target, conditions.terms())
    };
    let handles = submit::<(Sentence, String), ScoreHandle>(call, model, pairs, &costs, conditions, start).await?;
    collect(call, model, handles, costs, conditions).await
}

/// Refuses what is larger than a request may be.
pub(super) fn check_size(call: &Call, lengths: impl ExactSizeIterator<Item = usize>) -> Result<(), Failure> {
    let limits = &call.server.config.limits;
    let refuse = |what: &str, most: usize, got: usize| {
        let message = format!("read the request: expected at most {most} {what}, got {got}");
        Err(Failure::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message))
    };
    let items = lengths.len();
    call.note(|notes| notes.items = Some(items));
    if items > limits.items {
        return refuse("items", limits.items, items);
    }
    let mut characters = 0;
    for length in lengths {
        if length > limits.item_characters {
            return refuse("characters in an item", limits.item_characters, length);
        }
        characters += length;
    }
    call.note(|notes| notes.characters = Some(characters));
    if characters > limits.characters {
        return refuse("characters", limits.characters, characters);
    }
    Ok(())
}

/// Refuses a search that is wider than the service allows.
fn check_beam(model: &Model, sentence: &Sentence, most: usize) -> Result<()> {
    let options = sentence.options.as_deref().unwrap_or(&model.options);
    let (option, got) = match options.sample {
        true => ("samples", options.samples),
        false => ("beam_size", options.beam_size),
    };
    match got > most {
        true => Err(Error::Option {
            option,
            expected: format!("1 to {most}, as this service allows"),
            got: got.to_string(),
        }),
        false => Ok(()),
    }
}

/// Sentences under way, with what holds their room.
pub(super) struct Started<H> {
    pub handles: Outcomes<H>,
    pub room: Room,
    pub begun: Instant,
}

/// Room that a request has taken; dropped, it is given back.
#[derive(Debug)]
pub(super) struct Room {
    pub admitted: Admitted,
    _under_way: Option<UnderWay>,
}

/// Admits a request and hands its sentences to the engine, on a thread that may take its time: a long text takes long to tokenize.
async fn submit<S: Send + 'static, H: Send + 'static>(
    call: &Call,
    model: &Arc<Model>,
    items: Outcomes<S>,
    costs: &[u64],
    conditions: Conditions,
    start: impl Fn(&Model, S) -> Result<H> + Send + 'static,
) -> Result<Started<H>, Failure> {
    let server = &call.server;
    let rejected = |reason| server.metrics.rejected.get_or_create(&Reason { reason }).inc();
    call.note(|notes| notes.model = Some(model.name.clone()));
    if server.phase() >= Phase::Expired {
        rejected("draining");
        return Err(Failure::draining());
    }
    let begun = Instant::now();
    let sentences = items.iter().flatten().count();
    let asked = Asked {
        owner: conditions.owner,
        priority: conditions.priority,
        cost: costs.iter().sum(),
        bytes: 4 * call.characters(),
        sentences,
    };
    server.admission.measure(model.translator.load().waiting);
    let patience = conditions.deadline.saturating_duration_since(begun);
    let admitted = server.admission.admit(asked, patience).map_err(|wait| {
        rejected("overloaded");
        let most = patience.min(server.config.limits.max_wait);
        Failure::later(
            "overloaded",
            format!("admit the request: expected it to end within {most:.1?}, got more work than that before it"),
            wait,
        )
    })?;
    let charged = call.caller.key.as_ref().map(|key| key.charge(call.characters() as u64, sentences));
    let under_way = charged.transpose().inspect_err(|_| {
        rejected("rate");
    })?;
    let engine = model.clone();
    let submit = move || {
        let mut handles: Outcomes<H> = Vec::with_capacity(items.len());
        for item in items {
            match item.map(|item| start(&engine, item)) {
                Ok(Ok(handle)) => handles.push(Ok(handle)),
                // The whole request: what has been submitted is given up with its handle.
                Ok(Err(error @ (Error::Overloaded { .. } | Error::EngineStopped))) => return Err(error),
                Ok(Err(error)) => handles.push(Err(wrong(&error, None))),
                Err(bad) => handles.push(Err(bad)),
            }
        }
        Ok(handles)
    };
    match spawn_blocking(submit).await {
        Ok(Ok(handles)) => Ok(Started { handles, room: Room { admitted, _under_way: under_way }, begun }),
        Ok(Err(error)) => {
            rejected("overloaded");
            Err(error.into())
        }
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Waits for all results. Dropped, it gives up what is left: the handles do.
async fn collect<T, H: Future<Output = Result<T>> + Unpin>(
    call: &Call,
    model: &Arc<Model>,
    started: Started<H>,
    costs: Vec<u64>,
    conditions: Conditions,
) -> Result<Outcomes<T>, Failure> {
    let Started { handles, mut room, begun } = started;
    let server = call.server.clone();
    let mut results = Vec::with_capacity(handles.len());
    let mut watched = Watched { server: &server, is_done: false };
    for (handle, cost) in handles.into_iter().zip(costs) {
        let result = match handle {
            Err(bad) => Err(bad),
            Ok(handle) => {
                let result = within(&server, conditions.deadline, handle).await?;
                if result.is_ok() {
                    room.admitted.finish(cost);
                    server.admission.measure(model.translator.load().waiting);
                }
                result.map_err(|error| wrong(&error, None))
            }
        };
        count(&server, model, &result, begun);
        results.push(result);
    }
    watched.is_done = true;
    let failed = results.iter().filter(|result| result.is_err()).count();
    call.note(|notes| notes.failed = (failed > 0).then_some(failed));
    Ok(results)
}

/// Counts a sentence by what it has come to.
pub(super) fn count<T>(server: &Server, model: &Model, result: &Result<T, BadLine>, begun: Instant) {
    let outcome = result.as_ref().map_or_else(|bad| bad.kind, |_| "done");
    server.metrics.sentences.get_or_create(&Outcome { model: model.name.clone(), outcome }).inc();
    if result.is_ok() {
        let by_model = ByModel { model: model.name.clone() };
        server.metrics.sentence_seconds.get_or_create(&by_model).observe(begun.elapsed().as_secs_f64());
    }
}

/// Waits for a result, for as long as the deadline and the service's end allow.
async fn within<T>(
    server: &Server,
    deadline: Instant,
    handle: impl Future<Output = Result<T>>,
) -> Result<Result<T>, Failure> {
    let mut phase = server.phase.clone();
    // A handle that is ready is ready whatever the time.
    tokio::select! {
        biased;
        result = handle => Ok(result),
        () = reached(&mut phase, Phase::Expired) => Err(Failure::draining()),
        () = tokio::time::sleep_until(deadline.into()) => Ok(Err(Error::DeadlineExceeded)),
    }
}

/// Counts requests that are given up while their sentences are under way.
struct Watched<'a> {
    server: &'a Server,
    is_done: bool,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.server.metrics.cancelled.get_or_create(&Reason { reason: "under_way" }).inc();
        }
    }
}
