//! Input lines: plain text or JSON, one sentence each, read with bounded memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::value::RawValue;

use crate::cli::output::json;
use crate::{Error, Result};

/// The longest line that is read; a longer one is an error of its own, and is skipped.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;

/// How a line is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The line is the sentence.
    Text,
    /// The line is a JSON object whose `source` is the sentence.
    Json,
}

/// One line of input.
#[derive(Debug)]
pub(super) struct Line {
    /// Counted from 1.
    pub number: u64,
    /// Its bytes in the input, end of line included.
    pub bytes: u64,
    pub content: Result<Item, BadLine>,
}

/// JSON fields that pass through: in their order, and as they were written, to the last digit.
pub(super) type Fields = IndexMap<String, Box<RawValue>>;

/// A sentence, and the JSON fields that pass through.
#[derive(Debug)]
pub(super) struct Item {
    pub source: String,
    /// The seed of its samples, if it brings one.
    pub seed: Option<u64>,
    /// What its translations start with.
    pub target_prefix: Option<String>,
    /// What it is contrasted with.
    pub contrast_source: Option<String>,
    /// Phrases that its translations contain.
    pub constraints: Vec<String>,
    /// Its own options of search, to be read.
    pub options: Option<Box<RawValue>>,
    pub other: Fields,
}

/// A line that cannot be read.
#[derive(Debug)]
pub(super) struct BadLine {
    /// A short stable name.
    pub kind: &'static str,
    pub message: String,
    /// What could be read of the sentence.
    pub source: Option<String>,
}

/// Where lines come from.
pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    form: Form,
    number: u64,
}

impl Lines {
    /// Opens a file, or standard input for `None` and `-`.
    pub(super) fn open(path: Option<&Path>, form: Form) -> Result<Self> {
        let path = path.unwrap_or(Path::new("-")).to_path_buf();
        let reader: Box<dyn BufRead + Send> = if path.as_os_str() == "-" {
            Box::new(BufReader::new(std::io::stdin()))
        } else {
            let io = |source| Error::Io { operation: "open", path: path.clone(), source };
            let file = File::open(&path).map_err(io)?;
            if file.metadata().map_err(io)?.is_dir() {
                return Err(io(std::io::ErrorKind::IsADirectory.into()));
            }
            Box::new(BufReader::new(file))
        };
        Ok(Lines { path, reader, form, number: 0 })
    }

    /// Texts given on the command line: each is one sentence, even with a line break inside.
    pub(super) fn from_texts(texts: &[String]) -> Result<Self> {
        let line = |text: &String| Ok(json(&serde_json::json!({ "source": text }))? + "\n");
        let joined = texts.iter().map(line).collect::<Result<String>>()?;
        Ok(Lines { path: "-".into(), reader: Box::new(std::io::Cursor::new(joined)), form: Form::Json, number: 0 })
    }

    /// Lines in memory.
    pub(super) fn from_bytes(bytes: Vec<u8>, form: Form) -> Self {
        Lines { path: "-".into(), reader: Box::new(std::io::Cursor::new(bytes)), form, number: 0 }
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        let mut line = Vec::new();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let io = |source| Error::Io { operation: "read", path: self.path.clone(), source };
        let mut bytes = self.reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(io)? as u64;
        if bytes == 0 {
            return Ok(None);
        }
        self.number += 1;
        let content = if bytes == limit && line.last() != Some(&b'\n') {
            bytes += self.reader.skip_until(b'\n').map_err(io)? as u64;
            Err(BadLine {
                kind: "line_too_long",
                message: format!("read line: expected at most {MAX_LINE_BYTES} bytes, got {bytes}"),
                source: None,
            })
        } else {
            parse(line, self.form)
        };
        Ok(Some(Line { number: self.number, bytes, content }))
    }
}

/// Reads all lines of a text file; one that cannot be read fails them all.
pub(super) fn read_all(path: &Path) -> Result<Vec<String>> {
    let mut lines = Lines::open(Some(path), Form::Text)?;
    let mut texts = Vec::new();
    while let Some(Line { number, content, .. }) = lines.next()? {
        let item = content.map_err(|bad| {
            let source =
                std::io::Error::new(std::io::ErrorKind::InvalidData, format!("line {number}: {}", bad.message));
            Error::Io { operation: "read", path: path.to_path_buf(), source }
        })?;
        texts.push(item.source);
    }
    Ok(texts)
}

/// Takes off the end of line and reads the rest.
fn parse(mut line: Vec<u8>, form: Form) -> Result<Item, BadLine> {
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    let text = String::from_utf8(line).map_err(|error| BadLine {
        kind: "utf8",
        message: format!(
            "read line: expected UTF-8, got an invalid byte at offset {}",
            error.utf8_error().valid_up_to()
        ),
        source: Some(String::from_utf8_lossy(error.as_bytes()).into_owned()),
    })?;
    match form {
        Form::Text => Ok(Item {
            source: text,
            seed: None,
            target_prefix: None,
            contrast_source: None,
            constraints: Vec::new(),
            options: None,
            other: Fields::new(),
        }),
        Form::Json => parse_json(&text),
    }
}

