//! Op `contrastive`: the step distribution of contrastive decoding, expert minus amateur.
//!
//! `contrast` `[rows, vocab_size]` holds the amateur's logits, or those of the expert reading another source, and receives
//! `log_softmax(s)`, with s as [`ContrastiveForm`] says and the amateur's logits divided by the temperature.
//! `normalizers` `[rows]` receives log(sum(exp(z_e))): `expert - normalizer` is the expert's own log-probability.
//!
//! A row of nothing but -infinity stays one, and so does its normaliser. NaN or +infinity in the expert's row makes both NaN. In
//! the amateur's row they make `contrast` NaN; outside of V_head they may go unseen.

use rayon::prelude::*;

use crate::backend::{ContrastiveForm, ContrastiveOptions, Row, Search, SlotOptions};
use crate::cpu::Cpu;
use crate::cpu::simd;
use crate::cpu::stats::Normalizer;

/// The least that the difference of two probabilities counts for.
const FLOOR: f32 = 1e-12;

/// log_softmax in f64; NaN throughout if NaN or +infinity is among the values, -infinity throughout if nothing else is.
fn log_softmax(values: &[f64]) -> (Vec<f64>, f64) {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.iter().any(|z| z.is_nan()) || max == f64::INFINITY {
        return (vec![f64::NAN; values.len()], f64::NAN);
    }
    if max == f64::NEG_INFINITY {
        return (values.to_vec(), max);
    }
    let log_sum = values.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    (values.iter().map(|z| (z - max) - log_sum).collect(), max + log_sum)
}

/// The naive computation, in f64: what the fast path is held to.
pub fn reference(
    rows: &[Row],
    options: &[SlotOptions],
    vocab_size: usize,
    eos_id: u32,
    expert: &[f32],
    contrast: &mut [f32],
    normalizers: &mut [f32],
) {
    for (r, row) in rows.iter().enumerate() {
        let SlotOptions { max_len, contrast: options, .. } = options[row.slot as usize];
        let weight = f64::from(options.weight);
        let z_e = &expert[r * vocab_size..][..vocab_size];
        let out = &mut contrast[r * vocab_size..][..vocab_size];
        let z_a: Vec<f64> = out.iter().map(|z| f64::from(*z) / f64::from(options.temperature)).collect();
        let (log_p_e, normalizer) = log_softmax(&z_e.iter().map(|z| f64::from(*z)).collect::<Vec<_>>());
        let (log_p_a, _) = log_softmax(&z_a);
        let max = z_e.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let at_limit = row.position + 1 >= max_len;
        let s = |v: usize| {
            let (e, a) = (log_p_e[v], log_p_a[v]);
            // In f32, as the definition has it: ties at the line stay in on every backend.
            let in_head = z_e[v] - max >= options.log_mask || (at_limit && v == eos_id as usize);
            let has_head = options.form != ContrastiveForm::Logits as u32;
            if z_e[v] == f32::NEG_INFINITY || (has_head && !in_head) {
                return f64::NEG_INFINITY;
            }
            match options.form {
                form if form == ContrastiveForm::Logits as u32 => f64::from(z_e[v]) - weight * z_a[v],
                form if form == ContrastiveForm::Li as u32 => e - weight * a,
                form if form == ContrastiveForm::Obrien as u32 => (1.0 + weight) * e - weight * a,
                form if form == ContrastiveForm::Source as u32 => {
                    let difference = e.exp() - weight * a.exp();
                    if difference < f64::from(FLOOR) { f64::from(FLOOR).ln() } else { difference.ln() }
                }
                _ => f64::NAN,
            }
        };
        let (mut log_probs, _) = log_softmax(&(0..vocab_size).map(s).collect::<Vec<_>>());
        if normalizer.is_nan() || (log_p_a.iter().any(|a| a.is_nan()) && normalizer != f64::NEG_INFINITY) {
            log_probs.fill(f64::NAN);
        }
        out.iter_mut().zip(&log_probs).for_each(|(o, l)| *o = *l as f32);
        normalizers[r] = normalizer as f32;
    }
}

/// What a row's s is computed from, beside the two logits.
struct Terms {
    form: u32,
    weight: f32,
    inverse_temperature: f32,
    expert: Normalizer,
    /// Of the divided logits; used by [`ContrastiveForm::Source`] alone.
    amateur: Normalizer,
}

