//! The `hf` preset over every key of transformers' `GenerationConfig`, and over generation configs as they are found.

use std::collections::BTreeMap;

use crate::common;
use crate::common::tiny::{Tiny, VOCAB};
use beamfuse::model::generation::{KEYS, Rule};
use beamfuse::{Bans, DecodeOptions, MaxLength, Preset, Stop, Translator};
use serde_json::{Value, json};

const PAD: usize = VOCAB - 1;

/// What a fresh model's file says, and a beam.
fn base() -> Value {
    json!({ "decoder_start_token_id": PAD, "eos_token_id": 0, "pad_token_id": PAD, "forced_eos_token_id": 0,
            "bad_words_ids": [[PAD]], "num_beams": 4, "max_length": 30 })
}

fn with(key: &str, value: Value) -> Value {
    let mut generation = base();
    generation[key] = value;
    generation
}

/// The options of a directory with this generation config, or the error's text.
fn options(tiny: &Tiny, generation: &Value) -> Result<DecodeOptions, String> {
    std::fs::write(tiny.path("generation_config.json"), generation.to_string()).expect("written");
    let translator = Translator::open(tiny.dir()).unwrap_or_else(|error| panic!("{generation}: {error}"));
    translator.preset(Preset::Hf).map_err(|error| error.to_string())
}

fn bans(suppressed: &[u32], sequences: &[Vec<u32>]) -> Option<std::sync::Arc<Bans>> {
    Some(std::sync::Arc::new(Bans::new(VOCAB, suppressed, None, sequences).expect("they fit")))
}

/// For each key that is obeyed a value and what it does, for each other one a value that is not its default.
fn examples(plain: &DecodeOptions) -> BTreeMap<&'static str, (Value, DecodeOptions)> {
    let obeyed = |change: &dyn Fn(&mut DecodeOptions)| {
        let mut options = plain.clone();
        change(&mut options);
        options
    };
    let idle = || plain.clone();
    BTreeMap::from([
        ("max_length", (json!(12), obeyed(&|o| o.max_length = MaxLength::Absolute(11)))),
        ("max_new_tokens", (json!(12), obeyed(&|o| o.max_length = MaxLength::Absolute(12)))),
        ("min_length", (json!(5), obeyed(&|o| o.min_length = 5))),
        ("min_new_tokens", (json!(5), obeyed(&|o| o.min_length = 6))),
        ("early_stopping", (json!(true), obeyed(&|o| o.preset_stop = Stop::First))),
        ("num_beams", (json!(3), obeyed(&|o| o.beam_size = 3))),
        ("repetition_penalty", (json!(1.5), obeyed(&|o| o.repetition_penalty = 1.5))),
        ("length_penalty", (json!(0.5), obeyed(&|o| o.alpha = 0.5))),
        ("no_repeat_ngram_size", (json!(3), obeyed(&|o| o.no_repeat_ngram = 3))),
        ("bad_words_ids", (json!([[PAD], [5], [6, 7]]), obeyed(&|o| o.bans = bans(&[5], &[vec![6, 7]])))),
        ("renormalize_logits", (json!(true), obeyed(&|o| o.renormalize = true))),
        ("forced_bos_token_id", (json!(9), obeyed(&|o| o.forced_bos = Some(9)))),
        ("forced_eos_token_id", (json!(null), obeyed(&|o| o.cut = true))),
        ("suppress_tokens", (json!([5, 9]), obeyed(&|o| o.bans = bans(&[5, 9], &[])))),
        ("max_time", (json!(2.5), idle())),
        ("stop_strings", (json!(["."]), idle())),
        ("do_sample", (json!(true), idle())),
        ("use_cache", (json!(false), idle())),
        ("cache_implementation", (json!("static"), idle())),
        ("cache_config", (json!({ "a": 1 }), idle())),
        ("return_legacy_cache", (json!(true), idle())),
        ("prefill_chunk_size", (json!(8), idle())),
        ("temperature", (json!(0.3), idle())),
        ("top_k", (json!(3), idle())),
        ("top_p", (json!(0.5), idle())),
        ("min_p", (json!(0.5), idle())),
        ("typical_p", (json!(0.5), idle())),
        ("epsilon_cutoff", (json!(0.1), idle())),
        ("eta_cutoff", (json!(0.1), idle())),
        ("encoder_repetition_penalty", (json!(1.2), idle())),
        ("remove_invalid_values", (json!(true), idle())),
        ("exponential_decay_length_penalty", (json!([3, 1.2]), idle())),
        ("begin_suppress_tokens", (json!([5]), idle())),
        ("sequence_bias", (json!([[[5], 1.0]]), idle())),
        ("token_healing", (json!(true), idle())),
        ("guidance_scale", (json!(1.5), idle())),
        ("watermarking_config", (json!({ "bias": 2.5 }), idle())),
        ("num_return_sequences", (json!(2), idle())),
        ("output_attentions", (json!(true), idle())),
        ("output_hidden_states", (json!(true), idle())),
        ("output_scores", (json!(true), idle())),
        ("output_logits", (json!(true), idle())),
        ("return_dict_in_generate", (json!(true), idle())),
        ("pad_token_id", (json!(7), idle())),
        ("bos_token_id", (json!(7), idle())),
        ("eos_token_id", (json!([0, 2]), idle())),
        ("encoder_no_repeat_ngram_size", (json!(3), idle())),
        ("decoder_start_token_id", (json!(3), idle())),
        ("is_assistant", (json!(true), idle())),
        ("num_assistant_tokens", (json!(5), idle())),
        ("num_assistant_tokens_schedule", (json!("heuristic"), idle())),
        ("assistant_confidence_threshold", (json!(0.2), idle())),
        ("prompt_lookup_num_tokens", (json!(3), idle())),
        ("max_matching_ngram_size", (json!(2), idle())),
        ("assistant_early_exit", (json!(1), idle())),
        ("assistant_lookbehind", (json!(3), idle())),
        ("target_lookbehind", (json!(3), idle())),
        ("compile_config", (json!({}), idle())),
        ("disable_compile", (json!(true), idle())),
        ("low_memory", (json!(true), idle())),
        ("penalty_alpha", (json!(0.6), idle())),
        ("dola_layers", (json!("low"), idle())),
        ("diversity_penalty", (json!(0.5), idle())),
        ("num_beam_groups", (json!(2), idle())),
        ("constraints", (json!([[5]]), idle())),
        ("force_words_ids", (json!([[5]]), idle())),
        ("_from_model_config", (json!(true), idle())),
        ("_commit_hash", (json!("abc"), idle())),
        ("transformers_version", (json!("4.57.1"), idle())),
    ])
}

