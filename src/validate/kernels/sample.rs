//! A token for every row of the slots that sample.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::{Dtype, Row, SampleOptions, SamplePick, SlotOptions, SpecialIds, Strategy};
use crate::check::Tolerance;
use crate::cpu::sample::{Step, reference};
use crate::cuda::sample::Sample;
use crate::cuda::testing::{DeviceRows, Values};
use crate::validate::probe::{Case, Probe};

const IDS: SpecialIds = SpecialIds { eos_id: 2, pad_id: 5, decoder_start_id: 5 };
const BEAMS: usize = 6;
const MAX_LEN: usize = 7;
/// Tokens, elements from row to row, threads.
const SHAPES: [(usize, usize, u32); 6] =
    [(6, 6, 32), (7, 9, 64), (31, 32, 32), (97, 100, 96), (997, 1000, 128), (1501, 1503, 32)];
const LARGE: [(usize, usize, u32); 1] = [(58101, 58104, 128)];

/// Every token, at temperature 1.
const PLAIN: SampleOptions = SampleOptions {
    seed_low: 0x9abc_def0,
    seed_high: 0x1234_5678,
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    epsilon: 0.0,
};

/// Each filter alone, and together.
const FILTERS: [SampleOptions; 9] = [
    PLAIN,
    SampleOptions { temperature: 0.7, ..PLAIN },
    SampleOptions { temperature: 0.0, ..PLAIN },
    SampleOptions { top_k: 3, ..PLAIN },
    SampleOptions { top_p: 0.8, ..PLAIN },
    SampleOptions { min_p: 0.1, ..PLAIN },
    SampleOptions { epsilon: 0.02, ..PLAIN },
    // Two limits, of which the other one counts.
    SampleOptions { min_p: 0.5, epsilon: 1e-4, ..PLAIN },
    SampleOptions { temperature: 1.3, top_k: 40, top_p: 0.9, min_p: 0.05, epsilon: 0.03, ..PLAIN },
];

/// What a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    /// Steps of an eighth: full of ties; some are ruled out.
    Ties,
    /// The same for all: cut by id.
    Equal,
    /// As ties; the last token of the first row is NaN, of what ranks that of the next two NaN and +infinity.
    NotANumber,
    /// The least number for all.
    Lowest,
    /// Nothing but -inf.
    Nothing,
}

const SPREADS: [Spread; 5] = [Spread::Ties, Spread::Equal, Spread::NotANumber, Spread::Lowest, Spread::Nothing];
/// Whether another distribution ranks, bans hold, the row is at its limit.
const KINDS: [(u32, u32, bool); 5] = [(0, 0, false), (1, 0, false), (0, 1, false), (1, 1, true), (0, 0, true)];

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&SHAPES, &LARGE);
    let sizes = [shapes.len(), FILTERS.len(), SPREADS.len(), KINDS.len()];
    for (salt, [shape, filter, spread, kind]) in probe.grid().combine(sizes).into_iter().enumerate() {
        let (shape, sampling, spread, kind) = (shapes[shape], FILTERS[filter], SPREADS[spread], KINDS[kind]);
        let what = format!("{spread:?} logits, {shape:?} tokens, stride, threads, {kind:?}, {sampling:?}");
        probe.case("", Dtype::F32, what, |case| run(case, shape, sampling, spread, kind, salt))?;
    }
    Ok(())
}

fn logits(spread: Spread, rows: usize, (vocab_size, stride): (usize, usize), salt: usize) -> Vec<f32> {
    let mut values = Values::new(salt as u64);
    let mut logits: Vec<f32> = match spread {
        Spread::Ties | Spread::NotANumber => {
            (0..rows * stride).map(|_| (values.uniform() * 96.0).floor() * 0.125 - 7.0).collect()
        }
        Spread::Equal => vec![-3.5; rows * stride],
        Spread::Lowest => vec![f32::MIN; rows * stride],
        Spread::Nothing => vec![f32::NEG_INFINITY; rows * stride],
    };
    if matches!(spread, Spread::Ties | Spread::NotANumber) {
        logits.iter_mut().skip(salt % 7).step_by(7).for_each(|z| *z = f32::NEG_INFINITY);
    }
    if spread == Spread::NotANumber {
        logits[vocab_size - 1] = f32::NAN;
    }
    logits
}

