//! Encoder-decoder models: configuration, weights, encoder, decoder step.

pub mod config;
mod decoder;
mod encoder;
pub mod generation;
mod load;
pub mod names;
mod pack;
pub mod positions;
pub mod size;
#[cfg(test)]
mod tests;
pub mod weights;

use std::path::Path;
use std::sync::Arc;

use crate::backend::{Activation, Backend, CrossCache, Row, Rows, SelfCache, SessionShape, SpecialIds};
use crate::{Error, Result};
pub use pack::PackUse;

use config::{ModelConfig, NormPlacement, PositionConfig, StackConfig};
use weights::Weights;

/// What the decode loop asks of a model; [`Transformer`] is one, tests script others.
pub trait Seq2Seq<B: Backend>: Send + Sync {
    /// Device memory for the sentences being decoded.
    type State: Send;

    /// Target vocabulary size.
    fn vocab_size(&self) -> usize;
    /// Ids with a meaning of their own.
    fn ids(&self) -> SpecialIds;
    /// The longest source and the longest target, end of sentence included.
    fn max_len(&self) -> usize;

    /// Allocates the state for a session of this shape.
    ///
    /// # Errors
    /// The device has no memory left.
    fn open(&self, backend: &B, shape: SessionShape) -> Result<Self::State>;

    /// Encodes sources into their slots: `(slot, ids with end of sentence)`.
    ///
    /// # Errors
    /// A failed device operation.
    fn encode(&self, backend: &B, state: &mut Self::State, sources: &[(u32, &[u32])]) -> Result<()>;

    /// Runs the decoder for `rows`: fills [`Seq2Seq::logits`] and [`Seq2Seq::attention`].
    ///
    /// `ancestry` `[slots, beam_size, max_len]` says where each beam's prefix lies; `options` `[slots]` holds [`SlotOptions`](crate::backend::SlotOptions).
    ///
    /// # Errors
    /// A failed device operation.
    fn step(
        &self,
        backend: &B,
        state: &mut Self::State,
        rows: &Rows<B>,
        ancestry: &B::Buffer<u32>,
        options: &B::Buffer<u32>,
    ) -> Result<()>;

    /// The last step's logits `[rows, vocab_size]`, rows [`logits_stride`](crate::backend::NetworkOps::logits_stride) apart.
    fn logits<'a>(&self, state: &'a Self::State) -> &'a B::Buffer<f32>;
    /// The last step's cross-attention, last layer, mean over heads, `[rows, max_src_len]`.
    fn attention<'a>(&self, state: &'a Self::State) -> &'a B::Buffer<f32>;
}

/// An encoder-decoder transformer, as its [`ModelConfig`] describes it.
#[derive(Debug)]
pub struct Transformer<B: Backend> {
    config: ModelConfig,
    encoder: Stack<B, EncoderLayer<B>>,
    decoder: Stack<B, DecoderLayer<B>>,
    /// The vocabulary projection.
    output: Arc<B::Matrix>,
}

/// One side of a model.
#[derive(Debug)]
struct Stack<B: Backend, L> {
    /// One and the same where the sides share it.
    embedding: Arc<B::Embedding>,
    /// Those of the checkpoint, or computed once; none where there are none, or they go on and a session has them.
    positions: Option<Arc<B::Positions>>,
    /// The norm behind the embedding.
    embed_norm: Option<B::Norm>,
    /// Where norms stand before sublayers, the first one's; each sublayer ends in the norm of the next.
    first_norm: Option<B::Norm>,
    layers: Vec<L>,
    /// What self-attention adds to its scores: one for all layers, one for each, or none.
    relative: Vec<B::RelativeBias>,
}

/// Query, key and value in one product, `[3 * width, d_model]`, the output projection, and the norm that follows.
#[derive(Debug)]
struct SelfAttention<B: Backend> {
    qkv: B::Matrix,
    out: B::Matrix,
    norm: B::Norm,
}

#[derive(Debug)]
struct CrossAttention<B: Backend> {
    query: B::Matrix,
    /// Key and value in one product, `[2 * width, d_model]`.
    kv: B::Matrix,
    out: B::Matrix,
    norm: B::Norm,
}

#[derive(Debug)]
struct FeedForward<B: Backend> {
    /// Both halves in one product where it is gated.
    up: B::Matrix,
    down: B::Matrix,
    norm: B::Norm,
}

#[derive(Debug)]
struct EncoderLayer<B: Backend> {
    attention: SelfAttention<B>,
    feed_forward: FeedForward<B>,
}

#[derive(Debug)]
struct DecoderLayer<B: Backend> {
    attention: SelfAttention<B>,
    cross: CrossAttention<B>,
    feed_forward: FeedForward<B>,
}