impl Terms {
    /// s up to a constant of the row, for a token that V_head admits.
    #[inline(always)]
    fn value(&self, e: f32, a: f32) -> f32 {
        if e == f32::NEG_INFINITY {
            return e;
        }
        if a == f32::INFINITY {
            return f32::NAN;
        }
        let a = a * self.inverse_temperature;
        match self.form {
            form if form == ContrastiveForm::Logits as u32 || form == ContrastiveForm::Li as u32 => {
                (e - self.expert.max) - self.weight * a
            }
            form if form == ContrastiveForm::Obrien as u32 => {
                (1.0 + self.weight) * (e - self.expert.max) - self.weight * a
            }
            form if form == ContrastiveForm::Source as u32 => {
                let p_a = self.amateur.log_prob(a).exp();
                let difference = self.expert.log_prob(e).exp() - self.weight * p_a;
                // Not `max`, which would turn NaN into the floor.
                if difference < FLOOR { FLOOR.ln() } else { difference.ln() }
            }
            _ => f32::NAN,
        }
    }
}

/// The contrastive log-probabilities of every row, in place of the amateur's logits.
pub fn contrastive(
    rows: &[Row],
    options: &[SlotOptions],
    vocab_size: usize,
    eos_id: u32,
    expert: &[f32],
    contrast: &mut [f32],
    normalizers: &mut [f32],
) {
    let expert = expert.par_chunks_exact(vocab_size);
    let contrast = contrast.par_chunks_exact_mut(vocab_size);
    rows.par_iter().zip(expert).zip(contrast).zip(normalizers).for_each(|(((row, z_e), contrast), normalizer)| {
        let options = &options[row.slot as usize];
        let eos = (row.position + 1 >= options.max_len).then_some(eos_id as usize);
        *normalizer = contrast_row(&options.contrast, eos, z_e, contrast);
    });
}

/// Contrasts a step's rows whose amateur is `scorer`; see [`crate::backend::SearchOps::contrastive`].
pub fn contrast_scorer(expert: &[f32], amateur: &[f32], scorer: u32, search: &mut Search<Cpu>) {
    let (vocab_size, max_len, eos_id) = (search.vocab_size, search.shape.max_len, search.ids.eos_id as usize);
    let options: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let (rows, prefixes) = (search.rows.live(), &search.prefixes);
    search.ranked.par_chunks_exact_mut(vocab_size).zip(rows).enumerate().for_each(|(r, (ranked, row))| {
        let (options, position) = (&options[row.slot as usize], row.position as usize);
        if options.contrast.form == 0 || options.contrast.scorer != scorer {
            return;
        }
        let at_limit = row.position + 1 >= options.max_len && options.cut == 0;
        let given = || prefixes[row.slot as usize * max_len + position] as usize;
        let joins = if at_limit { Some(eos_id) } else { (row.position < options.prefix_len).then(given) };
        let part = r * vocab_size..(r + 1) * vocab_size;
        ranked.copy_from_slice(&amateur[part.clone()]);
        contrast_row(&options.contrast, joins, &expert[part], ranked);
    });
}

/// One row; returns the expert's normaliser. `eos`, end of sentence or what is forced, joins V_head if given.
fn contrast_row(options: &ContrastiveOptions, eos: Option<usize>, z_e: &[f32], contrast: &mut [f32]) -> f32 {
    let normalizer = Normalizer::of(z_e);
    let max = normalizer.max;
    if !max.is_finite() {
        let outcome = if max == f32::INFINITY { f32::NAN } else { max };
        contrast.fill(outcome);
        return outcome;
    }
    let mut terms = Terms {
        form: options.form,
        weight: options.weight,
        inverse_temperature: 1.0 / options.temperature,
        expert: normalizer,
        amateur: Normalizer::NONE,
    };
    if options.form == ContrastiveForm::Source as u32 {
        simd::scale(contrast, terms.inverse_temperature);
        terms.inverse_temperature = 1.0;
        terms.amateur = normalizer_or_none(contrast);
    }
    if options.form == ContrastiveForm::Logits as u32 {
        contrast.iter_mut().zip(z_e).for_each(|(c, e)| *c = terms.value(*e, *c));
    } else {
        let joined = eos.map(|eos| terms.value(z_e[eos], contrast[eos]));
        for (c, e) in contrast.iter_mut().zip(z_e) {
            *c = if e - max >= options.log_mask { terms.value(*e, *c) } else { f32::NEG_INFINITY };
        }
        if let (Some(eos), Some(value)) = (eos, joined) {
            contrast[eos] = value;
        }
    }
    let all = normalizer_or_none(contrast);
    contrast.iter_mut().for_each(|c| *c = all.log_prob(*c));
    max + normalizer.log_sum
}

