//! Op `scheduled_sampling`: for each token of a batch, the gold token or the model's own pick (Bengio et al. 2015; for
//! Transformers: Mihaylova & Martins 2019).
//!
//! Row r predicts the token whose gold is `gold[r]`; its coin keeps that with [`Schedule::gold_probability`]. Padding is always
//! kept, without a coin. Rows that stay gold do not read their logits. The pick is refused, and gold kept, if it is end of
//! sentence where gold is not, if nothing is above -infinity, or if NaN or +infinity is among the logits (those of padding and
//! start token do not count).
//!
//! `logits` `[rows, vocab_size]`; `places`, `gold`, `chosen` `[rows]`. `counts` `[2]` grows by the rows that take a pick, be it
//! gold or not, and by those refused for NaN or +infinity.
//!
//! Random numbers are Philox4x32-10 with the run's seed as key and (update, sentence, position, purpose * 2^28 + token / 4) as
//! counter.

use rayon::prelude::*;

use crate::backend::{Pick, Schedule, ScheduledSampling, TokenPlace};
use crate::cpu::philox::{Purpose, open_uniform, philox, uniform};
use crate::cpu::simd;

fn random_words(seed: u64, update: u32, place: TokenPlace, purpose: Purpose, token: usize) -> [u32; 4] {
    philox(seed, [update, place.sentence, place.position, (purpose as u32) << 28 | (token / 4) as u32])
}

fn keeps_gold(run: &ScheduledSampling, schedule: Schedule, place: TokenPlace, gold: u32) -> bool {
    let coin = uniform(random_words(run.seed, schedule.update, place, Purpose::Coin, 0)[0]);
    gold == run.ids.pad_id || coin < schedule.gold_probability
}

/// What looking at a row's logits has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Token(u32),
    Nothing,
    /// NaN or +infinity.
    Broken,
}

impl Found {
    /// The chosen token, and which of the counts grows.
    fn settle(self, run: &ScheduledSampling, gold: u32) -> (u32, Option<usize>) {
        match self {
            Found::Token(token) if token != run.ids.eos_id || gold == run.ids.eos_id => (token, Some(0)),
            Found::Broken => (gold, Some(1)),
            _ => (gold, None),
        }
    }
}

/// The naive computation, in f64: what the fast path is held to.
pub fn reference(
    run: &ScheduledSampling,
    schedule: Schedule,
    places: &[TokenPlace],
    gold: &[u32],
    logits: &[f32],
    chosen: &mut [u32],
    counts: &mut [u32],
) {
    let vocab_size = logits.len() / gold.len().max(1);
    for r in 0..gold.len() {
        chosen[r] = gold[r];
        if keeps_gold(run, schedule, places[r], gold[r]) {
            continue;
        }
        let keys = reference_keys(run, schedule, places[r], &logits[r * vocab_size..][..vocab_size]);
        let mut found = Found::Nothing;
        let mut best = f64::NEG_INFINITY;
        for (token, &key) in keys.iter().enumerate() {
            if key > best {
                (best, found) = (key, Found::Token(token as u32));
            }
        }
        if keys.iter().any(|key| key.is_nan() || *key == f64::INFINITY) {
            found = Found::Broken;
        }
        let (token, count) = found.settle(run, gold[r]);
        chosen[r] = token;
        if let Some(count) = count {
            counts[count] += 1;
        }
    }
}

/// What ranks the tokens of a row, -infinity where a token is masked.
fn reference_keys(run: &ScheduledSampling, schedule: Schedule, place: TokenPlace, logits: &[f32]) -> Vec<f64> {
    let key = |token: usize| {
        if token as u32 == run.ids.pad_id || token as u32 == run.ids.decoder_start_id {
            return f64::NEG_INFINITY;
        }
        match run.pick {
            Pick::Argmax => f64::from(logits[token]),
            Pick::Sample { temperature } => {
                let word = random_words(run.seed, schedule.update, place, Purpose::Noise, token)[token % 4];
                f64::from(logits[token]) / f64::from(temperature) - (-f64::from(open_uniform(word)).ln()).ln()
            }
        }
    };
    (0..logits.len()).map(key).collect()
}

