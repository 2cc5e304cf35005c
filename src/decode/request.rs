//! One sentence's search as the engine is asked for it, in ids.

use std::sync::Arc;

use crate::Result;
use crate::backend::{Backend, Constraints, MAX_SEQUENCE_WORDS, Search, SessionShape, SlotOptions, words};
use crate::decode::bans::Bans;
use crate::decode::constraints::Constraint;
use crate::decode::options::DecodeOptions;

/// A sentence to search a translation for. Ids include the end of sentence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Source ids.
    pub source: Vec<u32>,
    /// How to search.
    pub options: SlotOptions,
    /// Ids of the source that the model's second scorer reads; empty without one.
    pub contrast_source: Vec<u32>,
    /// First tokens that every hypothesis has; fewer than `options.max_len`.
    pub prefix: Vec<u32>,
    /// Tokens and sequences that none has, behind the prefix.
    pub bans: Option<Arc<Bans>>,
    /// Phrases that every hypothesis has, as [`Request::constrain`] takes them.
    pub constraints: Vec<Constraint>,
    /// Hypotheses to return.
    pub n_best: usize,
    /// Whether they carry their attention.
    pub attention: bool,
}

impl Request {
    /// What these options ask for a source, end of sentence included, under a position table of `table` rows. A sentence that
    /// brings no seed of its own gets one from its ids.
    pub fn new(options: &DecodeOptions, source: Vec<u32>, seed: Option<u64>, table: usize) -> Self {
        let mut slot = options.for_slot(source.len(), table);
        if let Some(sampling) = &options.sampling {
            slot.sampling = sampling.for_slot(seed.unwrap_or_else(|| sampling.seed_of(&source)));
        }
        let (n_best, attention) = (options.candidates(), options.attention);
        let mut request = Request { source, options: slot, n_best, attention, ..Request::default() };
        request.force(options.forced_bos.into_iter().collect());
        request
    }

    /// Makes every hypothesis start with these tokens, behind the one that the options force where it is not the first of them.
    pub fn force(&mut self, mut prefix: Vec<u32>) {
        let forced = self.prefix.first().filter(|forced| prefix.first() != Some(forced));
        prefix.splice(0..0, forced.copied());
        self.options.prefix_len = prefix.len() as u32;
        self.options.banned = u32::from(self.options.banned != 0 || !prefix.is_empty());
        self.prefix = prefix;
    }

    /// Whether a session of this shape holds the sentence.
    pub fn fits(&self, shape: SessionShape) -> bool {
        self.options.finished_room() as usize <= shape.beam_size
            && self.options.max_len as usize <= shape.max_len
            && self.source.len().max(self.contrast_source.len()) <= shape.max_src_len
            && (shape.keep_attention || !self.attention)
    }

    /// Copies what the sentence may not or must generate to its slot.
    ///
    /// # Errors
    /// A failed copy to the device.
    pub(super) fn write_controls<B: Backend>(&self, backend: &B, slot: usize, search: &mut Search<B>) -> Result<()> {
        let (bits, max_len) = (search.vocab_size.div_ceil(32), search.shape.max_len);
        let none = (vec![0; bits], [0]);
        let (always, sequences) = match &self.bans {
            Some(bans) => (bans.always(), bans.sequences()),
            None => (&none.0[..], &none.1[..]),
        };
        backend.write(&mut search.always_banned, slot * bits, always)?;
        let constraints = [self.constraint_table()];
        backend.write(&mut search.constraints, slot * words::<Constraints>(), bytemuck::cast_slice(&constraints))?;
        backend.write(&mut search.sequences, slot * MAX_SEQUENCE_WORDS, sequences)?;
        backend.write(&mut search.prefixes, slot * max_len, &self.prefix)
    }

    /// The smallest shape that holds this sentence and what the old one held.
    pub fn grown(&self, old: Option<SessionShape>, slots: usize) -> SessionShape {
        let keep_attention = self.attention || old.is_some_and(|old| old.keep_attention);
        let old = |part: fn(SessionShape) -> usize| old.map_or(0, part);
        let beam_size = old(|s| s.beam_size).max(self.options.finished_room() as usize);
        let source = self.source.len().max(self.contrast_source.len());
        SessionShape {
            slots,
            beam_size,
            max_len: old(|s| s.max_len).max((self.options.max_len as usize).next_multiple_of(LENGTH_STEP)),
            max_src_len: old(|s| s.max_src_len).max(source.next_multiple_of(LENGTH_STEP)),
            rows: slots * beam_size,
            keep_attention,
        }
    }
}

/// Lengths that a session is opened for are multiples of this: fewer reopenings.
const LENGTH_STEP: usize = 32;
