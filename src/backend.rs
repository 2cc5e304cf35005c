//! The seam between what is computed and how: one method per op, each with its contract.
//!
//! All tensors are contiguous and row-major. Outputs are `&mut` parameters; what they hold beyond the live rows is undefined.
//! Log-probabilities and scores are f32 on every backend.
//!
//! A decoding step is a pure enqueue: nothing on its path allocates, reads back, or takes an argument that changes from step to
//! step. What changes (row lists, step counters, options per sentence) lives in device buffers, so that a device may record one
//! step and replay it. A method may therefore return before its work is done; [`Backend::read_ints`] and
//! [`Backend::read_floats`] wait for it.

mod objectives;
mod options;
mod search;

use std::ops::Range;

pub use objectives::{Divergence, ExpectedRisk, RowShape, SmoothedTarget, TokenStats, check_risk_alpha};

use crate::Result;

pub use options::{
    ContrastiveForm, ContrastiveOptions, FinishKind, LengthPenaltyKind, MAX_SCORERS, SampleOptions, SlotOptions,
    Stages, StopKind, Strategy,
};
pub use search::{
    BANK_WORDS, Constraints, Failure, Finished, MAX_CONSTRAINT_TOKENS, MAX_SEQUENCE_WORDS, SamplePick, Search,
    SessionShape, SpecialIds, words,
};

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
    /// Whether a beam of a slot has one row at most, as in a search: then no row attends to what another row stores.
    pub one_per_beam: bool,
}

impl<B: Backend> Rows<B> {
    /// An empty list with room for `capacity` rows.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn with_capacity(backend: &B, capacity: usize) -> Result<Self> {
        let words = std::mem::size_of::<Row>() / std::mem::size_of::<u32>();
        let (entries, count) = (backend.ints(capacity * words)?, backend.ints(1)?);
        Ok(Rows { entries, count, bucket: capacity, one_per_beam: false })
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
    type GraphCache: Default + Send + std::fmt::Debug;
    /// Host memory for words that are read late.
    type Readback: Send + std::fmt::Debug;

    /// How many steps are enqueued behind a step before the host looks at what came of it; 0 where a call returns with its work
    /// done.
    const READBACK_DEPTH: usize;

    /// Runs a decoding step: what `enqueue` enqueues, called, or replayed as recorded under the same key.
    ///
    /// Two steps with the same key enqueue the same work on the same buffers with the same numbers. `enqueue` neither allocates,
    /// nor waits, nor copies from or to the host.
    ///
    /// # Errors
    /// Those of `enqueue`; the device failed.
    fn replay_or_record(
        &self,
        graphs: &mut Self::GraphCache,
        key: StepKey,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<()>;

    /// Enqueues `work` behind all that has been enqueued so far and beside what comes before the next [`Backend::join_aside`]: until
    /// then nothing touches what it writes, nor writes what it reads. Where a call returns with its work done: now.
    ///
    /// # Errors
    /// Those of `work`, which neither allocates nor waits; the device failed.
    fn aside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }

    /// Lets what is enqueued from here on wait for the work aside.
    ///
    /// # Errors
    /// The device failed.
    fn join_aside(&self) -> Result<()> {
        Ok(())
    }

    /// The device's name, as on the command line.
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    /// A backend of the same kind on which nothing is computed or kept: [`Backend::allocated`] says what was allocated on it. None
    /// where memory is not planned.
    fn dry(&self) -> Option<Self> {
        None
    }

    /// Bytes allocated on the device and not freed, as far as they are counted.
    fn allocated(&self) -> u64 {
        0
    }

    /// Bytes that can be allocated after all that is enqueued has run; none if nobody knows, and nobody set a limit.
    ///
    /// # Errors
    /// The device failed.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Waits for all that is enqueued.
    ///
    /// # Errors
    /// The device has failed and can do no more.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Runs `work` where the backend's threads are; a caller wraps a whole step or more, not each operation.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;

