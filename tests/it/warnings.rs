//! What passes silently elsewhere: unknown languages and pieces, each told once with its count, and beside each line in JSON.

use serde_json::{Value, json};

use crate::common::command::run;
use crate::common::demo_model;
use crate::common::tiny::Tiny;

/// A model with language tokens in its vocabulary.
fn with_languages(languages: &[&str]) -> Tiny {
    let tiny = Tiny::new();
    let path = tiny.path("vocab.json");
    let mut vocabulary: serde_json::Map<String, Value> =
        serde_json::from_slice(&std::fs::read(&path).expect("a vocabulary")).expect("JSON");
    for (at, language) in languages.iter().enumerate() {
        let id = Value::from(7000 + at);
        let piece = vocabulary.iter().find(|(_, other)| **other == id).map(|(piece, _)| piece.clone());
        vocabulary.remove(&piece.expect("a piece"));
        vocabulary.insert((*language).to_string(), id);
    }
    std::fs::write(path, json!(vocabulary).to_string()).expect("written");
    tiny
}

fn kinds(object: &serde_json::Map<String, Value>) -> Value {
    object.get("warnings").cloned().unwrap_or(Value::Null)
}

#[test]
fn unknown_and_missing_languages_are_told_once_with_their_count() {
    let tiny = with_languages(&[">>deu<<", ">>fra<<"]);
    let model = tiny.dir().to_str().expect("UTF-8");
    let text = ">>xyz<< A dog.\n>>deu<< A dog.\nA dog.\n\n>>abc<< A cat.\n A cat >>fra<<.\n";
    let done = run(&["translate", "--model", model, "--format", "jsonl", "--beam-size", "1"], text.as_bytes());
    assert_eq!(done.code, Some(0), "{}", done.err);
    let found: Vec<Value> = done.objects().iter().map(kinds).collect();
    let (unknown, none) = (json!(["unknown_language"]), json!(["no_language"]));
    assert_eq!(found, [unknown.clone(), Value::Null, none.clone(), Value::Null, unknown, none]);
    let told: Vec<&str> = done.err.lines().collect();
    assert_eq!(told.len(), 2, "{}", done.err);
    assert!(told[0].contains("vocabulary lacks: 2; the first is >>xyz<< in line 1"), "{}", told[0]);
    assert!(told[1].contains("name no language") && told[1].contains(": 2; the first is line 3"), "{}", told[1]);

    let scored = run(&["score", "--model", model], b">>xyz<< A dog.\tEin Hund.\n>>deu<< A dog.\tEin Hund.\n");
    assert_eq!(scored.objects().iter().map(kinds).collect::<Vec<_>>(), [json!(["unknown_language"]), Value::Null]);
    assert!(scored.err.lines().count() == 1 && scored.err.contains(">>xyz<<"), "{}", scored.err);

    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("s");
    std::fs::write(&source, "A dog.\n>>deu<< A dog.\n").expect("written");
    let source = source.to_str().expect("UTF-8");
    let args = ["eval", "--model", model, "-i", source, "-r", source, "--beam-size", "1", "--resamples", "2"];
    let eval = run(&args, b"");
    assert!(eval.code == Some(0) && eval.err.contains("name no language") && eval.err.contains(": 1;"), "{}", eval.err);
}

