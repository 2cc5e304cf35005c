//! A search's operations on both sides.

use super::{Floats, Lockstep};
use crate::Result;
use crate::backend::{
    ContrastiveForm, NetworkOps, Row, Rows, SamplePick, Search, SearchOps, SessionShape, SlotOptions, TokenStats, words,
};
use crate::check::Tolerance;
use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::validate::kernels::beam_step::compare_states;
use crate::validate::lockstep::both::{Both, Words, take_over, with_rows, with_searches};

/// What ranks, over logits of up to a few tens; as in the kernels' own cases.
const RANKED: Tolerance = Tolerance::new(1e-5, 2e-6);

impl Lockstep {
    /// Holds what ranks the rows of the slots that an operation writes for to the CPU's, and takes it over.
    fn settle_ranked(
        &self,
        operation: &str,
        cpu: &mut Search<Cpu>,
        device: &Search<Cuda>,
        is_written: impl Fn(&SlotOptions) -> bool,
    ) -> Result<()> {
        let (vocab_size, stride) = (cpu.vocab_size, self.device.logits_stride(cpu.vocab_size));
        let options: Vec<SlotOptions> = bytemuck::cast_slice(&cpu.options).to_vec();
        let rows = cpu.rows.live().iter().map(|row| options[row.slot as usize]).collect::<Vec<_>>();
        let apart = self.context.download(device.ranked.view())?;
        let (mut actual, mut expected) = (Vec::new(), Vec::new());
        for (r, options) in rows.iter().enumerate().filter(|(_, options)| is_written(options)) {
            let own = &apart[r * stride..][..vocab_size];
            let ranked = &mut cpu.ranked[r * vocab_size..][..vocab_size];
            // A difference of two probabilities has an absolute error, as in the kernel's own cases.
            let is_share = options.contrast.form == ContrastiveForm::Source as u32;
            let shown = |z: &f32| if is_share { z.exp() } else { *z };
            actual.extend(own.iter().map(shown));
            expected.extend(ranked.iter().map(shown));
            ranked.copy_from_slice(own);
        }
        let mut log = self.log();
        log.leave_layers();
        if !actual.is_empty() {
            log.compare(operation, &actual, &expected, RANKED);
        }
        Ok(())
    }

    /// Holds what the rows of the slots that ban tokens may not take to the CPU's.
    fn settle_bans(&self, cpu: &Search<Cpu>, device: &Search<Cuda>) -> Result<()> {
        let words = cpu.vocab_size.div_ceil(32);
        let options: &[SlotOptions] = bytemuck::cast_slice(&cpu.options);
        let found = self.context.download(device.bans.view())?;
        let mut log = self.log();
        log.leave_layers();
        let bans = |row: &Row| options[row.slot as usize].banned != 0;
        for r in (0..cpu.rows.live().len()).filter(|&r| bans(&cpu.rows.live()[r])) {
            let (own, expected) = (&found[r * words..][..words], &cpu.bans[r * words..][..words]);
            let wrong = own.iter().zip(expected).position(|(own, expected)| own != expected);
            let said =
                |at: usize| format!("row {r}, tokens from {}: {:#x}, on the CPU {:#x}", at * 32, own[at], expected[at]);
            log.keep("processors", wrong.map_or(Ok(()), |at| Err(said(at))));
        }
        Ok(())
    }

    /// Holds the device's search to the CPU's, and takes its state over.
    fn settle_search(&self, operation: &str, cpu: &mut Search<Cpu>, device: &Search<Cuda>) -> Result<()> {
        let expected = take_over(&self.context, device, cpu)?;
        let mut log = self.log();
        log.leave_layers();
        log.keep(operation, compare_states(cpu, &expected).map(drop));
        Ok(())
    }
}

impl SearchOps for Lockstep {
    type SearchScratch = Both<<Cpu as SearchOps>::SearchScratch, <Cuda as SearchOps>::SearchScratch>;

    fn search_scratch(&self, shape: SessionShape, vocab_size: usize) -> Result<Self::SearchScratch> {
        let cpu = self.cpu.search_scratch(shape, vocab_size)?;
        Ok(Both::new(cpu, self.device.search_scratch(shape, vocab_size)?))
    }

    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()> {
        with_searches(search, |cpu, device| {
            self.cpu.start_slots(slots, cpu)?;
            self.device.start_slots(slots, device)?;
            self.settle_search("start_slots", cpu, device)
        })
    }

