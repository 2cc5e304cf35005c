//! Decoding on a device and on the CPU at once, held together operation by operation.

mod backend;
mod both;
mod log;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub use backend::Lockstep;
pub use both::take_over;
pub use log::{Log, Phase};

use super::report::CheckRow;
use super::watch::Beat;
use crate::Result;
use crate::backend::{ContrastiveForm, Device as _, SessionShape};
use crate::cuda::Cuda;
use crate::decode::session::{Admission, Receive, Session};
use crate::decode::{Bans, DecodeOptions, Hypothesis, Limits, Request, SentenceIds};
use crate::model::{Seq2Seq, Transformer, config::ModelConfig};

/// Sentences decoded at once: fewer than there are, so that slots are refilled at different steps.
const SLOTS: usize = 3;
const BEAMS: usize = 4;
/// Kinds of requests in a mixture.
pub const MIXTURE: usize = 7;
/// The scorer that reads another source: behind those of two models.
const OTHER_SOURCE: usize = 2;

/// What is decoded.
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a> {
    /// The model's directory.
    pub dir: &'a Path,
    /// Source ids, end of sentence included.
    pub sources: &'a [Vec<u32>],
    /// What the sentences ask for.
    pub requests: Requests,
    /// Where it says what it is at.
    pub beat: &'a Beat,
}

/// What sentences ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// Beam search, all of them.
    Plain,
    /// Each something else, in turn: bans and a prefix, a penalty on repetition, two forms of contrast, an ensemble, samples, groups
    /// of beams. Slots that ask for different things are decoded together.
    Mixed,
    /// All of them the same one of the mixture.
    Alike(usize),
}

/// Translates sources, every operation compared on equal inputs.
///
/// # Errors
/// The model cannot be opened; the device failed.
pub fn check(device: Cuda, decode: Decode<'_>) -> Result<CheckRow> {
    let start = Instant::now();
    let config = ModelConfig::open(decode.dir)?;
    let (context, dtype) = (device.context().clone(), device.dtype());
    let name = match decode.requests {
        Requests::Plain => format!("lockstep {}", dtype.name()),
        Requests::Mixed | Requests::Alike(_) => format!("lockstep mixed {}", dtype.name()),
    };
    let log = Log::new(name.clone(), config.encoder.layers, decode.beat.clone());
    let backend = Lockstep::new(device, log)?;
    let mut models = vec![Transformer::open(&backend, decode.dir)?];
    if decode.requests != Requests::Plain {
        // A companion with the same weights: each operation is compared on its own, so it need not be another one.
        models.push(Transformer::open(&backend, decode.dir)?);
    }
    let requests = requests(&models[0], decode)?;
    let translated = translate(&backend, &models, &requests)?;
    let algorithms = context.gemm_plans();
    let mut log = backend.log();
    let compared = log.compared;
    if translated < decode.sources.len() {
        log.differences.push(format!("{translated} of {} sentences came to an end", decode.sources.len()));
    }
    Ok(CheckRow {
        name,
        compared,
        unit: "operations",
        seconds: start.elapsed().as_secs_f64(),
        notes: Vec::new(),
        failures: std::mem::take(&mut log.differences),
        algorithms,
    })
}

/// A request for each source.
fn requests(model: &Transformer<Lockstep>, decode: Decode<'_>) -> Result<Vec<Request>> {
    let Decode { sources, requests, .. } = decode;
    let plain = DecodeOptions { beam_size: BEAMS, coverage_penalty: 0.1, ..DecodeOptions::default() };
    let request = |options: &DecodeOptions, sentence: SentenceIds| {
        let amateur = if sentence.contrast_source.is_empty() { 1 } else { OTHER_SOURCE };
        let request = Request::unchecked(options, sentence, Limits { table: model.max_len(), amateur });
        Request { n_best: 1, attention: false, ..request }
    };
    let kind = |i: usize| match requests {
        Requests::Plain => None,
        Requests::Mixed => Some(i % MIXTURE),
        Requests::Alike(kind) => Some(kind),
    };
    let vocab_size = model.vocab_size();
    let each = |(i, source): (usize, &Vec<u32>)| match kind(i) {
        None => Ok(request(&plain, source.clone().into())),
        Some(kind) => mixed(kind, (source, &sources[(i + 1) % sources.len()]), &plain, vocab_size, request),
    };
    sources.iter().enumerate().map(each).collect()
}

