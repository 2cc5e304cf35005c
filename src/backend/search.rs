//! The state of a search as it lies in device memory.

use super::{Rows, SearchOps, SlotOptions, Stages};
use crate::Result;

/// One finished hypothesis as it lies in device memory. A slot's entries are sorted by score, ties in order of finishing.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Finished {
    /// Score after penalties; ranks the list.
    pub score: f32,
    /// Sum of what was ranked, last token included.
    pub search_log_prob: f32,
    /// The coverage penalty's part of the score.
    pub coverage_penalty: f32,
    /// The model's own log-probability of the closing end of sentence; unused without one.
    pub eos_log_prob: f32,
    /// Generated tokens, end of sentence included.
    pub length: u32,
    /// The live beam that it ended from, as numbered after step `length - 1` (after step `length` without end of sentence).
    pub beam: u32,
    /// 1: closed by an end of sentence; 2: by one that was the best candidate of its step; 0: not closed.
    pub has_eos: u32,
    /// 1: cut by the length limit, or by masks that left no candidate.
    pub truncated: u32,
}

/// What the model produced that cannot be ranked, per slot; all zero while all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Failure {
    /// 1: the slot has failed.
    pub failed: u32,
    /// Step at which it failed, counted from 1.
    pub step: u32,
    /// Beam whose logits were not finite.
    pub beam: u32,
    /// The value found, NaN or +infinity.
    pub value: f32,
}

/// What a sampling slot's live beam has drawn.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SamplePick {
    /// The token, or [`SamplePick::NONE`].
    pub token: u32,
    /// The model's own log-probability of it. Without a token it says why: -infinity if masks left none, else the NaN or
    /// +infinity that the row holds.
    pub log_prob: f32,
    /// Its log-probability in what ranks; the search score follows from it.
    pub ranked_log_prob: f32,
}

impl SamplePick {
    /// No token could be drawn.
    pub const NONE: u32 = u32::MAX;
}

/// The sizes that a session's buffers are allocated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionShape {
    /// Sentences decoded at once.
    pub slots: usize,
    /// Beams per sentence.
    pub beam_size: usize,
    /// Generated tokens per sentence, at most.
    pub max_len: usize,
    /// Source tokens per sentence, at most.
    pub max_src_len: usize,
    /// Decoder rows of one step, at most: every beam of every slot in a search, every position in a teacher-forced pass.
    pub rows: usize,
    /// Whether every step's cross-attention is kept for the caller.
    pub keep_attention: bool,
}

/// The ids with a meaning of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// End of sentence.
    pub eos_id: u32,
    /// Padding: never generated, unless [`SlotOptions::takes_pad`] says so.
    pub pad_id: u32,
    /// What the decoder reads at position 0.
    pub decoder_start_id: u32,
}

