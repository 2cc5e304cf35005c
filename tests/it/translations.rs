//! Texts through models of several families, against what transformers makes of them: the tokenizer, the languages and the search
//! together.

use std::path::{Path, PathBuf};

use beamfuse::{DecodeOptions, LengthPenalty, MaxLength, Sentence, Stop, Terms, Translator};
use serde_json::{Value, json};

use crate::common;
use crate::common::command::run;

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families").join(name)
}

/// The items of a kind and a name.
fn items(name: &str, kind: &str, search: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir(name).join("expected.jsonl")).expect("what is expected");
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object"));
    all.filter(|item| item["kind"] == kind && item["name"] == search).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn sentence(item: &Value) -> Sentence {
    let source = text(&item["source"]).expect("a text");
    let (source_lang, target_lang) = (text(&item["src_lang"]), text(&item["tgt_lang"]));
    Sentence { source_lang, target_lang, ..source.into() }
}

/// The search of the items named beam.
fn beam(forced_eos: bool) -> DecodeOptions {
    let mut options = DecodeOptions::default();
    (options.beam_size, options.n_best) = (4, 4);
    (options.length_penalty, options.alpha) = (LengthPenalty::Power, 1.0);
    options.stop = Some(Stop::Heuristic);
    options.max_length = MaxLength::Absolute(39);
    (options.forced_free, options.cut) = (true, !forced_eos);
    options
}

#[test]
fn texts_of_every_family_are_translated_as_transformers_does() {
    for (name, forced_eos) in [
        ("nllb-legacy", false),
        ("mbart-en-ro", true),
        ("plbart", true),
        ("flan-t5", false),
        ("umt5", false),
        ("t5-silu", false),
    ] {
        let translator = Translator::open(dir(name)).expect("a model");
        let options = beam(forced_eos);
        let items = items(name, "generate", "beam");
        assert!(items.len() >= 3, "{name}");
        // All in one batch, whatever their languages.
        let mut batch = translator.batch(&options).expect("options");
        items.iter().zip(0..).for_each(|(item, tag)| batch.push(tag, sentence(item)));
        for (tag, translation) in std::iter::from_fn(|| batch.next()) {
            let (item, translation) = (&items[tag as usize], translation.expect("a translation"));
            assert_eq!(translation.source_ids, ids(&item["input_ids"]), "{name}: {}", item["source"]);
            let expected = item["hypotheses"].as_array().expect("hypotheses");
            for (found, expected) in translation.hypotheses.iter().zip(expected) {
                assert_eq!(found.token_ids, ids(&expected["token_ids"]), "{name}: {}", item["source"]);
                assert_eq!(found.text, expected["text"].as_str().expect("a text"), "{name}: {}", item["source"]);
            }
        }
    }
}

#[test]
fn languages_that_are_missing_or_unknown_are_named() {
    let translator = Translator::open(dir("nllb-legacy")).expect("a model");
    let options = DecodeOptions::default();
    let refused = |sentence: Sentence| {
        let mut batch = translator.batch(&options).expect("options");
        batch.push(0, sentence);
        batch.next().expect("a result").1.expect_err("refused").to_string()
    };
    let wrong = refused(Sentence { target_lang: Some("deu_Latin".into()), ..Sentence::from("A dog.") });
    assert!(wrong.contains("target-lang") && wrong.contains("deu_Latn") && wrong.contains("deu_Latin"), "{wrong}");
    let target_lang = Some("deu_Latn".to_owned());
    let wrong = refused(Sentence { source_lang: Some("english".into()), target_lang, ..Sentence::from("A dog.") });
    assert!(wrong.contains("source-lang") && wrong.contains("english"), "{wrong}");
    let missing = refused("A dog.".into());
    assert!(missing.contains("target-lang") && missing.contains("got none"), "{missing}");
    let translator = Translator::open(dir("flan-t5")).expect("a model");
    let mut batch = translator.batch(&options).expect("options");
    batch.push(0, Sentence { target_lang: Some("de".into()), ..Sentence::from("A dog.") });
    let unneeded = batch.next().expect("a result").1.expect_err("refused").to_string();
    assert!(unneeded.contains("target-lang") && unneeded.contains("the model knows none"), "{unneeded}");
}

#[test]
fn the_command_line_takes_languages_and_ids() {
    let items = items("nllb-legacy", "generate", "greedy");
    let model = dir("nllb-legacy").display().to_string();
    let fixed = ["translate", "--model", &model, "--format", "jsonl", "--preset", "hf", "--max-length", "39"];
    let translate = |more: &[&str], field: fn(&Value) -> Value| -> Vec<Vec<u32>> {
        let input: String = items.iter().map(|item| field(item).to_string() + "\n").collect();
        let found = run(&[&fixed, more].concat(), input.as_bytes()).ok().objects();
        found.iter().map(|object| ids(&object["hypotheses"][0]["token_ids"])).collect()
    };
    let expected: Vec<Vec<u32>> = items.iter().map(|item| ids(&item["hypotheses"][0]["token_ids"])).collect();
    let of_each = translate(
        &[],
        |item| json!({"source": item["source"], "source_lang": item["src_lang"], "target_lang": item["tgt_lang"]}),
    );
    assert_eq!(of_each, expected);
    let encoded = translate(&[], |item| json!({"source_ids": item["input_ids"], "target_lang": item["tgt_lang"]}));
    assert_eq!(encoded, expected);
    let (source, target) = (items[0]["src_lang"].as_str(), items[0]["tgt_lang"].as_str());
    let of_all = ["--source-lang", source.expect("a code"), "--target-lang", target.expect("a code")];
    let of_all = translate(&of_all, |item| json!({"source": item["source"]}));
    assert_eq!(of_all[0], expected[0]);
}

