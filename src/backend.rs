//! The seam between what is computed and how: one method per stem, each with its contract.
//!
//! All tensors are contiguous and row-major. Outputs are `&mut` parameters; what they hold beyond the live rows is undefined.
//! Log-probabilities and scores are f32 on every backend.
//!
//! A decoding step is a pure enqueue: nothing on its path allocates, reads back, or takes an argument that changes from step to
//! step. What changes (row lists, step counters, options per sentence) lives in device buffers, so that a device may record one
//! step and replay it. A method may therefore return before its work is done; [`Backend::read_ints`] and
//! [`Backend::read_floats`] wait for it.

mod objectives;

use std::ops::Range;

pub use objectives::{Divergence, ExpectedRisk, RowShape, SmoothedTarget, TokenStats, check_risk_alpha};

use crate::Result;

/// The element type of weights during computation. Sums are f32 in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floating point.
    #[default]
    F32,
    /// IEEE half precision, weights and activations; on a GPU.
    F16,
    /// The upper half of an f32, weights and activations; on a GPU.
    Bf16,
    /// 8-bit integers with one scale per output; activations are quantised per row. On the CPU.
    I8,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::I8 => 1,
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::I8 => "i8",
        }
    }
}

/// The activation of a feed-forward layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// x * sigmoid(x), also called swish (Ramachandran et al. 2017)
    Silu,
    /// The tanh approximation of [`Activation::GeluErf`] (Hendrycks & Gimpel 2016)
    GeluTanh,
    /// x * Phi(x), Phi the normal distribution function (Hendrycks & Gimpel 2016)
    GeluErf,
}

/// One activation row: which sentence slot and beam it belongs to, at which position, reading which token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Row {
    /// Sentence slot of the session.
    pub slot: u32,
    /// Beam within the slot; 0 in the encoder.
    pub beam: u32,
    /// Position of the token in its sequence; the decoder start token stands at 0.
    pub position: u32,
    /// The token that this row reads.
    pub token: u32,
}

/// A list of rows on the device: the first `count` entries are live, at most `bucket` of them.
#[derive(Debug)]
pub struct Rows<B: Backend> {
    /// [`Row`] entries, 4 words each.
    pub entries: B::Ints,
    /// One word: the number of live rows.
    pub count: B::Ints,
    /// Upper bound of the live count that the host knows; grids are sized by it.
    pub bucket: usize,
}

impl<B: Backend> Rows<B> {
    /// An empty list with room for `capacity` rows.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn with_capacity(backend: &B, capacity: usize) -> Result<Self> {
        let words = std::mem::size_of::<Row>() / std::mem::size_of::<u32>();
        Ok(Rows { entries: backend.ints(capacity * words)?, count: backend.ints(1)?, bucket: capacity })
    }

    /// Replaces the list.
    ///
    /// # Errors
    /// A failed copy to the device.
    pub fn set(&mut self, backend: &B, rows: &[Row]) -> Result<()> {
        self.bucket = rows.len();
        backend.write_ints(&mut self.entries, 0, bytemuck::cast_slice(rows))?;
        backend.write_ints(&mut self.count, 0, &[rows.len() as u32])
    }
}

/// What makes two decoding steps of a session the same: their keys are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    /// Rows that grids are sized for, [`Rows::bucket`].
    pub rows: usize,
    /// What the step is made of, one bit each.
    pub stages: u32,
}

/// The shape of a multi-head attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Number of heads.
    pub num_heads: usize,
    /// Width of one head; `num_heads * head_dim` is the width of a row.
    pub head_dim: usize,
}

impl Heads {
    /// Width of a row, `num_heads * head_dim`.
    pub fn width(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// What a dot product of query and key is multiplied by, `head_dim^-1/2` (Vaswani et al. 2017, eq. 1).
    pub fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// The keys and values of one decoder layer's self-attention, shape `[slots, max_len, beam_size, width]` each.
///
/// The layout is the backend's own affair: only its methods index it.
#[derive(Debug)]
pub struct SelfCache<B: Backend> {
    /// Keys.
    pub keys: B::Tensor,
    /// Values.
    pub values: B::Tensor,
    /// Positions per slot.
    pub max_len: usize,
    /// Beams per slot.
    pub beam_size: usize,
}

/// The keys and values of one decoder layer's cross-attention, shape `[slots, max_src_len, width]` each.
#[derive(Debug)]
pub struct CrossCache<B: Backend> {
    /// Keys.
    pub keys: B::Tensor,
    /// Values.
    pub values: B::Tensor,
    /// Source positions per slot.
    pub max_src_len: usize,
}

/// How a hypothesis' length enters its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LengthPenaltyKind {
    /// 1
    None = 0,
    /// ((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14)
    Gnmt = 1,
    /// length^alpha
    Power = 2,
}

/// When a sentence's search ends, once `beam_size` hypotheses have finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StopKind {
    /// At once.
    First = 0,
    /// When the best live hypothesis, if it ended now, could not beat the worst finished one.
    Heuristic = 1,
    /// When no continuation of any live hypothesis can beat the worst finished one.
    Exact = 2,
}

