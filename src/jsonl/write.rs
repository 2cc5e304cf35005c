//! Results in JSON.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Fields, Warning};
use crate::{Error, Result, Score, TextHypothesis, Translation};

/// Serializes what cannot fail: strings and finite numbers.
pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|source| Error::Json { path: "-".into(), source })
}

#[derive(Serialize)]
struct TranslationLine<'a> {
    source: &'a str,
    #[serde(flatten)]
    other: &'a Fields,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_truncated: Option<bool>,
    #[serde(skip_serializing_if = "<[Warning]>::is_empty")]
    warnings: &'a [Warning],
    hypotheses: Vec<HypothesisLine<'a>>,
}

#[derive(Serialize)]
struct HypothesisLine<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    tokens: &'a [String],
    token_log_probs: &'a [f32],
    log_prob: f32,
    search_log_prob: f32,
    length: usize,
    length_penalty: f32,
    coverage_penalty: f32,
    score: f32,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<&'a [Vec<f32>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alignment: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    utility: Option<f64>,
}

impl<'a> HypothesisLine<'a> {
    fn new(hypothesis: &'a TextHypothesis) -> Self {
        HypothesisLine {
            text: &hypothesis.text,
            token_ids: &hypothesis.token_ids,
            tokens: &hypothesis.tokens,
            token_log_probs: &hypothesis.token_log_probs,
            log_prob: hypothesis.log_prob,
            search_log_prob: hypothesis.search_log_prob,
            length: hypothesis.length,
            length_penalty: hypothesis.length_penalty,
            coverage_penalty: hypothesis.coverage_penalty,
            score: hypothesis.score,
            truncated: hypothesis.truncated,
            attention: hypothesis.attention.as_deref(),
            alignment: hypothesis.alignment(),
            utility: hypothesis.utility,
        }
    }
}

/// A translation as a JSON line; `other` holds the input's other fields.
pub(crate) fn translation_json(translation: &Translation, other: &Fields, warnings: &[Warning]) -> Result<String> {
    json(&TranslationLine {
        source: &translation.source,
        other,
        source_truncated: translation.source_truncated.then_some(true),
        warnings,
        hypotheses: translation.hypotheses.iter().map(HypothesisLine::new).collect(),
    })
}

/// An error in a line's place as a JSON line.
pub(crate) fn error_json(source: Option<&str>, other: &Fields, kind: &str, message: &str) -> Result<String> {
    #[derive(Serialize)]
    struct ErrorLine<'a> {
        source: Option<&'a str>,
        #[serde(flatten)]
        other: &'a Fields,
        error: ErrorObject<'a>,
    }
    #[derive(Serialize)]
    struct ErrorObject<'a> {
        kind: &'a str,
        message: &'a str,
    }
    json(&ErrorLine { source, other, error: ErrorObject { kind, message } })
}

/// A translated document as a JSON line: its text, and what came of its sentences, each as a line of its own; `other` holds the input's
/// other fields.
pub(crate) fn document_json(text: &str, segments: &[Box<RawValue>], other: &Fields) -> Result<String> {
    #[derive(Serialize)]
    struct DocumentLine<'a> {
        text: &'a str,
        segments: &'a [Box<RawValue>],
        #[serde(flatten)]
        other: Fields,
    }
    let mut other = other.clone();
    // Our own fields win.
    for field in ["text", "segments", "error"] {
        other.shift_remove(field);
    }
    json(&DocumentLine { text, segments, other })
}

/// A sentence of a document as a JSON line: `cut` says that the model could not read it as a whole, `placed` what was put back into its
/// translation.
pub(crate) fn segment_json(
    translation: &Translation,
    cut: bool,
    placed: &[String],
    warnings: &[Warning],
) -> Result<Box<RawValue>> {
    let mut own = Fields::new();
    if cut {
        own.insert("cut".to_owned(), raw("true".to_owned())?);
    }
    if !placed.is_empty() {
        own.insert("placed".to_owned(), raw(json(&placed)?)?);
    }
    raw(translation_json(translation, &own, warnings)?)
}

/// A line as a part of another.
pub(crate) fn raw(text: String) -> Result<Box<RawValue>> {
    RawValue::from_string(text).map_err(|source| Error::Json { path: "-".into(), source })
}

/// A score as a JSON line; `other` holds the input's other fields.
pub(crate) fn score_json(
    source: &str,
    target: &str,
    score: &Score,
    other: &Fields,
    warnings: &[Warning],
) -> Result<String> {
    #[derive(Serialize)]
    struct ScoreLine<'a> {
        source: &'a str,
        target: &'a str,
        #[serde(flatten)]
        other: &'a Fields,
        #[serde(skip_serializing_if = "<[Warning]>::is_empty")]
        warnings: &'a [Warning],
        token_ids: &'a [u32],
        token_log_probs: &'a [f32],
        log_prob: f32,
    }
    json(&ScoreLine {
        source,
        target,
        other,
        warnings,
        token_ids: &score.token_ids,
        token_log_probs: &score.token_log_probs,
        log_prob: score.log_prob,
    })
}
