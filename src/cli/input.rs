//! Input lines: plain text, JSON or TSV, one sentence each, read with bounded memory.

mod parse;

use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::input::{self, TextReader};
use crate::jsonl::{BadLine, json};
use crate::{Error, Result};
pub(super) use parse::Item;
use parse::parse;

/// The longest line that is read; a longer one is an error of its own, and is skipped.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;

/// What input looks like, as the command line says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum InputFormat {
    /// JSON lines if --format is jsonl and the first line that is not blank is a JSON object, else text.
    #[default]
    Auto,
    /// One sentence per line.
    Text,
    /// A JSON object per line.
    Jsonl,
    /// Columns between tabs.
    Tsv,
    /// All of the input is one HTML document, which "translate" alone takes.
    Html,
}

/// How lines are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The line is the sentence.
    Text,
    /// The line is a JSON object whose `source` is the sentence.
    Json,
    /// The first column is the sentence; further columns are kept beside it.
    Tsv,
    /// All of the input is one document.
    Html,
    /// JSON if the first line that is not blank begins as a JSON object does, else this other form.
    Detect(Plain),
}

/// A form without fields of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    Text,
    Tsv,
}

impl From<Plain> for Form {
    fn from(plain: Plain) -> Self {
        match plain {
            Plain::Text => Form::Text,
            Plain::Tsv => Form::Tsv,
        }
    }
}

/// One line of input, or all of it where that is one document.
#[derive(Debug)]
pub(super) struct Line {
    /// Counted from 1.
    pub number: u64,
    /// Its bytes in the input, end of line included.
    pub bytes: u64,
    /// What ends it: LF or CR LF; nothing for a last line without an end, and for a document.
    pub end: &'static str,
    pub content: Result<Item, BadLine>,
}

/// The longest HTML document that is read.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// A text that is held whole, such as references, takes at most so many bytes of memory.
const MAX_WHOLE_BYTES: u64 = 4 << 30;

/// Bytes of blank lines that are held back until the first line that is not blank shows how to read them.
const MAX_HELD_BYTES: u64 = 1 << 16;

/// A line as it was read.
struct RawLine {
    number: u64,
    bytes: u64,
    end: &'static str,
    /// Without its end; at most [`MAX_LINE_BYTES`] and one of a longer line.
    text: Vec<u8>,
}

/// Where lines come from.
pub(super) struct Lines {
    path: PathBuf,
    reader: TextReader,
    size: Option<u64>,
    form: Form,
    /// Read to find out the form, and not handed out.
    held: VecDeque<RawLine>,
    number: u64,
    /// Whether the lines were made from arguments, and are JSON for no other reason than that.
    arguments: bool,
}

impl Lines {
    fn new(path: &Path, reader: TextReader, form: Form) -> Self {
        Lines { path: path.to_path_buf(), reader, size: None, form, held: VecDeque::new(), number: 0, arguments: false }
    }

    /// Opens a file, or standard input for `None` and `-`.
    pub(super) fn open(path: Option<&Path>, form: Form) -> Result<Self> {
        let path = path.unwrap_or(Path::new("-"));
        if path.as_os_str() == "-" {
            return Ok(Lines::new(path, TextReader::new(std::io::stdin()), form));
        }
        let (reader, size) = input::open(path)?;
        Ok(Lines { size, ..Lines::new(path, reader, form) })
    }

    /// Texts given on the command line: each is one sentence, even with a line break inside.
    pub(super) fn from_texts(texts: &[String]) -> Result<Self> {
        let line = |text: &String| {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            Ok(json(&serde_json::json!({ "source": text }))? + "\n")
        };
        let joined = texts.iter().map(line).collect::<Result<String>>()?;
        let lines = Lines::new(Path::new("-"), TextReader::new(std::io::Cursor::new(joined)), Form::Json);
        Ok(Lines { arguments: true, ..lines })
    }

    /// Input in memory.
    pub(super) fn from_bytes(bytes: Vec<u8>, form: Form) -> Self {
        Lines::new(Path::new("-"), TextReader::new(std::io::Cursor::new(bytes)), form)
    }

    /// Bytes of all lines together, where that is known.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether a line is nothing but its sentence, and brings no fields. Known once a line has been read.
    pub(super) fn are_plain(&self) -> bool {
        self.arguments || self.form != Form::Json
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        if self.form == Form::Html {
            return self.document();
        }
        if let Form::Detect(plain) = self.form {
            self.form = self.detect(plain)?;
        }
        let line = match self.held.pop_front() {
            Some(line) => Some(line),
            None => self.read_line()?,
        };
        let read =
            |RawLine { number, bytes, end, text }| Line { number, bytes, end, content: parse(text, bytes, self.form) };
        Ok(line.map(read))
    }

