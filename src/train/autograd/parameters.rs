//! The parameters of an autograd model: variables of candle, each made of one or more tensors of the checkpoint.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use super::model::{LinearLayer, Norm, Positions};
use super::real::zeros;
use crate::backend::NormKind;
use crate::cpu::philox::{Purpose, open_uniform, philox, uniform};
use crate::model::config::ModelConfig;
use crate::model::config::PositionConfig;
use crate::model::names::{Naming, Side};
use crate::model::positions::marian_sinusoids;
use crate::model::weights::{Tensors, Weights};
use crate::{Error, Result};

/// One variable: tensors of the checkpoint stacked along their first axis.
#[derive(Debug)]
pub struct Parameter {
    /// Name and shape of each tensor.
    parts: Vec<(String, Vec<usize>)>,
    var: Var,
    /// Values that stay as they are: the row of padding, from which the decoder starts.
    frozen: std::ops::Range<usize>,
    /// Whether weight decay applies: to matrices, not to biases and norms.
    decays: bool,
}

impl Parameter {
    /// The name of its first tensor in the checkpoint.
    pub fn name(&self) -> &str {
        &self.parts[0].0
    }

    /// Name and shape of each tensor of the checkpoint that it is made of.
    pub fn parts(&self) -> &[(String, Vec<usize>)] {
        &self.parts
    }

    /// Its values.
    pub fn tensor(&self) -> &Tensor {
        self.var.as_tensor()
    }

    /// The values that are not trained.
    pub fn frozen(&self) -> std::ops::Range<usize> {
        self.frozen.clone()
    }

    /// Whether weight decay applies.
    pub fn decays(&self) -> bool {
        self.decays
    }
}

/// All parameters, in an order that is the same for models of one architecture.
#[derive(Debug)]
pub struct Parameters {
    list: Vec<Parameter>,
    /// Tensors of the checkpoint that are not trained: name, shape and values.
    others: Vec<(String, Vec<usize>, Vec<f32>)>,
    dtype: DType,
}

/// The gradients of all parameters, in their order.
#[derive(Debug)]
pub struct Gradients(Vec<Tensor>);

impl Parameters {
    /// The parameters in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Parameter> {
        self.list.iter()
    }

    /// How many values all of them hold.
    pub fn values_count(&self) -> usize {
        self.iter().map(|parameter| parameter.tensor().elem_count()).sum()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Takes the parameters' gradients out of what `backward` gave.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a parameter that has none: the loss does not depend on it.
    pub fn gradients(&self, store: &mut GradStore) -> Result<Gradients> {
        let take = |parameter: &Parameter| match store.remove(parameter.tensor()) {
            Some(gradient) => gradient.contiguous().map_err(Error::autograd),
            None => Err(Error::Tensor {
                name: parameter.name().to_owned(),
                expected: "a gradient".into(),
                got: "none".into(),
            }),
        };
        Ok(Gradients(self.list.iter().map(take).collect::<Result<_>>()?))
    }

    /// The values of a parameter's variable.
    ///
    /// # Errors
    /// None for variables on the CPU.
    pub fn values(&self) -> Result<Vec<Vec<f32>>> {
        let values = |p: &Parameter| p.tensor().flatten_all()?.to_dtype(DType::F32)?.to_vec1();
        self.list.iter().map(values).collect::<Result<_, _>>().map_err(Error::autograd)
    }

    /// Replaces all values: one vector per parameter.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a vector of another length.
    pub fn set_values(&mut self, values: Vec<Vec<f32>>) -> Result<()> {
        for (parameter, values) in self.list.iter().zip(values) {
            let tensor = parameter.tensor();
            if values.len() != tensor.elem_count() {
                let (expected, got) = (format!("{} values", tensor.elem_count()), values.len().to_string());
                return Err(Error::Tensor { name: parameter.name().to_owned(), expected, got });
            }
            let new = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).and_then(|new| new.to_dtype(self.dtype));
            new.and_then(|new| parameter.var.set(&new)).map_err(Error::autograd)?;
        }
        Ok(())
    }

    /// Replaces all values by those of a model that has learnt nothing: matrices and tables drawn from a normal distribution of this
    /// standard deviation, gains 1, everything else 0, the row of padding too.
    ///
    /// # Errors
    /// As [`Parameters::set_values`].
    pub fn initialize(&mut self, seed: u64, deviation: f32) -> Result<()> {
        let fresh = |(number, parameter): (usize, &Parameter)| -> Vec<f32> {
            let gain = parameter.name().ends_with("norm.weight");
            let value = |i: usize| match parameter.decays && !parameter.frozen.contains(&i) {
                true => deviation * normal(philox(seed, [number as u32, i as u32, 0, (Purpose::Start as u32) << 28])),
                false => f32::from(u8::from(gain)),
            };
            (0..parameter.tensor().elem_count()).map(value).collect()
        };
        self.set_values(self.list.iter().enumerate().map(fresh).collect())
    }

    /// Replaces all values by tensors under their names in the checkpoint; others are passed over.
    ///
    /// # Errors
    /// [`Error::Tensor`] for one that is missing or has another shape.
    pub fn set_tensors(&mut self, tensors: &Tensors) -> Result<()> {
        let mut all = Vec::new();
        for parameter in &self.list {
            let mut values = Vec::new();
            for (name, shape) in &parameter.parts {
                let wrong =
                    |got: String| Error::Tensor { name: name.clone(), expected: format!("shape {shape:?}"), got };
                match tensors.get(name) {
                    Some((found, part)) if found == shape => values.extend_from_slice(part),
                    Some((found, _)) => return Err(wrong(format!("{found:?}"))),
                    None => return Err(wrong("no such tensor".into())),
                }
            }
            all.push(values);
        }
        self.set_values(all)
    }

    /// Every tensor of the checkpoint, by its name there: shape and values.
    ///
    /// # Errors
    /// As [`Parameters::values`].
    pub fn tensors(&self) -> Result<Tensors> {
        let mut all = Tensors::new();
        for (parameter, values) in self.list.iter().zip(self.values()?) {
            let mut rest = values.as_slice();
            for (name, shape) in &parameter.parts {
                let (values, after) = rest.split_at(shape.iter().product());
                all.insert(name.clone(), (shape.clone(), values.to_vec()));
                rest = after;
            }
        }
        all.extend(self.others.iter().map(|(name, shape, values)| (name.clone(), (shape.clone(), values.clone()))));
        Ok(all)
    }

    /// The same as weights in memory, from which a model can be loaded.
    ///
    /// # Errors
    /// As [`Parameters::values`].
    pub fn to_weights(&self) -> Result<Weights> {
        Ok(Weights::from_tensors(self.tensors()?))
    }
}

