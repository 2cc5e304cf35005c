//! What each line contributes to the numbers of a diagnosis, and the numbers that sums over lines give.
//!
//! Everything that is compared with the null is a function of sums over lines. So drawing lines anew, or exchanging a line's
//! reference for a sampled one, is adding up again.

use std::ops::AddAssign;

use super::estimate::{Share, quotient};
use super::tokens::{BINS, half_life};
use crate::metrics::{BleuCounts, ChrfCounts, Counts};

/// Where the prefix ends in the prefix switch, as a share of the reference.
pub(super) const SWITCHES: [f64; 4] = [0.1, 0.25, 0.5, 0.75];

/// How far behind a wrong token its effect is followed.
pub(super) const DISTANCES: usize = 16;

/// Buckets of reference lengths in the model's tokens, end of sentence included; the last is open.
pub(super) const BUCKETS: [(usize, usize); 6] = [(1, 8), (9, 16), (17, 32), (33, 48), (49, 64), (65, usize::MAX)];

/// Fewer lines on either side, and a bucket is not compared with the others.
pub(super) const BUCKET_LINES: usize = 30;

/// Bins of position that the test of the curves takes, each two of the curves' own: fewer, so that each holds more tokens.
pub(super) const TEST_BINS: usize = BINS / 2;

/// The bucket of a length.
pub(super) fn bucket_of(length: usize) -> usize {
    BUCKETS.iter().position(|(_, high)| length <= *high).unwrap_or(BUCKETS.len() - 1)
}

/// A bucket's name.
pub(super) fn bucket_name((low, high): (usize, usize)) -> String {
    if high == usize::MAX { format!("{low}+") } else { format!("{low}-{high}") }
}

/// Sums over lines, of one line at first.
#[derive(Clone, Debug)]
pub struct Sums {
    /// Lines.
    pub(super) lines: f64,
    /// Tokens of the references.
    pub(super) tokens: f64,
    /// Over reference tokens, each after the gold ones before it: negative log-likelihood, whether it is the most probable token,
    /// logarithm of its rank, the largest probability, entropy.
    pub(super) forced: [f64; 5],
    /// By share of the sentence: reference tokens, those most probable on gold prefixes, those that greedy search and the search found.
    pub(super) positions: [[f64; 4]; BINS],
    pub(super) bleu: BleuCounts,
    pub(super) greedy_bleu: BleuCounts,
    /// Of the search, by the reference's length.
    pub(super) chrf: [ChrfCounts; BUCKETS.len()],
    pub(super) greedy_chrf: ChrfCounts,
    /// What follows gold prefixes, and own ones, against the rest of the reference.
    pub(super) after_gold: [ChrfCounts; SWITCHES.len()],
    pub(super) after_own: [ChrfCounts; SWITCHES.len()],
    /// Nats lost on the tokens behind a wrong one.
    pub(super) rise: [Share; DISTANCES],
    pub(super) distractor: Share,
    /// References that are more probable than the translation.
    pub(super) missed: f64,
    pub(super) flagged: f64,
    /// Shares of n-grams that stand earlier in their line, n from 1 to 4.
    pub(super) repeated: [f64; 4],
    pub(super) repeated_by_reference: [f64; 4],
    /// 4 beams and 16, with the GNMT length penalty.
    pub(super) beams: [ChrfCounts; 2],
}

impl Default for Sums {
    fn default() -> Self {
        Sums {
            lines: 0.0,
            tokens: 0.0,
            forced: [0.0; 5],
            positions: [[0.0; 4]; BINS],
            bleu: BleuCounts::default(),
            greedy_bleu: BleuCounts::default(),
            chrf: [ChrfCounts::default(); BUCKETS.len()],
            greedy_chrf: ChrfCounts::default(),
            after_gold: [ChrfCounts::default(); SWITCHES.len()],
            after_own: [ChrfCounts::default(); SWITCHES.len()],
            rise: [(0.0, 0.0); DISTANCES],
            distractor: (0.0, 0.0),
            missed: 0.0,
            flagged: 0.0,
            repeated: [0.0; 4],
            repeated_by_reference: [0.0; 4],
            beams: [ChrfCounts::default(); 2],
        }
    }
}