/// Chooses the tokens of all rows.
pub fn scheduled_sampling(
    run: &ScheduledSampling,
    schedule: Schedule,
    places: &[TokenPlace],
    gold: &[u32],
    logits: &[f32],
    chosen: &mut [u32],
    counts: &mut [u32],
) {
    if gold.is_empty() {
        return;
    }
    let rows = logits.par_chunks_exact(logits.len() / gold.len());
    let choose = |(((chosen, &gold), &place), logits): (((&mut u32, &u32), &TokenPlace), &[f32])| {
        *chosen = gold;
        if keeps_gold(run, schedule, place, gold) {
            return [0, 0];
        }
        let found = match run.pick {
            Pick::Argmax => argmax(run, logits),
            Pick::Sample { temperature } => sample(run, schedule.update, place, temperature, logits),
        };
        let (token, count) = found.settle(run, gold);
        *chosen = token;
        [u32::from(count == Some(0)), u32::from(count == Some(1))]
    };
    let sums = chosen.par_iter_mut().zip(gold).zip(places).zip(rows).map(choose);
    let [picked, broken] = sums.reduce(|| [0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
    counts[0] += picked;
    counts[1] += broken;
}

/// The parts of a row between the masked tokens: where each starts, and its logits.
fn allowed<'a>(run: &ScheduledSampling, logits: &'a [f32]) -> [(usize, &'a [f32]); 3] {
    let end = |id: u32| (id as usize).min(logits.len());
    let (pad, start) = (end(run.ids.pad_id), end(run.ids.decoder_start_id));
    let (first, second) = (pad.min(start), pad.max(start));
    let after = |id: usize| (id + 1).min(logits.len());
    let middle = after(first).min(second);
    [(0, &logits[..first]), (middle, &logits[middle..second]), (after(second), &logits[after(second)..])]
}

fn argmax(run: &ScheduledSampling, logits: &[f32]) -> Found {
    let parts = allowed(run, logits);
    let maxima = parts.map(|(_, part)| simd::max(part));
    let max = maxima.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if maxima.iter().any(|max| max.is_nan()) || max == f32::INFINITY {
        return Found::Broken;
    }
    if max == f32::NEG_INFINITY {
        return Found::Nothing;
    }
    let at = |(start, part): (usize, &[f32])| part.iter().position(|z| *z == max).map(|i| start + i);
    parts.into_iter().find_map(at).map_or(Found::Nothing, |token| Found::Token(token as u32))
}

fn sample(run: &ScheduledSampling, update: u32, place: TokenPlace, temperature: f32, logits: &[f32]) -> Found {
    let mut found = Found::Nothing;
    let mut best = f32::NEG_INFINITY;
    for (group, values) in logits.chunks(4).enumerate() {
        let words = random_words(run.seed, update, place, Purpose::Noise, group * 4);
        for (k, (&logit, word)) in values.iter().zip(words).enumerate() {
            let token = (group * 4 + k) as u32;
            if token == run.ids.pad_id || token == run.ids.decoder_start_id {
                continue;
            }
            if logit.is_nan() || logit == f32::INFINITY {
                return Found::Broken;
            }
            let key = logit / temperature - (-open_uniform(word).ln()).ln();
            if key > best {
                (best, found) = (key, Found::Token(token));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::SpecialIds;

    const IDS: SpecialIds = SpecialIds { eos_id: 2, pad_id: 9, decoder_start_id: 4 };

    fn run(pick: Pick) -> ScheduledSampling {
        ScheduledSampling { pick, seed: 0x1234_5678_9abc_def0, ids: IDS }
    }

    fn places(rows: usize) -> Vec<TokenPlace> {
        (0..rows).map(|r| TokenPlace { sentence: (r / 7) as u32, position: (r % 7) as u32 }).collect()
    }

    type Choose = fn(&ScheduledSampling, Schedule, &[TokenPlace], &[u32], &[f32], &mut [u32], &mut [u32]);

    fn choose(
        by: Choose,
        run: &ScheduledSampling,
        gold_probability: f32,
        gold: &[u32],
        logits: &[f32],
    ) -> (Vec<u32>, [u32; 2]) {
        let (mut chosen, mut counts) = (vec![77; gold.len()], [0; 2]);
        by(run, Schedule { gold_probability, update: 3 }, &places(gold.len()), gold, logits, &mut chosen, &mut counts);
        (chosen, counts)
    }

    #[test]
    fn fast_path_equals_reference() {
        for (rows, vocab_size, temperature) in [(1, 11, 1.0), (37, 13, 0.7), (64, 128, 1.3), (41, 997, 1.0)] {
            // Quarter steps: full of ties.
            let mut logits: Vec<f32> = (0..rows * vocab_size).map(|i| (i * 7919 % 41) as f32 * 0.25 - 5.0).collect();
            logits.iter_mut().skip(1).step_by(5).for_each(|z| *z = f32::NEG_INFINITY);
            let gold: Vec<u32> = (0..rows as u32).map(|r| r * 5 % 11).collect();
            for pick in [Pick::Argmax, Pick::Sample { temperature }] {
                for gold_probability in [0.0, 0.5, 1.0] {
                    let run = run(pick);
                    let expected = choose(reference, &run, gold_probability, &gold, &logits);
                    let actual = choose(scheduled_sampling, &run, gold_probability, &gold, &logits);
                    assert_eq!(actual, expected, "{pick:?} {gold_probability} {rows} {vocab_size}");
                }
            }
        }
    }

    #[test]
    fn gold_stays_at_probability_one_and_padding_always() {
        let logits = vec![f32::NAN; 3 * 12];
        for by in [reference, scheduled_sampling] {
            let run = run(Pick::Argmax);
            assert_eq!(choose(by, &run, 1.0, &[5, 6, 2], &logits), (vec![5, 6, 2], [0, 0]));
            assert_eq!(choose(by, &run, 0.0, &[9, 9, 9], &logits), (vec![9, 9, 9], [0, 0]));
        }
    }

    #[test]
    fn picks_that_are_refused_keep_gold() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (gold, row, expected, counts) in [
            // The start token (4) and padding (9) are best, then 1 and 3 tie.
            (6, [0.0, 3.0, 0.0, 3.0, 8.0, 0.0, 0.0, 0.0, 0.0, 9.0], 1, [1, 0]),
            (6, [-0.0, 0.0, -1.0, 0.0, 8.0, -1.0, -1.0, -1.0, -1.0, nan], 0, [1, 0]),
            // End of sentence (2) before the gold end, and at it.
            (6, [0.0, 3.0, 5.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 6, [0, 0]),
            (2, [0.0, 3.0, 5.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2, [1, 0]),
            (6, [-inf, -inf, -inf, -inf, 1.0, -inf, -inf, -inf, -inf, 1.0], 6, [0, 0]),
            (6, [0.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0.0, nan, 0.0, 0.0], 6, [0, 1]),
            (6, [0.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0.0, inf, 0.0, 0.0], 6, [0, 1]),
        ] {
            for by in [reference, scheduled_sampling] {
                assert_eq!(choose(by, &run(Pick::Argmax), 0.0, &[gold], &row), (vec![expected], counts), "{row:?}");
            }
        }
        for by in [reference, scheduled_sampling] {
            let sampling = run(Pick::Sample { temperature: 1.0 });
            assert_eq!(choose(by, &sampling, 0.0, &[6], &[-inf; 10]), (vec![6], [0, 0]));
            assert_eq!(choose(by, &sampling, 0.0, &[6], &[nan; 10]), (vec![6], [0, 1]));
        }
    }

    #[test]
    fn coins_and_samples_have_their_frequencies() {
        let rows = 20_000;
        // Probabilities 1/10, 2/10, 3/10, 4/10 of tokens 0, 1, 3, 5; the others cannot be picked.
        let mut row = [f32::NEG_INFINITY; 10];
        for (token, share) in [(0, 1.0f32), (1, 2.0), (3, 3.0), (5, 4.0), (4, 50.0), (9, 50.0)] {
            row[token] = 2.0 * share.ln();
        }
        let logits: Vec<f32> = (0..rows).flat_map(|_| row).collect();
        let gold = vec![7; rows];
        let sampling = run(Pick::Sample { temperature: 2.0 });
        let (chosen, counts) = choose(scheduled_sampling, &sampling, 0.25, &gold, &logits);
        let count = |token| chosen.iter().filter(|c| **c == token).count() as f64;
        assert_eq!(count(7) + f64::from(counts[0]), rows as f64);
        let expected = [(7, 0.25), (0, 0.075), (1, 0.15), (3, 0.225), (5, 0.3)];
        let chi_square: f64 =
            expected.iter().map(|(token, p)| (count(*token) - p * rows as f64).powi(2) / (p * rows as f64)).sum();
        assert_eq!(expected.iter().map(|(token, _)| count(*token)).sum::<f64>(), rows as f64);
        // Four degrees of freedom: 23.5 is exceeded once in 10,000 seeds.
        assert!(chi_square < 23.5, "{chi_square}");
    }

    #[test]
    fn a_row_draws_the_same_in_any_batch_and_differently_in_another_update() {
        let (rows, vocab_size) = (53, 61);
        let logits: Vec<f32> = (0..rows * vocab_size).map(|i| (i * 7919 % 41) as f32 * 0.05).collect();
        let (gold, places) = (vec![7; rows], places(rows));
        let sampling = run(Pick::Sample { temperature: 1.0 });
        let draw = |update, rows: std::ops::Range<usize>| {
            let (mut chosen, schedule) = (vec![0; rows.len()], Schedule { gold_probability: 0.5, update });
            let logits = &logits[rows.start * vocab_size..rows.end * vocab_size];
            scheduled_sampling(
                &sampling,
                schedule,
                &places[rows.clone()],
                &gold[rows],
                logits,
                &mut chosen,
                &mut [0; 2],
            );
            chosen
        };
        let all = draw(3, 0..rows);
        assert_eq!((0..rows).flat_map(|r| draw(3, r..r + 1)).collect::<Vec<_>>(), all);
        assert_ne!(draw(4, 0..rows), all);
    }
}
