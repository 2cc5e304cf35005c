//! The encoder: sentences of any lengths side by side, without padding.

use super::{EncoderLayer, Stream, SublayerBuffers, Transformer, TransformerState, source_rows};
use crate::Result;
use crate::backend::{Activation, Backend, Row, Rows, Scores, SessionShape};
use crate::model::config::{ModelConfig, PositionConfig};

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
    pub(super) stream: Stream<B>,
    /// `[rows, 3 * width]`; keys and values of the cross-attention, `[rows, 2 * the decoder's width]`, take its place.
    qkv: B::Tensor,
    context: B::Tensor,
    sublayer: SublayerBuffers<B>,
}

impl<B: Backend> Buffers<B> {
    pub(super) fn open(backend: &B, config: &ModelConfig, rows: usize, slots: usize) -> Result<Self> {
        let width = config.encoder.heads.width();
        Ok(Buffers {
            rows: Rows::with_capacity(backend, rows)?,
            list: Vec::with_capacity(rows),
            starts: backend.zeros::<u32>(slots + 1)?,
            stream: Stream::open(backend, config, &config.encoder, rows)?,
            qkv: backend.tensor(rows * (3 * width).max(2 * config.decoder.heads.width()))?,
            context: backend.tensor(rows * width)?,
            sublayer: SublayerBuffers::open(backend, config, config.encoder.ffn_dim, rows)?,
        })
    }
}

impl<B: Backend> Transformer<B> {
    /// Encodes sources that fit the buffers together and stores each decoder layer's cross-attention keys and values.
    pub(super) fn encode_rows(
        &self,
        backend: &B,
        state: &mut TransformerState<B>,
        sources: &[(u32, &[u32])],
    ) -> Result<()> {
        let (stack, buffers) = (&self.encoder, &mut state.encoder);
        buffers.list.clear();
        buffers.list.extend(source_rows(sources));
        let mut starts = vec![0u32];
        for (_, ids) in sources {
            starts.push(starts[starts.len() - 1] + ids.len() as u32);
        }
        backend.write(&mut buffers.starts, 0, &starts)?;
        let counted = uncounted_padding(self.config.positions, sources).map(|places| (&buffers.list, places));
        if let Some((list, places)) = counted {
            let moved: Vec<Row> = list.iter().zip(places).map(|(row, position)| Row { position, ..*row }).collect();
            buffers.rows.set(backend, &moved)?;
            stack.embed(backend, (&buffers.rows, state.positions.as_ref()), &mut buffers.stream)?;
            buffers.rows.set(backend, &buffers.list)?;
        } else {
            buffers.rows.set(backend, &buffers.list)?;
            stack.embed(backend, (&buffers.rows, state.positions.as_ref()), &mut buffers.stream)?;
        }
        stack.begin(backend, &buffers.rows, &mut buffers.stream)?;
        for (i, layer) in stack.layers.iter().enumerate() {
            let scores = Scores { heads: self.config.encoder.heads, bias: stack.relative(i) };
            self.encoder_layer(backend, layer, scores, sources.len(), buffers)?;
        }
        for (layer, (_, cross)) in self.decoder.layers.iter().zip(&mut state.caches) {
            let Buffers { rows, stream, qkv, .. } = &mut *buffers;
            backend.linear(&layer.cross.kv, rows, &stream.x, Activation::None, &mut stream.scratch, qkv)?;
            backend.store_cross(self.config.decoder.heads, rows, qkv, cross)?;
        }
        Ok(())
    }

    fn encoder_layer(
        &self,
        backend: &B,
        layer: &EncoderLayer<B>,
        scores: Scores<'_, B>,
        sentences: usize,
        buffers: &mut Buffers<B>,
    ) -> Result<()> {
        let Buffers { rows, starts, stream, qkv, context, sublayer, .. } = buffers;
        let attention = &layer.attention;
        backend.linear(&attention.qkv, rows, &stream.x, Activation::None, &mut stream.scratch, qkv)?;
        backend.encoder_attention(scores, rows, starts, sentences, qkv, context)?;
        stream.add(backend, (&attention.out, &attention.norm), rows, context, &mut sublayer.delta)?;
        let shape = (self.config.activation, self.config.encoder.ffn_dim);
        layer.feed_forward.apply(backend, rows, shape, sublayer, stream)
    }
}

/// The positions of tokens where padding within a source is not counted; none where that makes no difference.
fn uncounted_padding(positions: PositionConfig, sources: &[(u32, &[u32])]) -> Option<Vec<u32>> {
    let PositionConfig::Fairseq { pad_id, .. } = positions else { return None };
    if !sources.iter().any(|(_, ids)| ids.contains(&pad_id)) {
        return None;
    }
    let places = sources.iter().flat_map(|(_, ids)| {
        let mut next = 0;
        ids.iter().map(move |id| {
            next += u32::from(*id != pad_id);
            next.saturating_sub(1)
        })
    });
    Some(places.collect())
}
