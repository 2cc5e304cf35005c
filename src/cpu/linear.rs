//! Op `linear`: a matrix product with bias and activation, in f32 or with 8-bit weights.

use std::sync::{Mutex, PoisonError};

use crate::backend::{Activation, Dtype};
use crate::cpu::gemm::{Epilogue, Int8Scratch, PackedInt8, PackedMatrix, gemm, gemm_int8};

pub use crate::cpu::gemm::{reference, reference_int8};

/// A linear layer's weights, packed for their product, and its bias.
#[derive(Debug)]
pub struct Matrix {
    packed: Packed,
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Packed {
    F32(PackedMatrix),
    I8(PackedInt8),
}

impl Matrix {
    /// Packs weights `[out_dim, in_dim]` and bias `[out_dim]`, in f32 unless asked for 8 bits.
    pub fn new(weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize, dtype: Dtype) -> Self {
        let packed = match dtype {
            Dtype::I8 => Packed::I8(PackedInt8::pack(weights, out_dim, in_dim)),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Packed::F32(PackedMatrix::pack(weights, out_dim, in_dim)),
        };
        Matrix { packed, bias: bias.map(<[f32]>::to_vec) }
    }
}

impl Matrix {
    /// Whether the weights are held as they were given.
    pub fn keeps_values(&self) -> bool {
        matches!(self.packed, Packed::F32(_))
    }

    /// Writes the weights of one output, `[in_dim]`, where they [are held as they were given](Matrix::keeps_values).
    ///
    /// # Panics
    /// Where they are not.
    pub fn weights_of(&self, output: usize, weights: &mut [f32]) {
        match &self.packed {
            Packed::F32(packed) => packed.weights_of(output, weights),
            Packed::I8(_) => panic!("linear: 8-bit weights are not as they were given"),
        }
    }
}

/// Where 8-bit products keep their quantised rows, shared by all layers of a backend.
#[derive(Debug, Default)]
pub struct Scratch(Mutex<Int8Scratch>);

/// `out = activation(x W^T + bias)`, `x` `[rows, in_dim]`, `out` `[rows, out_dim]`.
pub fn linear(matrix: &Matrix, rows: usize, x: &[f32], activation: Activation, scratch: &Scratch, out: &mut [f32]) {
    let epilogue = Epilogue { bias: matrix.bias.as_deref(), activation, residual: None };
    match &matrix.packed {
        Packed::F32(w) => gemm(&x[..rows * w.k()], rows, w, &epilogue, &mut out[..rows * w.n()]),
        Packed::I8(w) => {
            // What a panic elsewhere left in the scratch does not matter: it is written before it is read.
            let mut scratch = scratch.0.lock().unwrap_or_else(PoisonError::into_inner);
            gemm_int8(&x[..rows * w.k()], rows, w, &epilogue, &mut scratch, &mut out[..rows * w.n()]);
        }
    }
}
