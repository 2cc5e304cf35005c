//! The translator: opened, asked, closed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use beamfuse::backend::TokenStats;
use beamfuse::decode::Trace;
use beamfuse::decode::trace::TraceStep;
use beamfuse::hub::{Hub, ModelId};
use beamfuse::translator::Forced;
use beamfuse::{
    Bans, DecodeOptions, Dtype, EngineOptions, Error, Overrides, Preset, Sentence, SentenceDefaults, Terms, Translator,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::errors::{Failure, raised};
use crate::pending::{LOOK_EVERY, Pending, forked};
use crate::results::{Score, Translation};

/// A model, its tokenizer and the threads that decode.
#[pyclass(frozen, module = "beamfuse._native")]
pub(crate) struct Engine {
    /// None once it is closed.
    translator: RwLock<Option<Arc<Translator>>>,
    directory: PathBuf,
    process: u32,
    pieces: OnceLock<Pieces>,
}

/// Ids by piece: those of the source's vocabulary and those of the target's.
struct Pieces {
    source: HashMap<String, u32>,
    target: HashMap<String, u32>,
}

/// What options come to for one model.
#[pyclass(frozen, module = "beamfuse._native")]
pub(crate) struct Options {
    set: Overrides,
    of_all: DecodeOptions,
}

#[pymethods]
impl Options {
    /// All of them as JSON.
    fn json(&self) -> PyResult<String> {
        to_json(&self.of_all)
    }
}

/// What sentences have that bring none of their own: source language, target language, prefix of the source.
type Languages = (Option<String>, Option<String>, Option<String>);

/// A sentence as Python gives it: a text, or JSON, as bytes.
type Item = Result<Sentence<Overrides>, Failure>;

/// A hypothesis in pieces: tokens, ids, score, and the sum of what the search ranked.
type InPieces = (Vec<String>, Vec<u32>, f32, f32);

/// Tokens, ids, and what the search ranked of each.
type Ranked = (Vec<String>, Vec<u32>, Vec<f32>);

/// Sources and targets in pieces.
type Pieced = Vec<(Vec<String>, Vec<String>)>;

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (model, device, dtype, threads, workers, slots, memory_budget, amateur, ensemble, languages))]
    #[expect(clippy::too_many_arguments, reason = "they are the arguments of the class in Python")]
    fn new(
        py: Python<'_>,
        model: PathBuf,
        device: &str,
        dtype: &str,
        threads: usize,
        workers: usize,
        slots: usize,
        memory_budget: Option<u64>,
        amateur: Option<PathBuf>,
        ensemble: Vec<PathBuf>,
        languages: Languages,
    ) -> PyResult<Self> {
        let (source_lang, target_lang, source_prefix) = languages;
        let options = EngineOptions::default().with(|options| {
            options.defaults = SentenceDefaults { source_prefix, source_lang, target_lang };
            (options.threads, options.workers, options.slots) = (threads, workers, slots);
            options.memory_budget = memory_budget;
            (options.amateur, options.ensemble) = (amateur, ensemble);
        });
        let dtype = dtype_of(dtype)?;
        let device = device.parse().map_err(raised)?;
        let options = options.with(|options| (options.device, options.dtype) = (device, dtype));
        let open = || {
            let directory = find(&model)?;
            Ok::<_, Error>((Translator::open_with(&directory, &options)?, directory))
        };
        let (translator, directory) = py.detach(open).map_err(raised)?;
        let translator = RwLock::new(Some(Arc::new(translator)));
        Ok(Engine { translator, directory, process: std::process::id(), pieces: OnceLock::new() })
    }

    /// What options, a JSON object, come to.
    fn options(&self, json: &str) -> PyResult<Options> {
        let set: Overrides = read_options(json)?;
        let of_all = self.translator()?.options(&set).map_err(raised)?;
        Ok(Options { set, of_all })
    }

    /// As options, with tokens and sequences that are never generated.
    fn options_with_bans(&self, json: &str, tokens: Vec<u32>, sequences: Vec<Vec<u32>>) -> PyResult<Options> {
        let Options { set, mut of_all } = self.options(json)?;
        let size = self.translator()?.config().decoder_vocab_size;
        let bans = Bans::new(size, &tokens, None, &sequences).map_err(raised)?;
        of_all.bans = Some(Arc::new(bans));
        Ok(Options { set, of_all })
    }

    /// Translates all; an error is raised, or, with `collect`, stands in the place of its sentence.
    fn translate<'py>(
        &self,
        py: Python<'py>,
        items: Vec<Bound<'py, PyAny>>,
        options: &Options,
        collect: bool,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let translator = self.translator()?;
        let items: Vec<Item> = items.iter().map(read_item).collect::<PyResult<_>>()?;
        let results = py.detach(|| translate(&translator, items, options))?;
        gather(py, results, collect, |py, found| Ok(Py::new(py, Translation(Arc::new(found)))?.into_any()))
    }

    /// Asks for one translation without waiting, not even for room in the queue.
    fn submit(&self, item: &Bound<'_, PyAny>, options: &Options) -> PyResult<Pending> {
        let translator = self.translator()?;
        let sentence = translator.sentence(read_item(item)??, &options.set, &options.of_all).map_err(raised)?;
        translator.submit(sentence, &options.of_all, Terms::new()).map(Pending::new).map_err(raised)
    }

    /// Scores targets under their sources.
    fn score<'py>(
        &self,
        py: Python<'py>,
        pairs: Vec<(Bound<'py, PyAny>, String)>,
        collect: bool,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let translator = self.translator()?;
        let read = |(source, target): (Bound<'py, PyAny>, String)| {
            // A score has no options.
            let source = read_item(&source)?.map(|sentence| sentence.under(None));
            Ok(source.map(|source| (source, target)))
        };
        let pairs: Vec<Result<(Sentence, String), Failure>> = pairs.into_iter().map(read).collect::<PyResult<_>>()?;
        let sound: Vec<(Sentence, String)> = pairs.iter().flatten().cloned().collect();
        let scored = py.detach(|| in_chunks(&translator, sound, |translator, chunk| Ok(translator.score(chunk))))?;
        let mut scored = scored.into_iter();
        let in_its_place = |pair: Result<_, Failure>| pair.map_or_else(|failure| Some(Err(failure)), |_| scored.next());
        let scored = pairs.into_iter().filter_map(in_its_place).collect();
        gather(py, scored, collect, |py, beamfuse::Score { token_ids, token_log_probs, log_prob }| {
            let tokens = target_pieces(&translator, &token_ids);
            Ok(Py::new(py, Score { token_ids, tokens, token_log_probs, log_prob })?.into_any())
        })
    }

    /// Scores (source, target) pieces, without end of sentence behind the target, over the vocabulary without padding: tokens and
    /// the log-probability of each.
    fn score_pieces(&self, py: Python<'_>, pairs: Pieced) -> PyResult<Vec<(Vec<String>, Vec<f32>)>> {
        let translator = self.translator()?;
        let end = translator.tokenizer().eos_id();
        let with_end = |(source, mut target): (Vec<u32>, Vec<u32>)| {
            target.push(end);
            (source, target)
        };
        let pairs: Vec<_> = self.ids(&translator, pairs).into_iter().map(with_end).collect();
        let scored =
            py.detach(|| in_chunks(&translator, pairs, |translator, chunk| Ok(without_padding(translator, chunk))))?;
        let told = |scored: Result<(Vec<u32>, Vec<f32>), Failure>| {
            scored.map(|(ids, log_probs)| (target_pieces(&translator, &ids), log_probs)).map_err(PyErr::from)
        };
        scored.into_iter().map(told).collect()
    }

    /// Translates (source, prefix) pieces; pieces that the vocabulary lacks become the unknown one.
    fn translate_pieces(&self, py: Python<'_>, sentences: Pieced, options: &Options) -> PyResult<Vec<Vec<InPieces>>> {
        let translator = self.translator()?;
        let sentences = self.ids(&translator, sentences);
        let of_all = options.of_all.clone();
        let found = py.detach(|| {
            in_chunks(&translator, sentences, move |translator, chunk| translator.continue_ids(chunk, &of_all))
        })?;
        let told = |hypothesis: beamfuse::Hypothesis| {
            let tokens = target_pieces(&translator, &hypothesis.token_ids);
            (tokens, hypothesis.token_ids, hypothesis.score, hypothesis.search_log_prob)
        };
        let told = |found: Result<Vec<_>, Failure>| Ok(found?.into_iter().map(told).collect());
        found.into_iter().map(told).collect::<Result<_, Failure>>().map_err(PyErr::from)
    }

    /// Translates (source, prefix) pieces with one beam.
    fn rank_pieces(&self, py: Python<'_>, sentences: Pieced, options: &Options) -> PyResult<Vec<Ranked>> {
        let translator = self.translator()?;
        let sentences = self.ids(&translator, sentences);
        let of_all = options.of_all.clone();
        let found = py.detach(|| {
            in_chunks(&translator, sentences, move |translator, chunk| translator.explain_ids(chunk, &of_all))
        })?;
        let told = |found: Result<Trace, Failure>| {
            let (ids, ranked) = ranked(found?);
            Ok((target_pieces(&translator, &ids), ids, ranked))
        };
        found.into_iter().map(told).collect::<Result<_, Failure>>().map_err(PyErr::from)
    }

    /// The target's id of a piece; None if there is none.
    fn piece_id(&self, piece: &str) -> PyResult<Option<u32>> {
        let translator = self.translator()?;
        Ok(self.pieces(&translator).target.get(piece).copied())
    }

    /// The id of the end of sentence, and of the unknown piece.
    fn special_ids(&self) -> PyResult<(u32, u32)> {
        let translator = self.translator()?;
        Ok((translator.tokenizer().eos_id(), translator.tokenizer().unk_id()))
    }

    /// The target's pieces of these ids.
    fn special_pieces(&self) -> PyResult<(String, String)> {
        let translator = self.translator()?;
        let piece = |id| translator.tokenizer().target_piece(id).to_owned();
        Ok((piece(translator.tokenizer().eos_id()), piece(translator.tokenizer().unk_id())))
    }

    /// The pieces that the model reads of a text, with what stands around it.
    fn encode(&self, text: &str) -> PyResult<Vec<String>> {
        let translator = self.translator()?;
        let ids = translator.tokenizer().encode_source(text);
        Ok(ids.into_iter().map(|id| translator.tokenizer().source_piece(id).to_owned()).collect())
    }

    /// The options of a preset as JSON.
    fn preset(&self, name: &str) -> PyResult<String> {
        let preset: Preset = serde_json::from_value(name.into())
            .map_err(|error| Failure::new("option", format!("option preset: {error}")))?;
        to_json(&self.translator()?.preset(preset).map_err(raised)?)
    }

    /// The model's directory.
    #[getter]
    fn directory(&self) -> &Path {
        &self.directory
    }

    /// The device that it runs on.
    #[getter]
    fn device(&self) -> PyResult<String> {
        Ok(self.translator()?.device().device.to_string())
    }

    /// Sessions that decode side by side.
    #[getter]
    fn workers(&self) -> PyResult<usize> {
        Ok(self.translator()?.workers())
    }

    /// Whether it has been closed.
    #[getter]
    fn closed(&self) -> bool {
        self.translator.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// The model's version: a digest of its files.
    fn version(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| beamfuse::batch::digest_model(&self.directory)).map_err(raised)
    }

    /// Gives model and threads back, once what is under way has ended.
    fn close(&self, py: Python<'_>) {
        let taken = self.translator.write().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| give_back(taken, self.process));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let taken = self.translator.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        give_back(taken, self.process);
    }
}

