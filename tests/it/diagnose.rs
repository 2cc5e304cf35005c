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
    let (source, reference) = (
        write(dir.path(), "s", &head("own/own.en", 12)),
        write(dir.path(), "r", &head("metrics/own.reference.de", 12)),
    );
    let model = demo_model();
    let run = |name: &str, batch: &str| {
        let files = ["json", "csv", "html"].map(|kind| dir.path().join(format!("{name}.{kind}")));
        let plots = dir.path().join(name);
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
            "12",
            "--json",
            text(&files[0]),
            "--csv",
            text(&files[1]),
            "--html",
            text(&files[2]),
            "--plots",
            text(&plots),
            "--null-draws",
            "2",
            "--permutations",
            "19",
            "--resamples",
            "40",
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let [json, csv, html] = files.map(|file| fs::read_to_string(file).expect("a file was written"));
        // The command is what the two differ in.
        let mut json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let command = json["provenance"]["command"].take();
        assert!(command.as_array().is_some_and(|words| words.iter().any(|word| word == batch)), "{command}");
        let csv: String = csv
            .lines()
            .filter(|line| !line.starts_with("provenance,command,"))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut plots: Vec<(String, Vec<u8>)> = fs::read_dir(plots)
            .expect("a directory of plots")
            .map(|entry| entry.expect("a file"))
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a plot")))
            .collect();
        plots.sort();
        (String::from_utf8(output.stdout).expect("UTF-8"), json, csv, html, plots)
    };
    let all = run("a", "4");
    assert_eq!(run("b", "3"), all);
    let (shown, report, csv, html, plots) = all;
    let json = report.to_string();
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
        "own minus gold accuracy",
        "first rise",
        "area",
        "half-life",
        "prefix-switch ratio",
        "distractor gap",
        "BLEU",
        "BLEU, greedy",
        "chrF2",
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
    // Twelve lines get numbers and no verdict.
    let verdict = &report["verdict"];
    assert!(verdict["withheld"].as_str().is_some_and(|why| why.contains("12 lines are too few")), "{verdict}");
    assert_eq!(verdict["findings"].as_array().map(Vec::len), Some(0));
    assert!(shown.contains("too few for a verdict") && !shown.contains("FOUND"), "{shown}");
    // What references have a part in is compared with the null, and with the plain one.
    let area = report["figures"].as_array().and_then(|all| all.iter().find(|f| f["name"] == "area")).expect("a figure");
    for part in ["null", "null_at_1", "difference"] {
        assert!(area[part]["value"].as_f64().is_some(), "{part}: {area}");
    }
    let null = &report["setup"]["null"];
    let [gold, sampled] = ["nll", "sampled_nll"].map(|name| null[name].as_f64().expect("a number"));
    assert!((gold - sampled).abs() < 0.7 && null["draws"] == 2, "{null}");
    // The record says what was run, on what.
    let files = report["provenance"]["files"].as_array().expect("digests");
    let digest = |of: &str| files.iter().find(|file| file["of"] == of).expect("a digest")["sha256"].to_string();
    assert!(digest("source").len() == 66 && digest("source") != digest("reference"));
    assert_eq!(report["provenance"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(csv.lines().filter(|line| line.starts_with("sweep,bleu,")).count(), 18);
    let mut keys: Vec<String> = csv.lines().map(csv_key).collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count, "keys of {csv}");
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(html.matches("<svg").count() >= 15 && html.contains("prefers-color-scheme: dark"));
    // Nothing from outside: the only address is the name of SVG.
    assert_eq!(html.matches("http").count(), html.matches("http://www.w3.org/2000/svg").count());
    // Each chart stands alone, too, as an SVG and as a PDF.
    let of_kind = |kind: &str| plots.iter().filter(|(name, _)| name.ends_with(kind)).collect::<Vec<_>>();
    let (svgs, pdfs) = (of_kind(".svg"), of_kind(".pdf"));
    assert_eq!(
        (svgs.len(), pdfs.len(), plots.len()),
        (plots.len() / 2, plots.len() / 2, 2 * html.matches("<svg").count())
    );
    for (name, svg) in svgs {
        let svg = std::str::from_utf8(svg).expect("UTF-8");
        assert!(svg.starts_with("<?xml") && !svg.contains("var("), "{name}");
    }
    for (name, pdf) in pdfs {
        assert!(pdf.starts_with(b"%PDF-1") && pdf.trim_ascii_end().ends_with(b"%%EOF"), "{name}");
    }
    for kind in ["svg", "pdf"] {
        let name = format!("own-minus-gold-accuracy-by-share-of-the-sentence.{kind}");
        assert!(plots.iter().any(|(other, _)| *other == name), "{name}");
    }
}

/// The first four cells of a line, as they stand; quotes may hold commas.
fn csv_key(line: &str) -> String {
    let (mut cells, mut quoted) = (0, false);
    let end = line.char_indices().find(|(_, c)| {
        quoted ^= *c == '"';
        cells += usize::from(*c == ',' && !quoted);
        cells == 4
    });
    line[..end.map_or(line.len(), |(at, _)| at)].to_owned()
}

#[test]
fn a_verdict_needs_lines_and_names_what_greedy_search_cannot_tell() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = write(dir.path(), "s", &head("own/own.en", 110));
    let reference = write(dir.path(), "r", &head("metrics/own.reference.de", 110));
    let amateur = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de-amateur");
    let json = dir.path().join("json");
    let small =
        ["--sweep-lines", "1", "--probe-lines", "40", "--null-draws", "2", "--permutations", "99", "--resamples", "99"];
    let fixed = ["-s", text(&source), "-r", text(&reference), "--model", text(&amateur), "--json", text(&json)];
    let output = diagnose(&[&fixed[..], &small, &["--beam-size", "1"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).expect("a file")).expect("JSON");
    let verdict = &report["verdict"];
    assert!(verdict["withheld"].is_null(), "{verdict}");
    let findings = verdict["findings"].as_array().expect("findings");
    assert!(findings.len() >= 4, "{verdict}");
    for finding in findings {
        let holds = finding["holds"].as_bool().expect("yes or no");
        assert_eq!(finding["next"].is_string(), holds, "{finding}");
        assert!(finding["seen"]["difference"]["low"].as_f64().is_some(), "{finding}");
    }
    assert!(verdict["not_tested"].to_string().contains("beam search against greedy: n/a"), "{verdict}");
    let gain = |f: &&serde_json::Value| f["name"] == "BLEU gain over greedy";
    let gain = report["figures"].as_array().and_then(|all| all.iter().find(gain)).expect("a figure");
    assert!(gain["value"].is_null() && gain["note"].as_str().is_some_and(|note| note.contains("n/a")), "{gain}");
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
        "--null-draws",
        "2",
        "--permutations",
        "19",
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
    assert!(points[0]["value"].as_f64().is_some_and(|excess| excess.abs() < 1e-9), "{curve}");
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
        "--null-draws",
        "2",
        "--permutations",
        "19",
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
