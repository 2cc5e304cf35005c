//! Text in, text out: the public face of the library.

mod alternatives;
mod batch;
mod device;
mod explain;
mod handle;
mod ids;
mod mbr;
mod memory;
mod scorers;
mod sentence;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use crate::backend::{Dtype, TokenStats};
use crate::counts;
use crate::cuda::Context;
use crate::decode::engine::{DEFAULT_QUEUE, Engine, Load, Scoring, Statistics, Terms, Work};
use crate::decode::{DecodeOptions, Hypothesis, Preset, finite_sum};
use crate::error::room;
use crate::model::config::ModelConfig;
use crate::model::generation::GenerationConfig;
use crate::model::weights::Weights;
use crate::text::{SentenceDefaults, Tokenizer};
use crate::{Error, Result};
use batch::Pending;
use device::Started;

pub use crate::cuda::Counters;
pub use crate::model::PackUse;
pub use alternatives::Alternatives;
pub use batch::Batch;
pub use device::{Device, DeviceChoice, Gpus};
pub use explain::{Explanation, ExplanationHandle};
pub use handle::{ScoreHandle, TranslationHandle};
pub use memory::{MemoryPlan, SearchSize};
pub use sentence::{SENTENCE_FIELDS, Sentence};

/// How a [`Translator`] runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Where to compute. Default the CPU.
    pub device: Device,
    /// Threads that compute on the CPU; 0 takes one per core. Default 0.
    pub threads: usize,
    /// Sessions side by side on the CPU, with a share of the threads and of the slots each: at most one per thread and slot;
    /// 0 takes as many. Default 0.
    pub workers: usize,
    /// Sentences decoded at once, 1..=4096. Default 32.
    pub slots: usize,
    /// Sentences that wait for one of the slots, at most: more are refused, or their callers wait. 1..=2^20. Default 4096.
    pub queue: usize,
    /// Bytes that model and search may take, on each device; fewer sentences are decoded at once where not all fit. Default: what
    /// is free on a GPU, no limit on the CPU.
    pub memory_budget: Option<u64>,
    /// Element type of the weights: f32, bf16 or i8, and on a GPU f16. Default f32.
    pub dtype: Dtype,
    /// A directory that keeps weights as the CPU takes them in i8 and bf16, in a file for each model and type: opening a model again only
    /// reads that. It is written the first time, and anew when the model's files have changed. See [`Translator::packs`]. Default none.
    pub pack_cache: Option<PathBuf>,
    /// What sentences mean that do not say it themselves. Default the model's own.
    pub defaults: SentenceDefaults,
    /// The amateur of contrastive decoding: the directory of a model with the same pieces. Default none.
    pub amateur: Option<PathBuf>,
    /// The other members of an ensemble: directories of models with the same pieces. Default none.
    pub ensemble: Vec<PathBuf>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            device: Device::Cpu,
            threads: 0,
            workers: 0,
            slots: 32,
            queue: DEFAULT_QUEUE,
            memory_budget: None,
            dtype: Dtype::F32,
            pack_cache: None,
            defaults: SentenceDefaults::default(),
            amateur: None,
            ensemble: Vec::new(),
        }
    }
}

impl EngineOptions {
    /// These options after `change`, to be built in one expression.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn validate(&self) -> Result<()> {
        counts::check("threads", self.threads, &counts::THREADS)?;
        counts::check("workers", self.workers, &counts::THREADS)?;
        counts::check("queue", self.queue, &counts::QUEUE)?;
        counts::check("batch-size", self.slots, &counts::SLOTS)
    }
}

/// A model, its tokenizer and an engine that decodes.
///
/// It is `Send + Sync`: threads that share one translator share one decoding session, and each sentence's result is the same,
/// bit for bit, whatever else is being translated.
///
/// ```no_run
/// # fn main() -> beamfuse::Result<()> {
/// use beamfuse::{DecodeOptions, Translator};
///
/// let translator = Translator::open("models/m30k-en-de")?;
/// let translations = translator.translate(&["A dog runs."], &DecodeOptions::default())?;
/// println!("{}", translations[0].text());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Translator {
    engine: Engine,
    options: EngineOptions,
    device: DeviceChoice,
    contexts: Vec<Context>,
    packs: Vec<PackUse>,
    tokenizer: Arc<Tokenizer>,
    config: ModelConfig,
    generation: GenerationConfig,
}