fn parse_json(text: &str) -> Result<Item, BadLine> {
    let bad = |message: String, source: Option<String>| BadLine { kind: "json", message, source };
    let mut other: Fields = serde_json::from_str(text)
        .map_err(|error| bad(format!("read line: expected a JSON object, got {error}"), None))?;
    let Some(source) = other.shift_remove("source") else {
        return Err(bad("read line: expected a field \"source\", got none".into(), None));
    };
    let source: String = serde_json::from_str(source.get())
        .map_err(|_| bad(format!("read line: source: expected a string, got {source}"), None))?;
    let seed = match other.get("seed").filter(|value| value.get() != "null") {
        None => None,
        Some(value) => Some(serde_json::from_str(value.get()).map_err(|_| {
            let message = format!("read line: seed: expected an integer of 64 bits, 0 or more, got {value}");
            bad(message, Some(source.clone()))
        })?),
    };
    let text = |field: &str| match other.get(field).filter(|value| value.get() != "null") {
        None => Ok(None),
        Some(value) => serde_json::from_str(value.get())
            .map(Some)
            .map_err(|_| bad(format!("read line: {field}: expected a string, got {value}"), Some(source.clone()))),
    };
    let (target_prefix, contrast_source) = (text("target_prefix")?, text("contrast_source")?);
    let options = other.get("options").filter(|value| value.get() != "null").cloned();
    let constraints = match other.get("constraints").filter(|value| value.get() != "null") {
        None => Vec::new(),
        Some(value) => serde_json::from_str(value.get()).map_err(|_| {
            let message = format!("read line: constraints: expected an array of strings, got {value}");
            bad(message, Some(source.clone()))
        })?,
    };
    Ok(Item { source, seed, target_prefix, contrast_source, constraints, options, other })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], form: Form) -> Vec<Line> {
        let mut lines = Lines::from_bytes(bytes.to_vec(), form);
        std::iter::from_fn(|| lines.next().expect("memory does not fail")).collect()
    }

    #[test]
    fn line_ends_of_both_kinds_are_taken_off_once() {
        let read = lines(b"a\r\nb\r\r\n\nc", Form::Text);
        let sources: Vec<&str> = read.iter().map(|l| l.content.as_ref().unwrap().source.as_str()).collect();
        assert_eq!(sources, ["a", "b\r", "", "c"]);
        assert_eq!(read.iter().map(|l| l.bytes).collect::<Vec<_>>(), [3, 4, 1, 1]);
    }

    #[test]
    fn a_bad_line_leaves_the_next_one_whole() {
        let mut input = vec![b'x'; MAX_LINE_BYTES + 7];
        input.extend(b"\n\xff\xfe\nok\n");
        let read = lines(&input, Form::Text);
        let kinds: Vec<&str> = read.iter().map(|l| l.content.as_ref().err().map_or("ok", |e| e.kind)).collect();
        assert_eq!(kinds, ["line_too_long", "utf8", "ok"]);
        assert_eq!(read.iter().map(|l| l.bytes).sum::<u64>(), input.len() as u64);
        let longest = [vec![b'y'; MAX_LINE_BYTES], vec![b'\n']].concat();
        assert!(lines(&longest, Form::Text)[0].content.is_ok());
    }

    #[test]
    fn json_lines_keep_their_other_fields() {
        let read = lines(br#"{"id": 7, "source": "x", "tags": ["a"]}"#, Form::Json);
        let item = read[0].content.as_ref().unwrap();
        assert_eq!((item.source.as_str(), item.other["id"].get()), ("x", "7"));
        let seeds = br#"{"source": "x", "seed": 18446744073709551615}
{"source": "x", "seed": null}"#;
        let seeds: Vec<_> = lines(seeds, Form::Json).into_iter().map(|l| l.content.unwrap().seed).collect();
        assert_eq!(seeds, [Some(u64::MAX), None]);
        let bad_seeds = [r#"{"source": "x", "seed": -1}"#, r#"{"source": "x", "seed": "1"}"#];
        for bad in ["[1]", "{}", r#"{"source": 3}"#, "{", "", bad_seeds[0], bad_seeds[1]] {
            assert!(lines(format!("{bad}\n").as_bytes(), Form::Json)[0].content.is_err(), "{bad}");
        }
    }

    use proptest::prelude::*;

    /// Bytes as they come, and bytes that are nearly JSON lines.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let fragment = prop_oneof![
            Just(br#"{"source":"#.to_vec()),
            Just(br#""a\\u00e9""#.to_vec()),
            Just(b"}\n".to_vec()),
            Just(b"[[".to_vec()),
            Just(b"-1e999,".to_vec()),
            Just(b"\"\\ud800\"\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..12),
        ];
        proptest::collection::vec(fragment, 0..12).prop_map(|fragments| fragments.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_give_one_result_per_line(bytes in input()) {
            let breaks = bytes.iter().filter(|byte| **byte == b'\n').count();
            let expected = breaks + usize::from(bytes.last().is_some_and(|byte| *byte != b'\n'));
            for form in [Form::Text, Form::Json] {
                let read = lines(&bytes, form);
                prop_assert_eq!(read.len(), expected);
                prop_assert_eq!(read.iter().map(|line| line.bytes).sum::<u64>(), bytes.len() as u64);
            }
        }
    }
}
