//! How many values a model holds, from its configuration alone: what loading it will take, before anything is loaded.

use super::config::{ModelConfig, StackConfig};

/// Values by how backends store them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightCounts {
    /// Of the linear layers, the vocabulary projection among them.
    pub matrices: u64,
    /// Outputs of the linear layers, each with its bias.
    pub outputs: u64,
    /// Gains and biases of the layer norms.
    pub norms: u64,
    /// Token and position embeddings; a table that both sides share counts once.
    pub embeddings: u64,
}

impl WeightCounts {
    /// Those of a model as [`Marian`](super::Marian) holds it.
    pub fn of(config: &ModelConfig) -> Self {
        let width = config.d_model as u64;
        let mut counts = WeightCounts::default();
        for (stack, attentions) in [(&config.encoder, 1), (&config.decoder, 2)] {
            for _ in 0..stack.layers {
                counts.add_layer(width, stack, attentions);
            }
        }
        counts.add_matrix(config.decoder_vocab_size as u64, width);
        let table = |tokens: usize| (tokens + config.max_position_embeddings) as u64 * width;
        let target = if config.share_embeddings { 0 } else { table(config.decoder_vocab_size) };
        counts.embeddings = table(config.vocab_size) + target;
        counts
    }

    fn add_layer(&mut self, width: u64, stack: &StackConfig, attentions: u64) {
        for _ in 0..attentions {
            // Query, key, value and output.
            self.add_matrix(4 * width, width);
        }
        self.add_matrix(stack.ffn_dim as u64, width);
        self.add_matrix(width, stack.ffn_dim as u64);
        self.norms += (attentions + 1) * 2 * width;
    }

    fn add_matrix(&mut self, outputs: u64, inputs: u64) {
        self.matrices += outputs * inputs;
        self.outputs += outputs;
    }

    /// Bytes on a device that stores values in `element` bytes each, biases in f32.
    pub fn on_device(&self, element: u64) -> u64 {
        (self.matrices + self.norms + self.embeddings) * element + self.outputs * 4
    }

    /// Bytes on the CPU, about, with linear layers in `element` bytes a value.
    pub fn on_cpu(&self, element: u64) -> u64 {
        self.matrices * element + (self.outputs + self.norms + self.embeddings) * 4
    }
}
