//! `/v1`: what the command line does with JSON lines, over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::http::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::detect::{self, Detected};
use super::failure::Failure;
use super::http::{Call, internal, json, json_text, typed};
use super::models::{Model, Route};
use super::stream::{self, Place, Stream};
use super::work::{self, Conditions, Outcomes, wrong};
use crate::document::{self, Form, Plan, Rendered, Segment, Splitting, Wording};
use crate::explain::Page;
use crate::jsonl::{
    BadLine, Fields, Warning, document_json, error_json, field, raw, read_sentence, score_json, segment_json,
};
use crate::{DecodeOptions, Overrides, Priority, Score, Sentence, Translation};

const READ_ITEM: &str = "read item";

/// The body of `/v1/translate` and `/v1/score`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    pub model: Option<String>,
    pub source_lang: Option<String>,
    pub target_lang: Option<String>,
    items: Vec<Box<RawValue>>,
    pub options: Option<Overrides>,
    /// Whether an item is split into sentences.
    #[serde(default)]
    segment: bool,
    #[serde(default)]
    format: Format,
    /// Patterns of text that stays as it is.
    #[serde(default)]
    protect: Vec<String>,
    /// What words are translated by.
    #[serde(default)]
    glossary: BTreeMap<String, String>,
    stream: Option<Stream>,
    #[serde(default)]
    priority: RequestPriority,
    deadline_ms: Option<u64>,
}

/// What items are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Text,
    /// Documents, whose sentences are found in any case.
    Html,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RequestPriority {
    #[default]
    Interactive,
    Batch,
}

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    version: &'a str,
    items: Vec<Box<RawValue>>,
    usage: Usage,
}

/// What an answer took.
#[derive(Debug, Default, Serialize)]
struct Usage {
    characters: usize,
    source_tokens: usize,
    output_tokens: usize,
}

impl Request {
    pub fn conditions(&self, call: &Call) -> Result<Conditions, Failure> {
        let priority = match self.priority {
            RequestPriority::Interactive => Priority::Interactive,
            RequestPriority::Batch => Priority::Batch,
        };
        Ok(Conditions { owner: call.caller.owner, priority, deadline: call.deadline(self.deadline_ms)? })
    }

    /// How items are read that are documents; none if each is a sentence.
    fn form(&self) -> Result<Option<Form>, Failure> {
        let html = self.format == Format::Html;
        let wording = Wording::new(&self.protect, self.glossary.clone())?;
        let splitting = if html || self.segment { Splitting::Full } else { Splitting::Off };
        let is_document = html || self.segment || !wording.is_empty();
        Ok(is_document.then(|| Form { html, splitting, wording, ..Form::default() }))
    }

    /// Where the request goes, and each item by itself if the service is to find out its language: to one model.
    async fn routes(&self, call: &Call, deadline: Instant) -> Result<(Route, Vec<Own>), Failure> {
        let (name, target) = (self.model.as_deref(), self.target_lang.as_deref());
        let served = call.server.models.sources(name, target);
        if !self.source_lang.as_deref().is_some_and(|code| detect::is_left_open(Some(code))) || served.is_empty() {
            return Ok((self.route(call)?, Vec::new()));
        }
        // What says its own language, or is ids, is left as it is.
        let read: Vec<(Option<String>, Option<String>)> = self.items.iter().map(|raw| open_text(raw)).collect();
        let texts = read.iter().filter_map(|(text, _)| text.clone()).collect::<Vec<_>>();
        work::check_size(call, texts.iter().map(|text| text.chars().count()))?;
        let mut found = detect::detect(&served, texts, self.format == Format::Html, deadline).await?.into_iter();
        let mut all: Vec<Own> = Vec::with_capacity(read.len());
        for (text, said) in read {
            let detected = text.and_then(|_| found.next()).map(|mut found| found.swap_remove(0));
            let language = detected.as_ref().map(|one| one.language.as_str()).or(said.as_deref());
            // An item that cannot be read goes where the others go, and says there what is wrong with it.
            let route = language.map(|language| call.route(name, Some(language), target)).transpose();
            all.push(Own { route: if detected.is_some() { route? } else { route.unwrap_or(None) }, detected });
        }
        let mut routes = all.iter().filter_map(|own| own.route.as_ref());
        let Some(first) = routes.next().cloned() else { return Ok((self.route(call)?, Vec::new())) };
        if let Some(other) = routes.find(|other| !Arc::ptr_eq(&other.model, &first.model)) {
            let message = format!(
                "find the model: expected items of one model, got some for {} and some for {}; name one, or ask for each by itself",
                first.model.name, other.model.name
            );
            return Err(Failure::bad("language_pair", message));
        }
        Ok((first, all))
    }