/// A sentence and its translations, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Translation {
    /// The text as given.
    pub source: String,
    /// The source's ids, end of sentence included, as the model read them.
    pub source_ids: Vec<u32>,
    /// Whether the source was longer than the position table and has been cut.
    pub source_truncated: bool,
    /// At least one; best first, samples in the order of their numbers.
    pub hypotheses: Vec<TextHypothesis>,
}

impl Translation {
    /// The best translation's text.
    pub fn text(&self) -> &str {
        &self.hypotheses[0].text
    }
}

/// A hypothesis and its text: `score`, `token_ids` and all else of a [`Hypothesis`] are its own.
#[derive(Clone, Debug, PartialEq)]
pub struct TextHypothesis {
    /// The detokenized text.
    pub text: String,
    /// The pieces of `token_ids`.
    pub tokens: Vec<String>,
    /// Ids and scores, which this dereferences to.
    pub(crate) ids: Hypothesis,
    /// Its mean utility, 0..=100, with all candidates as references; present under [`DecodeOptions::mbr`], which ranks by it.
    pub utility: Option<f64>,
}

impl std::ops::Deref for TextHypothesis {
    type Target = Hypothesis;

    fn deref(&self) -> &Hypothesis {
        &self.ids
    }
}

/// A given target's teacher-forced score.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The target's ids, end of sentence included.
    pub token_ids: Vec<u32>,
    /// The log-probability of each, natural logarithm.
    pub token_log_probs: Vec<f32>,
    /// Their sum.
    pub log_prob: f32,
}

/// A target to look at under its source, in ids, end of sentence included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forced<'a> {
    /// The source.
    pub source: &'a [u32],
    /// The target.
    pub target: &'a [u32],
    /// What the decoder reads at each position of the target; `None`: the start token, then the target itself.
    pub inputs: Option<&'a [u32]>,
}

impl<'a> Forced<'a> {
    /// A target that the decoder reads itself.
    pub fn new(source: &'a [u32], target: &'a [u32]) -> Self {
        Forced { source, target, inputs: None }
    }
}

