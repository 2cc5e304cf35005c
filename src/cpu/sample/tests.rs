//! The sampler against its reference and against exact distributions; the kernel's tests use the same cases.

use super::reference::exact;
use super::*;
use crate::backend::Strategy;
use crate::check::{Tolerance, assert_close};

pub const IDS: SpecialIds = SpecialIds { eos_id: 2, pad_id: 5, decoder_start_id: 5 };

/// Every token, at temperature 1.
pub const PLAIN: SampleOptions = SampleOptions {
    seed_low: 0x9abc_def0,
    seed_high: 0x1234_5678,
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    epsilon: 0.0,
};

/// Each filter alone, and together.
pub fn filters() -> Vec<SampleOptions> {
    vec![
        PLAIN,
        SampleOptions { temperature: 0.7, ..PLAIN },
        SampleOptions { temperature: 0.0, ..PLAIN },
        SampleOptions { top_k: 3, ..PLAIN },
        SampleOptions { top_p: 0.8, ..PLAIN },
        SampleOptions { min_p: 0.1, ..PLAIN },
        SampleOptions { epsilon: 0.02, ..PLAIN },
        SampleOptions { temperature: 1.3, top_k: 40, top_p: 0.9, min_p: 0.05, epsilon: 0.03, ..PLAIN },
        SampleOptions { top_k: 1_000_000, top_p: 1e-9, ..PLAIN },
        SampleOptions { epsilon: 1.0, ..PLAIN },
    ]
}

/// A step over slots with different options.
#[derive(Clone)]
pub struct Case {
    pub rows: Vec<Row>,
    pub options: Vec<SlotOptions>,
    pub ancestry: Vec<u32>,
    pub logits: Vec<f32>,
    pub ranked: Vec<f32>,
    pub bans: Vec<u32>,
    pub vocab_size: usize,
    pub stride: usize,
    pub beam_size: usize,
}

/// T of the cases.
pub const MAX_LEN: usize = 7;
/// Where no pick may be written.
pub const UNTOUCHED: SamplePick = SamplePick { token: 77, log_prob: -77.0, ranked_log_prob: -77.0 };

fn words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

impl Case {
    /// A slot for each of `filters()` and beside each one that does not sample; some rank `ranked`, some have bans, some are at
    /// their limits. Logits in eighths: full of ties; some are ruled out.
    pub fn mixed(vocab_size: usize, stride: usize, beam_size: usize, salt: usize) -> Case {
        let mut options = Vec::new();
        let mut rows = Vec::new();
        for (i, sampling) in filters().into_iter().enumerate() {
            for strategy in [Strategy::Sample, Strategy::Beam] {
                let slot = options.len() as u32;
                let position = ((i + salt) % (MAX_LEN - 1)) as u32;
                let live = 1 + (i * 5 + salt) % beam_size;
                rows.extend((0..live as u32).map(|beam| Row { slot, beam, position, token: 0 }));
                options.push(SlotOptions {
                    strategy: strategy as u32,
                    beam_size: beam_size as u32,
                    min_len: (i % 3) as u32,
                    max_len: if i % 4 == 1 { position + 1 } else { 9 },
                    cut: u32::from((i + salt).is_multiple_of(2)),
                    takes_pad: u32::from((i + salt) % 4 == 1),
                    ranked: u32::from((i + salt).is_multiple_of(3)),
                    banned: u32::from((i + salt) % 5 < 3),
                    sampling,
                    ..SlotOptions::default()
                });
            }
        }
        let value = |i: usize| ((i * 7919 + salt * 31) % 97) as f32 * 0.125 - 7.0;
        let mut logits: Vec<f32> = (0..rows.len() * stride).map(value).collect();
        logits.iter_mut().skip(salt % 7).step_by(7).for_each(|z| *z = f32::NEG_INFINITY);
        let ranked = (0..rows.len() * stride).map(|i| value(i * 5 + 3) * 0.5).collect();
        let bans = (0..rows.len() * words(vocab_size)).map(|i| (i as u32 + 1).wrapping_mul(0x9E37_79B1) & 0x1111_1110);
        let ancestry = (0..options.len() * beam_size * MAX_LEN).map(|i| (i * 13 % 11) as u32).collect();
        Case { bans: bans.collect(), rows, options, ancestry, logits, ranked, vocab_size, stride, beam_size }
    }

