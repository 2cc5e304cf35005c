//! Encoder-decoder models: configuration, weights, encoder, decoder step.

pub mod config;
mod decoder;
mod encoder;
pub mod generation;
pub mod size;
pub mod weights;

use std::path::Path;
use std::sync::Arc;

use crate::backend::{Activation, Backend, CrossCache, Row, Rows, SelfCache, SessionShape, SpecialIds};
use crate::error::room;
use crate::{Error, Result};
use config::{ModelConfig, StackConfig};
use weights::Weights;

/// What the decode loop asks of a model; [`Marian`] is one, tests script others.
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

    /// The last step's logits `[rows, vocab_size]`, rows [`NetworkOps::logits_stride`] apart.
    fn logits<'a>(&self, state: &'a Self::State) -> &'a B::Buffer<f32>;
    /// The last step's cross-attention, last layer, mean over heads, `[rows, max_src_len]`.
    fn attention<'a>(&self, state: &'a Self::State) -> &'a B::Buffer<f32>;
}

/// A Marian model (Junczys-Dowmunt et al. 2018): a post-norm transformer with sinusoidal positions.
#[derive(Debug)]
pub struct Marian<B: Backend> {
    config: ModelConfig,
    /// One and the same where the sides share it.
    source_embedding: Arc<B::Embedding>,
    target_embedding: Arc<B::Embedding>,
    encoder: Vec<EncoderLayer<B>>,
    decoder: Vec<DecoderLayer<B>>,
    /// The vocabulary projection; its bias is `final_logits_bias`.
    output: B::Matrix,
}

/// Query, key and value in one product, `[3 * d_model, d_model]`, and the output projection.
#[derive(Debug)]
struct SelfAttention<B: Backend> {
    qkv: B::Matrix,
    out: B::Matrix,
    norm: B::Norm,
}

#[derive(Debug)]
struct CrossAttention<B: Backend> {
    query: B::Matrix,
    /// Key and value in one product, `[2 * d_model, d_model]`.
    kv: B::Matrix,
    out: B::Matrix,
    norm: B::Norm,
}

#[derive(Debug)]
struct FeedForward<B: Backend> {
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

/// What PyTorch's layer norm adds to the variance where nothing else is said.
pub const LAYER_NORM_EPS: f32 = 1e-5;

impl<B: Backend> Marian<B> {
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
        Loader { backend, weights, config }.model()
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
}

/// Builds the model's parts from its tensors.
struct Loader<'a, B: Backend> {
    backend: &'a B,
    weights: &'a Weights,
    config: &'a ModelConfig,
}

