//! The program under a limit on its address space: whatever the limit, it translates, or says that there is no memory.

use std::process::{Command, Output};

use crate::common::demo_model;

/// Small allocations of libraries end the process.
const SMALL_BYTES: usize = 64 << 10;

/// Runs the program with at most so many MiB of address space.
fn limited(mib: usize, arguments: &[&str]) -> Output {
    let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", mib * 1024);
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_beamfuse")]).args(arguments);
    command.output().expect("sh runs")
}

/// The limit from which on the program starts at all: below it, the loader cannot map the program and its libraries, whose
/// size depends on what was built in.
fn starts_from_mib() -> usize {
    let starts = |mib: &usize| limited(*mib, &["--version"]).status.success();
    (16..=240).step_by(8).find(starts).expect("the program starts in 240 MiB")
}

/// Whether it gave an answer; panics if it ended otherwise than by one or by a typed error.
fn answers(mib: usize, arguments: &[&str]) -> bool {
    let model = demo_model();
    let arguments = [arguments, &["--model", model.to_str().expect("a path in UTF-8")]].concat();
    let output = limited(mib, &arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {
            assert!(!output.stdout.is_empty(), "{mib} MiB: nothing came");
            true
        }
        Some(1 | 2) => {
            let says = ["free memory", "llocate memory", "thread"].iter().any(|words| complaint.contains(words));
            assert!(says && !complaint.contains("panicked"), "{mib} MiB: {complaint}");
            false
        }
        None if is_small(&complaint) => false,
        other => panic!("{mib} MiB: ended with {other:?}: {complaint}"),
    }
}

/// Whether the process ended for want of a few bytes, or of what the C library and the standard library take for a new thread and for
/// what is dropped at its end.
fn is_small(complaint: &str) -> bool {
    let bytes = complaint.split("memory allocation of ").nth(1).and_then(|rest| rest.split(' ').next());
    let is_few = |bytes: &str| bytes.parse().is_ok_and(|bytes: usize| bytes <= SMALL_BYTES);
    let threads = ["alternative stack", "thread-local", "TLS destructor"];
    bytes.is_some_and(is_few) || threads.iter().any(|words| complaint.contains(words))
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "needs a limit that holds")]
fn too_little_memory_is_an_error_under_every_limit() {
    let one = ["translate", "A dog runs through the snow.", "--threads", "2"];
    let starts = starts_from_mib();
    let fewest: Vec<bool> = (starts..=starts + 200).step_by(8).map(|mib| answers(mib, &one)).collect();
    assert!(!fewest[0], "{starts} MiB were enough");
    assert!(answers(4000, &one));
    // A larger search on more threads, in either type.
    for dtype in ["f32", "i8"] {
        let large =
            ["translate", "A dog.", "--beam-size", "64", "--batch-size", "256", "--threads", "4", "--dtype", dtype];
        (starts..=starts + 800).step_by(80).for_each(|mib| _ = answers(mib, &large));
    }
}

/// What comes last in a diagnosis wants threads of its own.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "needs a limit that holds")]
fn a_diagnosis_with_too_little_memory_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (source, reference) = (file("two.en", "A dog runs.\nA cat.\n"), file("two.de", "Ein Hund.\nEine Katze.\n"));
    let few =
        ["--probe-lines=1", "--sweep-lines=1", "--null-draws=2", "--permutations=4", "--resamples=4", "--threads=1"];
    let whole = [&["diagnose", "--source", &source, "--reference", &reference], &few[..]].concat();
    let starts = starts_from_mib();
    (starts + 100..=starts + 260).step_by(16).for_each(|mib| _ = answers(mib, &whole));
    assert!(answers(4000, &whole));
}
