//! How well a model translates a held-out set.

use crate::Result;
use crate::decode::DecodeOptions;
use crate::metrics::{bleu_counts, chrf_counts, corpus_score, one_each};
use crate::train::data::Data;
use crate::translator::Translator;

/// Scores of translations, 0..=100, and their length over the references'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Corpus BLEU.
    pub bleu: f64,
    /// Corpus chrF2.
    pub chrf: f64,
    /// Tokens of the translations over tokens of the references, end of sentence included.
    pub length_ratio: f64,
}

/// Translates the data's sources by beam search and scores the results.
///
/// # Errors
/// A sentence that cannot be translated.
pub fn validate(translator: &Translator, data: &Data, beam_size: usize) -> Result<Scores> {
    let options = DecodeOptions { beam_size, ..DecodeOptions::default() };
    let mut batch = translator.batch(&options)?;
    // The longest first: the slots that free up at the end then wait for short sentences only.
    let mut order: Vec<usize> = (0..data.pairs().len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(data.pairs()[i].source.len()));
    for i in order {
        let pair = &data.pairs()[i];
        batch.push_encoded(i as u64, pair.source_text.clone(), pair.source.clone());
    }
    let mut texts = vec![String::new(); data.pairs().len()];
    let mut tokens = 0;
    while let Some((tag, result)) = batch.next() {
        let translation = result?;
        tokens += translation.hypotheses.first().map_or(0, |h| h.length);
        texts[tag as usize] = translation.text().to_owned();
    }
    let references: Vec<&str> = data.pairs().iter().map(|pair| pair.text.as_str()).collect();
    let expected: usize = data.pairs().iter().map(|pair| pair.target.len()).sum();
    Ok(Scores {
        bleu: corpus_score(&bleu_counts(&texts, &one_each(&references))?),
        chrf: corpus_score(&chrf_counts(&texts, &one_each(&references))?),
        length_ratio: tokens as f64 / expected as f64,
    })
}