    /// One slot of `samples` rows, all with the same logits.
    pub fn one(row: &[f32], samples: usize, options: SlotOptions) -> Case {
        let rows = (0..samples as u32).map(|beam| Row { slot: 0, beam, ..Row::default() });
        Case {
            rows: rows.collect(),
            options: vec![SlotOptions { strategy: Strategy::Sample as u32, max_len: 9, ..options }],
            ancestry: (0..samples * MAX_LEN).map(|i| (i / MAX_LEN) as u32).collect(),
            logits: row.repeat(samples),
            ranked: Vec::new(),
            bans: vec![0; samples * words(row.len())],
            vocab_size: row.len(),
            stride: row.len(),
            beam_size: samples,
        }
    }

    pub fn step(&self) -> Step<'_> {
        Step {
            rows: &self.rows,
            options: &self.options,
            ancestry: &self.ancestry,
            logits: &self.logits,
            ranked: &self.ranked,
            bans: &self.bans,
            vocab_size: self.vocab_size,
            stride: self.stride,
            beam_size: self.beam_size,
            max_len: MAX_LEN,
            ids: IDS,
        }
    }

    pub fn picks(&self, by: fn(&Step<'_>, &mut [SamplePick])) -> Vec<SamplePick> {
        let mut picks = vec![UNTOUCHED; self.options.len() * self.beam_size];
        by(&self.step(), &mut picks);
        picks
    }
}

/// Tokens are equal, log-probabilities close.
#[track_caller]
pub fn assert_same_picks(actual: &[SamplePick], expected: &[SamplePick]) {
    let tokens = |picks: &[SamplePick]| picks.iter().map(|p| p.token).collect::<Vec<_>>();
    assert_eq!(tokens(actual), tokens(expected));
    let numbers = |picks: &[SamplePick]| picks.iter().flat_map(|p| [p.log_prob, p.ranked_log_prob]).collect::<Vec<_>>();
    assert_close(&numbers(actual), &numbers(expected), Tolerance::new(1e-5, 1e-6));
}

#[test]
fn fast_path_equals_reference() {
    for (vocab_size, stride) in [(6, 6), (7, 9), (31, 31), (64, 64), (97, 100), (997, 1000)] {
        for salt in 0..12 {
            let case = Case::mixed(vocab_size, stride, 9, salt);
            assert_same_picks(&case.picks(sample), &case.picks(reference));
        }
    }
}

#[test]
fn words_that_are_passed_over_have_too_little_noise() {
    for i in -400..2000i32 {
        let noise = i as f32 / 100.0 + 0.003;
        let least = LEAST_WORDS[step_of(noise)];
        // Neighbours of the bound, and words from all over.
        let near = (1..200).map(|k| least.saturating_sub(k << 8));
        for word in near.chain((0..200).map(|k| k * 21_474_836)).filter(|word| *word < least) {
            assert!(gumbel(word) < noise - 5e-4, "{word} has {}, the bound is for {noise}", gumbel(word));
        }
        // And it passes over nearly all that it could.
        if (-2.5..16.0).contains(&noise) {
            assert!(gumbel(least) > noise - 0.13, "{noise}: {}", gumbel(least));
        }
    }
}

