//! What several integration tests need.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

/// The demo model's directory.
pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de")
}

/// A file of recorded data.
pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// A file's lines.
pub fn lines(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(data(path)).expect("the test data is there");
    text.lines().map(str::to_string).collect()
}

/// A file of JSON lines.
pub fn json_lines(path: &str) -> Vec<serde_json::Value> {
    lines(path).iter().map(|line| serde_json::from_str(line).expect("the test data is JSON")).collect()
}
