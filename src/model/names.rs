//! What the tensors of a checkpoint are called: one table for models with the names of BART, one for those with the names of T5.
//!
//! In a name `{side}` stands for `encoder` or `decoder`, and `{i}` for a layer's number.

use super::config::ModelConfig;
use super::weights::Weights;

/// A table of names.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// What all names but those of the head begin with; a checkpoint of the bare model, without its head, lacks it.
    prefix: &'static str,
    /// The table that both sides share.
    shared: &'static str,
    /// A side's own table.
    tokens: &'static str,
    /// What else the decoder's table is called where it is the output, too.
    output_tokens: &'static str,
    /// The vocabulary projection.
    pub output: &'static str,
    /// The projection's bias.
    pub output_bias: &'static str,
    /// A side's table of positions.
    positions: &'static str,
    /// The norm behind the embedding.
    embed_norm: &'static str,
    /// The norm behind the last layer.
    final_norm: &'static str,
    /// What a layer's names begin with.
    layer: &'static str,
    /// The bias of a self-attention by distance, in its layer.
    relative: &'static str,
    encoder: LayerNames,
    decoder: LayerNames,
}

/// The names within a layer.
#[derive(Debug, PartialEq, Eq)]
pub struct LayerNames {
    /// Self-attention.
    pub own: AttentionNames,
    /// Cross-attention, in the decoder.
    pub cross: AttentionNames,
    /// The first matrix of a feed-forward layer.
    pub up: &'static str,
    /// The two that are the first matrix of a gated one: the half that is activated, and the other.
    pub gated: [&'static str; 2],
    /// The second matrix.
    pub down: &'static str,
    /// The feed-forward layer's norm.
    pub feed_forward_norm: &'static str,
}

/// The names of an attention.
#[derive(Debug, PartialEq, Eq)]
pub struct AttentionNames {
    /// Of the queries.
    pub query: &'static str,
    /// Of the keys.
    pub key: &'static str,
    /// Of the values.
    pub value: &'static str,
    /// Of the output.
    pub out: &'static str,
    /// The sublayer's norm.
    pub norm: &'static str,
}

const BART_LAYER: LayerNames = LayerNames {
    own: AttentionNames {
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        out: "self_attn.out_proj",
        norm: "self_attn_layer_norm",
    },
    cross: AttentionNames {
        query: "encoder_attn.q_proj",
        key: "encoder_attn.k_proj",
        value: "encoder_attn.v_proj",
        out: "encoder_attn.out_proj",
        norm: "encoder_attn_layer_norm",
    },
    up: "fc1",
    gated: ["", ""],
    down: "fc2",
    feed_forward_norm: "final_layer_norm",
};

/// Marian, FSMT, BART, mBART, Pegasus, PLBART, M2M100.
pub static BART: Names = Names {
    prefix: "model.",
    shared: "shared.weight",
    tokens: "{side}.embed_tokens.weight",
    output_tokens: "{side}.output_projection.weight",
    output: "lm_head.weight",
    output_bias: "final_logits_bias",
    positions: "{side}.embed_positions.weight",
    embed_norm: "{side}.layernorm_embedding",
    final_norm: "{side}.layer_norm",
    layer: "{side}.layers.{i}",
    relative: "",
    encoder: BART_LAYER,
    decoder: BART_LAYER,
};

const T5_OWN: AttentionNames = AttentionNames {
    query: "0.SelfAttention.q",
    key: "0.SelfAttention.k",
    value: "0.SelfAttention.v",
    out: "0.SelfAttention.o",
    norm: "0.layer_norm",
};

const T5_CROSS: AttentionNames = AttentionNames {
    query: "1.EncDecAttention.q",
    key: "1.EncDecAttention.k",
    value: "1.EncDecAttention.v",
    out: "1.EncDecAttention.o",
    norm: "1.layer_norm",
};

/// T5, mT5, UMT5.
pub static T5: Names = Names {
    prefix: "",
    shared: "shared.weight",
    tokens: "{side}.embed_tokens.weight",
    output_tokens: "{side}.embed_tokens.weight",
    output: "lm_head.weight",
    output_bias: "final_logits_bias",
    positions: "",
    embed_norm: "",
    final_norm: "{side}.final_layer_norm",
    layer: "{side}.block.{i}.layer",
    relative: "0.SelfAttention.relative_attention_bias.weight",
    encoder: LayerNames {
        own: T5_OWN,
        cross: T5_CROSS,
        up: "1.DenseReluDense.wi",
        gated: ["1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1"],
        down: "1.DenseReluDense.wo",
        feed_forward_norm: "1.layer_norm",
    },
    decoder: LayerNames {
        own: T5_OWN,
        cross: T5_CROSS,
        up: "2.DenseReluDense.wi",
        gated: ["2.DenseReluDense.wi_0", "2.DenseReluDense.wi_1"],
        down: "2.DenseReluDense.wo",
        feed_forward_norm: "2.layer_norm",
    },
};

/// Encoder or decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Reads the source.
    Encoder,
    /// Writes the target.
    Decoder,
}