#[test]
fn what_the_filters_leave_is_what_they_say() {
    // Probabilities 0.5, 0.25, 0.125, 0.125 of tokens 6, 1, 0, 7; padding (5) would be best.
    let inf = f32::INFINITY;
    let row = [0.125f32.ln(), 0.25f32.ln(), -inf, -inf, -inf, 9.0, 0.5f32.ln(), 0.125f32.ln(), -inf];
    for (sampling, expected) in [
        (PLAIN, vec![6, 1, 0, 7]),
        (SampleOptions { top_k: 3, ..PLAIN }, vec![6, 1, 0]),
        (SampleOptions { top_k: 9, ..PLAIN }, vec![6, 1, 0, 7]),
        (SampleOptions { top_p: 0.5, ..PLAIN }, vec![6]),
        (SampleOptions { top_p: 0.51, ..PLAIN }, vec![6, 1]),
        (SampleOptions { top_p: 0.8, ..PLAIN }, vec![6, 1, 0]),
        (SampleOptions { top_p: 0.0, ..PLAIN }, vec![6]),
        // Of 0.75 that are left, 0.5 is two thirds.
        (SampleOptions { top_k: 2, top_p: 0.6, ..PLAIN }, vec![6]),
        (SampleOptions { min_p: 0.3, ..PLAIN }, vec![6, 1]),
        (SampleOptions { min_p: 1.0, ..PLAIN }, vec![6]),
        (SampleOptions { epsilon: 0.2, ..PLAIN }, vec![6, 1]),
        (SampleOptions { epsilon: 0.9, ..PLAIN }, vec![6]),
        // Flattened to 0.37, 0.26, 0.185, 0.185.
        (SampleOptions { temperature: 2.0, epsilon: 0.2, ..PLAIN }, vec![6, 1]),
        (SampleOptions { temperature: 2.0, epsilon: 0.18, ..PLAIN }, vec![6, 1, 0, 7]),
        (SampleOptions { temperature: 0.0, ..PLAIN }, vec![6]),
    ] {
        let case = Case::one(&row, 1000, SlotOptions { sampling, ..SlotOptions::default() });
        let left = exact(&case.step(), 0);
        assert_eq!(left.iter().map(|c| c.token).collect::<Vec<_>>(), expected, "{sampling:?}");
        for by in [reference, sample] {
            let picks = case.picks(by);
            let mut seen: Vec<usize> = picks.iter().map(|p| p.token as usize).collect();
            seen.sort_unstable();
            seen.dedup();
            let mut support = expected.clone();
            support.sort_unstable();
            assert_eq!(seen, support, "{sampling:?}");
        }
    }
}

/// What transformers 4.57 leaves of a row by its warpers in a row: temperature, top_k, top_p, min_p, epsilon.
#[test]
fn filters_are_those_of_transformers() {
    let inf = f32::INFINITY;
    let row = [1.25, 0.25, 0.125, -0.875, 0.125, -inf, 0.5, 1.5, -2.125, 1.5, 0.75, 1.875, -1.25, 0.5];
    let [top_seven, top_five] = [
        vec![0.267_367, 0.183_759, 0.183_759, 0.143_111, 0.086_801, 0.067_601, 0.067_601],
        vec![0.309_168, 0.212_488, 0.212_488, 0.165_485, 0.100_372],
    ];
    let order = [11, 7, 9, 0, 10, 6, 13, 1, 2, 4, 3, 12, 8];
    let all = SampleOptions { temperature: 1.5, top_k: 8, top_p: 0.85, min_p: 0.25, ..PLAIN };
    for (sampling, shares) in [
        (
            SampleOptions { temperature: 0.7, ..PLAIN },
            vec![
                0.297_819, 0.174_299, 0.174_299, 0.121_952, 0.059_701, 0.041_771, 0.041_771, 0.029_226, 0.024_446,
                0.024_446, 0.005_859, 0.003_429, 0.000_982,
            ],
        ),
        (SampleOptions { top_k: 5, ..PLAIN }, top_five.clone()),
        (SampleOptions { top_p: 0.7, ..PLAIN }, top_five),
        (SampleOptions { min_p: 0.2, ..PLAIN }, top_seven.clone()),
        (SampleOptions { epsilon: 0.05, ..PLAIN }, top_seven),
        (all, vec![0.222_771, 0.173_494, 0.173_494, 0.146_86, 0.105_23, 0.089_075, 0.089_075]),
        (
            SampleOptions { top_p: 0.9, min_p: 0.1, epsilon: 0.1, ..all },
            vec![0.271_061, 0.211_102, 0.211_102, 0.178_694, 0.128_04],
        ),
    ] {
        let case = Case::one(&row, 1000, SlotOptions { sampling, ..SlotOptions::default() });
        let left = exact(&case.step(), 0);
        assert_eq!(left.iter().map(|c| c.token as u32).collect::<Vec<_>>(), order[..shares.len()], "{sampling:?}");
        let probabilities: Vec<f32> = left.iter().map(|c| c.probability as f32).collect();
        assert_close(&probabilities, &shares, Tolerance::new(1e-6, 0.0));
        let picks = case.picks(sample);
        assert!(picks.iter().all(|p| order[..shares.len()].contains(&p.token)), "{sampling:?}");
    }
}