    pub fn route(&self, call: &Call) -> Result<Route, Failure> {
        call.route(self.model.as_deref(), self.source_lang.as_deref(), self.target_lang.as_deref())
    }
}

/// An item's own way, and the language that it was taken for.
struct Own {
    route: Option<Route>,
    detected: Option<Detected>,
}

/// An item's text if its language is open; else the language that it says.
fn open_text(raw: &RawValue) -> (Option<String>, Option<String>) {
    let Ok((sentence, _)) = read_sentence(READ_ITEM, raw.get()) else { return (None, None) };
    let is_open = sentence.source_lang.is_none() && sentence.source_ids.is_none();
    (is_open.then_some(sentence.source), sentence.source_lang)
}

/// A request's options for one model: those that are set, and what they come to.
pub(super) fn options(model: &Model, own: Option<&Overrides>) -> Result<(Overrides, Option<DecodeOptions>), Failure> {
    let Some(own) = own else { return Ok((model.set.clone(), None)) };
    let set = own.over(&model.set);
    let options = model.translator.options(&set)?;
    Ok((set, Some(options)))
}

/// An item as it is translated: as one sentence, or as a document of several.
struct Item {
    other: Fields,
    plan: Option<Plan>,
    /// Whether attention was asked for, and not only needed to find the places of tags.
    shows_attention: bool,
    sentences: Outcomes<Sentence>,
}

impl Item {
    /// Reads an item, under the options of the request and the languages of its route.
    fn read(
        raw: &RawValue,
        route: &Route,
        set: &Overrides,
        options: Option<&DecodeOptions>,
        form: Option<&Form>,
    ) -> Self {
        let of_all = options.unwrap_or(&route.model.options);
        let read = || {
            let (mut sentence, other) = read_sentence(READ_ITEM, raw.get())?;
            let source = sentence.source.clone();
            route.complete(&mut sentence);
            let model = &route.model;
            let read = model.translator.sentence(sentence, set, of_all);
            let mut sentence = read.map_err(|error| wrong(&error, Some(source.clone())))?;
            if form.is_some() && sentence.source_ids.is_none() {
                document::check(&sentence).map_err(|error| wrong(&error, Some(source)))?;
            }
            if sentence.options.is_none() {
                sentence.options = options.map(|options| Box::new(options.clone()));
            }
            Ok::<_, BadLine>((sentence, other))
        };
        let (sentence, other) = match read() {
            Ok(read) => read,
            Err(bad) => {
                return Item { other: Fields::new(), plan: None, shows_attention: true, sentences: vec![Err(bad)] };
            }
        };
        let shows_attention = sentence.options.as_deref().unwrap_or(of_all).attention;
        // Ids are one sentence, whatever they mean.
        let Some(form) = form.filter(|_| sentence.source_ids.is_none()) else {
            return Item { other, plan: None, shows_attention, sentences: vec![Ok(sentence)] };
        };
        let plan = route.plan(&sentence.source, form, &sentence);
        let sentences = plan.sentences(&sentence, of_all).map(Ok).collect();
        Item { other, sentences, shows_attention, plan: Some(plan) }
    }
}

/// POST /v1/translate
pub(super) async fn translate(mut call: Call) -> Result<Response<Body>, Failure> {
    let request: Request = call.json().await?;
    check_items(&call, request.items.len())?;
    let conditions = request.conditions(&call)?;
    let (route, own) = request.routes(&call, conditions.deadline).await?;
    let (set, options) = options(&route.model, request.options.as_ref())?;
    let is_put_together = request.format == Format::Html || !request.protect.is_empty();
    if is_put_together && request.stream.is_some() {
        let message = "stream: expected items of text, got html, or protected text, which is put together at the end";
        return Err(Failure::bad("option", message));
    }
    let form = request.form()?;
    let read = |(at, raw): (usize, &RawValue)| {
        let own = own.get(at);
        let on = own.and_then(|own| own.route.as_ref()).unwrap_or(&route);
        let mut item = Item::read(raw, on, &set, options.as_ref(), form.as_ref());
        if let Some(detected) = own.and_then(|own| own.detected.as_ref()) {
            let said = serde_json::value::to_raw_value(detected).map_err(internal)?;
            item.other.insert("detected_language".to_owned(), said);
        }
        Ok(item)
    };
    let mut items: Vec<Item> =
        request.items.iter().map(|raw| &**raw).enumerate().map(read).collect::<Result<_, Failure>>()?;
    let counts: Vec<usize> = items.iter().map(|item| item.sentences.len()).collect();
    let sentences = items.iter_mut().flat_map(|item| std::mem::take(&mut item.sentences)).collect();
    if let Some(stream) = request.stream {
        return streamed(&call, &route.model, stream, sentences, &counts, conditions).await;
    }
    let mut results = work::translate(&call, &route.model, sentences, conditions).await?;
    fail_whole(&results)?;
    let usage = usage(&call, &results, |t| (t.source_ids.len(), t.hypotheses.iter().map(|h| h.token_ids.len()).sum()));
    let mut answers = Vec::with_capacity(items.len());
    for (item, count) in items.iter().zip(counts) {
        let own: Outcomes<Translation> = results.drain(..count).collect();
        answers.push(translated(&route.model, item, own)?);
    }
    finish(&route.model, answers, usage)
}

