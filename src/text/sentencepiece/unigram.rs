//! Unigram segmentation: the split of a text into pieces with the largest sum of piece scores.
//!
//! Source: T. Kudo, "Subword Regularization", ACL 2018, section 3.1. Scores are summed in f32, in text order, and the running
//! sum is reset as the SentencePiece library does it, since near ties are decided by rounding.

use super::Segment;
use super::pieces::{PieceTable, is_usable};
use super::proto::PieceKind;
use super::trie::Trie;

/// What a character outside the piece table scores below the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;
/// Once a path's sum leaves this range, all open paths are lowered by it.
const RESET_THRESHOLD: f32 = 100_000.0;
const UNREACHED: usize = usize::MAX;

/// The pieces of a unigram model, ready for lookup.
#[derive(Debug)]
pub(super) struct Unigram {
    trie: Trie,
    unknown_score: f32,
}

/// The best path that ends at a byte of the text: its sum, and the start and id of its last piece.
#[derive(Clone, Copy)]
struct Best {
    score: f32,
    start: usize,
    id: Option<u32>,
}

impl Best {
    fn offer(&mut self, score: f32, start: usize, id: Option<u32>) {
        if self.start == UNREACHED || score > self.score {
            *self = Best { score, start, id };
        }
    }
}

impl Unigram {
    pub fn new(table: &PieceTable) -> Self {
        let entries = || table.entries.iter().zip(0u32..);
        let usable = entries().filter(|(entry, _)| is_usable(entry.kind));
        let trie = Trie::new(usable.map(|(entry, id)| (entry.text.as_bytes(), id)).collect());
        let normal = entries().filter(|(entry, _)| entry.kind == PieceKind::Normal);
        let lowest = normal.map(|(entry, _)| entry.score).fold(f32::MAX, f32::min);
        Unigram { trie, unknown_score: lowest - UNKNOWN_PENALTY }
    }

    /// Splits normalised text; a character that no piece covers is a segment of its own without an id.
    pub fn segment(&self, table: &PieceTable, text: &str) -> Vec<Segment> {
        let mut best = vec![Best { score: 0.0, start: UNREACHED, id: None }; text.len() + 1];
        // The furthest byte that any path has reached.
        let mut frontier = 0;
        for (start, character) in text.char_indices() {
            lower_open_paths(&mut best[start..=frontier]);
            let before = best[start].score;
            let mut covered = false;
            for (length, id) in self.trie.prefixes(&text.as_bytes()[start..]) {
                let entry = &table.entries[id as usize];
                let score = match entry.kind {
                    PieceKind::Unused => continue,
                    // Above every score of a normal piece, and longer ones higher.
                    PieceKind::UserDefined => (0.1 * (length - 1) as f64) as f32,
                    _ => entry.score,
                };
                best[start + length].offer(score + before, start, Some(id));
                frontier = frontier.max(start + length);
                covered |= length == character.len_utf8();
            }
            if !covered {
                let end = start + character.len_utf8();
                best[end].offer(self.unknown_score + before, start, None);
                frontier = frontier.max(end);
            }
        }
        let mut segments = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let Best { start, id, .. } = best[end];
            segments.push(Segment { range: start..end, id });
            end = start;
        }
        segments.reverse();
        segments
    }
}

/// Subtracts the first path's sum from all `open` paths if it has become so large that f32 would lose piece scores.
fn lower_open_paths(open: &mut [Best]) {
    let Some(offset) = open.first().map(|path| path.score).filter(|score| score.abs() > RESET_THRESHOLD) else {
        return;
    };
    open[0].score -= offset;
    for path in open[1..].iter_mut().filter(|path| path.start != UNREACHED) {
        path.score -= offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::sentencepiece::proto::{ModelProto, PieceProto};

    #[test]
    fn a_long_text_does_not_lose_small_differences() {
        let piece = |(text, score): (&str, f32)| PieceProto {
            piece: Some(text.into()),
            score: Some(score),
            kind: (text == "<unk>").then_some(PieceKind::Unknown as i32),
        };
        let pieces = [("<unk>", 0.0), ("a", -99_999.0), ("bc", -1.0), ("b", -0.25), ("c", -0.25)];
        let model = ModelProto { pieces: pieces.map(piece).to_vec(), ..Default::default() };
        let table = PieceTable::new(&model, false).unwrap();
        let unigram = Unigram::new(&table);
        // Plainly summed, the a's reach 1e8, where the next f32 is 8 away and both splits of "bc" look the same.
        let ids = |text: &str| unigram.segment(&table, text).iter().map(|segment| segment.id).collect::<Vec<_>>();
        assert_eq!(ids("bc"), [Some(3), Some(4)]);
        let long = ids(&format!("{}bc", "a".repeat(1000)));
        assert_eq!((long.len(), &long[999..]), (1002, &[Some(1), Some(3), Some(4)][..]));
    }
}
