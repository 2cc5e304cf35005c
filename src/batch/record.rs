//! What is noted of a part: enough to tell whether another command would write the same.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::RECORDS;
use crate::files::{MAX_CONFIG, read_bounded};
use crate::{Error, Result};

/// The note of a part.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What was read.
    pub input: Input,
    /// What was written.
    pub output: Output,
    /// Rows.
    pub counts: Counts,
    /// Everything beside input and model that the rows depend on, by name.
    pub options: Map<String, Value>,
    /// The [version](super::digest_model) of the model.
    pub model: String,
    /// The version of this program.
    pub beamfuse: String,
}

/// A file, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Its path within the inputs of the job, and behind `#` the piece, if it is one.
    pub name: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Its path within the output of the job.
    pub name: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Rows of a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Rows of the input; each has its row of output.
    pub rows: u64,
    /// Those of them that have an error in their place.
    pub failed: u64,
}

impl Counts {
    /// Adds those of another part.
    pub fn add(&mut self, other: Counts) {
        self.rows += other.rows;
        self.failed += other.failed;
    }
}

impl Record {
    /// Where the record of a part lies in the output directory.
    pub fn path(directory: &Path, part: &str) -> PathBuf {
        directory.join(RECORDS).join(format!("{part}.json"))
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Json`].
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path, MAX_CONFIG)?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
    }

    /// The record as it is written: one line of JSON.
    pub(super) fn to_line(&self) -> Result<String> {
        let line = serde_json::to_string(self);
        line.map(|line| line + "\n").map_err(|source| Error::Json { path: "-".into(), source })
    }

    /// The first thing that another command would do otherwise: its name, what this record has, and what `other` has.
    pub(super) fn difference(&self, other: &Record) -> Option<(String, String, String)> {
        let named = |name: &str, ours: &str, theirs: &str| (name.to_owned(), ours.to_owned(), theirs.to_owned());
        let values = [
            ("input", &self.input.name, &other.input.name),
            ("digest of the input", &self.input.sha256, &other.input.sha256),
            ("model", &self.model, &other.model),
            ("version of beamfuse", &self.beamfuse, &other.beamfuse),
        ];
        let value = values.into_iter().find(|(_, ours, theirs)| ours != theirs);
        value
            .map(|(name, ours, theirs)| named(name, ours, theirs))
            .or_else(|| difference(&self.options, &other.options))
    }
}

/// The first option that two commands do not have in common: its name, and what each has, in JSON.
pub fn difference(ours: &Map<String, Value>, theirs: &Map<String, Value>) -> Option<(String, String, String)> {
    let text = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
    let names = ours.keys().chain(theirs.keys());
    names
        .map(|name| (name.clone(), text(ours.get(name)), text(theirs.get(name))))
        .find(|(_, ours, theirs)| ours != theirs)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub fn record() -> Record {
        Record {
            input: Input { name: "a.txt".into(), bytes: 3, sha256: "aa".into() },
            output: Output { name: "a.txt".into(), bytes: 4, sha256: "bb".into() },
            counts: Counts { rows: 1, failed: 0 },
            options: json!({"beam_size": 4, "alpha": 0.7}).as_object().cloned().expect("an object"),
            model: "cc".into(),
            beamfuse: "1".into(),
        }
    }

    #[test]
    fn what_differs_is_named() {
        let ours = record();
        let mut same = record();
        (same.counts.rows, same.output.sha256, same.input.bytes) = (7, "dd".into(), 9);
        assert_eq!(ours.difference(&same), None);
        let change = |change: fn(&mut Record)| {
            let mut other = record();
            change(&mut other);
            ours.difference(&other).expect("a difference").0
        };
        assert_eq!(change(|r| r.input.sha256 = "x".into()), "digest of the input");
        assert_eq!(change(|r| r.input.name = "x".into()), "input");
        assert_eq!(change(|r| r.model = "x".into()), "model");
        assert_eq!(change(|r| r.beamfuse = "x".into()), "version of beamfuse");
        assert_eq!(change(|r| drop(r.options.insert("beam_size".into(), json!(5)))), "beam_size");
        assert_eq!(change(|r| drop(r.options.remove("alpha"))), "alpha");
        assert_eq!(change(|r| drop(r.options.insert("seed".into(), json!(0)))), "seed");
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        let line = record().to_line().expect("JSON");
        std::fs::write(&path, &line).expect("written");
        assert_eq!(Record::read(&path).expect("a record"), record());
        std::fs::write(&path, &line[..line.len() / 2]).expect("written");
        assert!(Record::read(&path).expect_err("half").to_string().starts_with("parse "));
    }
}
