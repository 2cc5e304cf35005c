//! Ids in, ids out: for programs that tokenize themselves, such as training.

use super::{Sentence, Translator};
use crate::Result;
use crate::decode::engine::{Explain, Search};
use crate::decode::{DecodeOptions, Hypothesis, Request, SentenceIds, Trace};

impl Translator {
    /// Translates sources given as ids, end of sentence included; the results stand in their order.
    ///
    /// Under [`DecodeOptions::sample`] each source is encoded once and gives all of its samples, in the order of their numbers; a
    /// seed of its own for each call draws others. [`DecodeOptions::mbr`] has no effect: it compares texts.
    ///
    /// # Errors
    /// [`Error::Option`] for the options; per source [`Error::Input`] and [`Error::InputTooLong`] for ids that do not fit the
    /// model, [`Error::NonFiniteLogits`], or what else may become of [work](crate::decode::Engine::ask).
    ///
    /// [`Error::Option`]: crate::Error::Option
    /// [`Error::Input`]: crate::Error::Input
    /// [`Error::InputTooLong`]: crate::Error::InputTooLong
    /// [`Error::NonFiniteLogits`]: crate::Error::NonFiniteLogits
    pub fn translate_ids(&self, sources: &[Vec<u32>], options: &DecodeOptions) -> Result<Vec<Result<Vec<Hypothesis>>>> {
        options.validate()?;
        self.check_models(options)?;
        let options = DecodeOptions { mbr: None, ..options.clone() };
        let request = |source: &Vec<u32>| self.request(&options, source.clone(), &Sentence::default());
        Ok(self.search(sources.iter().map(request).collect()))
    }

    /// As [`Translator::translate_ids`], for sources each with the tokens that its translations start with: fewer than the most
    /// tokens that the options allow, and without end of sentence. The results hold them, too.
    ///
    /// # Errors
    /// As [`Translator::translate_ids`]; per source [`Error::Input`](crate::Error::Input) for a prefix that is too long or has unknown ids.
    pub fn continue_ids(
        &self,
        sentences: &[(Vec<u32>, Vec<u32>)],
        options: &DecodeOptions,
    ) -> Result<Vec<Result<Vec<Hypothesis>>>> {
        Ok(self.search(self.continuing(sentences, options)?))
    }

    /// As [`Translator::continue_ids`], with every step of the search: what was ranked of each token, and of a prefix. All that
    /// finished is there, and the attention; slower than [`Translator::continue_ids`], whose results it shares.
    ///
    /// # Errors
    /// As [`Translator::continue_ids`].
    pub fn explain_ids(
        &self,
        sentences: &[(Vec<u32>, Vec<u32>)],
        options: &DecodeOptions,
    ) -> Result<Vec<Result<Trace>>> {
        let requests = self.continuing(sentences, options)?;
        Ok(self.run_all(requests.into_iter().map(|request| request.map(Explain))))
    }

    fn continuing(&self, sentences: &[(Vec<u32>, Vec<u32>)], options: &DecodeOptions) -> Result<Vec<Result<Request>>> {
        options.validate()?;
        self.check_models(options)?;
        let options = DecodeOptions { mbr: None, ..options.clone() };
        let limits = self.limits(&options);
        let request = |(source, prefix): &(Vec<u32>, Vec<u32>)| {
            let sentence = SentenceIds { prefix: prefix.clone(), ..SentenceIds::from(source.clone()) };
            Request::new(&options, sentence, limits)
        };
        Ok(sentences.iter().map(request).collect())
    }

    /// Runs searches side by side; the results stand in their order, and so do the errors of requests that could not be made.
    pub(super) fn search(&self, requests: Vec<Result<Request>>) -> Vec<Result<Vec<Hypothesis>>> {
        self.run_all(requests.into_iter().map(|request| request.map(Search)))
    }
}
