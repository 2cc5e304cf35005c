//! Op `linear`: a matrix product with bias and activation, in f32, in bf16 or with 8-bit weights.

use std::convert::Infallible;

use crate::backend::{Activation, Dtype, WeightRows, rows_of};
use crate::cpu::gemm::{Epilogue, PackedBf16, PackedInt8, PackedMatrix, RowScratch, gemm, gemm_bf16, gemm_int8};

pub use crate::cpu::gemm::{reference, reference_bf16, reference_int8};

/// A linear layer's weights, packed for their product, and its bias.
#[derive(Debug)]
pub struct Matrix {
    packed: Packed,
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Packed {
    F32(PackedMatrix),
    Bf16(PackedBf16),
    I8(PackedInt8),
}

impl Matrix {
    /// Packs weights `[out_dim, in_dim]` and bias `[out_dim]`, in f32 unless asked for bf16 or 8 bits.
    pub fn new(weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize, dtype: Dtype) -> Self {
        let Ok(matrix) = Self::of_rows(&rows_of::<Infallible>(weights, in_dim), bias, out_dim, in_dim, dtype);
        matrix
    }

    /// As [`Matrix::new`], with weights that are asked for as they are packed.
    ///
    /// # Errors
    /// Those of `weights`.
    pub fn of_rows<E: Send>(
        weights: &WeightRows<'_, E>,
        bias: Option<&[f32]>,
        out_dim: usize,
        in_dim: usize,
        dtype: Dtype,
    ) -> Result<Self, E> {
        let packed = match dtype {
            Dtype::I8 => Packed::I8(PackedInt8::pack_rows(weights, out_dim, in_dim)?),
            Dtype::Bf16 => Packed::Bf16(PackedBf16::pack_rows(weights, out_dim, in_dim)?),
            Dtype::F32 | Dtype::F16 => Packed::F32(PackedMatrix::pack_rows(weights, out_dim, in_dim)?),
        };
        Ok(Matrix { packed, bias: bias.map(<[f32]>::to_vec) })
    }
}

/// How matrices of this type lie in memory: the same on every instruction set. A number behind the name counts changes of the layout.
pub fn layout(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        _ if cfg!(target_endian = "big") => None,
        Dtype::I8 => Some("i8-1"),
        Dtype::Bf16 => Some("bf16-1"),
        Dtype::F32 | Dtype::F16 => None,
    }
}

impl Matrix {
    /// Room for a matrix whose [parts](Matrix::parts_mut) come from elsewhere.
    pub fn zeroed(out_dim: usize, in_dim: usize, biased: bool, dtype: Dtype) -> Self {
        let packed = match dtype {
            Dtype::I8 => Packed::I8(PackedInt8::zeroed(out_dim, in_dim)),
            Dtype::Bf16 => Packed::Bf16(PackedBf16::zeroed(out_dim, in_dim)),
            Dtype::F32 | Dtype::F16 => Packed::F32(PackedMatrix::pack(&vec![0.0; out_dim * in_dim], out_dim, in_dim)),
        };
        Matrix { packed, bias: biased.then(|| vec![0.0; out_dim]) }
    }

    /// The bytes of a matrix that has a [`layout`]: weights as they are packed, and the bias.
    pub fn parts(&self) -> Vec<&[u8]> {
        let mut parts = match &self.packed {
            Packed::F32(_) => Vec::new(),
            Packed::Bf16(packed) => vec![packed.part()],
            Packed::I8(packed) => packed.parts().to_vec(),
        };
        parts.extend(self.bias.as_deref().map(bytemuck::cast_slice));
        parts
    }

    /// [`Matrix::parts`], to be written.
    pub fn parts_mut(&mut self) -> Vec<&mut [u8]> {
        let mut parts = match &mut self.packed {
            Packed::F32(_) => Vec::new(),
            Packed::Bf16(packed) => vec![packed.part_mut()],
            Packed::I8(packed) => Vec::from(packed.parts_mut()),
        };
        parts.extend(self.bias.as_deref_mut().map(bytemuck::cast_slice_mut));
        parts
    }

    /// Writes the weights of one output, `[in_dim]`, as products take them: rounded, or quantised and scaled again.
    ///
    /// # Panics
    /// If there is no such output, or `weights` has another length.
    pub fn weights_of(&self, output: usize, weights: &mut [f32]) {
        match &self.packed {
            Packed::F32(packed) => packed.weights_of(output, weights),
            Packed::Bf16(packed) => packed.weights_of(output, weights),
            Packed::I8(packed) => packed.weights_of(output, weights),
        }
    }
}

/// `out = activation(x W^T + bias)`, `x` `[rows, in_dim]`, `out` `[rows, out_dim]`.
pub fn linear(
    matrix: &Matrix,
    rows: usize,
    x: &[f32],
    activation: Activation,
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    let epilogue = Epilogue { bias: matrix.bias.as_deref(), activation, residual: None };
    match &matrix.packed {
        Packed::F32(w) => gemm(&x[..rows * w.k()], rows, w, &epilogue, &mut out[..rows * w.n()]),
        Packed::Bf16(w) => gemm_bf16(&x[..rows * w.k()], rows, w, &epilogue, scratch, &mut out[..rows * w.n()]),
        Packed::I8(w) => gemm_int8(&x[..rows * w.k()], rows, w, &epilogue, scratch, &mut out[..rows * w.n()]),
    }
}
