//! No tokenizer: a text is its token ids in decimal, between spaces. For models whose own tokenizer is not read.

use super::{Encoder, SideSummary};

/// What no model has as an id: a word that is none cannot pass for another token.
const NONE: u32 = u32::MAX;
/// `<s>`, `<pad>`, `</s>` and `<unk>`, which fairseq puts in front.
pub(super) const SPECIAL: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];

#[derive(Debug)]
pub(super) struct Ids {
    /// What the model's own tokenizer is.
    pub instead_of: &'static str,
}

impl Encoder for Ids {
    fn encode(&self, text: &str) -> Vec<u32> {
        text.split_whitespace().map(|word| word.parse().unwrap_or(NONE)).collect()
    }

    fn decode(&self, ids: &[u32]) -> String {
        let plain = ids.iter().filter(|id| **id as usize >= SPECIAL.len());
        plain.map(u32::to_string).collect::<Vec<_>>().join(" ")
    }

    fn unread(&self, text: &str) -> Option<&'static str> {
        self.encode(text).contains(&NONE).then_some(self.instead_of)
    }

    fn summary(&self) -> SideSummary {
        SideSummary { model_type: "token ids in place of text".into(), ..SideSummary::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written_and_nothing_else() {
        let ids = Ids { instead_of: "another" };
        assert_eq!(ids.encode(" 57 63\t105 "), [57, 63, 105]);
        assert_eq!(ids.decode(&[0, 57, 3, 105, 2]), "57 105");
        assert_eq!((ids.unread("57 63"), ids.unread("")), (None, None));
        for text in ["A dog", "57 x", "-1", "4294967296", "5.0"] {
            assert_eq!(ids.unread(text), Some("another"), "{text}");
            assert!(ids.encode(text).contains(&NONE), "{text}");
        }
    }
}