#[test]
fn equal_logits_are_cut_by_id() {
    for (sampling, last) in
        [(SampleOptions { top_k: 10, ..PLAIN }, 10), (SampleOptions { top_p: 0.5, ..PLAIN }, 32), (PLAIN, 64)]
    {
        for value in [0.0, -3.5, 1e-30] {
            let mut row = [value; 65];
            row.iter_mut().step_by(2).for_each(|z| *z += -0.0);
            let case = Case::one(&row, 1500, SlotOptions { sampling, ..SlotOptions::default() });
            for by in [reference, sample] {
                let picks = case.picks(by);
                assert_eq!(picks.iter().map(|p| p.token).max(), Some(last), "{sampling:?}");
                assert!(picks.iter().all(|p| p.token != IDS.pad_id));
            }
        }
    }
}

/// The 99.99 % quantile of chi-square, by the Wilson-Hilferty approximation.
fn chi_square_bound(degrees: usize) -> f64 {
    let k = degrees as f64;
    k * (1.0 - 2.0 / (9.0 * k) + 3.719 * (2.0 / (9.0 * k)).sqrt()).powi(3)
}

/// Compares the counts of what `picks` holds with the exact distribution; tokens outside of it must not be there.
#[track_caller]
pub fn assert_distribution(case: &Case, picks: &[SamplePick]) {
    let expected = exact(&case.step(), 0);
    let count = |token: usize| picks.iter().filter(|p| p.token as usize == token).count() as f64;
    let (mut inside, mut rare, mut chi_square, mut cells) = (0.0, (0.0, 0.0), 0.0, 0);
    for candidate in &expected {
        let (seen, mean) = (count(candidate.token), candidate.probability * picks.len() as f64);
        inside += seen;
        if mean < 8.0 {
            rare = (rare.0 + seen, rare.1 + mean);
        } else {
            chi_square += (seen - mean).powi(2) / mean;
            cells += 1;
        }
    }
    assert_eq!(inside, picks.len() as f64, "tokens were picked that the filters rule out");
    if rare.1 > 8.0 {
        chi_square += (rare.0 - rare.1).powi(2) / rare.1;
        cells += 1;
    }
    if cells > 1 {
        assert!(chi_square < chi_square_bound(cells - 1), "chi-square {chi_square} in {cells} cells");
    }
}

#[test]
fn picks_have_their_probabilities() {
    for vocab_size in [13, 101, 503] {
        let row: Vec<f32> = (0..vocab_size).map(|i| ((i * 7919) % 61) as f32 * 0.1 - (i % 3) as f32).collect();
        for (i, sampling) in filters().into_iter().enumerate() {
            let sampling = SampleOptions { seed_low: i as u32, ..sampling };
            let mut case = Case::one(&row, 8000, SlotOptions { sampling, banned: 1, ..SlotOptions::default() });
            case.bans.iter_mut().for_each(|word| *word = 0x0008_0810);
            assert_distribution(&case, &case.picks(sample));
        }
    }
}

#[test]
fn samples_and_steps_are_independent() {
    // Pairs of picks of neighbouring samples, and of one sample at neighbouring steps, over four equal tokens.
    let row = [0.0, 0.0, f32::NEG_INFINITY, 0.0, 0.0];
    let case = Case::one(&row, 20_001, SlotOptions { sampling: PLAIN, ..SlotOptions::default() });
    let first = case.picks(sample);
    let mut next = case.clone();
    next.rows.iter_mut().for_each(|row| row.position = 1);
    let second = next.picks(sample);
    let place = |p: &SamplePick| if p.token > 2 { p.token - 1 } else { p.token } as usize;
    for pairs in [first.iter().zip(&first[1..]), first.iter().zip(&second[..20_000])] {
        let mut counts = [[0.0f64; 4]; 4];
        pairs.for_each(|(a, b)| counts[place(a)][place(b)] += 1.0);
        let chi_square: f64 = counts.as_flattened().iter().map(|n| (n - 1250.0).powi(2) / 1250.0).sum();
        assert!(chi_square < chi_square_bound(15), "{chi_square}");
    }
}

