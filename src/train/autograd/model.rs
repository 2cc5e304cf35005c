//! The computation, in the order of `model::encoder` and `model::decoder`.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::attention::{Attention, Biased};
use super::batch::{Batch, Rows};
use super::ops::{Activate, AddDropped, Drop, Dropout, Embed, LayerNorm, Linear, Rates};
use super::parameters::Loader;
use super::real::zeros;
use crate::backend::{Activation, NormKind};
use crate::model::config::{ModelConfig, NormPlacement, StackConfig};
use crate::model::names::{AttentionNames, Side};
use crate::model::positions::{buckets_by_distance, fairseq_sinusoids};

/// The tensors of a model; they are the parameters, or share their storage.
#[derive(Clone, Debug)]
pub struct Model {
    encoder: Stack<EncoderLayer>,
    decoder: Stack<DecoderLayer>,
    output: LinearLayer,
}

/// One side.
#[derive(Clone, Debug)]
struct Stack<L> {
    table: Tensor,
    positions: Positions,
    embed_norm: Option<Norm>,
    layers: Vec<L>,
    /// The norm behind the last layer, where norms stand before sublayers.
    final_norm: Option<Norm>,
    /// Tables `[buckets, num_heads]`: one for all layers, one for each, or none.
    relative: Vec<Tensor>,
}

/// What is added to token embeddings.
#[derive(Clone, Debug)]
pub(super) enum Positions {
    None,
    /// A table that is not trained.
    Constant(Tensor),
    /// A table that is, position p in row p + `offset`.
    Learned {
        table: Tensor,
        offset: usize,
    },
    /// fairseq's sines and cosines from `first` on; `pad_id` has none and is not counted in a source.
    Fairseq {
        first: usize,
        pad_id: u32,
    },
}

#[derive(Clone, Debug)]
pub(super) struct LinearLayer {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub kind: NormKind,
    pub gain: Tensor,
    pub bias: Option<Tensor>,
    pub eps: f32,
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
    /// Both halves where it is gated.
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
        match &self.bias {
            Some(bias) => x.apply_op3(&self.weight, bias, Linear),
            None => x.matmul(&self.weight.t()?),
        }
    }

    fn detached(&self) -> Self {
        LinearLayer { weight: self.weight.detach(), bias: self.bias.as_ref().map(Tensor::detach) }
    }
}

impl Norm {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let op = LayerNorm { eps: f64::from(self.eps), kind: self.kind };
        match &self.bias {
            Some(bias) => x.apply_op3(&self.gain, bias, op),
            None => x.apply_op2(&self.gain, op),
        }
    }

    fn detached(&self) -> Self {
        let (gain, bias) = (self.gain.detach(), self.bias.as_ref().map(Tensor::detach));
        Norm { gain, bias, ..self.clone() }
    }
}

impl SelfAttention {
    fn load(loader: &mut Loader<'_>, side: Side, layer: usize, stack: StackConfig) -> crate::Result<Self> {
        let (d_model, width) = (loader.config().d_model, stack.heads.width());
        let AttentionNames { query, key, value, out, norm } = loader.naming().within(side).own;
        Ok(SelfAttention {
            qkv: loader.linear(side, layer, &[query, key, value], width, d_model)?,
            out: loader.linear(side, layer, &[out], d_model, width)?,
            norm: loader.norm(&loader.naming().layer(side, layer, norm))?,
        })
    }

    fn detached(&self) -> Self {
        SelfAttention { qkv: self.qkv.detached(), out: self.out.detached(), norm: self.norm.detached() }
    }
}

impl CrossAttention {
    fn load(loader: &mut Loader<'_>, layer: usize, stack: StackConfig) -> crate::Result<Self> {
        let (side, d_model, width) = (Side::Decoder, loader.config().d_model, stack.heads.width());
        let AttentionNames { query, key, value, out, norm } = loader.naming().within(side).cross;
        Ok(CrossAttention {
            query: loader.linear(side, layer, &[query], width, d_model)?,
            kv: loader.linear(side, layer, &[key, value], width, d_model)?,
            out: loader.linear(side, layer, &[out], d_model, width)?,
            norm: loader.norm(&loader.naming().layer(side, layer, norm))?,
        })
    }

    fn detached(&self) -> Self {
        let (query, kv) = (self.query.detached(), self.kv.detached());
        CrossAttention { query, kv, out: self.out.detached(), norm: self.norm.detached() }
    }
}

