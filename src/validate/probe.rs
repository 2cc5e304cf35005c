//! What a check of a kernel goes through: it runs cases, and keeps what each of them came to.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use super::report::KernelRow;
use super::watch::Beat;
use crate::backend::Dtype;
use crate::check::{self, Tolerance};
use crate::cuda::Context;
use crate::{Error, Result};

/// How much of a grid is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// Every value of every factor with every value of every other one.
    Pairwise,
    /// Every combination, and shapes of the size that a GPU is made for.
    Full,
}

impl Grid {
    /// The combinations to run of factors with this many values each, as indices of values.
    pub fn combine<const N: usize>(self, sizes: [usize; N]) -> Vec<[usize; N]> {
        match self {
            Grid::Pairwise => pairwise(sizes),
            Grid::Full => product(sizes),
        }
    }

    /// `small`, and on the full grid `large` too.
    pub fn shapes<S: Copy>(self, small: &[S], large: &[S]) -> Vec<S> {
        let large = if self == Grid::Full { large } else { &[] };
        small.iter().chain(large).copied().collect()
    }
}

/// All combinations.
fn product<const N: usize>(sizes: [usize; N]) -> Vec<[usize; N]> {
    let total = sizes.iter().product();
    let combination = |mut number: usize| {
        sizes.map(|size| {
            let value = number % size;
            number /= size;
            value
        })
    };
    (0..total).map(combination).collect()
}

/// Few combinations in which each pair of values of two factors stands together at least once: each starts from a pair that is
/// missing, then takes, factor by factor, the value that stands in the most missing pairs with those taken.
fn pairwise<const N: usize>(sizes: [usize; N]) -> Vec<[usize; N]> {
    if N < 2 {
        return product(sizes);
    }
    // (factor, value) pairs, the lower factor first.
    let mut missing = BTreeSet::new();
    for (i, j) in (0..N).flat_map(|i| (i + 1..N).map(move |j| (i, j))) {
        missing.extend(product([sizes[i], sizes[j]]).into_iter().map(|[a, b]| ((i, a), (j, b))));
    }
    let mut chosen = Vec::new();
    while let Some(&(one, other)) = missing.first() {
        let mut taken = vec![one, other];
        for factor in (0..N).filter(|factor| ![one.0, other.0].contains(factor)) {
            let pair = |value: usize, with: (usize, usize)| ((factor, value).min(with), (factor, value).max(with));
            let gain = |value: &usize| taken.iter().filter(|with| missing.contains(&pair(*value, **with))).count();
            // Where nothing is gained any value will do: not always the same.
            let turn = |value: usize| (value + chosen.len()) % sizes[factor];
            let best = (0..sizes[factor]).map(turn).max_by_key(gain).unwrap_or(0);
            taken.push((factor, best));
        }
        taken.sort_unstable();
        for (i, one) in taken.iter().enumerate() {
            for other in &taken[i + 1..] {
                missing.remove(&(*one, *other));
            }
        }
        chosen.push(std::array::from_fn(|factor| taken[factor].1));
    }
    chosen
}

/// How many failures of a kernel are told in words.
const TOLD: usize = 5;

/// Runs cases on a device.
pub struct Probe<'a> {
    context: &'a Context,
    grid: Grid,
    op: &'static str,
    beat: &'a Beat,
    rows: Vec<KernelRow>,
    shard: Shard,
    /// Cases so far, those of other shards included.
    seen: usize,
}

/// A part of the cases: those whose number, counted from 0, leaves `index` when divided by `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { index: 0, count: 1 }
    }
}

impl Shard {
    /// Whether the case of this number belongs to it.
    pub fn has(self, number: usize) -> bool {
        number % self.count == self.index
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().ok();
        let parts = text.split_once('/').and_then(|(index, count)| Some((number(index)?, number(count)?)));
        match parts {
            Some((index, count)) if 1 <= index && index <= count => Ok(Shard { index: index - 1, count }),
            _ => Err("expected I/N with 1 <= I <= N, as in 2/4".to_owned()),
        }
    }
}

impl<'a> Probe<'a> {
    /// For the cases of one op, each of which is said to `beat`.
    pub fn new(context: &'a Context, grid: Grid, op: &'static str, beat: &'a Beat) -> Self {
        Probe { context, grid, op, beat, rows: Vec::new(), shard: Shard::default(), seen: 0 }
    }

    /// With the cases of a shard alone.
    #[must_use]
    pub fn of(self, shard: Shard) -> Self {
        Probe { shard, ..self }
    }

