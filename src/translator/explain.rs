//! One sentence's search, told step by step.

use super::{Sentence, Translation, Translator};
use crate::decode::engine::{Explain, Terms};
use crate::decode::trace::TraceStep;
use crate::decode::{DecodeOptions, Trace};
use crate::{Error, Result};

/// A sentence's search, step by step.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// All that finished, best first, with their attention, however few were asked for.
    pub translation: Translation,
    /// The pieces of `translation.source_ids`.
    pub source_pieces: Vec<String>,
    /// One entry per generated token.
    pub steps: Vec<TraceStep>,
    /// The length at which a hypothesis is ended.
    pub max_length: usize,
}

impl Translator {
    /// Translates one sentence and tells how: what lived and what finished at each step. Slower than [`Translator::translate`],
    /// whose result it shares.
    ///
    /// # Errors
    /// [`Error::Option`] for the options, [`Error::Input`] for a blank text, and what a translation may fail with.
    pub fn explain(&self, sentence: impl Into<Sentence>, options: &DecodeOptions) -> Result<Explanation> {
        self.explain_on(sentence, options, Terms::new())
    }

    /// As [`Translator::explain`], on other terms than [`Terms::new`].
    ///
    /// # Errors
    /// As [`Translator::explain`], and [`Error::DeadlineExceeded`].
    pub fn explain_on(
        &self,
        sentence: impl Into<Sentence>,
        options: &DecodeOptions,
        terms: Terms,
    ) -> Result<Explanation> {
        options.validate()?;
        self.check_models(options)?;
        let sentence = sentence.into();
        let source_ids = self.source_ids(&sentence)?;
        let (mut pending, request) = self.pending(sentence, source_ids, options);
        let Some(request) = request? else {
            let expected = "a text that is not blank".into();
            return Err(Error::Input { operation: "explain", expected, got: format!("\"{}\"", pending.source) });
        };
        let max_length = request.options.max_len as usize;
        let Trace { steps, hypotheses } = self.engine.ask(Explain(request), terms)?.wait()?;
        let source_pieces = pending.source_ids.iter().map(|id| self.tokenizer.source_piece(*id).to_string()).collect();
        // All that finished, in the search's own order.
        pending.options = None;
        let unranked = DecodeOptions { mbr: None, ..options.clone() };
        let translation = pending.finish(&self.tokenizer, &unranked, hypotheses);
        Ok(Explanation { translation, source_pieces, steps, max_length })
    }
}
