//! The kernel against the CPU: its reference, and its fast path, whose tokens are the same without exception.

use super::*;
use crate::backend::{Row, SampleOptions, TokenStats};
use crate::check::{Tolerance, assert_close, assert_same_bits};
use crate::cpu::sample::tests::{
    Case, IDS, MAX_LEN, PLAIN, UNTOUCHED, assert_distribution, assert_outcome, assert_same_picks, broken_rows, filters,
};
use crate::cpu::sample::{reference, sample};
use crate::cuda::stats::TokenStatistics;
use crate::cuda::testing::{DeviceRows, device_tests};

/// What a launch over a case has come to: the picks, and the bytes of logits read if they are watched.
fn launch(context: &Context, case: &Case, threads: u32, watch: bool) -> Result<(Vec<SamplePick>, u64)> {
    // One row more than there are live ones: it belongs to no slot.
    let mut rows = case.rows.clone();
    rows.push(Row { slot: 0, beam: 0, position: 0, token: 0 });
    let padded = |values: &[f32]| {
        let mut values = values.to_vec();
        values.resize(rows.len() * case.stride, f32::NAN);
        values
    };
    let words = case.vocab_size.div_ceil(32);
    let mut bans = case.bans.clone();
    bans.resize(rows.len() * words, 0);
    let list = DeviceRows::upload(context, &rows, case.rows.len())?;
    let options = context.upload(bytemuck::cast_slice::<_, u32>(&case.options))?;
    let ancestry = context.upload(&case.ancestry)?;
    let (logits, ranked) = (context.upload(&padded(&case.logits))?, context.upload(&padded(&case.ranked))?);
    let bans = context.upload(&bans)?;
    let picks = vec![UNTOUCHED; case.options.len() * case.beam_size];
    let mut picks = context.upload(bytemuck::cast_slice::<_, u32>(&picks))?;
    if watch {
        context.watch(logits.view())?;
    }
    Sample {
        rows: list.list(),
        options: options.view(),
        ancestry: ancestry.view(),
        logits: logits.view(),
        ranked: (!case.ranked.is_empty()).then(|| ranked.view()),
        bans: Some(bans.view()),
        picks: picks.view_mut(),
        beam_size: case.beam_size,
        ids: IDS,
    }
    .launch_with(context, case.vocab_size, case.stride, threads)?;
    let bytes = if watch { context.watched_bytes()? } else { 0 };
    Ok((bytemuck::cast_slice(&context.download(picks.view())?).to_vec(), bytes))
}

fn check_shapes(context: &Context) -> Result<()> {
    for (vocab_size, stride, threads) in
        [(6, 6, 32), (7, 9, 64), (31, 32, 32), (64, 64, 128), (97, 100, 96), (997, 1000, 128), (1501, 1503, 32)]
    {
        for salt in 0..4 {
            let case = Case::mixed(vocab_size, stride, 6, salt);
            let (picks, _) = launch(context, &case, threads, false)?;
            assert_same_picks(&picks, &case.picks(reference));
            assert_same_picks(&picks, &case.picks(sample));
        }
    }
    Ok(())
}

fn picks_have_their_probabilities(context: &Context) -> Result<()> {
    let row: Vec<f32> = (0..67).map(|i| ((i * 7919) % 61) as f32 * 0.1 - (i % 3) as f32).collect();
    for (i, sampling) in filters().into_iter().enumerate() {
        let sampling = SampleOptions { seed_high: i as u32, ..sampling };
        let mut case = Case::one(&row, 4000, SlotOptions { sampling, banned: 1, ..SlotOptions::default() });
        case.bans.iter_mut().for_each(|word| *word = 0x0008_0810);
        let (picks, _) = launch(context, &case, 32, false)?;
        assert_distribution(&case, &picks);
        assert_same_picks(&picks, &case.picks(sample));
    }
    Ok(())
}

fn equal_logits_are_cut_by_id(context: &Context) -> Result<()> {
    for sampling in filters() {
        for value in [0.0, -3.5] {
            let mut row = [value; 401];
            row.iter_mut().step_by(2).for_each(|z| *z += -0.0);
            let case = Case::one(&row, 60, SlotOptions { sampling, ..SlotOptions::default() });
            let (picks, _) = launch(context, &case, 64, false)?;
            assert_same_picks(&picks, &case.picks(reference));
        }
    }
    Ok(())
}

fn what_cannot_be_drawn_shows(context: &Context) -> Result<()> {
    for sampling in [PLAIN, filters()[7]] {
        for (row, expected) in broken_rows() {
            let mut case = Case::one(&row, 1, SlotOptions { sampling, ..SlotOptions::default() });
            assert_outcome(launch(context, &case, 32, false)?.0[0], expected);
            case.options[0].ranked = 1;
            case.ranked = std::mem::replace(&mut case.logits, vec![0.0; 9]);
            assert_outcome(launch(context, &case, 32, false)?.0[0], expected);
        }
    }
    Ok(())
}

