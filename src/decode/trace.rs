//! One sentence's search, step by step, for people who want to see why it took the way it took.
//!
//! It runs in a session of its own and reads the state back after every step. A sentence's result does not depend on the
//! session, so this is the search that anyone else's translation of the sentence goes through.

use crate::Result;
use crate::backend::{Backend, Finished, Search, SessionShape};
use crate::decode::hypothesis::Hypothesis;
use crate::decode::request::Request;
use crate::decode::session::{Admission, Session};
use crate::model::Seq2Seq;

/// A whole search.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// One entry per generated token, the first at index 0.
    pub steps: Vec<TraceStep>,
    /// The finished hypotheses, best first, with their attention.
    pub hypotheses: Vec<Hypothesis>,
}

/// What one step left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceStep {
    /// The live hypotheses after the step, best first; none after the last one.
    pub live: Vec<LiveBeam>,
    /// The hypotheses that the step added to the best finished ones.
    pub finished: Vec<FinishedBeam>,
}

/// A live hypothesis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveBeam {
    /// Its latest token.
    pub token: u32,
    /// Its place among the live ones of the step before; 0 at the first step.
    pub parent: usize,
    /// The model's own log-probability of the token.
    pub log_prob: f32,
    /// Sum of what the search ranked.
    pub search_log_prob: f32,
}

/// A hypothesis that has finished.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FinishedBeam {
    /// Its place among the live ones of the step before.
    pub parent: usize,
    /// The model's own log-probability of its end of sentence; none if it ended without.
    pub eos_log_prob: Option<f32>,
    /// Sum of what the search ranked.
    pub search_log_prob: f32,
    /// Its score.
    pub score: f32,
    /// Its place in [`Trace::hypotheses`]; none if better ones came later.
    pub rank: Option<usize>,
}

/// Searches for the translations of one sentence and records every step.
///
/// # Errors
/// Logits that are not finite, or a failed device operation.
pub(super) fn trace<B: Backend, M: Seq2Seq<B>>(backend: &B, models: &[M], request: &Request) -> Result<Trace> {
    let shape = SessionShape { keep_attention: true, ..request.grown(None, 1) };
    let mut session = Session::open(backend, models, shape)?;
    session.admit(backend, models, &[Admission { slot: 0, ticket: 0, request }])?;
    let mut steps: Vec<Vec<LiveBeam>> = Vec::new();
    let mut sets: Vec<Vec<Finished>> = Vec::new();
    loop {
        session.step(backend, models)?;
        // Once nothing lives, steps only carry the result out.
        if steps.last().is_none_or(|live| !live.is_empty()) {
            let (live, finished) = read_step(backend, session.search())?;
            steps.push(live);
            sets.push(finished);
        }
        let mut ended = None;
        session.harvest(backend, |_, result| ended = Some(result))?;
        if let Some(hypotheses) = ended {
            let last = sets.last().cloned().unwrap_or_default();
            let finished = newly_finished(&sets, &last);
            let steps = steps.into_iter().zip(finished).map(|(live, finished)| TraceStep { live, finished }).collect();
            return Ok(Trace { steps, hypotheses: request.keep_met(hypotheses?)? });
        }
    }
}

/// The only slot's live hypotheses, and its finished ones, best first.
fn read_step<B: Backend>(backend: &B, search: &Search<B>) -> Result<(Vec<LiveBeam>, Vec<Finished>)> {
    let mut counts = [0; 3];
    for (count, from) in counts.iter_mut().zip([&search.step, &search.live, &search.finished_count]) {
        backend.read(from, 0, std::slice::from_mut(count))?;
    }
    let [step, live, finished_count] = counts.map(|count| count as usize);
    let mut finished: Vec<Finished> = vec![bytemuck::Zeroable::zeroed(); finished_count];
    backend.read(&search.finished, 0, bytemuck::cast_slice_mut(&mut finished))?;
    let at = step.saturating_sub(1) * search.shape.beam_size;
    let (mut tokens, mut parents) = (vec![0; live], vec![0; live]);
    let (mut log_probs, mut sums) = (vec![0.0; live], vec![0.0; live]);
    backend.read(&search.tokens, at, &mut tokens)?;
    backend.read(&search.parents, at, &mut parents)?;
    backend.read(&search.log_probs, at, &mut log_probs)?;
    backend.read(&search.cum_log_probs, 0, &mut sums)?;
    let beam = |b: usize| LiveBeam {
        token: tokens[b],
        parent: parents[b] as usize,
        log_prob: log_probs[b],
        search_log_prob: sums[b],
    };
    Ok(((0..live).map(beam).collect(), finished))
}

/// For each step's finished set what was not in the set before, with its place in `last`.
fn newly_finished(sets: &[Vec<Finished>], last: &[Finished]) -> Vec<Vec<FinishedBeam>> {
    let nothing = Vec::new();
    let before = std::iter::once(&nothing).chain(sets);
    let beam = |f: &Finished| FinishedBeam {
        parent: f.beam as usize,
        eos_log_prob: (f.has_eos != 0).then_some(f.eos_log_prob),
        search_log_prob: f.search_log_prob,
        score: f.score,
        rank: last.iter().position(|other| other == f),
    };
    let added = |(set, before): (&Vec<Finished>, &Vec<Finished>)| {
        set.iter().filter(|f| !before.contains(f)).map(beam).collect()
    };
    sets.iter().zip(before).map(added).collect()
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