/// The same as events.
async fn streamed(
    call: &Call,
    model: &Arc<Model>,
    stream: Stream,
    sentences: Outcomes<Sentence>,
    counts: &[usize],
    conditions: Conditions,
) -> Result<Response<Body>, Failure> {
    if stream == Stream::Tokens {
        let of = |sentence: &Sentence| stream::check_tokens(sentence.options.as_deref().unwrap_or(&model.options));
        sentences.iter().flatten().try_for_each(of)?;
    }
    let place = |(index, count): (usize, &usize)| (0..*count).map(move |segment| Place { index, segment });
    let places = counts.iter().enumerate().flat_map(place).collect();
    let (started, costs) = work::start(call, model, sentences, conditions, stream == Stream::Tokens).await?;
    Ok(stream::answer(call, model, stream, started, places, costs, conditions.deadline))
}

/// POST /v1/explain: the search for one item, as a page.
pub(super) async fn explain(mut call: Call) -> Result<Response<Body>, Failure> {
    let request: Request = call.json().await?;
    let conditions = request.conditions(&call)?;
    check_items(&call, request.items.len())?;
    let (route, _) = request.routes(&call, conditions.deadline).await?;
    let (set, options) = options(&route.model, request.options.as_ref())?;
    if !request.protect.is_empty() || !request.glossary.is_empty() {
        return Err(Failure::bad("option", "explain: expected one sentence, got protect or glossary beside it"));
    }
    let [item] = request.items.as_slice() else {
        let message = format!("explain: expected one item, got {}", request.items.len());
        return Err(Failure::bad("input", message));
    };
    let mut item = Item::read(item, &route, &set, options.as_ref(), None);
    let sentence = item.sentences.remove(0).map_err(|bad| Failure::from(&bad))?;
    let model = &route.model;
    let explanation = work::explain(&call, model, sentence.clone(), conditions).await?;
    let options = sentence.options.as_deref().unwrap_or(&model.options);
    let tokenizer = model.translator.tokenizer();
    let page = Page { explanation: &explanation, options, sentence: &sentence, tokenizer };
    Ok(typed("text/html; charset=utf-8", page.to_string()))
}

/// More items than a request may have are not even read.
fn check_items(call: &Call, items: usize) -> Result<(), Failure> {
    let most = call.server.config.limits.items;
    if items <= most {
        return Ok(());
    }
    let message = format!("read the request: expected at most {most} items, got {items}");
    Err(Failure::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message))
}

/// An item's answer: the first error of its sentences, or all their translations.
fn translated(model: &Model, item: &Item, results: Outcomes<Translation>) -> Result<Box<RawValue>, Failure> {
    let mut results: Vec<Translation> = match results.into_iter().collect::<Result<_, BadLine>>() {
        Ok(results) => results,
        Err(bad) => return failed(&item.other, &bad),
    };
    let text = match &item.plan {
        Some(plan) => {
            let best = results.iter().map(|translation| translation.hypotheses.first());
            let rendered = best.map(|best| Some(Rendered::new(best?, model.translator.tokenizer())));
            plan.assemble(&rendered.collect::<Vec<_>>())
        }
        None => results.first().map(|translation| translation.text().to_owned()).unwrap_or_default(),
    };
    let prefix = item.other.get("target_prefix").and_then(|raw| field::<String>(READ_ITEM, "", "", raw).ok());
    if !item.shows_attention {
        let hypotheses = results.iter_mut().flat_map(|translation| &mut translation.hypotheses);
        hypotheses.for_each(|hypothesis| hypothesis.ids.attention = None);
    }
    let planned = item.plan.as_ref().map_or(&[][..], Plan::segments);
    let segment = |(at, translation): (usize, &Translation)| {
        let warnings = warnings(model, &translation.source, prefix.as_deref());
        let (cut, placed) = planned.get(at).map_or((false, &[][..]), |Segment { cut, placed, .. }| (*cut, placed));
        segment_json(translation, cut, placed, &warnings)
    };
    let segments = results.iter().enumerate().map(segment).collect::<crate::Result<Vec<_>>>()?;
    Ok(raw(document_json(&text, &segments, &item.other)?)?)
}

fn warnings(model: &Model, source: &str, prefix: Option<&str>) -> Vec<Warning> {
    let found = model.watch.look_at(model.translator.tokenizer(), source, prefix);
    found.into_iter().map(|(warning, _)| warning).collect()
}

