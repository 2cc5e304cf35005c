//! Builds a model's parts from its tensors.

use std::sync::Arc;

use super::config::{ModelConfig, NormPlacement, PositionConfig, StackConfig};
use super::names::{AttentionNames, LayerNames, Naming, Side};
use super::pack::Tensors;
use super::weights::Weights;
use super::{CrossAttention, DecoderLayer, EncoderLayer, FeedForward, SelfAttention, Stack, Transformer, positions};
use crate::backend::{Backend, NormKind};
use crate::error::room;
use crate::{Error, Result};

pub(super) struct Loader<'a, B: Backend> {
    backend: &'a B,
    /// Says which tensors there are.
    weights: &'a Weights,
    /// Gives their values.
    tensors: &'a Tensors<'a>,
    config: &'a ModelConfig,
    naming: Naming,
}

/// The norms of one side in the order in which they are taken: each sublayer's own, then, where norms stand before sublayers, the
/// final one.
struct Norms<N>(std::vec::IntoIter<N>);

type NormsOf<B> = (Norms<<B as crate::backend::NetworkOps>::Norm>, Option<<B as crate::backend::NetworkOps>::Norm>);

impl<N> Norms<N> {
    fn take(&mut self) -> Result<N> {
        let missing = || Error::Tensor { name: "norm".into(), expected: "one".into(), got: "none".into() };
        self.0.next().ok_or_else(missing)
    }
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(backend: &'a B, tensors: &'a Tensors<'a>, config: &'a ModelConfig) -> Self {
        let weights = tensors.weights();
        Loader { backend, weights, tensors, config, naming: config.names.of(weights) }
    }

    pub fn model(&self) -> Result<Transformer<B>> {
        let config = self.config;
        let (width, source_size, target_size) = (config.d_model, config.vocab_size, config.decoder_vocab_size);
        let own_output = self.naming.own_output(self.weights, config);
        let (shared, tied) = (config.share_embeddings, own_output.is_none());
        let table = |side| self.naming.tokens(self.weights, side, shared, tied);
        let target = table(Side::Decoder);
        // Before the projection, which may be another tensor: the table's size is what an error is to name.
        self.weights.check(&target, &[target_size, width])?;
        let projection = Arc::new(self.projection(own_output.unwrap_or(&target))?);
        let embedding = |name: &str, size| {
            let tokens = self.tensors.get(name, &[size, width])?;
            self.backend.embeddings(&tokens, config.embedding_scale, width).map(Arc::new)
        };
        let target_embedding = match tied {
            true => Arc::new(self.backend.tied_embeddings(&projection, config.embedding_scale, width)?),
            false => embedding(&target, target_size)?,
        };
        let source_embedding = match shared {
            true => target_embedding.clone(),
            false => embedding(&table(Side::Encoder), source_size)?,
        };
        let [source_positions, target_positions] = self.positions()?;
        let (mut norms, first_norm) = self.norms(Side::Encoder, config.encoder)?;
        let encoder = Stack {
            embedding: source_embedding,
            positions: source_positions,
            embed_norm: self.embed_norm(Side::Encoder)?,
            first_norm,
            layers: (0..config.encoder.layers).map(|i| self.encoder_layer(i, &mut norms)).collect::<Result<_>>()?,
            relative: self.relative(Side::Encoder, config.encoder)?,
        };
        let (mut norms, first_norm) = self.norms(Side::Decoder, config.decoder)?;
        let decoder = Stack {
            embedding: target_embedding,
            positions: target_positions,
            embed_norm: self.embed_norm(Side::Decoder)?,
            first_norm,
            layers: (0..config.decoder.layers).map(|i| self.decoder_layer(i, &mut norms)).collect::<Result<_>>()?,
            relative: self.relative(Side::Decoder, config.decoder)?,
        };
        Ok(Transformer { config: config.clone(), encoder, decoder, output: projection })
    }

