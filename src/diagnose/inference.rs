//! Value against null: intervals over lines and draws, and the tests that rules are.
//!
//! If the model were the data, each line's reference and its sampled ones would be drawn from one distribution, given the source, and
//! calling another of them the real one would change nothing. That is what is permuted, within each line.

use rayon::prelude::*;
use serde::Serialize;

use super::estimate::Estimate;
use super::sums::{Rule, Statistic, Sums, Worse};
use crate::Result;
use crate::cpu::philox::philox;
use crate::metrics::{BootstrapOptions, resamples};

/// The probability with which any rule fires where none should, at most.
pub const LEVEL: f64 = 0.05;

/// A statistic of the test set's references, of the null, and of the one less the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Of the test set's references.
    pub value: Estimate,
    /// The mean over the sampled sets of references.
    pub null: Estimate,
    /// Value minus null, over the same lines.
    pub difference: Estimate,
}

/// What the test of a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Test {
    /// The rule.
    pub rule: Rule,
    /// The probability of a largest standardised difference at least as large, were the references the model's own samples; not a
    /// number where there is nothing to test.
    pub p: f64,
    /// The same after Holm's correction for the number of rules.
    pub adjusted_p: f64,
    /// The statistic with the largest standardised difference; none where nothing can be computed.
    #[serde(skip)]
    pub largest: Option<usize>,
    /// That difference, in standard deviations of its permutations; positive is worse.
    pub standardised: f64,
}

