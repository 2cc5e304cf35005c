//! Decoding on a device and on the CPU at once, held together operation by operation.

mod backend;
mod both;
mod log;

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

pub use backend::Lockstep;
pub use both::take_over;
pub use log::{Log, Phase};

use super::report::CheckRow;
use crate::Result;
use crate::backend::{Backend, SessionShape};
use crate::cuda::{Context, Element};
use crate::decode::session::{Admission, Session};
use crate::decode::{DecodeOptions, Hypothesis, Request};
use crate::model::{Marian, Seq2Seq, config::ModelConfig};

/// Sentences decoded at once: fewer than there are, so that slots are refilled at different steps.
const SLOTS: usize = 3;
const BEAMS: usize = 4;

/// What is decoded.
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a> {
    /// The model's directory.
    pub dir: &'a Path,
    /// Source ids, end of sentence included.
    pub sources: &'a [Vec<u32>],
}

/// Translates sources, every operation compared on equal inputs.
///
/// # Errors
/// The model cannot be opened; the device failed.
pub fn check<T: Element>(context: Context, decode: Decode<'_>) -> Result<CheckRow> {
    let start = Instant::now();
    let config = ModelConfig::open(decode.dir)?;
    let backend = Lockstep::<T>::new(context, Log::new(config.encoder.layers))?;
    let model = Marian::open(&backend, decode.dir)?;
    let translated = translate(&backend, &model, decode.sources)?;
    let mut log = backend.log();
    let compared = log.compared;
    if translated < decode.sources.len() {
        log.differences.push(format!("{translated} of {} sentences came to an end", decode.sources.len()));
    }
    Ok(CheckRow {
        name: format!("lockstep {}", T::DTYPE.name()),
        compared,
        unit: "operations",
        seconds: start.elapsed().as_secs_f64(),
        notes: Vec::new(),
        failures: std::mem::take(&mut log.differences),
    })
}

/// Runs all sentences through a session; returns how many ended well.
fn translate<T: Element>(backend: &Lockstep<T>, model: &Marian<Lockstep<T>>, sources: &[Vec<u32>]) -> Result<usize> {
    let options = DecodeOptions { beam_size: BEAMS, coverage_penalty: 0.1, ..DecodeOptions::default() };
    let request = |source: &Vec<u32>| Request {
        source: source.clone(),
        options: options.for_slot(source.len(), model.max_len()),
        n_best: 1,
        ..Request::default()
    };
    let requests: Vec<Request> = sources.iter().map(request).collect();
    let longest = requests.iter().map(|request| request.options.max_len as usize).max().unwrap_or(1);
    let shape = SessionShape {
        slots: SLOTS,
        beam_size: BEAMS,
        max_len: longest,
        max_src_len: sources.iter().map(Vec::len).max().unwrap_or(1),
        rows: SLOTS * BEAMS,
        keep_attention: false,
    };
    let models = std::slice::from_ref(model);
    let mut session = Session::open(backend, models, shape)?;
    let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
    let (mut ended, mut steps) = (0, 0);
    while !waiting.is_empty() || !session.is_empty() {
        let free: Vec<usize> = session.free_slots().collect();
        let mut admissions = Vec::new();
        for slot in free {
            let Some(next) = waiting.pop_front() else { break };
            admissions.push(Admission { slot, ticket: next as u64, request: &requests[next] });
        }
        if !admissions.is_empty() {
            backend.log().begin(Phase::Encode);
            backend.run(|| session.admit(backend, models, &admissions))?;
        }
        steps += 1;
        backend.log().begin(Phase::Step(steps));
        backend.run(|| session.step(backend, models))?;
        session.harvest(backend, |_, result: Result<Vec<Hypothesis>>| ended += usize::from(result.is_ok()))?;
        // Past this every search has ended by its own limit: what goes on is broken.
        if steps > longest * requests.len() || !backend.log().differences.is_empty() {
            break;
        }
    }
    Ok(ended)
}
