//! Tests of the emulator: that sound kernels run right, and that each planted fault is caught.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::EmulatedDevice;
use crate::check::{Tolerance, assert_close};
use crate::cuda::testing::Values;
use crate::cuda::{Buffer, Context, Fault, Launch, Pinned, Recording, View, open_emulated};
use crate::{Error, Result};

/// Mirrors `PlantedArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    input: u64,
    out: u64,
    counts: u64,
    n: u32,
    fault: u32,
}

/// A device and the three tensors of the planted kernels.
struct Planted {
    context: Context,
    input: Buffer<f32>,
    out: Buffer<f32>,
    counts: Buffer<u32>,
}

impl Planted {
    fn new(seed: u64, input: &[f32], out: usize, counts: usize) -> Result<Self> {
        let context = Context::new(Box::new(EmulatedDevice::new(seed)?));
        let (input, out, counts) = (context.upload(input)?, context.allocate(out)?, context.zeros(counts)?);
        Ok(Planted { context, input, out, counts })
    }

    fn launch(&mut self, symbol: &'static str, grid: [u32; 3], block: u32, n: usize, fault: u32) -> Result<()> {
        let arguments = Arguments {
            input: self.context.address(&self.input.view())?,
            out: self.context.address_mut(&self.out.view_mut())?,
            counts: self.context.address_mut(&self.counts.view_mut())?,
            n: n as u32,
            fault,
        };
        // SAFETY: mirrors `PlantedArguments`; where a fault leaves its tensor, it is by a guard's width at most.
        unsafe { self.context.launch(&Launch { symbol, grid, block, shared: 128 }, &arguments) }
    }

    fn out(&self) -> Result<Vec<f32>> {
        self.context.download(self.out.view())
    }