    /// The vocabulary projection, whose weights are the tensor of this name.
    fn projection(&self, name: &str) -> Result<B::Matrix> {
        let (size, width) = (self.config.decoder_vocab_size, self.config.d_model);
        let biased = self.config.output_bias;
        self.tensors.matrix(self.backend, (name, biased), &[name.to_owned()], [size, width], || {
            let bias_name = self.naming.names().output_bias;
            Ok(match self.weights.contains(bias_name) {
                _ if !biased => None,
                true => Some(self.weights.get(bias_name, &[1, size])?),
                false => Some(vec![0.0; size]),
            })
        })
    }

    /// The position tables of both sides, one and the same where they are equal; none where there are none or they go on.
    fn positions(&self) -> Result<[Option<Arc<B::Positions>>; 2]> {
        let (config, width) = (self.config, self.config.d_model);
        let Some(len) = config.max_len.filter(|_| config.positions != PositionConfig::None) else {
            return Ok([None, None]);
        };
        let table = |side| {
            let name = self.naming.positions(side);
            match config.positions {
                PositionConfig::Table { offset } => {
                    let mut table = self.tensors.get(&name, &[len + offset, width])?;
                    table.drain(..offset * width);
                    Ok(table)
                }
                _ if self.weights.contains(&name) => self.tensors.get(&name, &[len, width]),
                _ => Ok(positions::marian_sinusoids(len, width)),
            }
        };
        let (source, target) = (table(Side::Encoder)?, table(Side::Decoder)?);
        let same = source == target;
        let prepare =
            |table: Vec<f32>| self.backend.positions(len, width, None, || table).map(|table| Some(Arc::new(table)));
        let source = prepare(source)?;
        Ok([source.clone(), if same { source } else { prepare(target)? }])
    }

    /// What self-attention adds to its scores.
    fn relative(&self, side: Side, stack: StackConfig) -> Result<Vec<B::RelativeBias>> {
        let Some(relative) = self.config.relative else { return Ok(Vec::new()) };
        let num_heads = stack.heads.num_heads;
        let bias = |layer: usize| {
            let table = self.tensors.get(&self.naming.relative(side, layer), &[relative.buckets, num_heads])?;
            let values = positions::relative_bias(relative, side, &table);
            self.backend.relative_bias(&values, num_heads, relative.max_distance)
        };
        (0..if relative.per_layer { stack.layers } else { 1 }).map(bias).collect()
    }

    /// Several linear layers over the same input as one: weights and biases stacked.
    fn linear(&self, names: &[String], out_dim: usize, in_dim: usize) -> Result<B::Matrix> {
        let (rows, biased) = (out_dim * names.len(), self.config.biases);
        let weights: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        self.tensors.matrix(self.backend, (&names.join("+"), biased), &weights, [rows, in_dim], || {
            let mut bias = room::zeros("load weights", if biased { rows } else { 0 })?;
            for (name, part) in names.iter().zip(bias.chunks_mut(out_dim.max(1))) {
                self.weights.get_into(&format!("{name}.bias"), &[out_dim], part)?;
            }
            Ok(biased.then_some(bias))
        })
    }

    /// The norm of this name, whose output is multiplied by `scale`.
    fn norm(&self, name: &str, scale: f32) -> Result<B::Norm> {
        let (norm, width) = (self.config.norm, self.config.d_model);
        let mut gain = self.tensors.get(&format!("{name}.weight"), &[width])?;
        let mut bias = match norm.kind {
            NormKind::Layer => Some(self.tensors.get(&format!("{name}.bias"), &[width])?),
            NormKind::Rms => None,
        };
        if scale != 1.0 {
            gain.iter_mut().chain(bias.iter_mut().flatten()).for_each(|value| *value *= scale);
        }
        self.backend.norm(norm.kind, &gain, bias.as_deref(), norm.eps)
    }

    fn embed_norm(&self, side: Side) -> Result<Option<B::Norm>> {
        self.config.embed_norm.then(|| self.norm(&self.naming.embed_norm(side), 1.0)).transpose()
    }