#[test]
fn commands_that_read_whole_files_tell_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("s", "A dog.\n\n>>xyz<< A dog.\n>>xyz<< </s>\n");
    write("t", "Ein Hund.\nx\nEin Hund.\nEin Hund.\n");
    write("tsv", "A dog.\tEin Hund.\nA dog.\n>>xyz<< A dog.\tEin Hund.\n>>xyz<< </s>\tEin Hund.\n");
    let (s, t, tsv, out) = (path("s"), path("t"), path("tsv"), path("trained"));
    let run_of = [
        vec!["bench", "--input", &s, "--batch-size", "1", "--beam-size", "1", "--repeat", "1", "--warmup", "0"],
        vec!["diagnose", "--source", &s, "--reference", &t, "--skip-bad", "--beam-size", "1", "--null-draws", "1"],
        vec!["train", "--data", &tsv, "--skip-bad", "--updates", "1", "--batch-tokens", "32", "--output", &out],
    ];
    for arguments in run_of {
        let done = run(&arguments, b"");
        let told: Vec<&str> = done.err.lines().filter(|line| line.contains("warning: ")).collect();
        let (language, special) = (
            told.iter().find(|line| line.contains("lacks: 2; the first is >>xyz<< in line 3")),
            told.iter().find(|line| line.contains("read as text: 1; the first is </s> in line 4")),
        );
        assert!(told.len() == 2 && language.is_some() && special.is_some(), "{}: {}", arguments[0], done.err);
    }
}

#[test]
fn a_model_for_one_pair_of_languages_is_silent_about_them() {
    let one = with_languages(&[">>deu<<"]);
    run(&["translate", "--model", one.dir().to_str().expect("UTF-8"), "--beam-size", "1"], b"A dog.\n").ok();
    // But a token that it cannot know is told.
    let done = run(&["translate", "--beam-size", "1"], b">>deu<< A dog.\n");
    assert!(done.code == Some(0) && done.err.contains(">>deu<< in line 1"), "{}", done.err);
}

#[test]
fn unknown_prefixes_and_special_tokens_are_told() {
    let args = ["translate", "--format", "jsonl", "--beam-size", "1", "--target-prefix", "\u{4e2d}"];
    let input = "A dog.\n{\n</s> A dog.\n";
    let done = run(&args, input.as_bytes());
    assert_eq!(done.code, Some(0), "{}", done.err);
    let found: Vec<Value> = done.objects().iter().map(kinds).collect();
    assert_eq!(
        found,
        [json!(["unknown_prefix"]), json!(["unknown_prefix"]), json!(["unknown_prefix", "special_token"])]
    );
    assert!(done.err.contains(": 3; the first is \"\u{4e2d}\" in line 1"), "{}", done.err);
    assert!(done.err.contains("read as text: 1; the first is </s> in line 3"), "{}", done.err);
    // A field of that name in the input does not look like ours.
    let json = "{\"source\": \"A dog.\", \"warnings\": 3, \"target_prefix\": \"Ein\"}\n";
    let object = &run(&["translate", "--format", "jsonl", "--beam-size", "1"], json.as_bytes()).ok().objects()[0];
    assert_eq!(kinds(object), Value::Null);
}

#[test]
fn a_comma_can_be_suppressed_and_banned() {
    let sentence = "A man with a hat, a coat and a dog, is standing in front of a house, next to a tree.";
    let best = |args: &[&str]| run(&[&["translate"], args, &[sentence]].concat(), b"").ok().out;
    assert!(best(&[]).contains(','), "{}", best(&[]));
    for list in [
        &["--suppress", ","][..],
        &["--suppress", "\u{2581}Katze,\\,"],
        &["--suppress", ",", "--suppress", "\u{2581}Katze"],
    ] {
        assert!(!best(list).contains(','), "{list:?}: {}", best(list));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let bad = dir.path().join("bad");
    std::fs::write(&bad, ",\n").expect("written");
    let banned = best(&["--bad-texts", bad.to_str().expect("UTF-8")]);
    assert!(!banned.contains(','), "{banned}");
    // A word is banned as a word, and not within others.
    let model = demo_model();
    std::fs::write(&bad, "Haus\n").expect("written");
    let done = best(&["--model", model.to_str().expect("UTF-8"), "--bad-texts", bad.to_str().expect("UTF-8")]);
    assert!(!done.split(' ').any(|word| word == "Haus"), "{done}");
    let refused = run(&["translate", "--suppress", "\u{2581}Katze,,", sentence], b"");
    assert!(refused.code == Some(2) && refused.err.contains("option suppress"), "{}", refused.err);
}
