//! Alternatives at a position: translations that share a beginning and differ in the token behind it.

use super::{Pending, Sentence, Translation, Translator};
use crate::counts;
use crate::decode::{DecodeOptions, Hypothesis, MaxLength, Request, SentenceIds, Stop};
use crate::{Error, Result};

/// How many translations are wanted that differ in the token behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternatives {
    /// The most, 1..=64. Default 5.
    pub count: usize,
    /// Tokens that the model gives less probability than this are none, 0..=1; the most probable one always is. Default 0.
    pub min_prob: f32,
}

impl Default for Alternatives {
    fn default() -> Self {
        Alternatives { count: 5, min_prob: 0.0 }
    }
}

impl Alternatives {
    /// Checks the values, and that the options leave them a meaning: the search returns one translation for each.
    ///
    /// # Errors
    /// [`Error::Option`] names the option.
    pub fn validate(&self, options: &DecodeOptions) -> Result<()> {
        options.validate()?;
        let check = |ok: bool, option: &'static str, expected: &str, got: String| match ok {
            true => Ok(()),
            false => Err(Error::Option { option, expected: expected.to_owned(), got }),
        };
        let Alternatives { count, min_prob } = *self;
        counts::check("alternatives", count, &counts::HYPOTHESES)?;
        check((0.0..=1.0).contains(&min_prob), "min-alternative-prob", "0 to 1", min_prob.to_string())?;
        let (n_best, groups) = (options.n_best, options.beam_groups);
        for (given, other) in [
            (options.sample, "sample".to_owned()),
            (options.mbr.is_some(), "mbr".to_owned()),
            (n_best != 1, format!("n-best {n_best}")),
            (groups != 1, format!("beam-groups {groups}")),
        ] {
            if given {
                return Err(Error::conflict("alternatives", "", other));
            }
        }
        Ok(())
    }
}

/// A sentence, and the search for a whole translation of it; none for a blank text.
struct Opened {
    pending: Pending,
    whole: Option<Request>,
}

impl Translator {
    /// For each sentence the translations that begin with [`Sentence::prefix`] and differ in the token behind it: its most probable
    /// ones, as the options rank them, the best first, each completed by a search of its own (as CTranslate2's
    /// `return_alternatives`). Scores are those of the whole translations. A translation that ends behind the prefix is one of
    /// them; where the limits or bans of the options leave fewer tokens, there are fewer.
    ///
    /// # Errors
    /// [`Error::Option`] as [`Alternatives::validate`]; per sentence what a translation may fail with.
    pub fn alternatives(
        &self,
        sentences: Vec<Sentence>,
        wanted: &Alternatives,
        options: &DecodeOptions,
    ) -> Result<Vec<Result<Translation>>> {
        wanted.validate(options)?;
        self.check_models(options)?;
        let opened: Vec<Result<Opened>> =
            sentences.into_iter().map(|sentence| self.open_alternatives(sentence, wanted, options)).collect();
        let firsts = opened.iter().flatten().filter_map(|opened| {
            let own = opened.pending.options.as_deref().unwrap_or(options);
            Some(Ok(self.first_token(own, opened.whole.as_ref()?, wanted.count)))
        });
        let mut starts = self.search(firsts.collect()).into_iter();
        let begun: Vec<Result<(Opened, Vec<Hypothesis>)>> = opened
            .into_iter()
            .map(|opened| {
                let opened = opened?;
                let Some(whole) = &opened.whole else { return Ok((opened, vec![Hypothesis::empty()])) };
                let mut starts = starts.next().unwrap_or(Err(Error::EngineStopped))?;
                let probable = |h: &Hypothesis| h.token_log_probs.get(whole.prefix.len()).map_or(0.0, |p| p.exp());
                let mut best = true;
                starts.retain(|start| std::mem::take(&mut best) || probable(start) >= wanted.min_prob);
                Ok((opened, starts))
            })
            .collect();
        let completion = |Opened { pending, whole }: &Opened, start: &Hypothesis| {
            self.completion(pending.options.as_deref().unwrap_or(options), whole.as_ref()?, start)
        };
        let requests = begun
            .iter()
            .flatten()
            .flat_map(|(opened, starts)| starts.iter().filter_map(|start| completion(opened, start)).map(Ok));
        let mut completed = self.search(requests.collect()).into_iter();
        let complete = |begun: Result<(Opened, Vec<Hypothesis>)>| {
            let (opened, starts) = begun?;
            let finished = starts.into_iter().map(|start| {
                if completion(&opened, &start).is_none() {
                    return Ok(start);
                }
                let found = completed.next().unwrap_or(Err(Error::EngineStopped))?;
                found.into_iter().next().ok_or(Error::EngineStopped)
            });
            // All of a sentence's are taken, also behind one that failed.
            let finished: Vec<Result<Hypothesis>> = finished.collect();
            Ok(opened.pending.finish(&self.tokenizer, options, finished.into_iter().collect::<Result<_>>()?))
        };
        Ok(begun.into_iter().map(complete).collect())
    }

    fn open_alternatives(&self, sentence: Sentence, wanted: &Alternatives, options: &DecodeOptions) -> Result<Opened> {
        if let Some(own) = &sentence.options {
            wanted.validate(own)?;
        }
        if !sentence.constraints.is_empty() {
            return Err(Error::conflict("constraints", "", "alternatives"));
        }
        let source_ids = self.source_ids(&sentence)?;
        let (pending, request) = self.pending(sentence, source_ids, options);
        Ok(Opened { pending, whole: request? })
    }
}

impl Translator {
    /// The search for the tokens that may stand behind the prefix: it ends there.
    fn first_token(&self, options: &DecodeOptions, whole: &Request, count: usize) -> Request {
        let mut first = DecodeOptions {
            beam_size: count,
            n_best: count,
            patience: 1.0,
            shrink: false,
            stop: Some(Stop::First),
            // As the preset has it under the beam that was asked for.
            penalize_logits: Some(options.penalizes_logits()),
            ..options.clone()
        };
        let length = whole.prefix.len() + 1;
        if length < whole.options.max_len as usize {
            (first.max_length, first.cut) = (MaxLength::Absolute(length), true);
        }
        self.derived(&first, whole, whole.prefix.clone())
    }

    /// The search for what follows a start; none for one that is whole.
    fn completion(&self, options: &DecodeOptions, whole: &Request, start: &Hypothesis) -> Option<Request> {
        let goes_on =
            start.truncated && start.length > whole.prefix.len() && start.length < whole.options.max_len as usize;
        goes_on.then(|| self.derived(options, whole, start.token_ids.clone()))
    }

    /// A search for the same sentence behind another prefix.
    fn derived(&self, options: &DecodeOptions, whole: &Request, prefix: Vec<u32>) -> Request {
        let Request { source, contrast_source, .. } = whole.clone();
        let sentence = SentenceIds { source, contrast_source, prefix, ..SentenceIds::default() };
        Request::unchecked(options, sentence, self.limits(options))
    }
}