/// The state of beam search over all slots of a session, on the device.
///
/// `S` slots, `K` beams, `T` = max_len, `N` = max_src_len.
#[derive(Debug)]
pub struct Search<B: SearchOps> {
    /// The sizes.
    pub shape: SessionShape,
    /// The target vocabulary's size.
    pub vocab_size: usize,
    /// The ids with a meaning of their own.
    pub ids: SpecialIds,
    /// [`SlotOptions`] `[S]`.
    pub options: B::Buffer<u32>,
    /// Generated tokens so far `[S]`.
    pub step: B::Buffer<u32>,
    /// Live beams `[S]`; 0 when the slot is free, has finished or has failed.
    pub live: B::Buffer<u32>,
    /// Search score of each live beam `[S, K]`.
    pub cum_log_probs: B::Buffer<f32>,
    /// The token generated at each step by each beam `[S, T, K]`.
    pub tokens: B::Buffer<u32>,
    /// The beam, numbered as after the step before, that it extends `[S, T, K]`.
    pub parents: B::Buffer<u32>,
    /// The model's own log-probability of that token `[S, T, K]`.
    pub log_probs: B::Buffer<f32>,
    /// Which beam's cache holds position t of this beam's prefix `[S, K, T]`; defined below the beam's own position.
    pub ancestry: B::Buffer<u32>,
    /// Cross-attention that each source position has received `[S, K, N]`.
    pub coverage: B::Buffer<f32>,
    /// Cross-attention of the row that made each step `[S, T, K, N]`, by the row's beam; empty unless kept.
    pub attention: B::Buffer<f32>,
    /// [`Finished`] `[S, K]`.
    pub finished: B::Buffer<u32>,
    /// Finished hypotheses `[S]`.
    pub finished_count: B::Buffer<u32>,
    /// [`Failure`] `[S]`.
    pub failures: B::Buffer<u32>,
    /// The live beams of all slots, by slot, then beam: what the next decoder step computes.
    pub rows: Rows<B>,
    /// Normalised log-probabilities that rank in place of the model's own, `[rows, logits_stride]`, for the rows of slots whose
    /// options say so; a row that cannot be ranked is NaN throughout. Empty until [`Search::reserve`].
    pub ranked: B::Buffer<f32>,
    /// A bit for each token that a row may not take, `[rows, ceil(vocab_size / 32)]`, for the rows of slots whose options say
    /// so. Empty until [`Search::reserve`].
    pub bans: B::Buffer<u32>,
    /// As `bans`, for what a slot may never take `[S, ceil(vocab_size / 32)]`. Empty until [`Search::reserve`], as the next four.
    pub always_banned: B::Buffer<u32>,
    /// The given first tokens of a slot `[S, T]`, of which `prefix_len` count.
    pub prefixes: B::Buffer<u32>,
    /// A slot's banned sequences of two tokens or more `[S, MAX_SEQUENCE_WORDS]`: how many there are, where each ends among the
    /// ids, and the ids.
    pub sequences: B::Buffer<u32>,
    /// What hypotheses of a slot must contain: [`Constraints`] `[S]`.
    pub constraints: B::Buffer<u32>,
    /// Constraint tokens that a row's hypothesis has met with its next token, its *bank* `[rows, BANK_WORDS]`: if that is none of
    /// [`Constraints::tokens`], and for each of these. For the rows of slots with constraints.
    pub banks: B::Buffer<u32>,
    /// What the live beams of sampling slots have drawn: [`SamplePick`] `[S, K]`, by beam. Empty until [`Search::reserve`].
    pub picks: B::Buffer<u32>,
    /// The stages that there is memory for.
    pub reserved: Stages,
    /// The backend's own working memory for the step.
    pub scratch: B::SearchScratch,
}

