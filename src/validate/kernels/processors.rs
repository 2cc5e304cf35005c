//! Cases of the op `processors`: real histories, of beams that branch, in a vocabulary small enough to repeat itself.

use crate::Result;
use crate::backend::{
    BANK_WORDS, Constraints, Dtype, MAX_SEQUENCE_WORDS, NetworkOps, Search, SearchOps, SessionShape, SlotOptions,
    Stages, StopKind,
};
use crate::check::Tolerance;
use crate::cpu::processors::RowRules;
use crate::cpu::{Cpu, beam_step, processors};
use crate::cuda::testing::Values;
use crate::cuda::{Context, Cuda};
use crate::validate::kernels::beam_step::IDS;
use crate::validate::probe::{Case, Probe};

const SHAPE: SessionShape =
    SessionShape { slots: 3, beam_size: 3, max_len: 12, max_src_len: 2, rows: 9, keep_attention: false };

/// What stands where nothing may be written.
const UNTOUCHED: u32 = 0xA5A5_A5A5;

/// Vocabulary, n-gram, prefix, penalty, whether on logits.
const CASES: [(usize, u32, u32, f32, u32); 7] = [
    (5, 2, 0, 1.5, 0),
    (6, 3, 0, 0.7, 1),
    (33, 1, 2, 1.2, 0),
    (64, 2, 3, 1.0, 1),
    (70, 0, 1, 2.0, 0),
    (7, 4, 0, 1.3, 1),
    (9, 0, 0, 1.8, 1),
];

/// Histories, step by step, with the CPU's fast path and a device beside the reference.
///
/// # Errors
/// The device failed.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    for (seed, &(vocab_size, ngram, prefix_len, penalty, penalizes_logits)) in CASES.iter().enumerate() {
        let of = if penalizes_logits == 0 { "log-probabilities" } else { "logits" };
        let what = format!("{vocab_size} tokens, {ngram}-grams, prefix of {prefix_len}, penalty {penalty} on {of}");
        probe.case("", Dtype::F32, what, |case| {
            let own = SlotOptions {
                beam_size: 3,
                max_len: 12,
                min_len: 12,
                src_len: 1,
                stop: StopKind::First as u32,
                banned: 1,
                ranked: 1,
                prefix_len,
                no_repeat_ngram: ngram,
                repetition_penalty: penalty,
                penalizes_logits,
                counts_start: seed as u32 & 1,
                ..SlotOptions::default()
            };
            // A slot that asks for nothing stands between two that do.
            let plain = SlotOptions { banned: 0, ranked: 0, prefix_len: 0, repetition_penalty: 1.0, ..own };
            run(case, vocab_size, [own, plain, own], seed as u64)
        })?;
    }
    Ok(())
}

fn run(case: &mut Case<'_>, vocab_size: usize, options: [SlotOptions; 3], seed: u64) -> Result<()> {
    let cpu = Cpu::new(1, Dtype::F32)?;
    let stages = Stages { bans: true, ranked: true, ..Stages::default() };
    let mut search = Search::open(&cpu, SHAPE, vocab_size, IDS)?;
    search.reserve(&cpu, stages)?;
    let mut values = Values::new(seed);
    let mut token = || 3 + (values.uniform() * (vocab_size - 3) as f32) as u32;
    for slot in 0..SHAPE.slots {
        // Three sequences of 2, 3 and 2 tokens, and one token that is never allowed.
        let ids: Vec<u32> = (0..7).map(|_| token()).collect();
        search.sequences[slot * MAX_SEQUENCE_WORDS..][..11].copy_from_slice(&[&[3, 2, 5, 7], ids.as_slice()].concat());
        search.always_banned[slot * vocab_size.div_ceil(32)] = 1 << 3;
        search.prefixes[slot * SHAPE.max_len..][..3].copy_from_slice(&[token(), token(), token()]);
        // Phrases that share tokens, repeat one, or lie in one another.
        let [a, b, c] = [token(), token(), token()];
        let phrases: [&[u32]; 5] = [&[a, a, b], &[b, a], &[a], &[c, b, c, b], &[a, a, b, c]];
        let constraints = Constraints::new(phrases[slot..].iter().copied());
        bytemuck::cast_slice_mut::<_, Constraints>(&mut search.constraints)[slot] = constraints;
    }
    let total =
        |slot: usize| bytemuck::cast_slice::<_, Constraints>(&search.constraints)[slot].phrases().flatten().count();
    let slots: Vec<(u32, SlotOptions)> = options
        .into_iter()
        .enumerate()
        .map(|(slot, options)| {
            (slot as u32, SlotOptions { constraints: options.banned * total(slot) as u32, ..options })
        })
        .collect();
    beam_step::start_slots(&slots, &mut search);
    for _ in 0..SHAPE.max_len - 1 {
        let noise: Vec<f32> = values.elements(SHAPE.rows * vocab_size, -4.0, 3.0);
        search.ranked.copy_from_slice(&noise);
        let mut logits: Vec<f32> = values.elements(SHAPE.rows * vocab_size, -3.0, 3.0);
        logits.iter_mut().step_by(5).for_each(|logit| *logit = f32::NEG_INFINITY);
        search.bans.fill(UNTOUCHED);
        let expected = processors::reference(&logits, &search);
        let found = on_device(case.context, &logits, &search)?;
        processors::processors(&mut search);
        processors::repetition_penalty(&logits, &mut search);
        compare(case, "device", &found, &expected, &search, vocab_size, &noise);
        let fast = (search.bans.clone(), search.banks.clone(), search.ranked.clone());
        compare(case, "CPU", &fast, &expected, &search, vocab_size, &noise);
        beam_step::beam_step(&noise, &[0.1; SHAPE.rows * SHAPE.max_src_len], &mut search);
        if search.rows.live().is_empty() {
            break;
        }
    }
    Ok(())
}

