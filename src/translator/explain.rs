//! One sentence's search, told step by step.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Pending, Sentence, Translation, Translator};
use crate::decode::engine::{Explain, Handle, Terms};
use crate::decode::trace::TraceStep;
use crate::decode::{DecodeOptions, Trace};
use crate::text::Tokenizer;
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

/// An explanation that has been asked for: a future. Dropping it gives the search up.
#[derive(Debug)]
pub struct ExplanationHandle {
    search: Handle<Trace>,
    /// None once the result has been taken.
    rest: Option<Rest>,
}

/// What makes an explanation of a trace.
#[derive(Debug)]
struct Rest {
    pending: Pending,
    options: DecodeOptions,
    tokenizer: Arc<Tokenizer>,
    max_length: usize,
}

impl Rest {
    fn finish(mut self, Trace { steps, hypotheses }: Trace) -> Explanation {
        let piece = |id: &u32| self.tokenizer.source_piece(*id).to_string();
        let source_pieces = self.pending.source_ids.iter().map(piece).collect();
        // All that finished, in the search's own order.
        self.pending.options = None;
        let unranked = DecodeOptions { mbr: None, ..self.options };
        let translation = self.pending.finish(&self.tokenizer, &unranked, hypotheses);
        Explanation { translation, source_pieces, steps, max_length: self.max_length }
    }
}

impl Future for ExplanationHandle {
    type Output = Result<Explanation>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Explanation>> {
        let trace = std::task::ready!(Pin::new(&mut self.search).poll(context));
        Poll::Ready(self.rest.take().ok_or(Error::Cancelled).and_then(|rest| Ok(rest.finish(trace?))))
    }
}

impl Translator {
    /// Translates one sentence and tells how: what lived and what finished at each step. Slower than [`Translator::translate`],
    /// whose result it shares.
    ///
    /// # Errors
    /// [`Error::Option`] for the options, [`Error::Input`] for a blank text, and what a translation may fail with.
    pub fn explain(&self, sentence: impl Into<Sentence>, options: &DecodeOptions) -> Result<Explanation> {
        let ExplanationHandle { search, rest } = self.submit_explain(sentence, options, Terms::new())?;
        let trace = search.wait()?;
        rest.map(|rest| rest.finish(trace)).ok_or(Error::Cancelled)
    }

    /// Asks for what [`Translator::explain`] gives; does not wait.
    ///
    /// # Errors
    /// As [`Translator::explain`], and as [`Translator::submit`].
    pub fn submit_explain(
        &self,
        sentence: impl Into<Sentence>,
        options: &DecodeOptions,
        terms: Terms,
    ) -> Result<ExplanationHandle> {
        options.validate()?;
        self.check_models(options)?;
        let sentence = sentence.into();
        let source_ids = self.source_ids(&sentence)?;
        let (pending, request) = self.pending(sentence, source_ids, options);
        let Some(request) = request? else {
            let expected = "a text that is not blank".into();
            return Err(Error::Input { operation: "explain", expected, got: format!("\"{}\"", pending.source) });
        };
        let max_length = request.options.max_len as usize;
        let search = self.engine.ask(Explain(request), terms)?;
        let (options, tokenizer) = (options.clone(), self.tokenizer.clone());
        Ok(ExplanationHandle { search, rest: Some(Rest { pending, options, tokenizer, max_length }) })
    }
}
