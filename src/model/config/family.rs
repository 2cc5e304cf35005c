//! `config.json`: what a model computes, as one description for all families. The one place that asks for a model's type.

use std::path::Path;

use serde_json::Value;

use super::{Fields, MAX_LAYERS, MAX_POSITION_VALUES, MAX_VOCAB, MAX_WIDTH};
use crate::backend::{Activation, Heads, NormKind, SpecialIds};
use crate::model::names::{self, Names};
use crate::{Error, Result};

/// What a model computes, and what its files call it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `model_type`.
    pub model_type: &'static str,
    /// Width of a row.
    pub d_model: usize,
    /// Source vocabulary size.
    pub vocab_size: usize,
    /// Target vocabulary size.
    pub decoder_vocab_size: usize,
    /// The longest sequence, end of sentence included; none where positions go on.
    pub max_len: Option<usize>,
    /// The encoder.
    pub encoder: StackConfig,
    /// The decoder.
    pub decoder: StackConfig,
    /// Activation of the feed-forward layers.
    pub activation: Activation,
    /// Whether a feed-forward layer's first matrix has two halves, the activation of one multiplied by the other (Shazeer 2020).
    pub gated: bool,
    /// The norms.
    pub norm: NormConfig,
    /// Whether linear layers have a bias, that of the vocabulary projection apart.
    pub biases: bool,
    /// Whether there is a norm behind the embedding.
    pub embed_norm: bool,
    /// What token embeddings are multiplied by.
    pub embedding_scale: f32,
    /// What is added to token embeddings.
    pub positions: PositionConfig,
    /// What self-attention adds to its scores by distance.
    pub relative: Option<RelativeConfig>,
    /// Whether source and target share one embedding table.
    pub share_embeddings: bool,
    /// Whether the vocabulary projection is the target embedding table.
    pub tie_word_embeddings: bool,
    /// Whether an `lm_head` in the file counts although the embeddings are said to be tied.
    pub prefers_own_output: bool,
    /// Whether padding's embedding stays as it is when the others are trained.
    pub freezes_padding: bool,
    /// Whether the vocabulary projection has a bias; a checkpoint without it has zeros there.
    pub output_bias: bool,
    /// What the decoder's output is multiplied by before the vocabulary projection.
    pub output_scale: f32,
    /// Ids with a meaning of their own.
    pub ids: SpecialIds,
    /// What the tensors are called.
    pub names: &'static Names,
    /// Flags that stand in the file and that transformers ignores for this family, as `name = value`.
    pub ignored: Vec<String>,
}

/// The size of the encoder or of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackConfig {
    /// Number of layers.
    pub layers: usize,
    /// Shape of its attentions.
    pub heads: Heads,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
}

/// The norms of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// What a row is divided by.
    pub kind: NormKind,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
    /// Where the norms stand.
    pub placement: NormPlacement,
}

/// Where norms stand (Xiong et al. 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before each sublayer, and one behind the last layer; what sublayers add to is not normalised.
    Pre,
    /// Behind each sublayer.
    Post,
}

/// What is added to token embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionConfig {
    /// Nothing.
    None,
    /// A table in the checkpoint, position p in row p + `offset`.
    Table {
        /// Rows that are not used.
        offset: usize,
    },
    /// Sines and cosines as Marian has them, unless the checkpoint holds a table.
    Marian,
    /// Sines and cosines as fairseq has them: position p counts as p + `first`, and `pad_id` has none.
    Fairseq {
        /// Where positions begin.
        first: usize,
        /// Adds nothing, and is not counted.
        pad_id: u32,
    },
}

/// Distances between positions, sorted into buckets (Raffel et al. 2020, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeConfig {
    /// Buckets; the encoder has half of them for each direction.
    pub buckets: usize,
    /// From here on all distances share a bucket.
    pub max_distance: usize,
    /// Whether each layer has a table of its own, or the first one's serves all.
    pub per_layer: bool,
}

/// Types of models that are read, as `model_type` has them.
pub const FAMILIES: [&str; 10] =
    ["marian", "m2m_100", "bart", "mbart", "pegasus", "plbart", "fsmt", "t5", "mt5", "umt5"];

