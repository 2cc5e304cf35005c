//! The command on a GPU, which here is the fake driver (`kernels/host/fake/`), through the real device layer.
#![cfg(fake_driver)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::common;

/// What a command on the fake driver came to.
struct Run {
    output: std::process::Output,
    /// Rules that were broken.
    broken: String,
    /// Calls by name.
    counts: BTreeMap<String, u64>,
}

fn on_the_fake_driver(command: &mut Command) -> Run {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, counts) = (dir.path().join("log"), dir.path().join("counts"));
    command.env("LD_LIBRARY_PATH", env!("BEAMFUSE_FAKE_DRIVER"));
    command.env("FAKE_CUDA_LOG", &log).env("FAKE_CUDA_COUNTS", &counts);
    let output = command.output().expect("it starts");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let count = |line: &str| {
        let (name, number) = line.rsplit_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    let counts = read(&counts).lines().filter_map(count).collect();
    Run { output, broken: read(&log), counts }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const LINES: [&str; 4] =
    ["A dog runs on the beach.", "Two men sleep.", "A child.", "A woman in a red dress reads a book."];

fn translate(device: &str, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamfuse"));
    command.args(["translate", "--device", device, "--format", "jsonl", "--model"]).arg(common::demo_model());
    command.args(extra).args(LINES);
    command
}

#[test]
fn a_gpu_gives_what_the_emulated_device_gives() {
    // The emulated device multiplies by a plain loop, the driver by the kernels: in slices, or with fused additions.
    for (extra, apart) in [(&["--dtype", "f32"][..], 1e-4), (&["--dtype", "bf16", "--beam-size", "2"], 0.05)] {
        let run = on_the_fake_driver(&mut translate("cuda:0", extra));
        assert!(run.output.status.success(), "{}", text(&run.output.stderr));
        assert_eq!(run.broken, "");
        let emulated = translate("emulated", extra).output().expect("it starts");
        let best = |output: &[u8]| -> Vec<(String, f64)> {
            let hypothesis = |line: &str| {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                let best = &line["hypotheses"][0];
                (best["token_ids"].to_string(), best["score"].as_f64().expect("a score"))
            };
            text(output).lines().map(hypothesis).collect()
        };
        let (on_driver, emulated) = (best(&run.output.stdout), best(&emulated.stdout));
        assert!(on_driver.len() == LINES.len() && emulated.len() == LINES.len(), "{extra:?}");
        for ((tokens, score), (same_tokens, close)) in on_driver.iter().zip(&emulated) {
            assert!(
                tokens == same_tokens && (score - close).abs() <= apart,
                "{extra:?}: {tokens} {score}, {same_tokens} {close}"
            );
        }
    }
}

/// How often the driver is called while four sentences are translated, per replayed step and per finished sentence.
#[test]
fn steps_are_replayed_and_a_finished_sentence_is_one_copy() {
    let run = on_the_fake_driver(&mut translate("cuda:0", &["--dtype", "f32"]));
    assert!(run.output.status.success(), "{}", text(&run.output.stderr));
    let count = |name: &str| run.counts.get(name).copied().unwrap_or(0);
    let steps = count("cuGraphLaunch");
    assert!(steps > 5, "{:?}", run.counts);
    // A step's live slots, and each sentence's record.
    assert!(count("cuMemcpyDtoHAsync_v2") <= steps + 8 + LINES.len() as u64, "{:?}", run.counts);
    // The pool keeps what is freed.
    assert_eq!(count("pool releases"), 0, "{:?}", run.counts);
}

/// `benches/gpu.sh` in all its phases, with sizes that the fake driver can bear; what is done is not done again.
#[test]
fn the_script_for_a_borrowed_machine_runs_through() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu.sh");
    let rehearse = |phases: &[&str]| {
        let mut command = Command::new("bash");
        command.arg(&script).args(phases).env("TINY", "1").env("OUT", dir.path()).env("JOBS", "2");
        // The smaller one of the two: emulated tensor cores take their time.
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de-amateur");
        command.env("BINARY", env!("CARGO_BIN_EXE_beamfuse")).env("MODEL", model);
        on_the_fake_driver(&mut command)
    };
    let phases = ["0", "1", "4", "5"];
    let run = rehearse(&phases);
    assert!(run.output.status.success(), "{}{}", text(&run.output.stdout), text(&run.output.stderr));
    assert_eq!(run.broken, "");
    let read = |name: &str| {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
    };
    let algorithms = read("0-algorithms.json");
    assert_eq!(algorithms["complete"], true);
    assert!(algorithms["checks"][0]["algorithms"].to_string().contains("rows by"), "{algorithms}");
    assert_eq!(read("1-layer_norm.json")["kernels"][0]["failed"], 0);
    assert_eq!(read("0-translate-f32.jsonl")["hypotheses"].as_array().map(Vec::len), Some(1));
    assert!(dir.path().join("4-fixed-bf16-2.json").is_file() && dir.path().join("5-lines-own-1.json").is_file());
    // A second start finds all done, and calls the driver for nothing.
    let again = rehearse(&phases);
    assert!(again.output.status.success() && again.counts.is_empty(), "{}", text(&again.output.stdout));
}
