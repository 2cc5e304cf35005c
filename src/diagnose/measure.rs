//! What a set of references says about a model, line by line. What depends on the sources alone is searched once, for all sets.

use super::Pair;
use super::flags::{Candidate, reasons};
use super::subject::{Found, Job, Prefix, Reference, Subject, greedy, shifted};
use super::sums::{DISTANCES, SWITCHES, Sums, bucket_of};
use super::tokens::{align, relative_bin};
use crate::backend::TokenStats;
use crate::cpu::philox::philox;
use crate::metrics::{BleuCounts, ChrfCounts, bleu_counts, chrf_counts, one_each, repetition_rate, tokenize_13a};
use crate::{DecodeOptions, LengthPenalty, Result};

/// Wrong picks per line that are put into the gold prefix.
const PICKS: usize = 2;

/// Beam sizes of the sweep.
const BEAM_SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Translations of the swept lines by one search.
#[derive(Clone, Debug)]
pub struct Swept {
    /// Beams.
    pub(super) beam_size: usize,
    /// The length penalty's name.
    pub(super) penalty: &'static str,
    /// In the order of the swept lines.
    pub(super) found: Vec<Found>,
}

/// What is looked at, and everything that depends on the sources alone.
pub struct Bench<'a> {
    pub(super) subject: &'a dyn Subject,
    pub(super) pairs: &'a [Pair],
    pub(super) search: DecodeOptions,
    /// Lines for corruption, prefix switch and other sources.
    pub(super) probed: Vec<usize>,
    /// Lines of the sweep.
    pub(super) swept: Vec<usize>,
    pub(super) greedy: Vec<Found>,
    pub(super) found: Vec<Found>,
    pub(super) sweep: Vec<Swept>,
    seed: u64,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bench of {} lines", self.pairs.len())
    }
}

/// The penalty of the sweep that the tests are about: the default of `translate`.
pub(super) const TESTED_PENALTY: &str = "gnmt 0.7";

impl<'a> Bench<'a> {
    /// Searches all sources; no sweep where no line is swept.
    ///
    /// # Errors
    /// What searching gives.
    pub fn new(
        subject: &'a dyn Subject,
        pairs: &'a [Pair],
        search: &DecodeOptions,
        (probed, swept): (Vec<usize>, Vec<usize>),
        seed: u64,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let all: Vec<usize> = (0..pairs.len()).collect();
        progress("greedy translations");
        let by_greedy = subject.translate(pairs, &all, &greedy(search))?;
        let is_greedy = search.beam_size == 1 && !search.sample;
        let found = if is_greedy {
            by_greedy.clone()
        } else {
            progress("translations");
            subject.translate(pairs, &all, search)?
        };
        let mut sweep = Vec::new();
        let penalties = [
            ("none", LengthPenalty::None, 0.0),
            (TESTED_PENALTY, LengthPenalty::Gnmt, 0.7),
            ("power 1", LengthPenalty::Power, 1.0),
        ];
        for (penalty, length_penalty, alpha) in penalties {
            for beam_size in BEAM_SIZES.into_iter().filter(|_| !swept.is_empty()) {
                progress(&format!("beam sweep: {beam_size} beams, length penalty {penalty}"));
                let options =
                    DecodeOptions { beam_size, length_penalty, alpha, sample: false, mbr: None, ..search.clone() };
                let found = subject.translate(pairs, &swept, &options)?;
                sweep.push(Swept { beam_size, penalty, found });
            }
        }
        Ok(Bench { subject, pairs, search: search.clone(), probed, swept, greedy: by_greedy, found, sweep, seed })
    }

    /// Statistics of references' tokens, teacher-forced under their own sources.
    ///
    /// # Errors
    /// What scoring gives.
    pub(super) fn forced(&self, references: &[Reference]) -> Result<Vec<Vec<TokenStats>>> {
        let start = self.subject.ids().decoder_start_id;
        let job = |(line, reference): (usize, &Reference)| {
            let target = reference.ids.clone();
            Job { line, source: line, inputs: shifted(start, &target), target }
        };
        self.subject.look(self.pairs, &references.iter().enumerate().map(job).collect::<Vec<_>>())
    }