    /// All of the input as one line, if it has not been read: with its byte order mark, and whole or not at all.
    fn document(&mut self) -> Result<Option<Line>> {
        if self.number > 0 {
            return Ok(None);
        }
        let io = |source| Error::Io { operation: "read document", path: self.path.clone(), source };
        let refuse = |kind, reason: String| io(std::io::Error::new(kind, reason));
        let mut bytes = Vec::new();
        let size = self.reader.by_ref().take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(io)? as u64;
        if size > MAX_DOCUMENT_BYTES {
            let reason = format!("expected at most {MAX_DOCUMENT_BYTES} bytes, got more");
            return Err(refuse(std::io::ErrorKind::FileTooLarge, reason));
        }
        let mut text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let reason = format!("expected UTF-8, got an invalid byte at offset {at}; {}", input::CONVERT);
            refuse(std::io::ErrorKind::InvalidData, reason)
        })?;
        if self.reader.is_marked() {
            text.insert(0, '\u{feff}');
        }
        self.number = 1;
        Ok(Some(Line { number: 1, bytes: size, end: "", content: Ok(Item::plain(text)) }))
    }

    /// Finds out the form from the first line that is not blank.
    fn detect(&mut self, plain: Plain) -> Result<Form> {
        let mut held = 0;
        while let Some(line) = self.read_line()? {
            let begins: Vec<u8> = line.text.iter().copied().filter(|b| !b.is_ascii_whitespace()).take(2).collect();
            held += line.bytes;
            self.held.push_back(line);
            if !begins.is_empty() {
                // Also of an object that is broken further on: that is an error, and no text.
                let is_object = matches!(begins[..], [b'{', b'"' | b'}']);
                return Ok(if is_object { Form::Json } else { plain.into() });
            }
            if held > MAX_HELD_BYTES {
                break;
            }
        }
        Ok(plain.into())
    }

    fn read_line(&mut self) -> Result<Option<RawLine>> {
        let mut text = Vec::new();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let io = |source| Error::Io { operation: "read", path: self.path.clone(), source };
        let mut bytes = self.reader.by_ref().take(limit).read_until(b'\n', &mut text).map_err(io)? as u64;
        if bytes == 0 {
            return Ok(None);
        }
        self.number += 1;
        let mut end = "";
        if text.last() == Some(&b'\n') {
            end = "\n";
            text.pop();
            if text.last() == Some(&b'\r') {
                end = "\r\n";
                text.pop();
            }
        } else if bytes == limit {
            bytes += self.reader.skip_until(b'\n').map_err(io)? as u64;
            end = "\n";
        }
        Ok(Some(RawLine { number: self.number, bytes, end, text }))
    }
}

/// Reads all lines of a text file; one that cannot be read fails them all.
pub(super) fn read_all(path: &Path) -> Result<Vec<String>> {
    hold(Lines::open(Some(path), Form::Text)?, MAX_WHOLE_BYTES)
}