/// A row's normaliser: none for a row of -infinity, which it leaves as it is, NaN where +infinity stands.
fn normalizer_or_none(row: &[f32]) -> Normalizer {
    match Normalizer::of(row) {
        Normalizer { max: f32::INFINITY, .. } => Normalizer { max: f32::NAN, log_sum: 0.0 },
        Normalizer { max: f32::NEG_INFINITY, .. } => Normalizer::NONE,
        normalizer => normalizer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close, assert_same_bits};

    const FORMS: [ContrastiveForm; 4] =
        [ContrastiveForm::Logits, ContrastiveForm::Li, ContrastiveForm::Obrien, ContrastiveForm::Source];

    fn slot(contrast: ContrastiveOptions, max_len: u32) -> SlotOptions {
        SlotOptions { contrast, max_len, ..SlotOptions::default() }
    }

    /// Two rows of seven, the second at its length limit; log-probabilities computed by PyTorch, in f32.
    #[test]
    fn reference_agrees_with_pytorch() {
        let inf = f32::INFINITY;
        let z_e = [1.5, -2.0, 0.25, 3.0, 2.5, -0.75, 1.0, 1.5, -2.0, 0.25, 3.0, 2.5, -0.75, 1.0];
        let z_a = [0.5, 1.0, -0.25, 3.5, 0.0, 2.0, -4.0, 0.5, 1.0, -0.25, 3.5, 0.0, 2.0, -4.0];
        let rows = [Row { slot: 0, position: 8, ..Row::default() }, Row { slot: 0, position: 9, ..Row::default() }];
        let seed = [-2.462585, -6.212585, -3.337585, -2.462585, -1.212585, -5.462585, -0.7125854];
        let li = [-2.419919, -inf, -inf, -2.419919, -1.169919, -inf, -0.6699187];
        let li_at_limit = [-2.456319, -inf, -3.331319, -2.456319, -1.206319, -inf, -0.7063192];
        let obrien = [-2.591763, -inf, -inf, -1.841763, -0.8417629, -inf, -1.091763];
        let obrien_at_limit = [-2.608335, -inf, -4.108335, -1.858335, -0.8583346, -inf, -1.108335];
        let source = [-1.634198, -inf, -inf, -26.78386, -0.427406, -inf, -1.879329];
        let source_at_limit = [-1.678384, -inf, -3.141369, -26.82804, -0.4715914, -inf, -1.923515];
        for (form, weight, expected) in [
            (ContrastiveForm::Logits, 0.5, [seed, seed]),
            (ContrastiveForm::Li, 0.5, [li, li_at_limit]),
            (ContrastiveForm::Obrien, 0.5, [obrien, obrien_at_limit]),
            (ContrastiveForm::Source, 0.7, [source, source_at_limit]),
        ] {
            let options = [slot(ContrastiveOptions::new(form, weight, 0.1, 1.0), 10)];
            for compute in [reference, contrastive] {
                let (mut contrast, mut normalizers) = (z_a, [0.0; 2]);
                compute(&rows, &options, 7, 2, &z_e, &mut contrast, &mut normalizers);
                assert_close(&contrast, expected.as_flattened(), Tolerance::new(2e-6, 1e-6));
                assert_close(&normalizers, &[3.722_307_7; 2], Tolerance::new(1e-6, 1e-6));
            }
        }
    }

    /// Random rows over quarter steps: ties, also at V_head's line (`log_mask` -2), outliers, tokens that are ruled out.
    struct Case {
        rows: Vec<Row>,
        options: Vec<SlotOptions>,
        vocab_size: usize,
        expert: Vec<f32>,
        amateur: Vec<f32>,
    }

    impl Case {
        fn new(rows: usize, vocab_size: usize, form: ContrastiveForm, temperature: f32) -> Case {
            let logit = |i: usize| (i * 7919 % 61) as f32 * 0.25 - 7.0;
            let mut expert: Vec<f32> = (0..rows * vocab_size).map(logit).collect();
            let amateur: Vec<f32> = (0..rows * vocab_size).map(|i| logit(i * 31 + 17)).collect();
            expert.iter_mut().skip(3).step_by(11).for_each(|z| *z = f32::NEG_INFINITY);
            expert.iter_mut().skip(5).step_by(97).for_each(|z| *z += 30.0);
            let mut options = ContrastiveOptions::new(form, 0.625, 0.1, temperature);
            options.log_mask = -2.0;
            let row = |r: usize| Row { slot: (r % 2) as u32, position: (r % 5) as u32, ..Row::default() };
            let lax = ContrastiveOptions { log_mask: f32::NEG_INFINITY, ..options };
            Case {
                rows: (0..rows).map(row).collect(),
                options: vec![slot(options, 4), slot(lax, 4)],
                vocab_size,
                expert,
                amateur,
            }
        }

        fn run(
            &self,
            compute: impl Fn(&[Row], &[SlotOptions], usize, u32, &[f32], &mut [f32], &mut [f32]),
        ) -> [Vec<f32>; 2] {
            let (mut contrast, mut normalizers) = (self.amateur.clone(), vec![0.0; self.rows.len()]);
            let eos = (self.vocab_size / 2) as u32;
            compute(&self.rows, &self.options, self.vocab_size, eos, &self.expert, &mut contrast, &mut normalizers);
            [contrast, normalizers]
        }
    }

    #[test]
    fn fast_path_equals_reference() {
        for (form, vocab_size, temperature) in FORMS
            .into_iter()
            .flat_map(|form| [1, 2, 31, 64, 997].map(move |v| (form, v, if v == 31 { 1.0 } else { 0.7 })))
        {
            let case = Case::new(11, vocab_size, form, temperature);
            let ([expected, own], [actual, own_actual]) = (case.run(reference), case.run(contrastive));
            assert_close(&own_actual, &own, Tolerance::new(1e-6, 1e-6));
            if form == ContrastiveForm::Source {
                // A difference of two probabilities has an absolute error, and so has what it is a share of.
                let share = |values: &[f32]| values.iter().map(|l| l.exp()).collect::<Vec<_>>();
                assert_close(&share(&actual), &share(&expected), Tolerance::new(1e-6, 1e-5));
                assert!(
                    actual.iter().zip(&expected).all(|(a, e)| (*a == f32::NEG_INFINITY) == (*e == f32::NEG_INFINITY))
                );
            } else {
                assert_close(&actual, &expected, Tolerance::new(1e-5, 1e-6));
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        for form in FORMS {
            let case = Case::new(23, 61, form, 0.7);
            let [all, _] = case.run(contrastive);
            for r in 0..23 {
                let part = r * 61..(r + 1) * 61;
                let (mut alone, mut normalizer) = (case.amateur[part.clone()].to_vec(), [0.0]);
                contrastive(
                    &case.rows[r..=r],
                    &case.options,
                    61,
                    30,
                    &case.expert[part.clone()],
                    &mut alone,
                    &mut normalizer,
                );
                assert_same_bits(&alone, &all[part]);
            }
        }
    }

    #[test]
    fn what_cannot_be_ranked_shows() {
        let inf = f32::INFINITY;
        let (nothing, nan) = ([-inf; 3], [f32::NAN; 3]);
        for form in FORMS {
            for (z_e, z_a, expected, normalizer) in [
                ([-inf; 3], [0.0, 1.0, 2.0], nothing, -inf),
                ([1.0, f32::NAN, 0.0], [0.0; 3], nan, f32::NAN),
                ([1.0, inf, 0.0], [0.0; 3], nan, f32::NAN),
                ([1.0, 0.0, -inf], [0.0, f32::NAN, 0.0], nan, 1.313_261_7),
                ([1.0, 0.0, -inf], [0.0, inf, 0.0], nan, 1.313_261_7),
            ] {
                let options = [slot(ContrastiveOptions::new(form, 0.5, 0.1, 1.0), 10)];
                for compute in [reference, contrastive] {
                    let (mut contrast, mut normalizers) = (z_a, [0.0]);
                    compute(&[Row::default()], &options, 3, 2, &z_e, &mut contrast, &mut normalizers);
                    assert_close(&contrast, &expected, Tolerance::EXACT);
                    assert_close(&normalizers, &[normalizer], Tolerance::new(1e-6, 0.0));
                }
            }
        }
    }
}