#[test]
fn a_sample_keeps_its_draws_when_beams_move() {
    let row: Vec<f32> = (0..37).map(|i| (i * 29 % 37) as f32 * 0.05).collect();
    let mut case = Case::one(&row, 8, SlotOptions { sampling: PLAIN, ..SlotOptions::default() });
    case.rows.iter_mut().for_each(|row| row.position = 3);
    let all = case.picks(sample);
    // Samples 5 and 2 are what is left, as beams 0 and 1 of slot 1, in a batch of others.
    let mut moved = Case::mixed(37, 37, 8, 1);
    moved.options[1] = case.options[0];
    let at = moved.rows.iter().position(|row| row.slot == 1).expect("a row");
    moved.rows.retain(|row| row.slot != 1);
    moved.logits.truncate(moved.rows.len() * 37);
    for (beam, number) in [5, 2].into_iter().enumerate() {
        moved.rows.insert(at + beam, Row { slot: 1, beam: beam as u32, position: 3, token: 0 });
        moved.ancestry[(8 + beam) * MAX_LEN] = number;
        moved.logits.splice((at + beam) * 37..(at + beam) * 37, row.clone());
    }
    for buffer in [&mut moved.logits, &mut moved.ranked] {
        buffer.resize(moved.rows.len() * 37, 0.0);
    }
    moved.bans.resize(moved.rows.len() * 2, 0);
    let picks = moved.picks(sample);
    assert_eq!(picks[8..10], [all[5], all[2]]);
    assert_ne!(all.iter().map(|p| p.token).min(), all.iter().map(|p| p.token).max());
}

/// A row, and what is picked from it: a token, or why there is none.
pub fn broken_rows() -> Vec<([f32; 9], Result<u32, f32>)> {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    vec![
        ([nan, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], Err(nan)),
        ([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, inf], Err(inf)),
        ([0.0, 1.0, 0.0, 0.0, 0.0, nan, 0.0, 0.0, inf], Err(nan)),
        ([-inf; 9], Err(-inf)),
        ([-inf, -inf, -inf, -inf, -inf, 1.0, -inf, -inf, -inf], Err(-inf)),
        ([-inf, -inf, -inf, -200.0, -inf, 1.0, -inf, -inf, -inf], Ok(3)),
        ([-3e38, -3e38, 3e38, -3e38, -3e38, 1.0, -3e38, -3e38, -3e38], Ok(2)),
    ]
}

/// What [`broken_rows`] says of one pick.
#[track_caller]
pub fn assert_outcome(pick: SamplePick, expected: Result<u32, f32>) {
    match expected {
        Ok(token) => assert_eq!(pick.token, token),
        Err(why) => {
            assert_eq!(pick.token, SamplePick::NONE);
            assert!(pick.log_prob == why || (pick.log_prob.is_nan() && why.is_nan()), "{pick:?} for {why}");
        }
    }
}

#[test]
fn what_cannot_be_drawn_shows() {
    for sampling in filters() {
        for (row, expected) in broken_rows() {
            for by in [reference, sample] {
                let mut case = Case::one(&row, 1, SlotOptions { sampling, ..SlotOptions::default() });
                assert_outcome(case.picks(by)[0], expected);
                // The same among what is ranked, the logits being fair.
                case.options[0].ranked = 1;
                case.ranked = std::mem::replace(&mut case.logits, vec![0.0; 9]);
                assert_outcome(case.picks(by)[0], expected);
            }
        }
    }
}

#[test]
fn limits_rule_end_of_sentence() {
    // End of sentence (2) is likely, then hardly possible.
    for (eos, position, min_len, cut, always, never) in [
        (2.0, 0, 2, 0, false, true),
        (2.0, 1, 2, 0, false, false),
        (-6.0, 8, 0, 0, true, false),
        (2.0, 8, 0, 1, false, false),
        (f32::NEG_INFINITY, 8, 0, 1, false, true),
    ] {
        let row = [0.0, 1.0, eos, 0.0, 0.5, 0.0, 0.0];
        let options = SlotOptions { sampling: PLAIN, min_len, cut, ..SlotOptions::default() };
        let mut case = Case::one(&row, 200, options);
        case.rows.iter_mut().for_each(|row| row.position = position);
        for by in [reference, sample] {
            let ends = case.picks(by).iter().filter(|p| p.token == IDS.eos_id).count();
            assert_eq!((ends == 200, ends == 0), (always, never), "{eos} at {position}");
        }
    }
    let mut case = Case::one(&[0.0, 0.0, f32::NEG_INFINITY, 0.0, 0.0, 0.0], 1, SlotOptions::default());
    case.options[0].sampling = PLAIN;
    case.rows[0].position = 8;
    assert_outcome(case.picks(sample)[0], Err(f32::NEG_INFINITY));
}
