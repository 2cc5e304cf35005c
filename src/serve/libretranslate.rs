//! The endpoints of LibreTranslate, for its clients.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::given::Given;
use super::http::{Call, json_text};
use super::models::{Code, Route};
use super::work::{self, Conditions, Outcomes};
use crate::document::{Form, Plan, Rendered};
use crate::{DecodeOptions, Priority, Sentence, TextHypothesis, Translation};

/// Texts translated sentence by sentence, and the first error if there is one: such a request fails as a whole.
pub(super) async fn translate_texts(
    call: &Call,
    route: &Route,
    texts: &[String],
    form: &Form,
    options: &DecodeOptions,
) -> Result<Vec<Vec<String>>, Failure> {
    let most = call.server.config.limits.items;
    if texts.len() > most {
        let message = format!("read the request: expected at most {most} texts, got {}", texts.len());
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message));
    }
    let like = Sentence {
        source_lang: route.source_lang.clone(),
        target_lang: route.target_lang.clone(),
        options: Some(Box::new(options.clone())),
        ..Sentence::default()
    };
    let plans: Vec<Plan> = texts.iter().map(|text| route.plan(text, form, &like)).collect();
    let sentences: Outcomes<Sentence> = plans.iter().flat_map(|plan| plan.sentences(&like, options)).map(Ok).collect();
    let deadline = call.deadline(None)?;
    let conditions = Conditions { owner: call.caller.owner, priority: Priority::Interactive, deadline };
    let results = work::translate(call, &route.model, sentences, conditions).await?;
    let mut results: Vec<Translation> =
        results.into_iter().collect::<Result<_, _>>().map_err(|bad| Failure::from(&bad))?;
    let mut all = Vec::with_capacity(texts.len());
    for plan in &plans {
        let own: Vec<Translation> = results.drain(..plan.segments().len()).collect();
        let ranks = own.iter().map(|translation| translation.hypotheses.len()).max().unwrap_or(1);
        let tokenizer = route.model.translator.tokenizer();
        let ranked = |rank| own.iter().map(move |own| ranked(own, rank).map(|found| Rendered::new(found, tokenizer)));
        let filled = |rank| plan.assemble(&ranked(rank).collect::<Vec<_>>());
        all.push((0..ranks).map(filled).collect());
    }
    Ok(all)
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
    let route = call.route(None, Some(source), Some(target))?;
    let mut options = route.model.options.clone();
    // The alternatives come behind the best one.
    options.n_best = (alternatives + 1).min(call.server.config.limits.beam);
    options.beam_size = options.beam_size.max(options.n_best);
    options.validate()?;
    let translated = translate_texts(&call, &route, &texts, &Form { html, ..Form::default() }, &options).await?;
    let best: Vec<&str> = translated.iter().map(|ranked| ranked[0].as_str()).collect();
    let others: Vec<&[String]> = translated.iter().map(|ranked| &ranked[1..]).collect();
    let mut answer = Map::new();
    let one_or_all = |all: Value| if is_array { all } else { all.get(0).cloned().unwrap_or(Value::Null) };
    answer.insert("translatedText".into(), one_or_all(json!(best)));
    if alternatives > 0 {
        answer.insert("alternatives".into(), one_or_all(json!(others)));
    }
    if let (true, Some(tag)) = (source.eq_ignore_ascii_case("auto"), &route.source) {
        // The only language that it can be.
        let detected = json!({ "confidence": 100, "language": tag.language });
        answer.insert("detectedLanguage".into(), one_or_all(json!(vec![detected; texts.len()])));
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
    given.texts("q")?;
    let all = call.server.models.all();
    let mut sources = all.iter().flat_map(|model| &model.languages.sources).map(|code| &code.tag.language);
    let first = sources.next().cloned();
    match first {
        // The only language that it can be.
        Some(only) if sources.all(|other| *other == only) => {
            Ok(json_text(json!([{ "confidence": 100, "language": only }]).to_string()))
        }
        _ => Err(Failure::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "detect: this service serves several source languages and does not tell them apart",
        )),
    }
}
