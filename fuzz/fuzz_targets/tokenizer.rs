//! A SentencePiece model and a text for it: two bytes with the model's size, the model, the text.
#![no_main]

use std::path::Path;

use beamfuse::text::sentencepiece::SentencePiece;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((size, rest)) = data.split_first_chunk() else { return };
    let (model, text) = rest.split_at(rest.len().min(u16::from_le_bytes(*size).into()));
    let Ok(model) = SentencePiece::from_bytes(model, Path::new("fuzzed.spm")) else { return };
    let text = String::from_utf8_lossy(text);
    let pieces = model.encode(&text);
    let _ = model.decode(pieces.iter().map(String::as_str));
    let _ = (model.model_type(), model.piece_count(), model.normalization());
});