/// In a fork the threads that an end would wait for are not there: what they had stays.
fn give_back(translator: Option<Arc<Translator>>, process: u32) {
    if std::process::id() != process {
        std::mem::forget(translator);
    }
}

impl Engine {
    fn translator(&self) -> PyResult<Arc<Translator>> {
        if std::process::id() != self.process {
            return Err(forked().into());
        }
        let translator = self.translator.read().unwrap_or_else(PoisonError::into_inner);
        translator.clone().ok_or_else(|| Failure::new("closed", "translate: the translator has been closed").into())
    }

    fn pieces(&self, translator: &Translator) -> &Pieces {
        self.pieces.get_or_init(|| {
            let tokenizer = translator.tokenizer();
            let source = 0..tokenizer.source_vocab_size() as u32;
            let target = 0..tokenizer.target_vocab_size() as u32;
            Pieces {
                source: source.map(|id| (tokenizer.source_piece(id).to_owned(), id)).collect(),
                target: target.map(|id| (tokenizer.target_piece(id).to_owned(), id)).collect(),
            }
        })
    }

    /// The ids of (source, target) pieces; those that the vocabulary lacks become the unknown one.
    fn ids(&self, translator: &Translator, pairs: Pieced) -> Vec<(Vec<u32>, Vec<u32>)> {
        let pieces = self.pieces(translator);
        let unknown = translator.tokenizer().unk_id();
        let ids = |pieces: &HashMap<String, u32>, tokens: Vec<String>| -> Vec<u32> {
            tokens.iter().map(|token| pieces.get(token).copied().unwrap_or(unknown)).collect()
        };
        let to_ids = |(source, target)| (ids(&pieces.source, source), ids(&pieces.target, target));
        pairs.into_iter().map(to_ids).collect()
    }
}