/// One sentence's search options as they lie in device memory.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SlotOptions {
    /// Beams of this sentence, 1..=the session's.
    pub beam_size: u32,
    /// A [`LengthPenaltyKind`].
    pub length_penalty: u32,
    /// Exponent of the length penalty.
    pub alpha: f32,
    /// Weight of the coverage penalty; 0 switches it off.
    pub coverage_penalty: f32,
    /// Added to the score per generated token.
    pub word_reward: f32,
    /// A [`StopKind`].
    pub stop: u32,
    /// Generated tokens, end of sentence included, before which end of sentence is masked.
    pub min_len: u32,
    /// Generated tokens, end of sentence included, at which only end of sentence is allowed.
    pub max_len: u32,
    /// 1: end of sentence at `max_len` enters the search score with log-probability 0.
    pub forced_eos: u32,
    /// 1: what is ranked is normalised over the tokens that masks leave.
    pub renormalize: u32,
    /// Source tokens, end of sentence included.
    pub src_len: u32,
}

impl SlotOptions {
    /// The length penalty that divides the search score of a hypothesis of `length` tokens.
    pub fn length_penalty_at(&self, length: u32) -> f32 {
        match self.length_penalty {
            kind if kind == LengthPenaltyKind::Gnmt as u32 => ((5.0 + length as f32) / 6.0).powf(self.alpha),
            kind if kind == LengthPenaltyKind::Power as u32 => (length as f32).powf(self.alpha),
            _ => 1.0,
        }
    }

    /// The length part of the score of a hypothesis with search score `cum_log_prob`.
    pub fn normalized(&self, cum_log_prob: f32, length: u32) -> f32 {
        cum_log_prob / self.length_penalty_at(length) + self.word_reward * length as f32
    }
}

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
    /// 1: closed by an end of sentence.
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

/// How an expert's logits z_e and an amateur's z_a become the distribution that a step ranks: log_softmax(s).
///
/// p are their probabilities; V_head = { v : z_e(v) - max z_e >= log(mask) }; s is -infinity outside of V_head where a form has
/// one, and wherever z_e is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ContrastiveForm {
    /// z_e - weight * z_a, without V_head.
    Seed = 0,
    /// log p_e - weight * log p_a on V_head (Li et al. 2023, eq. 2).
    Li = 1,
    /// (1 + weight) * log p_e - weight * log p_a on V_head (O'Brien & Lewis 2023, eq. 2).
    Obrien = 2,
    /// log(max(p_e - weight * p_a, 1e-12)) on V_head; p_a is the expert reading another source.
    Source = 3,
}

/// One sentence's contrastive options as they lie in device memory.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ContrastiveOptions {
    /// A [`ContrastiveForm`].
    pub form: u32,
    /// How strongly the amateur counts.
    pub weight: f32,
    /// Logarithm of the mask: taken once, so that every backend draws V_head's line at the same place.
    pub log_mask: f32,
    /// Divides the amateur's logits.
    pub temperature: f32,
    /// Generated tokens, end of sentence included, at which end of sentence joins V_head.
    pub max_len: u32,
}

impl ContrastiveOptions {
    /// The options with `log(mask)` in place of the mask; 0 admits every token to V_head.
    pub fn new(form: ContrastiveForm, weight: f32, mask: f32, temperature: f32, max_len: u32) -> Self {
        let log_mask = f64::from(mask).ln() as f32;
        ContrastiveOptions { form: form as u32, weight, log_mask, temperature, max_len }
    }
}

/// How scheduled sampling picks a token from the model's distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pick {
    /// The most probable token, ties to the lower id.
    Argmax,
    /// A draw from softmax(logits / temperature), as the largest of `logits / temperature + Gumbel noise`.
    Sample {
        /// Above 0.
        temperature: f32,
    },
}

