//! The layer around it: refused launches, counted reads, matrix products.

use half::{bf16, f16};

use super::{Planted, message, ramp};
use crate::Result;
use crate::backend::Activation;
use crate::check::{Tolerance, assert_close};
use crate::cuda::testing::Values;
use crate::cuda::{Buffer, Context, Fault, Launch, View, open_emulated};

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
            context.gemm([rows, n, k], x.view(), weight.view(), (None, Activation::None), out.view_mut(), stride)?;
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
            .gemm([2, 2, 3], x.view(), x.view(), (None, Activation::None), out.view_mut(), 1)
            .is_err_and(|error| error.kind() == "shape")
    );
    assert!(
        context
            .gemm([2, 2, 2], x.view(), x.view(), (None, Activation::None), out.view_mut(), 2)
            .is_err_and(|error| error.kind() == "shape")
    );
    let bias = context.upload(&[5.0f32, -3.0])?;
    let with_bias = |bias: View<'_, f32>, out: &mut Buffer<f32>| {
        context.gemm([2, 2, 3], x.view(), x.view(), (Some(bias), Activation::None), out.view_mut(), 2)
    };
    with_bias(bias.view(), &mut out)?;
    assert_eq!(context.download(out.view())?, [8.0, 0.0, 8.0, 0.0]);
    assert!(with_bias(bias.view().slice(0..1)?, &mut out).is_err_and(|error| error.kind() == "shape"));
    let (mut half, halves) = (context.allocate::<f16>(4)?, context.zeros::<f16>(6)?);
    let silu = (Some(bias.view()), Activation::Silu);
    context.gemm([2, 2, 3], halves.view(), halves.view(), silu, half.view_mut(), 2)?;
    let expected = [5.0 / (1.0 + (-5.0f32).exp()), -3.0 / (1.0 + 3.0f32.exp())].map(f16::from_f32);
    assert_eq!(context.download(half.view())?, [expected, expected].concat());
    assert!(
        context
            .gemm([2, 2, 3], x.view(), x.view(), (None, Activation::None), half.view_mut(), 2)
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
        context.gemm(
            [rows, n, k],
            x.view().slice(0..rows * k)?,
            weight.view(),
            (None, Activation::None),
            out.view_mut(),
            n,
        )?;
        context.download(out.view())
    };
    let all = product(most)?;
    for rows in 1..most {
        crate::check::assert_same_bits(&product(rows)?, &all[..rows * n]);
    }
    Ok(())
}
