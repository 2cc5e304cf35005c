//! Files that are whole or not there: the state of a run, and the model directory that it makes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::room;
use crate::files::{MAX_CONFIG, MAX_VOCABULARY, io, read_bounded, write_whole};
use crate::model::weights::{Tensors, Weights};
use crate::train::autograd::Parameters;
use crate::train::optimizer::AdamW;
use crate::{Error, Result, read};

/// A tensor, and the type that it is written in.
struct Written {
    shape: Vec<usize>,
    values: Vec<f32>,
    dtype: Dtype,
}

impl View for Written {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        let values = self.values.iter();
        match self.dtype {
            Dtype::F16 => values.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect::<Vec<u8>>().into(),
            Dtype::BF16 => values.flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect::<Vec<u8>>().into(),
            _ => values.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
        }
    }

    fn data_len(&self) -> usize {
        self.values.len() * if self.dtype == Dtype::F32 { 4 } else { 2 }
    }
}

fn serialize(path: &Path, tensors: Tensors, dtype: Dtype, metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    let invalid = |source| Error::Safetensors { path: path.to_path_buf(), source };
    let tensors = tensors.into_iter().map(|(name, (shape, values))| (name, Written { shape, values, dtype }));
    safetensors::serialize(tensors, Some(metadata)).map_err(invalid)
}

/// The files of a model directory, besides weights and configuration, that a copy needs.
const COMPANIONS: [&str; 13] = [
    "generation_config.json",
    "source.spm",
    "target.spm",
    "vocab.json",
    "source_vocab.json",
    "target_vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// Writes a model directory: configuration and tokenizer of the directory `from`, and the weights in the type of those there, f32, f16
/// or bf16.
///
/// # Errors
/// [`Error::Io`], [`Error::OutOfMemory`], what may be wrong with `from`, and [`Error::Tensor`] for weights that this type does not hold.
pub fn write_model(from: &Path, to: &Path, tensors: Tensors) -> Result<()> {
    std::fs::create_dir_all(to).map_err(io("create", to))?;
    let mut config: serde_json::Map<String, Value> = read::json(&from.join("config.json"))?;
    let (dtype, named, most) = match Weights::open(from)?.dtype().as_str() {
        "F16" => (Dtype::F16, "float16", f32::from(f16::MAX)),
        "BF16" => (Dtype::BF16, "bfloat16", f32::from(bf16::MAX)),
        _ => (Dtype::F32, "float32", f32::MAX),
    };
    if let Some((name, _)) = tensors.iter().find(|(_, (_, values))| values.iter().any(|value| value.abs() > most)) {
        let (expected, got) = (format!("values up to {most}, as {named} holds them"), "larger ones".to_owned());
        return Err(Error::Tensor { name: name.clone(), expected, got });
    }
    // The name of the field has changed over time; either says what the file holds.
    for field in ["dtype", "torch_dtype"] {
        if config.contains_key(field) {
            config.insert(field.into(), Value::from(named));
        }
    }
    let text =
        serde_json::to_vec_pretty(&config).map_err(|source| Error::Json { path: from.join("config.json"), source })?;
    for name in COMPANIONS {
        let source = from.join(name);
        if source.exists() {
            write_whole(&to.join(name), &read_bounded(&source, MAX_VOCABULARY)?)?;
        }
    }
    write_whole(&to.join("config.json"), &text)?;
    let path = to.join("model.safetensors");
    room::require("write the model", tensors.values().map(|(_, values)| size_of_val(&values[..])).sum())?;
    // transformers asks for this entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_whole(&path, &serialize(&path, tensors, dtype, metadata)?)
}

/// The files that [`write_model`] may write.
pub fn model_files(to: &Path) -> impl Iterator<Item = PathBuf> {
    COMPANIONS.into_iter().chain(["config.json", "model.safetensors"]).map(|name| to.join(name))
}

/// How far a run has come, besides its parameters and moments.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Progress {
    /// Updates done.
    pub update: u32,
    /// The epoch under way.
    pub epoch: u32,
    /// Batches of it that have been used.
    pub batch: usize,
    /// The best validation score so far, and the update that reached it.
    pub best: Option<(f64, u32)>,
    /// Validations since then.
    pub worse: u32,
    /// Bytes of the log that tell of the updates done.
    pub logged: u64,
    /// What the run was started with: a resumed run must say the same.
    pub fingerprint: BTreeMap<String, String>,
}

/// The state of a run: everything that its continuation depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// How far it has come.
    pub progress: Progress,
    /// The parameters, then what else the objective keeps, by name.
    pub tensors: Tensors,
    /// The optimiser's updates and moments.
    pub moments: Vec<[Vec<f32>; 2]>,
}

/// The entry of the file's metadata that says what it is and how far the run has come.
const ENTRY: &str = "beamfuse_training";

