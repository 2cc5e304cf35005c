//! Minimum Bayes risk: the candidates in order of how much the others agree with them.

use super::TextHypothesis;
use crate::metrics::{Utility, expected_utilities};

/// Gives each candidate its expected utility against all of them, and sorts by it, the largest first, ties by log-probability,
/// then in the order given.
pub(super) fn rank(candidates: &mut [TextHypothesis], utility: Utility) {
    let texts: Vec<&str> = candidates.iter().map(|candidate| candidate.text.as_str()).collect();
    let utilities = expected_utilities(&texts, utility);
    for (candidate, utility) in candidates.iter_mut().zip(utilities) {
        candidate.utility = Some(utility);
    }
    let value = |candidate: &TextHypothesis| candidate.utility.unwrap_or_default();
    candidates.sort_by(|a, b| value(b).total_cmp(&value(a)).then(b.log_prob.total_cmp(&a.log_prob)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hypothesis;

    #[test]
    fn agreement_ranks_before_probability_and_probability_among_equals() {
        let candidate = |text: &str, log_prob: f32| TextHypothesis {
            text: text.to_owned(),
            tokens: Vec::new(),
            utility: None,
            ids: Hypothesis { log_prob, ..Hypothesis::empty() },
        };
        let mut candidates = [
            candidate("etwas ganz anderes", -1.0),
            candidate("ein Hund läuft", -3.0),
            candidate("ein Hund läuft", -2.0),
            candidate("ein Hund läuft", -4.0),
            candidate("ein Hund läuft schnell", -9.0),
        ];
        rank(&mut candidates, Utility::Chrf);
        let order: Vec<f32> = candidates.iter().map(|c| c.log_prob).collect();
        assert_eq!(order, [-2.0, -3.0, -4.0, -9.0, -1.0]);
        assert!(candidates[2].utility == candidates[0].utility && candidates[3].utility > candidates[4].utility);
    }
}
