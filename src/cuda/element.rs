//! Element types of device buffers.

use half::{bf16, f16};

/// The floating point type that a tensor is stored in. Arithmetic is f32 throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// A storage type of tensors.
pub trait Element: bytemuck::Pod + Send + Sync {
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

/// The kernel symbol `<name>_<dtype>` for an element type: `symbol!("layer_norm", T)`.
macro_rules! symbol {
    ($name:literal, $element:ty) => {
        match <$element as $crate::cuda::Element>::DTYPE {
            $crate::cuda::Dtype::F32 => concat!($name, "_f32"),
            $crate::cuda::Dtype::F16 => concat!($name, "_f16"),
            $crate::cuda::Dtype::Bf16 => concat!($name, "_bf16"),
        }
    };
}
pub(crate) use symbol;
