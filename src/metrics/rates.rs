//! Shares of tokens that tell a degenerate output: how much it repeats itself, how much it copies its source.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// The share of a text's n-grams that stand earlier in it: 1 - distinct / all, 0..=1 (seq-rep-n, Welleck et al. 2020).
///
/// Tokens may be ids or words. 0 for a text shorter than `order` tokens, or `order` 0.
pub fn repetition_rate<T: Eq + Hash>(tokens: &[T], order: usize) -> f64 {
    if order == 0 || tokens.len() < order {
        return 0.0;
    }
    let all = tokens.len() + 1 - order;
    let distinct = tokens.windows(order).collect::<HashSet<_>>().len();
    1.0 - distinct as f64 / all as f64
}

/// The share of a target's tokens that are also in its source, 0..=1; 0 for an empty target.
///
/// Each source token accounts for one target token, so that a target which repeats one source word is not all copy.
pub fn copy_rate<T: Eq + Hash>(source: &[T], target: &[T]) -> f64 {
    if target.is_empty() {
        return 0.0;
    }
    let mut left: HashMap<&T, usize> = HashMap::new();
    for token in source {
        *left.entry(token).or_default() += 1;
    }
    let mut copied = 0;
    for token in target {
        if let Some(count) = left.get_mut(token).filter(|count| **count > 0) {
            *count -= 1;
            copied += 1;
        }
    }
    copied as f64 / target.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_counts_every_occurrence_but_the_first() {
        assert_eq!(repetition_rate(&[1, 2, 1, 2, 1], 1), 0.6);
        assert_eq!(repetition_rate(&[1, 2, 1, 2, 1], 2), 0.5);
        assert_eq!(repetition_rate(&["a", "b", "c"], 1), 0.0);
        assert_eq!(repetition_rate(&[7; 10], 4), 1.0 - 1.0 / 7.0);
    }

    #[test]
    fn texts_too_short_to_repeat_have_rate_zero() {
        assert_eq!(repetition_rate(&[1, 1], 3), 0.0);
        assert_eq!(repetition_rate::<u32>(&[], 1), 0.0);
        assert_eq!(repetition_rate(&[1, 1], 0), 0.0);
    }

    #[test]
    fn a_source_token_is_copied_once() {
        assert_eq!(copy_rate(&["a", "b"], &["a", "a", "c", "a"]), 0.25);
        assert_eq!(copy_rate(&["a", "b", "a"], &["a", "a", "b", "b"]), 0.75);
        assert_eq!(copy_rate(&[1, 2], &[1, 2]), 1.0);
        assert_eq!(copy_rate(&[1], &[]), 0.0);
        assert_eq!(copy_rate(&[], &[1]), 0.0);
    }
}