#[test]
fn every_key_is_obeyed_harmless_or_refused() {
    let tiny = Tiny::new();
    let plain = options(&tiny, &base()).expect("plain beam search");
    let examples = examples(&plain);
    assert_eq!(examples.len(), KEYS.len());
    for (key, rule) in KEYS {
        let (value, expected) = &examples[key];
        let mut generation = with(key, value.clone());
        // These concern one beam alone.
        let is_greedy = ["penalty_alpha", "dola_layers"].contains(&key);
        if is_greedy {
            assert_eq!(options(&tiny, &generation).as_ref(), Ok(&plain), "{key} with beams");
            generation["num_beams"] = json!(1);
        }
        let found = options(&tiny, &generation);
        match rule {
            Rule::Obeyed => {
                assert_eq!(found.as_ref(), Ok(expected), "{key}");
                assert_ne!(expected, &plain, "{key}");
            }
            Rule::Harmless => assert_eq!(found.as_ref(), Ok(&plain), "{key}"),
            _ => {
                let error = found.expect_err(key);
                assert!(error.contains(&format!("{key} = {value} (write ")), "{error}");
                // What it says to write is taken.
                let advice = error.split("(write ").nth(1).and_then(|rest| rest.split(')').next()).expect("advice");
                generation[key] = serde_json::from_str(advice).expect("JSON");
                let found = options(&tiny, &generation);
                assert!(if is_greedy { found.is_ok() } else { found.as_ref() == Ok(&plain) }, "{key}: {found:?}");
            }
        }
        for nothing in [json!(null), json!([])] {
            let is_plain_again = !["max_length", "num_beams", "bad_words_ids", "forced_eos_token_id"].contains(&key);
            let takes_lists = ["bad_words_ids", "suppress_tokens", "forced_eos_token_id"].contains(&key);
            // Without an end of sentence or a start transformers searches otherwise.
            let needed = ["eos_token_id", "decoder_start_token_id"].contains(&key);
            let number = rule == Rule::Obeyed && !takes_lists && key != "forced_bos_token_id";
            if (nothing == json!([]) && number) || needed {
                continue;
            }
            let found = options(&tiny, &with(key, nothing.clone()));
            assert!(found.is_ok(), "{key} = {nothing}: {found:?}");
            assert!(!is_plain_again || found.as_ref() == Ok(&plain), "{key} = {nothing}: {found:?}");
        }
    }
}

#[test]
fn the_table_has_all_keys_of_transformers_and_the_page_has_the_table() {
    let text = std::fs::read_to_string(common::data("generation/keys-4.57.json")).expect("the test data is there");
    let keys: Vec<String> = serde_json::from_str(&text).expect("JSON");
    let mut ours: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
    ours.sort_unstable();
    assert_eq!(ours, keys);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/models.md")).expect("the page is there");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    for (key, rule) in KEYS {
        let expected = match rule {
            Rule::Obeyed => "obeyed",
            Rule::Harmless => "harmless",
            _ => "refused",
        };
        let found: Vec<&str> = rows
            .iter()
            .filter(|row| row[1].split(", ").any(|name| name == format!("`{key}`")))
            .map(|row| row[2])
            .collect();
        assert!(found.len() == 1 && found[0].starts_with(expected), "{key} is {expected} and on the page {found:?}");
    }
}

