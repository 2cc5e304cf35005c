//! What a line says: the sentence, the fields that it brings, or why it cannot be read.

use super::{Form, MAX_LINE_BYTES, Plain};
use crate::Overrides;
use crate::input::CONVERT;
use crate::jsonl::{BadLine, Fields, READ_LINE, read_sentence};
use crate::translator::Sentence;

/// A sentence, and the JSON fields that pass through.
#[derive(Debug)]
pub(in crate::cli) struct Item {
    pub sentence: Sentence<Overrides>,
    /// Further columns of a TSV line.
    pub columns: Option<Vec<String>>,
    pub other: Fields,
}

impl Item {
    pub(super) fn plain(source: String) -> Self {
        Item { sentence: Sentence { source, ..Sentence::default() }, columns: None, other: Fields::new() }
    }
}

/// Reads a line of so many bytes, its end included.
pub(super) fn parse(line: Vec<u8>, bytes: u64, form: Form) -> Result<Item, BadLine> {
    if line.len() > MAX_LINE_BYTES {
        let message = format!("read line: expected at most {MAX_LINE_BYTES} bytes, got {bytes}");
        return Err(BadLine { kind: "line_too_long", message, source: None });
    }
    let text = String::from_utf8(line).map_err(|error| BadLine {
        kind: "utf8",
        message: format!(
            "read line: expected UTF-8, got an invalid byte at offset {}; {CONVERT}",
            error.utf8_error().valid_up_to()
        ),
        source: Some(String::from_utf8_lossy(error.as_bytes()).into_owned()),
    })?;
    match form {
        Form::Json => read_sentence(READ_LINE, &text).map(|(sentence, other)| Item { sentence, columns: None, other }),
        Form::Tsv | Form::Detect(Plain::Tsv) => Ok(parse_tsv(&text)),
        Form::Text | Form::Html | Form::Detect(Plain::Text) => Ok(Item::plain(text)),
    }
}

fn parse_tsv(text: &str) -> Item {
    let mut columns = text.split('\t').map(str::to_owned);
    let source = columns.next().unwrap_or_default();
    Item { columns: Some(columns.collect()), ..Item::plain(source) }
}