impl Side {
    /// As in the names.
    pub fn name(self) -> &'static str {
        match self {
            Side::Encoder => "encoder",
            Side::Decoder => "decoder",
        }
    }
}

impl Names {
    /// The names in this checkpoint: with the prefix, unless it holds those without.
    pub fn of(&'static self, weights: &Weights) -> Naming {
        let bare = self.layer(Side::Encoder, 0, self.encoder.own.query);
        let is_there = |prefix: &str| weights.contains(&format!("{prefix}{bare}.weight"));
        let prefix = if is_there("") && !is_there(self.prefix) { "" } else { self.prefix };
        Naming { names: self, prefix }
    }

    fn layer(&self, side: Side, index: usize, name: &str) -> String {
        format!("{}.{name}", on(self.layer, side).replace("{i}", &index.to_string()))
    }
}

fn on(name: &str, side: Side) -> String {
    name.replace("{side}", side.name())
}

/// The names of one checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Naming {
    names: &'static Names,
    prefix: &'static str,
}

impl Naming {
    /// The table without the checkpoint's prefix.
    pub fn names(&self) -> &'static Names {
        self.names
    }

    /// The names within a layer.
    pub fn within(&self, side: Side) -> &'static LayerNames {
        match side {
            Side::Encoder => &self.names.encoder,
            Side::Decoder => &self.names.decoder,
        }
    }

    /// A tensor of a layer, by its name within that.
    pub fn layer(&self, side: Side, index: usize, name: &str) -> String {
        format!("{}{}", self.prefix, self.names.layer(side, index, name))
    }

    /// The vocabulary projection's own tensor; none where it is the target embedding table.
    pub fn own_output(&self, weights: &Weights, config: &ModelConfig) -> Option<&'static str> {
        let name = self.names.output;
        let counts = !config.tie_word_embeddings || (config.prefers_own_output && weights.contains(name));
        counts.then_some(name)
    }

    /// The bias of a layer's self-attention by distance.
    pub fn relative(&self, side: Side, index: usize) -> String {
        self.layer(side, index, self.names.relative)
    }

    /// A side's table of positions.
    pub fn positions(&self, side: Side) -> String {
        format!("{}{}", self.prefix, on(self.names.positions, side))
    }

    /// The norm behind a side's embedding.
    pub fn embed_norm(&self, side: Side) -> String {
        format!("{}{}", self.prefix, on(self.names.embed_norm, side))
    }

    /// The norm behind a side's last layer.
    pub fn final_norm(&self, side: Side) -> String {
        format!("{}{}", self.prefix, on(self.names.final_norm, side))
    }

    /// Where a side's token embeddings stand. Shared ones have a name of their own, but some files keep only a copy; the
    /// projection's weights are one where `is_output`, and nowhere else.
    pub fn tokens(&self, weights: &Weights, side: Side, is_shared: bool, is_output: bool) -> String {
        let Names { shared, tokens, output_tokens, .. } = self.names;
        let prefixed = |name: &str| format!("{}{name}", self.prefix);
        let mut candidates = match is_shared {
            true => vec![prefixed(shared), prefixed(&on(tokens, Side::Encoder)), prefixed(&on(tokens, Side::Decoder))],
            false => vec![prefixed(&on(tokens, side))],
        };
        if is_output {
            candidates.extend([prefixed(&on(output_tokens, side)), self.names.output.to_owned()]);
        }
        let first = candidates[0].clone();
        candidates.into_iter().find(|name| weights.contains(name)).unwrap_or(first)
    }
}
