//! The loop: batches, gradients, updates, validation, checkpoints.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::room;
use crate::files::{self, io};
use crate::text::{SentenceDefaults, Tokenizer};
use crate::train::autograd::AutogradModel;
use crate::train::checkpoint::{Progress, State, check_fingerprint, model_files, write_model};
use crate::train::data::{Corpus, Data};
use crate::train::log::Log;
use crate::train::objectives::distill::{Distill, Teacher, average};
use crate::train::objectives::mle::Mle;
use crate::train::objectives::mrt::MinimumRisk;
use crate::train::objectives::scheduled_sampling::OwnInputs;
use crate::train::objectives::{Example, Objective, Sum, Update};
use crate::train::optimizer::AdamW;
use crate::train::options::{Keep, Metric, ObjectiveOptions, TrainOptions};
use crate::train::rollouts::Rollouts;
use crate::train::validation::{Scores, validate};
use crate::translator::{EngineOptions, Translator};
use crate::{Error, Result, threads};

/// Where a run reads and writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Places {
    /// The model directory to start from.
    pub model: PathBuf,
    /// The model directory to write; its folder `training` holds state, log and curves.
    pub output: PathBuf,
    /// What to learn from.
    pub data: Corpus,
    /// What to validate on.
    pub validation: Option<Corpus>,
    /// Prefix and languages of the pairs.
    pub defaults: SentenceDefaults,
    /// Whether lines that are no pair are left out and counted.
    pub skip_bad: bool,
    /// Whether to continue the run that `output` holds.
    pub resume: bool,
}

/// Who watches a run.
pub trait Observer {
    /// Whether the run should stop and save its state.
    fn interrupted(&self) -> bool;
    /// An update is done.
    fn updated(&mut self, report: &Report);
    /// Something to tell once.
    fn note(&mut self, line: &str);
}

/// What an update did.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Its number, from 1.
    pub update: u32,
    /// Updates of the run.
    pub updates: u32,
    /// The objective's value.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Target tokens that it learnt from.
    pub tokens: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Figures of the objective.
    pub figures: Vec<(&'static str, f64)>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All updates are done.
    Complete,
    /// Validation has not improved any more.
    Stopped,
    /// The observer asked; the state is saved.
    Interrupted,
}

/// A run.
pub struct Trainer {
    places: Places,
    options: TrainOptions,
    model: AutogradModel,
    optimizer: AdamW,
    objective: Box<dyn Objective>,
    data: Data,
    validation: Option<Data>,
    translator: Translator,
    progress: Progress,
    /// The batches of the epoch under way.
    batches: Vec<Vec<u32>>,
    log: Log,
    /// Held as long as the run: nobody else may write to the directory.
    _lock: File,
}

/// The file that holds a run's state.
pub fn state_file(output: &Path) -> PathBuf {
    output.join("training").join("state.safetensors")
}

/// The files that a run writes to its output directory, under the names that they have while they are written, too.
pub fn written_files(output: &Path) -> Vec<PathBuf> {
    let log = Log::new(&output.join("training"));
    let whole = model_files(output).chain([state_file(output)]).chain(log.files());
    whole.flat_map(|path| [files::partial(&path), path]).chain([lock_file(output)]).collect()
}

fn lock_file(output: &Path) -> PathBuf {
    output.join("training").join("lock")
}

/// Locks an output directory, which need not be there.
fn lock(output: &Path) -> Result<File> {
    let path = lock_file(output);
    let training = path.parent().unwrap_or(output);
    std::fs::create_dir_all(training).map_err(io("create", training))?;
    let file = File::options().create(true).append(true).open(&path).map_err(io("open", &path))?;
    files::lock(&file, &path)?;
    Ok(file)
}

/// Refuses a directory that holds a run, for a new one.
fn refuse_run(output: &Path) -> Result<()> {
    match state_file(output).exists() {
        false => Ok(()),
        true => {
            let got = format!("{}, which holds a run", output.display());
            Err(Error::Option { option: "output", expected: "another directory, or --resume".into(), got })
        }
    }
}