impl Translator {
    /// Opens a Hugging Face model directory on the CPU with default [`EngineOptions`].
    ///
    /// # Errors
    /// Whatever is wrong with the directory's files; see [`Error`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, &EngineOptions::default())
    }

    /// Opens a Hugging Face model directory.
    ///
    /// # Errors
    /// As [`Translator::open`], [`Error::Option`] for `options`, and [`Error::Device`] for a device that cannot be used.
    pub fn open_with(dir: impl AsRef<Path>, options: &EngineOptions) -> Result<Self> {
        options.validate()?;
        let dir = dir.as_ref();
        let mut config = ModelConfig::open(dir)?;
        let generation = GenerationConfig::open(dir, &config)?;
        room::require("read the tokenizer", tokenizer_room(dir))?;
        let mut tokenizer = Tokenizer::open(dir)?;
        check_vocabularies(dir, &config, &tokenizer)?;
        scorers::check_companions(options, &config, &tokenizer)?;
        tokenizer.set_defaults(&options.defaults)?;
        let start = tokenizer.decoder_start(tokenizer.target_language(None)?);
        config.ids.decoder_start_id = start.unwrap_or(config.ids.decoder_start_id);
        let started = device::start(options, &config, &Weights::open(dir)?)?;
        let Started { engine, device, contexts, packs } = started;
        let (options, tokenizer) = (options.clone(), Arc::new(tokenizer));
        Ok(Translator { engine, options, device, contexts, packs, tokenizer, config, generation })
    }

    /// Goes on with other weights of the same architecture, as training has them after an update. Everything that is asked for
    /// from now on sees them; what has been begun is finished with the old ones first.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that does not fit, and [`Error::Device`]; the old weights stay then.
    pub fn set_weights(&mut self, weights: &Weights) -> Result<()> {
        let Started { engine, device, contexts, packs } = device::start(&self.options, &self.config, weights)?;
        (self.engine, self.device, self.contexts, self.packs) = (engine, device, contexts, packs);
        Ok(())
    }

    /// The device that it runs on.
    pub fn device(&self) -> &DeviceChoice {
        &self.device
    }

    /// What became of [`EngineOptions::pack_cache`], for each model; empty where none was asked for.
    pub fn packs(&self) -> &[PackUse] {
        &self.packs
    }

    /// Sessions that decode side by side.
    pub fn workers(&self) -> usize {
        self.engine.workers()
    }

    /// The most ids that a source, or a target, may have, what stands around a sentence included.
    pub fn max_len(&self) -> usize {
        self.engine.max_len()
    }

    /// Whether it takes work: false once its engine has failed too often, or its devices are lost.
    pub fn is_running(&self) -> bool {
        self.engine.is_running()
    }

    /// What waits for a slot.
    pub fn load(&self) -> Load {
        self.engine.load()
    }

    /// What the engine has done since it was started.
    pub fn statistics(&self) -> Statistics {
        self.engine.statistics()
    }

    /// What the devices have done since they were opened, all together; none on the CPU.
    pub fn counters(&self) -> Option<Counters> {
        self.contexts.iter().map(Context::counters).reduce(|all, one| all.plus(&one))
    }

    /// The model's architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the model's generation config says.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The options of a preset, `hf` following this model's generation config.
    ///
    /// # Errors
    /// [`Error::Option`] if that asks for a search that this crate does not do.
    pub fn preset(&self, preset: Preset) -> Result<DecodeOptions> {
        DecodeOptions::preset(preset, &self.generation)
    }

    /// Translates texts; the results stand in their order.
    ///
    /// # Errors
    /// [`Error::Option`] for the options, else the first text's error; [`Translator::batch`] gives each text its own.
    pub fn translate(&self, texts: &[impl AsRef<str>], options: &DecodeOptions) -> Result<Vec<Translation>> {
        let mut batch = self.batch(options)?;
        for (tag, text) in texts.iter().enumerate() {
            batch.push(tag as u64, text.as_ref().to_string());
        }
        let mut results: Vec<(u64, Result<Translation>)> = std::iter::from_fn(|| batch.next()).collect();
        results.sort_by_key(|(tag, _)| *tag);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Scores translations: (sentence, target), the sentence a text, or a [`Sentence`] with languages, a prefix or ids of its own.
    ///
    /// # Errors
    /// Per pair [`Error::Option`] for a language that is unknown or missing, [`Error::InputTooLong`], [`Error::NonFiniteLogits`],
    /// [`Error::NonFiniteScore`] or what else may become of [work](Engine::ask).
    pub fn score(&self, pairs: &[(impl Into<Sentence> + Clone, impl AsRef<str>)]) -> Vec<Result<Score>> {
        let scoring = pairs.iter().map(|(sentence, target)| self.scoring(&sentence.clone().into(), target.as_ref()));
        let work: Vec<Result<Scoring>> = scoring.collect();
        let targets: Vec<Vec<u32>> =
            work.iter().map(|work| work.as_ref().map_or_else(|_| Vec::new(), |work| work.target.clone())).collect();
        let stats = self.run_all(work.into_iter());
        stats.into_iter().zip(&targets).map(|(stats, target)| score_of(stats, target)).collect()
    }

    /// Scores targets under their sources: (source, target) ids, end of sentence included.
    ///
    /// # Errors
    /// As [`Translator::score`], and [`Error::Input`] for ids outside the vocabulary.
    pub fn score_ids(&self, pairs: &[(Vec<u32>, Vec<u32>)]) -> Vec<Result<Score>> {
        let forced: Vec<Forced<'_>> = pairs.iter().map(|(source, target)| Forced::new(source, target)).collect();
        let stats = self.token_stats(&forced);
        stats.into_iter().zip(pairs).map(|(stats, (_, target))| score_of(stats, target)).collect()
    }

    /// What the model says of each token of given targets, the decoder reading what it is given: log-probability, rank, entropy and the
    /// most probable token.
    ///
    /// # Errors
    /// As [`Translator::score_ids`].
    pub fn token_stats(&self, pairs: &[Forced<'_>]) -> Vec<Result<Vec<TokenStats>>> {
        let scoring = |&Forced { source, target, inputs }: &Forced<'_>| {
            let inputs = inputs.map(<[u32]>::to_vec);
            Ok(Scoring { source: source.to_vec(), target: target.to_vec(), inputs })
        };
        self.run_all(pairs.iter().map(scoring))
    }

    /// Runs work side by side, waiting where the queue is full; the results stand in its order, and so do the errors of work that
    /// could not be made.
    fn run_all<W: Work>(&self, work: impl Iterator<Item = Result<W>>) -> Vec<Result<W::Output>> {
        let terms = Terms::new();
        let (reply, replies) = mpsc::channel();
        let mut results = Vec::new();
        for (at, work) in work.enumerate() {
            let to = reply.clone();
            // A receiver that is gone has given up on it.
            let submit = |work| self.engine.submit(work, terms, move |result| drop(to.send((at, result))));
            // Stands until the reply comes.
            results.push(Err(work.and_then(submit).err().unwrap_or(Error::EngineStopped)));
        }
        drop(reply);
        for (at, result) in replies {
            results[at] = result;
        }
        results
    }
}

