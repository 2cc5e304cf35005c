//! Element types of device buffers.

use half::{bf16, f16};

use crate::backend::Dtype;

/// A storage type of tensors.
pub trait Element: bytemuck::Pod + Send + Sync + std::fmt::Debug {
    /// Its name at run time.
    const DTYPE: Dtype;

    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

/// The kernel symbol `<name>_<dtype>` for an element type: `symbol!("layer_norm", T)`. No kernel stores 8 bits: a launch of one
/// fails for want of its symbol.
macro_rules! symbol {
    ($name:literal, $element:ty) => {
        match <$element as $crate::cuda::Element>::DTYPE {
            $crate::backend::Dtype::F32 => concat!($name, "_f32"),
            $crate::backend::Dtype::F16 => concat!($name, "_f16"),
            $crate::backend::Dtype::Bf16 => concat!($name, "_bf16"),
            $crate::backend::Dtype::I8 => concat!($name, "_i8"),
        }
    };
}
pub(crate) use symbol;