/// A pick's log-probability has the bits of teacher-forced scoring on the same device.
fn log_probs_are_those_of_scoring(context: &Context) -> Result<()> {
    for vocab_size in [67, 4097, 9001] {
        let row: Vec<f32> = (0..vocab_size).map(|i| ((i * 7919) % 1009) as f32 * 0.013 - 7.0).collect();
        let case = Case::one(&row, 5, SlotOptions { sampling: PLAIN, ..SlotOptions::default() });
        let (picks, _) = launch(context, &case, THREADS, false)?;
        let rows = DeviceRows::upload(context, &case.rows, case.rows.len())?;
        let logits = context.upload(&case.logits)?;
        let gold = context.upload(&picks.iter().map(|p| p.token).collect::<Vec<_>>())?;
        let mut out = context.zeros::<u32>(5 * words::<TokenStats>())?;
        TokenStatistics { rows: rows.list(), logits: logits.view(), gold: gold.view(), out: out.view_mut() }
            .launch(context, vocab_size, vocab_size)?;
        let own: Vec<f32> = picks.iter().map(|p| p.log_prob).collect();
        let stats = context.download(out.view())?;
        let scored: Vec<f32> = bytemuck::cast_slice::<_, TokenStats>(&stats).iter().map(|s| s.log_prob).collect();
        assert_same_bits(&own, &scored);
        assert_close(
            &own,
            &case.picks(reference).iter().map(|p| p.log_prob).collect::<Vec<_>>(),
            Tolerance::new(1e-5, 1e-6),
        );
    }
    Ok(())
}

fn slots_that_do_not_sample_are_not_read(context: &Context) -> Result<()> {
    let mut case = Case::mixed(64, 64, 6, 0);
    case.options.iter_mut().for_each(|options| options.strategy = 0);
    let (picks, bytes) = launch(context, &case, 64, true)?;
    assert_eq!((picks, bytes), (vec![UNTOUCHED; case.options.len() * 6], 0));
    // A greedy row is read twice: for its normaliser and for its best token.
    let sampling = filters()[2];
    let greedy = Case::one(&[0.5; 64], 1, SlotOptions { sampling, ..SlotOptions::default() });
    assert_eq!(launch(context, &greedy, 64, true)?.1, 2 * 64 * 4);
    Ok(())
}

fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
    let case = Case::mixed(31, 31, 3, 0);
    let refused = |change: fn(&mut Case)| {
        let mut case = case.clone();
        change(&mut case);
        launch(context, &case, 32, false).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let ancestry = refused(|case| case.ancestry.truncate(5));
    assert_eq!(ancestry, format!("sample: ancestry: expected {} elements, got 5 elements", case.options.len() * 3));
    assert!(refused(|case| case.stride = 30).starts_with("sample: logits: expected a stride of at least"));
    assert_eq!(refused(|_| {}), "");
    assert_eq!(case.ancestry.len(), case.options.len() * 3 * MAX_LEN);
    Ok(())
}

device_tests! {
    shapes: check_shapes;
    probabilities: picks_have_their_probabilities;
    ties: equal_logits_are_cut_by_id;
    bad_values: what_cannot_be_drawn_shows;
    log_probs: log_probs_are_those_of_scoring;
    refusals: wrong_shapes_are_refused;
}

/// Counting reads takes the emulator.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn reads() {
    crate::cuda::testing::run_emulated(slots_that_do_not_sample_are_not_read);
}

/// Mirrors `PortableMathArguments` in kernels/host/tests/portable_math.cu.
#[cfg(all(emulated, feature = "planted-kernels"))]
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PortableMathArguments {
    x: u64,
    out: u64,
    n: u32,
    unused: u32,
}

/// The kernels' exp and ln are the CPU's, to the bit.
#[cfg(all(emulated, feature = "planted-kernels"))]
fn math_is_the_cpus(context: &Context) -> Result<()> {
    use crate::cpu::portable_math::{exp, ln};
    let x: Vec<f32> = (1..20_000).map(|i| (i as f32 * 1.37e-3).powi(3) * 1e-2).collect();
    let (device_x, out) = (context.upload(&x)?, context.zeros::<[f32; 2]>(x.len())?);
    let n = x.len() as u32;
    let arguments = PortableMathArguments {
        x: context.address(&device_x.view())?,
        out: context.address(&out.view())?,
        n,
        unused: 0,
    };
    let launch = Launch { symbol: "planted_portable_math", grid: [n.div_ceil(64), 1, 1], block: 64, shared: 0 };
    // SAFETY: mirrors `planted_portable_math(PortableMathArguments)`; both hold `n` elements, and no view of them is in use.
    unsafe { context.launch(&launch, &arguments)? };
    let expected: Vec<f32> = x.iter().flat_map(|&x| [exp(-x), ln(x)]).collect();
    assert_same_bits(context.download(out.view())?.as_flattened(), &expected);
    Ok(())
}

#[cfg(all(emulated, feature = "planted-kernels"))]
#[test]
fn portable_math() {
    crate::cuda::testing::run_emulated(math_is_the_cpus);
}