/// One kind of a mixture; `other` is the source that it may be contrasted with.
fn mixed(
    kind: usize,
    (source, other): (&Vec<u32>, &[u32]),
    plain: &DecodeOptions,
    vocab_size: usize,
    request: impl Fn(&DecodeOptions, SentenceIds) -> Request,
) -> Result<Request> {
    let own = || SentenceIds::from(source.clone());
    let contrast = |form: ContrastiveForm| {
        // The default leaves so few tokens that a sure model has one live beam, and kernels few rows to go wrong in.
        DecodeOptions { contrastive: Some(form), contrastive_mask: Some(1e-3), ..plain.clone() }
    };
    Ok(match kind {
        0 => {
            let bans = Bans::new(vocab_size, &[5, 17], None, &[vec![7, 8], vec![9, 10, 11]])?;
            let options = DecodeOptions { no_repeat_ngram: 2, bans: Some(Arc::new(bans)), ..plain.clone() };
            // Whatever they mean.
            request(&options, SentenceIds { prefix: vec![12, 13], ..own() })
        }
        1 => request(&DecodeOptions { repetition_penalty: 1.3, ..plain.clone() }, own()),
        2 => request(&contrast(ContrastiveForm::Li), own()),
        3 => {
            let options = contrast(ContrastiveForm::Source);
            request(&options, SentenceIds { contrast_source: other.to_vec(), ..own() })
        }
        4 => request(&DecodeOptions { ensemble: vec![0.5, 0.75], ..plain.clone() }, own()),
        5 => {
            let (samples, top_p, seed) = (BEAMS, 0.9, 11);
            // It outlives the others: then all rows are samples.
            let min_length = 20;
            let options = DecodeOptions { sample: true, samples, top_p, seed, min_length, ..DecodeOptions::default() };
            request(&options, own())
        }
        _ => request(&DecodeOptions { beam_groups: 2, coverage_penalty: 0.0, ..plain.clone() }, own()),
    })
}

/// Runs all sentences through a session; returns how many ended well.
fn translate(backend: &Lockstep, models: &[Transformer<Lockstep>], requests: &[Request]) -> Result<usize> {
    let longest = requests.iter().map(|request| request.options.max_len as usize).max().unwrap_or(1);
    let sources = requests.iter().map(|request| request.source.len().max(request.contrast_source.len()));
    let shape = SessionShape {
        slots: SLOTS,
        beam_size: BEAMS,
        max_len: longest,
        max_src_len: sources.max().unwrap_or(1),
        rows: SLOTS * BEAMS,
        keep_attention: false,
    };
    let mut session = Session::open(backend, models, shape)?;
    let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
    let (mut ended, mut steps) = (Ended(0), 0);
    while !waiting.is_empty() || !session.is_empty() {
        let free: Vec<usize> = session.free_slots().collect();
        let mut admissions = Vec::new();
        for slot in free {
            let Some(next) = waiting.pop_front() else { break };
            admissions.push(Admission { slot, ticket: next as u64, request: &requests[next], watched: false });
        }
        if !admissions.is_empty() {
            backend.log().begin(Phase::Encode);
            backend.run(|| session.admit(backend, models, &admissions))?;
        }
        steps += 1;
        backend.log().begin(Phase::Step(steps));
        backend.run(|| session.step(backend, models))?;
        session.harvest(backend, &mut ended)?;
        // Past this every search has ended by its own limit: what goes on is broken.
        if steps > longest * requests.len() || !backend.log().differences.is_empty() {
            break;
        }
    }
    Ok(ended.0)
}

/// Counts the sentences that have been translated.
struct Ended(usize);

impl Receive for Ended {
    fn ended(&mut self, _: u64, result: Result<Vec<Hypothesis>>) {
        self.0 += usize::from(result.is_ok());
    }
}
