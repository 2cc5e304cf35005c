//! Byte pair segmentation: characters are merged pairwise, the pair whose merged piece has the best score first.
//!
//! Source: R. Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, section 3.2.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use super::Segment;
use super::pieces::{PieceTable, is_usable};
use super::proto::PieceKind;
use super::trie::Trie;

/// How deep a piece of kind "unused" is split back into what it was merged from.
const MAX_SPLIT_DEPTH: usize = 100;

/// A stretch of the text, in a doubly linked list; empty once merged into its left neighbour.
struct Symbol {
    range: Range<usize>,
    previous: Option<usize>,
    next: Option<usize>,
    /// A user-defined symbol, which is never merged.
    frozen: bool,
}

/// Two neighbouring symbols that may be merged.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the merged piece: with other symbols in these places by now, the candidate is stale.
    length: usize,
}

impl Ord for Candidate {
    /// The best score is greatest, then the leftmost place.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(other.length.cmp(&self.length))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Splits normalised text; what is in no usable piece is a segment without an id. `verbatim` holds the user-defined symbols.
pub(super) fn segment(table: &PieceTable, verbatim: &Trie, text: &str) -> Vec<Segment> {
    let mut merge =
        Merge { table, text, symbols: symbols(verbatim, text), queue: BinaryHeap::new(), halves: HashMap::new() };
    for right in 1..merge.symbols.len() {
        merge.offer(Some(right - 1), Some(right));
    }
    while let Some(candidate) = merge.queue.pop() {
        merge.apply(&candidate);
    }
    let mut segments = Vec::new();
    let mut index = if merge.symbols.is_empty() { None } else { Some(0) };
    while let Some(symbol) = index.map(|index| &merge.symbols[index]) {
        merge.split_unused(symbol.range.clone(), 0, &mut segments);
        index = symbol.next;
    }
    segments
}

/// User-defined symbols, longest first, and single characters.
fn symbols(verbatim: &Trie, text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::new();
    let mut start = 0;
    while let Some(character) = text[start..].chars().next() {
        let defined = verbatim.longest(&text.as_bytes()[start..]);
        let end = start + defined.unwrap_or(character.len_utf8());
        let index = symbols.len();
        if let Some(last) = symbols.last_mut() {
            last.next = Some(index);
        }
        symbols.push(Symbol {
            range: start..end,
            previous: index.checked_sub(1),
            next: None,
            frozen: defined.is_some(),
        });
        start = end;
    }
    symbols
}

/// The state of one text's merging.
struct Merge<'a> {
    table: &'a PieceTable,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
    /// Pieces of kind "unused" that were formed on the way, with the length of their left half.
    halves: HashMap<&'a str, usize>,
}

impl<'a> Merge<'a> {
    /// Queues the merge of two neighbours, if the merged text is a piece.
    fn offer(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (first, second) = (&self.symbols[left], &self.symbols[right]);
        if first.frozen || second.frozen {
            return;
        }
        let (text, half) = (&self.text[first.range.start..second.range.end], first.range.len());
        let Some(entry) = self.table.get(text).filter(|entry| is_usable(entry.kind)) else { return };
        if entry.kind == PieceKind::Unused {
            self.halves.insert(text, half);
        }
        self.queue.push(Candidate { score: entry.score, left, right, length: text.len() });
    }

    /// Merges the right symbol into the left one and queues the merges that become possible.
    fn apply(&mut self, candidate: &Candidate) {
        let &Candidate { left, right, length, .. } = candidate;
        let (first, second) = (self.symbols[left].range.clone(), self.symbols[right].range.clone());
        if first.is_empty() || second.is_empty() || first.len() + second.len() != length {
            return;
        }
        let next = self.symbols[right].next;
        self.symbols[left].range = first.start..second.end;
        self.symbols[left].next = next;
        self.symbols[right].range = second.end..second.end;
        if let Some(next) = next {
            self.symbols[next].previous = Some(left);
        }
        self.offer(self.symbols[left].previous, Some(left));
        self.offer(Some(left), next);
    }

    /// Writes the segment, taking pieces of kind "unused" apart again.
    fn split_unused(&self, range: Range<usize>, depth: usize, segments: &mut Vec<Segment>) {
        let text = &self.text[range.clone()];
        let id = self.table.id(text).filter(|id| is_usable(self.table.entries[*id as usize].kind));
        let unused = id.is_some_and(|id| self.table.entries[id as usize].kind == PieceKind::Unused);
        if !unused || depth > MAX_SPLIT_DEPTH {
            segments.push(Segment { range, id });
        } else if let Some(half) = self.halves.get(text) {
            let middle = range.start + half;
            self.split_unused(range.start..middle, depth + 1, segments);
            self.split_unused(middle..range.end, depth + 1, segments);
        } else {
            segments.push(Segment { range, id: None });
        }
    }
}
