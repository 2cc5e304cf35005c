//! The `bench` subcommand: what it counts, what it writes, what it refuses. Times are not tested.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common;
use crate::common::demo_model;
use serde_json::Value;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamfuse"));
    command.arg("bench").arg("--model").arg(demo_model()).args(["--threads", "1", "--warmup", "0"]);
    command.args(arguments);
    command
}

fn bench(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

fn results(arguments: &[&str]) -> (String, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("results.json");
    let output = bench(&[arguments, &["--json", file.to_str().expect("UTF-8")]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = std::fs::read(file).expect("the results are there");
    (String::from_utf8(output.stdout).expect("UTF-8"), serde_json::from_slice(&json).expect("JSON"))
}

#[test]
fn fixed_lengths_give_translations_of_that_length() {
    let (table, json) = results(&[
        "--lengths",
        "3,6",
        "--batch-size",
        "2,3",
        "--beam-size",
        "1,2",
        "--repeat",
        "2",
        "--sentences",
        "5",
    ]);
    let rows = json["results"].as_array().expect("rows");
    assert_eq!(rows.len(), 8);
    for row in rows {
        let of = |field: &str| row[field].as_u64().unwrap_or_else(|| panic!("{field} in {row}"));
        assert_eq!((of("sentences"), of("tokens"), of("threads")), (5, 5 * of("length"), 1));
        assert_eq!(row["seconds"].as_array().map(Vec::len), Some(2));
        let latency = |name: &str| row["latency_ms"][name].as_f64().expect("a number");
        assert!(0.0 < latency("p50") && latency("p50") <= latency("p90") && latency("p99") <= latency("max"));
        let rates = [&row["sentences_per_second"], &row["tokens_per_second"]].map(|r| r.as_f64().expect("a number"));
        assert!((rates[1] / rates[0] / of("length") as f64 - 1.0).abs() < 1e-9);
    }
    let shapes = |name: &str| rows.iter().map(|row| row[name].as_u64().expect("a number")).collect::<Vec<_>>();
    assert_eq!(shapes("batch_size"), [2, 2, 2, 2, 3, 3, 3, 3]);
    assert_eq!(shapes("beam_size"), [1, 1, 2, 2, 1, 1, 2, 2]);
    assert_eq!(shapes("length"), [3, 6, 3, 6, 3, 6, 3, 6]);
    assert_eq!(table.lines().filter(|line| line.trim_start().starts_with("1  ")).count(), 8, "{table}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_gives_up_the_run_under_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("results.json");
    let arguments = ["--sentences", "100000", "--lengths", "50", "--json", file.to_str().expect("UTF-8")];
    let mut child =
        command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    // Held to the end: writing to a closed pipe would be an error of its own.
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    stdout.read_line(&mut String::new()).expect("a line");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill starts");
    assert!(killed.success());
    let asked = Instant::now();
    let output = child.wait_with_output().expect("the command ends");
    // Hours of work are left; the margin is for busy machines.
    assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(130));
    let said = "beamfuse: interrupted: giving up the measurement; interrupt again to quit at once\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), said);
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn the_file_says_what_was_measured_on_what() {
    let (table, json) = results(&["--sentences", "3", "--batch-size", "2", "--beam-size", "1", "--repeat", "1"]);
    assert!(table.contains("without loading, tokenization"), "{table}");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["results"][0]["length"], Value::Null);
    assert_eq!(json["results"][0]["sentences"], 3);
    // "A man is riding a bike." and the two after it: the tokens of their recorded greedy translations.
    let greedy = common::json_lines("own/hf-greedy.jsonl");
    assert!(json["command"].as_array().is_some_and(|c| c.iter().any(|a| a == "--sentences")));
    assert_eq!((&json["model"]["checkpoint_dtype"], &json["model"]["dtype"]), (&"f16".into(), &"f32".into()));
    assert!(json["machine"]["cores"].as_u64() > Some(0) && json["machine"]["isa"].is_string());
    if cfg!(target_os = "linux") {
        // More than the weights, less than a machine has.
        let bytes = json["peak_memory_bytes"].as_u64().expect("Linux says");
        assert!((30 << 20..8 << 30).contains(&bytes), "{bytes}");
    }
    let tokens: usize = greedy[..3].iter().map(generated).sum();
    assert_eq!(json["results"][0]["tokens"], tokens);
}

/// Tokens of a recorded greedy translation.
fn generated(line: &Value) -> usize {
    line["hypotheses"][0]["token_ids"].as_array().expect("ids").len()
}

#[test]
fn lines_of_a_file_are_measured_without_the_blank_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let input = dir.path().join("input");
    std::fs::write(&input, "Stop!\n\n  \nSnow.\n").expect("a file");
    let input = input.to_str().expect("UTF-8");
    let (_, json) = results(&["--input", input, "--batch-size", "4", "--beam-size", "2", "--repeat", "1"]);
    assert_eq!(json["results"][0]["sentences"], 2);
}

#[test]
fn impossible_shapes_are_refused_before_anything_runs() {
    for (arguments, message) in [
        (vec!["--lengths", "1"], "option lengths: expected 2 to 65536, got 1"),
        (vec!["--lengths", "8,257"], "option lengths: expected at most 256, the model's longest sentence, got 257"),
        (vec!["--beam-size", "4,65"], "option beam-size: expected 1 to 64, got 65"),
        (vec!["--batch-size", "0"], "option batch-size: expected 1 to 4096, got 0"),
        (vec!["--repeat", "0"], "option repeat: expected 1 to 1000, got 0"),
        (vec!["--sentences", "0"], "option sentences: expected 1 to 100000, got 0"),
        (vec!["--input", "/nowhere"], "open /nowhere"),
        (vec!["--input", "/dev/null"], "expected at least one line that is not blank, got none"),
        (vec!["--input", "x", "--lengths", "3"], "cannot be used with"),
    ] {
        let output = bench(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
