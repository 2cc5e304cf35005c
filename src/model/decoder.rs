//! The decoder step: embed, layers, logits. The same code runs a search step, one row per live beam, and a teacher-forced
//! pass, one row per position: keys and values are stored before any row attends.

use super::{DecoderLayer, Stream, SublayerBuffers, Transformer, TransformerState};
use crate::Result;
use crate::backend::{Backend, CrossCache, Rows, Scores, SelfCache};
use crate::model::config::ModelConfig;

/// The buffers of a decoder step.
#[derive(Debug)]
pub(super) struct Buffers<B: Backend> {
    stream: Stream<B>,
    /// `[rows, 3 * width]`
    qkv: B::Tensor,
    query: B::Tensor,
    context: B::Tensor,
    sublayer: SublayerBuffers<B>,
    /// `[rows, vocab_size]`, rows [`NetworkOps::logits_stride`](crate::backend::NetworkOps::logits_stride) apart.
    pub(super) logits: B::Buffer<f32>,
    /// `[rows, max_src_len]`
    pub(super) attention: B::Buffer<f32>,
}

impl<B: Backend> Buffers<B> {
    pub(super) fn open(backend: &B, config: &ModelConfig, rows: usize, max_src_len: usize) -> Result<Self> {
        let width = config.decoder.heads.width();
        Ok(Buffers {
            stream: Stream::open(backend, config, &config.decoder, rows)?,
            qkv: backend.tensor(rows * 3 * width)?,
            query: backend.tensor(rows * width)?,
            context: backend.tensor(rows * width)?,
            sublayer: SublayerBuffers::open(backend, config, config.decoder.ffn_dim, rows)?,
            logits: backend.zeros::<f32>(rows * backend.logits_stride(config.decoder_vocab_size))?,
            attention: backend.zeros::<f32>(rows * max_src_len)?,
        })
    }
}

impl<B: Backend> Transformer<B> {
    /// Runs the decoder for `rows`.
    pub(super) fn decode_rows(
        &self,
        backend: &B,
        state: &mut TransformerState<B>,
        rows: &Rows<B>,
        ancestry: &B::Buffer<u32>,
        options: &B::Buffer<u32>,
    ) -> Result<()> {
        let (stack, config) = (&self.decoder, self.config.decoder);
        let buffers = &mut state.decoder;
        stack.embed(backend, (rows, state.positions.as_ref()), &mut buffers.stream)?;
        stack.begin(backend, rows, &mut buffers.stream)?;
        let last = stack.layers.len() - 1;
        for (i, (layer, (own, cross))) in stack.layers.iter().zip(&mut state.caches).enumerate() {
            let scores = Scores { heads: config.heads, bias: stack.relative(i) };
            attend_to_prefix(backend, layer, scores, rows, own, ancestry, buffers)?;
            self.attend_to_source(backend, layer, rows, cross, options, i == last, buffers)?;
            let (shape, Buffers { stream, sublayer, .. }) = ((self.config.activation, config.ffn_dim), &mut *buffers);
            layer.feed_forward.apply(backend, rows, shape, sublayer, stream)?;
        }
        let Buffers { stream, logits, .. } = buffers;
        backend.logits(&self.output, rows, &stream.x, &mut stream.scratch, logits)
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
        let Buffers { stream, query, context, sublayer, attention, .. } = buffers;
        let (cross, heads) = (&layer.cross, self.config.decoder.heads);
        let weights = is_last.then_some(attention);
        let Stream { x, scratch, .. } = stream;
        backend.attend_to_source(heads, &cross.query, rows, x, scratch, query, cache, options, weights, context)?;
        stream.add(backend, (&cross.out, &cross.norm), rows, context, &mut sublayer.delta)
    }
}

fn attend_to_prefix<B: Backend>(
    backend: &B,
    layer: &DecoderLayer<B>,
    scores: Scores<'_, B>,
    rows: &Rows<B>,
    cache: &mut SelfCache<B>,
    ancestry: &B::Buffer<u32>,
    buffers: &mut Buffers<B>,
) -> Result<()> {
    let Buffers { stream, qkv, context, sublayer, .. } = buffers;
    let attention = &layer.attention;
    let Stream { x, scratch, .. } = stream;
    backend.attend_to_prefix(scores, &attention.qkv, rows, x, scratch, qkv, cache, ancestry, context)?;
    stream.add(backend, (&attention.out, &attention.norm), rows, context, &mut sublayer.delta)
}