/// Sums over some lines for each set of references.
fn totals(sets: &[&[Sums]], lines: impl Iterator<Item = usize> + Clone) -> Vec<Sums> {
    let total = |set: &&[Sums]| {
        let mut sum = Sums::default();
        lines.clone().for_each(|line| sum += &set[line]);
        sum
    };
    sets.iter().map(total).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// The first set's value less the mean of the others'.
fn difference(statistic: &Statistic, totals: &[Sums]) -> f64 {
    statistic.of(&totals[0]) - mean(totals[1..].iter().map(|t| statistic.of(t)))
}

/// Compares the first of some sets of references with the others: each resample draws lines, the same for all sets, and draws among
/// the others.
///
/// # Errors
/// No lines, no resamples.
pub fn compare(statistics: &[Statistic], sets: &[&[Sums]], options: &BootstrapOptions) -> Result<Vec<Compared>> {
    let lines = sets.first().map_or(0, |set| set.len());
    let draws: Vec<Vec<usize>> = resamples(lines, options)?.collect();
    let others = sets.len() - 1;
    let whole = totals(sets, 0..lines);
    let resampled: Vec<Vec<[f64; 3]>> = draws
        .par_iter()
        .enumerate()
        .map(|(number, draw)| {
            let totals = totals(sets, draw.iter().copied());
            let chosen = |k: usize| 1 + pick(options.seed, [number as u32, k as u32, 0, 0x6472_6177], others);
            let each = |statistic: &Statistic| {
                let null = mean((0..others).map(|k| statistic.of(&totals[chosen(k)])));
                let value = statistic.of(&totals[0]);
                [value, null, value - null]
            };
            statistics.iter().map(each).collect()
        })
        .collect();
    let estimate = |at: usize, part: usize, value: f64| {
        let values: Vec<f64> = resampled.iter().map(|r| r[at][part]).filter(|v| v.is_finite()).collect();
        Estimate::of(value, values)
    };
    let compared = |(at, statistic): (usize, &Statistic)| {
        let value = statistic.of(&whole[0]);
        let null = mean(whole[1..].iter().map(|t| statistic.of(t)));
        Compared {
            value: estimate(at, 0, value),
            null: estimate(at, 1, null),
            difference: estimate(at, 2, value - null),
        }
    };
    Ok(statistics.iter().enumerate().map(compared).collect())
}

/// A number below `count` that depends on key and counter alone.
fn pick(key: u64, counter: [u32; 4], count: usize) -> usize {
    ((u64::from(philox(key, counter)[0]) * count as u64) >> 32) as usize
}

/// The differences after a permutation of each line's references among the sets.
fn permuted(statistics: &[&Statistic], sets: &[&[Sums]], (seed, number): (u64, usize)) -> Vec<f64> {
    let mut totals = vec![Sums::default(); sets.len()];
    let mut order: Vec<usize> = (0..sets.len()).collect();
    for (line, _) in sets[0].iter().enumerate() {
        for at in (1..order.len()).rev() {
            order.swap(at, pick(seed, [number as u32, line as u32, at as u32, 0x7065_726d], at + 1));
        }
        totals.iter_mut().zip(&order).for_each(|(total, &set)| *total += &sets[set][line]);
    }
    statistics.iter().map(|statistic| difference(statistic, &totals)).collect()
}

/// Tests every rule that has a statistic: the largest standardised difference over its statistics, against the same after
/// `permutations` permutations (Westfall & Young 1993), then Holm (1979) over the rules.
pub fn test(statistics: &[Statistic], sets: &[&[Sums]], permutations: usize, seed: u64) -> Vec<Test> {
    let triggers: Vec<(usize, Rule, Worse)> =
        statistics.iter().enumerate().filter_map(|(at, s)| s.triggers.map(|(rule, worse)| (at, rule, worse))).collect();
    let tested: Vec<&Statistic> = triggers.iter().map(|(at, ..)| &statistics[*at]).collect();
    let observed: Vec<f64> = {
        let totals = totals(sets, 0..sets[0].len());
        tested.iter().map(|statistic| difference(statistic, &totals)).collect()
    };
    let mut all: Vec<Vec<f64>> =
        (0..permutations).into_par_iter().map(|number| permuted(&tested, sets, (seed, number))).collect();
    all.push(observed);
    standardise(&mut all, &triggers.iter().map(|(.., worse)| *worse).collect::<Vec<_>>());
    let largest = |row: &[f64], rule: Rule| {
        let of_rule = triggers.iter().zip(row).filter(|((_, r, _), z)| *r == rule && z.is_finite());
        of_rule.map(|((at, ..), z)| (*z, *at)).max_by(|a, b| a.0.total_cmp(&b.0))
    };
    let of_rule = |rule: Rule| {
        let found = all.last().and_then(|row| largest(row, rule));
        let (standardised, p) = match found {
            None => (f64::NAN, f64::NAN),
            Some((z, _)) => {
                // The observed one counts itself.
                let as_large = all.iter().filter(|row| largest(row, rule).is_some_and(|(other, _)| other >= z)).count();
                (z, as_large as f64 / all.len() as f64)
            }
        };
        Test { rule, p, adjusted_p: p, largest: found.map(|(_, at)| at), standardised }
    };
    Rule::OF_REFERENCES.into_iter().map(of_rule).collect()
}

/// Divides each column by its standard deviation around 0, which permutations have by symmetry, and turns it so that above 0 is worse.
fn standardise(rows: &mut [Vec<f64>], worse: &[Worse]) {
    for (column, worse) in worse.iter().enumerate() {
        let finite: Vec<f64> = rows.iter().map(|row| row[column]).filter(|v| v.is_finite()).collect();
        let middle = mean(finite.iter().copied());
        let deviation = mean(finite.iter().map(|v| (v - middle).powi(2))).sqrt();
        let sign = if *worse == Worse::Above { 1.0 } else { -1.0 };
        // What never changes tells nothing, and rounding is no change.
        let scale = if deviation > 1e-9 * (1.0 + middle.abs()) { sign / deviation } else { f64::NAN };
        rows.iter_mut().for_each(|row| row[column] *= scale);
    }
}

/// Holm's correction: the p-values in ascending order times the number that is left, never falling.
pub(super) fn holm(tests: &mut [Test]) {
    let mut order: Vec<usize> = (0..tests.len()).filter(|&at| tests[at].p.is_finite()).collect();
    let count = order.len();
    order.sort_by(|&a, &b| tests[a].p.total_cmp(&tests[b].p));
    let mut least = 0.0f64;
    for (rank, at) in order.into_iter().enumerate() {
        least = least.max(tests[at].p * (count - rank) as f64).min(1.0);
        tests[at].adjusted_p = least;
    }
}

/// Whether the interval of a statistic's difference lies on its worse side of 0.
pub fn clear(statistic: &Statistic, difference: &Estimate) -> bool {
    match statistic.triggers {
        Some((_, Worse::Above)) => difference.low > 0.0,
        Some((_, Worse::Below)) => difference.high < 0.0,
        None => false,
    }
}

/// Whether a rule fires: its test says so after Holm's correction, and so does the interval of its largest difference.
pub fn fires(test: &Test, statistics: &[Statistic], compared: &[Compared]) -> bool {
    let is_clear = test.largest.is_some_and(|at| clear(&statistics[at], &compared[at].difference));
    test.adjusted_p <= LEVEL && is_clear
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::sums::statistics;

    fn options() -> BootstrapOptions {
        BootstrapOptions { resamples: 200, ..BootstrapOptions::default() }
    }

    /// Sets of lines with noise; the first is flagged, and found beyond gold, `shift` more often than the others.
    fn sets(count: usize, lines: usize, seed: u64, shift: f64) -> Vec<Vec<Sums>> {
        let chance = |set: usize, line: usize, what: u32| {
            f64::from(philox(seed, [set as u32, line as u32, what, 1])[0]) / 2f64.powi(32)
        };
        let one = |set: usize, line: usize| {
            let least = if set == 0 { 0.3 + shift } else { 0.3 };
            let below = |what: u32| f64::from(u8::from(chance(set, line, what) < least));
            let mut sums = Sums { lines: 1.0, tokens: 20.0, flagged: below(0), ..Sums::default() };
            for (bin, columns) in sums.positions.iter_mut().enumerate() {
                *columns = [1.0, below(1 + bin as u32), 0.5, 0.5];
            }
            sums
        };
        (0..count).map(|set| (0..lines).map(|line| one(set, line)).collect()).collect()
    }

    fn slices(sets: &[Vec<Sums>]) -> Vec<&[Sums]> {
        sets.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn a_difference_is_that_of_the_sets_and_its_interval_holds_it() {
        let sets = sets(6, 120, 3, 0.3);
        let statistics = statistics(&sets[0]);
        let compared = compare(&statistics, &slices(&sets), &options()).expect("lines");
        let at = statistics.iter().position(|s| s.name() == "flagged lines").expect("a statistic");
        let share = |set: &[Sums]| set.iter().map(|s| s.flagged).sum::<f64>() / 120.0;
        let null = sets[1..].iter().map(|set| share(set)).sum::<f64>() / 5.0;
        let Compared { value, null: found, difference } = compared[at];
        assert!((value.value - share(&sets[0])).abs() < 1e-12 && (found.value - null).abs() < 1e-12);
        assert!((difference.value - value.value + null).abs() < 1e-12);
        assert!(difference.low > 0.1 && difference.low < difference.value && difference.value < difference.high);
        // Drawing among the sampled sets, too, makes the null's interval wider than drawing lines alone would.
        assert!(found.high - found.low > 0.03, "{found:?}");
    }

    #[test]
    fn a_planted_difference_fires_its_rules_and_none_else() {
        let sets = sets(6, 120, 4, 0.3);
        let statistics = statistics(&sets[0]);
        let compared = compare(&statistics, &slices(&sets), &options()).expect("lines");
        let mut tests = test(&statistics, &slices(&sets), 199, 1);
        holm(&mut tests);
        let fired: Vec<Rule> = tests.iter().filter(|t| fires(t, &statistics, &compared)).map(|t| t.rule).collect();
        assert_eq!(fired, [Rule::Gap, Rule::Source]);
        // What cannot be computed has no test.
        assert!(tests.iter().any(|t| t.rule == Rule::Short && t.largest.is_none() && t.p.is_nan()));
    }

    #[test]
    fn the_sign_of_a_difference_counts() {
        let sets = sets(6, 120, 4, -0.3);
        let statistics = statistics(&sets[0]);
        let mut tests = test(&statistics, &slices(&sets), 199, 1);
        holm(&mut tests);
        assert!(tests.iter().all(|t| !t.p.is_finite() || t.p > 0.5), "{tests:?}");
    }

    #[test]
    fn exchangeable_references_fire_as_often_as_the_level_says() {
        let (runs, mut fired) = (200, 0);
        for run in 0..runs {
            let sets = sets(4, 40, 1000 + run, 0.0);
            let statistics = statistics(&sets[0]);
            let mut tests = test(&statistics, &slices(&sets), 99, run);
            holm(&mut tests);
            fired += usize::from(tests.iter().any(|t| t.adjusted_p <= LEVEL));
        }
        // 5% of 200 are 10; 18 or more have a probability of 1%.
        assert!((1..18).contains(&fired), "{fired} of {runs}");
    }

    #[test]
    fn holm_by_hand() {
        let test = |p: f64, largest| Test { rule: Rule::Gap, p, adjusted_p: p, largest, standardised: 0.0 };
        let mut tests = [test(0.04, Some(0)), test(0.01, Some(1)), test(0.03, Some(2)), test(f64::NAN, None)];
        holm(&mut tests);
        assert_eq!(tests[..3].iter().map(|t| t.adjusted_p).collect::<Vec<_>>(), [0.06, 0.03, 0.06]);
    }
}
