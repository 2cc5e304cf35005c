//! How many of everything may be asked for: the range of each count, as memory and sense allow.
//!
//! The command line reads every count by its range here and names it in its help; the library checks the same ranges.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::{Error, Result};

/// Threads that compute, and sessions side by side; 0 takes as many as there are cores.
pub const THREADS: RangeInclusive<usize> = 0..=1024;
/// Sentences decoded at once.
pub const SLOTS: RangeInclusive<usize> = 1..=4096;
/// Sentences that wait for a slot.
pub const QUEUE: RangeInclusive<usize> = 1..=1 << 20;
/// Hypotheses of a sentence: beams, samples, alternatives, those returned.
pub const HYPOTHESES: RangeInclusive<usize> = 1..=64;
/// Tokens of a sentence or of a limit on one.
pub const LENGTH: RangeInclusive<usize> = 0..=65_536;
/// Tokens of a source of random tokens: one and the end of sentence at least.
pub const RANDOM_LENGTH: RangeInclusive<usize> = 2..=*LENGTH.end();
/// The most probable tokens that are drawn from; 0 is all.
pub const TOP_K: RangeInclusive<usize> = 0..=u32::MAX as usize;
/// Resamples of a bootstrap, each of which keeps a few scores.
pub const RESAMPLES: RangeInclusive<usize> = 1..=100_000;
/// Sets of references that a diagnosis samples.
pub const NULL_DRAWS: RangeInclusive<usize> = 1..=100;
/// Lines of a sample of a text.
pub const LINES: RangeInclusive<usize> = 1..=1_000_000;
/// Sentences of a run of `bench`, which are in memory together.
pub const BENCH_SENTENCES: RangeInclusive<usize> = 1..=100_000;
/// Runs of `bench`, which keeps each one's latencies.
pub const BENCH_RUNS: RangeInclusive<usize> = 1..=1000;
/// Updates of training, or updates between two events. Arithmetic on them stays within 32 bits.
pub const UPDATES: RangeInclusive<u32> = 1..=1_000_000_000;
/// Tokens of a batch in training, on either side.
pub const BATCH_TOKENS: RangeInclusive<usize> = 1..=1_048_576;
/// Batches of an update.
pub const ACCUMULATE: RangeInclusive<usize> = 1..=4096;
/// Passes that choose the inputs of scheduled sampling.
pub const PASSES: RangeInclusive<usize> = 1..=*LENGTH.end();
/// Candidates of minimum risk training.
pub const CANDIDATES: RangeInclusive<usize> = 2..=*HYPOTHESES.end();
/// Bytes of a request's body.
pub const BODY: RangeInclusive<usize> = 1..=1 << 30;
/// Items of a request.
pub const ITEMS: RangeInclusive<usize> = 1..=1_000_000;
/// Characters of an item or of a request.
pub const CHARACTERS: RangeInclusive<usize> = 1..=1 << 28;
/// Connections at once.
pub const CONNECTIONS: RangeInclusive<usize> = 1..=1 << 20;
/// Seconds that something may take.
pub const SECONDS: RangeInclusive<u32> = 1..=1_000_000;

/// The range from 0 where 0 switches something off.
pub const fn or_none<T: Copy>(range: &RangeInclusive<T>, none: T) -> RangeInclusive<T> {
    none..=*range.end()
}

/// Checks an option's count against its range.
///
/// # Errors
/// [`Error::Option`] names the range.
pub fn check<T: PartialOrd + Display>(option: &'static str, value: T, range: &RangeInclusive<T>) -> Result<()> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(Error::Option { option, expected: named(range), got: value.to_string() }),
    }
}

/// A range in words.
pub fn named<T: Display>(range: &RangeInclusive<T>) -> String {
    format!("{} to {}", range.start(), range.end())
}
