//! Op `ensemble`: the log-linear mixture of several models; its contract is [`crate::backend::SearchOps::ensemble`].

use rayon::prelude::*;

use crate::backend::{MAX_SCORERS, Search, SlotOptions};
use crate::cpu::Cpu;
use crate::cpu::stats::Normalizer;

/// Each scorer's weight; a slot without any takes the first scorer as it is.
fn weights(options: &SlotOptions) -> [f32; MAX_SCORERS] {
    if options.is_ensemble() {
        options.ensemble
    } else {
        std::array::from_fn(|scorer| f32::from(u8::from(scorer == 0)))
    }
}

/// Mixes the rows that ask for it into `search.ranked`; see [`crate::backend::SearchOps::ensemble`].
pub fn ensemble(scorers: &[Option<&Vec<f32>>], search: &mut Search<Cpu>) {
    let vocab_size = search.vocab_size;
    let options: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let rows = search.rows.live();
    search.ranked.par_chunks_mut(vocab_size).zip(rows).enumerate().for_each(|(r, (ranked, row))| {
        let options = &options[row.slot as usize];
        if options.ranked == 0 || options.contrast.form != 0 {
            return;
        }
        ranked.fill(0.0);
        for (scorer, weight) in scorers.iter().zip(weights(options)) {
            if let (Some(logits), true) = (scorer, weight != 0.0) {
                let logits = &logits[r * vocab_size..][..vocab_size];
                let term = |z: &f32| if *z == f32::INFINITY { f32::NAN } else { weight * z };
                ranked.iter_mut().zip(logits).for_each(|(sum, z)| *sum += term(z));
            }
        }
        let normalizer = Normalizer::of(ranked);
        if normalizer.max != f32::NEG_INFINITY {
            ranked.iter_mut().for_each(|z| *z = normalizer.log_prob(*z));
        }
    });
}

/// The naive computation of one row, in f64: `logits` and weight of each scorer.
pub fn reference(scorers: &[(&[f32], f32)]) -> Vec<f32> {
    let len = scorers.first().map_or(0, |(logits, _)| logits.len());
    let sum = |v: usize| scorers.iter().map(|(logits, weight)| f64::from(*weight) * f64::from(logits[v])).sum::<f64>();
    let sums: Vec<f64> = (0..len).map(sum).collect();
    let max = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if scorers.iter().any(|(logits, _)| logits.iter().any(|z| z.is_nan() || *z == f32::INFINITY)) {
        return vec![f32::NAN; len];
    }
    if max == f64::NEG_INFINITY {
        return vec![f32::NEG_INFINITY; len];
    }
    let log_sum = sums.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    sums.iter().map(|z| ((z - max) - log_sum) as f32).collect()
}
