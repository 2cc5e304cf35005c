//! The endpoints of DeepL, for its clients.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Response;
use serde_json::{Map, Value, json};

use super::detect::{self, Detected};
use super::failure::Failure;
use super::given::Given;
use super::http::{Call, json_text};
use super::libretranslate::{check_texts, translate_texts};
use super::models::{Code, Model, Route};
use crate::document::{Form, Splitting};
use crate::text::iso::Tag;

/// Texts of a request, as there.
const MOST_TEXTS: usize = 50;

/// Options that change nothing about a text of this service, whatever they say.
const WITHOUT_EFFECT: [&str; 3] = ["context", "preserve_formatting", "model_type"];

/// POST /v2/translate
pub(super) async fn translate(mut call: Call) -> Result<Response<Body>, Failure> {
    let given = Given(call.fields().await?);
    call.sign_in(given.text("auth_key")?)?;
    let (texts, _) = given.texts("text")?;
    if texts.len() > MOST_TEXTS {
        let message = format!("read the request: expected at most {MOST_TEXTS} texts, got {}", texts.len());
        return Err(Failure::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message));
    }
    let form = form(&given)?;
    let target = given.needed("target_lang")?.to_owned();
    let source = given.text("source_lang")?.map(str::to_owned);
    check_texts(&call, &texts)?;
    let found = detect::routes(&call, source.as_deref(), &target, &texts, form.html).await?;
    let (routes, detected): (Vec<Route>, Vec<Option<Detected>>) = found.into_iter().unzip();
    let options = |model: &Model| Ok(model.options.clone().with(|options| options.n_best = 1));
    let translated = translate_texts(&call, &routes, &texts, &form, options).await?;
    let said = source.as_deref().and_then(Tag::parse).map(|tag| tag.language);
    let language = |detected: Option<Detected>| detected.map(|one| one.language).or(said.clone()).unwrap_or_default();
    let languages = detected.into_iter().map(|one| language(one).to_ascii_uppercase());
    let counts_characters = given.flag("show_billed_characters")?;
    let entry = |((text, ranked), language): ((&String, &Vec<String>), String)| {
        let mut entry = Map::new();
        entry.insert("detected_source_language".into(), json!(language));
        entry.insert("text".into(), json!(ranked.first()));
        if counts_characters {
            entry.insert("billed_characters".into(), json!(text.chars().count()));
        }
        Value::Object(entry)
    };
    let entries: Vec<Value> = texts.iter().zip(&translated).zip(languages).map(entry).collect();
    Ok(json_text(json!({ "translations": entries }).to_string()))
}

/// How the texts are read. What would need another translation than the model's is refused.
fn form(given: &Given) -> Result<Form, Failure> {
    let mut form = Form::default();
    let refuse = |name: &str, expected: &str, got: &str| {
        Err(Failure::bad("option", format!("option {name}: expected {expected}, got {got:?}")))
    };
    for (name, _) in given.0.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "text" | "target_lang" | "source_lang" | "auth_key" | "show_billed_characters" => {}
            "formality" => match given.text(name)?.unwrap_or_default() {
                "default" | "prefer_more" | "prefer_less" => {}
                other => return refuse(name, "default, or a preference", other),
            },
            "split_sentences" => match given.text(name)?.unwrap_or_default() {
                "0" => form.splitting = Splitting::Off,
                "1" => form.splitting = Splitting::Full,
                "nonewlines" => form.splitting = Splitting::WithoutLines,
                other => return refuse(name, "0, 1 or nonewlines", other),
            },
            "tag_handling" => match given.text(name)?.unwrap_or_default() {
                "html" => form.html = true,
                other => return refuse(name, "html: this service does not read XML", other),
            },
            "ignore_tags" => form.ignored = given.names(name)?,
            other if WITHOUT_EFFECT.contains(&other) => {}
            other => return refuse(other, "nothing: this service does not have it", "a value"),
        }
    }
    if !form.html && !form.ignored.is_empty() {
        return refuse("ignore_tags", "tag_handling html beside it", "none");
    }
    Ok(form)
}

/// GET and POST /v2/languages
pub(super) async fn languages(mut call: Call) -> Result<Response<Body>, Failure> {
    let given = Given(call.fields().await?);
    call.sign_in(given.text("auth_key")?)?;
    let is_target = match given.text("type")?.unwrap_or("source") {
        "source" => false,
        "target" => true,
        other => return Err(Failure::bad("option", format!("option type: expected source or target, got {other:?}"))),
    };
    let mut listed: Vec<Tag> = Vec::new();
    for model in call.server.models.all() {
        let codes = if is_target { &model.languages.targets } else { &model.languages.sources };
        for Code { tag, .. } in codes {
            if listed.iter().all(|other| other.language != tag.language) {
                listed.push(tag.clone());
            }
        }
    }
    listed.sort_by(|a, b| a.language.cmp(&b.language));
    let entry = |tag: &Tag| {
        let mut entry = json!({ "language": tag.language.to_ascii_uppercase(), "name": tag.name() });
        if is_target {
            entry["supports_formality"] = json!(false);
        }
        entry
    };
    Ok(json_text(listed.iter().map(entry).collect::<Value>().to_string()))
}

/// GET and POST /v2/usage
pub(super) async fn usage(mut call: Call) -> Result<Response<Body>, Failure> {
    let given = Given(call.fields().await?);
    call.sign_in(given.text("auth_key")?)?;
    let used = call.caller.key.as_ref().map_or(0, |key| key.used.load(Ordering::Relaxed));
    // No limit: one that nobody reaches.
    Ok(json_text(json!({ "character_count": used, "character_limit": 1_000_000_000_000_u64 }).to_string()))
}