impl Trainer {
    /// Reads and checks everything that a run needs.
    ///
    /// # Errors
    /// Options out of range, a model or data that cannot be read, an output directory that holds another run, or a state that
    /// does not continue this one, a directory that another process trains in, or too little memory. Nothing has been written then.
    pub fn open(places: Places, options: TrainOptions) -> Result<Self> {
        options.validate()?;
        match places.resume {
            false => refuse_run(&places.output)?,
            // Where no run has ever begun, no directory is made to hold the lock.
            true if !lock_file(&places.output).exists() => {
                drop(File::open(state_file(&places.output)).map_err(files::io("open", &state_file(&places.output)))?)
            }
            true => {}
        }
        if options.keep == Keep::Best && options.patience > 0 && places.validation.is_none() {
            let (expected, got) = ("a validation set".into(), "none".into());
            return Err(Error::Option { option: "patience", expected, got });
        }
        threads::start_global()?;
        let engine = EngineOptions { defaults: places.defaults.clone(), ..EngineOptions::default() };
        let translator = Translator::open_with(&places.model, &engine)?;
        let tokenizer = translator.tokenizer();
        tokenizer.require_languages()?;
        let mut model = AutogradModel::open(&places.model)?;
        model.start_with(translator.config().ids.decoder_start_id);
        if let Some(deviation) = options.from_scratch {
            model.parameters_mut().initialize(options.seed, deviation)?;
        }
        let longest = model.config().longest().min(options.batch_tokens);
        let read = |corpus: &Corpus| Data::read(corpus, tokenizer, longest, places.skip_bad);
        let data = read(&places.data)?;
        let validation = places.validation.as_ref().map(read).transpose()?;
        // Two moments; gradients, and the parameters that follow from them.
        room::require("train", 4 * 4 * model.parameters().values_count())?;
        let optimizer = AdamW::new(options.adam, model.parameters());
        let mut fingerprint = options.fingerprint();
        fingerprint.insert("training data".into(), format!("{} pairs, hash {:016x}", data.pairs().len(), data.hash()));
        fingerprint.insert("model".into(), format!("weights of hash {:016x}", hash(&model)?));
        let progress = Progress { update: 0, epoch: 0, batch: 0, best: None, worse: 0, logged: 0, fingerprint };
        let objective = objective(&options.objective, &places, tokenizer)?;
        let log = Log::new(&places.output.join("training"));
        let lock = lock(&places.output)?;
        if !places.resume {
            // Another process may have begun one meanwhile.
            refuse_run(&places.output)?;
        }
        let mut trainer = Trainer {
            batches: data.batches(options.batch_tokens, options.seed, 0),
            places,
            options,
            model,
            optimizer,
            objective,
            data,
            validation,
            translator,
            progress,
            log,
            _lock: lock,
        };
        if trainer.places.resume {
            trainer.restore()?;
        }
        Ok(trainer)
    }

    fn restore(&mut self) -> Result<()> {
        let mut state = State::read(&state_file(&self.places.output), self.model.parameters())?;
        check_fingerprint(&state.progress.fingerprint, &self.progress.fingerprint)?;
        state.restore(&mut self.optimizer);
        self.model.parameters_mut().set_tensors(&state.tensors)?;
        self.objective.restore(&state.tensors)?;
        self.progress = state.progress;
        self.batches = self.data.batches(self.options.batch_tokens, self.options.seed, self.progress.epoch);
        self.log.truncate(self.progress.logged)
    }

    /// The model as it is.
    pub fn model(&self) -> &AutogradModel {
        &self.model
    }

    /// The training data.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Updates done.
    pub fn updates_done(&self) -> u32 {
        self.progress.update
    }

