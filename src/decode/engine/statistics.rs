//! What an engine has done since it was started, as distributions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often values fell between bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// The largest value of each part but the last one, ascending.
    pub bounds: &'static [f64],
    /// Values in each part; one more than there are bounds.
    pub counts: Vec<u64>,
    /// All values together.
    pub sum: f64,
}

/// What an engine has done since it was started.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// Seconds that work waited before a worker took it.
    pub waits: Distribution,
    /// Seconds from there to the end of a search that was not given up.
    pub searches: Distribution,
    /// Seconds of a step, as the worker sees it: on a device, until it is launched and an earlier one has been read.
    pub steps: Distribution,
    /// Decoder rows of a step.
    pub rows: Distribution,
}

/// Seconds: from a short sentence to the longest deadline.
const SECONDS: &[f64] = &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
const STEP_SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// A distribution that several threads add to.
#[derive(Debug)]
struct Counts {
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    /// In millionths.
    sum: AtomicU64,
}

impl Counts {
    fn new(bounds: &'static [f64]) -> Self {
        Counts { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    fn add(&self, value: f64) {
        let part = self.bounds.partition_point(|bound| *bound < value);
        self.counts[part].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6).round() as u64, Ordering::Relaxed);
    }

    fn read(&self) -> Distribution {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Distribution { bounds: self.bounds, counts, sum: self.sum.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

/// Keeps count.
#[derive(Debug)]
pub(super) struct Recorder {
    waits: Counts,
    searches: Counts,
    steps: Counts,
    rows: Counts,
}

impl Recorder {
    pub(super) fn new() -> Self {
        let (waits, searches) = (Counts::new(SECONDS), Counts::new(SECONDS));
        Recorder { waits, searches, steps: Counts::new(STEP_SECONDS), rows: Counts::new(ROWS) }
    }

    /// Work has been taken after so long.
    pub(super) fn taken(&self, after: Duration) {
        self.waits.add(after.as_secs_f64());
    }

    /// A search has ended so long after it was taken.
    pub(super) fn ended(&self, after: Duration) {
        self.searches.add(after.as_secs_f64());
    }

    pub(super) fn stepped(&self, rows: usize, took: Duration) {
        self.steps.add(took.as_secs_f64());
        self.rows.add(rows as f64);
    }

    pub(super) fn read(&self) -> Statistics {
        let Recorder { waits, searches, steps, rows } = self;
        Statistics { waits: waits.read(), searches: searches.read(), steps: steps.read(), rows: rows.read() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_up_to_its_bound() {
        let counts = Counts::new(&[1.0, 2.0]);
        [0.0, 1.0, 1.5, 2.0, 2.5, 100.0].into_iter().for_each(|value| counts.add(value));
        assert_eq!(counts.read(), Distribution { bounds: &[1.0, 2.0], counts: vec![2, 2, 2], sum: 107.0 });
    }
}