impl<B: Backend> Loader<'_, B> {
    fn model(&self) -> Result<Marian<B>> {
        let config = self.config;
        let (d_model, source_size, target_size) = (config.d_model, config.vocab_size, config.decoder_vocab_size);
        let source = self.weights.get(&source_table(self.weights, config), &[source_size, d_model])?;
        let own_target = match config.share_embeddings {
            true => None,
            false => Some(self.weights.get("model.decoder.embed_tokens.weight", &[target_size, d_model])?),
        };
        let target = own_target.as_deref().unwrap_or(&source);
        let own_output = match config.tie_word_embeddings {
            true => None,
            false => Some(self.weights.get("lm_head.weight", &[target_size, d_model])?),
        };
        let bias = match self.weights.contains("final_logits_bias") {
            true => self.weights.get("final_logits_bias", &[1, target_size])?,
            false => vec![0.0; target_size],
        };
        let (source_positions, target_positions) = (self.positions("encoder")?, self.positions("decoder")?);
        let embedding = |tokens: &[f32], positions: &[f32]| {
            let table = self.backend.embeddings(tokens, config.embedding_scale(), positions, d_model)?;
            Ok::<_, Error>(Arc::new(table))
        };
        let source_embedding = embedding(&source, &source_positions)?;
        let target_embedding = match own_target.is_none() && source_positions == target_positions {
            true => source_embedding.clone(),
            false => embedding(target, &target_positions)?,
        };
        Ok(Marian {
            config: config.clone(),
            source_embedding,
            target_embedding,
            encoder: (0..config.encoder.layers).map(|i| self.encoder_layer(i)).collect::<Result<_>>()?,
            decoder: (0..config.decoder.layers).map(|i| self.decoder_layer(i)).collect::<Result<_>>()?,
            output: self.backend.matrix(own_output.as_deref().unwrap_or(target), Some(&bias), target_size, d_model)?,
        })
    }

    /// The position table: from the checkpoint, else computed.
    fn positions(&self, side: &str) -> Result<Vec<f32>> {
        let name = &format!("model.{side}.embed_positions.weight");
        let (len, width) = (self.config.max_position_embeddings, self.config.d_model);
        match self.weights.contains(name) {
            true => self.weights.get(name, &[len, width]),
            false => Ok(sinusoidal_positions(len, width)),
        }
    }

    /// Several linear layers over the same input as one: weights and biases stacked.
    fn linear(&self, prefix: &str, names: &[&str], out_dim: usize, in_dim: usize) -> Result<B::Matrix> {
        let rows = out_dim * names.len();
        let (mut weights, mut bias) = (room::vec("load weights", rows * in_dim)?, room::vec("load weights", rows)?);
        for name in names {
            weights.extend(self.weights.get(&format!("{prefix}.{name}.weight"), &[out_dim, in_dim])?);
            bias.extend(self.weights.get(&format!("{prefix}.{name}.bias"), &[out_dim])?);
        }
        self.backend.matrix(&weights, Some(&bias), rows, in_dim)
    }

    fn norm(&self, name: &str) -> Result<B::Norm> {
        let width = self.config.d_model;
        let gain = self.weights.get(&format!("{name}.weight"), &[width])?;
        let bias = self.weights.get(&format!("{name}.bias"), &[width])?;
        self.backend.norm(&gain, &bias, LAYER_NORM_EPS)
    }

    fn self_attention(&self, layer: &str) -> Result<SelfAttention<B>> {
        let (prefix, width) = (format!("{layer}.self_attn"), self.config.d_model);
        Ok(SelfAttention {
            qkv: self.linear(&prefix, &["q_proj", "k_proj", "v_proj"], width, width)?,
            out: self.linear(&prefix, &["out_proj"], width, width)?,
            norm: self.norm(&format!("{layer}.self_attn_layer_norm"))?,
        })
    }

    fn cross_attention(&self, layer: &str) -> Result<CrossAttention<B>> {
        let (prefix, width) = (format!("{layer}.encoder_attn"), self.config.d_model);
        Ok(CrossAttention {
            query: self.linear(&prefix, &["q_proj"], width, width)?,
            kv: self.linear(&prefix, &["k_proj", "v_proj"], width, width)?,
            out: self.linear(&prefix, &["out_proj"], width, width)?,
            norm: self.norm(&format!("{layer}.encoder_attn_layer_norm"))?,
        })
    }

    fn feed_forward(&self, layer: &str, stack: StackConfig) -> Result<FeedForward<B>> {
        let width = self.config.d_model;
        Ok(FeedForward {
            up: self.linear(layer, &["fc1"], stack.ffn_dim, width)?,
            down: self.linear(layer, &["fc2"], width, stack.ffn_dim)?,
            norm: self.norm(&format!("{layer}.final_layer_norm"))?,
        })
    }

    fn encoder_layer(&self, index: usize) -> Result<EncoderLayer<B>> {
        let layer = format!("model.encoder.layers.{index}");
        Ok(EncoderLayer {
            attention: self.self_attention(&layer)?,
            feed_forward: self.feed_forward(&layer, self.config.encoder)?,
        })
    }

    fn decoder_layer(&self, index: usize) -> Result<DecoderLayer<B>> {
        let layer = format!("model.decoder.layers.{index}");
        Ok(DecoderLayer {
            attention: self.self_attention(&layer)?,
            cross: self.cross_attention(&layer)?,
            feed_forward: self.feed_forward(&layer, self.config.decoder)?,
        })
    }
}

