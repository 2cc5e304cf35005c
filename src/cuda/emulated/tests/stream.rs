//! The stream and its graphs: what a step that is captured may not do.

use super::{Planted, message, ramp};
use crate::Result;
use crate::cuda::{Pinned, Recording, open_emulated};

/// Launches `add_step`: the step as a number passed by value (fault 1), or on the device.
fn add_step(planted: &mut Planted, step: usize, by_value: bool) -> Result<()> {
    planted.launch("planted_add_step", [1; 3], 32, step, by_value.into())
}

fn sum_of_steps(by_value: bool, replayed: bool) -> Result<f32> {
    let mut planted = Planted::new(0, &[], 1, 1)?;
    let context = planted.context.clone();
    context.fill(planted.out.view_mut(), 0)?;
    context.write(planted.counts.view_mut(), &[1])?;
    let graph = if replayed { Some(context.capture(|| add_step(&mut planted, 1, by_value))?) } else { None };
    for step in 1..=3 {
        match &graph {
            // SAFETY: the planted tensors live, and nothing else uses them.
            Some(graph) => unsafe { context.replay(graph)? },
            None => add_step(&mut planted, step, by_value)?,
        }
    }
    Ok(planted.out()?[0])
}

#[test]
fn a_per_step_scalar_is_caught() -> Result<()> {
    assert_eq!(sum_of_steps(true, false)?, 6.0);
    assert_eq!(sum_of_steps(false, true)?, 6.0, "a step kept on the device goes on");
    assert_eq!(sum_of_steps(true, true)?, 3.0, "one passed by value stays what it was");
    Ok(())
}

#[test]
fn a_step_runs_once_then_is_recorded_then_replayed() -> Result<()> {
    let mut planted = Planted::new(0, &[], 1, 1)?;
    let context = planted.context.clone();
    context.fill(planted.out.view_mut(), 0)?;
    context.write(planted.counts.view_mut(), &[1])?;
    let mut recording = Recording::None;
    let before = context.counters();
    let mut calls = 0;
    let step = |planted: &mut Planted, calls: &mut u32, recording: &mut Recording| {
        context.step(recording, || {
            *calls += 1;
            add_step(planted, 1, false)
        })
    };
    (0..5).try_for_each(|_| step(&mut planted, &mut calls, &mut recording))?;
    assert_eq!(planted.out()?[0], 15.0, "each of five steps ran once");
    let done = context.counters().since(&before);
    assert_eq!((calls, done.launches, done.captures, done.replays), (2, 2, 1, 4));
    assert_eq!((done.steps, done.step_nodes), (5, 5));
    // The graph may name what is freed now: it is recorded anew.
    drop(context.zeros::<f32>(1)?);
    (0..2).try_for_each(|_| step(&mut planted, &mut calls, &mut recording))?;
    assert_eq!(planted.out()?[0], 28.0);
    assert_eq!((calls, context.counters().captures), (3, 2));
    Ok(())
}

#[test]
fn a_captured_step_does_not_run_until_it_is_replayed() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(32), 32, 1)?;
    let context = planted.context.clone();
    let graph = context.capture(|| planted.launch("planted_reverse", [1; 3], 32, 32, 0))?;
    assert!(planted.out()?.iter().all(|value| value.is_nan()));
    // SAFETY: the planted tensors live, and nothing else uses them.
    unsafe { context.replay(&graph)? };
    assert_eq!(planted.out()?[0], 31.0);
    assert_eq!(context.counters().replays, 1);
    Ok(())
}

#[test]
fn a_host_read_inside_a_captured_step_is_caught() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(32), 32, 1)?;
    let mut pinned = planted.context.pinned(32)?;
    planted.context.post(planted.input.view(), &mut pinned, 0)?;
    let context = planted.context.clone();
    let refused = |outcome: Result<()>| {
        let text = outcome.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.ends_with("a step that is captured may only enqueue work on the device"), "{text}");
    };
    context.capture(|| {
        planted.launch("planted_reverse", [1; 3], 32, 32, 0)?;
        refused(context.download(planted.out.view()).map(drop));
        refused(context.write(planted.out.view_mut(), &[0.0; 32]));
        refused(context.synchronize());
        refused(context.allocate::<f32>(1).map(drop));
        refused(context.pinned::<f32>(1).map(drop));
        refused(context.post(planted.out.view(), &mut pinned, 0));
        refused(context.wait_readback(&pinned, &mut [0.0]));
        refused(context.capture(|| Ok(())).map(drop));
        Ok(())
    })?;
    // A step that passes the error on has no graph, and the device goes on.
    let failed = context.capture(|| context.download(planted.out.view()).map(drop));
    refused(failed.map(drop));
    planted.launch("planted_reverse", [1; 3], 32, 32, 0)?;
    assert_eq!(planted.out()?[0], 31.0);
    Ok(())
}

#[test]
fn a_graph_that_names_freed_memory_is_caught() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(32), 32, 1)?;
    let context = planted.context.clone();
    let graph = context.capture(|| planted.launch("planted_reverse", [1; 3], 32, 32, 0))?;
    planted.input = context.upload(&ramp(32))?;
    // SAFETY: broken on purpose: the emulator is to notice before anything runs.
    unsafe { context.replay(&graph)? };
    let text = message(planted.out());
    assert!(text.ends_with("was freed after the launch was recorded"), "{text}");
    Ok(())
}

#[test]
fn memory_dropped_before_its_launch_has_run_is_still_there() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(32), 32, 1)?;
    planted.launch("planted_reverse", [1; 3], 32, 32, 0)?;
    let before = planted.context.counters().live_bytes;
    planted.input = planted.context.zeros(1)?;
    assert_eq!(planted.out()?[0], 31.0);
    assert_eq!(planted.context.counters().live_bytes, before - 31 * 4);
    Ok(())
}

#[test]
fn late_reads_wait_for_their_copy_only() -> Result<()> {
    let context = open_emulated()?;
    let mut finished = context.upload(&[1u32, 2])?;
    let mut pinned = context.pinned(3)?;
    let collect = |pinned: &Pinned<u32>| {
        let mut values = [0; 3];
        context.wait_readback(pinned, &mut values).map(|()| values)
    };
    assert_eq!(collect(&pinned).err().map(|error| error.kind()), Some("device_operation"));
    context.post(finished.view(), &mut pinned, 1)?;
    context.write(finished.view_mut(), &[3, 4])?;
    assert_eq!(collect(&pinned)?[1..], [1, 2]);
    context.post(finished.view(), &mut pinned, 0)?;
    assert_eq!(collect(&pinned)?, [3, 4, 2]);
    assert!(context.post(finished.view(), &mut pinned, 2).is_err_and(|error| error.kind() == "shape"));
    assert!(context.wait_readback(&pinned, &mut [0; 4]).is_err_and(|error| error.kind() == "shape"));
    assert_eq!((context.counters().late_reads, context.counters().waits), (3, 0));
    Ok(())
}
