//! Edit distance near the diagonal, with the alignment that tercom takes among equally good ones.

/// How far from the diagonal edits are searched for, in reference words.
const BEAM: usize = 25;
/// More than any distance.
const UNREACHED: u64 = 1 << 53;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Unreached,
    /// The words are the same, or one is put for the other.
    Same,
    Substitute,
    /// A word of the hypothesis goes.
    Delete,
    /// A word of the reference comes in.
    Insert,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    cost: u64,
    edit: Edit,
}

/// Distances of many hypotheses, permutations of one another, to one reference.
pub(super) struct Distance<'a> {
    reference: &'a [u32],
    /// The hypothesis that `rows` belong to: rows of a shared beginning are kept.
    words: Vec<u32>,
    /// A row for the empty hypothesis, and one for each word, of a cell for each beginning of the reference.
    rows: Vec<Cell>,
}

/// Where the words of the reference stand in the hypothesis, and which words differ.
pub(super) struct Alignment {
    /// For each reference word the number of hypothesis words up to where it stands, its own included.
    pub of_reference: Vec<usize>,
    pub reference_errors: Vec<bool>,
    pub hypothesis_errors: Vec<bool>,
}

impl<'a> Distance<'a> {
    pub fn new(reference: &'a [u32]) -> Self {
        let insert = |cost| Cell { cost, edit: Edit::Insert };
        let rows = (0..=reference.len() as u64).map(insert).collect();
        Distance { reference, words: Vec::new(), rows }
    }

    /// Insertions, deletions and substitutions that turn the words into the reference.
    pub fn of(&mut self, words: &[u32]) -> u64 {
        self.fill(words);
        self.rows.last().map_or(0, |cell| cell.cost)
    }

    /// The same, and the alignment that goes with it.
    pub fn align(&mut self, words: &[u32]) -> (u64, Alignment) {
        let cost = self.of(words);
        let width = self.reference.len() + 1;
        let mut edits = Vec::new();
        let (mut i, mut j) = (words.len(), self.reference.len());
        while i > 0 || j > 0 {
            let edit = self.rows[i * width + j].edit;
            // Off the beam there is no edit: what is left is taken away on both sides.
            let edit = match edit {
                Edit::Unreached if i > 0 => Edit::Delete,
                Edit::Unreached => Edit::Insert,
                edit => edit,
            };
            edits.push(edit);
            i -= usize::from(edit != Edit::Insert);
            j -= usize::from(edit != Edit::Delete);
        }
        (cost, Alignment::new(edits.into_iter().rev()))
    }

    /// Computes the rows of these words, as far as they are not those of the last ones.
    fn fill(&mut self, words: &[u32]) {
        let same = match self.words.len() == words.len() {
            true => words.iter().zip(&self.words).take_while(|(a, b)| a == b).count(),
            // The diagonal is another one.
            false => 0,
        };
        let (reference, width) = (self.reference, self.reference.len() + 1);
        self.words.clear();
        self.words.extend_from_slice(words);
        self.rows.truncate((same + 1) * width);
        self.rows.resize((words.len() + 1) * width, Cell { cost: UNREACHED, edit: Edit::Unreached });
        let ratio = if words.is_empty() { 1.0 } else { reference.len() as f64 / words.len() as f64 };
        // Where lengths differ very much, two rows still have to overlap.
        let beam = if (BEAM as f64) < ratio / 2.0 { (ratio / 2.0 + BEAM as f64).ceil() as usize } else { BEAM };
        for i in same + 1..=words.len() {
            let diagonal = (i as f64 * ratio).floor() as usize;
            let first = diagonal.saturating_sub(beam);
            let end = if i == words.len() { width } else { width.min(diagonal + beam) };
            let (before, row) = self.rows[(i - 1) * width..].split_at_mut(width);
            for j in first..end {
                row[j] = best(words[i - 1], j, reference, before, row);
            }
        }
    }
}

/// The best edit that ends at a word and before reference word `j`; of equally good ones a pair, then a deletion.
fn best(word: u32, j: usize, reference: &[u32], before: &[Cell], row: &[Cell]) -> Cell {
    let delete = Cell { cost: before[j].cost + 1, edit: Edit::Delete };
    if j == 0 {
        return delete;
    }
    let pair = match word == reference[j - 1] {
        true => Cell { cost: before[j - 1].cost, edit: Edit::Same },
        false => Cell { cost: before[j - 1].cost + 1, edit: Edit::Substitute },
    };
    let insert = Cell { cost: row[j - 1].cost + 1, edit: Edit::Insert };
    let mut best = Cell { cost: UNREACHED, edit: Edit::Unreached };
    for cell in [pair, delete, insert] {
        if cell.cost < best.cost {
            best = cell;
        }
    }
    best
}

impl Alignment {
    fn new(edits: impl Iterator<Item = Edit>) -> Self {
        let (mut of_reference, mut reference_errors, mut hypothesis_errors) = (Vec::new(), Vec::new(), Vec::new());
        for edit in edits {
            let is_error = edit != Edit::Same;
            if edit != Edit::Insert {
                hypothesis_errors.push(is_error);
            }
            if edit != Edit::Delete {
                of_reference.push(hypothesis_errors.len());
                reference_errors.push(is_error);
            }
        }
        Alignment { of_reference, reference_errors, hypothesis_errors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_shared_beginning_change_nothing() {
        let reference: Vec<u32> = (0..60).map(|i| i * 7 % 13).collect();
        let mut together = Distance::new(&reference);
        let mut words: Vec<u32> = (0..40).map(|i| i * 5 % 13).collect();
        for swap in [(3, 9), (0, 39), (20, 21), (20, 21), (39, 1)] {
            words.swap(swap.0, swap.1);
            assert_eq!(together.of(&words), Distance::new(&reference).of(&words));
        }
        for shorter in [&words[..39], &words[..7], &[], &words[..40]] {
            assert_eq!(together.of(shorter), Distance::new(&reference).of(shorter));
        }
    }

    #[test]
    fn an_alignment_counts_the_words_before() {
        let (cost, alignment) = Distance::new(&[1, 2, 3, 4]).align(&[1, 9, 3, 8, 4]);
        assert_eq!((cost, alignment.of_reference), (2, vec![1, 2, 3, 5]));
        assert_eq!(alignment.reference_errors, [false, true, false, false]);
        assert_eq!(alignment.hypothesis_errors, [false, true, false, true, false]);
    }
}
