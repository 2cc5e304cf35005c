//! Which model directory to open, and the options that say so.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::cli::counts::count;
#[cfg(feature = "hub")]
use crate::cli::progress::Download;
use crate::cli::values::reader;
use crate::cli::{claims, detail, note};
use crate::counts;
use crate::cpu::chosen_path;
#[cfg(feature = "hub")]
use crate::hub::{self, Hub, ModelId};
use crate::text::SentenceDefaults;
use crate::translator::{EngineOptions, PackUse};
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

/// What sentences have that bring none of their own.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct LanguageArguments {
    /// What stands in front of every source that brings no field source_prefix, as it is: the task of a T5 model, as in
    /// "summarize: ". Without it --source-lang and --target-lang name the task, where the model has one for them: see "beamfuse info".
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
    /// The language of sources that bring no field source_lang, as the model calls it: see "beamfuse info".
    #[arg(long, value_name = "CODE")]
    pub source_lang: Option<String>,
    /// The language of translations of sources that bring no field target_lang.
    #[arg(long, value_name = "CODE")]
    pub target_lang: Option<String>,
}

impl LanguageArguments {
    pub(super) fn defaults(&self) -> SentenceDefaults {
        let LanguageArguments { prefix, source_lang, target_lang } = self.clone();
        SentenceDefaults { source_prefix: prefix, source_lang, target_lang }
    }

    /// All of them by name, as a job's identity has them.
    pub(super) fn identity(&self) -> [(&'static str, Value); 3] {
        let LanguageArguments { prefix, source_lang, target_lang } = self.clone();
        [("prefix", prefix.into()), ("source_lang", source_lang.into()), ("target_lang", target_lang.into())]
    }
}

/// Which model, how it runs, and in which languages.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArguments {
    #[command(flatten)]
    pub name: ModelName,
    #[command(flatten)]
    pub languages: LanguageArguments,
    #[command(flatten)]
    pub engine: EngineArguments,
}

/// How a model runs.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArguments {
    /// Where to compute: cpu, cuda or cuda:N for a GPU, cuda:0,1 or cuda:all for several with a copy of the model each, auto for the first GPU if it can be used and else the CPU, or emulated,
    /// which runs the GPU's code on the CPU, slowly, to check it.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu, value_parser = reader(str::parse::<Device>))]
    pub device: Device,
    /// Threads that compute on the CPU [default: one per core].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = count(counts::THREADS))]
    pub threads: usize,
    /// Sessions side by side on the CPU, each with its share of the threads and of the batch [default: one per thread].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = count(counts::THREADS))]
    pub workers: usize,
    /// Element type of the weights. The CPU takes f32, bf16 and i8, a GPU f16, too; the smaller ones cost a little quality, and on the CPU are
    /// faster.
    #[arg(long, value_enum, default_value_t = DtypeName::F32)]
    pub dtype: DtypeName,
    /// Keep the weights as the CPU takes them in i8 or bf16 in a file of this directory, which may be the model's own, and read them from
    /// there the next time: a large model opens many times faster. A file that is damaged, or of weights that have changed since, is
    /// written anew.
    #[arg(long, value_name = "DIR")]
    pub pack_cache: Option<PathBuf>,
    /// Sentences decoded at once; changes speed and memory, never a result.
    #[arg(long, value_name = "SLOTS", default_value_t = EngineOptions::default().slots, value_parser = count(counts::SLOTS))]
    pub batch_size: usize,
    /// Memory that the model and the search may take, as in 512M or 4G; fewer sentences are decoded at once where not all fit
    /// [default: what is free on a GPU, no limit on the CPU].
    #[arg(long, value_name = "BYTES", value_parser = reader(parse_bytes))]
    pub memory_budget: Option<u64>,
}

