//! What ranks and what may come, from the command line and from JSON lines.

use std::path::{Path, PathBuf};

use crate::common;
use crate::common::command::{Finished, run};
use serde_json::Value;

/// Exit code, standard output and standard error of `translate` with `input` as standard input.
fn translate(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let Finished { code, out, err } = run(&[&["translate"], args].concat(), input.as_bytes());
    (code, out, err)
}

fn best(args: &[&str], text: &str) -> String {
    let (code, out, err) = translate(args, text);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
    out.trim_end().to_string()
}

fn amateur() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de-amateur").to_str().expect("UTF-8").to_string()
}

fn file(dir: &tempfile::TempDir, name: &str, content: &str) -> String {
    let path: PathBuf = dir.path().join(name);
    std::fs::write(&path, content).expect("a file");
    path.to_str().expect("UTF-8").to_string()
}

#[test]
fn what_is_banned_does_not_come() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(best(&[], "A dog runs."), "Ein Hund rennt.");
    assert!(!best(&["--suppress", "▁Hund"], "A dog runs.").split(' ').any(|word| word == "Hund"));
    let bad = file(&dir, "bad", "Ein Hund\n\n");
    let other = best(&["--bad-texts", &bad], "A dog runs.");
    assert!(!other.contains("Ein Hund") && !other.is_empty(), "{other}");
    let few = file(&dir, "few", "▁Ein\n▁Hund\n.\n");
    assert_eq!(best(&["--shortlist", &few], "A dog runs."), "Ein Hund.");
    let repeating = "A dog and a dog and a dog and a dog.";
    let plain = best(&[], repeating);
    let once = best(&["--no-repeat-ngram", "1"], repeating);
    let words: Vec<&str> = once.split(' ').collect();
    let distinct: std::collections::HashSet<&&str> = words.iter().collect();
    assert!(words.len() == distinct.len() && once != plain, "{once}");
    assert_ne!(best(&["--repetition-penalty", "5"], repeating), plain);
}

