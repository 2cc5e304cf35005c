//! A translation that is being made: owned, and good for any executor or none.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Pending, Score, Sentence, Translation, Translator, score_of};
use crate::backend::TokenStats;
use crate::decode::engine::{Canceller, Handle, Progress, Search, Terms};
use crate::decode::{DecodeOptions, Hypothesis};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// A translation that has been asked for. It is a plain future, for any executor; [`TranslationHandle::wait`] is for those without
/// one. Dropping it gives the sentence up, whose slot is free after the step under way.
///
/// ```no_run
/// # fn main() -> beamfuse::Result<()> {
/// use std::time::Duration;
///
/// use beamfuse::{DecodeOptions, Terms, Translator};
///
/// let translator = Translator::open("models/m30k-en-de")?;
/// let terms = Terms::new().within(Duration::from_secs(2));
/// let mut handle = translator.stream("A dog runs.", &DecodeOptions::default(), terms)?;
/// let mut ids = Vec::new();
/// for progress in handle.progress() {
///     ids.extend(progress.tokens);
///     println!("step {} of {} at most: {}", progress.step, progress.limit, translator.tokenizer().detokenize(&ids));
/// }
/// println!("{}", handle.wait()?.text());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TranslationHandle {
    search: Handle<Vec<Hypothesis>>,
    /// None once the result has been taken.
    rest: Option<Rest>,
}

/// What makes a translation of hypotheses.
#[derive(Debug)]
struct Rest {
    pending: Pending,
    options: DecodeOptions,
    tokenizer: Arc<Tokenizer>,
}

impl Translator {
    /// Asks for the translation of a text, or a [`Sentence`]; does not wait, not even for room in the queue.
    ///
    /// # Errors
    /// [`Error::Option`] for the options, [`Error::Overloaded`] if the queue is full, and what is wrong with the sentence. The
    /// handle has what becomes of it later, [`Error::DeadlineExceeded`] and [`Error::WorkerLost`] among it.
    pub fn submit(
        &self,
        sentence: impl Into<Sentence>,
        options: &DecodeOptions,
        terms: Terms,
    ) -> Result<TranslationHandle> {
        self.open_handle(sentence.into(), options, terms, false)
    }

    /// As [`Translator::submit`]; the handle tells how the search goes on, and which tokens are settled.
    ///
    /// # Errors
    /// As [`Translator::submit`].
    pub fn stream(
        &self,
        sentence: impl Into<Sentence>,
        options: &DecodeOptions,
        terms: Terms,
    ) -> Result<TranslationHandle> {
        self.open_handle(sentence.into(), options, terms, true)
    }

    /// Asks for the score of a translation, as [`Translator::score`] gives it; does not wait.
    ///
    /// # Errors
    /// As [`Translator::submit`].
    pub fn submit_score(&self, sentence: impl Into<Sentence>, target: &str, terms: Terms) -> Result<ScoreHandle> {
        let work = self.scoring(&sentence.into(), target)?;
        let target = work.target.clone();
        Ok(ScoreHandle { scoring: self.engine.ask(work, terms)?, target })
    }

    /// The worker that ends a certain sentence panics.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn let_a_worker_panic(&self) {
        let options = DecodeOptions { max_length: crate::MaxLength::Absolute(1), ..DecodeOptions::default() };
        let source = self.tokenizer.encode_source("A dog runs.");
        let request = crate::decode::Request::new(&options, source.into(), self.limits(&options)).expect("a search");
        let submitted = self.engine.submit(Search(request), Terms::new(), |_| panic!("a bad day"));
        submitted.expect("there is room");
    }

    fn open_handle(
        &self,
        sentence: Sentence,
        options: &DecodeOptions,
        terms: Terms,
        watched: bool,
    ) -> Result<TranslationHandle> {
        if sentence.options.is_none() {
            options.validate()?;
            self.check_models(options)?;
        }
        let source_ids = self.source_ids(&sentence)?;
        let (pending, request) = self.pending(sentence, source_ids, options);
        let search = match request? {
            None => Handle::ready(Ok(vec![Hypothesis::empty()])),
            Some(request) if watched => self.engine.ask_watched(request, terms)?,
            Some(request) => self.engine.ask(Search(request), terms)?,
        };
        let rest = Rest { pending, options: options.clone(), tokenizer: self.tokenizer.clone() };
        Ok(TranslationHandle { search, rest: Some(rest) })
    }
}

/// A score that has been asked for: a future, like [`TranslationHandle`]. Dropping it gives it up.
#[derive(Debug)]
pub struct ScoreHandle {
    scoring: Handle<Vec<TokenStats>>,
    target: Vec<u32>,
}

impl Future for ScoreHandle {
    type Output = Result<Score>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Score>> {
        let stats = std::task::ready!(Pin::new(&mut self.scoring).poll(context));
        Poll::Ready(score_of(stats, &self.target))
    }
}

impl TranslationHandle {
    /// Waits for the translation.
    ///
    /// # Errors
    /// What became of the sentence instead.
    pub fn wait(self) -> Result<Translation> {
        finish(self.rest, self.search.wait())
    }

    /// Waits for the translation, but not for longer than `limit`; none if it has not come by then, or was taken before.
    pub fn wait_for(&mut self, limit: Duration) -> Option<Result<Translation>> {
        let found = self.search.wait_for(limit)?;
        Some(finish(self.rest.take(), found))
    }

    /// Whether the translation is there.
    pub fn has_ended(&self) -> bool {
        self.search.has_ended()
    }

    /// Waits for the next progress, if it was asked for by [`Translator::stream`]; none once the translation is there and all
    /// progress has been taken.
    pub fn next_progress(&mut self) -> Option<Progress> {
        self.search.next_progress()
    }

    /// As [`TranslationHandle::next_progress`], for executors.
    pub fn poll_progress(&mut self, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        self.search.poll_progress(context)
    }

    /// All progress to come, in turn.
    pub fn progress(&mut self) -> impl Iterator<Item = Progress> + '_ {
        self.search.progress()
    }

    /// Gives the sentence up: unless it has come already, the result is [`Error::Cancelled`], at once.
    pub fn cancel(&self) {
        self.search.cancel();
    }

    /// What gives the sentence up without the handle; none for a blank text.
    pub fn canceller(&self) -> Option<Canceller> {
        self.search.canceller()
    }
}

fn finish(rest: Option<Rest>, found: Result<Vec<Hypothesis>>) -> Result<Translation> {
    // It has been taken.
    let Some(Rest { pending, options, tokenizer }) = rest else { return Err(Error::Cancelled) };
    Ok(pending.finish(&tokenizer, &options, found?))
}

impl Future for TranslationHandle {
    type Output = Result<Translation>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Translation>> {
        let found = std::task::ready!(Pin::new(&mut self.search).poll(context));
        Poll::Ready(finish(self.rest.take(), found))
    }
}
