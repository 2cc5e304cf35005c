//! `beamfuse diagnose` from files to report: every metric once, the same bytes again, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{data, demo_model};

fn diagnose(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamfuse"));
    command.arg("diagnose").args(arguments).output().expect("beamfuse runs")
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("a file can be written");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn head(name: &str, lines: usize) -> String {
    let all = fs::read_to_string(data(name)).expect("test data");
    all.lines().take(lines).map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_metric_is_there_and_the_same_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, reference) =
        (write(dir.path(), "s", &head("own/own.en", 6)), write(dir.path(), "r", &head("metrics/own.reference.de", 6)));
    let model = demo_model();
    let run = |name: &str, batch: &str| {
        let files = ["json", "csv", "html"].map(|kind| dir.path().join(format!("{name}.{kind}")));
        let output = diagnose(&[
            "--source",
            text(&source),
            "--reference",
            text(&reference),
            "--model",
            text(&model),
            "--oracle",
            text(&model),
            "--batch-size",
            batch,
            "--sweep-lines",
            "2",
            "--probe-lines",
            "3",
            "--json",
            text(&files[0]),
            "--csv",
            text(&files[1]),
            "--html",
            text(&files[2]),
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let written = files.map(|file| fs::read_to_string(file).expect("a file was written"));
        (String::from_utf8(output.stdout).expect("UTF-8"), written)
    };
    let (shown, [json, csv, html]) = run("a", "4");
    assert_eq!(run("b", "3"), (shown.clone(), [json.clone(), csv.clone(), html.clone()]));

    let report: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let figure = |name: &str| {
        let figures = report["figures"].as_array().expect("figures");
        let found = figures.iter().find(|figure| figure["name"] == name).unwrap_or_else(|| panic!("no {name}: {json}"));
        found["value"].as_f64().unwrap_or_else(|| panic!("{name} is no number: {found}"))
    };
    for name in [
        "negative log-likelihood",
        "accuracy",
        "entropy",
        "aligned accuracy, greedy",
        "slope gap, search",
        "first rise",
        "area",
        "half-life",
        "prefix-switch ratio",
        "distractor gap",
        "BLEU",
        "BLEU, greedy",
        "length ratio",
        "log P(empty)",
        "rep-4",
        "loops",
        "flagged lines",
        "calibration error, gold prefix",
        "calibration error, own prefix",
    ] {
        assert!(figure(name).is_finite(), "{name}");
    }
    // A model is its own oracle: it disagrees with itself on no prefix, so that there is no ratio.
    let excess = |f: &&serde_json::Value| f["name"] == "excess accumulated error, %";
    let found = report["figures"].as_array().and_then(|all| all.iter().find(excess)).expect("a figure");
    assert!(found["value"].is_null(), "{found}");
    assert!(figure("distractor gap") > 1.0 && figure("first rise") > 0.0 && figure("accuracy") > 0.3);
    assert_eq!(report["sweep"].as_array().map(Vec::len), Some(18));
    assert_eq!(report["verdict"]["findings"].as_array().map(Vec::len), Some(7));
    assert_eq!(csv.lines().filter(|line| line.starts_with("sweep,bleu,")).count(), 18);
    assert!(csv.lines().all(|line| line.contains("flag") || line.matches(',').count() >= 7), "{csv}");
    assert!(shown.contains("verdict") && shown.contains("prefix-switch ratio"), "{shown}");
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(html.matches("<svg").count() >= 15 && html.contains("prefers-color-scheme: dark"));
    // Nothing from outside: the only address is the name of SVG.
    assert_eq!(html.matches("http").count(), html.matches("http://www.w3.org/2000/svg").count());
}

#[test]
fn excess_error_is_measured_against_another_model_with_the_same_pieces() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = write(dir.path(), "s", &head("own/own.en", 12));
    let reference = write(dir.path(), "r", &head("metrics/own.reference.de", 12));
    let amateur = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de-amateur");
    let json = dir.path().join("json");
    let output = diagnose(&[
        "-s",
        text(&source),
        "-r",
        text(&reference),
        "--model",
        text(&amateur),
        "--oracle",
        text(&demo_model()),
        "--sweep-lines",
        "1",
        "--json",
        text(&json),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).expect("a file")).expect("JSON");
    let all = |key: &str| report[key].as_array().expect("a list").clone();
    let figure = |name: &str| {
        let found = all("figures").into_iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        ["low", "value", "high"].map(|part| found[part].as_f64().expect("a number"))
    };
    // The curve ends in the figure, whose interval holds it.
    let [low, excess, high] = figure("excess accumulated error, %");
    assert!(low <= excess && excess <= high && low < high, "{low} {excess} {high}");
    let curve = all("curves").into_iter().find(|curve| curve["name"] == "excess error").expect("a curve");
    let points = curve["series"][0]["points"].as_array().expect("points");
    assert!(points.len() > 5 && points[points.len() - 1]["value"].as_f64() == Some(excess), "{curve}");
    // Both read the start token alone at first, so that nothing is in excess there.
    assert_eq!(points[0]["value"].as_f64(), Some(0.0), "{curve}");
    assert!(figure("slope of excess error, %")[1].is_finite());
}

#[test]
fn files_that_cannot_be_diagnosed_are_refused_before_any_work() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| write(dir.path(), name, text);
    let (two, three, blank, none) = (
        file("two", "A dog runs.\nTwo cats sleep.\n"),
        file("three", "a\nb\nc\n"),
        file("blank", "Ein Hund läuft.\n\n"),
        file("none", ""),
    );
    let long = file("long", &format!("Ein Hund.\n{}\n", "Ein Hund läuft. ".repeat(200)));
    let (two, three, blank, none, long) = (text(&two), text(&three), text(&blank), text(&none), text(&long));
    let page = dir.path().join("page");
    for (arguments, message) in [
        (vec!["-s", two, "-r", three], format!("expected 2 lines in {three} as in {two}, got 3")),
        (vec!["-s", none, "-r", none], format!("expected at least one line in {none}, got none")),
        (vec!["-s", two, "-r", blank], "got line 2: the reference is empty".to_owned()),
        (vec!["-s", two, "-r", long], "got line 2: the reference has".to_owned()),
        (vec!["-s", two, "-r", two, "--html", two], "option html: expected a file other than the source".to_owned()),
        (
            vec!["-s", two, "-r", two, "--sweep-lines", "0"],
            "option sweep-lines: expected 1 to 1000000, got 0".to_owned(),
        ),
        (vec!["-s", two, "-r", two, "--oracle", "/nowhere"], "/nowhere".to_owned()),
    ] {
        let model = demo_model();
        let output = diagnose(&[&arguments[..], &["--model", text(&model)]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(&message) && !stderr.contains("teacher-forced"), "{arguments:?}: {stderr}");
    }
    assert!(!page.exists());
}

#[test]
fn bad_lines_are_left_out_where_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = write(dir.path(), "s", "A dog runs.\nTwo cats sleep.\nA man is riding a bike.\n");
    let reference = write(dir.path(), "r", "Ein Hund läuft.\n\nEin Mann fährt Fahrrad.\n");
    let (model, json) = (demo_model(), dir.path().join("json"));
    let output = diagnose(&[
        "-s",
        text(&source),
        "-r",
        text(&reference),
        "--model",
        text(&model),
        "--skip-bad",
        "--sweep-lines",
        "1",
        "--json",
        text(&json),
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("left out: line 2: the reference is empty"), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).expect("a file")).expect("JSON");
    assert_eq!(
        (report["setup"]["lines"].as_u64(), report["setup"]["skipped"][0].as_str()),
        (Some(2), Some("line 2: the reference is empty"))
    );
}
