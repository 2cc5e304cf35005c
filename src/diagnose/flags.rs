//! Which translations look like hallucinations, and why.

use std::collections::HashMap;

use super::tokens::top_ngram;
use crate::metrics::{sentence_chrf, tokenize_13a};

/// A hypothesis as the flags see it.
pub(super) struct Candidate<'a> {
    pub source: &'a str,
    pub hypothesis: &'a str,
    pub reference: &'a str,
    /// Per token.
    pub log_prob: f64,
}

/// For each line the reasons to take its translation for a hallucination.
pub(super) fn reasons(candidates: &[Candidate<'_>]) -> Vec<Vec<String>> {
    let (center, spread) = median_and_spread(candidates.iter().map(|c| c.log_prob).collect());
    let mut sources: HashMap<&str, Vec<&str>> = HashMap::new();
    for candidate in candidates {
        let known = sources.entry(candidate.hypothesis).or_default();
        if !known.contains(&candidate.source) {
            known.push(candidate.source);
        }
    }
    candidates.iter().map(|candidate| reasons_of(candidate, center, spread, &sources)).collect()
}

fn reasons_of(c: &Candidate<'_>, center: f64, spread: f64, sources: &HashMap<&str, Vec<&str>>) -> Vec<String> {
    let mut found = Vec::new();
    // Five times the median distance, as for outliers, and half a nat at least.
    let least = center - (5.0 * spread).max(0.5);
    if c.log_prob < least {
        found.push(format!("low log-probability: {:.2} per token, below {least:.2}", c.log_prob));
    }
    let (source, hypothesis) = (tokenize_13a(c.source), tokenize_13a(c.hypothesis));
    let difference = top_ngram(&hypothesis, 4) as i64 - top_ngram(&source, 4) as i64;
    if difference >= 2 {
        found.push(format!("repetition: its commonest 4-gram stands {difference} times more than in the source"));
    }
    let ratio = hypothesis.len() as f64 / source.len().max(1) as f64;
    if !(0.5..=2.0).contains(&ratio) {
        found.push(format!("length: {ratio:.2} tokens per source token"));
    }
    let shared = sources.get(c.hypothesis).map_or(0, Vec::len);
    if shared >= 2 {
        found.push(format!("same output: for {shared} different sources"));
    }
    let chrf = sentence_chrf(c.hypothesis, &[c.reference]);
    if chrf < 15.0 {
        found.push(format!("low chrF2: {chrf:.1}"));
    }
    found
}

/// The median, and the median distance from it; zeros for no values.
fn median_and_spread(mut values: Vec<f64>) -> (f64, f64) {
    let median = |values: &mut Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let center = median(&mut values);
    let mut distances: Vec<f64> = values.iter().map(|v| (v - center).abs()).collect();
    (center, median(&mut distances))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate<'a>(source: &'a str, hypothesis: &'a str, log_prob: f64) -> Candidate<'a> {
        Candidate { source, hypothesis, reference: "ein Hund läuft im Schnee", log_prob }
    }

    #[test]
    fn each_reason_is_found_alone() {
        let good = candidate("a dog runs in snow", "ein Hund läuft im Schnee", -0.3);
        let looping = "ein Hund läuft im ein Hund läuft im ein Hund läuft im";
        let lines = [
            candidate("a dog runs in snow", "ein Hund läuft im Schnee", -0.3),
            candidate("one dog is running here", "ein Hund läuft im Wald", -4.0),
            candidate("a b c d e f g h i j", looping, -0.3),
            candidate("a dog runs in the deep white snow today ok", "ein Hund im", -0.2),
            candidate("first other source here", "ein Hund im Schnee.", -0.25),
            candidate("second other source here", "ein Hund im Schnee.", -0.35),
            candidate("what is that there", "zzz qqq www xxx", -0.3),
        ];
        let found = reasons(&lines);
        let kinds: Vec<Vec<&str>> =
            found.iter().map(|r| r.iter().map(|r| r.split(':').next().unwrap_or("")).collect()).collect();
        let expected: [&[&str]; 7] = [
            &[],
            &["low log-probability"],
            &["repetition"],
            &["length"],
            &["same output"],
            &["same output"],
            &["low chrF2"],
        ];
        assert_eq!(kinds, expected);
        assert!(reasons(&[good]).concat().is_empty());
    }

    #[test]
    fn equal_sources_may_have_equal_outputs() {
        let line = || candidate("a dog runs in snow", "ein Hund läuft im Schnee", -0.3);
        assert!(reasons(&[line(), line(), line()]).concat().is_empty());
    }
}