    fn processors(&self, search: &mut Search<Self>) -> Result<()> {
        with_searches(search, |cpu, device| {
            self.cpu.processors(cpu)?;
            self.device.processors(device)?;
            self.settle_bans(cpu, device)
        })
    }

    fn contrastive(&self, expert: &Floats, amateur: &Floats, scorer: u32, search: &mut Search<Self>) -> Result<()> {
        let (expert, amateur) = (&*expert.get(), &*amateur.get());
        with_searches(search, |cpu, device| {
            self.cpu.contrastive(&expert.0, &amateur.0, scorer, cpu)?;
            self.device.contrastive(&expert.1, &amateur.1, scorer, device)?;
            let is_written = |options: &SlotOptions| options.contrast.form != 0 && options.contrast.scorer == scorer;
            self.settle_ranked("contrastive", cpu, device, is_written)
        })
    }

    fn ensemble(&self, scorers: &[Option<&Floats>], search: &mut Search<Self>) -> Result<()> {
        let scorers: Vec<_> = scorers.iter().map(|scorer| scorer.map(|scorer| scorer.get())).collect();
        let cpu_scorers: Vec<_> = scorers.iter().map(|scorer| scorer.as_ref().map(|scorer| &scorer.0)).collect();
        let own_scorers: Vec<_> = scorers.iter().map(|scorer| scorer.as_ref().map(|scorer| &scorer.1)).collect();
        with_searches(search, |cpu, device| {
            self.cpu.ensemble(&cpu_scorers, cpu)?;
            self.device.ensemble(&own_scorers, device)?;
            let is_written = |options: &SlotOptions| options.ranked != 0 && options.contrast.form == 0;
            self.settle_ranked("ensemble", cpu, device, is_written)
        })
    }

    fn repetition_penalty(&self, logits: &Floats, search: &mut Search<Self>) -> Result<()> {
        let logits = &*logits.get();
        with_searches(search, |cpu, device| {
            self.cpu.repetition_penalty(&logits.0, cpu)?;
            self.device.repetition_penalty(&logits.1, device)?;
            self.settle_ranked("repetition_penalty", cpu, device, |options| options.repetition_penalty != 0.0)
        })
    }

    fn beam_step(&self, logits: &Floats, attention: &Floats, search: &mut Search<Self>) -> Result<()> {
        let (logits, attention) = (&*logits.get(), &*attention.get());
        with_searches(search, |cpu, device| {
            self.cpu.beam_step(&logits.0, &attention.0, cpu)?;
            self.device.beam_step(&logits.1, &attention.1, device)?;
            self.settle_search("beam_step", cpu, device)
        })
    }

    fn sample(&self, logits: &Floats, search: &mut Search<Self>) -> Result<()> {
        let logits = &*logits.get();
        with_searches(search, |cpu, device| {
            self.cpu.sample(&logits.0, cpu)?;
            self.device.sample(&logits.1, device)?;
            let picks = self.context.download(device.picks.view())?;
            let tokens = |picks: &[u32]| -> Vec<u32> {
                bytemuck::cast_slice::<_, SamplePick>(picks).iter().map(|pick| pick.token).collect()
            };
            let (actual, expected) = (tokens(&picks), tokens(&cpu.picks));
            let same = if actual == expected { Ok(()) } else { Err(format!("expected {expected:?}, got {actual:?}")) };
            self.log().keep("sample", same);
            self.settle_search("sample", cpu, device)
        })
    }

    fn token_stats(
        &self,
        rows: &Rows<Self>,
        logits: &Floats,
        vocab_size: usize,
        gold: &Words,
        out: &mut Words,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (logits, gold, (cpu, device)) = (&*logits.get(), &*gold.get(), &mut *out.get_mut());
            self.cpu.token_stats(cpu_rows, &logits.0, vocab_size, &gold.0, cpu)?;
            self.device.token_stats(rows, &logits.1, vocab_size, &gold.1, device)?;
            let cpu = &mut cpu[..cpu_rows.live().len() * words::<TokenStats>()];
            let actual = self.context.download(device.view().slice(0..cpu.len())?)?;
            let numbers = |words: &[u32]| -> Vec<f32> {
                let stats: &[TokenStats] = bytemuck::cast_slice(words);
                stats.iter().flat_map(|s| [s.log_prob, s.entropy, s.max_log_prob]).collect()
            };
            self.log().compare("token_stats", &numbers(&actual), &numbers(cpu), Tolerance::new(2e-5, 1e-6));
            cpu.copy_from_slice(&actual);
            Ok(())
        })
    }
}