    /// Trains until all updates are done, validation stops improving, or the observer asks to stop.
    ///
    /// # Errors
    /// A gradient that is not finite, or a file that cannot be written. The last checkpoint is there then.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Ending> {
        if self.progress.update == 0 && self.progress.best.is_none() {
            // A run that was killed before this has left what does not count.
            self.log.truncate(0)?;
            self.checkpoint()?;
            self.validate(observer)?;
        }
        while self.progress.update < self.options.updates {
            if observer.interrupted() {
                self.checkpoint()?;
                return Ok(Ending::Interrupted);
            }
            let report = self.update()?;
            self.log.update(&report)?;
            observer.updated(&report);
            let update = self.progress.update;
            let last = update == self.options.updates;
            if last || update.is_multiple_of(self.options.validate_every) {
                self.validate(observer)?;
                if self.options.patience > 0 && self.progress.worse >= self.options.patience {
                    self.finish()?;
                    return Ok(Ending::Stopped);
                }
            }
            if !last && update.is_multiple_of(self.options.checkpoint_every) {
                self.checkpoint()?;
            }
        }
        self.finish()?;
        Ok(Ending::Complete)
    }

    /// Makes sure of the largest of what an update allocates: gradients, the parameters that follow, and of so many tokens logits, their
    /// probabilities and gradients. What computes it would end the process without.
    fn require_room(&self, tokens: usize) -> Result<()> {
        let values = 2 * self.model.parameters().values_count() + 3 * tokens * self.model.config().decoder_vocab_size;
        room::require("update the model", 4 * values)
    }

    /// One update.
    ///
    /// # Errors
    /// A gradient that is not finite; [`Error::OutOfMemory`].
    pub fn update(&mut self) -> Result<Report> {
        let started = Instant::now();
        let batches: Vec<Vec<u32>> = (0..self.options.accumulate).map(|_| self.next_batch()).collect();
        let pairs = self.data.pairs();
        let examples = |batch: &Vec<u32>| -> Vec<Example<'_>> {
            batch.iter().map(|&number| Example { number, pair: &pairs[number as usize] }).collect()
        };
        let parts: Vec<Vec<Example<'_>>> = batches.iter().map(examples).collect();
        let tokens = parts.iter().flatten().map(|example| example.pair.target.len()).sum();
        let longest =
            parts.iter().map(|part| part.iter().map(|example| example.pair.target.len()).sum::<usize>()).max();
        self.require_room(longest.unwrap_or(0))?;
        let number = self.progress.update + 1;
        let update = Update {
            model: &self.model,
            number,
            seed: self.options.seed,
            dropout: self.options.dropout,
            smoothing: self.options.label_smoothing,
            tokens,
            sentences: parts.iter().map(Vec::len).sum(),
        };
        let mut sum = Sum::default();
        for part in &parts {
            self.objective.gradients(&update, part, &mut sum)?;
        }
        let learning_rate = self.options.learning_rate().at(number);
        let gradient_norm = match &sum.gradients {
            Some(gradients) => self.optimizer.update(self.model.parameters_mut(), gradients, learning_rate)?,
            None => 0.0,
        };
        self.progress.update = number;
        self.objective.updated(&self.model)?;
        Ok(Report {
            update: number,
            updates: self.options.updates,
            loss: sum.loss,
            gradient_norm,
            learning_rate,
            tokens,
            seconds: started.elapsed().as_secs_f64(),
            figures: sum.figures.iter().map(|&(name, value, weight)| (name, value / weight.max(1e-30))).collect(),
        })
    }

    fn next_batch(&mut self) -> Vec<u32> {
        if self.progress.batch == self.batches.len() {
            self.progress.epoch += 1;
            self.progress.batch = 0;
            self.batches = self.data.batches(self.options.batch_tokens, self.options.seed, self.progress.epoch);
        }
        self.progress.batch += 1;
        self.batches[self.progress.batch - 1].clone()
    }

    fn validate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Some(data) = &self.validation else { return Ok(()) };
        self.translator.set_weights(&self.model.parameters().to_weights()?)?;
        let update = self.progress.update;
        let scores @ Scores { bleu, chrf, length_ratio } =
            validate(&self.translator, data, self.options.validation_beam)?;
        self.log.validation(update, &scores)?;
        let score = match self.options.metric {
            Metric::Bleu => bleu,
            Metric::Chrf => chrf,
        };
        let better = self.progress.best.is_none_or(|(best, _)| score > best);
        if better {
            self.progress.best = Some((score, update));
            self.progress.worse = 0;
        } else {
            self.progress.worse += 1;
        }
        let mark = if better { ", the best so far" } else { "" };
        observer.note(&format!(
            "update {update}: validation BLEU {bleu:.2}, chrF2 {chrf:.2}, length ratio {length_ratio:.3}{mark}"
        ));
        match better && self.options.keep == Keep::Best {
            true => self.write_model(),
            false => Ok(()),
        }
    }

    fn write_model(&self) -> Result<()> {
        write_model(&self.places.model, &self.places.output, self.model.parameters().tensors()?)
    }

    /// Saves the state from which the run continues bit for bit.
    fn checkpoint(&mut self) -> Result<()> {
        self.progress.logged = self.log.length()?;
        let mut tensors = self.model.parameters().tensors()?;
        self.objective.save(&mut tensors)?;
        let state = State { progress: self.progress.clone(), tensors, moments: self.optimizer.moments.clone() };
        state.write(&state_file(&self.places.output), self.model.parameters())?;
        self.log.draw()
    }

    fn finish(&mut self) -> Result<()> {
        if self.options.keep == Keep::Last || self.validation.is_none() {
            self.write_model()?;
        }
        self.checkpoint()
    }

    /// The best validation score and the update that reached it.
    pub fn best(&self) -> Option<(f64, u32)> {
        self.progress.best
    }
}

/// The objective over the model that a run starts from.
fn objective(options: &ObjectiveOptions, places: &Places, tokenizer: &Tokenizer) -> Result<Box<dyn Objective>> {
    let dir = &places.model;
    let session = |dir| Rollouts::open(dir, &places.defaults);
    Ok(match options {
        ObjectiveOptions::Mle => Box::new(Mle),
        ObjectiveOptions::ScheduledSampling(options) => Box::new(OwnInputs(*options)),
        ObjectiveOptions::Mrt(options) => Box::new(MinimumRisk::new(*options, session(dir)?)),
        ObjectiveOptions::Distill(options) => {
            let own = [dir.clone()];
            let dirs = match &options.teacher {
                Teacher::Models(dirs) => &dirs[..],
                Teacher::Frozen | Teacher::Ema(_) => &own,
            };
            let teacher = average(dirs, tokenizer)?;
            // The session reads its weights from the teacher before its first sentence.
            let sessions = (session(dir)?, session(&dirs[0])?);
            Box::new(Distill::new(options.clone(), teacher, sessions.0, sessions.1))
        }
    })
}

/// A hash of the parameters' bits (64-bit FNV-1a over words).
fn hash(model: &AutogradModel) -> Result<u64> {
    let values = model.parameters().values()?;
    let mix = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
    Ok(values.iter().flatten().fold(0xcbf2_9ce4_8422_2325, mix))
}