impl<B: Backend> Transformer<B> {
    /// Loads `config.json` and the weights of a model directory.
    ///
    /// # Errors
    /// Those of [`ModelConfig::open`] and [`Weights::open`], [`Error::Tensor`] for a tensor that does not fit, and a device
    /// without memory.
    pub fn open(backend: &B, dir: &Path) -> Result<Self> {
        Self::new(backend, &ModelConfig::open(dir)?, &Weights::open(dir)?)
    }

    /// The model of a configuration and its weights.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that does not fit, and a device without memory.
    pub fn new(backend: &B, config: &ModelConfig, weights: &Weights) -> Result<Self> {
        load::Loader::new(backend, &pack::Tensors::plain(weights), config).model()
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
}

impl<B: Backend, L> Stack<B, L> {
    fn relative(&self, layer: usize) -> Option<&B::RelativeBias> {
        self.relative.get(layer).or(self.relative.first())
    }

    /// Embeds rows into a stream.
    fn embed(
        &self,
        backend: &B,
        (rows, positions): (&Rows<B>, Option<&B::Positions>),
        stream: &mut Stream<B>,
    ) -> Result<()> {
        backend.embedding(&self.embedding, self.positions.as_deref().or(positions), rows, &mut stream.x)
    }

    /// What comes between the embedding and the first layer.
    fn begin(&self, backend: &B, rows: &Rows<B>, stream: &mut Stream<B>) -> Result<()> {
        let Stream { x, sum, .. } = stream;
        if let Some(norm) = &self.embed_norm {
            backend.layer_norm(norm, rows, None, None, x)?;
        }
        match &self.first_norm {
            None => Ok(()),
            Some(norm) => backend.layer_norm(norm, rows, None, sum.as_mut(), x),
        }
    }
}

/// Rows on their way through a stack.
#[derive(Debug)]
struct Stream<B: Backend> {
    /// What the next sublayer reads, `[rows, d_model]`.
    x: B::Tensor,
    /// What sublayers add to where norms stand before them, in f32 on any device: it grows from layer to layer.
    sum: Option<B::Buffer<f32>>,
    /// Of all products of the stack.
    scratch: B::ProductScratch,
}

impl<B: Backend> Stream<B> {
    fn open(backend: &B, config: &ModelConfig, stack: &StackConfig, rows: usize) -> Result<Self> {
        let len = rows * config.d_model;
        let widest = config.d_model.max(stack.heads.width()).max(stack.ffn_dim);
        let sum = (config.norm.placement == NormPlacement::Pre).then(|| backend.zeros::<f32>(len)).transpose()?;
        Ok(Stream { x: backend.tensor(len)?, sum, scratch: backend.product_scratch(rows, widest)? })
    }

