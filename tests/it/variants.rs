//! Every kind of Marian model that transformers can make, against what transformers computed: tests/data/variants/make.py.

use std::path::Path;

use crate::common;
use beamfuse::{DecodeOptions, Preset, Translator};
use serde_json::Value;

/// How far a log-probability or score may lie from the recorded one: both sides sum in f32, in different orders.
const TOLERANCE: f64 = 1e-4;

/// The variants, each with what make.py says about it.
const VARIANTS: [&str; 14] = [
    "swish-scaled",
    "relu-unscaled",
    "gelu-bf16",
    "gelu-new",
    "different-stacks",
    "odd-width",
    "separate",
    "untied",
    "separate-untied",
    "sharded",
    "own-positions",
    "renormalized",
    "min-length",
    "ignored-flags",
];

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("the variant is there") {
        let path = entry.expect("the variant is there").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn assert_near(actual: f32, expected: &Value, context: &str) {
    let expected = expected.as_f64().expect("a number");
    assert!((f64::from(actual) - expected).abs() <= TOLERANCE, "{context}: {actual}, recorded {expected}");
}

/// Compares a search with recorded hypotheses: ids and, where transformers gives them, scores.
fn check(name: &str, translator: &Translator, options: &DecodeOptions, line: &Value, recorded: &[Value]) {
    let source = line["source"].as_str().expect("text");
    let translation = translator.translate(&[source], options).expect("valid options").swap_remove(0);
    assert_eq!(translation.source_ids, ids(&line["source_ids"]), "{name}: {source}");
    assert_eq!(translation.hypotheses.len(), recorded.len(), "{name}: {source}");
    for (rank, (actual, recorded)) in translation.hypotheses.iter().zip(recorded).enumerate() {
        let context = format!("{name}: {source}: beam {}, hypothesis {rank}", options.beam_size);
        assert_eq!(actual.token_ids, ids(&recorded["token_ids"]), "{context}");
        if !recorded["score"].is_null() {
            assert_near(actual.score, &recorded["score"], &context);
        }
    }
}

#[test]
fn every_variant_computes_what_transformers_does() {
    let text = std::fs::read_to_string(common::data("variants/expected.json")).expect("the recording is there");
    let recorded: serde_json::Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(recorded.keys().map(String::as_str).collect::<Vec<_>>(), VARIANTS);
    for (name, variant) in &recorded {
        let dir = tempfile::tempdir().expect("a directory");
        let tokenizer = variant["tokenizer"].as_str().expect("a name");
        copy(&common::data(&format!("variants/tokenizer-{tokenizer}")), dir.path());
        copy(&common::data(&format!("variants/{name}")), dir.path());
        let translator = Translator::open(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let preset = translator.preset(Preset::Hf).unwrap_or_else(|error| panic!("{name}: {error}"));
        for line in variant["lines"].as_array().expect("lines") {
            let list = |field: &str| line[field].as_array().expect("a list").clone();
            let beams = |beams: usize| {
                preset.clone().with(|o| {
                    o.beam_size = beams;
                    o.n_best = beams;
                })
            };
            check(name, &translator, &beams(preset.beam_size), line, &list("preset"));
            check(name, &translator, &beams(5), line, &list("beam5"));
            // With one beam transformers searches greedily.
            check(name, &translator, &beams(1), line, &[serde_json::json!({ "token_ids": line["greedy"] })]);
            let pair = (ids(&line["source_ids"]), ids(&line["preset"][0]["token_ids"]));
            let score = translator.score_ids(&[pair]).swap_remove(0).expect("a score");
            let log_probs = list("log_probs");
            assert_eq!(score.token_log_probs.len(), log_probs.len());
            for (actual, expected) in score.token_log_probs.iter().zip(&log_probs) {
                assert_near(*actual, expected, &format!("{name}: {}: teacher-forced", line["source"]));
            }
        }
    }
}

#[test]
fn flags_that_transformers_ignores_are_reported() {
    let config = beamfuse::model::config::ModelConfig::open(&common::data("variants/ignored-flags")).expect("it opens");
    assert_eq!(
        config.ignored,
        ["normalize_before = true", "normalize_embedding = true", "add_final_layer_norm = true"]
    );
}