impl Gradients {
    /// The gradients in the parameters' order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.0.iter()
    }

    /// Adds further gradients.
    ///
    /// # Errors
    /// None for gradients of the same parameters.
    pub fn add(&mut self, other: &Gradients) -> Result<()> {
        for (sum, gradient) in self.0.iter_mut().zip(&other.0) {
            *sum = (&*sum + gradient).map_err(Error::autograd)?;
        }
        Ok(())
    }
}

/// A draw from the standard normal distribution (Box & Muller 1958).
fn normal([first, second, ..]: [u32; 4]) -> f32 {
    let radius = (-2.0 * f64::from(open_uniform(first)).ln()).sqrt();
    (radius * (std::f64::consts::TAU * f64::from(uniform(second))).cos()) as f32
}

/// Makes variables of a checkpoint's tensors.
pub(super) struct Loader<'a> {
    weights: &'a Weights,
    config: &'a ModelConfig,
    naming: Naming,
    dtype: DType,
    list: Vec<Parameter>,
}

impl<'a> Loader<'a> {
    pub fn new(weights: &'a Weights, config: &'a ModelConfig, dtype: DType) -> Self {
        Loader { weights, config, naming: config.names.of(weights), dtype, list: Vec::new() }
    }

    pub fn naming(&self) -> Naming {
        self.naming
    }

    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    fn constant(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu);
        tensor.and_then(|tensor| tensor.to_dtype(self.dtype)).map_err(Error::autograd)
    }

    /// A variable of tensors stacked along their first axis.
    fn variable(&mut self, names: Vec<String>, shape: &[usize], frozen: std::ops::Range<usize>) -> Result<Tensor> {
        let mut values = Vec::new();
        for name in &names {
            values.extend(self.weights.get(name, shape)?);
        }
        let mut stacked = shape.to_vec();
        stacked[0] *= names.len();
        let var = Var::from_tensor(&self.constant(values, &stacked)?).map_err(Error::autograd)?;
        let tensor = var.as_tensor().clone();
        let parts = names.into_iter().map(|name| (name, shape.to_vec())).collect();
        self.list.push(Parameter { parts, var, frozen, decays: shape.len() > 1 });
        Ok(tensor)
    }

    /// Linear layers over the same input as one.
    pub fn linear(
        &mut self,
        side: Side,
        layer: usize,
        names: &[&str],
        out: usize,
        inner: usize,
    ) -> Result<LinearLayer> {
        let naming = self.naming;
        let named = |kind: &str| -> Vec<String> {
            names.iter().map(|name| format!("{}.{kind}", naming.layer(side, layer, name))).collect()
        };
        let weight = self.variable(named("weight"), &[out, inner], 0..0)?;
        let bias = self.config.biases.then(|| self.variable(named("bias"), &[out], 0..0)).transpose()?;
        Ok(LinearLayer { weight, bias })
    }

    pub fn norm(&mut self, name: &str) -> Result<Norm> {
        let (width, norm) = (self.config.d_model, self.config.norm);
        let gain = self.variable(vec![format!("{name}.weight")], &[width], 0..0)?;
        let bias = match norm.kind {
            NormKind::Layer => Some(self.variable(vec![format!("{name}.bias")], &[width], 0..0)?),
            NormKind::Rms => None,
        };
        Ok(Norm { kind: norm.kind, gain, bias, eps: norm.eps })
    }

    /// A table with a row per token.
    fn table(&mut self, name: String, size: usize) -> Result<Tensor> {
        let width = self.config.d_model;
        let pad = self.config.ids.pad_id as usize;
        let is_frozen = self.config.freezes_padding && pad < size;
        let frozen = if is_frozen { pad * width..(pad + 1) * width } else { 0..0 };
        self.variable(vec![name], &[size, width], frozen)
    }

    /// Both sides' embeddings, and the vocabulary projection's weights.
    pub fn tables(&mut self) -> Result<[Tensor; 3]> {
        let (config, naming, weights) = (self.config, self.naming, self.weights);
        let own_output = naming.own_output(weights, config);
        let name = |side| naming.tokens(weights, side, config.share_embeddings, own_output.is_none());
        let source = self.table(name(Side::Encoder), config.vocab_size)?;
        let target = match config.share_embeddings {
            true => source.clone(),
            false => self.table(name(Side::Decoder), config.decoder_vocab_size)?,
        };
        let output = match own_output {
            None => target.clone(),
            Some(name) => self.table(name.to_owned(), config.decoder_vocab_size)?,
        };
        Ok([source, target, output])
    }

    /// The projection's bias, which is not trained, as in transformers.
    pub fn output_bias(&self) -> Result<Option<Tensor>> {
        let (name, size) = (self.naming.names().output_bias, self.config.decoder_vocab_size);
        match self.weights.contains(name) {
            _ if !self.config.output_bias => Ok(None),
            true => self.constant(self.weights.get(name, &[1, size])?, &[size]).map(Some),
            false => zeros(&[size], self.dtype).map(Some).map_err(Error::autograd),
        }
    }

    /// What is added to a side's token embeddings. A learned table is trained; Marian's is not, be it from the checkpoint or computed.
    pub fn positions(&mut self, side: Side) -> Result<Positions> {
        let (name, width) = (self.naming.positions(side), self.config.d_model);
        let len = self.config.longest();
        match self.config.positions {
            PositionConfig::None => Ok(Positions::None),
            PositionConfig::Fairseq { first, pad_id } => Ok(Positions::Fairseq { first, pad_id }),
            PositionConfig::Table { offset } => {
                let table = self.variable(vec![name], &[len + offset, width], 0..0)?;
                Ok(Positions::Learned { table, offset })
            }
            PositionConfig::Marian => {
                let values = match self.weights.contains(&name) {
                    true => self.weights.get(&name, &[len, width])?,
                    false => marian_sinusoids(len, width),
                };
                self.constant(values, &[len, width]).map(Positions::Constant)
            }
        }
    }

    /// The tables that self-attention's biases by distance come from.
    pub fn relative(&mut self, side: Side, layers: usize, num_heads: usize) -> Result<Vec<Tensor>> {
        let Some(relative) = self.config.relative else { return Ok(Vec::new()) };
        let layers = if relative.per_layer { layers } else { 1 };
        let naming = self.naming;
        (0..layers)
            .map(|layer| self.variable(vec![naming.relative(side, layer)], &[relative.buckets, num_heads], 0..0))
            .collect()
    }

    /// The parameters; the checkpoint's tensors that are not trained are kept beside them, but for copies of those that are.
    pub fn finish(self) -> Result<Parameters> {
        let trained = |name: &str| self.list.iter().any(|p| p.parts.iter().any(|(part, _)| part == name));
        let constant =
            |name: &str| name == "final_logits_bias" || (name.ends_with("embed_positions.weight") && !trained(name));
        let mut others = Vec::new();
        for (name, shape) in self.weights.tensors().filter(|(name, _)| constant(name)) {
            others.push((name.to_owned(), shape.to_vec(), self.weights.get(name, shape)?));
        }
        Ok(Parameters { list: self.list, others, dtype: self.dtype })
    }
}