    fn counts(&self) -> Result<Vec<u32>> {
        self.context.download(self.counts.view())
    }
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// What a failed launch says.
fn message(outcome: Result<Vec<f32>>) -> String {
    match outcome {
        Err(Error::DeviceOperation { operation: "launch", reason, .. }) => reason,
        other => panic!("expected a failed launch, got {other:?}"),
    }
}

// ---- Sound kernels ----

#[test]
fn barriers_hold_for_every_block_size_and_order() -> Result<()> {
    for n in [32, 64, 96, 256] {
        for seed in 0..5 {
            let mut planted = Planted::new(seed, &ramp(n), n, 1)?;
            planted.launch("planted_reverse", [1; 3], n as u32, n, 0)?;
            let mut expected = ramp(n);
            expected.reverse();
            assert_eq!(planted.out()?, expected);
        }
    }
    Ok(())
}

#[test]
fn shared_memory_can_be_used_again_behind_a_barrier() -> Result<()> {
    for n in [32, 256, 1024] {
        let mut planted = Planted::new(n as u64, &vec![1.0; n], n, 1)?;
        planted.launch("planted_sum_twice", [1; 3], n as u32, n, 0)?;
        assert_eq!(planted.out()?, vec![21.0 * n as f32; n]);
    }
    Ok(())
}

#[test]
fn every_thread_of_every_block_runs_once() -> Result<()> {
    let (grid, block) = ([7, 3, 2], 96);
    let threads = 7 * 3 * 2 * 96;
    let mut planted = Planted::new(3, &[], 1, threads + 1)?;
    planted.launch("planted_count_threads", grid, block, threads, 0)?;
    let counts = planted.counts()?;
    assert!(counts[..threads].iter().all(|&count| count == 1));
    assert_eq!(counts[threads], 0, "the ticket resets itself");
    Ok(())
}

#[test]
fn warp_exchanges_give_what_the_programming_guide_says() -> Result<()> {
    let input: Vec<f32> = (0..32).map(|lane| 100.0 + lane as f32).collect();
    let mut planted = Planted::new(1, &input, 1, 32 * 16)?;
    planted.launch("planted_warp_results", [1; 3], 32, 0, 0)?;
    let counts = planted.counts()?;
    for lane in 0..32usize {
        let value = |source: usize| input[source].to_bits();
        let part = lane / 8 * 8;
        let parity = if lane % 2 == 0 { 0x5555_5555u32 } else { 0xAAAA_AAAA };
        let expected = [
            value(5),
            value(if lane >= 3 { lane - 3 } else { lane }),
            value(if lane + 3 < 32 { lane + 3 } else { lane }),
            value(lane ^ 9),
            value(part + 3),
            value(if lane + 2 < part + 8 { lane + 2 } else { lane }),
            value(if lane >= part + 2 { lane - 2 } else { lane }),
            (0..32).step_by(3).fold(0, |bits, lane| bits | 1 << lane),
            parity & 0x3FF,
            1,
            (0..32).sum(),
            -9i32 as u32,
            if lane % 2 == 0 { 30 } else { 31 },
            0xF << (lane / 4 * 4),
            (lane as u32 ^ 1) * 101,
            11,
        ];
        assert_eq!(counts[lane * 16..lane * 16 + 16], expected, "lane {lane}");
    }
    Ok(())
}

#[test]
fn lanes_that_returned_are_excused() -> Result<()> {
    let mut planted = Planted::new(2, &[], 1, 64)?;
    planted.launch("planted_leaving_lanes", [1; 3], 64, 0, 0)?;
    let expected: Vec<u32> = (0..64).map(|thread| (thread % 32 + 1..=32).sum()).collect();
    assert_eq!(planted.counts()?, expected);
    Ok(())
}

#[test]
fn half_precision_converts_as_everywhere_else() -> Result<()> {
    let n = 1 << 16;
    let mut values = Values::new(4);
    // All kinds of bit patterns, ties among them.
    let input: Vec<f32> = (0..n)
        .map(|i| match i % 4 {
            0 => f32::from_bits((values.uniform() * 4.0e9) as u32 ^ i as u32),
            1 => f16::from_bits(i as u16).to_f32() * (1.0 + 2f32.powi(-11)),
            2 => bf16::from_bits(i as u16).to_f32() * (1.0 + 2f32.powi(-8)),
            _ => (values.uniform() - 0.5) * 1e-6,
        })
        .collect();
    let mut planted = Planted::new(0, &input, 1, 4 * n)?;
    planted.launch("planted_convert", [64, 1, 1], 1024, n, 0)?;
    let same =
        |bits: u32, expected: f32| bits == expected.to_bits() || (f32::from_bits(bits).is_nan() && expected.is_nan());
    for (i, got) in planted.counts()?.chunks(4).enumerate() {
        assert!(same(got[0], f16::from_bits(i as u16).to_f32()), "f16 {i:04x} to f32: {:08x}", got[0]);
        assert!(same(got[1], bf16::from_bits(i as u16).to_f32()), "bf16 {i:04x} to f32: {:08x}", got[1]);
        let (to_f16, to_bf16) = (f16::from_bits(got[2] as u16), bf16::from_bits(got[3] as u16));
        assert!(same(to_f16.to_f32().to_bits(), f16::from_f32(input[i]).to_f32()), "{:e} to f16: {to_f16:e}", input[i]);
        assert!(
            same(to_bf16.to_f32().to_bits(), bf16::from_f32(input[i]).to_f32()),
            "{:e} to bf16: {to_bf16:e}",
            input[i]
        );
    }
    Ok(())
}

#[test]
fn blocks_and_warps_run_in_an_order_of_the_seed() -> Result<()> {
    let order = |seed| -> Result<Vec<u32>> {
        let mut planted = Planted::new(seed, &[], 1, 65)?;
        planted.launch("planted_order", [8, 1, 1], 256, 64, 0)?;
        let mut order = planted.counts()?;
        assert_eq!(order.pop(), Some(64));
        Ok(order)
    };
    let (first, second) = (order(1)?, order(2)?);
    assert_eq!(first, order(1)?);
    assert_ne!(first, second);
    for order in [first, second] {
        let blocks: Vec<u32> = order.iter().step_by(8).map(|warp| warp / 8).collect();
        let warps: Vec<u32> = order[..8].iter().map(|warp| warp % 8).collect();
        for mut places in [blocks, warps] {
            assert!(!places.is_sorted(), "{places:?}");
            places.sort_unstable();
            assert_eq!(places, (0..8).collect::<Vec<_>>());
        }
    }
    Ok(())
}

#[test]
fn memory_starts_as_nan() -> Result<()> {
    let mut planted = Planted::new(0, &[], 64, 64)?;
    assert!(planted.out()?.iter().all(|value| value.is_nan()), "allocations");
    // Two blocks: the second must not see what the first left.
    planted.launch("planted_uninitialised", [2, 1, 1], 32, 0, 0)?;
    assert!(planted.out()?.iter().all(|value| value.is_nan()), "dynamic shared memory");
    assert_eq!(planted.counts()?, vec![u32::MAX; 64], "static shared memory");
    Ok(())
}

// ---- Planted faults ----

#[test]
fn a_missing_barrier_is_caught() -> Result<()> {
    for seed in 0..20 {
        let mut planted = Planted::new(seed, &ramp(64), 64, 1)?;
        planted.launch("planted_reverse", [1; 3], 64, 64, 1)?;
        assert!(planted.out()?.iter().any(|value| value.is_nan()), "seed {seed}");
    }
    Ok(())
}

#[test]
fn a_missing_barrier_before_shared_memory_is_used_again_is_caught() -> Result<()> {
    for seed in 0..20 {
        let mut planted = Planted::new(seed, &[1.0; 128], 128, 1)?;
        planted.launch("planted_sum_twice", [1; 3], 128, 128, 1)?;
        assert!(planted.out()?.iter().any(|&value| value != 21.0 * 128.0), "seed {seed}");
    }
    Ok(())
}

#[test]
fn a_divergent_barrier_is_caught() -> Result<()> {
    for (fault, expected) in [(2, "have returned"), (2, "returned while"), (3, "while others wait at")] {
        let mut seen = Vec::new();
        for seed in 0..20 {
            let mut planted = Planted::new(seed, &ramp(64), 64, 1)?;
            planted.launch("planted_reverse", [1; 3], 64, 64, fault)?;
            seen.push(message(planted.out()));
        }
        assert!(seen.iter().all(|text| text.starts_with("planted_reverse: block (0, 0, 0), thread (")), "{seen:?}");
        assert!(seen.iter().all(|text| text.contains("divergent barrier") && text.contains("planted.cu:")), "{seen:?}");
        assert!(seen.iter().any(|text| text.contains(expected)), "{expected}: {seen:?}");
    }
    Ok(())
}

#[test]
fn a_divergent_warp_is_caught() -> Result<()> {
    for (fault, expected) in [
        (1, "divergent warp: the exchange at"),
        (2, "reads lane 20, which takes no part in it"),
        (3, "meet in different exchanges"),
        (4, "divergent warp: the exchange at"),
    ] {
        for seed in 0..5 {
            let mut planted = Planted::new(seed, &[], 64, 1)?;
            planted.launch("planted_exchanges", [1; 3], 64, 0, fault)?;
            let text = message(planted.out());
            assert!(text.contains(expected), "{text}");
        }
    }
    Ok(())
}

/// Runs this very test in another process, where AddressSanitizer may end it; returns what it said.
#[cfg(sanitized)]
fn run_in_child(test: &str) -> String {
    let this = std::env::current_exe().expect("the test binary has a path");
    let child = std::process::Command::new(this).args(["--exact", test]).env("BEAMFUSE_PLANTED_CHILD", "1").output();
    let output = child.expect("the test binary runs");
    assert!(!output.status.success(), "AddressSanitizer found nothing");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// In a sanitized build, runs the faulty launch in a child process and expects AddressSanitizer to end it there; returns
/// whether this is the child, or another build, which is to run the launch itself.
fn runs_here(_test: &str) -> bool {
    #[cfg(sanitized)]
    if std::env::var_os("BEAMFUSE_PLANTED_CHILD").is_none() {
        let said = run_in_child(&format!("cuda::emulated::tests::{_test}"));
        // UndefinedBehaviorSanitizer sees an index past the end of an array before AddressSanitizer sees the access.
        let caught = said.contains("AddressSanitizer: use-after-poison") || said.contains("out of bounds for type");
        assert!(caught, "{said}");
        return false;
    }
    true
}

#[test]
fn a_write_past_an_allocation_is_caught() -> Result<()> {
    if !runs_here("a_write_past_an_allocation_is_caught") {
        return Ok(());
    }
    let mut planted = Planted::new(0, &ramp(33), 33, 1)?;
    planted.launch("planted_twice", [2, 1, 1], 32, 33, 0)?;
    planted.context.synchronize()?;
    planted.launch("planted_twice", [2, 1, 1], 32, 33, 1)?;
    let text = message(planted.out());
    assert!(
        text.starts_with("planted_twice: wrote up to") && text.ends_with("after an allocation of 132 bytes"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_read_past_an_allocation_is_caught() -> Result<()> {
    if !runs_here("a_read_past_an_allocation_is_caught") {
        return Ok(());
    }
    let mut planted = Planted::new(0, &ramp(33), 33, 1)?;
    planted.launch("planted_twice", [2, 1, 1], 32, 33, 2)?;
    let out = planted.out()?;
    assert_eq!(out[..32], (1..33).map(|i| 2.0 * i as f32).collect::<Vec<_>>());
    assert!(out[32].is_nan());
    Ok(())
}

#[test]
fn a_write_past_a_shared_array_is_caught() -> Result<()> {
    if !runs_here("a_write_past_a_shared_array_is_caught") {
        return Ok(());
    }
    let mut planted = Planted::new(0, &ramp(256), 256, 1)?;
    planted.launch("planted_reverse", [1; 3], 256, 256, 4)?;
    let text = message(planted.out());
    assert!(text.ends_with("write outside a shared array of 1024 bytes"), "{text}");
    Ok(())
}

#[test]
fn a_failure_sticks_and_the_next_device_is_sound() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(64), 64, 1)?;
    planted.launch("planted_reverse", [1; 3], 64, 64, 2)?;
    let first = message(planted.out());
    assert_eq!(message(planted.out()), first);
    assert_eq!(planted.launch("planted_reverse", [1; 3], 64, 64, 0).unwrap_err().kind(), "device_operation");
    assert_eq!(planted.context.allocate::<f32>(1).err().map(|error| error.kind()), Some("device_operation"));
    barriers_hold_for_every_block_size_and_order()
}

// ---- The stream and its graphs ----

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
        refused(context.collect(&pinned, &mut [0.0]));
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
        context.collect(pinned, &mut values).map(|()| values)
    };
    assert_eq!(collect(&pinned).err().map(|error| error.kind()), Some("device_operation"));
    context.post(finished.view(), &mut pinned, 1)?;
    context.write(finished.view_mut(), &[3, 4])?;
    assert_eq!(collect(&pinned)?[1..], [1, 2]);
    context.post(finished.view(), &mut pinned, 0)?;
    assert_eq!(collect(&pinned)?, [3, 4, 2]);
    assert!(context.post(finished.view(), &mut pinned, 2).is_err_and(|error| error.kind() == "shape"));
    assert!(context.collect(&pinned, &mut [0; 4]).is_err_and(|error| error.kind() == "shape"));
    assert_eq!((context.counters().late_reads, context.counters().waits), (3, 0));
    Ok(())
}

// ---- The layer around it ----

#[test]
fn wrong_launches_are_refused() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(32), 32, 1)?;
    let refused = |outcome: Result<()>| message(outcome.map(|()| Vec::new()));
    assert!(
        refused(planted.launch("planted_reverse", [1; 3], 48, 32, 0))
            .contains("expected a multiple of 32 threads up to 256")
    );
    assert!(refused(planted.launch("planted_reverse", [1; 3], 512, 32, 0)).contains("up to 256, got 512"));
    assert!(refused(planted.launch("planted_reverse", [0, 1, 1], 32, 32, 0)).contains("grid"));
    assert!(refused(planted.launch("planted_nothing", [1; 3], 32, 32, 0)).contains("no such kernel"));
    let launch = Launch { symbol: "planted_reverse", grid: [1; 3], block: 32, shared: 0 };
    // SAFETY: refused for its size before anything runs.
    let text = refused(unsafe { planted.context.launch(&launch, &[0u64; 5]) });
    assert!(text.contains("expected 32 bytes of arguments, got 40"), "{text}");
    Ok(())
}

