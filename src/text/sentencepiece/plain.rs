//! Segmentation without search: into characters, or into words.
//!
//! Unlike the other two kinds of model these look pieces up in the whole table, control pieces and all, as the SentencePiece library
//! does; pieces of kind "unused" are unknown.

use std::ops::Range;

use super::Segment;
use super::normalizer::SPACE;
use super::pieces::PieceTable;
use super::proto::PieceKind;
use super::trie::Trie;

/// Splits normalised text into characters; user-defined symbols, which `verbatim` holds, stay whole.
pub(super) fn characters(table: &PieceTable, verbatim: &Trie, text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut start = 0;
    while let Some(character) = text[start..].chars().next() {
        let end = start + verbatim.longest(&text.as_bytes()[start..]).unwrap_or(character.len_utf8());
        segments.push(segment(table, text, start..end));
        start = end;
    }
    segments
}

/// Splits normalised text in front of every space symbol.
pub(super) fn words(table: &PieceTable, text: &str) -> Vec<Segment> {
    let breaks = text.match_indices(SPACE).map(|(at, _)| at).filter(|at| *at > 0);
    let ends = breaks.chain((!text.is_empty()).then_some(text.len()));
    let mut start = 0;
    ends.map(|end| segment(table, text, std::mem::replace(&mut start, end)..end)).collect()
}

fn segment(table: &PieceTable, text: &str, range: Range<usize>) -> Segment {
    let is_known = |id: &u32| !matches!(table.entries[*id as usize].kind, PieceKind::Unknown | PieceKind::Unused);
    let id = table.id(&text[range.clone()]).filter(is_known);
    Segment { range, id }
}
