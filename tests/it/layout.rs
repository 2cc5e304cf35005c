//! The architecture, held by a test: which module may import which, and where `unsafe` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate and the modules it may name.
const MAY_IMPORT: [(&str, &[&str]); 27] = [
    ("error", &[]),
    ("threads", &["error"]),
    ("shares", &["threads"]),
    ("read", &["error", "files"]),
    ("check", &[]),
    ("counts", &["error"]),
    ("files", &["error"]),
    ("input", &["error"]),
    ("batch", &["error", "files", "input"]),
    ("backend", &["error"]),
    ("cpu", &["error", "check", "threads", "shares", "backend"]),
    ("cuda", &["error", "check", "backend"]),
    ("text", &["error", "read"]),
    ("metrics", &["error", "counts"]),
    ("hub", &["error", "files", "read"]),
    ("plot", &[]),
    ("model", &["error", "files", "read", "shares", "backend"]),
    ("decode", &["error", "counts", "threads", "backend", "metrics", "model"]),
    ("translator", &["error", "counts", "files", "backend", "cpu", "cuda", "text", "metrics", "model", "decode"]),
    ("document", &["error", "text", "decode", "translator"]),
    (
        "train",
        &[
            "error",
            "threads",
            "counts",
            "files",
            "read",
            "input",
            "backend",
            "cpu",
            "text",
            "model",
            "decode",
            "translator",
            "metrics",
            "plot",
        ],
    ),
    ("diagnose", &["error", "threads", "counts", "backend", "cpu", "model", "decode", "translator", "metrics", "plot"]),
    ("jsonl", &["error", "text", "decode", "translator"]),
    ("explain", &["error", "text", "decode", "translator"]),
    ("serve", &["error", "counts", "text", "decode", "translator", "jsonl", "explain", "document"]),
    ("validate", &["error", "check", "backend", "cpu", "cuda", "text", "model", "decode", "translator"]),
    (
        "cli",
        &[
            "error",
            "threads",
            "batch",
            "counts",
            "files",
            "input",
            "hub",
            "backend",
            "cpu",
            "text",
            "model",
            "decode",
            "translator",
            "metrics",
            "plot",
            "jsonl",
            "explain",
            "validate",
            "train",
            "diagnose",
            "document",
            "serve",
        ],
    ),
];

/// The only places for `unsafe`, as paths or their beginnings under `src/`.
const MAY_BE_UNSAFE: [&str; 5] = ["cli/train/allocator.rs", "cpu/gemm", "cpu/simd", "cuda/", "main.rs"];

/// What the crate's root re-exports, and from where.
const RE_EXPORTS: [(&str, &str); 25] = [
    ("ContrastiveForm", "backend"),
    ("Bans", "decode"),
    ("Overrides", "decode"),
    ("Sentence", "translator"),
    ("Dtype", "backend"),
    ("Error", "error"),
    ("Result", "error"),
    ("Canceller", "decode"),
    ("DecodeOptions", "decode"),
    ("Hypothesis", "decode"),
    ("LengthPenalty", "decode"),
    ("MaxLength", "decode"),
    ("Preset", "decode"),
    ("Priority", "decode"),
    ("Progress", "decode"),
    ("Stop", "decode"),
    ("Terms", "decode"),
    ("Device", "translator"),
    ("DeviceChoice", "translator"),
    ("EngineOptions", "translator"),
    ("Score", "translator"),
    ("TextHypothesis", "translator"),
    ("Translation", "translator"),
    ("TranslationHandle", "translator"),
    ("Translator", "translator"),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src can be listed") {
        let path = entry.expect("src can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Source files as (path under src, text without comments).
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    assert!(paths.len() > 20, "found {} files only", paths.len());
    let strip = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("sources are text");
        let code = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
        (path.strip_prefix(&root).expect("under src").to_string_lossy().into_owned(), code)
    };
    paths.into_iter().map(strip).collect()
}

/// The code before unit tests, which may reach further; files of tests have none.
fn without_tests<'a>(path: &str, code: &'a str) -> &'a str {
    if path.ends_with("tests.rs") || path.contains("/tests/") {
        return "";
    }
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or("")
}

/// The names that follow `crate::` anywhere in the code, groups opened up.
fn imports(code: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let after = &code[at + "crate::".len()..];
        match after.strip_prefix('{') {
            None => names.push(name(after)),
            Some(group) => {
                let mut depth = 0;
                let mut item = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(name(std::mem::take(&mut item).trim())),
                        _ => {}
                    }
                    if c != ',' || depth > 0 {
                        item.push(c);
                    }
                }
                names.push(name(item.trim()));
            }
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

fn module(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap_or(path)
}

#[test]
fn imports_go_down_only() {
    let mut seen = 0;
    for (path, code) in files() {
        let own = module(&path);
        if ["lib", "main"].contains(&own) {
            continue;
        }
        let (_, allowed) = *MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == own)
            .unwrap_or_else(|| panic!("src/{path}: the module {own} has no place in the layout"));
        for name in imports(without_tests(&path, &code)) {
            let target = RE_EXPORTS.iter().find(|(item, _)| *item == name).map_or(name.as_str(), |(_, from)| from);
            assert!(target == own || allowed.contains(&target), "src/{path}: {own} may not import {target} ({name})");
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} imports found: the search is broken");
}

#[test]
fn unsafe_stands_where_it_may() {
    let mut seen = 0;
    for (path, code) in files() {
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let count = words.filter(|word| *word == "unsafe").count();
        let allowed = MAY_BE_UNSAFE.iter().any(|place| path.starts_with(place));
        assert!(count == 0 || allowed, "src/{path}: unsafe has no place here");
        seen += count;
    }
    assert!(seen > 0, "no unsafe found at all: the search is broken");
}

#[test]
fn the_import_search_reads_groups() {
    let code = "use crate::{Error, model::{config, weights}, cpu};\nlet x = crate::text::f();";
    assert_eq!(imports(code), ["Error", "model", "cpu", "text"]);
}