#[test]
fn watched_reads_are_counted() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(64), 64, 1)?;
    planted.context.watch(planted.input.view().slice(8..16)?)?;
    planted.launch("planted_twice", [1; 3], 64, 12, 0)?;
    assert_eq!(planted.context.watched_bytes()?, 4 * 4);
    planted.context.watch(planted.input.view().slice(12..64)?)?;
    planted.launch("planted_twice", [1; 3], 64, 12, 0)?;
    assert_eq!(planted.context.watched_bytes()?, 0);
    Ok(())
}

#[test]
fn faults_fail_the_call_that_is_asked_for() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(32), 32, 1)?;
    let context = planted.context.clone();
    context.fail_after(Fault::Launch, 1);
    planted.launch("planted_reverse", [1; 3], 32, 32, 0)?;
    assert!(planted.launch("planted_reverse", [1; 3], 32, 32, 0).is_err());
    planted.launch("planted_reverse", [1; 3], 32, 32, 0)?;
    context.fail_after(Fault::Allocation, 0);
    assert!(context.allocate::<f32>(1).is_err());
    context.fail_after(Fault::Copy, 1);
    planted.out()?;
    assert!(planted.out().is_err());
    assert_eq!(planted.out()?[0], 31.0);
    assert_eq!(context.counters().launches, 2);
    Ok(())
}