    /// Whether someone else waits for the backend's threads: work that goes on for long ends then, and comes back.
    fn is_wanted(&self) -> bool {
        false
    }

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
    fn readback(&self, words: usize) -> Result<Self::Readback>;
    /// Enqueues a copy of a range of words to the host, to word `offset` there.
    fn enqueue_read_ints(
        &self,
        from: &Self::Ints,
        range: Range<usize>,
        to: &mut Self::Readback,
        offset: usize,
    ) -> Result<()>;
    /// Enqueues a copy of the bits of a range of values to the host, to word `offset` there.
    fn enqueue_read_floats(
        &self,
        from: &Self::Floats,
        range: Range<usize>,
        to: &mut Self::Readback,
        offset: usize,
    ) -> Result<()>;
    /// Waits for the last copy posted into `late`, but for nothing enqueued after it, then reads its first words.
    fn wait_readback(&self, readback: &Self::Readback, words: &mut [u32]) -> Result<()>;

    /// Prepares the weights `[out_dim, in_dim]` and the bias `[out_dim]` of a linear layer.
    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<Self::Matrix>;
    /// Prepares a layer norm's gain and bias, `[width]` each; `eps` is added to the variance.
    fn norm(&self, gain: &[f32], bias: &[f32], eps: f32) -> Result<Self::Norm>;
    /// Prepares token embeddings `[vocab_size, width]`, each row to be multiplied by `scale`, and positions `[max_len, width]`.
    fn embeddings(&self, tokens: &[f32], scale: f32, positions: &[f32], width: usize) -> Result<Self::Embedding>;

    /// Op `embedding`: `out[r] = token_row(rows[r].token) * scale + position_row(rows[r].position)`, `out` `[rows, width]`.
    ///
    /// Tokens and positions lie within the tables: the caller has checked them.
    fn embedding(&self, table: &Self::Embedding, rows: &Rows<Self>, out: &mut Self::Tensor) -> Result<()>;

    /// Op `linear`: `out = activation(x W^T + bias)`, `x` `[rows, in_dim]`, `out` `[rows, out_dim]`.
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

    /// Elements between the starts of two rows of logits: at least `vocab_size`. What lies between is undefined.
    fn logits_stride(&self, vocab_size: usize) -> usize {
        vocab_size
    }

    /// Op `linear`, into f32: `out = x W^T + bias`, `out` `[rows, vocab_size]`, rows [`Backend::logits_stride`] apart.
    fn logits(&self, matrix: &Self::Matrix, rows: &Rows<Self>, x: &Self::Tensor, out: &mut Self::Floats) -> Result<()>;

    /// Op `layer_norm`: `x[r] = gain * (h - mean(h)) / sqrt(var(h) + eps) + bias` with `h = x[r] + delta[r]`
    /// (Ba et al. 2016), the variance being that of the whole row, in two passes and in f32. All `[rows, width]`.
    fn layer_norm(
        &self,
        norm: &Self::Norm,
        rows: &Rows<Self>,
        delta: &Self::Tensor,
        x: &mut Self::Tensor,
    ) -> Result<()>;

    /// Op `attention`: every row attends to all rows of its own sentence.
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

    /// Op `attention`: stores the keys and values of `kv` `[rows, 2 * width]` at each row's slot and position.
    fn store_cross(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        kv: &Self::Tensor,
        cache: &mut CrossCache<Self>,
    ) -> Result<()>;

    /// Op `attention`: stores the keys and values within `qkv` `[rows, 3 * width]` at each row's slot, position and beam.
    fn store_self(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        qkv: &Self::Tensor,
        cache: &mut SelfCache<Self>,
    ) -> Result<()>;

    /// Op `attention`: every row attends to the positions of its own prefix, its own position included.
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

    /// Op `attention`: every row attends to its slot's source, `options[slot].src_len` positions.
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