    /// The device.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// How much to run.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Runs a case of a kernel, unless it is another shard's, or the check is to end: `variant` tells the kernels of an op apart,
    /// `what` says what is special about the case.
    ///
    /// # Errors
    /// The device failed: it is of no use to any later case. What the kernel computed wrongly is no error, but kept.
    pub fn case(
        &mut self,
        variant: &'static str,
        dtype: Dtype,
        what: impl fmt::Display,
        run: impl FnOnce(&mut Case<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(at) = self.begin(variant, dtype, &what) else { return Ok(()) };
        let mut case = Case { context: self.context, dtype, row: &mut self.rows[at], wrong: None };
        let outcome = run(&mut case);
        let wrong = case.wrong.take();
        self.end(at, &what, wrong, &outcome);
        outcome
    }

    /// The row that a case counts for; none if it is not run.
    fn begin(&mut self, variant: &'static str, dtype: Dtype, what: &dyn fmt::Display) -> Option<usize> {
        self.seen += 1;
        if !self.shard.has(self.seen - 1) || self.beat.is_over() {
            return None;
        }
        self.beat.now(self.op, format!("{variant} {}: {what}", dtype.name()).trim_start());
        let at = self.rows.iter().position(|row| row.variant == variant && row.dtype == dtype.name());
        Some(at.unwrap_or_else(|| {
            self.rows.push(KernelRow::new(self.op, variant, dtype));
            self.rows.len() - 1
        }))
    }

    fn end(&mut self, at: usize, what: &dyn fmt::Display, wrong: Option<String>, outcome: &Result<()>) {
        let row = &mut self.rows[at];
        row.cases += 1;
        let failure = outcome.as_ref().err().map(ToString::to_string).or(wrong);
        if let Some(wrong) = failure {
            row.failed += 1;
            if row.failures.len() < TOLD {
                row.failures.push(format!("{what}: {wrong}"));
            }
        }
    }

    /// What all cases came to, a row per kernel; `ended` is how the check of the op ended.
    pub fn finish(mut self, ended: Result<()>) -> Vec<KernelRow> {
        // A device that failed outside of a case has no row yet to say so.
        if let Err(error) = ended
            && self.rows.iter().all(|row| row.failed == 0)
        {
            let mut row = KernelRow::new(self.op, "setup", Dtype::F32);
            row.failed = 1;
            row.failures.push(error.to_string());
            self.rows.push(row);
        }
        self.rows
    }
}

/// A case being run.
pub struct Case<'a> {
    /// The device.
    pub context: &'a Context,
    dtype: Dtype,
    row: &'a mut KernelRow,
    /// The first thing that was wrong.
    wrong: Option<String>,
}

impl Case<'_> {
    /// Launches a kernel that has to move `bytes`, and waits for it.
    ///
    /// # Errors
    /// The device failed.
    pub fn launch<R>(&mut self, bytes: usize, launch: impl FnOnce(&Context) -> Result<R>) -> Result<R> {
        self.context.synchronize()?;
        let start = Instant::now();
        let result = launch(self.context)?;
        self.context.synchronize()?;
        self.add_time(bytes, start.elapsed());
        Ok(result)
    }

    /// Counts a launch that has been timed elsewhere.
    pub fn add_time(&mut self, bytes: usize, time: Duration) {
        self.row.seconds += time.as_secs_f64();
        let rate = bytes as f64 / time.as_secs_f64().max(1e-9) / 1e9;
        self.row.best_rate = self.row.best_rate.max(rate);
    }

    /// Holds numbers to their reference.
    pub fn close(&mut self, name: &str, actual: &[f32], expected: &[f32], tolerance: Tolerance) {
        let close = Closeness::of(actual, expected, self.dtype);
        self.row.max_abs = self.row.max_abs.max(close.max_abs);
        self.row.max_ulp = self.row.max_ulp.max(close.max_ulp);
        if let Err(mismatch) = check::compare(actual, expected, tolerance) {
            self.wrong(format!("{name}: {mismatch}"));
        }
    }

    /// Holds numbers to others that must have the same bits.
    pub fn same_bits(&mut self, name: &str, actual: &[f32], expected: &[f32]) {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        self.same(name, &bits(actual), &bits(expected));
    }

    /// Holds decisions to their reference.
    pub fn same<V: PartialEq + fmt::Debug>(&mut self, name: &str, actual: &[V], expected: &[V]) {
        if actual == expected {
            return;
        }
        let at = actual.iter().zip(expected).position(|(a, e)| a != e);
        self.wrong(match at {
            Some(at) => format!("{name}[{at}]: expected {:?}, got {:?}", expected[at], actual[at]),
            None => format!("{name}: expected {} values, got {}", expected.len(), actual.len()),
        });
    }

    /// Says that something is wrong; the first counts.
    pub fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// Keeps what a comparison made elsewhere found.
    pub fn keep(&mut self, found: Result<Closeness, String>) {
        match found {
            Ok(close) => {
                self.row.max_abs = self.row.max_abs.max(close.max_abs);
                self.row.max_ulp = self.row.max_ulp.max(close.max_ulp);
            }
            Err(wrong) => self.wrong(wrong),
        }
    }
}

