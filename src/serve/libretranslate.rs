//! The endpoints of LibreTranslate, for its clients.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::detect::{self, Detected};
use super::failure::Failure;
use super::given::Given;
use super::http::{Call, Notes, json_text};
use super::models::{Code, Model, Route};
use super::work::{self, Conditions, Outcomes};
use crate::document::{Form, Plan, Rendered};
use crate::{DecodeOptions, Priority, Sentence, TextHypothesis, Translation};

/// Texts translated sentence by sentence, each on its route, and the first error if there is one: such a request fails as a whole.
pub(super) async fn translate_texts(
    call: &Call,
    routes: &[Route],
    texts: &[String],
    form: &Form,
    options: impl Fn(&Model) -> Result<DecodeOptions, Failure>,
) -> Result<Vec<Vec<String>>, Failure> {
    let mut models: Vec<&Arc<Model>> = Vec::new();
    for Route { model, .. } in routes {
        if models.iter().all(|other| !Arc::ptr_eq(other, model)) {
            models.push(model);
        }
    }
    let mut all = vec![Vec::new(); texts.len()];
    let mut sum = Notes::default();
    for model in models {
        let own: Vec<usize> = (0..texts.len()).filter(|at| Arc::ptr_eq(&routes[*at].model, model)).collect();
        let chosen: Vec<(&Route, &String)> = own.iter().map(|at| (&routes[*at], &texts[*at])).collect();
        let translated = translate_with(call, model, &chosen, form, &options(model)?).await?;
        own.into_iter().zip(translated).for_each(|(at, ranked)| all[at] = ranked);
        // Each model's part has noted its own numbers.
        call.note(|notes| sum.add(notes));
    }
    call.note(|notes| notes.set_counts(&sum));
    Ok(all)
}

/// The texts of one model.
async fn translate_with(
    call: &Call,
    model: &Arc<Model>,
    texts: &[(&Route, &String)],
    form: &Form,
    options: &DecodeOptions,
) -> Result<Vec<Vec<String>>, Failure> {
    let mut plans: Vec<Plan> = Vec::with_capacity(texts.len());
    let mut sentences: Outcomes<Sentence> = Vec::new();
    for (route, text) in texts {
        let like = Sentence {
            source_lang: route.source_lang.clone(),
            target_lang: route.target_lang.clone(),
            options: Some(Box::new(options.clone())),
            ..Sentence::default()
        };
        let plan = route.plan(text, form, &like);
        sentences.extend(plan.sentences(&like, options).map(Ok));
        plans.push(plan);
    }
    let deadline = call.deadline(None)?;
    let conditions = Conditions { owner: call.caller.owner, priority: Priority::Interactive, deadline };
    let results = work::translate(call, model, sentences, conditions).await?;
    let mut results: Vec<Translation> =
        results.into_iter().collect::<Result<_, _>>().map_err(|bad| Failure::from(&bad))?;
    let mut all = Vec::with_capacity(texts.len());
    for plan in &plans {
        let own: Vec<Translation> = results.drain(..plan.segments().len()).collect();
        let ranks = own.iter().map(|translation| translation.hypotheses.len()).max().unwrap_or(1);
        let tokenizer = model.translator.tokenizer();
        let ranked = |rank| own.iter().map(move |own| ranked(own, rank).map(|found| Rendered::new(found, tokenizer)));
        let filled = |rank| plan.assemble(&ranked(rank).collect::<Vec<_>>());
        all.push((0..ranks).map(filled).collect());
    }
    Ok(all)
}

/// Refuses more text than a request may have, before anything is done with it.
pub(super) fn check_texts(call: &Call, texts: &[String]) -> Result<(), Failure> {
    work::check_size(call, texts.iter().map(|text| text.chars().count()))
}

/// The translation of this rank; where there are fewer, the last stands for it.
fn ranked(translation: &Translation, rank: usize) -> Option<&TextHypothesis> {
    translation.hypotheses.get(rank).or(translation.hypotheses.last())
}

