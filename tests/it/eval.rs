//! The `eval` subcommand: figures equal to sacrebleu's, translating and scoring as one, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{data, demo_model};
use serde_json::Value;

const HYPOTHESES: &str = "metrics/own.beam1.de";
const REFERENCE: &str = "metrics/own.reference.de";

fn eval(arguments: &[&str]) -> Output {
    let command = Command::new(env!("CARGO_BIN_EXE_beamfuse")).arg("eval").args(arguments).output();
    command.expect("the binary runs")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are UTF-8")
}

fn data_path(name: &str) -> String {
    path(&data(name)).to_string()
}

/// Runs with `--format json` and expects success.
fn report(arguments: &[&str]) -> Value {
    let output = eval(&[arguments, &["--format", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The exit code and the text of stderr.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = eval(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it exits by itself"), stderr)
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {value}"))
}

fn expected(name: &str) -> Value {
    let text = fs::read_to_string(data("metrics/expected.json")).expect("the test data is there");
    let all: Value = serde_json::from_str(&text).expect("the test data is JSON");
    all["own"][name].clone()
}

#[track_caller]
fn assert_figures(report: &Value, expected: &Value) {
    for (ours, theirs) in [
        ("/bleu/score", "/bleu"),
        ("/bleu/brevity_penalty", "/brevity_penalty"),
        ("/bleu/precisions/0", "/precisions/0"),
        ("/bleu/precisions/3", "/precisions/3"),
        ("/bleu/hypothesis_tokens", "/hypothesis_tokens"),
        ("/bleu/reference_tokens", "/reference_tokens"),
        ("/chrf2/score", "/chrf"),
        ("/length_ratio/score", "/length_ratio"),
    ] {
        let (ours, theirs) = (number(report, ours), number(expected, theirs));
        assert!((ours - theirs).abs() <= 1e-6, "expected {theirs}, got {ours}: {report}");
    }
    for metric in ["bleu", "chrf2", "length_ratio"] {
        let of = |field: &str| number(&report[metric], field);
        assert!(of("/low") < of("/score") && of("/score") < of("/high"), "{metric}: {report}");
    }
}

#[test]
fn given_translations_score_as_in_sacrebleu() {
    let (hypotheses, reference, english) = (data_path(HYPOTHESES), data_path(REFERENCE), data_path("own/own.en"));
    let one = report(&["--hypotheses", &hypotheses, "--reference", &reference]);
    assert_figures(&one, &expected("corpus"));
    let signature = "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:beamfuse-";
    assert!(one["bleu"]["signature"].as_str().unwrap().starts_with(signature), "{one}");
    assert_eq!((&one["lines"], &one["failed_lines"], &one["copy_rate"]), (&118.into(), &0.into(), &Value::Null));

    let two = report(&["--hypotheses", &hypotheses, "--reference", &reference, "-r", &english, "--resamples", "100"]);
    assert_figures(&two, &expected("with_source_as_second_reference"));
    assert!(two["chrf2"]["signature"].as_str().unwrap().starts_with("nrefs:2|bs:100|seed:12345|"), "{two}");
}

#[test]
fn rates_are_means_over_lines() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| write(dir.path(), name, text);
    let (source, hypotheses) = (file("s", "Tom und ich\nb\n"), file("h", "Tom und du oder\na a a a a\n"));
    let report = report(&["--input", path(&source), "--hypotheses", path(&hypotheses), "-r", path(&hypotheses)]);
    // Of the second line's two 4-grams one stands earlier; of the first line's four tokens two stand in its source.
    assert_eq!((number(&report, "/repetition_rate"), number(&report, "/copy_rate")), (0.25, 0.25));
}

#[test]
fn translating_and_scoring_the_written_translations_agree() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = |name: &str| fs::read_to_string(data(name)).unwrap().lines().take(5).collect::<Vec<_>>().join("\n");
    let (source, reference) = (write(dir.path(), "s", &first("own/own.en")), write(dir.path(), "r", &first(REFERENCE)));
    let written = dir.path().join("h");
    let (source, reference, written) = (path(&source), path(&reference), path(&written));
    let model = demo_model();
    let search = ["--model", path(&model), "--batch-size", "2", "--beam-size", "2", "--output", written];
    let translated = report(&[&["--input", source, "--reference", reference][..], &search].concat());
    let scored = report(&["--input", source, "--reference", reference, "--hypotheses", written]);
    assert_eq!(translated, scored);
    assert_eq!(fs::read_to_string(written).unwrap().lines().next(), Some("Ein Mann fährt Fahrrad."));
}

#[test]
fn a_line_that_cannot_be_translated_counts_as_empty() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = write(dir.path(), "s", &format!("Stop!\n{}\nSnow.\n", "A dog runs. ".repeat(300)));
    let reference = write(dir.path(), "r", "Halt!\nEin Hund läuft.\nSchnee.\n");
    let (model, out) = (demo_model(), dir.path().join("o"));
    let output = eval(&["--model", path(&model), "-i", path(&source), "-r", path(&reference), "-o", path(&out)]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("line 2: encode source: expected at most 256 tokens"), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("failed        1, counted as empty"));
    assert_eq!(fs::read_to_string(out).unwrap().lines().map(str::is_empty).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn a_comparison_gives_the_difference_to_the_other_system() {
    let dir = tempfile::tempdir().expect("a directory");
    let reference = data_path(REFERENCE);
    // The baseline leaves the last word of every line out.
    let shorter = |line: &str| line.rsplit_once(' ').map_or("", |(rest, _)| rest).to_string();
    let text = fs::read_to_string(data(HYPOTHESES)).unwrap();
    let baseline = write(dir.path(), "b", &text.lines().map(shorter).collect::<Vec<_>>().join("\n"));
    let hypotheses = data_path(HYPOTHESES);
    let both = ["--hypotheses", &hypotheses, "-r", &reference, "--compare"];
    let better = report(&[&both[..], &[path(&baseline)]].concat());
    let other = report(&["--hypotheses", path(&baseline), "-r", &reference]);
    for metric in ["bleu", "chrf2"] {
        let found = &better["comparison"][metric];
        let of = |field: &str| number(found, field);
        let difference = number(&better[metric], "/score") - number(&other[metric], "/score");
        // What parsing JSON may round.
        let same = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(difference > 1.0 && same(of("/difference"), difference), "{metric}: {better}");
        assert!(same(of("/baseline_score"), number(&other[metric], "/score")), "{metric}: {better}");
        assert!(0.0 < of("/low") && of("/low") < of("/high") && of("/p_value") < 0.01, "{metric}: {better}");
    }
    let same = eval(&[&both[..], &[&hypotheses]].concat());
    let stdout = String::from_utf8_lossy(&same.stdout).into_owned();
    assert!(stdout.contains("BLEU        +0.00 [+0.00, +0.00]  from 84.63, the same on every resample"), "{stdout}");
}

#[test]
fn files_that_do_not_fit_together_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| write(dir.path(), name, text);
    let (two, three, none) = (file("two", "a\nb\n"), file("three", "a\nb\nc\n"), file("none", ""));
    let bytes = dir.path().join("bytes");
    fs::write(&bytes, b"a\n\xff\n").expect("a file");
    let (two, three, none, bytes) = (path(&two), path(&three), path(&none), path(&bytes));
    for (arguments, message) in [
        (vec!["--hypotheses", two, "-r", three], format!("expected 2 lines in {three} as in {two}, got 3")),
        (vec!["--input", two, "-r", two, "-r", three], format!("expected 2 lines in {three} as in {two}, got 3")),
        (vec!["--hypotheses", two, "-r", two, "--compare", three], format!("expected 2 lines in {three}")),
        (vec!["--hypotheses", none, "-r", none], format!("expected at least one line in {none}, got none")),
        (vec!["--hypotheses", two, "-r", bytes], format!("read {bytes}: line 2: read line: expected UTF-8")),
        (vec!["--hypotheses", "/nowhere", "-r", two], "open /nowhere".into()),
        (
            vec!["--hypotheses", two, "-r", two, "--resamples", "0"],
            "option resamples: expected 1 to 100000, got 0".into(),
        ),
        (vec!["--input", two, "-r", two, "-o", two], "option output: expected a file other than the input".into()),
        (vec!["--input", three, "-r", three, "--output", three], "option output".into()),
    ] {
        let (code, stderr) = failure(&arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(&message), "{arguments:?}: {stderr}");
    }
    assert_eq!(fs::read_to_string(two).unwrap(), "a\nb\n");
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let hypotheses = data_path(HYPOTHESES);
    for option in [["--beam-size", "2"], ["--model", "x"], ["--threads", "2"], ["--output", "x"]] {
        let (code, stderr) = failure(&[&["--hypotheses", &hypotheses, "-r", &hypotheses][..], &option].concat());
        assert!(code == 2 && stderr.contains("cannot be used with"), "{option:?}: {stderr}");
    }
    assert_eq!(failure(&["-r", &hypotheses]).0, 2);
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("a file can be written");
    path
}
