//! A sentence in JSON: what it says, the fields that pass through, or why it cannot be read.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use crate::Overrides;
use crate::translator::Sentence;

/// What begins the messages about a line of input.
pub(crate) const READ_LINE: &str = "read line";

/// JSON fields that pass through: in their order, and as they were written, to the last digit.
pub(crate) type Fields = IndexMap<String, Box<RawValue>>;

/// A line that cannot be read.
#[derive(Debug)]
pub(crate) struct BadLine {
    /// A short stable name.
    pub kind: &'static str,
    pub message: String,
    /// What could be read of the sentence.
    pub source: Option<String>,
}

/// Reads a sentence and the fields that pass through; `operation` begins the message of an error.
pub(crate) fn read_sentence(operation: &str, text: &str) -> Result<(Sentence<Overrides>, Fields), BadLine> {
    let bad = |message: String, source: Option<String>| BadLine { kind: "json", message, source };
    let mut other: Fields = serde_json::from_str(text)
        .map_err(|error| bad(format!("{operation}: expected a JSON object, got {}", reason(text, &error)), None))?;
    let source: String = match other.shift_remove("source") {
        Some(source) => field(operation, "source", "a string", &source).map_err(|message| bad(message, None))?,
        None if other.contains_key("source_ids") => String::new(),
        None => return Err(bad(format!("{operation}: expected a field \"source\", got none"), None)),
    };
    let bad = |message| bad(message, Some(source.clone()));
    let given = |name: &str| other.get(name).filter(|value| value.get() != "null");
    let text = |name| given(name).map(|value| field(operation, name, "a string", value)).transpose();
    let seed = given("seed").map(|value| field(operation, "seed", "an integer of 64 bits, 0 or more", value));
    let constraints = given("constraints").map(|value| field(operation, "constraints", "an array of strings", value));
    let ids = given("source_ids").map(|value| field(operation, "source_ids", "an array of token ids", value));
    let options = given("options").map(|value| field(operation, "options", "an object of options", value));
    let sentence = Sentence {
        source_prefix: text("source_prefix").map_err(bad)?,
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
    Ok((sentence, other))
}

/// Reads a field; an error is a message.
pub(crate) fn field<T: serde::de::DeserializeOwned>(
    operation: &str,
    name: &str,
    expected: &str,
    value: &RawValue,
) -> Result<T, String> {
    serde_json::from_str(value.get()).map_err(|_| {
        let got = lone_surrogate(value.get()).unwrap_or_else(|| value.get().to_owned());
        format!("{operation}: {name}: expected {expected}, got {got}")
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
