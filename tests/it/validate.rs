//! `beamfuse validate`, and `bench --kernels` where there is no GPU.

use std::process::{Command, Output};

use crate::common;
use serde_json::Value;

fn beamfuse(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_beamfuse")).args(arguments).output().expect("the command runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn the_emulated_device_passes_and_the_report_says_what_was_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("validate.json");
    let model = common::demo_model();
    let arguments = ["validate", "--json", file.to_str().expect("a path in UTF-8"), "--lines", "2", "--model"];
    let arguments: Vec<&str> = arguments.into_iter().chain(model.to_str()).collect();
    let output = beamfuse(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).ends_with("all checks passed\n"), "{}", text(&output.stdout));

    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("the report")).expect("JSON");
    assert_eq!((&report["device"], &report["is_real"]), (&Value::from("emulated"), &Value::from(false)));
    let kernels = report["kernels"].as_array().expect("kernels");
    for row in kernels {
        assert!(row["cases"].as_u64() > Some(0) && row["failed"] == 0, "{row}");
        assert_eq!(row["gb_per_second"], Value::Null, "the emulator's times say nothing: {row}");
    }
    for (op, dtype) in [("layer_norm", "f32"), ("layer_norm", "bf16"), ("attention", "f16"), ("beam_step", "f32")] {
        assert!(kernels.iter().any(|row| row["op"] == op && row["dtype"] == dtype), "{op} {dtype}");
    }
    let checks: Vec<&str> =
        report["checks"].as_array().expect("checks").iter().filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(
        checks,
        [
            "row bits f32",
            "row bits f16",
            "row bits bf16",
            "row bits i8",
            "lockstep f32",
            "lockstep f16",
            "lockstep bf16",
            "lockstep i8",
            "lockstep mixed f32",
            "translations f32"
        ]
    );
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn one_kernel_is_checked_without_the_model() {
    let output = beamfuse(&["validate", "--kernel", "embedding"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}{}", text(&output.stderr));
    let checked = |op: &str| shown.lines().filter(|line| line.starts_with(op)).count();
    assert_eq!((checked("embedding "), checked("layer_norm "), checked("lockstep ")), (4, 0, 0), "{shown}");
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let refused = |arguments: &[&str], message: &str| {
        let output = beamfuse(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    };
    refused(&["validate", "--device", "cpu"], "option device: expected cuda, cuda:N or emulated");
    refused(&["validate", "--kernel", "no_such"], "option kernel: expected one of embedding, gate,");
    let meaningless = "option device: expected cuda or cuda:N, the only ones whose kernel times mean anything, got";
    refused(&["bench", "--kernels", "--device", "emulated"], &format!("{meaningless} emulated"));
    refused(&["bench", "--kernels"], &format!("{meaningless} cpu"));
}
