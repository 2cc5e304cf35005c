//! Sentence pairs side by side: one row per token, no padding.

use std::sync::Arc;

use crate::backend::TokenPlace;
use crate::model::check_ids;
use crate::model::config::ModelConfig;
use crate::{Error, Result};

/// Sentences side by side, one row per token.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The tokens.
    pub ids: Arc<[u32]>,
    /// Which token of the data each row is: what dropout and scheduled sampling draw by.
    pub places: Arc<[TokenPlace]>,
    /// First row of each sentence, and the end of the last.
    pub starts: Arc<[usize]>,
}

impl Rows {
    /// Lays sentences, each with its number in the data, side by side.
    pub fn new<'a>(sentences: impl IntoIterator<Item = (u32, &'a [u32])>) -> Self {
        let (mut all, mut places, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for (sentence, ids) in sentences {
            all.extend_from_slice(ids);
            places.extend((0..ids.len() as u32).map(|position| TokenPlace { sentence, position }));
            starts.push(all.len());
        }
        Rows { ids: all.into(), places: places.into(), starts: starts.into() }
    }

    /// The same sentences with other tokens.
    ///
    /// # Panics
    /// If the number of tokens differs.
    pub fn with_ids(&self, ids: Vec<u32>) -> Self {
        assert_eq!(ids.len(), self.ids.len(), "another number of tokens");
        Rows { ids: ids.into(), places: self.places.clone(), starts: self.starts.clone() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The rows of each sentence.
    pub fn sentences(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.starts.windows(2).map(|ends| ends[0]..ends[1])
    }
}

/// Targets, each with the source that it belongs to. Several targets may share a source, which is encoded once.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The sources, end of sentence included.
    pub sources: Rows,
    /// What the decoder should say: the targets, end of sentence included.
    pub targets: Rows,
    /// What the decoder reads: the targets behind the start token, without their last.
    pub inputs: Rows,
    /// For each target its source; never falls.
    pub source_of: Arc<[usize]>,
}

impl Batch {
    /// A batch of groups: a source, its number in the data, and its targets.
    pub fn new<'a, T: AsRef<[u32]> + 'a>(
        groups: impl IntoIterator<Item = (u32, &'a [u32], &'a [T])>,
        start_id: u32,
    ) -> Self {
        let (mut sources, mut targets, mut source_of) = (Vec::new(), Vec::new(), Vec::new());
        for (number, source, group) in groups {
            for target in group {
                source_of.push(sources.len());
                targets.push((number, target.as_ref()));
            }
            sources.push((number, source));
        }
        let targets = Rows::new(targets);
        let mut inputs = Vec::with_capacity(targets.len());
        for rows in targets.sentences() {
            inputs.push(start_id);
            inputs.extend_from_slice(&targets.ids[rows.start..rows.end - 1]);
        }
        Batch { sources: Rows::new(sources), inputs: targets.with_ids(inputs), targets, source_of: source_of.into() }
    }

    /// Checks that the batch fits a model.
    ///
    /// # Errors
    /// [`Error::InputTooLong`] and [`Error::Input`].
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        for (side, rows, size) in [
            ("source", &self.sources, config.vocab_size),
            ("target", &self.targets, config.decoder_vocab_size),
            ("target", &self.inputs, config.decoder_vocab_size),
        ] {
            let (limit, length) = (config.longest(), rows.sentences().map(|s| s.len()).max().unwrap_or(0));
            if length > limit {
                return Err(Error::InputTooLong { side, length, limit });
            }
            if rows.is_empty() {
                let (expected, got) = ("at least one sentence".to_owned(), "none".to_owned());
                return Err(Error::Input { operation: "train", expected, got });
            }
            check_ids("train", &rows.ids, size)?;
        }
        Ok(())
    }
}
