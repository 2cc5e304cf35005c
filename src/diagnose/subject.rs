//! What a diagnosis asks of a model. A [`Translator`] answers; so does a model with planted damage, in the simulation of false alarms.

use super::Pair;
use crate::backend::{SpecialIds, TokenStats};
use crate::translator::{Forced, Translator};
use crate::{DecodeOptions, Hypothesis, MaxLength, Result};

/// A translation.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its text.
    pub text: String,
    /// Its tokens, end of sentence included.
    pub ids: Vec<u32>,
    /// The log-probability of each token, in nats.
    pub log_probs: Vec<f32>,
}

impl Found {
    /// Of all tokens.
    pub fn log_prob(&self) -> f64 {
        self.log_probs.iter().map(|l| f64::from(*l)).sum()
    }
}

/// A reference, the test set's own or one that was sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reference {
    /// Its text.
    pub text: String,
    /// The tokens that the text is made of, end of sentence included.
    pub ids: Vec<u32>,
}

/// How to sample translations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draws {
    /// Translations of each line.
    pub count: usize,
    /// Above 0; 1 is the model's own distribution.
    pub temperature: f32,
    /// Another seed draws others.
    pub seed: u64,
}

/// A target and what the decoder reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The line that the target belongs to.
    pub line: usize,
    /// The line whose source is read.
    pub source: usize,
    /// The target, end of sentence included.
    pub target: Vec<u32>,
    /// The start token, and what stands for the target's tokens but the last.
    pub inputs: Vec<u32>,
}

/// The beginning of a translation that greedy search goes on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// Whose source.
    pub line: usize,
    /// Tokens that are there.
    pub ids: Vec<u32>,
    /// Tokens of the whole, at most.
    pub most: usize,
}

/// A model under test. Lines are indices of `pairs`; results stand in the order of what was asked.
pub trait Subject: Sync {
    /// Ids with a meaning of their own.
    fn ids(&self) -> SpecialIds;
    /// The longest target.
    fn longest(&self) -> usize;
    /// The text of a target's tokens.
    fn text(&self, ids: &[u32]) -> String;
    /// A text as a reference.
    fn reference(&self, text: String) -> Reference;

    /// The best translation of each line.
    ///
    /// # Errors
    /// What searching gives.
    fn translate(&self, pairs: &[Pair], lines: &[usize], options: &DecodeOptions) -> Result<Vec<Found>>;

    /// Samples of each line, which need not end.
    ///
    /// # Errors
    /// What searching gives.
    fn sample(&self, pairs: &[Pair], lines: &[usize], draws: Draws) -> Result<Vec<Vec<Vec<u32>>>>;

    /// What greedy search makes of each prefix, the prefix included.
    ///
    /// # Errors
    /// What searching gives.
    fn go_on(&self, pairs: &[Pair], prefixes: &[Prefix], options: &DecodeOptions) -> Result<Vec<Vec<u32>>>;

    /// What the model says of each job's tokens.
    ///
    /// # Errors
    /// What scoring gives.
    fn look(&self, pairs: &[Pair], jobs: &[Job]) -> Result<Vec<Vec<TokenStats>>>;
}

/// Pairs that go to the engine at once: bounds the memory for their copies.
const AT_ONCE: usize = 2048;

impl Subject for Translator {
    fn ids(&self) -> SpecialIds {
        self.config().ids
    }

    fn longest(&self) -> usize {
        self.config().longest()
    }

    fn text(&self, ids: &[u32]) -> String {
        self.tokenizer().detokenize(ids)
    }

    fn reference(&self, text: String) -> Reference {
        let ids = self.tokenizer().encode_target(&text);
        Reference { text, ids }
    }

    fn translate(&self, pairs: &[Pair], lines: &[usize], options: &DecodeOptions) -> Result<Vec<Found>> {
        let texts: Vec<&str> = lines.iter().map(|&i| pairs[i].source.as_str()).collect();
        let options = DecodeOptions { n_best: 1, ..options.clone() };
        let found = Translator::translate(self, &texts, &options)?;
        let best = |translation: crate::Translation| {
            let text = translation.text().to_owned();
            let Hypothesis { token_ids, token_log_probs, .. } = &*translation.hypotheses[0];
            Found { text, ids: token_ids.clone(), log_probs: token_log_probs.clone() }
        };
        Ok(found.into_iter().map(best).collect())
    }

    fn sample(&self, pairs: &[Pair], lines: &[usize], draws: Draws) -> Result<Vec<Vec<Vec<u32>>>> {
        let mut found = vec![Vec::new(); lines.len()];
        // Equal sources would draw the same samples under one seed: each further one gets a seed of its own.
        let mut seen = std::collections::HashMap::<&[u32], u64>::new();
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        for (at, &line) in lines.iter().enumerate() {
            let round = seen.entry(&pairs[line].source_ids).or_default();
            if rounds.len() <= *round as usize {
                rounds.push(Vec::new());
            }
            rounds[*round as usize].push(at);
            *round += 1;
        }
        for (round, members) in rounds.iter().enumerate() {
            let sources: Vec<Vec<u32>> = members.iter().map(|&at| pairs[lines[at]].source_ids.clone()).collect();
            let options = DecodeOptions::default().with(|o| {
                (o.sample, o.samples, o.temperature) = (true, draws.count, draws.temperature);
                o.seed = draws.seed.wrapping_add((round as u64) << 32);
            });
            for (&at, samples) in members.iter().zip(self.translate_ids(&sources, &options)?) {
                found[at] = samples?.into_iter().map(|hypothesis| hypothesis.token_ids).collect();
            }
        }
        Ok(found)
    }

