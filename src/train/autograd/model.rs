//! The computation: a post-norm transformer in the order of `model::encoder` and `model::decoder`.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::attention::Attention;
use super::batch::{Batch, Rows};
use super::ops::{Activate, AddDropped, Drop, Dropout, Embed, LayerNorm, Linear, Rates};
use super::parameters::Loader;
use crate::backend::Activation;
use crate::model::LAYER_NORM_EPS;
use crate::model::config::{ModelConfig, StackConfig};

/// The tensors of a model; they are the parameters, or share their storage.
#[derive(Clone, Debug)]
pub struct Model {
    source_table: Tensor,
    target_table: Tensor,
    source_positions: Tensor,
    target_positions: Tensor,
    encoder: Vec<EncoderLayer>,
    decoder: Vec<DecoderLayer>,
    output: LinearLayer,
}

#[derive(Clone, Debug)]
pub(super) struct LinearLayer {
    pub weight: Tensor,
    pub bias: Tensor,
}

#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub gain: Tensor,
    pub bias: Tensor,
}

#[derive(Clone, Debug)]
struct SelfAttention {
    qkv: LinearLayer,
    out: LinearLayer,
    norm: Norm,
}

#[derive(Clone, Debug)]
struct CrossAttention {
    query: LinearLayer,
    kv: LinearLayer,
    out: LinearLayer,
    norm: Norm,
}

#[derive(Clone, Debug)]
struct FeedForward {
    up: LinearLayer,
    down: LinearLayer,
    norm: Norm,
}

#[derive(Clone, Debug)]
struct EncoderLayer {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

#[derive(Clone, Debug)]
struct DecoderLayer {
    attention: SelfAttention,
    cross: CrossAttention,
    feed_forward: FeedForward,
}

impl LinearLayer {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op3(&self.weight, &self.bias, Linear)
    }

    fn detached(&self) -> Self {
        LinearLayer { weight: self.weight.detach(), bias: self.bias.detach() }
    }
}

impl Norm {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op3(&self.gain, &self.bias, LayerNorm { eps: f64::from(LAYER_NORM_EPS) })
    }

    fn detached(&self) -> Self {
        Norm { gain: self.gain.detach(), bias: self.bias.detach() }
    }
}

impl SelfAttention {
    fn load(loader: &mut Loader<'_>, layer: &str, width: usize) -> crate::Result<Self> {
        let prefix = format!("{layer}.self_attn");
        Ok(SelfAttention {
            qkv: loader.linear(&prefix, &["q_proj", "k_proj", "v_proj"], width, width)?,
            out: loader.linear(&prefix, &["out_proj"], width, width)?,
            norm: loader.norm(&format!("{layer}.self_attn_layer_norm"), width)?,
        })
    }

    fn detached(&self) -> Self {
        SelfAttention { qkv: self.qkv.detached(), out: self.out.detached(), norm: self.norm.detached() }
    }
}

impl FeedForward {
    fn load(loader: &mut Loader<'_>, layer: &str, width: usize, stack: StackConfig) -> crate::Result<Self> {
        Ok(FeedForward {
            up: loader.linear(layer, &["fc1"], stack.ffn_dim, width)?,
            down: loader.linear(layer, &["fc2"], width, stack.ffn_dim)?,
            norm: loader.norm(&format!("{layer}.final_layer_norm"), width)?,
        })
    }

    fn apply(&self, x: &Tensor, activation: Activation, sites: &mut Sites) -> Result<Tensor> {
        let mut hidden = self.up.apply(x)?.apply_op1(Activate(activation))?;
        if let Some(drop) = sites.inner(ACTIVATION_SITES, |rates| rates.activation) {
            hidden = hidden.apply_op1(drop)?;
        }
        sites.residual(x, &self.down.apply(&hidden)?, &self.norm)
    }

    fn detached(&self) -> Self {
        FeedForward { up: self.up.detached(), down: self.down.detached(), norm: self.norm.detached() }
    }
}

