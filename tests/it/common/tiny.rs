//! A tiny valid model directory, to be broken by tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use serde_json::{Map, Value, json};

pub const D_MODEL: usize = 8;
const FFN: usize = 12;
const POSITIONS: usize = 16;
pub const VOCAB: usize = 8001;

/// A tensor as a safetensors file holds it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A model directory that vanishes with this.
pub struct Tiny {
    dir: tempfile::TempDir,
    pub config: Map<String, Value>,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Tiny {
    /// A directory with every file valid: the demo's tokenizer, random weights that are the same each time.
    pub fn new() -> Self {
        Self::deep(1, "relu")
    }

    /// As [`Tiny::new`], with so many layers on either side, and this activation.
    pub fn deep(layers: usize, activation: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["source.spm", "target.spm", "vocab.json", "tokenizer_config.json", "generation_config.json"] {
            std::fs::copy(crate::common::demo_model().join(name), dir.path().join(name)).expect("a copy");
        }
        let Value::Object(config) = json!({
            "model_type": "marian", "d_model": D_MODEL, "vocab_size": VOCAB, "max_position_embeddings": POSITIONS,
            "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "activation_function": activation, "scale_embedding": true,
            "pad_token_id": VOCAB - 1, "eos_token_id": 0, "decoder_start_token_id": VOCAB - 1
        }) else {
            unreachable!("that is an object")
        };
        let tiny = Tiny { dir, config, tensors: tensors(layers) };
        tiny.write_config();
        tiny.write_weights();
        tiny
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write_config(&self) {
        std::fs::write(self.path("config.json"), Value::Object(self.config.clone()).to_string()).expect("written");
    }

    pub fn weights(&self) -> Vec<u8> {
        safetensors::serialize(self.tensors.clone(), None).expect("the tensors are consistent")
    }

    pub fn write_weights(&self) {
        std::fs::write(self.path("model.safetensors"), self.weights()).expect("written");
    }
}

fn tensors(layers: usize) -> BTreeMap<String, Tensor> {
    let mut state = 1u32;
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let mut random = || {
            // A linear congruential generator (Numerical Recipes): any values do, as long as they stay the same.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random()).collect();
        tensors.insert(name, Tensor::f32(shape, &values));
    };
    let linear = |add: &mut dyn FnMut(String, &[usize]), name: String, out: usize, inner: usize| {
        add(format!("{name}.weight"), &[out, inner]);
        add(format!("{name}.bias"), &[out]);
    };
    let sides = [("encoder", &["self_attn"][..]), ("decoder", &["self_attn", "encoder_attn"])];
    for (layer, (side, attentions)) in (0..layers).flat_map(|layer| sides.map(|side| (layer, side))) {
        let layer = format!("model.{side}.layers.{layer}");
        for attention in attentions {
            for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(&mut add, format!("{layer}.{attention}.{part}"), D_MODEL, D_MODEL);
            }
        }
        linear(&mut add, format!("{layer}.fc1"), FFN, D_MODEL);
        linear(&mut add, format!("{layer}.fc2"), D_MODEL, FFN);
        let norms = attentions.iter().map(|name| format!("{layer}.{name}_layer_norm"));
        for norm in norms.chain([format!("{layer}.final_layer_norm")]) {
            add(format!("{norm}.weight"), &[D_MODEL]);
            add(format!("{norm}.bias"), &[D_MODEL]);
        }
    }
    add("model.shared.weight".into(), &[VOCAB, D_MODEL]);
    add("final_logits_bias".into(), &[1, VOCAB]);
    tensors
}