impl FeedForward {
    fn load(loader: &mut Loader<'_>, side: Side, layer: usize, stack: StackConfig) -> crate::Result<Self> {
        let (d_model, is_gated) = (loader.config().d_model, loader.config().gated);
        let names = loader.naming().within(side);
        let up: &[&str] = if is_gated { &names.gated } else { &[names.up] };
        Ok(FeedForward {
            up: loader.linear(side, layer, up, stack.ffn_dim, d_model)?,
            down: loader.linear(side, layer, &[names.down], d_model, stack.ffn_dim)?,
            norm: loader.norm(&loader.naming().layer(side, layer, names.feed_forward_norm))?,
        })
    }

    /// What the sublayer adds to x.
    fn apply(&self, x: &Tensor, activation: Activation, sites: &mut Sites) -> Result<Tensor> {
        let up = self.up.apply(x)?;
        let (inner, outer) = (self.down.weight.dim(1)?, up.dim(1)?);
        let mut hidden = match outer == inner {
            true => up.apply_op1(Activate(activation))?,
            false => {
                let half = |first: usize| up.narrow(1, first, inner)?.contiguous();
                (half(0)?.apply_op1(Activate(activation))? * half(inner)?)?
            }
        };
        if let Some(drop) = sites.inner(ACTIVATION_SITES, |rates| rates.activation) {
            hidden = hidden.apply_op1(drop)?;
        }
        self.down.apply(&hidden)
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
    placement: NormPlacement,
}

/// The number of the decoder's first place: the encoder has fewer.
const DECODER_SITES: u32 = 1 << 16;

/// What is added to a place's number within a sublayer: for its weights of attention, and for its inner elements.
const ATTENTION_SITES: u32 = 1 << 17;
const ACTIVATION_SITES: u32 = 1 << 18;

impl Sites {
    fn new(config: &ModelConfig, dropout: Option<Dropout>, rows: &Rows, first: u32) -> Self {
        Sites { dropout, places: rows.places.clone(), next: first, placement: config.norm.placement }
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

    /// What a sublayer reads of x: x itself, or, where norms stand before sublayers, its norm.
    fn read(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        match self.placement {
            NormPlacement::Post => Ok(x.clone()),
            NormPlacement::Pre => norm.apply(x),
        }
    }

    /// `x + dropout(delta)`, or its norm, where norms stand behind sublayers.
    fn residual(&mut self, x: &Tensor, delta: &Tensor, norm: &Norm) -> Result<Tensor> {
        let sum = match self.next() {
            None => (x + delta)?,
            Some(drop) => x.apply_op2(delta, AddDropped(drop))?,
        };
        match self.placement {
            NormPlacement::Post => norm.apply(&sum),
            NormPlacement::Pre => Ok(sum),
        }
    }
}

impl<L> Stack<L> {
    /// All but the table and the layers.
    fn load(
        loader: &mut Loader<'_>,
        (side, stack): (Side, StackConfig),
        table: Tensor,
        layers: Vec<L>,
    ) -> crate::Result<Self> {
        let (config, naming) = (loader.config(), loader.naming());
        let is_pre = config.norm.placement == NormPlacement::Pre;
        Ok(Stack {
            table,
            layers,
            positions: loader.positions(side)?,
            embed_norm: config.embed_norm.then(|| loader.norm(&naming.embed_norm(side))).transpose()?,
            final_norm: is_pre.then(|| loader.norm(&naming.final_norm(side))).transpose()?,
            relative: loader.relative(side, stack.layers, stack.heads.num_heads)?,
        })
    }

    fn detached(&self, layer: impl Fn(&L) -> L) -> Self {
        let positions = match &self.positions {
            Positions::Learned { table, offset } => Positions::Learned { table: table.detach(), offset: *offset },
            others => others.clone(),
        };
        Stack {
            table: self.table.detach(),
            positions,
            embed_norm: self.embed_norm.as_ref().map(Norm::detached),
            layers: self.layers.iter().map(layer).collect(),
            final_norm: self.final_norm.as_ref().map(Norm::detached),
            relative: self.relative.iter().map(Tensor::detach).collect(),
        }
    }