/// Hands out dropout to the places of the model that have it, in the order of the computation.
struct Sites {
    dropout: Option<Dropout>,
    places: Arc<[crate::backend::TokenPlace]>,
    next: u32,
}

/// The number of the decoder's first place: the encoder has fewer.
const DECODER_SITES: u32 = 1 << 16;

/// What is added to a place's number within a sublayer: for its weights of attention, and for its inner elements.
const ATTENTION_SITES: u32 = 1 << 17;
const ACTIVATION_SITES: u32 = 1 << 18;

impl Sites {
    fn new(dropout: Option<Dropout>, rows: &Rows, first: u32) -> Self {
        Sites { dropout, places: rows.places.clone(), next: first }
    }

    fn drop(&self, site: u32, rate: impl Fn(&Rates) -> f32) -> Option<Drop> {
        let dropout = self.dropout?;
        let rate = rate(&dropout.rates);
        (rate > 0.0).then(|| Drop { dropout, rate, site, places: self.places.clone() })
    }

    /// For the next place on the residual path.
    fn next(&mut self) -> Option<Drop> {
        self.next += 1;
        self.drop(self.next, |rates| rates.sublayers)
    }

    /// Within the sublayer that the next place ends.
    fn inner(&self, sites: u32, rate: impl Fn(&Rates) -> f32) -> Option<Drop> {
        self.drop(sites + self.next, rate)
    }

    fn attention(&self, attention: &Attention) -> Attention {
        Attention { drop: self.inner(ATTENTION_SITES, |rates| rates.attention), ..attention.clone() }
    }

    fn embedded(&mut self, x: Tensor) -> Result<Tensor> {
        match self.next() {
            None => Ok(x),
            Some(drop) => x.apply_op1(drop),
        }
    }

    /// `norm(x + dropout(delta))`.
    fn residual(&mut self, x: &Tensor, delta: &Tensor, norm: &Norm) -> Result<Tensor> {
        let sum = match self.next() {
            None => (x + delta)?,
            Some(drop) => x.apply_op2(delta, AddDropped(drop))?,
        };
        norm.apply(&sum)
    }
}

