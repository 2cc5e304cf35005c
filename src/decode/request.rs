//! One sentence's search as the engine is asked for it, in ids.

use std::sync::Arc;

use crate::backend::{Backend, Constraints, MAX_SEQUENCE_WORDS, Search, SessionShape, SlotOptions, words};
use crate::decode::bans::Bans;
use crate::decode::constraints::Constraint;
use crate::decode::options::{DecodeOptions, Own};
use crate::{Error, Result};

/// A sentence in ids, with what is its own. A source becomes one that has nothing else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SentenceIds {
    /// Source ids, end of sentence included.
    pub source: Vec<u32>,
    /// The source that its amateur reads, end of sentence included; empty unless that is another one.
    pub contrast_source: Vec<u32>,
    /// First tokens that every hypothesis has.
    pub prefix: Vec<u32>,
    /// Phrases that every hypothesis has. A phrase counts once, however often it is listed; two may share tokens, and the prefix may
    /// hold some.
    pub constraints: Vec<Constraint>,
    /// The seed of its samples. Without one: [`DecodeOptions::seed_of`] its source.
    pub seed: Option<u64>,
    /// What the decoder reads first, if that is not the model's own.
    pub start: Option<u32>,
}

impl From<Vec<u32>> for SentenceIds {
    fn from(source: Vec<u32>) -> Self {
        SentenceIds { source, ..SentenceIds::default() }
    }
}

/// What a request has to know of the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the position table.
    pub table: usize,
    /// The scorer that is the amateur of contrastive decoding.
    pub amateur: usize,
}

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
    /// Phrases that every hypothesis has, each once.
    pub constraints: Vec<Constraint>,
    /// Hypotheses to return.
    pub n_best: usize,
    /// Whether they carry their attention.
    pub attention: bool,
}

impl Request {
    /// What these options, which have been checked, ask for a sentence.
    ///
    /// # Errors
    /// [`Error::Option`] for a minimum length above the sentence's maximum; for constraints [`Error::Conflict`] beside options that exclude
    /// them, and [`Error::Input`] for phrases without tokens or of more tokens than there is room for.
    pub fn new(options: &DecodeOptions, sentence: SentenceIds, limits: Limits) -> Result<Self> {
        let request = Self::unchecked(options, sentence, limits);
        let (most, least) = (request.options.max_len as usize, options.min_length);
        if least > most {
            let expected = format!("at most {most}, the maximum length of this sentence");
            return Err(Error::Option { option: "min-length", expected, got: least.to_string() });
        }
        options.check_constraints(&request.constraints, most)?;
        Ok(request)
    }

    /// The same for a sentence that has been checked.
    pub(crate) fn unchecked(options: &DecodeOptions, sentence: SentenceIds, limits: Limits) -> Self {
        let SentenceIds { source, contrast_source, mut prefix, constraints: listed, seed, start } = sentence;
        let forced = options.forced_bos.filter(|forced| prefix.first() != Some(forced));
        prefix.splice(0..0, forced);
        let mut constraints: Vec<Constraint> = Vec::with_capacity(listed.len());
        for constraint in listed {
            if constraints.iter().all(|other| other.ids != constraint.ids) {
                constraints.push(constraint);
            }
        }
        let own = Own {
            src_len: source.len(),
            prefix_len: prefix.len(),
            constraint_tokens: constraints.iter().map(|constraint| constraint.ids.len()).sum(),
            amateur: limits.amateur,
            start,
            seed: seed.unwrap_or_else(|| options.seed_of(&source)),
        };
        Request {
            options: options.lowered(own, limits.table),
            source,
            contrast_source,
            prefix,
            bans: options.bans.clone(),
            constraints,
            n_best: options.candidates(),
            attention: options.attention,
        }
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