    /// What each line contributes with these references, one for each line.
    ///
    /// # Errors
    /// What searching and scoring give.
    pub fn sums(&self, references: &[Reference]) -> Result<Vec<Sums>> {
        self.sums_of(references, &self.forced(references)?)
    }

    /// The same where the references' tokens have been looked at.
    pub(super) fn sums_of(&self, references: &[Reference], forced: &[Vec<TokenStats>]) -> Result<Vec<Sums>> {
        let mut sums: Vec<Sums> = (0..references.len()).map(|_| Sums { lines: 1.0, ..Sums::default() }).collect();
        for (sums, ((reference, forced), found)) in
            sums.iter_mut().zip(references.iter().zip(forced).zip(self.greedy.iter().zip(&self.found)))
        {
            along_the_sentence(sums, reference, forced, found);
        }
        self.scores(&mut sums, references, forced)?;
        self.wrong_picks(&mut sums, references, forced)?;
        self.switches(&mut sums, references)?;
        self.other_sources(&mut sums, references, forced)?;
        Ok(sums)
    }

    fn scores(&self, sums: &mut [Sums], references: &[Reference], forced: &[Vec<TokenStats>]) -> Result<()> {
        let texts: Vec<&str> = references.iter().map(|r| r.text.as_str()).collect();
        let (bleu, chrf) = counts(&self.found, &texts)?;
        let (greedy_bleu, greedy_chrf) = counts(&self.greedy, &texts)?;
        let candidates: Vec<Candidate<'_>> = self.candidates(&texts);
        let flagged = reasons(&candidates);
        for (line, sums) in sums.iter_mut().enumerate() {
            // A line's bucket is that of the test set's reference, whichever stands in its place.
            sums.chrf[bucket_of(self.pairs[line].reference_ids.len())] = chrf[line];
            (sums.bleu, sums.greedy_bleu, sums.greedy_chrf) = (bleu[line], greedy_bleu[line], greedy_chrf[line]);
            let reference: f64 = forced[line].iter().map(|s| f64::from(s.log_prob)).sum();
            sums.missed = f64::from(u8::from(reference > self.found[line].log_prob()));
            sums.flagged = f64::from(u8::from(!flagged[line].is_empty()));
            let rates = |text: &str| -> [f64; 4] {
                let tokens = tokenize_13a(text);
                std::array::from_fn(|order| repetition_rate(&tokens, order + 1))
            };
            sums.repeated = rates(&self.found[line].text);
            sums.repeated_by_reference = rates(texts[line]);
        }
        let swept: Vec<&str> = self.swept.iter().map(|&line| texts[line]).collect();
        for (which, beam_size) in [4, 16].into_iter().enumerate() {
            let is_tested = |s: &&Swept| s.beam_size == beam_size && s.penalty == TESTED_PENALTY;
            let Some(Swept { found, .. }) = self.sweep.iter().find(is_tested) else { continue };
            for (&line, chrf) in self.swept.iter().zip(counts(found, &swept)?.1) {
                sums[line].beams[which] = chrf;
            }
        }
        Ok(())
    }