/// The longest sequence where positions go on.
const UNBOUNDED: usize = 1 << 16;

/// The epsilon of layer norms, PyTorch's default.
const LAYER_NORM_EPS: f32 = 1e-5;

impl ModelConfig {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// [`Error::Config`] for a missing or malformed field, and for a value that asks for a computation this crate does not do.
    pub fn open(dir: &Path) -> Result<Self> {
        refuse_adapters(dir)?;
        let (path, generation) = (dir.join("config.json"), dir.join("generation_config.json"));
        let fields = Fields::read(&path)?;
        refuse_unknown_computations(&fields)?;
        let generation = generation.exists().then(|| Fields::read(&generation)).transpose()?;
        let family = fields.get("model_type").and_then(Value::as_str);
        let config = match family {
            Some("marian") => BartLike::MARIAN.read(&fields),
            Some("fsmt") => BartLike::FSMT.read(&fields),
            Some("bart") => BartLike::BART.read(&fields),
            Some("mbart") => BartLike::MBART.read(&fields),
            Some("pegasus") => BartLike::PEGASUS.read(&fields),
            Some("plbart") => BartLike::PLBART.read(&fields),
            Some("m2m_100") => BartLike::M2M100.read(&fields),
            Some("t5") => T5Like::T5.read(&fields),
            Some("mt5") => T5Like::MT5.read(&fields),
            Some("umt5") => T5Like::UMT5.read(&fields),
            _ => Err(fields.error("model_type", format!("one of {}", FAMILIES.join(", ")))),
        }?;
        config.starting_at(generation.as_ref())
    }

    /// The longest source and the longest target, end of sentence included.
    pub fn longest(&self) -> usize {
        self.max_len.unwrap_or(UNBOUNDED)
    }

    /// The buckets' halves: how many there are for a direction on this side, and below which distance each has one of its own.
    pub(in crate::model) fn buckets(relative: RelativeConfig, is_encoder: bool) -> (usize, usize) {
        let buckets = if is_encoder { relative.buckets / 2 } else { relative.buckets };
        (buckets, buckets / 2)
    }

    /// Takes what the decoder reads first from `generation_config.json`, which transformers' `generate` reads.
    fn starting_at(mut self, generation: Option<&Fields<'_>>) -> Result<Self> {
        if self.model_type != "marian"
            && let Some(fields) = generation
            && fields.get("decoder_start_token_id").is_some()
        {
            self.ids.decoder_start_id = fields.id("decoder_start_token_id", 0, self.decoder_vocab_size)?;
        }
        Ok(self)
    }
}

/// An adapter is no model: it says what to add to one.
fn refuse_adapters(dir: &Path) -> Result<()> {
    let path = dir.join("adapter_config.json");
    if !path.exists() || dir.join("config.json").exists() {
        return Ok(());
    }
    let (field, expected) =
        ("adapter_config.json".into(), "a whole model: merge the PEFT adapter into its base first".into());
    Err(Error::Config { path, field, expected, got: "an adapter".into() })
}

fn refuse_unknown_computations(fields: &Fields<'_>) -> Result<()> {
    if fields.get("quantization_config").is_some() {
        return Err(fields.error("quantization_config", "none: weights in f32, f16 or bf16"));
    }
    for (field, needed) in [("is_encoder_decoder", true), ("tie_encoder_decoder", false)] {
        if fields.flag(field, needed)? != needed {
            return Err(fields.error(field, needed.to_string()));
        }
    }
    Ok(())
}

/// Flags that would change the computation if anything read them, with the value that goes without saying: these families' classes
/// in transformers never do.
const IGNORED: [(&str, bool); 5] = [
    ("normalize_before", false),
    ("normalize_embedding", false),
    ("add_final_layer_norm", false),
    ("add_bias_logits", false),
    ("static_position_embeddings", true),
];

fn ignored_flags(fields: &Fields<'_>) -> Result<Vec<String>> {
    let mut ignored = Vec::new();
    for (field, expected) in IGNORED {
        if fields.flag(field, expected)? != expected {
            ignored.push(format!("{field} = {}", !expected));
        }
    }
    Ok(ignored)
}