fn run(
    case: &mut Case<'_>,
    (vocab_size, stride, threads): (usize, usize, u32),
    sampling: SampleOptions,
    spread: Spread,
    (ranked, banned, at_limit): (u32, u32, bool),
    salt: usize,
) -> Result<()> {
    // Two slots that sample, and one between them that does not.
    let position = (salt % (MAX_LEN - 1)) as u32;
    let options: Vec<SlotOptions> = [Strategy::Sample, Strategy::Beam, Strategy::Sample]
        .map(|strategy| SlotOptions {
            strategy: strategy as u32,
            beam_size: BEAMS as u32,
            max_len: if at_limit { position + 1 } else { 9 },
            min_len: salt as u32 % 3 * 3,
            cut: salt as u32 & 1,
            takes_pad: u32::from(salt.is_multiple_of(3)),
            ranked,
            banned,
            sampling,
            ..SlotOptions::default()
        })
        .to_vec();
    let row = |slot: u32, beam: u32| Row { slot, beam, position, token: 0 };
    let beams = |slot: u32, live: u32| (0..live).map(move |beam| row(slot, beam));
    let mut rows: Vec<Row> = beams(0, 3).chain(beams(1, 2)).chain(beams(2, BEAMS as u32)).collect();
    let live = rows.len();
    // Most cases have a row that is not live.
    rows.extend((spread != Spread::Equal).then(|| row(0, 0)));
    let words = vocab_size.div_ceil(32);
    let logits = logits(spread, rows.len(), (vocab_size, stride), salt);
    let mut ranks = self::logits(Spread::Ties, rows.len(), (vocab_size, stride), salt + 1);
    if spread == Spread::NotANumber {
        // Of the second and third row what ranks is broken, at the last token.
        (ranks[stride + vocab_size - 1], ranks[2 * stride + vocab_size - 1]) = (f32::NAN, f32::INFINITY);
    }
    let bans: Vec<u32> =
        (0..rows.len() * words).map(|i| (i as u32 + 1).wrapping_mul(0x9E37_79B1) & 0x1111_1110).collect();
    let ancestry: Vec<u32> = (0..options.len() * BEAMS * MAX_LEN).map(|i| (i * 13 % 11) as u32).collect();
    let untouched = SamplePick { token: 77, log_prob: UNTOUCHED, ranked_log_prob: UNTOUCHED };
    let mut expected = vec![untouched; options.len() * BEAMS];
    let step = Step {
        rows: &rows[..live],
        options: &options,
        ancestry: &ancestry,
        logits: &logits[..live * stride],
        ranked: &ranks[..live * stride],
        bans: &bans[..live * words],
        vocab_size,
        stride,
        beam_size: BEAMS,
        max_len: MAX_LEN,
        ids: IDS,
    };
    reference(&step, &mut expected);

    let context = case.context;
    let list = DeviceRows::upload(context, &rows, live)?;
    let options = context.upload(bytemuck::cast_slice::<_, u32>(&options))?;
    let ancestry = context.upload(&ancestry)?;
    let (logits, ranks, bans) = (context.upload(&logits)?, context.upload(&ranks)?, context.upload(&bans)?);
    let picks = vec![untouched; expected.len()];
    let mut picks = context.upload(bytemuck::cast_slice::<_, u32>(&picks))?;
    let kernel = Sample {
        rows: list.list(),
        options: options.view(),
        ancestry: ancestry.view(),
        logits: logits.view(),
        ranked: Some(ranks.view()),
        bans: Some(bans.view()),
        picks: picks.view_mut(),
        beam_size: BEAMS,
        ids: IDS,
    };
    let bytes = live * vocab_size * size_of::<f32>();
    case.launch(bytes, |context| kernel.launch_with(context, vocab_size, stride, threads))?;
    let words = context.download(picks.view())?;
    let actual: &[SamplePick] = bytemuck::cast_slice(&words);
    let tokens = |picks: &[SamplePick]| picks.iter().map(|pick| pick.token).collect::<Vec<_>>();
    case.same("tokens", &tokens(actual), &tokens(&expected));
    let numbers = |picks: &[SamplePick]| picks.iter().map(|pick| pick.log_prob).collect::<Vec<_>>();
    case.close("log_probs", &numbers(actual), &numbers(&expected), Tolerance::new(1e-5, 1e-6));
    // Without a token there is nothing that ranks.
    let ranked = |picks: &[SamplePick]| {
        let ranked = picks.iter().zip(&expected).filter(|(_, expected)| expected.token != SamplePick::NONE);
        ranked.map(|(pick, _)| pick.ranked_log_prob).collect::<Vec<_>>()
    };
    case.close("ranked_log_probs", &ranked(actual), &ranked(&expected), Tolerance::new(1e-5, 1e-6));
    Ok(())
}