fn target_pieces(translator: &Translator, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|id| translator.tokenizer().target_piece(*id).to_owned()).collect()
}

/// Per pair of ids the target and the log-probability of each of its tokens over the vocabulary without padding: what padding has
/// is asked for at the same positions, and taken out.
fn without_padding(
    translator: &Translator,
    pairs: &[(Vec<u32>, Vec<u32>)],
) -> Vec<beamfuse::Result<(Vec<u32>, Vec<f32>)>> {
    let ids = translator.config().ids;
    let read = |(_, target): &(Vec<u32>, Vec<u32>)| [&[ids.decoder_start_id], &target[..target.len() - 1]].concat();
    let inputs: Vec<Vec<u32>> = pairs.iter().map(read).collect();
    let padding: Vec<Vec<u32>> = pairs.iter().map(|(_, target)| vec![ids.pad_id; target.len()]).collect();
    let asked = pairs.iter().zip(&padding).zip(&inputs).flat_map(|(((source, target), padding), inputs)| {
        [target, padding].map(|target| Forced { source, target, inputs: Some(inputs) })
    });
    let mut told = translator.token_stats(&asked.collect::<Vec<_>>()).into_iter();
    let mut next = || told.next().unwrap_or(Err(Error::EngineStopped));
    let one = |(_, target): &(Vec<u32>, Vec<u32>)| {
        let (tokens, padding) = (next(), next());
        let rest = |padding: &TokenStats| (-f64::from(padding.log_prob).exp()).ln_1p();
        let each = tokens?
            .iter()
            .zip(&padding?)
            .map(|(token, padding)| (f64::from(token.log_prob) - rest(padding)) as f32)
            .collect();
        Ok((target.clone(), each))
    };
    pairs.iter().map(one).collect()
}

