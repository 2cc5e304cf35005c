//! Texts through models of several families, against what transformers makes of them: the tokenizer, the languages and the search
//! together.

use std::path::{Path, PathBuf};

use beamfuse::{
    DecodeOptions, EngineOptions, LengthPenalty, MaxLength, Sentence, SentenceDefaults, Stop, Terms, Translator,
};
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
    all.filter(|item| item["kind"] == kind && item["name"].as_str().unwrap_or_default() == search).collect()
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

/// The model, for texts in the languages of an item.
fn opened_for(name: &str, item: &Value) -> Translator {
    let defaults = SentenceDefaults {
        source_lang: text(&item["src_lang"]),
        target_lang: text(&item["tgt_lang"]),
        ..SentenceDefaults::default()
    };
    let options = EngineOptions::default().with(|options| options.defaults = defaults);
    Translator::open_with(dir(name), &options).expect("a model")
}

#[test]
fn scores_are_those_of_the_languages_that_are_said() {
    for name in ["nllb-legacy", "mbart-en-ro", "plbart"] {
        let translator = Translator::open(dir(name)).expect("a model");
        for item in items(name, "score", "") {
            let told = opened_for(name, &item);
            let own = told.score_ids(&[(ids(&item["input_ids"]), ids(&item["token_ids"]))]).remove(0).expect("a score");
            let expected = item["token_log_probs"].as_array().expect("numbers");
            assert_eq!(own.token_log_probs.len(), expected.len());
            for (found, expected) in own.token_log_probs.iter().zip(expected) {
                let expected = expected.as_f64().expect("a number") as f32;
                assert!((found - expected).abs() < 1e-4, "{name}: {found} and {expected}");
            }
            let target = "Two dogs run.";
            let said = translator.score(&[(sentence(&item), target)]).remove(0).expect("a score");
            let source = item["source"].as_str().expect("a text");
            assert_eq!(told.score(&[(source, target)]).remove(0).expect("a score"), said);
            let other = Sentence { target_lang: text(&item["src_lang"]), ..sentence(&item) };
            assert_ne!(translator.score(&[(other, target)]).remove(0).expect("a score").log_prob, said.log_prob);
        }
    }
    let translator = Translator::open(dir("nllb-legacy")).expect("a model");
    let missing = translator.score(&[("A dog.", "Ein Hund.")]).remove(0).expect_err("refused").to_string();
    assert!(missing.contains("target-lang") && missing.contains("got none"), "{missing}");
}

