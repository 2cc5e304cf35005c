//! A search step by step on a device, beside the CPU's fast path and its reference.

use std::time::{Duration, Instant};

use super::draws::{Data, draw_extras};
use super::{Fixture, on_cpu};
use crate::Result;
use crate::backend::{Dtype, Failure, Finished, Search, SlotOptions};
use crate::check::{Tolerance, compare};
use crate::cpu::{Cpu, beam_step as cpu};
use crate::validate::probe::Closeness;

/// What a search that was run beside the CPU's came to.
pub struct Outcome {
    /// Steps until it ended, or until it parted.
    pub steps: usize,
    /// Of all steps on the device, each waited for.
    pub time: Duration,
    /// How close its numbers were, or where its state parted from the CPU's.
    pub found: Result<Closeness, String>,
}

/// Runs a search to its end on the device, on the CPU and by its reference. `change` may change what was drawn for a step.
///
/// # Errors
/// The device failed.
pub fn run_all(
    mut device: Fixture,
    slots: &[(u32, SlotOptions)],
    seed: u64,
    change: impl Fn(usize, &mut [f32]),
) -> Result<Outcome> {
    let (shape, vocab_size) = (device.shape, device.vocab_size);
    let (mut fast, mut naive) = (on_cpu(shape, vocab_size)?, on_cpu(shape, vocab_size)?);
    cpu::start_slots(slots, &mut fast);
    cpu::start_slots(slots, &mut naive);
    device.start(slots)?;
    let (mut data, mut steps, mut time) = (Data::new(seed), 0, Duration::ZERO);
    let mut found = compare_states(&device.download()?, &naive);
    while !fast.rows.live().is_empty() {
        let (mut logits, attention) = data.draw(shape, vocab_size);
        if slots.iter().any(|(_, options)| options.groups > 1) {
            // Ends that are all but certain would be worth the same in every group, but for their rounding.
            for (i, z) in logits.iter_mut().enumerate().filter(|(_, z)| **z == 16.0) {
                *z = 5.0 + 0.37 * (i / vocab_size) as f32;
            }
        }
        change(steps, &mut logits);
        let extras = 1000 * seed + steps as u64;
        draw_extras(&mut fast, extras);
        draw_extras(&mut naive, extras);
        device.write_extras(&fast)?;
        cpu::beam_step(&logits, &attention, &mut fast);
        cpu::reference(&logits, &attention, &mut naive);
        device.write(&logits, &attention)?;
        device.context.synchronize()?;
        let start = Instant::now();
        device.step(shape.slots)?;
        device.context.synchronize()?;
        time += start.elapsed();
        let state = device.download()?;
        steps += 1;
        let close = found.and_then(|before| {
            let close = compare_states(&state, &naive)?.and(before);
            compare_states(&state, &fast).map(|_| close).map_err(|what| format!("to the fast path: {what}"))
        });
        found = close.map_err(|what| format!("step {steps}: {what}"));
        if found.is_err() || steps > shape.max_len {
            let endless = || Err(format!("the search does not end in {} steps", shape.max_len));
            return Ok(Outcome { steps, time, found: found.and_then(|_| endless()) });
        }
    }
    Ok(Outcome { steps, time, found })
}

/// Holds a state to an expected one: decisions equal, numbers close.
///
/// # Errors
/// The first part that differs, in words.
pub fn compare_states(actual: &Search<Cpu>, expected: &Search<Cpu>) -> Result<Closeness, String> {
    const CLOSE: Tolerance = Tolerance::new(2e-5, 2e-6);
    let same =
        |name: &str, actual: &[u32], expected: &[u32]| match actual.iter().zip(expected).position(|(a, e)| a != e) {
            None if actual.len() == expected.len() => Ok(()),
            None => Err(format!("{name}: expected {} values, got {}", expected.len(), actual.len())),
            Some(at) => Err(format!("{name}[{at}]: expected {}, got {}", expected[at], actual[at])),
        };
    let mut most = Closeness::default();
    let mut close = |name: &str, actual: &[f32], expected: &[f32]| {
        most = most.and(Closeness::of(actual, expected, Dtype::F32));
        compare(actual, expected, CLOSE).map(drop).map_err(|mismatch| format!("{name}: {mismatch}"))
    };
    same("step", &actual.step, &expected.step)?;
    same("live", &actual.live, &expected.live)?;
    same("tokens", &actual.tokens, &expected.tokens)?;
    same("parents", &actual.parents, &expected.parents)?;
    same("ancestry", &actual.ancestry, &expected.ancestry)?;
    same("finished count", &actual.finished_count, &expected.finished_count)?;
    // Before the rows: as many are looked at.
    same("row count", &actual.rows.count, &expected.rows.count)?;
    same("rows", bytemuck::cast_slice(actual.rows.live()), bytemuck::cast_slice(expected.rows.live()))?;
    close("cum_log_probs", &actual.cum_log_probs, &expected.cum_log_probs)?;
    close("log_probs", &actual.log_probs, &expected.log_probs)?;
    close("coverage", &actual.coverage, &expected.coverage)?;
    close("attention", &actual.attention, &expected.attention)?;
    let finished = |search: &Search<Cpu>| bytemuck::cast_slice::<_, Finished>(&search.finished).to_vec();
    let facts = |search: &Search<Cpu>| -> Vec<u32> {
        finished(search).iter().flat_map(|f| [f.length, f.beam, f.has_eos, f.truncated]).collect()
    };
    let numbers = |search: &Search<Cpu>| -> Vec<f32> {
        let numbers = |f: &Finished| [f.score, f.search_log_prob, f.coverage_penalty, f.eos_log_prob];
        finished(search).iter().flat_map(numbers).collect()
    };
    same("finished", &facts(actual), &facts(expected))?;
    close("finished", &numbers(actual), &numbers(expected))?;
    // Where it failed, and on which kind of value: the bits of NaN are nobody's business.
    let failures = |search: &Search<Cpu>| -> Vec<u32> {
        let words = |f: &Failure| [f.failed, f.step, f.beam, u32::from(f.value.is_nan())];
        bytemuck::cast_slice::<_, Failure>(&search.failures).iter().flat_map(words).collect()
    };
    same("failures", &failures(actual), &failures(expected))?;
    Ok(most)
}