fn add_all<T: AddAssign + Copy>(to: &mut [T], from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
}

fn add_share(to: &mut Share, from: Share) {
    *to = (to.0 + from.0, to.1 + from.1);
}

impl AddAssign<&Sums> for Sums {
    fn add_assign(&mut self, other: &Sums) {
        self.lines += other.lines;
        self.tokens += other.tokens;
        add_all(&mut self.forced, &other.forced);
        self.positions.iter_mut().zip(&other.positions).for_each(|(to, from)| add_all(to, from));
        self.bleu += other.bleu;
        self.greedy_bleu += other.greedy_bleu;
        add_all(&mut self.chrf, &other.chrf);
        self.greedy_chrf += other.greedy_chrf;
        add_all(&mut self.after_gold, &other.after_gold);
        add_all(&mut self.after_own, &other.after_own);
        self.rise.iter_mut().zip(other.rise).for_each(|(to, from)| add_share(to, from));
        add_share(&mut self.distractor, other.distractor);
        self.missed += other.missed;
        self.flagged += other.flagged;
        add_all(&mut self.repeated, &other.repeated);
        add_all(&mut self.repeated_by_reference, &other.repeated_by_reference);
        add_all(&mut self.beams, &other.beams);
    }
}

fn score(counts: &[ChrfCounts]) -> f64 {
    let mut sum = ChrfCounts::default();
    counts.iter().for_each(|&c| sum += c);
    // Without a reference there is no score; without a match it is 0.
    if sum.reference[0] == 0 { f64::NAN } else { sum.score() }
}

/// The rise at each distance, as far as any line reaches.
fn rises(sums: &Sums) -> Vec<f64> {
    sums.rise.iter().map(|&share| quotient([share].into_iter())).take_while(|v| v.is_finite()).collect()
}

/// A rule that a verdict is made of: one test over all statistics that can trigger it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Own prefixes cost more than gold ones.
    Gap,
    /// References of some length are translated worse than others.
    Lengths,
    /// The source counts for too little.
    Source,
    /// Translations are too short, or wide beams lose.
    Short,
    /// Translations repeat themselves.
    Repetition,
    /// Search misses better translations.
    Search,
    /// The model is further from an oracle on its own prefixes.
    Oracle,
}

impl Rule {
    /// All that references can trigger.
    pub const OF_REFERENCES: [Rule; 6] =
        [Rule::Gap, Rule::Lengths, Rule::Source, Rule::Short, Rule::Repetition, Rule::Search];
}

/// Which way a statistic is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worse {
    /// Above the null.
    Above,
    /// Below the null.
    Below,
}

/// A number that sums over lines give.
pub struct Statistic {
    pub(super) group: &'static str,
    pub(super) name: String,
    pub(super) note: &'static str,
    of: Box<dyn Fn(&Sums) -> f64 + Sync + Send>,
    pub(super) triggers: Option<(Rule, Worse)>,
    /// Whether it is a figure of its own; the bins of a curve are not.
    pub(super) shown: bool,
}

impl std::fmt::Debug for Statistic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.group, self.name)
    }
}

