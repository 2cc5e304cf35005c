//! Ids in, ids out: for programs that tokenize themselves, such as training.

use std::sync::Arc;
use std::sync::mpsc;

use super::{Sentence, Translator};
use crate::decode::engine::{Job, Outcome, Reply, Work};
use crate::decode::{DecodeOptions, Hypothesis};
use crate::{Error, Result};

impl Translator {
    /// Translates sources given as ids, end of sentence included; the results stand in their order.
    ///
    /// Under [`DecodeOptions::sampling`] each source is encoded once and gives all of its samples, in the order of their numbers; a
    /// seed of its own for each call draws others. [`DecodeOptions::mbr`] has no effect: it compares texts.
    ///
    /// # Errors
    /// [`Error::Option`] for the options; per source [`Error::Input`] and [`Error::InputTooLong`] for ids that do not fit the
    /// model, [`Error::NonFiniteLogits`], [`Error::EngineStopped`].
    pub fn translate_ids(&self, sources: &[Vec<u32>], options: &DecodeOptions) -> Result<Vec<Result<Vec<Hypothesis>>>> {
        self.search_ids(sources.iter().map(|source| (source.clone(), Vec::new())), options)
    }

    /// As [`Translator::translate_ids`], for sources each with the tokens that its translations start with: fewer than the most
    /// tokens that the options allow, and without end of sentence. The results hold them, too.
    ///
    /// # Errors
    /// As [`Translator::translate_ids`]; per source [`Error::Input`] for a prefix that is too long or no text of the model's.
    pub fn continue_ids(
        &self,
        sentences: &[(Vec<u32>, Vec<u32>)],
        options: &DecodeOptions,
    ) -> Result<Vec<Result<Vec<Hypothesis>>>> {
        self.search_ids(sentences.iter().cloned(), options)
    }

    fn search_ids(
        &self,
        sentences: impl ExactSizeIterator<Item = (Vec<u32>, Vec<u32>)>,
        options: &DecodeOptions,
    ) -> Result<Vec<Result<Vec<Hypothesis>>>> {
        options.validate()?;
        self.check_models(options)?;
        let options = DecodeOptions { mbr: None, ..options.clone() };
        let (reply, replies) = mpsc::channel();
        let caller = Arc::new(());
        let mut results: Vec<Result<Vec<Hypothesis>>> = Vec::with_capacity(sentences.len());
        for (tag, (source, prefix)) in sentences.enumerate() {
            let accepted = self.request(&options, source, &Sentence::default()).and_then(|mut request| {
                request.force(prefix);
                let work = Work::Search(Box::new(request));
                self.engine.submit(Job { tag: tag as u64, work, reply: reply.clone(), caller: Arc::downgrade(&caller) })
            });
            // Stands until the reply comes.
            results.push(Err(accepted.err().unwrap_or(Error::EngineStopped)));
        }
        drop(reply);
        for Reply { tag, outcome } in replies {
            results[tag as usize] = outcome.map(|outcome| match outcome {
                Outcome::Hypotheses(hypotheses) => hypotheses,
                _ => unreachable!("the job asked for a search"),
            });
        }
        Ok(results)
    }
}
