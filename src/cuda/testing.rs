//! What the checks of kernels share, on the emulated device and on a GPU.

use super::rows::RowList;
use super::{Buffer, Context, Element};
#[cfg(test)]
use super::{open, open_emulated};
use crate::backend::{Dtype, Row};
use crate::check::Tolerance;

/// Makes two tests of each function `fn(&Context) -> Result<()>`: `<name>::emulator` and `<name>::gpu`, which is ignored
/// unless asked for.
#[cfg(test)]
macro_rules! device_tests {
    ($($name:ident: $function:expr;)*) => {
        $(
            mod $name {
                #[allow(unused_imports)]
                use super::*;

                #[test]
                #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
                fn emulator() {
                    $crate::cuda::testing::run_emulated($function);
                }

                #[test]
                #[ignore = "needs a GPU"]
                fn gpu() {
                    $crate::cuda::testing::run_on_gpu($function);
                }
            }
        )*
    };
}
#[cfg(test)]
pub(super) use device_tests;

/// Runs a test on a new emulated device.
#[cfg(test)]
#[track_caller]
pub fn run_emulated(test: fn(&Context) -> crate::Result<()>) {
    let outcome = open_emulated().and_then(|context| test(&context));
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}

/// Runs a test on the first GPU.
#[cfg(test)]
#[track_caller]
pub fn run_on_gpu(test: fn(&Context) -> crate::Result<()>) {
    let outcome = open(0).and_then(|context| test(&context));
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}

/// Reproducible numbers (splitmix64).
pub struct Values(u64);

impl Values {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Values(seed)
    }

    /// Uniform in 0 .. 1.
    pub fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    }

    /// `len` numbers, uniform within `spread` of `center`, one in 50 of them ten times as far out, rounded to the type.
    pub fn elements<T: Element>(&mut self, len: usize, center: f32, spread: f32) -> Vec<T> {
        (0..len)
            .map(|_| {
                let factor = if self.uniform() < 0.02 { 10.0 } else { 1.0 };
                T::from_f32(center + factor * spread * (2.0 * self.uniform() - 1.0))
            })
            .collect()
    }
}

/// A row list on the device.
pub struct DeviceRows {
    entries: Buffer<u32>,
    count: Buffer<u32>,
    bucket: usize,
}

impl DeviceRows {
    /// A bucket of all `rows`, of which the first `live` are live.
    pub fn upload(context: &Context, rows: &[Row], live: usize) -> crate::Result<Self> {
        let (entries, count) = (context.upload(bytemuck::cast_slice(rows))?, context.upload(&[live as u32])?);
        Ok(DeviceRows { entries, count, bucket: rows.len() })
    }

    /// For a launcher.
    pub fn list(&self) -> RowList<'_> {
        RowList { entries: self.entries.view(), count: self.count.view(), bucket: self.bucket }
    }
}

/// What a type's elements stand for.
pub fn stored<T: Element>(values: &[T]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

/// `computed`, the error of the f32 arithmetic relative to values around 1, plus the rounding of the result to `T`.
pub fn tolerance<T: Element>(computed: f64) -> Tolerance {
    tolerance_of(T::DTYPE, computed)
}

/// As [`tolerance`], of a type known at run time.
pub fn tolerance_of(dtype: Dtype, computed: f64) -> Tolerance {
    let rounding = match dtype {
        Dtype::F32 | Dtype::I8 => 2f64.powi(-23),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-8),
    };
    // The absolute part also covers f16's subnormal numbers.
    Tolerance::new(computed + 2f64.powi(-24), computed + rounding)
}
