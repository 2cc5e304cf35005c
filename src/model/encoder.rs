//! The encoder: sentences of any lengths side by side, without padding.

use super::{EncoderLayer, FeedForwardBuffers, Marian, MarianState, source_rows};
use crate::Result;
use crate::backend::{Activation, Backend, Row, Rows, SessionShape};
use crate::model::config::ModelConfig;

/// Rows that the encoder takes in one pass: enough for a GEMM at full speed.
const ROWS: usize = 1024;

/// Rows of one encoder pass: bounded, but never less than one sentence.
pub(super) fn rows_at_once(shape: SessionShape) -> usize {
    (shape.slots * shape.max_src_len).min(ROWS).max(shape.max_src_len)
}

/// The buffers of an encoder pass.
#[derive(Debug)]
pub(super) struct Buffers<B: Backend> {
    rows: Rows<B>,
    list: Vec<Row>,
    /// First row of each sentence, and the end of the last.
    starts: B::Buffer<u32>,
    x: B::Tensor,
    /// `[rows, 3 * d_model]`; keys and values of the cross-attention take two thirds of it.
    qkv: B::Tensor,
    context: B::Tensor,
    feed_forward: FeedForwardBuffers<B>,
}

impl<B: Backend> Buffers<B> {
    pub(super) fn open(backend: &B, config: &ModelConfig, rows: usize, slots: usize) -> Result<Self> {
        let width = config.d_model;
        Ok(Buffers {
            rows: Rows::with_capacity(backend, rows)?,
            list: Vec::with_capacity(rows),
            starts: backend.zeros::<u32>(slots + 1)?,
            x: backend.tensor(rows * width)?,
            qkv: backend.tensor(rows * 3 * width)?,
            context: backend.tensor(rows * width)?,
            feed_forward: FeedForwardBuffers {
                hidden: backend.tensor(rows * config.encoder.ffn_dim)?,
                out: backend.tensor(rows * width)?,
            },
        })
    }
}

impl<B: Backend> Marian<B> {
    /// Encodes sources that fit the buffers together and stores each decoder layer's cross-attention keys and values.
    pub(super) fn encode_rows(&self, backend: &B, state: &mut MarianState<B>, sources: &[(u32, &[u32])]) -> Result<()> {
        let buffers = &mut state.encoder;
        buffers.list.clear();
        buffers.list.extend(source_rows(sources));
        buffers.rows.set(backend, &buffers.list)?;
        let mut starts = vec![0u32];
        for (_, ids) in sources {
            starts.push(starts[starts.len() - 1] + ids.len() as u32);
        }
        backend.write(&mut buffers.starts, 0, &starts)?;
        backend.embedding(&self.source_embedding, &buffers.rows, &mut buffers.x)?;
        for layer in &self.encoder {
            self.encoder_layer(backend, layer, sources.len(), buffers)?;
        }
        for (layer, (_, cross)) in self.decoder.iter().zip(&mut state.caches) {
            let (rows, x) = (&buffers.rows, &buffers.x);
            backend.linear(&layer.cross.kv, rows, x, Activation::None, &mut buffers.qkv)?;
            backend.store_cross(self.config.decoder.heads, rows, &buffers.qkv, cross)?;
        }
        Ok(())
    }

    fn encoder_layer(
        &self,
        backend: &B,
        layer: &EncoderLayer<B>,
        sentences: usize,
        buffers: &mut Buffers<B>,
    ) -> Result<()> {
        let Buffers { rows, starts, x, qkv, context, feed_forward, .. } = buffers;
        let attention = &layer.attention;
        backend.linear(&attention.qkv, rows, x, Activation::None, qkv)?;
        backend.encoder_attention(self.config.encoder.heads, rows, starts, sentences, qkv, context)?;
        backend.linear_norm(&attention.out, &attention.norm, rows, context, &mut feed_forward.out, x)?;
        layer.feed_forward.apply(backend, rows, self.config.activation, feed_forward, x)
    }
}
