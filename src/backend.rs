//! The seam between what is computed and how: one method per op, each with its contract. [`Device`] is memory and streams,
//! [`NetworkOps`] what a model is made of, [`SearchOps`] what a search is made of; [`Backend`] is all three.
//!
//! All tensors are contiguous and row-major. Outputs are `&mut` parameters; what they hold beyond the live rows is undefined.
//! Log-probabilities and scores are f32 on every backend.
//!
//! A decoding step is a pure enqueue: nothing on its path allocates, reads back, or takes an argument that changes from step to
//! step. What changes (row lists, step counters, options per sentence) lives in device buffers, so that a device may record one
//! step and replay it. A method may therefore return before its work is done; [`Device::read`]
//! waits for it.

mod device;
mod network;
mod objectives;
mod options;
mod search;
mod search_ops;

pub use device::{Device, Part, Value};
pub use network::{NetworkOps, WeightRows, rows_of};
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
pub use search_ops::SearchOps;

/// The element type of weights during computation. Sums are f32 in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floating point.
    #[default]
    F32,
    /// IEEE half precision, weights and activations; on a GPU.
    F16,
    /// The upper half of an f32: weights and activations on a GPU, weights and what they are multiplied with on the CPU.
    Bf16,
    /// 8-bit integers with one scale per output, multiplied with activations that are quantised per row; keys and values in bf16, all else
    /// in f32.
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
pub struct Rows<B: Device> {
    /// [`Row`] entries, 4 words each.
    pub entries: B::Buffer<u32>,
    /// One word: the number of live rows.
    pub count: B::Buffer<u32>,
    /// Upper bound of the live count that the host knows; grids are sized by it.
    pub bucket: usize,
    /// Whether a beam of a slot has one row at most, as in a search: then no row attends to what another row stores.
    pub one_per_beam: bool,
}

impl<B: Device> Rows<B> {
    /// An empty list with room for `capacity` rows.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn with_capacity(backend: &B, capacity: usize) -> Result<Self> {
        let words = std::mem::size_of::<Row>() / std::mem::size_of::<u32>();
        let (entries, count) = (backend.zeros::<u32>(capacity * words)?, backend.zeros::<u32>(1)?);
        Ok(Rows { entries, count, bucket: capacity, one_per_beam: false })
    }

    /// Replaces the list.
    ///
    /// # Errors
    /// A failed copy to the device.
    pub fn set(&mut self, backend: &B, rows: &[Row]) -> Result<()> {
        self.bucket = rows.len();
        backend.write(&mut self.entries, 0, bytemuck::cast_slice(rows))?;
        backend.write(&mut self.count, 0, &[rows.len() as u32])
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
    /// Whether a dot product of query and key is multiplied by `head_dim^-1/2`, as everywhere but in T5.
    pub scaled: bool,
}

impl Heads {
    /// Heads whose scores are scaled.
    pub const fn new(num_heads: usize, head_dim: usize) -> Self {
        Heads { num_heads, head_dim, scaled: true }
    }

    /// Width of a row, `num_heads * head_dim`.
    pub fn width(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// What a dot product of query and key is multiplied by, `head_dim^-1/2` (Vaswani et al. 2017, eq. 1) or 1.
    pub fn scale(self) -> f32 {
        if self.scaled { 1.0 / (self.head_dim as f32).sqrt() } else { 1.0 }
    }
}

/// How an attention makes scores of queries and keys: `q . k * heads.scale() + bias`.
#[derive(Debug)]
pub struct Scores<'a, B: NetworkOps> {
    /// The heads.
    pub heads: Heads,
    /// Added after the scale.
    pub bias: Option<&'a B::RelativeBias>,
}

impl<B: NetworkOps> Clone for Scores<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: NetworkOps> Copy for Scores<'_, B> {}

/// What a row is divided by before its gain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormKind {
    /// The mean is subtracted; the standard deviation (Ba et al. 2016).
    #[default]
    Layer,
    /// The root of the mean square (Zhang & Sennrich 2019).
    Rms,
}

/// The keys and values of one decoder layer's self-attention, shape `[slots, max_len, beam_size, width]` each.
///
/// The layout is the backend's own affair: only its methods index it.
#[derive(Debug)]
pub struct SelfCache<B: NetworkOps> {
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
pub struct CrossCache<B: NetworkOps> {
    /// Keys.
    pub keys: B::Tensor,
    /// Values.
    pub values: B::Tensor,
    /// Source positions per slot.
    pub max_src_len: usize,
}

/// How scheduled sampling picks a token from the model's distribution.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
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
pub trait Backend: SearchOps {}

impl<B: SearchOps> Backend for B {}