    /// The norms that sublayers end in, and the one that comes before the first.
    fn norms(&self, side: Side, stack: StackConfig) -> Result<NormsOf<B>> {
        let within = self.naming.within(side);
        let cross = (side == Side::Decoder).then_some(within.cross.norm);
        let names: Vec<&str> =
            [Some(within.own.norm), cross, Some(within.feed_forward_norm)].into_iter().flatten().collect();
        let layers = (0..stack.layers).flat_map(|i| names.iter().map(move |name| self.naming.layer(side, i, name)));
        let mut norms = layers.map(|name| self.norm(&name, 1.0)).collect::<Result<Vec<_>>>()?;
        let first = match self.config.norm.placement {
            NormPlacement::Post => None,
            NormPlacement::Pre => {
                let scale = if side == Side::Decoder { self.config.output_scale } else { 1.0 };
                norms.push(self.norm(&self.naming.final_norm(side), scale)?);
                Some(norms.remove(0))
            }
        };
        Ok((Norms(norms.into_iter()), first))
    }

    fn names(&self, side: Side, index: usize, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| self.naming.layer(side, index, name)).collect()
    }

    fn self_attention(&self, side: Side, index: usize, norms: &mut Norms<B::Norm>) -> Result<SelfAttention<B>> {
        let (d_model, width) = (self.config.d_model, self.stack(side).heads.width());
        let AttentionNames { query, key, value, out, .. } = self.naming.within(side).own;
        Ok(SelfAttention {
            qkv: self.linear(&self.names(side, index, &[query, key, value]), width, d_model)?,
            out: self.linear(&self.names(side, index, &[out]), d_model, width)?,
            norm: norms.take()?,
        })
    }

    fn cross_attention(&self, index: usize, norms: &mut Norms<B::Norm>) -> Result<CrossAttention<B>> {
        let side = Side::Decoder;
        let (d_model, width) = (self.config.d_model, self.stack(side).heads.width());
        let AttentionNames { query, key, value, out, .. } = self.naming.within(side).cross;
        Ok(CrossAttention {
            query: self.linear(&self.names(side, index, &[query]), width, d_model)?,
            kv: self.linear(&self.names(side, index, &[key, value]), width, d_model)?,
            out: self.linear(&self.names(side, index, &[out]), d_model, width)?,
            norm: norms.take()?,
        })
    }

    fn feed_forward(&self, side: Side, index: usize, norms: &mut Norms<B::Norm>) -> Result<FeedForward<B>> {
        let (d_model, ffn_dim) = (self.config.d_model, self.stack(side).ffn_dim);
        let LayerNames { up, gated, down, .. } = self.naming.within(side);
        let up: &[&str] = if self.config.gated { gated } else { &[up] };
        Ok(FeedForward {
            up: self.linear(&self.names(side, index, up), ffn_dim, d_model)?,
            down: self.linear(&self.names(side, index, &[down]), d_model, ffn_dim)?,
            norm: norms.take()?,
        })
    }

    fn stack(&self, side: Side) -> StackConfig {
        match side {
            Side::Encoder => self.config.encoder,
            Side::Decoder => self.config.decoder,
        }
    }

    fn encoder_layer(&self, index: usize, norms: &mut Norms<B::Norm>) -> Result<EncoderLayer<B>> {
        Ok(EncoderLayer {
            attention: self.self_attention(Side::Encoder, index, norms)?,
            feed_forward: self.feed_forward(Side::Encoder, index, norms)?,
        })
    }

    fn decoder_layer(&self, index: usize, norms: &mut Norms<B::Norm>) -> Result<DecoderLayer<B>> {
        Ok(DecoderLayer {
            attention: self.self_attention(Side::Decoder, index, norms)?,
            cross: self.cross_attention(index, norms)?,
            feed_forward: self.feed_forward(Side::Decoder, index, norms)?,
        })
    }
}
