//! Element types of device buffers.

use half::{bf16, f16};

use super::buffer::Buffer;
use super::tensor::Tensor;
use crate::backend::Dtype;

/// A storage type of tensors.
pub trait Element: bytemuck::Pod + Send + Sync + std::fmt::Debug {
    /// Its name at run time.
    const DTYPE: Dtype;

    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Exact.
    fn to_f32(self) -> f32;

    /// A tensor of such elements.
    fn tensor(buffer: Buffer<Self>) -> Tensor;

    /// What lies in a tensor of such elements.
    fn buffer(tensor: &Tensor) -> Option<&Buffer<Self>>;

    /// As [`Element::buffer`], to write.
    fn buffer_mut(tensor: &mut Tensor) -> Option<&mut Buffer<Self>>;
}

macro_rules! element {
    ($element:ident, $kind:ident, $from:expr, $to:expr) => {
        impl Element for $element {
            const DTYPE: Dtype = Dtype::$kind;

            fn from_f32(value: f32) -> Self {
                $from(value)
            }

            fn to_f32(self) -> f32 {
                $to(self)
            }

            fn tensor(buffer: Buffer<Self>) -> Tensor {
                Tensor::$kind(buffer)
            }

            fn buffer(tensor: &Tensor) -> Option<&Buffer<Self>> {
                if let Tensor::$kind(buffer) = tensor { Some(buffer) } else { None }
            }

            fn buffer_mut(tensor: &mut Tensor) -> Option<&mut Buffer<Self>> {
                if let Tensor::$kind(buffer) = tensor { Some(buffer) } else { None }
            }
        }
    };
}

element!(f32, F32, std::convert::identity, std::convert::identity);
element!(f16, F16, f16::from_f32, f16::to_f32);
element!(bf16, Bf16, bf16::from_f32, bf16::to_f32);

/// Evaluates an expression with a name for the type of activations that goes with a type of weights, and maybe one for that of keys and
/// values: beside weights of 8 bits these are bf16 and all else f32, as on the CPU.
macro_rules! with_element {
    ($dtype:expr, $element:ident $(, $cached:ident)? => $expression:expr) => {
        match $dtype {
            $crate::backend::Dtype::F32 => {
                type $element = f32;
                $(type $cached = f32;)?
                $expression
            }
            $crate::backend::Dtype::F16 => {
                type $element = half::f16;
                $(type $cached = half::f16;)?
                $expression
            }
            $crate::backend::Dtype::Bf16 => {
                type $element = half::bf16;
                $(type $cached = half::bf16;)?
                $expression
            }
            $crate::backend::Dtype::I8 => {
                type $element = f32;
                $(type $cached = half::bf16;)?
                $expression
            }
        }
    };
}
pub(crate) use with_element;

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