/// How far numbers lie from their reference at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Closeness {
    /// Among finite pairs.
    pub max_abs: f64,
    /// In units of the storage type's last place at the expected value; expected values below 2^-10 do not count, since a sum
    /// that cancels has no relative error to speak of.
    pub max_ulp: f64,
}

impl Closeness {
    /// Of all pairs.
    pub fn of(actual: &[f32], expected: &[f32], dtype: Dtype) -> Self {
        let mantissa_bits = match dtype {
            Dtype::F32 | Dtype::I8 => 23,
            Dtype::F16 => 10,
            Dtype::Bf16 => 7,
        };
        let mut most = Closeness::default();
        for (a, e) in actual.iter().zip(expected) {
            let (a, e) = (f64::from(*a), f64::from(*e));
            let difference = (a - e).abs();
            if difference.is_finite() {
                most.max_abs = most.max_abs.max(difference);
                if e.abs() >= 2f64.powi(-10) {
                    let unit = 2f64.powi(e.abs().log2().floor() as i32 - mantissa_bits);
                    most.max_ulp = most.max_ulp.max(difference / unit);
                }
            }
        }
        most
    }

    /// The farther of both.
    pub fn and(self, other: Self) -> Self {
        Closeness { max_abs: self.max_abs.max(other.max_abs), max_ulp: self.max_ulp.max(other.max_ulp) }
    }
}

/// Panics with what went wrong if any case of an op fails; for tests.
///
/// # Errors
/// The device failed.
#[cfg(test)]
pub fn assert_all_pass(context: &Context, op: &'static str, check: fn(&mut Probe<'_>) -> Result<()>) -> Result<()> {
    let beat = Beat::default();
    let mut probe = Probe::new(context, Grid::Pairwise, op, &beat);
    let ended = check(&mut probe);
    let rows = probe.finish(ended);
    let failures: Vec<&String> = rows.iter().flat_map(|row| &row.failures).collect();
    assert!(failures.is_empty(), "{op}: {failures:#?}");
    assert!(rows.iter().any(|row| row.cases > 0), "{op}: no case was run");
    Ok(())
}

/// An error about an op that is not there.
pub(super) fn unknown_op(got: &str, known: &[&str]) -> Error {
    Error::Option { option: "kernel", expected: format!("one of {}", known.join(", ")), got: got.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_values_stands_together() {
        let sizes = [8, 4, 3, 2];
        let chosen = Grid::Pairwise.combine(sizes);
        for i in 0..4 {
            for j in 0..i {
                for (a, b) in product([sizes[i], sizes[j]]).into_iter().map(|[a, b]| (a, b)) {
                    assert!(chosen.iter().any(|c| c[i] == a && c[j] == b), "{i} at {a}, {j} at {b}");
                }
            }
        }
        assert!(chosen.len() < 40, "{} combinations", chosen.len());
        assert_eq!(Grid::Full.combine(sizes).len(), 192);
        assert_eq!(Grid::Pairwise.combine([3]), [[0], [1], [2]]);
    }

    #[test]
    fn units_in_the_last_place_are_those_of_the_type() {
        let of = |a: f32, e: f32, dtype| Closeness::of(&[a], &[e], dtype);
        assert_eq!(of(1.0 + 2f32.powi(-22), 1.0, Dtype::F32).max_ulp, 2.0);
        assert_eq!(of(3.0 + 2f32.powi(-9), 3.0, Dtype::F16).max_ulp, 1.0);
        assert_eq!(of(-3.0 + 2f32.powi(-6), -3.0, Dtype::Bf16).max_ulp, 1.0);
        let small = of(1e-4, 2e-4, Dtype::F32);
        assert!(small.max_ulp == 0.0 && small.max_abs > 9e-5);
        assert_eq!(of(f32::NAN, 1.0, Dtype::F32), Closeness::default());
    }
}
