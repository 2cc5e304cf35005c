//! A whole document by a translator.

use super::{Plan, Rendered};
use crate::translator::{Sentence, Translation, Translator};
use crate::{DecodeOptions, Error, Result};

/// A translated document.
#[derive(Debug)]
pub struct Translated {
    /// The document: where a segment could not be translated, its source stays.
    pub text: String,
    /// What came of each segment, in the order of [`Plan::segments`].
    pub segments: Vec<Result<Translation>>,
}

/// Translates a document's segments, all with the languages and the seed of `like`, and puts the best translations together.
///
/// # Errors
/// [`Error::Option`] for the options, and for what `like` has that is [one sentence's](super::check); what is wrong with a segment is that segment's error.
pub fn translate(translator: &Translator, plan: &Plan, like: &Sentence, options: &DecodeOptions) -> Result<Translated> {
    super::check(like)?;
    let mut batch = translator.batch(options)?;
    for (tag, sentence) in (0..).zip(plan.sentences(like, options)) {
        batch.push(tag, sentence);
    }
    let mut segments: Vec<Result<Translation>> = plan.segments().iter().map(|_| Err(Error::EngineStopped)).collect();
    while let Some((tag, result)) = batch.next() {
        segments[tag as usize] = result;
    }
    let best =
        |result| Result::as_ref(result).ok().and_then(|translation: &Translation| translation.hypotheses.first());
    let rendered = segments.iter().map(best).map(|best| Some(Rendered::new(best?, translator.tokenizer())));
    let text = plan.assemble(&rendered.collect::<Vec<Option<Rendered<'_>>>>());
    Ok(Translated { text, segments })
}
