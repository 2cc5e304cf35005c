//! [`SearchOps`] on a device. Log-probabilities and scores are f32, whatever the model computes in.

use super::{Cuda, head, head_mut, list, logits_stride};
use crate::Result;
use crate::backend::{NetworkOps, Row, Rows, Search, SearchOps, SessionShape, SlotOptions, TokenStats, words};
use crate::cuda::beam_step::{BeamStep, BeamStepScratch, SearchViews, StartSlots};
use crate::cuda::{Buffer, View, contrastive, ensemble, processors, sample, stats};

/// What the processors alone read of a search.
struct Controls<'a> {
    always_banned: View<'a, u32>,
    prefixes: View<'a, u32>,
    sequences: View<'a, u32>,
}

/// The parts of a search as the launchers of its kernels take them.
fn views(search: &mut Search<Cuda>) -> (SearchViews<'_>, &mut BeamStepScratch, Controls<'_>) {
    let controls = Controls {
        always_banned: search.always_banned.view(),
        prefixes: search.prefixes.view(),
        sequences: search.sequences.view(),
    };
    let views = SearchViews {
        shape: search.shape,
        vocab_size: search.vocab_size,
        ids: search.ids,
        options: search.options.view_mut(),
        step: search.step.view_mut(),
        live: search.live.view_mut(),
        cum_log_probs: search.cum_log_probs.view_mut(),
        tokens: search.tokens.view_mut(),
        parents: search.parents.view_mut(),
        log_probs: search.log_probs.view_mut(),
        ancestry: search.ancestry.view_mut(),
        coverage: search.coverage.view_mut(),
        attention: search.attention.view_mut(),
        finished: search.finished.view_mut(),
        finished_count: search.finished_count.view_mut(),
        failures: search.failures.view_mut(),
        rows: search.rows.entries.view_mut(),
        row_count: search.rows.count.view_mut(),
        ranked: search.ranked.view_mut(),
        bans: search.bans.view_mut(),
        constraints: search.constraints.view_mut(),
        banks: search.banks.view_mut(),
        picks: search.picks.view_mut(),
    };
    (views, &mut search.scratch, controls)
}

impl SearchOps for Cuda {
    type SearchScratch = BeamStepScratch;

    fn search_scratch(&self, shape: SessionShape, vocab_size: usize) -> Result<BeamStepScratch> {
        BeamStepScratch::new(&self.context, shape, vocab_size)
    }

    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()> {
        let (search, scratch, _) = views(search);
        StartSlots { search, scratch, slots }.launch(&self.context)
    }

    fn processors(&self, search: &mut Search<Self>) -> Result<()> {
        let bucket = search.rows.bucket;
        let (views, scratch, controls) = views(search);
        let Controls { always_banned: always, prefixes, sequences } = controls;
        processors::Processors { search: views, scratch, always, prefixes, sequences, bucket }.launch(&self.context)
    }

    fn contrastive(
        &self,
        expert: &Buffer<f32>,
        amateur: &Buffer<f32>,
        scorer: u32,
        search: &mut Search<Self>,
    ) -> Result<()> {
        let (bucket, stride) = (search.rows.bucket, logits_stride(search.vocab_size));
        let prefixes = (!search.prefixes.is_empty()).then(|| (search.prefixes.view(), search.shape.max_len));
        contrastive::Contrastive {
            rows: head(&search.rows.entries, bucket * words::<Row>())?.cast()?,
            count: search.rows.count.view(),
            options: search.options.view().cast()?,
            expert: head(expert, bucket * stride)?,
            amateur: Some(head(amateur, bucket * stride)?),
            out: head_mut(&mut search.ranked, bucket * stride)?,
            normalizers: None,
            eos_id: search.ids.eos_id,
            prefixes,
            scorer,
        }
        .launch(&self.context, search.vocab_size, stride)
    }

    fn ensemble(&self, logits: &[Option<&Buffer<f32>>], search: &mut Search<Self>) -> Result<()> {
        let (bucket, stride) = (search.rows.bucket, logits_stride(search.vocab_size));
        let scorers = std::array::from_fn(|scorer| logits.get(scorer).copied().flatten().map(Buffer::view));
        let (search, scratch, _) = views(search);
        ensemble::Ensemble { search, scratch, scorers, stride, bucket }.launch(&self.context)
    }

    fn repetition_penalty(&self, logits: &Buffer<f32>, search: &mut Search<Self>) -> Result<()> {
        let (bucket, stride) = (search.rows.bucket, logits_stride(search.vocab_size));
        let (search, scratch, _) = views(search);
        processors::RepetitionPenalty { search, scratch, logits: logits.view(), stride, bucket }.launch(&self.context)
    }

    fn beam_step(&self, logits: &Buffer<f32>, attention: &Buffer<f32>, search: &mut Search<Self>) -> Result<()> {
        let bucket = search.rows.bucket.min(search.shape.slots);
        let (search, scratch, _) = views(search);
        let logits_stride = self.logits_stride(search.vocab_size);
        let (logits, attention) = (logits.view(), attention.view());
        BeamStep { search, scratch, logits, logits_stride, attention, bucket }.launch(&self.context)
    }

    fn sample(&self, logits: &Buffer<f32>, search: &mut Search<Self>) -> Result<()> {
        let (vocab_size, rows) = (search.vocab_size, search.rows.bucket);
        let (stride, reserved) = (logits_stride(vocab_size), search.reserved);
        sample::Sample {
            rows: list(&search.rows),
            options: search.options.view(),
            ancestry: search.ancestry.view(),
            logits: head(logits, rows * stride)?,
            ranked: reserved.ranked.then(|| head(&search.ranked, rows * stride)).transpose()?,
            bans: reserved.bans.then(|| head(&search.bans, rows * vocab_size.div_ceil(32))).transpose()?,
            picks: search.picks.view_mut(),
            beam_size: search.shape.beam_size,
            ids: search.ids,
        }
        .launch(&self.context, vocab_size, stride)
    }

    fn token_stats(
        &self,
        rows: &Rows<Self>,
        logits: &Buffer<f32>,
        vocab_size: usize,
        gold: &Buffer<u32>,
        out: &mut Buffer<u32>,
    ) -> Result<()> {
        let stride = logits_stride(vocab_size);
        let words = size_of::<TokenStats>() / size_of::<u32>();
        stats::TokenStatistics {
            rows: list(rows),
            logits: head(logits, rows.bucket * stride)?,
            gold: head(gold, rows.bucket)?,
            out: head_mut(out, rows.bucket * words)?,
        }
        .launch(&self.context, vocab_size, stride)
    }
}