/// An activation by transformers' name.
fn activation(name: &str) -> Option<Activation> {
    match name {
        "gelu" => Some(Activation::GeluErf),
        "swish" | "silu" => Some(Activation::Silu),
        "relu" => Some(Activation::Relu),
        "gelu_new" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
        _ => None,
    }
}

const ACTIVATIONS: &str = "swish, silu, relu, gelu, gelu_new or gelu_pytorch_tanh";

/// What tells the families with BART's names apart: the defaults of transformers' configuration classes, which files leave out.
struct BartLike {
    model_type: &'static str,
    /// Layers, heads, inner width, width.
    size: [u64; 4],
    vocab_size: u64,
    /// Names of the fields for both vocabularies, where there are two.
    vocabularies: [&'static str; 2],
    activation: &'static str,
    scales_embedding: bool,
    placement: NormPlacement,
    embed_norm: bool,
    positions: Kind,
    shares_embeddings: bool,
    /// Padding, beginning and end of sentence, what the decoder reads first.
    ids: [u64; 4],
    output_bias: bool,
}

/// Kinds of positions among them.
enum Kind {
    Marian,
    Learned,
    Fairseq,
}

impl BartLike {
    const BART: BartLike = BartLike {
        model_type: "bart",
        size: [12, 16, 4096, 1024],
        vocab_size: 50265,
        vocabularies: ["vocab_size", "vocab_size"],
        activation: "gelu",
        scales_embedding: false,
        placement: NormPlacement::Post,
        embed_norm: true,
        positions: Kind::Learned,
        shares_embeddings: true,
        ids: [1, 0, 2, 2],
        output_bias: true,
    };
    // The defaults are transformers', where they are the sizes of the first OPUS-MT model.
    const MARIAN: BartLike = BartLike {
        model_type: "marian",
        vocab_size: 58101,
        vocabularies: ["vocab_size", "decoder_vocab_size"],
        embed_norm: false,
        positions: Kind::Marian,
        ids: [58100, 0, 0, 58100],
        ..Self::BART
    };
    const FSMT: BartLike = BartLike {
        model_type: "fsmt",
        vocab_size: 42024,
        vocabularies: ["src_vocab_size", "tgt_vocab_size"],
        activation: "relu",
        scales_embedding: true,
        embed_norm: false,
        positions: Kind::Fairseq,
        shares_embeddings: false,
        output_bias: false,
        ..Self::BART
    };
    // What the decoder reads first is the target language: without one, what `generate` takes, the beginning of a sentence.
    const MBART: BartLike =
        BartLike { model_type: "mbart", placement: NormPlacement::Pre, ids: [1, 0, 2, 0], ..Self::BART };
    const PLBART: BartLike = BartLike {
        model_type: "plbart",
        size: [6, 12, 3072, 768],
        vocab_size: 50005,
        scales_embedding: true,
        ids: [1, 0, 2, 0],
        ..Self::BART
    };
    const PEGASUS: BartLike = BartLike {
        model_type: "pegasus",
        placement: NormPlacement::Pre,
        embed_norm: false,
        positions: Kind::Marian,
        ids: [0, 0, 1, 0],
        ..Self::BART
    };
    const M2M100: BartLike = BartLike {
        model_type: "m2m_100",
        vocab_size: 128_112,
        activation: "relu",
        scales_embedding: true,
        placement: NormPlacement::Pre,
        embed_norm: false,
        positions: Kind::Fairseq,
        output_bias: false,
        ..Self::BART
    };

