//! The parameters of an autograd model: variables of candle, each made of one or more tensors of the checkpoint.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use super::model::{LinearLayer, Norm};
use super::real::zeros;
use crate::cpu::philox::{Purpose, open_uniform, philox, uniform};
use crate::model::config::ModelConfig;
use crate::model::sinusoidal_positions;
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
    dtype: DType,
    list: Vec<Parameter>,
}

impl<'a> Loader<'a> {
    pub fn new(weights: &'a Weights, config: &'a ModelConfig, dtype: DType) -> Self {
        Loader { weights, config, dtype, list: Vec::new() }
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

    pub fn linear(&mut self, prefix: &str, names: &[&str], out: usize, inner: usize) -> Result<LinearLayer> {
        let named = |kind: &str| names.iter().map(|name| format!("{prefix}.{name}.{kind}")).collect();
        Ok(LinearLayer {
            weight: self.variable(named("weight"), &[out, inner], 0..0)?,
            bias: self.variable(named("bias"), &[out], 0..0)?,
        })
    }

    pub fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        Ok(Norm {
            gain: self.variable(vec![format!("{name}.weight")], &[width], 0..0)?,
            bias: self.variable(vec![format!("{name}.bias")], &[width], 0..0)?,
        })
    }

    /// A table with a row per token.
    pub fn table(&mut self, name: &str, size: usize) -> Result<Tensor> {
        let width = self.config.d_model;
        let pad = self.config.ids.pad_id as usize;
        let frozen = if pad < size { pad * width..(pad + 1) * width } else { 0..0 };
        self.variable(vec![name.to_owned()], &[size, width], frozen)
    }

    pub fn source_table(&mut self) -> Result<Tensor> {
        self.table(&crate::model::source_table(self.weights, self.config), self.config.vocab_size)
    }

    /// `final_logits_bias`, which is not trained, as in transformers.
    pub fn output_bias(&self) -> Result<Tensor> {
        let size = self.config.decoder_vocab_size;
        match self.weights.contains("final_logits_bias") {
            true => self.constant(self.weights.get("final_logits_bias", &[1, size])?, &[size]),
            false => zeros(&[size], self.dtype).map_err(Error::autograd),
        }
    }

    /// The position table: from the checkpoint, else computed; not trained.
    pub fn positions(&self, side: &str) -> Result<Tensor> {
        let name = &format!("model.{side}.embed_positions.weight");
        let (len, width) = (self.config.max_position_embeddings, self.config.d_model);
        let values = match self.weights.contains(name) {
            true => self.weights.get(name, &[len, width])?,
            false => sinusoidal_positions(len, width),
        };
        self.constant(values, &[len, width])
    }

    /// The parameters; the checkpoint's tensors that are not trained are kept beside them, but for copies of those that are.
    pub fn finish(self) -> Result<Parameters> {
        let constant = |name: &str| name == "final_logits_bias" || name.ends_with(".embed_positions.weight");
        let mut others = Vec::new();
        for (name, shape) in self.weights.tensors().filter(|(name, _)| constant(name)) {
            others.push((name.to_owned(), shape.to_vec(), self.weights.get(name, shape)?));
        }
        Ok(Parameters { list: self.list, others, dtype: self.dtype })
    }
}