#[test]
fn files_that_transformers_takes_are_taken() {
    let tiny = Tiny::new();
    let plain = options(&tiny, &base()).expect("plain beam search");
    let same = |key: &str, value: Value| {
        assert_eq!(options(&tiny, &with(key, value.clone())).as_ref(), Ok(&plain), "{key} = {value}");
    };
    same("eos_token_id", json!([0]));
    same("eos_token_id", json!("0"));
    same("eos_token_id", json!([0, 0]));
    same("decoder_start_token_id", json!([PAD]));
    same("decoder_start_token_id", json!(PAD.to_string()));
    same("forced_eos_token_id", json!([0]));
    same("forced_eos_token_id", json!("0"));
    same("bad_words_ids", json!([[PAD.to_string()]]));
    same("bad_words_ids", json!([[PAD], [0]]));
    same("suppress_tokens", json!([VOCAB, -1]));
    same("suppress_tokens", json!([PAD]));
    let forced = plain.clone().with(|o| o.forced_bos = Some(4));
    for value in [json!(4), json!([4]), json!("4"), json!(["4"])] {
        assert_eq!(options(&tiny, &with("forced_bos_token_id", value)).as_ref(), Ok(&forced));
    }
    // No end of sentence is too late for a limit that cuts.
    let mut late = with("min_length", json!(40));
    assert_eq!(options(&tiny, &late), Ok(plain.clone().with(|o| o.min_length = 29)));
    late["forced_eos_token_id"] = json!(null);
    let never = plain.clone().with(|o| {
        o.min_length = 29;
        o.cut = true;
        o.bans = bans(&[0], &[]);
    });
    assert_eq!(options(&tiny, &late), Ok(never));
    // Padding competes where nothing rules it out, and not where the list of suppressed tokens does.
    let mut open = base();
    open["bad_words_ids"].take();
    assert_eq!(options(&tiny, &open), Ok(plain.clone().with(|o| o.allow_padding = true)));
    open["suppress_tokens"] = json!([PAD]);
    assert_eq!(options(&tiny, &open).as_ref(), Ok(&plain));
    // 20 means new tokens, be it said or not.
    let mut short = base();
    for value in [json!(20), json!(null)] {
        short["max_length"] = value;
        // The position table has 16 rows, one of which the start token takes.
        assert!(options(&tiny, &short).is_ok_and(|options| options.max_length == MaxLength::Absolute(15)));
    }
}

#[test]
fn what_cannot_be_obeyed_together_is_refused() {
    let tiny = Tiny::new();
    let refused = |changes: &[(&str, Value)], expected: &str| {
        let mut generation = base();
        changes.iter().for_each(|(key, value)| generation[*key] = value.clone());
        let error = options(&tiny, &generation).expect_err(expected);
        assert!(error.contains(expected), "{expected}: {error}");
    };
    refused(&[("suppress_tokens", json!([3, 0]))], "suppress_tokens = [3,0] (write a list without 0, which is forced)");
    refused(
        &[("suppress_tokens", json!([3])), ("forced_bos_token_id", json!(3))],
        "suppress_tokens = [3] (write a list without 3",
    );
    refused(&[("forced_eos_token_id", json!(7))], "forced_eos_token_id = 7 (write 0 or null)");
    refused(&[("forced_eos_token_id", json!([0, 2]))], "forced_eos_token_id = [0,2] (write 0 or null)");
    refused(&[("eos_token_id", json!(null))], "eos_token_id = null (write 0)");
    refused(
        &[("decoder_start_token_id", json!(null)), ("bos_token_id", json!(0))],
        &format!("decoder_start_token_id = null (write {PAD})"),
    );
}

#[test]
fn searches_are_those_of_transformers() {
    // What a fresh model's `save_pretrained` leaves, and a tokenizer copied in; make.py recorded what `generate` finds.
    let text = std::fs::read_to_string(common::data("generation/expected.json")).expect("the test data is there");
    let cases: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(cases.len(), 17);
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(common::data("generation").join(name), dir.path().join(name)).expect("a copy");
    }
    for name in ["source.spm", "target.spm", "vocab.json", "tokenizer_config.json"] {
        std::fs::copy(common::demo_model().join(name), dir.path().join(name)).expect("a copy");
    }
    let mut padding = 0;
    for case in cases {
        std::fs::write(dir.path().join("generation_config.json"), case["generation"].to_string()).expect("written");
        let translator = Translator::open(dir.path()).expect("it opens");
        let options = translator.preset(Preset::Hf).expect("it is obeyed");
        for line in case["lines"].as_array().expect("lines") {
            let source = line["source"].as_str().expect("a source");
            let found = translator.translate(&[source], &options).expect("valid options").remove(0);
            let ids = json!(found.hypotheses[0].token_ids);
            assert_eq!(ids, line["token_ids"], "{}: {source}", case["name"]);
            padding += usize::from(found.hypotheses[0].token_ids.contains(&(PAD as u32)));
        }
    }
    assert!(padding >= 20, "padding competes: {padding}");
}
