//! TER (Snover et al. 2006): edits that turn a translation into its reference, moves of whole phrases among them.
//!
//! The best set of moves cannot be searched for. Tercom, the reference implementation, and sacrebleu after it take the best move
//! they find among matching phrases, again and again; to give the same figures, the same candidates are tried here in the same
//! order, up to the same limits.

mod distance;
mod tokens;

use std::collections::HashMap;
use std::ops::AddAssign;

use super::Counts;
use distance::{Alignment, Distance};
pub use tokens::TerOptions;

/// The longest phrase that is moved, in words.
const MAX_MOVED_WORDS: usize = 10;
/// How far from each other two matching phrases may begin.
const MAX_DISTANCE: usize = 50;
/// Moves tried per hypothesis and reference; a round that comes this far makes no move.
const MAX_TRIED: usize = 1000;

/// What TER needs of a sentence or a corpus.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TerCounts {
    /// Insertions, deletions, substitutions and moves, against the reference that needs fewest.
    pub edits: u64,
    /// Mean length of the references, in words.
    pub reference_words: f64,
}

impl Counts for TerCounts {
    /// Edits per reference word times 100: lower is better, and it may exceed 100. Against empty references 100 if there are
    /// edits, else 0.
    fn score(&self) -> f64 {
        if self.reference_words > 0.0 {
            100.0 * (self.edits as f64 / self.reference_words)
        } else if self.edits > 0 {
            100.0
        } else {
            0.0
        }
    }
}

impl AddAssign for TerCounts {
    fn add_assign(&mut self, other: Self) {
        self.edits += other.edits;
        self.reference_words += other.reference_words;
    }
}

impl TerCounts {
    /// The counts of a hypothesis against its references; zeros without any.
    pub fn new<T: AsRef<str>>(hypothesis: &str, references: &[T], options: &TerOptions) -> Self {
        let mut numbers = HashMap::new();
        let mut number = |word: String| {
            let next = numbers.len() as u32;
            *numbers.entry(word).or_insert(next)
        };
        let mut numbers_of = |words: Vec<String>| words.into_iter().map(&mut number).collect::<Vec<u32>>();
        let hypothesis = numbers_of(options.words(hypothesis));
        // sacrebleu normalises references twice, which parts a few more marks: ".,4" is ". ,4" and then ". , 4".
        let twice = |text: &str| options.words(&options.words(text).join(" "));
        let references: Vec<Vec<u32>> = references.iter().map(|r| numbers_of(twice(r.as_ref()))).collect();
        let total: usize = references.iter().map(Vec::len).sum();
        TerCounts {
            edits: references.iter().map(|reference| edits(&hypothesis, reference)).min().unwrap_or(0),
            reference_words: total as f64 / references.len().max(1) as f64,
        }
    }
}

/// Edits and moves that turn `hypothesis` into `reference`.
fn edits(hypothesis: &[u32], reference: &[u32]) -> u64 {
    if reference.is_empty() {
        return hypothesis.len() as u64;
    }
    let mut words = hypothesis.to_vec();
    let mut distance = Distance::new(reference);
    let (mut moves, mut tried) = (0, 0);
    loop {
        let best = best_move(&words, reference, &mut distance, &mut tried);
        match best {
            Some(Move { saved, words: moved, .. }) if saved > 0 && tried < MAX_TRIED => {
                moves += 1;
                words = moved;
            }
            _ => return moves + distance.of(&words),
        }
    }
}

/// A phrase of the hypothesis put in another place.
struct Move {
    /// Edits that it saves.
    saved: i64,
    length: usize,
    start: usize,
    target: usize,
    words: Vec<u32>,
}

impl Move {
    /// Whether it ranks above another: more saved, then longer, then an earlier phrase, then an earlier target.
    fn beats(&self, other: &Move) -> bool {
        let rank = |m: &Move| (m.saved, m.length, std::cmp::Reverse(m.start), std::cmp::Reverse(m.target));
        rank(self) > rank(other)
    }
}

/// The best of the moves that tercom would try, if there are any.
fn best_move(words: &[u32], reference: &[u32], distance: &mut Distance<'_>, tried: &mut usize) -> Option<Move> {
    let (before, alignment) = distance.align(words);
    let mut best: Option<Move> = None;
    for Phrase { start, reference_start, length } in matching_phrases(words, reference) {
        if !may_help(&alignment, start, reference_start, length) {
            continue;
        }
        let mut last = None;
        // In front of the place that the reference has it in, and behind each of its words there.
        for offset in 0..=length {
            let target = match (reference_start + offset).checked_sub(1) {
                None => 0,
                Some(at) => match alignment.of_reference.get(at) {
                    Some(aligned) => *aligned,
                    None => break,
                },
            };
            if last.replace(target) == Some(target) {
                continue;
            }
            let moved = moved(words, start, length, target);
            let saved = before as i64 - distance.of(&moved) as i64;
            *tried += 1;
            let candidate = Move { saved, length, start, target, words: moved };
            if best.as_ref().is_none_or(|best| candidate.beats(best)) {
                best = Some(candidate);
            }
        }
        if *tried >= MAX_TRIED {
            break;
        }
    }
    best
}