#[test]
fn the_hf_preset_obeys_what_the_generation_config_bans() {
    let dir = tempfile::tempdir().expect("a directory");
    let (demo, repeating) = (common::demo_model(), r#"{"source": "A dog and a dog and a dog and a dog."}"#);
    for entry in std::fs::read_dir(&demo).expect("the demo model") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    let config = std::fs::read_to_string(demo.join("generation_config.json")).expect("a config");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let with = |field: &str, value: Value| {
        let mut config = config.clone();
        config[field] = value;
        file(&dir, "generation_config.json", &config.to_string());
        let model = dir.path().to_str().expect("UTF-8").to_string();
        best(&["--model", &model, "--preset", "hf", "--format", "jsonl"], repeating)
    };
    let flags = |flags: &[&str]| {
        let args = [&["--preset", "hf", "--format", "jsonl"], flags].concat();
        best(&args, repeating)
    };
    let plain = flags(&[]);
    // In the demo model 95 is ▁Hund, 8000 padding, 0 the end of sentence, which may not be banned.
    for (field, value, same) in [
        ("no_repeat_ngram_size", serde_json::json!(1), &["--no-repeat-ngram", "1"]),
        ("repetition_penalty", serde_json::json!(3.0), &["--repetition-penalty", "3"]),
        ("suppress_tokens", serde_json::json!([95]), &["--suppress", "▁Hund"]),
        ("bad_words_ids", serde_json::json!([[8000], [0], [95]]), &["--suppress", "▁Hund"]),
        ("forced_bos_token_id", serde_json::json!(95), &["--forced-bos", "▁Hund"]),
    ] {
        let found = with(field, value);
        assert_eq!(found, flags(same), "{field}");
        assert_ne!(found, plain, "{field}");
    }
    assert_eq!(with("bad_words_ids", serde_json::json!([[8000], [0]])), plain);
    // Greedy search penalises logits.
    let greedy = serde_json::json!({ "num_beams": 1, "repetition_penalty": 2.0, "bad_words_ids": [[8000]],
        "forced_eos_token_id": 0, "max_length": 60 });
    file(&dir, "generation_config.json", &greedy.to_string());
    let model = dir.path().to_str().expect("UTF-8");
    let found = best(&["--model", model, "--preset", "hf", "--format", "jsonl"], repeating);
    let one = ["--beam-size", "1", "--repetition-penalty", "2", "--max-length", "59"];
    assert_eq!(found, flags(&[&one[..], &["--penalize-logits"]].concat()));
    assert_ne!(found, flags(&[&one[..], &["--penalize-logits=false"]].concat()));
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_forced_first_token_comes_first_and_is_free_under_hf_alone() {
    let first = |args: &[&str], line: &str| {
        let mut lines = json_lines(&[&["--forced-bos", "▁Zwei"], args].concat(), line).1;
        lines.remove(0)["hypotheses"][0].take()
    };
    let line = "{\"source\": \"A dog runs.\"}";
    let plain = first(&[], line);
    assert_eq!((&plain["tokens"][0], &plain["search_log_prob"]), (&"▁Zwei".into(), &plain["log_prob"]));
    // As if the line had asked for it.
    let given = json_lines(&[], "{\"source\": \"A dog runs.\", \"target_prefix\": \"Zwei\"}").1;
    assert_eq!(given[0]["hypotheses"][0], plain);
    let free = first(&["--preset", "hf"], line);
    let number = |value: &Value| value.as_f64().expect("a number");
    let cost = number(&free["log_prob"]) - number(&free["search_log_prob"]);
    assert!(free["tokens"][0] == "▁Zwei" && (cost - number(&free["token_log_probs"][0])).abs() < 1e-5, "{free}");
    assert_eq!(first(&["--preset", "hf", "--device", "emulated"], line)["tokens"], free["tokens"]);
    // In front of a line's own prefix, unless it begins with it.
    for (prefix, begins) in [("Hunde", "Zwei Hunde"), ("Zwei Hunde", "Zwei Hunde")] {
        let line = format!("{{\"source\": \"A dog runs.\", \"target_prefix\": \"{prefix}\"}}");
        let text = first(&[], &line)["text"].as_str().expect("a text").to_owned();
        assert!(text.starts_with(begins) && !text.starts_with("Zwei Zwei"), "{text}");
    }
    let (code, _, err) = translate(&["--forced-bos", "Zweifelsohne"], "A dog.");
    assert!(code == Some(2) && err.contains("option forced-bos: expected pieces of the model's target"), "{err}");
}

#[test]
fn an_amateur_and_an_ensemble_change_what_ranks_and_not_what_a_score_is() {
    let amateur = amateur();
    for args in [
        vec!["--amateur", &amateur],
        vec!["--contrastive", "logits", "--amateur", &amateur],
        vec!["--ensemble", &amateur],
    ] {
        let args = [&args[..], &["--format", "jsonl", "--beam-size", "2"]].concat();
        let (code, out, _) = translate(&args, "{\"source\": \"Two dogs run through the snow.\"}");
        let line: Value = serde_json::from_str(&out).expect("a JSON line");
        let number = |field: &str| line["hypotheses"][0][field].as_f64().expect("a number");
        assert_eq!(code, Some(0), "{args:?}");
        assert_ne!(number("log_prob"), number("search_log_prob"), "{args:?}");
        let sum: f64 =
            line["hypotheses"][0]["token_log_probs"].as_array().expect("a list").iter().filter_map(Value::as_f64).sum();
        assert!((sum - number("log_prob")).abs() < 1e-4, "{args:?}");
    }
    // The same model twice, each with half the weight, is the model.
    let own = common::demo_model().to_str().expect("UTF-8").to_string();
    let text = "Two men sit on a bench.";
    assert_eq!(best(&["--ensemble", &own], text), best(&[], text));
}

#[test]
fn text_lines_are_contrasted_with_each_other_and_json_lines_with_what_they_bring() {
    let args = ["--contrastive", "source", "--beam-size", "2"];
    let (code, text, _) = translate(&args, "A dog runs.\n\nTwo cats sleep.\n");
    assert_eq!(code, Some(0));
    let lines = "{\"source\": \"A dog runs.\", \"contrast_source\": \"Two cats sleep.\"}\n{\"source\": \"\"}\n\
                 {\"source\": \"Two cats sleep.\", \"contrast_source\": \"A dog runs.\"}\n";
    let (code, json, _) = translate(&[&args[..], &["--format", "jsonl"]].concat(), lines);
    assert_eq!(code, Some(0));
    let of_json: Vec<String> = json
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["hypotheses"][0]["text"]
                .as_str()
                .expect("text")
                .to_string()
        })
        .collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), of_json);
    let (code, out, err) = translate(&args, "A dog runs.\n");
    assert_eq!((code, out.as_str()), (Some(1), "\n"));
    assert!(err.contains("line 1: contrast sources: expected another source"), "{err}");
}

