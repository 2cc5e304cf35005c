//! The decoder step: embed, layers, logits. The same code runs a search step, one row per live beam, and a teacher-forced
//! pass, one row per position: keys and values are stored before any row attends.

use super::{DecoderLayer, FeedForwardBuffers, Marian, MarianState};
use crate::Result;
use crate::backend::{Backend, CrossCache, Rows, SelfCache};
use crate::model::config::ModelConfig;

/// The buffers of a decoder step.
#[derive(Debug)]
pub(super) struct Buffers<B: Backend> {
    x: B::Tensor,
    /// `[rows, 3 * d_model]`
    qkv: B::Tensor,
    query: B::Tensor,
    context: B::Tensor,
    feed_forward: FeedForwardBuffers<B>,
    /// `[rows, vocab_size]`, rows [`NetworkOps::logits_stride`] apart.
    pub(super) logits: B::Buffer<f32>,
    /// `[rows, max_src_len]`
    pub(super) attention: B::Buffer<f32>,
}

impl<B: Backend> Buffers<B> {
    pub(super) fn open(backend: &B, config: &ModelConfig, rows: usize, max_src_len: usize) -> Result<Self> {
        let width = config.d_model;
        Ok(Buffers {
            x: backend.tensor(rows * width)?,
            qkv: backend.tensor(rows * 3 * width)?,
            query: backend.tensor(rows * width)?,
            context: backend.tensor(rows * width)?,
            feed_forward: FeedForwardBuffers {
                hidden: backend.tensor(rows * config.decoder.ffn_dim)?,
                out: backend.tensor(rows * width)?,
            },
            logits: backend.zeros::<f32>(rows * backend.logits_stride(config.decoder_vocab_size))?,
            attention: backend.zeros::<f32>(rows * max_src_len)?,
        })
    }
}

impl<B: Backend> Marian<B> {
    /// Runs the decoder for `rows`.
    pub(super) fn decode_rows(
        &self,
        backend: &B,
        state: &mut MarianState<B>,
        rows: &Rows<B>,
        ancestry: &B::Buffer<u32>,
        options: &B::Buffer<u32>,
    ) -> Result<()> {
        let buffers = &mut state.decoder;
        backend.embedding(&self.target_embedding, rows, &mut buffers.x)?;
        let last = self.decoder.len() - 1;
        for (i, (layer, (own, cross))) in self.decoder.iter().zip(&mut state.caches).enumerate() {
            self.attend_to_prefix(backend, layer, rows, own, ancestry, buffers)?;
            self.attend_to_source(backend, layer, rows, cross, options, i == last, buffers)?;
            layer.feed_forward.apply(
                backend,
                rows,
                self.config.activation,
                &mut buffers.feed_forward,
                &mut buffers.x,
            )?;
        }
        backend.logits(&self.output, rows, &buffers.x, &mut buffers.logits)
    }

    fn attend_to_prefix(
        &self,
        backend: &B,
        layer: &DecoderLayer<B>,
        rows: &Rows<B>,
        cache: &mut SelfCache<B>,
        ancestry: &B::Buffer<u32>,
        buffers: &mut Buffers<B>,
    ) -> Result<()> {
        let Buffers { x, qkv, context, feed_forward, .. } = buffers;
        let (attention, heads) = (&layer.attention, self.config.decoder.heads);
        backend.attend_to_prefix(heads, &attention.qkv, rows, x, qkv, cache, ancestry, context)?;
        backend.linear_norm(&attention.out, &attention.norm, rows, context, &mut feed_forward.out, x)
    }

    #[expect(clippy::too_many_arguments, reason = "the step's own operands; a struct would only rename them")]
    fn attend_to_source(
        &self,
        backend: &B,
        layer: &DecoderLayer<B>,
        rows: &Rows<B>,
        cache: &CrossCache<B>,
        options: &B::Buffer<u32>,
        is_last: bool,
        buffers: &mut Buffers<B>,
    ) -> Result<()> {
        let Buffers { x, query, context, feed_forward, attention, .. } = buffers;
        let (cross, heads) = (&layer.cross, self.config.decoder.heads);
        let weights = is_last.then_some(attention);
        backend.attend_to_source(heads, &cross.query, rows, x, query, cache, options, weights, context)?;
        backend.linear_norm(&cross.out, &cross.norm, rows, context, &mut feed_forward.out, x)
    }
}
