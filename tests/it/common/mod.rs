//! What several integration tests need.

pub mod command;
#[cfg(feature = "hub")]
pub mod hub_server;
pub mod tiny;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use beamfuse::{DecodeOptions, Translator};
use serde_json::{Value, json};

/// A small T5 that names two tasks, one of which translates from English into German.
pub fn t5_with_tasks() -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families/t5-silu");
    for entry in std::fs::read_dir(from).expect("the test data is there").flatten() {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
    }
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    config["task_specific_params"] = json!({
        "summarization": { "prefix": "summarize: ", "num_beams": 4 },
        "translation_en_to_de": { "prefix": "translate English to German: " },
    });
    std::fs::write(&path, config.to_string()).expect("written");
    copy
}

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

/// The demo model on the CPU.
pub fn translator() -> &'static Translator {
    static TRANSLATOR: OnceLock<Translator> = OnceLock::new();
    TRANSLATOR.get_or_init(|| Translator::open(demo_model()).expect("the demo model opens"))
}

/// Greedy translations of the own lines by the library.
pub fn greedy() -> &'static [String] {
    static GREEDY: OnceLock<Vec<String>> = OnceLock::new();
    GREEDY.get_or_init(|| {
        let options = DecodeOptions::default().with(|o| o.beam_size = 1);
        let sources = lines("own/own.en");
        let translations = translator().translate(&sources, &options).expect("valid options");
        translations.iter().map(|t| t.text().to_string()).collect()
    })
}

/// The text of the own lines.
pub fn own_text() -> String {
    std::fs::read_to_string(data("own/own.en")).expect("the test data is there")
}

/// A line that the demo model's position table does not hold.
pub fn too_long() -> String {
    "dog ".repeat(300)
}