#[test]
fn every_command_takes_the_languages_of_its_texts() {
    let work = tempfile::tempdir().expect("a directory");
    let path = |name: &str| work.path().join(name).display().to_string();
    let model = dir("nllb-legacy").display().to_string();
    let items = items("nllb-legacy", "generate", "greedy");
    let sources: String = items.iter().map(|item| item["source"].as_str().expect("a text").to_owned() + "\n").collect();
    std::fs::write(path("sources"), &sources).expect("written");
    std::fs::write(path("targets"), "Two dogs run.\n".repeat(items.len())).expect("written");
    let pairs: String = sources.lines().map(|source| format!("{source}\tTwo dogs run.\n")).collect();
    std::fs::write(path("pairs"), &pairs).expect("written");
    let languages = ["--model", &model, "--source-lang", "eng_Latn", "--target-lang", "deu_Latn"];
    let search = ["--beam-size", "1", "--max-length", "9"];

    let translated = run(&[&["translate"], &languages[..], &search].concat(), sources.as_bytes()).ok();
    let (sources, targets, output) = (path("sources"), path("targets"), path("output"));
    let eval = ["eval", "--input", &sources, "--reference", &targets, "--resamples", "10", "--output", &output];
    run(&[&eval[..], &languages, &search].concat(), b"").ok();
    assert_eq!(std::fs::read_to_string(&output).expect("translations"), translated.out);

    let scored = run(&[&["score"], &languages[..]].concat(), pairs.as_bytes()).ok();
    let of_lines: String = pairs
        .lines()
        .map(|line| line.split_once('\t').expect("a pair"))
        .map(|(source, target)| {
            json!({"source": source, "target": target, "source_lang": "eng_Latn", "target_lang": "deu_Latn"})
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let own = run(&["score", "--model", &model], of_lines.as_bytes()).ok();
    for (of_all, of_one) in scored.objects().iter().zip(own.objects()) {
        assert_eq!(of_all["token_log_probs"], of_one["token_log_probs"]);
        // The language's token is the first that is generated.
        assert!(of_all["token_ids"].as_array().expect("ids").len() > 1);
    }

    let bench = ["bench", "--sentences", "2", "--beam-size", "1", "--batch-size", "1", "--repeat", "1"];
    run(&[&bench[..], &languages].concat(), b"");
    for command in [&eval[..], &["score"], &bench] {
        let missing = run(&[command, &["--model", &model]].concat(), pairs.as_bytes());
        assert!(missing.code != Some(0) && (missing.err + &missing.out).contains("target-lang"), "{command:?}");
        let unknown = run(&[command, &["--model", &model, "--target-lang", "deu_Latin"]].concat(), pairs.as_bytes());
        assert!(unknown.code == Some(2) && unknown.err.contains("deu_Latn"), "{command:?}: {}", unknown.err);
    }
}

#[cfg(feature = "train")]
#[test]
fn a_multilingual_model_learns_a_pair_of_languages() {
    let work = tempfile::tempdir().expect("a directory");
    let path = |name: &str| work.path().join(name).display().to_string();
    for name in ["nllb-legacy", "mbart-en-ro", "flan-t5"] {
        let model = dir(name).display().to_string();
        let pair = "A man is riding a bike.\tTwo dogs run.\n";
        std::fs::write(path("pairs"), pair.repeat(4)).expect("written");
        let (pairs, output) = (path("pairs"), path(name));
        let train = ["train", "--model", &model, "--data", &pairs, "--output", &output, "--objective", "mle"];
        let more = ["--updates", "60", "--batch-tokens", "64", "--learning-rate", "0.003", "--warmup", "5"];
        let train = [&train[..], &more].concat();
        let languages: &[&str] = match name {
            "nllb-legacy" => &["--source-lang", "eng_Latn", "--target-lang", "fra_Latn"],
            "mbart-en-ro" => &["--source-lang", "en_XX", "--target-lang", "de_DE"],
            _ => &["--prefix", "say: "],
        };
        let done = run(&[&train[..], languages].concat(), b"");
        assert_eq!(done.code, Some(0), "{name}: {}", done.err);
        // What it has learnt it says in these languages.
        let score = |model: &str, more: &[&str]| {
            let done = run(&[&["score", "--model", model, "--format", "text"], more].concat(), pair.as_bytes());
            done.out.trim().parse::<f32>().expect("a log-probability")
        };
        let (before, after) = (score(&model, languages), score(&output, languages));
        assert!(after > before / 2.0, "{name}: {before} before, {after} after");
        if languages.len() == 4 {
            let missing = run(&[&train[..6], &[&path("other"), "--objective", "mle"], &languages[..2]].concat(), b"");
            assert!(missing.code == Some(2) && missing.err.contains("target-lang"), "{name}: {}", missing.err);
        }
    }
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
    let copy = common::t5_with_tasks();
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
    // What the library makes of it for all sentences of a translator.
    let opened = |defaults: SentenceDefaults| {
        let options = EngineOptions::default().with(|options| options.defaults = defaults);
        Translator::open_with(copy.path(), &options)
    };
    let said = |prefix: Option<&str>, target: Option<&str>| SentenceDefaults {
        source_prefix: prefix.map(str::to_owned),
        target_lang: target.map(str::to_owned),
        ..SentenceDefaults::default()
    };
    let plain = opened(said(None, None)).expect("a model");
    for (defaults, prefix) in [
        (said(None, Some("de")), "translate English to German: "),
        (said(Some("summarize: "), Some("de")), "summarize: "),
    ] {
        let translator = opened(defaults).expect("a model");
        let behind = plain.tokenizer().encode_source(&format!("{prefix}A dog runs."));
        assert_eq!(translator.tokenizer().encode_source("A dog runs."), behind);
        assert_eq!(translator.source_ids(&"A dog runs.".into()).expect("ids"), behind);
        assert_eq!(translator.tokenizer().encode_source(" "), plain.tokenizer().encode_source(" "));
        let own = Sentence { target_lang: Some("de".into()), ..Sentence::from("A dog runs.") };
        let german = plain.tokenizer().encode_source("translate English to German: A dog runs.");
        assert_eq!(translator.source_ids(&own).expect("ids"), german);
    }
    assert!(opened(said(None, Some("fr"))).expect_err("refused").to_string().contains("en to de"));
    let mixed = json!({ "source": "A dog runs.", "source_prefix": "summarize: ", "target_lang": "de" });
    assert_eq!(found(&[], &format!("{mixed}\n")), summary);
    let blank = found(&["--target-lang", "de", "--input-format", "text"], "\n");
    assert_eq!(blank, found(&["--input-format", "text"], "\n"));
    let refused = run(&[&fixed[..], &["--target-lang", "fr"]].concat(), b"A dog runs.\n");
    assert!(refused.code == Some(2) && refused.err.contains("en to de"), "{}", refused.err);
    let info = run(&["info", "--model", &model], b"").ok();
    assert!(info.out.contains("translation_en_to_de") && info.out.contains("summarize: "), "{}", info.out);
}