/// The score of a target of which the model says this.
fn score_of(stats: Result<Vec<TokenStats>>, target: &[u32]) -> Result<Score> {
    let token_log_probs: Vec<f32> = stats?.iter().map(|token| token.log_prob).collect();
    let log_prob = finite_sum("score", target, &token_log_probs)?;
    Ok(Score { token_ids: target.to_vec(), log_prob, token_log_probs })
}

/// Bytes that a directory's tokenizer takes at most while it is read: the pieces as text, as values, and in tables by id and by text.
fn tokenizer_room(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_tokenizer = |name: &str| {
        let ends = [".spm", ".model", "merges.txt"].iter().any(|end| name.ends_with(end));
        ends || name.contains("vocab") || name.contains("token")
    };
    let bytes = files.filter(|file| file.file_name().to_str().is_some_and(is_tokenizer));
    // What is larger is refused when it is read, by name.
    let bytes = bytes
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .filter(|bytes| *bytes <= crate::files::MAX_VOCABULARY);
    let bytes: u64 = bytes.sum();
    usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(8).saturating_add(1 << 20)
}

/// Cuts a source of more than `limit` ids where the options ask for that; whether it did.
///
/// What stands behind the text, such as the end of sentence, stays.
fn cut_source(options: &DecodeOptions, source_ids: &mut Vec<u32>, limit: usize, tokenizer: &Tokenizer) -> bool {
    let cut = options.truncate && source_ids.len() > limit;
    if cut {
        let behind = tokenizer.source_suffix_len().min(limit);
        source_ids.drain(limit - behind..source_ids.len() - behind);
    }
    cut
}

/// Checks that the tokenizer ends sentences as the model does.
///
/// Sizes may differ, as in transformers: rows without a piece are candidates like any others, and a piece without a row is an error
/// of the sentences that it occurs in.
fn check_vocabularies(dir: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    let (ours, theirs) = (config.ids.eos_id, tokenizer.eos_id());
    if ours != theirs {
        let (expected, got) = (format!("</s> to be eos_token_id {ours}"), theirs.to_string());
        return Err(Error::Tokenizer { path: dir.to_path_buf(), expected, got });
    }
    Ok(())
}

/// What a model directory holds, without loading its weights into the engine.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The directory.
    pub dir: PathBuf,
    /// The architecture.
    pub config: ModelConfig,
    /// The checkpoint, or the index of its shards.
    pub weights: PathBuf,
    /// Number of values in the checkpoint.
    pub parameters: usize,
    /// Element type of most of them.
    pub dtype: String,
}

impl ModelInfo {
    /// Reads a model directory's configuration and the header of its weights.
    ///
    /// # Errors
    /// Whatever is wrong with these files.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = ModelConfig::open(dir)?;
        let weights = Weights::open(dir)?;
        Ok(ModelInfo {
            dir: dir.to_path_buf(),
            config,
            weights: weights.source().to_path_buf(),
            parameters: weights.parameters(),
            dtype: weights.dtype(),
        })
    }
}