#[test]
fn a_sentence_that_is_submitted_is_read_by_its_own_ids() {
    let options = DecodeOptions::default().with(|options| options.beam_size = 1);
    let expected = common::translator().translate(&["A dog runs."], &options).expect("valid options").remove(0);
    let sentence = Sentence { source_ids: Some(expected.source_ids.clone()), ..Sentence::default() };
    let handle = common::translator().submit(sentence, &options, Terms::new()).expect("accepted");
    assert_eq!(handle.wait().expect("translated").hypotheses, expected.hypotheses);
}

#[test]
fn a_model_whose_tokenizer_is_not_read_takes_ids() {
    let item = &items("fsmt", "generate", "greedy")[0];
    let (source, expected) = (ids(&item["input_ids"]), ids(&item["hypotheses"][0]["token_ids"]));
    let model = dir("fsmt").display().to_string();
    let decimal = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let (end, words) = source.split_last().expect("an end of sentence");
    assert_eq!(*end, 2);
    let input = format!(
        "{}\n{}\n{}\n{}\n",
        json!({ "source_ids": source }),
        json!({ "source": decimal(words) }),
        json!({ "source": decimal(&source) }),
        json!({ "source": "A dog." })
    );
    let fixed = ["translate", "--model", &model, "--format", "jsonl", "--preset", "hf", "--beam-size", "1"];
    let done = run(&[&fixed[..], &["--max-length", "39"]].concat(), input.as_bytes());
    assert_eq!(done.code, Some(1), "{}", done.err);
    let objects = done.objects();
    for object in &objects[..3] {
        assert_eq!(ids(&object["hypotheses"][0]["token_ids"]), expected);
    }
    let message = objects[3]["error"]["message"].as_str().expect("refused");
    assert!(message.contains("Moses and BPE, is not read") && message.contains("A dog."), "{message}");
    // Commands that tokenize for themselves refuse it, too.
    let scored = run(&["score", "--model", &model], b"A dog.\tEin Hund.\n57 63\t93\n");
    assert_eq!((scored.code, scored.objects()[1]["token_ids"].clone()), (Some(1), json!([93, 2])), "{}", scored.err);
}

#[test]
fn languages_of_a_model_with_tasks_name_one() {
    let copy = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(dir("t5-silu")).expect("the test data is there").flatten() {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
    }
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    config["task_specific_params"] = json!({
        "summarization": { "prefix": "summarize: ", "num_beams": 4 },
        "translation_en_to_de": { "prefix": "translate English to German: " },
    });
    std::fs::write(&path, config.to_string()).expect("written");
    let model = copy.path().display().to_string();
    let fixed = ["translate", "--model", &model, "--format", "jsonl", "--beam-size", "1", "--max-length", "8"];
    let found = |more: &[&str], input: &str| {
        let done = run(&[&fixed[..], more].concat(), input.as_bytes());
        (done.code, done.objects().iter().map(|o| o["hypotheses"][0]["token_ids"].clone()).collect::<Vec<_>>())
    };
    let whole = |prefix: &str| found(&["--input-format", "text"], &format!("{prefix}A dog runs.\n"));
    let (german, summary) = (whole("translate English to German: "), whole("summarize: "));
    assert!(german.0 == Some(0) && german.1 != summary.1 && german.1 != whole("").1);
    for codes in [["en", "de"], ["eng", "DE"]] {
        let named = ["--source-lang", codes[0], "--target-lang", codes[1], "--input-format", "text"];
        assert_eq!(found(&named, "A dog runs.\n"), german);
    }
    assert_eq!(found(&["--prefix", "summarize: ", "--input-format", "text"], "A dog runs.\n"), summary);
    let mixed = json!({ "source": "A dog runs.", "source_prefix": "summarize: ", "target_lang": "de" });
    assert_eq!(found(&[], &format!("{mixed}\n")), summary);
    let blank = found(&["--target-lang", "de", "--input-format", "text"], "\n");
    assert_eq!(blank, found(&["--input-format", "text"], "\n"));
    let refused = run(&[&fixed[..], &["--target-lang", "fr"]].concat(), b"A dog runs.\n");
    assert!(refused.code == Some(1) && refused.err.contains("en to de"), "{}", refused.err);
    let info = run(&["info", "--model", &model], b"").ok();
    assert!(info.out.contains("translation_en_to_de") && info.out.contains("summarize: "), "{}", info.out);
}