    fn go_on(&self, pairs: &[Pair], prefixes: &[Prefix], options: &DecodeOptions) -> Result<Vec<Vec<u32>>> {
        // What greedy search writes does not depend on its limit: all get the largest, and are cut at their own.
        let limit = MaxLength::Absolute(prefixes.iter().map(|prefix| prefix.most).max().unwrap_or(1));
        let options = greedy(options).with(|o| (o.cut, o.max_length) = (true, limit));
        let given: Vec<(Vec<u32>, Vec<u32>)> =
            prefixes.iter().map(|prefix| (pairs[prefix.line].source_ids.clone(), prefix.ids.clone())).collect();
        let whole = |(hypotheses, prefix): (Result<Vec<Hypothesis>>, &Prefix)| {
            let mut ids = hypotheses?.swap_remove(0).token_ids;
            ids.truncate(prefix.most);
            Ok(ids)
        };
        self.continue_ids(&given, &options)?.into_iter().zip(prefixes).map(whole).collect()
    }

    fn look(&self, pairs: &[Pair], jobs: &[Job]) -> Result<Vec<Vec<TokenStats>>> {
        let mut all = Vec::with_capacity(jobs.len());
        for part in jobs.chunks(AT_ONCE) {
            let forced: Vec<Forced<'_>> = part
                .iter()
                .map(|job| Forced {
                    source: &pairs[job.source].source_ids,
                    target: &job.target,
                    inputs: Some(&job.inputs),
                })
                .collect();
            for stats in self.token_stats(&forced) {
                all.push(stats?);
            }
        }
        Ok(all)
    }
}

/// The same search with one beam.
pub(super) fn greedy(options: &DecodeOptions) -> DecodeOptions {
    DecodeOptions { beam_size: 1, n_best: 1, ..options.clone() }
}

/// What the decoder reads when it is forced to a target.
pub fn shifted(start: u32, target: &[u32]) -> Vec<u32> {
    let kept = &target[..target.len().saturating_sub(1)];
    [&[start], kept].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::TestSet;

    #[test]
    fn the_decoder_reads_the_target_one_behind() {
        assert_eq!(shifted(9, &[1, 2, 3]), [9, 1, 2]);
        assert_eq!(shifted(9, &[3]), [9]);
    }

    fn demo() -> Translator {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        Translator::open(root.join("models/m30k-en-de")).expect("the demo model")
    }

    /// What greedy search is by definition: all of the prefix read anew for each token, the most probable one appended.
    fn token_by_token(translator: &Translator, pairs: &[Pair], prefix: &Prefix) -> Vec<u32> {
        let ids = translator.config().ids;
        let mut whole = prefix.ids.clone();
        while whole.len() < prefix.most && whole.last() != Some(&ids.eos_id) {
            let target = [&whole[..], &[ids.eos_id]].concat();
            let inputs = shifted(ids.decoder_start_id, &target);
            let job = Job { line: prefix.line, source: prefix.line, target, inputs };
            let stats = translator.look(pairs, &[job]).expect("statistics");
            whole.push(stats[0].last().expect("a row").argmax);
        }
        whole
    }

    #[test]
    fn prefixes_are_continued_as_token_by_token() {
        let translator = demo();
        let sources = ["A dog runs in the snow.", "Two men are sitting on a bench.", "A girl in a red dress."];
        let others = [
            "Ein Hund rennt durch den Schnee.",
            "Zwei Katzen schlafen unter einem alten Tisch.",
            "Haus Haus Haus Haus",
        ];
        let owned = |texts: [&str; 3]| texts.map(str::to_owned).to_vec();
        let set = TestSet::new(&translator, &owned(sources), &owned(others));
        let mut prefixes = Vec::new();
        for (line, pair) in set.pairs.iter().enumerate() {
            let other = &pair.reference_ids[..pair.reference_ids.len() - 1];
            for (given, most) in [(0, 40), (1, 40), (other.len() / 2, 40), (other.len(), 40), (2, 5), (3, 4)] {
                prefixes.push(Prefix { line, ids: other[..given.min(other.len())].to_vec(), most });
            }
        }
        let found = translator.go_on(&set.pairs, &prefixes, &DecodeOptions::default()).expect("continuations");
        for (prefix, found) in prefixes.iter().zip(&found) {
            assert!(found.starts_with(&prefix.ids) && found.len() > prefix.ids.len());
            assert_eq!(*found, token_by_token(&translator, &set.pairs, prefix), "{prefix:?}");
        }
        assert!(found.iter().any(|ids| ids.len() == 4) && found.iter().any(|ids| ids.last() == Some(&0)));
    }

    #[test]
    fn equal_sources_draw_samples_of_their_own() {
        let translator = demo();
        let texts = |text: &str| vec![text.to_owned(); 3];
        let set = TestSet::new(&translator, &texts("A dog runs in the snow."), &texts("Ein Hund."));
        let draws = Draws { count: 4, temperature: 1.5, seed: 3 };
        let found = translator.sample(&set.pairs, &[0, 1, 2], draws).expect("samples");
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [4; 3]);
        assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2]);
        assert_eq!(translator.sample(&set.pairs, &[0, 1, 2], draws).expect("samples"), found);
    }
}