/// The tokens of a search with one beam, and what it ranked of each.
fn ranked(Trace { steps, hypotheses }: Trace) -> (Vec<u32>, Vec<f32>) {
    let ids = hypotheses.into_iter().next().map(|best| best.token_ids).unwrap_or_default();
    let sum = |step: &TraceStep| {
        let ended = step.finished.iter().map(|beam| beam.search_log_prob);
        ended.chain(step.live.iter().map(|beam| beam.search_log_prob)).next().unwrap_or(0.0)
    };
    let sums: Vec<f32> = steps.iter().take(ids.len()).map(sum).collect();
    let before = std::iter::once(0.0).chain(sums.iter().copied());
    let ranked = sums.iter().zip(before).map(|(sum, before)| sum - before).collect();
    (ids, ranked)
}

/// A directory, or a model of the hub, downloaded.
fn find(model: &Path) -> beamfuse::Result<PathBuf> {
    let text = model.to_string_lossy();
    let is_id = text.matches('/').count() == 1 && !text.starts_with(['.', '/', '~']);
    match model.is_dir() {
        true => Ok(model.to_path_buf()),
        false if is_id && !model.exists() => Hub::from_env()?.fetch(&ModelId::parse(&text)?, &mut ()),
        false => {
            let expected = "an existing directory or a hub id owner/name".into();
            Err(Error::Option { option: "model", expected, got: text.into_owned() })
        }
    }
}

fn dtype_of(name: &str) -> PyResult<Dtype> {
    let all = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];
    let refuse = || Failure::new("option", format!("option dtype: expected f32, f16, bf16 or i8, got {name}"));
    Ok(all.into_iter().find(|dtype| dtype.name() == name).ok_or_else(refuse)?)
}

fn read_options(json: &str) -> Result<Overrides, Failure> {
    serde_json::from_str(json).map_err(|error| Failure::new("input", format!("read options: {error}")))
}

fn to_json(value: &DecodeOptions) -> PyResult<String> {
    serde_json::to_string(value).map_err(|error| Failure::new("json", format!("write options: {error}")).into())
}