/// All lines, in at most so many bytes of memory.
fn hold(mut lines: Lines, most: u64) -> Result<Vec<String>> {
    let (mut texts, mut size) = (Vec::new(), 0);
    while let Some(Line { number, bytes, content, .. }) = lines.next()? {
        let fail = |kind, reason: String| Error::Io {
            operation: "read",
            path: lines.path.clone(),
            source: std::io::Error::new(kind, reason),
        };
        size += bytes + size_of::<String>() as u64;
        if size > most {
            let reason = format!("line {number}: expected at most {most} bytes of a text that is held whole, got more");
            return Err(fail(std::io::ErrorKind::FileTooLarge, reason));
        }
        let item =
            content.map_err(|bad| fail(std::io::ErrorKind::InvalidData, format!("line {number}: {}", bad.message)))?;
        texts.push(item.sentence.source);
    }
    Ok(texts)
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
        let sources: Vec<&str> = read.iter().map(|l| l.content.as_ref().unwrap().sentence.source.as_str()).collect();
        assert_eq!(sources, ["a", "b\r", "", "c"]);
        assert_eq!(read.iter().map(|l| l.bytes).collect::<Vec<_>>(), [3, 4, 1, 1]);
    }

    #[test]
    fn a_text_that_is_held_whole_is_bounded() {
        let hold = |most| hold(Lines::from_bytes(b"ab\n\n\n".to_vec(), Form::Text), most);
        let size = 5 + 3 * size_of::<String>() as u64;
        assert_eq!(hold(size).expect("as much as allowed"), ["ab", "", ""]);
        let message = hold(size - 1).expect_err("one byte too many").to_string();
        assert!(message.contains("line 3: expected at most"), "{message}");
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
        assert_eq!((item.sentence.source.as_str(), item.other["id"].get()), ("x", "7"));
        let seeds = br#"{"source": "x", "seed": 18446744073709551615}
{"source": "x", "seed": null}"#;
        let seeds: Vec<_> = lines(seeds, Form::Json).into_iter().map(|l| l.content.unwrap().sentence.seed).collect();
        assert_eq!(seeds, [Some(u64::MAX), None]);
        let bad_seeds = [r#"{"source": "x", "seed": -1}"#, r#"{"source": "x", "seed": "1"}"#];
        for bad in ["[1]", "{}", r#"{"source": 3}"#, "{", "", bad_seeds[0], bad_seeds[1]] {
            assert!(lines(format!("{bad}\n").as_bytes(), Form::Json)[0].content.is_err(), "{bad}");
        }
    }

    /// Sources as they are read, or "!" and what is wrong.
    fn sources(bytes: &[u8], form: Form) -> Vec<String> {
        let source = |line: Line| line.content.map_or_else(|bad| format!("!{}", bad.kind), |item| item.sentence.source);
        lines(bytes, form).into_iter().map(source).collect()
    }

    #[test]
    fn the_first_line_that_is_not_blank_tells_json_from_text() {
        let detect = |bytes: &[u8]| sources(bytes, Form::Detect(Plain::Text));
        assert_eq!(detect(b"a\n{\"source\": \"b\"}\n"), ["a", "{\"source\": \"b\"}"]);
        assert_eq!(detect(b"{\"source\": \"b\"}\na\n"), ["b", "!json"]);
        assert_eq!(detect(b"\n \n{ \"source\": \"b\"}\n"), ["!json", "!json", "b"]);
        assert_eq!(detect(b"\n \nb\n"), ["", " ", "b"]);
        assert_eq!(detect(b"{}\nb\n"), ["!json", "!json"]);
        // Broken further on: still no text.
        assert_eq!(detect(b"{\"source\": \nb\n"), ["!json", "!json"]);
        assert_eq!(detect(b"{laughs} b\n[1]\n"), ["{laughs} b", "[1]"]);
        assert_eq!(detect(b"\xef\xbb\xbf{\"source\": \"b\"}\n"), ["b"]);
        assert_eq!(detect(b""), [""; 0]);
        assert_eq!(detect(b"\n\n"), ["", ""]);
        assert_eq!(detect(&[b'\n'; 100_000]).len(), 100_000);
        assert_eq!(sources(b"{\"source\": \"b\"}\n", Form::Text), ["{\"source\": \"b\"}"]);
    }

    #[test]
    fn tsv_takes_the_first_column_and_keeps_the_others() {
        let read = lines(b"a\tb\tc \"d\"\n\te\nf\n", Form::Tsv);
        let items: Vec<&Item> = read.iter().map(|line| line.content.as_ref().unwrap()).collect();
        assert_eq!(items.iter().map(|item| item.sentence.source.as_str()).collect::<Vec<_>>(), ["a", "", "f"]);
        let columns = |i: usize| items[i].columns.clone().expect("TSV has columns");
        assert_eq!(
            (columns(0), columns(1), columns(2)),
            (vec!["b".into(), "c \"d\"".into()], vec!["e".into()], vec![])
        );
    }

    #[test]
    fn half_a_surrogate_pair_is_called_that() {
        for (json, escape) in [
            (r#"{"source": "A \ud83d dog"}"#, r"\ud83d"),
            (r#"{"source": "\ud83d\ude00 \uDE00"}"#, r"\uDE00"),
            (r#"{"source": "a", "constraints": ["b", "\ud800"]}"#, r"\ud800"),
            (r#"{"source": "a", "target_prefix": "\udfff\ud83d"}"#, r"\udfff"),
            (r#"{"source": "a", "b\ud800": 1}"#, r"\ud800"),
        ] {
            let read = lines(json.as_bytes(), Form::Json);
            let bad = read[0].content.as_ref().unwrap_err();
            let expected = format!("{escape}, a lone surrogate");
            assert!(bad.kind == "json" && bad.message.contains(&expected), "{json}: {}", bad.message);
        }
        for json in [r#"{"source": "\ud83d\ude00"}"#, r#"{"source": "\\ud83d"}"#] {
            assert!(lines(json.as_bytes(), Form::Json)[0].content.is_ok(), "{json}");
        }
        // Elsewhere it is none of our business.
        assert!(lines(br#"{"source": "a", "id": "\ud83d"}"#, Form::Json)[0].content.is_ok());
        let other = lines(br#"{"source": ["\\ud83d"]}"#, Form::Json);
        assert!(!other[0].content.as_ref().unwrap_err().message.contains("surrogate"));
    }

    #[test]
    fn what_is_no_text_ends_the_input() {
        let mut utf16 = Lines::from_bytes("a\n".encode_utf16().flat_map(u16::to_le_bytes).collect(), Form::Text);
        assert!(utf16.next().unwrap_err().to_string().contains("UTF-16LE"));
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
            // Those have tests of their own: they are refused, decompressed or dropped.
            let special: [&[u8]; 6] = [b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"(\xb5/\xfd", b"PK"];
            let bytes: Vec<u8> = bytes.into_iter().map(|byte| byte.max(1)).collect();
            prop_assume!(!special.iter().any(|magic| bytes.starts_with(magic)));
            let breaks = bytes.iter().filter(|byte| **byte == b'\n').count();
            let expected = breaks + usize::from(bytes.last().is_some_and(|byte| *byte != b'\n'));
            for form in [Form::Text, Form::Json, Form::Tsv, Form::Detect(Plain::Text), Form::Detect(Plain::Tsv)] {
                let read = lines(&bytes, form);
                prop_assert_eq!(read.len(), expected);
                prop_assert_eq!(read.iter().map(|line| line.bytes).sum::<u64>(), bytes.len() as u64);
            }
        }
    }
}
