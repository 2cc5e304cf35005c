//! The device layer on the fake driver (`kernels/host/fake/`): this program runs itself again, with the double of libcuda first on
//! the loader's path.

mod machines;
mod planted;
mod streams;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where build.rs put the double.
pub(super) const FAKE: &str = env!("BEAMFUSE_FAKE_DRIVER");

/// What a run on the fake driver came to.
#[derive(Debug)]
pub(super) struct Run {
    passed: bool,
    output: String,
    /// The rules that were broken, a line each.
    broken: Vec<String>,
    /// Calls by name, and what else the driver counts.
    counts: BTreeMap<String, u64>,
}

/// Whether this process runs on the fake driver.
fn is_child() -> bool {
    std::env::var_os("FAKE_CUDA_LOG").is_some()
}

/// Runs ignored tests of this program, by their full names, with a loader's path and settings of the driver.
fn run_with(libraries: &Path, settings: &str, tests: &[String]) -> Run {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, counts) = (dir.path().join("log"), dir.path().join("counts"));
    let output = Command::new(std::env::current_exe().expect("this program's path"))
        .args(["--ignored", "--exact", "--nocapture"])
        .args(tests)
        .env("LD_LIBRARY_PATH", libraries)
        .env("FAKE_CUDA", settings)
        .env("FAKE_CUDA_LOG", &log)
        .env("FAKE_CUDA_COUNTS", &counts)
        .output()
        .expect("this program starts");
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let count = |line: &str| {
        let (name, number) = line.rsplit_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    Run {
        passed: output.status.success(),
        output: String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        broken: read(&log).lines().map(str::to_owned).collect(),
        counts: read(&counts).lines().filter_map(count).collect(),
    }
}

/// As [`run_with`], with the double.
fn run(settings: &str, tests: &[String]) -> Run {
    run_with(Path::new(FAKE), settings, tests)
}

/// The tests of kernels that a GPU would run, every second one from `first` on.
fn device_tests(first: usize) -> Vec<String> {
    let listed = Command::new(std::env::current_exe().expect("this program's path"))
        .args(["--list", "--ignored", "--format", "terse"])
        .output()
        .expect("this program starts");
    let listed = String::from_utf8(listed.stdout).expect("names");
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let names: Vec<String> = names.filter(|name| name.ends_with("::gpu")).map(str::to_owned).collect();
    assert!(names.len() > 40, "{names:?}");
    names.into_iter().skip(first).step_by(2).collect()
}

fn check_device_tests(first: usize) {
    let names = device_tests(first);
    let run = run("", &names);
    assert!(run.passed, "{}", run.output);
    assert!(run.broken.is_empty(), "{:#?}", run.broken);
    assert!(run.output.contains(&format!("{} passed", names.len())), "{}", run.output);
    // What was called is what was asked for before it was called.
    let calls = run.counts.keys().filter(|name| name.starts_with("cu"));
    for call in calls {
        assert!(super::requirements::DRIVER_SYMBOLS.contains(&call.as_str()), "{call} is not in DRIVER_SYMBOLS");
    }
}

#[test]
fn device_tests_pass_on_the_fake_driver() {
    check_device_tests(0);
}

#[test]
fn the_other_device_tests_pass_on_the_fake_driver() {
    check_device_tests(1);
}