    fn read(&self, fields: &Fields<'_>) -> Result<ModelConfig> {
        let d_model = fields.size("d_model", self.size[3], MAX_WIDTH)?;
        let [source, target] = self.vocabularies;
        let vocab_size = fields.size(source, self.vocab_size, MAX_VOCAB)?;
        let default = if self.shares_embeddings { vocab_size as u64 } else { self.vocab_size };
        let decoder_vocab_size = fields.size(target, default, MAX_VOCAB)?;
        let may_separate = self.model_type == "marian";
        let share_embeddings = match may_separate {
            true => fields.flag("share_encoder_decoder_embeddings", true)?,
            false => self.shares_embeddings,
        };
        if share_embeddings && decoder_vocab_size != vocab_size {
            return Err(fields.error(target, format!("{vocab_size}, as embeddings are shared")));
        }
        let [pad, _, eos, start] = self.ids;
        let both = decoder_vocab_size.min(vocab_size);
        let pad_id = fields.id("pad_token_id", pad, decoder_vocab_size)?;
        let ids = SpecialIds {
            eos_id: fields.id("eos_token_id", eos, both)?,
            pad_id,
            decoder_start_id: fields.id("decoder_start_token_id", start, decoder_vocab_size)?,
        };
        let table = fields.size("max_position_embeddings", 1024, MAX_WIDTH)?;
        if table * d_model > MAX_POSITION_VALUES {
            let expected = format!("at most {} for d_model {d_model}", MAX_POSITION_VALUES / d_model);
            return Err(fields.error("max_position_embeddings", expected));
        }
        let positions = match self.positions {
            Kind::Marian => PositionConfig::Marian,
            Kind::Learned => PositionConfig::Table { offset: 2 },
            Kind::Fairseq => PositionConfig::Fairseq { first: pad_id as usize + 1, pad_id },
        };
        let is_fairseq = matches!(positions, PositionConfig::Fairseq { .. });
        let name = match fields.get("activation_function") {
            None => self.activation,
            Some(value) => value.as_str().unwrap_or_default(),
        };
        let scales = fields.flag("scale_embedding", self.scales_embedding)?;
        Ok(ModelConfig {
            model_type: self.model_type,
            d_model,
            vocab_size,
            decoder_vocab_size,
            max_len: (!is_fairseq).then_some(table),
            encoder: self.stack(fields, "encoder", d_model)?,
            decoder: self.stack(fields, "decoder", d_model)?,
            activation: activation(name).ok_or_else(|| fields.error("activation_function", ACTIVATIONS))?,
            gated: false,
            norm: NormConfig { kind: NormKind::Layer, eps: LAYER_NORM_EPS, placement: self.placement },
            biases: true,
            embed_norm: self.embed_norm,
            embedding_scale: if scales { (d_model as f32).sqrt() } else { 1.0 },
            positions,
            relative: None,
            share_embeddings,
            // FSMT's flag says something else: its projection always is the decoder's table.
            tie_word_embeddings: self.model_type == "fsmt" || fields.flag("tie_word_embeddings", true)?,
            prefers_own_output: false,
            freezes_padding: true,
            output_bias: self.output_bias,
            output_scale: 1.0,
            ids,
            names: &names::BART,
            ignored: ignored_flags(fields)?,
        })
    }

    fn stack(&self, fields: &Fields<'_>, side: &str, d_model: usize) -> Result<StackConfig> {
        let [layers, heads, ffn_dim, _] = self.size;
        let heads_field = format!("{side}_attention_heads");
        let num_heads = fields.size(&heads_field, heads, MAX_WIDTH)?;
        if !d_model.is_multiple_of(num_heads) {
            return Err(fields.error(&heads_field, format!("a divisor of d_model {d_model}")));
        }
        Ok(StackConfig {
            layers: fields.size(&format!("{side}_layers"), layers, MAX_LAYERS)?,
            heads: Heads::new(num_heads, d_model / num_heads),
            ffn_dim: fields.size(&format!("{side}_ffn_dim"), ffn_dim, MAX_WIDTH)?,
        })
    }
}

/// What tells the families with T5's names apart.
struct T5Like {
    model_type: &'static str,
    vocab_size: u64,
    /// Layers, heads, inner width.
    size: [u64; 3],
    feed_forward: &'static str,
    ties_embeddings: bool,
    per_layer: bool,
}

impl T5Like {
    const T5: T5Like = T5Like {
        model_type: "t5",
        vocab_size: 32128,
        size: [6, 8, 2048],
        feed_forward: "relu",
        ties_embeddings: true,
        per_layer: false,
    };
    const MT5: T5Like = T5Like {
        model_type: "mt5",
        vocab_size: 250_112,
        size: [8, 6, 1024],
        feed_forward: "gated-gelu",
        ties_embeddings: false,
        per_layer: false,
    };
    const UMT5: T5Like = T5Like { model_type: "umt5", ties_embeddings: true, per_layer: true, ..Self::MT5 };