    /// What self-attention adds to its scores in each layer, `[num_heads, 2 * max_distance + 1]`.
    fn biases(&self, config: &ModelConfig, side: Side) -> Result<Vec<Tensor>> {
        let Some(relative) = config.relative else { return Ok(Vec::new()) };
        let buckets = buckets_by_distance(relative, side);
        let buckets = Tensor::from_vec(buckets, 2 * relative.max_distance + 1, &Device::Cpu)?;
        self.relative.iter().map(|table| table.index_select(&buckets, 0)?.t()?.contiguous()).collect()
    }

    /// Embedded rows, with what comes before the first layer.
    fn embed(&self, config: &ModelConfig, side: Side, rows: &Rows, sites: &mut Sites) -> Result<Tensor> {
        let (width, dtype) = (config.d_model, self.table.dtype());
        let longest = rows.places.iter().map(|place| place.position as usize + 1).max().unwrap_or(0);
        let op = Embed {
            ids: rows.ids.clone(),
            places: rows.places.clone(),
            scale: f64::from(config.embedding_scale),
            pad_id: config.freezes_padding.then_some(config.ids.pad_id),
        };
        let none = || zeros(&[longest, width], dtype);
        let x = match &self.positions {
            Positions::Constant(table) => self.table.apply_op2(table, op)?,
            Positions::None => self.table.apply_op2(&none()?, op)?,
            Positions::Learned { table, offset } => {
                let places: Vec<u32> = rows.places.iter().map(|place| place.position + *offset as u32).collect();
                let places = Tensor::from_vec(places, rows.len(), &Device::Cpu)?;
                (self.table.apply_op2(&none()?, op)? + table.index_select(&places, 0)?)?
            }
            Positions::Fairseq { first, pad_id } => {
                let values = fairseq_rows(rows, side, (*first, *pad_id), width);
                let added = Tensor::from_vec(values, (rows.len(), width), &Device::Cpu)?.to_dtype(dtype)?;
                (self.table.apply_op2(&none()?, op)? + added)?
            }
        };
        let x = match &self.embed_norm {
            None => x,
            Some(norm) => norm.apply(&x)?,
        };
        sites.embedded(x)
    }

