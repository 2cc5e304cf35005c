//! Which model directory to open, and the options that say so.

use std::path::{Path, PathBuf};

use crate::translator::EngineOptions;
use crate::{Device, Dtype, Error, Result, Translator};

/// Where the model lies and how it runs.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArguments {
    /// Model directory in Hugging Face form [default: the demo model, English to German].
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Where to compute: cpu, cuda or cuda:N for a GPU, auto for the first GPU if it can be used and else the CPU, or emulated,
    /// which runs the GPU's code on the CPU, slowly, to check it.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,
    /// Threads that compute on the CPU [default: one per core].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Element type of the weights. The CPU takes f32 and i8, a GPU f32, f16 and bf16; the smaller ones are faster and cost a little
    /// quality.
    #[arg(long, value_enum, default_value_t = DtypeName::F32)]
    pub dtype: DtypeName,
    /// Sentences decoded at once; changes speed and memory, never a result.
    #[arg(long, value_name = "SLOTS", default_value_t = EngineOptions::default().slots)]
    pub batch_size: usize,
}

/// Element types by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DtypeName {
    F32,
    F16,
    Bf16,
    I8,
}

impl ModelArguments {
    pub(super) fn open(&self) -> Result<Translator> {
        let dtype = match self.dtype {
            DtypeName::F32 => Dtype::F32,
            DtypeName::F16 => Dtype::F16,
            DtypeName::Bf16 => Dtype::Bf16,
            DtypeName::I8 => Dtype::I8,
        };
        let options = EngineOptions { device: self.device, threads: self.threads, slots: self.batch_size, dtype };
        let translator = Translator::open_with(resolve(self.model.as_deref())?, &options)?;
        let choice = translator.device();
        if let Some(reason) = &choice.reason {
            eprintln!("beamfuse: device {} chose {}: {reason}", self.device, choice.device);
        }
        for flag in &translator.config().ignored {
            eprintln!("beamfuse: config.json: {flag} is ignored, as transformers does for this model type");
        }
        Ok(translator)
    }
}

/// The demo model's directory within a `models` directory.
const DEMO: &str = "m30k-en-de";

/// The directory that was named, else the demo model's.
pub(super) fn resolve(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = named {
        return Ok(dir.to_path_buf());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let source_tree = Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf();
    let places = beside.into_iter().chain([PathBuf::from("."), source_tree]);
    let searched: Vec<PathBuf> = places.map(|place| place.join("models").join(DEMO)).collect();
    let found = searched.iter().find(|dir| dir.join("config.json").exists()).cloned();
    found.ok_or(Error::NoModel { searched })
}