/// Whether a phrase may be moved: both it and its place in the reference hold an error, and its place is not within itself.
fn may_help(alignment: &Alignment, start: usize, reference_start: usize, length: usize) -> bool {
    // One more than the position, so that nothing is 0.
    let aligned = alignment.of_reference[reference_start];
    alignment.hypothesis_errors[start..start + length].contains(&true)
        && alignment.reference_errors[reference_start..reference_start + length].contains(&true)
        && !(start + 1..=start + length).contains(&aligned)
}

/// The words with those at `start..start + length` put in front of the word at `target`.
fn moved(words: &[u32], start: usize, length: usize, target: usize) -> Vec<u32> {
    let end = start + length;
    let phrase = &words[start..end];
    if target < start {
        [&words[..target], phrase, &words[target..start], &words[end..]].concat()
    } else if target > end {
        [&words[..start], &words[end..target], phrase, &words[target..]].concat()
    } else {
        // Within itself: tercom moves it that much further to the right.
        let to = (length + target).min(words.len());
        [&words[..start], &words[end..to], phrase, &words[to..]].concat()
    }
}

/// A phrase that hypothesis and reference share.
struct Phrase {
    start: usize,
    reference_start: usize,
    length: usize,
}

/// All phrases that both have, near each other, by their places and then by their lengths.
fn matching_phrases(words: &[u32], reference: &[u32]) -> impl Iterator<Item = Phrase> {
    let starts = (0..words.len()).flat_map(|start| (0..reference.len()).map(move |other| (start, other)));
    let near = starts.filter(|(start, other)| start.abs_diff(*other) <= MAX_DISTANCE);
    near.flat_map(move |(start, reference_start)| {
        let same = words[start..].iter().zip(&reference[reference_start..]).take_while(|(a, b)| a == b);
        let longest = same.take(MAX_MOVED_WORDS).count();
        (1..=longest).map(move |length| Phrase { start, reference_start, length })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ter(hypothesis: &str, references: &[&str]) -> (u64, f64) {
        let counts = TerCounts::new(hypothesis, references, &TerOptions::default());
        (counts.edits, counts.reference_words)
    }

    #[test]
    fn edits_by_hand() {
        assert_eq!(ter("a b c", &["a b c"]), (0, 3.0));
        assert_eq!(ter("a x c", &["a b c"]), (1, 3.0));
        assert_eq!(ter("a c", &["a b c"]), (1, 3.0));
        assert_eq!(ter("a b b c", &["a b c"]), (1, 3.0));
        // A phrase at the wrong end is one move.
        assert_eq!(ter("d e a b c", &["a b c d e"]), (1, 5.0));
        assert_eq!(ter("", &["a b"]), (2, 2.0));
        assert_eq!(ter("a b", &[""]), (2, 0.0));
        assert_eq!(ter("a b", &["a c d", "a"]), (1, 2.0));
        assert_eq!(ter("a b", &[]), (0, 0.0));
    }

    #[test]
    fn empty_references_have_a_score() {
        let score = |h: &str, r: &str| TerCounts::new(h, &[r], &TerOptions::default()).score();
        assert_eq!((score("", ""), score("a b", ""), score("a b c d", "a")), (0.0, 100.0, 300.0));
    }

    #[test]
    fn a_move_keeps_every_word() {
        let words = [0, 1, 2, 3, 4, 5];
        for start in 0..6 {
            for length in 1..=6 - start {
                for target in 0..=6 {
                    let mut moved = moved(&words, start, length, target);
                    moved.sort_unstable();
                    assert_eq!(moved, words, "{start} {length} {target}");
                }
            }
        }
        assert_eq!(moved(&words, 3, 2, 1), [0, 3, 4, 1, 2, 5]);
        assert_eq!(moved(&words, 1, 2, 5), [0, 3, 4, 1, 2, 5]);
        assert_eq!(moved(&words, 1, 2, 2), [0, 3, 1, 2, 4, 5]);
        assert_eq!(moved(&words, 3, 3, 5), words);
    }
}
