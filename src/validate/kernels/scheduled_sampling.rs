//! Gold tokens, or the model's own picks where a coin says so.

use std::time::{Duration, Instant};

use crate::Result;
use crate::backend::{Pick, Schedule, ScheduledSampling, SpecialIds, TokenPlace};
use crate::cpu::scheduled_sampling::reference;
use crate::cuda::scheduled_sampling::Selection;
use crate::cuda::testing::{Values, stored};
use crate::cuda::{Context, Element};
use crate::validate::probe::{Case, Probe};

/// The ids of all cases.
pub const IDS: SpecialIds = SpecialIds { eos_id: 2, pad_id: 9, decoder_start_id: 4 };

/// Rows, tokens, and elements from row to row.
const SHAPES: [[usize; 3]; 5] = [[1, 11, 11], [37, 13, 16], [23, 128, 128], [19, 257, 264], [9, 1003, 1003]];
const LARGE: [[usize; 3]; 1] = [[2048, 58101, 58104]];
const BLOCKS: [u32; 5] = [32, 64, 96, 256, 1024];
const PICKS: [Pick; 3] = [Pick::Argmax, Pick::Sample { temperature: 0.7 }, Pick::Sample { temperature: 3.0 }];
const GOLD_PROBABILITIES: [f32; 3] = [0.0, 0.5, 1.0];

/// How logits are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Quarter steps, full of ties; some ruled out.
    Ties,
    /// The same for all, where the lowest id wins.
    Equal,
    /// Outliers; some ruled out.
    Outliers,
    /// As outliers; every third row has NaN at its end, the next one +infinity.
    NotFinite,
}

const SPREADS: [Spread; 4] = [Spread::Ties, Spread::Equal, Spread::Outliers, Spread::NotFinite];

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&SHAPES, &LARGE);
    let sizes = [shapes.len(), BLOCKS.len(), PICKS.len(), GOLD_PROBABILITIES.len(), SPREADS.len()];
    for [shape, block, pick, gold, spread] in probe.grid().combine(sizes) {
        let (shape, gold_probability) = (shapes[shape], GOLD_PROBABILITIES[gold]);
        let rows = Rows::<T>::new(shape, PICKS[pick], gold_probability, SPREADS[spread], BLOCKS[block]);
        let [count, vocab_size, stride] = shape;
        let what = format!(
            "{count} rows of {vocab_size}, {stride} apart, {:?}, gold {gold_probability}, {:?} logits, {} threads",
            PICKS[pick], SPREADS[spread], BLOCKS[block]
        );
        probe.case("", T::DTYPE, what, |case| rows.run(case))?;
    }
    Ok(())
}

/// Rows to choose tokens for.
pub struct Rows<T> {
    /// What stays the same throughout a run.
    pub run: ScheduledSampling,
    /// Of keeping a gold token.
    pub gold_probability: f32,
    /// `[rows]`.
    pub gold: Vec<u32>,
    /// `[rows, stride]`.
    pub logits: Vec<T>,
    /// Tokens of a row.
    pub vocab_size: usize,
    /// Of a block.
    pub threads: u32,
}

impl<T: Element> Rows<T> {
    /// Rows, tokens and stride of `shape`.
    pub fn new(
        [rows, vocab_size, stride]: [usize; 3],
        pick: Pick,
        gold_probability: f32,
        spread: Spread,
        threads: u32,
    ) -> Self {
        let mut values = Values::new((rows * stride) as u64);
        let mut logits: Vec<f32> = match spread {
            Spread::Ties => (0..rows * stride).map(|_| (values.uniform() * 32.0).floor() * 0.25 - 4.0).collect(),
            Spread::Equal => vec![1.5; rows * stride],
            Spread::Outliers | Spread::NotFinite => values.elements(rows * stride, 0.0, 4.0),
        };
        if spread != Spread::Equal {
            logits.iter_mut().skip(1).step_by(5).for_each(|z| *z = f32::NEG_INFINITY);
        }
        for (row, logits) in logits.chunks_mut(stride).enumerate().filter(|_| spread == Spread::NotFinite) {
            match row % 3 {
                0 => logits[vocab_size - 1] = f32::NAN,
                1 => logits[vocab_size - 1] = f32::INFINITY,
                _ => {}
            }
        }
        // Between the rows lies what would show.
        logits.chunks_mut(stride).for_each(|row| row[vocab_size..].fill(f32::NAN));
        Rows {
            run: ScheduledSampling { pick, seed: 0x1234_5678_9abc_def0, ids: IDS },
            gold_probability,
            gold: (0..rows as u32).map(|r| r * 5 % 11).collect(),
            logits: logits.into_iter().map(T::from_f32).collect(),
            vocab_size,
            threads,
        }
    }

    fn schedule(&self) -> Schedule {
        Schedule { gold_probability: self.gold_probability, update: 3 }
    }

    fn places(&self) -> Vec<TokenPlace> {
        (0..self.gold.len() as u32).map(|r| TokenPlace { sentence: r / 7, position: r % 7 }).collect()
    }

    fn stride(&self) -> usize {
        self.logits.len() / self.gold.len()
    }

    /// Chosen tokens, and counts, which start at 10 and 100.
    pub fn reference(&self) -> (Vec<u32>, Vec<u32>) {
        let logits = stored(&self.logits);
        let rows: Vec<f32> = logits.chunks(self.stride()).flat_map(|row| row[..self.vocab_size].to_vec()).collect();
        let (mut chosen, mut counts) = (vec![0; self.gold.len()], vec![10, 100]);
        reference(&self.run, self.schedule(), &self.places(), &self.gold, &rows, &mut chosen, &mut counts);
        (chosen, counts)
    }

    fn run(&self, case: &mut Case<'_>) -> Result<()> {
        let (chosen, counts, _, time) = self.launch(case.context, false)?;
        let share = f64::from(1.0 - self.gold_probability);
        case.add_time((share * (self.gold.len() * self.vocab_size * size_of::<T>()) as f64) as usize, time);
        let (expected_chosen, expected_counts) = self.reference();
        case.same("chosen", &chosen, &expected_chosen);
        case.same("counts", &counts, &expected_counts);
        Ok(())
    }

    /// Chosen tokens; counts, which start at 10 and 100; the bytes of logits read, where they are watched; and the launch's time.
    ///
    /// # Errors
    /// The device failed.
    pub fn launch(&self, context: &Context, watch: bool) -> Result<(Vec<u32>, Vec<u32>, u64, Duration)> {
        let (logits, gold) = (context.upload(&self.logits)?, context.upload(&self.gold)?);
        let (places, schedule) = (context.upload(&self.places())?, context.upload(&[self.schedule()])?);
        let (mut chosen, mut counts) = (context.allocate(self.gold.len())?, context.upload(&[10u32, 100])?);
        if watch {
            context.watch(logits.view())?;
        }
        let selection = Selection {
            logits: logits.view(),
            gold: gold.view(),
            places: places.view(),
            schedule: schedule.view(),
            chosen: chosen.view_mut(),
            counts: counts.view_mut(),
        };
        context.synchronize()?;
        let start = Instant::now();
        selection.launch_with(context, &self.run, self.vocab_size, self.stride(), self.threads)?;
        context.synchronize()?;
        let time = start.elapsed();
        let bytes = if watch { context.watched_bytes()? } else { 0 };
        Ok((context.download(chosen.view())?, context.download(counts.view())?, bytes, time))
    }
}
