//! What a translation may not contain: tokens, and sequences of tokens.

use crate::backend::MAX_SEQUENCE_WORDS;
use crate::model::check_ids;
use crate::{Error, Result};

/// Tokens and sequences of tokens that are never generated, for a vocabulary of one size. Shared by all sentences that obey it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bans {
    /// A bit per token `[ceil(vocab_size / 32)]`.
    always: Vec<u32>,
    /// As [`Search::sequences`](crate::backend::Search::sequences) has them.
    sequences: Vec<u32>,
}

impl Bans {
    /// Bans the `suppressed` tokens, all but the `allowed` ones where such a shortlist is given, and `sequences`, the last token
    /// of each where the ones before it have just been generated.
    ///
    /// # Errors
    /// [`Error::Input`] for an id outside the vocabulary, an empty sequence, or more sequences than a slot has room for.
    pub fn new(vocab_size: usize, suppressed: &[u32], allowed: Option<&[u32]>, sequences: &[Vec<u32>]) -> Result<Self> {
        let operation = "ban tokens";
        let mut always = vec![if allowed.is_some() { u32::MAX } else { 0 }; vocab_size.div_ceil(32)];
        let allowed = allowed.unwrap_or_default();
        for ids in [suppressed, allowed].into_iter().chain(sequences.iter().map(Vec::as_slice)) {
            check_ids(operation, ids, vocab_size)?;
        }
        allowed.iter().for_each(|id| always[*id as usize / 32] &= !(1 << (id % 32)));
        let (mut ends, mut ids) = (Vec::new(), Vec::new());
        let mut single = suppressed.to_vec();
        for sequence in sequences {
            match sequence[..] {
                [] => {
                    return Err(Error::Input {
                        operation,
                        expected: "sequences of at least one token".into(),
                        got: "an empty one".into(),
                    });
                }
                [token] => single.push(token),
                _ => {
                    ids.extend_from_slice(sequence);
                    ends.push(ids.len() as u32);
                }
            }
        }
        single.iter().for_each(|id| always[*id as usize / 32] |= 1 << (id % 32));
        let words = 1 + ends.len() + ids.len();
        if words > MAX_SEQUENCE_WORDS {
            let expected = format!("at most {} tokens in sequences, and one for each of these", MAX_SEQUENCE_WORDS - 1);
            return Err(Error::Input { operation, expected, got: (words - 1).to_string() });
        }
        let sequences = std::iter::once(ends.len() as u32).chain(ends).chain(ids).collect();
        Ok(Bans { always, sequences })
    }

    pub(super) fn always(&self) -> &[u32] {
        &self.always
    }

    pub(super) fn sequences(&self) -> &[u32] {
        &self.sequences
    }

    /// Words of the bitmap: which vocabulary it is for.
    pub(super) fn words(&self) -> usize {
        self.always.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_sequences_lie_as_the_device_reads_them() {
        let bans = Bans::new(40, &[33], None, &[vec![4, 5, 6], vec![7], vec![1, 2]]).expect("they fit");
        assert_eq!(bans.always(), [1 << 7, 1 << 1]);
        assert_eq!(bans.sequences(), [2, 3, 5, 4, 5, 6, 1, 2]);
        let shortlist = Bans::new(40, &[2], Some(&[0, 2, 39]), &[]).expect("they fit");
        assert_eq!(shortlist.always(), [!1, !(1 << 7)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |suppressed: &[u32], sequences: &[Vec<u32>]| {
            Bans::new(40, suppressed, None, sequences).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(refused(&[40], &[]).contains("token ids below 40"), "{}", refused(&[40], &[]));
        assert!(refused(&[], &[vec![]]).contains("at least one token"));
        assert!(
            refused(&[], &vec![vec![3; 1000]; 3]).contains("got 3003"),
            "{}",
            refused(&[], &vec![vec![3; 1000]; 3])
        );
        assert_eq!(refused(&[39], &vec![vec![3; 1000]; 2]), "");
    }
}
