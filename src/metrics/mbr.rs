//! Minimum Bayes risk: of many texts that say the same, the one that the others agree with most (Kumar & Byrne 2004; with
//! samples as both candidates and references: Eikema & Aziz 2020).

use std::collections::HashMap;

use super::bleu::BleuStats;
use super::chrf::ChrfStats;

/// What a text gains from being close to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Utility {
    /// Sentence chrF2.
    Chrf,
    /// Sentence BLEU, smoothed, over the orders that the text is long enough for.
    Bleu,
}

/// The mean utility of each text, 0..=100, with all of the texts, itself among them, as references of equal weight.
///
/// Statistics are taken once per different text, and different texts alone are compared.
pub fn expected_utilities<T: AsRef<str>>(texts: &[T], utility: Utility) -> Vec<f64> {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut distinct: Vec<(&str, f64)> = Vec::new();
    let mut number = |text| {
        let number = *numbers.entry(text).or_insert(distinct.len());
        if number == distinct.len() {
            distinct.push((text, 0.0));
        }
        distinct[number].1 += 1.0;
        number
    };
    let of_text: Vec<usize> = texts.iter().map(|text| number(text.as_ref())).collect();
    let means = match utility {
        Utility::Chrf => means(&distinct, ChrfStats::new, ChrfStats::score_both),
        Utility::Bleu => means(&distinct, BleuStats::new, |a, b| [a.score(b), b.score(a)]),
    };
    of_text.into_iter().map(|number| means[number]).collect()
}

/// The mean score of each text against all, a weight beside each; `score` compares two both ways.
fn means<S>(texts: &[(&str, f64)], prepare: fn(&str) -> S, score: fn(&S, &S) -> [f64; 2]) -> Vec<f64> {
    let prepared: Vec<S> = texts.iter().map(|(text, _)| prepare(text)).collect();
    let mut sums = vec![0.0; texts.len()];
    for i in 0..texts.len() {
        sums[i] += texts[i].1 * score(&prepared[i], &prepared[i])[0];
        for j in i + 1..texts.len() {
            let [own, other] = score(&prepared[i], &prepared[j]);
            sums[i] += texts[j].1 * own;
            sums[j] += texts[i].1 * other;
        }
    }
    let weights: f64 = texts.iter().map(|(_, weight)| weight).sum();
    sums.into_iter().map(|sum| sum / weights).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{sentence_bleu, sentence_chrf};

    #[test]
    fn utilities_are_means_over_all_texts() {
        let texts = ["Ein Hund läuft.", "Der Hund läuft.", "Ein Hund läuft.", "Eine Katze schläft im Haus.", ""];
        for utility in [Utility::Chrf, Utility::Bleu] {
            let score = |text: &str, other: &str| match utility {
                Utility::Chrf => sentence_chrf(text, &[other]),
                Utility::Bleu => sentence_bleu(text, &[other]),
            };
            let expected: Vec<f64> = texts
                .iter()
                .map(|text| texts.iter().map(|other| score(text, other)).sum::<f64>() / texts.len() as f64)
                .collect();
            let actual = expected_utilities(&texts, utility);
            assert!(actual.iter().zip(&expected).all(|(a, e)| (a - e).abs() < 1e-9), "{actual:?} for {expected:?}");
            assert_eq!(actual[0], actual[2]);
            assert!(actual[0] > actual[1] && actual[1] > actual[3]);
        }
        assert_eq!(expected_utilities(&[""; 0], Utility::Chrf), [0.0; 0]);
    }
}