/// Reads a sentence. What is neither a text nor JSON is a mistake of the program; what is wrong within is an error of the sentence.
fn read_item(item: &Bound<'_, PyAny>) -> PyResult<Item> {
    if let Ok(text) = item.cast::<PyString>() {
        let plain = |source: String| Sentence { source, ..Sentence::default() };
        let refuse =
            |error: PyErr| Failure::new("utf8", format!("read text: expected text that UTF-8 can hold: {error}"));
        return Ok(text.extract().map(plain).map_err(refuse));
    }
    match item.cast::<PyBytes>() {
        Ok(json) => Ok(serde_json::from_slice(json.as_bytes())
            .map_err(|error| Failure::new("input", format!("read sentence: {error}")))),
        Err(_) => Err(PyTypeError::new_err(format!("expected a text or a dict, got {}", item.get_type().name()?))),
    }
}

/// Translates with the longest first, so that slots that free up at the end wait for short ones only; signals end it.
fn translate(
    translator: &Translator,
    items: Vec<Item>,
    options: &Options,
) -> PyResult<Vec<Result<beamfuse::Translation, Failure>>> {
    let mut batch = translator.batch(&options.of_all).map_err(raised)?;
    let mut results: Vec<Option<Result<beamfuse::Translation, Failure>>> = items.iter().map(|_| None).collect();
    let mut waiting: Vec<(usize, Sentence)> = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        let sentence = item.and_then(|item| Ok(translator.sentence(item, &options.set, &options.of_all)?));
        match sentence {
            Ok(sentence) => waiting.push((at, sentence)),
            Err(failure) => results[at] = Some(Err(failure)),
        }
    }
    // Taken from the end.
    waiting.sort_by_key(|(at, sentence)| (sentence.source.len(), std::cmp::Reverse(*at)));
    let mut looked = Instant::now();
    loop {
        // Fewer than the queue takes: a push then does not wait, and signals are seen.
        while batch.outstanding() < MOST_UNDER_WAY
            && let Some((at, sentence)) = waiting.pop()
        {
            batch.push(at as u64, sentence);
        }
        match batch.next_within(LOOK_EVERY) {
            Some((at, result)) => results[at as usize] = Some(result.map_err(Failure::from)),
            None if batch.outstanding() == 0 => break,
            None => {}
        }
        if looked.elapsed() >= LOOK_EVERY {
            Python::attach(|py| py.check_signals())?;
            looked = Instant::now();
        }
    }
    let missing = || Err(Failure::new("engine_stopped", "translate: the engine has stopped"));
    Ok(results.into_iter().map(|result| result.unwrap_or_else(missing)).collect())
}

/// Sentences of one call that are under way at most.
const MOST_UNDER_WAY: usize = 1024;

/// Items that are worked on between two looks whether anyone still wants the rest.
const CHUNK: usize = 32;

/// Does work that waits on a thread of its own, while this one looks for signals.
fn in_chunks<T: Send + 'static, O: Send + 'static>(
    translator: &Arc<Translator>,
    items: Vec<T>,
    work: impl Fn(&Translator, &[T]) -> beamfuse::Result<Vec<beamfuse::Result<O>>> + Send + 'static,
) -> PyResult<Vec<Result<O, Failure>>> {
    let (sender, receiver) = channel();
    let given_up = Arc::new(AtomicBool::new(false));
    let (translator, stop) = (translator.clone(), given_up.clone());
    let run = move || {
        for chunk in items.chunks(CHUNK) {
            let done = work(&translator, chunk);
            if stop.load(Ordering::Relaxed) || sender.send(done).is_err() {
                return;
            }
        }
    };
    let started = std::thread::Builder::new().name("beamfuse-wait".into()).spawn(run);
    started.map_err(|error| Failure::new("io", format!("start thread: {error}")))?;
    let mut results = Vec::new();
    loop {
        match receiver.recv_timeout(LOOK_EVERY) {
            Ok(done) => results.extend(done.map_err(raised)?.into_iter().map(|result| result.map_err(Failure::from))),
            Err(RecvTimeoutError::Disconnected) => return Ok(results),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(signal) = Python::attach(|py| py.check_signals()) {
            given_up.store(true, Ordering::Relaxed);
            return Err(signal);
        }
    }
}

/// Results as objects: the first error is raised, or each stands in its place.
fn gather<T>(
    py: Python<'_>,
    results: Vec<Result<T, Failure>>,
    collect: bool,
    object: impl Fn(Python<'_>, T) -> PyResult<Py<PyAny>>,
) -> PyResult<Vec<Py<PyAny>>> {
    let each = results.into_iter().map(|result| match result {
        Ok(found) => object(py, found),
        Err(failure) if collect => Ok(failure.exception(py)?.unbind()),
        Err(failure) => Err(failure.into()),
    });
    each.collect()
}
