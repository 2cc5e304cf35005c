//! The tokens of a search that has not ended which are sure to be in its result.

use crate::backend::Finished;
use crate::decode::observation::Observation;

/// Follows a search and says which first tokens its result will have: those that all live hypotheses share with all finished
/// ones that are kept. The result descends from one of them, so what has been said once is never taken back.
///
/// Greedy search and a single sample settle each token at once, a beam some tokens later, when it has agreed on them.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The tokens of each live hypothesis.
    live: Vec<Vec<u32>>,
    /// Finished hypotheses with their tokens.
    finished: Vec<(Finished, Vec<u32>)>,
    /// Tokens that have been handed out.
    said: usize,
}

impl Settled {
    /// Takes the next step; returns the tokens that it settled. Hypotheses that the end of the search cuts are left to its result.
    pub(super) fn step(&mut self, eos_id: u32, observation: &Observation) -> Vec<u32> {
        let parent = |place: usize| self.live.get(place).cloned().unwrap_or_default();
        let known = std::mem::take(&mut self.finished);
        for finished in &observation.finished {
            let before = known.iter().find(|(other, _)| other == finished).map(|(_, tokens)| tokens.clone());
            let closed = || {
                let mut tokens = parent(finished.beam as usize);
                tokens.push(eos_id);
                tokens
            };
            self.finished.push((*finished, before.unwrap_or_else(closed)));
        }
        let extend = |beam: &crate::decode::trace::LiveBeam| {
            let mut tokens = parent(beam.parent);
            tokens.push(beam.token);
            tokens
        };
        self.live = observation.live.iter().map(extend).collect();
        // With nothing alive the search has ended.
        let Some((first, others)) = self.live.split_first() else { return Vec::new() };
        let others = others.iter().chain(self.finished.iter().map(|(_, tokens)| tokens));
        let shared = others.fold(first.len(), |shared, other| {
            first[..shared].iter().zip(other).take_while(|(ours, theirs)| ours == theirs).count()
        });
        let settled = first[self.said.min(shared)..shared].to_vec();
        self.said += settled.len();
        settled
    }

    /// The rest of the result.
    pub(super) fn rest(&self, result: &[u32]) -> Vec<u32> {
        result[self.said.min(result.len())..].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::trace::LiveBeam;

    fn live(token: u32, parent: usize) -> LiveBeam {
        LiveBeam { token, parent, log_prob: 0.0, search_log_prob: 0.0 }
    }

    fn ended(length: u32, beam: u32) -> Finished {
        Finished { length, beam, has_eos: 1, ..bytemuck::Zeroable::zeroed() }
    }

    fn steps(steps: &[(&[LiveBeam], &[Finished])]) -> Vec<Vec<u32>> {
        let mut settled = Settled::default();
        let observe = |(step, (live, finished)): (usize, &(&[LiveBeam], &[Finished]))| {
            let observation = Observation { step: step + 1, live: live.to_vec(), finished: finished.to_vec() };
            settled.step(0, &observation)
        };
        steps.iter().enumerate().map(observe).collect()
    }

    #[test]
    fn a_beam_settles_what_all_of_it_shares() {
        let told = steps(&[
            (&[live(5, 0), live(6, 0)], &[]),
            // Both go on from the first: its token is settled.
            (&[live(7, 0), live(8, 0)], &[]),
            (&[live(9, 1), live(4, 1)], &[]),
            (&[live(3, 1)], &[]),
        ]);
        assert_eq!(told, [vec![], vec![5], vec![8], vec![4, 3]]);
    }

    #[test]
    fn a_finished_hypothesis_holds_back_what_it_does_not_share_for_as_long_as_it_is_kept() {
        let first = ended(2, 0);
        let told = steps(&[
            (&[live(5, 0), live(6, 0)], &[]),
            // The first ends: 5, end of sentence. The second goes on alone.
            (&[live(7, 1)], &[first]),
            (&[live(8, 0)], &[first]),
            (&[live(9, 0)], &[ended(4, 0)]),
        ]);
        assert_eq!(told, [vec![], vec![], vec![], vec![6, 7, 8]]);
    }
}
