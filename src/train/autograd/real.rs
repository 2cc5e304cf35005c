//! The two element types that the autograd model computes in, and access to the values of tensors.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, WithDType};

use crate::backend::Activation;
use crate::cpu::simd;

/// f32, through the CPU backend's loops, and f64, in which gradients are checked against finite differences.
pub(in crate::train) trait Real: WithDType {
    const ZERO: Self;
    const ONE: Self;

    fn dot(a: &[Self], b: &[Self]) -> Self;
    /// `y += alpha * x`.
    fn axpy(alpha: Self, x: &[Self], y: &mut [Self]);
    /// The largest value.
    fn largest(x: &[Self]) -> Self;
    /// Replaces x by `exp(x - shift)` and returns the sum.
    fn exp_shift(x: &mut [Self], shift: Self) -> Self;
    fn activate(activation: Activation, x: &mut [Self]);
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::dot(a, b)
    }

    fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
        simd::axpy(alpha, x, y);
    }

    fn largest(x: &[f32]) -> f32 {
        simd::max(x)
    }

    fn exp_shift(x: &mut [f32], shift: f32) -> f32 {
        simd::exp_shift_in_place(x, shift)
    }

    fn activate(activation: Activation, x: &mut [f32]) {
        simd::activate(activation, x);
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn axpy(alpha: f64, x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x);
    }

    fn largest(x: &[f64]) -> f64 {
        x.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    fn exp_shift(x: &mut [f64], shift: f64) -> f64 {
        x.iter_mut().for_each(|x| *x = (*x - shift).exp());
        x.iter().sum()
    }

    fn activate(activation: Activation, x: &mut [f64]) {
        x.iter_mut().for_each(|x| *x = simd::reference_activation(activation, *x));
    }
}

/// Evaluates an expression with `$T` as the element type `$dtype`.
macro_rules! by_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err(candle_core::Error::UnsupportedDTypeForOp(other, "train")),
        }
    };
}
pub(in crate::train) use by_dtype;

/// The values of a contiguous tensor, as an operation gets them.
pub(in crate::train) fn values<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let all = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => candle_core::bail!("train: expected a contiguous tensor, got {layout:?}"),
    }
}

/// Calls `work` with the values of contiguous tensors.
pub(in crate::train) fn with_values<T: Real, R, const N: usize>(
    tensors: [&Tensor; N],
    work: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[T]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        let Storage::Cpu(storage) = &**storage else { candle_core::bail!("train: expected a tensor of the CPU") };
        *slice = values(storage, layout)?;
    }
    Ok(work(slices))
}

pub(in crate::train) fn tensor<T: Real>(values: Vec<T>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The values of a storage that nothing else uses.
pub(in crate::train) fn owned<T: Real>(storage: CpuStorage) -> Result<Vec<T>> {
    T::cpu_storage_data(storage)
}

pub(in crate::train) fn storage<T: Real>(values: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(values)
}

/// Zeros of a storage's element type, for values that are not trained.
pub(in crate::train) fn zeros(shape: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::zeros(shape, dtype, &Device::Cpu)
}
