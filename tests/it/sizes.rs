//! Tokenizers and models whose sizes differ, as fine-tuning and padding leave them.

use crate::common;
use crate::common::tiny::{D_MODEL, Tensor, Tiny, VOCAB};
use beamfuse::text::Tokenizer;
use beamfuse::{DecodeOptions, Preset, Translator};
use serde_json::{Value, json};

/// The tiny model with more rows than pieces, the last of them as likely as anything.
fn resized(rows: usize) -> Tiny {
    let mut tiny = Tiny::new();
    let grown = |tensor: &Tensor, shape: &[usize], value: f32| {
        let mut bytes = tensor.bytes.clone();
        bytes.resize(shape.iter().product::<usize>() * 4, 0);
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&value.to_le_bytes());
        Tensor { shape: shape.to_vec(), bytes, ..tensor.clone() }
    };
    let table = grown(&tiny.tensors["model.shared.weight"], &[rows, D_MODEL], 0.0);
    let bias = grown(&tiny.tensors["final_logits_bias"], &[1, rows], 50.0);
    tiny.tensors.insert("model.shared.weight".into(), table);
    tiny.tensors.insert("final_logits_bias".into(), bias);
    tiny.config.insert("vocab_size".into(), json!(rows));
    tiny.write_config();
    tiny.write_weights();
    tiny
}

fn vocabulary(tiny: &Tiny, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let text = std::fs::read_to_string(tiny.path("vocab.json")).expect("it is there");
    let mut vocabulary = serde_json::from_str(&text).expect("JSON");
    change(&mut vocabulary);
    std::fs::write(tiny.path("vocab.json"), Value::Object(vocabulary).to_string()).expect("written");
}

#[test]
fn spare_rows_are_candidates() {
    let tiny = resized(VOCAB + 63);
    let translator = Translator::open(tiny.dir()).expect("sizes may differ");
    for preset in [Preset::Default, Preset::Hf] {
        let options = translator.preset(preset).expect("a preset");
        let found = translator.translate(&["A dog runs."], &options).expect("valid options").remove(0);
        let first = &found.hypotheses[0];
        assert_eq!(first.token_ids[0] as usize, VOCAB + 62);
        assert_eq!((first.tokens[0].as_str(), first.text.trim_start().chars().next()), ("<unk>", Some('⁇')));
    }
    // A shortlist leaves them out like any other token.
    let args = ["translate", "--model", tiny.dir().to_str().expect("UTF-8"), "--suppress", "▁Hund"];
    assert!(common::command::run(&args, b"A dog runs.\n").ok().out.contains('⁇'));
    let shortlist = tiny.path("shortlist");
    std::fs::write(&shortlist, "▁Hund\n").expect("written");
    let args = ["translate", "--model", args[2], "--shortlist", shortlist.to_str().expect("UTF-8")];
    assert!(!common::command::run(&args, b"A dog runs.\n").ok().out.contains('⁇'));
}

#[test]
fn pieces_without_a_row_are_errors_where_they_are_used() {
    let tiny = Tiny::new();
    vocabulary(&tiny, |pieces| {
        pieces.remove("▁dog").expect("a piece of the demo");
        pieces.insert("▁dog".into(), json!(VOCAB + 5));
        pieces.insert("beyond".into(), json!(u32::MAX));
    });
    let translator = Translator::open(tiny.dir()).expect("sizes may differ");
    let options = DecodeOptions::default();
    assert!(translator.translate(&["A man sleeps."], &options).is_ok());
    let error = translator.translate(&["A dog runs."], &options).expect_err("no such row");
    assert_eq!(error.kind(), "input");
    assert!(error.to_string().contains(&format!("token ids below {VOCAB}, got {}", VOCAB + 5)), "{error}");
}

#[test]
fn gaps_between_ids_are_no_pieces() {
    let tiny = Tiny::new();
    vocabulary(&tiny, |pieces| drop(pieces.remove("▁dog").expect("a piece of the demo")));
    let tokenizer = Tokenizer::open(tiny.dir()).expect("ids may have gaps");
    let id = common::translator().tokenizer().encode_source("dog")[0];
    assert_eq!(tokenizer.source_piece(id), "<unk>");
    assert_eq!(tokenizer.encode_source("dog"), [tokenizer.unk_id(), tokenizer.eos_id()]);
    assert_eq!(tokenizer.source_vocab_size(), VOCAB);
    assert!(
        tokenizer.first_difference(common::translator().tokenizer()).is_some_and(|text| text.contains("not in use"))
    );
}

#[test]
fn added_tokens_come_out_of_the_raw_text() {
    let added = json!({ "added_tokens_decoder": {
        "8001": { "content": "<brk>", "lstrip": true, "rstrip": true, "special": false },
        "8002": { "content": "<sep>", "special": true },
        "8003": { "content": ">>xyz<<", "special": true },
    }, "additional_special_tokens": ["<sep>", ">>xyz<<"] });
    let older = [
        ("added_tokens.json", json!({ "<brk>": 8001, "<sep>": 8002, ">>xyz<<": 8003 })),
        ("special_tokens_map.json", json!({ "additional_special_tokens": ["<sep>", ">>xyz<<"] })),
    ];
    let tiny = Tiny::new();
    let write = |name: &str, value: &Value| std::fs::write(tiny.path(name), value.to_string()).expect("written");
    let plain = |text: &str| common::translator().tokenizer().encode_source(text);
    let body = |text: &str| plain(text).split_last().map(|(_, ids)| ids.to_vec()).expect("an end of sentence");
    for round in 0..2 {
        match round {
            0 => write("tokenizer_config.json", &added),
            _ => {
                write("tokenizer_config.json", &json!({}));
                older.iter().for_each(|(name, value)| write(name, value));
            }
        }
        let tokenizer = Tokenizer::open(tiny.dir()).expect("added tokens are read");
        assert_eq!(tokenizer.encode_source("A dog runs."), plain("A dog runs."));
        // Each part begins like a text of its own.
        let expected = [&body("A dog")[..], &[8001], &plain("runs.")].concat();
        assert_eq!(tokenizer.encode_source("A dog<brk>runs."), expected);
        // Special ones stay text, but for a language token in front.
        assert_eq!(tokenizer.encode_source("A <sep> dog"), plain("A <sep> dog"));
        assert_eq!(tokenizer.encode_source(">>xyz<< A dog"), [&[8003], &plain("A dog")[..]].concat());
        let ids = [&body("A dog")[..], &[8001, 8002], &plain("runs.")].concat();
        assert_eq!(tokenizer.detokenize(&ids), "A dog <brk> runs.");
        assert_eq!((tokenizer.target_piece(8001), tokenizer.target_vocab_size()), ("<brk>", 8004));
        assert_eq!(tokenizer.summary().language_tokens, [">>xyz<<"]);
    }
}