/// What a run leaves: bans, banks and what ranks.
type Found = (Vec<u32>, Vec<u32>, Vec<f32>);

fn compare(
    case: &mut Case<'_>,
    name: &str,
    (bans, banks, ranked): &Found,
    expected: &[RowRules],
    search: &Search<Cpu>,
    vocab_size: usize,
    noise: &[f32],
) {
    let words = vocab_size.div_ceil(32);
    for (r, (rules, row)) in expected.iter().zip(search.rows.live()).enumerate() {
        let RowRules { bans: banned, banks: expected_banks, ranked: penalized } = rules;
        if let Some(expected) = expected_banks {
            let constraints = &bytemuck::cast_slice::<_, Constraints>(&search.constraints)[row.slot as usize];
            let place = |token: usize| constraints.tokens().iter().position(|t| *t as usize == token);
            let bank = |token: usize| banks[r * BANK_WORDS + place(token).map_or(0, |place| place + 1)];
            case.same(&format!("{name}, banks of row {r}"), &(0..vocab_size).map(bank).collect::<Vec<_>>(), expected);
        }
        let bans = &bans[r * words..][..words];
        if let Some(banned) = banned {
            let bit = |token: usize| bans[token / 32] >> (token % 32) & 1 != 0;
            case.same(&format!("{name}, bans of row {r}"), &(0..vocab_size).map(bit).collect::<Vec<_>>(), banned);
        } else {
            case.same(&format!("{name}, bans of row {r}, which has none"), bans, &vec![UNTOUCHED; words]);
        }
        let part = r * vocab_size..(r + 1) * vocab_size;
        let expected = penalized.as_deref().unwrap_or(&noise[part.clone()]);
        case.close(&format!("{name}, row {r}"), &ranked[part], expected, Tolerance::new(1e-6, 1e-6));
    }
}

/// The bans, the banks and the penalised rows of a device with this state.
fn on_device(context: &Context, logits: &[f32], search: &Search<Cpu>) -> Result<Found> {
    let cuda = Cuda::new(context.clone(), Dtype::F32);
    let (shape, vocab_size, stride) = (search.shape, search.vocab_size, cuda.logits_stride(search.vocab_size));
    let mut device = Search::open(&cuda, shape, vocab_size, search.ids)?;
    device.reserve(&cuda, search.reserved)?;
    macro_rules! copy {
        ($($field:ident),*) => { $(context.write(device.$field.view_mut(), &search.$field)?;)* };
    }
    copy!(options, step, live, tokens, parents, ancestry, always_banned, prefixes, sequences, constraints, bans);
    context.write(device.rows.entries.view_mut(), &search.rows.entries)?;
    context.write(device.rows.count.view_mut(), &search.rows.count)?;
    device.rows.bucket = search.rows.live().len();
    let apart = |rows: &[f32]| -> Vec<f32> {
        let beyond = vec![f32::NAN; stride - vocab_size];
        rows.chunks(vocab_size).flat_map(|row| [row, &beyond].concat()).collect()
    };
    context.write(device.ranked.view_mut(), &apart(&search.ranked))?;
    let logits = context.upload(&apart(logits))?;
    cuda.processors(&mut device)?;
    cuda.repetition_penalty(&logits, &mut device)?;
    let ranked = context.download(device.ranked.view())?;
    let ranked = ranked.chunks(stride).flat_map(|row| row[..vocab_size].to_vec()).collect();
    Ok((context.download(device.bans.view())?, context.download(device.banks.view())?, ranked))
}
