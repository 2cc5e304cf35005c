//! What a stream does in which order: work aside, recorded steps, reads that come late, uploads.

use super::{is_child, run};
use crate::backend::Activation;
use crate::cuda::{self, Context, Recording};
use crate::{Result, cuda::device::Device, cuda::device::Launch};

/// Defines tests that run on the fake driver, under several orders of its streams, breaking no rule.
macro_rules! on_the_fake_driver {
    ($($name:ident: $body:expr;)*) => {
        $(
            mod $name {
                use super::*;

                #[test]
                #[ignore = "run on the fake driver by another test"]
                fn works() {
                    if is_child() {
                        let body: fn(&Context) -> Result<()> = $body;
                        let outcome = cuda::open(0).and_then(|context| body(&context));
                        assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
                    }
                }

                #[test]
                fn on_the_fake_driver() {
                    let path = concat!(module_path!(), "::works");
                    let path = path.split_once("::").map_or(path, |(_, path)| path).to_owned();
                    for seed in 0..6 {
                        let run = run(&format!("seed={seed}"), std::slice::from_ref(&path));
                        assert!(run.passed && run.broken.is_empty(), "{run:#?}");
                    }
                }
            }
        )*
    };
}

fn uploads_are_taken_at_once(context: &Context) -> Result<()> {
    // More than the ring holds, from memory that changes as soon as the call returns.
    let mut values = vec![0u32; (5 << 20) / 4 + 3];
    let mut buffers = Vec::new();
    for turn in 0..3u32 {
        values.iter_mut().enumerate().for_each(|(i, value)| *value = i as u32 ^ turn);
        buffers.push(context.upload(&values)?);
        values.fill(77);
    }
    for (turn, buffer) in (0..).zip(&buffers) {
        let found = context.download(buffer.view())?;
        assert!(found.iter().enumerate().all(|(i, value)| *value == i as u32 ^ turn));
    }
    Ok(())
}

fn nothing_is_nothing_to_do(context: &Context) -> Result<()> {
    let mut empty = context.zeros::<f32>(0)?;
    context.write(empty.view_mut(), &[])?;
    let other = context.upload::<f32>(&[])?;
    context.copy(other.view(), empty.view_mut())?;
    assert!(context.download(empty.view())?.is_empty());
    Ok(())
}

fn memory_that_is_freed_while_work_goes_aside_outlives_it(context: &Context) -> Result<()> {
    for _ in 0..8 {
        let mut kept = context.zeros::<u32>(64)?;
        let temporary = context.upload(&[5u32; 64])?;
        context.aside(|| {
            context.copy(temporary.view(), kept.view_mut())?;
            drop(temporary);
            Ok(())
        })?;
        // Beside the work aside.
        let other = context.upload(&[6u32; 64])?;
        context.join_aside()?;
        assert_eq!(context.download(kept.view())?, [5; 64]);
        assert_eq!(context.download(other.view())?, [6; 64]);
    }
    Ok(())
}

fn what_goes_aside_starts_behind_what_was_there(context: &Context) -> Result<()> {
    for turn in 0..8u32 {
        let (mut a, mut b) = (context.zeros::<u32>(16)?, context.zeros::<u32>(16)?);
        context.write(a.view_mut(), &[turn; 16])?;
        context.aside(|| context.copy(a.view(), b.view_mut()))?;
        context.join_aside()?;
        context.fill(a.view_mut(), 0xFF)?;
        assert_eq!(context.download(b.view())?, [turn; 16]);
    }
    Ok(())
}

fn steps_are_recorded_and_replayed(context: &Context) -> Result<()> {
    let (x, mut y) = (context.upload(&[2.0f32; 64])?, context.zeros::<f32>(64)?);
    let mut recording = Recording::default();
    for _ in 0..5 {
        context.step(&mut recording, || {
            context.fill(y.view_mut(), 0)?;
            context.gemm([8, 8, 8], x.view(), x.view(), (None, Activation::None), y.view_mut(), 8)
        })?;
        assert_eq!(context.download(y.view())?, [32.0; 64]);
    }
    assert!(matches!(recording, Recording::Graph(ref graph) if graph.nodes() == 2), "{recording:?}");
    // Waiting is refused before the driver hears of it, and the capture ends.
    assert!(context.capture(|| context.synchronize()).is_err());
    context.synchronize()
}

fn late_reads_wait_for_their_own_copy(context: &Context) -> Result<()> {
    let mut pinned = context.pinned::<u32>(8)?;
    for turn in 0..6u32 {
        let buffer = context.upload(&[turn; 8])?;
        context.post(buffer.view(), &mut pinned, 0)?;
        let mut found = [0; 8];
        context.wait_readback(&pinned, &mut found)?;
        assert_eq!(found, [turn; 8]);
    }
    // Freed with a copy under way.
    let buffer = context.upload(&[1u32; 8])?;
    context.post(buffer.view(), &mut pinned, 0)
}

fn products_say_how_they_are_computed(context: &Context) -> Result<()> {
    for [rows, n, k] in [[1, 1, 1], [3, 37, 31], [5, 7, 16], [2, 8, 9], [4, 64, 64], [70, 66, 64]] {
        let (x, weight) = (context.upload(&vec![1.0f32; rows * k])?, context.upload(&vec![2.0f32; n * k])?);
        for bias in [None, Some(context.upload(&vec![0.5f32; n])?)] {
            let mut out = context.allocate::<f32>(rows * n)?;
            let finish = (bias.as_ref().map(|bias| bias.view()), Activation::Relu);
            context.gemm([rows, n, k], x.view(), weight.view(), finish, out.view_mut(), n)?;
            let expected = 2.0 * k as f32 + if bias.is_some() { 0.5 } else { 0.0 };
            assert_eq!(context.download(out.view())?, vec![expected; rows * n], "{rows} {n} {k}");
        }
    }
    let halves = context.upload(&[half::bf16::ONE; 16 * 64])?;
    let mut out = context.allocate::<half::bf16>(16 * 16)?;
    context.gemm([16, 16, 64], halves.view(), halves.view(), (None, Activation::None), out.view_mut(), 16)?;
    assert_eq!(context.download(out.view())?, [half::bf16::from_f32(64.0); 256]);
    let plans = context.gemm_plans();
    assert!(plans.contains(&"3 rows by [37, 31], f32 to f32: Square32".to_owned()), "{plans:#?}");
    assert!(plans.contains(&"16 rows by [16, 64], bf16 to bf16: Small".to_owned()), "{plans:#?}");
    assert_eq!(plans.len(), 7, "{plans:#?}");
    Ok(())
}

fn arguments_of_another_size_are_refused(_: &Context) -> Result<()> {
    let device = crate::cuda::driver::CudaDevice::open(0)?;
    let launch = Launch { symbol: "checksum_f32", grid: [1; 3], block: 32, shared: 0 };
    // SAFETY: refused.
    let error = unsafe { device.launch(&launch, &[0; 16]) }.expect_err("24 bytes");
    assert!(error.to_string().contains("checksum_f32: expected 24 bytes of arguments, got 16"), "{error}");
    Ok(())
}

on_the_fake_driver! {
    uploads: uploads_are_taken_at_once;
    empty: nothing_is_nothing_to_do;
    freed_aside: memory_that_is_freed_while_work_goes_aside_outlives_it;
    aside: what_goes_aside_starts_behind_what_was_there;
    recorded: steps_are_recorded_and_replayed;
    late: late_reads_wait_for_their_own_copy;
    products: products_say_how_they_are_computed;
    arguments: arguments_of_another_size_are_refused;
}