impl<B: SearchOps> Search<B> {
    /// Allocates the state with all slots free.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, shape: SessionShape, vocab_size: usize, ids: SpecialIds) -> Result<Self> {
        let SessionShape { slots, beam_size, max_len, max_src_len, rows, keep_attention } = shape;
        let history = slots * max_len * beam_size;
        Ok(Search {
            shape,
            vocab_size,
            ids,
            options: backend.zeros::<u32>(slots * words::<SlotOptions>())?,
            step: backend.zeros::<u32>(slots)?,
            live: backend.zeros::<u32>(slots)?,
            cum_log_probs: backend.zeros::<f32>(slots * beam_size)?,
            tokens: backend.zeros::<u32>(history)?,
            parents: backend.zeros::<u32>(history)?,
            log_probs: backend.zeros::<f32>(history)?,
            ancestry: backend.zeros::<u32>(history)?,
            coverage: backend.zeros::<f32>(slots * beam_size * max_src_len)?,
            attention: backend.zeros::<f32>(if keep_attention { history * max_src_len } else { 0 })?,
            finished: backend.zeros::<u32>(slots * beam_size * words::<Finished>())?,
            finished_count: backend.zeros::<u32>(slots)?,
            failures: backend.zeros::<u32>(slots * words::<Failure>())?,
            rows: Rows { one_per_beam: true, ..Rows::with_capacity(backend, rows)? },
            ranked: backend.zeros::<f32>(0)?,
            bans: backend.zeros::<u32>(0)?,
            always_banned: backend.zeros::<u32>(0)?,
            prefixes: backend.zeros::<u32>(0)?,
            sequences: backend.zeros::<u32>(0)?,
            constraints: backend.zeros::<u32>(0)?,
            banks: backend.zeros::<u32>(0)?,
            picks: backend.zeros::<u32>(0)?,
            reserved: Stages::default(),
            scratch: backend.search_scratch(shape, vocab_size)?,
        })
    }

    /// Allocates what these stages write, where it is not there yet.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn reserve(&mut self, backend: &B, stages: Stages) -> Result<()> {
        let SessionShape { slots, beam_size, max_len, rows, .. } = self.shape;
        let reserved = self.reserved;
        if stages.ranked && !reserved.ranked {
            self.ranked = backend.zeros::<f32>(rows * backend.logits_stride(self.vocab_size))?;
        }
        if stages.bans && !reserved.bans {
            let bits = self.vocab_size.div_ceil(32);
            self.bans = backend.zeros::<u32>(rows * bits)?;
            self.always_banned = backend.zeros::<u32>(slots * bits)?;
            self.prefixes = backend.zeros::<u32>(slots * max_len)?;
            self.sequences = backend.zeros::<u32>(slots * MAX_SEQUENCE_WORDS)?;
            self.constraints = backend.zeros::<u32>(slots * words::<Constraints>())?;
            self.banks = backend.zeros::<u32>(rows * BANK_WORDS)?;
        }
        if stages.samples && !reserved.samples {
            self.picks = backend.zeros::<u32>(slots * beam_size * words::<SamplePick>())?;
        }
        self.reserved = reserved.union(stages);
        Ok(())
    }
}

/// Words that a slot's banned sequences may take: one, and per sequence one more than it has tokens.
pub const MAX_SEQUENCE_WORDS: usize = 2048;

/// Tokens that a slot's constraints may have in all.
pub const MAX_CONSTRAINT_TOKENS: usize = 64;

/// Words of a row of [`Search::banks`].
pub const BANK_WORDS: usize = 1 + MAX_CONSTRAINT_TOKENS;

/// The phrases that a slot's hypotheses must contain, as they lie in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Constraints {
    /// Phrases, none twice.
    pub phrases: u32,
    /// Different tokens in them.
    pub num_tokens: u32,
    /// Where each phrase ends among the ids.
    pub ends: [u32; MAX_CONSTRAINT_TOKENS],
    /// The phrases, one behind the other.
    pub ids: [u32; MAX_CONSTRAINT_TOKENS],
    /// The different tokens. End of sentence is none of them.
    pub tokens: [u32; MAX_CONSTRAINT_TOKENS],
}

impl Constraints {
    /// These phrases, none twice, of [`MAX_CONSTRAINT_TOKENS`] tokens in all at most, and of one at least each.
    pub fn new<'a>(phrases: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut all: Constraints = bytemuck::Zeroable::zeroed();
        let mut end = 0;
        for phrase in phrases {
            all.ids[end..end + phrase.len()].copy_from_slice(phrase);
            end += phrase.len();
            all.ends[all.phrases as usize] = end as u32;
            all.phrases += 1;
            for token in phrase {
                if !all.tokens().contains(token) {
                    all.tokens[all.num_tokens as usize] = *token;
                    all.num_tokens += 1;
                }
            }
        }
        all
    }

    /// The phrases.
    pub fn phrases(&self) -> impl Iterator<Item = &[u32]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let ends = &self.ends[..self.phrases as usize];
        begins.zip(ends).map(|(begin, end)| &self.ids[begin as usize..*end as usize])
    }

    /// The different tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens[..self.num_tokens as usize]
    }
}

/// Words of a structure in device memory.
pub const fn words<T>() -> usize {
    size_of::<T>() / size_of::<u32>()
}