fn failed(other: &Fields, bad: &BadLine) -> Result<Box<RawValue>, Failure> {
    Ok(raw(error_json(bad.source.as_deref(), other, bad.kind, &bad.message)?)?)
}

/// Where nothing was done, and not because of what was asked for, the request fails as a whole: a balancer sees it.
pub(super) fn fail_whole<T>(results: &Outcomes<T>) -> Result<(), Failure> {
    if results.iter().any(Result::is_ok) {
        return Ok(());
    }
    let failures = results.iter().filter_map(|result| result.as_ref().err()).map(Failure::from);
    let mut server_errors = failures.filter(|failure| failure.status.is_server_error());
    match server_errors.next() {
        Some(first) if server_errors.count() + 1 == results.len() => Err(first),
        _ => Ok(()),
    }
}

fn usage<T>(call: &Call, results: &Outcomes<T>, tokens: impl Fn(&T) -> (usize, usize)) -> Usage {
    let mut usage = Usage { characters: call.characters(), ..Usage::default() };
    for (source, output) in results.iter().flatten().map(tokens) {
        usage.source_tokens += source;
        usage.output_tokens += output;
    }
    usage
}

fn finish(model: &Arc<Model>, items: Vec<Box<RawValue>>, usage: Usage) -> Result<Response<Body>, Failure> {
    json(&Answer { model: &model.name, version: &model.version, items, usage })
}

/// POST /v1/score
pub(super) async fn score(mut call: Call) -> Result<Response<Body>, Failure> {
    let request: Request = call.json().await?;
    let route = request.route(&call)?;
    let conditions = request.conditions(&call)?;
    if request.options.is_some() || request.form()?.is_some() || request.stream.is_some() {
        let message = "score: expected items alone, got options of a search";
        return Err(Failure::bad("option", message));
    }
    check_items(&call, request.items.len())?;
    let read = |raw: &RawValue| {
        let (mut sentence, mut other) = read_sentence(READ_ITEM, raw.get())?;
        route.complete(&mut sentence);
        let bad = |message: String| BadLine { kind: "json", message, source: Some(sentence.source.clone()) };
        let target = other.shift_remove("target");
        let target = target.ok_or_else(|| bad(format!("{READ_ITEM}: expected a field \"target\", got none")))?;
        let target: String = field(READ_ITEM, "target", "a string", &target).map_err(bad)?;
        Ok::<_, BadLine>((sentence.under(None), target, other))
    };
    let read: Outcomes<(Sentence, String, Fields)> = request.items.iter().map(|raw| read(raw)).collect();
    let mut others = Vec::with_capacity(read.len());
    let pairs = read
        .into_iter()
        .map(|item| match item {
            Ok((sentence, target, other)) => {
                others.push((sentence.source.clone(), target.clone(), other));
                Ok((sentence, target))
            }
            Err(bad) => {
                others.push(Default::default());
                Err(bad)
            }
        })
        .collect();
    let results = work::score(&call, &route.model, pairs, conditions).await?;
    fail_whole(&results)?;
    let usage = usage(&call, &results, |score: &Score| (0, score.token_ids.len()));
    let write = |(result, (source, target, other)): (Result<Score, BadLine>, &(String, String, Fields))| match result {
        Ok(score) => {
            let mut other = other.clone();
            for field in ["token_ids", "token_log_probs", "log_prob", "error", "warnings"] {
                other.shift_remove(field);
            }
            let warnings = warnings(&route.model, source, None);
            Ok(raw(score_json(source, target, &score, &other, &warnings)?)?)
        }
        Err(bad) => failed(other, &bad),
    };
    let answers = results.into_iter().zip(&others).map(write).collect::<Result<Vec<_>, Failure>>()?;
    finish(&route.model, answers, usage)
}

/// GET /v1/models
pub(super) async fn models(call: Call) -> Result<Response<Body>, Failure> {
    #[derive(Serialize)]
    struct Listed<'a> {
        name: &'a str,
        version: &'a str,
        source_languages: Vec<&'a str>,
        target_languages: Vec<&'a str>,
        max_tokens: usize,
        device: String,
        dtype: String,
    }
    let all = call.server.models.all();
    let listed: Vec<Listed<'_>> = all
        .iter()
        .map(|model| Listed {
            name: &model.name,
            version: &model.version,
            source_languages: model.languages.sources.iter().map(|code| code.own.as_str()).collect(),
            target_languages: model.languages.targets.iter().map(|code| code.own.as_str()).collect(),
            max_tokens: model.translator.max_len(),
            device: model.translator.device().device.to_string(),
            dtype: format!("{:?}", call.server.config.engine.dtype).to_lowercase(),
        })
        .collect();
    Ok(json_text(serde_json::json!({ "models": listed }).to_string()))
}
