//! Which model directory to open, and the options that say so.

use std::path::{Path, PathBuf};

use crate::cli::complain;
use crate::cli::progress::Download;
use crate::hub::{Hub, ModelId};
use crate::translator::EngineOptions;
use crate::{Device, Dtype, Error, Result, Translator};

/// Which model.
#[derive(Debug, clap::Args)]
pub(super) struct ModelName {
    /// Model directory in Hugging Face form, or a hub id owner/name[@REVISION], downloaded once [default: the demo model,
    /// English to German].
    ///
    /// A directory of that name wins over an id. The environment variables of the hub's other tools hold: HF_HOME and HF_HUB_CACHE
    /// (where downloads are kept), HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE=1.
    #[arg(long, value_name = "DIR|ID")]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a model from the hub [default: main].
    #[arg(long, value_name = "REVISION", requires = "model")]
    pub revision: Option<String>,
}

/// Which model, and how it runs.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArguments {
    #[command(flatten)]
    pub name: ModelName,
    /// Where to compute: cpu, cuda or cuda:N for a GPU, auto for the first GPU if it can be used and else the CPU, or emulated,
    /// which runs the GPU's code on the CPU, slowly, to check it.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,
    /// Threads that compute on the CPU [default: one per core].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Sessions side by side on the CPU, each with its share of the threads and of the batch [default: one per thread].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub workers: usize,
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

impl DtypeName {
    pub(super) fn dtype(self) -> Dtype {
        match self {
            DtypeName::F32 => Dtype::F32,
            DtypeName::F16 => Dtype::F16,
            DtypeName::Bf16 => Dtype::Bf16,
            DtypeName::I8 => Dtype::I8,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            DtypeName::F32 => "f32",
            DtypeName::F16 => "f16",
            DtypeName::Bf16 => "bf16",
            DtypeName::I8 => "i8",
        }
    }
}

impl ModelArguments {
    pub(super) fn open(&self) -> Result<Translator> {
        let dtype = self.dtype.dtype();
        let (threads, workers, slots) = (self.threads, self.workers, self.batch_size);
        let options = EngineOptions { device: self.device, threads, workers, slots, dtype };
        let translator = Translator::open_with(self.name.resolve()?, &options)?;
        let choice = translator.device();
        if let Some(reason) = &choice.reason {
            complain(&format!("device {} chose {}: {reason}", self.device, choice.device));
        }
        for flag in &translator.config().ignored {
            complain(&format!("config.json: {flag} is ignored, as transformers does for this model type"));
        }
        Ok(translator)
    }
}

/// The demo model's directory within a `models` directory.
const DEMO: &str = "m30k-en-de";

impl ModelName {
    /// The directory that was named, downloaded if it is a hub id, else the demo model's.
    pub(super) fn resolve(&self) -> Result<PathBuf> {
        let Some(name) = &self.model else { return demo() };
        if !name.is_dir() {
            return fetch(&name.to_string_lossy(), self.revision.as_deref());
        }
        match &self.revision {
            None => Ok(name.clone()),
            Some(_) => Err(Error::Option {
                option: "revision",
                expected: "a hub id as the model".into(),
                got: format!("the directory {}", name.display()),
            }),
        }
    }
}

fn fetch(name: &str, revision: Option<&str>) -> Result<PathBuf> {
    let id = ModelId::parse(name)?;
    let id = match revision {
        None => id,
        Some(revision) if !name.contains('@') => id.at(revision)?,
        Some(revision) => {
            let expected = "one revision".into();
            return Err(Error::Option { option: "revision", expected, got: format!("{revision} and {name}") });
        }
    };
    Hub::from_env()?.fetch(&id, &mut Download::new())
}

fn demo() -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let source_tree = Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf();
    let places = beside.into_iter().chain([PathBuf::from("."), source_tree]);
    let searched: Vec<PathBuf> = places.map(|place| place.join("models").join(DEMO)).collect();
    let found = searched.iter().find(|dir| dir.join("config.json").exists()).cloned();
    found.ok_or(Error::NoModel { searched })
}
