//! ByT5's tokenizer: a byte's id is three more than the byte (Xue et al. 2022).

use std::collections::HashSet;

use super::added::{AddedTokens, Part};
use super::{Encoder, SideSummary};

/// Ids below this are padding, end of sentence and unknown.
pub(super) const OFFSET: u32 = 3;

/// The tokenizer.
#[derive(Debug)]
pub(super) struct Bytes {
    pub added: AddedTokens,
    /// Ids that are left out of a text.
    pub special: HashSet<u32>,
}

impl Encoder for Bytes {
    fn encode(&self, text: &str) -> Vec<u32> {
        let ids = |part: Part| match part {
            Part::Token(id) => vec![id],
            Part::Text(text) => text.bytes().map(|byte| u32::from(byte) + OFFSET).collect(),
        };
        self.added.split(text).into_iter().flat_map(ids).collect()
    }

    fn decode(&self, ids: &[u32]) -> String {
        let (mut texts, mut bytes) = (Vec::new(), Vec::new());
        let flush = |bytes: &mut Vec<u8>, texts: &mut Vec<String>| {
            // What spells no character is left out.
            let text: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
            texts.extend((!text.is_empty()).then_some(text));
            bytes.clear();
        };
        for id in ids.iter().filter(|id| !self.special.contains(id)) {
            match (self.added.with_id(*id), u8::try_from(id.wrapping_sub(OFFSET))) {
                (Some(token), _) => {
                    flush(&mut bytes, &mut texts);
                    texts.push(token.content.clone());
                }
                (None, Ok(byte)) => bytes.push(byte),
                (None, Err(_)) => {}
            }
        }
        flush(&mut bytes, &mut texts);
        texts.join(" ")
    }

    fn summary(&self) -> SideSummary {
        SideSummary { model_type: "bytes".into(), model_pieces: 256, ..SideSummary::default() }
    }
}
