//! Sentences and results in JSON, as lines of the command line and as items over HTTP: one form for both.

mod read;
mod warnings;
mod write;

pub(crate) use read::{BadLine, Fields, READ_LINE, field, read_sentence};
pub(crate) use warnings::{Warning, Watch};
#[cfg(feature = "serve")]
pub(crate) use write::raw;
pub(crate) use write::{document_json, error_json, json, score_json, segment_json, translation_json};