/// POST /translate
pub(super) async fn translate(mut call: Call) -> Result<Response<Body>, Failure> {
    let given = Given(call.fields().await?);
    call.sign_in(given.text("api_key")?)?;
    let (texts, is_array) = given.texts("q")?;
    let (source, target) = (given.needed("source")?, given.needed("target")?);
    let html = match given.text("format")?.unwrap_or("text") {
        "text" => false,
        "html" => true,
        other => {
            let message = format!("option format: expected text or html, got {other:?}");
            return Err(Failure::bad("option", message));
        }
    };
    let alternatives = given.count("alternatives")?.unwrap_or(0);
    check_texts(&call, &texts)?;
    let found = detect::routes(&call, Some(source), target, &texts, html).await?;
    let (routes, detected): (Vec<Route>, Vec<Option<Detected>>) = found.into_iter().unzip();
    let options = |model: &Model| {
        let mut options = model.options.clone();
        // The alternatives come behind the best one.
        options.n_best = (alternatives + 1).min(call.server.config.limits.beam);
        options.beam_size = options.beam_size.max(options.n_best);
        options.validate()?;
        Ok(options)
    };
    let translated = translate_texts(&call, &routes, &texts, &Form { html, ..Form::default() }, options).await?;
    let best: Vec<&str> = translated.iter().map(|ranked| ranked[0].as_str()).collect();
    let others: Vec<&[String]> = translated.iter().map(|ranked| &ranked[1..]).collect();
    let mut answer = Map::new();
    let one_or_all = |all: Value| if is_array { all } else { all.get(0).cloned().unwrap_or(Value::Null) };
    answer.insert("translatedText".into(), one_or_all(json!(best)));
    if alternatives > 0 {
        answer.insert("alternatives".into(), one_or_all(json!(others)));
    }
    if detected.iter().any(Option::is_some) {
        answer.insert("detectedLanguage".into(), one_or_all(json!(detected)));
    }
    Ok(json_text(Value::Object(answer).to_string()))
}

/// GET /languages
pub(super) async fn languages(call: Call) -> Result<Response<Body>, Failure> {
    let mut listed: Vec<(String, String, Vec<String>)> = Vec::new();
    for model in call.server.models.all() {
        for Code { tag, .. } in &model.languages.sources {
            let targets = model.languages.targets.iter().map(|code| code.tag.language.clone());
            match listed.iter_mut().find(|(code, ..)| *code == tag.language) {
                Some((.., known)) => known.extend(targets),
                None => listed.push((tag.language.clone(), tag.name().to_owned(), targets.collect())),
            }
        }
    }
    let entry = |(code, name, mut targets): (String, String, Vec<String>)| {
        targets.sort();
        targets.dedup();
        json!({ "code": code, "name": name, "targets": targets })
    };
    Ok(json_text(listed.into_iter().map(entry).collect::<Value>().to_string()))
}

/// GET /frontend/settings
pub(super) async fn settings(call: Call) -> Result<Response<Body>, Failure> {
    let named = |code: Option<&Code>| {
        code.map_or(json!({}), |code| json!({ "code": code.tag.language, "name": code.tag.name() }))
    };
    let all = call.server.models.all();
    let first = all.first().map(|model| &model.languages);
    let (source, target) = (first.and_then(|l| l.sources.first()), first.and_then(|l| l.targets.first()));
    let settings = json!({
        "apiKeys": call.server.keys.is_some(),
        "charLimit": call.server.config.limits.item_characters,
        "filesTranslation": false,
        "frontendTimeout": 500,
        "keyRequired": call.server.keys.is_some(),
        "language": { "source": named(source), "target": named(target) },
        "suggestions": false,
        "supportedFilesFormat": [],
    });
    Ok(json_text(settings.to_string()))
}

/// What this service does not do.
pub(super) async fn refused(call: Call) -> Result<Response<Body>, Failure> {
    let message = format!("{}: this service takes neither files nor suggestions", call.parts.uri.path());
    Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", message))
}

/// POST /detect
pub(super) async fn detect(mut call: Call) -> Result<Response<Body>, Failure> {
    let given = Given(call.fields().await?);
    call.sign_in(given.text("api_key")?)?;
    let (texts, is_array) = given.texts("q")?;
    check_texts(&call, &texts)?;
    let served = call.server.models.sources(None, None);
    let mut found = detect::detect(&served, texts, false, call.deadline(None)?).await?;
    // Arrays for arrays.
    Ok(json_text(if is_array { json!(found) } else { json!(found.swap_remove(0)) }.to_string()))
}