    /// [`Backend::linear`], then [`Backend::layer_norm`]: `x = norm(x + from W^T + bias)`; `delta`, `[rows, width]`, is working memory.
    fn linear_norm(
        &self,
        matrix: &Self::Matrix,
        norm: &Self::Norm,
        rows: &Rows<Self>,
        from: &Self::Tensor,
        delta: &mut Self::Tensor,
        x: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(matrix, rows, from, Activation::None, delta)?;
        self.layer_norm(norm, rows, delta, x)
    }

    /// [`Backend::linear`] into `qkv` `[rows, 3 * width]`, [`Backend::store_self`], [`Backend::self_attention`]. What `qkv` holds
    /// afterwards is undefined; where [`Rows::one_per_beam`] holds, a device may do it all in one pass. The bits are the same.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn attend_to_prefix(
        &self,
        heads: Heads,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Self::Tensor,
        qkv: &mut Self::Tensor,
        cache: &mut SelfCache<Self>,
        ancestry: &Self::Ints,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(matrix, rows, x, Activation::None, qkv)?;
        self.store_self(heads, rows, qkv, cache)?;
        self.self_attention(heads, rows, qkv, cache, ancestry, out)
    }

    /// [`Backend::linear`] into `queries` `[rows, width]`, [`Backend::cross_attention`]. What `queries` holds afterwards is
    /// undefined.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn attend_to_source(
        &self,
        heads: Heads,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Self::Tensor,
        queries: &mut Self::Tensor,
        cache: &CrossCache<Self>,
        options: &Self::Ints,
        weights: Option<&mut Self::Floats>,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(matrix, rows, x, Activation::None, queries)?;
        self.cross_attention(heads, rows, queries, cache, options, weights, out)
    }

    /// Op `beam_step`: takes each slot of `slots` into the search with its options: one live beam that reads the decoder
    /// start token, nothing finished. A sampling slot starts with all of its beams live. Then rebuilds `search.rows`.
    ///
    /// What the options ask for beyond plain beam search, [`Search::reserve`] has made room for.
    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()>;

    /// Op `processors`: writes `search.bans` for the rows of slots whose options say that bans hold. Reads no logits.
    ///
    /// Within a given prefix, everything but its next token. Behind it, what [`Search::always_banned`] has for the slot, each
    /// token that would repeat an n-gram of `no_repeat_ngram` generated tokens, and each that would complete one of
    /// [`Search::sequences`].
    ///
    /// Writes `search.banks`, too, for the rows of slots with constraints: the sum over their phrases of the tokens met, all of
    /// them once the row's tokens contain the phrase, else the most of its first tokens that they end with. End of sentence is
    /// banned until all are met.
    fn processors(&self, search: &mut Search<Self>) -> Result<()>;

    /// Op `contrastive`: writes `search.ranked` for the rows of slots whose amateur is `scorer`: log_softmax(s), s as
    /// [`ContrastiveForm`] says, `expert` and `amateur` being the logits of the first scorer and of that one.
    ///
    /// End of sentence joins V_head at `max_len`, unless the slot cuts there; the next token of a given prefix joins it too.
    fn contrastive(
        &self,
        expert: &Self::Floats,
        amateur: &Self::Floats,
        scorer: u32,
        search: &mut Search<Self>,
    ) -> Result<()>;

    /// Op `ensemble`: writes `search.ranked` for the rows of slots that rank another distribution and contrast nothing:
    /// `log_softmax(sum_v weight_v * logits_v)`, or, without weights, the first scorer's own distribution. A scorer that has a
    /// weight in some live slot is there.
    fn ensemble(&self, scorers: &[Option<&Self::Floats>], search: &mut Search<Self>) -> Result<()>;

    /// Op `processors`: in `search.ranked`, multiplies what a row has generated before by its slot's `repetition_penalty`, or
    /// divides what is not negative by it. Where the options say so, it adds what that changes in the logits instead: `logits`
    /// `[rows, vocab_size]`, rows [`Backend::logits_stride`] apart.
    fn repetition_penalty(&self, logits: &Self::Floats, search: &mut Search<Self>) -> Result<()>;

    /// Op `beam_step`: one step of the search in every live slot.
    ///
    /// `logits` `[rows, vocab_size]`, rows [`Backend::logits_stride`] apart, and `attention` `[rows, max_src_len]` belong to
    /// `search.rows`. Per slot, with K its own beam size and t the step's number:
    /// 1. Candidates are (live beam, token) pairs, worth `cum_log_prob + log_softmax(logits)`, or, where the slot's options say
    ///    so, `cum_log_prob +` [`Search::ranked`]. Padding and what [`Search::bans`] holds is masked, end of sentence is before
    ///    `min_len`, all but end of sentence is at `max_len`, unless the slot cuts there; masks act after the softmax. With
    ///    `renormalize`, and with `free_first` at the first step, what ranks is divided by the probability of the tokens that are
    ///    left.
    /// 2. The 2K best are ranked, ties to the lower `beam * vocab_size + token`. -inf is no candidate.
    /// 3. End of sentence among the first K ranks finishes. The first K others stay live; at `max_len` a slot that cuts ends
    ///    these as they are, truncated.
    /// 4. Without any live or finished hypothesis, the best beam of the step before finishes, truncated and without end of
    ///    sentence.
    /// 5. The slot ends (`live` = 0) without live beams or when its stop rule says so.
    /// 6. `step`, histories, ancestry, coverage and the finished set follow, and `search.rows` is rebuilt.
    ///
    /// In a sampling slot each live beam takes what [`Search::picks`] has for it and nothing else: end of sentence finishes it;
    /// without a token it ends as it is, and at `max_len` whatever it took, truncated. The slot ends with its last beam. A sample's number is the beam that it
    /// started in: `ancestry[slot, beam, 0]` from the second step on.
    ///
    /// In a slot with C tokens of constraints each candidate stands in the bank that [`Search::banks`] has for it, and 2. and 3.
    /// become: the banks share the K beams, as [`SlotOptions::bank_shares`] has it; what a bank has too few candidates for, end
    /// of sentence not counted, goes to the next lower one, and what the lowest leaves to the highest, and down again. A bank's
    /// best go on with the beams it got, the highest bank's first. End of sentence is a candidate in bank C alone, and finishes
    /// among the first K ranks there. At `max_len` bank C gets all beams, and where the slot cuts, only its first K ranks count.
    ///
    /// NaN or +infinity among a row's logits, or in what ranks, ends the slot and is recorded in `failures`; other slots carry on.
    fn beam_step(&self, logits: &Self::Floats, attention: &Self::Floats, search: &mut Search<Self>) -> Result<()>;

    /// Op `sample`: draws a token for every row of the slots that sample, into [`Search::picks`].
    ///
    /// `logits` `[rows, vocab_size]`, rows [`Backend::logits_stride`] apart, belong to `search.rows`. A row draws from the
    /// distribution that its slot ranks, over the tokens that masks and bans leave (here they act before the softmax), after
    /// temperature, `top_k`, `top_p`, `min_p` and `epsilon`; at `max_len`, unless the slot cuts there, it takes end of sentence.
    /// The log-probabilities are those of the whole distributions, with the bits that [`Backend::token_stats`] has. A draw
    /// depends on its slot's seed, its sample's number, its position and its distribution alone.
    ///
    /// Rows of other slots are not read. NaN and +infinity, and a row without a token to draw, give [`SamplePick::NONE`].
    fn sample(&self, logits: &Self::Floats, search: &mut Search<Self>) -> Result<()>;

    /// Op `stats`: what each row of `logits` `[rows, vocab_size]`, rows
    /// [`Backend::logits_stride`] apart, says about its token of `gold` and on its own: [`TokenStats`]
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