    fn read(&self, fields: &Fields<'_>) -> Result<ModelConfig> {
        let d_model = fields.size("d_model", 512, MAX_WIDTH)?;
        let vocab_size = fields.size("vocab_size", self.vocab_size, MAX_VOCAB)?;
        let [layers, heads, ffn_dim] = self.size;
        let encoder_layers = fields.size("num_layers", layers, MAX_LAYERS)?;
        let num_heads = fields.size("num_heads", heads, MAX_WIDTH)?;
        let head_dim = fields.size("d_kv", 64, MAX_WIDTH)?;
        let encoder = StackConfig {
            layers: encoder_layers,
            heads: Heads { num_heads, head_dim, scaled: false },
            ffn_dim: fields.size("d_ff", ffn_dim, MAX_WIDTH)?,
        };
        let decoder_layers = fields.size("num_decoder_layers", encoder_layers as u64, MAX_LAYERS)?;
        let (gated, activation) = self.feed_forward(fields)?;
        let pad_id = fields.id("pad_token_id", 0, vocab_size)?;
        let ids = SpecialIds {
            eos_id: fields.id("eos_token_id", 1, vocab_size)?,
            pad_id,
            decoder_start_id: fields.id("decoder_start_token_id", pad_id.into(), vocab_size)?,
        };
        // Files of transformers 5 say that embeddings are tied whether they are or not, and the truth here.
        let is_new = fields.get("scale_decoder_outputs").is_some();
        let truth = if is_new { "scale_decoder_outputs" } else { "tie_word_embeddings" };
        let is_tied = fields.flag(truth, self.ties_embeddings)?;
        Ok(ModelConfig {
            model_type: self.model_type,
            d_model,
            vocab_size,
            decoder_vocab_size: vocab_size,
            max_len: None,
            encoder,
            decoder: StackConfig { layers: decoder_layers, ..encoder },
            activation,
            gated,
            norm: NormConfig {
                kind: NormKind::Rms,
                eps: fields.positive("layer_norm_epsilon", 1e-6)?,
                placement: NormPlacement::Pre,
            },
            biases: false,
            embed_norm: false,
            embedding_scale: 1.0,
            positions: PositionConfig::None,
            relative: Some(self.relative(fields)?),
            share_embeddings: true,
            tie_word_embeddings: is_tied,
            prefers_own_output: is_new,
            freezes_padding: false,
            output_bias: false,
            output_scale: if is_tied { (d_model as f32).powf(-0.5) } else { 1.0 },
            ids,
            names: &names::T5,
            ignored: Vec::new(),
        })
    }

    /// `feed_forward_proj`: an activation, with `gated-` before it where it is gated. The other fields that name it are derived.
    fn feed_forward(&self, fields: &Fields<'_>) -> Result<(bool, Activation)> {
        let name = match fields.get("feed_forward_proj") {
            None => self.feed_forward,
            Some(value) => value.as_str().unwrap_or_default(),
        };
        // Of T5 1.1, whose files were written before this was called gelu_new.
        if name == "gated-gelu" {
            return Ok((true, Activation::GeluTanh));
        }
        let (gated, name) = name.strip_prefix("gated-").map_or((false, name), |name| (true, name));
        let expected = || fields.error("feed_forward_proj", format!("{ACTIVATIONS}, or gated- before one"));
        activation(name).map(|activation| (gated, activation)).ok_or_else(expected)
    }

    fn relative(&self, fields: &Fields<'_>) -> Result<RelativeConfig> {
        let count = fields.integer("relative_attention_num_buckets", Some(32), 4..=MAX_WIDTH)? as usize;
        // Each bucket up to here has a distance of its own; the others need more than that.
        let least = count as u64 / 2 + 1;
        let most = MAX_POSITION_VALUES as u64 / MAX_WIDTH;
        let max_distance = fields.integer("relative_attention_max_distance", Some(128), least..=most.max(least))?;
        Ok(RelativeConfig { buckets: count, max_distance: max_distance as usize, per_layer: self.per_layer })
    }
}
