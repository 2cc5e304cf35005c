//! What the command says to a person: once, before anything is done, and in words of the command line.

use crate::common::command::run;

#[test]
fn a_value_that_cannot_be_read_is_refused_in_one_sentence() {
    for (args, error) in [
        (["--device", "gpu"], "error: option device: expected cpu, cuda, "),
        (["--alignment", "firm"], "error: option alignment: expected hard, soft, or a weight"),
        (["--memory-budget", "1.5G"], "error: option memory-budget: expected a number of bytes"),
        (["--max-length", "S"], "error: option max-length: expected a number of tokens, or a*S+b"),
        (["--alpha", "NaN"], "error: option alpha: expected a finite number, got NaN"),
    ] {
        let done = run(&["translate", args[0], args[1], "A dog."], b"");
        assert_eq!((done.code, done.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(done.err.starts_with(error) && done.err.matches("expected").count() == 1, "{args:?}: {}", done.err);
    }
}

#[test]
fn a_path_that_is_no_directory_is_not_looked_for_on_the_hub() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(path("file"), "").expect("a file");
    for (model, reason) in [
        (path("no/such/model"), "no such directory"),
        (path("mistyped"), "no such directory"),
        ("./mistyped".to_owned(), "no such directory"),
        ("mistyped".to_owned(), "no such directory"),
        ("models/mistyped".to_owned(), "no such directory in models (for a hub id"),
        (path("file"), "expected a directory, got the file"),
    ] {
        let done = run(&["translate", "--model", &model, "A dog."], b"");
        assert_eq!((done.code, done.out.as_str()), (Some(2), ""), "{model}");
        assert!(done.err.contains(reason) && !done.err.contains("fetch"), "{model}: {}", done.err);
    }
}

#[test]
fn a_text_that_is_the_name_of_a_file_is_translated_with_a_warning() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("text.en").to_str().expect("UTF-8").to_owned();
    std::fs::write(&path, "A dog runs.\n").expect("a file");
    let done = run(&["translate", &path], b"");
    assert_eq!((done.code, done.out.lines().count()), (Some(0), 1));
    assert!(done.err.contains(&format!("--input {path} translates its lines")), "{}", done.err);
    run(&["translate", "A dog runs."], b"").ok();
}

#[test]
fn a_blank_sentence_has_no_search_to_draw() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = dir.path().join("page.html").to_str().expect("UTF-8").to_owned();
    for (text, input) in [(Some(" "), ""), (None, "\nA dog runs.\n"), (None, "")] {
        let args = ["translate", "--explain", &page].into_iter().chain(text).collect::<Vec<_>>();
        let done = run(&args, input.as_bytes());
        assert_eq!(done.code, Some(2), "{text:?} {input:?}");
        assert!(done.err.contains("option explain: expected a first sentence to draw the search for"), "{}", done.err);
        assert!(!std::path::Path::new(&page).exists());
    }
}

#[test]
fn a_minimum_length_that_a_sentence_cannot_reach_is_its_error() {
    let lines = b"A dog runs.\nA woman in a red coat reads a newspaper in the park.\n";
    let done = run(&["translate", "--format", "jsonl", "--max-length", "1*S", "--min-length", "8"], lines);
    let objects = done.objects();
    assert_eq!((done.code, objects.len()), (Some(1), 2));
    let message = objects[0]["error"]["message"].as_str().expect("an error");
    assert!(message.starts_with("option min-length: expected at most "), "{message}");
    assert!(objects[1]["hypotheses"][0]["text"].is_string());
}

#[test]
fn what_is_said_beside_errors_is_chosen() {
    let said = |args: &[&str]| {
        let done = run(&[&["translate", "--beam-size", "1"], args].concat(), b"A dog runs. </s>\n\xff\n");
        assert_eq!((done.code, done.out.lines().count()), (Some(1), 2), "{args:?}: {}", done.err);
        ["line 2: ", "warning: ", "opened the model in ", "2 sentences, "].map(|part| done.err.contains(part))
    };
    assert_eq!(said(&[]), [true, true, false, false]);
    assert_eq!(said(&["-q"]), [true, false, false, false]);
    assert_eq!(said(&["--verbose"]), [true, true, true, true]);
    assert_eq!(run(&["translate", "-q", "-v"], b"").code, Some(2));
    // In front of the subcommand as well.
    assert!(run(&["-v", "translate", "A dog runs."], b"").err.contains("opened the model in "));
}

#[test]
fn every_shell_gets_completions_and_every_command_its_page() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell], b"").ok().out;
        assert!(script.contains("beamfuse") && script.contains("beam-size"), "{shell}");
    }
    for name in ["translate", "score", "eval", "bench", "diagnose", "info", "train", "validate"] {
        let page = run(&["man", name], b"").ok().out;
        assert!(page.starts_with(".") && page.contains(&format!(".TH beamfuse-{name}")), "{page}");
    }
    assert!(run(&["man"], b"").ok().out.replace('\\', "").contains("beamfuse-translate(1)"));
    assert!(run(&["man", "nosuch"], b"").err.contains("expected one of translate, score, "));
}