    fn end(&self, x: Tensor) -> Result<Tensor> {
        match &self.final_norm {
            None => Ok(x),
            Some(norm) => norm.apply(&x),
        }
    }
}

/// fairseq's positions of rows, `[rows, width]`: zeros for padding, which a source does not count either.
fn fairseq_rows(rows: &Rows, side: Side, (first, pad_id): (usize, u32), width: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows.len() * width);
    for sentence in rows.sentences() {
        let mut counted = 0;
        for row in sentence {
            let is_pad = rows.ids[row] == pad_id;
            let position = if side == Side::Encoder { counted } else { rows.places[row].position as usize };
            match is_pad {
                true => values.resize(values.len() + width, 0.0),
                false => values.extend(fairseq_sinusoids(first + position..first + position + 1, width)),
            }
            counted += usize::from(!is_pad);
        }
    }
    values
}

/// Self-attention over `[rows, 3 * width]`, with a bias where there is one: that of the layer, or the first one's.
fn attend(qkv: &Tensor, attention: Attention, biases: &[Tensor], layer: usize) -> Result<Tensor> {
    match biases.get(layer).or(biases.first()) {
        None => qkv.apply_op1(attention),
        Some(bias) => qkv.apply_op2(bias, Biased(attention)),
    }
}

impl Model {
    pub(super) fn load(loader: &mut Loader<'_>) -> crate::Result<Self> {
        let config = loader.config();
        let [source_table, target_table, weight] = loader.tables()?;
        let output = LinearLayer { weight, bias: loader.output_bias()? };
        let encoder = |loader: &mut Loader<'_>, i: usize| {
            Ok(EncoderLayer {
                attention: SelfAttention::load(loader, Side::Encoder, i, config.encoder)?,
                feed_forward: FeedForward::load(loader, Side::Encoder, i, config.encoder)?,
            })
        };
        let decoder = |loader: &mut Loader<'_>, i: usize| {
            Ok(DecoderLayer {
                attention: SelfAttention::load(loader, Side::Decoder, i, config.decoder)?,
                cross: CrossAttention::load(loader, i, config.decoder)?,
                feed_forward: FeedForward::load(loader, Side::Decoder, i, config.decoder)?,
            })
        };
        let layers = (0..config.encoder.layers).map(|i| encoder(loader, i)).collect::<crate::Result<_>>()?;
        let encoder = Stack::load(loader, (Side::Encoder, config.encoder), source_table, layers)?;
        let layers = (0..config.decoder.layers).map(|i| decoder(loader, i)).collect::<crate::Result<_>>()?;
        let decoder = Stack::load(loader, (Side::Decoder, config.decoder), target_table, layers)?;
        Ok(Model { encoder, decoder, output })
    }

    /// The same tensors, sharing their storage, through which no gradient flows.
    pub(super) fn detached(&self) -> Self {
        let encoder = |layer: &EncoderLayer| EncoderLayer {
            attention: layer.attention.detached(),
            feed_forward: layer.feed_forward.detached(),
        };
        let decoder = |layer: &DecoderLayer| DecoderLayer {
            attention: layer.attention.detached(),
            cross: layer.cross.detached(),
            feed_forward: layer.feed_forward.detached(),
        };
        Model {
            encoder: self.encoder.detached(encoder),
            decoder: self.decoder.detached(decoder),
            output: self.output.detached(),
        }
    }

    pub(super) fn logits(&self, config: &ModelConfig, batch: &Batch, dropout: Option<Dropout>) -> Result<Tensor> {
        let memory = self.encode(config, &batch.sources, dropout)?;
        let mut x = self.decode(config, batch, &memory, dropout)?;
        if config.output_scale != 1.0 {
            x = (x * f64::from(config.output_scale))?;
        }
        self.output.apply(&x)
    }

    fn encode(&self, config: &ModelConfig, rows: &Rows, dropout: Option<Dropout>) -> Result<Tensor> {
        let (side, stack) = (Side::Encoder, &self.encoder);
        let mut sites = Sites::new(config, dropout, rows, 0);
        let sentences = rows.starts.len() - 1;
        let attention = Attention {
            heads: config.encoder.heads,
            causal: false,
            queries: rows.starts.clone(),
            keys: rows.starts.clone(),
            key_of: (0..sentences).collect(),
            drop: None,
        };
        let biases = stack.biases(config, side)?;
        let mut x = stack.embed(config, side, rows, &mut sites)?;
        for (i, EncoderLayer { attention: own, feed_forward }) in stack.layers.iter().enumerate() {
            let qkv = own.qkv.apply(&sites.read(&x, &own.norm)?)?;
            let context = attend(&qkv, sites.attention(&attention), &biases, i)?;
            x = sites.residual(&x, &own.out.apply(&context)?, &own.norm)?;
            let delta = feed_forward.apply(&sites.read(&x, &feed_forward.norm)?, config.activation, &mut sites)?;
            x = sites.residual(&x, &delta, &feed_forward.norm)?;
        }
        stack.end(x)
    }

    fn decode(&self, config: &ModelConfig, batch: &Batch, memory: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let (side, stack, rows) = (Side::Decoder, &self.decoder, &batch.inputs);
        let mut sites = Sites::new(config, dropout, rows, DECODER_SITES);
        let sentences = rows.starts.len() - 1;
        let causal = Attention {
            heads: config.decoder.heads,
            causal: true,
            queries: rows.starts.clone(),
            keys: rows.starts.clone(),
            key_of: (0..sentences).collect(),
            drop: None,
        };
        let keys = batch.sources.starts.clone();
        let to_source = Attention { causal: false, keys, key_of: batch.source_of.clone(), ..causal.clone() };
        let biases = stack.biases(config, side)?;
        let mut x = stack.embed(config, side, rows, &mut sites)?;
        for (i, DecoderLayer { attention: own, cross, feed_forward }) in stack.layers.iter().enumerate() {
            let qkv = own.qkv.apply(&sites.read(&x, &own.norm)?)?;
            let context = attend(&qkv, sites.attention(&causal), &biases, i)?;
            x = sites.residual(&x, &own.out.apply(&context)?, &own.norm)?;
            let (query, kv) = (cross.query.apply(&sites.read(&x, &cross.norm)?)?, cross.kv.apply(memory)?);
            let context = query.apply_op2(&kv, sites.attention(&to_source))?;
            x = sites.residual(&x, &cross.out.apply(&context)?, &cross.norm)?;
            let delta = feed_forward.apply(&sites.read(&x, &feed_forward.norm)?, config.activation, &mut sites)?;
            x = sites.residual(&x, &delta, &feed_forward.norm)?;
        }
        stack.end(x)
    }
}