impl Statistic {
    /// Its value; NaN without anything to compute it from.
    pub fn of(&self, sums: &Sums) -> f64 {
        (self.of)(sums)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The statistics of a set of references, in the order in which they are shown.
pub(super) fn statistics(value: &[Sums]) -> Vec<Statistic> {
    let mut all: Vec<Statistic> = Vec::new();
    let mut add = |group, name: &str, note: &'static str, of: fn(&Sums) -> f64, triggers: Option<(Rule, Worse)>| {
        all.push(Statistic { group, name: name.to_owned(), note, of: Box::new(of), triggers, shown: true });
    };
    let gap = |worse| Some((Rule::Gap, worse));
    add("teacher-forced", "negative log-likelihood", "nats per reference token", |s| s.forced[0] / s.tokens, None);
    add(
        "teacher-forced",
        "accuracy",
        "share of reference tokens that are most probable",
        |s| s.forced[1] / s.tokens,
        None,
    );
    add(
        "teacher-forced",
        "log gold rank",
        "mean of the logarithm of the reference token's rank",
        |s| s.forced[2] / s.tokens,
        None,
    );
    add("teacher-forced", "top-1 mass", "probability of the most probable token", |s| s.forced[3] / s.tokens, None);
    add("teacher-forced", "entropy", "nats of the distribution over the next token", |s| s.forced[4] / s.tokens, None);

    let found = "share of reference tokens found, in order";
    add("own prefixes", "aligned accuracy, greedy", found, |s| column(s, 2) / s.tokens, None);
    add("own prefixes", "aligned accuracy, search", found, |s| column(s, 3) / s.tokens, None);
    let note = "aligned accuracy of greedy search minus accuracy on gold prefixes";
    add(
        "own prefixes",
        "own minus gold accuracy",
        note,
        |s| (column(s, 2) - column(s, 1)) / s.tokens,
        gap(Worse::Below),
    );

    let note = "nats lost on the token behind an own wrong pick";
    add("recovery", "first rise", note, |s| rises(s).first().copied().unwrap_or(f64::NAN), None);
    let note = "nats lost on the 16 tokens behind an own wrong pick";
    let area = |s: &Sums| if rises(s).is_empty() { f64::NAN } else { rises(s).iter().sum() };
    add("recovery", "area", note, area, gap(Worse::Above));
    add("recovery", "half-life", "tokens until half of the first rise is gone", |s| half_life(&rises(s)), None);

    let note = "chrF2 of what follows gold prefixes over that of own ones";
    add(
        "prefix switch",
        "prefix-switch ratio",
        note,
        |s| score(&s.after_gold) / score(&s.after_own),
        gap(Worse::Above),
    );

    let note = "nats per token that the own source is worth over another";
    let of = |s: &Sums| s.distractor.0 / s.distractor.1;
    add("source", "distractor gap", note, of, Some((Rule::Source, Worse::Below)));

    add("search", "BLEU", "of the search", |s| s.bleu.score(), None);
    add("search", "BLEU, greedy", "of greedy search", |s| s.greedy_bleu.score(), None);
    add("search", "BLEU gain over greedy", "on the same lines", |s| s.bleu.score() - s.greedy_bleu.score(), None);
    add("search", "chrF2", "of the search", |s| score(&s.chrf), None);
    add("search", "chrF2, greedy", "of greedy search", |s| score(&[s.greedy_chrf]), None);
    let of = |s: &Sums| s.bleu.length_ratio();
    add("search", "length ratio", "hypothesis tokens per reference token", of, Some((Rule::Short, Worse::Below)));
    let note = "share of lines whose reference is more probable";
    add("search", "search errors", note, |s| s.missed / s.lines, Some((Rule::Search, Worse::Above)));
    let note = "with the GNMT length penalty, on the same swept lines";
    let of = |s: &Sums| score(&s.beams[..1]) - score(&s.beams[1..]);
    add("search", "chrF2 lost from 4 beams to 16", note, of, Some((Rule::Short, Worse::Above)));

    let note = "share of n-grams that stand earlier in their line";
    add("repetition", "rep-1", note, |s| s.repeated[0] / s.lines, None);
    add("repetition", "rep-2", note, |s| s.repeated[1] / s.lines, None);
    add("repetition", "rep-3", note, |s| s.repeated[2] / s.lines, None);
    add("repetition", "rep-4", note, |s| s.repeated[3] / s.lines, None);
    let note = "sum of rep-1 to rep-4, less that of the references";
    let of = |s: &Sums| (s.repeated.iter().sum::<f64>() - s.repeated_by_reference.iter().sum::<f64>()) / s.lines;
    add("repetition", "repetition beyond the references'", note, of, Some((Rule::Repetition, Worse::Above)));

    let note = "share of lines with at least one reason";
    add("hallucination", "flagged lines", note, |s| s.flagged / s.lines, Some((Rule::Source, Worse::Above)));
    all.extend((0..TEST_BINS).map(curve_bin));
    all.extend(eligible_buckets(value).into_iter().map(bucket));
    all
}

fn column(sums: &Sums, column: usize) -> f64 {
    sums.positions.iter().map(|bin| bin[column]).sum()
}

/// The middle of a test bin, as a share of the sentence.
pub(super) fn test_bin_middle(bin: usize) -> f64 {
    (bin as f64 + 0.5) / TEST_BINS as f64
}

/// Own minus gold accuracy in a part of the sentence.
fn curve_bin(bin: usize) -> Statistic {
    let of = move |s: &Sums| {
        let bins = &s.positions[2 * bin..2 * bin + 2];
        let sum = |column: usize| bins.iter().map(|bin| bin[column]).sum::<f64>();
        (sum(2) - sum(1)) / sum(0)
    };
    Statistic {
        group: "own minus gold accuracy",
        name: format!("own minus gold accuracy at {:.2} of the sentence", test_bin_middle(bin)),
        note: "",
        of: Box::new(of),
        triggers: Some((Rule::Gap, Worse::Below)),
        shown: false,
    }
}

/// Buckets with lines enough, within and outside.
fn eligible_buckets(value: &[Sums]) -> Vec<usize> {
    let lines = |bucket: usize| value.iter().filter(|s| s.chrf[bucket].reference[0] > 0).count();
    let enough = |&bucket: &usize| lines(bucket) >= BUCKET_LINES && value.len() - lines(bucket) >= BUCKET_LINES;
    (0..BUCKETS.len()).filter(enough).collect()
}

/// chrF2 of a bucket minus that of all other lines.
fn bucket(bucket: usize) -> Statistic {
    let of = move |s: &Sums| {
        let mut others = s.chrf;
        others[bucket] = ChrfCounts::default();
        score(&s.chrf[bucket..=bucket]) - score(&others)
    };
    Statistic {
        group: "lengths",
        name: format!("chrF2 at {} tokens, less that of the other lines", bucket_name(BUCKETS[bucket])),
        note: "by the reference's tokens",
        of: Box::new(of),
        triggers: Some((Rule::Lengths, Worse::Below)),
        shown: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{chrf_counts, one_each};

    #[test]
    fn lengths_fall_into_disjoint_buckets() {
        assert_eq!([1, 8, 9, 32, 64, 65, 1000].map(bucket_of), [0, 0, 1, 2, 4, 5, 5]);
        assert_eq!((bucket_name(BUCKETS[1]), bucket_name(BUCKETS[5])), ("9-16".into(), "65+".into()));
    }

    fn line(bucket: usize, hypothesis: &str, reference: &str) -> Sums {
        let mut sums = Sums { lines: 1.0, ..Sums::default() };
        sums.chrf[bucket] = chrf_counts(&[hypothesis], &one_each(&[reference])).expect("a line")[0];
        sums
    }

    #[test]
    fn a_bucket_is_compared_with_all_lines_but_its_own() {
        let good = || (0..40).map(|_| line(0, "ein Hund", "ein Hund"));
        let bad = (0..40).map(|_| line(2, "eine Maus", "ein Hund"));
        let lines: Vec<Sums> = good().chain(bad).collect();
        let statistics = statistics(&lines);
        let found: Vec<&Statistic> = statistics.iter().filter(|s| s.group == "lengths").collect();
        let mut all = Sums::default();
        lines.iter().for_each(|line| all += line);
        let alone = score(&[line(2, "eine Maus", "ein Hund").chrf[2]]);
        let values: Vec<f64> = found.iter().map(|s| s.of(&all)).collect();
        assert_eq!(values, [100.0 - alone, alone - 100.0]);
        // Too few lines on the other side.
        assert!(eligible_buckets(&good().collect::<Vec<_>>()).is_empty());
    }

    #[test]
    fn names_are_unique() {
        let statistics = statistics(&[]);
        let mut names: Vec<(&str, &str)> = statistics.iter().map(|s| (s.group, s.name())).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(statistics.len() > 30);
    }
}