/// What changes in scheduled sampling from one update to the next, as it lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Schedule {
    /// Probability of keeping a gold token.
    pub gold_probability: f32,
    /// Number of the update; the random numbers depend on it.
    pub update: u32,
}

/// Which token of the data a row stands for: what its random numbers depend on, whatever batch it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TokenPlace {
    /// The sentence's number in the data.
    pub sentence: u32,
    /// The token's position in it.
    pub position: u32,
}

/// What stays the same in scheduled sampling throughout a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduledSampling {
    /// How a token is picked.
    pub pick: Pick,
    /// The run's seed.
    pub seed: u64,
    /// Padding and the start token are never picked; end of sentence not before the gold sentence's end.
    pub ids: SpecialIds,
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
    /// Padding: never generated.
    pub pad_id: u32,
    /// What the decoder reads at position 0.
    pub decoder_start_id: u32,
}

/// The state of beam search over all slots of a session, on the device.
///
/// `S` slots, `K` beams, `T` = max_len, `N` = max_src_len.
#[derive(Debug)]
pub struct Search<B: Backend> {
    /// The sizes.
    pub shape: SessionShape,
    /// The target vocabulary's size.
    pub vocab_size: usize,
    /// The ids with a meaning of their own.
    pub ids: SpecialIds,
    /// [`SlotOptions`] `[S]`.
    pub options: B::Ints,
    /// Generated tokens so far `[S]`.
    pub step: B::Ints,
    /// Live beams `[S]`; 0 when the slot is free, has finished or has failed.
    pub live: B::Ints,
    /// Search score of each live beam `[S, K]`.
    pub cum_log_probs: B::Floats,
    /// The token generated at each step by each beam `[S, T, K]`.
    pub tokens: B::Ints,
    /// The beam, numbered as after the step before, that it extends `[S, T, K]`.
    pub parents: B::Ints,
    /// The model's own log-probability of that token `[S, T, K]`.
    pub log_probs: B::Floats,
    /// Which beam's cache holds position t of this beam's prefix `[S, K, T]`; defined below the beam's own position.
    pub ancestry: B::Ints,
    /// Cross-attention that each source position has received `[S, K, N]`.
    pub coverage: B::Floats,
    /// Cross-attention of the row that made each step `[S, T, K, N]`, by the row's beam; empty unless kept.
    pub attention: B::Floats,
    /// [`Finished`] `[S, K]`.
    pub finished: B::Ints,
    /// Finished hypotheses `[S]`.
    pub finished_count: B::Ints,
    /// [`Failure`] `[S]`.
    pub failures: B::Ints,
    /// The live beams of all slots, by slot, then beam: what the next decoder step computes.
    pub rows: Rows<B>,
    /// The backend's own working memory for the step.
    pub scratch: B::SearchScratch,
}

impl<B: Backend> Search<B> {
    /// Allocates the state with all slots free.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, shape: SessionShape, vocab_size: usize, ids: SpecialIds) -> Result<Self> {
        let SessionShape { slots, beam_size, max_len, max_src_len, rows, keep_attention } = shape;
        let history = slots * max_len * beam_size;
        let words = |bytes: usize| bytes / std::mem::size_of::<u32>();
        Ok(Search {
            shape,
            vocab_size,
            ids,
            options: backend.ints(slots * words(std::mem::size_of::<SlotOptions>()))?,
            step: backend.ints(slots)?,
            live: backend.ints(slots)?,
            cum_log_probs: backend.floats(slots * beam_size)?,
            tokens: backend.ints(history)?,
            parents: backend.ints(history)?,
            log_probs: backend.floats(history)?,
            ancestry: backend.ints(history)?,
            coverage: backend.floats(slots * beam_size * max_src_len)?,
            attention: backend.floats(if keep_attention { history * max_src_len } else { 0 })?,
            finished: backend.ints(slots * beam_size * words(std::mem::size_of::<Finished>()))?,
            finished_count: backend.ints(slots)?,
            failures: backend.ints(slots * words(std::mem::size_of::<Failure>()))?,
            rows: Rows::with_capacity(backend, rows)?,
            scratch: backend.search_scratch(shape, vocab_size)?,
        })
    }
}

