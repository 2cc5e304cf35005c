//! What training and scoring do with logits.

use super::{Bench, Moves, SpeedRow, WARM_UPS};
use crate::Result;
use crate::backend::{
    Divergence, ExpectedRisk, Pick, RowShape, Schedule, ScheduledSampling, SpecialIds, TokenPlace, TokenStats, words,
};
use crate::cuda::Element;
use crate::cuda::loss::{TemperedDivergence, WeightedNll};
use crate::cuda::risk::Risk;
use crate::cuda::scheduled_sampling::Selection;
use crate::cuda::stats::TokenStatistics;

impl<F: FnMut(&SpeedRow) -> Result<()>> Bench<'_, F> {
    pub(super) fn stats(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (logits, list, stride) = self.logits::<f32>(rows)?;
            let gold = context.upload(&vec![7u32; rows])?;
            let mut out = context.zeros::<u32>(rows * words::<TokenStats>())?;
            let seconds = self.time(|| {
                let (logits, gold, out) = (logits.view(), gold.view(), out.view_mut());
                TokenStatistics { rows: list.list(), logits, gold, out }.launch(context, vocab_size, stride)
            })?;
            let moved = (Moves::Reads, rows * vocab_size * size_of::<f32>());
            self.add(("stats", "tokens", "f32"), format!("{rows} x {vocab_size}"), moved, seconds)?;
        }
        Ok(())
    }

    /// The gradient in place of the logits: both are read twice, and one is written. Launched again, they are logits again.
    pub(super) fn losses<T: Element>(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (mut logits, _, stride) = self.logits::<T>(rows)?;
            let (teacher, _, _) = self.logits::<T>(rows)?;
            let (targets, mask) = (context.upload(&vec![7u32; rows])?, context.upload(&vec![1u32; rows])?);
            let (weights, mut loss) = (context.upload(&vec![1.0f32; rows])?, context.zeros::<f32>(rows)?);
            let shape = RowShape { vocab_size, stride };
            let seconds = self.time(|| {
                let (mask, weights, loss) = (mask.view(), weights.view(), loss.view_mut());
                WeightedNll { logits: logits.view_mut(), targets: targets.view(), mask, weights, loss }
                    .launch(context, shape, 0.1)
            })?;
            let (what, row_bytes) = (format!("{rows} x {vocab_size}"), rows * vocab_size * size_of::<T>());
            let moved = (Moves::ReadsAndWrites, 2 * row_bytes);
            self.add(("loss", "nll", T::DTYPE.name()), what.clone(), moved, seconds)?;
            let seconds =
                self.time(|| {
                    let (mask, weights, loss) = (mask.view(), weights.view(), loss.view_mut());
                    TemperedDivergence { student: logits.view_mut(), teacher: teacher.view(), mask, weights, loss }
                        .launch(context, shape, Divergence { temperature: 2.0, beta: 0.0 })
                })?;
            let moved = (Moves::ReadsAndWrites, 3 * row_bytes);
            self.add(("loss", "divergence", T::DTYPE.name()), what, moved, seconds)?;
        }
        Ok(())
    }

    /// Sixteen candidates a source.
    pub(super) fn risk(&mut self) -> Result<()> {
        const CANDIDATES: usize = 16;
        let context = self.context;
        for sources in self.effort.logit_rows.clone() {
            let count = sources * CANDIDATES;
            let (log_probs, risks) = (self.numbers::<f32>(count)?, self.numbers::<f32>(count)?);
            let starts: Vec<u32> = (0..=sources).map(|i| (i * CANDIDATES) as u32).collect();
            let starts = context.upload(&starts)?;
            let (mut coefficients, mut outcomes) =
                (context.zeros::<f32>(count)?, context.zeros::<ExpectedRisk>(sources)?);
            let seconds = self.time(|| {
                Risk {
                    log_probs: log_probs.view(),
                    risks: risks.view(),
                    starts: starts.view(),
                    coefficients: coefficients.view_mut(),
                    outcomes: outcomes.view_mut(),
                }
                .launch(context, 0.005)
            })?;
            let moved = (Moves::ReadsAndWrites, 3 * count * size_of::<f32>());
            self.add(("risk", "", "f32"), format!("{sources} sources of {CANDIDATES}"), moved, seconds)?;
        }
        Ok(())
    }

    /// Half of the rows keep gold, and are not read.
    pub(super) fn scheduled_sampling<T: Element>(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (logits, _, stride) = self.logits::<T>(rows)?;
            let gold = context.upload(&vec![7u32; rows])?;
            let places: Vec<TokenPlace> =
                (0..rows as u32).map(|r| TokenPlace { sentence: r / 32, position: r % 32 }).collect();
            let places = context.upload(&places)?;
            let schedule = context.upload(&[Schedule { gold_probability: 0.5, update: 1 }])?;
            let (mut chosen, mut counts) = (context.zeros::<u32>(rows)?, context.zeros::<u32>(2)?);
            let ids = SpecialIds { eos_id: 0, pad_id: 1, decoder_start_id: 1 };
            let run = ScheduledSampling { pick: Pick::Argmax, seed: 1, ids };
            let seconds = self.time(|| {
                let (logits, gold, places, schedule) = (logits.view(), gold.view(), places.view(), schedule.view());
                let (chosen, counts) = (chosen.view_mut(), counts.view_mut());
                Selection { logits, gold, places, schedule, chosen, counts }.launch(context, &run, vocab_size, stride)
            })?;
            // Counted by the kernel in every launch: which rows it read.
            let launches = (self.effort.repeats + WARM_UPS) * self.effort.launches;
            let read = context.download(counts.view())?[0] as usize / launches.max(1);
            let bytes = read * vocab_size * size_of::<T>();
            let what = format!("{rows} x {vocab_size}, half gold");
            self.add(("scheduled_sampling", "", T::DTYPE.name()), what, (Moves::Reads, bytes), seconds)?;
        }
        Ok(())
    }
}