/// Where the source embeddings stand: shared ones have a name of their own, but some files keep only a copy.
pub fn source_table(weights: &Weights, config: &ModelConfig) -> String {
    let names: &[&str] = match config.share_embeddings {
        true => &["model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"],
        false => &["model.encoder.embed_tokens.weight"],
    };
    names.iter().find(|name| weights.contains(name)).unwrap_or(&names[0]).to_string()
}

/// Marian's position table `[len, width]`: the sine half, then the cosine half (Vaswani et al. 2017, section 3.5, give them
/// interleaved).
pub fn sinusoidal_positions(len: usize, width: usize) -> Vec<f32> {
    let sines = width.div_ceil(2);
    let angle = |position: usize, i: usize| position as f64 / 10_000f64.powf(2.0 * i as f64 / width as f64);
    let value = |position: usize, column: usize| match column.checked_sub(sines) {
        None => angle(position, column).sin(),
        Some(i) => angle(position, i).cos(),
    };
    (0..len * width).map(|at| value(at / width, at % width) as f32).collect()
}

/// A feed-forward sublayer in place: `x = norm(x + down(activation(up(x))))`.
#[derive(Debug)]
struct FeedForwardBuffers<B: Backend> {
    hidden: B::Tensor,
    out: B::Tensor,
}

impl<B: Backend> FeedForward<B> {
    fn apply(
        &self,
        backend: &B,
        rows: &Rows<B>,
        activation: Activation,
        buffers: &mut FeedForwardBuffers<B>,
        x: &mut B::Tensor,
    ) -> Result<()> {
        backend.linear(&self.up, rows, x, activation, &mut buffers.hidden)?;
        backend.linear_norm(&self.down, &self.norm, rows, &buffers.hidden, &mut buffers.out, x)
    }
}

/// The state of a [`Marian`] session: caches, and the buffers of a decoder step and of the encoder.
#[derive(Debug)]
pub struct MarianState<B: Backend> {
    shape: SessionShape,
    caches: Vec<(SelfCache<B>, CrossCache<B>)>,
    decoder: decoder::Buffers<B>,
    encoder: encoder::Buffers<B>,
}

impl<B: Backend> MarianState<B> {
    /// Allocates the state for a session of this shape.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, config: &ModelConfig, shape: SessionShape) -> Result<Self> {
        let SessionShape { slots, beam_size, max_len, max_src_len, .. } = shape;
        let width = config.d_model;
        let caches = (0..config.decoder.layers).map(|_| {
            let (own, cross) = (slots * max_len * beam_size * width, slots * max_src_len * width);
            Ok((
                SelfCache { keys: backend.tensor(own)?, values: backend.tensor(own)?, max_len, beam_size },
                CrossCache { keys: backend.tensor(cross)?, values: backend.tensor(cross)?, max_src_len },
            ))
        });
        Ok(MarianState {
            shape,
            caches: caches.collect::<Result<_>>()?,
            decoder: decoder::Buffers::open(backend, config, shape.rows, max_src_len)?,
            encoder: encoder::Buffers::open(backend, config, encoder::rows_at_once(shape), slots)?,
        })
    }
}

impl<B: Backend> Seq2Seq<B> for Marian<B> {
    type State = MarianState<B>;

    #[expect(clippy::misnamed_getters, reason = "to the decode loop the vocabulary is the target's")]
    fn vocab_size(&self) -> usize {
        self.config.decoder_vocab_size
    }

    fn ids(&self) -> SpecialIds {
        self.config.ids
    }

    fn max_len(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn open(&self, backend: &B, shape: SessionShape) -> Result<MarianState<B>> {
        MarianState::open(backend, &self.config, shape)
    }

    fn encode(&self, backend: &B, state: &mut MarianState<B>, sources: &[(u32, &[u32])]) -> Result<()> {
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
        state: &mut MarianState<B>,
        rows: &Rows<B>,
        ancestry: &B::Buffer<u32>,
        options: &B::Buffer<u32>,
    ) -> Result<()> {
        self.decode_rows(backend, state, rows, ancestry, options)
    }

    fn logits<'a>(&self, state: &'a MarianState<B>) -> &'a B::Buffer<f32> {
        &state.decoder.logits
    }

    fn attention<'a>(&self, state: &'a MarianState<B>) -> &'a B::Buffer<f32> {
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