impl State {
    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::OutOfMemory`].
    pub fn write(&self, path: &Path, parameters: &Parameters) -> Result<()> {
        // Each value and its moments, copied and then as bytes.
        room::require("write the state", 2 * 3 * 4 * parameters.values_count())?;
        let mut tensors: Tensors = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            tensors.insert(format!("value.{name}"), tensor.clone());
        }
        for (parameter, [mean, square]) in parameters.iter().zip(&self.moments) {
            tensors.insert(format!("mean.{}", parameter.name()), (vec![mean.len()], mean.clone()));
            tensors.insert(format!("square.{}", parameter.name()), (vec![square.len()], square.clone()));
        }
        let progress =
            serde_json::to_string(&self.progress).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
        // One entry: several would stand in another order each time.
        let metadata = HashMap::from([(ENTRY.to_owned(), progress)]);
        write_whole(path, &serialize(path, tensors, Dtype::F32, metadata)?)
    }

    /// Reads the state of a run over these parameters.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Safetensors`], [`Error::Config`] or [`Error::Tensor`] for a file that is not the state of a
    /// run over such a model.
    pub fn read(path: &Path, parameters: &Parameters) -> Result<Self> {
        // Parameters, two moments, and what the objective keeps, which is at most a copy of the parameters.
        let bytes = read_bounded(path, MAX_CONFIG + 4 * (parameters.values_count() * size_of::<f32>()) as u64)?;
        let invalid = |source| Error::Safetensors { path: path.to_path_buf(), source };
        let view = SafeTensors::deserialize(&bytes).map_err(invalid)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(invalid)?;
        let wrong = |field: &str, expected: &str, got: String| Error::Config {
            path: path.to_path_buf(),
            field: field.into(),
            expected: expected.into(),
            got,
        };
        let entries = header.metadata().clone().unwrap_or_default();
        let Some(progress) = entries.get(ENTRY) else {
            return Err(wrong(ENTRY, "the state of a training run", "no such entry".into()));
        };
        let progress: Progress =
            serde_json::from_str(progress).map_err(|error| wrong(ENTRY, "a run's progress", error.to_string()))?;
        let mut tensors = Tensors::new();
        let mut read: HashMap<String, Vec<f32>> = HashMap::new();
        for (name, tensor) in view.iter() {
            if tensor.dtype() != Dtype::F32 {
                return Err(wrong(name, "values in F32", format!("{:?}", tensor.dtype())));
            }
            let values = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            match name.strip_prefix("value.") {
                Some(name) => drop(tensors.insert(name.to_owned(), (tensor.shape().to_vec(), values))),
                None => drop(read.insert(name.to_owned(), values)),
            }
        }
        let mut moment = |kind: &str, name: &str, size: usize| {
            let key = format!("{kind}.{name}");
            let values = read.remove(&key).unwrap_or_default();
            match values.len() == size {
                true => Ok(values),
                false => Err(wrong(&key, &format!("{size} values, as this model has"), values.len().to_string())),
            }
        };
        let mut moments = Vec::new();
        for parameter in parameters.iter() {
            let (name, size) = (parameter.name(), parameter.tensor().elem_count());
            moments.push([moment("mean", name, size)?, moment("square", name, size)?]);
        }
        Ok(State { progress, tensors, moments })
    }

    /// The optimiser as it was.
    pub fn restore(&mut self, optimizer: &mut AdamW) {
        optimizer.step = self.progress.update;
        optimizer.moments = std::mem::take(&mut self.moments);
    }
}

/// Compares what a run was started with to what its continuation is started with.
///
/// # Errors
/// [`Error::Input`] names the first difference.
pub fn check_fingerprint(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Result<()> {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    for name in names {
        let value = |of: &BTreeMap<String, String>| of.get(name).cloned().unwrap_or_else(|| "nothing".into());
        let (then, now) = (value(before), value(now));
        if then != now {
            let expected = format!("{name} {then}, as the run was started with");
            return Err(Error::Input { operation: "resume training", expected, got: now });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_keeps_the_type_of_the_one_it_comes_from() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de");
        let to = tempfile::tempdir().expect("a directory");
        let tensors = |value: f32| Tensors::from([("x".to_owned(), (vec![2], vec![0.1, value]))]);
        write_model(&from, to.path(), tensors(2.5)).expect("written");
        let weights = Weights::open(to.path()).expect("a checkpoint");
        assert_eq!(weights.dtype(), Weights::open(&from).expect("a checkpoint").dtype());
        assert_eq!(weights.dtype(), "F16");
        let bytes = std::fs::read(to.path().join("model.safetensors")).expect("written");
        let values =
            SafeTensors::deserialize(&bytes).expect("a checkpoint").tensor("x").expect("a tensor").data().to_vec();
        assert_eq!(values, [f16::from_f32(0.1).to_le_bytes(), f16::from_f32(2.5).to_le_bytes()].concat());
        let error = write_model(&from, to.path(), tensors(1e5)).map_err(|error| error.to_string());
        assert_eq!(
            error.err().as_deref(),
            Some("load tensor x: expected values up to 65504, as float16 holds them, got larger ones")
        );
    }
}