#[test]
fn buffers_of_another_device_are_refused() -> Result<()> {
    let (one, other) = (open_emulated()?, open_emulated()?);
    let buffer = one.zeros::<f32>(4)?;
    assert!(other.download(buffer.view()).is_err_and(|error| error.to_string().contains("another device")));
    assert_eq!(one.download(buffer.view())?, [0.0; 4]);
    Ok(())
}

#[test]
fn products_are_right_for_every_type_and_stride() -> Result<()> {
    fn check<I: crate::cuda::Element, O: crate::cuda::Element>(context: &Context, tolerance: Tolerance) -> Result<()> {
        for [rows, n, k, stride] in [[1, 1, 1, 1], [3, 5, 7, 5], [17, 11, 64, 16], [33, 2, 3, 9]] {
            let mut values = Values::new((rows * n) as u64);
            let (x, weight) = (values.elements::<I>(rows * k, 0.0, 1.0), values.elements::<I>(n * k, 0.0, 1.0));
            let mut expected = vec![-7.0; rows * stride];
            for (r, j) in (0..rows).flat_map(|r| (0..n).map(move |j| (r, j))) {
                let products = (0..k).map(|t| f64::from(x[r * k + t].to_f32()) * f64::from(weight[j * k + t].to_f32()));
                expected[r * stride + j] = O::from_f32(products.sum::<f64>() as f32).to_f32();
            }
            let (x, weight) = (context.upload(&x)?, context.upload(&weight)?);
            let mut out = context.upload(&vec![O::from_f32(-7.0); rows * stride])?;
            context.gemm([rows, n, k], x.view(), weight.view(), None, out.view_mut(), stride)?;
            let out: Vec<f32> = context.download(out.view())?.iter().map(|value| value.to_f32()).collect();
            assert_close(&out, &expected, tolerance);
        }
        Ok(())
    }
    let context = open_emulated()?;
    check::<f32, f32>(&context, Tolerance::new(1e-4, 1e-5))?;
    check::<f16, f32>(&context, Tolerance::new(1e-4, 1e-5))?;
    check::<bf16, f32>(&context, Tolerance::new(1e-4, 1e-5))?;
    // One unit in the last place: the sums may round to either side.
    check::<f16, f16>(&context, Tolerance::new(1e-3, 1e-3))?;
    check::<bf16, bf16>(&context, Tolerance::new(1e-2, 8e-3))?;
    let (x, mut out) = (context.upload(&[1.0f32; 6])?, context.allocate::<f32>(4)?);
    assert!(
        context
            .gemm([2, 2, 3], x.view(), x.view(), None, out.view_mut(), 1)
            .is_err_and(|error| error.kind() == "shape")
    );
    assert!(
        context
            .gemm([2, 2, 2], x.view(), x.view(), None, out.view_mut(), 2)
            .is_err_and(|error| error.kind() == "shape")
    );
    let bias = context.upload(&[5.0f32, -3.0])?;
    let with_bias = |bias: View<'_, f32>, out: &mut Buffer<f32>| {
        context.gemm([2, 2, 3], x.view(), x.view(), Some(bias), out.view_mut(), 2)
    };
    with_bias(bias.view(), &mut out)?;
    assert_eq!(context.download(out.view())?, [8.0, 0.0, 8.0, 0.0]);
    assert!(with_bias(bias.view().slice(0..1)?, &mut out).is_err_and(|error| error.kind() == "shape"));
    let (mut half, halves) = (context.allocate::<f16>(4)?, context.zeros::<f16>(6)?);
    assert!(
        context
            .gemm([2, 2, 3], halves.view(), halves.view(), Some(bias.view()), half.view_mut(), 2)
            .is_err_and(|error| error.kind() == "shape")
    );
    assert!(
        context
            .gemm([2, 2, 3], x.view(), x.view(), None, half.view_mut(), 2)
            .is_err_and(|error| error.kind() == "shape")
    );
    Ok(())
}

#[test]
fn a_row_of_a_product_does_not_depend_on_the_others() -> Result<()> {
    let context = open_emulated()?;
    let (n, k, most) = (37, 129, 40);
    let mut values = Values::new(9);
    let (x, weight) = (values.elements::<f32>(most * k, 0.0, 1.0), values.elements::<f32>(n * k, 0.0, 1.0));
    let (x, weight) = (context.upload(&x)?, context.upload(&weight)?);
    let product = |rows: usize| -> Result<Vec<f32>> {
        let mut out = context.allocate(rows * n)?;
        context.gemm([rows, n, k], x.view().slice(0..rows * k)?, weight.view(), None, out.view_mut(), n)?;
        context.download(out.view())
    };
    let all = product(most)?;
    for rows in 1..most {
        crate::check::assert_same_bits(&product(rows)?, &all[..rows * n]);
    }
    Ok(())
}
