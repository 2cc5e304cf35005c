//! Many sentences under one set of options, and what is kept of each while it is searched for.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use super::{Sentence, TextHypothesis, Translation, Translator, cut_source, mbr};
use crate::decode::engine::{Canceller, Search, Terms};
use crate::decode::{DecodeOptions, Hypothesis, Request};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The tag of a text, and what the engine found.
type Ended = (u64, Result<Vec<Hypothesis>>);

/// A stream of texts through a [`Translator`]. Dropping it gives up the texts whose results have not been taken.
#[derive(Debug)]
pub struct Batch<'a> {
    translator: &'a Translator,
    options: DecodeOptions,
    terms: Terms,
    reply: Sender<Ended>,
    replies: Receiver<Ended>,
    pending: HashMap<u64, (Pending, Canceller)>,
    /// Results that never went to the engine.
    ready: Vec<(u64, Result<Translation>)>,
}

/// What is kept of a sentence while it is searched for.
#[derive(Debug)]
pub(super) struct Pending {
    pub source: String,
    pub source_ids: Vec<u32>,
    pub source_truncated: bool,
    /// The options that are this sentence's own.
    pub options: Option<Box<DecodeOptions>>,
}

impl Batch<'_> {
    /// The same stream on other terms than [`Terms::new`], for what is pushed from now on.
    #[must_use]
    pub fn on(self, terms: Terms) -> Self {
        // By parts: it has a destructor.
        let mut batch = self;
        batch.terms = terms;
        batch
    }

    /// Adds a text, or a [`Sentence`]; its result comes back under `tag`, which no other pending text may have. Where the engine's
    /// queue is full, waits for room.
    pub fn push(&mut self, tag: u64, sentence: impl Into<Sentence>) {
        let sentence = sentence.into();
        match self.translator.source_ids(&sentence) {
            Ok(source_ids) => self.push_encoded(tag, sentence, source_ids),
            Err(error) => self.ready.push((tag, Err(error))),
        }
    }

    /// Adds a text whose ids, end of sentence included, the caller has from [`Translator::tokenizer`] already.
    pub fn push_encoded(&mut self, tag: u64, sentence: impl Into<Sentence>, source_ids: Vec<u32>) {
        let (pending, request) = self.translator.pending(sentence.into(), source_ids, &self.options);
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => {
                let blank = pending.finish(&self.translator.tokenizer, &self.options, vec![Hypothesis::empty()]);
                return self.ready.push((tag, Ok(blank)));
            }
            Err(error) => return self.ready.push((tag, Err(error))),
        };
        let reply = self.reply.clone();
        let search = Search(request);
        match self.translator.engine.submit(search, self.terms, move |result| drop(reply.send((tag, result)))) {
            Ok(canceller) => drop(self.pending.insert(tag, (pending, canceller))),
            Err(error) => self.ready.push((tag, Err(error))),
        }
    }

    /// Gives up all texts whose results are not there yet: they come back with [`Error::Cancelled`], within a step.
    pub fn cancel(&self) {
        self.pending.values().for_each(|(_, canceller)| canceller.cancel());
    }

    /// Texts pushed whose results have not been taken.
    pub fn outstanding(&self) -> usize {
        self.pending.len() + self.ready.len()
    }

    /// The next result, in the order in which they finish; waits for it. `None` when nothing is outstanding.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would borrow the batch for as long as it is pushed to"
    )]
    pub fn next(&mut self) -> Option<(u64, Result<Translation>)> {
        // Whatever becomes of the work, the engine answers.
        self.next_from(|replies| replies.recv().ok())
    }

    /// As [`Batch::next`], waiting for no longer than `limit`; `None` also when nothing has ended by then.
    pub fn next_within(&mut self, limit: Duration) -> Option<(u64, Result<Translation>)> {
        self.next_from(|replies| replies.recv_timeout(limit).ok())
    }

    fn next_from(
        &mut self,
        wait: impl FnOnce(&Receiver<Ended>) -> Option<Ended>,
    ) -> Option<(u64, Result<Translation>)> {
        if let Some(ready) = self.ready.pop() {
            return Some(ready);
        }
        // The batch holds a sender itself: nothing would come, and no end either.
        if self.pending.is_empty() {
            return None;
        }
        let ended = wait(&self.replies)?;
        self.finish(ended)
    }

    fn finish(&mut self, (tag, result): Ended) -> Option<(u64, Result<Translation>)> {
        let (pending, _) = self.pending.remove(&tag)?;
        Some((tag, result.map(|found| pending.finish(&self.translator.tokenizer, &self.options, found))))
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Translator {
    /// Starts a stream of texts under one set of options: push any number, take results as they finish.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn batch(&self, options: &DecodeOptions) -> Result<Batch<'_>> {
        options.validate()?;
        self.check_models(options)?;
        let (reply, replies) = mpsc::channel();
        Ok(Batch {
            translator: self,
            options: options.clone(),
            terms: Terms::new(),
            reply,
            replies,
            pending: HashMap::new(),
            ready: Vec::new(),
        })
    }

    /// What is kept of a sentence while it is searched for, and the search, none for a blank text: under its own options, or under
    /// those of all, which have been checked.
    pub(super) fn pending(
        &self,
        sentence: Sentence,
        mut source_ids: Vec<u32>,
        options: &DecodeOptions,
    ) -> (Pending, Result<Option<Request>>) {
        let options = sentence.options.as_deref().unwrap_or(options);
        let source_truncated = cut_source(options, &mut source_ids, self.engine.max_len(), &self.tokenizer);
        let checked = match sentence.options {
            Some(_) => options.validate().and_then(|()| self.check_models(options)),
            None => Ok(()),
        };
        let checked = checked.and_then(|()| self.check_target_language(options, &sentence));
        let is_blank = self.tokenizer.is_blank(&source_ids);
        let request = checked.and_then(|()| match is_blank {
            true if sentence.constraints.is_empty() => Ok(None),
            // Its translation is empty.
            true => Err(Error::UnmetConstraint { phrases: sentence.constraints.clone() }),
            false => self.request(options, source_ids.clone(), &sentence).map(Some),
        });
        let Sentence { source, options, .. } = sentence;
        (Pending { source, source_ids, source_truncated, options }, request)
    }
}

impl Pending {
    /// The translation that a search came to, `options` being those of all sentences.
    pub(super) fn finish(
        self,
        tokenizer: &Tokenizer,
        options: &DecodeOptions,
        hypotheses: Vec<Hypothesis>,
    ) -> Translation {
        let Pending { source, source_ids, source_truncated, options: own } = self;
        let options = own.as_deref().unwrap_or(options);
        let text = |hypothesis: Hypothesis| TextHypothesis {
            text: tokenizer.detokenize(&hypothesis.token_ids),
            tokens: hypothesis.token_ids.iter().map(|id| tokenizer.target_piece(*id).to_string()).collect(),
            ids: hypothesis,
            utility: None,
        };
        let mut hypotheses: Vec<TextHypothesis> = hypotheses.into_iter().map(text).collect();
        if let Some(utility) = options.mbr {
            mbr::rank(&mut hypotheses, utility);
            hypotheses.truncate(options.n_best);
        }
        Translation { source, source_ids, source_truncated, hypotheses }
    }
}
