//! How many values a model holds, from its configuration alone: what loading it will take, before anything is loaded.

use super::config::{ModelConfig, NormPlacement, PositionConfig, StackConfig};
use crate::backend::NormKind;

/// What devices pad rows of 8-bit integers to.
const PADDING: u64 = 16;

/// Values by how backends store them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightCounts {
    /// Of the linear layers, the vocabulary projection among them.
    pub matrices: u64,
    /// As above, with the inputs of each output padded to sixteen, as devices pad 8-bit integers.
    pub padded_matrices: u64,
    /// Outputs of the linear layers.
    pub outputs: u64,
    /// Their biases.
    pub biases: u64,
    /// Gains and biases of the norms.
    pub norms: u64,
    /// Token embeddings that are no vocabulary projection, and position tables; what both sides share counts once.
    pub embeddings: u64,
    /// Biases of attention by distance.
    pub relative: u64,
}

impl WeightCounts {
    /// Those of a model as [`Transformer`](super::Transformer) holds it.
    pub fn of(config: &ModelConfig) -> Self {
        let width = config.d_model as u64;
        let mut counts = WeightCounts::default();
        for (stack, attentions) in [(&config.encoder, 1), (&config.decoder, 2)] {
            for _ in 0..stack.layers {
                counts.add_layer(config, stack, attentions);
            }
            let others = u64::from(config.embed_norm) + u64::from(config.norm.placement == NormPlacement::Pre);
            counts.norms += others * norm(config);
            if let Some(relative) = config.relative {
                let tables = if relative.per_layer { stack.layers as u64 } else { 1 };
                counts.relative += tables * stack.heads.num_heads as u64 * (2 * relative.max_distance as u64 + 1);
            }
        }
        counts.add_matrix(config.decoder_vocab_size as u64, width, config.output_bias);
        let table = |tokens: usize| tokens as u64 * width;
        let source = if config.share_embeddings { 0 } else { table(config.vocab_size) };
        let target = table(config.decoder_vocab_size);
        let own = if config.tie_word_embeddings { 0 } else { target };
        // Both sides' positions may be equal, and then are one table; those that a checkpoint holds are taken to differ.
        let tables = match config.positions {
            PositionConfig::Marian => 1,
            PositionConfig::Table { .. } => 2,
            PositionConfig::None | PositionConfig::Fairseq { .. } => 0,
        };
        counts.embeddings = source + own + tables * table(config.max_len.unwrap_or(0));
        counts
    }

    fn add_layer(&mut self, config: &ModelConfig, stack: &StackConfig, attentions: u64) {
        let (d_model, width, ffn_dim) = (config.d_model as u64, stack.heads.width() as u64, stack.ffn_dim as u64);
        for _ in 0..attentions {
            // Query, key and value, and the output.
            self.add_matrix(3 * width, d_model, config.biases);
            self.add_matrix(d_model, width, config.biases);
        }
        self.add_matrix(if config.gated { 2 * ffn_dim } else { ffn_dim }, d_model, config.biases);
        self.add_matrix(d_model, ffn_dim, config.biases);
        self.norms += (attentions + 1) * norm(config);
    }

    fn add_matrix(&mut self, outputs: u64, inputs: u64, biased: bool) {
        self.matrices += outputs * inputs;
        self.padded_matrices += outputs * inputs.next_multiple_of(PADDING);
        self.outputs += outputs;
        self.biases += if biased { outputs } else { 0 };
    }

    /// Bytes on a device that stores values in `element` bytes each, biases in f32.
    pub fn on_device(&self, element: u64) -> u64 {
        (self.matrices + self.norms + self.embeddings) * element + (self.biases + self.relative) * 4
    }

    /// Bytes on a device that stores linear layers in 8 bits with a scale for each output, and all else in f32.
    pub fn quantized_on_device(&self) -> u64 {
        self.padded_matrices + (self.outputs + self.norms + self.embeddings + self.biases + self.relative) * 4
    }

    /// Bytes on the CPU, about, with linear layers in `element` bytes a value.
    pub fn on_cpu(&self, element: u64) -> u64 {
        let floats = self.outputs + self.biases + self.norms + self.embeddings + self.relative;
        self.matrices * element + floats * 4
    }
}

/// Values of a norm.
fn norm(config: &ModelConfig) -> u64 {
    let parts = if config.norm.kind == NormKind::Layer { 2 } else { 1 };
    parts * config.d_model as u64
}
