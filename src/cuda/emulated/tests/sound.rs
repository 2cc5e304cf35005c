//! That sound kernels run right.

use half::{bf16, f16};

use super::{Planted, ramp};
use crate::Result;
use crate::cuda::testing::Values;

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

#[test]
fn fragments_of_a_product_lie_as_documented() -> Result<()> {
    let input: Vec<f32> = Values::new(5).elements::<f16>(384, 0.0, 1.0).iter().map(|value| value.to_f32()).collect();
    let mut planted = Planted::new(1, &input, 128, 1)?;
    planted.launch("planted_products", [1; 3], 32, 0, 0)?;
    let (x, weight) = input.split_at(256);
    let element = |i: usize| {
        let (row, column) = (i / 8, i % 8);
        (0..16).fold(1.0f32, |sum, t| sum + x[row * 16 + t] * weight[t * 8 + column])
    };
    assert_eq!(planted.out()?, (0..128).map(element).collect::<Vec<f32>>());
    let mut planted = Planted::new(1, &[], 1, 128)?;
    planted.launch("planted_matrices", [1; 3], 32, 0, 0)?;
    // Of matrix i lane l gets word l % 4 of row l / 4.
    let word = |at: u32| {
        let (lane, matrix) = (at / 4, at % 4);
        (8 * matrix + lane / 4) * 4 + lane % 4
    };
    assert_eq!(planted.counts()?, (0..128).map(word).collect::<Vec<u32>>());
    Ok(())
}

#[test]
fn copies_arrive_when_they_are_waited_for() -> Result<()> {
    for seed in 0..5 {
        let mut planted = Planted::new(seed, &ramp(256), 256, 1)?;
        planted.launch("planted_copies", [1; 3], 64, 64, 0)?;
        let expected = |i: usize| {
            let from = 63 - i / 4;
            if from % 3 == 2 { 0.0 } else { (4 * from + i % 4) as f32 }
        };
        assert_eq!(planted.out()?, (0..256).map(expected).collect::<Vec<f32>>());
    }
    Ok(())
}
