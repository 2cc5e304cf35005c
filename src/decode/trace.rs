//! One sentence's search, step by step, for people who want to see why it took the way it took.
//!
//! It is a sentence like any other, in the same session, that is watched: what every step left of it is copied out behind the
//! step. So this is the search that anyone else's translation of the sentence goes through.

use crate::backend::Finished;
use crate::decode::hypothesis::Hypothesis;
use crate::decode::observation::Observation;

pub use crate::decode::observation::LiveBeam;

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

/// Collects what the steps leave.
#[derive(Debug, Default)]
pub(super) struct Tracer {
    live: Vec<Vec<LiveBeam>>,
    finished: Vec<Vec<Finished>>,
}

impl Tracer {
    /// The next step.
    pub(super) fn step(&mut self, Observation { live, finished, .. }: Observation) {
        self.live.push(live);
        self.finished.push(finished);
    }

    /// The search that ended with these hypotheses.
    pub(super) fn trace(self, hypotheses: Vec<Hypothesis>) -> Trace {
        let last = self.finished.last().cloned().unwrap_or_default();
        let finished = newly_finished(&self.finished, &last);
        let steps = self.live.into_iter().zip(finished).map(|(live, finished)| TraceStep { live, finished });
        Trace { steps: steps.collect(), hypotheses }
    }
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