/// Bytes, as in 512M or 4G: a number, K, M and G for powers of 1024.
pub(super) fn parse_bytes(text: &str) -> Result<u64> {
    let refuse = || {
        let expected = "a number of bytes above 0, with K, M or G for powers of 1024, as in 512M".into();
        Error::Option { option: "memory-budget", expected, got: text.to_string() }
    };
    let (digits, shift) = match text.char_indices().last().ok_or_else(refuse)? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(refuse)
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

impl EngineArguments {
    pub(super) fn options(&self) -> EngineOptions {
        EngineOptions {
            device: self.device,
            threads: self.threads,
            workers: self.workers,
            slots: self.batch_size,
            memory_budget: self.memory_budget,
            dtype: self.dtype.dtype(),
            pack_cache: self.pack_cache.clone(),
            ..EngineOptions::default()
        }
    }
}

impl ModelArguments {
    pub(super) fn open(&self) -> Result<Translator> {
        self.open_with(|options| options)
    }

    /// Opens the model with what `change` makes of the engine's options.
    pub(super) fn open_with(&self, change: impl FnOnce(EngineOptions) -> EngineOptions) -> Result<Translator> {
        let options = change(EngineOptions { defaults: self.languages.defaults(), ..self.engine.options() });
        let start = Instant::now();
        let translator = self.name.open(|dir| Translator::open_with(dir, &options))?;
        let choice = translator.device();
        let (seconds, dtype) = (start.elapsed().as_secs_f64(), self.engine.dtype.name());
        detail(&format!(
            "opened the model in {seconds:.2} s: device {}, {dtype}, {} slots",
            choice.device, options.slots
        ));
        if choice.device == Device::Cpu {
            detail(&format!("the CPU computes with {}", chosen_path()?.name()));
        }
        for PackUse { read, written, warning } in translator.packs() {
            read.iter().for_each(|path| detail(&format!("read the weights from {}", path.display())));
            written.iter().for_each(|path| detail(&format!("wrote the weights to {}", path.display())));
            warning.iter().for_each(|warning| note(warning));
        }
        if let Some(reason) = &choice.reason {
            note(&format!("device {} chose {}: {reason}", self.engine.device, choice.device));
        }
        for flag in &translator.config().ignored {
            note(&format!("config.json: {flag} is ignored, as transformers does for this model type"));
        }
        Ok(translator)
    }
}

/// The demo model's directory within a `models` directory.
const DEMO: &str = "m30k-en-de";

impl ModelName {
    /// The directory that was named, downloaded if it is a hub id, else the demo model's.
    ///
    /// No file that the command writes lies in it.
    pub(super) fn resolve(&self) -> Result<PathBuf> {
        let dir = self.find()?;
        claims::check_model(&dir)?;
        Ok(dir)
    }

    /// Opens the model by what `open` does with its directory. If that fails because files of the cache are damaged, they are fetched
    /// again.
    pub(super) fn open<T>(&self, open: impl Fn(&Path) -> Result<T>) -> Result<T> {
        let dir = self.resolve()?;
        open(&dir).or_else(|error| {
            self.mend(&dir, error)?;
            open(&self.resolve()?)
        })
    }

    /// Removes damaged files of a model from the hub, so that they are fetched again; gives back the error if there are none.
    #[cfg(feature = "hub")]
    fn mend(&self, dir: &Path, error: Error) -> Result<()> {
        let Some(name) = self.model.as_ref().filter(|name| !name.is_dir()) else { return Err(error) };
        let damaged = hub::damaged(dir);
        let Some(first) = damaged.first() else { return Err(error) };
        if Hub::from_env()?.offline {
            return Err(Error::Hub {
                id: name.display().to_string(),
                file: String::new(),
                expected: "the contents that a file's checksum names".into(),
                got: format!(
                    "others in {}: delete it, and fetch it again",
                    first.canonicalize().unwrap_or(first.clone()).display()
                ),
            });
        }
        for blob in &damaged {
            note(&format!("{} is damaged: fetching it again", blob.display()));
            std::fs::remove_file(blob).map_err(crate::files::io("remove", blob))?;
        }
        Ok(())
    }

    #[cfg(not(feature = "hub"))]
    fn mend(&self, _: &Path, error: Error) -> Result<()> {
        Err(error)
    }

    fn find(&self) -> Result<PathBuf> {
        let Some(name) = &self.model else { return demo() };
        if !name.is_dir() {
            let revision = self.revision.as_deref();
            refuse_path(name, revision.is_some())?;
            return fetch(&name.to_string_lossy(), revision).inspect_err(|_| {
                note(&format!("there is no directory {}, so it was taken for a model of the hub", name.display()));
            });
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

/// Refuses what is a path and no hub id: a file, and a name that stands in a directory of this machine or can be no id. One with a
/// revision is an id.
fn refuse_path(name: &Path, has_revision: bool) -> Result<()> {
    let text = name.to_string_lossy();
    let wrong = |expected: &str, got: String| Err(Error::Option { option: "model", expected: expected.into(), got });
    if name.exists() {
        return wrong("a directory", format!("the file {text}"));
    }
    if has_revision || text.contains('@') {
        return Ok(());
    }
    let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent {
        Some(parent) if parent.is_dir() => {
            let got = format!(
                "{text}: no such directory in {} (for a hub id of that name write {text}@main)",
                parent.display()
            );
            wrong("an existing directory or a hub id owner/name", got)
        }
        _ if text.matches('/').count() != 1 || text.starts_with(['.', '~']) => {
            wrong("an existing directory or a hub id owner/name", format!("{text}: no such directory"))
        }
        _ => Ok(()),
    }
}

/// Without the hub only directories are models.
#[cfg(not(feature = "hub"))]
fn fetch(name: &str, _: Option<&str>) -> Result<PathBuf> {
    Err(Error::Option {
        option: "model",
        expected: "an existing directory; hub ids need a build with --features hub".into(),
        got: name.into(),
    })
}

#[cfg(feature = "hub")]
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

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn bytes_are_read_with_their_unit() {
        let read = |text: &str| parse_bytes(text).ok();
        assert_eq!(
            [read("1"), read("3K"), read("512M"), read("4g")],
            [Some(1), Some(3 << 10), Some(512 << 20), Some(4 << 30)]
        );
        for wrong in ["", "M", "0", "0G", "-1", "4GB", "1.5G", "99999999999G", "\u{e9}"] {
            let error = parse_bytes(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("option memory-budget: expected a number of bytes") && error.ends_with(wrong),
                "{error}"
            );
        }
    }
}