    /// The search's translations as the flags see them, against these references.
    pub(super) fn candidates<'b>(&'b self, references: &[&'b str]) -> Vec<Candidate<'b>> {
        let candidate = |((pair, found), &reference): ((&'b Pair, &'b Found), &&'b str)| Candidate {
            source: &pair.source,
            hypothesis: &found.text,
            reference,
            log_prob: found.log_prob() / found.ids.len().max(1) as f64,
        };
        self.pairs.iter().zip(&self.found).zip(references).map(candidate).collect()
    }

    /// What a wrong token of the prefix does to the tokens behind it: one that the model itself would have said there.
    fn wrong_picks(&self, sums: &mut [Sums], references: &[Reference], forced: &[Vec<TokenStats>]) -> Result<()> {
        let ids = self.subject.ids();
        let (mut jobs, mut places) = (Vec::new(), Vec::new());
        for &line in &self.probed {
            let target = &references[line].ids;
            for position in self.picked(line, target, &forced[line]) {
                let mut inputs = shifted(ids.decoder_start_id, target);
                inputs[position + 1] = forced[line][position].argmax;
                jobs.push(Job { line, source: line, target: target.clone(), inputs });
                places.push((line, position));
            }
        }
        for (stats, (line, position)) in self.subject.look(self.pairs, &jobs)?.iter().zip(places) {
            for distance in (1..=DISTANCES).filter(|distance| position + distance < stats.len()) {
                let token = position + distance;
                let rise = f64::from(forced[line][token].log_prob) - f64::from(stats[token].log_prob);
                let share = &mut sums[line].rise[distance - 1];
                *share = (share.0 + rise, share.1 + 1.0);
            }
        }
        Ok(())
    }

    /// Places of a reference where the model's most probable token is another one: up to [`PICKS`] of them, drawn at random, with
    /// something behind each that is no end of sentence alone.
    fn picked(&self, line: usize, target: &[u32], forced: &[TokenStats]) -> Vec<usize> {
        let ids = self.subject.ids();
        let is_wrong = |&position: &usize| {
            let pick = forced[position].argmax;
            pick != target[position] && pick != ids.eos_id && pick != ids.pad_id
        };
        let mut wrong: Vec<usize> = (0..target.len().saturating_sub(2)).filter(is_wrong).collect();
        for at in 0..PICKS.min(wrong.len()) {
            let other = at + (uniform(self.seed, line, at) * (wrong.len() - at) as f64) as usize;
            wrong.swap(at, other);
        }
        wrong.truncate(PICKS);
        wrong
    }

    /// Continuations of gold prefixes against those of own ones, which are what greedy search wrote.
    fn switches(&self, sums: &mut [Sums], references: &[Reference]) -> Result<()> {
        let table = self.subject.longest();
        let cut = |line: usize, share: f64| (share * (references[line].ids.len() - 1) as f64) as usize;
        let prefixes: Vec<Prefix> = self
            .probed
            .iter()
            .flat_map(|&line| {
                let ids = &references[line].ids;
                let limit = self.search.max_length.resolve(self.pairs[line].source_ids.len(), table);
                let most = limit.max(ids.len()).min(table);
                SWITCHES.map(|share| Prefix { line, ids: ids[..cut(line, share)].to_vec(), most })
            })
            .collect();
        let whole = self.subject.go_on(self.pairs, &prefixes, &self.search)?;
        let text = |ids: &[u32], from: usize| self.subject.text(&ids[from.min(ids.len())..]);
        for (&line, continued) in self.probed.iter().zip(whole.chunks(SWITCHES.len())) {
            for (at, whole) in continued.iter().enumerate() {
                let from = cut(line, SWITCHES[at]);
                let rest = [[text(&references[line].ids, from)]];
                sums[line].after_gold[at] = chrf_counts(&[text(whole, from)], &rest)?[0];
                sums[line].after_own[at] = chrf_counts(&[text(&self.greedy[line].ids, from)], &rest)?[0];
            }
        }
        Ok(())
    }

    /// How much more probable a reference is under its own source than under the next line's.
    fn other_sources(&self, sums: &mut [Sums], references: &[Reference], forced: &[Vec<TokenStats>]) -> Result<()> {
        let start = self.subject.ids().decoder_start_id;
        let other = |line: usize| (line + 1) % self.pairs.len();
        let differs = |&&line: &&usize| self.pairs[other(line)].source_ids != self.pairs[line].source_ids;
        let lines: Vec<usize> = self.probed.iter().filter(differs).copied().collect();
        let job = |&line: &usize| {
            let target = references[line].ids.clone();
            Job { line, source: other(line), inputs: shifted(start, &target), target }
        };
        let stats = self.subject.look(self.pairs, &lines.iter().map(job).collect::<Vec<_>>())?;
        let sum = |stats: &[TokenStats]| stats.iter().map(|s| f64::from(s.log_prob)).sum::<f64>();
        for (&line, stats) in lines.iter().zip(&stats) {
            sums[line].distractor = (sum(&forced[line]) - sum(stats), stats.len() as f64);
        }
        Ok(())
    }
}

/// Teacher-forced numbers, and which tokens the searches found.
fn along_the_sentence(
    sums: &mut Sums,
    reference: &Reference,
    forced: &[TokenStats],
    (greedy, found): (&Found, &Found),
) {
    let len = forced.len();
    let (by_greedy, _) = align(&reference.ids, &greedy.ids);
    let (by_search, _) = align(&reference.ids, &found.ids);
    sums.tokens = len as f64;
    for (t, stats) in forced.iter().enumerate() {
        let values = MEASURES.map(|(.., value)| value(stats));
        sums.forced.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        let counted = |yes: bool| f64::from(u8::from(yes));
        let bin = &mut sums.positions[relative_bin(t, len)];
        let columns = [1.0, values[1], counted(by_greedy[t]), counted(by_search[t])];
        bin.iter_mut().zip(columns).for_each(|(sum, value)| *sum += value);
    }
}

/// Name, unit and value of what is measured at each token.
pub(super) type Measure = (&'static str, &'static str, fn(&TokenStats) -> f64);

/// What is measured at each reference token after gold ones.
pub(super) const MEASURES: [Measure; 5] = [
    ("negative log-likelihood", "nats per token", |s| -f64::from(s.log_prob)),
    ("accuracy", "share of tokens", |s| f64::from(u8::from(s.rank == 1))),
    ("log gold rank", "mean log rank", |s| f64::from(s.rank).ln()),
    ("top-1 mass", "probability", |s| f64::from(s.max_log_prob).exp()),
    ("entropy", "nats", |s| f64::from(s.entropy)),
];

/// Counts for BLEU and chrF2 of translations.
pub(super) fn counts(found: &[Found], references: &[&str]) -> Result<(Vec<BleuCounts>, Vec<ChrfCounts>)> {
    if found.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let texts: Vec<&str> = found.iter().map(|found| found.text.as_str()).collect();
    let references = one_each(references);
    Ok((bleu_counts(&texts, &references)?, chrf_counts(&texts, &references)?))
}

/// A random number in 0..1 that depends on the seed and on its place alone.
fn uniform(seed: u64, line: usize, which: usize) -> f64 {
    f64::from(philox(seed, [line as u32, which as u32, 0, 0x6469_6167])[0]) / 2f64.powi(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Translator;
    use crate::diagnose::{TestSet, spread};

    #[test]
    fn random_numbers_depend_on_their_place_alone() {
        let draws: Vec<f64> = (0..1000).map(|i| uniform(1, i, 2)).collect();
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.03 && draws.iter().all(|u| (0.0..1.0).contains(u)), "{mean}");
        assert_ne!(uniform(2, 7, 2), draws[7]);
    }

    #[test]
    fn wrong_picks_are_what_the_model_would_have_said() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let translator = Translator::open(root.join("models/m30k-en-de-amateur")).expect("the amateur");
        let owned = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let sources = owned(&["A dog runs in the snow.", "Two men are sitting on a bench."]);
        let set = TestSet::new(&translator, &sources, &owned(&["Die Katze schläft heute.", "Zwei Männer sitzen."]));
        let lines = spread(2, 2);
        let options = DecodeOptions::default();
        let bench =
            Bench::new(&translator, &set.pairs, &options, (lines, Vec::new()), 9, &mut |_| ()).expect("a bench");
        let gold: Vec<Reference> = set.pairs.iter().map(Pair::gold).collect();
        let forced = bench.forced(&gold).expect("statistics");
        let picked = bench.picked(0, &gold[0].ids, &forced[0]);
        assert!(!picked.is_empty() && picked.len() <= PICKS);
        for &position in &picked {
            assert!(forced[0][position].argmax != gold[0].ids[position] && position + 2 < gold[0].ids.len());
        }
        // A reference that is the model's own greedy translation has no place with another pick.
        let own = &bench.greedy[0].ids;
        let forced = bench.forced(&[Reference { text: String::new(), ids: own.clone() }]).expect("statistics");
        assert!(bench.picked(0, own, &forced[0]).is_empty());
    }
}
