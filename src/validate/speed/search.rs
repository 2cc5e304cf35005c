//! What a search does with its logits.

use std::time::Instant;

use super::{BEAMS, Bench, LEN, Moves, SpeedRow, median};
use crate::Result;
use crate::backend::{
    ContrastiveForm, ContrastiveOptions, Dtype, NetworkOps, Row, SampleOptions, SamplePick, Search, SearchOps,
    SessionShape, SlotOptions, SpecialIds, Stages, Strategy, words,
};
use crate::cuda::contrastive::Contrastive;
use crate::cuda::sample::Sample;
use crate::cuda::testing::Values;
use crate::cuda::{Cuda, Element};
use crate::validate::kernels::beam_step::{Fixture, options};

impl<F: FnMut(&SpeedRow) -> Result<()>> Bench<'_, F> {
    /// A step of a search that goes on: end of sentence is not allowed before the last.
    pub(super) fn beam_step(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        let steps = self.effort.launches;
        for rows in self.effort.logit_rows.clone() {
            let slots = rows.div_ceil(BEAMS);
            let shape = SessionShape {
                slots,
                beam_size: BEAMS,
                max_len: steps + 2,
                max_src_len: LEN,
                rows: slots * BEAMS,
                keep_attention: false,
            };
            let stride = vocab_size.next_multiple_of(4);
            let mut search = Fixture::with_stride(context, shape, vocab_size, stride, 128)?;
            let logits: Vec<f32> = Values::new(1).elements(shape.rows * vocab_size, 0.0, 4.0);
            search.write(&logits, &vec![1.0 / LEN as f32; shape.rows * LEN])?;
            let limit = shape.max_len as u32;
            let own = SlotOptions {
                beam_size: BEAMS as u32,
                src_len: LEN as u32,
                min_len: limit,
                max_len: limit,
                ..options()
            };
            let all: Vec<(u32, SlotOptions)> = (0..slots as u32).map(|slot| (slot, own)).collect();
            let mut seconds = Vec::new();
            for turn in 0..self.effort.repeats + 1 {
                search.start(&all)?;
                // The first step has one beam a slot.
                search.step(slots)?;
                context.synchronize()?;
                let start = Instant::now();
                (0..steps).try_for_each(|_| search.step(slots))?;
                context.synchronize()?;
                if turn > 0 {
                    seconds.push(start.elapsed().as_secs_f64() / steps as f64);
                }
            }
            let bytes = shape.rows * vocab_size * size_of::<f32>();
            let what = format!("{} x {vocab_size}, beam {BEAMS}", shape.rows);
            self.add(("beam_step", "", "f32"), what, (Moves::Reads, bytes), median(seconds))?;
        }
        Ok(())
    }

    /// An expert and an amateur, without V_head: all of both is read.
    pub(super) fn contrastive<T: Element>(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (expert, _, stride) = self.logits::<T>(rows)?;
            let (amateur, _, _) = self.logits::<T>(rows)?;
            let contrast = ContrastiveOptions::new(ContrastiveForm::Logits, 0.5, 0.1, 1.0);
            let own = SlotOptions { contrast, max_len: 99, ..SlotOptions::default() };
            let options = context.upload(&vec![own; rows])?;
            let list: Vec<Row> = (0..rows as u32).map(|slot| Row { slot, ..Row::default() }).collect();
            let (list, count) = (context.upload(&list)?, context.upload(&[rows as u32])?);
            let (mut out, mut normalizers) = (context.zeros::<f32>(rows * stride)?, context.zeros::<f32>(rows)?);
            let seconds = self.time(|| {
                Contrastive {
                    rows: list.view(),
                    count: count.view(),
                    options: options.view(),
                    expert: expert.view(),
                    amateur: Some(amateur.view()),
                    out: out.view_mut(),
                    normalizers: Some(normalizers.view_mut()),
                    eos_id: 0,
                    prefixes: None,
                    scorer: 0,
                }
                .launch(context, vocab_size, stride)
            })?;
            let bytes = rows * vocab_size * (2 * size_of::<T>() + size_of::<f32>());
            let moved = (Moves::ReadsAndWrites, bytes);
            self.add(("contrastive", "logits", T::DTYPE.name()), format!("{rows} x {vocab_size}"), moved, seconds)?;
        }
        Ok(())
    }

    /// A search with `rows` slots of one beam, of which each asks for what `own` says.
    fn search(&self, rows: usize, own: SlotOptions) -> Result<(Cuda, Search<Cuda>)> {
        let cuda = Cuda::new(self.context.clone(), Dtype::F32);
        let (max_len, keep_attention) = (LEN, false);
        let shape = SessionShape { slots: rows, beam_size: 1, max_len, max_src_len: LEN, rows, keep_attention };
        let ids = SpecialIds { eos_id: 0, pad_id: 1, decoder_start_id: 1 };
        let mut search = Search::open(&cuda, shape, self.effort.vocab_size, ids)?;
        search.reserve(&cuda, Stages { bans: true, ranked: true, ..Stages::default() })?;
        let slots: Vec<(u32, SlotOptions)> = (0..rows as u32).map(|slot| (slot, own)).collect();
        cuda.start_slots(&slots, &mut search)?;
        Ok((cuda, search))
    }

    /// Two models.
    pub(super) fn ensemble(&mut self) -> Result<()> {
        let vocab_size = self.effort.vocab_size;
        let weights = std::array::from_fn(|scorer| if scorer < 2 { 0.5 } else { 0.0 });
        let own = SlotOptions {
            beam_size: 1,
            max_len: LEN as u32,
            src_len: 1,
            ranked: 1,
            ensemble: weights,
            ..SlotOptions::default()
        };
        for rows in self.effort.logit_rows.clone() {
            let (cuda, mut search) = self.search(rows, own)?;
            let stride = cuda.logits_stride(vocab_size);
            let (one, other) = (self.numbers::<f32>(rows * stride)?, self.numbers::<f32>(rows * stride)?);
            let seconds = self.time(|| cuda.ensemble(&[Some(&one), Some(&other)], &mut search))?;
            let moved = (Moves::ReadsAndWrites, 3 * rows * vocab_size * size_of::<f32>());
            self.add(("ensemble", "", "f32"), format!("{rows} x {vocab_size}"), moved, seconds)?;
        }
        Ok(())
    }

    /// Bans alone: no history yet.
    pub(super) fn processors(&mut self) -> Result<()> {
        let words = self.effort.vocab_size.div_ceil(32);
        let own = SlotOptions {
            beam_size: 1,
            max_len: LEN as u32,
            src_len: 1,
            banned: 1,
            no_repeat_ngram: 3,
            ..SlotOptions::default()
        };
        for rows in self.effort.logit_rows.clone() {
            let (cuda, mut search) = self.search(rows, own)?;
            let seconds = self.time(|| cuda.processors(&mut search))?;
            let moved = (Moves::ReadsAndWrites, 2 * rows * words * size_of::<u32>());
            self.add(("processors", "bans", "u32"), format!("{rows} x {words} words"), moved, seconds)?;
        }
        Ok(())
    }

    /// Every row a sample of its own, with top-k and top-p.
    pub(super) fn sample(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (logits, list, stride) = self.logits::<f32>(rows)?;
            let sampling =
                SampleOptions { temperature: 1.0, top_k: 40, top_p: 0.9, min_p: 0.0, ..SampleOptions::default() };
            let own = SlotOptions {
                strategy: Strategy::Sample as u32,
                beam_size: 1,
                max_len: 99,
                sampling,
                ..SlotOptions::default()
            };
            let options = context.upload(bytemuck::cast_slice::<_, u32>(&vec![own; rows]))?;
            let ancestry = context.zeros::<u32>(rows * LEN)?;
            let mut picks = context.zeros::<u32>(rows * words::<SamplePick>())?;
            let ids = SpecialIds { eos_id: 0, pad_id: 1, decoder_start_id: 1 };
            let seconds = self.time(|| {
                Sample {
                    rows: list.list(),
                    options: options.view(),
                    ancestry: ancestry.view(),
                    logits: logits.view(),
                    ranked: None,
                    bans: None,
                    picks: picks.view_mut(),
                    beam_size: 1,
                    ids,
                }
                .launch(context, vocab_size, stride)
            })?;
            let moved = (Moves::Reads, rows * vocab_size * size_of::<f32>());
            self.add(("sample", "", "f32"), format!("{rows} x {vocab_size}, top-k, top-p"), moved, seconds)?;
        }
        Ok(())
    }
}
