//! Word alignment beside a line of text, as Marian writes it.

use std::str::FromStr;

use crate::{Error, Hypothesis, Result};

/// Which pairs of source and target tokens to write. Positions count from 0; both sides end with the end of sentence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Alignment {
    /// `source-target` for each target token, the source token being the one with the most attention, ties to the first.
    Hard,
    /// For each target token the attention to every source token, commas between them; a space between target tokens.
    Soft,
    /// `source-target` for all pairs with more attention than this.
    Above(f32),
}

impl FromStr for Alignment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse::<f32>()) {
            ("hard", _) => Ok(Alignment::Hard),
            ("soft", _) => Ok(Alignment::Soft),
            (_, Ok(threshold)) if (0.0..1.0).contains(&threshold) => Ok(Alignment::Above(threshold)),
            _ => {
                let expected = "hard, soft, or a weight from 0 to below 1".to_string();
                Err(Error::Option { option: "alignment", expected, got: text.to_string() })
            }
        }
    }
}

impl Alignment {
    /// The alignment of a hypothesis that carries its attention; nothing for one that does not. Pairs stand in the order of the
    /// source.
    pub(super) fn write(self, hypothesis: &Hypothesis) -> String {
        let weights = hypothesis.attention.as_deref().unwrap_or_default();
        let pairs = match self {
            Alignment::Soft => {
                let row = |row: &Vec<f32>| row.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
                return weights.iter().map(row).collect::<Vec<_>>().join(" ");
            }
            Alignment::Hard => hypothesis.alignment().unwrap_or_default().into_iter().zip(0..).collect(),
            Alignment::Above(threshold) => above(weights, threshold),
        };
        in_source_order(pairs).iter().map(|(i, j)| format!("{i}-{j}")).collect::<Vec<_>>().join(" ")
    }
}

fn above(weights: &[Vec<f32>], threshold: f32) -> Vec<(usize, usize)> {
    let row = |(j, row): (usize, &Vec<f32>)| {
        let strong = row.iter().enumerate().filter(|(_, weight)| **weight > threshold);
        strong.map(|(i, _)| (i, j)).collect::<Vec<_>>()
    };
    weights.iter().enumerate().flat_map(row).collect()
}

fn in_source_order(mut pairs: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    pairs.sort_unstable();
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(alignment: &str) -> String {
        let attention = Some(vec![vec![0.25, 0.5, 0.25], vec![0.5, 0.125, 0.375], vec![0.0, 0.5, 0.5]]);
        alignment.parse::<Alignment>().expect("a form").write(&Hypothesis { attention, ..Hypothesis::empty() })
    }

    #[test]
    fn pairs_stand_in_the_order_of_the_source() {
        assert_eq!(written("hard"), "0-1 1-0 1-2");
        assert_eq!(written("0.3"), "0-1 1-0 1-2 2-1 2-2");
        assert_eq!(written("0.5"), "");
        assert_eq!(written("soft"), "0.25,0.5,0.25 0.5,0.125,0.375 0,0.5,0.5");
    }

    #[test]
    fn a_blank_line_and_a_hypothesis_without_attention_have_none() {
        for form in [Alignment::Hard, Alignment::Soft, Alignment::Above(0.1)] {
            assert_eq!(form.write(&Hypothesis::empty()), "");
        }
        for wrong in ["", "1", "-0.1", "NaN", "firm"] {
            assert!(wrong.parse::<Alignment>().is_err(), "{wrong}");
        }
    }
}