#[test]
fn a_prefix_is_what_a_translation_starts_with() {
    let input = "{\"source\": \"A dog runs.\", \"target_prefix\": \"Zwei Hunde\", \"id\": 1}\n\
                 {\"source\": \"A dog runs.\", \"target_prefix\": null}\n{\"source\": \"A dog runs.\", \"target_prefix\": 7}\n";
    let (code, out, err) = translate(&["--format", "jsonl"], input);
    assert_eq!(code, Some(1), "{err}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines[0]["hypotheses"][0]["text"].as_str().expect("text").starts_with("Zwei Hunde"), "{out}");
    assert_eq!((&lines[0]["target_prefix"], &lines[0]["id"]), (&Value::from("Zwei Hunde"), &Value::from(1)));
    assert_eq!(lines[1]["hypotheses"][0]["text"], "Ein Hund rennt.");
    assert_eq!(lines[2]["error"]["message"], "read line: target_prefix: expected a string, got 7");
}

#[test]
fn alternatives_differ_behind_the_prefix_of_their_line() {
    let input = "{\"source\": \"A dog runs.\", \"target_prefix\": \"Ein\", \"id\": 1}\n{\"source\": \"A dog runs.\"}\n{\"source\": \"\"}\n7\n";
    let args = ["--alternatives", "3", "--target-prefix", "Der"];
    let (code, out, err) = translate(&[&args[..], &["--format", "jsonl"]].concat(), input);
    assert_eq!(code, Some(1), "{err}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for (line, start) in lines.iter().zip(["▁Ein", "▁Der"]) {
        let hypotheses = line["hypotheses"].as_array().expect("a list");
        let second: std::collections::HashSet<&str> =
            hypotheses.iter().map(|h| h["tokens"][1].as_str().expect("a piece")).collect();
        assert!(hypotheses.iter().all(|h| h["tokens"][0] == start), "{line}");
        assert_eq!((hypotheses.len(), second.len()), (3, 3), "{line}");
    }
    assert_eq!(lines[0]["hypotheses"][0]["text"], "Ein Hund rennt.");
    assert_eq!((&lines[0]["id"], &lines[2]["hypotheses"][0]["text"]), (&Value::from(1), &Value::from("")));
    assert_eq!(lines[3]["error"]["kind"], "json");
    let (code, out, _) = translate(&[&args[..], &["--format", "nbest"]].concat(), "A dog runs.\n");
    assert!(code == Some(0) && out.lines().count() == 3 && out.lines().all(|l| l.starts_with("0 ||| Der ")), "{out}");
    let sure = ["--alternatives", "3", "--min-alternative-prob", "0.9", "--format", "nbest"];
    assert_eq!(translate(&sure, "A dog runs.\n").1.lines().count(), 1);
}

#[test]
fn what_does_not_go_together_is_refused_with_both_names() {
    let (amateur, dir) = (amateur(), tempfile::tempdir().expect("a directory"));
    let strange = file(&dir, "strange", "▁Hund\nno such piece\n");
    for (args, reason) in [
        (
            vec!["--contrastive", "li"],
            "option contrastive: expected an amateur model, or the form source, got no amateur",
        ),
        (
            vec!["--contrastive", "source", "--amateur", &amateur],
            "option contrastive source cannot be combined with amateur",
        ),
        (vec!["--contrastive-mask", "0.2"], "option contrastive-mask: expected contrastive or amateur beside it"),
        (vec!["--amateur", &amateur, "--contrastive-weight", "-1"], "option contrastive-weight"),
        (vec!["--amateur", &amateur, "--ensemble", &amateur], "option contrastive cannot be combined with ensemble"),
        (
            vec!["--ensemble", &amateur, "--ensemble-weights", "1"],
            "option ensemble: expected a weight for each of 2 models",
        ),
        (vec!["--ensemble-weights", "1,1"], "--ensemble"),
        (vec!["--repetition-penalty", "0"], "option repetition-penalty"),
        (vec!["--suppress", "no such piece"], "option suppress: expected pieces of the model's target vocabulary"),
        (vec!["--shortlist", &strange], "option shortlist: expected pieces of the model's target vocabulary"),
        (vec!["--bad-texts", "/no/such/file"], "/no/such/file"),
        (vec!["--patience", "0.1"], "option patience: expected 1 to 64 hypotheses as patience x beam-size 4, got 0.1"),
        (vec!["--shrink", "--beam-groups", "2"], "option shrink cannot be combined with beam-groups 2"),
        (vec!["--shrink", "--sample"], "option shrink cannot be combined with sample"),
        (vec!["--stop", "top"], "option stop top cannot be combined with alpha 0.7"),
        (
            vec!["--stop", "exact", "--preset", "marian"],
            "option stop exact cannot be combined with length-penalty power-of-all",
        ),
        (vec!["--alternatives", "3"], "option alternatives cannot be combined with format text"),
        (
            vec!["--alternatives", "3", "--format", "nbest", "--sample"],
            "option alternatives cannot be combined with sample",
        ),
        (vec!["--alternatives", "0", "--format", "nbest"], "option alternatives: expected 1 to 64, got 0"),
        (
            vec!["--alternatives", "3", "--format", "nbest", "--n-best", "2"],
            "option alternatives cannot be combined with n-best 2",
        ),
        (vec!["--min-alternative-prob", "0.1"], "--alternatives"),
    ] {
        let (code, out, err) = translate(&args, "A dog runs.\n");
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(err.contains(reason), "{args:?}: {err}");
    }
}

#[test]
fn presets_of_other_engines_take_their_flags() {
    for args in [
        vec!["--preset", "ctranslate2", "--alpha", "0"],
        vec!["--preset", "ctranslate2", "--patience", "2"],
        vec!["--preset", "fairseq"],
        vec!["--preset", "marian", "--word-reward", "-0.1", "--alpha", "0.6"],
        vec!["--preset", "marian", "--shrink=false", "--cut=false"],
    ] {
        assert_eq!(best(&args, "A dog runs."), "Ein Hund rennt.", "{args:?}");
    }
}

/// What JSON lines give under these options, the exit code first.
fn json_lines(args: &[&str], input: &str) -> (Option<i32>, Vec<Value>) {
    let (code, out, _) = translate(&[&["--format", "jsonl"], args].concat(), input);
    (code, out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn constraints_are_contained_on_every_device_and_other_lines_stay_as_they_are() {
    let input = "{\"source\": \"A dog runs.\", \"constraints\": [\"Katze\", \"schnell\"]}\n\
                 {\"source\": \"A dog runs.\", \"constraints\": []}\n\
                 {\"source\": \"A dog runs.\", \"constraints\": [\"Ein Hund\"], \"target_prefix\": \"Ein Hund\"}\n";
    let mut found = Vec::new();
    for device in ["cpu", "emulated"] {
        let (code, lines) = json_lines(&["--n-best", "3", "--device", device], input);
        assert_eq!((code, lines.len()), (Some(0), 3), "{lines:?}");
        let hypotheses = lines[0]["hypotheses"].as_array().expect("hypotheses");
        assert!(!hypotheses.is_empty());
        for hypothesis in hypotheses {
            let text = hypothesis["text"].as_str().expect("a text");
            assert!(text.contains("Katze") && text.contains("schnell"), "{text}");
        }
        assert_eq!(lines[1]["hypotheses"][0]["text"], "Ein Hund rennt.");
        assert_eq!(lines[2]["hypotheses"][0]["text"], "Ein Hund rennt.");
        let ids = |line: &Value| -> Vec<Value> {
            line["hypotheses"].as_array().expect("hypotheses").iter().map(|h| h["token_ids"].clone()).collect()
        };
        found.push(lines.iter().map(ids).collect::<Vec<_>>());
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn constraints_hold_beside_ensembles_penalties_and_shortlists() {
    let dir = tempfile::tempdir().expect("a directory");
    let few = file(&dir, "few", "▁Ein\n▁Hund\n▁rennt\n▁schnell\n▁und\n.\n");
    let constrained = "{\"source\": \"A dog and a dog and a dog.\", \"constraints\": [\"schnell\"]}";
    let text = |line: &Value| line["hypotheses"][0]["text"].as_str().unwrap_or_default().to_owned();
    for args in [
        vec!["--ensemble", &amateur()],
        vec!["--repetition-penalty", "4"],
        vec!["--no-repeat-ngram", "1", "--min-length", "9"],
        vec!["--shortlist", &few],
    ] {
        let run = |input: &str, device: &str| {
            let (code, lines) = json_lines(&[&args[..], &["--device", device]].concat(), input);
            assert_eq!((code, lines.len()), (Some(0), 1), "{args:?}: {lines:?}");
            lines
        };
        let found = text(&run(constrained, "cpu")[0]);
        assert!(found.contains("schnell"), "{args:?}: {found}");
        assert_eq!(text(&run(constrained, "emulated")[0]), found, "{args:?}");
        // The other option shows: in the words, or in what the same words score.
        let plain = json_lines(&[], constrained).1.remove(0);
        let with = run(constrained, "cpu").remove(0);
        assert_ne!(plain["hypotheses"][0]["score"], with["hypotheses"][0]["score"], "{args:?}");
    }
}

#[test]
fn a_line_whose_constraints_cannot_be_says_so_and_the_rest_carries_on() {
    let input = "{\"source\": \"A dog runs.\", \"constraints\": [\"Hund\"]}\n{\"source\": \"A dog runs.\"}\n\
                 {\"source\": \"A dog runs.\", \"constraints\": \"Hund\"}\n{\"source\": \"\", \"constraints\": [\"Hund\"]}\n";
    let (code, lines) = json_lines(&["--suppress", "▁Hund"], input);
    assert_eq!(code, Some(1));
    let unmet = Value::from("decode: expected a translation that contains \"Hund\", got none");
    for line in [0, 3] {
        assert_eq!(
            (&lines[line]["error"]["kind"], &lines[line]["error"]["message"]),
            (&"unmet_constraint".into(), &unmet)
        );
    }
    assert!(lines[1]["hypotheses"][0]["text"].is_string());
    assert_eq!(lines[2]["error"]["message"], "read line: constraints: expected an array of strings, got \"Hund\"");
    let input = input.lines().next().expect("a line");
    for (args, other) in [
        (&["--sample"][..], "constraints cannot be combined with sample"),
        (&["--beam-groups", "2"], "constraints cannot be combined with beam-groups"),
        (&["--shrink"], "constraints cannot be combined with shrink"),
        (&["--alternatives", "2"], "constraints cannot be combined with alternatives"),
    ] {
        let (code, lines) = json_lines(args, input);
        let message = lines[0]["error"]["message"].as_str().unwrap_or_default();
        assert!(code == Some(1) && message.contains(other), "{args:?}: {lines:?}");
    }
    let (code, lines) =
        json_lines(&["--max-length", "2"], "{\"source\": \"A dog runs.\", \"constraints\": [\"Ein Hund\"]}");
    let message = lines[0]["error"]["message"].as_str().unwrap_or_default();
    assert!(code == Some(1) && message.contains("for the maximum length of 2"), "{message}");
}