impl Model {
    pub(super) fn load(loader: &mut Loader<'_>) -> crate::Result<Self> {
        let config = loader.config();
        let (width, target_size) = (config.d_model, config.decoder_vocab_size);
        let source_table = loader.source_table()?;
        let target_table = match config.share_embeddings {
            true => source_table.clone(),
            false => loader.table("model.decoder.embed_tokens.weight", target_size)?,
        };
        let weight = match config.tie_word_embeddings {
            true => target_table.clone(),
            false => loader.table("lm_head.weight", target_size)?,
        };
        let output = LinearLayer { weight, bias: loader.output_bias()? };
        let encoder = |loader: &mut Loader<'_>, i: usize| {
            let layer = format!("model.encoder.layers.{i}");
            Ok(EncoderLayer {
                attention: SelfAttention::load(loader, &layer, width)?,
                feed_forward: FeedForward::load(loader, &layer, width, config.encoder)?,
            })
        };
        let decoder = |loader: &mut Loader<'_>, i: usize| {
            let layer = format!("model.decoder.layers.{i}");
            let prefix = format!("{layer}.encoder_attn");
            Ok(DecoderLayer {
                attention: SelfAttention::load(loader, &layer, width)?,
                cross: CrossAttention {
                    query: loader.linear(&prefix, &["q_proj"], width, width)?,
                    kv: loader.linear(&prefix, &["k_proj", "v_proj"], width, width)?,
                    out: loader.linear(&prefix, &["out_proj"], width, width)?,
                    norm: loader.norm(&format!("{layer}.encoder_attn_layer_norm"), width)?,
                },
                feed_forward: FeedForward::load(loader, &layer, width, config.decoder)?,
            })
        };
        Ok(Model {
            source_table,
            target_table,
            source_positions: loader.positions("encoder")?,
            target_positions: loader.positions("decoder")?,
            encoder: (0..config.encoder.layers).map(|i| encoder(loader, i)).collect::<crate::Result<_>>()?,
            decoder: (0..config.decoder.layers).map(|i| decoder(loader, i)).collect::<crate::Result<_>>()?,
            output,
        })
    }

    /// The same tensors, sharing their storage, through which no gradient flows.
    pub(super) fn detached(&self) -> Self {
        let encoder = |layer: &EncoderLayer| EncoderLayer {
            attention: layer.attention.detached(),
            feed_forward: layer.feed_forward.detached(),
        };
        let decoder = |layer: &DecoderLayer| DecoderLayer {
            attention: layer.attention.detached(),
            cross: CrossAttention {
                query: layer.cross.query.detached(),
                kv: layer.cross.kv.detached(),
                out: layer.cross.out.detached(),
                norm: layer.cross.norm.detached(),
            },
            feed_forward: layer.feed_forward.detached(),
        };
        Model {
            source_table: self.source_table.detach(),
            target_table: self.target_table.detach(),
            source_positions: self.source_positions.clone(),
            target_positions: self.target_positions.clone(),
            encoder: self.encoder.iter().map(encoder).collect(),
            decoder: self.decoder.iter().map(decoder).collect(),
            output: self.output.detached(),
        }
    }

    pub(super) fn logits(&self, config: &ModelConfig, batch: &Batch, dropout: Option<Dropout>) -> Result<Tensor> {
        let memory = self.encode(config, &batch.sources, dropout)?;
        self.output.apply(&self.decode(config, batch, &memory, dropout)?)
    }

    fn encode(&self, config: &ModelConfig, rows: &Rows, dropout: Option<Dropout>) -> Result<Tensor> {
        let mut sites = Sites::new(dropout, rows, 0);
        let sentences = rows.starts.len() - 1;
        let attention = Attention {
            heads: config.encoder.heads,
            causal: false,
            queries: rows.starts.clone(),
            keys: rows.starts.clone(),
            key_of: (0..sentences).collect(),
            drop: None,
        };
        let mut x = sites.embedded(embed(config, &self.source_table, &self.source_positions, rows)?)?;
        for layer in &self.encoder {
            let context = layer.attention.qkv.apply(&x)?.apply_op1(sites.attention(&attention))?;
            x = sites.residual(&x, &layer.attention.out.apply(&context)?, &layer.attention.norm)?;
            x = layer.feed_forward.apply(&x, config.activation, &mut sites)?;
        }
        Ok(x)
    }

    fn decode(&self, config: &ModelConfig, batch: &Batch, memory: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let rows = &batch.inputs;
        let mut sites = Sites::new(dropout, rows, DECODER_SITES);
        let sentences = rows.starts.len() - 1;
        let own = Attention {
            heads: config.decoder.heads,
            causal: true,
            queries: rows.starts.clone(),
            keys: rows.starts.clone(),
            key_of: (0..sentences).collect(),
            drop: None,
        };
        let keys = batch.sources.starts.clone();
        let cross = Attention { causal: false, keys, key_of: batch.source_of.clone(), ..own.clone() };
        let mut x = sites.embedded(embed(config, &self.target_table, &self.target_positions, rows)?)?;
        for layer in &self.decoder {
            let context = layer.attention.qkv.apply(&x)?.apply_op1(sites.attention(&own))?;
            x = sites.residual(&x, &layer.attention.out.apply(&context)?, &layer.attention.norm)?;
            let kv = layer.cross.kv.apply(memory)?;
            let context = layer.cross.query.apply(&x)?.apply_op2(&kv, sites.attention(&cross))?;
            x = sites.residual(&x, &layer.cross.out.apply(&context)?, &layer.cross.norm)?;
            x = layer.feed_forward.apply(&x, config.activation, &mut sites)?;
        }
        Ok(x)
    }
}

fn embed(config: &ModelConfig, table: &Tensor, positions: &Tensor, rows: &Rows) -> Result<Tensor> {
    let op = Embed {
        ids: rows.ids.clone(),
        places: rows.places.clone(),
        scale: f64::from(config.embedding_scale()),
        pad_id: config.ids.pad_id,
    };
    table.apply_op2(positions, op)
}
