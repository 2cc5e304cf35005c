//! Tokenizers of every family against what transformers made of odd lines; tests/data/families/README.md says how.

use std::path::{Path, PathBuf};

use crate::common;
use beamfuse::text::{TargetPlace, Tokenizer};
use serde_json::{Value, json};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn directory(name: &str) -> PathBuf {
    common::data("families").join(name)
}

fn open(name: &str) -> Tokenizer {
    Tokenizer::open(&directory(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A copy of a directory's tokenizer files, to be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(directory(name)).expect("the test data is there") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    dir
}

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(dir.join(name)).expect("the file is there");
    let mut value = serde_json::from_str(&text).expect("JSON");
    change(&mut value);
    std::fs::write(dir.join(name), value.to_string()).expect("written");
}

/// Compares all lines that were recorded for a directory; how many there are.
fn check(name: &str, tokenizer: &Tokenizer) -> usize {
    let lines = common::json_lines(&format!("families/{name}/tokens.jsonl"));
    let language = |line: &Value, field: &str| {
        let code = line.get(field)?.as_str()?;
        Some(tokenizer.languages().expect("languages").id("language", code).expect("a language"))
    };
    // Without tokenizer.json transformers converts the SentencePiece model, which changes some odd lines; the model's own are right.
    let own = |line: &Value, field: &str| {
        let slow = line.get(format!("slow_{field}")).filter(|_| !directory(name).join("tokenizer.json").exists());
        slow.unwrap_or(&line[field]).clone()
    };
    for line in &lines {
        let text = line["text"].as_str().expect("text");
        let expected = ids(&own(line, "ids"));
        if line["kind"] == "target" {
            assert_eq!(tokenizer.labels(text, language(line, "tgt_lang")), expected, "{name}: {text:?} as a target");
            continue;
        }
        let source = language(line, "src_lang");
        assert_eq!(tokenizer.encode_source_as(text, source, None), expected, "{name}: {text:?}");
        assert_eq!(Some(tokenizer.detokenize(&expected).as_str()), own(line, "decoded").as_str(), "{name}: {text:?}");
    }
    lines.len()
}

#[test]
fn wrapped_sentencepiece_models_agree_with_transformers() {
    for name in ["m2m100", "mbart-en-ro", "mt5", "plbart", "t5-silu"] {
        assert!(check(name, &open(name)) >= 42, "{name}");
    }
}

#[test]
fn bytes_agree_with_transformers() {
    assert_eq!(check("byt5", &open("byt5")), 42);
}

#[test]
#[cfg(feature = "tokenizers")]
fn tokenizer_files_agree_with_transformers() {
    for name in
        ["bart", "bart-bare", "codet5", "flan-t5", "madlad", "mbart50", "nllb", "nllb-legacy", "pegasus", "umt5"]
    {
        assert!(check(name, &open(name)) >= 42, "{name}");
    }
}

/// The SentencePiece models beside a tokenizer.json, alone.
#[test]
fn sentencepiece_models_alone_agree_with_transformers_slow_tokenizers() {
    for name in ["flan-t5", "madlad", "mbart50", "nllb-legacy", "pegasus", "umt5"] {
        let dir = copy(name);
        std::fs::remove_file(dir.path().join("tokenizer.json")).expect("it was there");
        let tokenizer = Tokenizer::open(dir.path()).expect("the model is enough");
        for line in common::json_lines(&format!("families/{name}/tokens.jsonl")) {
            if line["kind"] == "target" {
                continue;
            }
            let own = |field: &str| line.get(format!("slow_{field}")).unwrap_or(&line[field]).clone();
            let text = line["text"].as_str().expect("text");
            let language = line.get("src_lang").and_then(Value::as_str);
            let language = language.map(|code| tokenizer.languages().expect("some").id("language", code).expect("one"));
            let expected = ids(&own("ids"));
            assert_eq!(tokenizer.encode_source_as(text, language, None), expected, "{name}: {text:?}");
            assert_eq!(Some(tokenizer.detokenize(&expected).as_str()), own("decoded").as_str(), "{name}: {text:?}");
        }
    }
}

#[test]
fn languages_are_where_each_family_has_them() {
    for (name, count, place, source, code, token) in [
        ("m2m100", 100, TargetPlace::FirstToken, Some("en"), "de", "__de__"),
        ("mbart-en-ro", 25, TargetPlace::DecoderStart, Some("en_XX"), "ro_RO", "ro_RO"),
        ("plbart", 3, TargetPlace::DecoderStart, None, "python", "__python__"),
    ] {
        let tokenizer = open(name);
        let languages = tokenizer.languages().expect("languages");
        assert_eq!((languages.all().len(), languages.place), (count, place), "{name}");
        let language = languages.get(code).expect("it is there");
        assert_eq!((language.token.as_str(), languages.id("x", token).ok()), (token, Some(language.id)), "{name}");
        assert_eq!(languages.source, source.and_then(|code| languages.get(code)).map(|language| language.id), "{name}");
        assert_eq!(tokenizer.target_piece(language.id), token, "{name}");
        // As the decoder generates it: the language in front where it is generated, nowhere where it is what the decoder reads.
        let generated = tokenizer.encode_target_as("a", Some(language.id));
        let at = generated.iter().position(|id| *id == language.id);
        assert_eq!(at, (place == TargetPlace::FirstToken).then_some(0), "{name}");
        assert_eq!(generated.last(), Some(&tokenizer.eos_id()), "{name}");
        assert_eq!(tokenizer.detokenize(&generated), "a", "{name}");
        for (text, blank) in [("", true), ("  ", true), ("a", false)] {
            assert_eq!(tokenizer.is_blank(&tokenizer.encode_source(text)), blank, "{name}: {text:?}");
        }
    }
    assert!(open("mt5").languages().is_none());
}

#[test]
#[cfg(feature = "tokenizers")]
fn a_target_language_in_front_of_the_source() {
    let tokenizer = open("madlad");
    let languages = tokenizer.languages().expect("languages");
    assert_eq!(languages.place, TargetPlace::Source);
    let codes: Vec<&str> = languages.all().iter().map(|language| language.code.as_str()).collect();
    assert_eq!(codes, ["de", "fr", "pt", "en"]);
    let de = languages.id("target-lang", "de").expect("it is there");
    let plain = tokenizer.encode_source("<2de> Two dogs");
    assert_eq!(tokenizer.encode_source_as("Two dogs", None, Some(de)), plain);
    assert_eq!(plain.iter().filter(|id| **id == de).count(), 1);
}

#[test]
fn what_a_fine_tuned_tokenizer_adds_is_a_token() {
    let dir = copy("m2m100");
    edit(dir.path(), "tokenizer_config.json", |config| {
        config["added_tokens_decoder"]["900"] = json!({"content": "<brk>", "special": false});
        config["added_tokens_decoder"]["901"] = json!({"content": "__xx__", "special": true});
        config["additional_special_tokens"].as_array_mut().expect("a list").push(json!("__xx__"));
    });
    let tokenizer = Tokenizer::open(dir.path()).expect("it opens");
    let ids = tokenizer.encode_source("a <brk>a");
    assert_eq!(ids.iter().position(|id| *id == 900), Some(2));
    assert_eq!(tokenizer.detokenize(&ids), "a <brk> a");
    assert_eq!(tokenizer.languages().expect("languages").id("x", "xx").ok(), Some(901));
    assert_eq!(tokenizer.target_vocab_size(), 902);
}

#[test]
fn other_tokenizers_are_refused_by_name() {
    let refused = |name: &str, change: &dyn Fn(&Path), expected: &[&str]| {
        let dir = copy(name);
        change(dir.path());
        let error = Tokenizer::open(dir.path()).expect_err("refused").to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{expected:?}: {error}");
    };
    let class = |name: &'static str| {
        move |dir: &Path| edit(dir, "tokenizer_config.json", |c| c["tokenizer_class"] = json!(name))
    };
    refused("mt5", &class("MvpTokenizer"), &["tokenizer_class", "T5Tokenizer", "got MvpTokenizer"]);
    refused("mt5", &class("NllbTokenizer"), &["sentencepiece.bpe.model"]);
    refused(
        "m2m100",
        &|dir| edit(dir, "tokenizer_config.json", |c| c["src_lang"] = json!("xx")),
        &["src_lang", "\"xx\""],
    );
    refused(
        "mt5",
        &|dir| {
            std::fs::write(dir.join("spiece.model"), "version https://git-lfs.github.com/spec/v1\n").expect("written")
        },
        &["spiece.model", "git lfs pull"],
    );
    refused(
        "byt5",
        &|dir| edit(dir, "tokenizer_config.json", |c| c["added_tokens_decoder"] = json!({"x": 1})),
        &["added_tokens_decoder"],
    );
    if cfg!(feature = "tokenizers") {
        refused(
            "bart",
            &|dir| std::fs::write(dir.join("tokenizer.json"), "{}").expect("written"),
            &["tokenizer.json", "tokenizers"],
        );
        refused(
            "bart-bare",
            &|dir| std::fs::write(dir.join("merges.txt"), "#version\na b c\n").expect("written"),
            &["merges.txt", "two pieces a line"],
        );
    }
}