/// A device that can run the model and the search.
pub trait Backend: Send + Sync + Sized + std::fmt::Debug + 'static {
    /// Activations, in the type that the backend computes in.
    type Tensor: Send + std::fmt::Debug;
    /// f32 values.
    type Floats: Send + std::fmt::Debug;
    /// u32 words.
    type Ints: Send + std::fmt::Debug;
    /// The weights and bias of a linear layer, prepared for [`Backend::linear`].
    type Matrix: Send + Sync + std::fmt::Debug;
    /// Gain and bias of a layer norm.
    type Norm: Send + Sync + std::fmt::Debug;
    /// Token and position embeddings.
    type Embedding: Send + Sync + std::fmt::Debug;
    /// Working memory of [`Backend::beam_step`].
    type SearchScratch: Send + std::fmt::Debug;

    /// The recorded steps of one session.
    type Recordings: Default + Send + std::fmt::Debug;
    /// Host memory for words that are read late.
    type Late: Send + std::fmt::Debug;

    /// How many steps are enqueued behind a step before the host looks at what came of it; 0 where a call returns with its work
    /// done.
    const LAG: usize;

    /// Runs a decoding step: what `enqueue` enqueues, called, or replayed as recorded under the same key.
    ///
    /// Two steps with the same key enqueue the same work on the same buffers with the same numbers. `enqueue` neither allocates,
    /// nor waits, nor copies from or to the host.
    ///
    /// # Errors
    /// Those of `enqueue`; the device failed.
    fn replayable(
        &self,
        recordings: &mut Self::Recordings,
        key: StepKey,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<()>;

    /// Runs `work` where the backend's threads are; a caller wraps a whole step, not each operation.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;

    /// Allocates activations; their content is undefined.
    ///
    /// # Errors
    /// The device has no memory left; so for every allocation below.
    fn tensor(&self, len: usize) -> Result<Self::Tensor>;
    /// Allocates zeros.
    fn floats(&self, len: usize) -> Result<Self::Floats>;
    /// Allocates zeros.
    fn ints(&self, len: usize) -> Result<Self::Ints>;
    /// Allocates the working memory of a search.
    fn search_scratch(&self, shape: SessionShape, vocab_size: usize) -> Result<Self::SearchScratch>;
    /// Copies words to the device, starting at word `offset`.
    fn write_ints(&self, to: &mut Self::Ints, offset: usize, values: &[u32]) -> Result<()>;
    /// Waits, then copies words back, starting at word `offset`.
    fn read_ints(&self, from: &Self::Ints, offset: usize, values: &mut [u32]) -> Result<()>;
    /// Waits, then copies values back, starting at `offset`.
    fn read_floats(&self, from: &Self::Floats, offset: usize, values: &mut [f32]) -> Result<()>;
    /// Allocates host memory for `words` words that are read late.
    fn late(&self, words: usize) -> Result<Self::Late>;
    /// Enqueues a copy of a range of words to the host, to word `offset` there.
    fn post_ints(&self, from: &Self::Ints, range: Range<usize>, to: &mut Self::Late, offset: usize) -> Result<()>;
    /// Enqueues a copy of the bits of a range of values to the host, to word `offset` there.
    fn post_floats(&self, from: &Self::Floats, range: Range<usize>, to: &mut Self::Late, offset: usize) -> Result<()>;
    /// Waits for the last copy posted into `late`, but for nothing enqueued after it, then reads its first words.
    fn collect(&self, late: &Self::Late, words: &mut [u32]) -> Result<()>;

    /// Prepares the weights `[out_dim, in_dim]` and the bias `[out_dim]` of a linear layer.
    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<Self::Matrix>;
    /// Prepares a layer norm's gain and bias, `[width]` each; `eps` is added to the variance.
    fn norm(&self, gain: &[f32], bias: &[f32], eps: f32) -> Result<Self::Norm>;
    /// Prepares token embeddings `[vocab_size, width]`, each row to be multiplied by `scale`, and positions `[max_len, width]`.
    fn embeddings(&self, tokens: &[f32], scale: f32, positions: &[f32], width: usize) -> Result<Self::Embedding>;

    /// Stem `embedding`: `out[r] = token_row(rows[r].token) * scale + position_row(rows[r].position)`, `out` `[rows, width]`.
    ///
    /// Tokens and positions lie within the tables: the caller has checked them.
    fn embedding(&self, table: &Self::Embedding, rows: &Rows<Self>, out: &mut Self::Tensor) -> Result<()>;

    /// Stem `linear`: `out = activation(x W^T + bias)`, `x` `[rows, in_dim]`, `out` `[rows, out_dim]`.
    ///
    /// The bits of an output row depend on its input row and the weights alone: not on the number of rows, nor on their order.
    fn linear(
        &self,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Self::Tensor,
        activation: Activation,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Stem `linear`, into f32: `out = x W^T + bias`, `out` `[rows, vocab_size]`.
    fn logits(&self, matrix: &Self::Matrix, rows: &Rows<Self>, x: &Self::Tensor, out: &mut Self::Floats) -> Result<()>;

    /// Stem `layer_norm`: `x[r] = gain * (h - mean(h)) / sqrt(var(h) + eps) + bias` with `h = x[r] + delta[r]`
    /// (Ba et al. 2016), the variance being that of the whole row, in two passes and in f32. All `[rows, width]`.
    fn layer_norm(
        &self,
        norm: &Self::Norm,
        rows: &Rows<Self>,
        delta: &Self::Tensor,
        x: &mut Self::Tensor,
    ) -> Result<()>;

    /// Stem `attention`: every row attends to all rows of its own sentence.
    ///
    /// `qkv` `[rows, 3 * width]` holds query, key and value side by side; sentence i is rows `starts[i]..starts[i + 1]`;
    /// `out` `[rows, width]`.
    fn encoder_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        starts: &Self::Ints,
        sentences: usize,
        qkv: &Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Stem `attention`: stores the keys and values of `kv` `[rows, 2 * width]` at each row's slot and position.
    fn store_cross(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        kv: &Self::Tensor,
        cache: &mut CrossCache<Self>,
    ) -> Result<()>;

    /// Stem `attention`: stores the keys and values within `qkv` `[rows, 3 * width]` at each row's slot, position and beam.
    fn store_self(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        qkv: &Self::Tensor,
        cache: &mut SelfCache<Self>,
    ) -> Result<()>;

    /// Stem `attention`: every row attends to the positions of its own prefix, its own position included.
    ///
    /// Position t below the row's own is read from beam `ancestry[slot, beam, t]`, shape `[slots, beam_size, max_len]`; the
    /// queries are the first third of `qkv`; `out` `[rows, width]`.
    fn self_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        qkv: &Self::Tensor,
        cache: &SelfCache<Self>,
        ancestry: &Self::Ints,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Stem `attention`: every row attends to its slot's source, `options[slot].src_len` positions.
    ///
    /// `queries` `[rows, width]`, `out` `[rows, width]`. `weights` `[rows, max_src_len]`, where asked for, receives the
    /// attention, mean over heads, zero beyond the source.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn cross_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        queries: &Self::Tensor,
        cache: &CrossCache<Self>,
        options: &Self::Ints,
        weights: Option<&mut Self::Floats>,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Stem `beam_step`: takes each slot of `slots` into the search with its options: one live beam that reads the decoder
    /// start token, nothing finished. Then rebuilds `search.rows`.
    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()>;

    /// Stem `beam_step`: one step of beam search in every live slot.
    ///
    /// `logits` `[rows, vocab_size]` and `attention` `[rows, max_src_len]` belong to `search.rows`. Per slot, with K its own
    /// beam size and t the step's number:
    /// 1. Candidates are (live beam, token) pairs, worth `cum_log_prob + log_softmax(logits)`; padding is masked, end of
    ///    sentence is before `min_len`, all but end of sentence is at `max_len`; masks act after the softmax. With
    ///    `renormalize` what ranks is divided by the probability of the tokens that are left.
    /// 2. The 2K best are ranked, ties to the lower `beam * vocab_size + token`. -inf is no candidate.
    /// 3. End of sentence among the first K ranks finishes. The first K others stay live.
    /// 4. Without any live or finished hypothesis, the best beam of the step before finishes, truncated and without end of
    ///    sentence.
    /// 5. The slot ends (`live` = 0) without live beams or when its stop rule says so.
    /// 6. `step`, histories, ancestry, coverage and the finished set follow, and `search.rows` is rebuilt.
    ///
    /// NaN or +infinity among a row's logits ends the slot and is recorded in `failures`; other slots carry on.
    fn beam_step(&self, logits: &Self::Floats, attention: &Self::Floats, search: &mut Search<Self>) -> Result<()>;

    /// Stem `stats`: what each row of `logits` `[rows, vocab_size]` says about its token of `gold` and on its own: [`TokenStats`]
    /// `[rows]`.
    ///
    /// The log-probabilities have the bits that [`Backend::beam_step`] ranks.
    fn token_stats(
        &self,
        rows: &Rows<Self>,
        logits: &Self::Floats,
        vocab_size: usize,
        gold: &Self::Ints,
        out: &mut Self::Ints,
    ) -> Result<()>;
}