    /// Adds a sublayer's output, `from W^T + bias`, and normalises; `delta` is working memory.
    fn add(
        &mut self,
        backend: &B,
        (matrix, norm): (&B::Matrix, &B::Norm),
        rows: &Rows<B>,
        from: &B::Tensor,
        delta: &mut B::Tensor,
    ) -> Result<()> {
        let Stream { x, sum, scratch } = self;
        backend.linear_norm(matrix, norm, rows, from, scratch, delta, sum.as_mut(), x)
    }
}

/// Working memory of a stack's sublayers.
#[derive(Debug)]
struct SublayerBuffers<B: Backend> {
    /// Inner rows of a feed-forward layer, `[rows, ffn_dim]`.
    hidden: B::Tensor,
    /// Both halves of a gated one, `[rows, 2 * ffn_dim]`.
    both: Option<B::Tensor>,
    /// A sublayer's output, `[rows, d_model]`.
    delta: B::Tensor,
}

impl<B: Backend> SublayerBuffers<B> {
    fn open(backend: &B, config: &ModelConfig, ffn_dim: usize, rows: usize) -> Result<Self> {
        Ok(SublayerBuffers {
            hidden: backend.tensor(rows * ffn_dim)?,
            both: config.gated.then(|| backend.tensor(rows * 2 * ffn_dim)).transpose()?,
            delta: backend.tensor(rows * config.d_model)?,
        })
    }
}

impl<B: Backend> FeedForward<B> {
    fn apply(
        &self,
        backend: &B,
        rows: &Rows<B>,
        (activation, ffn_dim): (Activation, usize),
        buffers: &mut SublayerBuffers<B>,
        stream: &mut Stream<B>,
    ) -> Result<()> {
        let SublayerBuffers { hidden, both, delta } = buffers;
        match both {
            None => backend.linear(&self.up, rows, &stream.x, activation, &mut stream.scratch, hidden)?,
            Some(both) => {
                backend.linear(&self.up, rows, &stream.x, Activation::None, &mut stream.scratch, both)?;
                backend.gate(ffn_dim, rows, both, activation, hidden)?;
            }
        }
        stream.add(backend, (&self.down, &self.norm), rows, hidden, delta)
    }
}

/// The state of a [`Transformer`]'s session: caches, and the buffers of a decoder step and of the encoder.
#[derive(Debug)]
pub struct TransformerState<B: Backend> {
    shape: SessionShape,
    caches: Vec<(SelfCache<B>, CrossCache<B>)>,
    /// As many as the session needs, where a model's positions go on.
    positions: Option<B::Positions>,
    decoder: decoder::Buffers<B>,
    encoder: encoder::Buffers<B>,
}

impl<B: Backend> TransformerState<B> {
    /// Allocates the state for a session of this shape.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, config: &ModelConfig, shape: SessionShape) -> Result<Self> {
        let SessionShape { slots, beam_size, max_len, max_src_len, .. } = shape;
        let width = config.decoder.heads.width();
        let caches = (0..config.decoder.layers).map(|_| {
            let (own, cross) = (slots * max_len * beam_size * width, slots * max_src_len * width);
            Ok((
                SelfCache { keys: backend.cache(own)?, values: backend.cache(own)?, max_len, beam_size },
                CrossCache { keys: backend.cache(cross)?, values: backend.cache(cross)?, max_src_len },
            ))
        });
        let caches = caches.collect::<Result<_>>()?;
        let positions = match config.positions {
            PositionConfig::Fairseq { first, pad_id } => {
                let (len, width) = (max_len.max(max_src_len), config.d_model);
                let values = || positions::fairseq_sinusoids(first..first + len, width);
                Some(backend.positions(len, width, Some(pad_id), values)?)
            }
            PositionConfig::None | PositionConfig::Table { .. } | PositionConfig::Marian => None,
        };
        Ok(TransformerState {
            shape,
            caches,
            positions,
            decoder: decoder::Buffers::open(backend, config, shape.rows, max_src_len)?,
            encoder: encoder::Buffers::open(backend, config, encoder::rows_at_once(shape), slots)?,
        })
    }
}

impl<B: Backend> Seq2Seq<B> for Transformer<B> {
    type State = TransformerState<B>;

    #[expect(clippy::misnamed_getters, reason = "to the decode loop the vocabulary is the target's")]
    fn vocab_size(&self) -> usize {
        self.config.decoder_vocab_size
    }

    fn ids(&self) -> SpecialIds {
        self.config.ids
    }

    fn max_len(&self) -> usize {
        self.config.longest()
    }

    fn open(&self, backend: &B, shape: SessionShape) -> Result<TransformerState<B>> {
        TransformerState::open(backend, &self.config, shape)
    }

    fn encode(&self, backend: &B, state: &mut TransformerState<B>, sources: &[(u32, &[u32])]) -> Result<()> {
        let limit = encoder::rows_at_once(state.shape);
        let mut rest = sources;
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = |(_, ids): &&(u32, &[u32])| {
                rows += ids.len();
                rows <= limit
            };
            // One sentence always fits: the limit is at least the longest.
            let count = rest.iter().take_while(fits).count();
            let (now, later) = rest.split_at(count);
            self.encode_rows(backend, state, now)?;
            rest = later;
        }
        Ok(())
    }

    fn step(
        &self,
        backend: &B,
        state: &mut TransformerState<B>,
        rows: &Rows<B>,
        ancestry: &B::Buffer<u32>,
        options: &B::Buffer<u32>,
    ) -> Result<()> {
        self.decode_rows(backend, state, rows, ancestry, options)
    }

    fn logits<'a>(&self, state: &'a TransformerState<B>) -> &'a B::Buffer<f32> {
        &state.decoder.logits
    }

    fn attention<'a>(&self, state: &'a TransformerState<B>) -> &'a B::Buffer<f32> {
        &state.decoder.attention
    }
}

/// Checks that ids lie within a vocabulary of `vocab_size`.
///
/// # Errors
/// [`Error::Input`] names the first that does not.
pub fn check_ids(operation: &'static str, ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            Err(Error::Input { operation, expected: format!("token ids below {vocab_size}"), got: id.to_string() })
        }
    }
}

/// The rows of sources: one per token.
fn source_rows<'a>(sources: &'a [(u32, &'a [u32])]) -> impl Iterator<Item = Row> + 'a {
    sources.iter().flat_map(|&(slot, ids)| {
        ids.iter().enumerate().map(move |(position, &token)| Row { slot, beam: 0, position: position as u32, token })
    })
}
