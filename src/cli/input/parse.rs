//! What a line says: the sentence, the fields that it brings, or why it cannot be read.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::{Form, MAX_LINE_BYTES, Plain};
use crate::Overrides;
use crate::input::CONVERT;
use crate::translator::Sentence;

/// JSON fields that pass through: in their order, and as they were written, to the last digit.
pub(in crate::cli) type Fields = IndexMap<String, Box<RawValue>>;

/// A sentence, and the JSON fields that pass through.
#[derive(Debug)]
pub(in crate::cli) struct Item {
    pub sentence: Sentence<Overrides>,
    /// Further columns of a TSV line.
    pub columns: Option<Vec<String>>,
    pub other: Fields,
}

/// A line that cannot be read.
#[derive(Debug)]
pub(in crate::cli) struct BadLine {
    /// A short stable name.
    pub kind: &'static str,
    pub message: String,
    /// What could be read of the sentence.
    pub source: Option<String>,
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
        Form::Json => parse_json(&text),
        Form::Tsv | Form::Detect(Plain::Tsv) => Ok(parse_tsv(&text)),
        Form::Text | Form::Detect(Plain::Text) => Ok(Item::plain(text)),
    }
}

fn parse_tsv(text: &str) -> Item {
    let mut columns = text.split('\t').map(str::to_owned);
    let source = columns.next().unwrap_or_default();
    Item { columns: Some(columns.collect()), ..Item::plain(source) }
}

fn parse_json(text: &str) -> Result<Item, BadLine> {
    let bad = |message: String, source: Option<String>| BadLine { kind: "json", message, source };
    let mut other: Fields = serde_json::from_str(text)
        .map_err(|error| bad(format!("read line: expected a JSON object, got {}", reason(text, &error)), None))?;
    let source: String = match other.shift_remove("source") {
        Some(source) => field("source", "a string", &source).map_err(|message| bad(message, None))?,
        None if other.contains_key("source_ids") => String::new(),
        None => return Err(bad("read line: expected a field \"source\", got none".into(), None)),
    };
    let bad = |message| bad(message, Some(source.clone()));
    let given = |name: &str| other.get(name).filter(|value| value.get() != "null");
    let text = |name| given(name).map(|value| field(name, "a string", value)).transpose();
    let seed = given("seed").map(|value| field("seed", "an integer of 64 bits, 0 or more", value));
    let constraints = given("constraints").map(|value| field("constraints", "an array of strings", value));
    let ids = given("source_ids").map(|value| field("source_ids", "an array of token ids", value));
    let options = given("options").map(|value| field("options", "an object of options", value));
    let sentence = Sentence {
        source_lang: text("source_lang").map_err(bad)?,
        target_lang: text("target_lang").map_err(bad)?,
        source_ids: ids.transpose().map_err(bad)?,
        seed: seed.transpose().map_err(bad)?,
        prefix: text("target_prefix").map_err(bad)?,
        contrast_source: text("contrast_source").map_err(bad)?,
        constraints: constraints.transpose().map_err(bad)?.unwrap_or_default(),
        options: options.transpose().map_err(bad)?,
        source,
    };
    Ok(Item { sentence, columns: None, other })
}

/// Reads a field of a line; an error is a message.
pub(in crate::cli) fn field<T: serde::de::DeserializeOwned>(
    name: &str,
    expected: &str,
    value: &RawValue,
) -> Result<T, String> {
    serde_json::from_str(value.get()).map_err(|_| {
        let got = lone_surrogate(value.get()).unwrap_or_else(|| value.get().to_owned());
        format!("read line: {name}: expected {expected}, got {got}")
    })
}

/// Why something is no JSON: half a surrogate pair is called that.
fn reason(text: &str, error: &serde_json::Error) -> String {
    match error.to_string() {
        said if said.contains("surrogate") || said.contains("hex escape") => lone_surrogate(text).unwrap_or(said),
        said => said,
    }
}

/// Names the first escape in a JSON text that is half a surrogate pair, and so no character.
fn lone_surrogate(json: &str) -> Option<String> {
    let unit = |escape: &str| {
        let digits = escape.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        rest = &rest[at..];
        let length = match (unit(rest), rest.get(6..).and_then(unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                return Some(format!("{}, a lone surrogate: half of a pair that stands for one character", &rest[..6]));
            }
            (Some(_), _) => 6,
            // The backslash, and the character that it escapes.
            (None, _) => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        rest = &rest[length..];
    }
    None
}
